//! What a request for a connector means here: the service's rules that need no look-up of connectors.

use crate::{catalogue, error::ServiceError, ids::ConnectorId, tags};

use super::{
    ComputeResourceType, CreateNetworkConnectorRequest, ElasticIpType, NetworkConnectorConfiguration, NetworkProtocol,
    Networks, StateReasonCode, UpdateNetworkConnectorRequest, VpcEgressConfiguration,
};

/// A request for a connector, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorPlan {
    /// Idempotency key.
    pub client_token: String,
    /// Role that would make its network interfaces.
    pub operator_role: String,
}

/// A request to change a connector, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdatePlan {
    /// Idempotency key.
    pub client_token: String,
}

impl CreateNetworkConnectorRequest {
    /// Applies the service's rules.
    pub fn plan(&self, networks: &Networks) -> Result<ConnectorPlan, ServiceError> {
        let client_token = self.client_token.clone().ok_or_else(catalogue::client_token_required)?;
        // The model's pattern lets an ARN pass, and ids look like names.
        if self.name.starts_with("arn:") || self.name.parse::<ConnectorId>().is_ok() {
            return Err(catalogue::bad_connector_name(&self.name));
        }
        let NetworkConnectorConfiguration::VpcEgressConfiguration(egress) = &self.configuration;
        egress.check(networks)?;
        let operator_role = self.operator_role.clone().ok_or_else(catalogue::operator_role_required)?;
        tags::check(&self.tags.clone().unwrap_or_default())?;
        Ok(ConnectorPlan { client_token, operator_role })
    }
}

impl UpdateNetworkConnectorRequest {
    /// Applies the service's rules.
    pub fn plan(&self, networks: &Networks) -> Result<UpdatePlan, ServiceError> {
        let client_token = self.client_token.clone().ok_or_else(catalogue::client_token_required)?;
        if let Some(NetworkConnectorConfiguration::VpcEgressConfiguration(egress)) = &self.configuration {
            egress.check(networks)?;
        }
        Ok(UpdatePlan { client_token })
    }
}

impl NetworkConnectorConfiguration {
    /// Do both mean the same? Subnets and security groups are sets.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let Self::VpcEgressConfiguration(one) = self;
        let Self::VpcEgressConfiguration(other) = other;
        one.in_order() == other.in_order()
    }
}

impl VpcEgressConfiguration {
    fn in_order(&self) -> Self {
        let sorted = |ids: &Option<Vec<String>>| {
            let mut ids = ids.clone().unwrap_or_default();
            ids.sort();
            ids.dedup();
            Some(ids)
        };
        Self {
            subnet_ids: sorted(&self.subnet_ids),
            security_group_ids: sorted(&self.security_group_ids),
            elastic_ip_configuration: self.elastic_ip_configuration.filter(|it| it.kind != ElasticIpType::None),
            ..self.clone()
        }
    }

    fn check(&self, networks: &Networks) -> Result<(), ServiceError> {
        match self.network_protocol {
            None => return Err(catalogue::member_required("NetworkProtocol")),
            Some(NetworkProtocol::DualStack) => return Err(catalogue::dual_stack_unsupported()),
            Some(NetworkProtocol::Ipv4) => {}
        }
        if self.associated_compute_resource_types.as_ref().is_none_or(Vec::is_empty) {
            return Err(catalogue::member_required("AssociatedComputeResourceTypes"));
        }
        if self.subnet_ids.as_ref().is_none_or(Vec::is_empty) {
            return Err(catalogue::member_required("SubnetIds"));
        }
        if self.elastic_ip_configuration.is_some_and(|it| it.kind == ElasticIpType::ServiceManaged) {
            return Err(catalogue::elastic_ip_unsupported());
        }
        match self.unknown_of(networks) {
            Some((StateReasonCode::InvalidSecurityGroup, id)) => Err(catalogue::unknown_security_group(id)),
            Some((_, id)) => Err(catalogue::unknown_subnet(id)),
            None => Ok(()),
        }
    }

    /// The first subnet or security group that there is not, and the code for it.
    #[must_use]
    pub fn unknown_of(&self, networks: &Networks) -> Option<(StateReasonCode, &str)> {
        let subnet = self.subnet_ids.iter().flatten().find(|id| networks.subnet(id).is_none());
        if let Some(id) = subnet {
            return Some((StateReasonCode::InvalidSubnet, id));
        }
        let group = self.security_group_ids.iter().flatten().find(|id| networks.security_group(id).is_none());
        group.map(|id| (StateReasonCode::InvalidSecurityGroup, id.as_str()))
    }

    /// Is it for microVMs?
    #[must_use]
    pub fn is_for_microvms(&self) -> bool {
        self.associated_compute_resource_types.iter().flatten().any(|it| *it == ComputeResourceType::MicroVm)
    }
}
