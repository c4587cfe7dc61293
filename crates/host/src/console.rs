//! A VM's serial console: kept in a bounded log, and its end at hand for whoever must say why the VM is gone.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::io::AsyncReadExt;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{log::BoundedLog, platform::SharedVm};

/// What is at hand: a panic's first line and the trace after it, some times over.
const LAST_BYTES_MAX: usize = 16 * 1024;

/// How long the rest of a dead VM's output is waited for. It is in a socket of this machine.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// The console of one VM. Dropping it closes it.
pub struct Console {
    last: Arc<Mutex<Vec<u8>>>,
    drained: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl Console {
    /// Copies what the VM says into a log until it ends.
    pub fn keep(vm: SharedVm, path: &Path) -> io::Result<Self> {
        let mut log = BoundedLog::open(path)?;
        let (last, drained) = (Arc::<Mutex<Vec<u8>>>::default(), CancellationToken::new());
        let task = tokio::spawn({
            let (last, guard) = (Arc::clone(&last), drained.clone().drop_guard());
            async move {
                let _guard = guard;
                let Ok(mut console) = vm.console().await else {
                    tracing::warn!("a VM's serial console cannot be read");
                    return;
                };
                let mut buffer = [0u8; 4096];
                while let Ok(read @ 1..) = console.read(&mut buffer).await {
                    log.write(&buffer[..read]);
                    append(&mut last.lock().expect("no holder of this lock panics"), &buffer[..read]);
                }
            }
        });
        Ok(Self { last, drained, _task: AbortOnDropHandle::new(task) })
    }

    /// The last a VM said that has ended.
    pub async fn last_words(&self) -> Vec<u8> {
        if tokio::time::timeout(DRAIN_TIME_MAX, self.drained.cancelled()).await.is_err() {
            tracing::warn!("a VM that has ended still seems to say something");
        }
        self.last.lock().expect("no holder of this lock panics").clone()
    }
}

/// Keeps the last bytes; moves them only now and then.
fn append(last: &mut Vec<u8>, data: &[u8]) {
    last.extend_from_slice(data);
    if last.len() > 2 * LAST_BYTES_MAX {
        last.drain(..last.len() - LAST_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_flood_is_kept_and_no_more() {
        let mut last = Vec::new();
        for number in 0..10_000 {
            append(&mut last, format!("{number:09}\n").as_bytes());
            assert!(last.len() <= 2 * LAST_BYTES_MAX);
        }
        assert!(last.len() >= LAST_BYTES_MAX);
        assert!(last.ends_with(b"000009999\n"));
    }
}
