//! Who may call: users, keys and policies of `pilotlight iam`, changed while the server runs, and asked by unmodified boto3.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::{
    Stage,
    aws::Signer,
    disk,
    image::{self, BUCKET, ROLE},
    until,
};
use serde_json::{Value, json};

use super::Test;

pub const TESTS: &[Test] = &[
    ("access::a_user_may_do_nothing_until_a_policy_says_so", nothing_at_first),
    ("access::a_user_may_do_what_is_allowed_and_a_denial_wins", allowed_and_denied),
    ("access::roles_and_connectors_are_passed_on_by_those_who_may", passing),
    ("access::a_denied_caller_does_not_learn_what_is_there", learns_nothing),
    ("access::a_key_can_be_deactivated_while_the_server_runs", deactivated),
    ("access::users_keys_and_policies_outlive_the_server", outlives),
    ("access::the_s3_endpoint_asks_the_same_policies", s3),
    ("access::get_caller_identity_answers", identity),
    ("access::every_call_is_in_the_audit_log", audited),
    ("access::a_full_disk_costs_lines_of_the_audit_log_and_no_call", full_disk),
];

/// A change is in force within a second.
const IN_FORCE_MAX: Duration = Duration::from_secs(1);

/// A user of a test, who is gone with it.
struct User<'a> {
    stage: &'a Stage,
    name: &'static str,
    signer: Signer,
}

impl<'a> User<'a> {
    fn new(stage: &'a Stage, name: &'static str) -> anyhow::Result<Self> {
        // One of a test that failed before, if there is one.
        let _ = stage.server.iam(&["user", "delete", name, "--force"], "");
        let arn = stage.server.iam(&["user", "create", name], "")?;
        ensure!(arn.trim() == format!("arn:aws:iam::000000000000:user/{name}"), "{arn}");
        let mut user = Self { stage, name, signer: Signer::default() };
        user.signer = user.key()?;
        Ok(user)
    }

    /// One more access key; good as soon as this returns.
    fn key(&self) -> anyhow::Result<Signer> {
        let exports = self.stage.server.iam(&["key", "create", "--user", self.name], "")?;
        let value = |name: &str| -> anyhow::Result<String> {
            let rest = exports.split_once(&format!("export {name}='")).with_context(|| exports.clone())?.1;
            Ok(rest.split('\'').next().unwrap_or_default().to_owned())
        };
        let signer = Signer {
            access_key: Some(value("AWS_ACCESS_KEY_ID")?),
            secret_key: Some(value("AWS_SECRET_ACCESS_KEY")?),
            clock_offset: 0,
        };
        until("the key to be known", IN_FORCE_MAX, || {
            self.stage.aws.call_as("sts", "get_caller_identity", json!({}), &signer)
        })?;
        Ok(signer)
    }

    fn put(&self, policy: &str, statements: Value) -> anyhow::Result<()> {
        let document = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
        let put = ["policy", "put", "--user", self.name, "--name", policy, "--document", "-"];
        self.stage.server.iam(&put, &document)?;
        // By the clock and not by a call: most tests want to see a refusal.
        std::thread::sleep(IN_FORCE_MAX);
        Ok(())
    }

    fn call(&self, operation: &str, parameters: Value) -> anyhow::Result<Value> {
        self.stage.aws.call_as("lambda-microvms", operation, parameters, &self.signer)
    }

    /// A call that must be refused for want of leave; the words after the user's name.
    fn denied(&self, client: &str, operation: &str, parameters: Value) -> anyhow::Result<String> {
        let refusal = self.stage.aws.refusal_as(client, operation, parameters, &self.signer)?;
        let code = if client == "s3" { "AccessDenied" } else { "AccessDeniedException" };
        ensure!(refusal.code == code && refusal.status == 403, "{refusal}");
        let user = format!("User: arn:aws:iam::000000000000:user/{} is not authorized to perform: ", self.name);
        Ok(refusal.message.strip_prefix(&user).with_context(|| refusal.to_string())?.to_owned())
    }

