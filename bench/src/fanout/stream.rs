//! The generator's end of a TCP connection, with TLS or without: blocking while it logs in, then never.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, RawFd},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};
use waxwing::transport::tls::EXPORTER_LABEL;

use super::epoll;

/// Nothing takes that long; it ends a login that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
}

impl Stream {
    /// Connects, and shakes hands if there is TLS.
    pub fn connect(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let tls = match tls {
            None => None,
            Some(config) => {
                let name = ServerName::from(address.ip());
                let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                while tls.is_handshaking() {
                    tls.complete_io(&mut socket)?;
                }
                Some(Box::new(tls))
            }
        };
        Ok(Self { socket, tls, unsent: Vec::new() })
    }

    /// The exporter that a login signs.
    pub fn exporter(&self) -> Option<[u8; 32]> {
        self.tls.as_ref().and_then(|tls| tls.export_keying_material([0; 32], EXPORTER_LABEL, None).ok())
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// Appends what one read brings. Blocking or not, as the socket is.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer is gone, and whatever the socket says.
    pub fn read(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        const ROOM: usize = 256 << 10;
        let Some(tls) = &mut self.tls else { return epoll::recv(self.socket.as_raw_fd(), into, ROOM) };
        loop {
            if tls.read_tls(&mut self.socket)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let wanted = state.plaintext_bytes_to_read();
            if wanted > 0 {
                let start = into.len();
                into.resize(start + wanted, 0);
                return tls.reader().read_exact(&mut into[start..]);
            }
            // A ticket, or part of a record.
        }
    }

    /// Sends, and keeps what the socket does not take; [`Stream::flush`] tries again.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(bytes)?,
            None if self.unsent.is_empty() => {
                let written = match self.socket.write(bytes) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                    written => written?,
                };
                self.unsent.extend_from_slice(&bytes[written..]);
            }
            None => self.unsent.extend_from_slice(bytes),
        }
        self.flush()
    }

    /// Sends what waits.
    pub fn flush(&mut self) -> io::Result<()> {
        let again = |result: io::Result<usize>| match result {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        };
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() && again(tls.write_tls(&mut self.socket))? > 0 {}
            return Ok(());
        }
        while !self.unsent.is_empty() {
            let written = again(self.socket.write(&self.unsent))?;
            if written == 0 {
                break;
            }
            self.unsent.drain(..written);
        }
        Ok(())
    }

    /// Whether something waits to be sent.
    pub fn is_behind(&self) -> bool {
        self.tls.as_ref().map_or(!self.unsent.is_empty(), |tls| tls.wants_write())
    }
}
