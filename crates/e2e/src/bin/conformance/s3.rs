//! The built-in S3 endpoint, as boto3, `aws s3` and a plain HTTP client use it.

use std::{fs, io::Read, path::Path};

use anyhow::{Context, ensure};
use e2e::Front;
use serde_json::{Value, json};

use crate::{Test, clients::aws_cli, ground::Ground};

pub const TESTS: &[Test] = &[
    ("s3::a_bucket_of_ones_own_is_made_again_without_a_word", bucket_again),
    ("s3::buckets_have_a_life", buckets),
    ("s3::objects_have_a_life", objects),
    ("s3::parts_of_an_object_are_read", ranges),
    ("s3::large_objects_come_in_parts", multipart),
    ("s3::an_upload_in_parts_can_be_given_up", multipart_aborted),
    ("s3::lists_have_prefixes_folders_and_pages", lists),
    ("s3::objects_are_copied", copies),
    ("s3::many_objects_are_deleted_at_once", delete_many),
    ("s3::signed_addresses_are_enough", presigned),
    ("s3::keys_may_have_any_letters", keys),
    ("s3::aws_s3_cp_sync_ls_and_rm", high_level),
    ("s3::artifacts_come_from_another_s3", external),
];

fn s3(ground: &Ground, operation: &str, parameters: Value) -> anyhow::Result<Value> {
    ground.front.aws.call("s3", operation, parameters)
}

fn refused(ground: &Ground, operation: &str, parameters: Value, code: &str) -> anyhow::Result<()> {
    let refusal = ground.front.aws.refusal_as("s3", operation, parameters, &e2e::aws::Signer::default())?;
    ensure!(refusal.code == code, "{operation}: {refusal}, not {code}");
    Ok(())
}

fn bucket(ground: &Ground) -> anyhow::Result<String> {
    let name = ground.front.name("bucket");
    s3(ground, "create_bucket", json!({"Bucket": name}))?;
    Ok(name)
}

/// Puts an object of this text; its ETag.
fn put(ground: &Ground, bucket: &str, key: &str, text: &str) -> anyhow::Result<Value> {
    let file = ground.front.scratch(&ground.front.name("body"));
    fs::write(&file, text)?;
    s3(ground, "put_object", json!({"Bucket": bucket, "Key": key, "BodyFile": file}))
}

/// An object's text.
fn get(ground: &Ground, bucket: &str, key: &str) -> anyhow::Result<String> {
    let answer = s3(ground, "get_object", json!({"Bucket": bucket, "Key": key}))?;
    Ok(answer["Body"].as_str().context("no body")?.to_owned())
}

fn keys_in(page: &Value) -> Vec<&str> {
    let items = page["Contents"].as_array().into_iter().flatten();
    items.filter_map(|item| item["Key"].as_str()).collect()
}

fn bucket_again(ground: &Ground) -> anyhow::Result<()> {
    let name = bucket(ground)?;
    put(ground, &name, "kept", "kept")?;
    // In us-east-1 the real service says 200; every script that makes its bucket first relies on it.
    s3(ground, "create_bucket", json!({"Bucket": name}))?;
    ensure!(get(ground, &name, "kept")? == "kept");
    Ok(())
}

fn buckets(ground: &Ground) -> anyhow::Result<()> {
    let name = bucket(ground)?;
    s3(ground, "head_bucket", json!({"Bucket": name}))?;
    let all = s3(ground, "list_buckets", json!({}))?;
    let listed = all["Buckets"].as_array().into_iter().flatten().any(|bucket| bucket["Name"] == json!(name));
    ensure!(listed, "{all}");
    s3(ground, "get_bucket_location", json!({"Bucket": name}))?;
    put(ground, &name, "a", "a")?;
    refused(ground, "delete_bucket", json!({"Bucket": name}), "BucketNotEmpty")?;
    s3(ground, "delete_object", json!({"Bucket": name, "Key": "a"}))?;
    s3(ground, "delete_bucket", json!({"Bucket": name}))?;
    refused(ground, "head_bucket", json!({"Bucket": name}), "404")?;
    refused(ground, "list_objects_v2", json!({"Bucket": name}), "NoSuchBucket")?;
    refused(ground, "put_object", json!({"Bucket": name, "Key": "a"}), "NoSuchBucket")?;
    refused(ground, "get_object", json!({"Bucket": name, "Key": "a"}), "NoSuchBucket")
}

