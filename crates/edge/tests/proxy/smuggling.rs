//! Requests that two readers might take for different ones. Each is refused, or reaches the app as one that nobody can
//! read in two ways.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

use crate::{
    frames::{DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, frame, frames, headers_frame},
    servers::App,
    support::{World, empty},
};

const SOON: Duration = Duration::from_secs(10);

/// Tells what each connection brought, as it came; answers once nothing more does.
async fn recorder() -> (App, mpsc::UnboundedReceiver<String>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let app = App::raw(move |mut socket, _| {
        let sender = sender.clone();
        async move {
            let mut seen = Vec::new();
            while let Ok(Ok(1..)) = timeout(Duration::from_millis(200), socket.read_buf(&mut seen)).await {}
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            if !seen.is_empty() {
                sender.send(String::from_utf8_lossy(&seen).into_owned()).unwrap();
            }
        }
    })
    .await;
    (app, receiver)
}

/// A world whose app is known to be in the clear.
async fn world() -> (World, App, mpsc::UnboundedReceiver<String>) {
    let world = World::new().await;
    let (app, mut seen) = recorder().await;
    world.place(8080, &app);
    assert_eq!(world.send(world.request("GET", "/").body(empty()).unwrap()).await.status(), 200);
    seen.recv().await.unwrap();
    (world, app, seen)
}

enum Outcome {
    /// By the edge, and the app hears nothing.
    Refused,
    /// The app sees this framing, and this body and nothing after it.
    Forwarded(&'static str, &'static str),
    /// The app sees a part that says of itself that it is one.
    BrokenOff,
}
use Outcome::{BrokenOff, Forwarded, Refused};