    fn denied_as(&self, operation: &str, parameters: Value, words: &str) -> anyhow::Result<()> {
        let said = self.denied("lambda-microvms", operation, parameters.clone())?;
        ensure!(said == words, "{operation} {parameters}\n  said {said}\n  should say {words}");
        Ok(())
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        let _ = self.stage.server.iam(&["user", "delete", self.name, "--force"], "");
    }
}

fn implicit(action: &str, resource: &str) -> String {
    format!("{action} on resource: {resource} because no identity-based policy allows the {action} action")
}

fn explicit(action: &str, resource: &str) -> String {
    format!("{action} on resource: {resource} with an explicit deny in an identity-based policy")
}

fn allow(actions: Value, resources: Value) -> Value {
    json!({"Effect": "Allow", "Action": actions, "Resource": resources})
}

/// The ARN of a connector of the service's own.
pub fn connector(name: &str) -> String {
    format!("arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{name}")
}

fn nothing_at_first(stage: &mut Stage) -> anyhow::Result<()> {
    let ann = User::new(stage, "ann")?;
    ann.denied_as("list_microvms", json!({}), &implicit("lambda:ListMicrovms", "*"))?;
    let run = json!({"imageIdentifier": stage.image.arn});
    ann.denied_as("run_microvm", run, &implicit("lambda:RunMicrovm", &stage.image.arn))?;
    let image = "arn:aws:lambda:us-east-1:000000000000:microvm-image:other";
    let create = image::create_parameters("other", "stage.zip");
    ann.denied_as("create_microvm_image", create, &implicit("lambda:CreateMicrovmImage", image))?;
    ensure!(stage.live()?.is_empty(), "a refused call launched something");
    Ok(())
}

fn allowed_and_denied(stage: &mut Stage) -> anyhow::Result<()> {
    let ann = User::new(stage, "ann")?;
    let pass = allow(json!("lambda:PassNetworkConnector"), json!(connector("*")));
    ann.put("run", json!([allow(json!("lambda:*Microvm*"), json!(stage.image.arn)), pass]))?;
    let run = json!({"imageIdentifier": stage.image.arn});
    let microvm = ann.call("run_microvm", run.clone())?["microvmId"].as_str().context("no id")?.to_owned();
    let id = json!({"microvmIdentifier": microvm});
    ann.call("get_microvm", id.clone())?;
    ann.denied_as("list_microvms", json!({}), &implicit("lambda:ListMicrovms", "*"))?;

    let deny = json!({"Effect": "Deny", "Action": ["lambda:terminatemicrovm", "lambda:Run*"], "Resource": "*"});
    ann.put("no", deny)?;
    let all = "arn:aws:lambda:us-east-1:000000000000:microvm-image:*";
    ann.denied_as("terminate_microvm", id.clone(), &explicit("lambda:TerminateMicrovm", all))?;
    ann.denied_as("run_microvm", run, &explicit("lambda:RunMicrovm", &stage.image.arn))?;
    ann.call("get_microvm", id.clone())?;
    stage.server.iam(&["policy", "delete", "--user", "ann", "--name", "no"], "")?;
    until("the denial to be gone", IN_FORCE_MAX, || ann.call("terminate_microvm", id.clone()))?;
    Ok(())
}

fn passing(stage: &mut Stage) -> anyhow::Result<()> {
    let ann = User::new(stage, "ann")?;
    let run = allow(json!(["lambda:RunMicrovm", "lambda:TerminateMicrovm"]), json!(stage.image.arn));
    ann.put("run", run)?;
    let plain = json!({"imageIdentifier": stage.image.arn});
    let with_role = json!({"imageIdentifier": stage.image.arn, "executionRoleArn": ROLE});
    let pass = "lambda:PassNetworkConnector";
    // The defaults count too: the way in, and the way out that the image's version brings along.
    ann.denied_as("run_microvm", plain.clone(), &implicit(pass, &connector("HTTP_INGRESS")))?;
    ann.put("in", allow(json!(pass), json!(connector("HTTP_INGRESS"))))?;
    ann.denied_as("run_microvm", plain.clone(), &implicit(pass, &connector("INTERNET_EGRESS")))?;
    ann.put("out", allow(json!(pass), json!(connector("INTERNET_EGRESS"))))?;
    let microvm = ann.call("run_microvm", plain)?["microvmId"].clone();
    ann.call("terminate_microvm", json!({"microvmIdentifier": microvm}))?;

    ann.denied_as("run_microvm", with_role.clone(), &implicit("iam:PassRole", ROLE))?;
    let shell = json!({"imageIdentifier": stage.image.arn, "ingressNetworkConnectors": [connector("SHELL_INGRESS")]});
    ann.denied_as("run_microvm", shell, &implicit(pass, &connector("SHELL_INGRESS")))?;
    ann.put("role", allow(json!("iam:PassRole"), json!("arn:aws:iam::000000000000:role/*")))?;
    let microvm = ann.call("run_microvm", with_role)?["microvmId"].clone();
    ann.call("terminate_microvm", json!({"microvmIdentifier": microvm}))?;
    Ok(())
}

