//! The microVM operations.

use std::{sync::Arc, time::Duration};

use api::{
    arn::ImageArn,
    catalogue,
    connector::{EgressConnector, ManagedConnector},
    error::ServiceError,
    host::{Egress, HostError, ImageRef, MicrovmSpec},
    ids::{EndpointId, ImageVersion, MicrovmId},
    images::Architecture,
    microvms::{
        CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse, CreateMicrovmShellAuthTokenRequest,
        CreateMicrovmShellAuthTokenResponse, GetMicrovmResponse, ListMicrovmsRequest, ListMicrovmsResponse,
        RunMicrovmRequest, RunMicrovmResponse, RunPlan,
    },
    page,
    size::Size,
    timestamp::Timestamp,
    token::{Claims, Grant},
};

use super::{
    admission::{Refusal, Request},
    handle::{AskError, Handle},
    record::{Contract, Fate, Record},
    state::State,
};
use crate::{
    auth::Caller,
    connectors::usage,
    iam::permit_connector,
    idempotency::ClientToken,
    images::{
        operations::image_of,
        record::Version,
        state::{build_to_run, can_run},
    },
    pages::Page,
    shared::{Shared, hidden, stopping},
    store::{Connection, commit, connector_uses, images as image_rows, microvms as rows, tokens},
};

/// `RunMicrovm`.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    caller: &Caller,
    mut request: RunMicrovmRequest,
) -> Result<RunMicrovmResponse, ServiceError> {
    let longest_s = shared.config.lifecycle.longest_s(&request.image.name);
    let plan = request.plan(&shared.config.region, longest_s)?;
    let token = request.client_token.take().map(|token| ClientToken::new("RunMicrovm", token, &request));
    let (own, caller) = (shared.clone(), caller.clone());
    shared
        .carry_through(async move {
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let now = own.clock.now();
            if let Some(token) = &token
                && let Some(record) = replayed(&mut transaction, token, now.unix_ms).await?
            {
                return Ok(response(&own, Record { fate: Fate::pending(), ..record }));
            }
            let wanted = request.image_version.as_deref();
            let version = runnable(&own, &mut transaction, &request.image, wanted).await?;
            let among = build_of(&own, &mut transaction, &request.image, &version).await?;
            if request.run_hook_payload.is_some() && version.definition.plan.hooks.run.is_none() {
                return Err(catalogue::payload_without_run_hook());
            }
            room_for_a_microvm(&own, &mut transaction, version.definition.plan.size).await?;
            let ways = match plan.egress.clone() {
                Some(ways) => ways,
                None => {
                    let inherited = version.definition.configuration.egress_network_connectors.as_deref();
                    let inherited = inherited.unwrap_or_default();
                    // The caller was allowed to pass on those of the version that was to be launched a moment ago, which
                    // need not be this one.
                    inherited.iter().try_for_each(|arn| permit_connector(&caller, arn))?;
                    EgressConnector::from_arns(inherited, &own.config.region)?
                }
            };
            let (egress, uses) = usage::resolve(&own, &mut transaction, &ways).await?;
            let (spec, contract) = agreed(&own, request, plan, version, among, egress);
            let endpoint = EndpointId::random();
            let record = rows::insert(&mut transaction, spec, endpoint, contract, now).await.map_err(hidden)?;
            for used in uses {
                let microvm = &record.spec.microvm_id;
                let noted = connector_uses::by_microvm(&mut transaction, microvm, &used.connector, used.version);
                noted.await.map_err(hidden)?;
            }
            if let Some(token) = &token {
                let id = record.spec.microvm_id.to_string();
                tokens::keep(&mut transaction, token, &id, now.unix_ms).await.map_err(hidden)?;
            }
            commit(transaction).await.map_err(hidden)?;
            failpoint::step("run.recorded");
            super::start(&own, record.clone(), None, false);
            Ok(response(&own, record))
        })
        .await
}

/// The quotas first, which say what may be; then what the machine has.
async fn room_for_a_microvm(shared: &Shared, connection: &mut Connection, size: Size) -> Result<(), ServiceError> {
    let rows::Taken { microvms, memory_mib, launching } = rows::taken(connection).await.map_err(hidden)?;
    let quotas = &shared.config.quotas;
    if microvms >= u64::from(quotas.microvms) || memory_mib + u64::from(size.baseline_mib) > quotas.memory_mib {
        return Err(catalogue::memory_quota_exceeded());
    }
    shared.host.room_for(size, launching).await.map_err(|error| match error {
        HostError::NoCapacity { reason } | HostError::Unchanged { reason } | HostError::Lost { reason } => {
            catalogue::insufficient_capacity(reason)
        }
    })
}

