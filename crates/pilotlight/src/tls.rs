//! The certificate of the endpoints: of the development authority, or from files that somebody else renews.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use edge::{
    Certificates, ServedCertificate,
    ca::{self, DevCa},
};

use crate::config::Config;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The certificate, and where it is from.
pub struct EndpointTls {
    served: Arc<ServedCertificate>,
    source: Source,
}

enum Source {
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
            None => {
                let ca = ca::load_or_create(&directory(&config.data_dir), &suffix)
                    .context("the development certificate authority cannot be made")?;
                Self { served: ca.served(), source: Source::Development(ca) }
            }
            Some(files) => {
                let files =
                    Certificates::load(files.clone(), &suffix).context("tls.certificate and tls.key cannot be used")?;
                Self { served: files.served(), source: Source::Files(files) }
            }
        })
    }

    /// What the edge serves.
    pub fn served(&self) -> Arc<ServedCertificate> {
        Arc::clone(&self.served)
    }

    /// What clients have to trust, if that is nothing they would anyway.
    pub fn ca_path(&self) -> Option<PathBuf> {
        match &self.source {
            Source::Development(ca) => Some(ca.ca_path().to_owned()),
            Source::Files(_) => None,
        }
    }

    /// Takes over what is renewed, for as long as it is polled.
    pub async fn follow(self) -> Infallible {
        let Source::Files(certificates) = self.source else { return std::future::pending().await };
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