fn learns_nothing(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let absent = "microvm-00000000-0000-4000-8000-000000000000";
    let ann = User::new(stage, "ann")?;
    let get = |id: &str| ann.denied("lambda-microvms", "get_microvm", json!({"microvmIdentifier": id}));
    ensure!(get(&microvm.id)? == get(absent)?);
    ann.put("other", allow(json!("lambda:*"), json!("arn:aws:lambda:us-east-1:000000000000:microvm-image:other")))?;
    ensure!(get(&microvm.id)? == get(absent)?);
    ann.put("all", allow(json!("lambda:GetMicrovm"), json!("*")))?;
    ann.call("get_microvm", json!({"microvmIdentifier": microvm.id}))?;
    let gone = json!({"microvmIdentifier": absent});
    let refusal = stage.aws.refusal_as("lambda-microvms", "get_microvm", gone, &ann.signer)?;
    ensure!(refusal.code == "ResourceNotFoundException", "{refusal}");
    Ok(())
}

fn deactivated(stage: &mut Stage) -> anyhow::Result<()> {
    let ann = User::new(stage, "ann")?;
    ann.put("list", allow(json!(["lambda:ListMicrovms", "s3:ListBucket"]), json!("*")))?;
    let other = ann.key()?;
    let key = ann.signer.access_key.clone().context("it has a key")?;
    ann.call("list_microvms", json!({}))?;
    stage.server.iam(&["key", "deactivate", &key], "")?;
    std::thread::sleep(IN_FORCE_MAX);
    let refusal = stage.aws.refusal_as("lambda-microvms", "list_microvms", json!({}), &ann.signer)?;
    ensure!(refusal.code == "UnrecognizedClientException" && refusal.status == 403, "{refusal}");
    let bucket = json!({"Bucket": BUCKET});
    let refusal = stage.aws.refusal_as("s3", "list_objects_v2", bucket, &ann.signer)?;
    ensure!(refusal.code == "InvalidAccessKeyId" && refusal.status == 403, "{refusal}");
    let refusal = stage.aws.refusal_as("sts", "get_caller_identity", json!({}), &ann.signer)?;
    ensure!(refusal.code == "InvalidClientTokenId" && refusal.status == 403, "{refusal}");
    // The user's other key is as good as before.
    stage.aws.call_as("lambda-microvms", "list_microvms", json!({}), &other)?;
    stage.server.iam(&["key", "activate", &key], "")?;
    until("the key to be good again", IN_FORCE_MAX, || ann.call("list_microvms", json!({})))?;
    Ok(())
}

fn outlives(stage: &mut Stage) -> anyhow::Result<()> {
    let signer = {
        let ann = User::new(stage, "ann")?;
        ann.put("list", allow(json!("lambda:ListMicrovms"), json!("*")))?;
        let signer = ann.signer.clone();
        std::mem::forget(ann);
        signer
    };
    stage.server.crash()?;
    // The command needs no server.
    let users = stage.server.iam(&["user", "list"], "")?;
    ensure!(users.contains(":user/ann  AIDA"), "{users}");
    let mut bob = Vec::new();
    for arguments in [&["user", "create", "bob"][..], &["key", "list"], &["policy", "list", "--user", "ann"]] {
        bob.push(stage.server.iam(arguments, "")?);
    }
    ensure!(bob[1].contains("Active") && bob[2].starts_with("list  "), "{bob:?}");
    stage.up()?;
    stage.aws.call_as("lambda-microvms", "list_microvms", json!({}), &signer)?;
    let refusal = stage.aws.refusal_as("lambda-microvms", "list_microvm_images", json!({}), &signer)?;
    ensure!(refusal.code == "AccessDeniedException", "{refusal}");
    for name in ["ann", "bob"] {
        stage.server.iam(&["user", "delete", name, "--force"], "")?;
    }
    Ok(())
}

