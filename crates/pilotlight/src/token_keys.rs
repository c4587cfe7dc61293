//! The keys of endpoint tokens, in `secrets/token-keys.json`: the newest seals, the ones before it open what they sealed until
//! that is over, and then they are destroyed.
//!
//! No wall clock has a part in it, because anybody may set that to and fro. Each key has an age: how long servers have run
//! since it came, counted on the monotonic clock and written down every few minutes. What was not written down when a server
//! died, and the time that none ran, are not in it. So a key may stay for longer than it has to, and never for less. A token's
//! own end is a time of the wall clock: set back, that makes a token live longer, until its key is gone.
//!
//! A key is in the file before it seals anything: a token that a client was given opens after any crash.

use std::{
    convert::Infallible,
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use api::token::{EXPIRATION_MINUTES_MAX, TokenKey, TokenKeys};
use control::iam::SealingKey;
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::access;

/// How often the keys' ages are written down, and looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(300);

/// How long a key opens tokens once it has a successor: the longest life of a token, and a minute for what clocks round and
/// for tokens that are being sealed as the successor comes.
const GRACE_SECONDS: u64 = EXPIRATION_MINUTES_MAX as u64 * 60 + 60;

/// The form of the file.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    /// The newest first.
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    kid: Uuid,
    age_seconds: u64,
    /// The secret, sealed, in hexadecimal digits.
    sealed: String,
}

/// The one key that there was before keys were sealed and replaced.
#[derive(Serialize, Deserialize)]
struct Unsealed {
    kid: Uuid,
    secret: [u8; 32],
}

#[derive(Clone)]
struct Key {
    kid: Uuid,
    secret: [u8; 32],
    age_seconds: u64,
}

impl Key {
    fn fresh() -> Self {
        Self { kid: Uuid::new_v4(), secret: rand::rng().random(), age_seconds: 0 }
    }

    fn usable(&self) -> TokenKey {
        TokenKey::new(self.kid, self.secret)
    }
}

/// What a key is bound to where it is stored.
fn bound_to(kid: Uuid) -> String {
    format!("token-key/{kid}")
}

/// The file they are in.
pub fn stored_path(data_dir: &Path) -> PathBuf {
    data_dir.join("secrets/token-keys.json")
}

fn unsealed_path(data_dir: &Path) -> PathBuf {
    data_dir.join("secrets/token-key.json")
}

/// Replaces the keys as they age.
pub struct Keeper {
    path: PathBuf,
    sealing: SealingKey,
    /// How long a key seals.
    period_seconds: u64,
    /// As they are in the file; the newest first.
    ring: Vec<Key>,
    keys: Arc<TokenKeys>,
}

impl Keeper {
    /// The keys of a data directory, made if there are none; a new one comes every `period`. There must be one keeper alone,
    /// which the lock of the data directory sees to. Does file I/O.
    pub fn open(data_dir: &Path, sealing: SealingKey, period: Duration) -> anyhow::Result<Self> {
        let (path, unsealed) = (stored_path(data_dir), unsealed_path(data_dir));
        let mut ring = if path.exists() { read(&path, &sealing)? } else { Vec::new() };
        let mut changed = false;
        if unsealed.exists() {
            let Unsealed { kid, secret } = access::read(&unsealed)?;
            if !ring.iter().any(|key| key.kid == kid) {
                // It was there to be read, so it seals no more.
                ring.splice(..0, [Key::fresh(), Key { kid, secret, age_seconds: 0 }]);
                changed = true;
            }
        }
        if ring.is_empty() {
            ring.push(Key::fresh());
            changed = true;
        }
        if changed {
            write(&path, &sealing, &ring)?;
        }
        // Only now: until it is in the other file, it is here alone.
        destroy(&unsealed).with_context(|| format!("cannot remove {}", unsealed.display()))?;
        let keys = Arc::new(TokenKeys::new(ring[0].usable(), ring[1..].iter().map(Key::usable).collect()));
        Ok(Self { path, sealing, period_seconds: period.as_secs(), ring, keys })
    }

    /// The keys, for those who seal and open.
    pub fn keys(&self) -> Arc<TokenKeys> {
        Arc::clone(&self.keys)
    }

    /// Replaces them, for as long as it is polled.
    pub async fn keep(mut self, look_every: Duration) -> Infallible {
        let mut seen = Instant::now();
        loop {
            tokio::time::sleep(look_every).await;
            let now = Instant::now();
            let passed = now - seen;
            seen = now;
            let looking = tokio::task::spawn_blocking(move || {
                if let Err(error) = self.age(passed) {
                    tracing::error!("the keys of endpoint tokens stay as they are: {error:#}");
                }
                self
            });
            match looking.await {
                Ok(keeper) => self = keeper,
                Err(error) => {
                    tracing::error!(%error, "the keys of endpoint tokens are not replaced any more");
                    return std::future::pending().await;
                }
            }
        }
    }

