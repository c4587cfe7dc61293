//! Both ends over a real socket, with control, a host and networks that are pretended: what an edge does with what it is
//! told, and what it does when nobody tells it anything.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use api::{
    apart::{
        Answer, FORM, FRAME_BYTES_MAX, FromEdge, Leaving, NAMED_MAX, Place, Question, Resident, Residents, ToEdge,
    },
    directory::{AppStream, Behind, DialError, Dialer, Directory, Unavailable},
    host::Egress,
    ids::{EndpointId, MicrovmId, VmId},
    size::Size,
};
use host::{Way, network::NetworkError, platform::Network};
use tokio::{io::AsyncWriteExt, net::UnixStream, sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Client, Desk, Limits, Reader, Writer, frames, receive, send, server, socket_path};

/// A wait that ends in no test that passes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Long enough for what must not happen to happen.
const MOMENT: Duration = Duration::from_millis(50);

fn limits() -> Limits {
    Limits {
        ping_every: Duration::from_millis(50),
        silence: PATIENCE,
        // Longer than a test waits: a connection that is closed was closed for another reason.
        silence_of_edge: 2 * PATIENCE,
        connect_every: Duration::from_millis(5),
        patience: PATIENCE,
        ..Limits::standard()
    }
}

#[derive(Default)]
struct Facts {
    behind: HashMap<EndpointId, Behind>,
    /// Those that run; others are asleep, and wait to be woken by a test.
    running: HashMap<MicrovmId, VmId>,
    /// Those that are not over, and what ends them.
    vms: HashMap<VmId, CancellationToken>,
    touches: Vec<MicrovmId>,
    asked: usize,
}

/// Control and the host.
struct World {
    facts: watch::Sender<Facts>,
}

impl World {
    fn change(&self, change: impl FnOnce(&mut Facts)) {
        self.facts.send_modify(change);
    }

    fn launch(&self) -> (EndpointId, MicrovmId, VmId) {
        let (endpoint, microvm) = (EndpointId::random(), MicrovmId::random());
        let behind = Behind { microvm, size: Size::DEFAULT, http: true, shell: true, links: true, ended: false };
        self.change(|facts| _ = facts.behind.insert(endpoint, behind));
        (endpoint, microvm, self.wake(microvm))
    }

    fn wake(&self, microvm: MicrovmId) -> VmId {
        let vm = VmId::random();
        self.change(|facts| {
            facts.vms.insert(vm, CancellationToken::new());
            facts.running.insert(microvm, vm);
        });
        vm
    }

    /// It is on its way to sleep.
    fn rest(&self, microvm: MicrovmId) {
        self.change(|facts| _ = facts.running.remove(&microvm));
    }

    fn end(&self, vm: VmId) {
        self.change(|facts| facts.vms.remove(&vm).expect("it is there").cancel());
    }

    fn asked(&self) -> usize {
        self.facts.borrow().asked
    }

    async fn until(&self, is_so: impl FnMut(&Facts) -> bool) {
        let mut facts = self.facts.subscribe();
        timeout(PATIENCE, facts.wait_for(is_so)).await.expect("it comes to that").expect("the world stands");
    }
}

#[async_trait::async_trait]
impl Directory for World {
    async fn behind(&self, endpoint: &EndpointId) -> Result<Option<Behind>, Unavailable> {
        self.change(|facts| facts.asked += 1);
        Ok(self.facts.borrow().behind.get(endpoint).copied())
    }

    async fn awake(&self, microvm: &MicrovmId) -> Result<VmId, Unavailable> {
        self.change(|facts| facts.asked += 1);
        let mut facts = self.facts.subscribe();
        let facts = facts.wait_for(|facts| facts.running.contains_key(microvm)).await.expect("the world stands");
        Ok(facts.running[microvm])
    }

    fn touch(&self, microvm: &MicrovmId) {
        self.change(|facts| facts.touches.push(*microvm));
    }
}

