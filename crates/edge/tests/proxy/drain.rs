//! Shutting down.

use std::{sync::Arc, time::Duration};

use edge::Drained;
use http::Response;
use tokio::{net::TcpStream, sync::Notify};

use crate::{
    servers::App,
    support::{World, empty, full, text, until},
};

async fn slow(release: Arc<Notify>) -> App {
    App::http(move |_| {
        let release = Arc::clone(&release);
        async move {
            release.notified().await;
            Response::new(full("done"))
        }
    })
    .await
}

#[tokio::test]
async fn requests_in_flight_finish_and_nothing_new_begins() {
    let mut world = World::new().await;
    let release = Arc::new(Notify::new());
    let app = slow(Arc::clone(&release)).await;
    world.place(8080, &app);
    let mut idle = world.client().await;
    idle.ready().await.unwrap();
    let mut client = world.client().await;
    let request = world.request("GET", "/").body(empty()).unwrap();
    let answer = tokio::spawn(async move { text(client.send_request(request).await.unwrap()).await });
    until("the request in flight", || app.requests() == 1).await;

    world.shutdown.cancel();
    let address = world.address;
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    until("the end of the idle connection", || idle.is_closed()).await;
    assert!(!world.serving.as_ref().unwrap().is_finished());
    release.notify_one();
    assert_eq!(answer.await.unwrap(), "done");
    assert_eq!(world.serving.take().unwrap().await.unwrap(), Drained { cut: 0 });
}

#[tokio::test]
async fn who_does_not_finish_is_cut() {
    let mut world = World::with(|limits| limits.drain = Duration::from_millis(200)).await;
    let app = slow(Arc::new(Notify::new())).await;
    world.place(8080, &app);
    let mut client = world.client().await;
    let request = world.request("GET", "/").body(empty()).unwrap();
    let answer = tokio::spawn(async move { client.send_request(request).await });
    until("the request in flight", || app.requests() == 1).await;
    world.shutdown.cancel();
    assert_eq!(world.serving.take().unwrap().await.unwrap(), Drained { cut: 1 });
    assert!(answer.await.unwrap().is_err());
}
