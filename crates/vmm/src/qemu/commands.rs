//! The commands of QEMU's machine protocol that are used, as its schema has them (`qapi/*.json` in QEMU's source).

use qapi_spec::{Any, Command, Empty};
use serde::{Deserialize, Serialize};

macro_rules! command {
    ($(#[$doc:meta])* $type:ident { $($(#[$attr:meta])* $field:ident: $kind:ty),* } = $name:literal -> $ok:ty) => {
        $(#[$doc])*
        #[derive(Debug, Serialize)]
        pub(crate) struct $type { $($(#[$attr])* pub(crate) $field: $kind),* }

        impl Command for $type {
            type Ok = $ok;
            const NAME: &'static str = $name;
            const ALLOW_OOB: bool = false;
        }
    };
}

command!(
    /// Into command mode.
    Capabilities {} = "qmp_capabilities" -> Empty
);
command!(
    /// Let the processors run.
    Cont {} = "cont" -> Empty
);
command!(
    /// Stop the processors, and wait for disk requests to end.
    Stop {} = "stop" -> Empty
);
command!(
    /// What the machine is doing.
    QueryStatus {} = "query-status" -> Status
);
command!(
    /// Take state from somewhere, e.g. `fd:7`.
    MigrateIncoming { uri: String } = "migrate-incoming" -> Empty
);
command!(
    /// How far that is.
    QueryMigrate {} = "query-migrate" -> Migration
);
command!(
    /// Put the descriptor sent along into a new set, whose files are called `/dev/fdset/<number>`.
    AddFd {} = "add-fd" -> AddedFd
);
command!(
    /// Close a set.
    RemoveFd {
        #[serde(rename = "fdset-id")]
        set: u64
    } = "remove-fd" -> Empty
);
command!(
    /// Write the state of processors and devices, without memory and disks. Not Xen's alone, whatever it is called.
    /// "live": the machine keeps its disks; otherwise it would hand them over to somebody.
    SaveDevices { filename: String, live: bool } = "xen-save-devices-state" -> Any
);

/// Answer to [`QueryStatus`].
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) status: String,
}

/// Answer to [`QueryMigrate`]; without a status there was none yet.
#[derive(Debug, Deserialize)]
pub(crate) struct Migration {
    #[serde(default)]
    pub(crate) status: String,
    #[serde(default, rename = "error-desc")]
    pub(crate) error: String,
}

/// Answer to [`AddFd`].
#[derive(Debug, Deserialize)]
pub(crate) struct AddedFd {
    #[serde(rename = "fdset-id")]
    pub(crate) set: u64,
}
