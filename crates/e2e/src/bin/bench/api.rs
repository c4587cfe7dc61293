//! The API by itself: GetMicrovm and ListMicrovms with 10,000 records, over pretend VMs, every signature checked. The bare
//! baseline is a server that answers each request with one such body and looks at nothing. The load generator runs on the
//! same processors.

use anyhow::{Context, ensure};
use aws_credential_types::Credentials;
use e2e::Front;
use serde_json::{Value, json};

use crate::{
    Row,
    load::{self, Measured, Target},
    quantile,
};

/// Records there are.
const MICROVMS: usize = 10_000;

/// Connections that ask at once.
const CONNECTIONS: usize = 8;

/// How often GetMicrovm is asked; each record is described twice.
const GETS: usize = 2 * MICROVMS;

/// How often ListMicrovms is asked.
const LISTS: usize = 2000;

/// Records on a page, as many as there can be.
const PAGE: usize = 50;

/// The group.
pub fn bench() -> anyhow::Result<Vec<Row>> {
    let limit = (2 * MICROVMS).to_string();
    let front = Front::open(&["--verb-ms", "0", "--build-ms", "0", "--microvms-max", &limit])?;
    let image = front.image(json!({}))?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(&front, &image))
}

async fn measure(front: &Front, image: &str) -> anyhow::Result<Vec<Row>> {
    let target = target(front)?;
    eprintln!("launching {MICROVMS} pretend microVMs ...");
    let ids = launched(&target, image).await?;
    settle(front, &ids)?;

    eprintln!("asking for them ...");
    let gets: Vec<String> = ids.iter().cycle().take(GETS).map(|id| format!("/2025-09-09/microvms/{id}")).collect();
    let get = asked(&target, &gets).await?;
    let lists = pages(&target, image).await?;
    let list = asked(&target, &lists).await?;

    let body = |measured: &Measured| measured.bodies.first().cloned().context("no answer");
    let get_floor = floor(&target, &gets, body(&get)?).await?;
    let list_floor = floor(&target, &lists, body(&list)?).await?;
    let mut rows = figures("GetMicrovm of 10,000", &get, &get_floor);
    rows.extend(figures("ListMicrovms of 10,000, pages of 50", &list, &list_floor));
    Ok(rows)
}

fn figures(name: &str, ours: &Measured, floor: &Measured) -> Vec<Row> {
    let row = |what: &str, unit, value, baseline| Row {
        group: "api",
        name: format!("{name}, {what}"),
        unit,
        value,
        baseline: Some(baseline),
    };
    let mut rows: Vec<_> = [("p50", 0.5), ("p99", 0.99)]
        .into_iter()
        .map(|(label, share)| row(label, "ms", quantile(&ours.times, share), quantile(&floor.times, share)))
        .collect();
    rows.push(row("throughput", "/s", ours.rate(), floor.rate()));
    rows
}

fn target(front: &Front) -> anyhow::Result<Target> {
    let environment = front.server.environment()?;
    let value = |name: &str| environment.get(name).cloned().with_context(|| format!("no {name}"));
    let url = value("AWS_ENDPOINT_URL")?;
    Ok(Target {
        address: url.trim_start_matches("http://").trim_end_matches('/').to_owned(),
        credentials: Credentials::new(
            value("AWS_ACCESS_KEY_ID")?,
            value("AWS_SECRET_ACCESS_KEY")?,
            None,
            None,
            "benchmark",
        ),
        region: value("AWS_REGION")?,
    })
}

async fn launched(target: &Target, image: &str) -> anyhow::Result<Vec<String>> {
    let body = json!({"imageIdentifier": image}).to_string();
    let mut ids = Vec::new();
    // In parts, because a signature is good for five minutes.
    while ids.len() < MICROVMS {
        let requests: Result<Vec<_>, _> =
            (0..1000).map(|_| target.request("POST", "/2025-09-09/microvms", &body)).collect();
        let measured = load::run(&target.address, requests?, CONNECTIONS, true).await?;
        for body in measured.bodies {
            let answer: Value = serde_json::from_slice(&body)?;
            ids.push(answer["microvmId"].as_str().context("no microvmId")?.to_owned());
        }
    }
    Ok(ids)
}

/// Every launch is over: what is measured is not measured beside it.
fn settle(front: &Front, ids: &[String]) -> anyhow::Result<()> {
    for id in ids.iter().rev().step_by(100) {
        front.await_microvm(id, "RUNNING")?;
    }
    Ok(())
}

async fn asked(target: &Target, targets: &[String]) -> anyhow::Result<Measured> {
    let signed = || targets.iter().map(|path| target.request("GET", path, "")).collect::<Result<Vec<_>, _>>();
    // Once to warm up, signed anew because each signature has its time.
    load::run(&target.address, signed()?.into_iter().take(500).collect(), CONNECTIONS, false).await?;
    load::run(&target.address, signed()?, CONNECTIONS, true).await
}

/// A good part of all pages, first and last, of everything and of one image.
async fn pages(target: &Target, image: &str) -> anyhow::Result<Vec<String>> {
    let image = image.replace(':', "%3A");
    let mut paths = Vec::new();
    for filter in [String::new(), format!("&imageIdentifier={image}")] {
        let first = format!("/2025-09-09/microvms?maxResults={PAGE}{filter}");
        let mut path = first.clone();
        for _ in 0..MICROVMS / PAGE {
            paths.push(path.clone());
            let page = load::run(&target.address, vec![target.request("GET", &path, "")?], 1, true).await?;
            let page: Value = serde_json::from_slice(&page.bodies[0])?;
            ensure!(page["items"].as_array().map(Vec::len) == Some(PAGE), "not a full page");
            let Some(token) = page["nextToken"].as_str() else { break };
            path = format!("{first}&nextToken={}", token.replace('=', "%3D"));
        }
    }
    Ok(paths.iter().cycle().take(LISTS).cloned().collect())
}

/// The same requests to a server that does nothing.
async fn floor(target: &Target, targets: &[String], body: Vec<u8>) -> anyhow::Result<Measured> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let bare = Target {
        address: listener.local_addr()?.to_string(),
        credentials: target.credentials.clone(),
        region: target.region.clone(),
    };
    let answer = axum::Router::new().fallback(move || {
        let body = body.clone();
        async move { ([(http::header::CONTENT_TYPE, "application/json")], body) }
    });
    let server = tokio::spawn(async move { axum::serve(listener, answer).await });
    let measured = asked(&bare, targets).await;
    server.abort();
    measured
}
