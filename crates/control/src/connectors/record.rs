//! What is kept of a connector and its versions.

use api::{
    connectors::{LastUpdateStatus, NetworkConnectorConfiguration, NetworkConnectorState, StateReasonCode},
    ids::ConnectorId,
    tags::Tags,
};
use serde::{Deserialize, Serialize};

/// Why something is in its state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reason {
    /// For people.
    pub(crate) text: Option<String>,
    /// For programs.
    pub(crate) code: Option<StateReasonCode>,
}

impl Reason {
    /// One for people alone.
    pub(crate) fn text(text: &str) -> Self {
        Self { text: Some(text.to_owned()), code: None }
    }
}

/// A connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connector {
    /// Its place in the order of creation.
    pub(crate) sequence: i64,
    /// Its id.
    pub(crate) id: ConnectorId,
    /// Its name.
    pub(crate) name: String,
    /// Its state.
    pub(crate) state: NetworkConnectorState,
    /// Why it is in it.
    pub(crate) reason: Reason,
    /// What became of the last update; none if there was none.
    pub(crate) update: Option<LastUpdateStatus>,
    /// Why.
    pub(crate) update_reason: Reason,
    /// The newest version; numbers are never used twice.
    pub(crate) version: u64,
    /// The version in force.
    pub(crate) active: Option<u64>,
    /// Its tags.
    pub(crate) tags: Tags,
    /// When what it is made of last changed, in milliseconds since the epoch.
    pub(crate) modified_at: i64,
}

impl Connector {
    /// Is an update in progress?
    pub(crate) fn is_updating(&self) -> bool {
        self.update == Some(LastUpdateStatus::InProgress)
    }
}

/// What a version is made of; it never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definition {
    /// As it was asked for.
    pub(crate) configuration: NetworkConnectorConfiguration,
    /// Role that would make its network interfaces.
    pub(crate) operator_role: String,
}

/// A version of a connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// Of which.
    pub(crate) connector: ConnectorId,
    /// Its number.
    pub(crate) version: u64,
    /// Its state.
    pub(crate) state: NetworkConnectorState,
    /// Why it is in it.
    pub(crate) reason: Reason,
    /// What it is made of.
    pub(crate) definition: Definition,
    /// When it last changed, in milliseconds since the epoch.
    pub(crate) modified_at: i64,
}
