//! What the edge is told, and the limits it keeps.

use std::time::Duration;

use api::size::Size;
use serde::{Deserialize, Serialize};

/// A wait without an end. As long as the timers of the runtime can be set for, more or less; nothing waits for it.
pub const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Fields of a head that the HTTP library (hyper) takes if it is told nothing else. Told of a number, even this one, it asks
/// for memory for each head.
pub(crate) const HEADER_FIELDS_OF_LIBRARY: usize = 100;

/// What one edge serves.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// What follows the endpoint's label in a host name: `lambda-microvm.us-east-1.localhost`, without a leading dot.
    pub domain_suffix: String,
    /// The limits.
    pub limits: Limits,
}

/// Every wait and every size at the edge. [`Limits::standard`] says each one's usual value and why.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest TLS handshake.
    pub tls_handshake: Duration,
    /// Longest time from the first byte of a request's head to its last; on a new connection, from its opening.
    pub request_head: Duration,
    /// How long a client's connection may stay open between requests.
    pub client_idle: Duration,
    /// How long a client may take nothing of what it is sent; [`NEVER`] for as long as it likes.
    pub client_stall: Duration,
    /// Longest time without a byte in either direction before an app begins its answer: the limit on a request, which no
    /// stream or WebSocket is under once it has begun. [`NEVER`] for none.
    pub answer: Duration,
    /// Longest time without a byte in either direction after that, upgraded requests included; [`NEVER`] for none.
    pub silence: Duration,
    /// Longest wait for a microVM to run and a connection to its VM.
    pub wake: Duration,
    /// Longest single attempt to connect into a running VM.
    pub dial: Duration,
    /// How often one request is tried again because its VM had gone between being found and being reached.
    pub attempts_after_gone: u32,
    /// How long an unused connection to an app is kept.
    pub upstream_idle: Duration,
    /// Unused connections kept for one port of one VM.
    pub upstream_idle_per_port: usize,
    /// Unused connections kept for all VMs together.
    pub upstream_idle_total: usize,
    /// Client connections served at once.
    pub connections: usize,
    /// Of those, how many from one address; from one network of 64 bits in IPv6, which is what a host has to itself.
    pub connections_per_address: usize,
    /// Connections beyond either which are accepted only to be told 429; past these the kernel's queue holds newcomers.
    pub connections_refused: usize,
    /// Connections to apps at once, with those kept for the next request; when there are none left, a request is told 429.
    pub upstream_connections: usize,
    /// What each microVM may take.
    pub per_microvm: PerMicrovm,
    /// Largest message of a client to a shell, in bytes; a larger one ends the session.
    pub shell_message_bytes: usize,
    /// Requests that may wait for one microVM to run; the next is told 429.
    pub waiting_per_microvm: usize,
    /// Requests that may wait for microVMs to run, all together.
    pub waiting_total: usize,
    /// Largest head of a request or a response, in bytes. Also the buffer of each direction.
    pub head_bytes: usize,
    /// Most header fields in a head.
    pub header_fields: usize,
    /// Longest body of a request, in bytes; longer ones are told 413.
    pub request_body_bytes: u64,
    /// Requests that one HTTP/2 connection of a client may have open at once.
    pub h2_streams: u32,
    /// How many bytes a client may be ahead of the app in one HTTP/2 request.
    pub h2_stream_window: u32,
    /// The same for all requests of an HTTP/2 connection together.
    pub h2_connection_window: u32,
    /// How many bytes an app may be ahead of the client in one HTTP/2 request.
    pub h2_send_buffer: usize,
    /// Requests that a client may take back before anybody looked at them; one more ends the HTTP/2 connection.
    pub h2_resets_unseen: usize,
    /// HTTP/2 streams that were reset because the client broke the protocol on them; one more ends the connection.
    pub h2_resets_for_errors: usize,
    /// Requests that a client may leave before their answer's end on one HTTP/2 connection; beyond that, the connection
    /// ends once they are more than half of all.
    pub h2_abandoned: usize,
    /// Bytes of frames that carry nothing which a client may send on one HTTP/2 connection, beside seven for each that
    /// carries something; more end the connection.
    pub h2_idle_bytes: u64,
    /// How much of a body nobody wants is read, so that the client gets to see the answer. HTTP/1.1 alone needs it.
    pub linger_bytes: u64,
    /// How long it is read for.
    pub linger: Duration,
    /// How long requests in flight may take to finish once the edge shuts down.
    pub drain: Duration,
}

