//! What one microVM may take of the edge, each limit at its edge.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use edge::PerMicrovm;
use http::Response;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    servers::{App, switch_protocols},
    support::{World, counted, empty, full, text, until},
    upgrades::{echo_after_upgrade, upgrade_request},
};

async fn world(per_microvm: PerMicrovm) -> (World, App) {
    let world = World::with(|limits| limits.per_microvm = per_microvm).await;
    let app = App::mirror().await;
    world.place(8080, &app);
    (world, app)
}

fn connections(connections: u32) -> PerMicrovm {
    PerMicrovm { connections, ..PerMicrovm::unlimited() }
}

#[tokio::test]
async fn so_many_connections_and_one_more_is_told() {
    let (world, app) = world(connections(2)).await;
    // Who has no token takes no place.
    let mut strangers = Vec::new();
    for _ in 0..3 {
        let mut client = world.client().await;
        let request = http::Request::get("/").header("host", world.host()).body(empty()).unwrap();
        assert_eq!(client.send_request(request).await.unwrap().status(), 403);
        strangers.push(client);
    }
    let mut first = world.client().await;
    let mut second = world.client2().await;
    for _ in 0..3 {
        first.ready().await.unwrap();
        let answer = first.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        text(answer).await;
        let answer = second.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200, "many requests, one connection");
    }
    let mut third = world.client().await;
    let refused = third.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(text(refused).await, "");
    assert_eq!(app.requests(), 6);
    // The connection is good still, and has a place as soon as there is one.
    drop(second);
    let mut status = 429;
    while status == 429 {
        third.ready().await.unwrap();
        let answer = third.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap();
        status = answer.status().as_u16();
        text(answer).await;
    }
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_web_socket_has_its_place_until_it_ends() {
    let world = World::with(|limits| limits.per_microvm = connections(1)).await;
    let app = App::http(echo_after_upgrade).await;
    world.place(8080, &app);
    let response = world.send(upgrade_request(&world)).await;
    let socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    assert_eq!(world.send(upgrade_request(&world)).await.status(), 429);
    drop(socket);
    let mut status = 429;
    while status == 429 {
        status = world.send(upgrade_request(&world)).await.status().as_u16();
    }
    assert_eq!(status, 101);
}

#[tokio::test]
async fn connections_may_go_by_the_size() {
    // The world's microVM has four vCPUs.
    let (world, _app) = world(PerMicrovm { connections_per_vcpu: 1, ..PerMicrovm::unlimited() }).await;
    let mut clients = Vec::new();
    for number in 0..5 {
        let mut client = world.client().await;
        let answer = client.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), if number < 4 { 200 } else { 429 }, "{number}");
        clients.push((client, answer));
    }
}

#[tokio::test]
async fn so_many_requests_a_second_and_one_more_is_told_when_to_come_again() {
    let (world, app) = world(PerMicrovm { requests_per_second: 8, ..PerMicrovm::unlimited() }).await;
    let mut client = world.client2().await;
    // Who has no token uses nothing up.
    for _ in 0..20 {
        let stranger = http::Request::get(format!("https://{}/", world.host())).body(empty()).unwrap();
        assert_eq!(client.send_request(stranger).await.unwrap().status(), 403);
    }
    let mut ask = async || client.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap();
    let begin = Instant::now();
    let mut passed = 0;
    let refused = loop {
        let answer = ask().await;
        if answer.status() == 429 {
            break answer;
        }
        assert_eq!(answer.status(), 200);
        passed += 1;
    };
    // A second's worth, and what came in during the time that this took.
    let earned = (begin.elapsed().as_secs_f64() * 8.0) as usize;
    assert!((8..=8 + earned).contains(&passed), "{passed} in {:?}", begin.elapsed());
    assert_eq!(app.requests(), passed);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    assert_eq!(ask().await.status(), 200);
}

const RATE: u64 = 1_000_000;

fn a_megabyte_a_second() -> PerMicrovm {
    PerMicrovm { bytes_per_second: RATE, ..PerMicrovm::unlimited() }
}

/// How long so many bytes take, the first of them being free.
fn is_paced(begin: Instant, bytes: u64) -> bool {
    let least = Duration::from_secs_f64((bytes - RATE) as f64 / RATE as f64);
    // The last piece passes before it is paid for.
    let early = Duration::from_millis(200);
    (least.saturating_sub(early)..least + Duration::from_secs(5)).contains(&begin.elapsed())
}

