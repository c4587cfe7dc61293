//! The host's end of the connection to the agent inside a VM.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use api::directory::AppStream;
use base64::{Engine, engine::general_purpose::STANDARD};
use guest_protocol::{
    AGENT_PORT, AppEnd, AppSpec, AppStatus, Event, FrameError, GENERATION, Message, Open, Opened, PARK_SINCE, Purpose,
    Reply, Request, RequestBody, read_frame, write_frame,
};
use rand::RngCore;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{log::BoundedLog, platform::Network};

/// How long one request to the agent may take. Under emulation on a loaded machine a busy guest needs seconds.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a guest's processes are kept from its processors at most, if it is not stopped after all.
const PARK_TIME_MAX: Duration = Duration::from_millis(500);

/// How long one attempt to open a connection may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Requests waiting to be written; verbs come one at a time, so more than a few means the agent is stuck.
const REQUESTS_WAITING_MAX: usize = 8;

/// Why the agent did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No connection.
    #[error("the agent cannot be reached")]
    Connect(#[source] io::Error),
    /// A connection that does not speak the protocol.
    #[error("the agent does not speak the protocol")]
    Frame(#[source] FrameError),
    /// The connection ended before the answer.
    #[error("the agent went away")]
    Closed,
    /// No answer in time.
    #[error("the agent did not answer within {} s", REQUEST_TIME_MAX.as_secs())]
    Silent,
    /// The agent said no.
    #[error("{reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
}

/// What a guest is told of where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It was restored from a snapshot: the world has gone on without it.
    Begins,
    /// It has been there all the time, but may have stood still for some of it, and its host is another.
    GoesOn,
    /// It has run all the time, and only its host is another: nothing is to be made right, and whoever is connected to it,
    /// an edge in a process of its own say, stays so.
    Ran,
}

/// A control connection. Dropping it closes it.
pub struct Agent {
    requests: mpsc::Sender<(RequestBody, oneshot::Sender<Reply>)>,
    app: watch::Receiver<AppStatus>,
    closed: CancellationToken,
    /// `None`: it could not be asked.
    generation: Option<u32>,
    _task: AbortOnDropHandle<()>,
}

impl Agent {
    /// Connects, once.
    pub async fn connect(namespace: &dyn Network, log: Arc<Mutex<BoundedLog>>) -> Result<Self, AgentError> {
        let (stream, generation) = open(namespace, Purpose::Control, CONNECT_TIME_MAX).await?;
        Ok(Self::over(stream, generation, log))
    }

    /// Converses over a connection that was opened for it.
    fn over(stream: Box<dyn AppStream>, generation: u32, log: Arc<Mutex<BoundedLog>>) -> Self {
        let (requests, receive) = mpsc::channel(REQUESTS_WAITING_MAX);
        let (status, app) = watch::channel(AppStatus::NotStarted);
        let closed = CancellationToken::new();
        let task = tokio::spawn({
            let guard = closed.clone().drop_guard();
            async move {
                let _guard = guard;
                if let Err(error) = converse(stream, receive, status, log).await
                    && !matches!(error, FrameError::Closed)
                {
                    tracing::debug!(%error, "an agent connection ended");
                }
            }
        });
        Self { requests, app, closed, generation: Some(generation), _task: AbortOnDropHandle::new(task) }
    }

    /// One that cannot be reached for now.
    pub fn absent() -> Self {
        let closed = CancellationToken::new();
        closed.cancel();
        // Whose other ends are gone at once.
        let (requests, _) = mpsc::channel(1);
        let (_, app) = watch::channel(AppStatus::NotStarted);
        Self { requests, app, closed, generation: None, _task: AbortOnDropHandle::new(tokio::spawn(async {})) }
    }

