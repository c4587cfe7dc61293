//! A life with AWS's own SDK for Rust.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use aws_sdk_lambdamicrovms::{
    Client, Config,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
    error::ProvideErrorMetadata,
    types::{CodeArtifact, MicrovmImageState, MicrovmState, PortSpecification},
};

use crate::ground::Ground;

/// Longest wait for a state.
const PATIENCE: Duration = Duration::from_secs(30);

/// Create, wait, run, get, list, suspend, resume, terminate, delete, and errors that are of the SDK's types.
pub fn life(ground: &Ground) -> anyhow::Result<()> {
    let environment = ground.front.server.environment()?;
    let value = |name: &str| environment.get(name).cloned().with_context(|| format!("no {name}"));
    let key = Credentials::new(value("AWS_ACCESS_KEY_ID")?, value("AWS_SECRET_ACCESS_KEY")?, None, None, "tests");
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(value("AWS_REGION")?))
        .endpoint_url(value("AWS_ENDPOINT_URL")?)
        .credentials_provider(key)
        .retry_config(RetryConfig::disabled())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(live(&Client::from_conf(config), &ground.front.name("rust")))
}

async fn until<T: PartialEq + std::fmt::Debug, F>(wanted: T, ask: impl Fn() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let begin = Instant::now();
    loop {
        let found = ask().await?;
        if found == wanted {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "waited in vain for {wanted:?}: {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn live(client: &Client, name: &str) -> anyhow::Result<()> {
    let created = client
        .create_microvm_image()
        .name(name)
        .base_image_arn(e2e::image::BASE_IMAGE)
        .build_role_arn(e2e::image::ROLE)
        .code_artifact(CodeArtifact::Uri(format!("s3://{}/{}", e2e::image::BUCKET, e2e::front::ARTIFACT)))
        .send()
        .await?;
    ensure!(*created.state() == MicrovmImageState::Creating, "{created:?}");
    let image = created.image_arn();
    let state = || async { Ok(client.get_microvm_image().image_identifier(image).send().await?.state().clone()) };
    until(MicrovmImageState::Created, state).await?;

    let run = client.run_microvm().image_identifier(image).send().await?;
    let id = run.microvm_id();
    let reach = |wanted| {
        until(wanted, || async { Ok(client.get_microvm().microvm_identifier(id).send().await?.state().clone()) })
    };
    reach(MicrovmState::Running).await?;
    let listed = client.list_microvms().image_identifier(image).into_paginator().items().send();
    let listed: Vec<_> = listed.collect::<Result<Vec<_>, _>>().await?;
    ensure!(listed.len() == 1 && listed[0].microvm_id() == id, "{listed:?}");
    let token = client
        .create_microvm_auth_token()
        .microvm_identifier(id)
        .expiration_in_minutes(5)
        .allowed_ports(PortSpecification::Port(8080))
        .send()
        .await?;
    ensure!(token.auth_token().contains_key("X-aws-proxy-auth"), "no token");
    client.suspend_microvm().microvm_identifier(id).send().await?;
    reach(MicrovmState::Suspended).await?;
    client.resume_microvm().microvm_identifier(id).send().await?;
    reach(MicrovmState::Running).await?;

    let Err(refused) = client.delete_microvm_image().image_identifier(image).send().await else {
        bail!("an image with a microVM was deleted");
    };
    let refused = refused.into_service_error();
    ensure!(refused.is_validation_exception(), "{refused:?}");
    ensure!(refused.message() == Some("Cannot delete microvm image with running microvms."), "{refused:?}");
    let nothing = "microvm-00000000-0000-4000-8000-000000000000";
    let Err(missing) = client.get_microvm().microvm_identifier(nothing).send().await else {
        bail!("something that is not there was described");
    };
    let missing = missing.into_service_error();
    ensure!(missing.is_resource_not_found_exception(), "{missing:?}");
    ensure!(missing.message() == Some(&*format!("MicroVM not found: {nothing}")), "{missing:?}");

    client.terminate_microvm().microvm_identifier(id).send().await?;
    reach(MicrovmState::Terminated).await?;
    client.delete_microvm_image().image_identifier(image).send().await?;
    let gone = || async {
        match client.get_microvm_image().image_identifier(image).send().await {
            Ok(_) => Ok(false),
            Err(error) => Ok(error.into_service_error().is_resource_not_found_exception()),
        }
    };
    until(true, gone).await
}
