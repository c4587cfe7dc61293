//! What a client may send, with anything in it: heads, and tokens in them.
//!
//! An ordinary run tries what it comes upon in a second a test. `cargo bolero test -p edge fuzz::<test>` looks for what it
//! has not seen yet, for as long as it is left.

use std::sync::LazyLock;

use api::{
    directory::Behind,
    ids::{EndpointId, MicrovmId},
    size::Size,
    token::{Claims, Grant, Ports, TokenKeys},
};
use bolero::TypeGenerator;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};
use uuid::Uuid;

use crate::{
    headers::{self, tokens},
    link,
    route::{self, By, ServerName, To},
    websocket,
};

const SUFFIX: &str = "lambda-microvm.us-east-1.localhost";
const ENDPOINT: &str = "00000000-0000-4000-8000-000000000001";
const MICROVM: &str = "microvm-00000000-0000-4000-8000-000000000002";
const PORT: u16 = 8081;

static KEYS: LazyLock<TokenKeys> = LazyLock::new(|| TokenKeys::single(Uuid::from_u128(7), [9; 32]));

/// The only one that opens anything, and only this endpoint and port.
static TOKEN: LazyLock<String> = LazyLock::new(|| {
    let grant = Grant::Http(Ports::from_ranges(vec![(PORT, PORT)]));
    KEYS.seal(&Claims { microvm_id: microvm(), grant, expires_unix: 1000 })
});

fn microvm() -> MicrovmId {
    MICROVM.parse().expect("it is one")
}

fn endpoint() -> EndpointId {
    ENDPOINT.parse().expect("it is one")
}

/// Fields that mean something to a proxy, and some that do not.
const NAMES: [&str; 20] = [
    "host",
    "x-aws-proxy-auth",
    "x-aws-proxy-port",
    "x-aws-proxy-force-h2",
    "x-aws-proxy-other",
    "sec-websocket-protocol",
    "connection",
    "upgrade",
    "te",
    "transfer-encoding",
    "content-length",
    "cookie",
    "set-cookie",
    "expect",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "x-amzn-requestid",
    "authorization",
    "x-private",
];

/// What means something in a value; the first two stand for the host and the token.
const WORDS: [&str; 38] = [
    "HOST",
    "TOKEN",
    ENDPOINT,
    SUFFIX,
    "lambda-microvms",
    "lambda-microvms.authentication.",
    "lambda-microvms.port.",
    "pilotlight.shell",
    "8081",
    "0",
    "65536",
    "+3",
    ",",
    ", ",
    " ",
    "\t",
    ";",
    ":",
    ".",
    "@",
    "/",
    "[::1]",
    "chunked",
    "identity",
    "upgrade",
    "Upgrade",
    "websocket",
    "h2c",
    "close",
    "trailers",
    "host",
    "content-length",
    "transfer-encoding",
    "x-aws-proxy-auth",
    "x-private",
    "a=b",
    "__Host-pilotlight=",
    ".pilotlight/open?token=",
];

#[derive(Debug, TypeGenerator)]
enum Piece {
    Word(u8),
    Byte(u8),
}

/// Few pieces: of many, one is sure to be refused.
#[derive(Debug, TypeGenerator)]
struct Text(#[generator(bolero::produce::<Vec<Piece>>().with().len(0usize..5))] Vec<Piece>);

impl Text {
    fn bytes(&self) -> Vec<u8> {
        self.0.iter().fold(Vec::new(), |mut bytes, piece| {
            match piece {
                Piece::Word(which) => match WORDS[usize::from(*which) % WORDS.len()] {
                    "HOST" => bytes.extend_from_slice(format!("{ENDPOINT}.{SUFFIX}").as_bytes()),
                    "TOKEN" => bytes.extend_from_slice(TOKEN.as_bytes()),
                    word => bytes.extend_from_slice(word.as_bytes()),
                },
                Piece::Byte(byte) => bytes.push(*byte),
            }
            bytes
        })
    }

    fn string(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

#[derive(Debug, TypeGenerator)]
struct Field {
    name: u8,
    value: Text,
}

/// What a good request has, unless it is left out, and other fields.
#[derive(Debug, TypeGenerator)]
struct Head {
    without_host: bool,
    without_token: bool,
    without_port: bool,
    is_websocket: bool,
    #[generator(bolero::produce::<Vec<Field>>().with().len(0usize..5))]
    fields: Vec<Field>,
}

impl Head {
    fn headers(&self) -> HeaderMap {
        let own = [
            (!self.without_host, "host", format!("{ENDPOINT}.{SUFFIX}")),
            (!self.without_token, "x-aws-proxy-auth", TOKEN.clone()),
            (!self.without_port, "x-aws-proxy-port", PORT.to_string()),
            (self.is_websocket, "connection", "upgrade".to_owned()),
            (self.is_websocket, "upgrade", "websocket".to_owned()),
        ];
        let own = own.into_iter().filter(|(is_there, ..)| *is_there).map(|(_, name, value)| (name, value.into_bytes()));
        let others = self.fields.iter().map(|Field { name, value }| {
            let name = NAMES[usize::from(*name) % NAMES.len()];
            (name, value.bytes())
        });
        // What is no field's value does not get past the HTTP library.
        own.chain(others)
            .filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::from_bytes(value.trim_ascii()).ok()?))
            })
            .collect()
    }
}

