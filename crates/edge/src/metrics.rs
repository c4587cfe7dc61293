//! What the edge counts, as Prometheus reads it.
//!
//! A few dozen numbers whose labels are all known beforehand: written out here, as the format is a line for each, and a
//! library's registry would look labels up by name for every request.

use std::{
    fmt::{self, Display, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::StatusCode;

use crate::{acme::Endpoints, refusal::Fault, served::Certificate, server::Shared};

/// A limit that something was refused by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Connections,
    AddressConnections,
    MicrovmConnections,
    MicrovmRequests,
    MicrovmShells,
    UpstreamConnections,
    Waiting,
    /// Of a head's bytes or fields: the HTTP library does not tell them apart.
    Head,
    RequestBody,
}

const LIMITS: [(Limit, &str); 9] = [
    (Limit::Connections, "connections"),
    (Limit::AddressConnections, "address_connections"),
    (Limit::MicrovmConnections, "microvm_connections"),
    (Limit::MicrovmRequests, "microvm_requests"),
    (Limit::MicrovmShells, "microvm_shells"),
    (Limit::UpstreamConnections, "upstream_connections"),
    (Limit::Waiting, "waiting"),
    (Limit::Head, "head"),
    (Limit::RequestBody, "request_body"),
];

/// Classes of status codes, and requests that never got one because their client left, or the app reset them.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

const FAULTS: [Option<Fault>; 4] = [None, Some(Fault::Client), Some(Fault::App), Some(Fault::Platform)];

/// The counters. What is open at the moment is asked of those who keep it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: [[AtomicU64; FAULTS.len()]; CLASSES.len()],
    refused: [AtomicU64; LIMITS.len()],
    pub(crate) holds: Counter,
    pub(crate) wakes: Counter,
    pub(crate) to_app: Counter,
    pub(crate) to_client: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }
}

impl Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.load(Ordering::Relaxed).fmt(f)
    }
}

impl Counters {
    /// A request is over.
    pub(crate) fn request(&self, status: Option<StatusCode>, fault: Option<Fault>) {
        let class =
            status.map_or(CLASSES.len(), |status| usize::from(status.as_u16() / 100)).clamp(1, CLASSES.len()) - 1;
        let fault = FAULTS.iter().position(|known| *known == fault).unwrap_or_default();
        self.requests[class][fault].fetch_add(1, Ordering::Relaxed);
    }

    /// One was refused by this limit.
    pub(crate) fn refused_by(&self, limit: Limit) {
        if let Some(index) = LIMITS.iter().position(|(known, _)| *known == limit) {
            self.refused[index].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What an edge counts.
#[derive(Clone)]
pub struct Metrics(pub(crate) Arc<Shared>);

impl Metrics {
    /// Everything, in Prometheus' text format (0.0.4).
    #[must_use]
    pub fn text(&self) -> String {
        let Self(shared) = self;
        let Counters { requests, refused, holds, wakes, to_app, to_client } = &*shared.counters;
        let mut page = Page::default();
        page.family(
            "requests_total",
            "counter",
            "Requests that are over, by the class of their status and whose fault it was",
        );
        for (class, by_fault) in CLASSES.iter().zip(requests) {
            for (fault, count) in FAULTS.iter().zip(by_fault) {
                let fault = fault.map_or("none", Fault::as_str);
                let labels = format!("{{class=\"{class}\",fault=\"{fault}\"}}");
                page.sample("requests_total", &labels, count.load(Ordering::Relaxed));
            }
        }
        page.family("refused_by_limit_total", "counter", "Requests refused by a limit, and connections closed by one");
        for ((_, limit), count) in LIMITS.iter().zip(refused) {
            page.sample("refused_by_limit_total", &format!("{{limit=\"{limit}\"}}"), count.load(Ordering::Relaxed));
        }
        page.family("bytes_total", "counter", "Bytes of bodies and of upgraded connections");
        page.sample("bytes_total", "{to=\"app\"}", to_app);
        page.sample("bytes_total", "{to=\"client\"}", to_client);
        page.family("holds_total", "counter", "Requests that had to wait for their microVM to run");
        page.sample("holds_total", "", holds);
        page.family("wakes_total", "counter", "Times that a microVM was waited for, by however many requests");
        page.sample("wakes_total", "", wakes);
        page.family("waiting", "gauge", "Requests that wait for their microVM at the moment");
        page.sample("waiting", "", shared.waiting.count());
        let limits = &shared.config.limits;
        page.family("connections", "gauge", "Connections of clients");
        page.sample("connections", "", limits.connections - shared.served.available_permits());
        page.family("upstream_connections", "gauge", "Connections to apps, kept ones included");
        page.sample("upstream_connections", "", limits.upstream_connections - shared.upstream.available_permits());
        match &shared.certificate {
            Certificate::ForAll(certificate) => {
                page.family(
                    "certificate_expires_seconds",
                    "gauge",
                    "End of the certificate that is served, as a Unix time",
                );
                page.sample("certificate_expires_seconds", "", certificate.expires().unix_timestamp());
            }
            Certificate::ForEach(endpoints) => page.certificates(endpoints),
        }
        page.0
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP pilotlight_edge_{name} {help}.\n# TYPE pilotlight_edge_{name} {kind}")
            .expect("a string takes all");
    }

    fn certificates(&mut self, endpoints: &Endpoints) {
        let counts = &endpoints.counts;
        self.family("certificates", "gauge", "Certificates of endpoints in memory");
        self.sample("certificates", "", endpoints.held());
        self.family("certificate_orders_total", "counter", "Certificates of endpoints that were to be ordered");
        self.sample("certificate_orders_total", "{result=\"issued\"}", &counts.issued);
        self.sample("certificate_orders_total", "{result=\"failed\"}", &counts.failed);
        self.family(
            "without_certificate_total",
            "counter",
            "Handshakes with an endpoint's name and no certificate for it",
        );
        self.sample("without_certificate_total", "", &counts.until_then);
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        writeln!(self.0, "pilotlight_edge_{name}{labels} {value}").expect("a string takes all");
    }
}
