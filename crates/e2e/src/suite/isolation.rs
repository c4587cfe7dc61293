//! What a guest cannot reach.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use e2e::Stage;

use super::Test;

pub const TESTS: &[Test] =
    &[("isolation::a_guest_reaches_neither_the_host_nor_its_neighbours", neither_host_nor_neighbours)];

fn neither_host_nor_neighbours(stage: &mut Stage) -> anyhow::Result<()> {
    let (one, two) = (stage.launch()?, stage.launch()?);
    stage.count(&two)?;
    let open = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = open.local_addr()?.port();

    // Every address this machine has, its ends of the guests' links among them; all reached from here.
    let output = Command::new("ip").args(["-4", "-oneline", "address"]).output()?;
    let output = String::from_utf8(output.stdout)?;
    let hosts: Vec<Ipv4Addr> = output
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok())
        .filter(|address: &Ipv4Addr| !address.is_loopback())
        .collect();
    ensure!(!hosts.is_empty(), "this machine has no address:\n{output}");
    for host in &hosts {
        TcpStream::connect_timeout(&(*host, port).into(), Duration::from_secs(2))?;
    }
    let mut forbidden: Vec<String> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
    // The other ends of the links are the namespaces of the guests; the app of each listens on 8080.
    forbidden.extend(hosts.iter().map(|host| format!("{}:8080", Ipv4Addr::from(u32::from(*host) + 1))));
    forbidden.extend(["169.254.100.1:8080", "169.254.169.254:80"].map(str::to_owned));
    // The server's own doors, by every address, and by the one a guest has for its host.
    let facts = stage.server.facts()?;
    let api = facts["api_url"].as_str().and_then(|url| url.trim_end_matches('/').rsplit(':').next()?.parse().ok());
    let (api, edge): (u64, _) = (api.context("no api_url")?, facts["edge_port"].as_u64().context("no edge_port")?);
    for door in [api, edge] {
        let addresses = hosts.iter().copied().chain([Ipv4Addr::new(169, 254, 100, 1)]);
        forbidden.extend(addresses.map(|host| format!("{host}:{door}")));
    }

    // Its own app, as a proof that the question is answered truthfully.
    let own = "127.0.0.1:8080".to_owned();
    for addresses in forbidden.chunks(16) {
        let query: String = addresses.iter().chain([&own]).map(|to| format!("to={to}&")).collect();
        let answer = stage.fetch(&one, &format!("/probe/connect?{query}"))?;
        ensure!(answer["reached"] == serde_json::json!([own]), "reached: {answer}");
    }
    Ok(())
}
