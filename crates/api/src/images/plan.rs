//! What a request for an image means here: the service's rules that need no look-up, and its defaults.

use std::time::Duration;

use crate::{
    catalogue,
    connector::{EgressConnector, ManagedConnector},
    error::ServiceError,
    hooks::HookPlan,
    sensitive::Sensitive,
    size::Size,
};

use super::{
    Architecture, CpuConfiguration, HookSwitch, Hooks, MicrovmHooks, MicrovmImageHooks, OsCapability, Resources,
    VersionConfiguration, VersionRequest, managed::normalised_version,
};

/// Environment variables the platform sets itself in every app.
const RESERVED_ENVIRONMENT: [&str; 4] =
    ["AWS_LAMBDA_MICROVM_IMAGE_ARN", "AWS_LAMBDA_MICROVM_IMAGE_NAME", "AWS_LAMBDA_MICROVM_IMAGE_VERSION", "AWS_REGION"];

/// Hooks that are on without a time limit of their own get these.
const BUILD_HOOK_TIMEOUT: Duration = Duration::from_secs(30);
const MICROVM_HOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// An object in S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Location {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
}

impl S3Location {
    /// Reads `s3://bucket/key`.
    pub fn parse(uri: &str) -> Result<Self, ServiceError> {
        let (bucket, key) =
            uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or_else(catalogue::bad_artifact_uri)?;
        // A bucket's name is a DNS label with dots; a key has at most 1024 bytes.
        let bucket_fits = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
            && bucket.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && bucket.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !bucket_fits || key.is_empty() || key.len() > 1024 {
            return Err(catalogue::bad_artifact_uri());
        }
        Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

/// A request for an image, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlan {
    /// What the version is made from, as answers show it.
    pub configuration: VersionConfiguration,
    /// The zip.
    pub artifact: S3Location,
    /// Size of every microVM.
    pub size: Size,
    /// The hooks that are on.
    pub hooks: HookPlan,
    /// What to build for, each once; one at least.
    pub architectures: Vec<Architecture>,
    /// Whether the app gets every capability.
    pub all_capabilities: bool,
    /// Environment of the app.
    pub environment: Vec<(String, Sensitive)>,
    /// Network of the build and default of launches; one.
    pub egress: EgressConnector,
}

impl VersionRequest {
    /// Applies the service's rules, in the order in which it was seen to complain. The host is what can be built for.
    pub fn plan(&self, region: &str, host: &[Architecture]) -> Result<ImagePlan, ServiceError> {
        if self.kms_key_identifier.is_some() {
            return Err(catalogue::unsupported_kms_key());
        }
        let artifact = S3Location::parse(&self.code_artifact.uri)?;
        let base_image_version = normalised_version(&self.base_image_arn, self.base_image_version.as_deref(), region)?;
        let architectures = self.architectures(host)?;
        let size = self.size()?;
        let hooks = self.hooks.unwrap_or_default().plan()?;
        let environment = self.environment()?;
        let egress = self.egress_network_connectors.as_deref().unwrap_or_default();
        let egress = EgressConnector::from_arns(egress, region)?
            .into_iter()
            .next()
            .unwrap_or(EgressConnector::Managed(ManagedConnector::InternetEgress));
        let baseline = i32::try_from(size.baseline_mib).expect("no size is that large");
        let configuration = VersionConfiguration {
            base_image_arn: self.base_image_arn.clone(),
            base_image_version: Some(base_image_version),
            build_role_arn: self.build_role_arn.clone(),
            code_artifact: self.code_artifact.clone(),
            description: self.description.clone(),
            logging: self.logging.clone(),
            egress_network_connectors: Some(vec![egress.arn(region)]),
            cpu_configurations: self.cpu_configurations.clone(),
            resources: Some(vec![Resources { minimum_memory_in_mib: baseline }]),
            additional_os_capabilities: self.additional_os_capabilities.clone(),
            hooks: self.hooks,
            environment_variables: self.environment_variables.clone(),
            kms_key_identifier: None,
        };
        let all_capabilities = self.additional_os_capabilities.iter().flatten().any(|it| *it == OsCapability::All);
        Ok(ImagePlan { configuration, artifact, size, hooks, architectures, all_capabilities, environment, egress })
    }

