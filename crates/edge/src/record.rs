//! One request from its arrival to the last byte of its answer, for the access log and the counters.

use std::{sync::Arc, time::Instant};

use http::{HeaderValue, Method, StatusCode};

use crate::{activity::Activity, client_io::Busy, refusal::Fault, server::Shared};

/// The request. It is over when this is dropped.
pub(crate) struct Record {
    shared: Arc<Shared>,
    id: HeaderValue,
    method: Method,
    begun: Instant,
    status: Option<StatusCode>,
    fault: Option<Fault>,
    activity: Option<Arc<Activity>>,
    pub(crate) busy: Busy,
}

impl Record {
    pub(crate) fn new(shared: &Arc<Shared>, id: &HeaderValue, method: &Method, busy: Busy) -> Self {
        Self {
            shared: Arc::clone(shared),
            id: id.clone(),
            method: method.clone(),
            begun: Instant::now(),
            status: None,
            fault: None,
            activity: None,
            busy,
        }
    }

    /// The app answers.
    pub(crate) fn answered(&mut self, status: StatusCode, activity: &Arc<Activity>) {
        self.status = Some(status);
        self.activity = Some(Arc::clone(activity));
    }

    /// The edge answers in the app's place.
    pub(crate) fn refused(&mut self, status: StatusCode, fault: Fault) {
        self.status = Some(status);
        self.broke(fault);
    }

    /// The edge answers, as it should.
    pub(crate) fn led(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.busy.whole();
    }

    /// There is no more of it, and that is somebody's fault.
    pub(crate) fn broke(&mut self, fault: Fault) {
        self.fault = Some(fault);
        self.busy.whole();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let fault = self.fault.or_else(|| (!self.busy.is_whole()).then_some(Fault::Client));
        self.shared.counters.request(self.status, fault);
        tracing::debug!(
            target: "edge::access",
            request_id = self.id.to_str().unwrap_or_default(),
            microvm = self.activity.as_ref().map(|activity| tracing::field::display(activity.microvm())),
            method = %self.method,
            status = self.status.map(|status| status.as_u16()),
            fault = fault.map_or("none", Fault::as_str),
            bytes_to_app = self.activity.as_ref().map_or(0, |activity| activity.bytes_to_app()),
            bytes_to_client = self.activity.as_ref().map_or(0, |activity| activity.bytes_to_client()),
            milliseconds = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "served"
        );
    }
}
