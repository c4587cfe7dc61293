//! Every row of the table of the proxy's own answers.

use api::{
    directory::Unavailable,
    ids::MicrovmId,
    token::{Claims, Grant, Ports, TokenKey, TokenKeys},
};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    servers::App,
    support::{SUFFIX, World, empty, now, text},
};

async fn status_and_body(response: Response<Incoming>) -> (u16, String) {
    assert!(response.headers().contains_key("x-amzn-requestid"));
    (response.status().as_u16(), text(response).await)
}

async fn with_token(world: &World, token: &str) -> (u16, String) {
    let request = Request::get("/").header("host", world.host()).header("x-aws-proxy-auth", token);
    status_and_body(world.send(request.body(empty()).unwrap()).await).await
}

#[tokio::test]
async fn nobody_without_the_right_token_gets_in_or_wakes_anything() {
    let world = World::new().await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let missing = (403, "Request missing authentication".to_owned());
    let failed = (403, "Token authentication failed".to_owned());

    let none = Request::get("/").header("host", world.host()).body(empty()).unwrap();
    assert_eq!(status_and_body(world.send(none).await).await, missing);
    for garbage in ["", "x", "a.b.c.d.e", "Bearer x"] {
        assert_eq!(with_token(&world, garbage).await, missing, "{garbage}");
    }

    let good = world.claims();
    let cases: [(&str, Claims); 2] = [
        ("expired", Claims { expires_unix: now() - 1, ..good.clone() }),
        ("another microVM's", Claims { microvm_id: MicrovmId::random(), ..good.clone() }),
    ];
    for (what, claims) in cases {
        assert_eq!(with_token(&world, &world.keys.seal(&claims)).await, failed, "{what}");
    }
    let forged = TokenKeys::single(uuid::Uuid::new_v4(), [7; 32]).seal(&good);
    assert_eq!(with_token(&world, &forged).await, failed);

    for host in [format!("{}.{SUFFIX}", uuid::Uuid::new_v4()), format!("nobody.{SUFFIX}")] {
        let request = Request::get("/").header("host", &host).header("x-aws-proxy-auth", world.token());
        let response = world.client_for(&host).await.send_request(request.body(empty()).unwrap()).await.unwrap();
        assert_eq!(status_and_body(response).await, failed, "{host}");
    }

    let other_port = world.request("GET", "/").header("x-aws-proxy-port", "9000").body(empty()).unwrap();
    assert_eq!(status_and_body(world.send(other_port).await).await, (403, "Access to port denied".to_owned()));
    let narrow = Claims { grant: Grant::Http(Ports::from_ranges(vec![(8001, 8001)])), ..good };
    assert_eq!(with_token(&world, &world.keys.seal(&narrow)).await, (403, "Access to port denied".to_owned()));

    assert_eq!((world.wakes(), world.dials(), app.requests()), (0, 0, 0));
}

#[tokio::test]
async fn a_token_is_good_for_as_long_as_its_key_is_there() {
    let world = World::new().await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let key = |id: u8| TokenKey::new(uuid::Uuid::from_u128(id.into()), [id; 32]);
    world.keys.replace(key(1), vec![]);
    let old = world.token();
    for (older, status) in [(vec![key(1)], 200), (vec![], 403)] {
        world.keys.replace(key(2), older);
        assert_eq!(with_token(&world, &old).await.0, status);
        assert_eq!(world.get("/").await.status(), 200, "the newest");
    }
}

#[tokio::test]
async fn malformed_and_misdirected_requests() {
    let world = World::new().await;
    for port in ["0", "65536", "x", "-1", "+80", "8080, 8081", "080"] {
        let request = world.request("GET", "/").header("x-aws-proxy-port", port).body(empty()).unwrap();
        assert_eq!(status_and_body(world.send(request).await).await, (400, String::new()), "{port}");
    }
    let no_host = Request::get("/").header("x-aws-proxy-auth", world.token()).body(empty()).unwrap();
    assert_eq!(world.send(no_host).await.status(), 400);
    let elsewhere = world.request("GET", "https://elsewhere.test/").body(empty()).unwrap();
    assert_eq!(world.send(elsewhere).await.status(), 400);
    let misdirected = world.request("GET", "/").body(empty()).unwrap();
    assert_eq!(world.client_for("localhost").await.send_request(misdirected).await.unwrap().status(), 421);
    assert_eq!(world.wakes(), 0);
}

#[tokio::test]
async fn a_microvm_that_cannot_serve_is_a_502_without_words() {
    let world = World::new().await;
    let nothing = (502, String::new());
    assert_eq!(status_and_body(world.get("/").await).await, nothing, "nothing listens");
    assert_eq!(world.dials(), 1, "a refusal is not tried again");
    for why in [
        Unavailable::Asleep,
        Unavailable::Ended,
        Unavailable::WakeFailed { reason: "the hook said 500".into() },
        Unavailable::Late,
    ] {
        world.directory.state.send_replace(Some(Err(why.clone())));
        assert_eq!(status_and_body(world.get("/").await).await, nothing, "{why}");
    }
}

#[tokio::test]
async fn an_app_that_crashes_or_talks_nonsense_is_a_502() {
    let world = World::new().await;
    let silent = App::raw(|socket, _| async move { drop(socket) }).await;
    let nonsense = App::raw(|mut socket, _| async move {
        socket.write_all(b"220 mail ready\r\n").await.unwrap();
    })
    .await;
    world.place(8080, &silent);
    world.place(8081, &nonsense);
    assert_eq!(status_and_body(world.get("/").await).await, (502, String::new()));
    let request = world.request("GET", "/").header("x-aws-proxy-port", "8081").body(empty()).unwrap();
    assert_eq!(status_and_body(world.send(request).await).await, (502, String::new()));
}

#[tokio::test]
async fn a_large_upload_that_is_refused_still_gets_its_answer() {
    let world = World::new().await;
    // A client that reads only when it has sent everything: a reset before that would cost it the answer.
    let mut tls = world.tls(&world.host()).await;
    let length = 6 << 20;
    let head = format!("POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n\r\n", world.host());
    tls.write_all(head.as_bytes()).await.unwrap();
    tls.write_all(&vec![b'x'; length]).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"Request missing authentication") {
        assert_ne!(tls.read_buf(&mut answer).await.unwrap(), 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 403 Forbidden\r\n"));
}

#[tokio::test]
async fn the_app_sees_the_request_and_nothing_of_the_proxy() {
    let world = World::new().await;
    let app = App::mirror().await;
    world.place(8123, &app);
    let host = format!("{}:443", world.host());
    let request = Request::get("/a/b?c=%20d")
        .header("host", &host)
        .header("x-aws-proxy-auth", world.token())
        .header("X-Aws-Proxy-Port", "8123")
        .header("x-aws-proxy-force-h2", "false")
        .header("x-aws-proxy-anything", "1")
        .header("traceparent", "00-1")
        .header("x-amzn-requestid", "mine")
        .header("connection", "x-hop")
        .header("x-hop", "1");
    let response = world.send(request.body(empty()).unwrap()).await;
    assert_eq!(response.status(), 200);
    let id = response.headers()["x-amzn-requestid"].to_str().unwrap().to_owned();
    uuid::Uuid::parse_str(&id).unwrap();
    let mut seen: Vec<String> = text(response).await.lines().map(str::to_owned).collect();
    seen[1..].sort();
    assert_eq!(
        seen,
        [
            "GET /a/b?c=%20d".to_owned(),
            format!("host: {host}"),
            "traceparent: 00-1".into(),
            format!("x-amzn-requestid: {id}")
        ]
    );
}
