//! The edge, with TLS and tokens, in front of a server that has as little to do as can be; beside it Debian's nginx with TLS
//! and the same certificate in front of the same. Clients, nginx, the edge and the server share this machine's processors,
//! and each figure is taken from both in turn. There is no VM in it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use e2e::{repository, server, until};
use regex::Regex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::Row;

/// How often each figure is taken from each, after a warm-up that does not count; the median is told.
const ROUNDS: usize = 5;
/// How long wrk and h2load ask, in seconds.
const SECONDS: u32 = 4;
/// Connections that ask at once, and requests on each that wait at once where it can be several.
const CONNECTIONS: u32 = 32;
const STREAMS: u32 = 8;
/// Bytes of the long answer and the long request.
const LONG: u64 = 1 << 30;
/// How often those are sent.
const LONG_ROUNDS: usize = 3;
/// Connections that do nothing.
const IDLE: usize = 2000;
const WEB_SOCKETS: usize = 5000;

/// The group.
pub fn bench() -> anyhow::Result<Vec<Row>> {
    let ground = Ground::lay()?;
    eprintln!("asking the edge and nginx for small answers ...");
    let mut rows = Vec::new();
    rows.extend(small("HTTP/1.1", &ground, wrk)?);
    rows.extend(small("HTTP/2", &ground, h2load)?);
    rows.push(added(&ground)?);
    eprintln!("sending a gigabyte each way ...");
    for (name, version) in [("HTTP/1.1", "--http1.1"), ("HTTP/2", "--http2")] {
        rows.push(long(&format!("1 GiB down, {name}"), &ground, &[version], false)?);
        rows.push(long(&format!("1 GiB up, {name}"), &ground, &[version], true)?);
    }
    eprintln!("opening connections that do nothing ...");
    rows.push(idle(&ground, "idle keep-alive connection", IDLE, "http")?);
    rows.push(idle(&ground, "idle WebSocket of 5,000", WEB_SOCKETS, "websocket")?);
    Ok(rows)
}

/// A program that serves, until dropped.
struct Serving {
    child: Child,
    facts: Value,
}

impl Serving {
    /// Starts a program whose first line says what it is.
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting sim")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        Ok(Self { facts: serde_json::from_str(&line).with_context(|| format!("sim said: {line}"))?, child })
    }

    fn port(&self) -> anyhow::Result<u16> {
        let port = self.facts["port"].as_u64().context("no port")?;
        Ok(u16::try_from(port)?)
    }

    fn text(&self, key: &str) -> anyhow::Result<&str> {
        self.facts[key].as_str().with_context(|| format!("no {key}"))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Asked, so that nginx ends its workers too. It may have ended by itself.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// Everything that serves.
struct Ground {
    upstream: Serving,
    edge: Serving,
    nginx: Serving,
    dir: tempfile::TempDir,
}

impl Ground {
    fn lay() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let sim = server::simulation();
        let upstream = Serving::start(Command::new(&sim).arg("upstream"))?;
        let address = format!("127.0.0.1:{}", upstream.port()?);
        let tls = dir.path().join("tls");
        fs::create_dir(&tls)?;
        let edge = Serving::start(Command::new(&sim).args(["edge", "--upstream", &address, "--dir"]).arg(&tls))?;
        let nginx = nginx(dir.path(), &address, &tls.join("server.pem"))?;
        Ok(Self { upstream, edge, nginx, dir })
    }

    fn url(&self, serving: &Serving, path: &str) -> anyhow::Result<String> {
        Ok(format!("https://{}:{}{path}", self.edge.text("host")?, serving.port()?))
    }

    fn token(&self) -> anyhow::Result<String> {
        Ok(format!("x-aws-proxy-auth: {}", self.edge.text("token")?))
    }
}

/// nginx as one would set it up for this: a worker for each processor, connections kept to both sides, nothing buffered on
/// disk, no log.
fn nginx(dir: &Path, upstream: &str, certificate: &Path) -> anyhow::Result<Serving> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (dir_text, certificate) = (dir.display(), certificate.display());
    let configuration = format!(
        "daemon off; worker_processes auto; pid {dir_text}/nginx.pid; error_log {dir_text}/nginx.log; user root;
        events {{ worker_connections 16384; }}
        http {{
            access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; client_max_body_size 0;
            client_body_temp_path {dir_text}/body; proxy_temp_path {dir_text}/proxy; fastcgi_temp_path {dir_text}/f;
            uwsgi_temp_path {dir_text}/u; scgi_temp_path {dir_text}/s;
            upstream app {{ server {upstream}; keepalive 64; }}
            server {{
                listen 127.0.0.1:{port} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {certificate};
                ssl_protocols TLSv1.3; http2_max_concurrent_streams 128;
                location / {{
                    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\";
                    proxy_set_header Host $host; proxy_request_buffering off; proxy_max_temp_file_size 0;
                }}
            }}
        }}"
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, configuration)?;
    let child = Command::new("nginx").arg("-c").arg(&path).args(["-p"]).arg(dir).stdin(Stdio::null()).spawn();
    let child = child.context("nginx is not there: run `scripts/setup.sh bench`")?;
    let serving = Serving { child, facts: serde_json::json!({ "port": port }) };
    until("nginx", Duration::from_secs(10), || Ok(std::net::TcpStream::connect(("127.0.0.1", port))?))?;
    Ok(serving)
}

