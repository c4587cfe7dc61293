//! What an image says about how its application runs.

use serde::{Deserialize, Serialize};

/// How to run an image's application, as the Dockerfile said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// The CMD.
    pub cmd: Vec<String>,
    /// The environment, in order; a name occurs once.
    pub env: Vec<(String, String)>,
    /// The WORKDIR; `/` when there is none.
    pub workdir: String,
    /// The USER as written: a name or a number, perhaps with a group; empty for root.
    pub user: String,
    /// The TCP ports that EXPOSE named.
    pub exposed_ports: Vec<u16>,
}

/// Why the description of a built image was not understood.
#[derive(Debug, thiserror::Error)]
pub enum ImageConfigError {
    /// It is not what Buildah prints.
    #[error("the description of the image is not understood")]
    Shape(#[source] serde_json::Error),
    /// It is too long to hand to a program.
    #[error("the image's command and environment are longer than {max} bytes")]
    TooLong {
        /// The longest accepted.
        max: usize,
    },
}

/// Longest command and environment together; the kernel's limit for starting a program is not far above.
const ARGUMENTS_BYTES_MAX: usize = 1024 * 1024;

#[derive(Deserialize)]
struct Inspected {
    #[serde(rename = "Docker")]
    docker: Docker,
}

#[derive(Deserialize)]
struct Docker {
    config: DockerConfig,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct DockerConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: String,
    user: String,
    exposed_ports: Option<std::collections::BTreeMap<String, serde_json::Value>>,
}

impl ImageConfig {
    /// Reads what `buildah inspect --type image` prints. `env` is the image's own environment by the service's API: it
    /// wins over the Dockerfile's, to the letter.
    pub(crate) fn parse(inspected: &[u8], env: &[(String, String)]) -> Result<Self, ImageConfigError> {
        let inspected: Inspected = serde_json::from_slice(inspected).map_err(ImageConfigError::Shape)?;
        let config = inspected.docker.config;
        let mut all: Vec<(String, String)> = Vec::new();
        let dockerfile = config.env.unwrap_or_default();
        let dockerfile = dockerfile.iter().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into()));
        for (name, value) in dockerfile.chain(env.iter().cloned()) {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = value,
                None => all.push((name, value)),
            }
        }
        let ports = config.exposed_ports.unwrap_or_default();
        let mut exposed_ports: Vec<u16> = ports
            .keys()
            .filter_map(|port| match port.split_once('/') {
                None => port.parse().ok(),
                Some((port, "tcp")) => port.parse().ok(),
                Some(_) => None,
            })
            .collect();
        exposed_ports.sort_unstable();
        let config = Self {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: all,
            workdir: if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir },
            user: config.user,
            exposed_ports,
        };
        if config.bytes() > ARGUMENTS_BYTES_MAX {
            return Err(ImageConfigError::TooLong { max: ARGUMENTS_BYTES_MAX });
        }
        Ok(config)
    }

    fn bytes(&self) -> usize {
        let command: usize = self.entrypoint.iter().chain(&self.cmd).map(String::len).sum();
        let env: usize = self.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        command + env
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_read() {
        let text = br#"{"Type":"image","Docker":{"id":"x","config":{"User":"1000:1000","ExposedPorts":{"8080/tcp":{},
            "9000/udp":{},"443":{}},"Env":["PATH=/bin","A=1=2"],"Cmd":["-c","x"],"Entrypoint":["sh"],"WorkingDir":""}}}"#;
        let env = [("A".to_owned(), "$B".to_owned()), ("C".to_owned(), String::new())];
        let config = ImageConfig::parse(text, &env).expect("understood");
        assert_eq!(config.entrypoint, ["sh"]);
        assert_eq!(config.cmd, ["-c", "x"]);
        assert_eq!(config.user, "1000:1000");
        assert_eq!(config.workdir, "/");
        assert_eq!(config.exposed_ports, [443, 8080]);
        let env: Vec<_> = config.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(env, [("PATH", "/bin"), ("A", "$B"), ("C", "")]);
    }

    #[test]
    fn nulls_are_empty_and_nonsense_is_refused() {
        let text = br#"{"Docker":{"config":{"Cmd":null,"Env":null,"ExposedPorts":null,"Entrypoint":null}}}"#;
        let config = ImageConfig::parse(text, &[]).expect("understood");
        assert_eq!(config, ImageConfig { workdir: "/".into(), ..ImageConfig::default() });
        assert!(matches!(ImageConfig::parse(b"{}", &[]), Err(ImageConfigError::Shape(_))));
        let long = format!(r#"{{"Docker":{{"config":{{"Cmd":["{}"]}}}}}}"#, "x".repeat(ARGUMENTS_BYTES_MAX + 1));
        assert!(matches!(ImageConfig::parse(long.as_bytes(), &[]), Err(ImageConfigError::TooLong { .. })));
    }
}
