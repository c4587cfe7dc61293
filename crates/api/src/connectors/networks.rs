//! What this installation has in place of a VPC: subnets and security groups, declared in its configuration.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::constraint::{SECURITY_GROUP_ID, SUBNET_ID};

/// A local network that a connector can lead to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// `subnet-…`, as connectors name it.
    pub id: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Its addresses.
    pub cidr: IpNet,
    /// Whether it leads on to the internet.
    pub internet: bool,
}

/// What may leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityGroup {
    /// `sg-…`, as connectors name it.
    pub id: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What may leave; nothing else may.
    #[serde(default)]
    pub egress: Vec<EgressRule>,
}

/// What may leave to where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// Of which protocol.
    pub protocol: Protocol,
    /// To which ports; every port without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<PortRange>,
    /// To which addresses.
    pub cidr: IpNet,
}

/// A protocol a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, which has no ports.
    Icmp,
    /// Every one; it has no ports either.
    All,
}

/// Ports from the first to the last: `443` or `8000-8080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if 1 <= first && first <= last => Ok(Self { first, last }),
            _ => Err(format!("ports '{text}' is neither a port, such as \"443\", nor a range, such as \"8000-8080\"")),
        }
    }
}

impl From<PortRange> for String {
    fn from(PortRange { first, last }: PortRange) -> String {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    }
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// The subnets.
    pub subnets: Vec<Subnet>,
    /// The security groups.
    pub security_groups: Vec<SecurityGroup>,
}

impl Networks {
    /// The subnet of this id.
    #[must_use]
    pub fn subnet(&self, id: &str) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.id == id)
    }

    /// The security group of this id.
    #[must_use]
    pub fn security_group(&self, id: &str) -> Option<&SecurityGroup> {
        self.security_groups.iter().find(|group| group.id == id)
    }

    /// What is wrong with them, naming the key and what to do.
    pub fn check(&self) -> Result<(), String> {
        for (index, subnet) in self.subnets.iter().enumerate() {
            let id = &subnet.id;
            if id.len() <= "subnet-".len() || !SUBNET_ID.matches(id) {
                return Err(format!("subnets: id '{id}' must be 'subnet-' and lower-case letters or digits"));
            }
            if self.subnets[..index].iter().any(|other| other.id == *id) {
                return Err(format!("subnets: id '{id}' is there twice; give each subnet an id of its own"));
            }
            if subnet.cidr.addr().is_ipv6() {
                return Err(format!(
                    "subnets: cidr {} of '{id}' must be of IPv4, which is all guests have",
                    subnet.cidr
                ));
            }
            if subnet.cidr.trunc() != subnet.cidr {
                let network = subnet.cidr.trunc();
                return Err(format!("subnets: cidr {} of '{id}' is not a network; write {network}", subnet.cidr));
            }
        }
        for (index, group) in self.security_groups.iter().enumerate() {
            let id = &group.id;
            if id.len() <= "sg-".len() || !SECURITY_GROUP_ID.matches(id) {
                return Err(format!("security_groups: id '{id}' must be 'sg-' and letters or digits"));
            }
            if self.security_groups[..index].iter().any(|other| other.id == *id) {
                return Err(format!("security_groups: id '{id}' is there twice; give each group an id of its own"));
            }
            for rule in &group.egress {
                if rule.ports.is_some() && matches!(rule.protocol, Protocol::Icmp | Protocol::All) {
                    return Err(format!(
                        "security_groups: a rule of '{id}' has ports, which only tcp and udp have; leave ports out"
                    ));
                }
                if rule.cidr.trunc() != rule.cidr {
                    let network = rule.cidr.trunc();
                    return Err(format!(
                        "security_groups: cidr {} in a rule of '{id}' is not a network; write {network}",
                        rule.cidr
                    ));
                }
            }
        }
        Ok(())
    }
}
