//! `pilotlight ca`: how to have clients trust the endpoints. Reads plain files; needs no server.

use std::io::{self, Write};

use anyhow::{Context, bail};

use crate::{
    cli::CaArguments,
    config::{Config, Tls, TlsSource},
    tls,
};

/// Prints what to do, or the certificate itself.
pub fn print(arguments: &CaArguments) -> anyhow::Result<()> {
    let config = Config::load_data(&arguments.data)?;
    let served = match config.tls.as_ref().map(Tls::source).transpose()? {
        None => None,
        Some(TlsSource::Files(files)) => Some(format!("the certificate in {}", files.certificate.display())),
        Some(TlsSource::Acme(acme)) => Some(format!("a certificate from {}", acme.directory)),
    };
    if let Some(served) = served {
        bail!(
            "the endpoints serve {served}, as the configuration's tls says, and not one of the development authority: clients \
             have to trust whoever signed it"
        );
    }
    let path = tls::ca_path(&config.data_dir);
    let pem = std::fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}; it is made when `pilotlight serve` is started for the first time", path.display())
    })?;
    let mut out = io::stdout().lock();
    if arguments.pem {
        out.write_all(pem.as_bytes())?;
        return Ok(());
    }
    let path = path.display();
    let suffix = config.endpoint_suffix();
    write!(
        out,
        r#"{path} is the authority of the endpoints' certificate. It can sign for
*.{suffix} and this machine's own names alone. To trust it,

for one call or program:
    curl --cacert {path} ...
    export AWS_CA_BUNDLE={path}           # AWS CLI and SDKs; so does: eval "$(pilotlight env)"
    export REQUESTS_CA_BUNDLE={path}      # Python's requests
    export SSL_CERT_FILE={path}           # OpenSSL, Go, and much else; nothing else is trusted then
    export NODE_EXTRA_CA_CERTS={path}     # Node

for this machine (as root):
    cp {path} /usr/local/share/ca-certificates/pilotlight.crt && update-ca-certificates        # Debian, Ubuntu
    cp {path} /etc/pki/ca-trust/source/anchors/pilotlight.pem && update-ca-trust                # Fedora, RHEL
    security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {path}  # macOS

for Chromium and Firefox on Linux, which have stores of their own (certutil is in libnss3-tools):
    certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n pilotlight -i {path}

for another machine: pilotlight ca --pem > pilotlight.pem, and the same there.
"#
    )?;
    Ok(())
}
