//! What the edge asks: of control, which microVM is this and may it be woken; of a host, a byte stream to its app.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{EndpointId, MicrovmId, VmId},
    shell::{Shell, ShellError},
    size::Size,
};

/// Why a microVM cannot take a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Unavailable {
    /// Suspended, and its policy does not let requests wake it.
    #[error("the microVM is suspended and does not resume by itself")]
    Asleep,
    /// Terminated, or terminating.
    #[error("the microVM has ended")]
    Ended,
    /// The wake was tried and failed; the microVM is suspended still, or has ended.
    #[error("the microVM could not be woken: {reason}")]
    WakeFailed {
        /// Why.
        reason: String,
    },
    /// It took too long, or too many requests wait already.
    #[error("the microVM did not become ready in time")]
    Late,
}

/// What is behind an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// The microVM.
    pub microvm: MicrovmId,
    /// Its size, which the edge's limits may depend on.
    pub size: Size,
    /// Its connectors let HTTP in.
    pub http: bool,
    /// Its connectors let shells in.
    pub shell: bool,
    /// Its image lets people in by links, beyond the service.
    pub links: bool,
    /// It has ended, or is about to: nobody need prepare anything for it.
    #[serde(default)]
    pub ended: bool,
}

/// Control, as the edge sees it.
#[async_trait::async_trait]
pub trait Directory: Send + Sync + 'static {
    /// What is behind an endpoint; `None` if there is no such endpoint, or no connector lets anything in. That nobody can
    /// tell just now is [`Unavailable::Late`].
    async fn behind(&self, endpoint: &EndpointId) -> Result<Option<Behind>, Unavailable>;

    /// Returns once the microVM runs: at once if it does, after its launch, suspend or resume in progress, waking it if
    /// it is suspended and its policy says so. Many callers, one wake.
    async fn awake(&self, microvm: &MicrovmId) -> Result<VmId, Unavailable>;

    /// Bytes crossed the endpoint: the idle clock starts again.
    fn touch(&self, microvm: &MicrovmId);
}

/// Why there is no stream to the app.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// That VM is no more (suspended or ended since): ask the directory again.
    #[error("the VM is gone")]
    Gone,
    /// The app does not listen on that port.
    #[error("nothing listens on port {port}")]
    Refused {
        /// The port.
        port: u16,
    },
    /// The guest could not be reached.
    #[error("the guest could not be reached")]
    Unreachable(#[source] std::io::Error),
}

/// A byte stream to an app.
pub trait AppStream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> AppStream for T {}

/// A host, as the edge sees it.
#[async_trait::async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// Opens a stream to `localhost:port` inside that incarnation of the microVM.
    async fn dial(&self, microvm: &MicrovmId, vm: &VmId, port: u16) -> Result<Box<dyn AppStream>, DialError>;

    /// Opens a shell in that incarnation of the microVM: one to be typed into, or one that carries out a command. It ends
    /// when it is dropped.
    async fn shell(&self, microvm: &MicrovmId, vm: &VmId, command: Option<String>) -> Result<Shell, ShellError>;
}
