//! What connectors go through.

use std::time::Duration;

use api::{
    catalogue,
    connectors::{
        ComputeResourceType, CreateNetworkConnectorRequest, DeleteNetworkConnectorRequest, GetNetworkConnectorRequest,
        Identifier, LastUpdateStatus, ListNetworkConnectorVersionsRequest, ListNetworkConnectorsRequest, MarkerRequest,
        NetworkConnector, NetworkConnectorConfiguration, NetworkConnectorState as State, NetworkProtocol, Networks,
        StateReasonCode, Subnet, UpdateNetworkConnectorRequest, VpcEgressConfiguration,
    },
    error::ServiceError,
    host::Egress,
    images::CreateMicrovmImageRequest,
    microvms::{MicrovmState, RunMicrovmRequest},
};
use proptest::{collection::vec, prelude::*};
use serde_json::json;

use super::tags::{listed, tag, untag};
use crate::{
    http::Operations,
    testing::{Fixture, create_request, run_request, until},
};

mod passing;
mod random;

const ROLE: &str = "arn:aws:iam::000000000000:role/operator";

/// `subnet-1` to `subnet-3` lead nowhere, `subnet-9` to the internet; `sg-1` is the one security group.
fn networks() -> Networks {
    let subnet = |number: u32| -> Subnet {
        let cidr = format!("10.0.{number}.0/24");
        let subnet = json!({ "id": format!("subnet-{number}"), "cidr": cidr, "internet": number == 9 });
        serde_json::from_value(subnet).unwrap()
    };
    Networks {
        subnets: [1, 2, 3, 9].map(subnet).into(),
        security_groups: vec![serde_json::from_value(json!({ "id": "sg-1" })).unwrap()],
    }
}

async fn fixture() -> Fixture {
    let mut fixture = Fixture::new().await;
    fixture.config.networks = networks();
    fixture.config.connector_pending = Duration::ZERO;
    restart(&mut fixture).await;
    fixture
}

/// A crash, so that a connector that is PENDING stays so until then.
async fn restart(fixture: &mut Fixture) {
    fixture.crash().await;
    fixture.start().await;
}

fn configuration(subnet: &str) -> NetworkConnectorConfiguration {
    NetworkConnectorConfiguration::VpcEgressConfiguration(VpcEgressConfiguration {
        subnet_ids: Some(vec![subnet.into()]),
        security_group_ids: None,
        network_protocol: Some(NetworkProtocol::Ipv4),
        associated_compute_resource_types: Some(vec![ComputeResourceType::MicroVm]),
        elastic_ip_configuration: None,
    })
}

fn request(name: &str, token: &str) -> CreateNetworkConnectorRequest {
    CreateNetworkConnectorRequest {
        name: name.into(),
        configuration: configuration("subnet-1"),
        operator_role: Some(ROLE.into()),
        client_token: Some(token.into()),
        tags: None,
    }
}

type Answer = Result<NetworkConnector, ServiceError>;

async fn create(fixture: &Fixture, request: CreateNetworkConnectorRequest) -> Answer {
    fixture.control().create_network_connector(&fixture.caller, request).await
}

async fn get(fixture: &Fixture, identifier: &str) -> Answer {
    let request = GetNetworkConnectorRequest { identifier: identifier.into() };
    fixture.control().get_network_connector(&fixture.caller, request).await
}

async fn update(fixture: &Fixture, identifier: &str, subnet: &str, token: &str) -> Answer {
    let request = UpdateNetworkConnectorRequest {
        identifier: identifier.into(),
        configuration: Some(configuration(subnet)),
        operator_role: None,
        client_token: Some(token.into()),
    };
    fixture.control().update_network_connector(&fixture.caller, request).await
}

async fn delete(fixture: &Fixture, identifier: &str) -> Answer {
    let request = DeleteNetworkConnectorRequest { identifier: identifier.into() };
    fixture.control().delete_network_connector(&fixture.caller, request).await
}

