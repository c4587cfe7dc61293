//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{firecracker_setup, roles::Roles};

/// AWS Lambda MicroVMs on your own machine.
#[derive(Debug, Parser)]
#[command(name = "pilotlight", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What the command can do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve the API, the endpoints of microVMs, and S3 for code artifacts.
    Serve(RolesArguments),
    /// Print the exports that point AWS clients at the running server: eval "$(pilotlight env)".
    Env(DataArguments),
    /// Print how to have browsers and other clients trust the endpoints' certificate.
    Ca(CaArguments),
    /// Say what this machine can do, and what is chosen because of it.
    Doctor(DoctorArguments),
    /// Print what a microVM's application wrote, or how a build went.
    Logs(LogsArguments),
    /// Open a shell in a microVM that was launched with SHELL_INGRESS, or carry out a command there.
    ///
    /// It calls the API that AWS_ENDPOINT_URL and its like name, or else the server of this machine. The exit code is the
    /// shell's; 255 if the connection fails. At the beginning of a line, ~. disconnects and ~? says what else there is.
    Shell(ShellArguments),
    /// Print a link that opens a microVM's page in a browser, where the configuration allows that for its image (`[links]`).
    ///
    /// Whoever has the link may use the microVM's port until it expires. It asks the API that AWS_ENDPOINT_URL and its like
    /// name, or else the server of this machine.
    Link(LinkArguments),
    /// Manage who may call: users, their access keys and policies. A server that runs sees a change within a second.
    Iam(IamArguments),
    /// Get what this machine can do better with.
    #[command(subcommand)]
    Setup(SetupVerb),
}

/// Flags of `ca`.
#[derive(Debug, Clone, Args)]
pub struct CaArguments {
    /// The files.
    #[command(flatten)]
    pub data: DataArguments,
    /// Print the authority's certificate and nothing else.
    #[arg(long)]
    pub pem: bool,
}

