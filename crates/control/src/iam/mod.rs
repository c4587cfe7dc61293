//! Who may do what: users, their access keys and policies, and the one place where a request is allowed or refused.
//!
//! The account's root signs with the key made at first start and may do everything. Users may do what their policies
//! allow and do not deny. A request is looked at in this order: its signature, its shape, whether its caller may, and only
//! then whether what it names exists.

mod authorize;
mod evaluate;
pub(crate) mod needs;
mod pattern;
mod policy;

pub use authorize::{Resources, authorize};
pub use evaluate::Decision;
pub use policy::{Policy, PolicyError};