async fn settled(fixture: &Fixture, identifier: &str) -> NetworkConnector {
    until("the connector settles", async || {
        let connector = get(fixture, identifier).await.unwrap();
        connector.state != Some(State::Pending) && connector.last_update_status != Some(LastUpdateStatus::InProgress)
    })
    .await;
    get(fixture, identifier).await.unwrap()
}

async fn ready(fixture: &Fixture, name: &str) -> NetworkConnector {
    create(fixture, request(name, name)).await.unwrap();
    let connector = settled(fixture, name).await;
    assert_eq!(connector.state, Some(State::Active));
    connector
}

async fn gone(fixture: &Fixture, identifier: &str) {
    until("it is gone", async || get(fixture, identifier).await.is_err()).await;
}

fn not_found(identifier: &str) -> ServiceError {
    catalogue::connector_not_found(Identifier::as_arn(identifier, "us-east-1", "000000000000"))
}

async fn versions(fixture: &Fixture, identifier: &str) -> Vec<(u64, State)> {
    let request = ListNetworkConnectorVersionsRequest { identifier: identifier.into(), page: MarkerRequest::default() };
    let list = fixture.control().list_network_connector_versions(&fixture.caller, request).await.unwrap();
    list.network_connector_versions.iter().map(|version| (version.version, version.state)).collect()
}

#[tokio::test]
async fn a_whole_life() {
    let fixture = fixture().await;
    let made = create(&fixture, request("office", "a")).await.unwrap();
    assert_eq!((made.state, made.version), (Some(State::Pending), Some(1)));
    assert_eq!(made.version_arn, Some(format!("{}:1", made.arn)));
    assert_eq!((&made.state_reason, &made.last_modified), (&None, &None), "only a get tells");
    let active = settled(&fixture, "office").await;
    assert_eq!((active.state, active.state_reason.as_deref()), (Some(State::Active), Some("Initial creation")));
    assert_eq!((active.version, active.latest_version), (Some(1), Some(1)));
    for identifier in [&active.id, &active.name, &active.arn] {
        assert_eq!(get(&fixture, identifier).await.as_ref(), Ok(&active));
    }

    let update = update(&fixture, &active.id, "subnet-2", "b").await.unwrap();
    assert_eq!((update.version, update.state), (Some(2), Some(State::Active)));
    assert_eq!(update.last_update_status, Some(LastUpdateStatus::InProgress));
    let after = settled(&fixture, "office").await;
    assert_eq!((after.version, after.latest_version), (Some(2), Some(2)));
    assert_eq!(after.last_update_status, Some(LastUpdateStatus::Successful));
    assert_eq!(after.configuration, Some(configuration("subnet-2")));
    let first = get(&fixture, &format!("{}:1", active.arn)).await.unwrap();
    assert_eq!((first.configuration, first.version), (Some(configuration("subnet-1")), Some(1)));
    assert_eq!((first.latest_version, first.version_arn), (None, Some(format!("{}:1", active.arn))));
    assert_eq!(versions(&fixture, "office").await, [(2, State::Active), (1, State::Active)]);

    let deleting = delete(&fixture, "office").await.unwrap();
    assert_eq!((deleting.state, deleting.version), (Some(State::Deleting), Some(2)));
    gone(&fixture, "office").await;
    assert_eq!(delete(&fixture, "office").await, Err(not_found("office")));
    let again = ready(&fixture, "office").await;
    assert_ne!(again.id, active.id);
}

