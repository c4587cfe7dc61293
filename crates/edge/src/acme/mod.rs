//! Certificates from an authority that speaks ACME (RFC 8555): Let's Encrypt and its like, or one of one's own.
//!
//! 1. `keeper`: when the next order is made: at once without a certificate, later at two thirds of its life, and after a
//!    failure with growing pauses and never more than [`ORDERS_PER_HOUR`]. Meanwhile what is there is served.
//! 2. `account`: registered once per authority, with a key that is on the disk before the authority hears of it.
//! 3. `order`: names are asked for and proven, a signing request is sent, a chain of certificates is fetched.
//! 4. `hook`: proves names in the DNS (`dns-01`), through a program of the operator's.
//!
//! What must survive is in a directory of the authority's own (`store`), so that another one, say Let's Encrypt's staging
//! one, can be tried and left: `account.json`, `certificate.pem` (chain and key in one file, so that they cannot be of
//! different ages) and `orders.json` (`ledger`). Killed anywhere, the next start makes a new order, with the same account;
//! what a hook was told to present and not yet to clean up is cleaned up then.

mod account;
mod client;
mod hook;
mod keeper;
mod ledger;
mod order;
mod schedule;
mod settings;
mod store;

pub use account::AccountError;
pub use client::ClientError;
pub use hook::HookError;
pub use keeper::{Acme, AcmeError, Place};
pub use ledger::ORDERS_PER_HOUR;
pub use order::OrderError;
pub use schedule::Pauses;
pub use settings::{AcmeSettings, AcmeSettingsError, Challenge, ExternalAccount};
pub use store::StoreError;
