//! Deadlines and sizes.

use std::time::Duration;

use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    servers::App,
    support::{World, empty, full, text, until},
};

async fn is_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> bool {
    let mut rest = Vec::new();
    // An end or a reset, either is a close.
    timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn who_trickles_is_cut_and_who_pauses_between_requests_is_not() {
    let world = World::with(|limits| {
        limits.tls_handshake = Duration::from_millis(300);
        limits.request_head = Duration::from_millis(300);
    })
    .await;
    let app = App::mirror().await;
    world.place(8080, &app);

    let mut mute = TcpStream::connect(world.address).await.unwrap();
    assert!(is_closed(&mut mute).await, "no handshake");
    let mut tls = world.tls(&world.host()).await;
    assert!(is_closed(&mut tls).await, "no request");
    let mut tls = world.tls(&world.host()).await;
    tls.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert!(is_closed(&mut tls).await, "half a head");

    let mut client = world.client().await;
    text(client.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap()).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    client.ready().await.unwrap();
    let again = client.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap();
    assert_eq!(again.status(), 200);
    // And the second head's limit is a fresh one.
    let mut tls = world.tls(&world.host()).await;
    let head = format!("GET / HTTP/1.1\r\nhost: {}\r\nx-aws-proxy-auth: {}\r\n\r\n", world.host(), world.token());
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    tls.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    tls.write_all(b"GET /").await.unwrap();
    assert!(is_closed(&mut tls).await, "half a second head");
}

#[tokio::test]
async fn a_head_may_only_be_so_large() {
    let world = World::new().await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let large = world.request("GET", "/").header("x-large", "x".repeat(32 << 10)).body(empty()).unwrap();
    assert_eq!(world.send(large).await.status(), 200);
    let huge = world.request("GET", "/").header("x-large", "x".repeat(80 << 10)).body(empty()).unwrap();
    assert_eq!(world.send(huge).await.status(), 431);
    let mut many = world.request("GET", "/");
    for number in 0..120 {
        many = many.header(format!("x-{number}"), "1");
    }
    assert_eq!(world.send(many.body(empty()).unwrap()).await.status(), 431);
    assert_eq!(app.requests(), 1);
    until("the count", || world.metric("refused_by_limit_total{limit=\"head\"}") == 2).await;

    let boastful =
        App::http(|_| async { Response::builder().header("x-large", "x".repeat(80 << 10)).body(full("")).unwrap() })
            .await;
    world.place(8081, &boastful);
    let request = world.request("GET", "/").header("x-aws-proxy-port", "8081").body(empty()).unwrap();
    assert_eq!(world.send(request).await.status(), 502);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let world = World::with(|limits| limits.connections = 1).await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let mut client = world.client().await;
    text(client.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap()).await;
    let refused = world.get("/").await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    drop(client);
    // The place is free once the edge has seen the connection end.
    let mut status = 429;
    while status == 429 {
        status = world.get("/").await.status().as_u16();
    }
    assert_eq!(status, 200);
}

#[tokio::test]
async fn an_address_has_no_more_connections_than_its_share() {
    let world = World::with(|limits| {
        limits.connections_per_address = 2;
        limits.connections_refused = 1;
    })
    .await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let mut first = world.client().await;
    let unused = world.tls(&world.host()).await;
    let refused = world.get("/").await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    let metric = "refused_by_limit_total{limit=\"address_connections\"}";
    until("the refusal", || world.metric(metric) == 1).await;
    // While one more is being told, the next is not even that.
    let told = loop {
        let mut socket = TcpStream::connect(world.address).await.unwrap();
        if timeout(Duration::from_millis(100), socket.read_u8()).await.is_err() {
            break socket;
        }
    };
    let before = world.metric(metric);
    let mut closed = TcpStream::connect(world.address).await.unwrap();
    assert!(is_closed(&mut closed).await);
    assert_eq!(world.metric(metric), before + 1);
    let again = first.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap();
    assert_eq!(again.status(), 200, "those that are served are served on");
    drop((unused, told));
    until("a place", || world.metric("connections") == 1).await;
    assert_eq!(world.get("/").await.status(), 200);
}

#[tokio::test]
async fn silence_ends_a_request() {
    let world = World::with(|limits| {
        limits.answer = Duration::from_millis(300);
        limits.silence = Duration::from_millis(300);
    })
    .await;
    let mute = App::raw(|mut socket, _| async move {
        let mut head = Vec::new();
        while socket.read_buf(&mut head).await.is_ok_and(|length| length > 0) {}
    })
    .await;
    world.place(8080, &mute);
    assert_eq!(world.get("/").await.status(), 502);
    let stalls = App::raw(|mut socket, _| async move {
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok").await.unwrap();
        let mut head = Vec::new();
        while socket.read_buf(&mut head).await.is_ok_and(|length| length > 0) {}
    })
    .await;
    world.place(8081, &stalls);
    let request = world.request("GET", "/").header("x-aws-proxy-port", "8081").body(empty()).unwrap();
    let response = world.send(request).await;
    assert_eq!(response.status(), 200);
    let body = http_body_util::BodyExt::collect(response.into_body());
    assert!(timeout(Duration::from_secs(10), body).await.unwrap().is_err());
}
