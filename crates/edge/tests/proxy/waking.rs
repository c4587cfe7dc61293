//! Waking, VMs that come and go, and kept connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use api::ids::VmId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    servers::{App, read_head},
    support::{World, empty, full, text, until},
};

#[tokio::test]
async fn fifty_requests_wait_for_one_wake() {
    let world = Arc::new(World::new().await);
    let app = App::mirror().await;
    world.place(8080, &app);
    let vm = world.vm();
    world.directory.state.send_replace(None);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let world = Arc::clone(&world);
        waiting.spawn(async move { world.get("/").await.status().as_u16() });
    }
    until("fifty waiting requests", || world.wakes() == 50).await;
    assert_eq!(world.dials(), 0);
    world.directory.state.send_replace(Some(Ok(vm)));
    assert!(waiting.join_all().await.iter().all(|status| *status == 200));
    assert_eq!((world.wakes(), app.requests()), (50, 50));
}

#[tokio::test]
async fn too_many_waiting_and_too_slow_a_wake_are_told() {
    let world = Arc::new(
        World::with(|limits| {
            limits.waiting_per_microvm = 1;
            limits.wake = Duration::from_secs(2);
        })
        .await,
    );
    world.directory.state.send_replace(None);
    let first = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get("/").await.status().as_u16() }
    });
    until("a waiting request", || world.wakes() == 1).await;
    let second = world.get("/").await;
    assert_eq!(second.status(), 429);
    assert_eq!(second.headers()["retry-after"], "1");
    assert_eq!(first.await.unwrap(), 502);
}

#[tokio::test]
async fn an_app_that_listens_a_moment_after_its_wake_is_waited_for() {
    let world = Arc::new(World::new().await);
    let app = App::mirror().await;
    let vm = world.vm();
    world.directory.state.send_replace(None);
    let answer = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get("/").await.status().as_u16() }
    });
    until("a waiting request", || world.wakes() == 1).await;
    world.directory.state.send_replace(Some(Ok(vm)));
    until("a few attempts", || world.dials() > 3).await;
    world.place(8080, &app);
    assert_eq!(answer.await.unwrap(), 200);
    // One that was not woken has had its time.
    let dials = world.dials();
    let elsewhere = world.request("GET", "/").header("x-aws-proxy-port", "8081").body(empty()).unwrap();
    assert_eq!(world.send(elsewhere).await.status(), 502);
    assert_eq!(world.dials(), dials + 1);
}

#[tokio::test]
async fn a_guest_that_is_slow_after_its_wake_is_waited_for_until_the_deadline() {
    let world = Arc::new(World::with(|limits| limits.wake = Duration::from_secs(2)).await);
    let app = App::mirror().await;
    let vm = world.vm();
    world.place(8080, &app);
    world.ground.lost.store(usize::MAX, Ordering::SeqCst);
    // One that was not woken is not waited for.
    assert_eq!((world.get("/").await.status().as_u16(), world.dials()), (502, 1));
    for (lost, status) in [(usize::MAX, 502), (3, 200)] {
        world.ground.lost.store(lost, Ordering::SeqCst);
        world.directory.state.send_replace(None);
        let (wakes, dials) = (world.wakes(), world.dials());
        let answer = tokio::spawn({
            let world = Arc::clone(&world);
            async move { world.get("/").await.status().as_u16() }
        });
        until("a waiting request", || world.wakes() > wakes).await;
        world.directory.state.send_replace(Some(Ok(vm)));
        assert_eq!(answer.await.unwrap(), status);
        assert!(world.dials() > dials + 3, "{} tries", world.dials() - dials);
    }
}

