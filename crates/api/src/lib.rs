//! The wire contracts: shapes, constraints, errors, ids and ARNs of the AWS services, and the contracts through which
//! Pilotlight's own roles meet without knowing each other.

#![forbid(unsafe_code)]

pub mod apart;
pub mod arn;
pub mod catalogue;
pub mod connector;
pub mod connectors;
pub mod constraint;
pub mod directory;
pub mod error;
pub mod hooks;
pub mod host;
pub mod ids;
pub mod images;
pub mod input;
pub mod logging;
pub mod microvms;
pub mod page;
pub mod sensitive;
pub mod shell;
pub mod size;
pub mod subprotocol;
pub mod tags;
pub mod timestamp;
pub mod token;
pub mod word;
