//! Every protocol an app may speak, from clients that people use to servers that people use.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context, bail, ensure};
use e2e::{
    Stage, aws,
    image::{self, Source},
    microvm::waking,
    repository,
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
    let output = Command::new(aws::python())
        .arg(repository().join("crates/e2e/clients/protocols.py"))
        .args([&microvm.endpoint, &microvm.token, ca])
        .output()?;
    if output.stdout != b"all spoken\n" {
        bail!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
