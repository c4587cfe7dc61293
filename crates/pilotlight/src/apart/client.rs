//! The edge's end: control as the edge sees it, and the ways into VMs, over a socket that may break at any time.

use std::{
    collections::HashMap,
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::{Context, bail};
use api::{
    apart::{Answer, FORM, FromEdge, NAMED_MAX, Question, ToEdge},
    directory::{AppStream, Behind, DialError, Dialer, Directory, Unavailable},
    ids::{EndpointId, MicrovmId, VmId},
    shell::{Shell, ShellError},
};
use host::Way;
use tokio::{
    net::UnixStream,
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{interval, timeout},
};

use super::{
    Limits, Reader, Writer, frames,
    known::{Known, Opener, Stage},
    receive, send,
};

/// Frames that wait to be written; who has one more waits.
const WAITING_MAX: usize = 1024;

/// What is to be sent.
enum Outgoing {
    Ask { question: Question, reply: oneshot::Sender<Answer> },
    Touch(MicrovmId),
}

/// A question that was sent.
struct Asked {
    question: Question,
    /// The incarnation that was known when it was sent, of the microVM it is about.
    knowing: Option<VmId>,
    reply: oneshot::Sender<Answer>,
}

type Open = Mutex<HashMap<u64, Asked>>;

/// Control and the host, in another process.
pub struct Client {
    known: Mutex<Known>,
    /// The present connection.
    link: watch::Sender<Option<mpsc::Sender<Outgoing>>>,
    questions: Semaphore,
    limits: Limits,
    open: Opener,
}

impl Client {
    /// One that is not connected, and knows nothing.
    pub fn new(limits: Limits) -> Arc<Self> {
        Self::opening(limits, |place| match Way::enter(place) {
            Ok(way) => Some(way),
            Err(error) => {
                tracing::warn!(
                    namespace = place.namespace,
                    "there is no way into a VM: {:#}",
                    anyhow::Error::new(error)
                );
                None
            }
        })
    }

    /// One that finds its ways into VMs by other means.
    pub(super) fn opening(
        limits: Limits,
        open: impl Fn(&api::apart::Place) -> Option<Way> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            known: Mutex::default(),
            link: watch::Sender::new(None),
            questions: Semaphore::new(limits.questions),
            limits,
            open: Box::new(open),
        })
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_linked(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Keeps up a connection, for as long as it is polled.
    pub async fn run(self: Arc<Self>, socket: &Path) -> Infallible {
        let mut told = false;
        loop {
            let error = match UnixStream::connect(socket).await {
                Ok(stream) => match self.talk(stream, &mut told).await {
                    Ok(never) => match never {},
                    Err(error) => error,
                },
                Err(error) => error.into(),
            };
            if !told {
                tracing::warn!(
                    "control does not answer at {} ({error:#}): microVMs known to run are served, everything else waits for \
                     `pilotlight serve --roles control,host` with this data directory",
                    socket.display()
                );
                told = true;
            }
            tokio::time::sleep(self.limits.connect_every).await;
        }
    }

    /// One connection, to its end.
    async fn talk(&self, stream: UnixStream, told: &mut bool) -> anyhow::Result<Infallible> {
        let within = self.limits.silence;
        let (mut reader, mut writer) = frames(stream);
        send(&mut writer, &FromEdge::Hello { form: FORM }, within).await?;
        match receive(&mut reader, within).await? {
            ToEdge::Hello { form: FORM } => {}
            ToEdge::Hello { form } => {
                bail!("it speaks the form {form} of this socket, and this edge {FORM}: run both from the same version")
            }
            other => bail!("it begins with {other:?}"),
        }
        let (held, touched) = self.known().begin();
        for vms in held.chunks(NAMED_MAX) {
            send(&mut writer, &FromEdge::Held { vms: vms.to_vec() }, within).await?;
        }
        for microvms in touched.chunks(NAMED_MAX) {
            send(&mut writer, &FromEdge::Touch { microvms: microvms.to_vec() }, within).await?;
        }
        tracing::info!(microvms = held.len(), "control answers");
        *told = false;

        let (queue, mut outgoing) = mpsc::channel(WAITING_MAX);
        let open = Open::default();
        let heard = Mutex::new(Instant::now());
        self.link.send_replace(Some(queue));
        let ended = tokio::select! {
            ended = self.write(&mut writer, &mut outgoing, &open) => ended,
            ended = self.read(&mut reader, &open, &heard) => ended,
        };
        let heard = *heard.lock().unwrap_or_else(PoisonError::into_inner);
        // A sign of life may have been asked for before what was sent just before it came.
        self.known().end(heard.checked_sub(self.limits.ping_every).unwrap_or(heard));
        // In this order: who loses its answer finds that there is no connection, and waits for one.
        self.link.send_replace(None);
        drop((open, outgoing));
        ended
    }

    async fn write(
        &self,
        writer: &mut Writer,
        outgoing: &mut mpsc::Receiver<Outgoing>,
        open: &Open,
    ) -> anyhow::Result<Infallible> {
        let mut ping = interval(self.limits.ping_every);
        let mut id = 0;
        loop {
            let frame = tokio::select! {
                next = outgoing.recv() => match next.context("nobody asks any more")? {
                    Outgoing::Touch(microvm) => FromEdge::Touch { microvms: vec![microvm] },
                    Outgoing::Ask { question, reply } => {
                        id += 1;
                        let knowing = match &question {
                            Question::Awake { microvm } => self.known().life(microvm).map(|(vm, _)| vm),
                            Question::Behind { .. } => None,
                        };
                        let asked = Asked { question: question.clone(), knowing, reply };
                        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                        if open.len() >= self.limits.questions {
                            open.retain(|_, asked| !asked.reply.is_closed());
                        }
                        open.insert(id, asked);
                        FromEdge::Ask { id, question }
                    }
                },
                _ = ping.tick() => FromEdge::Ping,
            };
            send(writer, &frame, self.limits.silence).await?;
        }
    }

    async fn read(&self, reader: &mut Reader, open: &Open, heard: &Mutex<Instant>) -> anyhow::Result<Infallible> {
        loop {
            let frame = receive(reader, self.limits.silence).await?;
            *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            match frame {
                ToEdge::Answer { id, answer } => {
                    let asked = open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    let Some(Asked { question, knowing, reply }) = asked else { continue };
                    // Here and not by whoever asked: what is said next may be that it is over.
                    match (question, &answer) {
                        (Question::Awake { microvm }, Answer::Awake(Ok(at))) => {
                            self.known().runs(microvm, at, knowing, &self.open);
                        }
                        (Question::Behind { endpoint }, Answer::Behind(Ok(behind))) => {
                            self.known().learn(endpoint, *behind, self.limits.endpoints);
                        }
                        (_, _) => {}
                    }
                    // Whoever asked may have given up.
                    let _ = reply.send(answer);
                }
                ToEdge::Resting { microvm, vm } => self.known().rests(&microvm, &vm),
                ToEdge::Over { microvm, vm } => self.known().over(&microvm, &vm),
                ToEdge::Pong => {}
                ToEdge::Hello { .. } => bail!("it begins once more"),
            }
        }
    }

    /// Waits until there is a connection, or there is none.
    pub(super) async fn linked(&self, wanted: bool) {
        // It cannot end: the sender is here.
        let _ = self.link.subscribe().wait_for(|link| link.is_some() == wanted).await;
    }

    /// The answer to a question; `None` if the connection broke.
    pub(super) async fn exchange(&self, question: Question) -> Option<Answer> {
        let queue = self.link.borrow().clone()?;
        let (reply, answer) = oneshot::channel();
        queue.send(Outgoing::Ask { question, reply }).await.ok()?;
        answer.await.ok()
    }

    /// As many may be asking as that, for so long.
    async fn patiently<T>(&self, asking: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Unavailable> {
        let _place = self.questions.try_acquire().map_err(|_| Unavailable::Late)?;
        timeout(self.limits.patience, asking).await.unwrap_or(Err(Unavailable::Late))
    }
}

#[async_trait::async_trait]
impl Directory for Client {
    async fn behind(&self, endpoint: &EndpointId) -> Result<Option<Behind>, Unavailable> {
        let known = || {
            let linked = self.is_linked();
            self.known().behind(endpoint, linked)
        };
        if let Some(behind) = known() {
            return Ok(Some(behind));
        }
        self.patiently(async {
            loop {
                if let Some(behind) = known() {
                    return Ok(Some(behind));
                }
                self.linked(true).await;
                match self.exchange(Question::Behind { endpoint: *endpoint }).await {
                    Some(Answer::Behind(answer)) => return answer,
                    Some(Answer::Awake(_)) => return Err(Unavailable::Late),
                    None => {}
                }
            }
        })
        .await
    }

    async fn awake(&self, microvm: &MicrovmId) -> Result<VmId, Unavailable> {
        let known = || {
            let linked = self.is_linked();
            self.known().running(microvm, linked)
        };
        if let Some(vm) = known() {
            return Ok(vm);
        }
        self.patiently(async {
            loop {
                if let Some(vm) = known() {
                    return Ok(vm);
                }
                self.linked(true).await;
                match self.exchange(Question::Awake { microvm: *microvm }).await {
                    Some(Answer::Awake(Ok(at))) => match self.known().life(microvm) {
                        // Once more, now that its network is open.
                        Some((vm, Stage::Candidate)) if vm == at.vm => {}
                        // If it is over already, who dials it is told, and asks again.
                        _ => return Ok(at.vm),
                    },
                    Some(Answer::Awake(Err(why))) => return Err(why),
                    Some(Answer::Behind(_)) => return Err(Unavailable::Late),
                    None => {}
                }
            }
        })
        .await
    }

    fn touch(&self, microvm: &MicrovmId) {
        if !self.known().touch(microvm) {
            return;
        }
        let Some(queue) = self.link.borrow().clone() else { return };
        if queue.try_send(Outgoing::Touch(*microvm)).is_err() {
            self.known().untouch(microvm);
        }
    }
}

#[async_trait::async_trait]
impl Dialer for Client {
    async fn dial(&self, microvm: &MicrovmId, vm: &VmId, port: u16) -> Result<Box<dyn AppStream>, DialError> {
        let way = self.known().way(microvm, vm).ok_or(DialError::Gone)?;
        way.dial(port).await
    }

    async fn shell(&self, microvm: &MicrovmId, vm: &VmId, command: Option<String>) -> Result<Shell, ShellError> {
        let way = self.known().way(microvm, vm).ok_or(ShellError::Gone)?;
        way.shell(command).await
    }
}
