//! How long a request may be: its head, its fields, its body, each at its edge.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    servers::App,
    support::{World, channel, empty, full, text},
};

/// Tells how long the body was.
async fn measures() -> App {
    App::http(|request| async move {
        match request.into_body().collect().await {
            Ok(body) => Response::new(full(body.to_bytes().len().to_string())),
            Err(_) => Response::builder().status(500).body(full("")).unwrap(),
        }
    })
    .await
}

/// The status of a request in HTTP/1.1 with a head of so many bytes.
async fn with_head(world: &World, bytes: usize) -> String {
    let mut head = format!("GET / HTTP/1.1\r\nhost: {}\r\nx-aws-proxy-auth: {}\r\n", world.host(), world.token());
    let rest = bytes - head.len() - "x-large: \r\n\r\n".len();
    head.push_str(&format!("x-large: {}\r\n\r\n", "x".repeat(rest)));
    assert_eq!(head.len(), bytes);
    let mut tls = world.tls(&world.host()).await;
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    tls.read_exact(&mut status).await.unwrap();
    String::from_utf8(status[9..].to_vec()).unwrap()
}

#[tokio::test]
async fn a_head_has_so_many_bytes_and_not_one_more() {
    let world = World::with(|limits| limits.head_bytes = 20_000).await;
    let app = App::mirror().await;
    world.place(8080, &app);
    assert_eq!(with_head(&world, 20_000).await, "200");
    assert_eq!(with_head(&world, 20_001).await, "431");
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn a_head_has_so_many_fields_and_not_one_more() {
    let world = World::with(|limits| limits.header_fields = 20).await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let with = |mut request: http::request::Builder, fields: usize| {
        let there = request.headers_ref().unwrap().len();
        for number in there..fields {
            request = request.header(format!("x-{number}"), "1");
        }
        request.body(empty()).unwrap()
    };
    for (fields, status) in [(20, 200), (21, 431)] {
        assert_eq!(world.send(with(world.request("GET", "/"), fields)).await.status(), status);
        let answer = world.client2().await.send_request(with(world.request2("GET", "/"), fields)).await.unwrap();
        assert_eq!(answer.status(), status);
    }
    assert_eq!(app.requests(), 2);
}

#[tokio::test]
async fn a_body_that_says_that_it_is_too_long_wakes_nobody() {
    let world = World::with(|limits| limits.request_body_bytes = 1000).await;
    let app = measures().await;
    world.place(8080, &app);
    let post = |length: usize| world.request("POST", "/").body(full(vec![7; length])).unwrap();
    assert_eq!(text(world.send(post(1000)).await).await, "1000");
    let wakes = world.wakes();
    assert_eq!(world.send(post(1001)).await.status(), 413);
    let request = world.request2("POST", "/").header("content-length", "1001").body(full(vec![7; 1001])).unwrap();
    assert_eq!(world.client2().await.send_request(request).await.unwrap().status(), 413);
    assert_eq!((app.requests(), world.wakes()), (1, wakes));
}

#[tokio::test]
async fn a_body_that_turns_out_too_long_is_told_so() {
    let world = Arc::new(World::with(|limits| limits.request_body_bytes = 1000).await);
    let app = measures().await;
    world.place(8080, &app);
    for http2 in [false, true] {
        for (more, status) in [(500, 200), (501, 413)] {
            let (sender, body) = channel();
            let asked = Arc::clone(&world);
            let answer = tokio::spawn(async move {
                if http2 {
                    let request = asked.request2("POST", "/").body(body).unwrap();
                    asked.client2().await.send_request(request).await.unwrap()
                } else {
                    asked.send(asked.request("POST", "/").body(body).unwrap()).await
                }
            });
            for length in [500, more] {
                sender.send(Frame::data(Bytes::from(vec![7; length]))).await.unwrap();
            }
            drop(sender);
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), status, "http2: {http2}");
            if status == 200 {
                assert_eq!(text(answer).await, "1000");
            }
        }
    }
}
