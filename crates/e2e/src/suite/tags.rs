//! Tags of an image.

use anyhow::ensure;
use e2e::Stage;
use serde_json::{Map, Value, json};

use super::{Test, api::refused};

pub const TESTS: &[Test] = &[
    ("tags::tags_are_merged_listed_and_taken_away", merged),
    ("tags::tags_show_in_the_image", shown),
    ("tags::tags_at_their_limits", limits),
    ("tags::what_has_no_tags_is_refused", refusals),
];

pub fn listed(stage: &Stage, resource: &str) -> anyhow::Result<Value> {
    Ok(stage.aws.microvms("list_tags", json!({"Resource": resource}))?["Tags"].take())
}

fn tag(stage: &Stage, tags: Value) -> anyhow::Result<()> {
    let answer = stage.aws.microvms("tag_resource", json!({"Resource": stage.image.arn, "Tags": tags}))?;
    ensure!(answer == json!({}), "a 204 says something: {answer}");
    Ok(())
}

fn untag(stage: &Stage, keys: &[&str]) -> anyhow::Result<()> {
    let answer = stage.aws.microvms("untag_resource", json!({"Resource": stage.image.arn, "TagKeys": keys}))?;
    ensure!(answer == json!({}), "a 204 says something: {answer}");
    Ok(())
}

/// Takes away what a test before left.
fn bare(stage: &Stage) -> anyhow::Result<()> {
    let tags = listed(stage, &stage.image.arn)?;
    let keys: Vec<_> = tags.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
    if !keys.is_empty() {
        untag(stage, &keys)?;
    }
    Ok(())
}

fn merged(stage: &mut Stage) -> anyhow::Result<()> {
    bare(stage)?;
    ensure!(listed(stage, &stage.image.arn)? == json!({}), "untagged is not {{}}");
    tag(stage, json!({"team": "a", "a key/of:all+sorts=@._-": "été"}))?;
    tag(stage, json!({"team": "b", "empty": ""}))?;
    let all = json!({"team": "b", "a key/of:all+sorts=@._-": "été", "empty": ""});
    ensure!(listed(stage, &stage.image.arn)? == all, "{}", listed(stage, &stage.image.arn)?);
    for _ in 0..2 {
        untag(stage, &["a key/of:all+sorts=@._-", "empty"])?;
        ensure!(listed(stage, &stage.image.arn)? == json!({"team": "b"}), "{}", listed(stage, &stage.image.arn)?);
    }
    untag(stage, &["team"])
}

fn shown(stage: &mut Stage) -> anyhow::Result<()> {
    bare(stage)?;
    tag(stage, json!({"team": "a"}))?;
    let image = stage.aws.microvms("get_microvm_image", json!({"imageIdentifier": stage.image.arn}))?;
    let settled = ["CREATED", "UPDATED"].contains(&image["state"].as_str().unwrap_or_default());
    ensure!(image["tags"] == json!({"team": "a"}) && settled, "{image}");
    bare(stage)
}

fn limits(stage: &mut Stage) -> anyhow::Result<()> {
    bare(stage)?;
    let many = |count: usize| (0..count).map(|index| (format!("k{index}"), json!("v"))).collect::<Map<_, _>>();
    tag(stage, many(50).into())?;
    let one = json!({"Resource": stage.image.arn, "Tags": {"one": "more"}});
    let message = "The resource would have 51 tags, more than the 50 that it may have";
    refused(stage, "tag_resource", one, "InvalidParameterValueException", message)?;
    tag(stage, json!({"k1": "changed"}))?;
    bare(stage)?;
    let reserved = json!({"Resource": stage.image.arn, "Tags": {"aws:x": "y"}});
    let message = "The tag key 'aws:x' begins with 'aws:', which is reserved: choose another key";
    refused(stage, "tag_resource", reserved, "InvalidParameterValueException", message)?;

    tag(stage, json!({"k".repeat(128): "v".repeat(256)}))?;
    bare(stage)?;
    for tags in [json!({"k".repeat(129): ""}), json!({"k": "v".repeat(257)}), json!({"a!": ""})] {
        let refusal = stage.aws.refusal("tag_resource", json!({"Resource": stage.image.arn, "Tags": tags}))?;
        ensure!(refusal.code == "ValidationException" && refusal.message.contains("at 'tags'"), "{refusal}");
    }
    ensure!(listed(stage, &stage.image.arn)? == json!({}), "a refused change left something");
    Ok(())
}

fn refusals(stage: &mut Stage) -> anyhow::Result<()> {
    let arn = stage.image.arn.replace(":stage", ":no-such-image");
    let message = format!("MicroVMImage not found for MicroVMImageID: {arn}");
    for (operation, parameters) in [
        ("list_tags", json!({"Resource": arn})),
        ("tag_resource", json!({"Resource": arn, "Tags": {"a": "b"}})),
        ("untag_resource", json!({"Resource": arn, "TagKeys": ["a"]})),
    ] {
        refused(stage, operation, parameters, "ResourceNotFoundException", &message)?;
    }
    let microvm = "arn:aws:lambda:us-east-1:000000000000:microvm:microvm-00000000-0000-4000-8000-000000000000";
    for resource in [microvm, "microvm-00000000-0000-4000-8000-000000000000"] {
        let refusal = stage.aws.refusal("list_tags", json!({"Resource": resource}))?;
        let start =
            format!("1 validation error detected: Value '{resource}' at 'resource' failed to satisfy constraint: ");
        ensure!(refusal.code == "ValidationException" && refusal.message.starts_with(&start), "{refusal}");
    }
    Ok(())
}