impl Limits {
    /// The usual limits.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            // A handshake is two round trips; ten seconds is a very bad mobile link, not yet a slot worth holding.
            tls_handshake: Duration::from_secs(10),
            // A head is one packet or a few: who needs longer is holding a connection, not sending a request.
            request_head: Duration::from_secs(10),
            // Longer than the pools of the usual clients keep connections (those of Go and reqwest 90 s), so that they close
            // first and do not race us.
            client_idle: Duration::from_secs(120),
            // A player that is paused, a pager that is being read; what is held meanwhile is a connection to the app, and
            // buffers.
            client_stall: Duration::from_secs(300),
            answer: Duration::from_secs(3600),
            // An agent may think long before its first byte. A silent microVM with an idle policy is suspended sooner,
            // which ends its streams; this is for those without one.
            silence: Duration::from_secs(3600),
            // A request may meet a suspend whose hook takes its full 60 s, then a resume whose hook does.
            wake: Duration::from_secs(150),
            // Running VMs answer in milliseconds; an overcommitted or emulated one may need seconds.
            dial: Duration::from_secs(10),
            // Once for an idle suspend that came in between, the others for a directory that learns of it late.
            attempts_after_gone: 4,
            // Common servers close an idle connection after 5 s. Being first avoids sending into one being closed.
            upstream_idle: Duration::from_secs(4),
            // As many as a busy app has in use at a time; each costs memory in the guest too.
            upstream_idle_per_port: 256,
            upstream_idle_total: 4096,
            // Bounded by memory: an idle one takes some 20 KiB, so all 320 MiB; one whose app or client does not read
            // holds about 200 KiB of buffers.
            connections: 16_384,
            // No single client takes all, and what stands before this one, or many people behind one address, have enough.
            connections_per_address: 8192,
            connections_refused: 64,
            // One for each client. Requests that share an HTTP/2 connection of their client have one each, too.
            upstream_connections: 16_384,
            per_microvm: PerMicrovm::standard(),
            // A page pasted into a terminal; a file is better sent otherwise. Held while the shell does not read.
            shell_message_bytes: 256 * 1024,
            // A wake takes about a second; more clients than this will not be served well when it is done.
            waiting_per_microvm: 128,
            // Several times what a host wakes at once; one HTTP/2 connection alone may bring a hundred requests.
            waiting_total: 4096,
            // Eight times what common servers take. Tokens alone may be 8000 bytes.
            head_bytes: 64 * 1024,
            header_fields: HEADER_FIELDS_OF_LIBRARY,
            request_body_bytes: u64::MAX,
            // What common servers allow. More are queued by the client itself.
            h2_streams: 128,
            // A megabyte per round trip of 100 ms is 10 MB/s, about what a microVM's bandwidth allows. Constants, as a
            // window that adapts starts small. The connection's window is the most that a client can make us hold
            // while the app does not read.
            h2_stream_window: 1024 * 1024,
            h2_connection_window: 4 * 1024 * 1024,
            // With all streams in use and a client that does not read: 16 MiB.
            h2_send_buffer: 128 * 1024,
            // A client has no reason for many of either. Those it resets once they were looked at cost it the token.
            h2_resets_unseen: 32,
            h2_resets_for_errors: 256,
            // Browsers give up requests too, when a page is left, but not most of them.
            h2_abandoned: 500,
            // As nginx has it. A ping a second is 17 bytes, so it takes a week of nothing else.
            h2_idle_bytes: 1024 * 1024,
            // What is on its way when we answer early: a few bandwidth-delay products.
            linger_bytes: 8 * 1024 * 1024,
            linger: Duration::from_secs(5),
            // Supervisors commonly kill after 90 s; most requests are done in a fraction of this.
            drain: Duration::from_secs(30),
        }
    }
}

/// What one microVM may take of the edge. 0 is no limit; where both are set, the lower one counts. Those per vCPU go by the
/// vCPUs that the guest sees, as the service's do: 8 connections, 10 requests and 1,000,000 bytes a second for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PerMicrovm {
    /// Clients' connections at once; the next is told 429. A connection counts from its first admitted request on.
    pub connections: u32,
    /// The same for each vCPU.
    pub connections_per_vcpu: u32,
    /// Shells at once; the next is told 429. A guest opens 32 at most, whatever stands here.
    pub shells: u32,
    /// Admitted requests a second, and at once after a rest; more are told 429. What goes over a WebSocket is none.
    pub requests_per_second: u32,
    /// The same for each vCPU.
    pub requests_per_second_per_vcpu: u32,
    /// Bytes of bodies and upgraded connections, both ways together, a second; more have to wait.
    pub bytes_per_second: u64,
    /// The same for each vCPU.
    pub bytes_per_second_per_vcpu: u64,
}

impl PerMicrovm {
    /// The usual limits: half of the edge's connections, so that no microVM takes all of them. Rates protect a region that
    /// the service shares among its customers; here an app that has enough to do is slow to answer, and that is limit
    /// enough.
    #[must_use]
    pub fn standard() -> Self {
        // A person has a handful of shells, and each is a process in the guest.
        Self { connections: 8192, shells: 16, ..Self::unlimited() }
    }

    /// No limits.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            connections: 0,
            connections_per_vcpu: 0,
            shells: 0,
            requests_per_second: 0,
            requests_per_second_per_vcpu: 0,
            bytes_per_second: 0,
            bytes_per_second_per_vcpu: 0,
        }
    }

    pub(crate) fn connections_of(&self, size: Size) -> Option<u32> {
        lower(self.connections, self.connections_per_vcpu.saturating_mul(size.vcpus()))
    }

    pub(crate) fn shells_at_once(&self) -> Option<u32> {
        lower(self.shells, 0)
    }

    pub(crate) fn requests_per_second_of(&self, size: Size) -> Option<u32> {
        lower(self.requests_per_second, self.requests_per_second_per_vcpu.saturating_mul(size.vcpus()))
    }

    pub(crate) fn bytes_per_second_of(&self, size: Size) -> Option<u64> {
        lower(self.bytes_per_second, self.bytes_per_second_per_vcpu.saturating_mul(u64::from(size.vcpus())))
    }
}

impl Default for PerMicrovm {
    fn default() -> Self {
        Self::standard()
    }
}

/// The lower of two limits of which 0 is none.
fn lower<N: Ord + Default>(one: N, other: N) -> Option<N> {
    let none = N::default();
    [one, other].into_iter().filter(|limit| *limit > none).min()
}
