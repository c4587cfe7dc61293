//! Namespaces made ahead of time. Taking one from a filled pool costs nothing; when it runs dry a taker makes its own,
//! which is slower by some tens of milliseconds but never refused.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use super::{
    Namespace, NetworkError,
    claims::{Claims, SLOTS, Work},
    namespace::Plan,
    rules,
};

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
    claims: Claims<OwnedFd>,
    ready: Mutex<VecDeque<Namespace>>,
    wanted: Notify,
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
        Ok(Arc::new(Self {
            owner,
            first_uid,
            network,
            config,
            claims: Claims::default(),
            ready: Mutex::default(),
            wanted: Notify::new(),
        }))
    }

    /// Keeps the pool filled until the returned future is dropped.
    pub async fn keep_filled(self: Arc<Self>) {
        loop {
            if self.ready().len() >= self.config.ready {
                self.wanted.notified().await;
                continue;
            }
            match self.make().await {
                Ok(made) => self.ready().push_back(made),
                Err(error) => {
                    tracing::error!(%error, "cannot make a network namespace ahead of time");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// A namespace for one VM.
    pub async fn take(&self) -> Result<Namespace, NetworkError> {
        let ready = self.ready().pop_front();
        self.wanted.notify_one();
        match ready {
            Some(namespace) => Ok(namespace),
            None => self.make().await,
        }
    }

    /// Takes over a namespace of a VM that outlived a daemon.
    pub fn adopt(&self, name: &str) -> Result<Namespace, NetworkError> {
        let namespace = Namespace::open(name)?;
        if let Some(slot) = self.slot_of(name) {
            self.claims.adopt(slot, namespace.holders());
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

    /// Destroys a namespace whose VM is gone, and frees its slot. One that somebody is destroying already is left to them.
    pub async fn give_back(&self, name: &str) {
        if let Some(work) = self.slot_of(name).and_then(|slot| self.claims.give_back(slot)) {
            self.remove(work).await;
        }
    }

    /// The same, if whoever had it has left it: by its name alone nobody can tell that it has not gone to another VM.
    pub async fn give_back_abandoned(&self, name: &str) {
        if let Some(work) = self.slot_of(name).and_then(|slot| self.claims.reclaim_abandoned(slot)) {
            self.remove(work).await;
        }
    }

    /// Has whoever had it left it?
    pub fn is_abandoned(&self, name: &str) -> bool {
        self.slot_of(name).is_some_and(|slot| self.claims.is_abandoned(slot))
    }

    /// Whatever is in slots that are nobody's goes: processes of these users first, by `end`, then namespaces. Slots that a
    /// record speaks for are left to whoever reads it.
    pub async fn reclaim(
        &self,
        users: &BTreeSet<u32>,
        recorded: &HashSet<String>,
        end: impl AsyncFn(u32, &Path) -> bool,
    ) {
        let of_users = users.iter().filter_map(|uid| uid.checked_sub(self.first_uid)).filter(|slot| *slot < SLOTS);
        let namespaces = Namespace::list(&self.prefix());
        let of_namespaces = namespaces.iter().filter_map(|name| self.slot_of(name));
        let slots: BTreeSet<u32> = of_users.chain(of_namespaces).chain(self.claims.abandoned()).collect();
        for slot in slots {
            let plan = self.plan(slot);
            if recorded.contains(&plan.name) {
                continue;
            }
            // From here on nobody else can have it.
            let Some(work) = self.claims.reclaim(slot) else { continue };
            tracing::info!(network = plan.name, "reclaiming a network that is nobody's");
            if end(plan.uid, &self.cgroups().join(slot.to_string())).await {
                self.remove(work).await;
            }
        }
    }

    async fn remove(&self, work: Work<'_, OwnedFd>) {
        let plan = self.plan(work.slot());
        // Sockets still open in the namespace keep it and its links alive, so the link goes first, by itself.
        Namespace::unlink(&plan.host_link).await;
        match Namespace::destroy(&plan.name).await {
            Ok(()) => work.free(),
            // The slot stays taken: a namespace that could not be removed must not be handed out again.
            Err(error) => tracing::error!(namespace = plan.name, %error, "cannot remove a network namespace"),
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
        let waiting: Vec<_> = self.ready().drain(..).collect();
        for namespace in waiting {
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

    async fn make(&self) -> Result<Namespace, NetworkError> {
        let work = self.claims.reserve().ok_or(NetworkError::Exhausted { limit: SLOTS })?;
        match Namespace::create(&self.plan(work.slot())).await {
            Ok(namespace) => {
                work.hand_over(namespace.holders());
                Ok(namespace)
            }
            Err(error) => {
                work.free();
                Err(error)
            }
        }
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

    fn ready(&self) -> std::sync::MutexGuard<'_, VecDeque<Namespace>> {
        self.ready.lock().expect("no holder of this lock panics")
    }
}
