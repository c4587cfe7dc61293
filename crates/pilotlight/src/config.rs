//! What the server is told: a TOML file, then flags over it. Unknown keys are refused.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use api::{
    connectors::{Networks, SecurityGroup, Subnet},
    sensitive::Sensitive,
};
use control::{Lifecycle, Links, Quotas, http::Throttles};
use edge::{CertificateFiles, acme::AcmeSettings};
use serde::{Deserialize, Serialize};

use crate::cli::{AssetArguments, DataArguments, ServeArguments};

/// How long a key may seal tokens: no shorter than the longest of them lives, which all have to wait for; a year at most.
const TOKEN_KEY_HOURS: RangeInclusive<u32> = 1..=8760;

/// How guests are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM where it truly works, emulation elsewhere.
    Auto,
    /// KVM, or refuse to start.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Which VMM runs guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Firecracker where KVM truly works and its program is found, QEMU elsewhere.
    Auto,
    /// QEMU.
    Qemu,
    /// Firecracker, or refuse to start.
    Firecracker,
}

/// An S3 that is not the built-in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalS3 {
    /// Its URL; absent: AWS's own, of the region.
    pub endpoint: Option<String>,
    /// Its region.
    pub region: String,
    /// Key that reads; absent, with the secret: the environment's `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
    pub access_key_id: Option<String>,
    /// Its secret.
    pub secret_access_key: Option<Sensitive>,
}

impl ExternalS3 {
    fn check(&self) -> anyhow::Result<()> {
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            bail!("artifacts has one of access_key_id and secret_access_key; it needs both, or none");
        }
        if let Some(endpoint) = &self.endpoint
            && !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme))
        {
            bail!("artifacts.endpoint '{endpoint}' is no URL that begins with http:// or https://");
        }
        Ok(())
    }
}

/// A certificate for the endpoints that clients trust by themselves: from files, or from an authority that speaks ACME.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// File of the certificate, for `*.` and the endpoints' domain, and after it those that lead to its authority; in PEM.
    pub certificate: Option<PathBuf>,
    /// File of its private key.
    pub key: Option<PathBuf>,
    /// The authority to have one from.
    pub acme: Option<AcmeSettings>,
}

/// Which of the two it is.
pub enum TlsSource {
    /// Files.
    Files(CertificateFiles),
    /// An authority.
    Acme(AcmeSettings),
}

impl Tls {
    /// One of the two, or why it is none.
    pub fn source(&self) -> anyhow::Result<TlsSource> {
        match (&self.certificate, &self.key, &self.acme) {
            (Some(certificate), Some(key), None) => {
                Ok(TlsSource::Files(CertificateFiles { certificate: certificate.clone(), key: key.clone() }))
            }
            (None, None, Some(acme)) => Ok(TlsSource::Acme(acme.clone())),
            (None, None, None) => bail!("tls is empty; it needs certificate and key, or acme"),
            (_, _, Some(_)) => bail!("tls has files and acme; leave certificate and key out, or acme"),
            (_, _, None) => bail!("tls has one of certificate and key; it needs both"),
        }
    }
}

