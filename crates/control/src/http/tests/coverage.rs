//! Every operation that is served, called without credentials, by a user without permissions, and by one with exactly those
//! it takes. An operation that is not in the list fails the test, and so does one in the list that is not served.

use super::*;

const SHOP: &str = "arn:aws:lambda:us-east-1:123456789012:microvm-image:shop";
const ALL_IMAGES: &str = "arn:aws:lambda:us-east-1:123456789012:microvm-image:*";
const ROLE: &str = "arn:aws:iam::123456789012:role/build";
const HTTP_INGRESS: &str = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:HTTP_INGRESS";
const INTERNET_EGRESS: &str = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS";
const ARTIFACT: &str = "arn:aws:s3:::code/shop.zip";
const OFFICE: &str = "arn:aws:lambda:us-east-1:123456789012:network-connector:office";
const OPERATOR: &str = "arn:aws:iam::123456789012:role/operator";
const PASS_ROLE: &str = "iam:PassRole";
const PASS_CONNECTOR: &str = "lambda:PassNetworkConnector";

/// An operation as it is called here.
struct Covered {
    /// Its name.
    name: &'static str,
    /// What is sent.
    body: fn() -> Value,
    /// What is sent in the query.
    query: &'static str,
    /// The resource its action is authorised on.
    resource: &'static str,
    /// What the denial of a user without permissions names.
    denied_on: &'static str,
    /// What else it takes.
    passes: &'static [(&'static str, &'static str)],
}

fn on(name: &'static str, resource: &'static str) -> Covered {
    Covered { name, body: || Value::Null, query: "", resource, denied_on: resource, passes: &[] }
}

/// Of a microVM: a denial does not tell whether there is one, or of which image.
fn of_microvm(name: &'static str) -> Covered {
    Covered { denied_on: ALL_IMAGES, ..on(name, SHOP) }
}

fn covered() -> Vec<Covered> {
    vec![
        Covered {
            body: || {
                json!({
                    "name": "shop",
                    "baseImageArn": api::images::base_image_arn(REGION),
                    "buildRoleArn": ROLE,
                    "codeArtifact": { "uri": "s3://code/shop.zip" },
                })
            },
            passes: &[(PASS_ROLE, ROLE), ("s3:GetObject", ARTIFACT), (PASS_CONNECTOR, INTERNET_EGRESS)],
            ..on("CreateMicrovmImage", SHOP)
        },
        Covered {
            body: || {
                json!({
                    "baseImageArn": api::images::base_image_arn(REGION),
                    "buildRoleArn": ROLE,
                    "codeArtifact": { "uri": "s3://code/shop.zip" },
                })
            },
            passes: &[(PASS_ROLE, ROLE), ("s3:GetObject", ARTIFACT), (PASS_CONNECTOR, INTERNET_EGRESS)],
            ..on("UpdateMicrovmImage", SHOP)
        },
        Covered { body: || json!({ "status": "INACTIVE" }), ..on("UpdateMicrovmImageVersion", SHOP) },
        on("DeleteMicrovmImageVersion", SHOP),
        on("ListMicrovmImageVersions", SHOP),
        on("ListManagedMicrovmImages", "*"),
        on("ListManagedMicrovmImageVersions", "*"),
        on("ListTags", SHOP),
        Covered { body: || json!({ "Tags": { "team": "x" } }), ..on("TagResource", SHOP) },
        Covered { query: "?tagKeys=a&tagKeys=b", ..on("UntagResource", SHOP) },
        on("GetMicrovmImage", SHOP),
        on("ListMicrovmImages", "*"),
        on("GetMicrovmImageVersion", SHOP),
        on("ListMicrovmImageBuilds", SHOP),
        on("GetMicrovmImageBuild", SHOP),
        on("DeleteMicrovmImage", SHOP),
        Covered {
            body: || json!({ "imageIdentifier": SHOP, "executionRoleArn": ROLE }),
            passes: &[(PASS_ROLE, ROLE), (PASS_CONNECTOR, HTTP_INGRESS), (PASS_CONNECTOR, INTERNET_EGRESS)],
            ..on("RunMicrovm", SHOP)
        },
        of_microvm("GetMicrovm"),
        on("ListMicrovms", "*"),
        of_microvm("SuspendMicrovm"),
        of_microvm("ResumeMicrovm"),
        of_microvm("TerminateMicrovm"),
        Covered {
            body: || json!({ "expirationInMinutes": 5, "allowedPorts": [{ "port": 8080 }] }),
            ..of_microvm("CreateMicrovmAuthToken")
        },
        Covered { body: || json!({ "expirationInMinutes": 5 }), ..of_microvm("CreateMicrovmShellAuthToken") },
        Covered { body: connector_body, passes: &[(PASS_ROLE, OPERATOR)], ..on("CreateNetworkConnector", "*") },
        on("GetNetworkConnector", OFFICE),
        Covered { body: || json!({ "ClientToken": "t" }), ..on("UpdateNetworkConnector", OFFICE) },
        on("DeleteNetworkConnector", OFFICE),
        on("ListNetworkConnectors", "*"),
        on("ListNetworkConnectorVersions", OFFICE),
    ]
}

