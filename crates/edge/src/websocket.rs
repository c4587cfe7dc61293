//! WebSocket: what browsers put into its subprotocols, as they can set no headers, and its handshake over HTTP/2.

use api::subprotocol::{AUTHENTICATION, MARKER, PORT};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, header, request::Parts};
use hyper::ext::Protocol;
use ring::digest;
use uuid::Uuid;

use crate::{headers::tokens, refusal::Refusal, route};

/// What a handshake's subprotocols tell the edge.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Offered<'h> {
    pub(crate) token: Option<&'h str>,
    pub(crate) port: Option<u16>,
}

/// Reads the subprotocols. Of several tokens none counts, as it is with headers.
pub(crate) fn read(headers: &HeaderMap) -> Result<Offered<'_>, Refusal> {
    let offers = || tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    if !offers_marker(headers) {
        return Ok(Offered::default());
    }
    let mut found = offers().filter_map(|offer| offer.strip_prefix(AUTHENTICATION));
    let token = found.next().filter(|_| found.next().is_none());
    let mut found = offers().filter_map(|offer| offer.strip_prefix(PORT));
    let port = match (found.next(), found.next()) {
        (None, _) => None,
        (Some(port), None) => {
            Some(route::parse_port(port).ok_or(Refusal::Malformed("the port subprotocol is not a port"))?)
        }
        (Some(_), Some(_)) => return Err(Refusal::Malformed("there are several port subprotocols")),
    };
    Ok(Offered { token, port })
}

/// Does the client want an answer to the edge's own subprotocol?
pub(crate) fn offers_marker(headers: &HeaderMap) -> bool {
    tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL).any(|offer| offer == MARKER)
}

/// Takes the edge's own subprotocols away, in any request: there is a token among them.
pub(crate) fn strip(headers: &mut HeaderMap) {
    if !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return;
    }
    let own = |offer: &str| offer == MARKER || offer.starts_with(AUTHENTICATION) || offer.starts_with(PORT);
    let rest: Vec<&str> = tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL).filter(|offer| !own(offer)).collect();
    // An unreadable value is not among the tokens, so it is gone too.
    match HeaderValue::from_str(&rest.join(", ")) {
        Ok(rest) if !rest.is_empty() => headers.insert(header::SEC_WEBSOCKET_PROTOCOL, rest),
        _ => headers.remove(header::SEC_WEBSOCKET_PROTOCOL),
    };
}

/// Browsers end a connection for which none of their offers was chosen. If the app chose none, the edge chooses its own.
pub(crate) fn choose(answer: &mut HeaderMap) {
    answer.entry(header::SEC_WEBSOCKET_PROTOCOL).or_insert(HeaderValue::from_static(MARKER));
}

/// A handshake over HTTP/2 (RFC 8441) that goes to the app over HTTP/1.1.
pub(crate) struct OverHttp2 {
    key: String,
}

impl OverHttp2 {
    /// Makes an extended CONNECT the upgrade that it stands for; `None` if the request is none.
    pub(crate) fn translate(head: &mut Parts) -> Result<Option<Self>, Refusal> {
        if head.method != Method::CONNECT {
            return Ok(None);
        }
        let Some(protocol) = head.extensions.remove::<Protocol>() else { return Ok(None) };
        if protocol.as_str() != "websocket" {
            return Err(Refusal::Malformed("CONNECT is for WebSocket alone"));
        }
        // HTTP/2 needs no key; what the app makes of ours shows that it understands.
        let key = STANDARD.encode(Uuid::new_v4().as_bytes());
        head.method = Method::GET;
        let headers = &mut head.headers;
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).expect("base64 is plain text"));
        headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        Ok(Some(Self { key }))
    }

    /// Checks the app's 101, and takes from it what HTTP/2 does not have.
    pub(crate) fn accepted(&self, answer: &mut HeaderMap) -> Result<(), Refusal> {
        let right = accept_for(&self.key);
        let is_right = answer.get_all(header::SEC_WEBSOCKET_ACCEPT).iter().eq([right.as_str()]);
        answer.remove(header::SEC_WEBSOCKET_ACCEPT);
        is_right.then_some(()).ok_or(Refusal::BadAnswer("its Sec-WebSocket-Accept does not belong to the key"))
    }
}

/// What proves that a server knows WebSocket (RFC 6455, 4.2.2).
pub(crate) fn accept_for(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offering(values: &[&'static str]) -> HeaderMap {
        let name = header::SEC_WEBSOCKET_PROTOCOL;
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn token_and_port_are_read_beside_the_marker_only() {
        let all = ["chat, lambda-microvms", "lambda-microvms.authentication.a.b.c,lambda-microvms.port.80"];
        assert_eq!(read(&offering(&all)).unwrap(), Offered { token: Some("a.b.c"), port: Some(80) });
        assert_eq!(read(&offering(&all[1..])).unwrap(), Offered::default());
        let two = ["lambda-microvms, lambda-microvms.authentication.a, lambda-microvms.authentication.b"];
        assert_eq!(read(&offering(&two)).unwrap(), Offered::default());
        for bad in [
            "lambda-microvms, lambda-microvms.port.0",
            "lambda-microvms.port.1, lambda-microvms.port.2, lambda-microvms",
        ] {
            assert!(matches!(read(&offering(&[bad])), Err(Refusal::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn the_app_sees_the_other_subprotocols() {
        let mut headers = offering(&["lambda-microvms, chat", "lambda-microvms.authentication.a, lambda-microvms2"]);
        strip(&mut headers);
        assert_eq!(headers, offering(&["chat, lambda-microvms2"]));
        let mut headers = offering(&["lambda-microvms.authentication.a"]);
        strip(&mut headers);
        assert_eq!(headers, HeaderMap::new());
    }

    #[test]
    fn the_key_is_answered_as_in_the_standards_example() {
        assert_eq!(accept_for("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