/// The configuration file. Every key has a default; docs/configuration.md and config.example.toml say the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory the server keeps everything in. One file system, not a network one.
    pub data_dir: PathBuf,
    /// Directory `make setup` filled.
    pub assets_dir: PathBuf,
    /// Guest kernel; absent: `kernel/vmlinuz` under `assets_dir`.
    pub kernel: Option<PathBuf>,
    /// Guest initramfs; absent: `initramfs.img` under `assets_dir`.
    pub initramfs: Option<PathBuf>,
    /// Address for all AWS clients. Plain HTTP: keep it on loopback or behind something that encrypts.
    pub api_address: SocketAddr,
    /// Addresses the endpoints are served on.
    pub edge_addresses: Vec<IpAddr>,
    /// Port of the endpoints.
    pub edge_port: u16,
    /// Address on loopback that Prometheus reads what is counted from; absent: nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// A certificate of one's own for the endpoints; absent: one of the development authority.
    pub tls: Option<Tls>,
    /// Hours that a key seals endpoint tokens, until the next one does.
    pub token_key_hours: u32,
    /// Endpoints are `<uuid>.lambda-microvm.<region>.<domain>`.
    pub domain: String,
    /// AWS region this server answers as.
    pub region: String,
    /// AWS account number this server answers as: 12 digits.
    pub account: String,
    /// `auto`, `kvm` or `tcg`.
    pub accelerator: Accelerator,
    /// `auto`, `qemu` or `firecracker`.
    pub driver: Driver,
    /// The Firecracker program; absent: where `pilotlight setup firecracker` puts it, or `firecracker` on the PATH.
    pub firecracker: Option<PathBuf>,
    /// The QEMU program; absent: `qemu-system-x86_64` on the PATH.
    pub qemu: Option<PathBuf>,
    /// Name servers written into new images; empty: this machine's own that are not on loopback.
    pub nameservers: Vec<IpAddr>,
    /// An S3 that code artifacts are read from; absent: the built-in endpoint's objects.
    pub artifacts: Option<ExternalS3>,
    /// Network namespaces kept ready for launches; each costs a few hundred KiB of kernel memory.
    pub namespaces_ready: usize,
    /// VMM processes kept ready for launches of the versions launched last; a QEMU has 16 MB of its own.
    pub launches_ready: usize,
    /// VMM processes kept ready for the microVMs suspended last; they cost as much.
    pub wakes_ready: usize,
    /// The limits that the endpoints keep.
    pub edge: edge::Settings,
    /// How much of everything there can be.
    pub quotas: Quotas,
    /// What goes beyond the service's rules about the lives of microVMs.
    pub lifecycle: Lifecycle,
    /// Whose images let people in by links, beyond the service.
    pub links: Links,
    /// Calls per second of operations, by their names; no limit for those left out.
    pub throttles: BTreeMap<String, u32>,
    /// Local networks that network connectors can name as subnets.
    pub subnets: Vec<Subnet>,
    /// Sets of rules that network connectors can name as security groups.
    pub security_groups: Vec<SecurityGroup>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/pilotlight".into(),
            assets_dir: "/var/lib/pilotlight/assets".into(),
            kernel: None,
            initramfs: None,
            api_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 4580)),
            edge_addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            edge_port: 4443,
            metrics_address: None,
            tls: None,
            token_key_hours: 24,
            domain: "localhost".into(),
            region: "us-east-1".into(),
            account: "000000000000".into(),
            accelerator: Accelerator::Auto,
            driver: Driver::Auto,
            firecracker: None,
            qemu: None,
            nameservers: Vec::new(),
            artifacts: None,
            namespaces_ready: 4,
            launches_ready: 2,
            wakes_ready: 4,
            edge: edge::Settings::default(),
            quotas: Quotas::default(),
            lifecycle: Lifecycle::default(),
            links: Links::default(),
            throttles: BTreeMap::new(),
            subnets: Vec::new(),
            security_groups: Vec::new(),
        }
    }
}

impl Config {
    /// The file, if one is named, and the flags.
    pub fn load(arguments: &ServeArguments) -> anyhow::Result<Self> {
        let mut config = Self::load_data(&arguments.data)?;
        config.use_assets(&arguments.assets);
        if let Some(address) = arguments.api_address {
            config.api_address = address;
        }
        if let Some(port) = arguments.edge_port {
            config.edge_port = port;
        }
        if let Some(region) = &arguments.region {
            config.region.clone_from(region);
        }
        config.check()?;
        Ok(config)
    }

    /// The file and the data directory, which is all that verbs other than `serve` need.
    pub fn load_data(arguments: &DataArguments) -> anyhow::Result<Self> {
        let mut config = match &arguments.config {
            None => Self::default(),
            Some(path) => Self::read(path)?,
        };
        if let Some(dir) = &arguments.data_dir {
            config.data_dir.clone_from(dir);
        }
        config.data_dir = std::path::absolute(&config.data_dir).context("data_dir")?;
        Ok(config)
    }