#[async_trait::async_trait]
impl Leaving for World {
    async fn left(&self, microvm: &MicrovmId, vm: &VmId) {
        let mut facts = self.facts.subscribe();
        let _ = facts.wait_for(|facts| facts.running.get(microvm) != Some(vm)).await;
    }
}

impl Residents for World {
    fn resident(&self, _: &MicrovmId, vm: &VmId) -> Option<Resident> {
        let over = self.facts.borrow().vms.get(vm)?.clone();
        let place = Place { namespace: vm.to_string(), agent: None };
        Some(Resident { place, over: Box::pin(over.cancelled_owned()) })
    }
}

/// A network in which nobody answers: it is enough to see that somebody tried.
struct Silence;

#[async_trait::async_trait]
impl Network for Silence {
    fn name(&self) -> &str {
        "silence"
    }

    async fn restrict(&self, _: Egress) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn connect(&self, _: u16, _: Duration) -> io::Result<Box<dyn AppStream>> {
        Err(io::Error::from(io::ErrorKind::HostUnreachable))
    }
}

/// An edge, and a server that can go and come back.
struct Stage {
    world: Arc<World>,
    edge: Arc<Client>,
    limits: Limits,
    /// Namespaces opened.
    opened: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
    server: Option<(JoinHandle<()>, CancellationToken)>,
    running: JoinHandle<()>,
}

impl Stage {
    fn alone(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let opened: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&opened);
        let edge = Client::opening(limits.clone(), move |place| {
            noted.lock().unwrap().push(place.namespace.clone());
            Some(Way::over(Arc::new(Silence), place.agent))
        });
        let (client, socket) = (Arc::clone(&edge), socket_path(dir.path()));
        let running = tokio::spawn(async move { match client.run(&socket).await {} });
        let world = Arc::new(World { facts: watch::Sender::new(Facts::default()) });
        Self { world, edge, limits, opened, dir, server: None, running }
    }

    fn set(limits: Limits) -> Self {
        let mut stage = Self::alone(limits);
        stage.start();
        stage
    }

    fn start(&mut self) {
        let listener = server::listen(self.dir.path()).unwrap();
        let desk = Desk::new(Arc::clone(&self.world) as _, Arc::clone(&self.world) as _, self.limits.clone());
        let stop = CancellationToken::new();
        self.server = Some((tokio::spawn(desk.serve(listener, stop.clone())), stop));
    }

    async fn stop(&mut self) {
        let (serving, stop) = self.server.take().expect("it runs");
        stop.cancel();
        serving.await.unwrap();
        self.linked(false).await;
    }

    async fn linked(&self, wanted: bool) {
        timeout(PATIENCE, self.edge.linked(wanted)).await.expect("in time");
    }

    async fn awake(&self, microvm: &MicrovmId) -> VmId {
        timeout(PATIENCE, self.edge.awake(microvm)).await.expect("in time").expect("awake")
    }

    /// It is reached, and not said to be gone.
    async fn reaches(&self, microvm: &MicrovmId, vm: &VmId) -> bool {
        match self.edge.dial(microvm, vm, 80).await {
            Err(DialError::Unreachable(_)) => true,
            Err(DialError::Gone) => false,
            _ => panic!("nobody answers there"),
        }
    }

    /// It is said that it takes nothing new.
    async fn rests(&self, microvm: &MicrovmId) {
        let rests = async {
            while self.edge.known().running(microvm, true).is_some() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, rests).await.expect("in time");
    }

    async fn is_gone(&self, microvm: &MicrovmId, vm: &VmId) {
        let gone = async {
            while self.reaches(microvm, vm).await {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, gone).await.expect("in time");
    }

    fn opened(&self) -> MutexGuard<'_, Vec<String>> {
        self.opened.lock().unwrap()
    }

    /// A frame that is answered behind all that was said before.
    async fn settle(&self) {
        let _ = self.edge.exchange(Question::Behind { endpoint: EndpointId::random() }).await;
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.running.abort();
    }
}

