//! One namespace: made, entered for a socket, destroyed.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use guest_protocol::{GUEST_ADDRESS, HOST_ADDRESS, LINK_PREFIX};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};

use super::{NetworkError, run};

/// The guest's network card; the same in every microVM. Locally administered.
pub const GUEST_MAC: [u8; 6] = [0x06, 0x00, 0xa9, 0xfe, 0x64, 0x02];

/// The host's end of the tap; the same everywhere, so that what a snapshot remembers of its neighbour stays true.
const TAP_MAC: &str = "06:00:a9:fe:64:01";

/// Where `ip netns` keeps namespaces.
const NAMESPACE_DIR: &str = "/run/netns";

/// A network namespace with a tap for one VM.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
    handle: Arc<OwnedFd>,
}

/// What a namespace is made of; derived from its slot alone.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub name: String,
    /// The user who may use the tap.
    pub uid: u32,
    pub host_link: String,
    pub host_address: Ipv4Addr,
    pub namespace_address: Ipv4Addr,
}

impl Namespace {
    /// Makes the namespace of this plan, replacing one that was left behind.
    pub(super) async fn create(plan: &Plan) -> Result<Self, NetworkError> {
        let Plan { name, uid, host_link, host_address, namespace_address } = plan;
        Self::unlink(host_link).await;
        Self::destroy(name).await?;
        run("ip", &["netns", "add", name], "").await?;
        let made = Self::furnish(name, *uid, host_link, *host_address, *namespace_address).await;
        if let Err(error) = made {
            Self::destroy(name).await?;
            return Err(error);
        }
        Self::open(name)
    }

    async fn furnish(
        name: &str,
        uid: u32,
        host_link: &str,
        host_address: Ipv4Addr,
        namespace_address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let outside = format!(
            "link add {host_link} type veth peer name up0 netns {name}\n\
             address add {host_address}/30 dev {host_link}\n\
             link set {host_link} up\n"
        );
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let inside = format!(
            "link set lo up\n\
             tuntap add dev tap0 mode tap vnet_hdr user {uid}\n\
             link set tap0 address {TAP_MAC}\n\
             address add {HOST_ADDRESS}/{LINK_PREFIX} dev tap0\n\
             link set tap0 up\n\
             neighbour replace {GUEST_ADDRESS} lladdr {mac} dev tap0 nud permanent\n\
             address add {namespace_address}/30 dev up0\n\
             link set up0 up\n\
             route add default via {host_address}\n"
        );
        // The guest may send from its own address only, and reaches nothing of the namespace itself.
        let filter = format!(
            "table ip pilotlight {{\n\
               chain input {{ type filter hook input priority 0; policy accept; \
                 iifname tap0 ct state established,related accept; iifname tap0 drop; iifname up0 ct state established,related accept; iifname up0 drop; }}\n\
               chain forward {{ type filter hook forward priority 0; policy drop; \
                 iifname tap0 ip saddr {GUEST_ADDRESS} accept; oifname tap0 ct state established,related accept; }}\n\
               chain postrouting {{ type nat hook postrouting priority 100; oifname up0 masquerade; }}\n\
             }}\n"
        );
        run("ip", &["-batch", "-"], &outside).await?;
        run("ip", &["-netns", name, "-batch", "-"], &inside).await?;
        run("ip", &["netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=1"], "").await?;
        run("ip", &["netns", "exec", name, "nft", "-f", "-"], &filter).await?;
        Ok(())
    }

    /// Lets nothing out any more. What the host asks is answered all the same: it asks from inside the namespace.
    pub async fn close(&self) -> Result<(), NetworkError> {
        let rule = "insert rule ip pilotlight forward iifname tap0 drop\n";
        run("ip", &["netns", "exec", &self.name, "nft", "-f", "-"], rule).await.map(drop)
    }

    /// Opens a namespace that exists.
    pub fn open(name: &str) -> Result<Self, NetworkError> {
        let error = |source| NetworkError::Open { name: name.to_owned(), source };
        let handle = File::open(Self::path_of(name)).map_err(error)?;
        Ok(Self { name: name.to_owned(), handle: Arc::new(handle.into()) })
    }

    /// Removes a namespace and, with it, both ends of its links; absent is fine.
    pub async fn destroy(name: &str) -> Result<(), NetworkError> {
        if Self::path_of(name).exists() {
            run("ip", &["netns", "delete", name], "").await?;
        }
        Ok(())
    }

    /// Removes the host's end of a namespace's link, and the other end with it; absent is fine.
    pub(super) async fn unlink(host_link: &str) {
        if Path::new("/sys/class/net").join(host_link).exists() {
            // It may have gone by itself meanwhile.
            let _ = run("ip", &["link", "delete", host_link], "").await;
        }
    }

    /// Every namespace whose name begins so.
    pub fn list(prefix: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(NAMESPACE_DIR) else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect()
    }

    /// Gone once nobody has this namespace any more.
    pub(super) fn holders(&self) -> Weak<OwnedFd> {
        Arc::downgrade(&self.handle)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file of a namespace of this name, for a program to be started in it.
    pub(crate) fn path_of(name: &str) -> PathBuf {
        Path::new(NAMESPACE_DIR).join(name)
    }

    /// Connects to a port of the guest.
    pub async fn connect(&self, port: u16, timeout: Duration) -> io::Result<TcpStream> {
        let handle = Arc::clone(&self.handle);
        let (send, receive) = tokio::sync::oneshot::channel();
        // A socket belongs for ever to the namespace it was made in, whoever uses it. A thread of its own makes it: a
        // thread that has changed namespace must never run anything else.
        std::thread::Builder::new().name("netns-socket".into()).spawn(move || {
            let entered = move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network));
            let socket = entered.map_err(io::Error::from).and_then(|()| TcpSocket::new_v4());
            // The receiver is gone only if the caller gave up.
            let _ = send.send(socket);
        })?;
        let socket = receive.await.map_err(|_| io::Error::other("the socket thread ended"))??;
        socket.set_nodelay(true)?;
        let connecting = socket.connect(SocketAddr::new(GUEST_ADDRESS.into(), port));
        tokio::time::timeout(timeout, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}