    /// The flags that say where the files of microVMs are.
    pub fn use_assets(&mut self, arguments: &AssetArguments) {
        if let Some(dir) = &arguments.assets_dir {
            self.assets_dir.clone_from(dir);
        }
        if let Some(file) = &arguments.initramfs {
            self.initramfs = Some(file.clone());
        }
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.account.len() != 12 || !self.account.bytes().all(|byte| byte.is_ascii_digit()) {
            bail!("account '{}' is not 12 digits", self.account);
        }
        let region_parts = self.region.split('-').count();
        if !(3..=4).contains(&region_parts)
            || !self.region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        {
            bail!("region '{}' does not look like an AWS region, such as us-east-1", self.region);
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if !self.domain.split('.').all(label) {
            bail!("domain '{}' is not a lower-case domain name", self.domain);
        }
        if let Some(artifacts) = &self.artifacts {
            artifacts.check()?;
        }
        if let Some(TlsSource::Acme(acme)) = self.tls.as_ref().map(Tls::source).transpose()? {
            acme.check(&self.domain)?;
        }
        if self.edge_addresses.is_empty() {
            bail!("edge_addresses is empty; the endpoints need at least one address to be served on");
        }
        if let Some(address) = self.metrics_address.filter(|address| !address.ip().is_loopback()) {
            bail!(
                "metrics_address {address} is not on loopback, and has no protection of its own; use 127.0.0.1 or [::1]"
            );
        }
        if !TOKEN_KEY_HOURS.contains(&self.token_key_hours) {
            let (min, max) = TOKEN_KEY_HOURS.into_inner();
            bail!("token_key_hours is {}; it must be from {min} to {max}", self.token_key_hours);
        }
        self.throttles()?;
        self.edge.check()?;
        self.lifecycle.check()?;
        self.networks().check().map_err(anyhow::Error::msg)
    }

    /// What network connectors can name.
    pub fn networks(&self) -> Networks {
        Networks { subnets: self.subnets.clone(), security_groups: self.security_groups.clone() }
    }

    /// How long a key seals tokens.
    pub fn token_key_period(&self) -> Duration {
        Duration::from_secs(u64::from(self.token_key_hours) * 3600)
    }

    /// The buckets that calls are taken from.
    pub fn throttles(&self) -> anyhow::Result<Throttles> {
        Throttles::new(self.throttles.iter().map(|(name, rate)| (name.as_str(), *rate))).context("throttles")
    }

    /// The guest kernel, in the form a driver boots.
    pub fn kernel(&self, driver: vmm::Driver) -> PathBuf {
        let name = match driver {
            vmm::Driver::Qemu => "kernel/vmlinuz",
            // Releases of it boot no compressed kernel.
            vmm::Driver::Firecracker => "kernel/vmlinux",
        };
        self.kernel.clone().unwrap_or_else(|| self.assets_dir.join(name))
    }

    /// The QEMU program: a path, or a name to be found on the PATH.
    pub fn qemu(&self) -> PathBuf {
        self.qemu.clone().unwrap_or_else(|| "qemu-system-x86_64".into())
    }

    /// The Firecracker program: a path, or a name to be found on the PATH.
    pub fn firecracker(&self) -> PathBuf {
        let fetched = self.assets_dir.join("firecracker/firecracker");
        self.firecracker.clone().unwrap_or(if fetched.is_file() { fetched } else { "firecracker".into() })
    }

    /// The guest's initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.initramfs.clone().unwrap_or_else(|| self.assets_dir.join("initramfs.img"))
    }

    /// What follows the first label of every endpoint's name.
    pub fn endpoint_suffix(&self) -> String {
        format!("lambda-microvm.{}.{}", self.region, self.domain)
    }

    /// Name servers for guests.
    pub fn guest_nameservers(&self) -> Vec<IpAddr> {
        if !self.nameservers.is_empty() {
            return self.nameservers.clone();
        }
        // With systemd-resolved the first file names only its stub on loopback, which a guest cannot reach.
        ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .map(|text| nameservers_in(&text))
            .find(|addresses| !addresses.is_empty())
            .unwrap_or_default()
    }
}

