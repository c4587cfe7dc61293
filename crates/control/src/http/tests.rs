//! The API from the outside, over operations that answer from a table.

use std::sync::Arc;

use api::{
    arn::ImageArn,
    catalogue,
    connector::ManagedConnector,
    connectors::{
        CreateNetworkConnectorRequest, DeleteNetworkConnectorRequest, GetNetworkConnectorRequest, Identifier,
        LastUpdateStatus, ListNetworkConnectorVersionsRequest, ListNetworkConnectorVersionsResponse,
        ListNetworkConnectorsRequest, ListNetworkConnectorsResponse, NetworkConnector, NetworkConnectorState,
        NetworkConnectorSummary, NetworkConnectorVersionSummary, Networks, StateReasonCode,
        UpdateNetworkConnectorRequest, VPC_EGRESS,
    },
    error::ServiceError,
    ids::{BuildId, EndpointId, ImageId, ImageVersion, MicrovmId},
    images::{
        Architecture, BuildState, Chipset, CreateMicrovmImageRequest, CreateMicrovmImageResponse,
        DeleteMicrovmImageRequest, DeleteMicrovmImageResponse, DeleteMicrovmImageVersionRequest,
        DeleteMicrovmImageVersionResponse, GetMicrovmImageBuildRequest, GetMicrovmImageBuildResponse,
        GetMicrovmImageRequest, GetMicrovmImageResponse, GetMicrovmImageVersionRequest, GetMicrovmImageVersionResponse,
        ImageState, ListManagedMicrovmImageVersionsRequest, ListManagedMicrovmImageVersionsResponse,
        ListManagedMicrovmImagesRequest, ListManagedMicrovmImagesResponse, ListMicrovmImageBuildsRequest,
        ListMicrovmImageBuildsResponse, ListMicrovmImageVersionsRequest, ListMicrovmImageVersionsResponse,
        ListMicrovmImagesRequest, ListMicrovmImagesResponse, MicrovmImageBuildSummary, MicrovmImageSummary,
        UpdateMicrovmImageRequest, UpdateMicrovmImageResponse, UpdateMicrovmImageVersionRequest,
        UpdateMicrovmImageVersionResponse, VersionState, VersionStatus,
    },
    input::BODY_BYTES_MAX,
    microvms::{
        CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse, CreateMicrovmShellAuthTokenRequest,
        CreateMicrovmShellAuthTokenResponse, GetMicrovmRequest, GetMicrovmResponse, ListMicrovmsRequest,
        ListMicrovmsResponse, MicrovmItem, MicrovmState, ResumeMicrovmRequest, ResumeMicrovmResponse,
        RunMicrovmRequest, RunMicrovmResponse, SuspendMicrovmRequest, SuspendMicrovmResponse, TerminateMicrovmRequest,
        TerminateMicrovmResponse,
    },
    page::Page,
    sensitive::Sensitive,
    tags::{
        ListTagsRequest, ListTagsResponse, TagResourceRequest, TagResourceResponse, UntagResourceRequest,
        UntagResourceResponse,
    },
    timestamp::{IsoTimestamp, Timestamp},
};
use axum::{
    Router,
    body::{Body, to_bytes},
};
use http::{Request, Response};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tower::ServiceExt;

use super::{Operations, Throttles, router, routes::ROUTES, sts_router};
use crate::{
    audit::{Audit, Limits},
    auth::{AccessKey, Authenticator, Caller, Principals, User},
    iam::{Policy, Resources},
};

mod audit;
mod client;
mod coverage;
mod sts;
mod table;

use client::Client;

const REGION: &str = "us-east-1";
const ACCOUNT: &str = "123456789012";
const IMAGE: &str = "arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Amicrovm-image%3Ashop";
const ID: u128 = 0x0000_0000_0000_4000_8000_0000_0000_0001;
const MICROVM: &str = "microvm-00000000-0000-4000-8000-000000000001";

struct Table;

fn image_arn() -> ImageArn {
    ImageArn::new(REGION, ACCOUNT, "shop")
}

fn image_id() -> ImageId {
    uuid::Uuid::from_u128(ID).to_string().parse().unwrap()
}