#[tokio::test]
async fn an_update_without_a_change_makes_nothing() {
    let fixture = fixture().await;
    let before = ready(&fixture, "office").await;
    let request = UpdateNetworkConnectorRequest {
        identifier: "office".into(),
        configuration: Some(NetworkConnectorConfiguration::VpcEgressConfiguration(VpcEgressConfiguration {
            // A set, and no security group is none.
            subnet_ids: Some(vec!["subnet-1".into(), "subnet-1".into()]),
            security_group_ids: Some(vec![]),
            ..egress(&before)
        })),
        operator_role: Some(ROLE.into()),
        client_token: Some("x".into()),
    };
    let answer = fixture.control().update_network_connector(&fixture.caller, request).await.unwrap();
    assert_eq!((answer.version, answer.last_update_status), (Some(1), Some(LastUpdateStatus::Successful)));
    assert_eq!(answer.last_update_status_reason.as_deref(), Some("No configuration changes detected"));
    assert_eq!(answer.last_modified, before.last_modified);
    assert_eq!(versions(&fixture, "office").await, [(1, State::Active)]);
    // A role alone is a change.
    let request = UpdateNetworkConnectorRequest {
        identifier: before.arn.clone(),
        configuration: None,
        operator_role: Some(ROLE.replace("operator", "other")),
        client_token: Some("y".into()),
    };
    fixture.control().update_network_connector(&fixture.caller, request).await.unwrap();
    let after = settled(&fixture, "office").await;
    assert_eq!((after.version, after.configuration), (Some(2), before.configuration));
    assert_eq!(after.last_update_status_reason, None, "the reason of the update before");
}

fn egress(connector: &NetworkConnector) -> VpcEgressConfiguration {
    let Some(NetworkConnectorConfiguration::VpcEgressConfiguration(egress)) = &connector.configuration else {
        panic!("no configuration")
    };
    egress.clone()
}

#[tokio::test]
async fn what_is_pending_survives_a_crash() {
    let mut fixture = fixture().await;
    ready(&fixture, "updated").await;
    ready(&fixture, "failing").await;
    fixture.config.connector_pending = Duration::from_secs(600);
    restart(&mut fixture).await;
    create(&fixture, request("new", "a")).await.unwrap();
    update(&fixture, "updated", "subnet-2", "b").await.unwrap();
    update(&fixture, "failing", "subnet-3", "c").await.unwrap();
    assert_eq!(get(&fixture, "new").await.unwrap().state, Some(State::Pending));
    let busy = delete(&fixture, "new").await.unwrap_err();
    assert_eq!((busy.kind(), busy.status()), ("ResourceConflictException", 409));
    assert!(delete(&fixture, "updated").await.is_err(), "in the middle of an update");
    assert!(update(&fixture, "updated", "subnet-3", "d").await.is_err(), "in the middle of an update");
    assert!(update(&fixture, "new", "subnet-3", "e").await.is_err(), "not made yet");

    // While it was down, somebody took a subnet out of the configuration.
    fixture.config.networks.subnets.retain(|subnet| subnet.id != "subnet-3");
    fixture.config.connector_pending = Duration::ZERO;
    restart(&mut fixture).await;
    assert_eq!(settled(&fixture, "new").await.state, Some(State::Active));
    let updated = settled(&fixture, "updated").await;
    assert_eq!((updated.latest_version, updated.last_update_status), (Some(2), Some(LastUpdateStatus::Successful)));
    let failed = settled(&fixture, "failing").await;
    assert_eq!((failed.state, failed.version, failed.latest_version), (Some(State::Active), Some(2), Some(1)));
    assert_eq!(failed.last_update_status, Some(LastUpdateStatus::Failed));
    assert_eq!(failed.last_update_status_reason_code, Some(StateReasonCode::InvalidSubnet));
    assert_eq!(versions(&fixture, "failing").await, [(2, State::Failed), (1, State::Active)]);
    // Neither the newest nor the one in force goes by itself.
    for version in [1, 2] {
        let arn = format!("{}:{version}", failed.arn);
        assert_eq!(delete(&fixture, &arn).await, Err(catalogue::connector_version_latest(&arn)));
    }
}

