//! Whom this command trusts as a client.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, ensure};
use rustls::pki_types::{CertificateDer, pem::PemObject};

/// A bundle of all public authorities has about 250 KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Those in a file, in PEM.
pub fn in_file(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let mut pem = Vec::new();
    let file = File::open(path).context("cannot read it")?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut pem).context("cannot read it")?;
    ensure!(pem.len() as u64 <= FILE_BYTES_MAX, "it has more than {FILE_BYTES_MAX} bytes");
    let roots: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().context("it is not PEM")?;
    ensure!(!roots.is_empty(), "it has no certificate in PEM form");
    Ok(roots)
}

/// Those of the machine, if it has any. One unreadable certificate among many is no reason to refuse the others.
pub fn of_the_machine() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// The authorities of this machine and, beside them, those in a file.
pub fn trusted(ca: Option<&Path>) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let mut roots = of_the_machine();
    if let Some(path) = ca {
        roots.extend(in_file(path).with_context(|| path.display().to_string())?);
    }
    ensure!(
        !roots.is_empty(),
        "there are no certificate authorities to trust: PILOTLIGHT_CA_BUNDLE names a file of them"
    );
    Ok(roots)
}