fn build() -> MicrovmImageBuildSummary {
    MicrovmImageBuildSummary {
        image_arn: image_arn(),
        image_version: ImageVersion::FIRST,
        build_id: uuid::Uuid::from_u128(ID).to_string().parse::<BuildId>().unwrap(),
        build_state: BuildState::Pending,
        architecture: Architecture::X86_64,
        chipset: Chipset::Intel,
        chipset_generation: "1".into(),
        state_reason: None,
        created_at: Timestamp::from_unix_ms(1_500),
    }
}

fn microvm() -> GetMicrovmResponse {
    GetMicrovmResponse {
        microvm_id: MICROVM.parse::<MicrovmId>().unwrap(),
        state: MicrovmState::Pending,
        endpoint: format!("{}.lambda-microvm.us-east-1.on.aws", EndpointId::random()),
        image_arn: image_arn(),
        image_version: ImageVersion::FIRST,
        execution_role_arn: None,
        idle_policy: None,
        maximum_duration_in_seconds: 28_800,
        started_at: Timestamp::from_unix_ms(1_500),
        terminated_at: None,
        state_reason: None,
        kms_key_identifier: None,
        ingress_network_connectors: vec![],
        egress_network_connectors: vec![],
    }
}

/// A connector with the members that all operations answer with.
fn connector() -> NetworkConnector {
    serde_json::from_value(json!({
        "Arn": format!("arn:aws:lambda:{REGION}:{ACCOUNT}:network-connector:nc-1"),
        "Name": "office",
        "Id": "nc-1",
        "Version": 1,
        "State": "PENDING",
    }))
    .unwrap()
}

fn networks() -> Networks {
    let subnet = json!({ "id": "subnet-1", "cidr": "10.0.0.0/24", "internet": false });
    Networks { subnets: vec![serde_json::from_value(subnet).unwrap()], security_groups: vec![] }
}

/// The account's root, and a user with these policies.
fn authenticator(policies: Vec<Policy>) -> Arc<Authenticator> {
    let key = |id: &str, secret: &str| AccessKey { id: id.into(), secret: Sensitive::new(secret) };
    let principals = Principals::new(ACCOUNT.into(), key("AKIDEXAMPLE", "secret"));
    let user = User { name: "ann".into(), id: "AIDAEXAMPLE".into(), policies };
    principals.replace([(key(Client::user().key, Client::user().secret), Arc::new(user))]);
    Arc::new(Authenticator::new(principals, REGION.into()))
}

fn service(throttles: Throttles) -> Router {
    router(Arc::new(Table), authenticator(vec![]), throttles, Audit::nowhere())
}

async fn sent(request: Request<Body>) -> (Response<()>, Value) {
    sent_to(service(Throttles::default()), request).await
}

/// Sent to a service that knows others, or keeps a log.
async fn sent_knowing(auth: Arc<Authenticator>, audit: Audit, request: Request<Body>) -> (Response<()>, Value) {
    sent_to(router(Arc::new(Table), auth, Throttles::default(), audit), request).await
}

async fn sent_to(service: Router, request: Request<Body>) -> (Response<()>, Value) {
    let response = service.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let typed = parts.headers.get("content-type").map(http::HeaderValue::as_bytes);
    assert_eq!(typed, (parts.status != 204).then_some(&b"application/json"[..]));
    assert_eq!(parts.headers["x-amzn-requestid"].len(), 36);
    assert_eq!(parts.headers.contains_key("x-amzn-errortype"), !parts.status.is_success());
    let body = to_bytes(body, 1 << 20).await.unwrap();
    // An answer without a single byte is told from one that says null by its status.
    assert_eq!(body.is_empty(), parts.status == 204);
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    (Response::from_parts(parts, ()), body)
}

async fn called(method: &str, target: &str, body: Value) -> (u16, String, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (response, body) = sent(Client::new().signed(method, target, &body)).await;
    let kind = response.headers().get("x-amzn-errortype").map(|kind| kind.to_str().unwrap().to_owned());
    (response.status().as_u16(), kind.unwrap_or_default(), body)
}

