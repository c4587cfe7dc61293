//! What can be set.

use std::time::Duration;

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
    /// Images there can be, those being deleted included; the service's quota.
    pub images_max: u32,
    /// Versions one image can have, those being removed included; the service's quota.
    pub versions_per_image_max: u32,
    /// Builds that have not ended there can be, waiting ones included; the service's quota in its large regions.
    pub builds_max: u32,
    /// MicroVMs that have not ended there can be, suspended ones included.
    pub microvms_max: u32,
    /// Requests that wait for one microVM to run; more are refused at once.
    pub waiters_per_microvm_max: usize,
    /// How long such a request waits.
    pub wake_time_max: Duration,
    /// How long the record of a microVM that has ended can be seen. The real service shows it for 10 to 20 minutes at
    /// least; an hour is enough to look into what happened.
    pub terminated_kept: Duration,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            region: "us-east-1".into(),
            account: "000000000000".into(),
            endpoint_suffix: "lambda-microvm.us-east-1.localhost:4443".into(),
            builds_concurrent_max: 1,
            images_max: 100,
            versions_per_image_max: 50,
            builds_max: 10,
            microvms_max: 1000,
            waiters_per_microvm_max: 512,
            // A suspend in progress and then a resume, each with a hook that takes its full minute, and their own work;
            // the edge waits as long.
            wake_time_max: Duration::from_secs(150),
            terminated_kept: Duration::from_secs(3600),
        }
    }
}
