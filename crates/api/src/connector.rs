//! The managed network connectors: who may reach a microVM, and what it may reach; and how requests name these and the
//! account's own ([`crate::connectors`]).

use std::fmt;

use crate::{
    arn::Arn,
    catalogue,
    connectors::ConnectorArn as OwnArn,
    error::ServiceError,
    word::{Word as _, words},
};

words! {
    /// A connector that AWS owns, and every installation has.
    ManagedConnector {
        /// In: requests with a token, to any allowed port. The default.
        HttpIngress = "HTTP_INGRESS",
        /// In: all ports.
        AllIngress = "ALL_INGRESS",
        /// In: shells.
        ShellIngress = "SHELL_INGRESS",
        /// In: nothing.
        NoIngress = "NO_INGRESS",
        /// Out: the internet. The default.
        InternetEgress = "INTERNET_EGRESS",
    }
}

/// Which way a list of connectors points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Into the microVM.
    Ingress,
    /// Out of it.
    Egress,
}

const RESOURCE_PREFIX: &str = "network-connector:";
const MANAGED_PREFIX: &str = "network-connector:aws-network-connector:";

impl ManagedConnector {
    /// Which way it points.
    #[must_use]
    pub fn direction(self) -> Direction {
        match self {
            Self::HttpIngress | Self::AllIngress | Self::ShellIngress | Self::NoIngress => Direction::Ingress,
            Self::InternetEgress => Direction::Egress,
        }
    }

    /// Its name in a region.
    #[must_use]
    pub fn arn(self, region: &str) -> String {
        ConnectorArn { connector: self, region }.to_string()
    }

    /// Reads the ARN of a connector of this region and direction.
    pub fn from_arn(arn: &str, region: &str, direction: Direction) -> Result<Self, ServiceError> {
        let parts = Arn::parse(arn).map_err(|_| catalogue::malformed_connector())?;
        if parts.service != "lambda" || !parts.resource.starts_with(RESOURCE_PREFIX) {
            return Err(catalogue::malformed_connector());
        }
        if parts.account != "aws" {
            return Err(match direction {
                Direction::Ingress => catalogue::connector_leads_out(arn),
                Direction::Egress => catalogue::unknown_connector(arn),
            });
        }
        parts
            .resource
            .strip_prefix(MANAGED_PREFIX)
            .and_then(Self::from_word)
            .filter(|connector| connector.direction() == direction && parts.region == region)
            .ok_or_else(|| catalogue::unrecognized_connector(arn))
    }

    /// Reads a list of them.
    pub fn from_arns(arns: &[String], region: &str, direction: Direction) -> Result<Vec<Self>, ServiceError> {
        arns.iter().map(|arn| Self::from_arn(arn, region, direction)).collect()
    }
}

/// A way out, as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressConnector {
    /// One of AWS's.
    Managed(ManagedConnector),
    /// One of an account's own, which may or may not be there.
    Own(OwnArn),
}

impl EgressConnector {
    /// Its name in a region.
    #[must_use]
    pub fn arn(&self, region: &str) -> String {
        match self {
            Self::Managed(connector) => connector.arn(region),
            Self::Own(arn) => arn.to_string(),
        }
    }

    /// Reads the ARN of a way out.
    pub fn from_arn(arn: &str, region: &str) -> Result<Self, ServiceError> {
        match OwnArn::parse(arn) {
            Some(own) if own.account != "aws" => Ok(Self::Own(own)),
            Some(_) | None => ManagedConnector::from_arn(arn, region, Direction::Egress).map(Self::Managed),
        }
    }

    /// Reads a list of them. The internet and something that is not the internet are not one way out.
    pub fn from_arns(arns: &[String], region: &str) -> Result<Vec<Self>, ServiceError> {
        let ways: Vec<_> = arns.iter().map(|arn| Self::from_arn(arn, region)).collect::<Result<_, _>>()?;
        let own = ways.iter().filter(|way| matches!(way, Self::Own(_))).count();
        if own > 0 && own < ways.len() { Err(catalogue::egress_not_combinable()) } else { Ok(ways) }
    }
}

struct ConnectorArn<'a> {
    connector: ManagedConnector,
    region: &'a str,
}

impl fmt::Display for ConnectorArn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:aws:lambda:{}:aws:{MANAGED_PREFIX}{}", self.region, self.connector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: &str = "us-east-1";

    #[test]
    fn every_managed_connector_is_known_by_its_arn_in_its_direction_only() {
        for connector in ManagedConnector::ALL {
            let arn = connector.arn(REGION);
            assert_eq!(ManagedConnector::from_arn(&arn, REGION, connector.direction()), Ok(*connector));
            let other = match connector.direction() {
                Direction::Ingress => Direction::Egress,
                Direction::Egress => Direction::Ingress,
            };
            assert_eq!(ManagedConnector::from_arn(&arn, REGION, other), Err(catalogue::unrecognized_connector(&arn)));
        }
    }

    #[test]
    fn the_recorded_sentences() {
        let read = |arn: &str| ManagedConnector::from_arn(arn, REGION, Direction::Egress).unwrap_err().to_string();
        assert_eq!(read("INTERNET_EGRESS"), "Malformed network connector ARN");
        assert_eq!(read("arn:aws:s3:::bucket"), "Malformed network connector ARN");
        let no_egress = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:NO_EGRESS";
        assert_eq!(read(no_egress), format!("Unrecognized managed network connector ARN: {no_egress}"));
        let own = "arn:aws:lambda:us-east-1:123456789012:network-connector:nc-1";
        assert_eq!(read(own), format!("Network connector not found for: {own}"));
        let inward = ManagedConnector::from_arn(own, REGION, Direction::Ingress).unwrap_err().to_string();
        assert_eq!(inward, format!("The network connector {own} is of type VPC_EGRESS and cannot be used for ingress"));
    }

    #[test]
    fn a_way_out_is_managed_or_own_and_not_both() {
        let own = "arn:aws:lambda:us-east-1:123456789012:network-connector:nc-00000000-0000-4000-8000-000000000001:3";
        let internet = ManagedConnector::InternetEgress.arn(REGION);
        let read = |arns: &[&str]| {
            let arns: Vec<_> = arns.iter().map(|arn| (*arn).to_owned()).collect();
            EgressConnector::from_arns(&arns, REGION)
        };
        let ways = read(&[own, own]).unwrap();
        assert_eq!(ways.iter().map(|way| way.arn(REGION)).collect::<Vec<_>>(), [own, own]);
        assert_eq!(read(&[&internet]), Ok(vec![EgressConnector::Managed(ManagedConnector::InternetEgress)]));
        assert_eq!(read(&[&internet, own]), Err(catalogue::egress_not_combinable()));
        let office = own.replace("nc-00000000-0000-4000-8000-000000000001:3", "office");
        assert_eq!(read(&[&office]), Err(catalogue::unknown_connector(&office)));
    }
}