#[tokio::test]
async fn every_operation_answers_with_its_own_status_and_members() {
    let create = json!({
        "name": "shop",
        "baseImageArn": api::images::base_image_arn(REGION),
        "buildRoleArn": "arn:aws:iam::123456789012:role/build",
        "codeArtifact": { "uri": "s3://code/shop.zip" },
        "clientToken": "t",
    });
    let run = json!({ "imageIdentifier": "arn:aws:lambda:us-east-1:123456789012:microvm-image:shop" });
    let token = json!({ "expirationInMinutes": 5, "allowedPorts": [{ "port": 8080 }] });
    let images = "/2025-09-09/microvm-images";
    let version = format!("{images}/{IMAGE}/versions/1.0");
    let machine = format!("/2025-09-09/microvms/{MICROVM}");
    let mut transcript = String::new();
    for (method, target, body) in [
        ("POST", images.to_owned(), create),
        ("GET", format!("{images}/{IMAGE}"), Value::Null),
        ("GET", format!("{images}?nameFilter=a%2Bb"), Value::Null),
        ("GET", version.clone(), Value::Null),
        ("GET", format!("{version}/builds?architecture=X86_64"), Value::Null),
        ("GET", format!("{version}/builds/b"), Value::Null),
        ("DELETE", format!("{images}/{IMAGE}"), Value::Null),
        ("POST", "/2025-09-09/microvms".to_owned(), run),
        ("GET", machine.clone(), Value::Null),
        ("GET", "/2025-09-09/microvms".to_owned(), Value::Null),
        ("POST", format!("{machine}/suspend"), Value::Null),
        ("POST", format!("{machine}/resume"), json!({})),
        ("DELETE", machine.clone(), Value::Null),
        ("POST", format!("{machine}/auth-token"), token),
        ("GET", format!("/2017-03-31/tags/{IMAGE}"), Value::Null),
        ("POST", format!("/2017-03-31/tags/{IMAGE}"), json!({ "Tags": { "team": "x" } })),
        ("DELETE", format!("/2017-03-31/tags/{IMAGE}?tagKeys=a&tagKeys=b%20c"), Value::Null),
        ("POST", CONNECTORS.to_owned(), connector_body()),
        ("GET", format!("{CONNECTORS}/office"), Value::Null),
        ("PUT", format!("{CONNECTORS}/office"), json!({ "ClientToken": "t" })),
        ("DELETE", format!("{CONNECTORS}/office"), Value::Null),
        ("GET", format!("{CONNECTORS}?State=PENDING&MaxItems=100"), Value::Null),
        ("GET", format!("{CONNECTORS}/office/versions"), Value::Null),
    ] {
        let (status, kind, mut body) = called(method, &target, body).await;
        assert_eq!(kind, "", "{method} {target}: {body}");
        if let Some(endpoint) = body.get_mut("endpoint") {
            *endpoint = "(random)".into();
        }
        let body = if status == 204 { "(not a byte)".to_owned() } else { format!("{body:#}") };
        transcript.push_str(&format!("{method} {target} {status}\n{body}\n\n"));
    }
    insta::assert_snapshot!(transcript);
}

#[tokio::test]
async fn colons_may_be_bare_but_slashes_are_not_part_of_a_name() {
    let bare = IMAGE.replace("%3A", ":");
    let (status, _, body) = called("GET", &format!("/2025-09-09/microvm-images/{bare}"), Value::Null).await;
    assert_eq!((status, &body["name"]), (200, &json!("shop")));
    let slashed = bare.replace("microvm-image:", "microvm-image/");
    let (status, kind, _) = called("GET", &format!("/2025-09-09/microvm-images/{slashed}"), Value::Null).await;
    assert_eq!((status, kind.as_str()), (404, "UnknownOperationException"));
}

#[tokio::test]
async fn errors_carry_their_type_in_a_header() {
    let (status, kind, body) = called("GET", "/2025-09-09/microvms/microvm-x", Value::Null).await;
    assert_eq!((status, kind.as_str()), (404, "ResourceNotFoundException"));
    assert_eq!(body, json!({ "message": "MicroVM not found: microvm-x", "resourceId": null, "resourceType": null }));
    let run = |name: &str| json!({ "imageIdentifier": image_arn().to_string().replace("shop", name) });
    let (status, kind, _) = called("POST", "/2025-09-09/microvms", run("full")).await;
    assert_eq!((status, kind.as_str()), (500, "InsufficientCapacityException"));
    let (status, kind, _) = called("POST", "/2025-09-09/microvms", json!({})).await;
    assert_eq!((status, kind.as_str()), (400, "ValidationException"));
    let body = run("busy").to_string();
    let (response, _) = sent(Client::new().signed("POST", "/2025-09-09/microvms", &body)).await;
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &"2".parse().unwrap()));
}

const CONNECTORS: &str = "/2026-04-04/network-connectors";

