//! Sees to it that there is a certificate, and a newer one in time.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{
    account::{self, AccountError},
    client::{Client, ClientError},
    hook::Hook,
    ledger::{self, Ledger},
    order::{self, Issued, OrderError},
    proof::Dns,
    schedule::{self, Pauses},
    settings::AcmeSettings,
    store::{Store, StoreError},
};
use crate::{
    CertificateError, CertificateFiles,
    certificates::Contents,
    refusal::chain,
    served::{ServedCertificate, Valid},
};

const FILE: &str = "certificate.pem";
const LEDGER: &str = "orders.json";

/// How long is slept at a time: clocks are set, and machines sleep too.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// Where it is kept, and what for.
#[derive(Debug, Clone)]
pub struct Place {
    /// Directory of all authorities.
    pub dir: PathBuf,
    /// What follows the first label of endpoints' names.
    pub domain_suffix: String,
    /// Whom to trust for the authority's server.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why there is no certificate, or no new one.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// Something of ours cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority could not be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is no account.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The order failed.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// There may be no more orders just now.
    #[error("tls.acme.orders_per_hour is {orders}, and as many were begun; the next may be at {next}")]
    OrdersPerHour {
        /// How many there may be.
        orders: u32,
        /// When there may be another one.
        next: OffsetDateTime,
    },
    /// What the authority has signed cannot be served.
    #[error("the ACME server's certificate cannot be served")]
    Certificate(#[from] CertificateError),
}

/// A certificate for all endpoints, kept good.
#[derive(Debug)]
pub struct Acme {
    settings: AcmeSettings,
    suffix: String,
    store: Store,
    ledger: Ledger,
    client: Client,
    hook: Hook,
    pauses: Pauses,
    served: Arc<ServedCertificate>,
    /// The one from the authority, if there is one.
    current: Option<Valid>,
}

impl Acme {
    /// What is there of the life before. Until there is a certificate, the other one is served. Does file I/O and must not run on
    /// an async thread; asks nobody.
    pub fn open(
        settings: AcmeSettings,
        place: Place,
        pauses: Pauses,
        until_then: &ServedCertificate,
    ) -> Result<Self, AcmeError> {
        let suffix = place.domain_suffix.trim_matches('.').to_ascii_lowercase();
        let store = Store::open(&place.dir, &settings.directory)?;
        store.tidy();
        let ledger = Ledger::open(store.clone(), LEDGER, ledger::ORDERS_PER_HOUR)?;
        let client = Client::new(&place.roots)?;
        let hook = Hook::new(settings.hook.clone(), Duration::from_secs(settings.hook_timeout_seconds.into()));
        let current = match store.read(FILE)?.map(|pem| read(&store.path(FILE), pem, &format!("*.{suffix}"))) {
            None => None,
            Some(Ok(valid)) => Some(valid),
            Some(Err(error)) => {
                tracing::warn!("another certificate is ordered for the one that there is: {}", chain(&error));
                None
            }
        };
        let served = ServedCertificate::new(current.clone().unwrap_or_else(|| until_then.current()));
        Ok(Self { settings, suffix, store, ledger, client, hook, pauses, served, current })
    }

    /// What is served.
    #[must_use]
    pub fn served(&self) -> Arc<ServedCertificate> {
        Arc::clone(&self.served)
    }

    /// Whether there is a certificate of the authority.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.current.is_some()
    }

