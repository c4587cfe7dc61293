//! Who is calling: verification of AWS Signature Version 4.
//!
//! The algorithm ([`sigv4`]) is our own few pages over `hmac`, `sha2` and `subtle`, rather than a crate's: it is fixed
//! by a public document with public test vectors, the crates that verify (rather than make) signatures bring a principal
//! model and a second regular-expression and date stack with them, and the errors have to be AWS's word for word.

mod authenticator;
mod authorization;
mod caller;
mod error;
mod principals;
pub mod sigv4;
#[cfg(test)]
mod tests;

pub use authenticator::{Authenticator, Claim, SigningName};
pub use authorization::{access_key_id_of, service_of};
pub use caller::{Caller, Identity, User};
pub use error::AuthError;
pub use principals::{AccessKey, Principals};
