//! A certificate for all endpoints, proven by a hook.

use std::{fs, os::unix::fs::PermissionsExt};

use edge::acme::{ExternalAccount, ORDERS_PER_HOUR};
use serde_json::Value;

use crate::{
    authority::{self, Authority, Behaviour, until},
    world::{Data, SUFFIX},
};

#[tokio::test]
async fn the_first_certificate_is_fetched_while_another_is_served_and_outlives_the_server() {
    if !authority::is_here() {
        return;
    }
    let mut authority = Authority::prepare(Behaviour::default()).await;
    let data = Data::new(&authority);
    // The ACME server is down: the edge serves all the same, and asks again.
    let server = data.start().await;
    let mut early = server.connect(data.development()).await.unwrap();
    assert!(early.ask().await.unwrap().starts_with("http/1.1 403 "));
    data.log.says("the ACME server could not be asked").await;
    assert_eq!(authority.told().len(), 0);

    authority = authority.up().await;
    data.log.says("the endpoints have a new certificate").await;
    let trusted = authority.signs_with().await;
    let mut client = server.connect(trusted.clone()).await.unwrap();
    assert!(client.ask().await.unwrap().starts_with("http/1.1 403 "));
    assert!(early.ask().await.unwrap().starts_with("http/1.1 403 "), "who was there stays");
    assert!(server.connect(data.development()).await.is_err(), "no other certificate is served any more");

    until("the record is gone", || authority.actions().len() == 2).await;
    let [present, cleanup] = &authority.told()[..] else { panic!("{:?}", authority.told()) };
    assert_eq!([&present[0], &present[1]], ["present", &format!("_acme-challenge.{SUFFIX}")]);
    assert_eq!(cleanup[0], "cleanup");
    assert_eq!(present[1..], cleanup[1..]);

    let mode = |name: &str| fs::metadata(data.file(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(["account.json", "certificate.pem", "orders.json"].map(mode), [0o600; 3]);
    assert_eq!(mode(""), 0o700);
    let days = (server.served.expires() - time::OffsetDateTime::now_utc()).whole_days();
    assert!((88..=90).contains(&days), "{days}");

    // The next server has it at once, and need not ask anybody for it.
    drop(server);
    authority.down().await;
    let server = data.start().await;
    let mut again = server.connect(trusted).await.unwrap();
    assert!(again.ask().await.unwrap().starts_with("http/1.1 403 "));
    assert_eq!(again.certificate(), client.certificate());
}

#[tokio::test]
async fn it_is_renewed_in_time_and_nobody_is_cut_off() {
    if !authority::is_here() {
        return;
    }
    // A machine with much to do takes seconds for an order; a third of this is left for it.
    const LIFE: u64 = 9;
    let authority = Authority::start(Behaviour { seconds: LIFE, ..Behaviour::default() }).await;
    let data = Data::new(&authority);
    let server = data.start().await;
    data.log.says("the endpoints have a new certificate").await;
    let trusted = authority.signs_with().await;
    let mut client = server.connect(trusted.clone()).await.unwrap();
    client.ask().await.unwrap();
    let first = server.served.expires();

    server.renewed(first).await;
    let issued = server.served.expires() - std::time::Duration::from_secs(LIFE);
    assert!(issued < first, "the first was still good");
    client.ask().await.unwrap();
    let mut next = server.connect(trusted).await.unwrap();
    next.ask().await.unwrap();
    assert_ne!(next.certificate(), client.certificate());
    assert_eq!(authority.accounts(), 1, "{}", authority.log());
}

#[tokio::test]
async fn a_hook_that_fails_or_hangs_is_told_of_and_tried_again() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let mut data = Data::new(&authority);
    data.settings.hook_timeout_seconds = 1;
    // The first time it fails, the second it hangs.
    data.settings.hook = authority.hook(
        r#"[[ $1 == cleanup ]] || case $(grep -c present "${0%/*}/told") in
        1) echo 'no such zone' >&2; exit 3 ;;
        2) echo 'asking the zone'; sleep 60 ;;
        esac"#,
    );
    let server = data.start().await;
    data.log.says("failed with exit status: 3; it said: no such zone").await;
    data.log
        .says("was not done after 1 s (tls.acme.hook_timeout_seconds), and was ended; it said: asking the zone")
        .await;
    data.log.says("the endpoints have a new certificate").await;
    server.connect(authority.signs_with().await).await.unwrap();
    let each = ["present", "cleanup"].repeat(3);
    until("all are cleaned up", || authority.actions() == each).await;
    let told = authority.told();
    assert!(told.chunks(2).all(|pair| pair[0][1..] == pair[1][1..]), "{told:?}");
}

#[tokio::test]
async fn an_authority_is_not_asked_again_and_again_for_what_it_refuses() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let mut data = Data::new(&authority);
    // It claims to have set the record.
    data.settings.hook = authority.hook("exit 0");
    let mut server = data.start().await;
    let failures = || data.log.text().matches("the endpoints keep the certificate they have").count();
    until("as many orders as may fail", || failures() == ORDERS_PER_HOUR).await;
    data.log.says(&format!("the ACME server does not see the proof: *.{SUFFIX}: API error: ")).await;
    // Pauses are far shorter here than this, and a server that starts anew counts on.
    server.kill();
    let again = data.start().await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!((authority.orders(), failures()), (ORDERS_PER_HOUR, ORDERS_PER_HOUR), "{}", authority.log());
    assert_eq!(authority.actions(), ["present", "cleanup"].repeat(ORDERS_PER_HOUR));
    again.connect(data.development()).await.unwrap();
}