    /// Sees to it for as long as it is polled.
    pub fn keep(self) -> BoxFuture<'static, Infallible> {
        Box::pin(self.keep_good())
    }

    async fn keep_good(mut self) -> Infallible {
        self.clean_up().await;
        let mut failures = 0;
        let mut earliest = OffsetDateTime::now_utc();
        loop {
            let renewal = self.current.as_ref().map(|valid| schedule::renewal(valid.from, valid.to, rand::random()));
            let allowed = self.ledger.next_order(OffsetDateTime::now_utc());
            sleep_until(renewal.map_or(earliest, |renewal| renewal.max(earliest)).max(allowed)).await;
            while let Err(error) = self.renew().await {
                failures += 1;
                let pause = self.pauses.after(failures, rand::random()).max(self.client.take_pause());
                let now = OffsetDateTime::now_utc();
                let next = self.ledger.next_order(now).max(now + pause);
                tracing::error!(
                    directory = self.settings.directory,
                    served_expires = %self.served.expires(),
                    next_try = %next,
                    "the endpoints keep the certificate they have: {}",
                    chain(&error)
                );
                sleep_until(next).await;
            }
            failures = 0;
            // Whatever an authority signs, it is not asked without a pause.
            earliest = OffsetDateTime::now_utc() + self.pauses.first;
        }
    }

    async fn renew(&mut self) -> Result<(), AcmeError> {
        // An authority that is not there counts nothing, so neither do we.
        self.client.find_directory(&self.settings.directory).await?;
        self.ledger.begin(OffsetDateTime::now_utc()).await?;
        let result = self.order().await;
        if let Err(AcmeError::Order(error)) = &result
            && error.is_of_no_account()
        {
            account::forget_id(&self.store).await?;
        }
        self.clean_up().await;
        result
    }

    async fn order(&mut self) -> Result<(), AcmeError> {
        let account = account::open(&self.store, &self.client, &self.settings).await?;
        let names = [format!("*.{}", self.suffix)];
        let mut proof = Dns { hook: &self.hook, ledger: &mut self.ledger };
        let issued = order::obtain(&account, &names, &mut proof).await?;
        let valid = take(issued, &self.store, FILE, &names[0]).await?;
        let expires = valid.to;
        self.served.replace(valid.clone());
        self.current = Some(valid);
        tracing::info!(names = names.join(" "), %expires, "the endpoints have a new certificate");
        if let Err(error) = self.ledger.succeeded().await {
            tracing::warn!("the order still counts as one that failed: {}", chain(&error));
        }
        Ok(())
    }

    /// Has the hook remove what was presented, now or by a server that was killed.
    async fn clean_up(&mut self) {
        for record in self.ledger.records() {
            let cleaned = self.hook.clean_up(&record).await;
            if let Err(error) = cleaned {
                tracing::warn!(name = record.name, value = record.value, "a TXT record may be left: {}", chain(&error));
            }
            if let Err(error) = self.ledger.cleaned_up(&record).await {
                tracing::warn!("a TXT record will be cleaned up once more: {}", chain(&error));
            }
        }
    }
}

/// What can be served of what was issued for this name, from now on; written into this file.
pub(super) async fn take(issued: Issued, store: &Store, file: &str, name: &str) -> Result<Valid, CertificateError> {
    let Issued { chain: mut pem, key } = issued;
    pem.push_str(&key);
    let mut valid = read(&store.path(file), pem.clone().into_bytes(), name)?;
    // A good part of a short life may be over already, as authorities date back; two thirds are of what is left.
    valid.from = valid.from.max(OffsetDateTime::now_utc());
    if let Err(error) = store.write(file, pem.into_bytes()).await {
        // Ordering it once more would not help, and authorities count certificates.
        tracing::error!(name, "the new certificate is lost when this server stops: {}", chain(&error));
    }
    Ok(valid)
}

/// What can be served of a chain and a key in one file, for this name.
pub(super) fn read(path: &Path, pem: Vec<u8>, name: &str) -> Result<Valid, CertificateError> {
    let files = CertificateFiles { certificate: path.to_owned(), key: path.to_owned() };
    Contents { certificate: pem.clone(), key: pem }.parse(&files, name, OffsetDateTime::now_utc())
}

/// By the clock on the wall.
async fn sleep_until(due: OffsetDateTime) {
    while let Ok(left) = Duration::try_from(due - OffsetDateTime::now_utc())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(SLEEP_MAX)).await;
    }
}
