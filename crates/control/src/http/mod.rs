//! The AWS-shaped API over HTTP: finds the operation, reads the request, writes the answer. Nothing here decides.

mod answer;
mod dispatch;
mod operations;
mod routes;
mod sts;
#[cfg(test)]
mod tests;
mod throttle;

pub use dispatch::router;
pub use operations::Operations;
pub use sts::router as sts_router;
pub use throttle::{ThrottleError, Throttles};
