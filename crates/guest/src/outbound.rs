//! Ends the TCP connections that led out of the VM in the life before, so that the app hears of it at once
//! (`ECONNABORTED`) rather than wait for a peer that knows nothing of it any more.
//!
//! The kernel does that for `ss --kill`: over a socket of the family `sock_diag` it lists TCP sockets and ends single
//! ones. Loopback, and connections of the guest to itself, lost nothing and stay; so does whatever only listens.

use guest_protocol::{AGENT_PORT, GUEST_ADDRESS};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;

// include/uapi/linux/sock_diag.h and inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
// include/uapi/linux/netlink.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER_BYTES: usize = 16;
/// `struct inet_diag_sockid`: both ports and addresses, the interface, a cookie.
const SOCKET_ID_BYTES: usize = 48;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// A bit for each state of `include/net/tcp_states.h` in which a socket has a peer and an owner: all but TIME_WAIT,
/// CLOSE and LISTEN.
const STATES: u32 = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 11) | (1 << 12);

/// What one answer of the kernel may hold; it fills at most a page or 32 KiB, as much as it is offered.
const ANSWER_BYTES: usize = 32 * 1024;

/// Why connections could not be ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    /// The conversation with the kernel failed.
    #[error("cannot {step} of the network's diagnosis")]
    Socket {
        /// What was tried.
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// The kernel refused the list.
    #[error("the kernel does not list TCP sockets")]
    List(#[source] io::Error),
    /// The kernel refused to end a connection.
    #[error("the kernel does not end a TCP connection")]
    Destroy(#[source] io::Error),
    /// An answer that is none.
    #[error("the kernel's list of TCP sockets cannot be read")]
    Malformed,
}

/// The door to the kernel's list.
pub(crate) struct Outbound(OwnedFd);

impl Outbound {
    /// Opens it; at boot, because a restore has less to do then.
    pub(crate) fn open() -> Result<Outbound, OutboundError> {
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        socket_with(family, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))
            .map(Outbound)
            .map_err(|errno| OutboundError::Socket { step: "open the socket", source: errno.into() })
    }

    /// Ends every connection that leads out of the VM, but the host's to the agent.
    pub(crate) fn abort(&self) -> Result<(), OutboundError> {
        // A socket of the second family may carry either version of IP, so both lists are gone through.
        for family in [AF_INET, AF_INET6] {
            for connection in self.list(family)? {
                if connection.leads_out() {
                    self.destroy(&connection)?;
                }
            }
        }
        Ok(())
    }

    fn list(&self, family: u8) -> Result<Vec<Connection>, OutboundError> {
        self.say(&request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, STATES, &[0; SOCKET_ID_BYTES]))?;
        let mut found = Vec::new();
        loop {
            for message in messages(&self.hear()?) {
                let (kind, body) = message.ok_or(OutboundError::Malformed)?;
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => return Err(OutboundError::List(error_of(body).ok_or(OutboundError::Malformed)?)),
                    _ => found.push(Connection::read(body).ok_or(OutboundError::Malformed)?),
                }
            }
        }
    }

    fn destroy(&self, connection: &Connection) -> Result<(), OutboundError> {
        self.say(&request(SOCK_DESTROY, NLM_F_ACK, connection.family, STATES, &connection.id))?;
        let answer = self.hear()?;
        let (kind, body) = messages(&answer).next().flatten().ok_or(OutboundError::Malformed)?;
        let error = error_of(body).filter(|_| kind == NLMSG_ERROR).ok_or(OutboundError::Malformed)?;
        match error.raw_os_error() {
            // An acknowledgement is the error 0.
            Some(0) => Ok(()),
            // It ended by itself after it was listed.
            Some(libc::ENOENT | libc::ESTALE) => Ok(()),
            _ => Err(OutboundError::Destroy(error)),
        }
    }

    fn say(&self, message: &[u8]) -> Result<(), OutboundError> {
        match send(&self.0, message, SendFlags::empty()) {
            Ok(_) => Ok(()),
            Err(errno) => Err(OutboundError::Socket { step: "ask a question", source: errno.into() }),
        }
    }

    /// One datagram. The kernel has its answer ready when the question has been asked.
    fn hear(&self) -> Result<Vec<u8>, OutboundError> {
        let mut answer = vec![0; ANSWER_BYTES];
        let (bytes, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())
            .map_err(|errno| OutboundError::Socket { step: "read an answer", source: errno.into() })?;
        answer.truncate(bytes);
        Ok(answer)
    }
}

/// A TCP socket with a peer.
#[derive(Debug, PartialEq, Eq)]
struct Connection {
    family: u8,
    /// As the kernel told it, for it to be found again.
    id: [u8; SOCKET_ID_BYTES],
    local: IpAddr,
    local_port: u16,
    remote: IpAddr,
}

impl Connection {
    /// From a `struct inet_diag_msg`: four single bytes, of which the family is the first, and the identity.
    fn read(body: &[u8]) -> Option<Connection> {
        let family = *body.first()?;
        let id: [u8; SOCKET_ID_BYTES] = body.get(4..4 + SOCKET_ID_BYTES)?.try_into().ok()?;
        let address = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = id[at..at + 16].try_into().ok()?;
            let [a, b, c, d, ..] = bytes;
            match family {
                AF_INET => Some(IpAddr::from([a, b, c, d])),
                // A socket of the second family that carries IPv4.
                AF_INET6 => Some(Ipv6Addr::from(bytes).to_canonical()),
                _ => None,
            }
        };
        let (local, remote, local_port) = (address(4)?, address(20)?, u16::from_be_bytes([id[0], id[1]]));
        Some(Connection { family, id, local, local_port, remote })
    }

    /// Has it a peer outside of the VM?
    fn leads_out(&self) -> bool {
        let inside = self.local.is_loopback() || self.remote.is_loopback() || self.local == self.remote;
        // The agent ends those of the life before itself, and one of these has just told it to.
        let agents = self.local == GUEST_ADDRESS && self.local_port == AGENT_PORT;
        !inside && !agents
    }
}

