//! What was begun: orders, of which there may be so many within an hour, and records that a hook was told to present. Written
//! down before the step that it is about, so that a server which is killed again and again counts too.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::store::{Store, StoreError};

/// Orders without success that there may be within an hour, over all restarts. Let's Encrypt refuses a name after five failed
/// validations.
pub const ORDERS_PER_HOUR: usize = 4;

/// Records beyond this are forgotten, the oldest first: a hook that never cleans up is no reason to remember for ever.
const RECORDS_MAX: usize = 32;

/// A TXT record that a hook presents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entries {
    /// When orders were begun, as Unix times: the last ones, and for one certificate those since it was there.
    begun: Vec<i64>,
    records: Vec<Record>,
}

/// The file.
#[derive(Debug)]
pub(crate) struct Ledger {
    store: Store,
    file: &'static str,
    orders_per_hour: usize,
    entries: Entries,
}

impl Ledger {
    /// Does file I/O and must not run on an async thread.
    pub(crate) fn open(store: Store, file: &'static str, orders_per_hour: usize) -> Result<Self, StoreError> {
        let entries = store.read_json(file)?.unwrap_or_default();
        Ok(Self { store, file, orders_per_hour, entries })
    }

    /// The first moment that an order may be begun.
    pub(crate) fn next_order(&self, now: OffsetDateTime) -> OffsetDateTime {
        let hour = Duration::HOUR.whole_seconds();
        // Those of a time to come are of a clock that was wrong.
        let within = |begun: &&i64| **begun > now.unix_timestamp() - hour && **begun <= now.unix_timestamp();
        let mut counted: Vec<i64> = self.entries.begun.iter().filter(within).copied().collect();
        counted.sort_unstable();
        match counted.len().checked_sub(self.orders_per_hour) {
            None => now,
            Some(beyond) => OffsetDateTime::from_unix_timestamp(counted[beyond] + hour).unwrap_or(now),
        }
    }

    /// An order is begun.
    pub(crate) async fn begin(&mut self, now: OffsetDateTime) -> Result<(), StoreError> {
        let begun = &mut self.entries.begun;
        begun.push(now.unix_timestamp());
        let beyond = begun.len().saturating_sub(self.orders_per_hour);
        begun.drain(..beyond);
        self.save().await
    }

    /// One has led to a certificate, and those before it count no more.
    pub(crate) async fn succeeded(&mut self) -> Result<(), StoreError> {
        self.entries.begun.clear();
        self.save().await
    }

    /// A record is about to be presented.
    pub(crate) async fn presenting(&mut self, record: Record) -> Result<(), StoreError> {
        let records = &mut self.entries.records;
        records.push(record);
        let beyond = records.len().saturating_sub(RECORDS_MAX);
        records.drain(..beyond);
        self.save().await
    }

    /// The records that may be there.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.entries.records.clone()
    }

    /// A record is gone.
    pub(crate) async fn cleaned_up(&mut self, record: &Record) -> Result<(), StoreError> {
        self.entries.records.retain(|known| known != record);
        self.save().await
    }

    async fn save(&self) -> Result<(), StoreError> {
        self.store.write_json(self.file, &self.entries).await
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOON: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn ledger(dir: &tempfile::TempDir) -> Ledger {
        Ledger::open(Store::open(dir.path(), "https://a.test/").unwrap(), "orders.json", 4).unwrap()
    }

    #[tokio::test]
    async fn no_more_than_four_orders_fail_within_an_hour_over_restarts_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = ledger(&dir);
        for minute in 0..4 {
            let now = NOON + Duration::minutes(minute);
            assert_eq!(first.next_order(now), now);
            first.begin(now).await.unwrap();
        }
        let mut second = ledger(&dir);
        let now = NOON + Duration::minutes(4);
        assert_eq!(second.next_order(now), NOON + Duration::HOUR);
        second.begin(NOON + Duration::HOUR).await.unwrap();
        let now = NOON + Duration::minutes(60);
        assert_eq!(second.next_order(now), NOON + Duration::minutes(61));
        second.succeeded().await.unwrap();
        assert_eq!(ledger(&dir).next_order(now), now);
    }

    #[tokio::test]
    async fn a_clock_that_was_wrong_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = ledger(&dir);
        for _ in 0..4 {
            ledger.begin(NOON + Duration::days(3650)).await.unwrap();
        }
        assert_eq!(ledger.next_order(NOON), NOON);
    }

    #[tokio::test]
    async fn records_are_remembered_until_they_are_gone_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let record = |number: usize| Record { name: "_acme-challenge.a.test".to_owned(), value: number.to_string() };
        let mut first = ledger(&dir);
        for number in 0..RECORDS_MAX + 1 {
            first.presenting(record(number)).await.unwrap();
        }
        let mut second = ledger(&dir);
        assert_eq!(second.records(), (1..=RECORDS_MAX).map(record).collect::<Vec<_>>());
        second.cleaned_up(&record(2)).await.unwrap();
        assert_eq!(ledger(&dir).records().len(), RECORDS_MAX - 1);
    }
}
