//! What a request says of its own signature, in its `Authorization` header or, presigned, in its query.

use std::collections::BTreeMap;

use http::{HeaderMap, header, request::Parts};
use percent_encoding::percent_decode_str;
use time::{
    OffsetDateTime, PrimitiveDateTime, UtcOffset, format_description::well_known::Rfc2822, macros::format_description,
};

use super::{
    error::AuthError,
    sigv4::{ALGORITHM, Scope, TERMINATOR},
};

/// Most headers a signature may cover.
const SIGNED_HEADERS_MAX: usize = 100;

/// Longest life of a presigned request, in seconds: seven days.
const PRESIGNED_SECONDS_MAX: i64 = 604_800;

/// Header in which a session token travels.
const SESSION_TOKEN_HEADER: &str = "x-amz-security-token";

/// Header in which the time of signing travels.
const DATE_HEADER: &str = "x-amz-date";

/// A signature and all that is said of it; nothing of it has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The access key.
    pub access_key_id: String,
    /// What the signature is good for.
    pub scope: Scope,
    /// Names of the signed headers, in lower case.
    pub signed_headers: Vec<String>,
    /// The signature.
    pub signature: [u8; 32],
    /// When it was made.
    pub signed_at: OffsetDateTime,
    /// How long it is good, if it is presigned.
    pub expires_seconds: Option<i64>,
    /// Whether a session token came with it.
    pub has_session_token: bool,
}

/// A point in time as signatures write it, `YYYYMMDDTHHMMSSZ`.
pub fn timestamp_text(time: OffsetDateTime) -> String {
    time.to_offset(UtcOffset::UTC)
        .format(format_description!("[year][month][day]T[hour][minute][second]Z"))
        .expect("every part is in a date with a time")
}

fn timestamp(text: &str) -> Option<OffsetDateTime> {
    PrimitiveDateTime::parse(text, format_description!("[year][month][day]T[hour][minute][second]Z"))
        .ok()
        .map(PrimitiveDateTime::assume_utc)
}

fn incomplete(message: impl Into<String>) -> AuthError {
    AuthError::Incomplete { message: message.into() }
}

/// Reads it from a request.
pub fn authorization_of(parts: &Parts) -> Result<Authorization, AuthError> {
    let mut headers = parts.headers.get_all(header::AUTHORIZATION).iter();
    match (headers.next(), headers.next()) {
        (Some(value), None) => {
            let value = value.to_str().map_err(|_| incomplete("Authorization header is not text."))?;
            of_header(value, &parts.headers)
        }
        (Some(_), Some(_)) => Err(incomplete("Authorization header must be given once.")),
        (None, _) => of_query(parts.uri.query().unwrap_or_default()),
    }
}

fn of_header(value: &str, headers: &HeaderMap) -> Result<Authorization, AuthError> {
    let rest = value
        .strip_prefix(ALGORITHM)
        .filter(|rest| rest.starts_with(' '))
        .ok_or_else(|| incomplete(format!("Authorization header requires the algorithm '{ALGORITHM}'.")))?;
    let members: BTreeMap<&str, &str> = rest.split(',').filter_map(|member| member.trim().split_once('=')).collect();
    let member = |name: &str| {
        members
            .get(name)
            .copied()
            .ok_or_else(|| incomplete(format!("Authorization header requires '{name}' parameter.")))
    };
    let (credential, signature, names) = (member("Credential")?, member("Signature")?, member("SignedHeaders")?);
    let signed_headers = signed_headers(names)?;
    let (date_header, signed_at) = date(headers)?;
    for name in [header::HOST.as_str(), date_header] {
        if !signed_headers.iter().any(|signed| signed == name) {
            return Err(incomplete(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization.")));
        }
    }
    let (access_key_id, scope) = credential_scope(credential)?;
    Ok(Authorization {
        access_key_id,
        scope,
        signed_headers,
        signature: signature_bytes(signature)?,
        signed_at,
        expires_seconds: None,
        has_session_token: headers.contains_key(SESSION_TOKEN_HEADER),
    })
}

/// The time of signing, and which header says it.
fn date(headers: &HeaderMap) -> Result<(&'static str, OffsetDateTime), AuthError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(text) = text(DATE_HEADER) {
        let time = timestamp(text)
            .ok_or_else(|| incomplete(format!("Date must be in ISO-8601 'basic format'. Got '{text}'.")))?;
        return Ok((DATE_HEADER, time));
    }
    let text = text(header::DATE.as_str()).ok_or_else(|| {
        incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
    })?;
    let time = timestamp(text)
        // In UTC at once: the last hours of the calendar have no UTC, and are no date.
        .or_else(|| OffsetDateTime::parse(text, &Rfc2822).ok()?.checked_to_offset(UtcOffset::UTC))
        .ok_or_else(|| incomplete(format!("Date must be in ISO-8601 'basic format'. Got '{text}'.")))?;
    Ok((header::DATE.as_str(), time))
}

fn of_query(query: &str) -> Result<Authorization, AuthError> {
    let mut members: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        if name.starts_with("X-Amz-") {
            let value =
                percent_decode_str(value).decode_utf8().map_err(|_| incomplete(format!("'{name}' is not text.")))?;
            if members.insert(name, value.into_owned()).is_some() {
                return Err(incomplete(format!("'{name}' must be given once.")));
            }
        }
    }
    if !members.contains_key("X-Amz-Algorithm") && !members.contains_key("X-Amz-Signature") {
        return Err(AuthError::Missing);
    }
    let member = |name: &str| {
        members
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| incomplete(format!("AWS query-string parameters must include '{name}'.")))
    };
    if member("X-Amz-Algorithm")? != ALGORITHM {
        return Err(incomplete(format!("AWS query-string requires the algorithm '{ALGORITHM}'.")));
    }
    let (access_key_id, scope) = credential_scope(member("X-Amz-Credential")?)?;
    let signed_headers = signed_headers(member("X-Amz-SignedHeaders")?)?;
    if !signed_headers.iter().any(|name| name == header::HOST.as_str()) {
        return Err(incomplete("'host' must be a 'SignedHeader' in the AWS Authorization."));
    }
    let date = member("X-Amz-Date")?;
    let signed_at =
        timestamp(date).ok_or_else(|| incomplete(format!("Date must be in ISO-8601 'basic format'. Got '{date}'.")))?;
    let expires_seconds = member("X-Amz-Expires")?
        .parse()
        .ok()
        .filter(|seconds| (1..=PRESIGNED_SECONDS_MAX).contains(seconds))
        .ok_or_else(|| incomplete(format!("X-Amz-Expires must be between 1 and {PRESIGNED_SECONDS_MAX} seconds.")))?;
    Ok(Authorization {
        access_key_id,
        scope,
        signed_headers,
        signature: signature_bytes(member("X-Amz-Signature")?)?,
        signed_at,
        expires_seconds: Some(expires_seconds),
        has_session_token: members.contains_key("X-Amz-Security-Token"),
    })
}