/// The microVM that a token stands for, if it does and that one lives.
async fn replayed(connection: &mut Connection, token: &ClientToken, now: i64) -> Result<Option<Record>, ServiceError> {
    let Some(used) = tokens::find(connection, token, now).await.map_err(hidden)? else { return Ok(None) };
    let Ok(id) = used.resource_id.parse() else { return Ok(None) };
    let record = rows::find(connection, &id).await.map_err(hidden)?;
    let alive = record.filter(|it| !matches!(it.fate.state, State::Terminating | State::Terminated));
    used.answer(alive, catalogue::client_token_reused)
}

/// The version to launch: the one asked for, or the newest active one.
async fn runnable(
    shared: &Shared,
    connection: &mut Connection,
    arn: &ImageArn,
    wanted: Option<&str>,
) -> Result<Version, ServiceError> {
    let none = || catalogue::no_active_version(arn, wanted);
    let image = image_of(shared, connection, arn).await.map_err(hidden)?.ok_or_else(none)?;
    let version: ImageVersion = match wanted {
        Some(written) => written.parse().map_err(|_| none())?,
        None => image.latest_active.ok_or_else(none)?,
    };
    let reference = ImageRef { image_id: image.id, version };
    let version = image_rows::find_version(connection, &reference).await.map_err(hidden)?.ok_or_else(none)?;
    if can_run(image.state, version.state, version.status) { Ok(version) } else { Err(none()) }
}

/// Which build of a version is launched here, if it has several.
async fn build_of(
    shared: &Shared,
    connection: &mut Connection,
    arn: &ImageArn,
    version: &Version,
) -> Result<Option<Architecture>, ServiceError> {
    let builds = image_rows::builds_of(connection, &version.image).await.map_err(hidden)?;
    let (host, built) = (shared.host.architectures(), builds.into_iter().map(|(it, _)| it).collect::<Vec<_>>());
    let architecture = build_to_run(&host, &built);
    let architecture = architecture.ok_or_else(|| catalogue::version_for_other_hosts(arn, &built, &host))?;
    Ok((built.len() > 1).then_some(architecture))
}

fn agreed(
    shared: &Shared,
    request: RunMicrovmRequest,
    plan: RunPlan,
    version: Version,
    among: Option<Architecture>,
    egress: Egress,
) -> (MicrovmSpec, Contract) {
    let region = &shared.config.region;
    let spec = MicrovmSpec {
        microvm_id: MicrovmId::random(),
        image: version.image,
        architecture: among,
        size: version.definition.plan.size,
        hooks: version.definition.plan.hooks,
        run_hook_payload: request.run_hook_payload.map(|payload| payload.expose().to_owned()),
        egress,
    };
    let contract = Contract {
        image_arn: request.image,
        execution_role_arn: request.execution_role_arn,
        idle_policy: request.idle_policy,
        maximum_duration_s: plan.maximum_duration_in_seconds,
        ingress: plan.ingress.iter().map(|connector| connector.arn(region)).collect(),
        egress: match plan.egress {
            Some(egress) => egress.iter().map(|connector| connector.arn(region)).collect(),
            None => version.definition.configuration.egress_network_connectors.unwrap_or_default(),
        },
    };
    (spec, contract)
}

fn response(shared: &Shared, record: Record) -> GetMicrovmResponse {
    let Record { spec, endpoint, contract, started_at, fate, .. } = record;
    GetMicrovmResponse {
        microvm_id: spec.microvm_id,
        state: fate.state,
        endpoint: shared.endpoint(&endpoint),
        image_arn: contract.image_arn,
        image_version: spec.image.version,
        execution_role_arn: contract.execution_role_arn,
        idle_policy: contract.idle_policy,
        maximum_duration_in_seconds: contract.maximum_duration_s,
        started_at: Timestamp::from_unix_ms(started_at.unix_ms),
        terminated_at: fate.terminated_at.map(Timestamp::from_unix_ms),
        state_reason: fate.reason,
        kms_key_identifier: None,
        ingress_network_connectors: contract.ingress,
        egress_network_connectors: contract.egress,
    }
}

/// `GetMicrovm`.
pub(crate) async fn get(shared: &Shared, identifier: &str) -> Result<GetMicrovmResponse, ServiceError> {
    let unknown = || catalogue::unknown_microvm(identifier);
    let id = identifier.parse().map_err(|_| unknown())?;
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let record = rows::find(&mut connection, &id).await.map_err(hidden)?.ok_or_else(unknown)?;
    Ok(response(shared, record))
}

/// The image that a microVM was launched from, if there is such a microVM.
pub(crate) async fn origin(shared: &Shared, identifier: &str) -> Result<Option<ImageArn>, ServiceError> {
    let Ok(id) = identifier.parse() else { return Ok(None) };
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let record = rows::find(&mut connection, &id).await.map_err(hidden)?;
    Ok(record.map(|record| record.contract.image_arn))
}

