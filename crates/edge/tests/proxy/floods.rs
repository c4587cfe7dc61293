//! HTTP/2 clients that make work and send no requests to speak of. Each is stopped, and nobody else notices.

use std::time::Duration;

use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::{
    frames::{
        CONTINUATION, DATA, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, frames,
        headers_frame,
    },
    servers::App,
    support::{World, empty, full, until},
};

const SOON: Duration = Duration::from_secs(20);

/// What the edge takes of a flood before it has enough of it, and what the kernel takes on its way.
const MOST: usize = 32 << 20;

async fn world() -> (World, App) {
    let world = World::with(|limits| limits.client_stall = Duration::from_secs(2)).await;
    let app = App::http(|request| async move {
        if request.uri().path() == "/long" {
            std::future::pending::<()>().await;
        }
        Response::new(full("here"))
    })
    .await;
    world.place(8080, &app);
    (world, app)
}

/// Writes the same again and again until the edge has enough; how many bytes it took, and what it said.
async fn flood(tls: TlsStream<TcpStream>, piece: Vec<u8>, reads: bool) -> (usize, Vec<u8>) {
    let (mut from, mut to) = tokio::io::split(tls);
    let writing = tokio::spawn(async move {
        let mut written = 0;
        while written < 4 * MOST && timeout(SOON, to.write_all(&piece)).await.is_ok_and(|done| done.is_ok()) {
            written += piece.len();
        }
        written
    });
    let mut said = Vec::new();
    if reads {
        // It may be a reset, once there is nobody to read the flood.
        let _ = timeout(SOON, from.read_to_end(&mut said)).await.expect("an end");
    }
    (writing.await.unwrap(), said)
}

async fn others_are_served(world: &World) {
    let answer = world.client2().await.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
}

fn head(world: &World, stream: u32, end: bool, method: &str, path: &str) -> Vec<u8> {
    let (host, token) = (world.host(), world.token());
    let fields = [
        (":method", method),
        (":scheme", "https"),
        (":path", path),
        (":authority", &host),
        ("x-aws-proxy-auth", &token),
    ];
    headers_frame(stream, end, &fields)
}

#[tokio::test]
async fn frames_that_carry_nothing_have_an_end() {
    let (world, _app) = world().await;
    for (name, one) in [
        ("pings", frame(PING, 0, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("window updates", frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes())),
        ("empty data", frame(DATA, 0, 1, &[])),
        ("priorities", frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        ("frames of no known kind", frame(99, 0, 0, &[])),
    ] {
        let mut tls = world.frames_by_hand().await;
        tls.write_all(&head(&world, 1, false, "POST", "/long")).await.unwrap();
        let piece = one.repeat((64 << 10) / one.len());
        let (taken, _) = flood(tls, piece, true).await;
        assert!(taken < MOST, "{name}: {taken} bytes");
        others_are_served(&world).await;
    }
}

#[tokio::test]
async fn who_wants_answers_and_does_not_read_them_is_not_read_and_then_cut() {
    let (world, _app) = world().await;
    for one in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])] {
        let (taken, _) = flood(world.frames_by_hand().await, one.repeat(4096), false).await;
        assert!(taken < MOST, "{taken} bytes");
        others_are_served(&world).await;
    }
}

#[tokio::test]
async fn a_client_with_much_to_say_is_no_flood() {
    let (world, _app) = world().await;
    let echo = App::echo().await;
    world.place(8081, &echo);
    let mut client = world.client2().await;
    // Pieces of 64 KiB, and on the way back a window update for each frame or so.
    let request = world.request2("POST", "/").header("x-aws-proxy-port", "8081");
    let body = crate::support::counted(1024, std::sync::Arc::default());
    let answer = client.send_request(request.body(body).unwrap()).await.unwrap();
    let answer = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
    assert_eq!(answer.to_bytes().len(), 64 << 20);
    for _ in 0..2000 {
        let answer = client.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
}

#[tokio::test]
async fn a_head_without_an_end_has_one() {
    let (world, _app) = world().await;
    for one in [frame(CONTINUATION, 0, 1, &[]), frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'])] {
        let mut tls = world.frames_by_hand().await;
        tls.write_all(&frame(HEADERS, 0, 1, &[])).await.unwrap();
        let (taken, said) = flood(tls, one, true).await;
        assert!(taken < MOST, "{taken} bytes");
        let goodbye = frames(&said).into_iter().find(|(kind, ..)| *kind == GOAWAY).expect("a reason");
        assert_eq!(goodbye.2[4..8], 11u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
        others_are_served(&world).await;
    }
}

#[tokio::test]
async fn requests_that_are_taken_back_a_moment_later_have_an_end() {
    let (world, app) = world().await;
    let (mut from, mut to) = tokio::io::split(world.frames_by_hand().await);
    let reading = tokio::spawn(async move {
        let mut said = Vec::new();
        let _ = from.read_to_end(&mut said).await;
    });
    let mut sent = 0;
    for stream in (1..).step_by(2) {
        if sent == 3000 || to.write_all(&head(&world, stream, true, "GET", "/long")).await.is_err() {
            break;
        }
        sent += 1;
        // Each was looked at, and is on its way to the app.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        while app.requests() < sent && tokio::time::Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        let _ = to.write_all(&frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())).await;
    }
    timeout(SOON, reading).await.expect("an end").unwrap();
    // The limit, and those that were on their way when it was passed.
    assert!((500..=520).contains(&app.requests()), "{}", app.requests());
    others_are_served(&world).await;
}

#[tokio::test]
async fn who_takes_back_some_of_many_requests_is_served_on() {
    let (world, app) = world().await;
    let mut client = world.frames().await;
    for number in 0..1400 {
        let path = if number % 2 == 0 { "/" } else { "/long" };
        client = client.ready().await.unwrap();
        let (answer, mut body) = client.send_request(world.request2("GET", path).body(()).unwrap(), true).unwrap();
        if number % 2 == 0 {
            assert_eq!(answer.await.unwrap().status(), 200);
        } else {
            until("the request", || app.requests() == number + 1).await;
            body.send_reset(h2::Reason::CANCEL);
        }
    }
    assert_eq!(app.requests(), 1400);
}
