//! Terminates HTTPS and carries each request to its microVM, waking it if need be.
//!
//! The life of a request:
//!
//! 1. `connection`: TCP accepted, TLS done (`handshake`), HTTP/2 or HTTP/1.1 read, all under the deadlines and sizes of [`Limits`].
//! 2. `route`: which endpoint, which port, which token; may this token. Pure code: no I/O, no clock.
//! 3. `upstream`: the [`Directory`](api::directory::Directory) is asked for a running VM (this is what wakes a suspended
//!    microVM, and only an admitted request comes this far), then a kept-alive connection to that VM is taken from
//!    `pool`, or a new one dialled (`connect`), in the protocol that the request wants and the app speaks (`apps`).
//!    A shell is such a connection too, to an app that the edge serves itself (`shell`).
//! 4. `body`: bytes flow both ways as they come, never collected; each one restarts the microVM's idle clock
//!    (`activity`). An upgraded connection goes on in `tunnel`.
//!
//! Invariants: a request that is not admitted never reaches the directory's `awake`; a connection to one VM never serves
//! another, even of the same microVM; a token is never logged.

#![forbid(unsafe_code)]

pub mod acme;
pub mod ca;
mod certificates;
mod config;
mod files;
mod served;
mod server;
mod settings;

mod activity;
mod addresses;
mod allowance;
mod app_tls;
mod apps;
mod body;
mod client_io;
mod connect;
mod connection;
mod flood;
#[cfg(test)]
mod fuzz;
mod greeting;
mod handshake;
mod headers;
mod hold;
mod link;
mod metrics;
mod opened;
mod pace;
mod pool;
mod proxy;
mod record;
mod refusal;
mod route;
mod shell;
mod stall;
mod streams;
mod tally;
mod through;
mod tunnel;
mod upstream;
mod waiting;
mod websocket;

pub use certificates::{CertificateError, CertificateFiles, Certificates};
pub use config::{EdgeConfig, Limits, NEVER, PerMicrovm};
pub use files::FileError;
pub use link::{LinkError, link};
pub use metrics::Metrics;
pub use served::{Certificate, ServedCertificate};
pub use server::{BindError, BoundEdge, Drained, Edge};
pub use settings::{Settings, SettingsError};
