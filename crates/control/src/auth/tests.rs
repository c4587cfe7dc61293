//! Signatures others made: AWS's published test suite, and what botocore 1.44.5 signed for these very operations.

use api::sensitive::Sensitive;
use http::{Method, Request, request::Parts};
use serde::Deserialize;
use time::{Duration, OffsetDateTime, macros::datetime};

use super::{
    AccessKey, AuthError, Authenticator, Principals, SigningName, access_key_id_of, service_of,
    sigv4::{self, Scope, Signed},
};

const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SIGNED_AT: OffsetDateTime = datetime!(2026-11-23 12:30:45 UTC);

#[derive(Deserialize)]
struct SuiteVector {
    name: String,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: String,
    signature: String,
}

#[derive(Deserialize)]
struct Recorded {
    name: String,
    method: String,
    target: String,
    headers: std::collections::BTreeMap<String, String>,
    body: String,
}

impl Recorded {
    fn parts(&self) -> Parts {
        let mut request = Request::builder().method(self.method.as_str()).uri(self.target.as_str());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(()).unwrap().into_parts().0
    }
}

fn recorded() -> Vec<Recorded> {
    serde_json::from_str(include_str!("vectors/botocore.json")).unwrap()
}

fn authenticator(region: &str) -> Authenticator {
    let key = AccessKey { id: KEY.into(), secret: Sensitive::new(SECRET) };
    Authenticator::new(Principals::new("123456789012".into(), key), region.into())
}

fn verified(parts: &Parts, body: &[u8], now: OffsetDateTime) -> Result<super::Caller, AuthError> {
    authenticator("us-east-1").claim(SigningName::Lambda, parts, now)?.verify(parts, body)
}