    /// Connects to an agent that is still booting, until the deadline.
    pub async fn connect_at_boot(
        namespace: &dyn Network,
        log: Arc<Mutex<BoundedLog>>,
        timeout: Duration,
    ) -> Result<Self, AgentError> {
        let attempts = async {
            loop {
                match Self::connect(namespace, Arc::clone(&log)).await {
                    Ok(agent) => return agent,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        tokio::time::timeout(timeout, attempts)
            .await
            .map_err(|_| AgentError::Connect(io::Error::from(io::ErrorKind::TimedOut)))
    }

    /// Which generation it is of; `None`: it could not be asked.
    pub fn generation(&self) -> Option<u32> {
        self.generation
    }

    /// Starts the app.
    pub async fn start(&self, app: AppSpec) -> Result<AppStatus, AgentError> {
        self.ask(RequestBody::Start(app)).await
    }

    /// Finds a guest and tells it what it has to know of where it is.
    pub async fn greet(&self, life: Life) -> Result<AppStatus, AgentError> {
        match life {
            Life::Begins => self.restored(false).await,
            Life::GoesOn => self.restored(true).await,
            Life::Ran => self.status().await,
        }
    }

    /// Makes a guest's clock right and its random numbers its own. It loses its connections: those of the host,
    /// and, unless they are as good as before, those to the outside.
    async fn restored(&self, outbound_lives: bool) -> Result<AppStatus, AgentError> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        let mut seed = [0u8; 32];
        rand::rng().fill_bytes(&mut seed);
        self.ask(RequestBody::Restored {
            unix_nanos: u64::try_from(since_epoch.as_nanos()).expect("the clock is before 2554"),
            seed: STANDARD.encode(seed),
            outbound_lives,
        })
        .await
    }

    /// Writes the guest's file data to its disk.
    pub async fn quiesce(&self) -> Result<AppStatus, AgentError> {
        self.ask(RequestBody::Quiesce).await
    }

    /// Keeps the guest's processes off its processors for as long as it takes to stop it; returns until when they are.
    /// There is none if they cannot be, which is no reason not to stop it.
    pub async fn park(&self) -> Option<Instant> {
        if is_older(self.generation, PARK_SINCE) {
            return None;
        }
        let time_max = PARK_TIME_MAX.as_millis().try_into().expect("a moment");
        let begin = Instant::now();
        let asked = self.ask(RequestBody::Park { time_max_millis: time_max });
        match tokio::time::timeout(PARK_TIME_MAX, asked).await {
            Ok(Ok(_)) => Some(begin + PARK_TIME_MAX),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a guest's processes stay on its processors");
                None
            }
            Err(_) => None,
        }
    }

    /// How the app is.
    pub async fn status(&self) -> Result<AppStatus, AgentError> {
        self.ask(RequestBody::Status).await
    }

    /// Returns how the app ended when it does; `None` when the connection ends first.
    pub async fn app_exited(&self) -> Option<AppEnd> {
        let mut app = self.app.clone();
        let exited = app.wait_for(|status| matches!(status, AppStatus::Exited(_))).await;
        match exited.as_deref() {
            Ok(AppStatus::Exited(end)) => Some(end.clone()),
            _ => None,
        }
    }

    async fn ask(&self, body: RequestBody) -> Result<AppStatus, AgentError> {
        let (send, receive) = oneshot::channel();
        let exchange = async {
            self.requests.send((body, send)).await.map_err(|_| AgentError::Closed)?;
            tokio::select! {
                // An answer that came counts, even if the connection ended with it.
                biased;
                reply = receive => reply.map_err(|_| AgentError::Closed),
                () = self.closed.cancelled() => Err(AgentError::Closed),
            }
        };
        match tokio::time::timeout(REQUEST_TIME_MAX, exchange).await.map_err(|_| AgentError::Silent)?? {
            Reply::App(status) => Ok(status),
            Reply::Failed { reason } => Err(AgentError::Refused { reason: reason.chars().take(1000).collect() }),
        }
    }
}

/// Is an agent of this generation, as far as that is known, one in an old snapshot, which knows nothing of what came with the
/// other?
pub fn is_older(generation: Option<u32>, than: u32) -> bool {
    generation.is_some_and(|generation| generation < than)
}

/// Opens a stream to a port of the app. [`AgentError::Refused`] means that nothing listens there.
pub async fn open_stream(
    namespace: &dyn Network,
    port: u16,
    timeout: Duration,
) -> Result<Box<dyn AppStream>, AgentError> {
    open(namespace, Purpose::Connect { port }, timeout).await.map(|(stream, _)| stream)
}

/// Opens a connection for a purpose, to an agent of the generation that is returned.
pub async fn open(
    namespace: &dyn Network,
    purpose: Purpose,
    timeout: Duration,
) -> Result<(Box<dyn AppStream>, u32), AgentError> {
    let mut stream = namespace.connect(AGENT_PORT, timeout).await.map_err(AgentError::Connect)?;
    let opening = async {
        write_frame(&mut stream, &Open { generation: GENERATION, purpose }).await?;
        read_frame::<Opened>(&mut stream).await
    };
    let opened = tokio::time::timeout(timeout, opening).await.map_err(|_| AgentError::Silent)?;
    let Opened { generation, error } = opened.map_err(AgentError::Frame)?;
    match error {
        None => Ok((stream, generation)),
        Some(reason) => Err(AgentError::Refused { reason: reason.chars().take(1000).collect() }),
    }
}

/// Carries requests and answers until either side closes.
async fn converse(
    stream: Box<dyn AppStream>,
    mut requests: mpsc::Receiver<(RequestBody, oneshot::Sender<Reply>)>,
    status: watch::Sender<AppStatus>,
    log: Arc<Mutex<BoundedLog>>,
) -> Result<(), FrameError> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let waiting: Mutex<HashMap<u64, oneshot::Sender<Reply>>> = Mutex::default();
    let locked = || waiting.lock().expect("no holder of this lock panics");
    let write = async {
        let mut id = 0u64;
        while let Some((body, answer)) = requests.recv().await {
            id += 1;
            {
                let mut waiting = locked();
                waiting.retain(|_, answer| !answer.is_closed());
                waiting.insert(id, answer);
            }
            write_frame(&mut writer, &Request { id, body }).await?;
        }
        Err(FrameError::Closed)
    };
    let read = async {
        loop {
            match read_frame::<Message>(&mut reader).await? {
                Message::Reply { id, reply } => {
                    if let Reply::App(app) = &reply {
                        status.send_replace(app.clone());
                    }
                    if let Some(answer) = locked().remove(&id) {
                        // The asker may have given up.
                        let _ = answer.send(reply);
                    }
                }
                Message::Event(Event::AppExited(end)) => {
                    status.send_replace(AppStatus::Exited(end));
                }
                Message::Event(Event::Output { data, .. }) => {
                    if let Ok(data) = STANDARD.decode(data) {
                        log.lock().expect("no holder of this lock panics").write(&data);
                    }
                }
            }
        }
    };
    tokio::select! { result = write => result, result = read => result }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
