//! What of a head crosses the edge, and what does not.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use rand::Rng;
use uuid::Uuid;

use crate::websocket;

/// The number of a request, told to the app and to the client.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// What concerns one connection only, whether `Connection` names it or not; beside what frames a body.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Asks for HTTP/2 in the clear to the app.
pub(crate) const FORCE_H2: HeaderName = HeaderName::from_static("x-aws-proxy-force-h2");

/// The namespace that is the edge's own; no header in it reaches an app, known or not.
const RESERVED: &str = "x-aws-proxy-";

/// The protocol a request wants to change to, if it does. `h2c` is left out: its frames would be requests that no one
/// here looks at.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let asked = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    (asked && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

/// Says in HTTP/1.1's fields what HTTP/2 says elsewhere: in the target and in the frames.
pub(crate) fn from_http2(headers: &mut HeaderMap, uri: &Uri, has_body: bool) {
    if !headers.contains_key(header::HOST)
        && let Some(host) = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
    {
        headers.insert(header::HOST, host);
    }
    // There is no way to tell an HTTP/2 client to go on; it goes on by itself.
    headers.remove(header::EXPECT);
    if has_body && !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// What of a head the edge has something to do with. Heads are short, and looking for each field that might be there costs
/// several times as much as looking at each that is.
#[derive(Default)]
struct Seen {
    cookies: bool,
    subprotocols: bool,
    reserved: bool,
    te: bool,
    chunked: bool,
    connection: bool,
    hop_by_hop: bool,
}

impl Seen {
    fn in_(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            seen.cookies |= *name == header::COOKIE;
            seen.subprotocols |= *name == header::SEC_WEBSOCKET_PROTOCOL;
            seen.reserved |= is_reserved(name);
            seen.te |= *name == header::TE;
            seen.chunked |= *name == header::TRANSFER_ENCODING;
            seen.connection |= *name == header::CONNECTION;
            seen.hop_by_hop |= HOP_BY_HOP.contains(name);
        }
        seen
    }
}

fn is_reserved(name: &HeaderName) -> bool {
    name.as_str().starts_with(RESERVED)
}

/// Makes a client's headers the app's.
pub(crate) fn to_app(headers: &mut HeaderMap, request_id: &HeaderValue, upgrade: Option<HeaderValue>) {
    let seen = Seen::in_(headers);
    if seen.cookies {
        join_cookies(headers);
    }
    if seen.subprotocols {
        websocket::strip(headers);
    }
    if seen.reserved {
        let reserved: Vec<HeaderName> = headers.keys().filter(|name| is_reserved(name)).cloned().collect();
        for name in reserved {
            headers.remove(name);
        }
    }
    let trailers = seen.te && tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(headers, &seen);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if seen.chunked {
        // Said aloud, because without it a GET's body would be taken for none.
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    restore_upgrade(headers, upgrade);
    headers.insert(REQUEST_ID, request_id.clone());
}

/// Makes an app's headers the client's.
pub(crate) fn to_client(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    let seen = Seen::in_(headers);
    strip_hop_by_hop(headers, &seen);
    restore_upgrade(headers, upgrade);
}

/// A number for a request, as a header's value. It comes from the thread's own generator: the kernel's would have to be
/// asked for every request.
pub(crate) fn request_id() -> HeaderValue {
    let id = uuid::Builder::from_random_bytes(rand::rng().random()).into_uuid();
    let mut text = Uuid::encode_buffer();
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).expect("a UUID is plain text")
}

/// HTTP/2 may spread cookies over several fields, HTTP/1.1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in [second].into_iter().chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    let joined = HeaderValue::from_bytes(&joined).expect("it is made of values");
    headers.insert(header::COOKIE, joined);
}

fn restore_upgrade(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    if let Some(protocol) = upgrade {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// The comma-separated tokens of a header.
pub(crate) fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(',').map(str::trim))
}

/// Removes what concerns one connection only: the fixed list and what `Connection` names. Each side's framing is made
/// anew from the body itself.
fn strip_hop_by_hop(headers: &mut HeaderMap, seen: &Seen) {
    if seen.connection {
        // Host, length and encoding say what the message is; a sender cannot have them dropped, and one of two that
        // contradict each other kept, by naming them.
        let kept = [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .filter(|name| !kept.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    // Where both are present the encoding is what counted, so the length is a lie.
    if seen.chunked {
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONTENT_LENGTH);
    }
    if seen.hop_by_hop {
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_app_sees_the_clients_headers_and_nothing_of_the_edge() {
        let mut given = headers(&[
            ("host", "h"),
            ("x-aws-proxy-auth", "t"),
            ("x-aws-proxy-whatever", "1"),
            ("traceparent", "p"),
            ("x-amzn-requestid", "forged"),
            ("connection", "close, x-private, host"),
            ("x-private", "1"),
            ("keep-alive", "1"),
            ("te", "gzip, trailers"),
        ]);
        to_app(&mut given, &HeaderValue::from_static("id"), None);
        assert_eq!(
            given,
            headers(&[("host", "h"), ("traceparent", "p"), ("x-amzn-requestid", "id"), ("te", "trailers")])
        );
    }

    #[test]
    fn framing_has_one_truth() {
        let mut given = headers(&[("content-length", "3"), ("transfer-encoding", "chunked")]);
        to_app(&mut given, &HeaderValue::from_static("id"), None);
        assert_eq!(given, headers(&[("transfer-encoding", "chunked"), ("x-amzn-requestid", "id")]));
        let mut given = headers(&[("content-length", "3"), ("transfer-encoding", "chunked")]);
        to_client(&mut given, None);
        assert_eq!(given, headers(&[]));
        // Not even for one who says that the encoding is for the edge alone.
        let both = [("connection", "transfer-encoding"), ("content-length", "3"), ("transfer-encoding", "chunked")];
        let mut given = headers(&both);
        to_app(&mut given, &HeaderValue::from_static("id"), None);
        assert_eq!(given, headers(&[("transfer-encoding", "chunked"), ("x-amzn-requestid", "id")]));
        let mut given = headers(&both);
        to_client(&mut given, None);
        assert_eq!(given, headers(&[]));
    }

    #[test]
    fn an_upgrade_needs_both_headers_and_is_not_h2c() {
        assert!(upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).is_some());
        assert!(upgrade(&headers(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])).is_none());
    }
}
