//! Waxwing: an edge for end-to-end-encrypted chat.
//!
//! The crate is one package with three sides. [`core`] is pure: frames, envelopes, the hash chain, the state machines of a
//! session and of a room. `seal`, `group` and `client` (feature `seal`, `client`, `web`) are what a person's device runs. `server`,
//! `router` and `engine` (feature `server`) are the edge, which cannot name `seal`: it routes and stores what it cannot open.

/// Tests in here use people and a server that tests beside the crate use, too.
#[cfg(test)]
extern crate self as waxwing;

/// The program of the README compiles.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod core;

#[cfg(feature = "seal")]
pub mod client;
#[cfg(feature = "seal")]
pub mod group;
#[cfg(feature = "seal")]
pub mod seal;
#[cfg(feature = "net")]
pub mod transport;

#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod engine;
#[cfg(feature = "server")]
mod memory;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod router;
#[cfg(feature = "server")]
pub mod server;

#[cfg(all(feature = "server", feature = "client"))]
pub mod cli;

#[cfg(all(feature = "web", target_arch = "wasm32"))]
pub mod web;