#[tokio::test]
async fn a_connector_that_cannot_be_made_has_failed() {
    let mut fixture = fixture().await;
    fixture.config.connector_pending = Duration::from_secs(600);
    restart(&mut fixture).await;
    let mut wanted = request("a", "a");
    wanted.configuration = NetworkConnectorConfiguration::VpcEgressConfiguration(VpcEgressConfiguration {
        security_group_ids: Some(vec!["sg-1".into()]),
        ..match configuration("subnet-1") {
            NetworkConnectorConfiguration::VpcEgressConfiguration(egress) => egress,
        }
    });
    create(&fixture, wanted).await.unwrap();
    fixture.config.networks.security_groups.clear();
    fixture.config.connector_pending = Duration::ZERO;
    restart(&mut fixture).await;
    let failed = settled(&fixture, "a").await;
    assert_eq!((failed.state, failed.latest_version), (Some(State::Failed), None));
    assert_eq!(failed.state_reason_code, Some(StateReasonCode::InvalidSecurityGroup));
    assert!(failed.state_reason.unwrap().contains("sg-1"));
    assert!(update(&fixture, "a", "subnet-2", "b").await.is_err(), "only ACTIVE ones are updated");
    delete(&fixture, "a").await.unwrap();
    gone(&fixture, "a").await;
}

#[tokio::test]
async fn history_is_deleted_one_by_one_and_numbers_never_return() {
    let fixture = fixture().await;
    let arn = ready(&fixture, "office").await.arn;
    for (subnet, token) in [("subnet-2", "b"), ("subnet-3", "c")] {
        update(&fixture, "office", subnet, token).await.unwrap();
        settled(&fixture, "office").await;
    }
    let deleting = delete(&fixture, &format!("{arn}:2")).await.unwrap();
    assert_eq!((deleting.version, deleting.state), (Some(2), Some(State::Deleting)));
    gone(&fixture, &format!("{arn}:2")).await;
    assert_eq!(versions(&fixture, "office").await, [(3, State::Active), (1, State::Active)]);
    assert_eq!(delete(&fixture, &format!("{arn}:2")).await, Err(not_found(&format!("{arn}:2"))));
    assert_eq!(
        delete(&fixture, &format!("{arn}:3")).await,
        Err(catalogue::connector_version_latest(format!("{arn}:3")))
    );
    update(&fixture, "office", "subnet-1", "d").await.unwrap();
    assert_eq!(settled(&fixture, "office").await.version, Some(4));
    let qualified = format!("{arn}:1");
    assert_eq!(
        update(&fixture, &qualified, "subnet-2", "e").await,
        Err(catalogue::connector_version_unwanted(&qualified))
    );
}

#[tokio::test]
async fn a_token_makes_one_connector() {
    let fixture = fixture().await;
    let first = create(&fixture, request("office", "a")).await.unwrap();
    settled(&fixture, "office").await;
    assert_eq!(create(&fixture, request("office", "a")).await, Ok(first.clone()), "the first answer again");
    assert_eq!(create(&fixture, request("other", "a")).await, Err(catalogue::connector_token_reused()));
    assert_eq!(create(&fixture, request("office", "b")).await, Err(catalogue::duplicate_connector_name("office")));
    let update_first = update(&fixture, "office", "subnet-2", "c").await.unwrap();
    settled(&fixture, "office").await;
    let again = update(&fixture, "office", "subnet-2", "c").await.unwrap();
    assert_eq!((again.version, again.last_update_status), (update_first.version, update_first.last_update_status));
    assert_eq!(versions(&fixture, "office").await.len(), 2);
    assert_eq!(update(&fixture, "office", "subnet-3", "c").await, Err(catalogue::connector_token_reused()));
    delete(&fixture, "office").await.unwrap();
    gone(&fixture, "office").await;
    let new = create(&fixture, request("office", "a")).await.unwrap();
    assert_ne!(new.id, first.id, "a dead one is not replayed");
}