/// The connectors that a microVM of this version gets if its launch names none; none if there is nothing to launch.
pub(crate) async fn inherited_egress(
    shared: &Shared,
    image: &ImageArn,
    version: Option<&str>,
) -> Result<Vec<String>, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    match runnable(shared, &mut connection, image, version).await {
        Ok(version) => Ok(version.definition.configuration.egress_network_connectors.unwrap_or_default()),
        Err(ServiceError::ResourceNotFound { .. }) => Ok(vec![]),
        Err(error) => Err(error),
    }
}

/// `ListMicrovms`.
pub(crate) async fn list(shared: &Shared, request: ListMicrovmsRequest) -> Result<ListMicrovmsResponse, ServiceError> {
    let written = request.image_version.as_deref();
    let list = format!(
        "microvms {} {}",
        request.image.as_ref().map(ToString::to_string).unwrap_or_default(),
        written.unwrap_or_default()
    );
    let page = Page::asked(&list, &request.page).map_err(|_| catalogue::unreadable_input())?;
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let mut filter = rows::Filter::default();
    if let Some(arn) = &request.image {
        let image = image_of(shared, &mut connection, arn).await.map_err(hidden)?;
        filter.image = Some(image.ok_or_else(|| catalogue::unknown_image(arn))?.id);
    }
    if let Some(written) = written {
        let Ok(version) = written.parse() else {
            // No microVM is of a version that cannot be.
            return Ok(page::Page { items: vec![], next_token: None });
        };
        filter.version = Some(version);
    }
    let mut listed = rows::list(&mut connection, filter, page.before, page.fetch()).await.map_err(hidden)?;
    let next_token = page.cut(&list, &mut listed, |listed| listed.sequence);
    let items = listed.into_iter().map(|listed| listed.item).collect();
    Ok(page::Page { items, next_token })
}

fn handle(shared: &Shared, identifier: &str) -> Result<Arc<Handle>, ServiceError> {
    let unknown = || catalogue::unknown_microvm(identifier);
    let id = identifier.parse().map_err(|_| unknown())?;
    shared.registry.get(&id).ok_or_else(unknown)
}

/// `SuspendMicrovm`, `ResumeMicrovm` and `TerminateMicrovm`: returns once what was asked is sure to happen.
pub(crate) async fn ask(shared: &Shared, identifier: &str, request: Request) -> Result<(), ServiceError> {
    let handle = handle(shared, identifier)?;
    shared.accepting()?;
    handle.ask(request).await.map_err(|error| match error {
        AskError::Refused(Refusal::Ended) => catalogue::microvm_terminated(identifier),
        AskError::Refused(Refusal::Asleep) => catalogue::microvm_state_conflict(identifier, State::Suspended),
        AskError::Stopping => stopping(),
        AskError::Late => ServiceError::InternalServer {
            message: "The MicroVM did not take the request in time.".into(),
            retry_after_seconds: Some(1),
        },
        AskError::Store(_) => catalogue::internal_error(),
    })
}

/// `CreateMicrovmAuthToken`. It wakes nothing; a microVM that has ended gets none.
pub(crate) fn create_token(
    shared: &Shared,
    request: &CreateMicrovmAuthTokenRequest,
) -> Result<CreateMicrovmAuthTokenResponse, ServiceError> {
    let plan = request.plan()?;
    let handle = living(shared, &request.microvm_identifier)?;
    Ok(sealed(shared, &handle, Grant::Http(plan.ports), plan.lifetime))
}

/// `CreateMicrovmShellAuthToken`. The same holds for it.
pub(crate) fn create_shell_token(
    shared: &Shared,
    request: &CreateMicrovmShellAuthTokenRequest,
) -> Result<CreateMicrovmShellAuthTokenResponse, ServiceError> {
    let lifetime = request.lifetime()?;
    let handle = living(shared, &request.microvm_identifier)?;
    let region = &shared.config.region;
    let lets_in = |connector: ManagedConnector| handle.contract.ingress.contains(&connector.arn(region));
    match (lets_in(ManagedConnector::ShellIngress), lets_in(ManagedConnector::AllIngress)) {
        (false, _) => Err(catalogue::shell_needs_connector()),
        (true, true) => Err(catalogue::shell_with_all_ingress()),
        (true, false) => Ok(sealed(shared, &handle, Grant::Shell, lifetime)),
    }
}

fn living(shared: &Shared, identifier: &str) -> Result<Arc<Handle>, ServiceError> {
    let handle = handle(shared, identifier)?;
    let state = handle.status().borrow().state;
    match state {
        State::Terminating | State::Terminated => Err(catalogue::microvm_terminated(identifier)),
        State::Pending | State::Running | State::Suspending | State::Suspended => Ok(handle),
    }
}

fn sealed(shared: &Shared, handle: &Handle, grant: Grant, lifetime: Duration) -> CreateMicrovmAuthTokenResponse {
    let now = u64::try_from(shared.now() / 1000).unwrap_or(0);
    let claims = Claims { microvm_id: handle.microvm_id, grant, expires_unix: now + lifetime.as_secs() };
    CreateMicrovmAuthTokenResponse::new(shared.token_keys.seal(&claims))
}
