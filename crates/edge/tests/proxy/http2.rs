//! HTTP/2 with clients, HTTP/1.1 to the app.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{join_all, poll_fn};
use h2::Reason;
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Mutex, Notify, mpsc},
    time::timeout,
};

use crate::{
    frames::{GOAWAY, RST_STREAM, frame, frames, headers_frame},
    servers::{App, read_head},
    support::{World, channel, counted, empty, full, text, until},
};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_client_chooses_the_protocol_and_http2_comes_first() {
    let world = World::new().await;
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let tls = world.tls_with(&world.host(), offered).await;
        let alpn = tls.get_ref().1.alpn_protocol().map(|name| std::str::from_utf8(name).unwrap());
        assert_eq!(alpn, chosen, "{offered:?}");
    }
}

#[tokio::test]
async fn the_app_sees_a_request_of_its_own_version() {
    let world = World::new().await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let request = world
        .request2("POST", "/a?b=c")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("expect", "100-continue");
    let response = world.client2().await.send_request(request.body(counted(1, Arc::default())).unwrap()).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    let id = response.headers()["x-amzn-requestid"].to_str().unwrap().to_owned();
    let mut seen: Vec<String> = text(response).await.lines().map(str::to_owned).collect();
    seen[1..].sort();
    let host = format!("host: {}", world.host());
    let id = format!("x-amzn-requestid: {id}");
    assert_eq!(seen, ["POST /a?b=c", "cookie: a=1; b=2", &host, "te: trailers", "transfer-encoding: chunked", &id]);
}

#[tokio::test]
async fn a_hundred_requests_share_a_connection_and_trailers_arrive() {
    let world = World::new().await;
    let app = App::echo().await;
    world.place(8080, &app);
    let client = world.client2().await;
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
    let answers = (0..100).map(|number: usize| {
        let (mut client, trailers) = (client.clone(), trailers.clone());
        let (sender, body) = channel();
        let request = world.request2("POST", "/").header("te", "trailers").header("trailer", "x-sum");
        let request = request.body(body).unwrap();
        async move {
            let mut answer = client.send_request(request).await.unwrap().into_body();
            sender.send(Frame::data(number.to_string().into())).await.unwrap();
            assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), number.to_string());
            sender.send(Frame::trailers(trailers.clone())).await.unwrap();
            assert_eq!(answer.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers);
            assert!(answer.frame().await.is_none());
        }
    });
    join_all(answers).await;
    assert_eq!(app.requests(), 100);
}

#[tokio::test]
async fn refusals_are_those_of_http1() {
    let world = World::new().await;
    let mut client = world.client2().await;
    let mut ask = async |request: http::request::Builder| {
        let response = client.send_request(request.body(empty()).unwrap()).await.unwrap();
        (response.status().as_u16(), text(response).await)
    };
    let none = http::Request::get(format!("https://{}/", world.host()));
    assert_eq!(ask(none).await, (403, "Request missing authentication".into()));
    let port = world.request2("GET", "/").header("x-aws-proxy-port", "9000");
    assert_eq!(ask(port).await, (403, "Access to port denied".into()));
    assert_eq!(ask(world.request2("GET", "/").header("x-aws-proxy-port", "x")).await, (400, String::new()));
    assert_eq!(ask(world.request2("GET", "/").header("host", "elsewhere.test")).await, (400, String::new()));
    let misdirected = http::Request::get("https://elsewhere.test/").header("x-aws-proxy-auth", world.token());
    assert_eq!(ask(misdirected).await, (421, String::new()));
    assert_eq!(ask(world.request2("GET", "/").header("x-large", "x".repeat(80 << 10))).await.0, 431);
    let mut many = world.request2("GET", "/");
    for number in 0..120 {
        many = many.header(format!("x-{number}"), "1");
    }
    assert_eq!(ask(many).await.0, 431);
    assert_eq!(world.wakes(), 0);
    assert_eq!(ask(world.request2("GET", "/")).await, (502, String::new()));
}

