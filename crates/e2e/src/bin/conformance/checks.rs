//! What is checked of every operation.

use anyhow::{Context, ensure};
use e2e::model::{Breakage, Sentence};
use serde_json::{Value, json};

use crate::{
    Test, clients,
    entries::{Entry, entries},
    ground::Ground,
};

/// Tests of the table itself.
pub const TESTS: &[Test] = &[
    ("table::every_operation_that_is_served_has_an_entry", covered),
    ("table::nobody_gets_past_a_missing_signature", unsigned),
    ("iam::what_the_command_changes_is_in_the_audit_log", audited),
];

/// A check of one operation.
type Check = fn(&Ground, &Entry) -> anyhow::Result<()>;

/// The checks of each operation.
pub const PER_OPERATION: &[(&str, Check)] = &[
    ("minimal_input", minimal),
    ("full_input", full),
    ("broken_constraints", constraints),
    ("missing_resource", missing),
    ("denied_principal", denied),
    ("aws_cli", clients::by_cli),
];

/// The user without policies was made by the real command beside the server that runs.
fn audited(ground: &Ground) -> anyhow::Result<()> {
    let log = ground.front.server.data_dir().join("logs/audit.jsonl");
    let key = ground.nobody.access_key.as_deref().context("a key")?;
    let secret = ground.nobody.secret_key.as_deref().context("a secret")?;
    e2e::until("both changes to be told", std::time::Duration::from_secs(10), || {
        let text = std::fs::read_to_string(&log)?;
        ensure!(!text.contains(secret), "a secret is in the audit log");
        let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        let told = |action: &str, resource: &str| {
            let is_it = |line: &&Value| line["action"] == action && line["resources"].to_string().contains(resource);
            lines.iter().filter(is_it).filter(|line| line["principal"].to_string().contains("local:")).count()
        };
        ensure!(told("iam:CreateUser", ":user/nobody\"") == 1, "the user is not told once");
        ensure!(told("iam:CreateAccessKey", key) == 1, "the key is not told once");
        Ok(())
    })
}

