//! Namespaces made ahead of time. Taking one from a filled pool costs nothing; when it runs dry a taker makes its own,
//! which is slower by some tens of milliseconds but never refused.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use api::host::Egress;
use tokio::sync::Notify;

use super::{Namespace, NetworkError, namespace::Plan, rules};

/// How many VMs a host can have at once: its addresses are a /18, four to a VM.
const SLOTS: u32 = 4096;

/// What a pool is told.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// How many namespaces are kept ready.
    pub ready: usize,
    /// Name servers the guests may ask even where they are in a private network.
    pub nameservers: Vec<IpAddr>,
}

/// The namespaces of one data directory; two servers on one machine do not touch each other's.
pub struct Pool {
    owner: String,
    first_uid: u32,
    network: Ipv4Addr,
    config: PoolConfig,
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<(u32, Namespace)>,
    used: BTreeSet<u32>,
    /// Where the search for a free slot starts. Slots go round, because the kernel takes down the links of a deleted
    /// namespace a little later, and their names with them.
    next: u32,
}

impl Pool {
    /// Installs the host's rules and starts filling the pool.
    pub async fn start(data_dir: &Path, config: PoolConfig) -> Result<Arc<Self>, NetworkError> {
        // FNV-1a: names must come out the same in every release, so that a new daemon finds the old one's.
        let hash = data_dir
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let owner = format!("{:06x}", hash & 0xff_ffff);
        // One of the 256 /18 networks of 100.64.0.0/10 (RFC 6598), which no host address should be in.
        let network = Ipv4Addr::from(0x6440_0000 | (((hash >> 24) & 0xff) as u32) << 14);
        // A user for each slot. 0x7000_0000 and up is what systemd's registry of users leaves to nobody; one of 32,768 ranges.
        let first_uid = 0x7000_0000 | (((hash >> 32) as u32 & 0x7fff) * SLOTS);
        rules::install(&owner, network, 18, &config.nameservers).await?;
        Ok(Arc::new(Self { owner, first_uid, network, config, state: Mutex::default(), wanted: Notify::new() }))
    }

