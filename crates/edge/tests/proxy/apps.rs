//! HTTP/2 to the app, and gRPC.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{join_all, poll_fn};
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use crate::{
    servers::{App, mirrored},
    support::{World, channel, counted, empty, full, text, until},
};

const SOON: Duration = Duration::from_secs(10);

/// An app that takes the frames of each request in its own hands.
async fn by_frames<F>(
    answer: impl Fn(Request<h2::RecvStream>, SendResponse<Bytes>, usize) -> F + Clone + Send + Sync + 'static,
) -> App
where
    F: Future<Output = ()> + Send + 'static,
{
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let mut app = App::raw(move |socket, _| {
        let (answer, counted) = (answer.clone(), Arc::clone(&counted));
        async move {
            let Ok(mut connection) = h2::server::handshake(socket).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond, counted.fetch_add(1, Ordering::SeqCst)));
            }
        }
    })
    .await;
    app.requests = requests;
    app
}

#[tokio::test]
async fn who_asks_for_http2_gets_it_from_either_version() {
    let world = World::new().await;
    let app = App::http2(100, |request| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        mirrored(&request)
    })
    .await;
    world.place(8080, &app);
    let headers = |request: http::request::Builder| {
        request.header("x-aws-proxy-force-h2", "true").header("te", "trailers").header("cookie", "a=1")
    };
    let one = world.send(headers(world.request("POST", "/a?b")).body(counted(1, Arc::default())).unwrap()).await;
    let two = headers(world.request2("GET", "/a?b")).body(empty()).unwrap();
    let two = world.client2().await.send_request(two).await.unwrap();
    for (method, response) in [("POST", one), ("GET", two)] {
        let id = response.headers()["x-amzn-requestid"].to_str().unwrap().to_owned();
        let mut seen: Vec<String> = text(response).await.lines().map(str::to_owned).collect();
        seen[1..].sort();
        let first = format!("{method} http://{}/a?b", world.host());
        assert_eq!(seen, [&first, "cookie: a=1", "te: trailers", &format!("x-amzn-requestid: {id}")]);
    }
    assert_eq!(world.dials(), 1, "one connection for both");
}

#[tokio::test]
async fn an_app_of_http1_alone_cannot_be_asked_for_http2() {
    let world = World::new().await;
    let app = App::mirror().await;
    world.place(8080, &app);
    for _ in 0..2 {
        let request = world.request2("GET", "/").header("x-aws-proxy-force-h2", "true").body(empty()).unwrap();
        let response = world.client2().await.send_request(request).await.unwrap();
        assert_eq!((response.status().as_u16(), text(response).await), (502, String::new()));
        assert_eq!(world.get("/").await.status(), 200);
    }
    assert_eq!(app.requests(), 2, "the app saw no request that it does not understand");
}

fn grpc(world: &World, path: &str) -> http::request::Builder {
    let request = world.request2("POST", path).header("content-type", "application/grpc+proto");
    request.header("te", "trailers").header("grpc-encoding", "gzip")
}

