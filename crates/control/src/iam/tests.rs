//! Users, keys and policies over a real database, changed from beside the control that serves.

use std::{collections::HashSet, path::Path, sync::Arc, time::Duration};

use api::sensitive::Sensitive;
use serde_json::json;

use super::{
    Admin, IamError, LocalUser, SealingKey,
    admin::{KEYS_PER_USER_MAX, POLICIES_PER_USER_MAX, UNTOLD_MAX},
    policy::PolicyError,
};
use crate::{
    audit::{Audit, Limits},
    auth::{AccessKey, Identity, Principals},
    testing::{Fixture, until},
};

const ALLOW: &str = r#"{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}"#;

fn key() -> SealingKey {
    SealingKey::new([3; 32])
}

fn by() -> LocalUser {
    LocalUser { name: "local:root".into(), account: "000000000000".into() }
}

async fn admin(directory: &tempfile::TempDir) -> Admin {
    Admin::open(&directory.path().join("state.db"), key(), by()).await.expect("it opens")
}

#[tokio::test]
async fn names_and_limits_are_those_of_aws() {
    let directory = tempfile::tempdir().expect("a directory");
    let admin = admin(&directory).await;
    for name in ["", "a b", "a/b", "Zoë", &"x".repeat(65)] {
        let error = admin.create_user(name).await.expect_err(name);
        assert!(matches!(error, IamError::Name { what: "user name", .. }), "{error}");
    }
    let made = admin.create_user("Ann.b+c=d,e@f_g-1").await.expect("the longest alphabet");
    assert!(made.id.starts_with("AIDA") && made.id.len() == 21, "{}", made.id);
    assert!(
        matches!(admin.create_user("ANN.b+c=d,e@f_g-1").await, Err(IamError::UserExists(name)) if name == made.name)
    );
    admin.create_user("ann").await.expect("another");

    assert!(matches!(admin.create_key("nobody").await, Err(IamError::NoSuchUser(_))));
    let mut keys = Vec::new();
    for _ in 0..KEYS_PER_USER_MAX {
        keys.push(admin.create_key("Ann").await.expect("a key"));
    }
    assert!(keys[0].id.starts_with("AKIA") && keys[0].id.len() == 20 && keys[0].secret.expose().len() == 40);
    assert_ne!(keys[0].id, keys[1].id);
    let error = admin.create_key("ann").await.expect_err("one too many").to_string();
    assert!(error.contains("2 access keys already"), "{error}");
    admin.delete_key(&keys[0].id).await.expect("deleted");
    assert!(matches!(admin.delete_key(&keys[0].id).await, Err(IamError::NoSuchKey(_))));
    assert!(matches!(admin.set_key_active(&keys[0].id, false).await, Err(IamError::NoSuchKey(_))));
    admin.create_key("ann").await.expect("there is room again");

    for number in 0..POLICIES_PER_USER_MAX {
        admin.put_policy("ann", &format!("p{number}"), ALLOW).await.expect("a policy");
    }
    admin.put_policy("ann", "p0", ALLOW).await.expect("put in place of itself");
    let error = admin.put_policy("ann", "p10", ALLOW).await.expect_err("one too many").to_string();
    assert!(error.contains("10 policies already"), "{error}");
    let bad = r#"{"Statement": {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {}}}"#;
    let error = admin.put_policy("ann", "p0", bad).await.expect_err("a condition");
    assert!(matches!(error, IamError::Policy(PolicyError::Statement { number: 1, .. })), "{error}");
    assert_eq!(admin.policy("ann", "p0").await.expect("as it was").document, ALLOW);
    assert!(matches!(admin.policy("ann", "p").await, Err(IamError::NoSuchPolicy { .. })));
    assert!(matches!(admin.put_policy("ann", "a b", ALLOW).await, Err(IamError::Name { what: "policy name", .. })));

    let error = admin.delete_user("ann", false).await.expect_err("in use").to_string();
    assert!(error.contains("2 access key(s) and 10 policy(s)"), "{error}");
    admin.delete_user("ann", true).await.expect("all together");
    assert_eq!(admin.users().await.expect("a list").len(), 1);
    assert_eq!(admin.keys(None).await.expect("a list").len(), 0);
    admin.create_user("ann").await.expect("the name is free");
    assert_eq!(admin.policies("ann").await.expect("a list").len(), 0, "a new user has nothing of the old one");
    admin.close().await;
}

#[tokio::test]
async fn several_may_make_the_database_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.db");
    // On one thread: none may keep the others from their turn.
    let (a, b, c) =
        tokio::join!(Admin::open(&path, key(), by()), Admin::open(&path, key(), by()), Admin::open(&path, key(), by()));
    for opened in [a, b, c] {
        opened.expect("it opens").close().await;
    }
}

