//! Which microVM, which port, and may this token: decided from the request's head alone. No I/O, no clock.
//!
//! The checks, in their order: the form of the request (400, 421), the token's form (403 `Request missing
//! authentication`), the token's seal, expiry, endpoint, microVM and kind (403 `Token authentication failed`), the port
//! (403 `Access to port denied`). The shell has a path of its own instead of a port, and tokens of its own. The endpoint is
//! looked up only once the seal is proven, so that nobody without a token of ours costs a look-up or learns which endpoints
//! exist. Where a token in a link or a cookie is not good, or not let in by the image, the request has none.

use std::borrow::{Borrow, Cow};

use api::{
    directory::Behind,
    ids::EndpointId,
    token::{Claims, Grant, Ports, TokenError},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, uri::Authority};

use crate::{
    link,
    refusal::Refusal,
    shell,
    websocket::{self, Offered},
};

/// The token.
pub(crate) const AUTH: HeaderName = HeaderName::from_static("x-aws-proxy-auth");
/// The port.
pub(crate) const PORT: HeaderName = HeaderName::from_static("x-aws-proxy-port");
/// The port of requests that name none.
pub(crate) const PORT_DEFAULT: u16 = 8080;

/// A host as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host<'a> {
    /// In lower case, without port and without the root's dot.
    pub(crate) name: Cow<'a, str>,
    /// The port, if it is named.
    pub(crate) port: Option<u16>,
}

/// How a token came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// In a field that its sender has set for this request.
    Field,
    /// In a link's query.
    Link,
    /// In a cookie, which a browser adds by itself.
    Cookie {
        /// Why the request may be the idea of another page than the endpoint's.
        stranger: Option<&'static str>,
    },
}

impl By {
    fn failed(self, why: &'static str) -> Refusal {
        match self {
            Self::Field => Refusal::AuthenticationFailed(why),
            Self::Link | Self::Cookie { .. } => Refusal::NotByLink(why),
        }
    }
}

/// What a well-formed request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// `None`: not the name of an endpoint.
    pub(crate) endpoint: Option<EndpointId>,
    /// The port that it names.
    pub(crate) port: Option<u16>,
    /// It is the shell's handshake, unless the microVM has no shell.
    pub(crate) for_shell: bool,
    pub(crate) token: &'a str,
    pub(crate) by: By,
}

/// The name that a client's connection was opened for, in TLS. Read once, as nearly all of its requests name it too.
pub(crate) struct ServerName {
    /// As [`Host::name`]; `None` if it is no name, and then no request is for it.
    name: Option<String>,
    endpoint: Option<EndpointId>,
}

impl ServerName {
    pub(crate) fn read(text: &str, suffix: &str) -> Self {
        let name = text.strip_suffix('.').unwrap_or(text);
        let name = is_name(name).then(|| name.to_ascii_lowercase());
        Self { endpoint: name.as_deref().and_then(|name| endpoint_of(name, suffix)), name }
    }

    /// Reads a host that is this.
    fn host(&self, text: &str) -> Option<Host<'_>> {
        let (own, (name, port)) = (self.name.as_deref()?, split_host(text)?);
        name.eq_ignore_ascii_case(own).then_some(Host { name: Cow::Borrowed(own), port })
    }
}

/// Reads `host[:port]`; `None` if it is neither a name nor an address.
pub(crate) fn parse_host(text: &str) -> Option<Host<'_>> {
    let (name, port) = split_host(text)?;
    if !(name.starts_with('[') || is_name(name)) {
        return None;
    }
    let is_lower = !name.bytes().any(|byte| byte.is_ascii_uppercase());
    let name = if is_lower { Cow::Borrowed(name) } else { Cow::Owned(name.to_ascii_lowercase()) };
    Some(Host { name, port })
}

/// The host, without the root's dot, and the port. What has no brackets is not looked at yet.
fn split_host(text: &str) -> Option<(&str, Option<u16>)> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
            (&text[..address.len() + 2], port)
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        // "host:" is the same as "host", by the URI grammar.
        None | Some("") => None,
        Some(port) => Some(parse_port(port)?),
    };
    Some((name.strip_suffix('.').unwrap_or(name), port))
}

