//! The limits as a configuration file has them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Limits, NEVER, PerMicrovm};

/// Smallest head that may be set, in bytes: tokens alone may be 8000, and the HTTP library's buffers have 8192 at least.
const HEADER_BYTES_MIN: u32 = 16 * 1024;
/// Largest: each connection may hold as much in each direction.
const HEADER_BYTES_MAX: u32 = 1024 * 1024;
/// Most fields that may be set: each costs memory before anybody has shown a token.
const HEADER_FIELDS_MAX: u32 = 1000;

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {value}; it must be {allowed}")]
pub struct SettingsError {
    key: &'static str,
    value: u64,
    allowed: String,
}

/// The limits that can be set; [`Limits`] says the usual values and why. 0 is no limit where that is said, and refused
/// elsewhere: what bounds strangers cannot be turned off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Clients' connections at once, for all microVMs together.
    pub connections: u32,
    /// Of those, how many from one address; without it, half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_address: Option<u32>,
    /// Connections to apps at once.
    pub upstream_connections: u32,
    /// Longest TLS handshake.
    pub tls_handshake_seconds: u32,
    /// Longest time for a request's head.
    pub request_head_seconds: u32,
    /// How long a client's connection may stay open between requests.
    pub client_idle_seconds: u32,
    /// How long a client may take nothing of what it is sent; 0: as long as it likes.
    pub client_stall_seconds: u32,
    /// How long an app may let a request wait for its answer's beginning without a byte in either direction; 0: no limit.
    pub answer_seconds: u32,
    /// Longest time without a byte in either direction in answers, streams and WebSockets; 0: no limit.
    pub silence_seconds: u32,
    /// Largest head of a request or an answer.
    pub header_bytes: u32,
    /// Most fields in a head.
    pub header_fields: u32,
    /// Longest body of a request; 0: no limit.
    pub request_body_bytes: u64,
    /// What each microVM may take.
    pub per_microvm: PerMicrovm,
}

impl Default for Settings {
    fn default() -> Self {
        let limits = Limits::standard();
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(0);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            connections: count(limits.connections),
            connections_per_address: None,
            upstream_connections: count(limits.upstream_connections),
            tls_handshake_seconds: seconds(limits.tls_handshake),
            request_head_seconds: seconds(limits.request_head),
            client_idle_seconds: seconds(limits.client_idle),
            client_stall_seconds: seconds(limits.client_stall),
            answer_seconds: seconds(limits.answer),
            silence_seconds: seconds(limits.silence),
            header_bytes: count(limits.head_bytes),
            header_fields: count(limits.header_fields),
            request_body_bytes: 0,
            per_microvm: limits.per_microvm,
        }
    }
}

impl Settings {
    /// Refuses what makes no sense, by the key.
    pub fn check(&self) -> Result<(), SettingsError> {
        for (key, value) in [
            ("edge.connections", self.connections),
            ("edge.connections_per_address", self.connections_per_address.unwrap_or(1)),
            ("edge.upstream_connections", self.upstream_connections),
            ("edge.tls_handshake_seconds", self.tls_handshake_seconds),
            ("edge.request_head_seconds", self.request_head_seconds),
            ("edge.client_idle_seconds", self.client_idle_seconds),
        ] {
            within(key, value, 1, u32::MAX)?;
        }
        within("edge.header_bytes", self.header_bytes, HEADER_BYTES_MIN, HEADER_BYTES_MAX)?;
        within("edge.header_fields", self.header_fields, 1, HEADER_FIELDS_MAX)
    }

    /// How many files may be open at once with all of that.
    #[must_use]
    pub fn files(&self) -> u64 {
        let refused = Limits::standard().connections_refused as u64;
        u64::from(self.connections) + u64::from(self.upstream_connections) + refused
    }

