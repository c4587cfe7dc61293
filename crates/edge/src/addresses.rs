//! How many connections each address of clients has, so that no single one takes all that there may be. It counts whoever
//! connects, long before a token is seen.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::tally::Tally;

/// What a host has to itself where addresses have 128 bits: its network's 64 (RFC 7421).
const OWN_BITS: u32 = 64;

/// The counts.
#[derive(Debug)]
pub(crate) struct Addresses {
    most: usize,
    counts: Mutex<Tally<IpAddr>>,
}

/// A connection's place among those of its address, until it is dropped.
#[derive(Debug)]
pub(crate) struct AddressPlace {
    addresses: Arc<Addresses>,
    client: IpAddr,
}

impl Addresses {
    /// As many connections from each address.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, counts: Mutex::default() })
    }

    // No panic can leave a count half-changed, so a poisoned lock is still good.
    fn counts(&self) -> MutexGuard<'_, Tally<IpAddr>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if there are as many as there may be.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<AddressPlace> {
        let client = client(address);
        self.counts().enter(client, self.most)?;
        Some(AddressPlace { addresses: Arc::clone(self), client })
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        self.addresses.counts().leave(&self.client);
    }
}

/// What of an address its holder cannot change at will.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> OWN_BITS << OWN_BITS).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_has_its_own_places() {
        let addresses = Addresses::new(2);
        let places = [(); 2].map(|()| addresses.enter(address("10.0.0.1")).unwrap());
        assert!(addresses.enter(address("10.0.0.1")).is_none());
        assert!(addresses.enter(address("::ffff:10.0.0.1")).is_none(), "it is the same");
        let other = addresses.enter(address("10.0.0.2")).unwrap();
        let [first, second] = places;
        drop(first);
        drop((addresses.enter(address("10.0.0.1")).unwrap(), second, other));
        assert_eq!(*addresses.counts(), Tally::default());
    }

    #[test]
    fn a_host_with_many_addresses_is_one() {
        let addresses = Addresses::new(1);
        let _place = addresses.enter(address("2001:db8:0:1::1")).unwrap();
        assert!(addresses.enter(address("2001:db8:0:1:ffff:ffff:ffff:ffff")).is_none());
        assert!(addresses.enter(address("2001:db8:0:2::1")).is_some());
    }
}
