//! The log over real files and full disks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use http::Request;
use serde_json::{Value, json};

use super::{Allowance, Audit, Limits, SourceAddress, UNKNOWN_BURST, file::RotatingFile};
use crate::auth::Caller;

fn parts(target: &str) -> http::request::Parts {
    let mut parts = Request::builder().uri(target).body(()).expect("a request").into_parts().0;
    parts.extensions.insert(SourceAddress(([127, 0, 0, 1], 5000).into()));
    parts
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn path_in(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("logs/audit.jsonl")
}

#[test]
fn a_call_leaves_one_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let audit = Audit::start(path_in(&directory), Limits::default());
    let call = audit.call("lambda", &parts("/2025-09-09/microvms?X-Amz-Signature=secret&nextToken=secret"));
    let id = call.request_id();
    call.signed_by(&Caller::root("000000000000", "us-east-1", "AKIA1"));
    call.wants("lambda:ListMicrovms");
    call.is_about(["*".to_owned()]);
    call.ended(200, None);
    drop(call);
    // One that comes to no end leaves its line too.
    drop(audit.call("sts", &parts("/")));
    audit.stop();
    let mut told = lines(&path_in(&directory));
    assert_eq!(told.len(), 2);
    let time = told[0]["time"].take();
    assert!(time.as_str().is_some_and(|time| time.len() == 24 && time.ends_with('Z')), "{time}");
    assert_eq!(
        told[0],
        json!({
            "time": null,
            "requestId": id,
            "service": "lambda",
            "action": "lambda:ListMicrovms",
            "principal": "arn:aws:iam::000000000000:root",
            "accessKeyId": "AKIA1",
            "sourceAddress": "127.0.0.1",
            "request": "GET /2025-09-09/microvms",
            "resources": ["*"],
            "status": 200,
            "error": null,
        })
    );
    assert_eq!((&told[1]["status"], &told[1]["principal"]), (&Value::Null, &Value::Null));
    assert!(!fs::read_to_string(path_in(&directory)).expect("the log").contains("secret"));
}

#[test]
fn a_line_is_bounded() {
    let directory = tempfile::tempdir().expect("a directory");
    let audit = Audit::start(path_in(&directory), Limits::default());
    let call = audit.call("s3", &parts(&format!("/{}", "ä".repeat(5000).replace('ä', "%C3%A4"))));
    call.wants(&"x".repeat(5000));
    call.is_about((0..5000).map(|_| "é".repeat(5000)));
    call.ended(400, Some(&"x".repeat(5000)));
    audit.stop();
    assert!(fs::metadata(path_in(&directory)).expect("the log").len() < 64 * 1024);
    assert_eq!(lines(&path_in(&directory)).len(), 1);
}

#[test]
fn a_flood_of_strangers_is_counted_and_leaves_room_for_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let audit = Audit::start(path_in(&directory), Limits::default());
    for _ in 0..5000 {
        audit.call("lambda", &parts("/")).ended(403, Some("MissingAuthenticationTokenException"));
    }
    let known = audit.call("lambda", &parts("/"));
    known.signed_by(&Caller::root("000000000000", "us-east-1", "AKIA1"));
    known.ended(200, None);
    audit.stop();
    let told = lines(&path_in(&directory));
    let refused = told.iter().filter(|line| line["status"] == 403).count() as u64;
    assert!((u64::from(UNKNOWN_BURST)..u64::from(UNKNOWN_BURST) + 10).contains(&refused), "{refused}");
    assert_eq!(told.iter().filter(|line| line["status"] == 200).count(), 1);
    let counted = told.iter().find(|line| line["event"] == "UnauthenticatedCallsNotListed").expect("a count");
    assert_eq!(counted["count"], 5000 - refused);
}

#[test]
fn strangers_get_a_line_a_second() {
    let begin = Instant::now();
    let mut allowance = Allowance { left: 1, since: begin };
    let at = |ms: u64| begin + Duration::from_millis(ms);
    assert!(allowance.take(at(0)) && !allowance.take(at(999)) && allowance.take(at(1000)) && !allowance.take(at(1001)));
    let after_a_day = at(86_400_000);
    assert_eq!((0..1000).filter(|_| allowance.take(after_a_day)).count(), UNKNOWN_BURST as usize);
}

#[test]
fn files_are_put_aside_and_the_oldest_goes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = path_in(&directory);
    let mut file = RotatingFile::new(path.clone(), Limits { file_bytes: 100, files_kept: 2 });
    for number in 0..40 {
        file.append(format!("{{\"line\": {number:02}, \"fill\": \"{}\"}}\n", "x".repeat(10)).as_bytes())
            .expect("written");
    }
    let mut names: Vec<_> = fs::read_dir(path.parent().expect("a parent"))
        .expect("a list")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    assert_eq!(names, ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]);
    let mut all = Vec::new();
    for name in ["audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"] {
        let path = path.with_file_name(name);
        assert!(fs::metadata(&path).expect("a file").len() <= 100);
        all.extend(lines(&path).iter().map(|line| line["line"].as_u64().expect("a number")));
    }
    // The newest, without a gap.
    assert_eq!(all, (40 - all.len() as u64..40).collect::<Vec<_>>());
    // Opened again, it goes on behind what is there, also when that was cut short.
    fs::write(&path, "{\"line\": 1}\n{\"li").expect("written");
    let mut file = RotatingFile::new(path.clone(), Limits::default());
    file.append(b"{\"line\": 2}\n").expect("written");
    assert_eq!(fs::read_to_string(&path).expect("the log"), "{\"line\": 1}\n{\"li\n{\"line\": 2}\n");
}

#[test]
fn what_cannot_be_written_is_counted_and_said_later() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = path_in(&directory);
    // No directory can be made where a file is: as good as a disk without room.
    fs::write(directory.path().join("logs"), "").expect("a file");
    let audit = Audit::start(path.clone(), Limits::default());
    let begin = Instant::now();
    for _ in 0..7 {
        let call = audit.call("lambda", &parts("/"));
        call.signed_by(&Caller::root("000000000000", "us-east-1", "AKIA1"));
        call.ended(200, None);
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "no call waits for the disk");
    std::thread::sleep(Duration::from_millis(200));
    fs::remove_file(directory.path().join("logs")).expect("removed");
    audit.stop();
    let told = lines(&path);
    assert_eq!((told.len(), &told[0]["event"], &told[0]["count"]), (1, &json!("LinesLost"), &json!(7)));
}

#[test]
fn a_full_disk_leaves_whole_lines() {
    // The kernel's own full disk.
    let mut file = RotatingFile::new("/dev/full".into(), Limits::default());
    let error = file.append(b"{}\n").expect_err("it is full");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
}
