//! The certificate of the endpoints: of the development authority, from files that somebody else renews, or from an authority
//! that speaks ACME: one for all, or one for each.

use std::{
    convert::Infallible,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use edge::{
    Certificate, Certificates,
    acme::{Acme, AcmeSettings, Challenge, Endpoints, OnDemand, Pauses, Place},
    ca::{self, DevCa},
};

use crate::{
    authorities,
    config::{Config, Tls, TlsSource},
};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Where an authority looks for endpoints.
const HTTPS: u16 = 443;

/// The certificate, and where it is from.
pub struct EndpointTls {
    certificate: Certificate,
    source: Source,
}

enum Source {
    /// The development authority.
    Development,
    /// Files.
    Files(Arc<Certificates>),
    /// An authority, for all endpoints.
    Acme(Box<Acme>),
    /// An authority, for each.
    Endpoints(Arc<Endpoints>),
}

impl EndpointTls {
    /// What the configuration asks for. Does file I/O.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let suffix = config.endpoint_suffix();
        let development = || {
            ca::load_or_create(&directory(&config.data_dir), &suffix)
                .context("the development certificate authority cannot be made")
        };
        Ok(match config.tls.as_ref().map(Tls::source).transpose()? {
            None => Self { certificate: development()?.served().into(), source: Source::Development },
            Some(TlsSource::Files(files)) => {
                let files = Certificates::load(files, &suffix).context("tls.certificate and tls.key cannot be used")?;
                Self { certificate: files.served().into(), source: Source::Files(files) }
            }
            Some(TlsSource::Acme(settings)) if settings.challenge == Challenge::Dns01 => {
                let acme = open_acme(settings, config, &development()?)?;
                Self { certificate: acme.served().into(), source: Source::Acme(Box::new(acme)) }
            }
            Some(TlsSource::Acme(settings)) => {
                let endpoints = open_endpoints(settings, config, &development()?)?;
                Self { certificate: Arc::clone(&endpoints).into(), source: Source::Endpoints(endpoints) }
            }
        })
    }

    /// What the edge serves.
    pub fn certificate(&self) -> Certificate {
        self.certificate.clone()
    }

    /// Whose proofs an authority looks for over plain HTTP.
    pub fn wants_http(&self) -> Option<Arc<Endpoints>> {
        match &self.source {
            Source::Endpoints(endpoints) if endpoints.want_http() => Some(Arc::clone(endpoints)),
            _ => None,
        }
    }

    /// Sees to it that what is renewed is served, for as long as it is polled.
    pub async fn follow(self) -> Infallible {
        let certificates = match self.source {
            Source::Development => return std::future::pending().await,
            Source::Acme(acme) => return acme.keep().await,
            Source::Endpoints(endpoints) => return endpoints.keep().await,
            Source::Files(certificates) => certificates,
        };
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

/// Nobody is asked for anything yet.
fn open_acme(settings: AcmeSettings, config: &Config, until_then: &DevCa) -> anyhow::Result<Acme> {
    if let Some(program) = settings.hook.first() {
        let metadata = fs::metadata(program).with_context(|| format!("tls.acme.hook: there is no {program}"))?;
        let mode = metadata.permissions().mode();
        ensure!(metadata.is_file() && mode & 0o111 != 0, "tls.acme.hook: {program} is no program; make it executable");
        // It is run as root.
        ensure!(
            mode & 0o022 == 0,
            "tls.acme.hook: others may write to {program}; take that from them: chmod go-w {program}"
        );
    }
    let place = place(&settings, config)?;
    let (directory, until_then) = (settings.directory.clone(), until_then.served());
    let acme = Acme::open(settings, place, Pauses::standard(), &until_then).context("tls.acme cannot be used")?;
    if !acme.is_ready() {
        tracing::warn!(
            directory,
            "the endpoints serve the development authority's certificate until there is one of the ACME server"
        );
    }
    Ok(acme)
}

/// The same, for a certificate of each endpoint.
fn open_endpoints(settings: AcmeSettings, config: &Config, until_then: &DevCa) -> anyhow::Result<Arc<Endpoints>> {
    let place = place(&settings, config)?;
    if settings.challenge == Challenge::TlsAlpn01 && config.edge_port != HTTPS {
        tracing::warn!(
            "the ACME server looks for proofs (tls-alpn-01) at port {HTTPS}, and edge_port is {}: the one has to lead to the other",
            config.edge_port
        );
    }
    Endpoints::open(settings, place, OnDemand::standard(), &until_then.served()).context("tls.acme cannot be used")
}

/// Where certificates of an authority are kept, and whom its server is believed by.
fn place(settings: &AcmeSettings, config: &Config) -> anyhow::Result<Place> {
    let mut roots = authorities::of_the_machine();
    if let Some(path) = &settings.ca {
        let own = authorities::in_file(path).with_context(|| format!("tls.acme.ca: {}", path.display()))?;
        roots.extend(own);
    }
    ensure!(
        !roots.is_empty(),
        "this machine trusts no certificate authority, so no ACME server either: install ca-certificates, or name one with \
         tls.acme.ca"
    );
    let dir = config.data_dir.join("secrets/acme");
    Ok(Place { dir, domain_suffix: config.endpoint_suffix(), roots })
}

/// Where the development authority is.
fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("tls")
}

/// What clients have to trust, if that is nothing they would anyway. It is made with the edge's first start.
pub fn trusted(config: &Config) -> Option<PathBuf> {
    config.tls.is_none().then(|| ca_path(&config.data_dir))
}

/// The development authority's certificate.
pub fn ca_path(data_dir: &Path) -> PathBuf {
    ca::certificate_path(&directory(data_dir))
}

#[cfg(test)]
mod tests {
    use edge::acme::Challenge;

    use super::*;

    /// A configuration with an authority that nobody reaches.
    fn with_authority(dir: &Path) -> Config {
        let hook = dir.join("hook");
        fs::write(&hook, "#!/bin/sh\n").expect("a file");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("its mode");
        let acme = AcmeSettings {
            directory: "https://127.0.0.1:1/directory".to_owned(),
            terms_agreed: true,
            contact: Vec::new(),
            challenge: Challenge::Dns01,
            hook: vec![hook.to_str().expect("a path").to_owned()],
            hook_timeout_seconds: 1,
            http_listen: None,
            orders_per_hour: None,
            ca: None,
            external_account: None,
        };
        let tls = Some(Tls { certificate: None, key: None, acme: Some(acme) });
        let config = Config { data_dir: dir.join("data"), domain: "example.test".to_owned(), tls, ..Config::default() };
        fs::create_dir_all(&config.data_dir).expect("a directory");
        // Some authority, on machines that have none.
        let other = ca::load_or_create(&dir.join("other"), "other.test").expect("an authority");
        change(config, |acme| acme.ca = Some(other.ca_path().to_owned()))
    }

    fn change(mut config: Config, change: impl FnOnce(&mut AcmeSettings)) -> Config {
        change(config.tls.as_mut().and_then(|tls| tls.acme.as_mut()).expect("an authority"));
        config
    }

    #[test]
    fn a_server_starts_without_the_authority_and_serves_the_development_certificate() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = with_authority(dir.path());
        let tls = EndpointTls::open(&config).expect("it starts");
        let development =
            ca::load_or_create(&directory(&config.data_dir), &config.endpoint_suffix()).expect("it is there");
        let Certificate::ForAll(served) = tls.certificate() else { panic!("there is one for all") };
        assert_eq!(served.expires(), development.served().expires());
        assert_eq!(trusted(&config), None, "clients are to trust the authority");
    }

    #[test]
    fn endpoints_have_certificates_of_their_own_with_the_challenges_that_need_no_hook() {
        let dir = tempfile::tempdir().expect("a directory");
        for (challenge, http) in [(Challenge::TlsAlpn01, false), (Challenge::Http01, true)] {
            let config =
                change(with_authority(dir.path()), |acme| (acme.challenge, acme.hook) = (challenge, Vec::new()));
            let tls = EndpointTls::open(&config).expect("it starts");
            assert!(matches!(tls.certificate(), Certificate::ForEach(_)));
            assert_eq!(tls.wants_http().is_some(), http);
        }
    }

    #[test]
    fn what_an_authority_cannot_be_asked_with_is_refused_at_the_start_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let good = with_authority(dir.path());
        let refused = |config: &Config| format!("{:#}", EndpointTls::open(config).err().expect("it is refused"));
        let error = refused(&change(good.clone(), |acme| acme.hook = vec!["/nowhere/hook".to_owned()]));
        assert!(error.starts_with("tls.acme.hook: there is no /nowhere/hook"), "{error}");
        let error = refused(&change(good.clone(), |acme| acme.ca = Some("/nowhere/ca.pem".into())));
        assert!(error.starts_with("tls.acme.ca: /nowhere/ca.pem"), "{error}");
        for (mode, words) in [(0o644, "make it executable"), (0o775, "chmod go-w"), (0o757, "chmod go-w")] {
            fs::set_permissions(dir.path().join("hook"), fs::Permissions::from_mode(mode)).expect("its mode");
            let error = refused(&good);
            assert!(error.contains("tls.acme.hook: ") && error.contains(words), "{error}");
        }
    }
}
