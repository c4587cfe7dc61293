//! What a configuration file says about it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use http::Uri;
use instant_acme::ChallengeType;
use serde::{Deserialize, Serialize};

/// Longest that a hook may be given; longer than any zone takes to be seen.
const HOOK_SECONDS_MAX: u32 = 3600;
/// Addresses of people. No authority takes more.
const CONTACTS_MAX: usize = 10;
/// Orders within an hour for single endpoints. Let's Encrypt signs 50 certificates a week for a domain, so there is never more to
/// be had of it at once.
const ORDERS_PER_HOUR: u32 = 50;
/// More than that are written down at each order, and no authority of one's own signs as many.
const ORDERS_PER_HOUR_MAX: u32 = 10_000;

/// How it is proven that names are ours, and with that which certificates there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Challenge {
    /// By a TXT record that a hook sets: one certificate for all endpoints.
    #[default]
    #[serde(rename = "dns-01")]
    Dns01,
    /// By an answer over plain HTTP: a certificate for each endpoint, which is ordered when a client first asks for it.
    #[serde(rename = "http-01")]
    Http01,
    /// By a certificate in a TLS handshake that the authority makes: for each endpoint, as with `http-01`.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl Challenge {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dns01 => "dns-01",
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }

    pub(crate) fn kind(self) -> ChallengeType {
        match self {
            Self::Dns01 => ChallengeType::Dns01,
            Self::Http01 => ChallengeType::Http01,
            Self::TlsAlpn01 => ChallengeType::TlsAlpn01,
        }
    }
}

/// An account that is known to the authority from elsewhere, which some want to see (external account binding).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccount {
    /// What the authority calls it.
    pub key_id: String,
    /// File with its HMAC key, in base64url as authorities hand it out.
    pub key_file: PathBuf,
}

/// `[tls.acme]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcmeSettings {
    /// URL of the authority's directory.
    pub directory: String,
    /// The operator agrees to the authority's terms of service.
    #[serde(default)]
    pub terms_agreed: bool,
    /// Whom the authority may write to: `mailto:` addresses.
    #[serde(default)]
    pub contact: Vec<String>,
    /// How names are proven.
    #[serde(default)]
    pub challenge: Challenge,
    /// Program that sets and removes TXT records, and arguments before those that it gets; with `dns-01` alone.
    #[serde(default)]
    pub hook: Vec<String>,
    /// How long it may take, until the record can be seen.
    #[serde(default = "hook_timeout_seconds")]
    pub hook_timeout_seconds: u32,
    /// Where plain HTTP is listened for; with `http-01` alone. Absent: on port 80 of the endpoints' addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_listen: Option<Vec<SocketAddr>>,
    /// Orders that may be begun within an hour, over all restarts, where each endpoint has a certificate of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders_per_hour: Option<u32>,
    /// Authorities in PEM to trust for the ACME server itself, beside the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// For authorities that want one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_account: Option<ExternalAccount>,
}

fn hook_timeout_seconds() -> u32 {
    300
}

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcmeSettingsError {
    /// Not a URL to trust.
    #[error("tls.acme.directory '{0}' is no URL that begins with https://")]
    Directory(String),
    /// Without it no authority registers anybody.
    #[error("tls.acme.terms_agreed must be true: read the terms of service of the authority, and agree to them")]
    Terms,
    /// An address of another kind.
    #[error("tls.acme.contact '{0}' is not of the form mailto:name@example.com")]
    Contact(String),
    /// Too many of them.
    #[error("tls.acme.contact has {0} addresses; it may have {CONTACTS_MAX}")]
    Contacts(usize),
    /// There is nothing to prove names with.
    #[error("tls.acme.hook is empty; dns-01 needs a program that sets TXT records: hook = [\"/path/to/program\"]")]
    NoHook,
    /// Which program is meant would depend on who starts the server, and where.
    #[error("tls.acme.hook '{0}' is not an absolute path")]
    RelativeHook(String),
    /// It would never be done, or never be waited for.
    #[error("tls.acme.hook_timeout_seconds is {0}; it must be 1 to {HOOK_SECONDS_MAX}")]
    HookSeconds(u32),
    /// It would never be run.
    #[error("tls.acme.hook is for challenge = \"dns-01\"; {0} needs none, leave it out")]
    Hook(&'static str),
    /// Nobody would listen there.
    #[error("tls.acme.http_listen is for challenge = \"http-01\"; leave it out with {0}")]
    HttpListen(&'static str),
    /// The authority would find nobody.
    #[error(
        "tls.acme.http_listen is empty; leave it out for port 80 of the endpoints' addresses, or name an address and port"
    )]
    NoHttpListen,
    /// There is one certificate.
    #[error(
        "tls.acme.orders_per_hour is for certificates of single endpoints; leave it out with dns-01, which has one for all"
    )]
    OrdersForAll,
    /// Nothing would be ordered, or no end be kept.
    #[error("tls.acme.orders_per_hour is {0}; it must be 1 to {ORDERS_PER_HOUR_MAX}")]
    OrdersPerHour(u32),
    /// No public authority signs for it.
    #[error("tls.acme cannot have a certificate for names under '{0}': set domain to one of your own")]
    Domain(String),
}