    // The real service takes null for ARM_64. Here it is what the machine has: a request that names no architecture
    // asks for whatever works, and on an x86-64 machine ARM_64 never would.
    fn architectures(&self, host: &[Architecture]) -> Result<Vec<Architecture>, ServiceError> {
        let mut architectures = vec![];
        for CpuConfiguration { architecture } in self.cpu_configurations.iter().flatten() {
            if !host.contains(architecture) {
                return Err(catalogue::unsupported_architecture(*architecture, host));
            }
            if !architectures.contains(architecture) {
                architectures.push(*architecture);
            }
        }
        if architectures.is_empty() {
            architectures.extend(host.first());
        }
        Ok(architectures)
    }

    fn size(&self) -> Result<Size, ServiceError> {
        let Some(asked) = self.resources.as_deref().and_then(<[Resources]>::first) else {
            return Ok(Size::DEFAULT);
        };
        u32::try_from(asked.minimum_memory_in_mib)
            .ok()
            .and_then(Size::from_baseline_mib)
            .ok_or_else(|| catalogue::unsupported_memory(asked.minimum_memory_in_mib, &self.base_image_arn))
    }

    fn environment(&self) -> Result<Vec<(String, Sensitive)>, ServiceError> {
        let variables = || self.environment_variables.iter().flatten();
        let reserved: Vec<_> =
            variables().map(|(name, _)| name.as_str()).filter(|name| RESERVED_ENVIRONMENT.contains(name)).collect();
        if !reserved.is_empty() {
            return Err(catalogue::reserved_environment(&reserved));
        }
        // What no process can have in its environment; the app would find something else, or not start.
        if let Some((name, _)) =
            variables().find(|(name, text)| name.contains(['=', '\0']) || text.expose().contains('\0'))
        {
            return Err(catalogue::impossible_environment(name));
        }
        Ok(variables().map(|(name, text)| (name.clone(), text.clone())).collect())
    }
}

impl Hooks {
    /// The hooks that are on, with their time limits.
    pub fn plan(&self) -> Result<HookPlan, ServiceError> {
        let MicrovmHooks {
            run,
            run_timeout_in_seconds,
            resume,
            resume_timeout_in_seconds,
            suspend,
            suspend_timeout_in_seconds,
            terminate,
            terminate_timeout_in_seconds,
        } = self.microvm_hooks.unwrap_or_default();
        let MicrovmImageHooks { ready, ready_timeout_in_seconds, validate, validate_timeout_in_seconds } =
            self.microvm_image_hooks.unwrap_or_default();
        let plan = HookPlan {
            port: self.port,
            ready: limit(ready, ready_timeout_in_seconds, BUILD_HOOK_TIMEOUT),
            validate: limit(validate, validate_timeout_in_seconds, BUILD_HOOK_TIMEOUT),
            run: limit(run, run_timeout_in_seconds, MICROVM_HOOK_TIMEOUT),
            resume: limit(resume, resume_timeout_in_seconds, MICROVM_HOOK_TIMEOUT),
            suspend: limit(suspend, suspend_timeout_in_seconds, MICROVM_HOOK_TIMEOUT),
            terminate: limit(terminate, terminate_timeout_in_seconds, MICROVM_HOOK_TIMEOUT),
        };
        let any_of_microvm = plan.run.or(plan.resume).or(plan.suspend).or(plan.terminate).is_some();
        if any_of_microvm && plan.ready.is_none() {
            return Err(catalogue::ready_hook_required());
        }
        if plan.ready.or(plan.validate).is_some() && plan.port.is_none() {
            return Err(catalogue::hook_port_required());
        }
        Ok(plan)
    }
}

fn limit(switch: Option<HookSwitch>, seconds: Option<u32>, default: Duration) -> Option<Duration> {
    match switch {
        Some(HookSwitch::Enabled) => Some(seconds.map_or(default, |seconds| Duration::from_secs(seconds.into()))),
        Some(HookSwitch::Disabled) | None => None,
    }
}