#[derive(Debug, TypeGenerator)]
struct Request {
    method: u8,
    is_http2: bool,
    is_absolute: bool,
    has_links: bool,
    target: Text,
    server_name: Option<Text>,
    head: Head,
}

/// Is that the only value of the field, as bytes?
fn only(headers: &HeaderMap, name: &HeaderName, value: &str) -> bool {
    headers.get_all(name).iter().eq([value])
}

#[test]
fn a_head_lets_nobody_in_but_with_the_token() {
    let methods = [Method::GET, Method::POST, Method::OPTIONS, Method::CONNECT];
    bolero::check!().with_type::<Request>().for_each(|request| {
        let method = &methods[usize::from(request.method) % methods.len()];
        let version = if request.is_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        let base = if request.is_absolute { "https://" } else { "/" };
        let Ok(uri) = format!("{base}{}", request.target.string()).parse::<Uri>() else { return };
        let headers = request.head.headers();
        let server_name = request.server_name.as_ref().map(Text::string);
        let name = server_name.as_ref().map(|name| ServerName::read(name, SUFFIX));
        let upgrade = headers::upgrade(&headers);
        let read = route::read(method, &uri, version, &headers, upgrade.as_ref(), name.as_ref(), SUFFIX);
        let Ok(target) = read else { return };

        assert_ne!(method, Method::CONNECT);
        assert_ne!(target.port, Some(0));
        let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
        assert!(lengths <= 1, "{lengths} lengths");
        let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
        assert!(encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"chunked")), "{headers:?}");
        let hosts: Vec<_> = headers.get_all(header::HOST).iter().collect();
        assert!(hosts.len() == 1 || (hosts.is_empty() && request.is_http2), "{hosts:?}");
        if target.for_shell {
            assert_eq!((method, uri.path()), (&Method::GET, "/shell"));
        }

        let behind = Behind {
            microvm: microvm(),
            size: Size::DEFAULT,
            http: true,
            shell: true,
            links: request.has_links,
            ended: false,
        };
        let admitted = route::authenticate(&target, KEYS.open(target.token), 999)
            .and_then(|(claims, found)| route::admit(&claims, (found == endpoint()).then_some(behind), &target));
        let Ok((_, to)) = admitted else { return };
        assert_eq!(target.endpoint, Some(endpoint()));
        match target.by {
            By::Field => {
                assert_eq!((to, target.port), (To::App(PORT), Some(PORT)));
                let offered = tokens(&headers, &header::SEC_WEBSOCKET_PROTOCOL)
                    .any(|offer| offer.strip_prefix("lambda-microvms.authentication.") == Some(TOKEN.as_str()));
                let has_marker = websocket::offers_marker(&headers);
                assert!(only(&headers, &route::AUTH, &TOKEN) || (offered && has_marker), "let in: {headers:?}");
            }
            By::Link => {
                assert!(request.has_links && to == To::Link && (method, uri.path()) == (&Method::GET, link::PATH));
                assert!(uri.query().is_some_and(|query| query.contains(TOKEN.as_str())), "let in: {uri}");
            }
            By::Cookie { .. } => {
                assert!(request.has_links && to == To::App(PORT));
                let token = TOKEN.as_bytes();
                let has = |cookie: &HeaderValue| cookie.as_bytes().windows(token.len()).any(|it| it == token);
                assert!(headers.get_all(header::COOKIE).iter().any(has), "let in: {headers:?}");
            }
        }
        let named = hosts.first().map(|host| host.to_str().expect("it was read"));
        let named = named.or_else(|| uri.authority().map(|authority| authority.as_str())).expect("there is one");
        assert!(named.to_ascii_lowercase().starts_with(&format!("{ENDPOINT}.{SUFFIX}")), "{named}");
        if let Some(server_name) = server_name {
            // With its last dot or without, it is the same name.
            let name = server_name.trim_end_matches('.').to_ascii_lowercase();
            assert!(named.to_ascii_lowercase().starts_with(&name), "{named}, {server_name}");
        }
    });
}