#[tokio::test]
async fn a_vm_that_is_gone_is_asked_for_again() {
    let world = World::new().await;
    let app = App::mirror().await;
    let new = VmId::random();
    world.ground.apps.lock().unwrap().insert((new, 8080), app.address);
    *world.ground.vms.lock().unwrap() = vec![new];
    // The directory learns of it only after the second attempt.
    let attempts = AtomicUsize::new(0);
    let state = world.directory.state.clone();
    *world.ground.on_gone.lock().unwrap() = Some(Box::new(move || {
        if attempts.fetch_add(1, Ordering::SeqCst) == 1 {
            state.send_replace(Some(Ok(new)));
        }
    }));
    assert_eq!(world.get("/").await.status(), 200);
    assert_eq!((world.wakes(), world.dials()), (3, 3));
}

#[tokio::test]
async fn a_vm_that_stays_gone_is_a_502_in_the_end() {
    let world = World::with(|limits| limits.attempts_after_gone = 2).await;
    world.ground.vms.lock().unwrap().clear();
    assert_eq!(world.get("/").await.status(), 502);
    assert_eq!(world.dials(), 3);
}

#[tokio::test]
async fn connections_are_kept_per_vm_and_never_cross_to_the_next() {
    let world = World::new().await;
    let (before, after) = (App::mirror().await, App::mirror().await);
    world.place(8080, &before);
    let mut client = world.client().await;
    for _ in 0..5 {
        client.ready().await.unwrap();
        let response = client.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap();
        text(response).await;
    }
    let dials = world.dials();
    assert!(dials < 5, "connections are used again: {dials}");
    world.another_vm();
    world.place(8080, &after);
    client.ready().await.unwrap();
    let response = client.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!((world.dials(), before.requests(), after.requests()), (dials + 1, 5, 1));
}

/// Answers the first request of each connection; at the second, hangs up without a word.
async fn hang_up_at_the_second(mut socket: TcpStream, requests: Arc<AtomicUsize>) {
    for number in 0..2 {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\r\n\r\nbody") {
            if socket.read_buf(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        requests.fetch_add(1, Ordering::SeqCst);
        if number == 0 {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_kept_connection_that_turns_out_dead_is_replaced_once_if_that_is_safe() {
    let world = World::new().await;
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let app = App::raw(move |socket, _| hang_up_at_the_second(socket, Arc::clone(&counted))).await;
    world.place(8080, &app);
    let (wakes, before) = (world.wakes(), requests.load(Ordering::SeqCst));
    assert_eq!(text(world.get("/").await).await, "ok");
    assert_eq!((world.dials(), world.wakes() - wakes, requests.load(Ordering::SeqCst) - before), (1, 1, 1));
    // Whether the connection is back in the pool by now is a race; that every answer is right is not.
    for _ in 0..20 {
        assert_eq!(text(world.get("/").await).await, "ok");
    }
    assert!(requests.load(Ordering::SeqCst) > 21, "some connections were dead and their requests repeated");

    // A POST may have been carried out before the app hung up. It is never repeated.
    let mut failures = 0;
    for _ in 0..20 {
        text(world.get("/").await).await;
        let before = requests.load(Ordering::SeqCst);
        let response = world.send(world.request("POST", "/").body(full("body")).unwrap()).await;
        if response.status() == 502 {
            failures += 1;
        }
        assert_eq!(requests.load(Ordering::SeqCst), before + 1);
    }
    assert!(failures > 0, "none met a dead connection");
}

#[tokio::test]
async fn unused_connections_are_closed() {
    let world = World::with(|limits| limits.upstream_idle = Duration::from_millis(100)).await;
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let app = App::raw(move |mut socket, _| {
        let open = Arc::clone(&counted);
        async move {
            open.fetch_add(1, Ordering::SeqCst);
            let mut head = read_head(&mut socket).await;
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            while socket.read_buf(&mut head).await.is_ok_and(|length| length > 0) {}
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    world.place(8080, &app);
    assert_eq!(text(world.get("/").await).await, "ok");
    assert_eq!(open.load(Ordering::SeqCst), 1);
    until("the closing of the unused connection", || open.load(Ordering::SeqCst) == 0).await;
}
