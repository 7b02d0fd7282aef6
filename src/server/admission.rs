//! Who may connect: a number of connections in all, and of each address as long as they are not logged in.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use crate::metrics::ConnectionGauge;

/// The server has as many connections as it may, in all or from this address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Full {
    /// In all.
    #[error("the server has as many connections as it may")]
    Server,
    /// From this address, not logged in.
    #[error("too many connections from this address are not logged in")]
    Address,
}

impl Full {
    /// A short name for metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Server => "connections_max",
            Self::Address => "connections_per_address_max",
        }
    }
}

/// Connections that are not logged in, above which newcomers must prove their address.
const UNPROVEN_MAX: u32 = 256;

#[derive(Debug, Default)]
struct Counts {
    open: u32,
    /// Sum of `strangers`.
    strangers_len: u32,
    strangers: HashMap<IpAddr, u32>,
}

/// Counts connections. Locked for a moment at the start and the end of each.
#[derive(Debug)]
pub struct Admission {
    counts: Mutex<Counts>,
    open_max: u32,
    address_max: u32,
}

impl Admission {
    /// At most `open_max` connections, and `address_max` of one address that are not logged in.
    #[must_use]
    pub fn new(open_max: u32, address_max: u32) -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default(), open_max, address_max })
    }

    /// Takes a connection in.
    ///
    /// # Errors
    /// [`Full`]
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Permit, Full> {
        let address = network(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.open >= self.open_max {
            return Err(Full::Server);
        }
        let strangers = counts.strangers.entry(address).or_insert(0);
        if *strangers >= self.address_max {
            return Err(Full::Address);
        }
        *strangers += 1;
        counts.strangers_len += 1;
        counts.open += 1;
        drop(counts);
        Ok(Permit { admission: Arc::clone(self), stranger: Some(Box::new(address)), gauge: None })
    }

    /// Whether a newcomer whose address may be forged must prove it first: while many are not logged in, or some of that
    /// very address, which somebody else may want to keep out by pretending to be it.
    #[must_use]
    pub fn wants_proof(&self, address: IpAddr) -> bool {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let same = counts.strangers.get(&network(address)).copied().unwrap_or_default();
        counts.strangers_len > UNPROVEN_MAX || same > self.address_max / 4
    }

    fn forget_stranger(counts: &mut Counts, address: IpAddr) {
        counts.strangers_len = counts.strangers_len.saturating_sub(1);
        if let Some(count) = counts.strangers.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.strangers.remove(&address);
            }
        }
    }
}

/// One subscriber line has a /64 of IPv6 at least: it counts as one address.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

/// A connection's place. Dropped when the connection ends.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    /// Its address until it is logged in, which most are.
    stranger: Option<Box<IpAddr>>,
    gauge: Option<ConnectionGauge>,
}

impl Permit {
    /// The connection is logged in: it no longer counts against its address.
    pub fn authenticated(&mut self) {
        if let Some(address) = self.stranger.take() {
            let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
            Admission::forget_stranger(&mut counts, *address);
        }
    }

    /// Adds to the bytes of the connection's transport in the metrics.
    pub fn count_bytes(&self, received: u64, sent: u64) {
        if let Some(gauge) = &self.gauge {
            gauge.count_bytes(received, sent);
        }
    }

    /// Its name, or nothing before it is known.
    pub(super) fn transport(&self) -> &'static str {
        self.gauge.as_ref().map_or("", ConnectionGauge::transport)
    }

    pub(super) fn count(&mut self, gauge: ConnectionGauge) {
        self.gauge = Some(gauge);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.authenticated();
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.open = counts.open.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_limited_by_address_and_all_by_number() {
        let admission = Admission::new(4, 2);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut first = admission.admit(a).unwrap();
        let _second = admission.admit("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert_eq!(admission.admit(a).unwrap_err(), Full::Address);
        first.authenticated();
        first.authenticated();
        let third = admission.admit(a).unwrap();
        let fourth = admission.admit(b).unwrap();
        assert_eq!(admission.admit(b).unwrap_err(), Full::Server);
        drop((first, third, fourth));
        let counts = admission.counts.lock().unwrap();
        assert_eq!((counts.open, counts.strangers_len, counts.strangers.len()), (1, 1, 1));
    }

    #[test]
    fn an_address_must_be_proven_when_many_claim_it() {
        let admission = Admission::new(9, 8);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut held: Vec<_> = (0..3).map(|_| admission.admit(a).unwrap()).collect();
        assert!(admission.wants_proof(a));
        assert!(!admission.wants_proof(b));
        held.iter_mut().for_each(Permit::authenticated);
        assert!(!admission.wants_proof(a));
    }

    #[test]
    fn a_64_of_ipv6_is_one_address() {
        let admission = Admission::new(9, 1);
        let _one = admission.admit("2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(admission.admit("2001:db8::2".parse().unwrap()).unwrap_err(), Full::Address);
        assert!(admission.admit("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }
}
