//! What is kept of a microVM: what was agreed when it was made, which never changes, and what has become of it.

use api::{arn::ImageArn, host::MicrovmSpec, ids::EndpointId, microvms::IdlePolicy};
use serde::{Deserialize, Serialize};

use super::{
    admission::Terms,
    state::{Aim, State},
};
use crate::clock::Moment;

/// What the host need not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contract {
    /// ARN of the image, kept because the image may be gone when somebody asks.
    pub(crate) image_arn: ImageArn,
    /// `executionRoleArn`.
    pub(crate) execution_role_arn: Option<String>,
    /// `idlePolicy`; a microVM without one is never suspended unasked.
    pub(crate) idle_policy: Option<IdlePolicy>,
    /// `maximumDurationInSeconds`.
    pub(crate) maximum_duration_s: u32,
    /// `ingressNetworkConnectors`, with the default filled in.
    pub(crate) ingress: Vec<String>,
    /// `egressNetworkConnectors`, with the default filled in.
    pub(crate) egress: Vec<String>,
}

impl Contract {
    /// What admission needs of it.
    pub(crate) fn terms(&self) -> Terms {
        Terms {
            auto_resume: self.idle_policy.is_some_and(|policy| policy.auto_resume_enabled),
            ends_when_idle: self.idle_policy.is_some_and(|policy| policy.suspended_duration_seconds == 0),
        }
    }
}

/// What has become of a microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fate {
    /// Its state.
    pub(crate) state: State,
    /// What it should come to be.
    pub(crate) aim: Aim,
    /// `stateReason`.
    pub(crate) reason: Option<String>,
    /// When it was suspended; only while it is.
    pub(crate) suspended_at: Option<Moment>,
    /// When it ended, in milliseconds since the epoch.
    pub(crate) terminated_at: Option<i64>,
}

impl Fate {
    /// A microVM that was just asked for.
    pub(crate) fn pending() -> Self {
        Self { state: State::Pending, aim: Aim::Running, reason: None, suspended_at: None, terminated_at: None }
    }
}

/// One microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its place in the order of creation.
    pub(crate) sequence: i64,
    /// What the host must know.
    pub(crate) spec: MicrovmSpec,
    /// First label of its endpoint.
    pub(crate) endpoint: EndpointId,
    /// What else was agreed.
    pub(crate) contract: Contract,
    /// When it was asked for.
    pub(crate) started_at: Moment,
    /// What has become of it.
    pub(crate) fate: Fate,
}