    /// Keeps the pool filled until the returned future is dropped.
    pub async fn keep_filled(self: Arc<Self>) {
        loop {
            if self.locked().ready.len() >= self.config.ready {
                self.wanted.notified().await;
                continue;
            }
            match self.make().await {
                Ok(made) => self.locked().ready.push_back(made),
                Err(error) => {
                    tracing::error!(%error, "cannot make a network namespace ahead of time");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// A namespace for one VM.
    pub async fn take(&self) -> Result<Namespace, NetworkError> {
        let ready = self.locked().ready.pop_front();
        self.wanted.notify_one();
        match ready {
            Some((_, namespace)) => Ok(namespace),
            None => Ok(self.make().await?.1),
        }
    }

    /// A namespace for one VM whose packets may go no further than this.
    pub async fn take_for(&self, egress: Egress) -> Result<Namespace, NetworkError> {
        let namespace = self.take().await?;
        let closed = match egress {
            Egress::Internet => Ok(()),
            Egress::Nowhere => namespace.close().await,
        };
        match closed {
            Ok(()) => Ok(namespace),
            Err(error) => {
                self.give_back(namespace.name()).await;
                Err(error)
            }
        }
    }

    /// Takes over a namespace of a VM that outlived a daemon.
    pub fn adopt(&self, name: &str) -> Result<Namespace, NetworkError> {
        let namespace = Namespace::open(name)?;
        if let Some(slot) = self.slot_of(name) {
            self.locked().used.insert(slot);
        }
        Ok(namespace)
    }

    /// The user a VM in this namespace runs as, and the control group it is in: the slot's own, as the namespace is.
    pub fn identity_of(&self, name: &str) -> Option<(u32, PathBuf)> {
        let slot = self.slot_of(name)?;
        Some((self.first_uid + slot, self.cgroups().join(slot.to_string())))
    }

    /// Bytes that crossed the link between a namespace and the rest of the world, both ways. What the host says to the
    /// guest, it says from inside the namespace, so no request to an endpoint is among them.
    pub fn bytes_outside(&self, name: &str) -> Option<u64> {
        let link = Path::new("/sys/class/net").join(self.plan(self.slot_of(name)?).host_link).join("statistics");
        let read = |counter: &str| std::fs::read_to_string(link.join(counter)).ok()?.trim().parse::<u64>().ok();
        Some(read("rx_bytes")?.saturating_add(read("tx_bytes")?))
    }

    /// Every user a VM of this data directory may run as.
    pub fn uids(&self) -> Range<u32> {
        self.first_uid..self.first_uid + SLOTS
    }

    /// Where the control groups of this data directory are, below a controller's root.
    pub fn cgroups(&self) -> PathBuf {
        Path::new("pilotlight").join(&self.owner)
    }

    /// Destroys a namespace whose VM is gone, and frees its slot.
    pub async fn give_back(&self, name: &str) {
        // Sockets still open in the namespace keep it and its links alive, so the link goes first, by itself.
        if let Some(slot) = self.slot_of(name) {
            Namespace::unlink(&self.plan(slot).host_link).await;
        }
        if let Err(error) = Namespace::destroy(name).await {
            // The slot stays taken: a namespace that could not be removed must not be handed out again.
            tracing::error!(namespace = name, %error, "cannot remove a network namespace");
            return;
        }
        if let Some(slot) = self.slot_of(name) {
            self.locked().used.remove(&slot);
        }
    }

    /// Destroys every namespace of this data directory but these.
    pub async fn sweep(&self, keep: &[String]) {
        for name in Namespace::list(&self.prefix()) {
            if !keep.contains(&name) {
                tracing::info!(namespace = name, "removing a network namespace left behind");
                self.give_back(&name).await;
            }
        }
    }

    /// Destroys the namespaces that wait for a VM; those in use stay.
    pub async fn drain(&self) {
        let waiting: Vec<_> = self.locked().ready.drain(..).collect();
        for (_, namespace) in waiting {
            self.give_back(namespace.name()).await;
        }
    }

    /// Removes the host's packet rules, unless a guest may be left that is held by them.
    pub async fn remove_rules(&self) {
        if !Namespace::list(&self.prefix()).is_empty() {
            return;
        }
        if let Err(error) = rules::remove(&self.owner).await {
            tracing::warn!(%error, "the packet rules stay");
        }
    }

    async fn make(&self) -> Result<(u32, Namespace), NetworkError> {
        let slot = self.reserve().ok_or(NetworkError::Exhausted { limit: SLOTS })?;
        match Namespace::create(&self.plan(slot)).await {
            Ok(namespace) => Ok((slot, namespace)),
            Err(error) => {
                self.locked().used.remove(&slot);
                Err(error)
            }
        }
    }

    fn reserve(&self) -> Option<u32> {
        let mut state = self.locked();
        let start = state.next;
        let slot = (0..SLOTS).map(|offset| (start + offset) % SLOTS).find(|slot| !state.used.contains(slot))?;
        state.used.insert(slot);
        state.next = (slot + 1) % SLOTS;
        Some(slot)
    }

    fn plan(&self, slot: u32) -> Plan {
        let base = u32::from(self.network) + slot * 4;
        Plan {
            name: format!("{}{slot}", self.prefix()),
            uid: self.first_uid + slot,
            host_link: format!("plv{}{slot}", self.owner),
            host_address: Ipv4Addr::from(base + 1),
            namespace_address: Ipv4Addr::from(base + 2),
        }
    }

    fn prefix(&self) -> String {
        format!("pl-{}-", self.owner)
    }

    fn slot_of(&self, name: &str) -> Option<u32> {
        name.strip_prefix(&self.prefix())?.parse().ok()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}
