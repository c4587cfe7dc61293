//! What the frames say.

use serde::{Deserialize, Serialize};

/// The host's first frame on every connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// The host's generation.
    pub generation: u32,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Requests and events. A new control connection replaces the one before it.
    Control,
    /// A byte stream to `127.0.0.1:port` (or `[::1]:port` if nothing listens there) in the guest.
    Connect {
        /// TCP port of the app.
        port: u16,
    },
    /// A terminal with a shell in it, beside the app and as root. The shell lives for as long as the connection does.
    /// Since generation 3.
    Shell {
        /// What the shell is to do instead of reading from the terminal, as with `sh -c`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        command: Option<String>,
    },
}

/// The agent's answer to [`Open`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// The agent's generation.
    pub generation: u32,
    /// Why the purpose cannot be served, such as "nothing listens on port 8080"; the connection then closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A request on the control connection. Replies may come in any order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, echoed in the reply.
    pub id: u64,
    /// What is asked.
    pub body: RequestBody,
}

/// What the host asks of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestBody {
    /// Start the app; once per boot. Replied to with [`Reply::App`].
    Start(AppSpec),
    /// The VM was just restored from a snapshot: set the clock, reseed the kernel's random pool, end the TCP
    /// connections of the life before, the host's and those that lead out of the VM. Replied to with [`Reply::App`].
    Restored {
        /// Wall clock of the host, nanoseconds since the Unix epoch.
        unix_nanos: u64,
        /// 32 bytes of entropy, base64.
        seed: String,
        /// The VM went on, and only its host is another: what leads out of it is as good as before.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        outbound_lives: bool,
    },
    /// A snapshot follows: write dirty file data to the scratch disk. Replied to with [`Reply::App`].
    Quiesce,
    /// The VM is stopped at once: keep everything but the agent off the processors until then, or for as long as this
    /// if it is not, so that no process is charged with the time the VM stands still. Since generation 2. Replied to with
    /// [`Reply::App`].
    Park {
        /// In milliseconds; a restore ends it too.
        time_max_millis: u32,
    },
    /// How is the app? Replied to with [`Reply::App`].
    Status,
}

/// The process to run, as a container runtime would be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppSpec {
    /// Program and arguments; the program is looked up in the PATH of `env` if it has no slash.
    pub argv: Vec<String>,
    /// The whole environment, as name and value.
    pub env: Vec<(String, String)>,
    /// Working directory, made if absent.
    pub cwd: String,
    /// `USER` of the image: `name`, `uid`, `name:group`, `uid:gid`, or empty for root. Resolved against the image's
    /// own `/etc/passwd` and `/etc/group`.
    pub user: String,
    /// Host name inside the microVM.
    pub hostname: String,
    /// Keep every capability rather than an ordinary container's set.
    pub all_capabilities: bool,
    /// Name servers for `/etc/resolv.conf`.
    #[serde(default)]
    pub nameservers: Vec<String>,
}

/// What the agent sends on the control connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to the request of that id.
    Reply {
        /// The request's id.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Something happened.
    Event(Event),
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done; this is how the app is now.
    App(AppStatus),
    /// Not done, and why.
    Failed {
        /// One sentence for the log and, at a build, for the user.
        reason: String,
    },
}

/// How the app is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppStatus {
    /// `Start` has not come yet.
    NotStarted,
    /// Its first process lives.
    Running,
    /// Its first process ended.
    Exited(AppEnd),
}

/// How the app's first process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppEnd {
    /// Exit code, or 128 + the signal's number.
    pub code: i32,
    /// Whom the guest's kernel ended for want of memory, if that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_memory: Option<OutOfMemory>,
}

/// A process that the guest's kernel ended for want of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutOfMemory {
    /// What the process called itself.
    pub process: String,
    /// Memory it held, in KiB.
    pub resident_kib: u64,
}

/// What the agent reports unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The app wrote to its standard output or error. Kept in a bounded buffer while no host is connected; the
    /// oldest bytes go first.
    Output {
        /// Which of the two.
        stream: Stream,
        /// The bytes, base64; at most 64 KiB of them.
        data: String,
    },
    /// The app's first process ended.
    AppExited(AppEnd),
}

/// One of the app's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
