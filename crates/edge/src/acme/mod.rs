//! Certificates from an authority that speaks ACME (RFC 8555): Let's Encrypt and its like, or one of one's own.
//!
//! - `account`: registered once per authority, with a key that is on the disk before the authority hears of it.
//! - `order`: names are asked for and proven, a signing request is sent, a chain of certificates is fetched.
//! - `proof`: how names are proven, for each challenge. In the DNS (`dns-01`), by a program of the operator's (`hook`); or by
//!   this server itself, with what is `pending`: in a handshake (`tls-alpn-01`), or over plain HTTP (`http-01`, `answers`).
//! - `keeper`: one certificate for all endpoints, proven in the DNS. Says when the next order is made: at once without a
//!   certificate, later at two thirds of its life, and after a failure with growing pauses and never more than
//!   [`ORDERS_PER_HOUR`]. Meanwhile what is there is served.
//! - `endpoints`: one for each, proven by this server, and ordered when a handshake first asks for it; those that are used are
//!   in `memory`, and what failed `rests`.
//!
//! What must survive is in a directory of the authority's own (`store`), so that another one, say Let's Encrypt's staging
//! one, can be tried and left: `account.json`, `certificate.pem` (chain and key in one file, so that they cannot be of
//! different ages) or a file for each endpoint in `endpoints/`, and what was begun in `orders.json` or `endpoint-orders.json`
//! (`ledger`). Killed anywhere, the next start makes a new order, with the same account; what a hook was told to present and
//! not yet to clean up is cleaned up then.

mod account;
mod answers;
mod client;
mod endpoints;
mod hook;
mod keeper;
mod ledger;
mod memory;
mod order;
mod pending;
mod proof;
mod rests;
mod schedule;
mod settings;
mod store;

pub(crate) use pending::ACME_TLS;

pub use account::AccountError;
pub use answers::answer;
pub use client::ClientError;
pub use endpoints::{Endpoints, OnDemand};
pub use hook::HookError;
pub use keeper::{Acme, AcmeError, Place};
pub use ledger::ORDERS_PER_HOUR;
pub use order::OrderError;
pub use pending::AlpnError;
pub use proof::ProofError;
pub use schedule::Pauses;
pub use settings::{AcmeSettings, AcmeSettingsError, Challenge, ExternalAccount};
pub use store::StoreError;
