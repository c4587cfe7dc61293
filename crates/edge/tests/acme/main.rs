//! Certificates from a real ACME server, and what goes wrong with it, its names, its hook and this process.

mod authority;
mod dns;
mod endpoints;
mod world;