#[tokio::test]
async fn a_microvm_that_runs_is_asked_about_once() {
    let stage = Stage::set(limits());
    let (endpoint, microvm, vm) = stage.world.launch();
    let behind = stage.edge.behind(&endpoint).await.unwrap().expect("it is there");
    assert_eq!((behind.microvm, stage.awake(&microvm).await), (microvm, vm));
    assert_eq!(*stage.opened(), [vm.to_string()], "the namespace that control named");
    stage.edge.touch(&microvm);
    let asked = stage.world.asked();
    assert_eq!(asked, 3, "what is behind it, whether it runs, and whether that is still so");
    for _ in 0..3 {
        assert_eq!(stage.edge.behind(&endpoint).await, Ok(Some(behind)));
        assert_eq!(stage.awake(&microvm).await, vm);
    }
    assert_eq!(stage.world.asked(), asked);
    assert!(stage.reaches(&microvm, &vm).await);
    assert!(!stage.reaches(&microvm, &VmId::random()).await && !stage.reaches(&MicrovmId::random(), &vm).await);
}

#[tokio::test]
async fn one_that_is_suspended_gets_nothing_new_and_its_streams_end_with_its_vm() {
    let stage = Stage::set(limits());
    let (_, microvm, first) = stage.world.launch();
    stage.awake(&microvm).await;
    stage.world.rest(microvm);
    stage.rests(&microvm).await;
    assert!(timeout(MOMENT, stage.edge.awake(&microvm)).await.is_err(), "it waits");
    assert!(stage.reaches(&microvm, &first).await, "what is in progress goes on");
    stage.world.end(first);
    stage.is_gone(&microvm, &first).await;
    let second = stage.world.wake(microvm);
    assert_eq!(stage.awake(&microvm).await, second);
    assert!(stage.reaches(&microvm, &second).await && !stage.reaches(&microvm, &first).await);
}

#[tokio::test]
async fn one_whose_suspend_failed_goes_on_as_it_was() {
    let stage = Stage::set(limits());
    let (_, microvm, vm) = stage.world.launch();
    for _ in 0..3 {
        assert_eq!(stage.awake(&microvm).await, vm);
        stage.world.rest(microvm);
        stage.rests(&microvm).await;
        stage.world.change(|facts| _ = facts.running.insert(microvm, vm));
    }
    assert_eq!(stage.opened().len(), 1);
    stage.world.end(vm);
    stage.is_gone(&microvm, &vm).await;
}

#[tokio::test]
async fn without_control_what_runs_is_served_and_all_else_waits_for_it() {
    let mut stage = Stage::set(limits());
    let (endpoint, microvm, vm) = stage.world.launch();
    let (other_endpoint, other, _) = stage.world.launch();
    stage.edge.behind(&endpoint).await.unwrap();
    stage.awake(&microvm).await;
    stage.stop().await;
    assert_eq!(stage.edge.behind(&endpoint).await.unwrap().expect("known").microvm, microvm);
    assert_eq!(stage.awake(&microvm).await, vm);
    assert!(stage.reaches(&microvm, &vm).await);
    let edge = (Arc::clone(&stage.edge), Arc::clone(&stage.edge), Arc::clone(&stage.edge));
    let unknown = tokio::spawn(async move { edge.0.behind(&EndpointId::random()).await });
    let behind = tokio::spawn(async move { edge.1.behind(&other_endpoint).await });
    let awake = tokio::spawn(async move { edge.2.awake(&other).await });
    tokio::time::sleep(MOMENT).await;
    assert!(!unknown.is_finished() && !behind.is_finished() && !awake.is_finished());
    stage.start();
    assert_eq!(unknown.await.unwrap(), Ok(None));
    assert_eq!(behind.await.unwrap().unwrap().expect("it is there").microvm, other);
    assert!(awake.await.unwrap().is_ok());
}

