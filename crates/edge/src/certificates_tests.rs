use std::fs;

use rcgen::{CertificateParams, KeyPair};
use time::Duration;

use super::*;

const SUFFIX: &str = "lambda-microvm.eu-west-1.example.test";

struct Renewed {
    dir: tempfile::TempDir,
    files: CertificateFiles,
}

impl Renewed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = CertificateFiles { certificate: dir.path().join("chain.pem"), key: dir.path().join("key.pem") };
        Self { dir, files }
    }

    fn write(&self, (certificate, key): &(String, String)) {
        fs::write(&self.files.certificate, certificate).unwrap();
        fs::write(&self.files.key, key).unwrap();
    }

    fn load(&self) -> Result<Arc<Certificates>, CertificateError> {
        Certificates::load(self.files.clone(), SUFFIX)
    }
}

/// A certificate for these names that begins and ends so many days from now, and its key.
fn pair(names: &[&str], from: i64, to: i64) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = OffsetDateTime::now_utc() + Duration::days(from);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(to);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn good() -> (String, String) {
    pair(&[&format!("*.{SUFFIX}")], -1, 90)
}

fn served(certificates: &Certificates) -> Vec<u8> {
    certificates.served.current().key.cert[0].to_vec()
}

#[test]
fn a_renewed_pair_is_served_and_half_a_renewal_is_not() {
    let renewed = Renewed::new();
    let (first, second) = (good(), good());
    renewed.write(&first);
    let certificates = renewed.load().unwrap();
    let before = served(&certificates);
    assert!(!certificates.refresh().unwrap(), "nothing is new");

    fs::write(&renewed.files.certificate, &second.0).unwrap();
    assert!(matches!(certificates.refresh(), Err(CertificateError::Pair { .. })));
    assert!(!certificates.refresh().unwrap(), "told once");
    assert_eq!(served(&certificates), before);

    fs::write(&renewed.files.key, &second.1).unwrap();
    assert!(certificates.refresh().unwrap());
    assert_ne!(served(&certificates), before);
}

#[test]
fn what_goes_away_or_is_no_good_is_outlived() {
    let renewed = Renewed::new();
    renewed.write(&good());
    let certificates = renewed.load().unwrap();
    let before = served(&certificates);
    for worse in [pair(&[&format!("*.{SUFFIX}")], -90, -1), pair(&["other.test"], -1, 90)] {
        renewed.write(&worse);
        assert!(certificates.refresh().is_err());
    }
    fs::remove_file(&renewed.files.key).unwrap();
    assert!(matches!(certificates.refresh(), Err(CertificateError::Read { .. })));
    assert_eq!(served(&certificates), before);
}

#[test]
fn what_cannot_be_served_is_refused_at_once_with_the_reason() {
    let renewed = Renewed::new();
    let reason = || renewed.load().unwrap_err().to_string();
    assert!(reason().starts_with("cannot read ") && reason().ends_with("chain.pem"));
    let (chain, key) = good();
    renewed.write(&(String::new(), key.clone()));
    assert!(reason().starts_with("there is no certificate in "));
    renewed.write(&(chain.clone(), chain.clone()));
    assert!(reason().starts_with("there is no private key in "));
    renewed.write(&(chain.clone(), good().1));
    assert!(reason().starts_with("the key in "));
    renewed.write(&pair(&["*.example.test"], -1, 90));
    assert!(reason().ends_with(&format!("it must be for '*.{SUFFIX}'")));
    renewed.write(&pair(&[&format!("*.{SUFFIX}")], 1, 90));
    assert!(reason().ends_with("which is not now"));

    // A comment as long as it may be, and one byte longer.
    let padded = |bytes: u64| {
        let comment = "#".repeat(usize::try_from(bytes).unwrap() - chain.len() - 1);
        (format!("{comment}\n{chain}"), key.clone())
    };
    renewed.write(&padded(FILE_BYTES_MAX));
    renewed.load().unwrap();
    renewed.write(&padded(FILE_BYTES_MAX + 1));
    assert!(matches!(renewed.load(), Err(CertificateError::TooLarge { .. })));
    drop(renewed.dir);
}
