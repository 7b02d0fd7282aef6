//! The pure core: identifiers, frames, envelopes, the hash chain, and the state machines of a session and a room.
//!
//! Nothing here knows a socket, a clock, a file or a runtime. Time is an argument, randomness is injected, durability is an
//! input. It builds for wasm32 and is the same code on the server, in the native client and in the browser.

pub mod access;
pub mod chain;
pub mod close;
pub mod delimit;
pub mod dropbox;
pub mod envelope;
pub mod frame;
pub mod handshake;
pub mod id;
pub mod lane;
pub mod limits;
pub mod log;
pub mod login;
pub mod merge;
pub mod packages;
mod recent;
pub mod room;
pub mod session;
