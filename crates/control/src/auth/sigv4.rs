//! The algorithm of Signature Version 4, for every service but S3: pure functions from a request to its signature.

use hmac::{Hmac, Mac};
use http::{HeaderMap, Uri, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

/// Name of the algorithm.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Last part of every scope.
pub const TERMINATOR: &str = "aws4_request";

/// The parameter of a presigned request that is not part of what is signed.
pub const SIGNATURE_PARAMETER: &str = "X-Amz-Signature";

const NOT_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a signature is good for: a day, a region and a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// `YYYYMMDD`.
    pub date: String,
    /// Such as `us-east-1`.
    pub region: String,
    /// Such as `lambda`.
    pub service: String,
}

impl Scope {
    fn text(&self) -> String {
        format!("{}/{}/{}/{TERMINATOR}", self.date, self.region, self.service)
    }
}

/// The parts of a request that are signed.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its target, as it travelled.
    pub uri: &'a Uri,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Names of those that are signed, in lower case.
    pub names: &'a [String],
    /// Its body.
    pub body: &'a [u8],
}

/// The path in canonical form. What travelled is already encoded once, and is encoded again: so it is for every service
/// but S3.
fn canonical_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    if segments.is_empty() {
        return "/".to_owned();
    }
    let trailing = if path.ends_with('/') { "/" } else { "" };
    let encoded: Vec<_> =
        segments.iter().map(|segment| utf8_percent_encode(segment, NOT_UNRESERVED).to_string()).collect();
    format!("/{}{trailing}", encoded.join("/"))
}

fn reencoded(text: &str) -> String {
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    percent_encoding::percent_encode(&bytes, NOT_UNRESERVED).to_string()
}

/// The query in canonical form, sorted, without the signature itself.
fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (reencoded(name), reencoded(value)))
        .filter(|(name, _)| name != SIGNATURE_PARAMETER)
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// A header's value in canonical form: all its occurrences, each with its white space gathered. `None` if there is none
/// or it is not text.
fn canonical_header(signed: &Signed<'_>, name: &str) -> Option<String> {
    let mut values = Vec::new();
    for value in signed.headers.get_all(name) {
        let text = std::str::from_utf8(value.as_bytes()).ok()?;
        values.push(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
    }
    if values.is_empty() && name == header::HOST.as_str() {
        // HTTP/2 carries the host in the target.
        values.push(signed.uri.authority()?.to_string());
    }
    (!values.is_empty()).then(|| values.join(","))
}

/// The request in canonical form; `None` if a signed header is not there.
#[must_use]
pub fn canonical_request(signed: &Signed<'_>) -> Option<String> {
    let mut names: Vec<&str> = signed.names.iter().map(String::as_str).collect();
    names.sort_unstable();
    let mut headers = String::new();
    for name in &names {
        headers.push_str(name);
        headers.push(':');
        headers.push_str(&canonical_header(signed, name)?);
        headers.push('\n');
    }
    Some(format!(
        "{}\n{}\n{}\n{headers}\n{}\n{}",
        signed.method,
        canonical_path(signed.uri.path()),
        canonical_query(signed.uri.query().unwrap_or_default()),
        names.join(";"),
        hex::encode(Sha256::digest(signed.body)),
    ))
}

/// What is signed in the end. `timestamp` is `YYYYMMDDTHHMMSSZ`.
#[must_use]
pub fn string_to_sign(timestamp: &str, scope: &Scope, canonical_request: &str) -> String {
    format!("{ALGORITHM}\n{timestamp}\n{}\n{}", scope.text(), hex::encode(Sha256::digest(canonical_request)))
}

fn hmac(key: &[u8], text: &str) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

/// The signature.
#[must_use]
pub fn signature(secret: &str, scope: &Scope, string_to_sign: &str) -> [u8; 32] {
    let key = hmac(format!("AWS4{secret}").as_bytes(), &scope.date);
    let key = [scope.region.as_str(), &scope.service, TERMINATOR].iter().fold(key, |key, part| hmac(&key, part));
    hmac(&key, string_to_sign)
}
