//! Shells, from the clients that people have: Python's websockets, and the command in a terminal.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, bail};
use e2e::{Stage, aws, microvm::waking, repository, server};
use serde_json::json;

use super::{Test, access::connector};

pub const TESTS: &[Test] = &[("shell::a_person_at_a_terminal_finds_a_shell_beside_the_app", shells)];

/// One microVM for all of it: what a test leaves behind is looked for by the next.
fn shells(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch_with(json!({
        "idlePolicy": waking(),
        "ingressNetworkConnectors": [connector("SHELL_INGRESS"), connector("HTTP_INGRESS")],
    }))?;
    let without = stage.launch()?;
    let environment: BTreeMap<String, String> = stage.server.environment()?;
    let ca = environment.get("PILOTLIGHT_CA_BUNDLE").context("no PILOTLIGHT_CA_BUNDLE")?;
    let facts = json!({
        "endpoint": microvm.endpoint, "microvm": microvm.id, "token": microvm.token, "without": without.id, "ca": ca,
        "program": server::program(), "data_dir": stage.server.data_dir(), "workdir": "/app",
    });
    let output = Command::new(aws::python())
        .arg(repository().join("crates/e2e/clients/shell.py"))
        .arg(facts.to_string())
        .envs(&environment)
        .output()?;
    if output.stdout != b"all typed\n" {
        bail!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
