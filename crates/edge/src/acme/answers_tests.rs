use api::ids::EndpointId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::acme::{
    endpoints::tests::{SUFFIX, endpoints},
    pending::Shown,
};

struct World {
    endpoints: Arc<Endpoints>,
    endpoint: EndpointId,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (endpoints, endpoint) = (endpoints(&dir, |_| {}), EndpointId::random());
        endpoints.pending().show(endpoint, Shown::http("t0ken", "t0ken.key"));
        Self { endpoints, endpoint, _dir: dir }
    }

    fn host(&self) -> String {
        format!("{}.{SUFFIX}", self.endpoint)
    }

    /// Status, and where it leads or what it says.
    fn ask(&self, method: &str, host: &str, uri: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(uri).header("host", host).body(()).unwrap();
        told(&respond(&self.endpoints, &request, 4443))
    }

    async fn listen(&self) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(answer(Arc::clone(&self.endpoints), vec![listener], HTTPS, stop.clone()));
        (address, stop, serving)
    }
}

fn told(response: &Response<Full<Bytes>>) -> (u16, String) {
    let location = response.headers().get("location").map(|location| location.to_str().unwrap().to_owned());
    let body = || format!("{:?}", response.body());
    (response.status().as_u16(), location.unwrap_or_else(body))
}

#[test]
fn an_authority_finds_the_answer_at_its_endpoint_alone() {
    let world = World::new();
    let host = world.host();
    let path = "/.well-known/acme-challenge/t0ken";
    for host in [host.clone(), host.to_uppercase(), format!("{host}:80")] {
        let (status, body) = world.ask("GET", &host, path);
        assert_eq!(status, 200);
        assert!(body.contains("t0ken.key"), "{body}");
    }
    let other = format!("{}.{SUFFIX}", EndpointId::random());
    assert_eq!(world.ask("GET", &other, path).0, 404);
    for method in ["HEAD", "POST", "DELETE"] {
        assert_eq!(world.ask(method, &host, path).0, 404, "{method}");
    }
    for rest in ["", "t0kem", "t0ken/", "../t0ken", "%74%30ken", "x/../t0ken", "..%2ft0ken", "../../etc/passwd"] {
        assert_eq!(world.ask("GET", &host, &format!("/.well-known/acme-challenge/{rest}")).0, 404, "{rest}");
    }
    world.endpoints.pending().hide(&world.endpoint);
    assert_eq!(world.ask("GET", &host, path).0, 404);
}

#[test]
fn everybody_else_is_sent_to_https_or_nowhere() {
    let world = World::new();
    let host = world.host();
    let sent = |uri: &str| world.ask("GET", &host, uri);
    assert_eq!(sent("/"), (308, format!("https://{host}:4443/")));
    assert_eq!(sent("/a/../b?c=//d"), (308, format!("https://{host}:4443/a/../b?c=//d")));
    assert_eq!(sent("//evil.test/"), (308, format!("https://{host}:4443//evil.test/")));
    assert_eq!(sent("http://evil.test/x?y"), (308, format!("https://{host}:4443/x?y")), "Host says where it is");
    assert_eq!(world.ask("HEAD", &format!("{host}:8080"), "/x"), (308, format!("https://{host}:4443/x")));
    let usual = Request::builder().uri("/x").header("host", &host).body(()).unwrap();
    assert_eq!(told(&respond(&world.endpoints, &usual, 443)), (308, format!("https://{host}/x")));
    for (method, host, uri, status) in [
        ("POST", host.as_str(), "/", 404),
        ("OPTIONS", &host, "*", 404),
        ("GET", &host, "*", 400),
        ("GET", SUFFIX, "/", 404),
        ("GET", "evil.test", "/", 404),
        ("GET", &format!("x.{SUFFIX}"), "/", 404),
        ("GET", &format!("{host}.evil.test"), "/", 404),
        ("GET", "127.0.0.1", "/.well-known/acme-challenge/t0ken", 404),
        ("GET", "a b", "/", 400),
        ("GET", "", "/", 400),
    ] {
        assert_eq!(world.ask(method, host, uri).0, status, "{method} {host} {uri}");
    }
    let nobody = Request::builder().uri("/").body(()).unwrap();
    assert_eq!(respond(&world.endpoints, &nobody, 443).status(), 400);
    let two = Request::builder().uri("/").header("host", &host).header("host", "x").body(()).unwrap();
    assert_eq!(respond(&world.endpoints, &two, 443).status(), 400);
}

async fn exchange(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_connection_has_one_request_and_a_head_of_so_many_bytes() {
    let world = World::new();
    let (address, stop, serving) = world.listen().await;
    let ask = async |request: &str| exchange(&mut TcpStream::connect(address).await.unwrap(), request).await;
    let head = format!("GET /x HTTP/1.1\r\nhost: {}\r\n", world.host());
    let answer = ask(&format!("{head}\r\n{head}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    // What it brings is neither read nor waited for.
    let answer = ask(&format!("{head}content-length: 1000000\r\n\r\nx")).await;
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    let padded = |bytes: usize| format!("{head}x: {}\r\n\r\n", "y".repeat(bytes - head.len() - 7));
    assert!(ask(&padded(HEAD_BYTES_MAX)).await.starts_with("HTTP/1.1 308 "));
    let answer = ask(&padded(HEAD_BYTES_MAX + 1)).await;
    assert!(!answer.starts_with("HTTP/1.1 308 "), "{answer}");
    stop.cancel();
    serving.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_left_after_a_while() {
    let world = World::new();
    let (address, _stop, _serving) = world.listen().await;
    for half in ["", "GET /x HTTP/1.1\r\nhost:"] {
        let begin = tokio::time::Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(!exchange(&mut stream, half).await.starts_with("HTTP/1.1 308 "));
        assert!(begin.elapsed() <= CONNECTION_TIME_MAX + Duration::from_secs(1), "{half}");
    }
}

#[tokio::test]
async fn there_are_no_more_connections_than_that_and_the_next_waits() {
    let world = World::new();
    let (address, stop, serving) = world.listen().await;
    let request = format!("GET /x HTTP/1.1\r\nhost: {}\r\n\r\n", world.host());
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let mut next = TcpStream::connect(address).await.unwrap();
    let answering = exchange(&mut next, &request);
    tokio::pin!(answering);
    assert!(timeout(Duration::from_millis(100), &mut answering).await.is_err());
    drop(idle.pop());
    assert!(answering.await.starts_with("HTTP/1.1 308 "));
    drop(idle);
    stop.cancel();
    serving.await.unwrap();
}
