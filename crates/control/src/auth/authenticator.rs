//! Verifies requests with the access keys of one account.

use std::sync::Arc;

use http::request::Parts;
use subtle::ConstantTimeEq;
use time::{Duration, OffsetDateTime};

use super::{
    authorization::{Authorization, authorization_of, timestamp_text},
    caller::Caller,
    error::AuthError,
    principals::Principals,
    sigv4::{self, Signed},
};

/// The name a service signs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningName {
    /// Both of the MicroVM services.
    Lambda,
    /// The one that says who a caller is.
    Sts,
}

impl SigningName {
    /// As a credential scope writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lambda => "lambda",
            Self::Sts => "sts",
        }
    }

    /// Clients sign for the region they call, except that STS has a global endpoint, which is in this one.
    fn is_in(self, region: &str, ours: &str) -> bool {
        match self {
            Self::Lambda => region == ours,
            Self::Sts => region == ours || region == "us-east-1",
        }
    }
}

/// How far a caller's clock may be off.
const SKEW_MAX: Duration = Duration::minutes(5);

/// Knows the account's keys, and for what place signatures must be.
#[derive(Debug)]
pub struct Authenticator {
    principals: Arc<Principals>,
    region: String,
}

/// A request whose description of its signature is in order: the key is known, scope and time are right. What is left
/// needs the body.
pub struct Claim<'a> {
    authenticator: &'a Authenticator,
    authorization: Authorization,
}

impl Authenticator {
    /// Knows these principals, and takes signatures for this region.
    #[must_use]
    pub fn new(principals: Arc<Principals>, region: String) -> Self {
        Self { principals, region }
    }

    /// Checks all that can be checked before the body is read, so that nobody unknown makes us read one.
    pub fn claim(&self, service: SigningName, parts: &Parts, now: OffsetDateTime) -> Result<Claim<'_>, AuthError> {
        let authorization = authorization_of(parts)?;
        // Session tokens are not issued here, so none can be right.
        if authorization.has_session_token {
            return Err(AuthError::UnknownKey);
        }
        if self.principals.secret(&authorization.access_key_id).is_none() {
            return Err(AuthError::UnknownKey);
        }
        self.check_scope(service, &authorization)?;
        check_time(&authorization, now)?;
        Ok(Claim { authenticator: self, authorization })
    }

    fn check_scope(&self, service: SigningName, authorization: &Authorization) -> Result<(), AuthError> {
        let scope = &authorization.scope;
        let refused = |message: String| Err(AuthError::Scope { message });
        if !service.is_in(&scope.region, &self.region) {
            let shown: String = scope.region.chars().take(64).collect();
            return refused(format!("Credential should be scoped to a valid region, not '{shown}'. "));
        }
        let service = service.as_str();
        if scope.service != service {
            return refused(format!("Credential should be scoped to correct service: '{service}'. "));
        }
        let signed_at = timestamp_text(authorization.signed_at);
        let day = &signed_at[..8];
        if scope.date != day {
            let shown: String = scope.date.chars().take(64).collect();
            return refused(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{shown}' != \
                 '{day}', from '{signed_at}'."
            ));
        }
        Ok(())
    }
}

fn check_time(authorization: &Authorization, now: OffsetDateTime) -> Result<(), AuthError> {
    let signed_at = authorization.signed_at;
    let (signed_text, now_text) = (timestamp_text(signed_at), timestamp_text(now));
    let refused = |message: String| Err(AuthError::Scope { message });
    if signed_at > now + SKEW_MAX {
        return refused(format!(
            "Signature not yet current: {signed_text} is still later than {} ({now_text} + 5 min.)",
            timestamp_text(now + SKEW_MAX)
        ));
    }
    match authorization.expires_seconds {
        Some(seconds) if now > signed_at + Duration::seconds(seconds) => refused(format!(
            "Signature expired: {signed_text} is now earlier than {} ({now_text} - {seconds} sec.)",
            timestamp_text(now - Duration::seconds(seconds))
        )),
        None if signed_at < now - SKEW_MAX => refused(format!(
            "Signature expired: {signed_text} is now earlier than {} ({now_text} - 5 min.)",
            timestamp_text(now - SKEW_MAX)
        )),
        Some(_) | None => Ok(()),
    }
}

impl Claim<'_> {
    /// Checks the signature itself over the request with its body.
    pub fn verify(&self, parts: &Parts, body: &[u8]) -> Result<Caller, AuthError> {
        let Authorization { access_key_id, scope, signed_headers, signature, signed_at, .. } = &self.authorization;
        let signed = Signed {
            method: parts.method.as_str(),
            uri: &parts.uri,
            headers: &parts.headers,
            names: signed_headers,
            body,
        };
        let canonical = sigv4::canonical_request(&signed).ok_or(AuthError::Mismatch)?;
        let string = sigv4::string_to_sign(&timestamp_text(*signed_at), scope, &canonical);
        // Looked up once more: the key may have lost its validity while the body was on its way.
        let Authenticator { principals, region } = self.authenticator;
        let (secret, caller) = principals.signer(access_key_id, region).ok_or(AuthError::UnknownKey)?;
        let expected = sigv4::signature(secret.expose(), scope, &string);
        if !bool::from(expected.ct_eq(signature)) {
            return Err(AuthError::Mismatch);
        }
        Ok(caller)
    }
}