fn objects(ground: &Ground) -> anyhow::Result<()> {
    let bucket = bucket(ground)?;
    let object = |key: &str| json!({"Bucket": bucket, "Key": key});
    let made = put(ground, &bucket, "dir/a.txt", "hello")?;
    // The MD5 of `hello`, as the real service's ETag of an object put at once.
    ensure!(made["ETag"] == "\"5d41402abc4b2a76b9719d911017c592\"", "{made}");
    let head = s3(ground, "head_object", object("dir/a.txt"))?;
    ensure!(head["ContentLength"] == 5 && head["ETag"] == made["ETag"], "{head}");
    ensure!(head["LastModified"].is_number(), "{head}");
    ensure!(get(ground, &bucket, "dir/a.txt")? == "hello");
    put(ground, &bucket, "dir/a.txt", "replaced")?;
    ensure!(get(ground, &bucket, "dir/a.txt")? == "replaced");
    put(ground, &bucket, "empty", "")?;
    ensure!(get(ground, &bucket, "empty")?.is_empty());
    s3(ground, "delete_object", object("dir/a.txt"))?;
    // Deleting what is not there succeeds.
    s3(ground, "delete_object", object("dir/a.txt"))?;
    s3(ground, "delete_object", object("never/was/there"))?;
    refused(ground, "get_object", object("dir/a.txt"), "NoSuchKey")?;
    refused(ground, "head_object", object("dir/a.txt"), "404")?;
    let mut with_metadata = object("described");
    with_metadata["Metadata"] = json!({"purpose": "test"});
    with_metadata["ContentType"] = json!("application/zip");
    s3(ground, "put_object", with_metadata)?;
    let head = s3(ground, "head_object", object("described"))?;
    ensure!(head["Metadata"] == json!({"purpose": "test"}) && head["ContentType"] == "application/zip", "{head}");
    Ok(())
}

fn ranges(ground: &Ground) -> anyhow::Result<()> {
    let bucket = bucket(ground)?;
    put(ground, &bucket, "digits", "0123456789")?;
    for (range, part, said) in [
        ("bytes=0-3", "0123", "bytes 0-3/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-2", "89", "bytes 8-9/10"),
        ("bytes=5-100", "56789", "bytes 5-9/10"),
    ] {
        let answer = s3(ground, "get_object", json!({"Bucket": bucket, "Key": "digits", "Range": range}))?;
        ensure!(answer["Body"] == part && answer["ContentRange"] == said, "{range}: {answer}");
        ensure!(answer["ContentLength"] == part.len(), "{range}: {answer}");
    }
    refused(ground, "get_object", json!({"Bucket": bucket, "Key": "digits", "Range": "bytes=10-"}), "InvalidRange")
}

fn multipart(ground: &Ground) -> anyhow::Result<()> {
    let bucket = bucket(ground)?;
    let object = json!({"Bucket": bucket, "Key": "parts.bin"});
    let upload = s3(ground, "create_multipart_upload", object.clone())?;
    let with = |more: Value| {
        let mut parameters = object.clone();
        parameters["UploadId"] = upload["UploadId"].clone();
        for (name, value) in more.as_object().into_iter().flatten() {
            parameters[name] = value.clone();
        }
        parameters
    };
    let mut parts = Vec::new();
    for (number, letter) in [(2, "b"), (1, "a")] {
        let file = ground.front.scratch(&ground.front.name("part"));
        // Every part but the last has 5 MiB at least.
        fs::write(&file, letter.repeat(5 << 20))?;
        let part = s3(ground, "upload_part", with(json!({"PartNumber": number, "BodyFile": file})))?;
        parts.push(json!({"PartNumber": number, "ETag": part["ETag"]}));
    }
    let listed = s3(ground, "list_parts", with(json!({})))?;
    ensure!(listed["Parts"].as_array().map(Vec::len) == Some(2), "{listed}");
    parts.reverse();
    s3(ground, "complete_multipart_upload", with(json!({"MultipartUpload": {"Parts": parts}})))?;
    let text = get(ground, &bucket, "parts.bin")?;
    ensure!(text.len() == 10 << 20 && text.starts_with("aaa") && text.ends_with("bbb"), "{} bytes", text.len());
    refused(ground, "list_parts", with(json!({})), "NoSuchUpload")
}

