//! Limits, capabilities and ids of the app: what an ordinary container has.

use super::identity::Identity;
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, remove_capability_from_bounding_set, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::io;

/// Why the app could not be made who it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrivilegesError {
    /// A capability could not be given up.
    #[error("cannot give up the capability {number}")]
    Capability {
        /// Its number.
        number: u32,
        #[source]
        source: io::Error,
    },
    /// The ids could not be changed.
    #[error("cannot run as uid {uid} and gid {gid}")]
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        #[source]
        source: io::Error,
    },
}

/// The capabilities of an ordinary container: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
/// net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
const CONTAINER_CAPABILITIES: u64 = 0xa804_25fb;

/// The service has 1024 as its soft limit, and programs that use `select` count on it. The hard limit is higher than
/// there, so that a server that raises its own limit can.
pub(super) fn limit_files() -> Result<(), Errno> {
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: Some(524_288) })
}

/// Becomes that user, for good. What the bounding set lacks, the program that is executed next cannot have, not even as
/// root; a user other than root has nothing left to begin with, and gains what a set-user-ID program gives it.
pub(super) fn assume(identity: &Identity, all_capabilities: bool) -> Result<(), PrivilegesError> {
    if !all_capabilities {
        bound_capabilities()?;
    }
    let failed = |errno: Errno| PrivilegesError::Ids { uid: identity.uid, gid: identity.gid, source: errno.into() };
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    // One thread, so what these calls do to the thread they do to the process.
    set_thread_groups(&groups).map_err(failed)?;
    set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    set_thread_res_uid(uid, uid, uid).map_err(failed)
}

fn bound_capabilities() -> Result<(), PrivilegesError> {
    for number in 0..u64::BITS {
        let bit = 1u64 << number;
        if CONTAINER_CAPABILITIES & bit != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(bit)) {
            Ok(()) => {}
            // The first number that this kernel has no capability for.
            Err(Errno::INVAL) => return Ok(()),
            Err(errno) => return Err(PrivilegesError::Capability { number, source: errno.into() }),
        }
    }
    Ok(())
}
