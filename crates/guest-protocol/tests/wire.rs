//! One message of each kind as it is on the wire. Agents of old snapshots speak this for years: a change here is a
//! change of the contract and wants a look at `GENERATION`.

use guest_protocol::{
    AppEnd, AppSpec, AppStatus, Event, Message, Open, Opened, OutOfMemory, Purpose, Reply, Request, RequestBody,
    Stream, read_frame, write_frame,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// What goes over the wire for a message, without its length, and a check that reading it gives the message back.
fn wire<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, message).await.expect("it is written");
        let read: T = read_frame(&mut bytes.as_slice()).await.expect("it is read");
        assert_eq!(&read, message);
        String::from_utf8(bytes.split_off(4)).expect("JSON is UTF-8")
    })
}

fn app() -> AppSpec {
    AppSpec {
        argv: vec!["python3".to_owned(), "app.py".to_owned()],
        env: vec![("LANG".to_owned(), "C.UTF-8".to_owned())],
        cwd: "/srv".to_owned(),
        user: "app:staff".to_owned(),
        hostname: "localhost".to_owned(),
        all_capabilities: false,
        nameservers: vec!["169.254.100.1".to_owned()],
    }
}

#[test]
fn every_message_on_the_wire() {
    let request = |body| wire(&Request { id: 7, body });
    let reply = |reply| wire(&Message::Reply { id: 7, reply });
    let event = |event| wire(&Message::Event(event));
    let restored = |outbound_lives| {
        let (unix_nanos, seed) = (1_785_000_000_123_456_789, "AAEC".to_owned());
        request(RequestBody::Restored { unix_nanos, seed, outbound_lives })
    };
    let output = |stream| Event::Output { stream, data: "aGVsbG8K".to_owned() };
    let out_of_memory = Some(OutOfMemory { process: "python3".to_owned(), resident_kib: 1_938_432 });
    let killed = AppEnd { code: 137, out_of_memory };
    let lines = [
        wire(&Open { generation: 1, purpose: Purpose::Control }),
        wire(&Open { generation: 1, purpose: Purpose::Connect { port: 8080 } }),
        wire(&Open { generation: 3, purpose: Purpose::Shell { command: None } }),
        wire(&Open { generation: 3, purpose: Purpose::Shell { command: Some("make test".to_owned()) } }),
        wire(&Opened { generation: 1, error: None }),
        wire(&Opened { generation: 1, error: Some("nothing listens on port 8080".to_owned()) }),
        request(RequestBody::Start(app())),
        restored(false),
        restored(true),
        request(RequestBody::Quiesce),
        request(RequestBody::Park { time_max_millis: 500 }),
        request(RequestBody::Status),
        reply(Reply::App(AppStatus::NotStarted)),
        reply(Reply::App(AppStatus::Running)),
        reply(Reply::App(AppStatus::Exited(killed))),
        reply(Reply::Failed { reason: "the app was started before".to_owned() }),
        event(output(Stream::Stdout)),
        event(output(Stream::Stderr)),
        event(Event::AppExited(AppEnd { code: 1, out_of_memory: None })),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r#"
    {"generation":1,"purpose":"control"}
    {"generation":1,"purpose":{"connect":{"port":8080}}}
    {"generation":3,"purpose":{"shell":{}}}
    {"generation":3,"purpose":{"shell":{"command":"make test"}}}
    {"generation":1}
    {"generation":1,"error":"nothing listens on port 8080"}
    {"id":7,"body":{"start":{"argv":["python3","app.py"],"env":[["LANG","C.UTF-8"]],"cwd":"/srv","user":"app:staff","hostname":"localhost","all_capabilities":false,"nameservers":["169.254.100.1"]}}}
    {"id":7,"body":{"restored":{"unix_nanos":1785000000123456789,"seed":"AAEC"}}}
    {"id":7,"body":{"restored":{"unix_nanos":1785000000123456789,"seed":"AAEC","outbound_lives":true}}}
    {"id":7,"body":"quiesce"}
    {"id":7,"body":{"park":{"time_max_millis":500}}}
    {"id":7,"body":"status"}
    {"reply":{"id":7,"reply":{"app":"not_started"}}}
    {"reply":{"id":7,"reply":{"app":"running"}}}
    {"reply":{"id":7,"reply":{"app":{"exited":{"code":137,"out_of_memory":{"process":"python3","resident_kib":1938432}}}}}}
    {"reply":{"id":7,"reply":{"failed":{"reason":"the app was started before"}}}}
    {"event":{"output":{"stream":"stdout","data":"aGVsbG8K"}}}
    {"event":{"output":{"stream":"stderr","data":"aGVsbG8K"}}}
    {"event":{"app_exited":{"code":1}}}
    "#);
}

#[test]
fn members_of_a_newer_generation_are_passed_over_and_optional_ones_may_be_absent() {
    let opened: Opened = serde_json::from_str(r#"{"generation":2,"colour":"blue"}"#).expect("it is understood");
    assert_eq!(opened, Opened { generation: 2, error: None });
    let spec = r#"{"argv":["a"],"env":[],"cwd":"/","user":"","hostname":"h","all_capabilities":true}"#;
    let spec: AppSpec = serde_json::from_str(spec).expect("it is understood");
    assert!(spec.nameservers.is_empty());
}