#[tokio::test]
async fn who_waits_is_answered_in_the_end() {
    let stage = Stage::alone(Limits { patience: MOMENT, questions: 1, ..limits() });
    let nowhere = EndpointId::random();
    let first = stage.edge.behind(&nowhere);
    let second = async { timeout(MOMENT / 2, stage.edge.awake(&MicrovmId::random())).await };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first, second), (Err(Unavailable::Late), Ok(Err(Unavailable::Late))), "the second at once");
    let microvm = MicrovmId::random();
    assert_eq!(stage.edge.awake(&microvm).await, Err(Unavailable::Late), "and none is left over");
}

#[tokio::test]
async fn a_control_that_comes_back_is_asked_anew_and_says_what_is_over() {
    let mut stage = Stage::set(limits());
    let (endpoint, stays, vm) = stage.world.launch();
    let (_, ends, ended) = stage.world.launch();
    stage.edge.behind(&endpoint).await.unwrap();
    stage.awake(&stays).await;
    stage.awake(&ends).await;
    stage.stop().await;
    // Bytes crossed while nobody was told.
    stage.edge.touch(&stays);
    stage.world.rest(ends);
    stage.world.end(ended);
    assert!(stage.reaches(&ends, &ended).await, "nobody has said so yet");
    stage.start();
    stage.is_gone(&ends, &ended).await;
    stage.world.until(|facts| facts.touches.contains(&stays)).await;
    assert!(!stage.world.facts.borrow().touches.contains(&ends));
    // It may come back with another configuration.
    stage.world.change(|facts| facts.behind.get_mut(&endpoint).expect("it is there").links = false);
    let asked = stage.world.asked();
    assert_eq!(stage.awake(&stays).await, vm);
    assert_eq!(stage.world.asked(), asked + 1, "what was known before is confirmed");
    assert!(!stage.edge.behind(&endpoint).await.unwrap().expect("it is there").links);
    assert!(stage.reaches(&stays, &vm).await);
    assert_eq!(stage.opened().len(), 2, "its namespace was open all the time");
    // It is followed again.
    stage.world.rest(stays);
    stage.world.end(vm);
    stage.is_gone(&stays, &vm).await;
}

#[tokio::test]
async fn a_control_that_hangs_counts_as_gone_and_its_questions_go_to_the_next() {
    let mut stage = Stage::alone(Limits { silence: MOMENT, ..limits() });
    let path = socket_path(stage.dir.path());
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let edge = Arc::clone(&stage.edge);
    let (endpoint, microvm, _) = stage.world.launch();
    let asking = tokio::spawn(async move { edge.behind(&endpoint).await });
    let (stream, _) = listener.accept().await.unwrap();
    let (mut reader, mut writer) = frames(stream);
    assert_eq!(receive::<FromEdge>(&mut reader, PATIENCE).await.unwrap(), FromEdge::Hello { form: FORM });
    send(&mut writer, &ToEdge::Hello { form: FORM }, PATIENCE).await.unwrap();
    stage.linked(true).await;
    // The connection stays, and nothing is said over it any more.
    stage.linked(false).await;
    drop(listener);
    stage.start();
    assert_eq!(asking.await.unwrap().unwrap().expect("it is there").microvm, microvm);
    drop((reader, writer));
}

