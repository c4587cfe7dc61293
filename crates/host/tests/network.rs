//! Real namespaces; needs root, as serving does.

use std::{process::Command, sync::Arc, time::Duration};

use host::network::{Namespace, Pool, PoolConfig, rules};

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_namespace_is_furnished_and_leaves_nothing_behind() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return;
    }
    let data = tempfile::tempdir().expect("a directory");
    let config = PoolConfig { ready: 2, nameservers: vec![] };
    let pool = Pool::start(data.path(), config).await.expect("a pool");
    let namespace = pool.take().await.expect("a namespace");
    let name = namespace.name().to_owned();
    let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();

    let inside = ip(&["-netns", &name, "address"]);
    assert!(inside.contains("169.254.100.1/30"), "{inside}");
    // Nothing answers at the guest's address, and nothing of the host does either.
    let refused = namespace.connect(1, Duration::from_millis(200)).await.expect_err("no guest");
    assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut);
    let other = pool.take().await.expect("another");
    assert_ne!(other.name(), name);

    // One that is closed lets nothing through, whatever stands after that rule.
    let closed = pool.take().await.expect("one to close");
    closed.close().await.expect("closed");
    let rules = ip(&["netns", "exec", closed.name(), "nft", "list", "chain", "ip", "pilotlight", "forward"]);
    let first = rules.lines().map(str::trim).find(|line| line.starts_with("iifname")).expect("a rule");
    assert_eq!(first, "iifname \"tap0\" drop", "{rules}");
    let open = ip(&["netns", "exec", &name, "nft", "list", "chain", "ip", "pilotlight", "forward"]);
    assert!(!open.contains("\"tap0\" drop"), "{open}");
    pool.give_back(closed.name()).await;

    // A namespace is destroyed even while a socket in it is still open.
    let handle = Arc::new(namespace);
    pool.give_back(&name).await;
    assert!(!Namespace::list(&prefix).contains(&name));
    drop(handle);

    let filler = tokio::spawn(Arc::clone(&pool).keep_filled());
    while Namespace::list(&prefix).len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    filler.abort();
    // It ends in the middle of making one, and what it called for that may take a moment longer.
    let _ = filler.await;
    for _ in 0..100 {
        pool.sweep(&[other.name().to_owned()]).await;
        if Namespace::list(&prefix) == [other.name()] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(Namespace::list(&prefix), [other.name()]);
    pool.sweep(&[]).await;
    assert_eq!(Namespace::list(&prefix), [""; 0]);
    let owner = prefix.trim_start_matches("pl-").trim_end_matches('-');
    assert!(!ip(&["link"]).contains(&format!("plv{owner}")), "a link was left");
    rules::remove(owner).await.expect("the rules go");
}
