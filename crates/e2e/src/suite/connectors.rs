//! Network connectors: their life through boto3, and what they do to a guest's packets.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use e2e::{Microvm, Stage, aws, server::OFFLINE_SUBNET, until};
use serde_json::{Value, json};

use super::Test;

pub const TESTS: &[Test] = &[
    ("connector::a_connector_is_made_updated_and_deleted", life),
    ("connector::a_microvm_whose_connector_leads_nowhere_reaches_nothing", offline),
];

fn call(stage: &Stage, operation: &str, parameters: Value) -> anyhow::Result<Value> {
    stage.aws.call("lambda-core", operation, parameters)
}

fn configuration(subnets: &[&str]) -> Value {
    json!({"VpcEgressConfiguration": {
        "SubnetIds": subnets, "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"],
    }})
}

fn made(stage: &Stage, name: &str) -> anyhow::Result<String> {
    let parameters = json!({
        "Name": name, "Configuration": configuration(&[OFFLINE_SUBNET]),
        "OperatorRole": "arn:aws:iam::000000000000:role/net",
    });
    let created = call(stage, "create_network_connector", parameters)?;
    ensure!(created["State"] == "PENDING", "{created}");
    active(stage, name)?;
    Ok(created["Arn"].as_str().context("no Arn")?.to_owned())
}

fn active(stage: &Stage, name: &str) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    until("the connector to be ACTIVE", Duration::from_secs(20), || {
        last = call(stage, "get_network_connector", json!({"Identifier": name}))?;
        ensure!(last["State"] == "ACTIVE" && last["LastUpdateStatus"] != "InProgress", "{last}");
        Ok(())
    })?;
    Ok(last)
}

fn gone(stage: &Stage, name: &str) -> anyhow::Result<()> {
    call(stage, "delete_network_connector", json!({"Identifier": name}))?;
    until("the connector to be gone", Duration::from_secs(20), || {
        let refusal = stage.aws.refusal_as(
            "lambda-core",
            "get_network_connector",
            json!({"Identifier": name}),
            &aws::Signer::default(),
        )?;
        ensure!(refusal.code == "ResourceNotFoundException" && refusal.status == 404, "{refusal}");
        Ok(())
    })
}

fn life(stage: &mut Stage) -> anyhow::Result<()> {
    let arn = made(stage, "life")?;
    let no_op = json!({"Identifier": "life", "Configuration": configuration(&[OFFLINE_SUBNET])});
    let same = call(stage, "update_network_connector", no_op)?;
    ensure!(same["LastUpdateStatusReason"] == "No configuration changes detected" && same["Version"] == 1, "{same}");
    let role = json!({"Identifier": arn, "OperatorRole": "arn:aws:iam::000000000000:role/other"});
    call(stage, "update_network_connector", role)?;
    let updated = active(stage, "life")?;
    ensure!(updated["OperatorRole"] == "arn:aws:iam::000000000000:role/other", "{updated}");
    stage.server.crash()?;
    stage.up()?;
    ensure!(active(stage, "life")? == updated, "a crash changed it");
    let unknown = json!({"Identifier": "life", "Configuration": configuration(&["subnet-nowhere"])});
    let refusal = stage.aws.refusal_as("lambda-core", "update_network_connector", unknown, &aws::Signer::default())?;
    ensure!(
        refusal.code == "InvalidParameterValueException" && refusal.message.contains("subnet-nowhere"),
        "{refusal}"
    );
    gone(stage, "life")
}

/// A neighbour of this machine with an address that is neither private nor anybody's (TEST-NET-3), serving HTTP.
struct Outside {
    namespace: String,
    server: Option<Child>,
}

const OUTSIDE: &str = "203.0.113.2";
const OUTSIDE_PORT: &str = "8099";

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Outside {
    fn new() -> anyhow::Result<Self> {
        let namespace = format!("pl-e2e-{}", std::process::id());
        ip(&["netns", "add", &namespace])?;
        let mut outside = Self { namespace, server: None };
        let netns = outside.namespace.clone();
        let link = format!("ple{}", std::process::id() % 100_000_000);
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
        ip(&["address", "add", "203.0.113.1/30", "dev", &link])?;
        ip(&["link", "set", &link, "up"])?;
        ip(&["-n", &netns, "address", "add", &format!("{OUTSIDE}/30"), "dev", "eth0"])?;
        ip(&["-n", &netns, "link", "set", "eth0", "up"])?;
        let server = Command::new("ip")
            .args(["netns", "exec", &netns])
            .arg(aws::python())
            .args(["-m", "http.server", "--bind", OUTSIDE, OUTSIDE_PORT])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        outside.server = Some(server);
        let address = format!("{OUTSIDE}:{OUTSIDE_PORT}");
        until("the neighbour to serve", Duration::from_secs(20), || {
            std::net::TcpStream::connect_timeout(&address.parse()?, Duration::from_secs(1))?;
            Ok(())
        })?;
        Ok(outside)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        // Its link goes with it.
        let _ = ip(&["netns", "delete", &self.namespace]);
    }
}

/// Whether a guest gets through to the neighbour.
fn reaches(stage: &Stage, microvm: &Microvm) -> anyhow::Result<bool> {
    let target = format!("{OUTSIDE}:{OUTSIDE_PORT}");
    let answer = stage.fetch(microvm, &format!("/probe/connect?to={target}"))?;
    match answer["reached"].as_array().context("no list")?.as_slice() {
        [] => Ok(false),
        [only] if *only == json!(target) => Ok(true),
        other => bail!("{other:?}"),
    }
}

fn offline(stage: &mut Stage) -> anyhow::Result<()> {
    let outside = Outside::new()?;
    let arn = made(stage, "offline")?;
    let free = stage.launch()?;
    ensure!(reaches(stage, &free)?, "nothing is reached even without a connector, so this shows nothing");
    let offline = stage.launch_with(json!({
        "egressNetworkConnectors": [arn], "idlePolicy": e2e::microvm::waking(),
    }))?;
    ensure!(stage.describe(&offline.id)?["egressNetworkConnectors"] == json!([arn]), "another connector is shown");
    ensure!(!reaches(stage, &offline)?, "it got out");
    stage.suspend(&offline)?;
    ensure!(!reaches(stage, &offline)?, "it got out once it had been suspended");
    stage.server.crash()?;
    stage.up()?;
    ensure!(!reaches(stage, &offline)?, "it got out once the server had been killed");

    let refusal = stage.aws.refusal_as(
        "lambda-core",
        "delete_network_connector",
        json!({"Identifier": "offline"}),
        &aws::Signer::default(),
    )?;
    ensure!(refusal.code == "ResourceConflictException" && refusal.status == 409, "{refusal}");
    stage.clear()?;
    gone(stage, "offline")?;
    drop(outside);
    Ok(())
}