/// Labels of 1 to 63 letters, digits, `-` and `_`, with dots between them, 253 characters in all.
fn is_name(text: &str) -> bool {
    let mut label = 0;
    for byte in text.bytes() {
        match byte {
            b'.' if label > 0 => label = 0,
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' if label < 63 => label += 1,
            _ => return false,
        }
    }
    label > 0 && text.len() <= 253
}

/// Reads a port: digits, no sign, no leading zero, 1 to 65535.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    if text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// The endpoint whose host name is `<label>.<suffix>`.
pub(crate) fn endpoint_of(name: &str, suffix: &str) -> Option<EndpointId> {
    name.strip_suffix(suffix)?.strip_suffix('.')?.parse().ok()
}

/// The only value of a header, if there is one; `Err` if there are several.
type Single<'h> = Result<Option<&'h HeaderValue>, ()>;

/// Looks for the only value of a header.
pub(crate) fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Single<'h> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(()),
        (value, None) => Ok(value),
    }
}

/// Those that a request is read by, found in one pass.
struct Fields<'h> {
    host: Single<'h>,
    encoding: Single<'h>,
    length: Single<'h>,
    token: Single<'h>,
    port: Single<'h>,
}

impl<'h> Fields<'h> {
    fn of(headers: &'h HeaderMap) -> Self {
        let mut fields = Self { host: Ok(None), encoding: Ok(None), length: Ok(None), token: Ok(None), port: Ok(None) };
        for (name, value) in headers {
            let field = match name {
                name if *name == header::HOST => &mut fields.host,
                name if *name == header::TRANSFER_ENCODING => &mut fields.encoding,
                name if *name == header::CONTENT_LENGTH => &mut fields.length,
                name if *name == AUTH => &mut fields.token,
                name if *name == PORT => &mut fields.port,
                _ => continue,
            };
            *field = if *field == Ok(None) { Ok(Some(value)) } else { Err(()) };
        }
        fields
    }
}

/// Reads the head of a request that came in over TLS with this server name, and wants to change to that protocol, if any.
pub(crate) fn read<'h>(
    method: &Method,
    uri: &'h Uri,
    version: Version,
    headers: &'h HeaderMap,
    upgrade: Option<&HeaderValue>,
    server_name: Option<&ServerName>,
    suffix: &str,
) -> Result<Target<'h>, Refusal> {
    if method == Method::CONNECT {
        return Err(Refusal::Malformed("CONNECT is not for this kind of proxy"));
    }
    let fields = Fields::of(headers);
    let named = match fields.host {
        Ok(Some(value)) => value.to_str().ok(),
        // HTTP/2 says it in the target instead.
        Ok(None) if version == Version::HTTP_2 => uri.authority().map(Authority::as_str),
        Ok(None) | Err(()) => None,
    };
    let as_opened = |named| server_name.and_then(|server_name| server_name.host(named));
    let host = named.and_then(|named| as_opened(named).or_else(|| parse_host(named)));
    let host = host.ok_or(Refusal::Malformed("there must be one valid Host"))?;
    if let Some(authority) = uri.authority()
        && named != Some(authority.as_str())
        && parse_host(authority.as_str()).as_ref() != Some(&host)
    {
        return Err(Refusal::Malformed("the request target and Host differ"));
    }
    let endpoint = match server_name {
        Some(server_name) if server_name.name.as_deref() != Some(&*host.name) => return Err(Refusal::Misdirected),
        Some(server_name) => server_name.endpoint,
        None => endpoint_of(&host.name, suffix),
    };
    match fields.encoding {
        Ok(None) => {}
        Ok(Some(encoding)) if encoding.as_bytes().eq_ignore_ascii_case(b"chunked") => {}
        _ => return Err(Refusal::Malformed("no transfer encoding but chunked is known")),
    }
    if fields.length.is_err() {
        return Err(Refusal::Malformed("there are several lengths"));
    }
    let is_websocket = upgrade.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let offered = if is_websocket { websocket::read(headers)? } else { Offered::default() };
    let port = match fields.port {
        Ok(None) => offered.port,
        Ok(Some(value)) => {
            let port = value.to_str().ok().and_then(|text| parse_port(text.trim()));
            Some(port.ok_or(Refusal::Malformed("the port header is not a port"))?)
        }
        Err(()) => return Err(Refusal::Malformed("there are several port headers")),
    };
    // Whoever names another port means an app, which may have this path too.
    let for_shell = is_websocket
        && method == Method::GET
        && uri.path() == shell::PATH
        && port.is_none_or(|port| port == shell::PORT_NAMED);
    let in_field = match fields.token {
        Ok(Some(value)) => Some(value.to_str().map_err(|_| Refusal::MissingAuthentication)?),
        Ok(None) => offered.token,
        Err(()) => return Err(Refusal::MissingAuthentication),
    };
    let (token, by) = if let Some(token) = in_field {
        (token, By::Field)
    } else if let Some(token) = link::token(method, uri) {
        (token, By::Link)
    } else {
        let token = link::cookie(headers).ok_or(Refusal::MissingAuthentication)?;
        (token, By::Cookie { stranger: link::stranger(method, headers, &host, upgrade.is_some()) })
    };
    Ok(Target { endpoint, port, for_shell, token, by })
}

