//! The shapes of requests: every constraint at its edge, in the service's words.

use api::{
    error::ServiceError,
    images::{
        Architecture, CreateMicrovmImageRequest, GetMicrovmImageRequest, ListMicrovmImageBuildsRequest,
        ListMicrovmImagesRequest,
    },
    input::{FromInput, Input},
    microvms::{CreateMicrovmAuthTokenRequest, ListMicrovmsRequest, PortSpecification, RunMicrovmRequest},
    tags::{ListTagsRequest, TagResourceRequest, UntagResourceRequest},
};
use proptest::prelude::*;
use serde_json::{Value, json};

const IMAGE: &str = "arn:aws:lambda:us-east-1:123456789012:microvm-image:shop";
const MICROVM: &str = "microvm-00000000-0000-4000-8000-000000000001";

fn texts(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn read<T: FromInput>(path: &[(&str, &str)], query: &[(&str, &str)], body: &Value) -> Result<T, ServiceError> {
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    T::from_input(&Input::new(texts(path), texts(query), &body)?)
}

fn image_body() -> Value {
    json!({
        "name": "shop",
        "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
        "buildRoleArn": "arn:aws:iam::123456789012:role/build",
        "codeArtifact": { "uri": "s3://code/shop.zip" },
    })
}

fn create(changes: Value) -> Result<CreateMicrovmImageRequest, ServiceError> {
    let mut body = image_body();
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    read(&[], &[], &body)
}

fn run(changes: Value) -> Result<RunMicrovmRequest, ServiceError> {
    let mut body = json!({ "imageIdentifier": IMAGE });
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    read(&[], &[], &body)
}

fn token(body: Value) -> Result<CreateMicrovmAuthTokenRequest, ServiceError> {
    read(&[("microvmIdentifier", MICROVM)], &[], &body)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ServiceError>, message: &str) {
    match result {
        Err(ServiceError::Validation { message: got }) => assert_eq!(got, message),
        other => panic!("not refused by validation: {other:?}"),
    }
}

#[track_caller]
fn refused_once<T: std::fmt::Debug>(result: Result<T, ServiceError>, violation: &str) {
    refused(result, &format!("1 validation error detected: {violation}"));
}

#[test]
fn a_request_keeps_what_it_was_given() {
    let request = create(json!({
        "baseImageVersion": "1",
        "resources": [{ "minimumMemoryInMiB": 512 }],
        "hooks": { "port": 9000, "microvmImageHooks": { "ready": "ENABLED", "readyTimeoutInSeconds": 3600 } },
        "environmentVariables": { "A": "1" },
        "cpuConfigurations": [{ "architecture": "X86_64" }],
        "logging": { "cloudWatch": { "logGroup": "/g" } },
        "description": null,
        "someMemberOfALaterModel": { "x": [1] },
    }))
    .unwrap();
    assert_eq!((request.name.as_str(), request.version.code_artifact.uri.as_str()), ("shop", "s3://code/shop.zip"));
    assert_eq!(request.version.resources.as_ref().unwrap()[0].minimum_memory_in_mib, 512);
    assert_eq!(request.version.environment_variables.as_ref().unwrap()["A"].expose(), "1");
    assert_eq!(request.version.cpu_configurations.as_ref().unwrap()[0].architecture, Architecture::X86_64);
    let stored = serde_json::to_string(&request).unwrap();
    assert_eq!(serde_json::from_str::<CreateMicrovmImageRequest>(&stored).unwrap(), request);
}

#[test]
fn the_recorded_sentences_of_violations() {
    refused_once(
        create(json!({ "name": "bad name!" })),
        "Value 'bad name!' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: \
         [a-zA-Z0-9-_]+",
    );
    refused_once(
        create(json!({ "codeArtifact": null })),
        "Value null at 'codeArtifact' failed to satisfy constraint: Member must not be null",
    );
    refused_once(
        run(json!({ "runHookPayload": "x".repeat(4097) })),
        "Value at 'runHookPayload' failed to satisfy constraint: Member must have length less than or equal to 4096",
    );
    assert!(run(json!({ "runHookPayload": "x".repeat(4096) })).is_ok());
}

#[test]
fn every_violation_is_in_the_one_message() {
    let message = read::<CreateMicrovmImageRequest>(&[], &[], &Value::Null).unwrap_err().to_string();
    assert!(message.starts_with("4 validation errors detected: Value null at 'name'"), "{message}");
    assert_eq!(message.matches("; ").count(), 3);
    refused(
        run(json!({ "imageIdentifier": "", "maximumDurationInSeconds": 0 })),
        "2 validation errors detected: Value '' at 'imageIdentifier' failed to satisfy constraint: Member must have \
         length greater than or equal to 1; Value '0' at 'maximumDurationInSeconds' failed to satisfy constraint: Member \
         must have value greater than or equal to 1",
    );
}

#[test]
fn lengths_at_their_edges() {
    assert!(create(json!({ "name": "n".repeat(64) })).is_ok());
    refused_once(
        create(json!({ "name": "n".repeat(65) })),
        &format!(
            "Value '{}' at 'name' failed to satisfy constraint: Member must have length less than or equal to 64",
            "n".repeat(65)
        ),
    );
    assert!(run(json!({ "clientToken": "t".repeat(128) })).is_ok());
    assert!(run(json!({ "clientToken": "t".repeat(129) })).is_err());
    assert!(run(json!({ "clientToken": "" })).is_err());
    let connectors = |count: usize| json!({ "egressNetworkConnectors": vec!["c"; count] });
    assert!(run(connectors(10)).is_ok());
    refused_once(
        run(connectors(11)),
        "Value '[c, c, c, c, c, c, c, c, c, c, c]' at 'egressNetworkConnectors' failed to satisfy constraint: Member must \
         have length less than or equal to 10",
    );
    assert!(create(connectors(1)).is_ok());
    assert!(create(connectors(2)).is_err());
    let role = |rest: usize| json!({ "buildRoleArn": format!("arn:aws:iam::123456789012:role/{}", "r".repeat(rest)) });
    assert!(create(role(2048 - 31)).is_ok());
    assert!(create(role(2048 - 30)).is_err());
    let variables = |count: usize| json!({ "environmentVariables": (0..count).map(|n| (format!("K{n}"), "v".into())).collect::<serde_json::Map<_, _>>() });
    assert!(create(variables(100)).is_ok());
    refused_once(
        create(variables(101)),
        "Value at 'environmentVariables' failed to satisfy constraint: Member must have length less than or equal to 100",
    );
    // Counted in UTF-16 units, as the service's own language counts.
    assert!(run(json!({ "runHookPayload": "😀".repeat(2048) })).is_ok());
    assert!(run(json!({ "runHookPayload": "😀".repeat(2049) })).is_err());
}

#[test]
fn numbers_at_their_edges() {
    for (seconds, fits) in [(0, false), (1, true), (28_800, true), (28_801, false)] {
        assert_eq!(run(json!({ "maximumDurationInSeconds": seconds })).is_ok(), fits, "{seconds}");
    }
    let policy = |idle: i64, suspended: i64| {
        run(json!({ "idlePolicy": {
            "maxIdleDurationSeconds": idle, "suspendedDurationSeconds": suspended, "autoResumeEnabled": true
        }}))
    };
    assert!(policy(60, 0).is_ok());
    refused_once(
        policy(59, 0),
        "Value '59' at 'idlePolicy.maxIdleDurationSeconds' failed to satisfy constraint: Member must have value greater \
         than or equal to 60",
    );
    assert!(policy(60, -1).is_err());
    let hooks = |port: i64, run: i64, ready: i64| {
        create(json!({ "hooks": {
            "port": port,
            "microvmHooks": { "run": "ENABLED", "runTimeoutInSeconds": run },
            "microvmImageHooks": { "ready": "ENABLED", "readyTimeoutInSeconds": ready },
        }}))
    };
    assert!(hooks(1, 1, 1).is_ok());
    assert!(hooks(65535, 60, 3600).is_ok());
    refused_once(
        hooks(9000, 61, 30),
        "Value '61' at 'hooks.microvmHooks.runTimeoutInSeconds' failed to satisfy constraint: Member must have value less \
         than or equal to 60",
    );
    for (port, run, ready) in [(0, 1, 1), (65536, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 3601)] {
        assert!(hooks(port, run, ready).is_err(), "{port} {run} {ready}");
    }
}

#[test]
fn an_idle_policy_is_whole() {
    refused(
        run(json!({ "idlePolicy": {} })),
        "3 validation errors detected: Value null at 'idlePolicy.maxIdleDurationSeconds' failed to satisfy constraint: \
         Member must not be null; Value null at 'idlePolicy.suspendedDurationSeconds' failed to satisfy constraint: Member \
         must not be null; Value null at 'idlePolicy.autoResumeEnabled' failed to satisfy constraint: Member must not be \
         null",
    );
}

#[test]
fn members_of_lists_and_words_are_named() {
    refused_once(
        run(json!({ "ingressNetworkConnectors": ["a", ""] })),
        "Value '' at 'ingressNetworkConnectors.2.member' failed to satisfy constraint: Member must have length greater \
         than or equal to 1",
    );
    refused_once(
        create(json!({ "cpuConfigurations": [{ "architecture": "RISC_V" }] })),
        "Value 'RISC_V' at 'cpuConfigurations.1.member.architecture' failed to satisfy constraint: Member must satisfy \
         enum value set: [ARM_64, X86_64]",
    );
    refused_once(
        create(json!({ "hooks": { "microvmHooks": { "run": "/run" } } })),
        "Value '/run' at 'hooks.microvmHooks.run' failed to satisfy constraint: Member must satisfy enum value set: \
         [DISABLED, ENABLED]",
    );
    refused_once(
        create(json!({ "additionalOsCapabilities": ["SYS_ADMIN"] })),
        "Value 'SYS_ADMIN' at 'additionalOsCapabilities.1.member' failed to satisfy constraint: Member must satisfy enum \
         value set: [ALL]",
    );
}

#[test]
fn maps_name_the_rule_of_their_keys_and_values_and_hide_what_is_sensitive() {
    refused_once(
        create(json!({ "environmentVariables": { "A B": "secret" } })),
        "Value at 'environmentVariables' failed to satisfy constraint: Map keys must satisfy constraint: [Member must have \
         length less than or equal to 256, Member must have length greater than or equal to 1, Member must satisfy regular \
         expression pattern: [^\\s]+]",
    );
    let message = create(json!({ "tags": { "k": "a*" } })).unwrap_err().to_string();
    assert!(message.starts_with(
        "1 validation error detected: Value '{k=a*}' at 'tags' failed to satisfy constraint: Map value must"
    ));
    assert!(create(json!({ "tags": { "Größe 1": "ä:/=+-@_." } })).is_ok());
}

#[test]
fn what_cannot_be_read_is_not_validated() {
    let unreadable = |error: ServiceError| error.to_wire();
    let error = unreadable(Input::new([], [], b"{\"name\":").unwrap_err());
    assert_eq!((error.status, error.kind), (400, "SerializationException"));
    assert_eq!(error.body, json!({ "message": null }));
    assert!(Input::new([], [], b"[]").is_err());
    let error = unreadable(create(json!({ "name": 7, "description": 7 })).unwrap_err());
    assert_eq!(error.body, json!({ "Message": "NUMBER_VALUE can not be converted to String" }));
    let error = unreadable(run(json!({ "maximumDurationInSeconds": "60" })).unwrap_err());
    assert_eq!(error.body, json!({ "Message": "STRING_VALUE can not be converted to Integer" }));
    assert!(run(json!({ "maximumDurationInSeconds": 60.5 })).is_err());
    assert!(run(json!({ "idlePolicy": [] })).is_err());
    assert!(create(json!({ "environmentVariables": { "A": 1 } })).is_err());
    assert!(create(json!({ "egressNetworkConnectors": "x" })).is_err());
    assert!(create(json!({ "egressNetworkConnectors": [null] })).is_err());
}

#[test]
fn unions_have_one_member() {
    let two = json!({ "logging": { "disabled": {}, "cloudWatch": {} } });
    assert_eq!(create(two).unwrap_err().kind(), "SerializationException");
    assert_eq!(create(json!({ "logging": {} })).unwrap_err().kind(), "SerializationException");
    assert!(create(json!({ "logging": { "disabled": {}, "cloudWatch": null } })).is_ok());
    let error = token(json!({ "expirationInMinutes": 5, "allowedPorts": [{ "allPorts": true }] })).unwrap_err();
    assert_eq!((error.status(), error.to_wire().body), (400, json!({ "Message": "Expected null" })));
}

#[test]
fn tokens_name_ports() {
    let request = token(json!({
        "expirationInMinutes": 60,
        "allowedPorts": [{ "port": 8080 }, { "range": { "startPort": 1, "endPort": 2 } }, { "allPorts": {} }],
    }))
    .unwrap();
    assert!(matches!(
        request.allowed_ports[..],
        [PortSpecification::Port(8080), PortSpecification::Range(_), PortSpecification::AllPorts(_)]
    ));
    refused(
        token(json!({})),
        "2 validation errors detected: Value null at 'expirationInMinutes' failed to satisfy constraint: Member must not \
         be null; Value null at 'allowedPorts' failed to satisfy constraint: Member must not be null",
    );
    refused(
        token(json!({ "expirationInMinutes": 0, "allowedPorts": [] })),
        "2 validation errors detected: Value '0' at 'expirationInMinutes' failed to satisfy constraint: Member must have \
         value greater than or equal to 1; Value '[]' at 'allowedPorts' failed to satisfy constraint: Member must have \
         length greater than or equal to 1",
    );
    refused_once(
        token(json!({ "expirationInMinutes": 5, "allowedPorts": [{ "port": 65536 }] })),
        "Value '65536' at 'allowedPorts.1.member.port' failed to satisfy constraint: Member must have value less than or \
         equal to 65535",
    );
}

#[test]
fn queries_and_paths_are_checked_too() {
    let list = |query: &[(&str, &str)]| read::<ListMicrovmImagesRequest>(&[], query, &Value::Null);
    assert_eq!(list(&[("maxResults", "50")]).unwrap().page.max_results, Some(50));
    assert!(list(&[("maxResults", "51")]).is_err());
    assert!(list(&[("maxResults", "0")]).is_err());
    assert_eq!(list(&[("maxResults", "many")]).unwrap_err().to_wire().body, json!({ "message": null }));
    let long = "a".repeat(257);
    assert!(read::<GetMicrovmImageRequest>(&[("imageIdentifier", &long)], &[], &Value::Null).is_err());
    let path = [("imageIdentifier", IMAGE), ("imageVersion", "1.0")];
    let builds = read::<ListMicrovmImageBuildsRequest>(&path, &[("architecture", "X86_64")], &Value::Null).unwrap();
    assert_eq!(builds.architecture, Some(Architecture::X86_64));
    assert!(read::<ListMicrovmImageBuildsRequest>(&path, &[("chipset", "AMD")], &Value::Null).is_err());
    refused(read::<ListMicrovmsRequest>(&[], &[("imageIdentifier", "shop")], &Value::Null), "Invalid ARN format: shop");
}

#[test]
fn a_shape_is_checked_before_an_arn() {
    let error = run(json!({ "imageIdentifier": "shop", "runHookPayload": "x".repeat(4097) })).unwrap_err();
    assert!(error.to_string().contains("runHookPayload"));
    refused(run(json!({ "imageIdentifier": "shop" })), "Malformed ARN - doesn't start with 'arn:'");
    let named = |image| read::<GetMicrovmImageRequest>(&[("imageIdentifier", image)], &[], &Value::Null);
    refused(named("shop"), "Invalid ARN format: shop");
    let slashed = named("arn:aws:lambda:us-east-1:123456789012:microvm-image/shop").unwrap_err().to_wire();
    assert_eq!((slashed.status, slashed.body), (403, json!({ "message": null })));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        "[a-z]{1,5}",
        prop::sample::select(vec![
            "name",
            "hooks",
            "port",
            "microvmHooks",
            "run",
            "logging",
            "cloudWatch",
            "disabled",
            "logGroup",
            "codeArtifact",
            "uri",
            "allowedPorts",
            "range",
            "allPorts",
            "startPort",
            "expirationInMinutes",
            "idlePolicy",
            "resources",
            "environmentVariables",
            "tags",
            "imageIdentifier",
            "egressNetworkConnectors",
            "cpuConfigurations",
            "architecture",
            "maxIdleDurationSeconds",
        ])
        .prop_map(String::from)
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_body_makes_a_reader_panic(body in json_value(), text in ".{0,40}") {
        let _ = read::<CreateMicrovmImageRequest>(&[], &[], &body).map(|it| it.version.plan("us-east-1", &[Architecture::X86_64]));
        let _ = read::<RunMicrovmRequest>(&[], &[], &body).map(|it| it.plan("us-east-1", 28_800));
        let _ = token(body).map(|it| it.plan());
        let _ = read::<GetMicrovmImageRequest>(&[("imageIdentifier", &text)], &[], &Value::Null);
        let _ = read::<ListMicrovmsRequest>(&[], &[("maxResults", &text), ("nextToken", &text)], &Value::Null);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Input::new([], [], &body);
    }
}

#[test]
fn what_cannot_have_tags_is_named() {
    let list = |resource: &str| read::<ListTagsRequest>(&[("Resource", resource)], &[], &Value::Null);
    assert_eq!(list(IMAGE).unwrap().resource, IMAGE);
    for resource in [
        "arn:aws:lambda:eu-west-1:123456789012:network-connector:nc-1",
        "arn:aws-us-gov:lambda:us-gov-west-1:123456789012:function:f:$LATEST",
    ] {
        assert_eq!(list(resource).unwrap().resource, resource);
    }
    for resource in [MICROVM, "shop", "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1"] {
        let Err(ServiceError::Validation { message }) = list(resource) else { panic!("{resource} is taken") };
        let start =
            format!("1 validation error detected: Value '{resource}' at 'resource' failed to satisfy constraint: ");
        assert!(
            message.starts_with(&format!("{start}Member must satisfy regular expression pattern: arn:(aws[a-zA-Z-]*)"))
        );
    }
}

#[test]
fn tags_at_their_edges() {
    let path = [("Resource", IMAGE)];
    let tag = |tags: Value| read::<TagResourceRequest>(&path, &[], &json!({ "Tags": tags }));
    let longest = json!({ "k".repeat(128): "v".repeat(256), "été _.:/=+-@": "" });
    assert_eq!(tag(longest).unwrap().tags.len(), 2);
    for tags in [json!({ "k".repeat(129): "" }), json!({ "": "" }), json!({ "a!": "" })] {
        let Err(ServiceError::Validation { message }) = tag(tags) else { panic!("it is taken") };
        assert!(
            message.contains("at 'tags' failed to satisfy constraint: Map keys must satisfy constraint: ["),
            "{message}"
        );
    }
    for tags in [json!({ "k": "v".repeat(257) }), json!({ "k": "a!" })] {
        let Err(ServiceError::Validation { message }) = tag(tags) else { panic!("it is taken") };
        assert!(
            message.contains("at 'tags' failed to satisfy constraint: Map value must satisfy constraint: ["),
            "{message}"
        );
    }
    let missing = read::<TagResourceRequest>(&path, &[], &json!({}));
    refused_once(missing, "Value null at 'tags' failed to satisfy constraint: Member must not be null");

    let untag = |query: &[(&str, &str)]| read::<UntagResourceRequest>(&path, query, &Value::Null);
    assert_eq!(untag(&[("tagKeys", "a")]).unwrap().tag_keys, ["a"]);
    assert_eq!(untag(&[("tagKeys", "a"), ("tagKeys", "b")]).unwrap().tag_keys, ["a", "b"]);
    refused_once(untag(&[]), "Value null at 'tagKeys' failed to satisfy constraint: Member must not be null");
    let empty = "Value '' at 'tagKeys.1.member' failed to satisfy constraint: Member must have length greater than or \
                 equal to 1";
    refused_once(untag(&[("tagKeys", "")]), empty);
    refused_once(untag(&[("tagKeys", ""), ("tagKeys", "b")]), empty);
}
