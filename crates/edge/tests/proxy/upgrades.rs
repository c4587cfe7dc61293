//! Connections that change their protocol.

use std::{sync::atomic::Ordering, time::Duration};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    servers::App,
    support::{Body, World, empty, until},
};

pub async fn echo_after_upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let wanted = request.headers().get("upgrade").cloned();
    assert_eq!(wanted.as_ref().unwrap(), "websocket");
    assert_eq!(request.headers()["connection"], "upgrade");
    assert_eq!(request.headers()["sec-websocket-key"], "abc");
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrading.await.unwrap()));
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.write_all(b"bye").await.unwrap();
        to.shutdown().await.unwrap();
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", "xyz")
        .body(empty())
        .unwrap()
}

pub fn upgrade_request(world: &World) -> Request<Body> {
    world
        .request("GET", "/ws")
        .header("connection", "keep-alive, Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-key", "abc")
        .body(empty())
        .unwrap()
}

#[tokio::test]
async fn a_web_socket_goes_through_and_keeps_the_microvm_awake() {
    let world = World::with(|limits| limits.request_head = Duration::from_millis(300)).await;
    let app = App::http(echo_after_upgrade).await;
    world.place(8080, &app);
    let response = world.send(upgrade_request(&world)).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "websocket");
    assert_eq!(response.headers()["sec-websocket-accept"], "xyz");
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let touches = world.directory.touches.load(Ordering::SeqCst);
    for _ in 0..5 {
        socket.write_all(b"ping").await.unwrap();
        let mut echoed = [0; 4];
        socket.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"ping");
        // In all longer than a head may take: what crosses now is no head.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let during = world.directory.touches.load(Ordering::SeqCst) - touches;
    assert!((1..=5).contains(&during), "{during}");
    // One side may end before the other.
    socket.shutdown().await.unwrap();
    let mut rest = String::new();
    socket.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye");
}

#[tokio::test]
async fn an_app_may_decline_an_upgrade() {
    let world = World::new().await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let response = world.send(upgrade_request(&world)).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_silent_tunnel_ends() {
    let world = World::with(|limits| limits.silence = Duration::from_millis(300)).await;
    let app = App::http(echo_after_upgrade).await;
    world.place(8080, &app);
    let response = world.send(upgrade_request(&world)).await;
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut rest)).await;
    assert!(ended.is_ok());
    until("the app's request", || app.requests() == 1).await;
}