fn multipart_aborted(ground: &Ground) -> anyhow::Result<()> {
    let bucket = bucket(ground)?;
    let object = json!({"Bucket": bucket, "Key": "given-up"});
    let upload = s3(ground, "create_multipart_upload", object.clone())?;
    let mut parameters = object.clone();
    parameters["UploadId"] = upload["UploadId"].clone();
    s3(ground, "abort_multipart_upload", parameters.clone())?;
    refused(ground, "get_object", object, "NoSuchKey")?;
    refused(ground, "abort_multipart_upload", parameters, "NoSuchUpload")
}

fn lists(ground: &Ground) -> anyhow::Result<()> {
    let bucket = bucket(ground)?;
    for key in ["a.txt", "b/1", "b/2", "b/c/3", "d", "e/4"] {
        put(ground, &bucket, key, key)?;
    }
    let all = s3(ground, "list_objects_v2", json!({"Bucket": bucket}))?;
    ensure!(keys_in(&all) == ["a.txt", "b/1", "b/2", "b/c/3", "d", "e/4"], "{all}");
    ensure!(all["KeyCount"] == 6 && all["IsTruncated"] == false, "{all}");
    let below = s3(ground, "list_objects_v2", json!({"Bucket": bucket, "Prefix": "b/"}))?;
    ensure!(keys_in(&below) == ["b/1", "b/2", "b/c/3"], "{below}");
    let half = s3(ground, "list_objects_v2", json!({"Bucket": bucket, "Prefix": "a.t"}))?;
    ensure!(keys_in(&half) == ["a.txt"], "{half}");
    for operation in ["list_objects_v2", "list_objects"] {
        let folders = s3(ground, operation, json!({"Bucket": bucket, "Delimiter": "/"}))?;
        ensure!(keys_in(&folders) == ["a.txt", "d"], "{operation}: {folders}");
        ensure!(folders["CommonPrefixes"] == json!([{"Prefix": "b/"}, {"Prefix": "e/"}]), "{operation}: {folders}");
        let inside = s3(ground, operation, json!({"Bucket": bucket, "Delimiter": "/", "Prefix": "b/"}))?;
        ensure!(keys_in(&inside) == ["b/1", "b/2"], "{operation}: {inside}");
        ensure!(inside["CommonPrefixes"] == json!([{"Prefix": "b/c/"}]), "{operation}: {inside}");
    }
    for (operation, out, back) in
        [("list_objects_v2", "NextContinuationToken", "ContinuationToken"), ("list_objects", "NextMarker", "Marker")]
    {
        let mut seen = Vec::new();
        let mut parameters = json!({"Bucket": bucket, "MaxKeys": 4});
        for _ in 0..3 {
            let page = s3(ground, operation, parameters.clone())?;
            seen.extend(keys_in(&page).into_iter().map(str::to_owned));
            ensure!(keys_in(&page).len() <= 4, "{operation}: {page}");
            if page["IsTruncated"] != true {
                break;
            }
            // Without a delimiter the old list's next page begins after its last key, whether that is said or not.
            parameters[back] = if page[out].is_null() { json!(seen.last()) } else { page[out].clone() };
        }
        ensure!(seen == ["a.txt", "b/1", "b/2", "b/c/3", "d", "e/4"], "{operation}: {seen:?}");
    }
    Ok(())
}