fn signed_headers(names: &str) -> Result<Vec<String>, AuthError> {
    let names: Vec<String> = names.split(';').take(SIGNED_HEADERS_MAX + 1).map(str::to_ascii_lowercase).collect();
    if names.len() > SIGNED_HEADERS_MAX || names.iter().any(String::is_empty) {
        return Err(incomplete("The list of signed headers cannot be read."));
    }
    Ok(names)
}

fn signature_bytes(text: &str) -> Result<[u8; 32], AuthError> {
    let mut bytes = [0; 32];
    // A signature of another form is simply not the right one.
    hex::decode_to_slice(text, &mut bytes).map_err(|_| AuthError::Mismatch)?;
    Ok(bytes)
}

/// `KEY/YYYYMMDD/region/service/aws4_request`.
fn credential_scope(text: &str) -> Result<(String, Scope), AuthError> {
    let mut parts = text.split('/');
    let mut part = || parts.next().filter(|part| !part.is_empty());
    let (Some(key), Some(date), Some(region), Some(service), Some(terminator), None) =
        (part(), part(), part(), part(), part(), parts.next())
    else {
        let shown: String = text.chars().take(200).collect();
        return Err(incomplete(format!(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '{shown}'"
        )));
    };
    if terminator != TERMINATOR {
        let shown: String = terminator.chars().take(64).collect();
        return Err(AuthError::Scope {
            message: format!("Credential should be scoped with a valid terminator: '{TERMINATOR}', not '{shown}'."),
        });
    }
    let scope = Scope { date: date.to_owned(), region: region.to_owned(), service: service.to_owned() };
    Ok((key.to_owned(), scope))
}

/// What a request says of the key it was signed with, `KEY/YYYYMMDD/region/service/aws4_request`; in a query the slashes are
/// encoded.
fn credential_of(parts: &Parts) -> Option<&str> {
    match parts.headers.get(header::AUTHORIZATION) {
        Some(value) => value.to_str().ok()?.split_once("Credential=")?.1.split([',', ' ']).next(),
        None => parts.uri.query()?.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Credential=")),
    }
}

/// The access key a request was signed with, by its own word.
#[must_use]
pub fn access_key_id_of(parts: &Parts) -> Option<&str> {
    let credential = credential_of(parts)?;
    Some(after_slash(credential).map_or(credential, |(key, _)| key)).filter(|key| !key.is_empty())
}

/// The service a request was signed for, by its own word, so that one listener can serve several.
#[must_use]
pub fn service_of(parts: &Parts) -> Option<&str> {
    let mut rest = credential_of(parts)?;
    for _ in 0..3 {
        rest = after_slash(rest)?.1;
    }
    // The name ends at the next slash: what has none is no scope.
    after_slash(rest).map(|(service, _)| service).filter(|service| !service.is_empty())
}

/// What is before and after the first slash.
fn after_slash(text: &str) -> Option<(&str, &str)> {
    ["/", "%2F", "%2f"].iter().filter_map(|slash| text.split_once(slash)).min_by_key(|(before, _)| before.len())
}