fn s3(stage: &mut Stage) -> anyhow::Result<()> {
    let ann = User::new(stage, "ann")?;
    let call = |operation: &str, parameters: Value| stage.aws.call_as("s3", operation, parameters, &ann.signer);
    let object = |key: &str| json!({"Bucket": BUCKET, "Key": key});
    let put = |key: &str| json!({"Bucket": BUCKET, "Key": key, "Body": "text"});
    let said = ann.denied("s3", "get_object", object("stage.zip"))?;
    let arn = format!("arn:aws:s3:::{BUCKET}/stage.zip");
    ensure!(said == implicit("s3:GetObject", &arn), "{said}");
    for (operation, parameters) in [
        ("list_buckets", json!({})),
        ("create_bucket", json!({"Bucket": "another"})),
        ("list_objects_v2", json!({"Bucket": BUCKET})),
        ("put_object", put("ann/a")),
        ("delete_object", object("stage.zip")),
        ("delete_objects", json!({"Bucket": BUCKET, "Delete": {"Objects": [{"Key": "stage.zip"}]}})),
        ("copy_object", json!({"Bucket": BUCKET, "Key": "ann/b", "CopySource": format!("{BUCKET}/stage.zip")})),
    ] {
        ann.denied("s3", operation, parameters)?;
    }
    let own = format!("arn:aws:s3:::{BUCKET}/ann/*");
    let bucket = format!("arn:aws:s3:::{BUCKET}");
    ann.put("own", json!([allow(json!("s3:*Object"), json!(own)), allow(json!("s3:ListBucket"), json!(bucket))]))?;
    call("put_object", put("ann/a"))?;
    call("get_object", object("ann/a"))?;
    call("list_objects_v2", json!({"Bucket": BUCKET}))?;
    call("copy_object", json!({"Bucket": BUCKET, "Key": "ann/b", "CopySource": format!("{BUCKET}/ann/a")}))?;
    ann.denied(
        "s3",
        "copy_object",
        json!({"Bucket": BUCKET, "Key": "ann/b", "CopySource": format!("{BUCKET}/stage.zip")}),
    )?;
    ann.denied(
        "s3",
        "delete_objects",
        json!({"Bucket": BUCKET, "Delete": {"Objects": [{"Key": "ann/a"}, {"Key": "stage.zip"}]}}),
    )?;
    // Objects are files, and no key is a way around.
    for key in ["ann/../stage.zip", "ann/./../stage.zip"] {
        let refusal = stage.aws.refusal_as("s3", "get_object", object(key), &ann.signer)?;
        ensure!(refusal.status == 400 || refusal.status == 403, "{key}: {refusal}");
    }
    call("delete_objects", json!({"Bucket": BUCKET, "Delete": {"Objects": [{"Key": "ann/a"}, {"Key": "ann/b"}]}}))?;
    stage.aws.call("s3", "head_object", object("stage.zip"))?;
    Ok(())
}

fn identity(stage: &mut Stage) -> anyhow::Result<()> {
    let root = stage.aws.call("sts", "get_caller_identity", json!({}))?;
    ensure!(root["Arn"] == "arn:aws:iam::000000000000:root" && root["UserId"] == "000000000000", "{root}");
    let ann = User::new(stage, "ann")?;
    let said = stage.aws.call_as("sts", "get_caller_identity", json!({}), &ann.signer)?;
    ensure!(said["Arn"] == "arn:aws:iam::000000000000:user/ann" && said["Account"] == "000000000000", "{said}");
    ensure!(said["UserId"].as_str().is_some_and(|id| id.starts_with("AIDA")), "{said}");
    let wrong = Signer { secret_key: Some("guess".into()), ..ann.signer.clone() };
    let refusal = stage.aws.refusal_as("sts", "get_caller_identity", json!({}), &wrong)?;
    ensure!(refusal.code == "SignatureDoesNotMatch" && refusal.status == 403, "{refusal}");
    Ok(())
}

