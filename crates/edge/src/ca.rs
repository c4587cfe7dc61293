//! The development certificate authority: one that a machine makes for itself, so that HTTPS works before anybody has
//! bought a name.
//!
//! It may sign for the endpoints' domain and for loopback names and addresses only: whoever puts it into a trust store
//! does not hand its keeper the rest of the web. Three files:
//!
//! - `ca.pem` (0644), for clients' trust stores;
//! - `ca.key` (0600), made once and never replaced;
//! - `server.pem` (0600), the server's certificate and key in one file, so that they cannot be of different ages.
//!
//! Certificates are made anew from the same authority key when they near their end or the domain changes.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, DnsName, PrivateKeyDer, pem::PemObject};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use crate::{
    files::{self, FileError},
    served::{self, ServedCertificate, Valid},
};

/// An authority's life: longer than the machine's.
const CA_DAYS: i64 = 3650;
/// It is made anew once it could expire before a certificate it signs.
const CA_LEFT_MIN: Duration = Duration::days(SERVER_DAYS + 1);
/// A server certificate's life. Browsers refuse more than 398 days.
const SERVER_DAYS: i64 = 397;
/// It is made anew at a start when less than this is left.
const SERVER_LEFT_MIN: Duration = Duration::days(60);
/// Clocks of clients may be behind.
const BACKDATED: Duration = Duration::hours(1);
/// No file of ours is larger; whatever is, is not ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The domain is not a DNS name.
    #[error("'{suffix}' is not a domain name")]
    Suffix {
        /// The domain.
        suffix: String,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The authority's key is not readable. It is not replaced unasked, since trust stores may hold its certificate.
    #[error("{path} is not a private key; remove it to have a new authority made")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of the {what}")]
    Sign {
        /// Whose.
        what: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The server's certificate was made but TLS does not take it.
    #[error("cannot use the certificate in {path}")]
    Use {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// The authority, and the server certificate it signed.
#[derive(Debug)]
pub struct DevCa {
    ca_path: PathBuf,
    served: Arc<ServedCertificate>,
}

impl DevCa {
    /// The authority's certificate, for clients: `curl --cacert`, `AWS_CA_BUNDLE`, `NODE_EXTRA_CA_CERTS`.
    #[must_use]
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// The server's certificate: for the endpoints and `localhost`.
    #[must_use]
    pub fn served(&self) -> Arc<ServedCertificate> {
        Arc::clone(&self.served)
    }
}

/// Where the authority of this directory has its certificate, once it was made.
#[must_use]
pub fn certificate_path(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

/// Loads the authority from a directory, making there what is missing or too old. Does file I/O and must not run on an
/// async thread.
pub fn load_or_create(dir: &Path, domain_suffix: &str) -> Result<DevCa, CaError> {
    let suffix = domain_suffix.trim_matches('.').to_ascii_lowercase();
    if DnsName::try_from(suffix.as_str()).is_err() {
        return Err(CaError::Suffix { suffix: domain_suffix.to_owned() });
    }
    fs::create_dir_all(dir).map_err(FileError::when("create", dir))?;
    let now = OffsetDateTime::now_utc();
    let key = load_or_create_key(&dir.join("ca.key"))?;

    let ca_path = certificate_path(dir);
    let stored = read(&ca_path)?.filter(|pem| ca_is_good(pem, &key, &suffix, now));
    let ca_pem = match stored {
        Some(pem) => pem,
        None => {
            let sign = |source| CaError::Sign { what: "authority", source };
            let pem = ca_params(&key, &suffix, now).self_signed(&key).map_err(sign)?.pem();
            files::replace(&ca_path, 0o644, pem.as_bytes())?;
            tracing::info!(path = %ca_path.display(), "development certificate authority made");
            pem
        }
    };

    let server_path = dir.join("server.pem");
    let stored = read(&server_path)?.filter(|pem| server_is_good(pem, &ca_pem, &suffix, now));
    let server_pem = match stored {
        Some(pem) => pem,
        None => {
            let pem =
                make_server(&ca_pem, &key, &suffix, now).map_err(|source| CaError::Sign { what: "server", source })?;
            files::replace(&server_path, 0o600, pem.as_bytes())?;
            tracing::info!(path = %server_path.display(), "server certificate made");
            pem
        }
    };
    let served = certified(&server_pem).map_err(|source| CaError::Use { path: server_path, source })?;
    Ok(DevCa { ca_path, served: ServedCertificate::new(served) })
}

fn certified(pem: &str) -> Result<Valid, rustls::Error> {
    let unreadable = |error: rustls_pki_types::pem::Error| rustls::Error::General(error.to_string());
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(unreadable)?;
    let certified = CertifiedKey::from_der(chain, key, &served::provider())?;
    Valid::new(certified).ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))
}

fn ca_params(key: &KeyPair, suffix: &str, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.serial_number = Some(random_serial());
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(CA_DAYS);
    // The key's number tells the authorities of two machines apart in a trust store.
    let number = params.key_identifier(key)[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::OrganizationName, "Pilotlight");
    params.distinguished_name.push(DnType::CommonName, format!("Pilotlight development CA {number}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(suffix.to_owned()),
            GeneralSubtree::DnsName("localhost".to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8)),
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(IpAddr::V6(Ipv6Addr::LOCALHOST), 128)),
        ],
        excluded_subtrees: Vec::new(),
    });
    params
}