/// A message with a `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; SOCKET_ID_BYTES]) -> Vec<u8> {
    let length = HEADER_BYTES + 8 + SOCKET_ID_BYTES;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // One question at a time: nothing to tell apart by a number, and the kernel knows the port.
    message.extend([0; 8]);
    message.extend([family, IPPROTO_TCP, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    message
}

/// The messages of a datagram, as type and body; `None` for one that does not fit, which is the last.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Some((kind, body, rest)) = first_message(datagram) else {
            datagram = &[];
            return Some(None);
        };
        datagram = rest;
        Some(Some((kind, body)))
    })
}

fn first_message(datagram: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let number = |at: usize| -> Option<[u8; 2]> { datagram.get(at..at + 2)?.try_into().ok() };
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
    let body = datagram.get(HEADER_BYTES..length)?;
    let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes(number(4)?), body, rest))
}

/// The error of a `struct nlmsgerr`, which tells it as a negative number.
fn error_of(body: &[u8]) -> Option<io::Error> {
    let number = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    Some(io::Error::from_raw_os_error(number.checked_neg()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

    fn connection(local: impl Into<IpAddr>, local_port: u16, remote: impl Into<IpAddr>) -> Connection {
        let (local, remote) = (local.into(), remote.into());
        Connection { family: AF_INET, id: [0; SOCKET_ID_BYTES], local, local_port, remote }
    }

    #[test]
    fn what_stays_inside_of_the_vm_is_told_from_what_leads_out() {
        let v6 = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
        assert!(connection(GUEST_ADDRESS, 40000, PEER).leads_out());
        assert!(connection(v6(1), 40000, v6(2)).leads_out());
        assert!(!connection(Ipv4Addr::LOCALHOST, 40000, Ipv4Addr::LOCALHOST).leads_out());
        assert!(!connection(Ipv6Addr::LOCALHOST, 40000, Ipv6Addr::LOCALHOST).leads_out());
        assert!(!connection(GUEST_ADDRESS, 8080, GUEST_ADDRESS).leads_out());
        assert!(!connection(v6(1), 40000, v6(1)).leads_out());
    }

    #[test]
    fn the_hosts_connections_to_the_agent_are_left_to_the_agent() {
        let host = guest_protocol::HOST_ADDRESS;
        assert!(!connection(GUEST_ADDRESS, AGENT_PORT, host).leads_out());
        assert!(connection(GUEST_ADDRESS, AGENT_PORT + 1, host).leads_out());
        assert!(connection(Ipv4Addr::new(172, 17, 0, 1), AGENT_PORT, host).leads_out());
    }

    #[test]
    fn a_listed_socket_is_read_in_either_family() {
        let mut v4 = vec![AF_INET, 1, 0, 0];
        v4.extend(40000u16.to_be_bytes());
        v4.extend(443u16.to_be_bytes());
        v4.extend(GUEST_ADDRESS.octets());
        v4.extend([0; 12]);
        v4.extend(PEER.octets());
        v4.extend([0; 12]);
        v4.extend([7; 12]);
        let read = Connection::read(&v4).expect("a good message");
        assert_eq!((read.local, read.local_port, read.remote), (GUEST_ADDRESS.into(), 40000, PEER.into()));
        assert_eq!(read.id[..], v4[4..]);

        let mut mapped = vec![AF_INET6, 1, 0, 0];
        mapped.extend(&v4[4..8]);
        mapped.extend(GUEST_ADDRESS.to_ipv6_mapped().octets());
        mapped.extend(PEER.to_ipv6_mapped().octets());
        mapped.extend([7; 12]);
        let read = Connection::read(&mapped).expect("a good message");
        assert_eq!((read.family, read.local, read.remote), (AF_INET6, GUEST_ADDRESS.into(), PEER.into()));

        assert_eq!(Connection::read(&v4[..40]), None);
        assert_eq!(Connection::read(&[]), None);
    }

    #[test]
    fn a_datagram_is_taken_apart_and_never_read_beyond_its_end() {
        let one = request(SOCK_DESTROY, NLM_F_ACK, AF_INET, STATES, &[1; SOCKET_ID_BYTES]);
        assert_eq!(one.len(), 72);
        let mut two = one.clone();
        two.extend(&one);
        let kinds: Vec<_> = messages(&two).map(|message| message.expect("whole").0).collect();
        assert_eq!(kinds, [SOCK_DESTROY, SOCK_DESTROY]);
        for cut in 1..one.len() {
            assert_eq!(messages(&one[..cut]).collect::<Vec<_>>(), [None]);
        }
        for length in [0u32, 15, u32::MAX] {
            let mut wrong = one.clone();
            wrong[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&wrong).collect::<Vec<_>>(), [None]);
        }
    }

    #[test]
    fn an_error_is_told_as_a_negative_number() {
        let code = |number: i32| error_of(&number.to_ne_bytes()).and_then(|error| error.raw_os_error());
        assert_eq!(code(0), Some(0));
        assert_eq!(code(-libc::ENOENT), Some(libc::ENOENT));
        assert_eq!(code(i32::MIN), None);
        assert!(error_of(&[0; 3]).is_none());
    }
}
