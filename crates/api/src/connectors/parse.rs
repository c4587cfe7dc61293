//! Reading the connector operations' requests: shapes and constraints as the model has them.

use crate::{
    constraint::{CONNECTOR_NAME, CONNECTOR_ROLE_ARN, Constraints, SECURITY_GROUP_ID, SUBNET_ID, TextRule},
    error::ServiceError,
    input::{Field, FromInput, Input},
    tags::{TAG_KEY, TAG_VALUE},
};

use super::{
    CreateNetworkConnectorRequest, DeleteNetworkConnectorRequest, ElasticIpConfiguration, GetNetworkConnectorRequest,
    ListNetworkConnectorVersionsRequest, ListNetworkConnectorsRequest, MarkerRequest, NetworkConnectorConfiguration,
    UpdateNetworkConnectorRequest, VpcEgressConfiguration,
};

const IDENTIFIER: TextRule = TextRule::length(1, 140);
const NAME: TextRule = TextRule::length(1, 140).matching(&CONNECTOR_NAME);
const ROLE: TextRule = TextRule::length(0, 10_000).matching(&CONNECTOR_ROLE_ARN);
const SUBNET: TextRule = TextRule::length(0, 1024).matching(&SUBNET_ID);
const SECURITY_GROUP: TextRule = TextRule::length(0, 1024).matching(&SECURITY_GROUP_ID);
const CLIENT_TOKEN: TextRule = TextRule::length(1, 64);

/// Most items a page can be asked to hold; the model's bound.
const MAX_ITEMS: i32 = 100;

fn configuration(field: Field<'_>, c: &mut Constraints) -> Option<NetworkConnectorConfiguration> {
    let (_, field) = field.union(c, &["VpcEgressConfiguration"])?;
    let egress = field.members(c)?;
    Some(NetworkConnectorConfiguration::VpcEgressConfiguration(VpcEgressConfiguration {
        subnet_ids: egress.field("SubnetIds").list(c, 1, 16, |c, field| field.text(c, &SUBNET)),
        security_group_ids: egress.field("SecurityGroupIds").list(c, 0, 16, |c, field| field.text(c, &SECURITY_GROUP)),
        network_protocol: egress.field("NetworkProtocol").word(c),
        associated_compute_resource_types: egress
            .field("AssociatedComputeResourceTypes")
            .list(c, 1, 1, |c, field| field.word(c)),
        elastic_ip_configuration: elastic_ip(egress.field("ElasticIpConfiguration"), c),
    }))
}

fn elastic_ip(field: Field<'_>, c: &mut Constraints) -> Option<ElasticIpConfiguration> {
    let kind = field.members(c)?.field("Type").required(c).word(c)?;
    Some(ElasticIpConfiguration { kind })
}

fn identifier(input: &Input, c: &mut Constraints) -> String {
    input.path("Identifier").required(c).text(c, &IDENTIFIER).unwrap_or_default()
}

fn page(input: &Input, c: &mut Constraints) -> MarkerRequest {
    MarkerRequest {
        state: input.query("State").word(c),
        marker: input.query("Marker").text(c, &TextRule::any()),
        max_items: input.query("MaxItems").number_text(c, 1, MAX_ITEMS).map(i32::cast_unsigned),
    }
}

impl FromInput for CreateNetworkConnectorRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let c = &mut Constraints::new();
        let name = input.body("Name").required(c).text(c, &NAME).unwrap_or_default();
        let configuration = configuration(input.body("Configuration").required(c), c);
        let operator_role = input.body("OperatorRole").text(c, &ROLE);
        let client_token = input.body("ClientToken").text(c, &CLIENT_TOKEN);
        let tags = input.body("Tags").texts(c, usize::MAX, &TAG_KEY, &TAG_VALUE);
        std::mem::take(c).finish()?;
        // Nothing but a violation leaves it out.
        let configuration = configuration.ok_or_else(crate::catalogue::internal_error)?;
        Ok(Self { name, configuration, operator_role, client_token, tags })
    }
}

impl FromInput for UpdateNetworkConnectorRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let c = &mut Constraints::new();
        let request = Self {
            identifier: identifier(input, c),
            configuration: configuration(input.body("Configuration"), c),
            operator_role: input.body("OperatorRole").text(c, &ROLE),
            client_token: input.body("ClientToken").text(c, &CLIENT_TOKEN),
        };
        std::mem::take(c).finish()?;
        Ok(request)
    }
}

impl FromInput for GetNetworkConnectorRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let identifier = identifier(input, &mut constraints);
        constraints.finish()?;
        Ok(Self { identifier })
    }
}

impl FromInput for DeleteNetworkConnectorRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        GetNetworkConnectorRequest::from_input(input)
            .map(|GetNetworkConnectorRequest { identifier }| Self { identifier })
    }
}

impl FromInput for ListNetworkConnectorsRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let page = page(input, &mut constraints);
        constraints.finish()?;
        Ok(Self { page })
    }
}

impl FromInput for ListNetworkConnectorVersionsRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let identifier = identifier(input, &mut constraints);
        let page = page(input, &mut constraints);
        constraints.finish()?;
        Ok(Self { identifier, page })
    }
}
