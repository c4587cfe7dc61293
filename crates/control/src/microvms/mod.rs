//! MicroVMs: what they may do, what they are, and who makes them so.

pub(crate) mod admission;
pub(crate) mod deadline;
pub(crate) mod driver;
pub(crate) mod handle;
pub(crate) mod meter;
pub(crate) mod operations;
pub(crate) mod record;
pub(crate) mod registry;
pub(crate) mod state;

use std::sync::Arc;

use api::ids::VmId;

use self::{driver::Driver, record::Record};
use crate::shared::Shared;

/// Starts the driver of a microVM and makes it known. `remains`: something of an earlier launch may be left.
pub(crate) fn start(shared: &Arc<Shared>, record: Record, vm_id: Option<VmId>, remains: bool) {
    let (driver, handle) = Driver::new(shared.clone(), record, vm_id, remains);
    shared.registry.insert(handle, &shared.config.region, &shared.config.links);
    shared.spawn(driver.run());
}
