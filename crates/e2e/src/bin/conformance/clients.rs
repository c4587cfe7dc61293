//! The other clients: the aws CLI, AWS's SDKs for JavaScript and Rust, and what polls as Terraform and CloudFormation do.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use e2e::{aws, model::words_apart, repository, until};
use serde_json::{Value, json};

use crate::{Test, entries::Entry, ground::Ground};

pub const TESTS: &[Test] = &[
    ("clients::javascript_sdk", javascript),
    ("clients::rust_sdk", crate::rust_sdk::life),
    ("clients::aws_cli_by_endpoint_url", endpoint_url),
    ("clients::aws_cli_errors", cli_errors),
    ("clients::a_poller_sees_an_image_through", image_poller),
    ("clients::a_poller_sees_a_microvm_through", microvm_poller),
    ("clients::arns_in_paths_raw_and_encoded", paths),
    ("clients::a_repeated_token_answers_the_same", client_tokens),
];

/// Operations that boto3's model has and that of an aws CLI in use does not.
const NEWER_THAN_THE_CLI: &[&str] = &["ListNetworkConnectorVersions"];

/// Longest wait of a poller.
const PATIENCE: Duration = Duration::from_secs(30);

fn run(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn cli(arguments: &[&str]) -> Command {
    let mut command = Command::new(aws::python());
    // One try, so that an error is seen; no pager, no configuration of this machine's.
    command
        .args(["-m", "awscli"])
        .args(arguments)
        .envs([("AWS_MAX_ATTEMPTS", "1"), ("AWS_PAGER", ""), ("AWS_CONFIG_FILE", "/dev/null")])
        .env_remove("AWS_PROFILE");
    command
}

/// The aws CLI with what `pilotlight env` prints; what it wrote.
pub fn aws_cli(ground: &Ground, arguments: &[&str]) -> anyhow::Result<String> {
    run(cli(arguments).envs(ground.front.server.environment()?))
}

/// Each operation by the aws CLI, at least once.
pub fn by_cli(ground: &Ground, entry: &Entry) -> anyhow::Result<()> {
    let (_, operation) = ground.operation(entry.name)?;
    let parameters = (entry.minimal)(ground)?;
    let verb = words_apart(entry.name, '-');
    let parameters = parameters.to_string();
    let said = aws_cli(ground, &[operation.service, &verb, "--output", "json", "--cli-input-json", &parameters]);
    if let Err(error) = &said
        && NEWER_THAN_THE_CLI.contains(&entry.name)
        && error.to_string().contains("nvalid choice")
    {
        eprintln!("{}: this aws CLI does not know it", entry.name);
        return Ok(());
    }
    let said = said?;
    // Verbs without an answer print nothing.
    let answer: Value = if said.trim().is_empty() { json!({}) } else { serde_json::from_str(&said)? };
    crate::checks::tidy(ground, entry, &answer)
}

fn endpoint_url(ground: &Ground) -> anyhow::Result<()> {
    let mut environment = ground.front.server.environment()?;
    let url = environment.remove("AWS_ENDPOINT_URL").context("no AWS_ENDPOINT_URL")?;
    let arguments = ["--endpoint-url", &url, "lambda-microvms", "get-microvm", "--microvm-identifier", &ground.microvm];
    let said = run(cli(&arguments).envs(&environment).env_remove("AWS_ENDPOINT_URL"))?;
    let answer: Value = serde_json::from_str(&said)?;
    ensure!(answer["microvmId"] == json!(ground.microvm) && answer["state"] == "RUNNING", "{answer}");
    Ok(())
}

fn cli_errors(ground: &Ground) -> anyhow::Result<()> {
    let error = aws_cli(ground, &["lambda-microvms", "get-microvm", "--microvm-identifier", "nothing"]);
    let error = error.err().context("it was answered")?.to_string();
    let wanted = "An error occurred (ResourceNotFoundException) when calling the GetMicrovm operation: MicroVM not \
                  found: nothing";
    ensure!(error.contains(wanted), "{error}");
    Ok(())
}

fn javascript(ground: &Ground) -> anyhow::Result<()> {
    let script = repository().join("crates/e2e/clients/life.mjs");
    let artifact = format!("s3://{}/{}", e2e::image::BUCKET, e2e::front::ARTIFACT);
    let mut node = Command::new("node");
    node.arg(script).arg(repository().join("target/node")).arg(artifact).envs(ground.front.server.environment()?);
    let said = run(&mut node).context("made by `make setup-tests`")?;
    ensure!(said.trim() == "lived", "{said}");
    Ok(())
}

/// The states a poller meets, each once, until one that it takes for the end.
fn states_until(ends: &[&str], mut ask: impl FnMut() -> anyhow::Result<String>) -> anyhow::Result<Vec<String>> {
    let mut states: Vec<String> = Vec::new();
    until(ends[0], PATIENCE, || {
        let state = ask()?;
        if states.last() != Some(&state) {
            states.push(state.clone());
        }
        ensure!(ends.contains(&state.as_str()), "seen: {states:?}");
        Ok(())
    })?;
    Ok(states)
}

fn state_of(ground: &Ground, operation: &str, parameters: Value) -> anyhow::Result<String> {
    match ground.call(operation, parameters) {
        Ok(answer) => Ok(answer["state"].as_str().context("no state")?.to_owned()),
        Err(error) => match error.downcast::<e2e::AwsError>()? {
            // What resource providers take for gone: nothing else will do.
            error if error.code == "ResourceNotFoundException" && error.status == 404 => Ok("404".to_owned()),
            error => Err(error.into()),
        },
    }
}

/// CREATING → CREATED, UPDATING → UPDATED, then DELETING → 404, with nothing between that a provider would not know.
fn image_poller(ground: &Ground) -> anyhow::Result<()> {
    let arn = ground.front.begin_image(json!({"SIM_BUILD_MS": "300"}))?;
    let of_image = json!({"imageIdentifier": arn});
    let ask = || state_of(ground, "GetMicrovmImage", of_image.clone());
    let states = states_until(&["CREATED", "CREATE_FAILED"], ask)?;
    ensure!(states == ["CREATING", "CREATED"], "{states:?}");
    let mut update = e2e::image::create_parameters("", e2e::front::ARTIFACT);
    update.as_object_mut().map(|members| members.remove("name"));
    update["imageIdentifier"] = json!(arn);
    update["environmentVariables"] = json!({"SIM_BUILD_MS": "300"});
    ground.call("UpdateMicrovmImage", update)?;
    let states = states_until(&["UPDATED", "UPDATE_FAILED"], ask)?;
    ensure!(states == ["UPDATING", "UPDATED"], "{states:?}");
    let deleted = ground.call("DeleteMicrovmImage", of_image.clone())?;
    ensure!(deleted["state"] == "DELETING", "{deleted}");
    let states = states_until(&["404", "DELETE_FAILED"], ask)?;
    ensure!(states.iter().all(|state| ["DELETING", "404"].contains(&state.as_str())), "{states:?}");
    Ok(())
}

/// PENDING → RUNNING, then → TERMINATED, which providers take for gone.
fn microvm_poller(ground: &Ground) -> anyhow::Result<()> {
    let image = ground.front.image(json!({"SIM_RUN_MS": "300", "SIM_TERMINATE_MS": "300"}))?;
    let run = ground.call("RunMicrovm", json!({"imageIdentifier": image}))?;
    ensure!(run["state"] == "PENDING", "{run}");
    let of_microvm = json!({"microvmIdentifier": run["microvmId"]});
    let ask = || state_of(ground, "GetMicrovm", of_microvm.clone());
    let states = states_until(&["RUNNING", "TERMINATED"], ask)?;
    ensure!(states == ["PENDING", "RUNNING"], "{states:?}");
    ground.call("TerminateMicrovm", of_microvm.clone())?;
    let states = states_until(&["TERMINATED", "404"], ask)?;
    ensure!(states == ["TERMINATING", "TERMINATED"], "{states:?}");
    Ok(())
}

fn paths(ground: &Ground) -> anyhow::Result<()> {
    for arn in [ground.image.clone(), ground.image.replace(':', "%3A")] {
        let target = format!("/2025-09-09/microvm-images/{arn}");
        let answer = ground.front.aws.raw(json!({
            "method": "GET", "target": target, "service": "lambda-microvms", "operation": "GetMicrovmImage",
        }))?;
        ensure!(answer.status == 200, "{target}: {answer}");
    }
    Ok(())
}

fn client_tokens(ground: &Ground) -> anyhow::Result<()> {
    let token = ground.front.name("repeated");
    let run = json!({"imageIdentifier": ground.image, "clientToken": token});
    let first = ground.call("RunMicrovm", run.clone())?;
    let again = ground.call("RunMicrovm", run.clone())?;
    ensure!(first == again, "{first} and {again}");
    let mut other = run.clone();
    other["maximumDurationInSeconds"] = json!(600);
    let error = ground.call("RunMicrovm", other).err().context("it was answered")?.downcast::<e2e::AwsError>()?;
    ensure!(error.code == "ConflictException" && error.status == 409, "{error}");
    ground.front.terminate(first["microvmId"].as_str().context("no microvmId")?)?;
    // Nothing that has ended is replayed.
    let fresh = ground.call("RunMicrovm", run)?;
    ensure!(fresh["microvmId"] != first["microvmId"], "{fresh}");
    ground.front.terminate(fresh["microvmId"].as_str().context("no microvmId")?)
}
