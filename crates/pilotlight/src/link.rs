//! `pilotlight link`: a link that opens a microVM's page in a browser. Its token comes from the API, as any client's does.

use anyhow::Context;

use crate::{cli::LinkArguments, client::Access};

/// Prints the link.
pub fn print(arguments: &LinkArguments) -> anyhow::Result<()> {
    let access = Access::find(&arguments.data)?;
    let endpoint = access.endpoint_of(&arguments.microvm)?;
    let token = access.port_token(&arguments.microvm, arguments.port, arguments.expires)?;
    println!("{}", edge::link(&endpoint, &token, &arguments.to).context("--to")?);
    Ok(())
}
