//! Apps that speak TLS, which nobody has told the edge.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{
    servers::{self, App},
    support::{Body, World, counted, empty, full, text},
};

/// What a TLS server does with a request in the clear.
#[derive(Debug, Clone, Copy)]
enum InTheClear {
    Alert,
    HangUp,
    BadRequest,
    /// After longer than a body is held.
    HangUpLate,
}

fn acceptor(alpn: &[&str]) -> TlsAcceptor {
    let own = rcgen::generate_simple_self_signed(vec!["nobody.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::from_pem_slice(own.signing_key.serialize_pem().as_bytes()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let version = request.version();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Response::new(full(format!("{version:?} {}", String::from_utf8_lossy(&body))))
}

/// A TLS server with a certificate of its own making; counts the requests that came in the clear.
async fn tls_app(alpn: &[&str], manner: InTheClear, clear: Arc<AtomicUsize>) -> App {
    let acceptor = acceptor(alpn);
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let mut app = App::raw(move |socket, _| {
        let (acceptor, clear, counted) = (acceptor.clone(), Arc::clone(&clear), Arc::clone(&counted));
        async move {
            if !begins_a_handshake(&socket).await {
                clear.fetch_add(1, Ordering::SeqCst);
                in_the_clear(manner, acceptor, socket).await;
                return;
            }
            let Ok(tls) = acceptor.accept(socket).await else { return };
            if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
                servers::http2(tls, 100, answer, counted).await;
            } else {
                servers::http1(tls, answer, counted).await;
            }
        }
    })
    .await;
    app.requests = requests;
    app
}

async fn begins_a_handshake(socket: &TcpStream) -> bool {
    let mut first = [0];
    socket.peek(&mut first).await.is_ok_and(|length| length == 1) && first == [22]
}

async fn in_the_clear(manner: InTheClear, acceptor: TlsAcceptor, mut socket: TcpStream) {
    match manner {
        InTheClear::Alert => assert!(acceptor.accept(socket).await.is_err()),
        InTheClear::HangUp => {}
        InTheClear::HangUpLate => tokio::time::sleep(Duration::from_millis(900)).await,
        InTheClear::BadRequest => {
            let words = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
            socket.write_all(words.as_bytes()).await.unwrap();
            // The rest is read, so that the words are not lost.
            let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
        }
    }
}

async fn ask(world: &World, method: &str, body: Body) -> (u16, String) {
    let response = world.send(world.request(method, "/").body(body).unwrap()).await;
    (response.status().as_u16(), text(response).await)
}

#[tokio::test]
async fn an_app_that_speaks_tls_is_found_out_whatever_it_says_to_those_who_do_not() {
    for manner in [InTheClear::Alert, InTheClear::HangUp, InTheClear::BadRequest] {
        for (alpn, version) in [(&["http/1.1"][..], "HTTP/1.1"), (&["h2", "http/1.1"], "HTTP/2.0"), (&[], "HTTP/1.1")] {
            let world = World::new().await;
            let clear = Arc::new(AtomicUsize::new(0));
            let app = tls_app(alpn, manner, Arc::clone(&clear)).await;
            world.place(8080, &app);
            let what = format!("{manner:?} {alpn:?}");
            assert_eq!(ask(&world, "POST", full("body")).await, (200, format!("{version} body")), "{what}");
            assert_eq!(ask(&world, "GET", empty()).await, (200, format!("{version} ")), "{what}");
            // The next VM of the microVM is another place with the same app.
            world.another_vm();
            world.place(8080, &app);
            assert_eq!(ask(&world, "GET", empty()).await, (200, format!("{version} ")), "{what}");
            assert_eq!((clear.load(Ordering::SeqCst), app.requests()), (1, 3), "{what}");
        }
    }
}

#[tokio::test]
async fn a_body_is_sent_again_whether_it_is_long_or_the_app_is_slow() {
    let long = || counted(64, Arc::default());
    for (manner, body, seen) in [
        (InTheClear::Alert, long(), 4 << 20),
        (InTheClear::HangUp, long(), 4 << 20),
        (InTheClear::HangUpLate, full("body"), 4),
    ] {
        let world = World::new().await;
        let app = tls_app(&[], manner, Arc::default()).await;
        world.place(8080, &app);
        let (status, answer) = ask(&world, "POST", body).await;
        assert_eq!((status, answer.len()), (200, "HTTP/1.1 ".len() + seen), "{manner:?}");
    }
}

#[tokio::test]
async fn who_asks_for_http2_gets_it_beneath_tls() {
    let world = World::new().await;
    let app = tls_app(&["h2", "http/1.1"], InTheClear::Alert, Arc::default()).await;
    world.place(8080, &app);
    let old = tls_app(&["http/1.1"], InTheClear::Alert, Arc::default()).await;
    world.place(8081, &old);
    let request = |port| {
        let request = world.request2("POST", "/").header("x-aws-proxy-port", port);
        request.header("x-aws-proxy-force-h2", "true").body(full("body")).unwrap()
    };
    let mut client = world.client2().await;
    let response = client.send_request(request("8080")).await.unwrap();
    assert_eq!((response.version(), text(response).await), (Version::HTTP_2, "HTTP/2.0 body".into()));
    assert_eq!(client.send_request(request("8081")).await.unwrap().status(), 502);
    assert_eq!((app.requests(), old.requests()), (1, 0));
}

#[tokio::test]
async fn an_app_in_the_clear_sees_no_handshake_unless_it_answers_like_one_that_wants_it() {
    let world = World::new().await;
    let handshakes = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&handshakes);
    let app = App::raw(move |socket, _| {
        let seen = Arc::clone(&seen);
        async move {
            if begins_a_handshake(&socket).await {
                seen.fetch_add(1, Ordering::SeqCst);
                return;
            }
            let answer = async |request: Request<Incoming>| {
                let bad = request.uri().path() == "/bad";
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Response::builder().status(if bad { 400 } else { 200 }).body(full(body)).unwrap()
            };
            servers::http1(socket, answer, Arc::default()).await;
        }
    })
    .await;
    world.place(8080, &app);
    world.place(8081, &app);
    let ask = async |path: &str, port: &str| {
        let request = world.request("POST", path).header("x-aws-proxy-port", port).body(full("body")).unwrap();
        let response = world.send(request).await;
        (response.status().as_u16(), text(response).await)
    };
    assert_eq!(ask("/good", "8080").await, (200, "body".into()));
    assert_eq!(ask("/bad", "8080").await, (400, "body".into()));
    assert_eq!(handshakes.load(Ordering::SeqCst), 0);
    assert_eq!(ask("/bad", "8081").await, (400, "body".into()));
    assert_eq!(handshakes.load(Ordering::SeqCst), 1);
    world.place(8082, &app);
    for _ in 0..2 {
        let request = world.request("GET", "/bad").header("x-aws-proxy-port", "8082").body(empty()).unwrap();
        assert_eq!(world.send(request).await.status(), 400);
        assert_eq!(handshakes.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn an_app_may_change_its_mind() {
    let world = World::new().await;
    let tls = tls_app(&["h2"], InTheClear::Alert, Arc::default()).await;
    let clear = App::http(answer).await;
    world.place(8080, &tls);
    assert_eq!(ask(&world, "GET", empty()).await, (200, "HTTP/2.0 ".into()));
    world.another_vm();
    world.place(8080, &clear);
    assert_eq!(ask(&world, "POST", full("body")).await, (200, "HTTP/1.1 body".into()));
    world.another_vm();
    world.place(8080, &tls);
    let statuses = [ask(&world, "GET", empty()).await.0, ask(&world, "GET", empty()).await.0];
    assert_eq!(statuses[1], 200, "{statuses:?}");
}
