//! The ways to name a connector: by id, by name, by ARN, and one version of it by a longer ARN.

use std::fmt;

use crate::{arn::Arn, ids::ConnectorId};

const RESOURCE_PREFIX: &str = "network-connector:";

/// ARN of a connector of an account's own, or of one version of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectorArn {
    /// Such as `us-east-1`.
    pub region: String,
    /// Twelve digits.
    pub account: String,
    /// The connector.
    pub id: ConnectorId,
    /// One version of it.
    pub version: Option<u64>,
}

impl ConnectorArn {
    /// Reads one; there is one partition, and one spelling of each.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let arn = Arn::parse(text).ok().filter(|arn| arn.partition == "aws" && arn.service == "lambda")?;
        let rest = arn.resource.strip_prefix(RESOURCE_PREFIX)?;
        let (id, version) = match rest.split_once(':') {
            None => (rest, None),
            Some((id, version)) => (id, Some(version_number(version)?)),
        };
        Some(Self { region: arn.region.into(), account: arn.account.into(), id: id.parse().ok()?, version })
    }
}

fn version_number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| *number >= 1 && number.to_string() == text)
}

impl fmt::Display for ConnectorArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { region, account, id, version } = self;
        write!(f, "arn:aws:lambda:{region}:{account}:{RESOURCE_PREFIX}{id}")?;
        version.map_or(Ok(()), |version| write!(f, ":{version}"))
    }
}

/// How a connector is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By its id.
    Id(ConnectorId),
    /// By its name.
    Name(String),
}

/// A connector as a caller names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identifier {
    /// Which.
    pub which: Which,
    /// One version of it.
    pub version: Option<u64>,
}

impl Identifier {
    /// Reads what a caller wrote; nothing if it can name no connector of this account in this region.
    #[must_use]
    pub fn read(text: &str, region: &str, account: &str) -> Option<Self> {
        if text.starts_with("arn:") {
            let arn = ConnectorArn::parse(text).filter(|arn| arn.region == region && arn.account == account)?;
            return Some(Self { which: Which::Id(arn.id), version: arn.version });
        }
        // No connector can be named like an id.
        let which = text.parse().map_or_else(|_| Which::Name(text.to_owned()), Which::Id);
        Some(Self { which, version: None })
    }

    /// What the service calls something so named: its ARN, as it would be if the text were an id.
    #[must_use]
    pub fn as_arn(text: &str, region: &str, account: &str) -> String {
        if text.starts_with("arn:") {
            return text.to_owned();
        }
        format!("arn:aws:lambda:{region}:{account}:{RESOURCE_PREFIX}{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "nc-00000000-0000-4000-8000-000000000001";

    fn read(text: &str) -> Option<Identifier> {
        Identifier::read(text, "us-east-1", "000000000000")
    }

    #[test]
    fn a_connector_has_four_names() {
        let id: ConnectorId = ID.parse().unwrap();
        let arn = format!("arn:aws:lambda:us-east-1:000000000000:network-connector:{ID}");
        assert_eq!(read(ID), Some(Identifier { which: Which::Id(id), version: None }));
        assert_eq!(read("office"), Some(Identifier { which: Which::Name("office".into()), version: None }));
        assert_eq!(read(&arn), Some(Identifier { which: Which::Id(id), version: None }));
        assert_eq!(read(&format!("{arn}:7")), Some(Identifier { which: Which::Id(id), version: Some(7) }));
        assert_eq!(ConnectorArn::parse(&format!("{arn}:7")).unwrap().to_string(), format!("{arn}:7"));
        for other in [
            format!("{arn}:0"),
            format!("{arn}:07"),
            format!("{arn}:x"),
            format!("{arn}:"),
            arn.replace("us-east-1", "eu-west-1"),
            arn.replace("000000000000", "999999999999"),
            arn.replace("arn:aws:", "arn:aws-cn:"),
            arn.replace(ID, "office"),
        ] {
            assert_eq!(read(&other), None, "{other}");
        }
    }
}
