//! UDP sockets that tell their thread when datagrams come.
//!
//! quinn reads a socket for 50 µs at a time and lets others work in between. A shard that had its turn then would write to a
//! thousand members what one datagram brought, and read a thousand acknowledgements before the next. So it waits until a socket that
//! is behind has been read, which is when no more came while everybody else on the thread worked.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use quinn::{
    AsyncTimer, AsyncUdpSocket, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

thread_local! {
    static CAME: Cell<bool> = const { Cell::new(false) };
}

/// Whether datagrams have come to this thread since it last asked.
pub(super) fn came() -> bool {
    CAME.take()
}

/// quinn's runtime on tokio, with such sockets.
#[derive(Debug)]
pub(super) struct Runtime;

impl quinn::Runtime for Runtime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Socket(TokioRuntime.wrap_udp_socket(socket)?)))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

struct Socket(Arc<dyn AsyncUdpSocket>);

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(&self, cx: &mut Context<'_>, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let polled = self.0.poll_recv(cx, buffers, meta);
        if polled.is_ready() {
            CAME.set(true);
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use quinn::Runtime as _;

    use super::*;

    #[tokio::test]
    async fn what_comes_is_told_once() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_nonblocking(true).expect("it does not block");
        let to = socket.local_addr().expect("an address");
        let socket = Runtime.wrap_udp_socket(socket).expect("it is wrapped");
        // Where one thread runs all tests, others had sockets before.
        came();
        UdpSocket::bind("127.0.0.1:0").expect("another").send_to(b"abc", to).expect("it is sent");
        let (mut buffer, mut meta) = ([0; 64], [RecvMeta::default()]);
        let polled = poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)).await;
        assert_eq!((polled.expect("it can be read"), meta[0].len), (1, 3));
        assert!(came() && !came());
    }
}
