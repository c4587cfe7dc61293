//! A certificate for each endpoint, which is ordered when a client first asks for it (`tls-alpn-01`, `http-01`).
//!
//! Anybody can make a handshake with any name, so what a name may cost is bounded: nothing is ordered but for an endpoint that
//! the directory knows, at most once at a time for each, a few at a time for all, and so many within an hour. Who has to wait
//! for an order waits so long and is one of so many; beyond that, and whenever an order fails, the handshake is served with the
//! certificate that was served until then, which clients do not trust, but which harms nobody.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use api::{directory::Directory, ids::EndpointId};
use instant_acme::Account;
use rustls::{ServerConfig, sign::SingleCertAndKey};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    account,
    client::Client,
    keeper::{self, AcmeError, Place},
    ledger::Ledger,
    memory::{Held, Memory},
    order,
    pending::Pending,
    proof::Here,
    rests::Rests,
    schedule::{self, Pauses},
    settings::{AcmeSettings, Challenge},
    store::{Store, StoreError},
};
use crate::{
    metrics::Counter,
    refusal::chain,
    served::{self, ServedCertificate, Valid},
};

/// Beneath the authority's directory: a file for each endpoint, with chain and key, so that they cannot be of different ages.
const DIR: &str = "endpoints";
const ENDING: &str = ".pem";
const LEDGER: &str = "endpoint-orders.json";

/// How often files of certificates that are over are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);

/// What it is bounded by. [`OnDemand::standard`] says each one's usual value and why.
#[derive(Debug, Clone)]
pub struct OnDemand {
    /// How long a handshake waits for its certificate.
    pub wait: Duration,
    /// Handshakes that may wait.
    pub waiting: usize,
    /// Endpoints that are looked after at once: read from the disk, looked up, in the queue for an order.
    pub looked_after: usize,
    /// Orders under way at once.
    pub orders: usize,
    /// Certificates held in memory.
    pub in_memory: usize,
    /// Pauses after orders that failed at an endpoint's name.
    pub pauses_of_endpoint: Pauses,
    /// Pauses, for all endpoints, when the authority could not be asked.
    pub pauses_of_all: Pauses,
}

impl OnDemand {
    /// The usual ones.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            // An order takes a few seconds, and clients give up a connection after 10 to 30.
            wait: Duration::from_secs(20),
            // Each holds a connection, of which there are many more.
            waiting: 1024,
            looked_after: 256,
            // An authority of one's own is a small program; a public one counts requests.
            orders: 4,
            // Each takes some ten KiB.
            in_memory: 4096,
            // Four within the first hour: Let's Encrypt refuses a name after five failed validations.
            pauses_of_endpoint: Pauses { first: Duration::from_secs(300), longest: Duration::from_secs(3600) },
            pauses_of_all: Pauses::standard(),
        }
    }
}

/// The certificates.
pub struct Endpoints {
    settings: AcmeSettings,
    suffix: String,
    limits: OnDemand,
    /// The authority's directory, and the one of certificates beneath it.
    store: Store,
    files: Store,
    client: Client,
    /// TLS with the certificate that is served where there is no other. The others are like it, and share its sessions.
    until_then: Arc<ServerConfig>,
    pending: Pending,
    /// The account, once it was opened.
    account: tokio::sync::Mutex<Option<Account>>,
    ledger: tokio::sync::Mutex<Ledger>,
    turns: Semaphore,
    waiting: Semaphore,
    state: Mutex<State>,
    pub(crate) counts: Counts,
    stop: CancellationToken,
}

struct State {
    memory: Memory,
    rests: Rests,
    looked_after: HashMap<EndpointId, Flight>,
}

/// Somebody looks after an endpoint's certificate.
#[derive(Clone)]
struct Flight {
    told: watch::Receiver<Option<Answer>>,
    /// It was said already that it takes long.
    is_late: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Answer {
    There(Arc<ServerConfig>),
    None,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) issued: Counter,
    pub(crate) failed: Counter,
    /// Handshakes with an endpoint's name that had to do with the certificate served until then.
    pub(crate) until_then: Counter,
}