fn audited(stage: &mut Stage) -> anyhow::Result<()> {
    let ann = User::new(stage, "ann")?;
    let path = stage.server.data_dir().join("logs/audit.jsonl");
    let before = std::fs::read_to_string(&path)?.lines().count();
    let microvm = stage.launch()?;
    ann.denied("lambda-microvms", "terminate_microvm", json!({"microvmIdentifier": microvm.id}))?;
    ann.denied("s3", "get_object", json!({"Bucket": BUCKET, "Key": "stage.zip"}))?;
    stage.aws.call_as("sts", "get_caller_identity", json!({}), &ann.signer)?;
    let nobody = Signer {
        access_key: Some("AKIANOBODYKNOWSTHIS0".into()),
        secret_key: Some("secret".into()),
        ..Signer::default()
    };
    stage.aws.refusal_as("lambda-microvms", "list_microvms", json!({}), &nobody)?;
    stage.aws.refusal_as("s3", "list_buckets", json!({}), &nobody)?;
    let (user, root) = ("arn:aws:iam::000000000000:user/ann", "arn:aws:iam::000000000000:root");
    let wanted = [
        ("lambda:RunMicrovm", Some(root), microvm.id.as_str(), 200, None),
        ("lambda:CreateMicrovmAuthToken", Some(root), &microvm.id, 200, None),
        ("lambda:TerminateMicrovm", Some(user), &stage.image.arn, 403, Some("AccessDeniedException")),
        ("s3:GetObject", Some(user), &format!("arn:aws:s3:::{BUCKET}/stage.zip"), 403, Some("AccessDenied")),
        ("sts:GetCallerIdentity", Some(user), "", 200, None),
        ("lambda:ListMicrovms", None, "", 403, Some("UnrecognizedClientException")),
        ("", None, "", 403, Some("InvalidAccessKeyId")),
    ];
    until("the lines to be written", Duration::from_secs(5), || {
        let text = std::fs::read_to_string(&path)?;
        ensure!(!text.contains(&microvm.token), "a token is in the audit log");
        let lines: Vec<Value> = text.lines().skip(before).map(serde_json::from_str).collect::<Result<_, _>>()?;
        for (action, principal, resource, status, error) in &wanted {
            let found = lines.iter().any(|line| {
                line["action"].as_str().unwrap_or_default() == *action
                    && line["principal"].as_str() == *principal
                    && (resource.is_empty()
                        || line["resources"].as_array().is_some_and(|all| all.iter().any(|it| it == resource)))
                    && line["status"] == *status
                    && line["error"].as_str() == *error
                    && line["sourceAddress"] == "127.0.0.1"
            });
            ensure!(found, "no line of {action} by {principal:?} on {resource}: {status} {error:?}\n{text}");
        }
        Ok(())
    })
}

fn full_disk(stage: &mut Stage) -> anyhow::Result<()> {
    let path = stage.server.data_dir().join("logs/audit.jsonl");
    let lines = || -> anyhow::Result<Vec<Value>> {
        // Whole lines, whatever the disk did in between.
        let text = std::fs::read_to_string(&path)?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    };
    let before = lines()?.len();
    let filler = disk::Filler::leave(&stage.disk(), 0)?;
    // More lines than there is room for.
    let calls = 600;
    for _ in 0..calls {
        stage.aws.microvms("list_microvms", json!({}))?;
    }
    drop(filler);
    // What waited for the disk is written now; the rest is counted.
    until("every call to be told or counted", Duration::from_secs(20), || {
        let told = lines()?;
        let kept = told.iter().skip(before).filter(|line| line["action"] == "lambda:ListMicrovms").count();
        let lost: u64 = told
            .iter()
            .skip(before)
            .filter(|line| line["event"] == "LinesLost")
            .filter_map(|line| line["count"].as_u64())
            .sum();
        ensure!(lost > 0 && kept as u64 + lost == calls, "{kept} lines kept and {lost} lost of {calls}");
        Ok(())
    })?;
    stage.aws.microvms("list_microvms", json!({}))?;
    Ok(())
}
