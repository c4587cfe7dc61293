//! Clients and apps that take their time: those who hold something up are cut, the others are not.

use std::{sync::Arc, time::Duration};

use http::Response;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    frames::{SETTINGS, frame, headers_frame},
    servers::{App, read_head, switch_protocols},
    support::{World, counted, empty, full, text, until},
    upgrades::{echo_after_upgrade, upgrade_request},
};

const SOON: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_millis(600);

/// Sends a byte every so often until the edge hangs up; how long that took.
async fn trickle(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, bytes: &[u8]) -> Duration {
    let begin = Instant::now();
    let mut answer = [0; 1];
    for byte in bytes {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            return begin.elapsed();
        }
        match timeout(Duration::from_millis(30), stream.read(&mut answer)).await {
            Err(_) => {}
            Ok(_) => return begin.elapsed(),
        }
    }
    panic!("all was taken");
}

#[tokio::test]
async fn a_handshake_that_trickles_is_cut_at_its_limit() {
    let world = World::with(|limits| limits.tls_handshake = LIMIT).await;
    // The beginning of a record that holds 512 bytes of a ClientHello.
    let mut hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    hello.extend([7; 400]);
    let took = trickle(TcpStream::connect(world.address).await.unwrap(), &hello).await;
    assert!((LIMIT..LIMIT * 3).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_at_its_limit() {
    let world = World::with(|limits| limits.request_head = LIMIT).await;
    let head = format!("GET / HTTP/1.1\r\nhost: {}\r\nx-large: {}", world.host(), "x".repeat(400));
    let took = trickle(world.tls(&world.host()).await, head.as_bytes()).await;
    assert!((LIMIT..LIMIT * 3).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_connection_without_requests_ends_and_one_with_requests_does_not() {
    let world = World::with(|limits| limits.client_idle = LIMIT).await;
    let app = App::http(|request| async move {
        if request.uri().path() == "/late" {
            sleep(LIMIT * 3).await;
        }
        Response::new(full("here"))
    })
    .await;
    world.place(8080, &app);
    let mut used = world.client().await;
    for path in ["/", "/", "/", "/late", "/"] {
        let request = world.request("GET", path).body(empty()).unwrap();
        assert_eq!(text(used.send_request(request).await.unwrap()).await, "here");
        sleep(LIMIT * 2 / 3).await;
    }
    let begin = Instant::now();
    until("the end of the connection", || used.is_closed()).await;
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn half_a_head_behind_a_whole_one_is_not_waited_for_for_ever() {
    let world = World::with(|limits| limits.client_idle = LIMIT).await;
    let app = App::http(|_| async {
        sleep(LIMIT / 2).await;
        Response::new(full("here"))
    })
    .await;
    world.place(8080, &app);
    let mut tls = world.tls(&world.host()).await;
    let (host, token) = (world.host(), world.token());
    let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-aws-proxy-auth: {token}\r\n\r\n");
    tls.write_all(format!("{head}{}", &head[..20]).as_bytes()).await.unwrap();
    let (begin, mut answer) = (Instant::now(), String::new());
    // Whether TLS is told of the end does not matter.
    let _ = timeout(SOON, tls.read_to_string(&mut answer)).await.expect("an end");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
    assert!((LIMIT * 3 / 2..LIMIT * 4).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_body_that_stops_after_the_answer_keeps_nothing() {
    let world = World::with(|limits| {
        (limits.answer, limits.silence, limits.linger) = (LIMIT, LIMIT, LIMIT / 10);
    })
    .await;
    let app = App::raw(|mut socket, _| async move {
        // Of its head: a byte of the body may come with it.
        socket.read_exact(&mut [0; 16]).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhere").await.unwrap();
        let mut rest = Vec::new();
        while socket.read_buf(&mut rest).await.is_ok_and(|length| length > 0) {}
    })
    .await;
    world.place(8080, &app);
    let mut tls = world.tls(&world.host()).await;
    let (host, token) = (world.host(), world.token());
    let head = format!("POST / HTTP/1.1\r\nhost: {host}\r\nx-aws-proxy-auth: {token}\r\ncontent-length: 20\r\n\r\nx");
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = timeout(SOON, tls.read_to_string(&mut answer)).await.expect("an end");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
    for kept in ["connections", "upstream_connections"] {
        until("the end", || world.metric(kept) == 0).await;
    }
}

#[tokio::test]
async fn a_body_that_trickles_is_served_and_one_that_stops_is_not() {
    let world = World::with(|limits| limits.answer = LIMIT).await;
    let app = App::http(|request| async move {
        match request.into_body().collect().await {
            Ok(body) => Response::new(full(body.to_bytes().len().to_string())),
            Err(_) => Response::new(full("broken")),
        }
    })
    .await;
    world.place(8080, &app);
    let head = |length: usize| {
        let (host, token) = (world.host(), world.token());
        format!("POST / HTTP/1.1\r\nhost: {host}\r\nx-aws-proxy-auth: {token}\r\ncontent-length: {length}\r\n\r\n")
    };
    let mut tls = world.tls(&world.host()).await;
    tls.write_all(head(20).as_bytes()).await.unwrap();
    for _ in 0..20 {
        tls.write_all(b"x").await.unwrap();
        sleep(LIMIT / 6).await;
    }
    let mut answer = [0; 12];
    tls.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");

    let mut tls = world.tls(&world.host()).await;
    tls.write_all(head(20).as_bytes()).await.unwrap();
    tls.write_all(b"x").await.unwrap();
    let begin = Instant::now();
    timeout(SOON, tls.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 502");
    assert!((LIMIT..LIMIT * 3).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_answer_has_so_long_to_begin_and_a_stream_as_long_as_it_likes() {
    let world = World::with(|limits| limits.answer = LIMIT).await;
    let app = App::http(|request| async move {
        match request.uri().path() {
            "/soon" => sleep(LIMIT / 2).await,
            "/late" => sleep(LIMIT * 2).await,
            _ => {}
        }
        let (sender, body) = crate::support::channel();
        tokio::spawn(async move {
            for _ in 0..2 {
                sleep(LIMIT * 2).await;
                let _ = sender.send(http_body::Frame::data("x".into())).await;
            }
        });
        Response::new(body)
    })
    .await;
    world.place(8080, &app);
    assert_eq!(world.get("/late").await.status(), 502);
    for path in ["/soon", "/"] {
        let answer = world.get(path).await;
        assert_eq!((answer.status().as_u16(), text(answer).await), (200, "xx".into()));
    }
    // Nor does it cut a WebSocket.
    let app = App::http(echo_after_upgrade).await;
    world.place(8081, &app);
    let mut request = upgrade_request(&world);
    request.headers_mut().insert("x-aws-proxy-port", "8081".parse().unwrap());
    let mut socket = TokioIo::new(hyper::upgrade::on(world.send(request).await).await.unwrap());
    sleep(LIMIT * 3).await;
    socket.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    timeout(SOON, socket.read_exact(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(&echoed, b"ping");
}

/// An app with much to say, and when its connection ended.
async fn talks(world: &World) -> (App, tokio::sync::mpsc::UnboundedReceiver<Instant>) {
    let (ended, ends) = tokio::sync::mpsc::unbounded_channel();
    let app = App::raw(move |mut socket, _| {
        let ended = ended.clone();
        async move {
            read_head(&mut socket).await;
            let length = 64 << 20;
            let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
            answer.resize(answer.len() + length, b'x');
            if socket.write_all(&answer).await.is_err() {
                let _ = ended.send(Instant::now());
            }
        }
    })
    .await;
    world.place(8080, &app);
    (app, ends)
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_and_one_that_pauses_is_not() {
    let world = World::with(|limits| limits.client_stall = Duration::from_secs(1)).await;
    let (_app, mut ends) = talks(&world).await;
    let begin = Instant::now();
    let answer = world.get("/").await;
    let ended = timeout(SOON, ends.recv()).await.expect("the app's connection ends").unwrap() - begin;
    assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&ended), "{ended:?}");
    assert!(answer.into_body().collect().await.is_err());

    let (mut body, mut length) = (world.get("/").await.into_body(), 0);
    let mut pauses = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().unwrap().len();
        if length / (16 << 20) > pauses {
            pauses += 1;
            sleep(Duration::from_millis(600)).await;
        }
    }
    assert_eq!((length, pauses), (64 << 20, 4));
}

#[tokio::test]
async fn a_connection_of_requests_that_are_answered_at_once_stays_open_between_them() {
    let world = World::with(|limits| limits.request_head = Duration::from_millis(500)).await;
    let mut tls = world.tls(&world.host()).await;
    for _ in 0..3 {
        // Without a token nobody is waited for.
        tls.write_all(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", world.host()).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"Request missing authentication") {
            let length = timeout(SOON, tls.read_buf(&mut answer)).await.expect("an answer").unwrap();
            assert!(length > 0, "an end after {}", String::from_utf8_lossy(&answer));
        }
        sleep(Duration::from_millis(400)).await;
    }
}

#[tokio::test]
async fn over_http2_who_takes_nothing_is_cut_though_the_socket_is_read() {
    let world = World::with(|limits| limits.client_stall = Duration::from_secs(1)).await;
    let (_app, mut ends) = talks(&world).await;
    let mut tls = world.tls_with(&world.host(), &["h2"]).await;
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE: a thousand bytes, and never one more.
    tls.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 3, 232])).await.unwrap();
    let (host, token) = (world.host(), world.token());
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", &host[..]),
        ("x-aws-proxy-auth", &token),
    ];
    tls.write_all(&headers_frame(1, true, &fields)).await.unwrap();
    let begin = Instant::now();
    let mut rest = Vec::new();
    let _ = timeout(SOON, tls.read_to_end(&mut rest)).await.expect("an end");
    let took = begin.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&took), "{took:?}");
    timeout(SOON, ends.recv()).await.expect("the app's connection ends").unwrap();
}

#[tokio::test]
async fn over_http2_one_stalled_request_cuts_no_other() {
    let world = World::with(|limits| limits.client_stall = Duration::from_millis(1500)).await;
    let (_app, _ends) = talks(&world).await;
    let echo = App::echo().await;
    world.place(8081, &echo);
    let mut client = world.client2().await;
    let stalled = client.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap();
    for _ in 0..12 {
        let request = world.request2("POST", "/").header("x-aws-proxy-port", "8081");
        let answer = client.send_request(request.body(counted(1, Arc::default())).unwrap()).await.unwrap();
        assert_eq!(text(answer).await.len(), 64 << 10);
        sleep(Duration::from_millis(250)).await;
    }
    drop(stalled);
}

#[tokio::test]
async fn a_web_socket_whose_client_stops_reading_is_cut() {
    let world = World::with(|limits| limits.client_stall = Duration::from_secs(1)).await;
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let app = App::raw(move |mut socket, _| {
        let ended = ended.clone();
        async move {
            switch_protocols(&mut socket).await;
            while socket.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
            let _ = ended.send(());
        }
    })
    .await;
    world.place(8080, &app);
    let _upgraded = hyper::upgrade::on(world.send(upgrade_request(&world)).await).await.unwrap();
    timeout(SOON, ends.recv()).await.expect("the app's connection ends").unwrap();
}