fn target(path: &str) -> String {
    path.replace("{microvmIdentifier}", MICROVM)
        .replace("{imageIdentifier}", IMAGE)
        .replace("{imageVersion}", "1.0")
        .replace("{buildId}", "b")
        .replace("{Resource}", IMAGE)
        .replace("{Identifier}", "office")
}

fn allowing(permissions: &[(String, &str)]) -> Vec<Policy> {
    let statements: Vec<_> = permissions
        .iter()
        .map(|(action, resource)| json!({ "Effect": "Allow", "Action": action, "Resource": resource }))
        .collect();
    match statements.is_empty() {
        true => vec![],
        false => vec![Policy::parse(&json!({ "Statement": statements }).to_string()).unwrap()],
    }
}

async fn by(
    client: &Client,
    policies: Vec<Policy>,
    route: &crate::http::routes::Route,
    query: &str,
    body: &Value,
) -> (u16, String, String) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let target = target(route.path) + query;
    let request = client.signed(route.method.as_str(), &target, &body);
    let (response, body) = sent_knowing(authenticator(policies), Audit::nowhere(), request).await;
    let kind = response.headers().get("x-amzn-errortype").map_or("", |kind| kind.to_str().unwrap()).to_owned();
    (response.status().as_u16(), kind, body["message"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn every_operation_that_is_served_is_covered() {
    let mut served: Vec<_> = ROUTES.iter().map(|route| route.name).collect();
    let mut here: Vec<_> = covered().iter().map(|it| it.name).collect();
    served.sort_unstable();
    here.sort_unstable();
    assert_eq!(served, here, "an operation without an entry in `covered`, or an entry without an operation");
}

#[tokio::test]
async fn nobody_gets_in_without_credentials() {
    // Whether it is served or not: a stranger is told the same.
    for route in ROUTES {
        let unsigned = Request::builder().method(route.method.clone()).uri(target(route.path));
        let (response, body) = sent(unsigned.body(Body::empty()).unwrap()).await;
        assert_eq!(
            response.headers()["x-amzn-errortype"],
            "MissingAuthenticationTokenException",
            "{}: {body}",
            route.name
        );
        assert_eq!(response.status(), 403);
        for (client, expected) in [
            (Client { key: "AKIANOBODY", ..Client::user() }, "UnrecognizedClientException"),
            (Client { secret: "guess", ..Client::user() }, "InvalidSignatureException"),
            (Client { service: "s3", ..Client::user() }, "InvalidSignatureException"),
        ] {
            let everything = allowing(&[("*".into(), "*")]);
            let (status, kind, _) = by(&client, everything, route, "", &Value::Null).await;
            assert_eq!((status, kind.as_str()), (403, expected), "{}", route.name);
        }
    }
}

#[tokio::test]
async fn a_user_needs_each_permission_and_no_other() {
    for it in covered() {
        let route = ROUTES.iter().find(|route| route.name == it.name).unwrap();
        let body = (it.body)();
        let action = route.action();
        let denied = |answer: (u16, String, String), action: &str, resource: &str| {
            assert_eq!((answer.0, answer.1.as_str()), (403, "AccessDeniedException"), "{}: {}", it.name, answer.2);
            let words = format!("is not authorized to perform: {action} on resource: {resource} ");
            assert!(answer.2.contains(&words), "{}: {}", it.name, answer.2);
        };
        denied(by(&Client::user(), vec![], route, it.query, &body).await, &action, it.denied_on);

        let mut exactly = vec![(action.clone(), it.resource)];
        exactly.extend(it.passes.iter().map(|(action, resource)| ((*action).to_owned(), *resource)));
        // Past this the operation has its say, which is no matter here.
        let allowed = |answer: (u16, String, String)| {
            assert!(answer.1.is_empty() || answer.1 == "InternalServerException", "{}: {answer:?}", it.name);
        };
        allowed(by(&Client::user(), allowing(&exactly), route, it.query, &body).await);

        for missing in 0..exactly.len() {
            let mut all_but_one = exactly.clone();
            let (action, resource) = all_but_one.remove(missing);
            let resource = if missing == 0 { it.denied_on } else { resource };
            denied(by(&Client::user(), allowing(&all_but_one), route, it.query, &body).await, &action, resource);
        }
        // A denial of any of them wins over everything that is allowed.
        for (action, resource) in exactly {
            let mut policies = allowing(&[("*".into(), "*")]);
            let statement = json!({ "Effect": "Deny", "Action": action, "Resource": resource });
            policies.push(Policy::parse(&json!({ "Statement": statement }).to_string()).unwrap());
            let answer = by(&Client::user(), policies, route, it.query, &body).await;
            assert_eq!((answer.0, answer.1.as_str()), (403, "AccessDeniedException"), "{}: {}", it.name, answer.2);
            assert!(answer.2.ends_with("with an explicit deny in an identity-based policy"), "{}", answer.2);
        }
        // The account's root needs no policy.
        allowed(by(&Client::new(), vec![], route, it.query, &body).await);
    }
}

#[tokio::test]
async fn shape_comes_before_leave_and_leave_before_look_ups() {
    let route = |name: &str| ROUTES.iter().find(|route| route.name == name).unwrap();
    let nobody = || (Client::user(), vec![]);
    let (client, policies) = nobody();
    let (status, kind, _) = by(&client, policies, route("RunMicrovm"), "", &json!({ "imageIdentifier": 5 })).await;
    assert_eq!((status, kind.as_str()), (400, "SerializationException"));
    let (client, policies) = nobody();
    let (status, kind, message) = by(&client, policies, route("RunMicrovm"), "", &json!({})).await;
    assert_eq!((status, kind.as_str()), (400, "ValidationException"), "{message}");
    // A rule that the service would only look at later.
    let run = json!({ "imageIdentifier": SHOP, "egressNetworkConnectors": ["nonsense"] });
    let (client, policies) = nobody();
    assert_eq!(by(&client, policies, route("RunMicrovm"), "", &run).await.0, 403);

    let get = async |policies: Vec<Policy>, microvm: &str| {
        let request = Client::user().signed("GET", &format!("/2025-09-09/microvms/{microvm}"), "");
        let (response, body) = sent_knowing(authenticator(policies), Audit::nowhere(), request).await;
        (response.status().as_u16(), body["message"].as_str().unwrap_or_default().to_owned())
    };
    let absent = MICROVM.replace("0001", "0002");
    assert_eq!(get(vec![], MICROVM).await, get(vec![], &absent).await, "who may not learns nothing");
    let shop = || allowing(&[("lambda:GetMicrovm".into(), SHOP)]);
    assert_eq!((get(shop(), MICROVM).await.0, get(shop(), &absent).await.0), (200, 403));
    let all = allowing(&[("lambda:GetMicrovm".into(), ALL_IMAGES)]);
    assert_eq!(get(all, &absent).await.0, 404);
}
