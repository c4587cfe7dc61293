//! The way into a VM: connections to its agent, which end with it.
//!
//! The host has one into each of its machines. Another process of this machine can have one too: it knows the VM's network
//! namespace, and is told when the VM is over.

use std::{io, sync::Arc, time::Duration};

use api::{
    apart::Place,
    directory::{AppStream, DialError},
    shell::{Shell, ShellError},
};
use guest_protocol::{Purpose, SHELLS_SINCE};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{self, AgentError},
    machine::Machine,
    network::{Namespace, NetworkError},
    platform::SharedNetwork,
    shell,
    stream::GuestStream,
};

/// How long a connection to the agent may take to open before the guest counts as unreachable.
const DIAL_TIME_MAX: Duration = Duration::from_secs(10);

/// The same for a shell, which has to start a program first. One that is not in memory yet takes an emulated guest seconds.
const SHELL_OPEN_TIME_MAX: Duration = Duration::from_secs(30);

/// The way into one VM.
pub struct Way {
    network: SharedNetwork,
    /// Of the agent; `None`: nobody could ask it.
    generation: Option<u32>,
    over: CancellationToken,
}

/// Why a connection into a guest is not open.
enum NotOpen {
    /// That VM is no more.
    Gone,
    /// The agent said no, in these words.
    Refused(String),
    /// It could not be reached.
    Unreachable(io::Error),
}

impl Way {
    /// Into a VM of this machine, for a process that is not its host, and that has to [`Way::close`] it. Its network
    /// namespace is opened now, and is meant whatever namespace has its name later.
    pub fn enter(place: &Place) -> Result<Self, NetworkError> {
        Ok(Self::over(Arc::new(Namespace::open(&place.namespace)?), place.agent))
    }

    /// Into a VM in this network, until it is closed.
    #[must_use]
    pub fn over(network: SharedNetwork, generation: Option<u32>) -> Self {
        Self { network, generation, over: CancellationToken::new() }
    }

    /// Into a machine.
    pub(crate) fn to(machine: &Machine) -> Self {
        let (network, over) = (Arc::clone(&machine.namespace), machine.over.clone());
        Self { network, generation: machine.agent().generation(), over }
    }

    /// The VM is over: connections into it fail from now on, open ones too.
    pub fn close(&self) {
        self.over.cancel();
    }

    /// Opens a stream to `localhost:port` in the guest.
    pub async fn dial(&self, port: u16) -> Result<Box<dyn AppStream>, DialError> {
        match self.open(Purpose::Connect { port }, DIAL_TIME_MAX).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(NotOpen::Gone) => Err(DialError::Gone),
            Err(NotOpen::Refused(_)) => Err(DialError::Refused { port }),
            Err(NotOpen::Unreachable(error)) => Err(DialError::Unreachable(error)),
        }
    }

    /// Opens a shell in the guest.
    pub async fn shell(&self, command: Option<String>) -> Result<Shell, ShellError> {
        if agent::is_older(self.generation, SHELLS_SINCE) {
            let reason = "its image was built before there were shells: build a new version".to_owned();
            return Err(ShellError::Refused { reason });
        }
        match self.open(Purpose::Shell { command }, SHELL_OPEN_TIME_MAX).await {
            Ok(stream) => Ok(shell::over(stream)),
            Err(NotOpen::Gone) => Err(ShellError::Gone),
            Err(NotOpen::Refused(reason)) => Err(ShellError::Refused { reason }),
            Err(NotOpen::Unreachable(error)) => Err(ShellError::Unreachable(error)),
        }
    }

    async fn open(&self, purpose: Purpose, time_max: Duration) -> Result<GuestStream, NotOpen> {
        let opened = tokio::select! {
            // Suspended or ended, perhaps meanwhile: nobody will answer (any more).
            biased;
            () = self.over.cancelled() => return Err(NotOpen::Gone),
            opened = agent::open(&*self.network, purpose, time_max) => opened,
        };
        match opened {
            Ok((stream, _)) => Ok(GuestStream::new(stream, self.over.clone())),
            Err(AgentError::Refused { reason }) => Err(NotOpen::Refused(reason)),
            Err(_) if self.over.is_cancelled() => Err(NotOpen::Gone),
            Err(error) => Err(NotOpen::Unreachable(io::Error::other(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use api::host::Egress;
    use guest_protocol::{GENERATION, Open, Opened, read_frame, write_frame};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::mpsc;

    use super::*;
    use crate::platform::Network;

    /// A network whose guest's end of each connection goes to a test.
    struct Wire(mpsc::UnboundedSender<DuplexStream>);

    #[async_trait::async_trait]
    impl Network for Wire {
        fn name(&self) -> &str {
            "wire"
        }

        async fn restrict(&self, _: Egress) -> Result<(), NetworkError> {
            Ok(())
        }

        async fn connect(&self, _: u16, _: Duration) -> io::Result<Box<dyn AppStream>> {
            let (host, guest) = duplex(4096);
            self.0.send(guest).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(Box::new(host))
        }
    }

    fn way(generation: Option<u32>) -> (Way, mpsc::UnboundedReceiver<DuplexStream>) {
        let (ends, guest) = mpsc::unbounded_channel();
        (Way::over(Arc::new(Wire(ends)), generation), guest)
    }

    async fn agree(guest: &mut DuplexStream) -> Purpose {
        let Open { purpose, .. } = read_frame(guest).await.unwrap();
        write_frame(guest, &Opened { generation: GENERATION, error: None }).await.unwrap();
        purpose
    }

    #[tokio::test]
    async fn streams_end_when_the_way_is_closed_and_no_more_are_opened() {
        let (way, mut guests) = way(Some(GENERATION));
        let (stream, guest) = tokio::join!(way.dial(80), async {
            let mut guest = guests.recv().await.unwrap();
            assert_eq!(agree(&mut guest).await, Purpose::Connect { port: 80 });
            guest
        });
        let (mut stream, mut guest) = (stream.unwrap(), guest);
        guest.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        // One that nobody answers ends too.
        let (waiting, ()) = tokio::join!(way.dial(81), async {
            let _guest = guests.recv().await.unwrap();
            way.close();
        });
        assert!(matches!(waiting, Err(DialError::Gone)));
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(way.dial(80).await, Err(DialError::Gone)));
        assert!(guests.try_recv().is_err(), "nothing reached the network");
    }

    #[tokio::test]
    async fn an_agent_of_before_shells_is_not_asked_for_one() {
        let (old, mut guests) = way(Some(SHELLS_SINCE - 1));
        assert!(matches!(old.shell(None).await, Err(ShellError::Refused { reason }) if reason.contains("build")));
        assert!(guests.try_recv().is_err());
        for generation in [Some(SHELLS_SINCE), None] {
            let (way, mut guests) = way(generation);
            let (shell, ()) = tokio::join!(way.shell(None), async {
                let mut guest = guests.recv().await.unwrap();
                assert_eq!(agree(&mut guest).await, Purpose::Shell { command: None });
            });
            assert!(shell.is_ok());
        }
    }
}
