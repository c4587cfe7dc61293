//! Control against a host whose answers the test chooses.

mod architectures;
mod connectors;
mod histories;
mod images;
mod lifecycle;
mod races;
mod restart;
mod tags;
mod versions;