    /// The limits, of which clients' connections and those to apps are lowered in proportion, if this process may not have
    /// `files` open for them; and whether they were.
    #[must_use]
    pub fn limits(&self, files: u64) -> (Limits, bool) {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let or_never = |value: u32| if value == 0 { NEVER } else { seconds(value) };
        let standard = Limits::standard();
        let wanted = u64::from(self.connections) + u64::from(self.upstream_connections);
        let available = wanted.saturating_sub(self.files().saturating_sub(files));
        let fitted = |connections: u32| {
            let share = u128::from(connections) * u128::from(available) / u128::from(wanted.max(1));
            usize::try_from(share).unwrap_or(usize::MAX).max(1)
        };
        let limits = Limits {
            connections: fitted(self.connections),
            connections_per_address: fitted(self.connections_per_address.unwrap_or(self.connections.div_ceil(2))),
            upstream_connections: fitted(self.upstream_connections),
            tls_handshake: seconds(self.tls_handshake_seconds),
            request_head: seconds(self.request_head_seconds),
            client_idle: seconds(self.client_idle_seconds),
            client_stall: or_never(self.client_stall_seconds),
            answer: or_never(self.answer_seconds),
            silence: or_never(self.silence_seconds),
            head_bytes: self.header_bytes as usize,
            header_fields: self.header_fields as usize,
            request_body_bytes: if self.request_body_bytes == 0 { u64::MAX } else { self.request_body_bytes },
            per_microvm: self.per_microvm.clone(),
            ..standard
        };
        (limits, available < wanted)
    }
}

fn within(key: &'static str, value: u32, least: u32, most: u32) -> Result<(), SettingsError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let allowed = if most == u32::MAX { format!("at least {least}") } else { format!("{least} to {most}") };
    Err(SettingsError { key, value: value.into(), allowed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_usual_limits() {
        let settings = Settings::default();
        settings.check().unwrap();
        let (limits, lowered) = settings.limits(u64::MAX);
        assert_eq!(format!("{limits:?}"), format!("{:?}", Limits::standard()));
        assert!(!lowered);
    }

    #[test]
    fn each_bound_holds_at_its_edge() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().err().map(|error| error.to_string())
        };
        assert_eq!(refused(|settings| settings.header_bytes = 16384), None);
        assert_eq!(refused(|settings| settings.header_bytes = 1024 * 1024), None);
        let told = Some("edge.header_bytes is 16383; it must be 16384 to 1048576".to_owned());
        assert_eq!(refused(|settings| settings.header_bytes = 16383), told);
        assert!(refused(|settings| settings.header_bytes = 1024 * 1024 + 1).is_some());
        assert_eq!(refused(|settings| settings.header_fields = 1000), None);
        assert!(refused(|settings| settings.header_fields = 1001).is_some());
        assert!(refused(|settings| settings.header_fields = 0).is_some());
        assert_eq!(refused(|settings| settings.connections = 1), None);
        let told = Some("edge.connections is 0; it must be at least 1".to_owned());
        assert_eq!(refused(|settings| settings.connections = 0), told);
        assert!(refused(|settings| settings.connections_per_address = Some(0)).is_some());
        assert_eq!(refused(|settings| settings.connections_per_address = Some(1)), None);
        assert!(refused(|settings| settings.upstream_connections = 0).is_some());
        assert!(refused(|settings| settings.tls_handshake_seconds = 0).is_some());
        assert!(refused(|settings| settings.request_head_seconds = 0).is_some());
        assert!(refused(|settings| settings.client_idle_seconds = 0).is_some());
    }

    #[test]
    fn none_is_none() {
        let none = Settings {
            client_stall_seconds: 0,
            answer_seconds: 0,
            silence_seconds: 0,
            request_body_bytes: 0,
            ..Settings::default()
        };
        none.check().unwrap();
        let (limits, _) = none.limits(u64::MAX);
        assert_eq!([limits.client_stall, limits.answer, limits.silence], [NEVER; 3]);
        assert_eq!(limits.request_body_bytes, u64::MAX);
    }

    #[test]
    fn no_address_has_all_connections_unless_it_is_said() {
        let of_one = |settings: &Settings, files| settings.limits(files).0.connections_per_address;
        let small = Settings { connections: 101, upstream_connections: 101, ..Settings::default() };
        assert_eq!([of_one(&small, u64::MAX), of_one(&small, 64 + 101)], [51, 25]);
        let proxied = Settings { connections_per_address: Some(101), ..small };
        assert_eq!([of_one(&proxied, u64::MAX), of_one(&proxied, 64 + 101)], [101, 50]);
    }

    #[test]
    fn connections_fit_the_files_that_may_be_open() {
        let settings = Settings { connections: 300, upstream_connections: 100, ..Settings::default() };
        let fitted = |files| {
            let (limits, lowered) = settings.limits(files);
            (limits.connections, limits.upstream_connections, lowered)
        };
        assert_eq!(fitted(464), (300, 100, false));
        assert_eq!(fitted(463), (299, 99, true));
        assert_eq!(fitted(64 + 200), (150, 50, true));
        assert_eq!(fitted(0), (1, 1, true));
    }
}
