//! Images: what they are made from, how they are built, how they go.

pub(crate) mod build;
pub(crate) mod delete;
pub(crate) mod managed;
pub(crate) mod operations;
pub(crate) mod record;
pub(crate) mod state;
pub(crate) mod versions;
