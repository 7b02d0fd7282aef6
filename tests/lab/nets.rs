//! Two network namespaces, joined by a [`Link`] over two TUN devices: what a process in the one says to the other takes the link's
//! way. Needs root and Linux.

use std::{
    fs::File,
    future::Future,
    os::fd::AsFd as _,
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Instant,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::Notify;
use tokio_tun::Tun;
use tokio_util::sync::CancellationToken;

use super::link::{Conditions, Count, End, Link};

/// The server's address.
pub const SERVER: &str = "10.77.0.2";
/// The client's; it may have others of its network (10.77.0.0/24).
pub const CLIENT: &str = "10.77.0.1";
/// What the wires carry at once.
const MTU: u16 = 1500;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A namespace; removed when dropped.
#[derive(Debug)]
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing can be done about it here, and the name is used only once.
        let _ = ip(&["netns", "del", &self.0]);
    }
}

/// The laboratory. Threads that entered a namespace keep it alive after this is dropped.
#[derive(Debug)]
pub struct Lab {
    client: Namespace,
    server: Namespace,
    link: Arc<Shared>,
    running: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    link: Mutex<Link>,
    /// A packet has come.
    sent: Notify,
    stop: CancellationToken,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `ip`; what it complains of is the error.
fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|error| format!("ip (Debian: iproute2): {error}"))?;
    let told = || format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(told()) }
}

impl Lab {
    /// Two namespaces whose link begins with these conditions. An error says why there can be none here.
    pub fn new(seed: u64, conditions: Conditions) -> Result<Self, String> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |end: &str| format!("wax-{}-{number}-{end}", std::process::id());
        let namespace = |end| {
            let name = name(end);
            ip(&["netns", "add", &name]).map(|()| Namespace(name))
        };
        let (client, server) = (namespace("c")?, namespace("s")?);
        let link = Link::new(seed, conditions);
        let link = Arc::new(Shared { link: Mutex::new(link), sent: Notify::new(), stop: CancellationToken::new() });
        let (told, opened) = mpsc::channel();
        let running = {
            let (link, ends) = (Arc::clone(&link), [client.0.clone(), server.0.clone()]);
            // A thread of its own, which is late for nobody's sake.
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    match wires(&ends) {
                        Ok(wires) => {
                            let _ = told.send(Ok(()));
                            carry(&wires, &link).await;
                        }
                        Err(why) => drop(told.send(Err(why))),
                    }
                });
            })
        };
        opened.recv().map_err(|_| "the link's thread ended".to_owned())??;
        Ok(Self { client, server, link, running: Some(running) })
    }

    /// What has come from an end so far.
    pub fn count(&self, from: End) -> Count {
        self.link.lock().count(from)
    }

    /// Runs a future in a namespace, on a runtime and threads of its own.
    pub fn run<T, F>(&self, end: End, make: impl FnOnce() -> F + Send + 'static) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let name = self.name(end).to_owned();
        std::thread::spawn(move || {
            enter(&name);
            // The runtime's threads inherit the namespace from the one that makes them.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(make())
        })
    }

    /// What TCP does about loss from now on, at both ends: `cubic`, say.
    pub fn set_tcp_congestion(&self, name: &str) -> Result<(), String> {
        for (end, address) in [(End::Client, CLIENT), (End::Server, SERVER)] {
            let (namespace, device) = (self.name(end), device(self.name(end)));
            // The route's, because a namespace may not choose every one that the system has.
            let route = ["route", "replace", "10.77.0.0/24", "dev", &device, "proto", "kernel", "scope", "link", "src", address];
            ip(&[&["-n", namespace], &route[..], &["congctl", name]].concat())?;
        }
        Ok(())
    }

    /// What changes the link while others use the laboratory.
    pub fn control(&self) -> Control {
        Control { link: Arc::clone(&self.link), client: self.client.0.clone() }
    }

    fn name(&self, end: End) -> &str {
        if end == End::Client { &self.client.0 } else { &self.server.0 }
    }
}

/// Changes a link.
#[derive(Debug, Clone)]
pub struct Control {
    link: Arc<Shared>,
    client: String,
}

impl Control {
    /// Changes what the link is like, from the next packet on.
    pub fn change(&self, change: impl FnOnce(&mut Conditions)) {
        change(&mut self.link.lock().conditions);
    }

    /// Waits until the client has sent so many more packets.
    pub async fn until_sent(&self, more: u64) {
        self.until(more, |link| link.count(End::Client).packets).await;
    }

    /// Waits until so many more packets of the server's did not pass because the link is cut.
    pub async fn until_cut(&self, more: u64) {
        self.until(more, |link| link.count(End::Server).cut).await;
    }

    async fn until(&self, more: u64, count: impl Fn(&Link) -> u64) {
        let counted = || count(&self.link.lock());
        let enough = counted() + more;
        loop {
            let sent = self.link.sent.notified();
            if counted() >= enough {
                return;
            }
            sent.await;
        }
    }

    /// The client has this address from now on, and none of those it had.
    pub fn renumber(&self, address: &str) {
        let device = device(&self.client);
        for args in [&["addr", "flush", "dev", &device][..], &["addr", "add", &format!("{address}/24"), "dev", &device]] {
            ip(&[&["-n", &self.client][..], args].concat()).expect("the namespace is ours");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.link.stop.cancel();
        if let Some(running) = self.running.take() {
            let _ = running.join();
        }
    }
}

fn enter(name: &str) {
    let namespace = File::open(format!("/run/netns/{name}")).expect("the namespace is there");
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
}

/// A namespace's end of the link. Names of devices are short, and those of namespaces end in what tells them apart.
fn device(namespace: &str) -> String {
    let mut name = namespace.replace('-', "");
    let cut = name.len().saturating_sub(15);
    name.drain(..cut);
    name
}

/// Makes the devices here and hands them over; this end of each stays.
fn wires(ends: &[String; 2]) -> Result<[Tun; 2], String> {
    let make = |namespace: &String, address: &str| {
        let name = device(namespace);
        let tun = Tun::builder()
            .name(&name)
            .mtu(MTU.into())
            .close_on_exec()
            .build()
            .map_err(|error| format!("/dev/net/tun: {error}"))?;
        ip(&["link", "set", &name, "netns", namespace])?;
        ip(&["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", &name])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        ip(&["-n", namespace, "link", "set", &name, "up"])?;
        tun.into_iter().next().ok_or_else(|| "no TUN device".to_owned())
    };
    Ok([make(&ends[0], CLIENT)?, make(&ends[1], SERVER)?])
}

/// Carries packets until the laboratory closes.
async fn carry([client, server]: &[Tun; 2], shared: &Shared) {
    let (mut from_client, mut from_server) = (vec![0; 2 * usize::from(MTU)], vec![0; 2 * usize::from(MTU)]);
    loop {
        let next = shared.lock().next_at();
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let (from, bytes) = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            read = client.recv(&mut from_client) => (End::Client, read.map(|len| from_client[..len].to_vec())),
            read = server.recv(&mut from_server) => (End::Server, read.map(|len| from_server[..len].to_vec())),
            () = due => (End::Client, Ok(Vec::new())),
        };
        let now = Instant::now();
        // A device that is down, or was taken away with its namespace, carries nothing.
        let Ok(bytes) = bytes else { return };
        shared.lock().send(from, bytes, now);
        shared.sent.notify_waiters();
        loop {
            let Some((to, packet)) = shared.lock().arrived(now) else { break };
            let wire = if to == End::Client { client } else { server };
            // A full device drops, as any would.
            let _ = wire.try_send(&packet);
        }
    }
}
