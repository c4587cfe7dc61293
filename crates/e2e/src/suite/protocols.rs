//! Every protocol an app may speak, from clients that people use to servers that people use.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context, bail, ensure};
use e2e::{
    Stage, aws,
    image::{self, Source},
    microvm::waking,
    repository, server,
};
use serde_json::json;

use super::Test;

pub const TESTS: &[Test] = &[("protocols::grpc_http_tls_and_web_sockets_go_through_an_endpoint", every_protocol)];

const DOCKERFILE: &str = "\
FROM pilotlight/python:3
WORKDIR /app
COPY . .
RUN pip install --no-index --find-links . --break-system-packages grpcio websockets && rm *.whl
EXPOSE 8080
CMD [\"python3\", \"app.py\"]
";

/// The servers, their packages and a certificate of their own.
fn source() -> anyhow::Result<Source> {
    let mut source = Source::dockerfile(DOCKERFILE).with("app.py", include_bytes!("../../protocols/app.py"));
    let wheels = repository().join("target/wheels");
    for entry in fs::read_dir(&wheels).context("target/wheels is made by `make setup-tests`")? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a wheel has a name")?;
        if name.ends_with(".whl") {
            source = source.with(name, &fs::read(&path)?);
        }
    }
    let own = rcgen::generate_simple_self_signed(vec!["inside.test".to_owned()])?;
    Ok(source.with("cert.pem", own.cert.pem().as_bytes()).with("key.pem", own.signing_key.serialize_pem().as_bytes()))
}

fn every_protocol(stage: &mut Stage) -> anyhow::Result<()> {
    let zip = stage.scratch("protocols.zip");
    source()?.zip(&zip)?;
    let created = image::create(&stage.aws, "protocols", &zip)?;
    let image = image::settled(&stage.aws, created)?;
    ensure!(image.state() == "CREATED", "{}: {}", image.state(), image.reason());
    let spoken = speak(stage, &image.arn);
    stage.clear()?;
    stage.aws.microvms("delete_microvm_image", json!({"imageIdentifier": image.arn}))?;
    spoken
}

fn speak(stage: &Stage, image: &str) -> anyhow::Result<()> {
    let microvm = stage.launch_with(json!({"imageIdentifier": image, "idlePolicy": waking()}))?;
    let environment: BTreeMap<String, String> = stage.server.environment()?;
    let ca = environment.get("PILOTLIGHT_CA_BUNDLE").context("no PILOTLIGHT_CA_BUNDLE")?;
    let clients = repository().join("crates/e2e/clients");
    let python = |script: &str| {
        let mut command = Command::new(aws::python());
        command.arg(clients.join(script)).args([&microvm.endpoint, &microvm.token, ca]);
        command
    };
    said("all spoken", &mut python("protocols.py"))?;
    let mut node = Command::new("node");
    node.arg(clients.join("websocket.mjs")).arg(repository().join("target/node"));
    node.args([&microvm.endpoint, &microvm.token]).env("NODE_EXTRA_CA_CERTS", ca);
    said("all heard", &mut node)?;
    if is_ubuntu()? {
        eprintln!("NOT TRIED: Ubuntu packages no browser that starts here; Debian's is in this test");
        return Ok(());
    }
    said("all shown", python("browser.py").arg(link(stage, &microvm.id)?))
}

/// What a person is sent to see the page.
fn link(stage: &Stage, microvm: &str) -> anyhow::Result<String> {
    let mut command = Command::new(server::program());
    command.args(["link", microvm, "--port", "8081", "--to", "/?from=link", "--data-dir"]).arg(stage.server.data_dir());
    let output = command.output()?;
    ensure!(output.status.success(), "no link: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// Runs a client that says these words if all went well.
fn said(words: &str, client: &mut Command) -> anyhow::Result<()> {
    let output = client.output().with_context(|| format!("{client:?}: made by `make setup-tests`"))?;
    if String::from_utf8_lossy(&output.stdout).trim_end() != words {
        bail!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// What Ubuntu calls a browser's package fetches one for a service that is not in containers.
fn is_ubuntu() -> anyhow::Result<bool> {
    Ok(fs::read_to_string("/etc/os-release")?.lines().any(|line| line == "ID=ubuntu"))
}