fn covered(ground: &Ground) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for operation in ground.operations() {
        let entry = entries().iter().any(|entry| entry.name == operation.name);
        match (ground.serves(&operation)?, entry) {
            (true, false) => wrong.push(format!("{} is served and has no entry: add one", operation.name)),
            (false, true) => wrong.push(format!("{} has an entry and is not served", operation.name)),
            (true, true) | (false, false) => {}
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Every route of the model, served or not: strangers learn nothing of the difference.
fn unsigned(ground: &Ground) -> anyhow::Result<()> {
    for operation in ground.operations() {
        let (model, _) = ground.operation(&operation.name)?;
        let answer = ground.front.aws.raw(json!({
            "method": operation.method, "target": model.nowhere(&operation), "body": "{}", "unsigned": true,
            "service": operation.service, "operation": operation.name,
        }))?;
        ensure!(
            answer.status == 403 && answer.kind() == "MissingAuthenticationTokenException",
            "{} without a signature: {answer}",
            operation.name
        );
    }
    Ok(())
}

/// A user without leave is told what for, and nothing is done.
fn denied(ground: &Ground, entry: &Entry) -> anyhow::Result<()> {
    let (_, operation) = ground.operation(entry.name)?;
    let parameters = (entry.minimal)(ground)?;
    let method = e2e::model::words_apart(entry.name, '_');
    let refusal = ground.front.aws.refusal_as(operation.service, &method, parameters, &ground.nobody)?;
    let denial =
        format!("User: arn:aws:iam::000000000000:user/nobody is not authorized to perform: lambda:{}", entry.name);
    ensure!(refusal.code == "AccessDeniedException" && refusal.status == 403, "{refusal}");
    ensure!(refusal.message.starts_with(&denial), "{refusal}\n  should say {denial} …");
    Ok(())
}

fn minimal(ground: &Ground, entry: &Entry) -> anyhow::Result<()> {
    let parameters = (entry.minimal)(ground)?;
    let answer = ground.call(entry.name, parameters.clone()).with_context(|| parameters.to_string())?;
    tidy(ground, entry, &answer)
}

/// Each member that was said and that the answer has comes back as it was said.
fn full(ground: &Ground, entry: &Entry) -> anyhow::Result<()> {
    let parameters = (entry.full)(ground)?;
    let answer = ground.call(entry.name, parameters.clone()).with_context(|| parameters.to_string())?;
    for (name, said) in parameters.as_object().into_iter().flatten() {
        let echoed = &answer[name];
        // A version is answered as `1.0` however it was written.
        let same = echoed == said
            || (name.ends_with("Version") && *echoed == json!(format!("{}.0", said.as_str().unwrap_or_default())));
        ensure!(echoed.is_null() || name == "nextToken" || same, "{name} was {said} and came back as {echoed}");
    }
    tidy(ground, entry, &answer)
}

/// Ends what a call made, so that no quota is met.
pub fn tidy(ground: &Ground, entry: &Entry, answer: &Value) -> anyhow::Result<()> {
    match (entry.name, &answer["microvmId"], &answer["imageArn"]) {
        ("RunMicrovm", Value::String(id), _) => ground.front.terminate(id),
        ("CreateMicrovmImage", _, Value::String(arn)) => {
            ground.front.await_image(arn, "CREATED")?;
            ground.call("DeleteMicrovmImage", json!({"imageIdentifier": arn}))?;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn missing(ground: &Ground, entry: &Entry) -> anyhow::Result<()> {
    let (model, operation) = ground.operation(entry.name)?;
    for (parameters, kind, message) in entry.missing {
        let parameters = parameters(ground);
        let (target, body) = model.request(&operation, &parameters)?;
        let answer = ground.front.aws.raw(json!({
            "method": operation.method, "target": target, "body": body,
            "service": operation.service, "operation": operation.name,
        }))?;
        ensure!(answer.kind() == *kind, "{parameters}: {answer}, not {kind}");
        ensure!(message.is_empty() || answer.message() == *message, "{parameters}: {answer}\n  should say {message}");
    }
    Ok(())
}

fn constraints(ground: &Ground, entry: &Entry) -> anyhow::Result<()> {
    let (model, operation) = ground.operation(entry.name)?;
    let valid = (entry.full)(ground)?;
    let mut wrong = Vec::new();
    for broken in model.breakages(&operation, &valid)? {
        let (target, body) = model.request(&operation, &broken.parameters)?;
        let answer = ground.front.aws.raw(json!({
            "method": operation.method, "target": target, "body": body,
            "service": operation.service, "operation": operation.name,
        }));
        match answer {
            Err(error) => wrong.push(format!("{}: {error:#}", broken.what)),
            Ok(answer) => {
                let kind = match broken.sentence {
                    Sentence::Unreadable => "SerializationException",
                    Sentence::Exactly(_) | Sentence::Ending(_) => "ValidationException",
                };
                if answer.kind() != kind || !says(&answer.message(), &broken) {
                    let wanted = format!("{kind}: {:?}", broken.sentence);
                    wrong.push(format!(
                        "{}:\n  said {} {}\n  not  {wanted}",
                        broken.what,
                        answer.kind(),
                        answer.message()
                    ));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn says(message: &str, broken: &Breakage) -> bool {
    match &broken.sentence {
        // The text after it is the parser's own.
        Sentence::Unreadable => true,
        Sentence::Ending(end) => message.starts_with("1 validation error detected: Value ") && message.ends_with(end),
        Sentence::Exactly(sentences) => {
            let plural = if sentences.len() == 1 { "" } else { "s" };
            let wanted = format!("{} validation error{plural} detected: {}", sentences.len(), sentences.join("; "));
            words_sorted(message) == words_sorted(&wanted)
        }
    }
}

/// The order of an enum's words is not told.
fn words_sorted(message: &str) -> String {
    let Some((before, words)) = message.split_once("enum value set: [") else { return message.to_owned() };
    let mut words: Vec<_> = words.trim_end_matches(']').split(", ").collect();
    words.sort_unstable();
    format!("{before}{}", words.join(", "))
}
