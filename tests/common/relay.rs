//! A path between a client and a server on this machine: a relay for datagrams that can lose, delay, and change the address
//! under which the server knows the client. Seeded; for QUIC and WebTransport.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Datagrams under way in one direction at most; what exceeds it is lost, as in a router.
const QUEUE: usize = 4096;

/// What a path is like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Path {
    /// Of 1,000 datagrams, how many are lost, in each direction.
    pub loss_permille: u64,
    /// In each direction.
    pub delay: Duration,
    pub seed: u64,
}

/// A relay in front of one server, for one client.
pub struct Relay {
    /// Where the client connects to.
    pub addr: SocketAddr,
    orders: mpsc::Sender<Order>,
    /// Retry packets of the server that were seen.
    retries: Arc<AtomicU64>,
    _task: JoinSet<()>,
}

enum Order {
    ChangeAddress,
    Hold,
    Release,
}

/// What the relay does with the client's datagrams.
#[derive(PartialEq, Eq)]
enum Hold {
    /// Passes them on.
    No,
    /// Holds them from the next connection on, once that has sent something and the server has answered.
    Armed,
    Sent,
    Holding,
}

/// Datagrams under way, with the time when they arrive.
type Way = VecDeque<(Instant, Vec<u8>)>;

struct Dice(u64);

impl Dice {
    fn loses(&mut self, permille: u64) -> bool {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % 1000 < permille
    }
}

impl Relay {
    pub async fn start(server: SocketAddr, path: Path) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = near.local_addr().unwrap();
        let (orders, ordered) = mpsc::channel(1);
        let retries = Arc::<AtomicU64>::default();
        let mut task = JoinSet::new();
        task.spawn(run(near, server, path, ordered, Arc::clone(&retries)));
        Self { addr, orders, retries, _task: task }
    }

    /// From now on the server sees the client at another address; what it sends to the old one is lost.
    pub async fn change_address(&self) {
        self.orders.send(Order::ChangeAddress).await.unwrap();
    }

    /// Of the next connection, whatever the client sends after the server's first answer is held.
    pub async fn hold(&self) {
        self.orders.send(Order::Hold).await.unwrap();
    }

    /// What is held goes on.
    pub async fn release(&self) {
        self.orders.send(Order::Release).await.unwrap();
    }

    /// Retry packets of the server that were seen (RFC 9000 §17.2.5).
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }
}

async fn far(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket
}

async fn run(near: UdpSocket, server: SocketAddr, path: Path, mut ordered: mpsc::Receiver<Order>, retries: Arc<AtomicU64>) {
    let mut out = far(server).await;
    let (mut there, mut back) = (Way::new(), Way::new());
    let (mut client, mut hold, mut held) = (None, Hold::No, Vec::new());
    let mut dice = Dice(path.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut enter = |way: &mut Way, bytes: &[u8]| {
        if !dice.loses(path.loss_permille) && way.len() < QUEUE {
            way.push_back((Instant::now() + path.delay, bytes.to_vec()));
        }
    };
    loop {
        let next = [there.front(), back.front()].into_iter().flatten().map(|(at, _)| *at).min();
        tokio::select! {
            // An order counts for whatever comes after it was given.
            biased;
            Some(order) = ordered.recv() => match order {
                Order::ChangeAddress => out = far(server).await,
                Order::Hold => hold = Hold::Armed,
                Order::Release => {
                    hold = Hold::No;
                    held.drain(..).for_each(|bytes: Vec<u8>| enter(&mut there, &bytes));
                }
            },
            Ok((len, from)) = near.recv_from(&mut from_client) => {
                client = Some(from);
                // A long header: a handshake (RFC 9000 §17.2).
                if hold == Hold::Armed && from_client[0] & 0x80 != 0 {
                    hold = Hold::Sent;
                }
                if hold == Hold::Holding {
                    held.push(from_client[..len].to_vec());
                } else {
                    enter(&mut there, &from_client[..len]);
                }
            }
            Ok(len) = out.recv(&mut from_server) => {
                retries.fetch_add(u64::from(from_server[0] & 0xf0 == 0xf0), Ordering::Relaxed);
                if hold == Hold::Sent && from_server[0] & 0x80 != 0 {
                    hold = Hold::Holding;
                }
                enter(&mut back, &from_server[..len]);
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            else => {}
        }
        let now = Instant::now();
        // A socket that takes no more loses it.
        while let Some((_, bytes)) = there.pop_front_if(|(at, _)| *at <= now) {
            let _ = out.send(&bytes).await;
        }
        while let Some((_, bytes)) = back.pop_front_if(|(at, _)| *at <= now) {
            if let Some(client) = client {
                let _ = near.send_to(&bytes, client).await;
            }
        }
    }
}
