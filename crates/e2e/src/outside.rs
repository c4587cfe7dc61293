//! A machine of the internet that guests can call: a network namespace beside the host, with an address that is nobody's.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, ensure};

use crate::sweep;

/// Says back every line, for as long as its standard input is open.
const ECHO: &str = "\
import socketserver, sys, threading
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer.daemon_threads = True
server = socketserver.ThreadingTCPServer(('0.0.0.0', 7), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
print('ready', flush=True)
sys.stdin.read()
";

/// One such machine; gone when dropped.
pub struct Outside {
    namespace: String,
    link: String,
    address: String,
    server: Child,
}

impl Outside {
    /// Makes it and waits until it answers.
    pub fn open() -> anyhow::Result<Self> {
        // TEST-NET-3 (RFC 5737) is not among the networks kept from guests. A link of four addresses for each process.
        let process = std::process::id();
        let [near, far] = [1, 2].map(|host| format!("203.0.113.{}", process % 64 * 4 + host));
        let (namespace, link) = (format!("pl-outside-{process}"), format!("plo{process}"));
        sweep::register_namespace(&namespace, &link);
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("link add {link} type veth peer name up0 netns {namespace}"))?;
        ip(&format!("address add {near}/30 dev {link}"))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!("-netns {namespace} address add {far}/30 dev up0"))?;
        ip(&format!("-netns {namespace} link set up0 up"))?;
        let mut server = Command::new("ip")
            .args(["netns", "exec", &namespace, "python3", "-c", ECHO])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(server.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
        let outside = Self { namespace, link, address: format!("{far}:7"), server };
        ensure!(line == "ready\n", "the server outside did not start");
        Ok(outside)
    }

    /// Where it answers: `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.server.kill();
        let _ = self.server.wait();
        sweep::namespace(&self.namespace, &self.link);
    }
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
