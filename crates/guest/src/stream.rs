//! A byte stream between the host and a port of the app.

use crate::agent::Agent;
use crate::connections::Kind;
use guest_protocol::{FrameError, GENERATION, Opened, write_frame};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

/// Bytes on their way, in each direction of each stream.
const BUFFER_BYTES: usize = 16 * 1024;

/// Connects the host to a port of the app and copies both ways until both sides are done. The end of one direction is
/// handed on as such; a failure of either side resets both, so that a cut answer does not look like a whole one.
pub(crate) async fn serve(agent: &Agent, mut host: TcpStream, port: u16) -> Result<(), FrameError> {
    let Some(_place) = agent.connections.open(Kind::Stream) else {
        return refuse(&mut host, "too many connections are open".to_owned()).await;
    };
    let mut app = match connect(port).await {
        Ok(app) => app,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return refuse(&mut host, format!("nothing listens on port {port}")).await;
        }
        Err(error) => return refuse(&mut host, format!("cannot connect to port {port}: {error}")).await,
    };
    app.set_nodelay(true).map_err(FrameError::Io)?;
    write_frame(&mut host, &Opened { generation: GENERATION, error: None }).await?;
    if let Err(error) = copy_bidirectional_with_sizes(&mut host, &mut app, BUFFER_BYTES, BUFFER_BYTES).await {
        let _ = host.set_zero_linger();
        let _ = app.set_zero_linger();
        return Err(FrameError::Io(error));
    }
    Ok(())
}

/// Apps listen on either family of the loopback address; IPv4 is the common one and comes first.
async fn connect(port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(app) => Ok(app),
        Err(_) => TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await,
    }
}

/// Says why there is no stream, or nothing else.
pub(crate) async fn refuse(host: &mut TcpStream, reason: String) -> Result<(), FrameError> {
    write_frame(host, &Opened { generation: GENERATION, error: Some(reason) }).await
}
