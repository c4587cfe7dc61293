//! What is not ordered for a while after something failed: one endpoint's certificate, or any. The time and the dice are given.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use api::ids::EndpointId;

use super::schedule::Pauses;

/// Endpoints that are remembered to have failed; one more makes the one forgotten that would be tried first.
const ENDPOINTS_MAX: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Rest {
    failures: u32,
    until: Instant,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Rests {
    /// After failures that are an endpoint's.
    of_endpoint: Pauses,
    /// After those that are the authority's.
    of_all: Pauses,
    endpoints: HashMap<EndpointId, Rest>,
    all: Option<Rest>,
}

impl Rests {
    pub(crate) fn new(of_endpoint: Pauses, of_all: Pauses) -> Self {
        Self { of_endpoint, of_all, endpoints: HashMap::new(), all: None }
    }

    /// Whether one may be ordered for this endpoint.
    pub(crate) fn are_over(&self, endpoint: &EndpointId, now: Instant) -> bool {
        let is_over = |rest: &Rest| now >= rest.until;
        self.all.as_ref().is_none_or(is_over) && self.endpoints.get(endpoint).is_none_or(is_over)
    }

    /// An order failed for a reason that may be the endpoint's; how long it rests.
    pub(crate) fn endpoint_failed(&mut self, endpoint: EndpointId, now: Instant, dice: f64) -> Duration {
        if self.endpoints.len() >= ENDPOINTS_MAX && !self.endpoints.contains_key(&endpoint) {
            let first = self.endpoints.iter().min_by_key(|(_, rest)| rest.until).map(|(endpoint, _)| *endpoint);
            first.and_then(|endpoint| self.endpoints.remove(&endpoint));
        }
        let failures = self.endpoints.get(&endpoint).map_or(0, |rest| rest.failures).saturating_add(1);
        let pause = self.of_endpoint.after(failures, dice);
        self.endpoints.insert(endpoint, Rest { failures, until: now + pause });
        pause
    }

    /// The authority could not be asked; how long all rest.
    pub(crate) fn all_failed(&mut self, now: Instant, dice: f64) -> Duration {
        // What was under way together fails together, which is one failure.
        if let Some(rest) = self.all.filter(|rest| now < rest.until) {
            return rest.until - now;
        }
        let failures = self.all.map_or(0, |rest| rest.failures).saturating_add(1);
        let pause = self.of_all.after(failures, dice);
        self.all = Some(Rest { failures, until: now + pause });
        pause
    }

    /// All rest for this long, as the authority says, or a limit of ours; or longer if they do already.
    pub(crate) fn all_wait(&mut self, now: Instant, pause: Duration) {
        let Rest { failures, until } = self.all.unwrap_or(Rest { failures: 0, until: now });
        self.all = Some(Rest { failures, until: until.max(now + pause) });
    }

    /// One was issued.
    pub(crate) fn succeeded(&mut self, endpoint: &EndpointId, now: Instant) {
        self.endpoints.remove(endpoint);
        // Others may rest on the authority's word, which this one was too early to hear.
        self.all = self.all.filter(|rest| now < rest.until).map(|rest| Rest { failures: 0, ..rest });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rests() -> Rests {
        let pauses = |first| Pauses { first: first * SECOND, longest: 4 * first * SECOND };
        Rests::new(pauses(100), pauses(10))
    }

    #[test]
    fn an_endpoint_that_failed_rests_longer_each_time_and_nobody_else_does() {
        let (mut rests, mut now) = (rests(), Instant::now());
        let [one, other] = [(); 2].map(|()| EndpointId::random());
        for seconds in [100, 200, 400, 400] {
            assert_eq!(rests.endpoint_failed(one, now, 0.0), seconds * SECOND);
            assert!(!rests.are_over(&one, now + (seconds * SECOND - Duration::from_nanos(1))));
            assert!(rests.are_over(&other, now));
            now += seconds * SECOND;
            assert!(rests.are_over(&one, now));
        }
        rests.succeeded(&one, now);
        assert_eq!(rests.endpoint_failed(one, now, 0.0), 100 * SECOND);
    }

    #[test]
    fn an_authority_that_cannot_be_asked_is_left_alone_by_all() {
        let (mut rests, now) = (rests(), Instant::now());
        let endpoint = EndpointId::random();
        assert_eq!(rests.all_failed(now, 0.0), 10 * SECOND);
        assert_eq!(rests.all_failed(now + 4 * SECOND, 0.0), 6 * SECOND, "it was under way");
        assert!(!rests.are_over(&endpoint, now + 9 * SECOND));
        assert!(rests.are_over(&endpoint, now + 10 * SECOND));
        assert_eq!(rests.all_failed(now + 10 * SECOND, 0.0), 20 * SECOND);
        rests.all_wait(now + 10 * SECOND, SECOND);
        assert!(!rests.are_over(&endpoint, now + 29 * SECOND), "not shorter");
        rests.all_wait(now + 10 * SECOND, 60 * SECOND);
        rests.succeeded(&endpoint, now + 30 * SECOND);
        assert!(!rests.are_over(&endpoint, now + 69 * SECOND), "the authority's word stands");
        assert_eq!(rests.all_failed(now + 70 * SECOND, 0.0), 10 * SECOND, "and the count begins anew");
    }

    #[test]
    fn no_more_endpoints_are_remembered_than_that() {
        let (mut rests, now) = (rests(), Instant::now());
        let first = EndpointId::random();
        rests.endpoint_failed(first, now, 0.0);
        for _ in 0..ENDPOINTS_MAX - 1 {
            rests.endpoint_failed(EndpointId::random(), now + SECOND, 0.0);
        }
        assert!(!rests.are_over(&first, now));
        rests.endpoint_failed(EndpointId::random(), now + SECOND, 0.0);
        assert!(rests.are_over(&first, now));
        assert_eq!(rests.endpoints.len(), ENDPOINTS_MAX);
    }
}
