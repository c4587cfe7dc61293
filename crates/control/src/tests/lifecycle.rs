//! What one microVM goes through.

use std::{cell::Cell, time::Instant};

use api::{
    catalogue,
    connector::ManagedConnector,
    directory::{Directory, Unavailable},
    error::ServiceError,
    host::{Found, HostError},
    ids::MicrovmId,
    microvms::{
        AUTH_TOKEN_HEADER, CreateMicrovmAuthTokenRequest, CreateMicrovmShellAuthTokenRequest, ListMicrovmsRequest,
        MicrovmState as State, PortSpecification, RunMicrovmRequest,
    },
    page::PageRequest,
    sensitive::Sensitive,
    token::{Grant, TokenKeys},
};

use crate::{
    ImageLifecycle,
    http::Operations,
    testing::{Call, Fixture, lost, policy, run_request, unchanged, until},
};

async fn fixture() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    fixture
}

#[tokio::test]
async fn a_whole_life() {
    let fixture = fixture().await;
    fixture.host.hold(Call::Run);
    let asked = fixture.run(run_request(fixture.arn("a"))).await.unwrap();
    let id = asked.microvm_id;
    assert_eq!((asked.state, asked.maximum_duration_in_seconds), (State::Pending, 28_800));
    assert!(asked.endpoint.ends_with(".lambda-microvm.us-east-1.localhost:4443"), "{}", asked.endpoint);
    assert_eq!(asked.ingress_network_connectors, [ManagedConnector::HttpIngress.arn("us-east-1")]);
    assert_eq!(asked.egress_network_connectors, [ManagedConnector::InternetEgress.arn("us-east-1")]);
    assert_eq!(fixture.state(&id).await, State::Pending);
    fixture.host.release(Call::Run);
    fixture.until_state(&id, State::Running).await;

    let endpoint = asked.endpoint.split('.').next().unwrap().parse().unwrap();
    let behind = async || fixture.control().behind(&endpoint).await.unwrap().map(|it| (it.microvm, it.ended));
    assert_eq!(behind().await, Some((id, false)));
    let vm = fixture.control().awake(&id).await.unwrap();
    assert_eq!(fixture.host.vm(&id), Found::Running(vm));

    fixture.host.hold(Call::Suspend);
    fixture.suspend(&id).await.unwrap();
    assert_eq!(fixture.state(&id).await, State::Suspending, "it is so when the answer comes");
    fixture.host.release(Call::Suspend);
    fixture.until_state(&id, State::Suspended).await;
    fixture.suspend(&id).await.unwrap();
    assert_eq!(fixture.control().awake(&id).await, Err(Unavailable::Asleep));

    fixture.resume(&id).await.unwrap();
    fixture.until_state(&id, State::Running).await;
    fixture.resume(&id).await.unwrap();
    assert_eq!(fixture.get(&id).await.state_reason, None);
    assert_ne!(fixture.control().awake(&id).await.unwrap(), vm, "a resumed microVM has a new VM");

    fixture.terminate(&id).await.unwrap();
    assert_eq!(behind().await, Some((id, true)), "once it is on its way to that");
    fixture.until_state(&id, State::Terminated).await;
    assert_eq!(behind().await, Some((id, true)));
    let ended = fixture.get(&id).await;
    assert_eq!(ended.state_reason.as_deref(), Some("Success."));
    assert!(ended.terminated_at.is_some());
    fixture.terminate(&id).await.unwrap();
    let refused = ServiceError::Validation {
        message: format!("The MicroVM {id} has been terminated and its state cannot be changed."),
    };
    assert_eq!(fixture.suspend(&id).await, Err(refused.clone()));
    assert_eq!(fixture.resume(&id).await, Err(refused));
    assert_eq!(fixture.control().awake(&id).await, Err(Unavailable::Ended));
    assert_eq!(fixture.host.broken_rules(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_not_there() {
    let fixture = fixture().await;
    let id = MicrovmId::random();
    let unknown = |error: ServiceError| error.to_string() == format!("MicroVM not found: {id}");
    assert!(unknown(fixture.suspend(&id).await.unwrap_err()));
    assert!(unknown(fixture.terminate(&id).await.unwrap_err()));
    assert_eq!(fixture.control().awake(&id).await, Err(Unavailable::Ended));
    let none = fixture.run(run_request(fixture.arn("b"))).await.unwrap_err();
    assert_eq!(none.to_string(), format!("No active version found for MicroVM image {}", fixture.arn("b")));
    let pinned = RunMicrovmRequest { image_version: Some("2.0".into()), ..run_request(fixture.arn("a")) };
    let none = fixture.run(pinned).await.unwrap_err().to_string();
    assert_eq!(none, format!("No active version found for MicroVM image {} and version 2.0", fixture.arn("a")));
    let payload = RunMicrovmRequest { run_hook_payload: Some(Sensitive::new("x")), ..run_request(fixture.arn("a")) };
    let refused = fixture.run(payload).await.unwrap_err();
    assert_eq!(refused.to_string(), "The run hook must be enabled in the MicroVM image to pass the run hook payload");
}

#[tokio::test]
async fn failures_keep_what_can_be_kept() {
    let fixture = fixture().await;
    let id = fixture.running(policy(60, 600, true)).await;
    fixture.host.fail(Call::Suspend, unchanged());
    fixture.suspend(&id).await.unwrap();
    until("the suspend failed", async || {
        let now = fixture.get(&id).await;
        now.state == State::Running && now.state_reason.as_deref() == Some("Suspend failed: the hook said no")
    })
    .await;
    assert!(fixture.control().awake(&id).await.is_ok());

    fixture.suspend(&id).await.unwrap();
    fixture.until_state(&id, State::Suspended).await;
    assert_eq!(fixture.get(&id).await.state_reason, None, "a success clears the reason");
    fixture.host.fail(Call::Resume, HostError::NoCapacity { reason: "it is full".into() });
    let reason = "Resume failed: it is full".to_owned();
    assert_eq!(fixture.control().awake(&id).await, Err(Unavailable::WakeFailed { reason: reason.clone() }));
    let now = fixture.get(&id).await;
    assert_eq!((now.state, now.state_reason), (State::Suspended, Some(reason)));
    assert!(fixture.control().awake(&id).await.is_ok(), "the next one tries again");

    fixture.host.fail(Call::Suspend, lost());
    fixture.suspend(&id).await.unwrap();
    fixture.until_state(&id, State::Terminated).await;
    assert_eq!(fixture.get(&id).await.state_reason.as_deref(), Some("it broke"));
    assert!(fixture.host.terminated(&id));
}

#[tokio::test]
async fn a_launch_without_room_ends() {
    let fixture = fixture().await;
    fixture.host.fail(Call::Run, HostError::NoCapacity { reason: "it is full".into() });
    let id = fixture.pending(None).await;
    assert_eq!(fixture.control().awake(&id).await, Err(Unavailable::Ended));
    fixture.until_state(&id, State::Terminated).await;
    assert_eq!(fixture.get(&id).await.state_reason.as_deref(), Some("it is full"));
}

#[tokio::test]
async fn a_vm_that_ends_by_itself_ends_its_microvm() {
    let fixture = fixture().await;
    let id = fixture.suspended(policy(60, 600, true)).await;
    let vm = fixture.control().awake(&id).await.unwrap();
    // News of another incarnation is no news.
    fixture.host.report(&id, api::ids::VmId::random(), "old");
    fixture.host.crash(&id, "Container Stopped with Exit Code: 1");
    fixture.until_state(&id, State::Terminated).await;
    assert_eq!(fixture.get(&id).await.state_reason.as_deref(), Some("Container Stopped with Exit Code: 1"));
    assert_eq!(fixture.control().awake(&id).await, Err(Unavailable::Ended), "{vm} is no more");
}

#[tokio::test]
async fn silence_suspends_and_suspension_ends() {
    let fixture = fixture().await;
    let sleepy = fixture.running(policy(1, 1, true)).await;
    let brief = fixture.running(policy(1, 0, true)).await;
    let awake = fixture.running(policy(3, 600, false)).await;
    // From here on it is touched all the time, for longer than it may be idle in all.
    let since = std::time::Instant::now();
    until("both have ended", async || {
        fixture.control().touch(&awake);
        since.elapsed().as_secs() >= 4
            && fixture.state(&sleepy).await == State::Terminated
            && fixture.state(&brief).await == State::Terminated
    })
    .await;
    assert_eq!(fixture.get(&brief).await.state_reason.as_deref(), Some("Success."));
    assert_eq!(fixture.state(&awake).await, State::Running, "what is touched stays awake");
    assert_eq!(fixture.host.count(Call::Suspend), 1, "{sleepy} was suspended first, {brief} ended instead");
    fixture.until_state(&awake, State::Suspended).await;
}

#[tokio::test]
async fn a_request_that_comes_in_the_instant_of_an_idle_suspend_is_not_cut_off() {
    let fixture = fixture().await;
    let id = fixture.running(policy(4, 600, true)).await;
    // Nothing can be written, so the decision to suspend, once it is made, stays on its way.
    let writer = fixture.control().shared.store.write().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(4300)).await;
    let vm = fixture.control().awake(&id).await.expect("it is seen to run");
    drop(writer);
    // The driver takes its mail in order: once it has answered, the decision has been carried out.
    fixture.resume(&id).await.unwrap();
    assert_eq!(fixture.host.vm(&id), Found::Running(vm));
    assert_eq!(fixture.host.count(Call::Suspend), 0);
    fixture.until_state(&id, State::Running).await;
    assert_eq!(fixture.get(&id).await.state_reason, None);
    fixture.until_state(&id, State::Suspended).await;
    assert_eq!(fixture.host.count(Call::Suspend), 1);
}

#[tokio::test]
async fn work_keeps_a_microvm_awake_where_it_is_configured_to() {
    let mut fixture = Fixture::new().await;
    fixture.crash().await;
    let rules = ImageLifecycle { work_keeps_awake: Some(true), ..ImageLifecycle::default() };
    fixture.config.lifecycle.images.insert("a".to_owned(), rules);
    fixture.start().await;
    fixture.ready_image("a").await;
    let (busy, idle) = (fixture.running(policy(3, 600, true)).await, fixture.running(policy(3, 600, true)).await);
    let since = Instant::now();
    let worked = Cell::new(since);
    // Half of a processor all the time, and for the other one nothing.
    let work = || fixture.host.work(&busy, worked.replace(Instant::now()).elapsed() / 2, 0);
    until("the idle one is suspended", async || {
        work();
        fixture.state(&idle).await == State::Suspended
    })
    .await;
    assert!(since.elapsed().as_secs() < 6, "{:?}", since.elapsed());
    until("twice its idle duration is over", async || {
        work();
        assert_eq!(fixture.state(&busy).await, State::Running);
        since.elapsed().as_secs() >= 8
    })
    .await;
    let stopped = Instant::now();
    fixture.until_state(&busy, State::Suspended).await;
    // What it may be idle for, and at most the time between two looks.
    assert!((2.0..10.0).contains(&stopped.elapsed().as_secs_f64()), "{:?}", stopped.elapsed());
}

#[tokio::test]
async fn a_configured_image_lives_longer_than_the_service_lets_it() {
    let mut fixture = Fixture::new().await;
    fixture.crash().await;
    let rules = ImageLifecycle { maximum_duration_seconds: Some(100_000), ..ImageLifecycle::default() };
    fixture.config.lifecycle.images.insert("a".to_owned(), rules);
    fixture.start().await;
    fixture.ready_image("a").await;
    fixture.ready_image("b").await;
    let run = async |image: &str, seconds: u32| {
        let maximum = Some(seconds);
        fixture.run(RunMicrovmRequest { maximum_duration_in_seconds: maximum, ..run_request(fixture.arn(image)) }).await
    };
    assert_eq!(run("a", 100_000).await.unwrap().maximum_duration_in_seconds, 100_000);
    assert!(matches!(run("a", 100_001).await, Err(ServiceError::Validation { .. })));
    assert!(matches!(run("b", 28_801).await, Err(ServiceError::Validation { .. })));
    assert_eq!(fixture.run(run_request(fixture.arn("a"))).await.unwrap().maximum_duration_in_seconds, 28_800);
}

#[tokio::test]
async fn a_life_has_a_longest_duration() {
    let fixture = fixture().await;
    let request = RunMicrovmRequest { maximum_duration_in_seconds: Some(1), ..run_request(fixture.arn("a")) };
    let id = fixture.run(request).await.unwrap().microvm_id;
    fixture.until_state(&id, State::Terminated).await;
    assert!(fixture.host.terminated(&id));
}

#[tokio::test]
async fn tokens_wake_nothing_and_the_dead_get_none() {
    let fixture = fixture().await;
    let id = fixture.suspended(policy(60, 600, true)).await;
    let request = || CreateMicrovmAuthTokenRequest {
        microvm_identifier: id.to_string(),
        expiration_in_minutes: 60,
        allowed_ports: vec![PortSpecification::Port(80)],
    };
    let mint = async || fixture.control().create_microvm_auth_token(&fixture.caller, request()).await;
    let answer = mint().await.unwrap();
    let token = answer.auth_token["X-aws-proxy-auth"].expose();
    assert_eq!(fixture.control().shared.token_keys.open(token).unwrap().microvm_id, id);
    assert_eq!(fixture.state(&id).await, State::Suspended);
    fixture.terminate(&id).await.unwrap();
    assert!(matches!(mint().await, Err(ServiceError::Validation { .. })));
}

#[tokio::test]
async fn an_endpoint_leads_to_what_its_connectors_let_in() {
    use ManagedConnector::{AllIngress, HttpIngress, NoIngress, ShellIngress};
    let fixture = fixture().await;
    for (ingress, http, shell) in [
        (vec![], true, false),
        (vec![HttpIngress], true, false),
        (vec![AllIngress], true, false),
        (vec![ShellIngress, HttpIngress], true, true),
        (vec![ShellIngress, AllIngress], true, false),
        (vec![ShellIngress], false, true),
        (vec![NoIngress], false, false),
        (vec![NoIngress, HttpIngress], false, false),
        (vec![NoIngress, ShellIngress], false, false),
    ] {
        let request = RunMicrovmRequest {
            ingress_network_connectors: Some(ingress.iter().map(|it| it.arn("us-east-1")).collect()),
            ..run_request(fixture.arn("a"))
        };
        let made = fixture.run(request).await.unwrap();
        let endpoint = made.endpoint.split('.').next().unwrap().parse().unwrap();
        let behind = fixture.control().behind(&endpoint).await.unwrap();
        let told = behind.map(|behind| (behind.microvm, behind.http, behind.shell));
        assert_eq!(told, (http || shell).then_some((made.microvm_id, http, shell)), "{ingress:?}");
    }
}

#[tokio::test]
async fn a_token_makes_one_microvm_while_it_lives() {
    let fixture = fixture().await;
    let request = || RunMicrovmRequest { client_token: Some("t".into()), ..run_request(fixture.arn("a")) };
    let first = fixture.run(request()).await.unwrap();
    fixture.until_state(&first.microvm_id, State::Running).await;
    assert_eq!(fixture.run(request()).await.unwrap(), first);
    let other = RunMicrovmRequest { maximum_duration_in_seconds: Some(60), ..request() };
    assert!(matches!(fixture.run(other).await, Err(ServiceError::Conflict { .. })));
    fixture.terminate(&first.microvm_id).await.unwrap();
    let second = fixture.run(request()).await.unwrap();
    assert_ne!(second.microvm_id, first.microvm_id, "the dead are not replayed");
}

#[tokio::test]
async fn lists_go_from_the_newest_in_pages() {
    let fixture = fixture().await;
    let mut ids = vec![];
    for _ in 0..5 {
        ids.push(fixture.pending(None).await);
    }
    ids.reverse();
    let (mut listed, mut next_token) = (vec![], None);
    loop {
        let page = PageRequest { max_results: Some(2), next_token };
        let request = ListMicrovmsRequest { page, image: Some(fixture.arn("a")), image_version: Some("1.0".into()) };
        let page = fixture.control().list_microvms(&fixture.caller, request).await.unwrap();
        listed.extend(page.items.iter().map(|item| item.microvm_id));
        next_token = page.next_token;
        if next_token.is_none() {
            break;
        }
    }
    assert_eq!(listed, ids);
}

#[tokio::test]
async fn old_records_go() {
    let mut fixture = fixture().await;
    let id = fixture.running(None).await;
    fixture.terminate(&id).await.unwrap();
    fixture.until_state(&id, State::Terminated).await;
    let alive = fixture.running(None).await;
    fixture.drain().await;
    fixture.config.terminated_kept = std::time::Duration::ZERO;
    fixture.start().await;
    until("its record is gone", async || {
        fixture.terminate(&id).await.is_err_and(|error| matches!(error, ServiceError::ResourceNotFound { .. }))
    })
    .await;
    assert_eq!(fixture.state(&alive).await, State::Running);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_anything_starts() {
    let mut fixture = Fixture::new().await;
    fixture.crash().await;
    fixture.config.quotas.memory_mib = 4096;
    fixture.start().await;
    fixture.ready_image("a").await;
    fixture.host.fail(Call::Room, HostError::NoCapacity { reason: "this host's memory is in use".into() });
    let refused = fixture.run(run_request(fixture.arn("a"))).await.unwrap_err();
    assert_eq!(refused, catalogue::insufficient_capacity("this host's memory is in use"));
    assert_eq!(fixture.host.count(Call::Run), 0);

    // Two of the default size are all that the quota has room for, asleep or not.
    let first = fixture.suspended(None).await;
    fixture.running(None).await;
    let refused = fixture.run(run_request(fixture.arn("a"))).await.unwrap_err();
    assert_eq!(refused, catalogue::memory_quota_exceeded());
    fixture.terminate(&first).await.unwrap();
    fixture.until_state(&first, State::Terminated).await;
    fixture.running(None).await;
}

#[tokio::test]
async fn a_shell_token_needs_its_connector() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    let connector = |it: ManagedConnector| it.arn("us-east-1");
    let (shell, all) = (connector(ManagedConnector::ShellIngress), connector(ManagedConnector::AllIngress));
    let token = async |ingress: Option<Vec<String>>| {
        let request = RunMicrovmRequest { ingress_network_connectors: ingress, ..run_request(fixture.arn("a")) };
        let microvm_identifier = fixture.run(request).await.unwrap().microvm_id.to_string();
        let request = CreateMicrovmShellAuthTokenRequest { microvm_identifier, expiration_in_minutes: 60 };
        fixture.control().create_microvm_shell_auth_token(&fixture.caller, request).await
    };
    assert_eq!(token(None).await.unwrap_err(), catalogue::shell_needs_connector());
    assert_eq!(token(Some(vec![all.clone()])).await.unwrap_err(), catalogue::shell_needs_connector());
    assert_eq!(token(Some(vec![shell.clone(), all])).await.unwrap_err(), catalogue::shell_with_all_ingress());
    let made = token(Some(vec![shell, connector(ManagedConnector::HttpIngress)])).await.unwrap();
    let sealed = made.auth_token[AUTH_TOKEN_HEADER].expose();
    let claims = TokenKeys::single(uuid::Uuid::from_u128(1), [1; 32]).open(sealed).unwrap();
    assert_eq!(claims.grant, Grant::Shell);
    let request = CreateMicrovmShellAuthTokenRequest { microvm_identifier: "x".into(), expiration_in_minutes: 61 };
    let late = fixture.control().create_microvm_shell_auth_token(&fixture.caller, request).await.unwrap_err();
    assert_eq!(late, catalogue::token_lifetime_too_long(61, 60));
}
