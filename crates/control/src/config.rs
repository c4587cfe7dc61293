//! What can be set.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use api::connectors::Networks;
use serde::{Deserialize, Serialize};

use crate::{Lifecycle, Links, store::Gauge};

/// How much of everything there can be. What would be more is refused with `ServiceQuotaExceededException`. Memory and
/// disk that the machine does not have are another matter: those are `InsufficientCapacityException`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Images, those being deleted included.
    pub images: u32,
    /// Versions of one image, those being removed included.
    pub versions_per_image: u32,
    /// Versions whose builds have not all ended, waiting ones included.
    pub builds: u32,
    /// Network connectors, those being deleted included.
    pub connectors: u32,
    /// Versions of one connector, failed ones included.
    pub versions_per_connector: u32,
    /// MicroVMs that have not ended, suspended ones included.
    pub microvms: u32,
    /// MiB of memory, by their baselines, of all microVMs that have not ended, suspended ones included.
    pub memory_mib: u64,
}

impl Default for Quotas {
    /// The service's defaults: of memory those of its small regions, of builds those of its large ones. It has none for
    /// the number of microVMs; ours bounds what the daemon keeps of each. Its
    /// numbers of connectors are not documented.
    fn default() -> Self {
        Self {
            images: 100,
            versions_per_image: 50,
            builds: 10,
            connectors: 100,
            versions_per_connector: 50,
            microvms: 10_000,
            memory_mib: 400 * 1024,
        }
    }
}

/// What a simulation puts in place of the machine's.
#[derive(Clone)]
pub struct Simulation {
    /// What time it is.
    pub now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// Learns whether the database is in use.
    pub gauge: Gauge,
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("gauge", &self.gauge).finish_non_exhaustive()
    }
}

/// Control's settings. Times and limits that are not here are not meant to be changed.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Region that ARNs name, such as `us-east-1`.
    pub region: String,
    /// Account that owns everything: twelve digits.
    pub account: String,
    /// What follows the first label in a microVM's `endpoint`, such as `lambda-microvm.us-east-1.localhost:4443`.
    pub endpoint_suffix: String,
    /// Builds that go on at once; more wait as PENDING.
    pub builds_concurrent_max: usize,
    /// How much there can be.
    pub quotas: Quotas,
    /// How long a connector, or an update of one, is to be seen PENDING.
    pub connector_pending: Duration,
    /// The subnets and security groups that connectors can name.
    pub networks: Networks,
    /// Requests that wait for one microVM to run; more are refused at once.
    pub waiters_per_microvm_max: usize,
    /// How long such a request waits.
    pub wake_time_max: Duration,
    /// What goes beyond the service's rules about the lives of microVMs.
    pub lifecycle: Lifecycle,
    /// Whose images let people in by links, beyond the service.
    pub links: Links,
    /// How long the record of a microVM that has ended can be seen. The real service shows it for 10 to 20 minutes at
    /// least; an hour is enough to look into what happened.
    pub terminated_kept: Duration,
    /// Only where everything is simulated.
    pub simulation: Option<Simulation>,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            region: "us-east-1".into(),
            account: "000000000000".into(),
            endpoint_suffix: "lambda-microvm.us-east-1.localhost:4443".into(),
            builds_concurrent_max: 1,
            quotas: Quotas::default(),
            connector_pending: Duration::from_millis(250),
            networks: Networks::default(),
            waiters_per_microvm_max: 512,
            // A suspend in progress and then a resume, each with a hook that takes its full minute, and their own work;
            // the edge waits as long.
            wake_time_max: Duration::from_secs(150),
            lifecycle: Lifecycle::default(),
            links: Links::default(),
            terminated_kept: Duration::from_secs(3600),
            simulation: None,
        }
    }
}
