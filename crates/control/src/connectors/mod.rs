//! Network connectors of the account's own: what they are made of, how they are made, changed and removed, and what may
//! use them.

pub(crate) mod activate;
pub(crate) mod delete;
pub(crate) mod lists;
pub(crate) mod operations;
pub(crate) mod record;
pub(crate) mod state;
pub(crate) mod usage;
