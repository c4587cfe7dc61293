//! Who may do what: users, their access keys and policies, and the one place where a request is allowed or refused.
//!
//! The account's root signs with the key made at first start and may do everything. Users may do what their policies
//! allow and do not deny. A request is looked at in this order: its signature, its shape, whether its caller may, and only
//! then whether what it names exists.

pub mod admin;
mod authorize;
mod evaluate;
pub(crate) mod follow;
pub(crate) mod needs;
mod pattern;
pub mod policy;
pub mod records;
mod seal;
#[cfg(test)]
mod tests;
pub(crate) mod told;

pub use admin::{Admin, IamError, LocalUser};
pub(crate) use authorize::permit_connector;
pub use authorize::{Resources, authorize, permit};
pub use evaluate::Decision;
pub use policy::{Policy, PolicyError};
pub use seal::SealingKey;
