//! The end of control and the host: answers an edge, and tells it when an answer is not true any more.

use std::{
    collections::{HashMap, hash_map::Entry},
    convert::Infallible,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, bail, ensure};
use api::{
    apart::{
        Answer, FORM, FromEdge, Leaving, NAMED_MAX, Question, REASON_CHARS_MAX, Resident, Residents, ToEdge,
        Whereabouts,
    },
    directory::{Behind, Unavailable},
    ids::{EndpointId, MicrovmId, VmId},
};
use futures_util::FutureExt;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Limits, frames, receive, send, socket_path};

/// Edges at once: one, and those of before that have not gone quite.
const EDGES_MAX: usize = 4;

/// Frames that wait to be written to an edge; who has one more waits.
const WAITING_MAX: usize = 1024;

/// Listens for edges. What is left of a server of before goes: the lock of the data directory says that it is no more.
pub fn listen(data_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = socket_path(data_dir);
    let failed = || {
        format!(
            "cannot listen for the edge at {}; the path of a socket has at most 107 bytes, so a long data_dir is no place for it",
            path.display()
        )
    };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(failed),
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(failed)?;
    Ok(listener)
}

/// Where edges are answered.
pub struct Desk {
    control: Arc<dyn Leaving>,
    host: Arc<dyn Residents>,
    limits: Limits,
}

impl Desk {
    /// Answers with what these say.
    pub fn new(control: Arc<dyn Leaving>, host: Arc<dyn Residents>, limits: Limits) -> Arc<Self> {
        Arc::new(Self { control, host, limits })
    }

    /// Answers edges until it is to stop.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        let (places, talks) = (Arc::new(Semaphore::new(EDGES_MAX)), TaskTracker::new());
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let Ok((stream, _)) = accepted else {
                // Out of file descriptors, most likely.
                tokio::time::sleep(self.limits.connect_every).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!("{EDGES_MAX} edges are connected already; one more is not answered");
                continue;
            };
            let (desk, stop) = (Arc::clone(&self), stop.clone());
            talks.spawn(async move {
                let _place = place;
                tokio::select! {
                    ended = desk.talk(stream) => match ended {
                        Ok(never) => match never {},
                        Err(error) => tracing::warn!("an edge is not answered any more: {error:#}"),
                    },
                    () = stop.cancelled() => {}
                }
            });
        }
        talks.close();
        talks.wait().await;
    }

    /// One connection, to its end.
    async fn talk(self: Arc<Self>, stream: UnixStream) -> anyhow::Result<Infallible> {
        let user = stream.peer_cred().context("it cannot be told whose it is")?.uid();
        ensure!(user == rustix::process::geteuid().as_raw(), "it is of the user {user}, and not of this server's");
        let within = self.limits.silence_of_edge;
        let (mut reader, mut writer) = frames(stream);
        send(&mut writer, &ToEdge::Hello { form: FORM }, within).await?;
        match receive(&mut reader, within).await? {
            FromEdge::Hello { form: FORM } => {}
            FromEdge::Hello { form } => {
                bail!(
                    "it speaks the form {form} of this socket, and this server {FORM}: run both from the same version"
                )
            }
            other => bail!("it begins with {other:?}"),
        }
        tracing::info!("an edge is connected");
        let (queue, mut waiting) = mpsc::channel(WAITING_MAX);
        let ended = CancellationToken::new();
        let _guard = ended.clone().drop_guard();
        let questions = Arc::new(Semaphore::new(self.limits.questions));
        let picture = Arc::new(Picture { desk: self, queue, questions, followed: Mutex::default(), ended });
        let write = async {
            loop {
                let frame = waiting.recv().await.context("nothing is said any more")?;
                send(&mut writer, &frame, within).await?;
            }
        };
        let read = async {
            loop {
                picture.hear(receive(&mut reader, within).await?).await?;
            }
        };
        tokio::select! {
            ended = write => ended,
            ended = read => ended,
        }
    }
}

/// An incarnation that an edge was told of.
struct Followed {
    vm: VmId,
    /// Whether it will be said that it rests: it was last said to run.
    runs: bool,
}

/// What one edge believes.
struct Picture {
    desk: Arc<Desk>,
    /// What is to be said to it.
    queue: mpsc::Sender<ToEdge>,
    questions: Arc<Semaphore>,
    followed: Mutex<HashMap<MicrovmId, Followed>>,
    /// The connection.
    ended: CancellationToken,
}