impl AcmeSettings {
    /// Refuses what makes no sense, by the key. Endpoints' names end with `domain`.
    pub fn check(&self, domain: &str) -> Result<(), AcmeSettingsError> {
        let secure = |uri: &Uri| uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty());
        if !self.directory.parse().is_ok_and(|uri| secure(&uri)) {
            return Err(AcmeSettingsError::Directory(self.directory.clone()));
        }
        if !self.terms_agreed {
            return Err(AcmeSettingsError::Terms);
        }
        if self.contact.len() > CONTACTS_MAX {
            return Err(AcmeSettingsError::Contacts(self.contact.len()));
        }
        let mail = |contact: &str| {
            let address = contact.strip_prefix("mailto:").unwrap_or_default();
            address.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
                && address.bytes().all(|byte| byte.is_ascii_graphic() && !b",?<>\"".contains(&byte))
        };
        if let Some(contact) = self.contact.iter().find(|contact| !mail(contact)) {
            return Err(AcmeSettingsError::Contact(contact.clone()));
        }
        self.check_challenge()?;
        if !(1..=HOOK_SECONDS_MAX).contains(&self.hook_timeout_seconds) {
            return Err(AcmeSettingsError::HookSeconds(self.hook_timeout_seconds));
        }
        if domain.rsplit('.').next() == Some("localhost") {
            return Err(AcmeSettingsError::Domain(domain.to_owned()));
        }
        Ok(())
    }

    /// What belongs to one challenge and not to another.
    fn check_challenge(&self) -> Result<(), AcmeSettingsError> {
        let challenge = self.challenge.name();
        if self.challenge == Challenge::Dns01 {
            let program = self.hook.first().ok_or(AcmeSettingsError::NoHook)?;
            if !Path::new(program).is_absolute() {
                return Err(AcmeSettingsError::RelativeHook(program.clone()));
            }
            if self.orders_per_hour.is_some() {
                return Err(AcmeSettingsError::OrdersForAll);
            }
        } else if !self.hook.is_empty() {
            return Err(AcmeSettingsError::Hook(challenge));
        }
        match &self.http_listen {
            Some(_) if self.challenge != Challenge::Http01 => return Err(AcmeSettingsError::HttpListen(challenge)),
            Some(addresses) if addresses.is_empty() => return Err(AcmeSettingsError::NoHttpListen),
            _ => {}
        }
        let orders = self.orders_per_hour();
        if !(1..=ORDERS_PER_HOUR_MAX).contains(&orders) {
            return Err(AcmeSettingsError::OrdersPerHour(orders));
        }
        Ok(())
    }

    /// Orders for single endpoints that may be begun within an hour.
    #[must_use]
    pub fn orders_per_hour(&self) -> u32 {
        self.orders_per_hour.unwrap_or(ORDERS_PER_HOUR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> AcmeSettings {
        AcmeSettings {
            directory: "https://acme.example.test/directory".to_owned(),
            terms_agreed: true,
            contact: vec!["mailto:ops@example.test".to_owned()],
            challenge: Challenge::Dns01,
            hook: vec!["/usr/local/bin/hook".to_owned()],
            hook_timeout_seconds: 300,
            http_listen: None,
            orders_per_hour: None,
            ca: None,
            external_account: None,
        }
    }

    fn refused(change: impl FnOnce(&mut AcmeSettings)) -> Option<AcmeSettingsError> {
        let mut settings = good();
        change(&mut settings);
        settings.check("example.test").err()
    }

    #[test]
    fn what_is_left_out_has_the_usual_value() {
        let text = r#"{ "directory": "https://acme.example.test/directory", "terms_agreed": true,
                        "hook": ["/usr/local/bin/hook"] }"#;
        let settings: AcmeSettings = serde_json::from_str(text).unwrap();
        assert_eq!(settings, AcmeSettings { contact: Vec::new(), ..good() });
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_name() {
        assert_eq!(refused(|_| {}), None);
        for url in ["http://acme.example.test/directory", "acme.example.test", "https://", "https:///directory", ""] {
            let error = refused(|settings| settings.directory = url.to_owned());
            assert_eq!(error, Some(AcmeSettingsError::Directory(url.to_owned())));
        }
        assert_eq!(refused(|settings| settings.terms_agreed = false), Some(AcmeSettingsError::Terms));
        for contact in
            ["ops@example.test", "mailto:", "mailto:ops", "mailto:@b", "mailto:a@", "mailto:a@b,c@d", "tel:1"]
        {
            let error = refused(|settings| settings.contact = vec![contact.to_owned()]);
            assert_eq!(error, Some(AcmeSettingsError::Contact(contact.to_owned())));
        }
        assert_eq!(refused(|settings| settings.hook.clear()), Some(AcmeSettingsError::NoHook));
        let error = refused(|settings| settings.hook = vec!["hook.sh".to_owned(), "x".to_owned()]);
        assert_eq!(error, Some(AcmeSettingsError::RelativeHook("hook.sh".to_owned())));
        for domain in ["localhost", "vm.localhost"] {
            assert_eq!(good().check(domain), Err(AcmeSettingsError::Domain(domain.to_owned())));
        }
    }

    #[test]
    fn what_belongs_to_another_challenge_is_refused_by_its_name() {
        let of = |challenge: Challenge, change: fn(&mut AcmeSettings)| {
            refused(|settings| {
                (settings.challenge, settings.hook) = (challenge, Vec::new());
                change(settings);
            })
        };
        let hook = vec!["/usr/local/bin/hook".to_owned()];
        assert_eq!(of(Challenge::Dns01, |_| {}), Some(AcmeSettingsError::NoHook));
        for challenge in [Challenge::Http01, Challenge::TlsAlpn01] {
            assert_eq!(of(challenge, |_| {}), None);
            let error = refused(|settings| settings.challenge = challenge);
            assert_eq!(error, Some(AcmeSettingsError::Hook(challenge.name())));
        }
        let listens = |settings: &mut AcmeSettings| settings.http_listen = Some(vec!["0.0.0.0:80".parse().unwrap()]);
        assert_eq!(of(Challenge::Http01, listens), None);
        assert_eq!(of(Challenge::TlsAlpn01, listens), Some(AcmeSettingsError::HttpListen("tls-alpn-01")));
        let error = refused(|settings| (settings.hook, settings.http_listen) = (hook, Some(Vec::new())));
        assert_eq!(error, Some(AcmeSettingsError::HttpListen("dns-01")));
        let nowhere = |settings: &mut AcmeSettings| settings.http_listen = Some(Vec::new());
        assert_eq!(of(Challenge::Http01, nowhere), Some(AcmeSettingsError::NoHttpListen));
        assert_eq!(refused(|settings| settings.orders_per_hour = Some(4)), Some(AcmeSettingsError::OrdersForAll));
        for challenge in [Challenge::Dns01, Challenge::Http01, Challenge::TlsAlpn01] {
            assert_eq!(serde_json::to_value(challenge).unwrap(), challenge.name());
        }
    }

    #[test]
    fn each_bound_holds_at_its_edge() {
        assert_eq!(good().orders_per_hour(), 50);
        let orders = |orders: u32| {
            refused(|settings| {
                (settings.challenge, settings.hook) = (Challenge::TlsAlpn01, Vec::new());
                settings.orders_per_hour = Some(orders);
            })
        };
        for within in [1, 10_000] {
            assert_eq!(orders(within), None);
        }
        for beyond in [0, 10_001] {
            assert_eq!(orders(beyond), Some(AcmeSettingsError::OrdersPerHour(beyond)));
        }
        for seconds in [1, 3600] {
            assert_eq!(refused(|settings| settings.hook_timeout_seconds = seconds), None);
        }
        for seconds in [0, 3601] {
            let error = refused(|settings| settings.hook_timeout_seconds = seconds);
            assert_eq!(error, Some(AcmeSettingsError::HookSeconds(seconds)));
        }
        let contacts = |count| vec!["mailto:ops@example.test".to_owned(); count];
        assert_eq!(refused(|settings| settings.contact = contacts(10)), None);
        assert_eq!(refused(|settings| settings.contact = contacts(11)), Some(AcmeSettingsError::Contacts(11)));
    }
}
