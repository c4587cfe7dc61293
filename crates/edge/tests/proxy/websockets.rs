//! WebSocket as browsers do it: the token in a subprotocol, and over HTTP/2.

use http::{HeaderValue, Request, Response, StatusCode};
use hyper::{body::Incoming, ext::Protocol};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    servers::App,
    support::{Body, World, empty, full, text, until},
};

/// Accepts, chooses the subprotocol that its path names, tells what it was offered, and echoes.
pub async fn echo(mut request: Request<Incoming>) -> Response<Body> {
    let headers = request.headers();
    assert!(headers["upgrade"].as_bytes().eq_ignore_ascii_case(b"websocket"));
    assert_eq!(headers["sec-websocket-version"], "13");
    let key = headers["sec-websocket-key"].to_str().unwrap();
    let accept = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    );
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", STANDARD.encode(accept));
    let offered = headers.get("sec-websocket-protocol").cloned();
    response = response.header("x-offered", offered.unwrap_or(HeaderValue::from_static("nothing")));
    assert!(!headers.keys().any(|name| name.as_str().starts_with("x-aws-proxy")));
    match request.uri().path() {
        "/" => {}
        "/decline" => return Response::builder().status(StatusCode::NOT_FOUND).body(full("no such room")).unwrap(),
        "/odd" => return Response::new(full("")),
        "/wrong" => response = response.header("sec-websocket-accept", "wrong"),
        path => response = response.header("sec-websocket-protocol", &path[1..]),
    }
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrading.await.unwrap()));
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.write_all(b"bye").await;
        let _ = to.shutdown().await;
    });
    response.body(empty()).unwrap()
}

async fn world() -> (World, App) {
    let world = World::new().await;
    let app = App::http(echo).await;
    world.place(8080, &app);
    world.place(8123, &app);
    (world, app)
}

pub fn handshake(world: &World, path: &str, offers: &str) -> Request<Body> {
    Request::get(path)
        .header("host", world.host())
        .header("connection", "Upgrade")
        .header("upgrade", "WebSocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", offers)
        .body(empty())
        .unwrap()
}

#[tokio::test]
async fn a_subprotocol_may_carry_the_token_and_the_port() {
    let (world, app) = world().await;
    let token = format!("lambda-microvms.authentication.{}", world.token());
    let cases = [
        ("/", format!("lambda-microvms, {token}"), "nothing", "lambda-microvms"),
        ("/", format!("{token}, lambda-microvms.port.8123, lambda-microvms, chat, v2"), "chat, v2", "lambda-microvms"),
        ("/v2", format!("chat, lambda-microvms, v2, {token}"), "chat, v2", "v2"),
    ];
    for (path, offers, offered, chosen) in cases {
        let response = world.send(handshake(&world, path, &offers)).await;
        assert_eq!(response.status(), 101, "{path}");
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["x-offered"], offered);
        assert_eq!(response.headers()["sec-websocket-protocol"], chosen);
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        socket.write_all(b"ping").await.unwrap();
        let mut echoed = [0; 4];
        socket.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"ping");
    }
    assert_eq!(app.requests(), 3);
    // A header's token leaves the subprotocols to the app.
    let mut request = handshake(&world, "/chat", "chat");
    request.headers_mut().insert("x-aws-proxy-auth", world.token().parse().unwrap());
    let response = world.send(request).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["sec-websocket-protocol"]),
        (101, &"chat".parse().unwrap())
    );
}

#[tokio::test]
async fn a_subprotocol_is_no_way_around_anything() {
    let (world, app) = world().await;
    let token = format!("lambda-microvms.authentication.{}", world.token());
    let missing = (403, "Request missing authentication".to_owned());
    let cases = [
        ("without the marker", token.clone(), missing.clone()),
        ("without a token", "lambda-microvms, chat".into(), missing.clone()),
        ("with two tokens", format!("lambda-microvms, {token}, {token}"), missing.clone()),
        ("with nonsense", "lambda-microvms, lambda-microvms.authentication.x".into(), missing.clone()),
        ("with no port", format!("lambda-microvms, {token}, lambda-microvms.port.x"), (400, String::new())),
        (
            "with two ports",
            format!("lambda-microvms, {token}, lambda-microvms.port.8080, lambda-microvms.port.8080"),
            (400, String::new()),
        ),
        (
            "with another port",
            format!("lambda-microvms, {token}, lambda-microvms.port.9000"),
            (403, "Access to port denied".into()),
        ),
    ];
    for (what, offers, answer) in cases {
        let response = world.send(handshake(&world, "/", &offers)).await;
        assert_eq!((response.status().as_u16(), text(response).await), answer, "{what}");
    }
    // It is for WebSocket alone.
    let mut request = handshake(&world, "/", &format!("lambda-microvms, {token}"));
    request.headers_mut().remove("upgrade");
    let response = world.send(request).await;
    assert_eq!((response.status().as_u16(), text(response).await), missing);
    assert_eq!((world.wakes(), app.requests()), (0, 0));
}

/// An extended CONNECT (RFC 8441).
fn connect(world: &World, path: &str) -> http::request::Builder {
    let builder = Request::connect(format!("https://{}{path}", world.host()));
    builder.extension(Protocol::from_static("websocket")).header("sec-websocket-version", "13")
}

#[tokio::test]
async fn a_web_socket_may_be_one_stream_of_http2() {
    let (world, app) = world().await;
    let mut client = world.client2().await;
    // The first answer brings the server's settings, without which a client may not ask.
    let other = client.send_request(world.request2("GET", "/").header("x-aws-proxy-port", "9").body(empty()).unwrap());
    assert_eq!(other.await.unwrap().status(), 403);
    let offers = format!("lambda-microvms, lambda-microvms.authentication.{}, chat", world.token());
    let request = connect(&world, "/chat").header("sec-websocket-protocol", offers).body(empty()).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    for gone in ["connection", "upgrade", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    assert_eq!(response.headers()["x-offered"], "chat");
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    socket.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    socket.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"ping");
    // One side may end before the other.
    socket.shutdown().await.unwrap();
    let mut rest = String::new();
    socket.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye");

    let mut ask = async |path: &str| {
        let request = connect(&world, path).header("x-aws-proxy-auth", world.token()).body(empty()).unwrap();
        let response = client.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, if status == 200 { String::new() } else { text(response).await })
    };
    assert_eq!(ask("/").await.0, 200);
    assert_eq!(ask("/decline").await, (404, "no such room".into()));
    assert_eq!(ask("/odd").await, (502, String::new()), "a 200 of the app is no tunnel");
    assert_eq!(ask("/wrong").await, (502, String::new()));
    until("the app's requests", || app.requests() == 5).await;

    let request =
        Request::connect(format!("https://{}/", world.host())).extension(Protocol::from_static("connect-udp"));
    let response = client.send_request(request.header("x-aws-proxy-auth", world.token()).body(empty()).unwrap());
    assert_eq!(response.await.unwrap().status(), 400);
}
