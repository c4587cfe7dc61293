//! How often an operation may be called: the service's token buckets, whose size is their rate.
//!
//! One bucket per operation for the whole account, as there. A call that finds it empty is refused before anything of
//! it is read.

use std::{collections::BTreeMap, num::NonZeroU32};

use api::{catalogue, error::ServiceError};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock};

use super::routes::ROUTES;

/// A rate that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThrottleError {
    /// There is no such operation.
    #[error("'{0}' is not an operation; they are named as in the service's API, such as RunMicrovm")]
    NoOperation(String),
    /// Nothing could ever be called.
    #[error("the rate of {0} is 0; leave it out for no limit")]
    Zero(String),
}

/// The buckets.
#[derive(Debug, Default)]
pub struct Throttles(BTreeMap<&'static str, DefaultDirectRateLimiter>);

impl Throttles {
    /// Calls per second of operations, by their names; those left out have no limit.
    pub fn new<'n>(rates: impl IntoIterator<Item = (&'n str, u32)>) -> Result<Self, ThrottleError> {
        let mut buckets = BTreeMap::new();
        for (name, rate) in rates {
            let route = ROUTES.iter().find(|route| route.name == name);
            let route = route.ok_or_else(|| ThrottleError::NoOperation(name.to_owned()))?;
            let rate = NonZeroU32::new(rate).ok_or_else(|| ThrottleError::Zero(name.to_owned()))?;
            buckets.insert(route.name, RateLimiter::direct(Quota::per_second(rate)));
        }
        Ok(Self(buckets))
    }

    /// Takes one call of an operation from its bucket.
    pub(super) fn take(&self, name: &str) -> Result<(), ServiceError> {
        let Some(bucket) = self.0.get(name) else { return Ok(()) };
        bucket.check().map_err(|until| {
            let wait = until.wait_time_from(bucket.clock().now());
            // In whole seconds, as the header has it, and never at once.
            catalogue::rate_exceeded(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_one_second() {
        let throttles = Throttles::new([("RunMicrovm", 3)]).unwrap();
        for _ in 0..3 {
            throttles.take("RunMicrovm").unwrap();
        }
        let refused = throttles.take("RunMicrovm").unwrap_err();
        assert_eq!(refused, catalogue::rate_exceeded(1));
        for _ in 0..100 {
            throttles.take("GetMicrovm").unwrap();
        }
    }

    #[test]
    fn a_rate_is_of_an_operation_and_not_zero() {
        let error = Throttles::new([("runMicrovm", 1)]).unwrap_err();
        assert_eq!(error, ThrottleError::NoOperation("runMicrovm".into()));
        assert_eq!(Throttles::new([("RunMicrovm", 0)]).unwrap_err(), ThrottleError::Zero("RunMicrovm".into()));
    }
}
