//! Shapes of the Network Connector operations (`lambda-core`): connectors of the account's own. The managed ones are in
//! [`crate::connector`].
//!
//! Unlike the microVM operations, these leave out what is unset, and write times as ISO-8601.

use serde::{Deserialize, Serialize};

use crate::{tags::Tags, timestamp::IsoTimestamp};

mod identifier;
mod networks;
mod parse;
mod plan;
mod words;

pub use identifier::{ConnectorArn, Identifier, Which};
pub use networks::{EgressRule, Networks, PortRange, Protocol, SecurityGroup, Subnet};
pub use plan::{ConnectorPlan, UpdatePlan};
pub use words::{
    ComputeResourceType, ElasticIpType, LastUpdateStatus, NetworkConnectorState, NetworkProtocol, StateReasonCode,
};

/// What a connector is made of: exactly one of the union's members, of which there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkConnectorConfiguration {
    /// Out through subnets.
    VpcEgressConfiguration(VpcEgressConfiguration),
}

/// Out through subnets, past security groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VpcEgressConfiguration {
    /// The subnets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet_ids: Option<Vec<String>>,
    /// The security groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_group_ids: Option<Vec<String>>,
    /// Which addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_protocol: Option<NetworkProtocol>,
    /// What may use it; one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub associated_compute_resource_types: Option<Vec<ComputeResourceType>>,
    /// Where its public addresses come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elastic_ip_configuration: Option<ElasticIpConfiguration>,
}

/// Where public addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ElasticIpConfiguration {
    /// From where.
    #[serde(rename = "Type")]
    pub kind: ElasticIpType,
}

/// `CreateNetworkConnector`. Serialised, it is what an idempotency record keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateNetworkConnectorRequest {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub configuration: NetworkConnectorConfiguration,
    /// Role that makes its network interfaces.
    pub operator_role: Option<String>,
    /// Idempotency key.
    pub client_token: Option<String>,
    /// Tags.
    pub tags: Option<Tags>,
}

/// `UpdateNetworkConnector`. Serialised, it is what an idempotency record keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpdateNetworkConnectorRequest {
    /// Which.
    pub identifier: String,
    /// What it is to be made of, all of it; `None` leaves it.
    pub configuration: Option<NetworkConnectorConfiguration>,
    /// Role that is to make its network interfaces; `None` leaves it.
    pub operator_role: Option<String>,
    /// Idempotency key.
    pub client_token: Option<String>,
}

/// `GetNetworkConnector`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetNetworkConnectorRequest {
    /// Which, perhaps which version.
    pub identifier: String,
}

/// `DeleteNetworkConnector`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteNetworkConnectorRequest {
    /// Which, or which version.
    pub identifier: String,
}

/// Which page of a list is wanted, and of what state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkerRequest {
    /// Only those in this state.
    pub state: Option<NetworkConnectorState>,
    /// Where the page before ended.
    pub marker: Option<String>,
    /// How many items at most.
    pub max_items: Option<u32>,
}

/// `ListNetworkConnectors`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListNetworkConnectorsRequest {
    /// Which page.
    pub page: MarkerRequest,
}

/// `ListNetworkConnectorVersions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListNetworkConnectorVersionsRequest {
    /// Of which.
    pub identifier: String,
    /// Which page.
    pub page: MarkerRequest,
}

/// A connector, or a version of it, as the four operations on one answer it: each with the members it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConnector {
    /// Its ARN, without a version.
    pub arn: String,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// ARN of the version in question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_arn: Option<String>,
    /// The version in question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// ARN of the newest version that is active.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_version_arn: Option<String>,
    /// The newest version that is active.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_version: Option<u64>,
    /// What it is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<NetworkConnectorConfiguration>,
    /// Role that makes its network interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_role: Option<String>,
    /// Its state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<NetworkConnectorState>,
    /// Why it is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// The same for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason_code: Option<StateReasonCode>,
    /// What became of the last update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_status: Option<LastUpdateStatus>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_status_reason: Option<String>,
    /// The same for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_status_reason_code: Option<StateReasonCode>,
    /// When what it is made of last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<IsoTimestamp>,
}

/// The only kind of connector an account can have of its own.
pub const VPC_EGRESS: &str = "VPC_EGRESS";

/// One connector in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConnectorSummary {
    /// Its ARN.
    pub arn: String,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// [`VPC_EGRESS`].
    #[serde(rename = "Type")]
    pub kind: String,
    /// Its state.
    pub state: NetworkConnectorState,
    /// When what it is made of last changed.
    pub last_modified: IsoTimestamp,
    /// ARN of its newest version.
    pub latest_version_arn: String,
    /// Its newest version.
    pub latest_version: u64,
}

/// What `ListNetworkConnectors` answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListNetworkConnectorsResponse {
    /// The connectors of the page.
    pub network_connectors: Vec<NetworkConnectorSummary>,
    /// Where the next page begins; left out after the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_marker: Option<String>,
}

/// One version in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConnectorVersionSummary {
    /// ARN of its connector.
    pub arn: String,
    /// Its own ARN.
    pub version_arn: String,
    /// Its connector's name.
    pub name: String,
    /// Its connector's id.
    pub id: String,
    /// Its number.
    pub version: u64,
    /// Its state.
    pub state: NetworkConnectorState,
    /// Why it is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// The same for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason_code: Option<StateReasonCode>,
    /// When it last changed.
    pub last_modified: IsoTimestamp,
}

/// What `ListNetworkConnectorVersions` answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListNetworkConnectorVersionsResponse {
    /// The versions of the page.
    pub network_connector_versions: Vec<NetworkConnectorVersionSummary>,
    /// Where the next page begins; left out after the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_marker: Option<String>,
}
