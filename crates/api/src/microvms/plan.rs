//! What a request about a microVM means here: the service's rules that need no look-up, and its defaults.

use std::time::Duration;

use crate::{
    catalogue,
    connector::{Direction, EgressConnector, ManagedConnector},
    constraint::Constraints,
    error::ServiceError,
    token::{EXPIRATION_MINUTES_MAX, Ports},
};

use super::{CreateMicrovmAuthTokenRequest, CreateMicrovmShellAuthTokenRequest, PortSpecification, RunMicrovmRequest};

/// Life of a microVM that does not say, and the longest of any unless configured otherwise: eight hours, suspension
/// included.
pub const MAXIMUM_DURATION_SECONDS: u32 = 28_800;

/// Most separate ranges of ports in a token, so that no token is longer than tokens may be. The service's own limit is
/// not documented; 50 ports were seen to work.
pub const PORT_RANGES_MAX: usize = 256;

/// A request for a microVM, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPlan {
    /// Ways in.
    pub ingress: Vec<ManagedConnector>,
    /// Ways out; `None` means those of the image's version, which an empty list means too.
    pub egress: Option<Vec<EgressConnector>>,
    /// When it ends at the latest.
    pub maximum_duration_in_seconds: u32,
}

impl RunMicrovmRequest {
    /// Applies the service's rules and defaults. `longest_s` is the longest life that microVMs of this image may have, in
    /// seconds: [`MAXIMUM_DURATION_SECONDS`] on the service.
    pub fn plan(&self, region: &str, longest_s: u32) -> Result<RunPlan, ServiceError> {
        if self.kms_key_identifier.is_some() {
            return Err(catalogue::unsupported_kms_key());
        }
        let ingress = match self.ingress_network_connectors.as_deref() {
            None | Some([]) => vec![ManagedConnector::HttpIngress],
            Some(arns) => ManagedConnector::from_arns(arns, region, Direction::Ingress)?,
        };
        let egress = match self.egress_network_connectors.as_deref() {
            None | Some([]) => None,
            Some(arns) => Some(EgressConnector::from_arns(arns, region)?),
        };
        if let Some(policy) = self.idle_policy
            && policy.max_idle_duration_seconds > longest_s
        {
            return Err(catalogue::idle_duration_too_long(policy.max_idle_duration_seconds, longest_s));
        }
        let maximum_duration_in_seconds = self.maximum_duration_in_seconds.unwrap_or(MAXIMUM_DURATION_SECONDS);
        // Another image may be allowed more, which is what the request's shape was held against.
        let mut constraints = Constraints::new();
        let (asked, most) = (maximum_duration_in_seconds.cast_signed(), longest_s.cast_signed());
        constraints.number("maximumDurationInSeconds", asked, 1, most);
        constraints.finish()?;
        Ok(RunPlan { ingress, egress, maximum_duration_in_seconds })
    }
}

/// A request for a token, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPlan {
    /// How long it is good.
    pub lifetime: Duration,
    /// For which ports.
    pub ports: Ports,
}

fn lifetime(minutes: u32) -> Result<Duration, ServiceError> {
    if minutes > EXPIRATION_MINUTES_MAX {
        return Err(catalogue::token_lifetime_too_long(minutes, EXPIRATION_MINUTES_MAX));
    }
    Ok(Duration::from_secs(u64::from(minutes) * 60))
}

impl CreateMicrovmShellAuthTokenRequest {
    /// How long the token is good, by the service's rules.
    pub fn lifetime(&self) -> Result<Duration, ServiceError> {
        lifetime(self.expiration_in_minutes)
    }
}

impl CreateMicrovmAuthTokenRequest {
    /// Applies the service's rules.
    pub fn plan(&self) -> Result<TokenPlan, ServiceError> {
        let lifetime = lifetime(self.expiration_in_minutes)?;
        let mut ranges = Vec::new();
        for allowed in &self.allowed_ports {
            match allowed {
                PortSpecification::Port(port) => ranges.push((*port, *port)),
                PortSpecification::Range(range) if range.start_port > range.end_port => {
                    return Err(catalogue::port_range_reversed(range.start_port, range.end_port));
                }
                PortSpecification::Range(range) => ranges.push((range.start_port, range.end_port)),
                PortSpecification::AllPorts(_) => ranges.push((1, u16::MAX)),
            }
        }
        let ranges = merged(ranges);
        if ranges.len() > PORT_RANGES_MAX {
            return Err(catalogue::too_many_port_ranges(ranges.len(), PORT_RANGES_MAX));
        }
        Ok(TokenPlan { lifetime, ports: Ports::from_ranges(ranges) })
    }
}

/// The same ports in the fewest ranges: however many are asked for, the token that carries them stays small.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}
