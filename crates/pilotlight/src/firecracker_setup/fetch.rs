//! Downloads, of bounded size and time, over HTTPS.
//!
//! Redirects are followed here rather than by the HTTP library, because each is judged: a release's files are on another
//! host than its page says, so redirects there must be, but none may lead away from HTTPS.

use std::{
    io::{self, Write},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use http::{Response, Uri, header::LOCATION};
use rustls::pki_types::CertificateDer;
use ureq::{
    Agent, Body,
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{Patience, unpack::Bounded};
use crate::authorities;

/// GitHub needs one; a mirror behind a load balancer some more.
const REDIRECTS_MAX: usize = 5;

/// Connections that may break before an answer: one is a nuisance, three are an outage.
const BROKEN_MAX: usize = 2;

/// For TCP and TLS together, where a path to the host exists.
const CONNECT: Duration = Duration::from_secs(15);

/// What fetches files.
pub struct Client {
    agent: Agent,
    /// The source is this machine itself, and need not be proven nor hidden from anybody.
    plain: bool,
    patience: Patience,
}

impl Client {
    /// For a source, trusting this file's authorities in place of the machine's.
    pub fn new(from: &str, ca: Option<&Path>, patience: Patience) -> anyhow::Result<Self> {
        let uri = parse(from).with_context(|| format!("--from {from}"))?;
        ensure!(uri.query().is_none(), "--from {from}: a directory's URL has no '?'");
        let plain = is_plain_loopback(&uri);
        ensure!(
            plain || uri.scheme_str() == Some("https"),
            "--from {from}: use https; plain http is for a loopback address, such as http://127.0.0.1:8000"
        );
        let roots = match ca {
            Some(path) => authorities::in_file(path).with_context(|| format!("--ca {}", path.display()))?,
            // They would never be asked.
            None if plain => Vec::new(),
            None => authorities_of_the_machine()?,
        };
        let roots = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let mut config = Agent::config_builder()
            .tls_config(tls)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("pilotlight/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(patience.quiet))
            .timeout_per_read(Some(patience.quiet))
            .timeout_per_write(Some(patience.quiet));
        if plain {
            // HTTPS_PROXY and its like are honoured otherwise; a proxy's loopback is not ours.
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().new_agent(), plain, patience })
    }

    /// Writes the file at this URL, of so many bytes at most, to `out`.
    pub fn fetch(&self, url: &str, bytes_max: u64, out: &mut dyn Write) -> anyhow::Result<()> {
        let until = Instant::now() + self.patience.file;
        let body = self.open(url, until)?;
        let declared = body.content_length();
        if let Some(bytes) = declared.filter(|bytes| *bytes > bytes_max) {
            bail!("{url} has {bytes} bytes, more than the {bytes_max} it may have");
        }
        let mut reader = Bounded::new(body.into_reader(), bytes_max);
        let copied = io::copy(&mut reader, out).with_context(|| format!("cannot download {url}"))?;
        ensure!(
            declared.is_none_or(|bytes| bytes == copied),
            "{url} broke off after {copied} bytes of {}: try again",
            declared.unwrap_or_default()
        );
        Ok(())
    }

    fn open(&self, url: &str, until: Instant) -> anyhow::Result<Body> {
        let mut at = parse(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.ask(&at, until)?;
            let status = response.status();
            if status == 200 {
                return Ok(response.into_body());
            }
            ensure!(
                status != 404,
                "{} is not there (404): --version must be a release that --from has; see its list of releases",
                shown(&at)
            );
            ensure!(matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308), "{} answers {status}", shown(&at));
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.with_context(|| format!("{} redirects to nowhere", shown(&at)))?;
            at = self.follow(&at, location).with_context(|| format!("{} redirects to where it may not", shown(&at)))?;
        }
        bail!("{url} redirects more than {REDIRECTS_MAX} times")
    }

    /// Asks once more where a connection broke before there was an answer: nothing has been changed by then.
    fn ask(&self, at: &Uri, until: Instant) -> anyhow::Result<Response<Body>> {
        let mut broken = 0;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{} did not come within {:?}", shown(at), self.patience.file);
            let request = self.agent.get(at).config().timeout_global(Some(left)).build();
            match request.call() {
                Err(ureq::Error::Io(error)) if is_broken(&error) && broken < BROKEN_MAX => broken += 1,
                answer => return answer.with_context(|| format!("cannot reach {}", shown(at))),
            }
        }
    }

    fn follow(&self, at: &Uri, location: &str) -> anyhow::Result<Uri> {
        let next = match location.strip_prefix('/') {
            // Another host, by the scheme of this one.
            Some(rest) if rest.starts_with('/') => format!("{}:{location}", at.scheme_str().unwrap_or("https")),
            Some(_) => {
                let authority = at.authority().map(http::uri::Authority::as_str).unwrap_or_default();
                format!("{}://{authority}{location}", at.scheme_str().unwrap_or("https"))
            }
            None => location.to_owned(),
        };
        let next = parse(&next)?;
        let safe = next.scheme_str() == Some("https") || (self.plain && is_plain_loopback(&next));
        ensure!(safe, "{} is not https", shown(&next));
        Ok(next)
    }
}

fn is_broken(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// An absolute URL with nothing in it that would be sent or shown by accident.
fn parse(url: &str) -> anyhow::Result<Uri> {
    let uri: Uri =
        url.parse().with_context(|| format!("{:?} is not a URL", url.chars().take(200).collect::<String>()))?;
    let authority = uri.authority().context("it has no host")?;
    ensure!(!authority.as_str().contains('@'), "names and passwords in a URL are not used");
    ensure!(matches!(uri.scheme_str(), Some("http" | "https")), "it is neither https nor http");
    Ok(uri)
}

/// An address rather than a name, for what a name means is somebody's decision.
fn is_plain_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    uri.scheme_str() == Some("http") && address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Without its query: the one GitHub redirects to is a signature.
fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    format!("{}://{authority}{}", uri.scheme_str().unwrap_or_default(), uri.path())
}

fn authorities_of_the_machine() -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = authorities::of_the_machine();
    ensure!(
        !found.is_empty(),
        "this machine has no certificate authorities to trust: install ca-certificates, or name a file with --ca"
    );
    Ok(found)
}