fn copies(ground: &Ground) -> anyhow::Result<()> {
    let (from, to) = (bucket(ground)?, bucket(ground)?);
    put(ground, &from, "dir/original", "copied")?;
    let source = json!({"Bucket": to, "Key": "a/copy", "CopySource": {"Bucket": from, "Key": "dir/original"}});
    s3(ground, "copy_object", source)?;
    ensure!(get(ground, &to, "a/copy")? == "copied");
    let missing = json!({"Bucket": to, "Key": "b", "CopySource": {"Bucket": from, "Key": "nothing"}});
    refused(ground, "copy_object", missing, "NoSuchKey")
}

fn delete_many(ground: &Ground) -> anyhow::Result<()> {
    let bucket = bucket(ground)?;
    for key in ["a", "b/c", "kept"] {
        put(ground, &bucket, key, key)?;
    }
    let keys = json!([{"Key": "a"}, {"Key": "b/c"}, {"Key": "never-there"}]);
    let answer = s3(ground, "delete_objects", json!({"Bucket": bucket, "Delete": {"Objects": keys}}))?;
    ensure!(answer["Deleted"].as_array().map(Vec::len) == Some(3) && answer["Errors"].is_null(), "{answer}");
    let left = s3(ground, "list_objects_v2", json!({"Bucket": bucket}))?;
    ensure!(keys_in(&left) == ["kept"], "{left}");
    Ok(())
}

fn presigned(ground: &Ground) -> anyhow::Result<()> {
    let bucket = bucket(ground)?;
    let signed = |operation: &str, expires: u32| {
        ground.front.aws.presigned(operation, json!({"Bucket": bucket, "Key": "dir/signed.txt"}), expires)
    };
    let put =
        ground.front.aws.ask(json!({"method": "PUT", "url": signed("put_object", 60)?, "body": "by its address"}))?;
    ensure!(put.status == 200, "{put:?}");
    let url = signed("get_object", 60)?;
    let got = ground.front.aws.ask(json!({"url": url}))?;
    ensure!(got.status == 200 && got.body == "by its address", "{got:?}");
    let forged = ground.front.aws.ask(json!({"url": url.replace("signed.txt", "other.txt")}))?;
    ensure!(forged.status == 403, "{forged:?}");
    let other_method = ground.front.aws.ask(json!({"method": "DELETE", "url": url}))?;
    ensure!(other_method.status == 403, "{other_method:?}");
    let short = signed("get_object", 1)?;
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let late = ground.front.aws.ask(json!({"url": short}))?;
    ensure!(late.status == 403, "{late:?}");
    Ok(())
}

fn keys(ground: &Ground) -> anyhow::Result<()> {
    let bucket = bucket(ground)?;
    for key in ["with space", "plus+plus", "per%cent", "ünïcode/日本", "a=b&c=d", "quote'\"", "dots..in.name"] {
        put(ground, &bucket, key, key)?;
        ensure!(get(ground, &bucket, key)? == key, "{key}");
        let listed = s3(ground, "list_objects_v2", json!({"Bucket": bucket, "Prefix": key}))?;
        ensure!(keys_in(&listed) == [key], "{key}: {listed}");
        s3(ground, "delete_object", json!({"Bucket": bucket, "Key": key}))?;
    }
    // One that climbs is stored nowhere.
    let climbing = ground.front.aws.refusal_as(
        "s3",
        "put_object",
        json!({"Bucket": bucket, "Key": "../climbs"}),
        &e2e::aws::Signer::default(),
    )?;
    ensure!(climbing.status == 400, "{climbing}");
    Ok(())
}

fn write_tree(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory.join("below"))?;
    fs::write(directory.join("one.txt"), "1")?;
    fs::write(directory.join("below/two.txt"), "2")?;
    // Larger than what `aws s3 cp` sends at once.
    fs::write(directory.join("below/large.bin"), vec![7; 9 << 20])?;
    Ok(())
}

