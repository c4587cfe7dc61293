//! The managed network connectors: who may reach a microVM, and what it may reach.

use std::fmt;

use crate::{
    arn::Arn,
    catalogue,
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
            return Err(catalogue::unknown_connector(arn));
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
    }
}
