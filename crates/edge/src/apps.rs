//! What was learnt of each app: is its port TLS, does it speak HTTP/2.
//!
//! It is kept per microVM and not per VM, since an app that slept is the same when it wakes. It may be wrong, once an app
//! has been replaced by another: whoever finds it so forgets it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use api::ids::MicrovmId;

/// Apps remembered at most. At the limit all are forgotten, which costs each a look.
const APPS: usize = 16 * 1024;

/// What is known of one port of a microVM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) transport: Option<Transport>,
    /// Over the transport.
    pub(crate) http2: Option<bool>,
}

/// What is beneath HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    Tls,
}

/// What is known of all.
#[derive(Default)]
pub(crate) struct Apps(Mutex<HashMap<(MicrovmId, u16), Known>>);

impl Apps {
    // An entry is written in one step, so a poisoned lock is still good.
    fn map(&self) -> MutexGuard<'_, HashMap<(MicrovmId, u16), Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, microvm: MicrovmId, port: u16) -> Known {
        self.map().get(&(microvm, port)).copied().unwrap_or_default()
    }

    /// Keeps what was known of HTTP/2 where nothing new is, unless the transport is another.
    pub(crate) fn learn(&self, microvm: MicrovmId, port: u16, transport: Transport, http2: Option<bool>) {
        let mut map = self.map();
        if map.len() >= APPS && !map.contains_key(&(microvm, port)) {
            map.clear();
        }
        let known = map.entry((microvm, port)).or_default();
        let before = if known.transport == Some(transport) { known.http2 } else { None };
        *known = Known { transport: Some(transport), http2: http2.or(before) };
    }

    pub(crate) fn forget(&self, microvm: MicrovmId, port: u16) {
        self.map().remove(&(microvm, port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learnt_stays_until_the_transport_changes() {
        let (apps, microvm) = (Apps::default(), MicrovmId::random());
        assert_eq!(apps.get(microvm, 80), Known::default());
        apps.learn(microvm, 80, Transport::Plain, Some(true));
        apps.learn(microvm, 80, Transport::Plain, None);
        assert_eq!(apps.get(microvm, 80), Known { transport: Some(Transport::Plain), http2: Some(true) });
        apps.learn(microvm, 80, Transport::Tls, None);
        assert_eq!(apps.get(microvm, 80), Known { transport: Some(Transport::Tls), http2: None });
        apps.forget(microvm, 80);
        assert_eq!(apps.get(microvm, 80), Known::default());
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let (apps, microvm) = (Apps::default(), MicrovmId::random());
        for _ in 0..=APPS {
            apps.learn(MicrovmId::random(), 80, Transport::Plain, None);
        }
        apps.learn(microvm, 80, Transport::Tls, None);
        assert!(apps.map().len() <= APPS);
        assert_eq!(apps.get(microvm, 80).transport, Some(Transport::Tls));
    }
}