#[tokio::test]
async fn there_are_limits() {
    let mut fixture = fixture().await;
    fixture.config.quotas.connectors = 2;
    fixture.config.quotas.versions_per_connector = 2;
    restart(&mut fixture).await;
    let arn = ready(&fixture, "a").await.arn;
    ready(&fixture, "b").await;
    assert_eq!(create(&fixture, request("c", "c")).await, Err(catalogue::connector_limit(2)));
    update(&fixture, "a", "subnet-2", "x").await.unwrap();
    settled(&fixture, "a").await;
    let full = update(&fixture, "a", "subnet-3", "y").await.unwrap_err();
    assert_eq!(
        (&full, full.kind()),
        (&catalogue::connector_version_limit(2), "NetworkConnectorLimitExceededException")
    );
    delete(&fixture, &format!("{arn}:1")).await.unwrap();
    gone(&fixture, &format!("{arn}:1")).await;
    update(&fixture, "a", "subnet-3", "y").await.unwrap();
    delete(&fixture, "b").await.unwrap();
    gone(&fixture, "b").await;
    create(&fixture, request("c", "c")).await.unwrap();
}

#[tokio::test]
async fn what_is_not_declared_is_refused() {
    let fixture = fixture().await;
    let mut with = request("a", "a");
    with.configuration = configuration("subnet-7");
    assert_eq!(create(&fixture, with.clone()).await, Err(catalogue::unknown_subnet("subnet-7")));
    with.configuration = NetworkConnectorConfiguration::VpcEgressConfiguration(VpcEgressConfiguration {
        security_group_ids: Some(vec!["sg-1".into(), "sg-2".into()]),
        ..match configuration("subnet-1") {
            NetworkConnectorConfiguration::VpcEgressConfiguration(egress) => egress,
        }
    });
    assert_eq!(create(&fixture, with).await, Err(catalogue::unknown_security_group("sg-2")));
    ready(&fixture, "a").await;
    assert_eq!(update(&fixture, "a", "subnet-7", "x").await, Err(catalogue::unknown_subnet("subnet-7")));
    for name in ["nc-00000000-0000-4000-8000-000000000001", "arn:aws:lambda:us-east-1:000000000000:network-connector:x"]
    {
        assert_eq!(create(&fixture, request(name, name)).await, Err(catalogue::bad_connector_name(name)));
    }
}

#[tokio::test]
async fn lists_come_in_pages_and_by_state() {
    let mut fixture = fixture().await;
    for index in 0..3 {
        ready(&fixture, &format!("c{index}")).await;
    }
    fixture.config.connector_pending = Duration::from_secs(600);
    restart(&mut fixture).await;
    let list = async |page: MarkerRequest| {
        let request = ListNetworkConnectorsRequest { page };
        let list = fixture.control().list_network_connectors(&fixture.caller, request).await?;
        let names: Vec<_> = list.network_connectors.into_iter().map(|connector| connector.name).collect();
        Ok::<_, ServiceError>((names, list.next_marker))
    };
    let page = |max: u32, marker: Option<String>| MarkerRequest { state: None, marker, max_items: Some(max) };
    let (names, marker) = list(page(2, None)).await.unwrap();
    assert_eq!(names, ["c2", "c1"]);
    // What is made meanwhile comes before the first page.
    create(&fixture, request("c3", "c3")).await.unwrap();
    let (names, end) = list(page(2, marker.clone())).await.unwrap();
    assert_eq!((names.as_slice(), end), (&["c0".to_owned()][..], None));
    let pending = MarkerRequest { state: Some(State::Pending), ..MarkerRequest::default() };
    assert_eq!(list(pending.clone()).await.unwrap().0, ["c3"]);
    let active = MarkerRequest { state: Some(State::Active), ..page(1, None) };
    assert_eq!(list(active).await.unwrap().0, ["c2"]);
    assert_eq!(list(MarkerRequest { marker, ..pending }).await, Err(catalogue::bad_marker()));
    assert_eq!(list(page(1, Some("nonsense".into()))).await, Err(catalogue::bad_marker()));
}

