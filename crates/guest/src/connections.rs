//! Every connection the host has open, so that they can be dropped when they cannot have survived.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::task::AbortHandle;

/// Byte streams to the app at a time.
pub(crate) const STREAMS_MAX: usize = 1024;

/// Shells at a time. Each is a process or more of the guest's, started from outside of the app.
pub(crate) const SHELLS_MAX: usize = 32;

/// Connections at a time: the streams, the shells, and some that are still opening or carry control.
pub(crate) const CONNECTIONS_MAX: usize = STREAMS_MAX + SHELLS_MAX + 32;

/// Names one connection; never used twice in a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId(u64);

/// The registry. The lock is never held across a wait; there is one thread, so nobody ever waits for it.
#[derive(Default)]
pub(crate) struct Connections(Mutex<Table>);

#[derive(Default)]
struct Table {
    next: u64,
    tasks: HashMap<ConnectionId, Option<AbortHandle>>,
    streams: usize,
    shells: usize,
    control: Option<ConnectionId>,
}

/// What a connection may be for, beside control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes to and from the app.
    Stream,
    /// A terminal.
    Shell,
}

/// A place among those of a kind, given back when it is dropped.
pub(crate) struct Place<'a> {
    connections: &'a Connections,
    kind: Kind,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.connections.lock().count(self.kind).0 -= 1;
    }
}

impl Table {
    /// How many of a kind there are, and may be.
    fn count(&mut self, kind: Kind) -> (&mut usize, usize) {
        match kind {
            Kind::Stream => (&mut self.streams, STREAMS_MAX),
            Kind::Shell => (&mut self.shells, SHELLS_MAX),
        }
    }
}

impl Connections {
    /// A name for a connection that was just accepted, unless there are too many.
    pub(crate) fn admit(&self) -> Option<ConnectionId> {
        let mut table = self.lock();
        if table.tasks.len() >= CONNECTIONS_MAX {
            return None;
        }
        let id = ConnectionId(table.next);
        table.next += 1;
        table.tasks.insert(id, None);
        Some(id)
    }

    /// The task that serves an admitted connection.
    pub(crate) fn served_by(&self, id: ConnectionId, task: AbortHandle) {
        if let Some(slot) = self.lock().tasks.get_mut(&id) {
            *slot = Some(task);
        }
    }

    /// The connection ended.
    pub(crate) fn remove(&self, id: ConnectionId) {
        let mut table = self.lock();
        table.tasks.remove(&id);
        if table.control == Some(id) {
            table.control = None;
        }
    }

    /// This connection carries control from now on; the one before it ends.
    pub(crate) fn becomes_control(&self, id: ConnectionId) {
        let before = {
            let mut table = self.lock();
            let before = table.control.replace(id);
            before.filter(|before| *before != id).and_then(|before| table.tasks.get(&before).cloned().flatten())
        };
        if let Some(task) = before {
            task.abort();
        }
    }

    /// A place for one more of a kind, unless there are too many.
    pub(crate) fn open(&self, kind: Kind) -> Option<Place<'_>> {
        let mut table = self.lock();
        let (count, most) = table.count(kind);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { connections: self, kind })
    }

    /// Ends every connection but one.
    pub(crate) fn drop_all_but(&self, kept: ConnectionId) {
        let tasks: Vec<AbortHandle> = {
            let table = self.lock();
            table.tasks.iter().filter(|(id, _)| **id != kept).filter_map(|(_, task)| task.clone()).collect()
        };
        for task in tasks {
            task.abort();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{CONNECTIONS_MAX, Connections, Kind, SHELLS_MAX, STREAMS_MAX};
    use std::future::pending;

    #[tokio::test]
    async fn the_newest_control_connection_ends_the_one_before() {
        let connections = Connections::default();
        let (first, second) = (connections.admit().expect("room"), connections.admit().expect("room"));
        let old = tokio::spawn(pending::<()>());
        let new = tokio::spawn(pending::<()>());
        connections.served_by(first, old.abort_handle());
        connections.served_by(second, new.abort_handle());
        connections.becomes_control(first);
        connections.becomes_control(second);
        assert!(old.await.expect_err("it was ended").is_cancelled());
        assert!(!new.is_finished());
        new.abort();
    }

    #[tokio::test]
    async fn all_but_one_are_dropped() {
        let connections = Connections::default();
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let id = connections.admit().expect("room");
            let task = tokio::spawn(pending::<()>());
            connections.served_by(id, task.abort_handle());
            tasks.push((id, task));
        }
        let (kept, survivor) = tasks.remove(2);
        connections.drop_all_but(kept);
        for (_, task) in tasks {
            assert!(task.await.expect_err("it was ended").is_cancelled());
        }
        assert!(!survivor.is_finished());
        survivor.abort();
    }

    #[test]
    fn limits_hold_and_are_given_back() {
        let connections = Connections::default();
        let ids: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connections.admit().expect("room")).collect();
        assert!(connections.admit().is_none());
        connections.remove(ids[0]);
        assert!(connections.admit().is_some());

        for (kind, most) in [(Kind::Stream, STREAMS_MAX), (Kind::Shell, SHELLS_MAX)] {
            let mut places: Vec<_> = (0..most).map(|_| connections.open(kind).expect("room")).collect();
            assert!(connections.open(kind).is_none(), "{kind:?}");
            places.pop();
            assert!(connections.open(kind).is_some(), "{kind:?}");
        }
    }
}