#[tokio::test]
async fn a_download_is_slowed_down_and_so_is_its_app() {
    let world = World::with(|limits| limits.per_microvm = a_megabyte_a_second()).await;
    let produced = Arc::new(AtomicUsize::new(0));
    let produces = Arc::clone(&produced);
    let app = App::http(move |_| {
        let produces = Arc::clone(&produces);
        async move { Response::new(counted(1 << 14, produces)) }
    })
    .await;
    world.place(8080, &app);
    for http2 in [false, true] {
        let begin = Instant::now();
        let response = if http2 {
            // It takes up a second's worth as the other did.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            world.client2().await.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap()
        } else {
            world.get("/").await
        };
        let rested = if http2 { Duration::from_millis(1500) } else { Duration::ZERO };
        let (mut body, mut length) = (response.into_body(), 0);
        while length < 3 * RATE {
            length += body.frame().await.unwrap().unwrap().into_data().unwrap().len() as u64;
        }
        assert!(is_paced(begin + rested, length), "{length} bytes in {:?}", begin.elapsed());
    }
    // What the kernel takes is some megabytes each; a gigabyte it is not.
    assert!(produced.load(Ordering::SeqCst) < 512, "{}", produced.load(Ordering::SeqCst));
}

#[tokio::test]
async fn an_upload_and_a_web_socket_go_by_the_same_bandwidth() {
    let world = Arc::new(World::with(|limits| limits.per_microvm = a_megabyte_a_second()).await);
    let reads = App::http(|request| async move {
        let length = request.into_body().collect().await.unwrap().to_bytes().len();
        Response::new(full(length.to_string()))
    });
    let (reads, echoes) = (reads.await, App::http(echo_after_upgrade).await);
    world.place(8080, &echoes);
    world.place(8081, &reads);
    let response = world.send(upgrade_request(&world)).await;
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let begin = Instant::now();
    let upload = tokio::spawn({
        let world = Arc::clone(&world);
        async move {
            let request = world.request("POST", "/").header("x-aws-proxy-port", "8081");
            text(world.send(request.body(counted(32, Arc::default())).unwrap()).await).await
        }
    });
    // Both ways.
    let mut piece = vec![7; 16 << 10];
    for _ in 0..32 {
        socket.write_all(&piece).await.unwrap();
        socket.read_exact(&mut piece).await.unwrap();
    }
    assert_eq!(upload.await.unwrap(), (32 * (64 << 10)).to_string());
    let all = 32 * (64 << 10) + 2 * 32 * (16 << 10);
    assert!(is_paced(begin, all), "{all} bytes in {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_web_socket_goes_by_the_bandwidth_in_either_direction() {
    for down in [true, false] {
        let world = World::with(|limits| limits.per_microvm = a_megabyte_a_second()).await;
        let length = 3 * usize::try_from(RATE).unwrap();
        let (all_read, mut is_all_read) = tokio::sync::mpsc::unbounded_channel();
        let app = App::raw(move |mut socket, _| {
            let all_read = all_read.clone();
            async move {
                switch_protocols(&mut socket).await;
                let mut all = vec![7; length];
                if down {
                    socket.write_all(&all).await.unwrap();
                } else {
                    socket.read_exact(&mut all).await.unwrap();
                    // Not over the same connection, where the answer would have to wait for its turn.
                    all_read.send(()).unwrap();
                }
            }
        })
        .await;
        world.place(8080, &app);
        let response = world.send(upgrade_request(&world)).await;
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let begin = Instant::now();
        let mut all = vec![7; length];
        if down {
            socket.read_exact(&mut all).await.unwrap();
        } else {
            socket.write_all(&all).await.unwrap();
            socket.flush().await.unwrap();
            is_all_read.recv().await.unwrap();
        }
        assert!(is_paced(begin, length as u64), "down: {down}: {:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn so_many_connections_to_apps_and_unused_ones_make_room() {
    let world = Arc::new(World::with(|limits| limits.upstream_connections = 2).await);
    let app = App::http(|request| async move {
        if request.uri().path() == "/long" {
            std::future::pending::<()>().await;
        }
        Response::new(full(""))
    })
    .await;
    world.place(8080, &app);
    world.place(8081, &app);
    // Two that are kept for the next request, to two ports.
    for port in ["8080", "8081"] {
        let request = world.request("GET", "/").header("x-aws-proxy-port", port).body(empty()).unwrap();
        assert_eq!(world.send(request).await.status(), 200);
    }
    // Each is used again or makes room.
    let long = |world: Arc<World>| tokio::spawn(async move { world.get("/long").await.status() });
    let (first, second) = (long(Arc::clone(&world)), long(Arc::clone(&world)));
    until("two long requests", || app.requests() == 4).await;
    let refused = world.get("/").await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    first.abort();
    let mut status = 429;
    while status == 429 {
        status = world.get("/").await.status().as_u16();
    }
    assert_eq!(status, 200);
    second.abort();
}
