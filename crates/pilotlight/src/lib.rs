//! The command, as a library: `serve` wires the roles together, the other verbs look at what it keeps. A library so that
//! a server over another host than this machine's ([`server::run`]) is the same server.

#![forbid(unsafe_code)]

mod access;
mod apart;
mod authorities;
mod ca;
pub mod cli;
mod client;
pub mod config;
mod doctor;
mod door;
mod endpoint;
mod environment;
mod external;
mod firecracker_setup;
mod gateway;
mod iam;
mod link;
mod logs;
mod metrics;
pub mod roles;
mod running;
mod s3_access;
mod serve;
pub mod server;
mod shell;
mod storage;
mod tls;
mod token_keys;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, SetupVerb, Verb};

/// Does what the command line asks.
#[must_use]
pub fn command() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Serve(arguments) => serve::serve(arguments),
        Verb::Env(arguments) => environment::print(&arguments),
        Verb::Ca(arguments) => ca::print(&arguments),
        Verb::Doctor(arguments) => doctor::print(&arguments),
        Verb::Logs(arguments) => logs::print(&arguments),
        Verb::Link(arguments) => link::print(&arguments),
        Verb::Shell(arguments) => return shell::run(&arguments),
        Verb::Iam(arguments) => iam::run(&arguments),
        Verb::Setup(SetupVerb::Firecracker(arguments)) => firecracker_setup::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With its causes, once, here.
            eprintln!("pilotlight: {error:#}");
            ExitCode::FAILURE
        }
    }
}
