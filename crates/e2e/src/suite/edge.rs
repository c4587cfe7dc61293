//! The data plane: who gets through, to which port, and what the app sees.

use std::process::{Command, Output};

use anyhow::{Context, ensure};
use e2e::{HttpAnswer, Microvm, Stage, microvm::LOOPBACK_PORT, server};
use serde_json::{Value, json};

use super::Test;

pub const TESTS: &[Test] = &[
    ("edge::an_app_on_loopback_alone_is_reached_and_sees_loopback", loopback),
    ("edge::no_token_is_refused", no_token),
    ("edge::a_forged_token_is_refused", forged),
    ("edge::the_token_of_another_microvm_is_refused", of_another),
    ("edge::a_port_outside_the_token_is_refused", port_outside),
    ("edge::a_host_that_is_no_microvm_is_refused", unknown_host),
    ("edge::a_port_header_that_is_no_port_is_a_bad_request", bad_port),
    ("edge::a_port_nobody_listens_on_is_a_bad_gateway", nobody_listens),
    ("edge::a_suspended_microvm_without_auto_resume_is_a_bad_gateway", asleep),
    ("edge::a_refused_request_wakes_nothing", refusal_wakes_nothing),
    ("edge::a_token_made_before_a_suspend_works_after_it", token_survives),
    ("edge::headers_of_the_proxy_do_not_reach_the_app", stripped),
    ("edge::bodies_stream_as_they_are_made", streams),
    ("edge::a_large_body_arrives_whole", large_body),
];

fn with(stage: &Stage, microvm: &Microvm, path: &str, headers: &Value) -> anyhow::Result<HttpAnswer> {
    let mut request = stage.request(microvm, path);
    for (name, value) in headers.as_object().context("headers are an object")? {
        request["headers"][name] = value.clone();
    }
    stage.aws.ask(request)
}

fn refused(answer: &HttpAnswer, body: &str) -> anyhow::Result<()> {
    ensure!(answer.status == 403 && answer.body == body, "HTTP {}: {:?}", answer.status, answer.body);
    Ok(())
}

fn loopback(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let answer = with(stage, &microvm, "/", &json!({"X-aws-proxy-port": LOOPBACK_PORT.to_string()}))?;
    ensure!(answer.status == 200 && answer.body == "peer 127.0.0.1", "HTTP {}: {}", answer.status, answer.body);
    Ok(())
}

fn no_token(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let mut request = stage.request(&microvm, "/");
    request["headers"] = json!({});
    refused(&stage.aws.ask(request.clone())?, "Request missing authentication")?;
    request["headers"] = json!({"X-aws-proxy-auth": "not a token"});
    refused(&stage.aws.ask(request)?, "Request missing authentication")
}

fn forged(stage: &mut Stage) -> anyhow::Result<()> {
    let mut microvm = stage.launch()?;
    let (front, tag) = microvm.token.rsplit_once('.').context("a token has dots")?;
    let first = if tag.starts_with('A') { 'B' } else { 'A' };
    microvm.token = format!("{front}.{first}{}", &tag[1..]);
    refused(&stage.get(&microvm, "/")?, "Token authentication failed")
}

fn of_another(stage: &mut Stage) -> anyhow::Result<()> {
    let (mut one, two) = (stage.launch()?, stage.launch()?);
    one.token = two.token;
    refused(&stage.get(&one, "/")?, "Token authentication failed")
}

fn port_outside(stage: &mut Stage) -> anyhow::Result<()> {
    let mut microvm = stage.launch()?;
    microvm.token = stage.token(&microvm.id, json!([{"range": {"startPort": 9000, "endPort": 9002}}, {"port": 80}]))?;
    refused(&stage.get(&microvm, "/")?, "Access to port denied")?;
    refused(&with(stage, &microvm, "/", &json!({"X-aws-proxy-port": "9003"}))?, "Access to port denied")?;
    let inside = with(stage, &microvm, "/", &json!({"X-aws-proxy-port": "9001"}))?;
    ensure!(inside.status == 200, "HTTP {}: {}", inside.status, inside.body);
    Ok(())
}

fn unknown_host(stage: &mut Stage) -> anyhow::Result<()> {
    let mut microvm = stage.launch()?;
    let (label, rest) = microvm.endpoint.split_once('.').context("an endpoint has dots")?;
    let other = if label.starts_with('0') { '1' } else { '0' };
    microvm.endpoint = format!("{other}{}.{rest}", &label[1..]);
    refused(&stage.get(&microvm, "/")?, "Token authentication failed")
}

fn bad_port(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    for port in ["0", "65536", "http", "-1", "80 80"] {
        let answer = with(stage, &microvm, "/", &json!({"X-aws-proxy-port": port}))?;
        ensure!(answer.status == 400, "port '{port}': HTTP {}", answer.status);
    }
    Ok(())
}

fn nobody_listens(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let answer = with(stage, &microvm, "/", &json!({"X-aws-proxy-port": "12345"}))?;
    ensure!(answer.status == 502 && answer.body.is_empty(), "HTTP {}: {}", answer.status, answer.body);
    Ok(())
}

