//! The AWS-shaped API over HTTP: finds the operation, reads the request, writes the answer. Nothing here decides.

mod answer;
#[cfg(test)]
mod compatibility;
mod dispatch;
mod operations;
mod routes;
#[cfg(test)]
mod tests;
mod throttle;

pub use dispatch::router;
pub use operations::Operations;
pub use throttle::{ThrottleError, Throttles};
