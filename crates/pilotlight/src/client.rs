//! Calls of the API, signed as any client signs them.

use std::{path::PathBuf, sync::Arc, time::Duration, time::SystemTime};

use anyhow::{Context, bail};
use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use serde_json::{Value, json};
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};

use crate::{access, authorities, cli::DataArguments, config::Config, running::Running};

/// For one call; nothing that is called here waits for a microVM.
const CALL_TIME_MAX: Duration = Duration::from_secs(30);

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// How long a shell's token is good for, in minutes: the least there is. It is used at once, and a session outlives it.
const SHELL_MINUTES: u32 = 1;

/// The variables that AWS's own clients read, and what a server of this machine says if they are not set.
#[derive(Debug)]
pub struct Access {
    url: String,
    credentials: Credentials,
    /// The region.
    pub region: String,
    /// The authorities to trust beside the machine's.
    pub ca: Option<PathBuf>,
}

impl Access {
    /// From the environment, as `pilotlight env` sets it, or else from the server's files.
    pub fn find(data: &DataArguments) -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = variable("AWS_ENDPOINT_URL_LAMBDA_MICROVMS").or_else(|| variable("AWS_ENDPOINT_URL"));
        if let Some(url) = url {
            let needed = |name: &'static str| {
                variable(name).with_context(|| {
                    format!("AWS_ENDPOINT_URL is set and {name} is not: eval \"$(pilotlight env)\" sets what is needed")
                })
            };
            let (id, secret) = (needed("AWS_ACCESS_KEY_ID")?, needed("AWS_SECRET_ACCESS_KEY")?);
            let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
            return Ok(Self {
                url: url.trim_end_matches('/').to_owned(),
                credentials: Credentials::new(id, secret, variable("AWS_SESSION_TOKEN"), None, "environment"),
                region: region.context("AWS_REGION is not set")?,
                ca: variable("PILOTLIGHT_CA_BUNDLE").or_else(|| variable("AWS_CA_BUNDLE")).map(PathBuf::from),
            });
        }
        let config = Config::load_data(data)?;
        let running = Running::find(&config.data_dir)?;
        let key = access::existing_local_key(&config.data_dir)?;
        Ok(Self {
            url: running.api_url,
            credentials: Credentials::new(key.access_key_id, key.secret_access_key, None, None, "data directory"),
            region: running.region,
            ca: running.ca,
        })
    }

    /// The endpoint of a microVM: a host, with a port if it is not HTTPS's own.
    pub fn endpoint_of(&self, microvm: &str) -> anyhow::Result<String> {
        let answer = self.call("GET", microvm, "", "").with_context(|| format!("cannot look for {microvm}"))?;
        Ok(answer["endpoint"].as_str().context("the API tells no endpoint")?.to_owned())
    }

    /// A token for a shell of a microVM.
    pub fn shell_token(&self, microvm: &str) -> anyhow::Result<String> {
        self.token(microvm, "/shell-auth-token", &json!({"expirationInMinutes": SHELL_MINUTES}))
    }

    /// A token for requests to a port of a microVM.
    pub fn port_token(&self, microvm: &str, port: u16, minutes: u32) -> anyhow::Result<String> {
        let ports = json!([{"port": port}]);
        self.token(microvm, "/auth-token", &json!({"expirationInMinutes": minutes, "allowedPorts": ports}))
    }

    fn token(&self, microvm: &str, operation: &str, body: &Value) -> anyhow::Result<String> {
        let answer = self.call("POST", microvm, operation, &body.to_string())?;
        let token = answer["authToken"]["X-aws-proxy-auth"].as_str();
        Ok(token.context("the API tells no token")?.to_owned())
    }

    fn call(&self, method: &str, microvm: &str, operation: &str, body: &str) -> anyhow::Result<Value> {
        let escaped = percent_encoding::utf8_percent_encode(microvm, percent_encoding::NON_ALPHANUMERIC).to_string();
        // What identifiers consist of is not escaped by others either, and a signature is over the path as it is.
        let escaped = escaped.replace("%2D", "-").replace("%5F", "_").replace("%2E", ".");
        let url = format!("{}/2025-09-09/microvms/{escaped}{operation}", self.url);
        let mut request = http::Request::builder().method(method).uri(&url);
        let uri: http::Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        let host = uri.authority().with_context(|| format!("{url} has no host"))?.as_str();
        for (name, value) in self.sign(method, &url, host, body)? {
            request = request.header(name, value);
        }
        let request = request.header(http::header::CONTENT_TYPE, "application/json").body(body.to_owned())?;
        let mut response =
            self.agent()?.run(request).with_context(|| format!("the API at {} cannot be reached", self.url))?;
        let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let text = text.context("the API's answer broke off")?;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        if response.status().is_success() {
            return Ok(answer);
        }
        let message = answer["message"].as_str().or(answer["Message"].as_str());
        match message {
            Some(message) => bail!("{message}"),
            None => bail!("the API at {} answers {}", self.url, response.status()),
        }
    }

    fn sign(&self, method: &str, url: &str, host: &str, body: &str) -> anyhow::Result<Vec<(String, String)>> {
        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("lambda")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?;
        let headers = [("host", host)].into_iter();
        let request = SignableRequest::new(method, url, headers, SignableBody::Bytes(body.as_bytes()))?;
        let (instructions, _) = sign(request, &parameters.into())?.into_parts();
        Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn agent(&self) -> anyhow::Result<Agent> {
        let mut config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .allow_non_standard_methods(false)
            .user_agent(concat!("pilotlight/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(CALL_TIME_MAX));
        if self.url.starts_with("https://") {
            let roots: Vec<_> = authorities::trusted(self.ca.as_deref())?;
            let roots = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
            let tls = TlsConfig::builder()
                .root_certs(RootCerts::Specific(Arc::new(roots)))
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .build();
            config = config.tls_config(tls);
        } else {
            // A proxy's loopback is not ours.
            config = config.proxy(None);
        }
        Ok(config.build().new_agent())
    }
}