impl Endpoints {
    /// What is there of the life before; certificates are read when they are asked for. Where there is none for an endpoint, the
    /// other one is served. Does file I/O and must not run on an async thread; asks nobody.
    pub fn open(
        settings: AcmeSettings,
        place: Place,
        limits: OnDemand,
        until_then: &Arc<ServedCertificate>,
    ) -> Result<Arc<Self>, AcmeError> {
        let store = Store::open(&place.dir, &settings.directory)?;
        store.tidy();
        let files = store.beneath(DIR)?;
        files.tidy();
        let orders = usize::try_from(settings.orders_per_hour()).unwrap_or(usize::MAX);
        let state = State {
            memory: Memory::new(limits.in_memory),
            rests: Rests::new(limits.pauses_of_endpoint.clone(), limits.pauses_of_all.clone()),
            looked_after: HashMap::new(),
        };
        Ok(Arc::new(Self {
            suffix: place.domain_suffix.trim_matches('.').to_ascii_lowercase(),
            ledger: tokio::sync::Mutex::new(Ledger::open(store.clone(), LEDGER, orders)?),
            client: Client::new(&place.roots)?,
            until_then: until_then.server_config(),
            pending: Pending::default(),
            account: tokio::sync::Mutex::default(),
            turns: Semaphore::new(limits.orders),
            waiting: Semaphore::new(limits.waiting),
            state: Mutex::new(state),
            counts: Counts::default(),
            stop: CancellationToken::new(),
            settings,
            limits,
            store,
            files,
        }))
    }

    /// Whether the authority looks for its proofs over plain HTTP ([`answer`](super::answer)).
    #[must_use]
    pub fn want_http(&self) -> bool {
        self.settings.challenge == Challenge::Http01
    }

    /// Removes files of certificates that are over, for as long as it is polled; with that, orders end too.
    pub async fn keep(self: Arc<Self>) -> Infallible {
        let _stop = self.stop.clone().drop_guard();
        loop {
            let sweeping = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || sweeping.sweep(OffsetDateTime::now_utc())).await {
                Ok(Ok(removed)) => tracing::debug!(removed, "certificates of endpoints that were over"),
                Ok(Err(error)) => tracing::warn!("old certificates of endpoints stay: {}", chain(&error)),
                Err(error) => tracing::error!(%error, "old certificates of endpoints could not be looked for"),
            }
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    }

    /// TLS for a handshake with an endpoint's name; `None` for what is served until then. `may_wait`: for an order, if need be.
    pub(crate) async fn certificate(
        self: &Arc<Self>,
        endpoint: EndpointId,
        may_wait: bool,
        directory: &Arc<dyn Directory>,
    ) -> Option<Arc<ServerConfig>> {
        let now = OffsetDateTime::now_utc();
        let held = self.state().memory.get(&endpoint, now);
        if let Some(held) = held {
            if now >= held.renewal {
                self.look_after(endpoint, directory);
            }
            return Some(held.config);
        }
        let found = if may_wait { self.wait_for(endpoint, directory).await } else { None };
        if found.is_none() {
            self.counts.until_then.add(1);
        }
        found
    }

    pub(crate) fn pending(&self) -> &Pending {
        &self.pending
    }