#[tokio::test]
async fn every_kind_of_call_goes_through_with_its_trailers() {
    let world = World::new().await;
    let app = App::http2(100, |request| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.headers()["grpc-encoding"], "gzip");
        let (sender, body) = channel();
        tokio::spawn(async move {
            let path = request.uri().path().to_owned();
            let mut asked = request.into_body();
            let mut count = 0;
            while let Some(frame) = asked.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                // What ends a stream may be empty.
                count += u8::from(!data.is_empty());
                if path == "/bidi" && !data.is_empty() {
                    sender.send(Frame::data(data)).await.unwrap();
                }
            }
            for _ in 0..(match path.as_str() {
                "/server" => 3,
                "/bidi" => 0,
                _ => 1,
            }) {
                sender.send(Frame::data(vec![1, 0, 0, 0, 1, count].into())).await.unwrap();
            }
            let status = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
            sender.send(Frame::trailers(HeaderMap::from_iter(status))).await.unwrap();
        });
        Response::builder().header("content-type", "application/grpc+proto").body(body).unwrap()
    })
    .await;
    world.place(8080, &app);
    let client = world.client2().await;
    let message = |number: u8| Bytes::from(vec![1, 0, 0, 0, 1, number]);
    for (path, sent, received) in [("/unary", 1, 1), ("/server", 1, 3), ("/client", 5, 1)] {
        let (sender, body) = channel();
        let call = client.clone().send_request(grpc(&world, path).body(body).unwrap());
        let call = tokio::spawn(call);
        for number in 0..sent {
            sender.send(Frame::data(message(number))).await.unwrap();
        }
        drop(sender);
        let answer = call.await.unwrap().unwrap();
        assert_eq!(answer.headers()["content-type"], "application/grpc+proto");
        let answer = answer.into_body().collect().await.unwrap();
        assert_eq!(answer.trailers().unwrap()["grpc-status"], "0", "{path}");
        assert_eq!(answer.to_bytes(), vec![message(sent); received].concat(), "{path}");
    }
    let (sender, body) = channel();
    let mut answer = client.clone().send_request(grpc(&world, "/bidi").body(body).unwrap()).await.unwrap().into_body();
    for number in 0..5 {
        sender.send(Frame::data(message(number))).await.unwrap();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), message(number));
    }
    drop(sender);
    assert_eq!(answer.frame().await.unwrap().unwrap().into_trailers().unwrap()["grpc-status"], "0");
    assert!(answer.frame().await.is_none());
    assert_eq!((world.dials(), app.requests()), (1, 4));
}

#[tokio::test]
async fn grpc_that_is_spoken_over_http1_still_reaches_its_app() {
    let world = World::new().await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let client = world.client2().await;
    // The first tries HTTP/2, TLS and HTTP/1.1; the second knows, and may find the connection kept.
    for dials in [3, 4] {
        let request = grpc(&world, "/a").body(full("x")).unwrap();
        let response = client.clone().send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(text(response).await.contains("host: "));
        assert!(world.dials() <= dials, "{}", world.dials());
    }
}

#[tokio::test]
async fn requests_share_a_connection_as_far_as_the_app_lets_them() {
    for (streams, connections) in [(100, 1..=1), (4, 5..=20)] {
        let world = World::new().await;
        let go = Arc::new(Notify::new());
        let waits = Arc::clone(&go);
        let app = App::http2(streams, move |_| {
            let go = Arc::clone(&waits);
            async move {
                go.notified().await;
                Response::new(full("done"))
            }
        })
        .await;
        world.place(8080, &app);
        let client = world.client2().await;
        let answers = (0..20).map(|_| {
            let request = world.request2("GET", "/").header("x-aws-proxy-force-h2", "true").body(empty()).unwrap();
            let mut client = client.clone();
            async move { text(client.send_request(request).await.unwrap()).await }
        });
        let answers = tokio::spawn(join_all(answers.collect::<Vec<_>>()));
        // All at once, though each waits for all.
        until("twenty requests", || app.requests() == 20).await;
        go.notify_waiters();
        assert_eq!(answers.await.unwrap(), vec!["done"; 20]);
        assert!(connections.contains(&world.dials()), "{streams}: {}", world.dials());
    }
}