fn connector_body() -> Value {
    json!({
        "Name": "office",
        "Configuration": { "VpcEgressConfiguration": {
            "SubnetIds": ["subnet-1"],
            "NetworkProtocol": "IPv4",
            "AssociatedComputeResourceTypes": ["MicroVm"],
        } },
        "OperatorRole": "arn:aws:iam::123456789012:role/operator",
        "ClientToken": "t",
    })
}

#[tokio::test]
async fn errors_of_connectors_are_spelled_as_recorded() {
    let (status, kind, body) = called("GET", &format!("{CONNECTORS}/nc-m80-does-not-exist"), Value::Null).await;
    assert_eq!((status, kind.as_str()), (404, "ResourceNotFoundException"));
    let arn = "arn:aws:lambda:us-east-1:123456789012:network-connector:nc-m80-does-not-exist";
    assert_eq!(body, json!({ "Message": format!("Network connector not found for: {arn}") }));

    // The shape is looked at first, also where everything else is missing.
    let subnets: Vec<_> = (1..=17).map(|number| format!("subnet-{number:017}")).collect();
    let body = json!({ "Name": "a", "Configuration": { "VpcEgressConfiguration": { "SubnetIds": subnets } } });
    let (status, kind, body) = called("POST", CONNECTORS, body).await;
    assert_eq!((status, kind.as_str()), (400, "ValidationException"));
    let message = format!(
        "1 validation error detected: Value '[{}]' at 'configuration.vpcEgressConfiguration.subnetIds' failed to satisfy \
         constraint: Member must have length less than or equal to 16",
        subnets.join(", ")
    );
    assert_eq!(body, json!({ "message": message }));

    let without = |member: &str| {
        let mut body = connector_body();
        let egress = body["Configuration"]["VpcEgressConfiguration"].as_object_mut().unwrap();
        if egress.remove(member).is_none() {
            body.as_object_mut().unwrap().remove(member);
        }
        body
    };
    for (member, message) in [
        ("ClientToken", "ClientToken is a required field"),
        ("OperatorRole", "NetworkConnectorOperatorRole is required for VPC_EGRESS connector type"),
        ("NetworkProtocol", "NetworkProtocol cannot be null or empty"),
        ("AssociatedComputeResourceTypes", "AssociatedComputeResourceTypes cannot be null or empty"),
        ("SubnetIds", "SubnetIds cannot be null or empty"),
    ] {
        let (status, kind, body) = called("POST", CONNECTORS, without(member)).await;
        assert_eq!((status, kind.as_str()), (400, "InvalidParameterValueException"), "{member}");
        assert_eq!(body, json!({ "Type": "User", "message": message }));
    }
    let (status, kind, body) = called("GET", &format!("{CONNECTORS}/broken"), Value::Null).await;
    assert_eq!((status, kind.as_str()), (500, "ServiceException"));
    assert_eq!(body, json!({ "Type": "Service", "Message": "An internal error occurred." }));
}

#[tokio::test]
async fn errors_of_the_older_family_say_whose_fault_it_is() {
    let target = format!("/2017-03-31/tags/{IMAGE}");
    let (status, kind, body) = called("POST", &target, json!({ "Tags": { "aws:x": "" } })).await;
    assert_eq!((status, kind.as_str()), (400, "InvalidParameterValueException"));
    assert_eq!((&body["Type"], body["message"].is_string()), (&json!("User"), true));
    let (status, kind, body) = called("DELETE", &format!("{target}?tagKeys=a"), Value::Null).await;
    assert_eq!((status, kind.as_str(), &body["Type"]), (409, "ResourceConflictException", &json!("User")));
}

