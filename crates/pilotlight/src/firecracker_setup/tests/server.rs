//! An HTTP server of a few files, which can misbehave. One connection at a time, one request per connection.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What is answered.
#[derive(Clone)]
pub enum Reply {
    /// The file.
    File(Vec<u8>),
    /// The file, of which only so many bytes come.
    Truncated(Vec<u8>, usize),
    /// The file, of which so many bytes come and then nothing, with the connection left open.
    Stalled(Vec<u8>, usize),
    /// A file that is said to have so many bytes.
    Declared(u64),
    /// The file, without a word about its length.
    Unmeasured(Vec<u8>),
    /// Somewhere else.
    Redirect(String),
    /// A status of its own.
    Status(&'static str),
    /// Nothing, for longer than anybody waits.
    Silence,
}

/// Ends with this.
pub struct Server {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<String>>>,
    files: Arc<Mutex<HashMap<String, Reply>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut server = Self {
            address: listener.local_addr().expect("an address"),
            requests: Arc::default(),
            files: Arc::default(),
            stop: Arc::default(),
            thread: None,
        };
        let (requests, files, stop) = (server.requests.clone(), server.files.clone(), server.stop.clone());
        server.thread = Some(thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
                match &tls {
                    None => serve(&mut stream, &requests, &files, &stop),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config.clone()).expect("a connection");
                        let mut stream = rustls::StreamOwned::new(connection, stream);
                        serve(&mut stream, &requests, &files, &stop);
                        stream.conn.send_close_notify();
                        let _ = stream.flush();
                    }
                }
            }
        }));
        server
    }

    pub fn put(&self, path: &str, reply: Reply) {
        self.files.lock().expect("no panic").insert(path.to_owned(), reply);
    }

    pub fn asked(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().expect("started").join();
    }
}

fn serve(
    stream: &mut (impl Read + Write),
    requests: &Mutex<Vec<String>>,
    files: &Mutex<HashMap<String, Reply>>,
    stop: &AtomicBool,
) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).expect("a request is text");
    let path = head.split(' ').nth(1).expect("a path").to_owned();
    requests.lock().expect("no panic").push(path.clone());
    let reply = files.lock().expect("no panic").get(&path).cloned().unwrap_or(Reply::Status("404 Not Found"));
    let measured = |bytes: u64| format!("200 OK\r\nContent-Length: {bytes}");
    let stalls = matches!(reply, Reply::Stalled(..));
    let (words, body) = match reply {
        Reply::File(body) => (measured(body.len() as u64), body),
        Reply::Truncated(body, bytes) | Reply::Stalled(body, bytes) => {
            (measured(body.len() as u64), body[..bytes].to_vec())
        }
        Reply::Declared(bytes) => (measured(bytes), Vec::new()),
        Reply::Unmeasured(body) => ("200 OK".to_owned(), body),
        Reply::Redirect(to) => (format!("302 Found\r\nContent-Length: 0\r\nLocation: {to}"), Vec::new()),
        Reply::Status(status) => (format!("{status}\r\nContent-Length: 0"), Vec::new()),
        Reply::Silence => return wait(stop),
    };
    // A client that has seen enough hangs up.
    let _ = stream.write_all(format!("HTTP/1.1 {words}\r\nConnection: close\r\n\r\n").as_bytes());
    let _ = stream.write_all(&body);
    let _ = stream.flush();
    if stalls {
        wait(stop);
    }
}

/// Longer than any test's patience.
fn wait(stop: &AtomicBool) {
    for _ in 0..200 {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        thread::sleep(Duration::from_millis(25));
    }
}
