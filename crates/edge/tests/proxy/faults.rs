//! Whose fault it was: what the client is told, and what is counted.

use std::time::Duration;

use api::directory::Unavailable;
use http::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    servers::{App, read_head},
    support::{World, counted, empty, full, text, until},
};

fn requests(world: &World, class: &str, fault: &str) -> u64 {
    world.metric(&format!("requests_total{{class=\"{class}\",fault=\"{fault}\"}}"))
}

fn told(response: &Response<hyper::body::Incoming>) -> &str {
    response.headers().get("proxy-status").map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_request_that_goes_well_is_nobodys_fault_and_its_bytes_are_counted() {
    let world = World::new().await;
    let echo = App::echo().await;
    world.place(8080, &echo);
    let response = world.send(world.request("POST", "/").body(counted(3, Default::default())).unwrap()).await;
    assert_eq!(told(&response), "", "the app's answers are its own");
    assert_eq!(text(response).await.len(), 3 << 16);
    until("the end of the request", || requests(&world, "2xx", "none") == 1).await;
    assert_eq!(world.metric("bytes_total{to=\"app\"}"), 3 << 16);
    assert_eq!(world.metric("bytes_total{to=\"client\"}"), 3 << 16);
    // An app's own error is its own business, and no fault of anybody's that the edge could see.
    let declines = App::http(|_| async { Response::builder().status(503).body(full("no")).unwrap() }).await;
    world.place(8081, &declines);
    let request = world.request("GET", "/").header("x-aws-proxy-port", "8081").body(empty()).unwrap();
    text(world.send(request).await).await;
    until("the end of the request", || requests(&world, "5xx", "none") == 1).await;
}

#[tokio::test]
async fn refusals_name_the_fault_and_strangers_learn_nothing() {
    let world = World::new().await;
    let nonsense = App::raw(|mut socket, _| async move {
        let mut head = [0; 1024];
        let _ = socket.read(&mut head).await;
        let _ = socket.write_all(b"nonsense\r\n\r\n").await;
    })
    .await;
    world.place(8081, &nonsense);
    let to = |port: &str| world.request("GET", "/").header("x-aws-proxy-port", port).body(empty()).unwrap();
    let stranger = http::Request::get("/").header("host", world.host()).body(empty()).unwrap();
    let denied = "pilotlight; error=http_request_denied; fault=client";
    for (request, status, words) in [
        (stranger, 403, denied.to_owned()),
        (to("9000"), 403, denied.to_owned()),
        (to("x"), 400, "pilotlight; error=http_request_error; fault=client; details=\"the request is malformed: the port header is not a port\"".to_owned()),
        (to("8082"), 502, "pilotlight; error=connection_refused; fault=app; details=\"nothing listens on port 8082\"".to_owned()),
        (to("8081"), 502, "pilotlight; error=http_response_incomplete; fault=app; details=\"the app did not give a proper answer\"".to_owned()),
    ] {
        let response = world.send(request).await;
        assert_eq!((response.status().as_u16(), told(&response)), (status, &words[..]));
    }
    for (why, words) in [
        (Unavailable::Asleep, "fault=client; details=\"the microVM is suspended and does not resume by itself\""),
        (
            Unavailable::WakeFailed { reason: "/var/lib/secret is gone".into() },
            "fault=platform; details=\"the microVM could not be woken\"",
        ),
    ] {
        world.directory.state.send_replace(Some(Err(why)));
        let response = world.get("/").await;
        assert_eq!(told(&response), format!("pilotlight; error=destination_unavailable; {words}"));
    }
    until("the end of all", || requests(&world, "4xx", "client") == 3).await;
    until("the end of all", || requests(&world, "5xx", "app") == 2).await;
    until("the end of all", || requests(&world, "5xx", "client") == 1).await;
    until("the end of all", || requests(&world, "5xx", "platform") == 1).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_the_apps_fault_and_one_that_is_left_the_clients() {
    let world = World::new().await;
    let app = App::raw(|mut socket, _| async move {
        let head = read_head(&mut socket).await;
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        if head.starts_with(b"GET /left") {
            std::future::pending::<()>().await;
        }
    })
    .await;
    world.place(8080, &app);
    assert!(world.get("/broken").await.into_body().collect().await.is_err());
    until("the end of the request", || requests(&world, "2xx", "app") == 1).await;
    drop(world.get("/left").await);
    until("the end of the request", || requests(&world, "2xx", "client") == 1).await;
    // Before there was an answer to speak of.
    let waits = App::http(|_| std::future::pending()).await;
    world.place(8081, &waits);
    let request = world.request("GET", "/").header("x-aws-proxy-port", "8081").body(empty()).unwrap();
    let _ = tokio::time::timeout(Duration::from_millis(300), world.send(request)).await;
    until("the end of the request", || requests(&world, "none", "client") == 1).await;
}

#[tokio::test]
async fn what_is_open_held_and_refused_is_counted() {
    let world = std::sync::Arc::new(World::with(|limits| limits.per_microvm.requests_per_second = 1).await);
    let app = App::mirror().await;
    world.place(8080, &app);
    let vm = world.vm();
    world.directory.state.send_replace(None);
    let waiting = tokio::spawn({
        let world = std::sync::Arc::clone(&world);
        async move { world.get("/").await.status() }
    });
    until("a request that waits", || world.metric("waiting") == 1).await;
    assert_eq!((world.metric("holds_total"), world.metric("wakes_total")), (1, 1));
    world.directory.state.send_replace(Some(Ok(vm)));
    assert_eq!(waiting.await.unwrap(), 200);
    assert_eq!((world.metric("waiting"), world.metric("holds_total")), (0, 1));
    assert_eq!(world.metric("upstream_connections"), 1, "kept for the next request");
    let mut client = world.client().await;
    let mut refused = 0;
    while refused == 0 {
        client.ready().await.unwrap();
        let answer = client.send_request(world.request("GET", "/").body(empty()).unwrap()).await.unwrap();
        refused += u64::from(answer.status() == 429);
        text(answer).await;
    }
    assert_eq!(world.metric("refused_by_limit_total{limit=\"microvm_requests\"}"), refused);
    assert_eq!(world.metric("connections"), 1);
    drop(client);
    until("the end of the connection", || world.metric("connections") == 0).await;
}

#[tokio::test]
async fn every_metric_has_its_words_and_every_line_reads() {
    let world = World::new().await;
    let text = world.metrics.text();
    let mut family = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap();
            assert!(text.contains(&format!("# HELP {family} ")), "{family}");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(name.split('{').next().unwrap(), family);
            value.parse::<u64>().unwrap();
        }
    }
    assert!(text.ends_with('\n'));
}
