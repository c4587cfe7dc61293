//! The listener: one task per connection, for the host alone.

use crate::agent::Agent;
use crate::boot::{BootError, console};
use crate::connections::ConnectionId;
use crate::{app, control, shell, stream};
use guest_protocol::{
    AGENT_PORT, FrameError, GENERATION, GUEST_ADDRESS, HOST_ADDRESS, Open, Opened, Purpose, read_frame, write_frame,
};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// Connections the kernel holds while the agent is busy.
const BACKLOG: u32 = 1024;

/// Serves the host for ever.
pub(crate) fn run(agent: Agent) -> Result<Infallible, BootError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(BootError::Runtime)?;
    runtime.block_on(async {
        let children = signal(SignalKind::child()).map_err(BootError::Runtime)?;
        let agent = Arc::new(agent);
        tokio::spawn(app::reap_children(Arc::clone(&agent), children));

        let address = SocketAddrV4::new(GUEST_ADDRESS, AGENT_PORT);
        let listener = listen(address).map_err(|source| BootError::Listen { address, source })?;
        console::say(&format!("pilotlight-agent ready generation {GENERATION}"));
        accept(&agent, listener).await
    })
}

fn listen(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address.into())?;
    socket.listen(BACKLOG)
}

async fn accept(agent: &Arc<Agent>, listener: TcpListener) -> ! {
    loop {
        let (connection, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // The errors of accept(2) belong to the connection that failed; the next one may be fine.
                console::say(&format!("pilotlight-agent: a connection could not be accepted: {error}"));
                tokio::task::yield_now().await;
                continue;
            }
        };
        if peer.ip() != IpAddr::V4(HOST_ADDRESS) {
            continue;
        }
        // Over the limit the connection just closes: the host has lost count of them, and each costs memory.
        let Some(id) = agent.connections.admit() else { continue };
        let admitted = Admitted { agent: Arc::clone(agent), id };
        let task = tokio::spawn(async move {
            // What fails here is a connection; the host sees it close and opens another.
            let _ = serve(&admitted, connection).await;
        });
        agent.connections.served_by(id, task.abort_handle());
    }
}

/// An admitted connection; it leaves the registry however its task ends.
struct Admitted {
    agent: Arc<Agent>,
    id: ConnectionId,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.agent.connections.remove(self.id);
    }
}

/// The wait for the opening has no clock of its own: the host alone gets here, the number of connections is limited,
/// and a restore drops them all.
async fn serve(admitted: &Admitted, mut connection: TcpStream) -> Result<(), FrameError> {
    let Admitted { agent, id } = admitted;
    connection.set_nodelay(true).map_err(FrameError::Io)?;
    // The host's generation decides how newer messages are spoken; nothing newer than the first is sent unasked.
    let open: Open = read_frame(&mut connection).await?;
    match open.purpose {
        Purpose::Control => {
            write_frame(&mut connection, &Opened { generation: GENERATION, error: None }).await?;
            agent.connections.becomes_control(*id);
            control::serve(agent, *id, connection).await
        }
        Purpose::Connect { port } => stream::serve(agent, connection, port).await,
        Purpose::Shell { command } => shell::serve(agent, connection, command).await,
    }
}
