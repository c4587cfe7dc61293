//! One call, from its first byte to what came of it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use api::timestamp::IsoTimestamp;
use http::request::Parts;
use serde::Serialize;
use uuid::Uuid;

use super::Audit;
use crate::auth::Caller;

/// Where a request came from, as the connection says; put into a request's extensions by whoever accepted it. What a
/// proxy says in headers is not looked at: anybody can say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceAddress(pub SocketAddr);

/// Longest text of any kind in a line, in bytes; a longer one is cut.
const TEXT_BYTES_MAX: usize = 1024;

/// Most things a line names.
const RESOURCES_MAX: usize = 50;

/// A line. A member that is not known is null.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    time: IsoTimestamp,
    request_id: Uuid,
    service: &'static str,
    action: Option<String>,
    principal: Option<String>,
    access_key_id: Option<String>,
    source_address: Option<IpAddr>,
    /// Method and path, without the query: that may hold a signature.
    request: String,
    resources: Vec<String>,
    status: Option<u16>,
    error: Option<String>,
}

/// The line, with its end, of a change that a command made beside the server: by whom, with which command, what it did,
/// to what. What is told is done, which is a status of 200.
pub(crate) fn change(by: &str, command: &str, action: &str, resources: &[String]) -> String {
    let line = Line {
        time: IsoTimestamp(SystemTime::now().into()),
        request_id: Uuid::new_v4(),
        service: "iam",
        action: Some(action.to_owned()),
        principal: Some(cut(by)),
        access_key_id: None,
        source_address: None,
        request: cut(command),
        resources: resources.iter().take(RESOURCES_MAX).map(|text| cut(text)).collect(),
        status: Some(200),
        error: None,
    };
    serde_json::to_string(&line).unwrap_or_default() + "\n"
}

/// A call that goes on. It leaves its line when it ends, and also when it is dropped before: its client went away, say.
#[derive(Debug)]
pub struct Call {
    audit: Audit,
    line: Mutex<Option<Line>>,
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

impl Audit {
    /// A call begins; the access key is what it says of itself.
    #[must_use]
    pub fn call(&self, service: &'static str, parts: &Parts) -> Call {
        let line = Line {
            time: IsoTimestamp(SystemTime::now().into()),
            request_id: Uuid::new_v4(),
            service,
            action: None,
            principal: None,
            access_key_id: crate::auth::access_key_id_of(parts).map(cut),
            source_address: parts.extensions.get::<SourceAddress>().map(|address| address.0.ip()),
            request: cut(&format!("{} {}", parts.method, parts.uri.path())),
            resources: Vec::new(),
            status: None,
            error: None,
        };
        Call { audit: self.clone(), line: Mutex::new(Some(line)) }
    }
}

impl Call {
    fn change(&self, change: impl FnOnce(&mut Line)) {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change);
    }

    /// The number that its answer carries.
    #[must_use]
    pub fn request_id(&self) -> Uuid {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.as_ref().map_or_else(Uuid::new_v4, |line| line.request_id)
    }

    /// Its signature is right, and this is whose.
    pub fn signed_by(&self, caller: &Caller) {
        self.change(|line| {
            line.principal = Some(caller.arn.clone());
            line.access_key_id = Some(caller.access_key_id.clone());
        });
    }

    /// What it wants to do.
    pub fn wants(&self, action: &str) {
        self.change(|line| line.action = Some(cut(action)));
    }

    /// What it is about.
    pub fn is_about(&self, resources: impl IntoIterator<Item = String>) {
        self.change(|line| {
            let room = RESOURCES_MAX.saturating_sub(line.resources.len());
            line.resources.extend(resources.into_iter().take(room).map(|text| cut(&text)));
        });
    }

    /// What came of it.
    pub fn ended(&self, status: u16, error: Option<&str>) {
        self.leave(|line| {
            line.status = Some(status);
            line.error = error.map(cut);
        });
    }

    fn leave(&self, change: impl FnOnce(&mut Line)) {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut line) = line else { return };
        change(&mut line);
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        self.audit.say(text, line.principal.is_some());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.leave(|_| {});
    }
}
