//! The files in `/etc` that a container runtime provides: the image cannot know their content.

use guest_protocol::{AppSpec, GUEST_ADDRESS};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A file that could not be provided.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub(super) struct EtcError {
    path: &'static str,
    #[source]
    source: io::Error,
}

/// Writes the files that the image has not, or has empty. Only the name servers always come from the host: those that
/// an image brings along are the ones of the machine it was made on.
pub(super) fn write(spec: &AppSpec) -> Result<(), EtcError> {
    let resolv = resolv_conf(&spec.nameservers);
    if !resolv.is_empty() {
        provide("/etc/resolv.conf", &resolv)?;
    }
    provide_if_empty("/etc/hosts", &hosts(&spec.hostname))?;
    provide_if_empty("/etc/hostname", &format!("{}\n", spec.hostname))
}

fn provide_if_empty(path: &'static str, content: &str) -> Result<(), EtcError> {
    let has_content = File::open(path).and_then(|mut file| file.read(&mut [0u8; 1])).is_ok_and(|bytes| bytes > 0);
    if has_content { Ok(()) } else { provide(path, content) }
}

fn provide(path: &'static str, content: &str) -> Result<(), EtcError> {
    replace(Path::new(path), content).map_err(|source| EtcError { path, source })
}

/// A link is replaced and not followed: often it points to where a service that does not run here would write.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => fs::remove_file(path)?,
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.write_all(content.as_bytes())
}

fn resolv_conf(nameservers: &[String]) -> String {
    nameservers
        .iter()
        .filter(|server| server.parse::<std::net::IpAddr>().is_ok())
        .map(|server| format!("nameserver {server}\n"))
        .collect()
}

fn hosts(hostname: &str) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if !hostname.is_empty() && hostname != "localhost" {
        text.push_str(&format!("{GUEST_ADDRESS}\t{hostname}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{hosts, replace, resolv_conf};
    use std::fs;

    #[test]
    fn name_servers_that_are_no_addresses_are_left_out() {
        let servers = ["169.254.100.1", "not an address\nnameserver 1.2.3.4", "fd00::1"].map(str::to_owned);
        assert_eq!(resolv_conf(&servers), "nameserver 169.254.100.1\nnameserver fd00::1\n");
        assert_eq!(resolv_conf(&[]), "");
    }

    #[test]
    fn hosts_names_the_machine_by_its_address() {
        assert!(hosts("web").ends_with("169.254.100.2\tweb\n"));
        assert_eq!(hosts("localhost").lines().count(), 2);
    }

    #[test]
    fn a_link_is_replaced_and_a_file_rewritten() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "mine").expect("a file");
        let path = directory.path().join("etc/resolv.conf");
        fs::create_dir(directory.path().join("etc")).expect("a directory");
        std::os::unix::fs::symlink(&elsewhere, &path).expect("a link");
        replace(&path, "a longer text").expect("the link is replaced");
        replace(&path, "short").expect("the file is rewritten");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "short");
        assert_eq!(fs::read_to_string(&elsewhere).expect("it is there"), "mine");
    }
}