fn make_server(ca_pem: &str, ca_key: &KeyPair, suffix: &str, now: OffsetDateTime) -> Result<String, rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(ca_pem, ca_key)?;
    let key = KeyPair::generate()?;
    // No addresses: no endpoint is reached by one, and BoringSSL, which gRPC verifies with, refuses whatever has an
    // address among its names and an authority that says which addresses it may sign for.
    let mut params = CertificateParams::new(vec![format!("*.{suffix}"), "localhost".to_owned()])?;
    params.serial_number = Some(random_serial());
    params.not_before = now - BACKDATED;
    params.not_after = params.not_before + Duration::days(SERVER_DAYS);
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, "Pilotlight endpoints");
    // Explicit, which also adds the subject key identifier that strict verifiers look for.
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

/// A certificate made anew keeps its issuer's name, and browsers refuse two of one issuer with one number.
fn random_serial() -> SerialNumber {
    let mut bytes = Uuid::new_v4().into_bytes();
    // Positive, and of the same length always.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn ca_is_good(pem: &str, key: &KeyPair, suffix: &str, now: OffsetDateTime) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let permits = certificate.name_constraints().ok().flatten().is_some_and(|constraints| {
        constraints
            .value
            .permitted_subtrees
            .iter()
            .flatten()
            .any(|subtree| subtree.base == GeneralName::DNSName(suffix))
    });
    permits
        && certificate.public_key().raw == rcgen::PublicKeyData::subject_public_key_info(key)
        && lasts(&certificate, now, CA_LEFT_MIN)
}

fn server_is_good(pem: &str, ca_pem: &str, suffix: &str, now: OffsetDateTime) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let Ok(ca_der) = CertificateDer::from_pem_slice(ca_pem.as_bytes()) else { return false };
    let Ok((_, ca)) = X509Certificate::from_der(&ca_der) else { return false };
    let wildcard = format!("*.{suffix}");
    let names = certificate.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => {
            names.general_names.contains(&GeneralName::DNSName(&wildcard))
                && names.general_names.iter().all(|name| matches!(name, GeneralName::DNSName(_)))
        }
        _ => false,
    });
    names && is_signed_by(&certificate, &ca) && lasts(&certificate, now, SERVER_LEFT_MIN)
}

/// The authority's key never changes without its number in the name changing; the signature settles it.
fn is_signed_by(certificate: &X509Certificate<'_>, ca: &X509Certificate<'_>) -> bool {
    let key = ring::signature::UnparsedPublicKey::new(
        &ring::signature::ECDSA_P256_SHA256_ASN1,
        &ca.public_key().subject_public_key.data,
    );
    certificate.issuer().as_raw() == ca.subject().as_raw()
        && key.verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data).is_ok()
}

fn lasts(certificate: &X509Certificate<'_>, now: OffsetDateTime, left: Duration) -> bool {
    let validity = certificate.validity();
    validity.not_before.timestamp() <= now.unix_timestamp()
        && validity.not_after.timestamp() > (now + left).unix_timestamp()
}