    /// So much time has passed. If it cannot be written down, nothing has changed.
    fn age(&mut self, passed: Duration) -> anyhow::Result<()> {
        let mut next = self.ring.clone();
        for key in &mut next {
            key.age_seconds = key.age_seconds.saturating_add(passed.as_secs());
        }
        // Each is needed as long as its successor is young.
        let mut successor_age = 0;
        next.retain(|key| std::mem::replace(&mut successor_age, key.age_seconds) < GRACE_SECONDS);
        let dropped = self.ring.len() - next.len();
        let is_due = next[0].age_seconds >= self.period_seconds;
        if is_due {
            next.insert(0, Key::fresh());
        }
        write(&self.path, &self.sealing, &next)?;
        self.ring = next;
        if is_due || dropped > 0 {
            let (newest, older) = self.ring.split_first().expect("the newest is never dropped");
            self.keys.replace(newest.usable(), older.iter().map(Key::usable).collect());
            tracing::info!(newest = %newest.kid, older = older.len(), dropped, "the keys of endpoint tokens were replaced");
        }
        Ok(())
    }
}

/// What is in the file, for who does not keep it: the newest, and the ones before it.
pub fn stored(path: &Path, sealing: &SealingKey) -> anyhow::Result<(TokenKey, Vec<TokenKey>)> {
    let ring = read(path, sealing)?;
    let (newest, older) = ring.split_first().expect("none is refused");
    Ok((newest.usable(), older.iter().map(Key::usable).collect()))
}

fn read(path: &Path, sealing: &SealingKey) -> anyhow::Result<Vec<Key>> {
    let Stored { version, keys } = access::read(path)?;
    let name = path.display();
    ensure!(version == VERSION, "{name} has the form {version}, and this version of Pilotlight knows {VERSION}");
    ensure!(!keys.is_empty(), "{name} has no keys in it; remove it, and a new one is made");
    let mut ring = Vec::with_capacity(keys.len());
    for StoredKey { kid, age_seconds, sealed } in keys {
        let opened = hex::decode(&sealed).ok().and_then(|sealed| sealing.open(&bound_to(kid), &sealed));
        let Some(secret) = opened.and_then(|secret| secret.try_into().ok()) else {
            bail!(
                "{name} was sealed with another key than secrets/iam-key.json: put that back, or remove {name}, and tokens \
                 made so far are refused"
            );
        };
        ring.push(Key { kid, secret, age_seconds });
    }
    Ok(ring)
}

/// Puts these keys in place of those in the file: whoever dies at any time in here leaves the one or the other.
fn write(path: &Path, sealing: &SealingKey, ring: &[Key]) -> anyhow::Result<()> {
    let mut keys = Vec::with_capacity(ring.len());
    for Key { kid, secret, age_seconds } in ring {
        let sealed = hex::encode(sealing.seal(&bound_to(*kid), secret)?);
        keys.push(StoredKey { kid: *kid, age_seconds: *age_seconds, sealed });
    }
    let before = File::options().write(true).open(path).ok();
    access::replace(path, &Stored { version: VERSION, keys })?;
    if let Some(before) = before {
        access::wipe(&before).with_context(|| format!("cannot wipe what {} was before", path.display()))?;
    }
    Ok(())
}

