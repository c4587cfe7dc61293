//! `pilotlight shell`: a shell in a microVM, as ssh would open one. It goes through the API and the microVM's endpoint, as
//! any client does.

mod escape;
mod session;
mod terminal;

use std::process::ExitCode;

use anyhow::Context;
use api::connector::ManagedConnector;

use self::{session::End, terminal::Raw};
use crate::{cli::ShellArguments, client::Access, endpoint, environment::quoted};

/// The exit code for whatever went wrong with the connection, as ssh has it: the shell's own are told apart from it.
const LOST: u8 = 255;

/// What the API says of a microVM that no connector lets shells into.
const NO_CONNECTOR: &str = "Shell access requires SHELL_INGRESS";

/// Opens a shell and carries it to its end; the exit code is the shell's.
pub fn run(arguments: &ShellArguments) -> ExitCode {
    match carry(arguments) {
        Ok(End::Exited(code)) => ExitCode::from(status(code)),
        Ok(End::Left) => ExitCode::from(LOST),
        Ok(End::Lost(why)) => {
            eprintln!("pilotlight: the connection to {} ended: {why}", arguments.microvm);
            ExitCode::from(LOST)
        }
        Err(error) => {
            eprintln!("pilotlight: {error:#}");
            ExitCode::from(LOST)
        }
    }
}

/// A server that does not tell how a shell ended leaves it at that.
fn status(code: Option<i32>) -> u8 {
    u8::try_from(code.unwrap_or(0) & 0xff).unwrap_or(LOST)
}

fn carry(arguments: &ShellArguments) -> anyhow::Result<End> {
    let access = Access::find(&arguments.data)?;
    let endpoint = access.endpoint_of(&arguments.microvm)?;
    let token = access.shell_token(&arguments.microvm).map_err(|error| explain(error, &access.region))?;
    let command = command(&arguments.command);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let end = runtime.block_on(async {
        let stream = endpoint::connect(&endpoint, access.ca.as_deref()).await?;
        let socket = session::open(stream, &endpoint, &token, command.as_deref()).await?;
        // From here on whatever happens drops it.
        let raw = Raw::enter().context("cannot change the terminal")?;
        session::run(socket, raw.is_terminal()).await
    });
    // The thread that reads keys may read for ever.
    runtime.shutdown_background();
    end
}

/// Says how to launch a microVM that has shells, where the API says that this one has none.
fn explain(error: anyhow::Error, region: &str) -> anyhow::Error {
    if !error.to_string().starts_with(NO_CONNECTOR) {
        return error;
    }
    let [shell, http] = [ManagedConnector::ShellIngress, ManagedConnector::HttpIngress].map(|it| it.arn(region));
    error.context(format!("launch the microVM with --ingress-network-connectors {shell} {http}"))
}

/// The words after `--` as a shell reads them: one is a line of its own, several are a program and its arguments as they
/// are.
fn command(words: &[String]) -> Option<String> {
    match words {
        [] => None,
        [line] => Some(line.clone()),
        words => Some(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_shell_as_they_are() {
        let command = |words: &[&str]| command(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(command(&[]), None);
        assert_eq!(command(&["cd /x && ls"]), Some("cd /x && ls".to_owned()));
        assert_eq!(command(&["echo", "it's $HOME", ""]), Some(r"'echo' 'it'\''s $HOME' ''".to_owned()));
    }

    #[test]
    fn a_microvm_without_shells_is_told_how_to_have_them() {
        let told = explain(anyhow::anyhow!("{NO_CONNECTOR} network connector to be configured"), "eu-west-1");
        let told = format!("{told:#}");
        assert!(told.contains("arn:aws:lambda:eu-west-1:aws:network-connector:aws-network-connector:SHELL_INGRESS"));
        assert_eq!(explain(anyhow::anyhow!("something else"), "eu-west-1").to_string(), "something else");
    }

    #[test]
    fn a_status_is_the_shells_last_byte() {
        assert_eq!([Some(0), Some(7), Some(130), Some(256), Some(-1), None].map(status), [0, 7, 130, 0, 255, 0]);
    }
}