#[tokio::test]
async fn a_url_of_no_directory_is_named_and_counts_as_no_order() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let mut data = Data::new(&authority);
    data.settings.directory = authority.url().replace("/dir", "/no-dir");
    let server = data.start().await;
    let words = format!("tls.acme.directory is {}, which answers 404", data.settings.directory);
    until("it is asked more often than orders may fail", || data.log.text().matches(&words).count() > ORDERS_PER_HOUR)
        .await;
    server.connect(data.development()).await.unwrap();
    assert_eq!(authority.told().len(), 0);
}

#[tokio::test]
async fn a_server_killed_while_it_orders_goes_on_with_its_account_and_cleans_up() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let mut data = Data::new(&authority);
    for action in ["present", "cleanup"] {
        data.settings.hook = authority.hook(&format!("[[ $1 != {action} ]] || sleep 60"));
        let before = authority.actions().len();
        let mut server = data.start().await;
        until("the hook hangs", || authority.actions()[before..].iter().any(|told| told == action)).await;
        server.kill();
    }
    // Killed while it presented, then after it had the certificate, while it cleaned up.
    assert_eq!(authority.actions(), ["present", "cleanup", "cleanup"][..authority.actions().len()]);
    data.settings.hook = authority.hook("");
    let server = data.start().await;
    data.log.says("the endpoints have a new certificate").await;
    server.connect(authority.signs_with().await).await.unwrap();
    let gone = || {
        let orders: Value = serde_json::from_slice(&fs::read(data.file("orders.json")).unwrap()).unwrap();
        orders["records"].as_array().unwrap().is_empty()
    };
    until("nothing is left to clean up", gone).await;
    let told = authority.told();
    for [_, name, value] in told.iter().filter(|told| told[0] == "present") {
        let cleaned = told.iter().any(|told| *told == ["cleanup".to_owned(), name.clone(), value.clone()]);
        assert!(cleaned, "{value} is left: {told:?}");
    }
    assert_eq!(authority.accounts(), 1, "{}", authority.log());
}

#[tokio::test]
async fn an_account_that_is_lost_is_registered_again_and_one_that_is_there_is_not() {
    if !authority::is_here() {
        return;
    }
    let mut authority = Authority::start(Behaviour::default()).await;
    let data = Data::new(&authority);
    let account = || serde_json::from_slice::<Value>(&fs::read(data.file("account.json")).unwrap()).unwrap();
    let server = data.start().await;
    data.log.says("the endpoints have a new certificate").await;
    let first = account();
    assert_eq!(first["contact"][0], "mailto:ops@example.test");
    drop(server);

    // Killed after it was registered and before that was written down: the key is the same, and so is the account.
    let forgotten =
        serde_json::json!({ "directory": first["directory"], "key": first["key"], "id": null, "contact": [] });
    fs::write(data.file("account.json"), forgotten.to_string()).unwrap();
    fs::remove_file(data.file("certificate.pem")).unwrap();
    let server = data.start().await;
    until("another certificate", || data.file("certificate.pem").exists()).await;
    assert_eq!((account(), authority.accounts()), (first.clone(), 1));
    drop(server);

    authority.down().await;
    let authority = authority.up().await;
    fs::remove_file(data.file("certificate.pem")).unwrap();
    let _server = data.start().await;
    data.log.says("accountDoesNotExist").await;
    until("another certificate", || data.file("certificate.pem").exists()).await;
    assert_eq!(account()["key"], first["key"]);
    assert_eq!(authority.accounts(), 1);
}

#[tokio::test]
async fn an_account_may_be_bound_to_one_that_the_authority_knows() {
    if !authority::is_here() {
        return;
    }
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let authority = Authority::start(Behaviour { external: Some(("kid-1", KEY)), ..Behaviour::default() }).await;
    let mut data = Data::new(&authority);
    let server = data.start().await;
    data.log.says("externalAccountRequired").await;
    drop(server);

    let key_file = data.dir.path().join("external.key");
    data.settings.external_account = Some(ExternalAccount { key_id: "kid-1".to_owned(), key_file: key_file.clone() });
    let server = data.start().await;
    data.log.says(&format!("tls.acme.external_account.key_file {} cannot be read", key_file.display())).await;
    fs::write(&key_file, format!("{KEY}\n")).unwrap();
    data.log.says("the endpoints have a new certificate").await;
    server.connect(authority.signs_with().await).await.unwrap();
    assert_eq!(authority.accounts(), 1);
}

#[tokio::test]
async fn a_certificate_for_other_names_or_of_another_authority_is_not_served() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let data = Data::new(&authority);
    let server = data.start().await;
    data.log.says("the endpoints have a new certificate").await;
    drop(server);
    let other = fs::read_to_string(data.dir.path().join("tls/server.pem")).unwrap();
    fs::write(data.file("certificate.pem"), other.replace("CERTIFICATE", "NONE")).unwrap();
    assert!(!data.open().is_ready());
    assert!(data.log.text().contains("there is no certificate in "), "{}", data.log.text());
    let server = data.start().await;
    until("it is ordered anew", || data.log.text().matches("the endpoints have a new certificate").count() == 2).await;
    server.connect(authority.signs_with().await).await.unwrap();
}