    pub(crate) fn until_then(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.until_then)
    }

    pub(crate) fn suffix(&self) -> &str {
        &self.suffix
    }

    /// How many are in memory.
    pub(crate) fn held(&self) -> usize {
        self.state().memory.len()
    }

    // What is behind it is changed in single steps, so a poisoned lock is still good.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_for(
        self: &Arc<Self>,
        endpoint: EndpointId,
        directory: &Arc<dyn Directory>,
    ) -> Option<Arc<ServerConfig>> {
        let _place = self.waiting.try_acquire().ok()?;
        let mut flight = self.look_after(endpoint, directory)?;
        let told = timeout(self.limits.wait, flight.told.wait_for(Option::is_some)).await;
        match told {
            Ok(Ok(answer)) => match &*answer {
                Some(Answer::There(config)) => Some(Arc::clone(config)),
                Some(Answer::None) | None => None,
            },
            // It ended without a word: this server stops.
            Ok(Err(_)) => None,
            Err(_) => {
                if !flight.is_late.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        %endpoint,
                        waited = self.limits.wait.as_secs_f64(),
                        "the endpoint's certificate is not there yet; its clients get the one that was served until then"
                    );
                }
                None
            }
        }
    }

    /// Has somebody look after an endpoint's certificate, if nobody does; `None` if too many are looked after.
    fn look_after(self: &Arc<Self>, endpoint: EndpointId, directory: &Arc<dyn Directory>) -> Option<Flight> {
        let mut state = self.state();
        if let Some(flight) = state.looked_after.get(&endpoint) {
            return Some(flight.clone());
        }
        if state.looked_after.len() >= self.limits.looked_after || self.stop.is_cancelled() {
            return None;
        }
        let (tell, told) = watch::channel(None);
        let flight = Flight { told, is_late: Arc::default() };
        state.looked_after.insert(endpoint, flight.clone());
        drop(state);
        let looked_after = LookedAfter { endpoints: Arc::clone(self), endpoint };
        let directory = Arc::clone(directory);
        // Not the handshake's: a client that leaves does not end what others wait for.
        tokio::spawn(async move {
            let LookedAfter { endpoints, endpoint } = &looked_after;
            tokio::select! {
                () = endpoints.see_to(*endpoint, &*directory, &tell) => {}
                () = endpoints.stop.cancelled() => {}
            }
        });
        Some(flight)
    }

    async fn see_to(&self, endpoint: EndpointId, directory: &dyn Directory, tell: &watch::Sender<Option<Answer>>) {
        let mut held = self.state().memory.get(&endpoint, OffsetDateTime::now_utc());
        if held.is_none() {
            // What is there is served whether or not anybody knows the endpoint: that was asked when it was ordered.
            held = self.load(endpoint).await.map(|valid| self.hold(endpoint, valid, tell));
        }
        let is_good = held.is_some_and(|held| OffsetDateTime::now_utc() < held.renewal);
        if !is_good && self.may_order(&endpoint) && self.is_known(endpoint, directory).await {
            let turn = self.turns.acquire().await;
            // The one before may just have found out that the authority is not there.
            if self.may_order(&endpoint) {
                match self.order(endpoint).await {
                    Ok(valid) => _ = self.hold(endpoint, valid, tell),
                    Err(error) => self.failed(endpoint, &error),
                }
            }
            drop(turn);
        }
        tell.send_if_modified(|answer| {
            let is_new = answer.is_none();
            answer.get_or_insert(Answer::None);
            is_new
        });
    }

    fn may_order(&self, endpoint: &EndpointId) -> bool {
        self.state().rests.are_over(endpoint, Instant::now())
    }

    /// Whether there is such an endpoint, and something behind it that lives.
    async fn is_known(&self, endpoint: EndpointId, directory: &dyn Directory) -> bool {
        let behind = timeout(self.limits.wait, directory.behind(&endpoint)).await;
        matches!(behind, Ok(Ok(Some(behind))) if !behind.ended)
    }

    fn name(&self, endpoint: EndpointId) -> String {
        format!("{endpoint}.{}", self.suffix)
    }

    /// The one that is on the disk.
    async fn load(&self, endpoint: EndpointId) -> Option<Valid> {
        let (files, name) = (self.files.clone(), self.name(endpoint));
        let file = format!("{endpoint}{ENDING}");
        let read = move || -> Result<Option<Valid>, AcmeError> {
            let pem = files.read(&file)?;
            Ok(pem.map(|pem| keeper::read(&files.path(&file), pem, &name)).transpose()?)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(valid)) => valid,
            Ok(Err(error)) => {
                tracing::warn!(%endpoint, "there is to be another certificate for the one that there is: {}", chain(&error));
                None
            }
            Err(error) => {
                tracing::error!(%endpoint, %error, "an endpoint's certificate could not be read");
                None
            }
        }
    }

    /// Holds it in memory, and tells those who wait.
    fn hold(&self, endpoint: EndpointId, valid: Valid, tell: &watch::Sender<Option<Answer>>) -> Held {
        let Valid { key, from, to } = valid;
        let mut config = ServerConfig::clone(&self.until_then);
        config.cert_resolver = Arc::new(SingleCertAndKey::from(key));
        let renewal = schedule::renewal(from, to, rand::random());
        let held = Held { config: Arc::new(config), renewal, to };
        self.state().memory.insert(endpoint, held.clone());
        tell.send_replace(Some(Answer::There(Arc::clone(&held.config))));
        held
    }

    async fn order(&self, endpoint: EndpointId) -> Result<Valid, AcmeError> {
        // An authority that is not there counts nothing, so neither do we.
        self.client.find_directory(&self.settings.directory).await?;
        self.begin().await?;
        let account = self.account().await?;
        let (name, file) = (self.name(endpoint), format!("{endpoint}{ENDING}"));
        let mut proof = Here::new(&self.pending, self.settings.challenge, endpoint);
        let issued = order::obtain(&account, std::slice::from_ref(&name), &mut proof).await;
        drop(proof);
        if issued.as_ref().is_err_and(order::OrderError::is_of_no_account) {
            // Others may have opened it meanwhile; then it is opened once more.
            let mut opened = self.account.lock().await;
            *opened = None;
            account::forget_id(&self.store).await?;
        }
        let valid = keeper::take(issued?, &self.files, &file, &name).await?;
        self.state().rests.succeeded(&endpoint, Instant::now());
        self.counts.issued.add(1);
        tracing::info!(%endpoint, expires = %valid.to, "the endpoint has a new certificate");
        Ok(valid)
    }

    /// Writes down that an order is begun, if there may be another one within the hour.
    async fn begin(&self) -> Result<(), AcmeError> {
        let mut ledger = self.ledger.lock().await;
        let now = OffsetDateTime::now_utc();
        let next = ledger.next_order(now);
        if next > now {
            return Err(AcmeError::OrdersPerHour { orders: self.settings.orders_per_hour(), next });
        }
        Ok(ledger.begin(now).await?)
    }

    async fn account(&self) -> Result<Account, AcmeError> {
        let mut opened = self.account.lock().await;
        if let Some(account) = &*opened {
            return Ok(account.clone());
        }
        let account = account::open(&self.store, &self.client, &self.settings).await?;
        Ok(opened.insert(account).clone())
    }

    /// Says so, and sees to it that it is not tried again at once.
    fn failed(&self, endpoint: EndpointId, error: &AcmeError) {
        self.counts.failed.add(1);
        let (now, dice) = (Instant::now(), rand::random());
        let asked_for = self.client.take_pause();
        let mut state = self.state();
        let mut pause = match error {
            AcmeError::Order(_) | AcmeError::Certificate(_) => state.rests.endpoint_failed(endpoint, now, dice),
            AcmeError::OrdersPerHour { next, .. } => {
                let pause = Duration::try_from(*next - OffsetDateTime::now_utc()).unwrap_or_default();
                state.rests.all_wait(now, pause);
                pause
            }
            AcmeError::Store(_) | AcmeError::Client(_) | AcmeError::Account(_) => state.rests.all_failed(now, dice),
        };
        if !asked_for.is_zero() {
            state.rests.all_wait(now, asked_for);
            pause = pause.max(asked_for);
        }
        drop(state);
        tracing::error!(
            %endpoint,
            directory = self.settings.directory,
            next_try = %(OffsetDateTime::now_utc() + pause),
            "there is no new certificate for the endpoint; its clients get what they got until then: {}",
            chain(error)
        );
    }

    /// Removes the files of certificates that are over; how many. Does file I/O.
    fn sweep(&self, now: OffsetDateTime) -> Result<usize, StoreError> {
        let mut removed = 0;
        for name in self.files.names()? {
            let Some(endpoint) = name.strip_suffix(ENDING).and_then(|id| id.parse().ok()) else { continue };
            let is_over = match self.files.read(&name) {
                Ok(pem) => pem.and_then(|pem| end(&pem)).is_some_and(|end| end < now),
                Err(error) => {
                    tracing::warn!("an endpoint's certificate cannot be looked at: {}", chain(&error));
                    false
                }
            };
            // One that is being ordered is written in its place, seconds after this was asked.
            if is_over && !self.state().looked_after.contains_key(&endpoint) {
                self.files.remove(&name)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// An endpoint that is looked after until this is dropped.
struct LookedAfter {
    endpoints: Arc<Endpoints>,
    endpoint: EndpointId,
}

impl Drop for LookedAfter {
    fn drop(&mut self) {
        self.endpoints.state().looked_after.remove(&self.endpoint);
    }
}

/// The last moment that the first certificate of these is good for.
fn end(pem: &[u8]) -> Option<OffsetDateTime> {
    let first = CertificateDer::from_pem_slice(pem).ok()?;
    served::validity(&first).map(|(_, to)| to)
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
pub(crate) mod tests;
