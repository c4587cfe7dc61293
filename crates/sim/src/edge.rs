//! `sim edge`: the edge by itself, in front of one server that speaks HTTP on this machine, for measuring what it costs.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use api::{
    directory::{AppStream, Behind, DialError, Dialer, Directory, Unavailable},
    ids::{EndpointId, MicrovmId, VmId},
    shell::{Shell, ShellError},
    size::Size,
    token::{Claims, Grant, Ports, TokenKeys},
};
use clap::Args;
use edge::{BoundEdge, Edge, EdgeConfig, Settings, ca};
use rand::Rng;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What endpoints are beneath; every program resolves it.
const DOMAIN: &str = "bench.localhost";

/// When the token stops being good: in 2100.
const LATE: u64 = 4_102_444_800;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Address of the server, which is all that the one microVM has.
    #[arg(long)]
    pub upstream: SocketAddr,
    /// Directory for the certificate authority.
    #[arg(long)]
    pub dir: PathBuf,
}

/// The one microVM.
struct Only {
    endpoint: EndpointId,
    microvm: MicrovmId,
    vm: VmId,
    upstream: SocketAddr,
}

#[async_trait::async_trait]
impl Directory for Only {
    async fn behind(&self, endpoint: &EndpointId) -> Result<Option<Behind>, Unavailable> {
        let microvm = self.microvm;
        let behind = Behind { microvm, size: Size::DEFAULT, http: true, shell: false, links: false, ended: false };
        Ok((*endpoint == self.endpoint).then_some(behind))
    }

    async fn awake(&self, _: &MicrovmId) -> Result<VmId, Unavailable> {
        Ok(self.vm)
    }

    fn touch(&self, _: &MicrovmId) {}
}

#[async_trait::async_trait]
impl Dialer for Only {
    async fn dial(&self, _: &MicrovmId, _: &VmId, _: u16) -> Result<Box<dyn AppStream>, DialError> {
        let stream = TcpStream::connect(self.upstream).await.map_err(DialError::Unreachable)?;
        stream.set_nodelay(true).map_err(DialError::Unreachable)?;
        Ok(Box::new(stream))
    }

    async fn shell(&self, _: &MicrovmId, _: &VmId, _: Option<String>) -> Result<Shell, ShellError> {
        Err(ShellError::Refused { reason: "there is a server, and no guest".to_owned() })
    }
}

/// The edge, and what its clients need to know.
pub struct Front {
    pub edge: BoundEdge,
    pub ca: ca::DevCa,
    pub host: String,
    pub token: String,
}

/// Listens, with the limits that are usual.
pub async fn bind(arguments: &Arguments) -> anyhow::Result<Front> {
    let ca = ca::load_or_create(&arguments.dir, DOMAIN)?;
    let only = Arc::new(Only {
        endpoint: EndpointId::random(),
        microvm: MicrovmId::random(),
        vm: VmId::random(),
        upstream: arguments.upstream,
    });
    let keys = Arc::new(TokenKeys::single(Uuid::new_v4(), rand::rng().random()));
    let grant = Grant::Http(Ports::all());
    let token = keys.seal(&Claims { microvm_id: only.microvm, grant, expires_unix: LATE });
    let (limits, _) = Settings::default().limits(u64::MAX);
    let config = EdgeConfig { domain_suffix: DOMAIN.to_owned(), limits };
    let host = format!("{}.{DOMAIN}", only.endpoint);
    let edge = Edge::new(config, ca.served(), Arc::clone(&only) as _, only, keys);
    let edge = edge.bind(&[([127, 0, 0, 1], 0).into()]).await?;
    Ok(Front { edge, ca, host, token })
}

/// Serves until it is killed. Its first line says where, and with which token.
pub fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let Front { edge, ca, host, token } = bind(arguments).await?;
        let port = edge.local_addresses()[0].port();
        println!("{}", json!({ "host": host, "port": port, "token": token, "ca": ca.ca_path() }));
        edge.serve(CancellationToken::new()).await;
        Ok(())
    })
}
