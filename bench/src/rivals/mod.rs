//! Servers to compare with, each a process of its own: this program again. They pass every message on to everybody in its
//! room, and do nothing else.

mod floor;
mod lean;
mod toy;
mod tutorial;

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use rustls::ServerConfig;
use waxwing::{
    server::certificate,
    transport::tls::{self, Identity},
};

/// Arguments of a rival's process.
#[derive(Debug, Clone, Args)]
pub struct RivalArgs {
    /// Which.
    #[arg(value_enum)]
    which: Rival,
    /// Where its certificate is, or is made; without it there is no TLS.
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Floor only: everything is in this file, durably, before it is passed on.
    #[arg(long, value_name = "FILE")]
    durable: Option<PathBuf>,
    /// Floor only: who sends does not hear it.
    #[arg(long)]
    others: bool,
}

/// A rival that is part of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rival {
    /// One thread, one epoll, writes gathered per turn.
    Floor,
    /// tokio-tungstenite on one thread, with small buffers.
    Lean,
    /// tokio-tungstenite as its tutorial has it.
    Tutorial,
    /// wtransport as its examples have it, on one thread.
    Toy,
}

impl Rival {
    /// As the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Lean => "lean",
            Self::Tutorial => "tutorial",
            Self::Toy => "toy",
        }
    }
}

/// Serves until it is killed.
pub fn serve(args: &RivalArgs) -> anyhow::Result<()> {
    crate::meter::raise_file_limit();
    let tls = args.tls.as_ref().map(|dir| tls_config(dir)).transpose()?;
    match args.which {
        Rival::Floor => floor::serve(&listen()?, tls, args.durable.as_deref(), !args.others),
        Rival::Lean => lean::serve(listen()?, tls),
        Rival::Tutorial => tutorial::serve(listen()?, tls),
        Rival::Toy => toy::serve(args.tls.as_deref().context("WebTransport needs --tls")?),
    }
}

fn listen() -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    // The default backlog is too short for a crowd that comes at once.
    // SAFETY: takes a descriptor that lives and a number.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 4096) };
    listener.set_nonblocking(true)?;
    announce(listener.local_addr()?)?;
    Ok(listener)
}

fn announce(address: SocketAddr) -> anyhow::Result<()> {
    println!("listening {address}");
    Ok(std::io::stdout().flush()?)
}

/// The certificate of a directory, made if there is none.
pub fn identity(dir: &std::path::Path) -> anyhow::Result<Identity> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(certificate::development(dir, now.as_secs())?)
}

fn tls_config(dir: &std::path::Path) -> anyhow::Result<Arc<ServerConfig>> {
    Ok(Arc::new(tls::server_config(tls::provider(), identity(dir)?, &[b"http/1.1"])?))
}

/// What a request's head asks for: the room in its path, and the key to accept.
fn upgrade(head: &[u8]) -> Option<(u32, String)> {
    let head = std::str::from_utf8(head).ok()?;
    let room = head.strip_prefix("GET /")?.split(' ').next()?.parse().ok()?;
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key:"))?.trim();
    Some((room, tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes())))
}