#[test]
fn the_published_suite() {
    let vectors: Vec<SuiteVector> = serde_json::from_str(include_str!("vectors/suite.json")).unwrap();
    for vector in vectors {
        let mut request = Request::builder().method(vector.method.as_str()).uri(vector.target.as_str());
        let mut names: Vec<String> = Vec::new();
        for (name, value) in &vector.headers {
            request = request.header(name, value);
            if names.last() != Some(name) {
                names.push(name.clone());
            }
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let signed = Signed {
            method: parts.method.as_str(),
            uri: &parts.uri,
            headers: &parts.headers,
            names: &names,
            body: vector.body.as_bytes(),
        };
        let scope = Scope { date: "20150830".into(), region: "us-east-1".into(), service: "service".into() };
        let canonical = sigv4::canonical_request(&signed).unwrap();
        let string = sigv4::string_to_sign("20150830T123600Z", &scope, &canonical);
        let signature = hex::encode(sigv4::signature(SECRET, &scope, &string));
        assert_eq!(signature, vector.signature, "{}: {canonical}", vector.name);
    }
}

#[test]
fn what_botocore_signs_is_taken() {
    let requests = recorded();
    assert_eq!(requests.len(), 7);
    for request in requests {
        let caller = verified(&request.parts(), request.body.as_bytes(), SIGNED_AT).unwrap_or_else(|error| {
            panic!("{}: {error}", request.name);
        });
        assert_eq!((caller.access_key_id.as_str(), caller.account.as_str()), (KEY, "123456789012"));
        assert_eq!(service_of(&request.parts()), Some("lambda"), "{}", request.name);
        assert_eq!(access_key_id_of(&request.parts()), Some(KEY), "{}", request.name);
    }
}

#[test]
fn nothing_of_a_signed_request_can_be_changed() {
    for request in recorded() {
        let refused = |parts: &Parts, body: &[u8]| {
            assert_eq!(verified(parts, body, SIGNED_AT), Err(AuthError::Mismatch), "{}", request.name);
        };
        let mut body = request.body.clone().into_bytes();
        body.push(b' ');
        refused(&request.parts(), &body);
        let mut parts = request.parts();
        parts.method = Method::PATCH;
        refused(&parts, request.body.as_bytes());
        let mut parts = request.parts();
        parts.uri = request.target.replacen("microvm", "microwm", 1).parse().unwrap();
        refused(&parts, request.body.as_bytes());
        let mut parts = request.parts();
        let more = if request.target.contains('?') { "&x=1" } else { "?x=1" };
        parts.uri = format!("{}{more}", request.target).parse().unwrap();
        refused(&parts, request.body.as_bytes());
        let mut parts = request.parts();
        parts.headers.insert("host", "elsewhere".parse().unwrap());
        refused(&parts, request.body.as_bytes());
    }
}

#[test]
fn a_clock_may_be_off_by_five_minutes() {
    let requests = recorded();
    let list = requests.iter().find(|it| it.name == "list_microvms").unwrap();
    for (off, taken) in [(-301, false), (-300, true), (300, true), (301, false)] {
        let result = verified(&list.parts(), b"", SIGNED_AT + Duration::seconds(off));
        assert_eq!(result.is_ok(), taken, "{off}");
    }
    assert_eq!(
        verified(&list.parts(), b"", SIGNED_AT + Duration::minutes(6)).unwrap_err().to_string(),
        "Signature expired: 20261123T123045Z is now earlier than 20261123T123145Z (20261123T123645Z - 5 min.)"
    );
    let presigned = requests.iter().find(|it| it.name == "presigned").unwrap();
    for (off, taken) in [(-301, false), (599, true), (600, true), (601, false)] {
        let result = verified(&presigned.parts(), b"", SIGNED_AT + Duration::seconds(off));
        assert_eq!(result.is_ok(), taken, "{off}");
    }
}

#[test]
fn refusals_name_what_is_wrong() {
    let requests = recorded();
    let list = requests.iter().find(|it| it.name == "list_microvms").unwrap();
    let with = |from: &str, to: &str| {
        let mut parts = list.parts();
        let value = parts.headers["authorization"].to_str().unwrap().replace(from, to);
        parts.headers.insert("authorization", value.parse().unwrap());
        let error = verified(&parts, b"", SIGNED_AT).unwrap_err();
        (error.kind(), error.to_string())
    };
    assert_eq!(
        with(KEY, "AKIDOTHER"),
        ("UnrecognizedClientException", "The security token included in the request is invalid.".into())
    );
    assert_eq!(
        with("us-east-1", "eu-west-1"),
        ("InvalidSignatureException", "Credential should be scoped to a valid region, not 'eu-west-1'. ".into())
    );
    assert_eq!(with("/lambda/", "/s3/").1, "Credential should be scoped to correct service: 'lambda'. ");
    assert_eq!(with("Signature=", "Signature=0").0, "InvalidSignatureException");
    assert_eq!(with("host;x-amz-date", "x-amz-date").0, "IncompleteSignatureException");
    assert_eq!(with("host;x-amz-date", "host").0, "IncompleteSignatureException");
    assert_eq!(with("host;x-amz-date", "host;x-absent;x-amz-date").0, "InvalidSignatureException");
    assert_eq!(with("Credential=", "Cred=").1, "Authorization header requires 'Credential' parameter.");
    assert_eq!(with("AWS4-HMAC-SHA256", "Bearer").0, "IncompleteSignatureException");
    assert_eq!(with("/20261123/", "/20261122/").0, "InvalidSignatureException");
    assert_eq!(with("aws4_request", "aws5_request").0, "InvalidSignatureException");
    let mut parts = list.parts();
    parts.headers.insert("x-amz-security-token", "session".parse().unwrap());
    assert_eq!(verified(&parts, b"", SIGNED_AT), Err(AuthError::UnknownKey));
    let mut parts = list.parts();
    parts.headers.remove("authorization");
    assert_eq!(verified(&parts, b"", SIGNED_AT), Err(AuthError::Missing));
    assert_eq!(service_of(&parts), None);
}

#[test]
fn a_date_beyond_the_calendar_is_refused() {
    let requests = recorded();
    let mut parts = requests.iter().find(|it| it.name == "list_microvms").unwrap().parts();
    let value = parts.headers["authorization"].to_str().unwrap().replace("x-amz-date", "date");
    parts.headers.insert("authorization", value.parse().unwrap());
    parts.headers.remove("x-amz-date");
    // In UTC this would be in the year 10000.
    parts.headers.insert("date", "Fri, 31 Dec 9999 23:59:59 -0100".parse().unwrap());
    assert_eq!(verified(&parts, b"", SIGNED_AT).unwrap_err().kind(), "IncompleteSignatureException");
}

proptest::proptest! {
    #[test]
    fn no_header_and_no_query_makes_the_reader_panic(
        header in "(AWS4-HMAC-SHA256 )?[ -~]{0,120}",
        query in "(X-Amz-(Algorithm|Credential|Date|Expires|Signature|SignedHeaders)=[a-zA-Z0-9%/-]{0,20}&){0,8}",
    ) {
        let signed = Request::builder().uri("/").header("authorization", header).body(()).unwrap().into_parts().0;
        proptest::prop_assert!(verified(&signed, b"", SIGNED_AT).is_err());
        let _ = service_of(&signed);
        if let Ok(request) = Request::builder().uri(format!("/?{query}")).body(()) {
            let parts = request.into_parts().0;
            proptest::prop_assert!(verified(&parts, b"", SIGNED_AT).is_err());
            let _ = service_of(&parts);
        }
    }
}