#[tokio::test]
async fn no_secret_is_in_the_database_in_the_clear() {
    let directory = tempfile::tempdir().expect("a directory");
    let admin = admin(&directory).await;
    admin.create_user("ann").await.expect("a user");
    let made = admin.create_key("ann").await.expect("a key");
    admin.close().await;
    let mut found_id = false;
    for file in std::fs::read_dir(directory.path()).expect("a list") {
        let bytes = std::fs::read(file.expect("a file").path()).expect("its bytes");
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!has(made.secret.expose()));
        found_id |= has(&made.id);
    }
    assert!(found_id, "the search finds what is there");
}

/// Control with principals that follow the database, and somebody beside it who changes things there.
async fn served() -> (Fixture, Arc<Principals>, Admin) {
    let fixture = Fixture::new().await;
    let root = AccessKey { id: "key".into(), secret: Sensitive::new("root") };
    let principals = Principals::new("000000000000".into(), root);
    fixture.control().follow_principals(Arc::clone(&principals), key()).await.expect("it looks");
    let admin = Admin::open(&fixture.database(), key(), by()).await.expect("it opens");
    (fixture, principals, admin)
}

#[tokio::test]
async fn changes_beside_a_running_server_are_in_force_within_a_second() {
    let (_fixture, principals, admin) = served().await;
    let soon = |what: &'static str, so: Box<dyn Fn() -> bool>| async move {
        tokio::time::timeout(Duration::from_secs(1), until(what, async || so())).await.expect(what);
    };
    let caller = {
        let principals = Arc::clone(&principals);
        move |id: &str| principals.caller(id, "us-east-1")
    };
    admin.create_user("ann").await.expect("a user");
    let made = admin.create_key("ann").await.expect("a key");
    let (look, id) = (caller.clone(), made.id.clone());
    soon("the key is known", Box::new(move || look(&id).is_some())).await;
    assert_eq!(principals.secret(&made.id), Some(made.secret.clone()));
    let ann = caller(&made.id).expect("known");
    assert_eq!(ann.arn, "arn:aws:iam::000000000000:user/ann");
    assert!(matches!(&ann.identity, Identity::User(user) if user.policies.is_empty()));

    admin.put_policy("ann", "all", ALLOW).await.expect("a policy");
    let (look, id) = (caller.clone(), made.id.clone());
    let has_policy =
        move || look(&id).is_some_and(|it| matches!(it.identity, Identity::User(u) if u.policies.len() == 1));
    soon("the policy is in force", Box::new(has_policy)).await;

    for active in [false, true] {
        admin.set_key_active(&made.id, active).await.expect("changed");
        let (look, id) = (caller.clone(), made.id.clone());
        soon("the key is good or not", Box::new(move || look(&id).is_some() == active)).await;
    }
    admin.delete_user("ann", true).await.expect("deleted");
    let (look, id) = (caller.clone(), made.id.clone());
    soon("the key is gone", Box::new(move || look(&id).is_none())).await;
    // The account's own key depends on none of this.
    assert!(matches!(caller("key").expect("known").identity, Identity::Root));
}

#[tokio::test]
async fn what_cannot_be_read_any_more_lets_nobody_in() {
    let (mut fixture, _, admin) = served().await;
    admin.create_user("ann").await.expect("a user");
    let made = admin.create_key("ann").await.expect("a key");
    admin.put_policy("ann", "all", ALLOW).await.expect("a policy");
    admin.close().await;
    fixture.crash().await;
    // A policy of a later version, say.
    crate::store::iam::spoil_policies(&fixture.database()).await;
    fixture.start().await;
    let root = AccessKey { id: "key".into(), secret: Sensitive::new("root") };
    let principals = Principals::new("000000000000".into(), root);
    fixture.control().follow_principals(Arc::clone(&principals), key()).await.expect("it looks");
    let caller = principals.caller(&made.id, "us-east-1").expect("the key is good");
    let Identity::User(user) = caller.identity else { panic!("a user") };
    assert_eq!(super::evaluate::decide(&user.policies, "lambda:ListMicrovms", "*"), super::Decision::Denied);
    // Another sealing key: the file of secrets was lost, say.
    let other = SealingKey::new([4; 32]);
    fixture.control().follow_principals(Arc::clone(&principals), other).await.expect("it looks");
    assert!(principals.caller(&made.id, "us-east-1").is_none());
    assert!(principals.caller("key", "us-east-1").is_some());
}

