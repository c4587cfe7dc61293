//! The keys of endpoint tokens, in a process that does not keep them: as they are in the file.

use std::{convert::Infallible, fs, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc, time::Duration};

use api::token::TokenKeys;
use control::iam::SealingKey;

use crate::token_keys;

/// How often the file is looked at for keys that are gone from it. New ones are looked for when a token names them.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Has keys go when they are gone from the file, for as long as it is polled.
pub async fn drop_old(keys: Arc<TokenKeys>) -> Infallible {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        keys.look();
    }
}

/// The keys in the file from now on, whoever replaces them. As long as there is no file, no token opens.
pub fn follow(path: PathBuf, sealing: SealingKey) -> TokenKeys {
    let mut seen = None;
    TokenKeys::following(move || {
        // No more than this for a token that names a key nobody has.
        let file = fs::metadata(&path).ok()?;
        let stamp = (file.dev(), file.ino(), file.mtime(), file.mtime_nsec());
        // Noted before it is read, and even if it cannot be: what is put in its place has another.
        if seen.replace(stamp) == Some(stamp) {
            return None;
        }
        let read = token_keys::stored(&path, &sealing);
        read.inspect_err(|error| tracing::error!("the keys of endpoint tokens stay as they are: {error:#}")).ok()
    })
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use api::token::{Claims, Grant};

    use super::*;
    use crate::{access, token_keys::Keeper};

    fn claims() -> Claims {
        let microvm_id = "microvm-00000000-0000-4000-8000-000000000001".parse().expect("an id");
        Claims { microvm_id, grant: Grant::Shell, expires_unix: 1 }
    }

    fn keeper(data_dir: &Path) -> Keeper {
        let sealing = access::sealing_key(data_dir).expect("a key");
        Keeper::open(data_dir, sealing, Duration::from_secs(3600)).expect("keys")
    }

    #[test]
    fn keys_are_there_once_they_are_made_and_change_with_their_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = token_keys::stored_path(dir.path());
        // This may come first, and then its sealing key is the one.
        let keys = follow(path.clone(), access::sealing_key(dir.path()).expect("a key"));
        let first = keeper(dir.path()).keys().seal(&claims());
        assert!(keys.open(&first).is_ok(), "they were made meanwhile");
        std::fs::write(path.with_extension("new"), "{").expect("written");
        std::fs::rename(path.with_extension("new"), &path).expect("damaged");
        keys.look();
        assert!(keys.open(&first).is_ok(), "what cannot be read changes nothing");
        std::fs::remove_file(&path).expect("removed");
        let second = keeper(dir.path()).keys().seal(&claims());
        assert!(keys.open(&second).is_ok());
        assert!(keys.open(&first).is_err(), "what is gone from the file opens nothing");
    }
}
