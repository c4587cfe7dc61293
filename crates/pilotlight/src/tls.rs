//! The certificate of the endpoints: of the development authority, or from files that somebody else renews.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use edge::{
    Certificates,
    ca::{self, DevCa},
};

use crate::config::Config;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Where the certificate is from.
pub enum EndpointTls {
    /// The development authority.
    Development(DevCa),
    /// Files.
    Files(Arc<Certificates>),
}

impl EndpointTls {
    /// What the configuration asks for. Does file I/O.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let suffix = config.endpoint_suffix();
        Ok(match &config.tls {
            None => Self::Development(
                ca::load_or_create(&directory(&config.data_dir), &suffix)
                    .context("the development certificate authority cannot be made")?,
            ),
            Some(files) => Self::Files(
                Certificates::load(files.clone(), &suffix).context("tls.certificate and tls.key cannot be used")?,
            ),
        })
    }

    /// For the edge.
    pub fn server_config(&self) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        match self {
            Self::Development(ca) => Ok(ca.server_config()),
            Self::Files(certificates) => certificates.server_config().context("TLS cannot be served"),
        }
    }

    /// What clients have to trust, if that is nothing they would anyway.
    pub fn ca_path(&self) -> Option<PathBuf> {
        match self {
            Self::Development(ca) => Some(ca.ca_path().to_owned()),
            Self::Files(_) => None,
        }
    }

    /// Takes over what is renewed, for as long as it is polled.
    pub async fn follow(self) -> Infallible {
        let Self::Files(certificates) = self else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let looking = Arc::clone(&certificates);
            match tokio::task::spawn_blocking(move || looking.refresh()).await {
                Ok(Ok(true)) => tracing::info!("the endpoints have a new certificate"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    let error = anyhow::Error::new(error);
                    tracing::error!("the endpoints keep the certificate they have: {error:#}");
                }
                Err(error) => tracing::error!(%error, "the certificate's files could not be looked at"),
            }
        }
    }
}

/// Where the development authority is.
fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("tls")
}

/// The development authority's certificate.
pub fn ca_path(data_dir: &Path) -> PathBuf {
    ca::certificate_path(&directory(data_dir))
}
