//! A rival's server, on a port of its own, on this machine only.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// How long a server may take to listen, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Told to end, and waited for, when dropped.
pub struct Process(Child);

impl Process {
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(pid) = libc::pid_t::try_from(self.0.id()) {
            // SAFETY: the child was not waited for yet, so the id is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A port that nobody listens on.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Starts a server and waits until it listens.
pub fn start(command: &mut Command, port: u16) -> anyhow::Result<(Process, SocketAddr)> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut process = Process(child.with_context(|| format!("cannot start {program}"))?);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    await_listener(address, || matches!(process.0.try_wait(), Ok(None))).with_context(|| format!("{program} does not start"))?;
    Ok((process, address))
}

/// Waits until somebody listens there, as long as the process runs.
pub fn await_listener(address: SocketAddr, mut is_running: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begin = Instant::now();
    while TcpStream::connect(address).is_err() {
        if begin.elapsed() > PATIENCE || !is_running() {
            bail!("nobody listens at {address}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
