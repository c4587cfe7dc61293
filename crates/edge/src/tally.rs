//! How many there are of each: what limits per key are held against.

use std::{collections::HashMap, hash::Hash};

/// The counts. A key without any takes no room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tally<K: Eq + Hash>(HashMap<K, usize>);

impl<K: Eq + Hash> Default for Tally<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Tally<K> {
    /// One more, and how many there were before; `None` if those are `most`.
    pub(crate) fn enter(&mut self, key: K, most: usize) -> Option<usize> {
        let before = self.0.get(&key).copied().unwrap_or(0);
        if before >= most {
            return None;
        }
        self.0.insert(key, before + 1);
        Some(before)
    }

    /// One of those that entered is gone.
    pub(crate) fn leave(&mut self, key: &K) {
        if let Some(count) = self.0.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }
}