/// Removes a file, and then what was in it: the other way round, a crash would leave half of it under its name.
fn destroy(path: &Path) -> std::io::Result<()> {
    let file = match File::options().write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    std::fs::remove_file(path)?;
    access::sync_directory_of(path)?;
    access::wipe(&file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use api::token::{Claims, Grant};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const GRACE: Duration = Duration::from_secs(GRACE_SECONDS);
    const SECOND: Duration = Duration::from_secs(1);

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a directory"))
        }

        fn try_open(&self) -> anyhow::Result<Keeper> {
            Keeper::open(self.0.path(), access::sealing_key(self.0.path())?, 24 * HOUR)
        }

        fn open(&self) -> Keeper {
            self.try_open().expect("keys")
        }

        fn secrets(&self) -> PathBuf {
            self.0.path().join("secrets")
        }

        fn text(&self) -> String {
            std::fs::read_to_string(stored_path(self.0.path())).expect("the file")
        }

        /// As a server of before this left it, with a token it made.
        fn before() -> (Self, String) {
            let place = Self::new();
            std::fs::create_dir(place.secrets()).expect("a directory");
            let old = Unsealed { kid: Uuid::new_v4(), secret: [7; 32] };
            let text = serde_json::to_vec(&old).expect("plain data");
            std::fs::write(unsealed_path(place.0.path()), text).expect("a file");
            let token = TokenKeys::single(old.kid, old.secret).seal(&claims());
            (place, token)
        }
    }

    fn claims() -> Claims {
        let microvm_id = "microvm-00000000-0000-4000-8000-000000000001".parse().expect("an id");
        Claims { microvm_id, grant: Grant::Shell, expires_unix: 1 }
    }

    fn opens(keeper: &Keeper, token: &str) -> bool {
        keeper.keys.open(token).is_ok()
    }

    #[test]
    fn a_key_seals_for_its_period_and_opens_for_the_longest_life_of_a_token_after() {
        let place = Place::new();
        let mut keeper = place.open();
        let first = keeper.keys.seal(&claims());
        keeper.age(24 * HOUR - SECOND).expect("written");
        assert_eq!(keeper.ring.len(), 1, "not yet");
        keeper.age(SECOND).expect("written");
        let second = keeper.keys.seal(&claims());
        let header = |token: &str| token.split('.').next().expect("a header").to_owned();
        assert_ne!(header(&first), header(&second), "another key seals");
        assert!(opens(&keeper, &first) && opens(&keeper, &second));
        keeper.age(GRACE - SECOND).expect("written");
        assert!(opens(&keeper, &first) && opens(&place.open(), &first));
        keeper.age(SECOND).expect("written");
        assert!(!opens(&keeper, &first) && opens(&keeper, &second));
        assert!(!opens(&place.open(), &first) && opens(&place.open(), &second), "it is not in the file either");
    }

    #[test]
    fn ages_go_on_where_they_were_and_nothing_but_running_counts() {
        let place = Place::new();
        let token = place.open().keys.seal(&claims());
        for _ in 0..23 {
            place.open().age(HOUR).expect("written");
        }
        assert_eq!(place.open().ring[0].age_seconds, 23 * 3600);
        place.open().age(HOUR).expect("written");
        let keeper = place.open();
        assert_eq!(keeper.ring.iter().map(|key| key.age_seconds).collect::<Vec<_>>(), [0, 24 * 3600]);
        assert!(opens(&keeper, &token));
    }

    #[test]
    fn the_shortest_period_keeps_a_few_keys() {
        let place = Place::new();
        let sealing = access::sealing_key(place.0.path()).expect("a key");
        let mut keeper = Keeper::open(place.0.path(), sealing, HOUR).expect("keys");
        for _ in 0..100 {
            keeper.age(LOOK_EVERY).expect("written");
            assert!(keeper.ring.len() <= 3, "{}", keeper.ring.len());
        }
    }

    #[test]
    fn a_key_that_cannot_be_written_seals_nothing() {
        let place = Place::new();
        let mut keeper = place.open();
        std::fs::rename(place.secrets(), place.0.path().join("away")).expect("moved");
        keeper.age(24 * HOUR).expect_err("there is nowhere to write");
        let token = keeper.keys.seal(&claims());
        std::fs::rename(place.0.path().join("away"), place.secrets()).expect("moved back");
        assert!(opens(&place.open(), &token), "the key in the file sealed it");
        keeper.age(24 * HOUR).expect("written");
        let token = keeper.keys.seal(&claims());
        assert!(opens(&place.open(), &token));
        assert_eq!(keeper.ring.len(), 2);
    }

    #[test]
    fn tokens_of_before_keys_were_replaced_stay_good() {
        let (place, token) = Place::before();
        let mut keeper = place.open();
        assert!(opens(&keeper, &token));
        assert!(!unsealed_path(place.0.path()).exists(), "what anybody could read is gone");
        assert_ne!(keeper.ring[0].secret, [7; 32], "and seals nothing more");
        keeper.age(GRACE - SECOND).expect("written");
        assert!(opens(&place.open(), &token));
        keeper.age(SECOND).expect("written");
        assert!(!opens(&place.open(), &token));
    }

    #[test]
    fn taking_over_may_be_interrupted_anywhere() {
        let (place, token) = Place::before();
        let old = std::fs::read(unsealed_path(place.0.path())).expect("the old file");
        // It died while it wrote the new file.
        std::fs::write(stored_path(place.0.path()).with_extension("new"), "{\"vers").expect("half a file");
        let first = place.open();
        let newer = first.keys.seal(&claims());
        // It died before it removed the old one.
        std::fs::write(unsealed_path(place.0.path()), &old).expect("the old file");
        let second = place.open();
        assert!(opens(&second, &token) && opens(&second, &newer));
        assert_eq!(second.ring.len(), 2, "it was taken over once");
        assert!(!unsealed_path(place.0.path()).exists());
        // Somebody went back to an older version in between, which made a key of its own.
        let other = Unsealed { kid: Uuid::new_v4(), secret: [8; 32] };
        let between = TokenKeys::single(other.kid, other.secret).seal(&claims());
        std::fs::write(unsealed_path(place.0.path()), serde_json::to_vec(&other).expect("plain data")).expect("a file");
        let third = place.open();
        assert!(opens(&third, &token) && opens(&third, &newer) && opens(&third, &between));
        let mut names: Vec<_> =
            std::fs::read_dir(place.secrets()).expect("a list").flatten().map(|it| it.file_name()).collect();
        names.sort();
        assert_eq!(names, ["iam-key.json", "token-keys.json"], "nothing is left over");
    }

    #[test]
    fn the_file_is_private_and_tells_no_secret() {
        let place = Place::new();
        let keeper = place.open();
        let mode = std::fs::metadata(stored_path(place.0.path())).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (text, secret) = (place.text(), keeper.ring[0].secret);
        assert!(!text.contains(&hex::encode(secret)));
        assert!(!text.contains(&serde_json::to_string(&secret).expect("plain data")));
        std::fs::remove_file(place.secrets().join("iam-key.json")).expect("removed");
        let error = place.try_open().err().expect("another sealing key").to_string();
        assert!(error.contains("iam-key.json") && error.contains("token-keys.json"), "{error}");
    }

    #[test]
    fn what_was_replaced_is_wiped() {
        let place = Place::new();
        let mut keeper = place.open();
        // A second name for what is in the file now.
        let kept = place.0.path().join("kept");
        std::fs::hard_link(stored_path(place.0.path()), &kept).expect("a link");
        let length = std::fs::metadata(&kept).expect("a file").len();
        keeper.age(SECOND).expect("written");
        let left = std::fs::read(&kept).expect("a file");
        assert!(left.len() as u64 == length && left.iter().all(|byte| *byte == 0));
        let (place, _) = Place::before();
        std::fs::hard_link(unsealed_path(place.0.path()), place.0.path().join("kept")).expect("a link");
        place.open();
        assert!(std::fs::read(place.0.path().join("kept")).expect("a file").iter().all(|byte| *byte == 0));
    }

    #[test]
    fn damaged_and_newer_files_are_refused_by_name() {
        let place = Place::new();
        place.open();
        let good = place.text();
        let sealed = good.split("\"sealed\":\"").nth(1).expect("a key")[..2].to_owned();
        for (bad, word) in [
            ("{".to_owned(), "damaged"),
            (good.replace("\"version\":1", "\"version\":2"), "the form 2"),
            (r#"{"version":1,"keys":[]}"#.to_owned(), "no keys"),
            (good.replace(&format!("\"sealed\":\"{sealed}"), "\"sealed\":\"zz"), "another key"),
        ] {
            std::fs::write(stored_path(place.0.path()), bad).expect("written");
            let error = format!("{:#}", place.try_open().err().expect(word));
            assert!(error.contains(word) && error.contains("token-keys.json"), "{error}");
        }
    }

    #[test]
    fn the_sealing_key_may_be_elsewhere() {
        let place = Place::new();
        let token = place.open().keys.seal(&claims());
        let (inside, outside) = (place.secrets().join("iam-key.json"), place.0.path().join("credential"));
        std::fs::rename(&inside, &outside).expect("moved");
        symlink(&outside, &inside).expect("a link");
        assert!(opens(&place.open(), &token));
        std::fs::rename(&outside, place.0.path().join("away")).expect("moved");
        let error = format!("{:#}", place.try_open().err().expect("no key"));
        assert!(error.contains("iam-key.json"), "{error}");
        assert!(!outside.exists(), "none is made in its place");
    }

    #[tokio::test]
    async fn a_server_that_runs_replaces_them_by_itself() {
        let place = Place::new();
        let sealing = access::sealing_key(place.0.path()).expect("a key");
        let keeper = Keeper::open(place.0.path(), sealing, Duration::ZERO).expect("keys");
        let (keys, first) = (keeper.keys(), keeper.keys.seal(&claims()));
        let keeping = tokio::spawn(keeper.keep(Duration::from_millis(1)));
        let header = |token: &str| token.split('.').next().expect("a header").to_owned();
        let replaced = async {
            while header(&keys.seal(&claims())) == header(&first) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), replaced).await.expect("a new key");
        assert!(keys.open(&first).is_ok());
        keeping.abort();
    }
}