const CHUNKED: &str = "transfer-encoding: chunked";
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn http1() {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let cases: Vec<(String, Outcome)> = vec![
        // Two lengths.
        (
            format!("Content-Length: 30\r\n{chunked}\r\n3\r\nabc\r\n0\r\n\r\n"),
            Forwarded(CHUNKED, "3\r\nabc\r\n0\r\n\r\n"),
        ),
        (format!("Content-Length: 4\r\n{chunked}\r\n0\r\n\r\n{SMUGGLED}"), Forwarded(CHUNKED, "0\r\n\r\n")),
        ("Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".into(), Refused),
        ("Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc".into(), Forwarded("content-length: 3", "abc")),
        ("Content-Length: 3, 3\r\n\r\nabc".into(), Refused),
        ("Content-Length: 3, 4\r\n\r\nabc".into(), Refused),
        // Lengths that are none.
        ("Content-Length: +3\r\n\r\nabc".into(), Refused),
        ("Content-Length: -1\r\n\r\n".into(), Refused),
        ("Content-Length: 0x3\r\n\r\nabc".into(), Refused),
        ("Content-Length: 3a\r\n\r\nabc".into(), Refused),
        ("Content-Length: 99999999999999999999\r\n\r\nabc".into(), Refused),
        ("Content-Length:\r\n\r\nabc".into(), Refused),
        // Codings.
        ("Transfer-Encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(), Refused),
        ("Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc".into(), Refused),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(), Refused),
        ("Transfer-Encoding: chunked, identity\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(), Refused),
        (format!("{chunked}{chunked}\r\n3\r\nabc\r\n0\r\n\r\n"), Refused),
        ("Transfer-Encoding: \"chunked\"\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(), Refused),
        ("Transfer-Encoding:\x0bchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(), Refused),
        ("Transfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(), Forwarded(CHUNKED, "3\r\nabc\r\n0\r\n\r\n")),
        // Lines.
        ("Transfer-Encoding : chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(), Refused),
        (" Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(), Refused),
        ("X: a\r\n Content-Length: 3\r\n\r\nabc".into(), Refused),
        ("Transfer-Encoding:\r\n chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(), Refused),
        ("X: a\rContent-Length: 3\r\n\r\nabc".into(), Refused),
        ("X: a\0b\r\n\r\n".into(), Refused),
        ("X\0Y: a\r\n\r\n".into(), Refused),
        ("Content-Length\r\n\r\n".into(), Refused),
        (": 3\r\n\r\nabc".into(), Refused),
        ("Content-Length: 3\nX: a\n\nabc".into(), Forwarded("content-length: 3", "abc")),
        // Chunks.
        (format!("{chunked}\r\n3;a=b\r\nabc\r\n0\r\n\r\n"), Forwarded(CHUNKED, "3\r\nabc\r\n0\r\n\r\n")),
        (format!("{chunked}\r\n03\r\nabc\r\n0\r\n\r\n"), Forwarded(CHUNKED, "3\r\nabc\r\n0\r\n\r\n")),
        (format!("{chunked}\r\n3;a\nb\r\nabc\r\n0\r\n\r\n"), BrokenOff),
        (format!("{chunked}\r\n0x3\r\nabc\r\n0\r\n\r\n"), BrokenOff),
        (format!("{chunked}\r\n+3\r\nabc\r\n0\r\n\r\n"), BrokenOff),
        (format!("{chunked}\r\n\r\nabc\r\n0\r\n\r\n"), BrokenOff),
        (format!("{chunked}\r\n3\r\nabcd\r\n0\r\n\r\n"), BrokenOff),
        (format!("{chunked}\r\n3\nabc\r\n0\r\n\r\n"), BrokenOff),
        (format!("{chunked}\r\n10000000000000003\r\nabc\r\n0\r\n\r\n"), BrokenOff),
        // What looks like a request is a body where a length says so.
        (format!("Content-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len()), Forwarded("content-length: 35", SMUGGLED)),
        // Fields that others are told to drop.
        ("Content-Length: 3\r\nConnection: Content-Length\r\n\r\nabc".into(), Forwarded("content-length: 3", "abc")),
        (
            format!("{chunked}Connection: Transfer-Encoding\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            Forwarded(CHUNKED, "3\r\nabc\r\n0\r\n\r\n"),
        ),
        (
            format!("Content-Length: 4\r\n{chunked}Connection: Transfer-Encoding\r\n\r\n0\r\n\r\n{SMUGGLED}"),
            Forwarded(CHUNKED, "0\r\n\r\n"),
        ),
        // Hosts.
        ("Host: elsewhere.test\r\n\r\n".into(), Refused),
    ];
    let (world, _app, mut seen) = world().await;
    for (rest, outcome) in cases {
        let mut tls = world.tls(&world.host()).await;
        let head = format!("POST /only HTTP/1.1\r\nHost: {}\r\nX-Aws-Proxy-Auth: {}\r\n", world.host(), world.token());
        tls.write_all(format!("{head}{rest}").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let answered = timeout(SOON, tls.read_exact(&mut answer)).await.expect("an answer or an end").is_ok();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match outcome {
            Refused => {
                assert_eq!(answer, "HTTP/1.1 400", "{rest:?}");
                assert!(seen.try_recv().is_err(), "{rest:?}");
            }
            Forwarded(framing, body) => {
                assert_eq!(answer, "HTTP/1.1 200", "{rest:?}");
                let seen = timeout(SOON, seen.recv()).await.unwrap().unwrap();
                assert!(seen.starts_with("POST /only HTTP/1.1\r\n"), "{rest:?}: {seen}");
                let (head, rest_seen) = seen.split_once("\r\n\r\n").unwrap();
                let framings = head.lines().filter(|line| {
                    let line = line.to_ascii_lowercase();
                    line.starts_with("content-length") || line.starts_with("transfer-encoding")
                });
                assert_eq!(framings.collect::<Vec<_>>(), [framing], "{rest:?}");
                assert_eq!(rest_seen, body, "{rest:?}");
            }
            BrokenOff => {
                assert!(!answered || answer != "HTTP/1.1 200", "{rest:?}: {answer}");
                if let Ok(Some(seen)) = timeout(Duration::from_millis(500), seen.recv()).await {
                    assert!(seen.contains(CHUNKED) && !seen.ends_with("0\r\n\r\n"), "{rest:?}: {seen}");
                }
            }
        }
        // What came after the request, if anything, had no token.
        drop(tls);
    }
}

#[tokio::test]
async fn http2() {
    let (world, _app, mut seen) = world().await;
    let (host, token) = (world.host(), world.token());
    let usual: Vec<(&str, &str)> = vec![
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/only"),
        (":authority", &host),
        ("x-aws-proxy-auth", &token),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&usual[..], more].concat();
    let instead = |name: &str, value: &'static str| {
        usual.iter().map(|&(old, was)| if old == name { (old, value) } else { (old, was) }).collect::<Vec<_>>()
    };
    let mut cases = vec![
        with(&[("connection", "close")]),
        with(&[("connection", "x-hop")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "websocket")]),
        with(&[("keep-alive", "1")]),
        with(&[("proxy-connection", "close")]),
        with(&[("te", "gzip")]),
        with(&[("X-Upper", "1")]),
        with(&[("x y", "1")]),
        with(&[("x\r\ny", "1")]),
        with(&[("x:", "1")]),
        with(&[("", "1")]),
        with(&[("x", "1\r\ny: 2")]),
        with(&[("x", "1\ny: 2")]),
        with(&[("x", "1\0")]),
        with(&[("host", "elsewhere.test")]),
        with(&[("content-length", "3"), ("content-length", "4")]),
        with(&[("content-length", "x")]),
        with(&[(":path", "/again")]),
        with(&[(":unknown", "1")]),
        with(&[(":status", "200")]),
        instead(":path", "/ HTTP/1.1\r\nhost: x\r\n\r\nGET /smuggled"),
        instead(":path", "/a b"),
        instead(":path", "/\ttab"),
        instead(":path", ""),
        instead(":path", "only"),
        instead(":method", "GET / HTTP/1.1\r\nx:"),
        instead(":method", ""),
        instead(":method", "CONNECT"),
        instead(":authority", "user@elsewhere.test"),
        instead(":authority", "elsewhere.test/path"),
        instead(":authority", "a b"),
        instead(":authority", ""),
        usual[..3].to_vec(),
    ];
    // A field of the head after another's.
    let mut late = usual.clone();
    late.rotate_left(1);
    cases.push(late);
    for fields in cases {
        let mut tls = world.frames_by_hand().await;
        tls.write_all(&headers_frame(1, true, &fields)).await.unwrap();
        let shown: Vec<_> = fields.iter().filter(|(name, _)| *name != "x-aws-proxy-auth").collect();
        assert!(is_refused(&mut tls).await, "{shown:?}");
        assert!(seen.try_recv().is_err(), "{shown:?}");
    }
    // Lengths that are not those of the data.
    for (length, data) in [("3", "abcde"), ("3", "a"), ("0", "a"), ("3", "")] {
        let mut tls = world.frames_by_hand().await;
        let fields = [&usual[..], &[("content-length", length)]].concat();
        let request = [headers_frame(1, false, &fields), frame(DATA, END_STREAM, 1, data.as_bytes())].concat();
        tls.write_all(&request).await.unwrap();
        assert!(is_refused(&mut tls).await, "{length} {data}");
        if let Ok(Some(seen)) = timeout(Duration::from_millis(500), seen.recv()).await {
            let (head, body) = seen.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {length}\r\n")), "{seen}");
            assert!(body.len() < length.parse().unwrap(), "{length} {data}: {seen}");
        }
    }
}

/// Not the answer of the app: the edge's own, or a reset of the stream or of the connection.
async fn is_refused(tls: &mut (impl AsyncReadExt + Unpin)) -> bool {
    let mut answer = Vec::new();
    loop {
        for (kind, stream, payload) in frames(&answer) {
            match kind {
                RST_STREAM if stream == 1 => return true,
                GOAWAY => return payload[4..8] != [0; 4],
                // The table of HPACK has a status of 200 at 8, which is all that the app answers.
                HEADERS => return payload[0] != 0x80 | 8,
                _ => {}
            }
        }
        match timeout(SOON, tls.read_buf(&mut answer)).await.expect("an answer") {
            Ok(0) | Err(_) => return true,
            Ok(_) => {}
        }
    }
}