#[tokio::test]
async fn an_operation_called_too_often_is_refused_and_says_when_to_try_again() {
    let service = service(Throttles::new([("GetMicrovm", 2), ("GetNetworkConnector", 1)]).unwrap());
    let target = format!("/2025-09-09/microvms/{MICROVM}");
    let call = async || sent_to(service.clone(), Client::new().signed("GET", &target, "")).await;
    for _ in 0..2 {
        assert_eq!(call().await.0.status(), 200);
    }
    let (refused, body) = call().await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(refused.headers()["x-amzn-errortype"], "ThrottlingException");
    assert_eq!(body["message"], "Rate exceeded");
    // The operations on connectors have another name for it.
    let connector = Client::new().signed("GET", &format!("{CONNECTORS}/office"), "");
    assert_eq!(sent_to(service.clone(), connector).await.0.status(), 200);
    let connector = Client::new().signed("GET", &format!("{CONNECTORS}/office"), "");
    let (refused, body) = sent_to(service.clone(), connector).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(refused.headers()["x-amzn-errortype"], "TooManyRequestsException");
    assert_eq!(body["Reason"], "CallerRateLimitExceeded");
    let other = Client::new().signed("GET", "/2025-09-09/microvms", "");
    assert_eq!(sent_to(service.clone(), other).await.0.status(), 200, "each operation has its own bucket");
    let stranger = Client { secret: "wrong", ..Client::new() };
    let (refused, _) = sent_to(service, stranger.signed("GET", &target, "")).await;
    assert_eq!(refused.status(), 403, "who cannot sign takes nothing from it");
}

#[tokio::test]
async fn a_bug_in_an_operation_is_an_internal_error() {
    let body = json!({ "imageIdentifier": image_arn().to_string().replace("shop", "broken") });
    let (status, kind, body) = called("POST", "/2025-09-09/microvms", body).await;
    assert_eq!((status, kind.as_str()), (500, "InternalServerException"));
    assert_eq!(body, json!({ "message": "An internal error occurred." }));
}

#[tokio::test]
async fn operations_that_are_not_there_are_unknown() {
    for (method, path) in [("GET", "/"), ("PUT", "/2025-09-09/microvms"), ("GET", "/2015-03-31/functions")] {
        let (status, kind, _) = called(method, path, Value::Null).await;
        assert_eq!((status, kind.as_str()), (404, "UnknownOperationException"), "{method} {path}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_without_a_word() {
    for target in
        ["/2025-09-09/microvms?nextToken=a=b", "/2025-09-09/microvms/%FF", "/2025-09-09/microvms?maxResults=x"]
    {
        let (status, kind, body) = called("GET", target, Value::Null).await;
        assert_eq!(
            (status, kind.as_str(), body),
            (400, "SerializationException", json!({ "message": null })),
            "{target}"
        );
    }
    let (response, body) = sent(Client::new().signed("POST", "/2025-09-09/microvms", "{\"imageIdentifier\"")).await;
    assert_eq!((response.status().as_u16(), body), (400, json!({ "message": null })));
    let (_, _, body) = called("GET", "/2025-09-09/microvm-images?nextToken=a%2Bb%2F%3D%3D", Value::Null).await;
    assert_eq!(body["nextToken"], "a+b/==");
}

#[tokio::test]
async fn a_body_has_a_limit_announced_or_not() {
    let body = " ".repeat(BODY_BYTES_MAX + 1);
    let mut request = Client::new().signed("POST", "/2025-09-09/microvms", &body);
    let (response, _) = sent(request).await;
    assert_eq!(response.status(), 413);
    request = Client::new().signed("POST", "/2025-09-09/microvms", "");
    request.headers_mut().insert("content-length", "1048577".parse().unwrap());
    assert_eq!(sent(request).await.0.status(), 413);
}

#[tokio::test]
async fn strangers_are_refused() {
    let refused = async |request: Request<Body>, kind: &str| {
        let (response, body) = sent(request).await;
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["x-amzn-errortype"], kind, "{body}");
        assert!(body["message"].is_string());
    };
    let target = "/2025-09-09/microvms";
    let unsigned = Request::builder().uri(target).body(Body::empty()).unwrap();
    refused(unsigned, "MissingAuthenticationTokenException").await;
    let client = Client { key: "AKIDOTHER", ..Client::new() };
    refused(client.signed("GET", target, ""), "UnrecognizedClientException").await;
    let client = Client { secret: "guess", ..Client::new() };
    refused(client.signed("GET", target, ""), "InvalidSignatureException").await;
    for minutes in [-6, 6] {
        let client = Client { clock: OffsetDateTime::now_utc() + Duration::minutes(minutes), ..Client::new() };
        refused(client.signed("GET", target, ""), "InvalidSignatureException").await;
    }
    let mut tampered = Client::new().signed("POST", target, "{}");
    *tampered.body_mut() = Body::from("{ }");
    refused(tampered, "InvalidSignatureException").await;
    let unsigned = Request::builder().uri("/no/such/operation").body(Body::empty()).unwrap();
    refused(unsigned, "MissingAuthenticationTokenException").await;
}