/// Flags of `shell`.
#[derive(Debug, Clone, Args)]
pub struct ShellArguments {
    /// The files.
    #[command(flatten)]
    pub data: DataArguments,
    /// The microVM's id.
    pub microvm: String,
    /// Carried out in place of a shell to type into: one word as a shell reads a line, several as a program and its
    /// arguments.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Flags of `link`.
#[derive(Debug, Clone, Args)]
pub struct LinkArguments {
    /// The files.
    #[command(flatten)]
    pub data: DataArguments,
    /// The microVM's id.
    pub microvm: String,
    /// The port of the app.
    #[arg(long, default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// How long the link is good for, and what comes of it, in minutes (1 to 60).
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub expires: u32,
    /// The path that it leads to, with a query perhaps.
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub to: String,
}

/// Flags of `iam`.
#[derive(Debug, Clone, Args)]
pub struct IamArguments {
    /// The files.
    #[command(flatten)]
    pub data: DataArguments,
    /// What to do.
    #[command(subcommand)]
    pub verb: IamVerb,
}

/// What `iam` manages.
#[derive(Debug, Clone, Subcommand)]
pub enum IamVerb {
    /// Users: 1 to 64 letters, digits and _+=,.@- make a name; at most 5,000.
    #[command(subcommand)]
    User(UserVerb),
    /// Access keys of users; at most 2 each.
    #[command(subcommand)]
    Key(KeyVerb),
    /// What a user may do; at most 10 policies each, of 6,144 characters without white space.
    #[command(subcommand)]
    Policy(PolicyVerb),
}

/// What can be done to users.
#[derive(Debug, Clone, Subcommand)]
pub enum UserVerb {
    /// Make a user, who may do nothing yet.
    Create {
        /// Its name.
        name: String,
    },
    /// Every user: ARN, id, time of creation.
    List,
    /// Delete a user that has no access keys and policies any more.
    Delete {
        /// Its name.
        name: String,
        /// With its access keys and policies.
        #[arg(long)]
        force: bool,
    },
}

/// What can be done to access keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KeyVerb {
    /// Make an access key and print it as exports for a shell. The secret is shown this once.
    Create {
        /// Whose.
        #[arg(long, value_name = "NAME")]
        user: String,
    },
    /// Access keys: id, Active or Inactive, time of creation, user.
    List {
        /// Only this user's.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Delete an access key.
    Delete {
        /// The access key's id.
        #[arg(value_name = "KEY_ID")]
        id: String,
    },
    /// Refuse what is signed with an access key, until it is activated again.
    Deactivate {
        /// The access key's id.
        #[arg(value_name = "KEY_ID")]
        id: String,
    },
    /// Take what is signed with an access key again.
    Activate {
        /// The access key's id.
        #[arg(value_name = "KEY_ID")]
        id: String,
    },
}

/// What can be done to policies.
#[derive(Debug, Clone, Subcommand)]
pub enum PolicyVerb {
    /// Put a policy, in place of one of the same name.
    Put {
        /// Whose.
        #[arg(long, value_name = "NAME")]
        user: String,
        /// The policy's name.
        #[arg(long, value_name = "POLICY")]
        name: String,
        /// Its JSON; - reads standard input.
        #[arg(long, value_name = "FILE")]
        document: PathBuf,
    },
    /// A user's policies: name, time of the last change.
    List {
        /// Whose.
        #[arg(long, value_name = "NAME")]
        user: String,
    },
    /// Print a policy as it was put.
    Get {
        /// Whose.
        #[arg(long, value_name = "NAME")]
        user: String,
        /// The policy's name.
        #[arg(long, value_name = "POLICY")]
        name: String,
    },
    /// Delete a policy.
    Delete {
        /// Whose.
        #[arg(long, value_name = "NAME")]
        user: String,
        /// The policy's name.
        #[arg(long, value_name = "POLICY")]
        name: String,
    },
}

/// What can be got.
#[derive(Debug, Subcommand)]
pub enum SetupVerb {
    /// Fetch an official Firecracker release, check it, and put it where KVM machines are run with it.
    // `--version` is the release's here.
    #[command(disable_version_flag = true)]
    Firecracker(FirecrackerArguments),
}

/// Flags of `setup firecracker`.
#[derive(Debug, Clone, Args)]
pub struct FirecrackerArguments {
    /// Configuration file; see docs/configuration.md.
    #[arg(long, env = "PILOTLIGHT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Directory `make setup` filled [default: /var/lib/pilotlight/assets].
    #[arg(long, env = "PILOTLIGHT_ASSETS")]
    pub assets_dir: Option<PathBuf>,
    /// The release.
    #[arg(long, value_name = "vX.Y.Z", default_value_t = firecracker_setup::DEFAULT)]
    pub version: firecracker_setup::Version,
    /// Where releases are, laid out as the project's own: a directory of files for each version.
    #[arg(long, value_name = "URL", default_value = firecracker_setup::RELEASES)]
    pub from: String,
    /// Directory for the program [default: firecracker in the assets directory].
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
    /// Certificate authorities to trust in place of this machine's, in PEM form.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Where the server keeps its files.
#[derive(Debug, Clone, Args)]
pub struct DataArguments {
    /// Configuration file; see docs/configuration.md.
    #[arg(long, env = "PILOTLIGHT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Directory the server keeps everything in [default: /var/lib/pilotlight].
    #[arg(long, env = "PILOTLIGHT_DATA")]
    pub data_dir: Option<PathBuf>,
}

/// Where the files are that microVMs are made of.
#[derive(Debug, Clone, Args)]
pub struct AssetArguments {
    /// Directory `make setup` filled: guest kernel, base images [default: /var/lib/pilotlight/assets].
    #[arg(long, env = "PILOTLIGHT_ASSETS")]
    pub assets_dir: Option<PathBuf>,
    /// The guest's initramfs with the agent [default: initramfs.img in the assets directory].
    #[arg(long, env = "PILOTLIGHT_INITRAMFS")]
    pub initramfs: Option<PathBuf>,
}

/// Flags of `serve`.
#[derive(Debug, Clone, Args)]
pub struct RolesArguments {
    /// What this process does: control,host,edge in one; or control,host, and edge in another with the same configuration and
    /// data directory, whose endpoints then go on while the former is restarted.
    #[arg(long, value_name = "ROLES", default_value_t = Roles::All)]
    pub roles: Roles,
    /// The others.
    #[command(flatten)]
    pub serve: ServeArguments,
}

/// Flags of a server; each wins over its key in the configuration file.
#[derive(Debug, Clone, Args)]
pub struct ServeArguments {
    /// The files.
    #[command(flatten)]
    pub data: DataArguments,
    /// What `make setup` made.
    #[command(flatten)]
    pub assets: AssetArguments,
    /// Address for all AWS clients [default: 127.0.0.1:4580]; port 0 takes a free one.
    #[arg(long)]
    pub api_address: Option<SocketAddr>,
    /// Port of the microVMs' endpoints [default: 4443]; 0 takes a free one.
    #[arg(long)]
    pub edge_port: Option<u16>,
    /// AWS region this server answers as [default: us-east-1].
    #[arg(long)]
    pub region: Option<String>,
}

/// Flags of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArguments {
    /// The files.
    #[command(flatten)]
    pub data: DataArguments,
    /// What `make setup` made.
    #[command(flatten)]
    pub assets: AssetArguments,
    /// For programs: one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArguments {
    /// The files.
    #[command(flatten)]
    pub data: DataArguments,
    /// A microVM's id; with --build, an image's name or ARN.
    pub name: String,
    /// The newest build of an image rather than a microVM.
    #[arg(long)]
    pub build: bool,
    /// The guest's serial console rather than the application's output.
    #[arg(long)]
    pub console: bool,
}