fn load_or_create_key(path: &Path) -> Result<KeyPair, CaError> {
    let unreadable = |source| CaError::Key { path: path.to_owned(), source };
    if let Some(pem) = read(path)? {
        return KeyPair::from_pem(&pem).map_err(unreadable);
    }
    let key = KeyPair::generate().map_err(|source| CaError::Sign { what: "authority", source })?;
    let draft = files::write_draft(path, 0o600, key.serialize_pem().as_bytes())?;
    // A link, unlike a rename, does not replace: of two processes that start at once, both use the first one's key.
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft).map_err(FileError::when("remove", &draft))?;
    match linked {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let pem = fs::read_to_string(path).map_err(FileError::when("read", path))?;
            KeyPair::from_pem(&pem).map_err(unreadable)
        }
        Err(error) => Err(FileError::when("create", path)(error).into()),
    }
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    let Some(content) = files::read_if_there(path, FILE_BYTES_MAX)? else { return Ok(None) };
    let text = String::from_utf8(content).map_err(io::Error::other);
    Ok(Some(text.map_err(FileError::when("read", path))?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SUFFIX: &str = "lambda-microvm.us-east-1.localhost";

    fn contents(dir: &Path) -> [String; 3] {
        ["ca.key", "ca.pem", "server.pem"].map(|name| fs::read_to_string(dir.join(name)).unwrap())
    }

    #[test]
    fn a_second_start_changes_nothing_and_modes_are_right() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path(), SUFFIX).unwrap();
        let first = contents(dir.path());
        let ca = load_or_create(dir.path(), SUFFIX).unwrap();
        assert_eq!(contents(dir.path()), first);
        assert_eq!(ca.ca_path(), dir.path().join("ca.pem"));
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(["ca.key", "ca.pem", "server.pem"].map(mode), [0o600, 0o644, 0o600]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no drafts are left");
    }

    #[test]
    fn another_domain_means_new_certificates_of_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path(), SUFFIX).unwrap();
        let [key, ca, server] = contents(dir.path());
        load_or_create(dir.path(), "vm.example.test").unwrap();
        let [key_now, ca_now, server_now] = contents(dir.path());
        assert_eq!(key, key_now);
        assert_ne!(ca, ca_now);
        assert_ne!(server, server_now);
    }

    #[test]
    fn what_nears_its_end_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.pem");
        load_or_create(dir.path(), SUFFIX).unwrap();
        let [key, ca, _] = contents(dir.path());
        let key = KeyPair::from_pem(&key).unwrap();
        let now = OffsetDateTime::now_utc();
        let old = make_server(&ca, &key, SUFFIX, now - Duration::days(SERVER_DAYS) + SERVER_LEFT_MIN).unwrap();
        assert!(!server_is_good(&old, &ca, SUFFIX, now));
        fs::write(&path, &old).unwrap();
        load_or_create(dir.path(), SUFFIX).unwrap();
        let renewed = fs::read_to_string(&path).unwrap();
        assert!(server_is_good(&renewed, &ca, SUFFIX, now));
        assert!(!ca_is_good(&ca, &key, SUFFIX, now + Duration::days(CA_DAYS) - CA_LEFT_MIN));
        assert!(!server_is_good(&renewed, &ca, SUFFIX, now - Duration::days(1)), "not valid yet");
    }

    #[test]
    fn a_server_certificate_has_names_and_no_addresses() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path(), "a.test").unwrap();
        let pem = fs::read_to_string(dir.path().join("server.pem")).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names, [GeneralName::DNSName("*.a.test"), GeneralName::DNSName("localhost")]);
    }

    #[test]
    fn a_server_certificate_of_another_authority_is_not_used() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        load_or_create(one.path(), SUFFIX).unwrap();
        load_or_create(other.path(), SUFFIX).unwrap();
        fs::copy(other.path().join("server.pem"), one.path().join("server.pem")).unwrap();
        load_or_create(one.path(), SUFFIX).unwrap();
        assert_ne!(contents(one.path())[2], contents(other.path())[2]);
    }

    #[test]
    fn a_broken_authority_key_is_an_error_and_a_bad_domain_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.key"), "not a key").unwrap();
        assert!(matches!(load_or_create(dir.path(), SUFFIX), Err(CaError::Key { .. })));
        assert!(matches!(load_or_create(dir.path(), "a b"), Err(CaError::Suffix { .. })));
    }
}