fn asleep(stage: &mut Stage) -> anyhow::Result<()> {
    let policy = json!({"maxIdleDurationSeconds": 600, "suspendedDurationSeconds": 600, "autoResumeEnabled": false});
    for parameters in [json!({"idlePolicy": policy}), json!({})] {
        let microvm = stage.launch_with(parameters)?;
        stage.suspend(&microvm)?;
        let answer = stage.get(&microvm, "/")?;
        ensure!(answer.status == 502 && answer.body.is_empty(), "HTTP {}: {}", answer.status, answer.body);
        ensure!(stage.describe(&microvm.id)?["state"] == "SUSPENDED", "it was woken");
    }
    Ok(())
}

fn refusal_wakes_nothing(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    stage.suspend(&microvm)?;
    let mut stranger = microvm.clone();
    stranger.token = stage.token(&microvm.id, json!([{"port": 1}]))?;
    refused(&stage.get(&stranger, "/")?, "Access to port denied")?;
    ensure!(stage.describe(&microvm.id)?["state"] == "SUSPENDED", "a refused request woke it");
    Ok(())
}

fn token_survives(stage: &mut Stage) -> anyhow::Result<()> {
    let mut microvm = stage.launch()?;
    stage.suspend(&microvm)?;
    ensure!(stage.get(&microvm, "/probe/count")?.status == 200, "the old token is refused");
    stage.suspend(&microvm)?;
    microvm.token = stage.token(&microvm.id, json!([{"port": 8080}]))?;
    ensure!(stage.describe(&microvm.id)?["state"] == "SUSPENDED", "making a token woke it");
    ensure!(stage.count(&microvm)? == 2, "the counter was lost");
    Ok(())
}

fn stripped(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let sent =
        json!({"X-Aws-Proxy-Port": "8080", "x-aws-proxy-whatever": "x", "X-Mine": "kept", "traceparent": "00-1"});
    let seen = with(stage, &microvm, "/probe/echo", &sent)?.json()?;
    let headers = seen["headers"].as_object().context("no headers")?;
    ensure!(!headers.keys().any(|name| name.starts_with("x-aws-proxy")), "{headers:?}");
    ensure!(headers["x-mine"] == "kept" && headers["traceparent"] == "00-1", "{headers:?}");
    ensure!(headers["host"] == json!(microvm.endpoint), "{headers:?}");
    ensure!(headers.contains_key("x-amzn-requestid") && !headers.contains_key("x-forwarded-for"), "{headers:?}");
    ensure!(seen["peer"] == "127.0.0.1", "{seen}");
    follow_link(stage, &microvm)
}

fn link(stage: &Stage, microvm: &Microvm) -> anyhow::Result<Output> {
    let mut command = Command::new(server::program());
    command.args(["link", &microvm.id, "--to", "/probe/echo", "--data-dir"]).arg(stage.server.data_dir());
    Ok(command.output()?)
}

/// Whoever asks for a link to a microVM whose image allows none is told so.
pub fn links_nowhere(stage: &Stage, microvm: &Microvm) -> anyhow::Result<()> {
    let link = link(stage, microvm)?;
    let told = String::from_utf8_lossy(&link.stderr);
    ensure!(!link.status.success() && link.stdout.is_empty() && told.contains("allows no links"), "{link:?}");
    Ok(())
}

/// As a browser does that was given what `pilotlight link` prints.
fn follow_link(stage: &mut Stage, microvm: &Microvm) -> anyhow::Result<()> {
    let link = link(stage, microvm)?;
    ensure!(link.status.success(), "{}", String::from_utf8_lossy(&link.stderr));
    let link = String::from_utf8(link.stdout)?;
    let path = link.trim().strip_prefix(&format!("https://{}", microvm.endpoint)).context("another endpoint")?;
    let mut request = stage.request(microvm, path);
    request["headers"] = json!({});
    let led = stage.aws.ask(request)?;
    ensure!(led.status == 303 && led.headers["location"] == "/probe/echo", "{led:?}");
    let cookie = led.headers["set-cookie"].split(';').next().context("no cookie")?;
    let mut request = stage.request(microvm, &led.headers["location"]);
    request["headers"] = json!({"Cookie": format!("own=1; {cookie}")});
    let seen = stage.aws.ask(request)?.json()?;
    ensure!(seen["headers"]["cookie"] == "own=1", "{seen}");
    Ok(())
}

fn streams(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let answer = stage.get(&microvm, "/probe/stream")?;
    ensure!(answer.body == "piece 0\npiece 1\npiece 2\n", "{}", answer.body);
    ensure!(
        answer.ms - answer.first_byte_ms > 1000.0,
        "the first piece came after {} ms of {}",
        answer.first_byte_ms,
        answer.ms
    );
    Ok(())
}

fn large_body(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let body = "0123456789abcdef".repeat(1 << 15);
    let mut request = stage.request(&microvm, "/probe/echo");
    request["method"] = json!("POST");
    request["body"] = json!(body);
    let seen = stage.aws.ask(request)?.json()?;
    ensure!(seen["body"] == json!(body), "the body came back changed");
    Ok(())
}