#[tokio::test]
async fn a_reset_of_the_app_reaches_the_client_and_its_reason_too() {
    let world = World::new().await;
    let app = by_frames(|request, mut respond, _| async move {
        if request.uri().path() == "/at-once" {
            respond.send_reset(Reason::ENHANCE_YOUR_CALM);
            return;
        }
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data("half".into(), false).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        body.send_reset(if request.uri().path() == "/no-error" { Reason::NO_ERROR } else { Reason::REFUSED_STREAM });
    })
    .await;
    world.place(8080, &app);
    let ask = async |path: &str| {
        let mut client = world.frames().await;
        let request = world.request2("GET", path).header("x-aws-proxy-force-h2", "true").body(()).unwrap();
        client.send_request(request, true).unwrap().0.await
    };
    assert_eq!(ask("/at-once").await.unwrap_err().reason(), Some(Reason::ENHANCE_YOUR_CALM));
    let mut later = ask("/later").await.unwrap().into_body();
    assert_eq!(later.data().await.unwrap().unwrap(), "half");
    assert_eq!(later.data().await.unwrap().unwrap_err().reason(), Some(Reason::REFUSED_STREAM));
    // Half an answer does not become a whole one by being said to have no error.
    let mut no_error = ask("/no-error").await.unwrap().into_body();
    assert_eq!(no_error.data().await.unwrap().unwrap(), "half");
    assert_eq!(no_error.data().await.unwrap().unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
    // A client of HTTP/1.1 knows no resets: before the answer it is told 502, within it the connection breaks.
    let request = |path| world.request("GET", path).header("x-aws-proxy-force-h2", "true").body(empty()).unwrap();
    assert_eq!(world.send(request("/at-once")).await.status(), 502);
    assert!(world.send(request("/no-error")).await.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_app() {
    let world = World::new().await;
    let (told, mut seen) = mpsc::unbounded_channel();
    let app = by_frames(move |request, mut respond, _| {
        let told = told.clone();
        async move {
            let mut body = request.into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "half");
            told.send(None).unwrap();
            told.send(Some(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap())).unwrap();
        }
    })
    .await;
    world.place(8080, &app);
    let mut client = world.frames().await;
    let (_response, mut body) = client.send_request(grpc(&world, "/").body(()).unwrap(), false).unwrap();
    body.send_data("half".into(), false).unwrap();
    assert_eq!(timeout(SOON, seen.recv()).await.unwrap().unwrap(), None);
    body.send_reset(Reason::CANCEL);
    assert_eq!(timeout(SOON, seen.recv()).await.unwrap().unwrap(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn an_early_answer_is_whole_and_the_upload_ends_without_an_error() {
    let world = World::new().await;
    let app = by_frames(|request, mut respond, _| async move {
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut body = respond.send_response(head, false).unwrap();
        let status = [("grpc-status".parse().unwrap(), "8".parse().unwrap())];
        body.send_trailers(HeaderMap::from_iter(status)).unwrap();
        drop(request);
    })
    .await;
    world.place(8080, &app);
    let mut client = world.frames().await;
    let (response, mut body) = client.send_request(grpc(&world, "/").body(()).unwrap(), false).unwrap();
    body.send_data("half".into(), false).unwrap();
    let mut answer = timeout(SOON, response).await.unwrap().unwrap().into_body();
    assert!(answer.data().await.is_none());
    assert_eq!(answer.trailers().await.unwrap().unwrap()["grpc-status"], "8");
    let reset = timeout(SOON, poll_fn(|cx| body.poll_reset(cx))).await.unwrap().unwrap();
    assert_eq!(reset, Reason::NO_ERROR);
}

#[tokio::test]
async fn a_request_that_the_app_did_not_look_at_is_sent_again() {
    let world = World::new().await;
    let app = by_frames(|_, mut respond, number| async move {
        if number == 1 {
            respond.send_reset(Reason::REFUSED_STREAM);
        } else {
            respond.send_response(Response::new(()), true).unwrap();
        }
    })
    .await;
    world.place(8080, &app);
    let mut client = world.client2().await;
    for _ in 0..2 {
        // Even of a method that may not be repeated.
        let request = world.request2("POST", "/").header("x-aws-proxy-force-h2", "true").body(empty()).unwrap();
        assert_eq!(client.send_request(request).await.unwrap().status(), 200);
    }
    assert_eq!((app.requests(), world.dials()), (3, 2));
}

#[tokio::test]
async fn unused_connections_are_closed_and_used_ones_are_not() {
    let world = World::with(|limits| limits.upstream_idle = Duration::from_millis(100)).await;
    let app = App::http2(100, |request| async move { Response::new(request.into_body().boxed()) }).await;
    world.place(8080, &app);
    let client = world.client2().await;
    let ask = |body| {
        let request = world.request2("POST", "/").header("x-aws-proxy-force-h2", "true").body(body).unwrap();
        client.clone().send_request(request)
    };
    let (sender, body) = channel();
    let mut answer = ask(body).await.unwrap().into_body();
    // Longer than the limit and the time between two looks.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(text(ask(full("x")).await.unwrap()).await, "x");
    assert_eq!(world.dials(), 1);
    sender.send(Frame::data("still there".into())).await.unwrap();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "still there");
    drop((sender, answer));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(text(ask(full("x")).await.unwrap()).await, "x");
    assert_eq!(world.dials(), 2);
}
