//! What a VMM that a guest took over may say, with anything in it: QMP's lines, Firecracker's answers; and records that
//! are not what was written.
//!
//! An ordinary run tries what it comes upon in a second a test. `cargo bolero test -p vmm fuzz::<test>` looks for what it
//! has not seen yet, for as long as it is left.

use std::fs;

use allocation_counter::measure;
use bolero::TypeGenerator;
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::firecracker::{ApiError, judge};
use crate::qemu::qmp::{Message, parse};
use crate::record::{RecordError, VmRecord};

/// How much an edited text grows at most: enough that a cost for each byte stands out from the fixed ones.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// What means something to a reader of JSON.
const WORDS: [&str; 18] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "null",
    "0,",
    "{\"\":0},",
    "-1",
    "18446744073709551616",
    "1e999",
    "\\ud800",
    "\\n",
    "\"id\":1,",
    "\"event\":\"X\",",
    "\u{202e}",
];

/// A change to a text. Positions go around its end.
#[derive(Debug, TypeGenerator)]
enum Edit {
    Set { at: u16, byte: u8 },
    Cut { at: u16, bytes: u8 },
    End { at: u16 },
    Put { at: u16, bytes: Vec<u8> },
    Word { at: u16, which: u8 },
    Repeat { at: u16, bytes: u8, times: u8 },
}

/// One of some samples, edited; the first of them is for texts that are made of edits alone.
#[derive(Debug, TypeGenerator)]
struct Text {
    sample: u8,
    /// Few: what is edited much is soon refused for the first thing wrong with it.
    #[generator(bolero::produce::<Vec<Edit>>().with().len(0usize..5))]
    edits: Vec<Edit>,
}

impl Text {
    fn of(&self, samples: &[&str]) -> Vec<u8> {
        let mut text = samples[usize::from(self.sample) % samples.len()].as_bytes().to_vec();
        for edit in &self.edits {
            edit.apply(&mut text);
            text.truncate(TEXT_BYTES_MAX);
        }
        text
    }
}

impl Edit {
    fn apply(&self, text: &mut Vec<u8>) {
        let place = |at: &u16| usize::from(*at) % (text.len() + 1);
        let stretch = |at: &u16, bytes: &u8| place(at)..(place(at) + usize::from(*bytes)).min(text.len());
        let (replaced, by) = match self {
            Self::Set { at, byte } => (stretch(at, &1), vec![*byte]),
            Self::Cut { at, bytes } => (stretch(at, bytes), vec![]),
            Self::End { at } => (place(at)..text.len(), vec![]),
            Self::Put { at, bytes } => (stretch(at, &0), bytes.clone()),
            Self::Word { at, which } => (stretch(at, &0), WORDS[usize::from(*which) % WORDS.len()].into()),
            Self::Repeat { at, bytes, times } => (stretch(at, &0), text[stretch(at, bytes)].repeat((*times).into())),
        };
        text.splice(replaced, by);
    }
}

const LINES: [&str; 8] = [
    "",
    r#"{"QMP":{"version":{"qemu":{"micro":0,"minor":2,"major":8},"package":""},"capabilities":["oob"]}}"#,
    r#"{"return":{},"id":0}"#,
    r#"{"return":{"status":"paused","running":false},"id":18446744073709551615}"#,
    r#"{"error":{"class":"GenericError","desc":"no"},"id":1}"#,
    r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"STOP"}"#,
    r#"{"event":"BLOCK_IO_ERROR","data":{"device":"d","operation":"write","nospace":true}}"#,
    r#"{"return":[{"name":"x","alias":1.5},[null,true]],"id":5}"#,
];

#[test]
fn a_line_of_qemu_may_be_anything() {
    bolero::check!().with_type::<Text>().for_each(|text| {
        let line = text.of(&LINES);
        let mut result = None;
        let used = measure(|| result = Some(parse(&line))).bytes_max as usize;
        // An object of one member takes a whole node of a B-tree, of 11: a hundred times its `{"":0},`.
        assert!(used <= 160 * line.len() + 4096, "{used} bytes of memory for a line of {}", line.len());
        let Ok(message) = result.expect("it ran") else { return };
        let object: Value = serde_json::from_slice(&line).expect("only JSON is a message");
        match message {
            Message::Other => assert!(object.is_object()),
            Message::Event { name, data } => {
                assert_eq!(object["event"], name);
                assert_eq!(object["data"], data);
            }
            Message::Reply { id, result } => {
                assert_eq!(object["id"], id);
                match result {
                    Ok(value) => assert_eq!(object["return"], value),
                    Err(refusal) => assert_eq!(object["error"]["desc"], refusal.desc),
                }
            }
        }
    });
}

const ANSWERS: [&str; 3] =
    ["", r#"{"fault_message":"no\nway"}"#, r#"{"id":"i","state":"Paused","vmm_version":"1.12.0"}"#];

#[test]
fn an_answer_of_firecracker_may_be_anything() {
    bolero::check!().with_type::<(u16, Text)>().for_each(|(status, text)| {
        let status = StatusCode::from_u16(100 + status % 900).expect("within HTTP's range");
        let body = text.of(&ANSWERS);
        let mut result = None;
        let used = measure(|| result = Some(judge("/", status, body.clone().into()))).bytes_max as usize;
        // The body, what is not UTF-8 in it three times as long, in a string with room for twice that.
        assert!(used <= 12 * body.len() + 8192, "{used} bytes of memory for a body of {}", body.len());
        match result.expect("it ran") {
            Ok(answer) => assert!(status.is_success() && answer == body),
            Err(ApiError::Refused { path: "/", status: said, message }) => {
                assert!(!status.is_success() && said == status.as_u16());
                assert!(message.chars().count() <= 500 && !message.contains(char::is_control), "{message:?}");
            }
            Err(other) => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_record_may_be_anything() {
    let identity = json!({ "pid": 1, "start_time": 2, "boot_id": "b", "cgroup": "/c" });
    let record = json!({
        "magic": "pilotlight-vm", "version": 3, "process": identity, "driver": "firecracker", "pager": identity,
        "earlier": "/e", "memory_path": "/m", "memory_shared": false, "memory_bytes": 4096, "writable_disks": ["/d"],
    });
    let plain = record.to_string();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("vm.json"), &plain).unwrap();
    assert!(VmRecord::read(dir.path()).is_ok_and(|record| record.is_some()), "the sample is one");
    bolero::check!().with_type::<Text>().for_each(|text| {
        fs::write(dir.path().join("vm.json"), text.of(&["", &plain])).unwrap();
        let mut result = None;
        let used = measure(|| result = Some(VmRecord::read(dir.path()))).bytes_max as usize;
        assert!(used <= 32 * TEXT_BYTES_MAX, "{used} bytes of memory");
        match result.expect("it ran") {
            Ok(record) => {
                let record = record.expect("the file is there");
                record.write(dir.path()).unwrap();
                assert_eq!(VmRecord::read(dir.path()).unwrap(), Some(record));
            }
            Err(RecordError::Parse { .. } | RecordError::Version { .. }) => {}
            Err(error @ RecordError::Read { .. }) => panic!("{error:?}"),
        }
    });
}