/// Reads what came of opening the token, and names the endpoint that it must be good for. `now` is in seconds since the Unix
/// epoch.
pub(crate) fn authenticate<C: Borrow<Claims>>(
    target: &Target<'_>,
    opened: Result<C, TokenError>,
    now: u64,
) -> Result<(C, EndpointId), Refusal> {
    let claims = opened.map_err(|error| match error {
        TokenError::Malformed => Refusal::MissingAuthentication,
        TokenError::Forged => target.by.failed("it was not made here"),
    })?;
    let endpoint = target.endpoint.ok_or_else(|| target.by.failed("the host is no endpoint's"))?;
    if now >= claims.borrow().expires_unix {
        return Err(target.by.failed("it has expired"));
    }
    Ok((claims, endpoint))
}

/// What a request is admitted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// To the app on this port.
    App(u16),
    Shell,
    /// To where the link leads, with a cookie.
    Link,
}

/// May the holder of these claims have what the request asks for of what is behind the endpoint?
pub(crate) fn admit(claims: &Claims, behind: Option<Behind>, target: &Target<'_>) -> Result<(Behind, To), Refusal> {
    let is_let_in = |behind: &Behind| match claims.grant {
        Grant::Shell => behind.shell,
        Grant::Http(_) => behind.http,
    };
    let behind = behind.filter(is_let_in).ok_or_else(|| target.by.failed("there is no such endpoint"))?;
    if behind.microvm != claims.microvm_id {
        return Err(target.by.failed("it is for another microVM"));
    }
    if target.by != By::Field && !behind.links {
        return Err(target.by.failed("the image allows no links"));
    }
    if let By::Cookie { stranger: Some(why) } = target.by {
        return Err(Refusal::Stranger(why));
    }
    match &claims.grant {
        Grant::Shell if target.by != By::Field => Err(target.by.failed("it is for shells")),
        Grant::Shell if target.for_shell => Ok((behind, To::Shell)),
        Grant::Shell => Err(Refusal::ShellOnly),
        // Where there is no shell, the path is the app's as any other.
        Grant::Http(_) if target.for_shell && behind.shell => {
            Err(Refusal::AuthenticationFailed("it is not for shells"))
        }
        Grant::Http(ports) => match port(ports, target) {
            port if !ports.contains(port) => Err(Refusal::PortDenied(port)),
            _ if target.by == By::Link => Ok((behind, To::Link)),
            port => Ok((behind, To::App(port))),
        },
    }
}

/// The port that is meant. A page cannot name one for everything that it loads, so a link to one port alone means that one.
fn port(ports: &Ports, target: &Target<'_>) -> u16 {
    let of_link = || ports.only().filter(|_| target.by != By::Field);
    target.port.or_else(of_link).unwrap_or(PORT_DEFAULT)
}

#[cfg(test)]
mod tests {
    use api::{ids::MicrovmId, size::Size, token::TokenKeys};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::headers;

    const SUFFIX: &str = "lambda-microvm.us-east-1.localhost";
    const LABEL: &str = "00000000-0000-4000-8000-000000000001";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn status(headers: &HeaderMap, uri: &str, server_name: Option<&str>) -> u16 {
        let upgrade = headers::upgrade(headers);
        let uri = uri.parse().unwrap();
        let name = server_name.map(|name| ServerName::read(name, SUFFIX));
        match read(&Method::GET, &uri, Version::HTTP_11, headers, upgrade.as_ref(), name.as_ref(), SUFFIX) {
            Ok(_) => 200,
            Err(refusal) => refusal.status().as_u16(),
        }
    }

