//! NATS JetStream with `sync_interval: always`: one stream of one replica, one subject a room, publishes pipelined on one
//! connection, each acked on an inbox of its own. The protocol is spoken by hand: it is small.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, bail};
use waxwing::engine::{Answer, Busy, Complete, Completion, Engine, Failure, Request, Token};

use super::{
    process::{self, Process},
    queue::Queue,
};

/// Starts the server with its files in `dir`.
pub fn start(program: &Path, dir: &Path) -> anyhow::Result<(Process, SocketAddr)> {
    let port = process::free_port()?;
    let store = dir.join("jetstream");
    let config = format!(
        "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\", sync_interval: always }}\n",
        fs::canonicalize(dir)?.join("jetstream").display()
    );
    fs::create_dir_all(&store)?;
    let path = dir.join("nats.conf");
    fs::write(&path, config)?;
    process::start(Command::new(program).arg("-c").arg(&path), port)
}

/// A connection to the server.
pub struct Nats {
    socket: TcpStream,
    queue: Arc<Queue>,
    sink: Arc<OnceLock<Arc<dyn Complete>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Nats {
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut reader = BufReader::with_capacity(1 << 16, socket.try_clone()?);
        make_stream(&mut socket, &mut reader)?;
        let (queue, sink) = (Arc::new(Queue::default()), Arc::new(OnceLock::<Arc<dyn Complete>>::new()));
        let writer = Arc::new(Mutex::new(socket.try_clone()?));
        let threads = vec![
            thread::spawn({
                let (queue, writer) = (Arc::clone(&queue), Arc::clone(&writer));
                move || publish(&queue, &writer)
            }),
            thread::spawn({
                let sink = Arc::clone(&sink);
                move || drop(listen(&mut reader, &writer, &sink))
            }),
        ];
        Ok(Self { socket, queue, sink, threads })
    }
}

/// Says hello, subscribes to all inboxes, makes the stream.
fn make_stream(socket: &mut TcpStream, reader: &mut BufReader<TcpStream>) -> anyhow::Result<()> {
    let config = r#"{"name":"rooms","subjects":["room.*"],"storage":"file","retention":"limits","num_replicas":1}"#;
    write!(
        socket,
        "CONNECT {{\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\"version\":\"0\"}}\r\nSUB inbox.* 1\r\n\
         PUB $JS.API.STREAM.CREATE.rooms inbox.make {}\r\n{config}\r\n",
        config.len()
    )?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            bail!("the server closed the connection");
        }
        if line.starts_with("-ERR") {
            bail!("the server said {line}");
        }
        if line.starts_with("MSG") {
            let answer = body(reader, &line)?;
            let text = String::from_utf8_lossy(&answer);
            // It may be there since an earlier round.
            if text.contains("\"error\"") && !text.contains("already in use") {
                bail!("the stream was not made: {text}");
            }
            return Ok(());
        }
    }
}

/// The body of a message, whose length ends its first line.
fn body(reader: &mut BufReader<TcpStream>, line: &str) -> anyhow::Result<Vec<u8>> {
    let len: usize = line.split_whitespace().last().context("an empty line")?.parse()?;
    let mut body = vec![0; len + 2];
    reader.read_exact(&mut body)?;
    body.truncate(len);
    Ok(body)
}

fn publish(queue: &Queue, writer: &Mutex<TcpStream>) {
    let (mut jobs, mut bytes) = (Vec::new(), Vec::new());
    while queue.take(&mut jobs) {
        bytes.clear();
        for job in &jobs {
            let room = u64::from_le_bytes(*job.append.room.0.first_chunk().unwrap_or(&[0; 8]));
            let envelope = &job.append.envelope;
            let written = write!(bytes, "PUB room.{room:x} inbox.{} {}\r\n", job.token, envelope.len());
            debug_assert!(written.is_ok(), "memory takes everything");
            bytes.extend_from_slice(envelope);
            bytes.extend_from_slice(b"\r\n");
        }
        if writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Passes acks on, all that one read brought at a time.
fn listen(
    reader: &mut BufReader<TcpStream>,
    writer: &Mutex<TcpStream>,
    sink: &OnceLock<Arc<dyn Complete>>,
) -> anyhow::Result<()> {
    let (mut line, mut acked) = (String::new(), Vec::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.starts_with("PING") {
            writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(b"PONG\r\n")?;
        } else if line.starts_with("MSG") {
            let answer = body(reader, &line)?;
            let token: Token =
                line.split_whitespace().nth(1).and_then(|subject| subject.strip_prefix("inbox.")).context("an inbox")?.parse()?;
            let stored = answer.windows(6).any(|part| part == b"\"seq\":") && !answer.windows(7).any(|part| part == b"\"error\"");
            if !stored {
                eprintln!("JetStream: {}", String::from_utf8_lossy(&answer));
            }
            acked.push(Completion { token, result: if stored { Ok(Answer::Done) } else { Err(Failure::OutcomeUnknown) } });
        }
        if reader.buffer().is_empty()
            && !acked.is_empty()
            && let Some(sink) = sink.get()
        {
            sink.complete(std::mem::take(&mut acked));
        }
    }
}

impl Engine for Nats {
    fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        self.sink.get_or_init(|| Arc::clone(to));
        self.queue.submit(request, token, to)
    }

    fn is_healthy(&self) -> bool {
        true
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.queue.close();
        drop(self.socket.shutdown(Shutdown::Both));
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