fn high_level(ground: &Ground) -> anyhow::Result<()> {
    let name = ground.front.name("cli");
    let place = format!("s3://{name}");
    let s3 = |arguments: &[&str]| aws_cli(ground, &[&["s3"], arguments].concat());
    s3(&["mb", &place])?;
    let tree = ground.front.scratch(&name);
    write_tree(&tree)?;
    let local = tree.to_str().context("a plain path")?;
    s3(&["cp", &format!("{local}/one.txt"), &format!("{place}/copied.txt")])?;
    s3(&["sync", local, &format!("{place}/tree")])?;
    let listed = s3(&["ls", "--recursive", &place])?;
    for key in ["copied.txt", "tree/one.txt", "tree/below/two.txt", "tree/below/large.bin"] {
        ensure!(listed.contains(key), "{key} is not in\n{listed}");
    }
    ensure!(s3(&["ls", &format!("{place}/tree/")])?.contains("PRE below/"), "no folder");
    // Nothing has changed: nothing is sent.
    let again = s3(&["sync", local, &format!("{place}/tree")])?;
    ensure!(again.trim().is_empty(), "{again}");
    let back = format!("{local}-back");
    s3(&["sync", &format!("{place}/tree"), &back])?;
    let mut large = Vec::new();
    fs::File::open(format!("{back}/below/large.bin"))?.read_to_end(&mut large)?;
    ensure!(large == vec![7; 9 << 20], "{} bytes came back", large.len());
    s3(&["cp", &format!("{place}/copied.txt"), &format!("{place}/moved.txt")])?;
    s3(&["mv", &format!("{place}/moved.txt"), &format!("{place}/moved-again.txt")])?;
    s3(&["rm", "--recursive", &place])?;
    ensure!(s3(&["ls", "--recursive", &place])?.trim().is_empty(), "something is left");
    s3(&["rb", &place])?;
    Ok(())
}

/// A server whose artifacts are in the buckets of this one.
fn external(ground: &Ground) -> anyhow::Result<()> {
    let environment = ground.front.server.environment()?;
    let value = |name: &str| environment.get(name).with_context(|| format!("no {name}"));
    let config = ground.front.scratch("external.toml");
    let with = |secret: &str| -> anyhow::Result<Front> {
        let text = format!(
            "artifacts = {{ endpoint = '{}', region = 'us-east-1', access_key_id = '{}', secret_access_key = '{secret}' }}",
            value("AWS_ENDPOINT_URL")?,
            value("AWS_ACCESS_KEY_ID")?,
        );
        fs::write(&config, text)?;
        Front::open(&["--config", config.to_str().context("a plain path")?])
    };
    let bucket = bucket(ground)?;
    let zip = ground.front.scratch("elsewhere.zip");
    e2e::image::Source::dockerfile("FROM scratch\n").zip(&zip)?;
    s3(ground, "put_object", json!({"Bucket": bucket, "Key": "dir/else+where.zip", "BodyFile": zip}))?;

    let other = with(value("AWS_SECRET_ACCESS_KEY")?)?;
    let build = |front: &Front, uri: &str, state: &str| -> anyhow::Result<String> {
        let mut parameters = e2e::image::create_parameters(&front.name("external"), "");
        parameters["codeArtifact"] = json!({ "uri": uri });
        let created = front.aws.microvms("create_microvm_image", parameters)?;
        let arn = created["imageArn"].as_str().context("no imageArn")?;
        front.await_image(arn, state)?;
        let version = json!({"imageIdentifier": arn, "imageVersion": "1.0"});
        let builds = front.aws.microvms("list_microvm_image_builds", version)?;
        Ok(builds["items"][0]["stateReason"].as_str().unwrap_or_default().to_owned())
    };
    build(&other, &format!("s3://{bucket}/dir/else+where.zip"), "CREATED")?;
    let reason = build(&other, &format!("s3://{bucket}/nothing.zip"), "CREATE_FAILED")?;
    ensure!(reason.starts_with("S3_NO_SUCH_KEY"), "{reason}");
    let reason = build(&other, "s3://no-such-bucket/app.zip", "CREATE_FAILED")?;
    ensure!(reason.starts_with("S3_NO_SUCH_BUCKET"), "{reason}");
    drop(other);
    let reason = build(&with("not the secret")?, &format!("s3://{bucket}/dir/else+where.zip"), "CREATE_FAILED")?;
    ensure!(reason.starts_with("INTERNAL_PLATFORM_ERROR"), "{reason}");
    Ok(())
}
