//! Links and the cookie that comes of them: a browser's way in, where the image allows it.

use std::{
    io,
    sync::{Arc, Mutex, atomic::Ordering},
};

use api::{
    ids::MicrovmId,
    token::{Claims, Grant, Ports, TokenKeys},
};
use http::{Request, Response, request::Builder};
use hyper::body::Incoming;
use tracing_subscriber::util::SubscriberInitExt;

use crate::{
    servers::{App, mirrored},
    support::{Body, World, empty, now, text},
    websockets::{echo, handshake},
};

const MISSING: (u16, &str) = (403, "Request missing authentication");

/// Says what it was asked, and sets cookies.
async fn baker(request: Request<Incoming>) -> Response<Body> {
    let mut response = mirrored(&request);
    for cookie in ["a=1", "__Host-pilotlight=mine; Path=/; Secure", "=__Host-pilotlight=mine", "b=2"] {
        response.headers_mut().append("set-cookie", cookie.parse().unwrap());
    }
    response
}

async fn world(links: bool) -> (World, App) {
    let world = World::new().await;
    world.directory.has_links.store(links, Ordering::SeqCst);
    let app = App::http(baker).await;
    world.place(8080, &app);
    world.place(8123, &app);
    (world, app)
}

/// A request without a token.
fn bare(world: &World, method: &str, path: &str) -> Builder {
    Request::builder().method(method).uri(path).header("host", world.host())
}

/// With the cookie, beside others.
fn with_cookie(world: &World, method: &str, path: &str) -> Builder {
    bare(world, method, path).header("cookie", format!("c=3; __Host-pilotlight={}; d=4", world.token()))
}

async fn told(world: &World, request: Builder) -> (u16, String) {
    let response = world.send(request.body(empty()).unwrap()).await;
    (response.status().as_u16(), text(response).await)
}

fn line<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn set_cookies(response: &Response<Incoming>) -> Vec<&str> {
    response.headers().get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test]
async fn a_link_leaves_a_cookie_and_leads_to_a_page() {
    let (world, app) = world(true).await;
    let link = edge::link(&world.host(), &world.token(), "/page?x=1").unwrap();
    let link = link.strip_prefix(&format!("https://{}", world.host())).unwrap();
    let response = world.send(bare(&world, "GET", link).body(empty()).unwrap()).await;
    assert_eq!((response.status().as_u16(), response.headers()["location"].to_str().unwrap()), (303, "/page?x=1"));
    assert_eq!(response.headers()["referrer-policy"], "no-referrer");
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert!(response.headers().contains_key("x-amzn-requestid"));
    let cookie = set_cookies(&response)[0].to_owned();
    let (pair, rest) = cookie.split_once("; ").unwrap();
    let left: u64 = rest.strip_prefix("Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=").unwrap().parse().unwrap();
    assert!((1..=600).contains(&left), "{left}");
    assert_eq!((app.requests(), world.wakes(), world.dials()), (0, 0, 0), "nothing is woken by a link alone");

    let request = bare(&world, "GET", "/page?x=1").header("cookie", format!("c=3; {pair}"));
    let response = world.send(request.body(empty()).unwrap()).await;
    assert_eq!((response.status().as_u16(), set_cookies(&response)), (200, vec!["a=1", "b=2"]));
    let seen = text(response).await;
    assert!(seen.starts_with("GET /page?x=1\n") && line(&seen, "cookie") == Some("c=3"), "{seen}");
    let alone = told(&world, bare(&world, "GET", "/").header("cookie", pair)).await.1;
    assert_eq!(line(&alone, "cookie"), None, "{alone}");

    // HTTP/2 spreads cookies over fields.
    let target = format!("https://{}/", world.host());
    let request = Request::get(target).header("cookie", "c=3").header("cookie", pair).header("cookie", "d=4");
    let response = world.client2().await.send_request(request.body(empty()).unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), line(&text(response).await, "cookie")), (200, Some("c=3; d=4")));
    // A token in a header is what counts, and the cookie goes all the same.
    let request = world.request("GET", "/").header("cookie", "__Host-pilotlight=nonsense; e=5");
    assert_eq!(line(&told(&world, request).await.1, "cookie"), Some("e=5"));
}