#[test]
fn an_app_sees_one_truth_and_nothing_of_the_edge() {
    let id = HeaderValue::from_static("our own");
    bolero::check!().with_type::<Head>().for_each(|head| {
        let given = head.headers();
        let upgrade = headers::upgrade(&given);
        let mut seen = given.clone();
        headers::to_app(&mut seen, &id, upgrade.clone());

        for name in seen.keys() {
            assert!(!name.as_str().starts_with("x-aws-proxy-"), "{name}");
            let is_ours = [headers::REQUEST_ID, header::CONNECTION, header::TE].contains(name);
            assert!(is_ours || given.contains_key(name), "{name} was made up");
        }
        assert!(only(&seen, &headers::REQUEST_ID, "our own"), "{seen:?}");
        assert!(seen.get_all(header::COOKIE).iter().count() <= 1, "{seen:?}");
        let is_chunked = given.contains_key(header::TRANSFER_ENCODING);
        assert_eq!(seen.contains_key(header::TRANSFER_ENCODING), is_chunked);
        assert!(!is_chunked || only(&seen, &header::TRANSFER_ENCODING, "chunked"), "{seen:?}");
        assert!(!is_chunked || !seen.contains_key(header::CONTENT_LENGTH), "{seen:?}");
        assert_eq!(seen.get(header::UPGRADE), upgrade.as_ref());
        assert_eq!(only(&seen, &header::CONNECTION, "upgrade"), upgrade.is_some());
        assert_eq!(seen.contains_key(header::CONNECTION), upgrade.is_some());
        let protocols: Vec<_> = tokens(&seen, &header::SEC_WEBSOCKET_PROTOCOL).collect();
        let is_own = |offer: &&str| {
            *offer == "lambda-microvms"
                || ["lambda-microvms.authentication.", "lambda-microvms.port."].iter().any(|own| offer.starts_with(own))
        };
        assert!(!protocols.iter().any(is_own), "{protocols:?}");
        assert_no_hop_by_hop(&given, &seen);

        let once = seen.clone();
        let upgrade = headers::upgrade(&seen);
        headers::to_app(&mut seen, &id, upgrade);
        assert_eq!(seen, once, "a second edge changes it again");
    });
}

#[test]
fn a_client_sees_no_more_than_the_app_said() {
    bolero::check!().with_type::<Head>().for_each(|head| {
        let given = head.headers();
        let mut seen = given.clone();
        headers::to_client(&mut seen, None);
        for name in seen.keys() {
            assert!(seen.get_all(name).iter().eq(given.get_all(name)), "{name} was changed");
        }
        let framing = [header::CONNECTION, header::UPGRADE, header::TE, header::TRANSFER_ENCODING];
        assert!(!framing.iter().any(|name| seen.contains_key(name)), "{seen:?}");
        assert!(!given.contains_key(header::TRANSFER_ENCODING) || !seen.contains_key(header::CONTENT_LENGTH));
        assert_no_hop_by_hop(&given, &seen);
    });
}

/// What `Connection` names is for the edge alone, but for what says which message this is.
fn assert_no_hop_by_hop(given: &HeaderMap, seen: &HeaderMap) {
    for named in tokens(given, &header::CONNECTION) {
        let made_anew =
            ["host", "content-length", "transfer-encoding", "te", "upgrade", "connection", "x-amzn-requestid"];
        let named = named.to_ascii_lowercase();
        assert!(made_anew.contains(&named.as_str()) || !seen.contains_key(&named), "{named} is still there");
    }
    for name in ["keep-alive", "proxy-connection", "proxy-authorization"] {
        assert!(!seen.contains_key(name), "{name}");
    }
}

/// A change to a token. Positions go around its end.
#[derive(Debug, TypeGenerator)]
enum Edit {
    Set { at: u16, byte: u8 },
    Cut { at: u16, bytes: u8 },
    Put { at: u16, bytes: Vec<u8> },
    Swap { at: u16, with: u16 },
}

#[test]
fn a_token_may_be_anything() {
    bolero::check!().with_type::<Vec<Edit>>().for_each(|edits| {
        let mut token = TOKEN.clone().into_bytes();
        for edit in edits {
            let place = |at: &u16| usize::from(*at) % (token.len() + 1);
            match edit {
                Edit::Set { at, byte } => {
                    let at = place(at);
                    token.splice(at..(at + 1).min(token.len()), [*byte]);
                }
                Edit::Cut { at, bytes } => {
                    let at = place(at);
                    token.drain(at..(at + usize::from(*bytes)).min(token.len()));
                }
                Edit::Put { at, bytes } => {
                    let at = place(at);
                    token.splice(at..at, bytes.iter().copied());
                }
                Edit::Swap { at, with } if !token.is_empty() => {
                    let (at, with) = (usize::from(*at) % token.len(), usize::from(*with) % token.len());
                    token.swap(at, with);
                }
                Edit::Swap { .. } => {}
            }
        }
        let token = String::from_utf8_lossy(&token);
        assert_eq!(KEYS.open(&token).is_ok(), token == TOKEN.as_str(), "{token}");
    });
}
