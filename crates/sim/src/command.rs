//! `sim serve`: the whole server over pretend VMs. At its API and its endpoints it behaves like `pilotlight serve`.
//! `sim edge`, `sim upstream`: the edge by itself, and what it is measured in front of. `sim train`: what is sent through it
//! for a profile.
//! `sim histories`: thousands of histories, each from a seed. `sim history`: one of them again, and what happens in it.

use std::{process::ExitCode, time::Duration};

use crate::{Delays, PretendHost, edge, histories::many, train, upstream};
use api::host::Layout;
use clap::{Args, Parser, Subcommand};
use control::{ControlConfig, Quotas};
use pilotlight::{
    cli::ServeArguments,
    config::Config,
    server::{self, EdgeIs, Guests},
};

#[derive(Debug, Parser)]
#[command(name = "sim", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the API, the endpoints of microVMs, and S3 for code artifacts.
    Serve(Box<Arguments>),
    /// Serve the edge by itself, in front of a server on this machine.
    Edge(edge::Arguments),
    /// Serve what the edge is measured in front of.
    Upstream,
    /// Send what the edge does most through it: for a compiler that arranges programs by what they were seen to do.
    Train(train::Arguments),
    /// Play histories, and say which seeds came to what must never be.
    Histories(Histories),
    /// Play the history of one seed, and print what happens in it.
    History {
        /// Its seed.
        seed: u64,
        /// Also what the server says of it, as RUST_LOG chooses.
        #[arg(long)]
        logs: bool,
    },
}

#[derive(Debug, Args)]
struct Histories {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// The first seed; the others follow it.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Threads; as many as there are processors, if not given.
    #[arg(long)]
    threads: Option<usize>,
    /// Play each of them twice, and compare.
    #[arg(long)]
    twice: bool,
}

#[derive(Debug, Args)]
struct Arguments {
    #[command(flatten)]
    serve: ServeArguments,
    /// How long a pretend build takes, after its artifact has been unpacked, in milliseconds.
    #[arg(long, default_value_t = 50)]
    build_ms: u64,
    /// How long each pretend run, suspend, resume and terminate takes, in milliseconds.
    #[arg(long, default_value_t = 5)]
    verb_ms: u64,
    /// MicroVMs there can be that have not ended.
    #[arg(long, default_value_t = Quotas::default().microvms)]
    microvms_max: u32,
}

/// Does what the command line says.
pub fn command() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Serve(arguments) => serve(&arguments),
        Verb::Edge(arguments) => edge::serve(&arguments),
        Verb::Upstream => upstream::serve(),
        Verb::Train(arguments) => train::run(&arguments),
        Verb::Histories(Histories { count, first, threads, twice }) => {
            many::play_many(first..first + count, threads, twice)
        }
        Verb::History { seed, logs } => many::play_one(seed, logs),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.serve)?;
    server::log_to_stderr();
    let delays =
        Delays { build: Duration::from_millis(arguments.build_ms), verb: Duration::from_millis(arguments.verb_ms) };
    // Tests make more than a machine would hold, several at once.
    let limits = ControlConfig {
        quotas: Quotas {
            images: 10_000,
            builds: 100,
            microvms: arguments.microvms_max,
            memory_mib: u64::from(u32::MAX),
            ..Quotas::default()
        },
        builds_concurrent_max: 4,
        ..ControlConfig::default()
    };
    let guests = Guests { name: "pretend VMs".to_owned(), because: "this is the simulation".to_owned() };
    server::run(&config, limits, &guests, EdgeIs::Here, async |artifacts| {
        let host = PretendHost::new(Layout { data: config.data_dir.clone() }, artifacts, delays);
        Ok((host, std::future::ready(())))
    })
}
