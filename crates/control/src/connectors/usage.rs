//! What a launch or a build may use of connectors, and what that means for its packets.
//!
//! Security groups are not enforced yet. So a connector is good for one thing, which is enforced whole: one whose
//! subnets do not lead to the internet lets nothing out at all. Anything that would need a rule is refused, and not run
//! with more than was asked for.

use api::{
    catalogue,
    connector::EgressConnector,
    connectors::{ConnectorArn, NetworkConnectorConfiguration, Which},
    error::ServiceError,
    host::Egress,
    ids::ConnectorId,
};

use super::state::can_be_used;
use crate::{
    shared::{Shared, hidden},
    store::{Connection, connectors as rows},
};

/// A connector that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    /// Which.
    pub(crate) connector: ConnectorId,
    /// Which version of it: the one named, or the one in force.
    pub(crate) version: u64,
    /// The version that was named.
    pub(crate) named: Option<u64>,
}

/// What these ways out come to, and which of the account's own connectors are used for it.
pub(crate) async fn resolve(
    shared: &Shared,
    connection: &mut Connection,
    ways: &[EgressConnector],
) -> Result<(Egress, Vec<Use>), ServiceError> {
    let mut uses = Vec::new();
    for way in ways {
        match way {
            EgressConnector::Managed(_) => {}
            EgressConnector::Own(arn) => uses.push(usable(shared, connection, arn).await?),
        }
    }
    Ok((if uses.is_empty() { Egress::Internet } else { Egress::Nowhere }, uses))
}

async fn usable(shared: &Shared, connection: &mut Connection, arn: &ConnectorArn) -> Result<Use, ServiceError> {
    let shown = arn.to_string();
    let unknown = || catalogue::unknown_connector(&shown);
    if (arn.region.as_str(), arn.account.as_str()) != (shared.config.region.as_str(), shared.config.account.as_str()) {
        return Err(unknown());
    }
    let connector = rows::find(connection, &Which::Id(arn.id)).await.map_err(hidden)?.ok_or_else(unknown)?;
    let inactive = |state| catalogue::connector_not_active(&shown, state);
    let number = arn.version.or(connector.active).ok_or_else(|| inactive(connector.state))?;
    let version = rows::find_version(connection, &arn.id, number).await.map_err(hidden)?.ok_or_else(unknown)?;
    if !can_be_used(connector.state, version.state) {
        let active = can_be_used(connector.state, connector.state);
        return Err(inactive(if active { version.state } else { connector.state }));
    }
    let NetworkConnectorConfiguration::VpcEgressConfiguration(egress) = &version.definition.configuration;
    if !egress.is_for_microvms() {
        return Err(catalogue::connector_not_for_microvms(&shown));
    }
    for id in egress.subnet_ids.iter().flatten() {
        match shared.config.networks.subnet(id) {
            None => return Err(catalogue::connector_lost_subnet(&shown, id)),
            Some(subnet) if subnet.internet => return Err(catalogue::egress_not_enforced(&shown, id)),
            Some(_) => {}
        }
    }
    Ok(Use { connector: arn.id, version: number, named: arn.version })
}
