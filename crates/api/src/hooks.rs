//! The lifecycle hooks an image declares, with every default filled in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Path every hook's name is appended to.
pub const HOOK_PATH_PREFIX: &str = "/aws/lambda-microvms/runtime/v1/";

/// What to call, where, and for how long to wait. A hook that is `None` is never called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// Port of the app the hooks are served on; set whenever a hook is.
    pub port: Option<u16>,
    /// At the build, after the app's start, until it answers 200.
    pub ready: Option<Duration>,
    /// At the build, on a VM restored from the new snapshot.
    pub validate: Option<Duration>,
    /// At launch, once, before the microVM is RUNNING.
    pub run: Option<Duration>,
    /// After a resume, before requests are let in.
    pub resume: Option<Duration>,
    /// Before a suspend.
    pub suspend: Option<Duration>,
    /// Before a terminate.
    pub terminate: Option<Duration>,
}
