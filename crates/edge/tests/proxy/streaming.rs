//! Bodies of any size, both ways, as they come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

use crate::{
    servers::{App, read_head},
    support::{World, channel, counted, empty, full, text, until},
};

/// The count once it no longer moves.
async fn settled(count: &AtomicUsize) -> usize {
    let mut last = usize::MAX;
    loop {
        let now = count.load(Ordering::SeqCst);
        if now == last {
            return now;
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn the_answer_starts_before_the_request_ends_and_trailers_arrive() {
    let world = World::new().await;
    let app = App::echo().await;
    world.place(8080, &app);
    let (sender, body) = channel();
    let request = world.request("POST", "/").header("te", "trailers").header("trailer", "x-sum").body(body).unwrap();
    sender.send(Frame::data("one".into())).await.unwrap();
    let response = world.send(request).await;
    let mut answer = response.into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    sender.send(Frame::data("two".into())).await.unwrap();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "two");
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "2".parse().unwrap())]);
    sender.send(Frame::trailers(trailers.clone())).await.unwrap();
    drop(sender);
    assert_eq!(answer.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers);
    assert!(answer.frame().await.is_none());
}

#[tokio::test]
async fn every_framing_survives() {
    let world = World::new().await;
    let app = App::http(|request| async move {
        let length = request.headers().get("content-length").map(|v| v.to_str().unwrap().to_owned());
        let chunked = request.headers().contains_key("transfer-encoding");
        let body = request.into_body().collect().await.unwrap().to_bytes().len();
        Response::new(full(format!("{length:?} {chunked} {body}")))
    })
    .await;
    world.place(8080, &app);
    let mut client = world.client().await;
    // All on one kept connection.
    for (method, body, seen) in [
        ("POST", full("12345"), r#"Some("5") false 5"#),
        ("GET", empty(), "None false 0"),
        ("PUT", counted(3, Arc::default()), "None true 196608"),
        ("POST", full(""), r#"Some("0") false 0"#),
    ] {
        let mut request = world.request(method, "/");
        if method == "POST" && seen.starts_with(r#"Some("0")"#) {
            request = request.header("content-length", "0");
        }
        client.ready().await.unwrap();
        let response = client.send_request(request.body(body).unwrap()).await.unwrap();
        assert_eq!(text(response).await, seen);
    }
    // A GET may have a body too.
    let mut tls = world.tls(&world.host()).await;
    let head = format!("GET / HTTP/1.1\r\nhost: {}\r\nx-aws-proxy-auth: {}\r\n", world.host(), world.token());
    let request = format!("{head}transfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("None true 3"), "{answer}");
    // Of two lengths the chunked one counts, and the app sees no other.
    let mut tls = world.tls(&world.host()).await;
    let request = format!(
        "{head}content-length: 30\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    );
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("None true 3"), "{answer}");
}

#[tokio::test]
async fn head_keeps_the_length_and_has_no_body() {
    let world = World::new().await;
    let app = App::http(|_| async { Response::new(full("hello")) }).await;
    world.place(8080, &app);
    let response = world.send(world.request("HEAD", "/").body(empty()).unwrap()).await;
    assert_eq!(response.headers()["content-length"], "5");
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_if_the_app_says_so() {
    let world = World::new().await;
    let reads =
        App::http(
            |request| async move { Response::new(full(request.into_body().collect().await.unwrap().to_bytes())) },
        );
    let (reads, declines) =
        (reads.await, App::http(|_| async { Response::builder().status(413).body(full("no")).unwrap() }).await);
    let says_nothing = App::raw(|mut socket, _| async move {
        let mut seen = Vec::new();
        while !seen.ends_with(b"abc") {
            socket.read_buf(&mut seen).await.unwrap();
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc").await.unwrap();
    })
    .await;
    world.place(8080, &reads);
    world.place(8081, &declines);
    world.place(8082, &says_nothing);
    let head = format!("POST / HTTP/1.1\r\nhost: {}\r\nexpect: 100-continue\r\ncontent-length: 3\r\n", world.host());
    for port in [8080, 8082] {
        let mut tls = world.tls(&world.host()).await;
        let head = format!("{head}x-aws-proxy-port: {port}\r\nx-aws-proxy-auth: {}\r\n\r\n", world.token());
        tls.write_all(head.as_bytes()).await.unwrap();
        let mut told = [0; 25];
        tls.read_exact(&mut told).await.unwrap();
        assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
        tls.write_all(b"abc").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nabc") {
            assert_ne!(tls.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    // Neither the app's no nor the edge's is preceded by a yes.
    for (more, status) in [
        (format!("x-aws-proxy-port: 8081\r\nx-aws-proxy-auth: {}\r\n", world.token()), "413 Payload Too Large"),
        (String::new(), "403 Forbidden"),
    ] {
        let mut tls = world.tls(&world.host()).await;
        tls.write_all(format!("{head}{more}connection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        tls.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
    }
}

#[tokio::test]
async fn sixty_four_mebibytes_go_through_both_ways() {
    let world = World::new().await;
    let app = App::echo().await;
    world.place(8080, &app);
    let response = world.send(world.request("POST", "/").body(counted(1024, Arc::default())).unwrap()).await;
    let mut length = 0;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(length, 64 << 20);
    // Idle clocks hear of it, but not of every frame.
    let touches = world.directory.touches.load(Ordering::SeqCst);
    assert!((2..200).contains(&touches), "{touches}");
}

#[tokio::test]
async fn a_request_whose_answer_has_not_begun_keeps_its_microvm_awake() {
    let world = World::new().await;
    let app = App::http(|_| async {
        tokio::time::sleep(Duration::from_millis(3500)).await;
        Response::new(full("at last"))
    })
    .await;
    world.place(8080, &app);
    let before = world.directory.touches.load(Ordering::SeqCst);
    let answer = world.get("/").await;
    let touches = world.directory.touches.load(Ordering::SeqCst) - before;
    // One at the start, one for each second without a byte, and those of the answer.
    assert!((4..=8).contains(&touches), "{touches}");
    assert_eq!(text(answer).await, "at last");
}

#[tokio::test]
async fn a_reader_that_pauses_makes_the_writer_pause() {
    let world = World::new().await;
    let go = Arc::new(Notify::new());
    let (produced, read) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&go));
    let produces = Arc::clone(&produced);
    let app = App::http(move |request| {
        let (produced, read) = (Arc::clone(&produces), Arc::clone(&read));
        async move {
            if request.method() == "GET" {
                return Response::new(counted(4096, produced));
            }
            read.notified().await;
            let mut body = request.into_body();
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                length += frame.unwrap().into_data().unwrap().len();
            }
            Response::new(full(length.to_string()))
        }
    })
    .await;
    world.place(8080, &app);
    // Socket buffers of the kernel take a few megabytes each; the edge itself nothing to speak of.
    let most = (32 << 20) / (64 << 10);

    let response = world.get("/").await;
    until("the first piece", || produced.load(Ordering::SeqCst) > 0).await;
    assert!(settled(&produced).await < most);
    drop(response);

    let sent = Arc::new(AtomicUsize::new(0));
    let request = world.request("POST", "/").body(counted(4096, Arc::clone(&sent))).unwrap();
    let mut client = world.client().await;
    let response = tokio::spawn(async move { text(client.send_request(request).await.unwrap()).await });
    until("the first piece", || sent.load(Ordering::SeqCst) > 0).await;
    assert!(settled(&sent).await < most);
    go.notify_one();
    assert_eq!(response.await.unwrap(), (256 << 20).to_string());
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_whole() {
    let world = World::new().await;
    let app = App::raw(|mut socket, _| async move {
        read_head(&mut socket).await;
        socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
    })
    .await;
    world.place(8080, &app);
    let response = world.get("/").await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_by_the_app() {
    let world = World::new().await;
    let (gone, tell) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (seen, began) = (Arc::clone(&gone), Arc::clone(&tell));
    let app = App::raw(move |mut socket, _| {
        let (seen, began) = (Arc::clone(&seen), Arc::clone(&began));
        async move {
            let mut head = read_head(&mut socket).await;
            began.notify_one();
            while socket.read_buf(&mut head).await.is_ok_and(|length| length > 0) {}
            seen.notify_one();
        }
    })
    .await;
    world.place(8080, &app);
    let mut client = world.client().await;
    let request = world.request("GET", "/").body(empty()).unwrap();
    let asking = tokio::spawn(async move { client.send_request(request).await });
    tell.notified().await;
    asking.abort();
    tokio::time::timeout(Duration::from_secs(10), gone.notified()).await.unwrap();
}