#[tokio::test]
async fn connectors_have_tags() {
    let fixture = fixture().await;
    let tags = [("team".to_owned(), "a".to_owned())];
    let mut wanted = request("office", "a");
    wanted.tags = Some(tags.clone().into());
    let arn = create(&fixture, wanted).await.unwrap().arn;
    assert_eq!(listed(&fixture, &arn).await, Ok(tags.into()));
    tag(&fixture, &arn, [("b".to_owned(), String::new())].into()).await.unwrap();
    untag(&fixture, &arn, &["team"]).await.unwrap();
    assert_eq!(listed(&fixture, &arn).await.unwrap().len(), 1);
    let foreign = arn.replace("000000000000", "999999999999");
    assert_eq!(listed(&fixture, &foreign).await, Err(catalogue::unknown_taggable(&foreign)));
}

fn run_with(fixture: &Fixture, arns: &[&str]) -> RunMicrovmRequest {
    let arns = arns.iter().map(|arn| (*arn).to_owned()).collect();
    RunMicrovmRequest { egress_network_connectors: Some(arns), ..run_request(fixture.arn("a")) }
}

#[tokio::test]
async fn a_microvm_is_given_a_connector_and_holds_it() {
    let fixture = fixture().await;
    fixture.ready_image("a").await;
    let arn = ready(&fixture, "office").await.arn;
    for named in [arn.clone(), format!("{arn}:1")] {
        let microvm = fixture.run(run_with(&fixture, &[&named])).await.unwrap();
        assert_eq!(microvm.egress_network_connectors, std::slice::from_ref(&named));
        fixture.until_state(&microvm.microvm_id, MicrovmState::Running).await;
        assert_eq!(fixture.host.egress(&microvm.microvm_id), Some(Egress::Nowhere));
        assert_eq!(delete(&fixture, "office").await, Err(catalogue::connector_in_use(&arn)));
        // Nor the version it has, once that is history.
        if named == arn {
            update(&fixture, "office", "subnet-2", "b").await.unwrap();
            settled(&fixture, "office").await;
        }
        let first = format!("{arn}:1");
        assert_eq!(delete(&fixture, &first).await, Err(catalogue::connector_in_use(&first)));
        fixture.terminate(&microvm.microvm_id).await.unwrap();
        fixture.until_state(&microvm.microvm_id, MicrovmState::Terminated).await;
    }
    let open = fixture.run(run_request(fixture.arn("a"))).await.unwrap();
    fixture.until_state(&open.microvm_id, MicrovmState::Running).await;
    assert_eq!(fixture.host.egress(&open.microvm_id), Some(Egress::Internet));
    delete(&fixture, &format!("{arn}:1")).await.unwrap();
    gone(&fixture, &format!("{arn}:1")).await;
    delete(&fixture, "office").await.unwrap();
    gone(&fixture, "office").await;
    assert_eq!(fixture.run(run_with(&fixture, &[&arn])).await.unwrap_err(), catalogue::unknown_connector(&arn));
}