    fn claims(grant: Grant) -> Claims {
        Claims { microvm_id: MicrovmId::random(), grant, expires_unix: 1000 }
    }

    #[test]
    fn hosts_are_read_as_the_grammar_says() {
        let host = |name: &'static str, port| Some(Host { name: name.into(), port });
        assert_eq!(parse_host("A.b"), host("a.b", None));
        assert_eq!(parse_host("a.b.:443"), host("a.b", Some(443)));
        assert_eq!(parse_host("a:"), host("a", None));
        assert_eq!(parse_host("127.0.0.1:1"), host("127.0.0.1", Some(1)));
        assert_eq!(parse_host("[::1]:8443"), host("[::1]", Some(8443)));
        for bad in
            ["", ".", "a..b", "a b", "user@a", "a:b", "a:0", "a:65536", "a:+1", "[::1", "[x]", "[::1]1", "a/b", "a.."]
        {
            assert_eq!(parse_host(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_endpoint_is_one_label_before_the_suffix() {
        let id = LABEL.parse().unwrap();
        assert_eq!(endpoint_of(&format!("{LABEL}.{SUFFIX}"), SUFFIX), Some(id));
        for bad in [
            SUFFIX.to_owned(),
            format!("x.{SUFFIX}"),
            format!("{LABEL}{SUFFIX}"),
            format!("a.{LABEL}.{SUFFIX}"),
            format!("{LABEL}.evil.{SUFFIX}"),
            format!("{LABEL}.{SUFFIX}.evil"),
        ] {
            assert_eq!(endpoint_of(&bad, SUFFIX), None, "{bad}");
        }
    }

    #[test]
    fn the_form_of_the_request_comes_first() {
        let host = format!("{LABEL}.{SUFFIX}");
        let good = headers(&[("host", &host), ("x-aws-proxy-auth", "t")]);
        assert_eq!(status(&good, "/", None), 200);
        assert_eq!(status(&good, "/", Some(&host.to_uppercase())), 200);
        assert_eq!(status(&good, &format!("https://{host}/x"), None), 200);
        assert_eq!(status(&good, "https://elsewhere/x", None), 400);
        assert_eq!(status(&good, "/", Some(&format!("{host}."))), 200);
        for other in ["localhost", "", ".", &format!("{host}:"), &format!("{host}:443"), &format!("{host}..")] {
            assert_eq!(status(&good, "/", Some(other)), 421, "{other}");
        }
        assert_eq!(status(&headers(&[("x-aws-proxy-auth", "t")]), "/", None), 400);
        assert_eq!(status(&headers(&[("host", "a b"), ("x-aws-proxy-auth", "t")]), "/", None), 400);
        let mut two = good.clone();
        two.append("host", "other".parse().unwrap());
        assert_eq!(status(&two, "/", None), 400);
        let mut coded = good.clone();
        coded.insert("transfer-encoding", "gzip, chunked".parse().unwrap());
        assert_eq!(status(&coded, "/", None), 400);
        assert_eq!(status(&headers(&[("host", &host), ("x-aws-proxy-port", "x")]), "/", None), 400);
        assert_eq!(status(&headers(&[("host", &host)]), "/", None), 403);
        let mut tokens = good.clone();
        tokens.append("x-aws-proxy-auth", "u".parse().unwrap());
        assert_eq!(status(&tokens, "/", None), 403);
    }

    fn target(port: u16, for_shell: bool, token: &str) -> Target<'_> {
        Target { endpoint: Some(LABEL.parse().unwrap()), port: Some(port), for_shell, token, by: By::Field }
    }

    fn behind(microvm: MicrovmId, http: bool, shell: bool) -> Option<Behind> {
        Some(Behind { microvm, size: Size::DEFAULT, http, shell, links: false, ended: false })
    }

    #[test]
    fn expiry_is_the_first_second_that_is_refused() {
        let keys = TokenKeys::single(Uuid::from_u128(1), [1; 32]);
        let token = keys.seal(&claims(Grant::Shell));
        let target = target(80, false, &token);
        assert!(authenticate(&target, keys.open(target.token), 999).is_ok());
        assert!(matches!(authenticate(&target, keys.open(target.token), 1000), Err(Refusal::AuthenticationFailed(_))));
        let nowhere = Target { endpoint: None, ..target };
        assert!(matches!(authenticate(&nowhere, keys.open(nowhere.token), 0), Err(Refusal::AuthenticationFailed(_))));
        let garbage = Target { token: "x", ..target };
        assert!(matches!(authenticate(&garbage, keys.open(garbage.token), 0), Err(Refusal::MissingAuthentication)));
    }

    #[test]
    fn claims_bind_microvm_kind_and_port() {
        let http = claims(Grant::Http(Ports::from_ranges(vec![(80, 81)])));
        let id = http.microvm_id;
        let app = |claims, behind, port| admit(claims, behind, &target(port, false, "t")).map(|(_, to)| to);
        assert_eq!(app(&http, behind(id, true, false), 81).unwrap(), To::App(81));
        assert!(matches!(app(&http, behind(id, true, false), 82), Err(Refusal::PortDenied(82))));
        let other = MicrovmId::random();
        for nowhere in [None, behind(id, false, true), behind(other, true, false)] {
            assert!(matches!(app(&http, nowhere, 81), Err(Refusal::AuthenticationFailed(_))), "{nowhere:?}");
        }
        let shell = claims(Grant::Shell);
        let id = shell.microvm_id;
        assert!(matches!(app(&shell, behind(id, true, true), 81), Err(Refusal::ShellOnly)));
        for nowhere in [None, behind(id, true, false), behind(other, false, true)] {
            assert!(matches!(app(&shell, nowhere, 81), Err(Refusal::AuthenticationFailed(_))), "{nowhere:?}");
        }
    }

    #[test]
    fn a_shell_opens_to_its_own_tokens_alone() {
        let (shell, http) = (claims(Grant::Shell), claims(Grant::Http(Ports::all())));
        let to_shell = |claims: &Claims, has_shell| {
            let behind = behind(claims.microvm_id, true, has_shell);
            admit(claims, behind, &target(8080, true, "t")).map(|(_, to)| to)
        };
        assert_eq!(to_shell(&shell, true).unwrap(), To::Shell);
        assert!(matches!(to_shell(&shell, false), Err(Refusal::AuthenticationFailed(_))));
        assert!(matches!(to_shell(&http, true), Err(Refusal::AuthenticationFailed(_))));
        assert_eq!(to_shell(&http, false).unwrap(), To::App(8080), "the path is the app's");
    }

    #[test]
    fn links_and_cookies_count_where_the_image_allows_them() {
        let (by_cookie, by_link) = (By::Cookie { stranger: None }, By::Link);
        let on = |ports: &[(u16, u16)]| claims(Grant::Http(Ports::from_ranges(ports.to_vec())));
        let to = |claims: &Claims, by, links, port| {
            let behind = behind(claims.microvm_id, true, true).map(|behind| Behind { links, ..behind });
            admit(claims, behind, &Target { by, port, ..target(0, false, "t") }).map(|(_, to)| to)
        };
        let (all, one) = (on(&[(1, 65535)]), on(&[(3000, 3000), (3000, 3000)]));
        for by in [by_cookie, by_link] {
            assert!(matches!(to(&all, by, false, None), Err(Refusal::NotByLink(_))));
            assert!(matches!(to(&claims(Grant::Shell), by, true, None), Err(Refusal::NotByLink(_))));
            assert!(matches!(to(&on(&[(80, 81)]), by, true, None), Err(Refusal::PortDenied(8080))));
        }
        assert_eq!(to(&all, by_link, true, None).unwrap(), To::Link);
        assert_eq!(to(&all, by_cookie, true, None).unwrap(), To::App(8080));
        assert_eq!(to(&all, by_cookie, true, Some(9)).unwrap(), To::App(9));
        assert_eq!(to(&one, by_cookie, true, None).unwrap(), To::App(3000));
        assert!(matches!(to(&one, by_cookie, true, Some(8080)), Err(Refusal::PortDenied(8080))));
        assert!(matches!(to(&one, By::Field, true, None), Err(Refusal::PortDenied(8080))), "as on the service");
        let strange = By::Cookie { stranger: Some("it is strange") };
        assert!(matches!(to(&all, strange, true, None), Err(Refusal::Stranger(_))));
        assert!(matches!(to(&all, strange, false, None), Err(Refusal::NotByLink(_))), "nothing more is told");
    }

    #[test]
    fn a_token_in_a_field_counts_before_one_in_a_link_or_a_cookie() {
        let host = format!("{LABEL}.{SUFFIX}");
        let by = |uri: &str, more: &[(&'static str, &str)]| {
            let headers = headers(&[&[("host", host.as_str())][..], more].concat());
            let (uri, upgrade) = (uri.parse().unwrap(), headers::upgrade(&headers));
            let target = read(&Method::GET, &uri, Version::HTTP_11, &headers, upgrade.as_ref(), None, SUFFIX);
            target.map(|target| (target.token.to_owned(), target.by)).ok()
        };
        let (field, cookie) = (("x-aws-proxy-auth", "f"), ("cookie", "__Host-pilotlight=c"));
        let link = "/.pilotlight/open?token=l";
        let got = |token: &str, by| Some((token.to_owned(), by));
        assert_eq!(by(link, &[field, cookie]), got("f", By::Field));
        assert_eq!(by(link, &[cookie]), got("l", By::Link));
        assert_eq!(by("/", &[cookie]), got("c", By::Cookie { stranger: None }));
        assert_eq!(by("/", &[]), None);
        assert_eq!(by("/", &[field, field, cookie]), None);
        let (upgrade, websocket) = (("connection", "upgrade"), ("upgrade", "websocket"));
        let Some((_, By::Cookie { stranger: Some(_) })) = by("/", &[cookie, upgrade, websocket]) else {
            panic!("a WebSocket has to say where it is from");
        };
    }

    #[test]
    fn the_shells_handshake_is_a_path_and_no_apps_port() {
        let host = format!("{LABEL}.{SUFFIX}");
        let for_shell = |method: Method, uri: &str, more: &[(&'static str, &str)]| {
            let mut headers = headers(&[("host", &host), ("x-aws-proxy-auth", "t"), ("connection", "Upgrade")]);
            headers.extend(self::headers(more));
            let (uri, upgrade) = (uri.parse().unwrap(), headers::upgrade(&headers));
            let target = read(&method, &uri, Version::HTTP_11, &headers, upgrade.as_ref(), None, SUFFIX);
            target.unwrap().for_shell
        };
        let upgrade = ("upgrade", "websocket");
        assert!(for_shell(Method::GET, "/shell", &[upgrade]));
        assert!(for_shell(Method::GET, "/shell?command=ls", &[upgrade]));
        assert!(for_shell(Method::GET, "/shell", &[upgrade, ("x-aws-proxy-port", "8022")]));
        let named = ("sec-websocket-protocol", "lambda-microvms, lambda-microvms.port.8022");
        assert!(for_shell(Method::GET, "/shell", &[upgrade, named]));
        assert!(!for_shell(Method::GET, "/shell", &[upgrade, ("x-aws-proxy-port", "8080")]));
        assert!(!for_shell(Method::GET, "/shell", &[]));
        assert!(!for_shell(Method::GET, "/shell", &[("upgrade", "h3")]));
        assert!(!for_shell(Method::POST, "/shell", &[upgrade]));
        for path in ["/shell/", "/", "/shell/x", "//shell", "/SHELL", "/%73hell"] {
            assert!(!for_shell(Method::GET, path, &[upgrade]), "{path}");
        }
    }

    proptest! {
        #[test]
        fn every_port_reads_back_and_nothing_else_does(port in 1u16.., junk in "[0-9a-z+. -]{0,8}") {
            prop_assert_eq!(parse_port(&port.to_string()), Some(port));
            if let Some(read) = parse_port(&junk) {
                prop_assert_eq!(read.to_string(), junk);
            }
        }

        #[test]
        fn every_endpoint_host_leads_back_to_its_endpoint(id: u128, port in proptest::option::of(1u16..), upper: bool) {
            let id = Uuid::from_u128(id);
            let mut text = format!("{id}.{SUFFIX}");
            if upper {
                text = text.to_uppercase();
            }
            if let Some(port) = port {
                text = format!("{text}:{port}");
            }
            let host = parse_host(&text).unwrap();
            prop_assert_eq!(host.port, port);
            prop_assert_eq!(endpoint_of(&host.name, SUFFIX).unwrap().uuid(), id);
        }

        #[test]
        fn no_host_breaks_the_parser(text in ".{0,300}") {
            if let Some(host) = parse_host(&text) {
                prop_assert!(text.to_ascii_lowercase().starts_with(&*host.name));
                prop_assert_eq!(parse_host(&host.name), Some(Host { name: host.name.clone(), port: None }));
            }
        }
    }
}