#[tokio::test]
async fn a_namespace_is_used_once_it_is_sure_whose_it_is() {
    let stage = Stage::alone(limits());
    let listener = tokio::net::UnixListener::bind(socket_path(stage.dir.path())).unwrap();
    let (microvm, first, second) = (MicrovmId::random(), VmId::random(), VmId::random());
    let edge = Arc::clone(&stage.edge);
    let waking = tokio::spawn(async move { edge.awake(&microvm).await });
    let (stream, _) = listener.accept().await.unwrap();
    let (mut reader, mut writer) = frames(stream);
    send(&mut writer, &ToEdge::Hello { form: FORM }, PATIENCE).await.unwrap();
    // It was suspended, and its namespace given to another, while the edge opened it.
    for (round, vm) in [first, second, second].into_iter().enumerate() {
        let id = question(&mut reader).await;
        assert!(!waking.is_finished() && !stage.reaches(&microvm, &vm).await, "round {round}");
        let place = Some(Place { namespace: format!("pl-{vm}"), agent: None });
        let answer = Answer::Awake(Ok(api::apart::Whereabouts { vm, place }));
        send(&mut writer, &ToEdge::Answer { id, answer }, PATIENCE).await.unwrap();
    }
    assert_eq!(waking.await.unwrap(), Ok(second));
    assert!(stage.reaches(&microvm, &second).await);
}

/// The number of the next question.
async fn question(reader: &mut Reader) -> u64 {
    loop {
        if let FromEdge::Ask { id, .. } = receive(reader, PATIENCE).await.unwrap() {
            return id;
        }
    }
}