#[tokio::test]
async fn an_image_brings_its_connector_along() {
    let fixture = fixture().await;
    let arn = ready(&fixture, "office").await.arn;
    let mut wanted = CreateMicrovmImageRequest { ..create_request("a") };
    wanted.version.egress_network_connectors = Some(vec![arn.clone()]);
    fixture.create(wanted).await.unwrap();
    fixture.until_image("a", api::images::ImageState::Created).await;
    assert_eq!(delete(&fixture, "office").await, Err(catalogue::connector_in_use(&arn)));
    let microvm = fixture.run(run_request(fixture.arn("a"))).await.unwrap();
    assert_eq!(microvm.egress_network_connectors, [arn]);
    fixture.until_state(&microvm.microvm_id, MicrovmState::Running).await;
    assert_eq!(fixture.host.egress(&microvm.microvm_id), Some(Egress::Nowhere));
    fixture.terminate(&microvm.microvm_id).await.unwrap();
    fixture.until_state(&microvm.microvm_id, MicrovmState::Terminated).await;
    fixture.delete_image("a").await.unwrap();
    until("the image is gone", async || fixture.image("a").await.is_err()).await;
    delete(&fixture, "office").await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_enforced_is_not_run() {
    let mut fixture = fixture().await;
    fixture.ready_image("a").await;
    let mut wanted = request("open", "open");
    wanted.configuration = configuration("subnet-9");
    let open = create(&fixture, wanted).await.unwrap().arn;
    settled(&fixture, "open").await;
    let closed = ready(&fixture, "closed").await.arn;
    let mut wanted = request("web", "web");
    wanted.configuration = NetworkConnectorConfiguration::VpcEgressConfiguration(VpcEgressConfiguration {
        associated_compute_resource_types: Some(vec![ComputeResourceType::WebFunction]),
        ..match configuration("subnet-1") {
            NetworkConnectorConfiguration::VpcEgressConfiguration(egress) => egress,
        }
    });
    let web = create(&fixture, wanted).await.unwrap().arn;
    settled(&fixture, "web").await;
    fixture.config.connector_pending = Duration::from_secs(600);
    restart(&mut fixture).await;
    let pending = create(&fixture, request("pending", "pending")).await.unwrap().arn;
    let internet = api::connector::ManagedConnector::InternetEgress.arn("us-east-1");
    let foreign = closed.replace("000000000000", "999999999999");
    let absent = format!("{closed}:7");
    for (arns, error) in [
        (vec![open.as_str()], catalogue::egress_not_enforced(&open, "subnet-9")),
        (vec![closed.as_str(), open.as_str()], catalogue::egress_not_enforced(&open, "subnet-9")),
        (vec![web.as_str()], catalogue::connector_not_for_microvms(&web)),
        (vec![pending.as_str()], catalogue::connector_not_active(&pending, State::Pending)),
        (vec![closed.as_str(), internet.as_str()], catalogue::egress_not_combinable()),
        (vec![foreign.as_str()], catalogue::unknown_connector(&foreign)),
        (vec![absent.as_str()], catalogue::unknown_connector(&absent)),
    ] {
        assert_eq!(fixture.run(run_with(&fixture, &arns)).await.unwrap_err(), error, "{arns:?}");
    }
    let mut image = create_request("b");
    image.version.egress_network_connectors = Some(vec![open.clone()]);
    assert_eq!(fixture.create(image).await.unwrap_err(), catalogue::egress_not_enforced(&open, "subnet-9"));
    assert!(fixture.image("b").await.is_err());
    let inward =
        RunMicrovmRequest { ingress_network_connectors: Some(vec![closed.clone()]), ..run_request(fixture.arn("a")) };
    assert_eq!(fixture.run(inward).await.unwrap_err(), catalogue::connector_leads_out(&closed));
}

#[tokio::test]
async fn many_at_once_make_one_of_a_name() {
    let fixture = fixture().await;
    let askers: Vec<_> = (0..60)
        .map(|index: u32| {
            let (control, caller) = (fixture.control().clone(), fixture.caller.clone());
            tokio::spawn(async move {
                let token = Some(index.to_string());
                match index % 3 {
                    0 => {
                        let request = CreateNetworkConnectorRequest { client_token: token, ..request("office", "") };
                        control.create_network_connector(&caller, request).await.map(drop)
                    }
                    1 => {
                        let request = UpdateNetworkConnectorRequest {
                            identifier: "office".into(),
                            configuration: Some(configuration(&format!("subnet-{}", index % 2 + 1))),
                            operator_role: None,
                            client_token: token,
                        };
                        control.update_network_connector(&caller, request).await.map(drop)
                    }
                    _ => {
                        let request = DeleteNetworkConnectorRequest { identifier: "office".into() };
                        control.delete_network_connector(&caller, request).await.map(drop)
                    }
                }
            })
        })
        .collect();
    for asker in askers {
        if let Err(refusal) = asker.await.unwrap() {
            let kinds = ["ResourceConflictException", "ResourceNotFoundException"];
            assert!(kinds.contains(&refusal.kind()), "{refusal}");
        }
    }
    until("it comes to rest", async || {
        get(&fixture, "office").await.is_err() || settled(&fixture, "office").await.state != Some(State::Deleting)
    })
    .await;
    random::is_legal(&fixture, "office").await;
}