fn nameservers_in(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse().ok())
        .filter(|address: &IpAddr| !address.is_loopback())
        .take(3)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_says_the_defaults_and_names_every_key() {
        let example = include_str!("../../../config.example.toml");
        let live: Config = toml::from_str(example).expect("the example is valid");
        assert_eq!(live, Config::default());
        let all = toml::Table::try_from(Config {
            kernel: Some("k".into()),
            initramfs: Some("i".into()),
            qemu: Some("q".into()),
            firecracker: Some("f".into()),
            metrics_address: Some("127.0.0.1:4590".parse().expect("an address")),
            tls: Some(Tls { certificate: Some("c".into()), key: Some("k".into()), acme: None }),
            artifacts: Some(ExternalS3 {
                endpoint: None,
                region: "r".into(),
                access_key_id: None,
                secret_access_key: None,
            }),
            ..Config::default()
        })
        .expect("a configuration is a table");
        for key in all.keys() {
            let told = example.lines().any(|line| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{key} = ")) || line == format!("[{key}]") || line == format!("[[{key}]]")
            });
            assert!(told, "config.example.toml does not tell of {key}");
        }
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_by_name() {
        let error = toml::from_str::<Config>("edge_prot = 1").expect_err("a misspelt key");
        assert!(error.to_string().contains("edge_prot"), "{error}");
        for (config, word) in [
            (Config { account: "12".into(), ..Config::default() }, "account"),
            (Config { region: "here".into(), ..Config::default() }, "region"),
            (Config { domain: "Not A Domain".into(), ..Config::default() }, "domain"),
            (Config { metrics_address: "0.0.0.0:4590".parse().ok(), ..Config::default() }, "metrics_address"),
            (Config { edge_addresses: vec![], ..Config::default() }, "edge_addresses"),
            (Config { token_key_hours: 0, ..Config::default() }, "token_key_hours is 0; it must be from 1 to 8760"),
            (Config { token_key_hours: 8761, ..Config::default() }, "token_key_hours"),
            (
                Config { lifecycle: Lifecycle { work_cpu_percent: 0, ..Lifecycle::default() }, ..Config::default() },
                "lifecycle.work_cpu_percent",
            ),
            (
                Config { edge: edge::Settings { header_bytes: 8192, ..Default::default() }, ..Config::default() },
                "edge.header_bytes",
            ),
            (Config { throttles: [("RunMicrovms".to_owned(), 5)].into(), ..Config::default() }, "RunMicrovms"),
        ] {
            let error = format!("{:#}", config.check().expect_err(word));
            assert!(error.contains(word), "{error}");
        }
        let error = toml::from_str::<Config>("[quotas]\nimage = 1").expect_err("a misspelt quota");
        assert!(error.to_string().contains("image"), "{error}");
        let misspelt = "[edge.per_microvm]\nconnection = 1";
        let error = toml::from_str::<Config>(misspelt).expect_err("a misspelt limit");
        assert!(error.to_string().contains("connection"), "{error}");
        let misspelt = "[lifecycle.images.agent]\nwork_keeps_awaka = true";
        let error = toml::from_str::<Config>(misspelt).expect_err("a misspelt rule");
        assert!(error.to_string().contains("work_keeps_awaka"), "{error}");
        let misspelt = "[links.images.agent]\nallow = true";
        let error = toml::from_str::<Config>(misspelt).expect_err("a misspelt permission");
        assert!(error.to_string().contains("allow"), "{error}");
        Config::default().check().expect("the defaults are fine");
        for token_key_hours in [1, 8760] {
            Config { token_key_hours, ..Config::default() }.check().expect("within the bounds");
        }
    }

    #[test]
    fn a_certificate_is_from_one_place() {
        let with = |tls: &str, domain: &str| {
            let config: Config = toml::from_str(&format!("domain = '{domain}'\n[tls]\n{tls}")).expect("it can be read");
            config.check().map_err(|error| format!("{error:#}"))
        };
        let files = "certificate = 'c'\nkey = 'k'\n";
        let acme = "[tls.acme]\ndirectory = 'https://a.test/'\nterms_agreed = true\nhook = ['/hook']\n";
        with(files, "localhost").expect("files");
        with(acme, "example.test").expect("an authority");
        let each = acme.replace("hook = ['/hook']", "challenge = 'http-01'\nhttp_listen = ['0.0.0.0:80', '[::1]:80']");
        with(&each, "example.test").expect("an authority for each endpoint");
        for (tls, domain, words) in [
            ("", "example.test", "tls is empty"),
            ("key = 'k'", "example.test", "tls has one of certificate and key"),
            (&format!("{files}{acme}"), "example.test", "tls has files and acme"),
            (&format!("key = 'k'\n{acme}"), "example.test", "tls has files and acme"),
            (acme, "localhost", "set domain"),
            (&acme.replace("true", "false"), "example.test", "tls.acme.terms_agreed"),
            (&format!("{acme}challenge = 'tls-alpn-01'"), "example.test", "tls.acme.hook is for"),
            (&each.replace("http-01", "tls-alpn-01"), "example.test", "tls.acme.http_listen is for"),
            (&format!("{each}orders_per_hour = 0"), "example.test", "tls.acme.orders_per_hour is 0"),
        ] {
            let error = with(tls, domain).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
        for (line, word) in
            [("hok = ['x']", "hok"), ("challenge = 'dns-02'", "dns-02"), ("external_account = {}", "key_id")]
        {
            let error = toml::from_str::<Config>(&format!("{acme}{line}")).expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_authority_of_the_example_is_valid() {
        let example = include_str!("../../../config.example.toml");
        let (_, acme) = example.split_once("# [tls.acme]").expect("the example has an authority");
        let (acme, _) = acme.split_once("\n\n").expect("there is more");
        let text = format!("domain = 'example.com'\n[tls.acme]{acme}").replace("\n# ", "\n");
        let config: Config = toml::from_str(&text).expect("the example's authority is valid");
        config.check().expect("and makes sense");
        let acme = config.tls.and_then(|tls| tls.acme).expect("it is there");
        assert_eq!((acme.hook_timeout_seconds, acme.external_account.is_some(), acme.ca.is_some()), (300, true, true));
    }

    #[test]
    fn an_external_s3_is_whole() {
        let with = |text: &str| {
            let config: Config = toml::from_str(&format!("artifacts = {{ {text} }}")).expect("it can be read");
            config.check()
        };
        with("region = 'eu-west-1'").expect("the environment may have the key");
        with("region = 'r', endpoint = 'http://minio:9000', access_key_id = 'a', secret_access_key = 'b'")
            .expect("fine");
        let error = with("region = 'r', access_key_id = 'a'").expect_err("half a key");
        assert!(error.to_string().contains("secret_access_key"), "{error}");
        let error = with("region = 'r', endpoint = 'minio:9000'").expect_err("no URL");
        assert!(error.to_string().contains("artifacts.endpoint"), "{error}");
    }

    #[test]
    fn the_networks_of_the_example_are_valid() {
        let example = include_str!("../../../config.example.toml");
        let (_, networks) = example.split_once("# [[subnets]]").expect("the example has subnets");
        let text = format!("# [[subnets]]{networks}").replace("\n# ", "\n");
        let config: Config = toml::from_str(text.trim_start_matches("# ")).expect("the example's networks are valid");
        config.check().expect("and make sense");
        assert_eq!((config.subnets.len(), config.security_groups.len()), (1, 1));
        assert_eq!(config.security_groups[0].egress.len(), 2);
    }

    #[test]
    fn networks_that_make_no_sense_are_refused_by_name() {
        let subnet = |id: &str, cidr: &str| format!("[[subnets]]\nid = '{id}'\ncidr = '{cidr}'\ninternet = false\n");
        let group = |rule: &str| format!("[[security_groups]]\nid = 'sg-1'\negress = [{{ {rule} }}]\n");
        for (text, words) in [
            (subnet("net-1", "10.0.0.0/24"), "id 'net-1' must be 'subnet-'"),
            (subnet("subnet-", "10.0.0.0/24"), "id 'subnet-' must be"),
            (subnet("subnet-A", "10.0.0.0/24"), "id 'subnet-A' must be"),
            (subnet("subnet-1", "10.0.0.1/24"), "is not a network; write 10.0.0.0/24"),
            (subnet("subnet-1", "fd00::/64"), "must be of IPv4"),
            (subnet("subnet-1", "10.0.0.0/24").repeat(2), "is there twice"),
            ("[[security_groups]]\nid = 'x'\n".into(), "id 'x' must be 'sg-'"),
            ("[[security_groups]]\nid = 'sg-1'\n".repeat(2), "is there twice"),
            (group("protocol = 'icmp', ports = '1', cidr = '0.0.0.0/0'"), "leave ports out"),
            (group("protocol = 'tcp', ports = '1', cidr = '10.0.0.1/8'"), "write 10.0.0.0/8"),
        ] {
            let config: Config = toml::from_str(&text).expect("it can be read");
            let error = config.check().expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
        for (text, words) in [
            ("[[subnets]]\nid = 'subnet-1'\ncidr = '10.0.0.0/24'\n".into(), "internet"),
            (subnet("subnet-1", "10.0.0.0"), "cidr"),
            (subnet("subnet-1", "10.0.0.0/24") + "vpc = 'x'\n", "vpc"),
            (group("protocol = 'sctp', cidr = '0.0.0.0/0'"), "sctp"),
            (group("protocol = 'tcp', ports = '9-8', cidr = '0.0.0.0/0'"), "ports '9-8' is neither"),
            (group("protocol = 'tcp', ports = '0', cidr = '0.0.0.0/0'"), "ports '0' is neither"),
        ] {
            let error = toml::from_str::<Config>(&text).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn loopback_name_servers_are_of_no_use_to_a_guest() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\noptions edns0\nnameserver ::1\n";
        assert_eq!(nameservers_in(text), ["10.0.0.2".parse::<IpAddr>().expect("an address")]);
    }
}
