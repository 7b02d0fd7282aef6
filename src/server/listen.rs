//! Sockets. TCP and UDP of one address share a port.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::{Addresses, StartError};
use crate::config::Config;

/// Datagrams wait here while the process is busy; the kernel's default drops a quarter of a burst's acknowledgements.
const UDP_BUFFER: usize = 8 << 20;
/// With less, bursts lose datagrams, and whoever runs the server should know.
const UDP_BUFFER_LEAST: usize = 4 << 20;
const BACKLOG: i32 = 1024;
/// Tries to find a port that is free on both TCP and UDP.
const PORT_TRIES: u32 = 16;

/// Everything that is listened on.
pub(super) struct Sockets {
    pub(super) tls: Vec<TcpListener>,
    pub(super) udp: Vec<UdpSocket>,
    pub(super) plain: Vec<TcpListener>,
    pub(super) ops: Vec<TcpListener>,
    pub(super) addresses: Addresses,
}

/// Binds all of the configuration's addresses.
pub(super) fn bind(config: &Config) -> Result<Sockets, StartError> {
    let mut sockets =
        Sockets { tls: Vec::new(), udp: Vec::new(), plain: Vec::new(), ops: Vec::new(), addresses: Addresses::default() };
    each("listen", &config.listen, |address, only_v6| {
        let (tcp, udp) = tcp_and_udp(address, only_v6)?;
        sockets.addresses.tls.push(tcp.local_addr()?);
        sockets.tls.push(tcp);
        sockets.udp.push(udp);
        Ok(())
    })?;
    each("listen_plain", &config.listen_plain, |address, only_v6| {
        let listener = tcp(address, only_v6)?;
        sockets.addresses.plain.push(listener.local_addr()?);
        sockets.plain.push(listener);
        Ok(())
    })?;
    each("listen_ops", &config.listen_ops, |address, only_v6| {
        let listener = tcp(address, only_v6)?;
        sockets.addresses.ops.push(listener.local_addr()?);
        sockets.ops.push(listener);
        Ok(())
    })?;
    if let Some(udp) = sockets.udp.first() {
        check_buffers(udp, config.is_development());
    }
    Ok(sockets)
}

/// Binds each address of a list. A machine without IPv6 loses `[::1]`, as long as another address is left.
fn each(
    key: &'static str,
    addresses: &[SocketAddr],
    mut bind: impl FnMut(SocketAddr, bool) -> io::Result<()>,
) -> Result<(), StartError> {
    for address in addresses {
        let only_v6 = addresses.iter().any(|other| other.is_ipv4() && other.port() == address.port());
        match bind(*address, only_v6) {
            Ok(()) => {}
            Err(error) if address.is_ipv6() && address.ip().is_loopback() && addresses.len() > 1 && no_ipv6(&error) => {
                tracing::info!(%address, "this machine has no IPv6: not listening there");
            }
            Err(source) => return Err(StartError::Listen { key, address: *address, source }),
        }
    }
    Ok(())
}

fn no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT has no ErrorKind.
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

fn tcp_and_udp(address: SocketAddr, only_v6: bool) -> io::Result<(TcpListener, UdpSocket)> {
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        let tcp = tcp(address, only_v6)?;
        tries -= 1;
        match udp(tcp.local_addr()?, only_v6) {
            Ok(udp) => return Ok((tcp, udp)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn tcp(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP, only_v6)?;
    // A restart must not wait for connections of the last run.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn udp(address: SocketAddr, only_v6: bool) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP, only_v6)?;
    // Refusals show in what the buffers then are.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER);
    let _ = socket.set_send_buffer_size(UDP_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn check_buffers(udp: &UdpSocket, development: bool) {
    let socket = socket2::SockRef::from(udp);
    let (Ok(receive), Ok(send)) = (socket.recv_buffer_size(), socket.send_buffer_size()) else { return };
    match advice(granted(receive), granted(send)) {
        None => {}
        Some(advice) if development => tracing::debug!("{advice}"),
        Some(advice) => tracing::warn!("{advice}"),
    }
}

/// The size that was granted: Linux tells twice that, for its own bookkeeping (socket(7)).
const fn granted(told: usize) -> usize {
    if cfg!(target_os = "linux") { told / 2 } else { told }
}

/// What to do about buffers that are too small.
fn advice(receive: usize, send: usize) -> Option<String> {
    let small = |(name, bytes, key): (&str, usize, &str)| {
        (bytes < UDP_BUFFER_LEAST).then(|| format!("{name} {bytes} bytes (raise {key} to {UDP_BUFFER})"))
    };
    let found = [("receives into", receive, "net.core.rmem_max"), ("sends from", send, "net.core.wmem_max")].map(small);
    let found: Vec<_> = found.into_iter().flatten().collect();
    (!found.is_empty()).then(|| format!("QUIC will lose datagrams in bursts: the kernel {}", found.join(", and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_udp_buffers_are_told_with_what_to_do() {
        assert_eq!(advice(UDP_BUFFER, UDP_BUFFER_LEAST), None);
        let told = advice(212_992, UDP_BUFFER).expect("too small");
        assert!(told.contains("212992") && told.contains("net.core.rmem_max to 8388608") && !told.contains("wmem"), "{told}");
        let told = advice(1, 2).expect("too small");
        assert!(told.contains("rmem_max") && told.contains("wmem_max"), "{told}");
    }

    #[test]
    fn what_the_kernel_grants_is_what_was_asked_for_or_less() {
        let socket = udp("127.0.0.1:0".parse().expect("an address"), false).expect("a socket");
        let told = socket2::SockRef::from(&socket).recv_buffer_size().expect("a size");
        assert!((1..=UDP_BUFFER).contains(&granted(told)), "{told}");
    }
}