/// What a load generator saw.
#[derive(Debug, Clone, Copy)]
struct Load {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name} is not there: run `scripts/setup.sh bench`"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{name} failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// The number behind a pattern's first group, times what its unit is of a millisecond, where it has one.
fn number(text: &str, pattern: &str) -> anyhow::Result<f64> {
    let found = Regex::new(pattern)?.captures(text).with_context(|| format!("no {pattern} in: {text}"))?;
    let value: f64 = found[1].parse()?;
    Ok(match found.get(2).map(|unit| unit.as_str()) {
        Some("us") => value / 1000.0,
        Some("s") => value * 1000.0,
        _ => value,
    })
}

fn wrk_with(url: &str, header: &str, connections: u32) -> anyhow::Result<Load> {
    let (connections, seconds) = (connections.to_string(), format!("{SECONDS}s"));
    let text =
        output(Command::new("wrk").args(["-t1", "-c", &connections, "-d", &seconds, "--latency", "-H", header, url]))?;
    ensure!(!text.contains("Non-2xx"), "not all were answered well: {text}");
    Ok(Load {
        per_second: number(&text, r"Requests/sec:\s+([\d.]+)")?,
        p50_ms: number(&text, r"50%\s+([\d.]+)(us|ms|s)")?,
        p99_ms: number(&text, r"99%\s+([\d.]+)(us|ms|s)")?,
    })
}

fn wrk(url: &str, header: &str, _: &Path) -> anyhow::Result<Load> {
    wrk_with(url, header, CONNECTIONS)
}

