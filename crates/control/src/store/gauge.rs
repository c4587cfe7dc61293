//! What a simulation knows of the database. SQLite works on threads of its own, which know nothing of a clock that stands
//! still and are as fast as the machine lets them be.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::SqlitePool;
use tokio::time::{Instant, sleep_until};

/// The clock's unit: no timer is more precise.
const TICK: Duration = Duration::from_millis(1);

/// Tells whether anybody uses the database, and lets them use it one after the other. A server's does nothing.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// How many are being opened or closed.
    changing: AtomicUsize,
    pools: Mutex<Vec<SqlitePool>>,
    /// When the gauge was made, and how many ticks later the last turn was; none if there are no turns.
    turns: Option<Mutex<(Instant, u32)>>,
}

impl Gauge {
    /// One for a simulation: whoever wants the database waits for a tick that nobody else gets. Ticks are odd, so that whoever
    /// sleeps for even ones has nothing to do at the same time; what comes first is then for the clock to say, and not for
    /// threads. Made in the runtime whose clock it is.
    #[must_use]
    pub fn with_turns() -> Self {
        Self(Arc::new(Inner { turns: Some(Mutex::new((Instant::now(), 0))), ..Inner::default() }))
    }

    /// Is the database in use?
    #[must_use]
    pub fn in_use(&self) -> bool {
        let pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |pool: &SqlitePool| usize::try_from(pool.size()).is_ok_and(|size| size > pool.num_idle());
        self.0.changing.load(Ordering::SeqCst) > 0 || pools.iter().any(busy)
    }

    /// Waits for a turn.
    pub(super) async fn turn(&self) {
        let Some(turns) = &self.0.turns else { return };
        let at = {
            let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
            let (made, last) = *turns;
            let now = u32::try_from(made.elapsed().as_millis()).unwrap_or(u32::MAX - 4);
            let tick = (now + 1).max(last + 1) | 1;
            *turns = (made, tick);
            made + TICK * tick
        };
        sleep_until(at).await;
    }

    /// It counts as in use until this is dropped.
    pub(super) fn changing(&self) -> Changing {
        self.0.changing.fetch_add(1, Ordering::SeqCst);
        Changing(Arc::clone(&self.0))
    }

    /// These are the connections from now on.
    pub(super) fn watch(&self, pools: [SqlitePool; 2]) {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner).extend(pools);
    }
}

pub(super) struct Changing(Arc<Inner>);

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.changing.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn everybody_gets_a_tick_of_their_own() {
        let (gauge, begin) = (Gauge::with_turns(), Instant::now());
        let turns = (0..3).map(|_| {
            let gauge = gauge.clone();
            tokio::spawn(async move {
                gauge.turn().await;
                begin.elapsed().as_millis()
            })
        });
        let mut at = vec![];
        for turn in turns.collect::<Vec<_>>() {
            at.push(turn.await.unwrap());
        }
        assert_eq!(at, [1, 3, 5]);
        Gauge::default().turn().await;
        assert_eq!(begin.elapsed().as_millis(), 5, "a server's does not wait");
    }
}