/// Every line of the log, those put aside included, in the order in which they were written.
fn audit_lines(log: &Path) -> Vec<serde_json::Value> {
    let directory = log.parent().expect("a directory");
    let Ok(files) = std::fs::read_dir(directory) else { return vec![] };
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort_by_key(|path| std::cmp::Reverse(path.extension().and_then(|it| it.to_str()?.parse::<u32>().ok())));
    let text: String = files.iter().map(|path| std::fs::read_to_string(path).expect("text")).collect();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_once() {
    let (fixture, _, admin) = served().await;
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("logs/audit.jsonl");
    // No server that writes a log runs yet.
    admin.create_user("ann").await.expect("a user");
    let made = admin.create_key("Ann").await.expect("a key");
    admin.put_policy("ann", "all", ALLOW).await.expect("a policy");
    admin.create_user("ANN").await.expect_err("what is refused changes nothing");
    admin.delete_key("AKIANONE").await.expect_err("likewise");
    assert!(!log.exists());

    // Files so small that most lines begin one of their own.
    let audit = Audit::start(log.clone(), Limits { file_bytes: 500, files_kept: 50 });
    fixture.control().tell_changes(audit.clone());
    until("the three are told", async || audit_lines(&log).len() == 3).await;
    admin.set_key_active(&made.id, false).await.expect("changed");
    admin.set_key_active(&made.id, true).await.expect("changed");
    admin.delete_key(&made.id).await.expect("deleted");
    let second = admin.create_key("ann").await.expect("a key");
    admin.put_policy("ann", "more", ALLOW).await.expect("a policy");
    admin.delete_policy("ann", "more").await.expect("deleted");
    admin.delete_user("ann", false).await.expect_err("in use");
    admin.delete_user("ann", true).await.expect("deleted");
    until("all are told", async || audit_lines(&log).len() == 10).await;
    audit.stop();

    let ann = "arn:aws:iam::000000000000:user/ann";
    let told = audit_lines(&log);
    let what: Vec<_> = told.iter().map(|it| json!([it["request"], it["action"], it["resources"]])).collect();
    assert_eq!(
        what,
        [
            json!(["pilotlight iam user create", "iam:CreateUser", [ann]]),
            json!(["pilotlight iam key create", "iam:CreateAccessKey", [ann, made.id]]),
            json!(["pilotlight iam policy put", "iam:PutUserPolicy", [ann, "policy/all"]]),
            json!(["pilotlight iam key deactivate", "iam:UpdateAccessKey", [ann, made.id]]),
            json!(["pilotlight iam key activate", "iam:UpdateAccessKey", [ann, made.id]]),
            json!(["pilotlight iam key delete", "iam:DeleteAccessKey", [ann, made.id]]),
            json!(["pilotlight iam key create", "iam:CreateAccessKey", [ann, second.id]]),
            json!(["pilotlight iam policy put", "iam:PutUserPolicy", [ann, "policy/more"]]),
            json!(["pilotlight iam policy delete", "iam:DeleteUserPolicy", [ann, "policy/more"]]),
            json!(["pilotlight iam user delete", "iam:DeleteUser", [ann, second.id, "policy/all"]]),
        ]
    );
    assert!(told.iter().all(|it| it["principal"] == "local:root" && it["status"] == 200), "{told:?}");
    let ids: HashSet<_> = told.iter().map(|it| it["requestId"].to_string()).collect();
    assert_eq!(ids.len(), told.len(), "each once");
    let text = format!("{told:?}");
    for secret in [made.secret, second.secret] {
        assert!(!text.contains(secret.expose()));
    }
    assert!(!text.contains("Statement"), "nor what policies say");
}

#[tokio::test]
async fn a_line_that_cannot_be_written_is_written_by_the_next_server() {
    let (mut fixture, _, admin) = served().await;
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("logs/audit.jsonl");
    // Where the directory of the log should be is a file.
    std::fs::write(directory.path().join("logs"), "").expect("a file");
    let audit = Audit::start(log.clone(), Limits::default());
    fixture.control().tell_changes(audit.clone());
    admin.create_user("ann").await.expect("a change waits for no log");
    tokio::time::sleep(Duration::from_millis(600)).await;
    fixture.crash().await;
    audit.stop();
    std::fs::remove_file(directory.path().join("logs")).expect("gone");
    fixture.start().await;
    let audit = Audit::start(log.clone(), Limits::default());
    fixture.control().tell_changes(audit.clone());
    until("it is told", async || audit_lines(&log).len() == 1).await;
    admin.create_user("bob").await.expect("a user");
    until("so is the next", async || audit_lines(&log).len() == 2).await;

    // What no server ever takes is not kept without end.
    fixture.crash().await;
    crate::store::audit::fill(&fixture.database(), UNTOLD_MAX - 1).await;
    admin.create_user("cyd").await.expect("the last");
    let error = admin.create_user("dan").await.expect_err("one too many").to_string();
    assert!(error.contains("10000 changes that are not in the audit log yet"), "{error}");
    assert_eq!(admin.users().await.expect("a list").len(), 3, "and no change without its line");
}
