//! Shapes of the microVM operations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    arn::ImageArn,
    ids::{ImageVersion, MicrovmId},
    logging::Logging,
    page::{Page, PageRequest},
    sensitive::Sensitive,
    timestamp::Timestamp,
    word::words,
};

mod parse;
mod plan;

pub use plan::{MAXIMUM_DURATION_SECONDS, PORT_RANGES_MAX, RunPlan, TokenPlan};

words! {
    /// State of a microVM.
    MicrovmState {
        /// Being launched.
        Pending = "PENDING",
        /// It takes requests.
        Running = "RUNNING",
        /// Being suspended.
        Suspending = "SUSPENDING",
        /// Memory and disk are kept, nothing runs.
        Suspended = "SUSPENDED",
        /// Being ended.
        Terminating = "TERMINATING",
        /// Ended.
        Terminated = "TERMINATED",
    }
}

/// When a microVM is suspended and what becomes of it then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdlePolicy {
    /// Silence after which it is suspended.
    pub max_idle_duration_seconds: u32,
    /// Time in suspension after which it is ended; 0 ends it instead of suspending it.
    pub suspended_duration_seconds: u32,
    /// Whether a request wakes it.
    pub auto_resume_enabled: bool,
}

/// `RunMicrovm`. Serialised, it is what an idempotency record keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunMicrovmRequest {
    /// The image.
    pub image: ImageArn,
    /// A certain version of it, as written by the caller; without one, the newest active.
    pub image_version: Option<String>,
    /// Ways in.
    pub ingress_network_connectors: Option<Vec<String>>,
    /// Ways out.
    pub egress_network_connectors: Option<Vec<String>>,
    /// Role whose credentials the app sees.
    pub execution_role_arn: Option<String>,
    /// When to suspend; without one, never by itself.
    pub idle_policy: Option<IdlePolicy>,
    /// Where output goes.
    pub logging: Option<Logging>,
    /// Key to encrypt with; there are none here, and one is refused. Left out of what is kept where it was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key_identifier: Option<String>,
    /// Body of the `/run` hook.
    pub run_hook_payload: Option<Sensitive>,
    /// When it ends at the latest.
    pub maximum_duration_in_seconds: Option<u32>,
    /// Idempotency key.
    pub client_token: Option<String>,
}

/// What `RunMicrovm` and `GetMicrovm` answer. Never the payload, the logging or the size: the service keeps those back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmResponse {
    /// The microVM.
    pub microvm_id: MicrovmId,
    /// Its state.
    pub state: MicrovmState,
    /// Its host name, without a scheme.
    pub endpoint: String,
    /// The image.
    pub image_arn: ImageArn,
    /// The version.
    pub image_version: ImageVersion,
    /// Role whose credentials the app sees.
    pub execution_role_arn: Option<String>,
    /// When it is suspended.
    pub idle_policy: Option<IdlePolicy>,
    /// When it ends at the latest.
    pub maximum_duration_in_seconds: u32,
    /// When it was launched.
    pub started_at: Timestamp,
    /// When it ended.
    pub terminated_at: Option<Timestamp>,
    /// Why it is in that state.
    pub state_reason: Option<String>,
    /// Key it is encrypted with; always null here.
    pub kms_key_identifier: Option<String>,
    /// Ways in.
    pub ingress_network_connectors: Vec<String>,
    /// Ways out.
    pub egress_network_connectors: Vec<String>,
}

/// What `RunMicrovm` answers.
pub type RunMicrovmResponse = GetMicrovmResponse;

macro_rules! microvm_request {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            /// The microVM, as written by the caller: an id that cannot be is not found.
            pub microvm_identifier: String,
        }
    };
}

microvm_request!(
    /// `GetMicrovm`.
    GetMicrovmRequest
);
microvm_request!(
    /// `SuspendMicrovm`.
    SuspendMicrovmRequest
);
microvm_request!(
    /// `ResumeMicrovm`.
    ResumeMicrovmRequest
);
microvm_request!(
    /// `TerminateMicrovm`.
    TerminateMicrovmRequest
);

macro_rules! empty_response {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {}
    };
}

empty_response!(
    /// What `SuspendMicrovm` answers.
    SuspendMicrovmResponse
);
empty_response!(
    /// What `ResumeMicrovm` answers.
    ResumeMicrovmResponse
);
empty_response!(
    /// What `TerminateMicrovm` answers.
    TerminateMicrovmResponse
);

/// `ListMicrovms`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListMicrovmsRequest {
    /// Which page.
    pub page: PageRequest,
    /// Only those of this image.
    pub image: Option<ImageArn>,
    /// Only those of this version.
    pub image_version: Option<String>,
}

/// One microVM in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MicrovmItem {
    /// The microVM.
    pub microvm_id: MicrovmId,
    /// Its state.
    pub state: MicrovmState,
    /// The image.
    pub image_arn: ImageArn,
    /// The version.
    pub image_version: ImageVersion,
    /// When it was launched.
    pub started_at: Timestamp,
}

/// What `ListMicrovms` answers.
pub type ListMicrovmsResponse = Page<MicrovmItem>;

/// Ports a token is asked for: exactly one of the union's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PortSpecification {
    /// One port.
    Port(u16),
    /// All from the first to the last.
    Range(PortRange),
    /// Every port.
    AllPorts(Unit),
}

/// The empty structure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortRange {
    /// The first.
    pub start_port: u16,
    /// The last.
    pub end_port: u16,
}

/// `CreateMicrovmAuthToken`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateMicrovmAuthTokenRequest {
    /// The microVM, as written by the caller.
    pub microvm_identifier: String,
    /// How long the token is good.
    pub expiration_in_minutes: u32,
    /// For which ports.
    pub allowed_ports: Vec<PortSpecification>,
}

/// `CreateMicrovmShellAuthToken`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateMicrovmShellAuthTokenRequest {
    /// The microVM, as written by the caller.
    pub microvm_identifier: String,
    /// How long the token is good.
    pub expiration_in_minutes: u32,
}

/// What `CreateMicrovmShellAuthToken` answers.
pub type CreateMicrovmShellAuthTokenResponse = CreateMicrovmAuthTokenResponse;

/// Header a token is sent in, and its key in the answer.
pub const AUTH_TOKEN_HEADER: &str = "X-aws-proxy-auth";

/// What `CreateMicrovmAuthToken` answers: headers to send with every request to the endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateMicrovmAuthTokenResponse {
    /// Header name to value; one entry.
    pub auth_token: BTreeMap<String, Sensitive>,
}

impl CreateMicrovmAuthTokenResponse {
    /// The answer that hands out this token.
    #[must_use]
    pub fn new(token: String) -> Self {
        Self { auth_token: BTreeMap::from([(AUTH_TOKEN_HEADER.to_owned(), Sensitive::new(token))]) }
    }
}