#[tokio::test]
async fn an_upload_has_a_megabyte_on_its_way_and_a_reader_that_pauses_makes_it_pause() {
    let world = World::new().await;
    let go = Arc::new(Notify::new());
    let waits = Arc::clone(&go);
    let app = App::http(move |request| {
        let go = Arc::clone(&waits);
        async move {
            go.notified().await;
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
    let mut client = world.frames().await;
    let (response, mut body) = client.send_request(world.request2("POST", "/").body(()).unwrap(), false).unwrap();
    body.reserve_capacity(8 << 20);
    timeout(SOON, async {
        while body.capacity() < 1 << 20 {
            poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
        }
    })
    .await
    .expect("a window of a megabyte");

    // What the kernel takes for the app is some megabytes; 256 it is not.
    let sent = Arc::new(AtomicUsize::new(0));
    let sending = tokio::spawn({
        let sent = Arc::clone(&sent);
        async move {
            let piece = Bytes::from(vec![b'x'; 64 << 10]);
            for number in 1..=4096 {
                body.reserve_capacity(piece.len());
                while body.capacity() < piece.len() {
                    poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
                }
                body.send_data(piece.clone(), number == 4096).unwrap();
                sent.store(number, Ordering::SeqCst);
            }
        }
    });
    let mut before = usize::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!((16..512).contains(&before), "{before}");
    go.notify_one();
    let mut response = response.await.unwrap();
    assert_eq!(response.body_mut().data().await.unwrap().unwrap(), (256 << 20).to_string());
    sending.await.unwrap();
}

#[tokio::test]
async fn a_large_upload_that_is_refused_is_told_to_stop_without_an_error() {
    let world = World::new().await;
    let mut client = world.frames().await;
    let request = http::Request::post(format!("https://{}/", world.host())).body(()).unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    let mut response = response.await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "Request missing authentication");
    let reset = timeout(SOON, poll_fn(|cx| body.poll_reset(cx))).await.unwrap().unwrap();
    assert_eq!(reset, Reason::NO_ERROR);
}

/// What an app was sent on each of its connections, once the connection has ended.
async fn recorder() -> (App, mpsc::UnboundedReceiver<String>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let app = App::raw(move |mut socket, _| {
        let sender = sender.clone();
        async move {
            let mut seen = Vec::new();
            while socket.read_buf(&mut seen).await.is_ok_and(|length| length > 0) {}
            sender.send(String::from_utf8(seen).unwrap()).unwrap();
        }
    })
    .await;
    (app, receiver)
}

#[tokio::test]
async fn a_request_that_is_taken_back_never_looks_whole_to_the_app() {
    let world = World::new().await;
    let (app, mut seen) = recorder().await;
    world.place(8080, &app);
    // Whatever the reason is called: one of them is "no error".
    for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        let mut client = world.frames().await;
        let (_response, mut body) = client.send_request(world.request2("POST", "/").body(()).unwrap(), false).unwrap();
        body.send_data("half".into(), false).unwrap();
        // Not before the bytes are on their way to the app.
        tokio::time::sleep(Duration::from_millis(100)).await;
        body.send_reset(reason);
        let seen = timeout(SOON, seen.recv()).await.expect("the app's connection ends").unwrap();
        assert!(seen.starts_with("POST / HTTP/1.1\r\n") && seen.ends_with("4\r\nhalf\r\n"), "{reason:?}: {seen}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_resets_the_stream_and_no_other() {
    let world = World::new().await;
    let (end, ends) = mpsc::channel::<()>(1);
    let ends = Arc::new(Mutex::new(ends));
    let app = App::raw(move |mut socket, _| {
        let ends = Arc::clone(&ends);
        async move {
            let head = read_head(&mut socket).await;
            socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
            if head.starts_with(b"GET /whole") {
                ends.lock().await.recv().await;
                socket.write_all(b"0\r\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    world.place(8080, &app);
    let mut client = world.client2().await;
    let whole = client.send_request(world.request2("GET", "/whole").body(empty()).unwrap()).await.unwrap();
    let broken = client.send_request(world.request2("GET", "/broken").body(empty()).unwrap()).await.unwrap();
    assert_eq!((whole.status().as_u16(), broken.status().as_u16()), (200, 200));
    assert!(broken.into_body().collect().await.is_err());
    end.send(()).await.unwrap();
    assert_eq!(text(whole).await, "abc");
}

#[tokio::test]
async fn a_flood_of_requests_taken_back_ends_the_connection() {
    let world = World::with(|limits| limits.h2_resets_unseen = 4).await;
    let mut tls = world.frames_by_hand().await;
    let mut flood = Vec::new();
    for stream in (1..200).step_by(2) {
        flood.extend(headers_frame(stream, true, &[(":method", "GET"), (":scheme", "https"), (":path", "/")]));
        flood.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    // In one go: they are taken back before the edge has looked at them.
    tls.write_all(&flood).await.unwrap();
    let mut answer = Vec::new();
    // It may be a reset, once there is nobody to read the flood.
    let _ = timeout(SOON, tls.read_to_end(&mut answer)).await.expect("an end");
    let goodbye = frames(&answer).into_iter().find(|(kind, ..)| *kind == GOAWAY).expect("a reason");
    assert_eq!(goodbye.2[4..8], 11u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
    assert_eq!(world.wakes(), 0);
    // Others are served as before.
    let response = world
        .client2()
        .await
        .send_request(world.request2("GET", "/").header("x-aws-proxy-port", "9").body(empty()).unwrap());
    assert_eq!(response.await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_connection_without_requests_ends_and_one_with_a_request_does_not() {
    let world = World::with(|limits| {
        limits.request_head = Duration::from_millis(300);
        limits.client_idle = Duration::from_millis(300);
    })
    .await;
    let app = App::http(|_| async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        Response::new(full("at last"))
    })
    .await;
    world.place(8080, &app);
    let unused = world.client2().await;
    let mut mute = world.tls_with(&world.host(), &["h2"]).await;
    let mut used = world.client2().await;
    let response = used.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap();
    assert_eq!(text(response).await, "at last");
    until("the end of the unused connection", || unused.is_closed()).await;
    until("the end of the used connection", || used.is_closed()).await;
    let mut rest = Vec::new();
    assert!(timeout(SOON, mute.read_to_end(&mut rest)).await.is_ok());
}

#[tokio::test]
async fn a_request_that_begins_as_its_connection_ends_keeps_nothing() {
    let world = World::new().await;
    let host = world.host();
    let request = |method| vec![(":method", method), (":authority", host.as_str())];
    let get = [request("GET"), vec![(":scheme", "https"), (":path", "/")]].concat();
    // The library ends a connection for this within the step that begins the request before it.
    let connect = [request("CONNECT"), vec![("content-length", "5")]].concat();
    let mut tls = world.frames_by_hand().await;
    tls.write_all(&[headers_frame(1, true, &get), headers_frame(3, false, &connect)].concat()).await.unwrap();
    let mut said = Vec::new();
    // It may be a reset.
    let _ = timeout(SOON, tls.read_to_end(&mut said)).await.expect("an end");
    until("the place", || world.metric("connections") == 0).await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let world = World::with(|limits| limits.connections = 1).await;
    let app = App::mirror().await;
    world.place(8080, &app);
    let mut first = world.client2().await;
    let response = first.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut second = world.client2().await;
    let refused = second.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    until("the end of the connection", || second.is_closed()).await;
}

#[tokio::test]
async fn requests_in_flight_finish_when_the_edge_shuts_down() {
    let mut world = World::new().await;
    let release = Arc::new(Notify::new());
    let waits = Arc::clone(&release);
    let app = App::http(move |_| {
        let release = Arc::clone(&waits);
        async move {
            release.notified().await;
            Response::new(full("done"))
        }
    })
    .await;
    world.place(8080, &app);
    let idle = world.client2().await;
    let mut client = world.client2().await;
    let request = world.request2("GET", "/").body(empty()).unwrap();
    let answer = tokio::spawn(async move { text(client.send_request(request).await.unwrap()).await });
    until("the request in flight", || app.requests() == 1).await;
    world.shutdown.cancel();
    until("the end of the idle connection", || idle.is_closed()).await;
    release.notify_one();
    assert_eq!(answer.await.unwrap(), "done");
    assert_eq!(world.serving.take().unwrap().await.unwrap(), edge::Drained { cut: 0 });
}
