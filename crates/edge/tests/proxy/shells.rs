//! Shells: a WebSocket whose other end the edge is itself.

use std::time::Duration;

use api::{
    shell::{FromShell, PIECE_BYTES_MAX, ToShell},
    token::{Claims, Grant},
};
use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        protocol::{Role, frame::coding::CloseCode},
    },
};

use crate::{
    servers::App,
    support::{GuestShell, World, empty, full, text, until},
};

type Client = WebSocketStream<TlsStream<TcpStream>>;

/// What a wait that has an end is given.
const SOON: Duration = Duration::from_secs(10);

fn shell_token(world: &World) -> String {
    world.keys.seal(&Claims { grant: Grant::Shell, ..world.claims() })
}

/// A handshake with these offers beside those that carry the token.
async fn handshake(world: &World, target: &str, token: &str, more: &str) -> Result<(Client, String), Error> {
    let mut request = format!("wss://{}{target}", world.host()).into_client_request().unwrap();
    let offers = format!("lambda-microvms, lambda-microvms.authentication.{token}{more}");
    request.headers_mut().insert("sec-websocket-protocol", offers.parse().unwrap());
    let (client, response) = client_async(request, world.tls(&world.host()).await).await?;
    Ok((client, response.headers()["sec-websocket-protocol"].to_str().unwrap().to_owned()))
}

