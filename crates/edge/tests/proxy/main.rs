//! The real edge between a real TLS client and real apps on local sockets. Only the directory and the dialer, which
//! belong to other roles, are the tests' own.

mod frames;
mod servers;
mod support;

mod allowances;
mod app_tls;
mod apps;
mod clients;
mod drain;
mod faults;
mod floods;
mod http2;
mod lengths;
mod limits;
mod links;
mod refusals;
mod shells;
mod slow;
mod smuggling;
mod streaming;
mod upgrades;
mod waking;
mod websockets;