impl Picture {
    fn followed(&self) -> MutexGuard<'_, HashMap<MicrovmId, Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something for as long as the connection lasts.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = task => {}
            }
        });
    }

    async fn say(&self, frame: ToEdge) {
        // The receiver goes with the connection.
        let _ = self.queue.send(frame).await;
    }

    async fn hear(self: &Arc<Self>, frame: FromEdge) -> anyhow::Result<()> {
        match frame {
            FromEdge::Hello { .. } => bail!("it begins once more"),
            FromEdge::Ping => self.say(ToEdge::Pong).await,
            FromEdge::Touch { microvms } => {
                ensure!(microvms.len() <= NAMED_MAX, "it names {} microVMs at once", microvms.len());
                for microvm in &microvms {
                    self.desk.control.touch(microvm);
                }
            }
            FromEdge::Held { vms } => {
                ensure!(vms.len() <= NAMED_MAX, "it names {} microVMs at once", vms.len());
                for (microvm, vm) in vms {
                    match self.desk.host.resident(&microvm, &vm) {
                        Some(resident) => self.follow(microvm, vm, resident),
                        None => self.say(ToEdge::Over { microvm, vm }).await,
                    }
                }
            }
            FromEdge::Ask { id, question } => match Arc::clone(&self.questions).try_acquire_owned() {
                Ok(place) => {
                    let itself = Arc::clone(self);
                    self.spawn(async move {
                        let _place = place;
                        itself.answer(id, question).await;
                    });
                }
                Err(_) => {
                    let answer = match question {
                        Question::Behind { .. } => Answer::Behind(Err(Unavailable::Late)),
                        Question::Awake { .. } => Answer::Awake(Err(Unavailable::Late)),
                    };
                    self.say(ToEdge::Answer { id, answer }).await;
                }
            },
        }
        Ok(())
    }

    async fn answer(self: &Arc<Self>, id: u64, question: Question) {
        match question {
            Question::Behind { endpoint } => {
                let answer = Answer::Behind(self.behind(&endpoint).await.map_err(bounded));
                self.say(ToEdge::Answer { id, answer }).await;
            }
            Question::Awake { microvm } => match self.desk.control.awake(&microvm).await {
                Ok(vm) => {
                    let resident = self.desk.host.resident(&microvm, &vm);
                    let place = resident.as_ref().map(|resident| resident.place.clone());
                    let answer = Answer::Awake(Ok(Whereabouts { vm, place }));
                    self.say(ToEdge::Answer { id, answer }).await;
                    // Only now: what else is said of it comes after that it runs.
                    if let Some(resident) = resident {
                        self.follow(microvm, vm, resident);
                    }
                }
                Err(why) => self.say(ToEdge::Answer { id, answer: Answer::Awake(Err(bounded(why))) }).await,
            },
        }
    }

    /// What is behind an endpoint. Who is answered may send a request to the microVM at once, if it believes that it runs: from
    /// now on it is either not suspended for want of traffic, or said to be on the way to that before the answer comes.
    async fn behind(&self, endpoint: &EndpointId) -> Result<Option<Behind>, Unavailable> {
        let behind = self.desk.control.behind(endpoint).await?;
        if let Some(Behind { microvm, .. }) = behind {
            let believed = self.followed().get(&microvm).map(|followed| followed.vm);
            if let Some(vm) = believed {
                self.desk.control.touch(&microvm);
                // Without the scheduler's say: it would have the question wait for its turn.
                let left = tokio::task::unconstrained(self.desk.control.left(&microvm, &vm)).now_or_never();
                if left.is_some() {
                    self.say(ToEdge::Resting { microvm, vm }).await;
                }
            }
        }
        Ok(behind)
    }

    /// The edge was told that this incarnation runs: it will be told once it rests, and once it is over.
    fn follow(self: &Arc<Self>, microvm: MicrovmId, vm: VmId, resident: Resident) {
        let is_new = {
            let mut followed = self.followed();
            match followed.get_mut(&microvm).filter(|followed| followed.vm == vm) {
                Some(Followed { runs: true, .. }) => return,
                Some(followed) => {
                    followed.runs = true;
                    false
                }
                None => {
                    followed.insert(microvm, Followed { vm, runs: true });
                    true
                }
            }
        };
        let itself = Arc::clone(self);
        self.spawn(async move {
            itself.desk.control.left(&microvm, &vm).await;
            if let Some(followed) = itself.followed().get_mut(&microvm).filter(|followed| followed.vm == vm) {
                followed.runs = false;
            }
            itself.say(ToEdge::Resting { microvm, vm }).await;
        });
        if is_new {
            let itself = Arc::clone(self);
            self.spawn(async move {
                resident.over.await;
                if let Entry::Occupied(followed) = itself.followed().entry(microvm)
                    && followed.get().vm == vm
                {
                    followed.remove();
                }
                itself.say(ToEdge::Over { microvm, vm }).await;
            });
        }
    }
}

/// A reason may hold a guest's words, and a frame has an end.
fn bounded(why: Unavailable) -> Unavailable {
    match why {
        Unavailable::WakeFailed { reason } => {
            Unavailable::WakeFailed { reason: reason.chars().take(REASON_CHARS_MAX).collect() }
        }
        other => other,
    }
}
