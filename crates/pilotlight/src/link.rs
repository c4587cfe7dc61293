//! `pilotlight link`: a link that opens a microVM's page in a browser. Its token comes from the API, as any client's does.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use http::{Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::{cli::LinkArguments, client::Access, endpoint};

/// How long the endpoint may take to say what it makes of the link; nothing is woken for it.
const TRY_TIME_MAX: Duration = Duration::from_secs(10);

/// Prints the link, unless its endpoint does not take it.
pub fn print(arguments: &LinkArguments) -> anyhow::Result<()> {
    let access = Access::find(&arguments.data)?;
    let endpoint = access.endpoint_of(&arguments.microvm)?;
    let token = access.port_token(&arguments.microvm, arguments.port, arguments.expires)?;
    let link = edge::link(&endpoint, &token, &arguments.to).context("--to")?;
    match follow(&endpoint, &link, access.ca.as_deref()) {
        Ok(StatusCode::SEE_OTHER) => {}
        // Strangers are told no more than that.
        Ok(StatusCode::FORBIDDEN) => bail!(
            "the endpoint of {} refuses the link; most likely its image allows no links, which the server's configuration \
             can: [links.images.NAME] with allowed = true",
            arguments.microvm
        ),
        Ok(status) => eprintln!("pilotlight: the endpoint answers the link with {status} at the moment"),
        // Whoever is sent the link may be nearer to the endpoint.
        Err(error) => eprintln!("pilotlight: whether the link works could not be tried from here: {error:#}"),
    }
    println!("{link}");
    Ok(())
}

/// What the endpoint answers to the link.
fn follow(endpoint: &str, link: &str, ca: Option<&Path>) -> anyhow::Result<StatusCode> {
    let target = link.strip_prefix("https://").and_then(|link| link.strip_prefix(endpoint));
    let target = target.context("the link is for another endpoint")?;
    let request = Request::get(target).header(header::HOST, endpoint).body(String::new())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let answer = async {
        let stream = endpoint::connect(endpoint, ca).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // How it ends, the answer tells.
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?.status())
    };
    let answered = runtime.block_on(async { timeout(TRY_TIME_MAX, answer).await });
    // The name may be looked up still.
    runtime.shutdown_background();
    answered.unwrap_or_else(|_| bail!("it does not answer in time"))
}