#[tokio::test]
async fn where_the_image_does_not_allow_it_there_are_neither_links_nor_a_cookie() {
    let (world, app) = world(false).await;
    let link = format!("/.pilotlight/open?token={}", world.token());
    for request in [bare(&world, "GET", &link), with_cookie(&world, "GET", "/"), with_cookie(&world, "POST", "/")] {
        let response = world.send(request.body(empty()).unwrap()).await;
        assert_eq!(response.headers()["proxy-status"], "pilotlight; error=http_request_denied; fault=client");
        assert_eq!((response.status().as_u16(), text(response).await.as_str()), MISSING);
    }
    assert_eq!((app.requests(), world.wakes()), (0, 0));
    let request = world.request("GET", &link).header("cookie", "c=3;  __Host-pilotlight=the app's; d=4");
    let response = world.send(request.body(empty()).unwrap()).await;
    assert_eq!(set_cookies(&response).len(), 4, "all that the app sets");
    let seen = text(response).await;
    assert_eq!(line(&seen, "cookie"), Some("c=3;  __Host-pilotlight=the app's; d=4"), "{seen}");
    assert!(seen.starts_with(&format!("GET {link}\n")), "the path is the app's: {seen}");
}

#[tokio::test]
async fn a_link_that_is_not_good_is_no_token() {
    let (world, _app) = world(true).await;
    let good = world.claims();
    let cases = [
        ("expired", world.keys.seal(&Claims { expires_unix: now() - 1, ..good.clone() })),
        ("another microVM's", world.keys.seal(&Claims { microvm_id: MicrovmId::random(), ..good.clone() })),
        ("a shell's", world.keys.seal(&Claims { grant: Grant::Shell, ..good.clone() })),
        ("forged", TokenKeys::single(uuid::Uuid::new_v4(), [7; 32]).seal(&good)),
        ("nonsense", "x".to_owned()),
    ];
    for (what, token) in cases {
        let (status, body) = told(&world, bare(&world, "GET", &format!("/.pilotlight/open?token={token}"))).await;
        assert_eq!((status, body.as_str()), MISSING, "{what}");
        let cookie = format!("__Host-pilotlight={token}");
        let (status, body) = told(&world, bare(&world, "GET", "/").header("cookie", cookie)).await;
        assert_eq!((status, body.as_str()), MISSING, "{what}");
    }
    for to in ["//evil.test", "/%5cevil.test", "https://evil.test/", "%2f%2fevil.test", "/%09/evil.test"] {
        let link = format!("/.pilotlight/open?token={}&to={to}", world.token());
        let response = world.send(bare(&world, "GET", &link).body(empty()).unwrap()).await;
        assert_eq!((response.status().as_u16(), set_cookies(&response)), (400, vec![]), "{to}");
    }
    assert_eq!(world.wakes(), 0);
}

