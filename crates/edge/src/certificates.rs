//! A certificate and its key in files that somebody else renews (certbot, a secret store, an operator). They are looked at
//! every now and then; what is new and good is served from the next handshake on, and connections that there are live on.
//!
//! The two files are seldom written at once, so a pair that does not fit is likely half a renewal: what was good is served
//! until they do.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls::{client::verify_server_name, server::ParsedCertificate, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem, pem::PemObject};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    files,
    served::{self, ServedCertificate, Valid},
};

/// No chain or key is larger; whatever is, is the wrong file.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// An endpoint's first label; all of them are of this form.
const SAMPLE: &str = "00000000-0000-4000-8000-000000000000";

/// Where they are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate, for `*.` and the endpoints' domain, and after it those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why what is in the files cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is too large to be one.
    #[error("{path} has more than {FILE_BYTES_MAX} bytes, which no certificate or key has")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing of the kind in a file.
    #[error("there is no {what} in {path}")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// TLS does not take them.
    #[error("the key in {key} is not the one of the certificate in {certificate}, or of a kind that is not supported")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// It is for other names.
    #[error("the certificate in {path} is not for the endpoints: it must be for '{name}'")]
    Name {
        /// The file.
        path: PathBuf,
        /// The name that it must be for, with a star for all of them.
        name: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// It is of another time.
    #[error("the certificate in {path} is valid from {from} to {to}, which is not now")]
    Time {
        /// The file.
        path: PathBuf,
        /// Its first moment.
        from: OffsetDateTime,
        /// Its last.
        to: OffsetDateTime,
    },
    /// It cannot be read as a certificate.
    #[error("the certificate in {path} is malformed")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// The files, and what is served of them.
#[derive(Debug)]
pub struct Certificates {
    files: CertificateFiles,
    name: String,
    served: Arc<ServedCertificate>,
    /// What was in the files when they were last looked at, good or not.
    seen: Mutex<Contents>,
}

/// What is in the two files.
#[derive(PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // One of them is a secret.
        formatter.write_str("Contents")
    }
}

impl Certificates {
    /// Reads them for the first time. Does file I/O and must not run on an async thread.
    pub fn load(files: CertificateFiles, domain_suffix: &str) -> Result<Arc<Self>, CertificateError> {
        let name = format!("*.{}", domain_suffix.trim_matches('.').to_ascii_lowercase());
        let seen = Contents::read(&files)?;
        let served = seen.parse(&files, &name, OffsetDateTime::now_utc())?;
        Ok(Arc::new(Self { files, name, served: ServedCertificate::new(served), seen: Mutex::new(seen) }))
    }

    /// Looks at the files; whether there was something new in them, and it is served from now on. An error is told once for
    /// the same contents. Does file I/O and must not run on an async thread.
    pub fn refresh(&self) -> Result<bool, CertificateError> {
        let now = Contents::read(&self.files)?;
        let mut seen = self.seen();
        if *seen == now {
            return Ok(false);
        }
        *seen = now;
        let served = seen.parse(&self.files, &self.name, OffsetDateTime::now_utc())?;
        self.served.replace(served);
        Ok(true)
    }

    /// What is served.
    #[must_use]
    pub fn served(&self) -> Arc<ServedCertificate> {
        Arc::clone(&self.served)
    }

    // What is behind it is replaced in one step, so a poisoned lock is still good.
    fn seen(&self) -> MutexGuard<'_, Contents> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn read(files: &CertificateFiles) -> Result<Self, CertificateError> {
        Ok(Self { certificate: read(&files.certificate)?, key: read(&files.key)? })
    }

    /// What can be served of it, for this name, which may begin with a star; its errors name the files.
    pub(crate) fn parse(
        &self,
        files: &CertificateFiles,
        name: &str,
        now: OffsetDateTime,
    ) -> Result<Valid, CertificateError> {
        let CertificateFiles { certificate: path, key: key_path } = files;
        let not_in = |what, path: &Path| {
            let path = path.to_owned();
            move |source| CertificateError::Pem { what, path, source }
        };
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(not_in("certificate", path))?;
        let Some(first) = chain.first().cloned() else {
            return Err(not_in("certificate", path)(pem::Error::NoItemsFound));
        };
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(not_in("private key", key_path))?;
        let pair = |source| CertificateError::Pair { certificate: path.clone(), key: key_path.clone(), source };
        let certified = CertifiedKey::from_der(chain, key, &served::provider()).map_err(pair)?;

        let malformed = || CertificateError::Malformed { path: path.clone() };
        let valid = Valid::new(certified).ok_or_else(malformed)?;
        let (from, to) = (valid.from, valid.to);
        if now < from || now > to {
            return Err(CertificateError::Time { path: path.clone(), from, to });
        }
        let endpoint = ServerName::try_from(name.replacen('*', SAMPLE, 1)).map_err(|_| malformed())?;
        let parsed = ParsedCertificate::try_from(&first).map_err(|_| malformed())?;
        verify_server_name(&parsed, &endpoint).map_err(|source| CertificateError::Name {
            path: path.clone(),
            name: name.to_owned(),
            source,
        })?;
        Ok(valid)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    files::read(path, FILE_BYTES_MAX).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::FileTooLarge => CertificateError::TooLarge { path },
            _ => CertificateError::Read { path, source },
        }
    })
}

#[cfg(test)]
#[path = "certificates_tests.rs"]
mod tests;
