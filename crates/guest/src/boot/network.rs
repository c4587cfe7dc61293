//! The link to the host. Addresses are the same in every microVM, so that a snapshot fits any.

use super::BootError;
use crate::sys::Interface;
use guest_protocol::{GUEST_ADDRESS, HOST_ADDRESS, LINK_PREFIX};
use std::io;
use std::net::Ipv4Addr;

/// The interface at the other end of the host's tap device.
const LINK: &str = "eth0";

const LOOPBACK: &str = "lo";

/// Configures the loopback interface (the kernel gives it `127.0.0.1` and `::1`) and the link.
pub(crate) fn bring_up() -> Result<(), BootError> {
    let loopback = open(LOOPBACK)?;
    step(LOOPBACK, "bring up the link", loopback.up())?;

    let link = open(LINK)?;
    step(LINK, "set the address", link.set_address(GUEST_ADDRESS))?;
    step(LINK, "set the network mask", link.set_netmask(netmask(LINK_PREFIX)))?;

    // A restored microVM meets a new host end. Without a lock time the kernel believes its first ARP request at once,
    // even when the entry of the life before looks fresh.
    let path = format!("/proc/sys/net/ipv4/neigh/{LINK}/locktime");
    std::fs::write(&path, "0").map_err(|source| BootError::File { verb: "write", path, source })?;

    step(LINK, "bring up the link", link.up())?;
    step(LINK, "set the default route", link.add_default_route(HOST_ADDRESS))
}

fn open(interface: &'static str) -> Result<Interface, BootError> {
    step(interface, "open the settings", Interface::new(interface))
}

fn step<T>(interface: &'static str, step: &'static str, result: io::Result<T>) -> Result<T, BootError> {
    result.map_err(|source| BootError::Network { step, interface, source })
}

fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::netmask;
    use std::net::Ipv4Addr;

    #[test]
    fn netmask_of_a_prefix() {
        assert_eq!(netmask(30), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
    }
}