#[tokio::test]
async fn another_pages_requests_do_not_come_in_by_the_cookie() {
    let (world, app) = world(true).await;
    let strange = "pilotlight; error=http_request_denied; fault=client; details=\"the cookie is not enough: it is from";
    for (method, fields) in [
        (
            "POST",
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")][..],
        ),
        ("GET", &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")]),
        ("GET", &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")]),
        ("POST", &[("origin", "https://elsewhere.test")]),
    ] {
        let mut request = with_cookie(&world, method, "/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let response = world.send(request.body(empty()).unwrap()).await;
        let why = response.headers()["proxy-status"].to_str().unwrap();
        assert!(why.starts_with(strange), "{why}");
        assert_eq!((response.status().as_u16(), text(response).await), (403, String::new()), "{method} {fields:?}");
    }
    assert_eq!((app.requests(), world.wakes()), (0, 0));
    let led = with_cookie(&world, "GET", "/").header("sec-fetch-site", "cross-site");
    let led = led.header("sec-fetch-mode", "navigate").header("sec-fetch-dest", "document");
    assert_eq!(told(&world, led).await.0, 200, "a link on another page");
    let own = with_cookie(&world, "POST", "/").header("origin", format!("https://{}", world.host()));
    assert_eq!(told(&world, own.header("sec-fetch-site", "same-origin")).await.0, 200);
}

#[tokio::test]
async fn a_websocket_comes_in_by_the_cookie_from_the_endpoints_own_pages() {
    let (world, _app) = world(true).await;
    let app = App::http(echo).await;
    world.place(8080, &app);
    let own = format!("https://{}", world.host());
    for (origin, status) in
        [(None, 403), (Some("https://elsewhere.test"), 403), (Some("null"), 403), (Some(&*own), 101)]
    {
        let mut request = handshake(&world, "/chat", "chat");
        let headers = request.headers_mut();
        headers.insert("cookie", format!("__Host-pilotlight={}", world.token()).parse().unwrap());
        if let Some(origin) = origin {
            headers.insert("origin", origin.parse().unwrap());
        }
        assert_eq!(world.send(request).await.status().as_u16(), status, "{origin:?}");
    }
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn a_link_to_one_port_alone_means_that_one() {
    let (world, _app) = world(true).await;
    let to = |ranges| Claims { grant: Grant::Http(Ports::from_ranges(ranges)), ..world.claims() };
    let by = async |claims: &Claims, port: Option<u16>| {
        let cookie = format!("__Host-pilotlight={}", world.keys.seal(claims));
        let mut request = bare(&world, "GET", "/").header("cookie", cookie);
        if let Some(port) = port {
            request = request.header("x-aws-proxy-port", port);
        }
        told(&world, request).await
    };
    let (one, two) = (to(vec![(8123, 8123)]), to(vec![(8080, 8080), (8123, 8123)]));
    let dials = world.dials();
    assert_eq!(by(&one, None).await.0, 200);
    assert_eq!(by(&one, Some(8080)).await, (403, "Access to port denied".to_owned()));
    assert_eq!(by(&two, Some(8123)).await.0, 200);
    assert_eq!(by(&to(vec![(8123, 8124)]), None).await, (403, "Access to port denied".to_owned()), "8080 is meant");
    assert_eq!(world.dials(), dials + 1, "one connection to one port");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_is_in_the_log() {
    let lines = Lines::default();
    let writer = lines.clone();
    // For all tests: for one thread alone, what others come upon first would not be logged here.
    let subscriber = tracing_subscriber::fmt().with_env_filter("edge=trace").with_ansi(false);
    subscriber.with_writer(move || writer.clone()).finish().init();
    let (world, _app) = world(true).await;
    let token = world.token();
    let link = |query: &str| bare(&world, "GET", &format!("/.pilotlight/open?{query}{token}"));
    let mut ids = Vec::new();
    for (request, status) in [
        (link("token="), 303),
        (link("to=//x&token="), 400),
        (link("token=x"), 403),
        (with_cookie(&world, "GET", "/"), 200),
    ] {
        let response = world.send(request.body(empty()).unwrap()).await;
        assert_eq!(response.status().as_u16(), status);
        ids.push(response.headers()["x-amzn-requestid"].to_str().unwrap().to_owned());
        text(response).await;
    }
    let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(ids.iter().all(|id| logged.contains(&format!("served request_id=\"{id}\""))), "{logged}");
    assert!(logged.contains(&format!("refused request_id=\"{}\"", ids[1])), "{logged}");
    let parts: Vec<&str> = token.split('.').filter(|part| !part.is_empty()).collect();
    assert!(!parts.iter().any(|part| logged.contains(part)), "{logged}");
}
