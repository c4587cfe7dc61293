//! What the agent knows, and how it answers the host's requests.

use crate::app::{self, App};
use crate::boot::{BootError, console};
use crate::connections::{ConnectionId, Connections};
use crate::outbound::Outbound;
use crate::park::Park;
use crate::restored;
use guest_protocol::{Reply, RequestBody};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The agent's state. It is shared between the tasks of one thread; no lock is held across a wait.
pub(crate) struct Agent {
    /// The host's connections.
    pub(crate) connections: Connections,
    /// There is output to send, or the app ended.
    pub(crate) news: Notify,
    app: Mutex<App>,
    /// Opened at boot: a restore has less to do.
    random: File,
    /// Likewise.
    outbound: Outbound,
    park: Park,
    scratch: OwnedFd,
}

impl Agent {
    /// An agent that has not started its app. `scratch` is the root of the scratch file system.
    pub(crate) fn new(scratch: OwnedFd) -> Result<Agent, BootError> {
        let path = "/dev/urandom";
        let random = OpenOptions::new().write(true).open(path).map_err(|source| BootError::File {
            verb: "open",
            path: path.to_owned(),
            source,
        })?;
        Ok(Agent {
            connections: Connections::default(),
            news: Notify::new(),
            app: Mutex::new(App::default()),
            random,
            outbound: Outbound::open().map_err(BootError::Outbound)?,
            park: Park::default(),
            scratch,
        })
    }

    /// The app.
    pub(crate) fn app(&self) -> MutexGuard<'_, App> {
        self.app.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a request of the connection `from` asks.
    pub(crate) async fn answer(self: &Arc<Self>, from: ConnectionId, request: RequestBody) -> Reply {
        let done = match request {
            RequestBody::Start(spec) => {
                // A task of its own: a start goes on to its end even if the connection that asked for it goes away.
                match tokio::spawn(app::start(Arc::clone(self), spec)).await {
                    Ok(started) => started.map_err(|error| console::chain(&error)),
                    Err(_) => Err("the start of the app was given up".to_owned()),
                }
            }
            RequestBody::Restored { unix_nanos, seed, outbound_lives } => {
                self.restored(from, unix_nanos, &seed, outbound_lives).map_err(|error| console::chain(&error))
            }
            // This holds up the whole agent, on purpose: the VM is about to be stopped, and with a second thread no
            // process can be started.
            RequestBody::Quiesce => rustix::fs::syncfs(&self.scratch)
                .map_err(|errno| format!("cannot write the scratch disk: {}", std::io::Error::from(errno))),
            RequestBody::Park { time_max_millis } => {
                let begun = self.park.begin(Duration::from_millis(time_max_millis.into()));
                begun.map_err(|error| console::chain(&error))
            }
            RequestBody::Status => Ok(()),
        };
        match done {
            Ok(()) => Reply::App(self.app().status()),
            Err(reason) => Reply::Failed { reason },
        }
    }

    /// In this order: nothing may read the old time or draw the old random numbers once the app's peers, which see
    /// their connections end, come to life.
    fn restored(
        &self,
        from: ConnectionId,
        unix_nanos: u64,
        seed: &str,
        outbound_lives: bool,
    ) -> Result<(), restored::RestoredError> {
        restored::set_clock(unix_nanos)?;
        restored::reseed(&self.random, seed)?;
        if !outbound_lives && let Err(error) = self.outbound.abort() {
            // They end all the same, later, when nobody answers; a session is not given up for that.
            console::say(&format!("pilotlight-agent: connections of the life before stay: {}", console::chain(&error)));
        }
        self.connections.drop_all_but(from);
        self.park.end();
        Ok(())
    }
}
