//! Whether this machine came to another network: which address it would send from is asked every few seconds. No packet is sent for
//! that, and it is the same on every system.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(3);
/// The ports do not matter: nothing is sent.
const PORT: u16 = 443;
/// Addresses of nobody (RFC 5737, RFC 3849), which are reached as most of the world is.
const FAR: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The addresses that this machine sends from: to the edge, where its origin names an address, and to far away.
type Local = [Option<IpAddr>; 3];

/// The network that the machine is in.
#[derive(Debug)]
pub(super) struct Network {
    edge: Option<IpAddr>,
    seen: Local,
    look_at: Instant,
}

impl Network {
    /// As it is now, for an edge of this origin.
    pub(super) fn new(origin: &str) -> Self {
        let edge = edge_of(origin);
        Self { edge, seen: local(edge), look_at: Instant::now() + EVERY }
    }

    /// Waits until it is another one. It may be dropped without losing anything.
    pub(super) async fn changed(&mut self) {
        loop {
            sleep_until(self.look_at).await;
            self.look_at = Instant::now() + EVERY;
            if self.look(local(self.edge)) {
                return;
            }
        }
    }

    /// Whether these addresses are those of another network. One that is gone is none: nothing can be reached then, and the next one
    /// is another one, also where it is the same again.
    fn look(&mut self, now: Local) -> bool {
        let appeared = now.iter().zip(&self.seen).any(|(now, seen)| now.is_some() && now != seen);
        self.seen = now;
        appeared
    }
}

/// The address in an origin, if it has one in place of a name.
fn edge_of(origin: &str) -> Option<IpAddr> {
    let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
    let address = authority.parse().map(|address: SocketAddr| address.ip());
    address.or_else(|_| authority.trim_matches(['[', ']']).parse()).ok()
}

fn local(edge: Option<IpAddr>) -> Local {
    let [v4, v6] = FAR;
    [edge, Some(v4), Some(v6)].map(|remote| remote.and_then(towards))
}

/// The address that packets to `remote` are sent from. Connecting such a socket only looks up the way.
fn towards(remote: IpAddr) -> Option<IpAddr> {
    let any = if remote.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((remote, PORT)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test]
    async fn another_address_is_another_network_and_none_is_not() {
        let mut network = Network { edge: None, seen: [None, ip("10.0.0.7"), None], look_at: Instant::now() };
        assert!(!network.look([None, ip("10.0.0.7"), None]));
        assert!(network.look([None, ip("192.168.1.7"), None]), "another address");
        assert!(network.look([None, ip("192.168.1.7"), ip("2001:db8::7")]), "IPv6 came");
        assert!(!network.look([None, ip("192.168.1.7"), None]), "IPv6 went");
        assert!(!network.look([None; 3]), "no network");
        assert!(!network.look([None; 3]));
        assert!(network.look([None, ip("192.168.1.7"), None]), "back again");
        assert!(network.look([ip("10.77.0.1"), ip("192.168.1.7"), None]), "the edge, by a way of its own");
    }

    #[tokio::test]
    async fn who_looks_for_a_change_hears_of_it() {
        let edge = ip("127.0.0.1");
        // As if the machine had just come: what it was before is not what it is.
        let mut network = Network { edge, seen: [None; 3], look_at: Instant::now() };
        network.changed().await;
        assert_eq!(network.seen.first(), Some(&edge));
        assert!(network.look_at > Instant::now());
    }

    #[test]
    fn the_edge_is_what_its_origin_says() {
        assert_eq!(edge_of("http://10.77.0.2:8433"), ip("10.77.0.2"));
        assert_eq!(edge_of("https://10.77.0.2"), ip("10.77.0.2"));
        assert_eq!(edge_of("https://[2001:db8::2]:8433"), ip("2001:db8::2"));
        assert_eq!(edge_of("https://[2001:db8::2]"), ip("2001:db8::2"));
        assert_eq!(edge_of("https://chat.example"), None);
        assert_eq!(towards(IpAddr::V4(Ipv4Addr::LOCALHOST)), ip("127.0.0.1"));
    }
}