fn h2load(url: &str, header: &str, dir: &Path) -> anyhow::Result<Load> {
    let log = dir.join("h2load.log");
    // It appends.
    if log.exists() {
        fs::remove_file(&log)?;
    }
    let text = output(
        Command::new("h2load")
            .args(["-t", "1", "-c", &CONNECTIONS.to_string(), "-m", &STREAMS.to_string()])
            .args(["-D", &SECONDS.to_string(), "-H", header, "--log-file"])
            .arg(&log)
            .arg(url),
    )?;
    ensure!(
        number(&text, r"2xx, (\d+) 3xx")? == 0.0 && text.contains(" 0 4xx, 0 5xx"),
        "not all were answered well: {text}"
    );
    // A line for each: when it began, its status, how long it took in microseconds.
    let lines = fs::read_to_string(&log)?;
    let mut times: Vec<f64> = lines.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok()).collect();
    ensure!(!times.is_empty(), "h2load logged nothing");
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] / 1000.0;
    Ok(Load { per_second: number(&text, r"finished in [^,]+, ([\d.]+) req/s")?, p50_ms: at(0.5), p99_ms: at(0.99) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(name: String, unit: &'static str, ours: Vec<f64>, theirs: Vec<f64>) -> Row {
    Row { group: "edge", name, unit, value: median(ours), baseline: Some(median(theirs)) }
}

fn small(
    name: &str,
    ground: &Ground,
    ask: impl Fn(&str, &str, &Path) -> anyhow::Result<Load>,
) -> anyhow::Result<Vec<Row>> {
    let token = ground.token()?;
    let (edge, nginx) = (ground.url(&ground.edge, "/")?, ground.url(&ground.nginx, "/")?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let both = (ask(&edge, &token, ground.dir.path())?, ask(&nginx, &token, ground.dir.path())?);
        if round > 0 {
            ours.push(both.0);
            theirs.push(both.1);
        }
    }
    let figure = |what: &str, unit, of: fn(&Load) -> f64| {
        let all = |loads: &[Load]| loads.iter().map(of).collect();
        row(format!("small answers, {name}, {what}"), unit, all(&ours), all(&theirs))
    };
    Ok(vec![
        figure("requests", "/s", |load| load.per_second),
        figure("p50", "ms", |load| load.p50_ms),
        figure("p99", "ms", |load| load.p99_ms),
    ])
}

/// One connection, one request at a time: through the edge, and to the server itself.
fn added(ground: &Ground) -> anyhow::Result<Row> {
    let token = ground.token()?;
    let (edge, direct) = (ground.url(&ground.edge, "/")?, format!("http://127.0.0.1:{}/", ground.upstream.port()?));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let both = (wrk_with(&edge, &token, 1)?, wrk_with(&direct, &token, 1)?);
        if round > 0 {
            ours.push(both.0.p50_ms);
            theirs.push(both.1.p50_ms);
        }
    }
    Ok(row("one request at a time, p50, beside direct".into(), "ms", ours, theirs))
}

fn long(name: &str, ground: &Ground, options: &[&str], up: bool) -> anyhow::Result<Row> {
    let (token, ca) = (ground.token()?, ground.edge.text("ca")?);
    let file = ground.dir.path().join("long");
    fs::File::create(&file)?.set_len(LONG)?;
    let ask = |serving: &Serving| -> anyhow::Result<f64> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--cacert", ca, "--header", &token]).args(options);
        if up {
            let said = output(
                command
                    .arg("--upload-file")
                    .arg(&file)
                    .args(["--write-out", "\n%{speed_upload}"])
                    .arg(ground.url(serving, "/")?),
            )?;
            let (length, speed) = said.trim().split_once('\n').with_context(|| format!("curl said: {said}"))?;
            ensure!(length == LONG.to_string(), "{length} bytes arrived");
            Ok(speed.parse::<f64>()? / 1e6)
        } else {
            let url = ground.url(serving, &format!("/bytes/{LONG}"))?;
            let said = output(command.args([
                "--output",
                "/dev/null",
                "--write-out",
                "%{size_download} %{speed_download}",
                &url,
            ]))?;
            let (length, speed) = said.trim().split_once(' ').with_context(|| format!("curl said: {said}"))?;
            ensure!(length == LONG.to_string(), "{length} bytes arrived");
            Ok(speed.parse::<f64>()? / 1e6)
        }
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=LONG_ROUNDS {
        let both = (ask(&ground.edge)?, ask(&ground.nginx)?);
        if round > 0 {
            ours.push(both.0);
            theirs.push(both.1);
        }
    }
    Ok(row(name.to_owned(), "MB/s", ours, theirs))
}

/// The resident memory of a process and its children, in KiB.
fn resident_kib(pid: u32) -> anyhow::Result<f64> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let mut sum = 0.0;
    for pid in children.split_whitespace().chain([pid.to_string().as_str()]) {
        sum += number(&fs::read_to_string(format!("/proc/{pid}/status"))?, r"VmRSS:\s+(\d+)")?;
    }
    Ok(sum)
}

/// A client with many connections.
struct Idle {
    child: Child,
    says: BufReader<ChildStdout>,
    tell: ChildStdin,
}

impl Idle {
    fn open(ground: &Ground, port: u16, count: usize, kind: &str) -> anyhow::Result<Self> {
        let python = repository().join("target/venv/bin/python");
        let script: PathBuf = repository().join("crates/e2e/clients/idle.py");
        let (host, ca, token) = (ground.edge.text("host")?, ground.edge.text("ca")?, ground.edge.text("token")?);
        let mut child = Command::new(python)
            .arg(script)
            .args([host, &port.to_string(), ca, token, &count.to_string(), kind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting Python")?;
        let says = BufReader::new(child.stdout.take().context("no output")?);
        let tell = child.stdin.take().context("no input")?;
        let mut idle = Self { child, says, tell };
        idle.expect("open")?;
        Ok(idle)
    }

    fn expect(&mut self, word: &str) -> anyhow::Result<()> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        if line.trim() != word {
            bail!("the idle client did not come to '{word}'");
        }
        Ok(())
    }

    /// Are all of them alive still?
    fn ask(&mut self) -> anyhow::Result<()> {
        self.tell.write_all(b"\n")?;
        self.expect("alive")
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn idle(ground: &Ground, name: &str, count: usize, kind: &str) -> anyhow::Result<Row> {
    let of = |serving: &Serving| -> anyhow::Result<f64> {
        let before = resident_kib(serving.child.id())?;
        let mut idle = Idle::open(ground, serving.port()?, count, kind)?;
        // What was needed for a moment goes back, and connections to the app that nobody uses are closed.
        std::thread::sleep(Duration::from_secs(6));
        let after = resident_kib(serving.child.id())?;
        idle.ask()?;
        Ok((after - before) / count as f64)
    };
    let ours = of(&ground.edge)?;
    // nginx needs more words for WebSocket, and is asked for none.
    let theirs = if kind == "http" { Some(of(&ground.nginx)?) } else { None };
    Ok(Row { group: "edge", name: name.to_owned(), unit: "KiB", value: ours, baseline: theirs })
}