#[tokio::test]
async fn traffic_is_said_at_once_and_then_not_for_each_byte() {
    let stage = Stage::set(limits());
    let (_, microvm, _) = stage.world.launch();
    stage.awake(&microvm).await;
    for _ in 0..100 {
        stage.edge.touch(&microvm);
    }
    stage.settle().await;
    let count = stage.world.facts.borrow().touches.len();
    assert!((1..10).contains(&count), "{count} times");
    let said = async {
        while stage.world.facts.borrow().touches.len() == count {
            stage.edge.touch(&microvm);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, said).await.expect("and again after a while");
}

#[tokio::test]
async fn a_request_after_a_rest_does_not_race_the_suspend_that_is_due() {
    let stage = Stage::set(limits());
    let (endpoint, microvm, vm) = stage.world.launch();
    stage.awake(&microvm).await;
    // It has had no traffic yet. Control decides to suspend it, and the edge has not heard of that.
    let edge = Arc::clone(&stage.edge);
    stage.world.rest(microvm);
    edge.behind(&endpoint).await.unwrap().expect("it is there");
    assert_eq!(edge.known().running(&microvm, true), None, "it is said before the answer");
    assert_eq!(stage.world.facts.borrow().touches, [microvm], "or put off");
    assert_eq!(edge.known().life(&microvm).map(|(vm, _)| vm), Some(vm));
}

#[tokio::test]
async fn endpoints_are_remembered_up_to_a_number_and_those_of_running_microvms_always() {
    let mut stage = Stage::set(Limits { endpoints: 2, ..limits() });
    let runs: Vec<_> = (0..2).map(|_| stage.world.launch()).collect();
    let sleep: Vec<_> = (0..3).map(|_| stage.world.launch()).collect();
    for (endpoint, microvm, _) in &runs {
        stage.edge.behind(endpoint).await.unwrap();
        stage.awake(microvm).await;
    }
    for (endpoint, ..) in &sleep {
        stage.edge.behind(endpoint).await.unwrap();
    }
    stage.stop().await;
    let known = |endpoint: &EndpointId| stage.edge.known().behind(endpoint, false).is_some();
    assert!(runs.iter().all(|(endpoint, ..)| known(endpoint)));
    assert!(!sleep.iter().any(|(endpoint, ..)| known(endpoint)));
}

/// An edge that is not ours, connected.
async fn stranger(stage: &Stage) -> (Reader, Writer) {
    let stream = UnixStream::connect(socket_path(stage.dir.path())).await.unwrap();
    let (mut reader, mut writer) = frames(stream);
    send(&mut writer, &FromEdge::Hello { form: FORM }, PATIENCE).await.unwrap();
    assert_eq!(receive::<ToEdge>(&mut reader, PATIENCE).await.unwrap(), ToEdge::Hello { form: FORM });
    (reader, writer)
}

async fn is_closed(reader: &mut Reader) {
    loop {
        match receive::<ToEdge>(reader, PATIENCE).await {
            Ok(_) => {}
            Err(error) => return assert!(!format!("{error:#}").contains("said nothing"), "{error:#}"),
        }
    }
}

#[tokio::test]
async fn nonsense_closes_the_connection_and_nothing_else() {
    let stage = Stage::set(limits());
    let frame = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
    let too_long = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_be_bytes().to_vec();
    let touch = |count| serde_json::to_vec(&FromEdge::Touch { microvms: vec![MicrovmId::random(); count] }).unwrap();
    let bad = [frame(b""), frame(b"{"), frame(br#"{"Hello":{"form":1}}"#), frame(&touch(NAMED_MAX + 1)), too_long];
    for said in bad {
        let (mut reader, writer) = stranger(&stage).await;
        let mut writer = writer.into_inner();
        writer.write_all(&said).await.unwrap();
        is_closed(&mut reader).await;
    }
    let (mut reader, writer) = stranger(&stage).await;
    let mut writer = writer.into_inner();
    writer.write_all(&frame(&touch(NAMED_MAX))).await.unwrap();
    writer.write_all(&frame(br#""Ping""#)).await.unwrap();
    assert_eq!(receive::<ToEdge>(&mut reader, PATIENCE).await.unwrap(), ToEdge::Pong, "as many as that are fine");
    // Another form, and who begins otherwise.
    for first in [FromEdge::Hello { form: FORM + 1 }, FromEdge::Ping] {
        let (mut reader, mut writer) = frames(UnixStream::connect(socket_path(stage.dir.path())).await.unwrap());
        send(&mut writer, &first, PATIENCE).await.unwrap();
        is_closed(&mut reader).await;
    }
    let (_, microvm, vm) = stage.world.launch();
    assert_eq!(stage.awake(&microvm).await, vm, "the edge was not disturbed");
}

#[tokio::test]
async fn an_edge_that_says_nothing_is_let_go_and_there_are_not_many() {
    let stage = Stage::set(Limits { silence_of_edge: Duration::from_millis(200), ..limits() });
    stage.linked(true).await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(stranger(&stage).await);
    }
    let (mut reader, _writer) = frames(UnixStream::connect(socket_path(stage.dir.path())).await.unwrap());
    is_closed(&mut reader).await;
    for (reader, _writer) in &mut others {
        is_closed(reader).await;
    }
    let (_, microvm, vm) = stage.world.launch();
    assert_eq!(stage.awake(&microvm).await, vm, "ours says that it is there");
}

#[tokio::test]
async fn questions_beyond_the_limit_are_answered_at_once() {
    let stage = Stage::set(Limits { questions: 2, ..limits() });
    let (mut reader, mut writer) = stranger(&stage).await;
    for id in 1..=3 {
        let question = Question::Awake { microvm: MicrovmId::random() };
        send(&mut writer, &FromEdge::Ask { id, question }, PATIENCE).await.unwrap();
    }
    let answer = Answer::Awake(Err(Unavailable::Late));
    assert_eq!(receive::<ToEdge>(&mut reader, PATIENCE).await.unwrap(), ToEdge::Answer { id: 3, answer });
    send(&mut writer, &FromEdge::Ping, PATIENCE).await.unwrap();
    assert_eq!(receive::<ToEdge>(&mut reader, PATIENCE).await.unwrap(), ToEdge::Pong, "the others wait");
}

#[tokio::test]
async fn the_socket_is_its_owners_and_a_path_too_long_is_refused() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let _listener = server::listen(dir.path()).unwrap();
    let mode = std::fs::metadata(socket_path(dir.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let _another = server::listen(dir.path()).expect("one that was left behind is replaced");
    let long = dir.path().join("x".repeat(100));
    std::fs::create_dir(&long).unwrap();
    let error = format!("{:#}", server::listen(&long).expect_err("too long"));
    assert!(error.contains("data_dir") && error.contains("107"), "{error}");
}
