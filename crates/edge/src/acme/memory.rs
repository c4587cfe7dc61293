//! Endpoints' certificates that are held in memory: those that were used last.

use std::{collections::HashMap, sync::Arc};

use api::ids::EndpointId;
use rustls::ServerConfig;
use time::OffsetDateTime;

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// TLS that serves it.
    pub(crate) config: Arc<ServerConfig>,
    /// When it is to be renewed.
    pub(crate) renewal: OffsetDateTime,
    /// The last moment that it is good for.
    pub(crate) to: OffsetDateTime,
}

/// So many at most.
#[derive(Debug)]
pub(crate) struct Memory {
    most: usize,
    /// Counts uses, to tell which is the longest ago.
    uses: u64,
    held: HashMap<EndpointId, (Held, u64)>,
}

impl Memory {
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), uses: 0, held: HashMap::new() }
    }

    /// The one of an endpoint, if it is good now.
    pub(crate) fn get(&mut self, endpoint: &EndpointId, now: OffsetDateTime) -> Option<Held> {
        let (held, used) = self.held.get_mut(endpoint)?;
        if now > held.to {
            self.held.remove(endpoint);
            return None;
        }
        self.uses += 1;
        *used = self.uses;
        Some(held.clone())
    }

    pub(crate) fn insert(&mut self, endpoint: EndpointId, held: Held) {
        if self.held.len() >= self.most && !self.held.contains_key(&endpoint) {
            // Looked for only when one was read from the disk or ordered, which takes far longer.
            let oldest = self.held.iter().min_by_key(|(_, (_, used))| *used).map(|(endpoint, _)| *endpoint);
            oldest.and_then(|endpoint| self.held.remove(&endpoint));
        }
        self.uses += 1;
        self.held.insert(endpoint, (held, self.uses));
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use time::{Duration, macros::datetime};

    use super::*;
    use crate::acme::pending::Shown;

    const NOON: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn held(to: OffsetDateTime) -> Held {
        let Ok(Shown::TlsAlpn(config)) = Shown::tls_alpn("a.test", &[0; 32]) else { panic!("a configuration") };
        Held { config, renewal: to, to }
    }

    #[test]
    fn the_one_used_longest_ago_makes_room() {
        let mut memory = Memory::new(2);
        let [first, second, third] = [(); 3].map(|()| EndpointId::random());
        memory.insert(first, held(NOON));
        memory.insert(second, held(NOON));
        assert!(memory.get(&first, NOON).is_some());
        // Its own place is enough for one that is renewed.
        memory.insert(first, held(NOON));
        assert_eq!(memory.len(), 2);
        memory.insert(third, held(NOON));
        let here = [first, second, third].map(|endpoint| memory.get(&endpoint, NOON).is_some());
        assert_eq!((here, memory.len()), ([true, false, true], 2));
    }

    #[test]
    fn one_that_is_over_is_forgotten() {
        let mut memory = Memory::new(2);
        let endpoint = EndpointId::random();
        memory.insert(endpoint, held(NOON));
        assert!(memory.get(&endpoint, NOON).is_some());
        assert!(memory.get(&endpoint, NOON + Duration::SECOND).is_none());
        assert_eq!(memory.len(), 0);
    }
}
