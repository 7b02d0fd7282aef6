//! Redis with `appendonly yes`, `appendfsync always`: one list a room, commands pipelined on one connection. It keeps all
//! data in memory, and so does less than the others.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use waxwing::engine::{Answer, Busy, Complete, Completion, Engine, Failure, Request, Token};

use super::{
    process::{self, Process},
    queue::Queue,
};

/// Starts the server with its files in `dir`.
pub fn start(program: &Path, dir: &Path) -> anyhow::Result<(Process, SocketAddr)> {
    let port = process::free_port()?;
    let mut command = Command::new(program);
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]).arg(dir);
    command.args(["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--auto-aof-rewrite-percentage", "0"]);
    process::start(&mut command, port)
}

/// A connection to the server.
pub struct Redis {
    socket: TcpStream,
    queue: Arc<Queue>,
    sink: Arc<OnceLock<Arc<dyn Complete>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Redis {
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        await_loaded(&socket)?;
        let (queue, sink) = (Arc::new(Queue::default()), Arc::new(OnceLock::<Arc<dyn Complete>>::new()));
        let sent = Arc::new(Mutex::new(VecDeque::new()));
        let threads = vec![
            thread::spawn({
                let (queue, sent, mut socket) = (Arc::clone(&queue), Arc::clone(&sent), socket.try_clone()?);
                move || push(&queue, &sent, &mut socket)
            }),
            thread::spawn({
                let (sink, reader) = (Arc::clone(&sink), BufReader::with_capacity(1 << 16, socket.try_clone()?));
                move || drop(listen(reader, &sent, &sink))
            }),
        ];
        Ok(Self { socket, queue, sink, threads })
    }
}

/// A server listens before it has read its file.
fn await_loaded(mut socket: &TcpStream) -> anyhow::Result<()> {
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    while !line.starts_with("+PONG") {
        if line.starts_with("-LOADING") {
            thread::sleep(Duration::from_millis(5));
        } else if !line.is_empty() {
            anyhow::bail!("Redis: {line}");
        }
        socket.write_all(b"PING\r\n")?;
        line.clear();
        reader.read_line(&mut line)?;
    }
    Ok(())
}

fn push(queue: &Queue, sent: &Mutex<VecDeque<Token>>, socket: &mut TcpStream) {
    let (mut jobs, mut bytes) = (Vec::new(), Vec::new());
    while queue.take(&mut jobs) {
        bytes.clear();
        for job in &jobs {
            let room = u64::from_le_bytes(*job.append.room.0.first_chunk().unwrap_or(&[0; 8]));
            let envelope = &job.append.envelope;
            let written = write!(bytes, "*3\r\n$5\r\nRPUSH\r\n$16\r\n{room:016x}\r\n${}\r\n", envelope.len());
            debug_assert!(written.is_ok(), "memory takes everything");
            bytes.extend_from_slice(envelope);
            bytes.extend_from_slice(b"\r\n");
        }
        // Replies come in the order of the commands.
        sent.lock().unwrap_or_else(PoisonError::into_inner).extend(jobs.iter().map(|job| job.token));
        if socket.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn listen(
    mut reader: BufReader<TcpStream>,
    sent: &Mutex<VecDeque<Token>>,
    sink: &OnceLock<Arc<dyn Complete>>,
) -> anyhow::Result<()> {
    let (mut line, mut acked) = (String::new(), Vec::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let token = sent.lock().unwrap_or_else(PoisonError::into_inner).pop_front().context("a reply to nothing")?;
        let stored = line.starts_with(':');
        if !stored {
            eprintln!("Redis: {line}");
        }
        acked.push(Completion { token, result: if stored { Ok(Answer::Done) } else { Err(Failure::OutcomeUnknown) } });
        if reader.buffer().is_empty()
            && let Some(sink) = sink.get()
        {
            sink.complete(std::mem::take(&mut acked));
        }
    }
}

impl Engine for Redis {
    fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        self.sink.get_or_init(|| Arc::clone(to));
        self.queue.submit(request, token, to)
    }

    fn is_healthy(&self) -> bool {
        true
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.queue.close();
        drop(self.socket.shutdown(Shutdown::Both));
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