fn refused(result: Result<(Client, String), Error>) -> (u16, String) {
    match result {
        Err(Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            (response.status().as_u16(), String::from_utf8(body).unwrap())
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it is open"),
    }
}

/// An open session of an ordinary client, and the guest's side of it.
async fn session(world: &World) -> (Client, GuestShell) {
    let (mut client, chosen) = handshake(world, "/shell", &shell_token(world), "").await.unwrap();
    assert_eq!(chosen, "lambda-microvms");
    let init: serde_json::Value = serde_json::from_str(&said(&mut client).await.into_text().unwrap()).unwrap();
    assert_eq!(init["type"], "session_init");
    init["session_id"].as_str().unwrap().parse::<uuid::Uuid>().unwrap();
    assert_eq!(init.as_object().unwrap().len(), 2);
    (client, world.shell().await)
}

async fn said(client: &mut Client) -> Message {
    timeout(SOON, client.next()).await.expect("it says something").expect("it is there").unwrap()
}

async fn typed(shell: &mut GuestShell) -> Option<ToShell> {
    timeout(SOON, shell.typed.recv()).await.expect("something is typed")
}

fn close_of(message: Message) -> (CloseCode, String) {
    let Message::Close(Some(frame)) = message else { panic!("{message:?}") };
    (frame.code, frame.reason.to_string())
}

#[tokio::test]
async fn a_session_is_framed_as_the_services() {
    let world = World::new().await;
    let (mut client, mut shell) = session(&world).await;
    assert_eq!(shell.command, None);
    shell.shows.send(FromShell::Bytes("λ $ ".into())).await.unwrap();
    assert_eq!(said(&mut client).await, Message::binary("λ $ "));
    for (message, expected) in [
        (Message::binary(&b"ls\r\x03\xff"[..]), ToShell::Bytes(b"ls\r\x03\xff".to_vec())),
        (Message::text(r#"{"type":"resize","cols":120,"rows":40}"#), ToShell::Resize { cols: 120, rows: 40 }),
        (Message::text("echo\n"), ToShell::Bytes(b"echo\n".to_vec())),
        (Message::text(r#"{"type":"resize"}"#), ToShell::Bytes(br#"{"type":"resize"}"#.to_vec())),
    ] {
        client.send(message).await.unwrap();
        assert_eq!(typed(&mut shell).await, Some(expected));
    }
    // Larger than a piece, and nothing at all.
    client.send(Message::binary(vec![])).await.unwrap();
    client.send(Message::binary(vec![b'x'; PIECE_BYTES_MAX + 1])).await.unwrap();
    assert_eq!(typed(&mut shell).await, Some(ToShell::Bytes(vec![b'x'; PIECE_BYTES_MAX])));
    assert_eq!(typed(&mut shell).await, Some(ToShell::Bytes(b"x".to_vec())));
    client.send(Message::Ping("there?".into())).await.unwrap();
    assert_eq!(said(&mut client).await, Message::Pong("there?".into()));
    shell.shows.send(FromShell::Bytes(b"exit\r\n".to_vec())).await.unwrap();
    shell.shows.send(FromShell::Ended { code: 3 }).await.unwrap();
    assert_eq!(said(&mut client).await, Message::binary("exit\r\n"));
    // How it ended is nobody's business who has not asked.
    assert_eq!(close_of(said(&mut client).await), (CloseCode::Normal, "shell exited".to_owned()));
    assert_eq!(typed(&mut shell).await, None);
}

#[tokio::test]
async fn a_client_that_knows_more_hears_more() {
    let world = World::new().await;
    let target = "/shell?command=exit%207";
    let (mut client, chosen) =
        handshake(&world, target, &shell_token(&world), ", pilotlight.shell, lambda-microvms.port.8022").await.unwrap();
    assert_eq!(chosen, "pilotlight.shell");
    let shell = world.shell().await;
    assert_eq!(shell.command.as_deref(), Some("exit 7"));
    assert!(said(&mut client).await.into_text().unwrap().contains("session_init"));
    shell.shows.send(FromShell::Ended { code: 7 }).await.unwrap();
    let exit: serde_json::Value = serde_json::from_str(&said(&mut client).await.into_text().unwrap()).unwrap();
    assert_eq!(exit, serde_json::json!({"type": "exit", "code": 7}));
    assert_eq!(close_of(said(&mut client).await).0, CloseCode::Normal);
}

#[tokio::test]
async fn a_shell_may_be_one_stream_of_http2_with_its_token_in_a_header() {
    let world = World::new().await;
    let mut http2 = world.client2().await;
    // The first answer brings the server's settings, without which a client may not ask.
    assert_eq!(http2.send_request(world.request2("GET", "/").body(empty()).unwrap()).await.unwrap().status(), 502);
    let request = Request::connect(format!("https://{}/shell", world.host()))
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .header("x-aws-proxy-auth", shell_token(&world))
        .body(empty())
        .unwrap();
    let response = http2.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("sec-websocket-protocol"), "none was offered");
    let socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut client = WebSocketStream::from_raw_socket(socket, Role::Client, None).await;
    let mut shell = world.shell().await;
    assert!(client.next().await.unwrap().unwrap().is_text());
    client.send(Message::binary("w\r")).await.unwrap();
    assert_eq!(typed(&mut shell).await, Some(ToShell::Bytes(b"w\r".to_vec())));
}

#[tokio::test]
async fn each_kind_of_token_opens_its_own() {
    let world = World::new().await;
    let app = App::http(async |_| http::Response::new(full("the app"))).await;
    world.place(8080, &app);
    let other = Claims { grant: Grant::Shell, microvm_id: api::ids::MicrovmId::random(), ..world.claims() };
    let expired = Claims { grant: Grant::Shell, expires_unix: 1, ..world.claims() };
    let failed = || (403, "Token authentication failed".to_owned());
    for (what, token, answer) in [
        ("an ordinary token", world.token(), failed()),
        ("another microVM's", world.keys.seal(&other), failed()),
        ("an expired one", world.keys.seal(&expired), failed()),
        ("none", "nonsense".to_owned(), (403, "Request missing authentication".to_owned())),
    ] {
        assert_eq!(refused(handshake(&world, "/shell", &token, "").await), answer, "{what}");
    }
    // A shell's token leads to nothing that speaks HTTP.
    for path in ["/", "/shell", "/shell?command=ls"] {
        let request = Request::get(path).header("host", world.host()).header("x-aws-proxy-auth", shell_token(&world));
        let response = world.send(request.body(empty()).unwrap()).await;
        assert_eq!((response.status().as_u16(), text(response).await), (502, String::new()), "{path}");
    }
    assert_eq!(refused(handshake(&world, "/chat", &shell_token(&world), "").await), (502, String::new()));
    let elsewhere = ", lambda-microvms.port.8080";
    assert_eq!(refused(handshake(&world, "/shell", &shell_token(&world), elsewhere).await), (502, String::new()));
    assert_eq!((world.wakes(), world.dials(), app.requests()), (0, 0, 0), "nothing of it gets anywhere");
    // The app's own such path is there for who names the app's port, and for all where there is no shell.
    assert_eq!(refused(handshake(&world, "/shell", &world.token(), elsewhere).await).0, 200);
    world.directory.has_shell.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(refused(handshake(&world, "/shell", &world.token(), "").await).0, 200);
    assert_eq!(refused(handshake(&world, "/shell", &shell_token(&world), "").await), failed());
    assert_eq!(app.requests(), 2);
}

#[tokio::test]
async fn half_a_handshake_wakes_nothing() {
    let world = World::new().await;
    for (what, version, key) in [("version", "8", "dGhlIHNhbXBsZSBub25jZQ=="), ("key", "13", "short")] {
        let request = Request::get("/shell")
            .header("host", world.host())
            .header("x-aws-proxy-auth", shell_token(&world))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", version)
            .header("sec-websocket-key", key);
        assert_eq!(world.send(request.body(empty()).unwrap()).await.status(), StatusCode::BAD_REQUEST, "{what}");
    }
    let extended = ", pilotlight.shell";
    let bad = handshake(&world, "/shell?command=", &shell_token(&world), extended).await;
    assert_eq!(refused(bad).0, 400);
    assert_eq!(world.wakes(), 0);
}

#[tokio::test]
async fn a_shell_wakes_its_microvm_and_counts_as_traffic() {
    let world = World::new().await;
    let vm = world.vm();
    world.directory.state.send_replace(None);
    let token = shell_token(&world);
    let opening = handshake(&world, "/shell", &token, "");
    let wake = async {
        until("the wake", || world.wakes() > 0).await;
        // The first VM is gone by the time it is looked for.
        world.ground.vms.lock().unwrap().clear();
        let next = api::ids::VmId::random();
        let (state, vms) = (world.directory.state.clone(), next);
        *world.ground.on_gone.lock().unwrap() = Some(Box::new(move || {
            state.send_replace(Some(Ok(vms)));
        }));
        world.directory.state.send_replace(Some(Ok(vm)));
        until("the second look", || world.wakes() > 1).await;
        world.ground.vms.lock().unwrap().push(next);
        next
    };
    let (opened, next) = tokio::join!(opening, wake);
    let (mut client, _) = opened.unwrap();
    let mut shell = world.shell().await;
    assert_eq!(shell.vm, next);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = world.touches();
    client.send(Message::binary("x")).await.unwrap();
    typed(&mut shell).await;
    until("typing to count", || world.touches() > before).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = world.touches();
    shell.shows.send(FromShell::Bytes(b"x".to_vec())).await.unwrap();
    until("showing to count", || world.touches() > before).await;
    let before = world.touches();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(world.touches(), before, "an open shell alone keeps nobody awake");
}

#[tokio::test]
async fn who_goes_away_hangs_up() {
    let world = World::new().await;
    let (client, mut shell) = session(&world).await;
    drop(client);
    assert_eq!(typed(&mut shell).await, None);
    let (mut client, mut shell) = session(&world).await;
    client.close(None).await.unwrap();
    assert_eq!(typed(&mut shell).await, None);
    // What was said before still counts.
    let (mut client, mut shell) = session(&world).await;
    client.send(Message::binary("last words")).await.unwrap();
    drop(client);
    assert_eq!(typed(&mut shell).await, Some(ToShell::Bytes(b"last words".to_vec())));
    assert_eq!(typed(&mut shell).await, None);
}

#[tokio::test]
async fn a_vm_that_goes_away_ends_the_session_and_says_so() {
    let world = World::new().await;
    let (mut client, shell) = session(&world).await;
    drop(shell);
    let (code, reason) = close_of(said(&mut client).await);
    assert_eq!(code, CloseCode::Away);
    assert!(reason.contains("suspended"), "{reason}");
    *world.ground.no_shells.lock().unwrap() = Some("there\"\\s\n none\u{7f}λ".to_owned());
    let Err(Error::Http(response)) = handshake(&world, "/shell", &shell_token(&world), "").await else {
        panic!("it is open");
    };
    assert_eq!((response.status().as_u16(), response.body().as_deref().unwrap_or_default()), (502, &b""[..]));
    let why = "pilotlight; error=connection_refused; fault=app; details=\"the guest opens no shell: theres none\"";
    assert_eq!(response.headers()["proxy-status"], why);
}

#[tokio::test]
async fn there_is_an_end_to_shells_and_to_messages() {
    let world = World::with(|limits| {
        limits.per_microvm.shells = 2;
        limits.shell_message_bytes = 1000;
    })
    .await;
    let (mut first, mut shell) = session(&world).await;
    let second = session(&world).await;
    let dials = world.dials();
    let third = handshake(&world, "/shell", &shell_token(&world), "").await;
    assert_eq!(refused(third), (429, String::new()));
    assert_eq!(world.dials(), dials);
    drop(second);
    first.send(Message::binary(vec![b'x'; 1000])).await.unwrap();
    assert_eq!(typed(&mut shell).await, Some(ToShell::Bytes(vec![b'x'; 1000])));
    first.send(Message::binary(vec![b'x'; 1001])).await.unwrap();
    assert_eq!(close_of(said(&mut first).await).0, CloseCode::Size);
    assert_eq!(typed(&mut shell).await, None);
    drop(first);
    // Both places are free again, once it has been noticed.
    let deadline = tokio::time::Instant::now() + SOON;
    let mut open = Vec::new();
    while open.len() < 2 {
        match handshake(&world, "/shell", &shell_token(&world), "").await {
            Ok(opened) => open.push((opened, world.shell().await)),
            Err(_) => assert!(tokio::time::Instant::now() < deadline, "a place is not given back"),
        }
    }
}

#[tokio::test]
async fn who_does_not_read_makes_the_other_wait() {
    let world = World::new().await;
    let (mut client, shell) = session(&world).await;
    // Nobody reads what is shown: it is taken until the sockets' buffers are full, and no further.
    let piece = FromShell::Bytes(vec![b'x'; PIECE_BYTES_MAX]);
    let mut shown = 0;
    while let Ok(sent) = timeout(Duration::from_secs(1), shell.shows.send(piece.clone())).await {
        sent.unwrap();
        shown += 1;
        assert!(shown * PIECE_BYTES_MAX < 64 << 20, "it is collected without end");
    }
    // Once it is read, all of it is there.
    let mut read = 0;
    while read < shown * PIECE_BYTES_MAX {
        read += said(&mut client).await.len();
    }
    // Nor what is typed.
    let message = Message::binary(vec![b'y'; 64 << 10]);
    let mut sent = 0;
    while let Ok(done) = timeout(Duration::from_secs(1), client.send(message.clone())).await {
        done.unwrap();
        sent += 1;
        assert!(sent < 1024, "it is collected without end");
    }
    drop(shell);
}
