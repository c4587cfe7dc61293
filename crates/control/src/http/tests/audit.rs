//! What calls leave in the audit log.

use super::*;

#[tokio::test]
async fn every_call_leaves_its_line_and_no_secret_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let audit = Audit::start(path.clone(), Limits::default());
    let everything = r#"{"Statement": {"Effect": "Allow", "Action": "lambda:*", "Resource": "*"}}"#;
    let images = "/2025-09-09/microvm-images";
    let create = json!({
        "name": "shop",
        "baseImageArn": api::images::base_image_arn(REGION),
        "buildRoleArn": "arn:aws:iam::123456789012:role/build",
        "codeArtifact": { "uri": "s3://code/shop.zip" },
        "environmentVariables": { "PASSWORD": "hunter2" },
    });
    let run = json!({ "imageIdentifier": image_arn().to_string(), "runHookPayload": "hunter2" });
    let broken = json!({ "imageIdentifier": image_arn().to_string().replace("shop", "broken") });
    let token = json!({ "expirationInMinutes": 5, "allowedPorts": [{ "port": 8080 }] });
    let stranger = Client { key: "AKIANOBODY", ..Client::new() };
    let unsigned = Request::builder().uri("/2025-09-09/microvms").body(Body::empty()).unwrap();
    let mut ids = Vec::new();
    for request in [
        Client::new().signed("POST", "/2025-09-09/microvms", &run.to_string()),
        Client::user().signed("POST", images, &create.to_string()),
        Client::user().signed("GET", &format!("{images}?nextToken=hunter2"), ""),
        Client::user().signed("POST", &format!("/2025-09-09/microvms/{MICROVM}/auth-token"), &token.to_string()),
        Client::user().signed("GET", "/2025-09-09/microvms/microvm-x", ""),
        Client::new().signed("POST", "/2025-09-09/microvms", &broken.to_string()),
        stranger.signed("GET", "/2025-09-09/microvms", ""),
        unsigned,
        Client::new().signed("GET", "/2015-03-31/functions", ""),
    ] {
        let policy = Policy::parse(everything).unwrap();
        let (response, _) = sent_knowing(authenticator(vec![policy]), audit.clone(), request).await;
        ids.push(response.headers()["x-amzn-requestid"].to_str().unwrap().to_owned());
    }
    audit.stop();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("secret") && !text.contains("Signature="), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            assert!(line["time"].is_string());
            json!([
                line["requestId"],
                line["action"],
                line["principal"],
                line["accessKeyId"],
                line["resources"],
                line["status"],
                line["error"]
            ])
        })
        .collect();
    let (root, user) = ("arn:aws:iam::123456789012:root", "arn:aws:iam::123456789012:user/ann");
    let shop = image_arn().to_string();
    let role = "arn:aws:iam::123456789012:role/build";
    let expected = [
        json!(["lambda:RunMicrovm", root, "AKIDEXAMPLE", [shop, MICROVM], 200, null]),
        json!(["lambda:CreateMicrovmImage", user, "AKIAUSER", [shop, role], 403, "AccessDeniedException"]),
        json!(["lambda:ListMicrovmImages", user, "AKIAUSER", [], 200, null]),
        json!(["lambda:CreateMicrovmAuthToken", user, "AKIAUSER", [MICROVM, shop], 200, null]),
        json!(["lambda:GetMicrovm", user, "AKIAUSER", ["microvm-x"], 404, "ResourceNotFoundException"]),
        json!([
            "lambda:RunMicrovm",
            root,
            "AKIDEXAMPLE",
            [shop.replace("shop", "broken")],
            500,
            "InternalServerException"
        ]),
        json!(["lambda:ListMicrovms", null, "AKIANOBODY", [], 403, "UnrecognizedClientException"]),
        json!(["lambda:ListMicrovms", null, null, [], 403, "MissingAuthenticationTokenException"]),
        json!([null, root, "AKIDEXAMPLE", [], 404, "UnknownOperationException"]),
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .zip(&ids)
        .map(|(line, id)| Value::Array([vec![json!(id)], line.as_array().unwrap().clone()].concat()))
        .collect();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_a_line_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let audit = Audit::start(path.clone(), Limits::default());
    let mut request = Client::new().signed("POST", "/2025-09-09/microvms", "{}");
    // A body that never comes.
    let (_writer, reader) = tokio::io::duplex(1);
    *request.body_mut() = Body::from_stream(tokio_util::io::ReaderStream::new(reader));
    let answering =
        router(Arc::new(Table), authenticator(vec![]), Throttles::default(), audit.clone()).oneshot(request);
    let gone = tokio::time::timeout(std::time::Duration::from_millis(100), answering).await;
    assert!(gone.is_err());
    audit.stop();
    let line: Value = serde_json::from_str(std::fs::read_to_string(&path).unwrap().trim()).unwrap();
    assert_eq!((&line["action"], &line["status"]), (&json!("lambda:RunMicrovm"), &Value::Null));
}
