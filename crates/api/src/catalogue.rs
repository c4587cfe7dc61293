//! The service's sentences, each as recorded from the live service where a recording exists. Where none does, the
//! constructor says so, and the sentence is our own.

use std::fmt::Display;

use crate::{arn::ParseArnError, error::ServiceError, images::Architecture, size::Size};

fn validation(message: impl Into<String>) -> ServiceError {
    ServiceError::Validation { message: message.into() }
}

fn not_found(message: String) -> ServiceError {
    ServiceError::ResourceNotFound { message, resource_id: None, resource_type: None }
}

fn conflict(message: String) -> ServiceError {
    ServiceError::Conflict { message, resource_id: None, resource_type: None }
}

/// No such microVM.
#[must_use]
pub fn unknown_microvm(id: impl Display) -> ServiceError {
    not_found(format!("MicroVM not found: {id}"))
}

/// No such image.
#[must_use]
pub fn unknown_image(arn: impl Display) -> ServiceError {
    not_found(format!("MicroVMImage not found for MicroVMImageID: {arn}"))
}

/// No such version of the image.
#[must_use]
pub fn unknown_version(arn: impl Display, version: impl Display) -> ServiceError {
    not_found(format!("MicroVMImage not found for MicroVMImage: {arn}, Version: {version}"))
}

/// No such build of the version. Not recorded.
#[must_use]
pub fn unknown_build(arn: impl Display, version: impl Display, build: impl Display) -> ServiceError {
    not_found(format!("MicroVMImageBuild not found for MicroVMImage: {arn}, Version: {version}, Build: {build}"))
}

/// Nothing to launch: no image, no such version, or none active.
#[must_use]
pub fn no_active_version(arn: impl Display, pinned: Option<&str>) -> ServiceError {
    not_found(match pinned {
        None => format!("No active version found for MicroVM image {arn}"),
        Some(version) => format!("No active version found for MicroVM image {arn} and version {version}"),
    })
}

/// Not the ARN of an image, in an image operation.
#[must_use]
pub fn invalid_image_arn(value: &str) -> ServiceError {
    validation(format!("Invalid ARN format: {value}"))
}

/// Not an ARN, in `RunMicrovm`.
#[must_use]
pub fn malformed_arn(error: ParseArnError) -> ServiceError {
    validation(error.to_string())
}

/// The name is taken, perhaps by an image being deleted.
#[must_use]
pub fn duplicate_image_name(name: &str) -> ServiceError {
    validation(format!("A MicroVM image with the name '{name}' already exists in this account"))
}

/// No size has that much memory.
#[must_use]
pub fn unsupported_memory(mib: i32, base_image_arn: &str) -> ServiceError {
    validation(format!(
        "The requested memory size of {mib} MiB is not supported by base MicroVM image {base_image_arn}. Supported memory \
         sizes in MiB are: {:?}.",
        Size::BASELINES_MIB
    ))
}

/// The artifact's URI is not `s3://bucket/key`.
#[must_use]
pub fn bad_artifact_uri() -> ServiceError {
    validation("CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>")
}

/// No such managed image, or no such version of it. The form without a version is not recorded.
#[must_use]
pub fn unknown_base_image(arn: &str, version: Option<&str>) -> ServiceError {
    validation(match version {
        Some(version) => format!("No managed MicroVM Image with arn {arn} and version {version} is available"),
        None => format!("No managed MicroVM Image with arn {arn} is available"),
    })
}

/// A hook of the microVM is on, `ready` is not. Only the beginning was recorded.
#[must_use]
pub fn ready_hook_required() -> ServiceError {
    validation("ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook is enabled")
}

/// A hook is on, and there is no port to call it on. Documented as a rule; the sentence is not recorded.
#[must_use]
pub fn hook_port_required() -> ServiceError {
    validation("A port must be specified in hooks when any hook is enabled")
}

/// Names the service keeps for itself. The rule is documented; the sentence is that of Lambda functions.
#[must_use]
pub fn reserved_environment(names: &[&str]) -> ServiceError {
    validation(format!(
        "Lambda was unable to configure your environment variables because the environment variables you have provided \
         contains reserved keys that are currently not supported for modification. Reserved keys used in this request: {}",
        names.join(", ")
    ))
}

/// A variable that no process can have. Not recorded: the model allows it.
#[must_use]
pub fn impossible_environment(name: &str) -> ServiceError {
    validation(format!(
        "The variable '{}' in environmentVariables cannot be set: a name must not contain '=' or a NUL character, and a \
         value no NUL character",
        name.escape_default()
    ))
}

/// An architecture this machine's processors do not have. Not recorded: the service has both.
#[must_use]
pub fn unsupported_architecture(asked: Architecture, host: &[Architecture]) -> ServiceError {
    validation(format!(
        "The architecture {asked} in cpuConfigurations is not supported by this installation. Supported architectures \
         are: [{}].",
        listed(host)
    ))
}

/// A version that was built on another machine. Not recorded: the service has every architecture.
#[must_use]
pub fn version_for_other_hosts(arn: impl Display, built: &[Architecture], host: &[Architecture]) -> ServiceError {
    validation(format!(
        "The version of MicroVM image {arn} is built for [{}], and this installation runs [{}]: update the image with \
         one of those in cpuConfigurations",
        listed(built),
        listed(host)
    ))
}

fn listed(architectures: &[Architecture]) -> String {
    architectures.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A key of the caller's own to encrypt with. Not recorded: the service has them. Taking one and encrypting nothing with
/// it would be worse than saying no.
#[must_use]
pub fn unsupported_kms_key() -> ServiceError {
    validation(
        "The kmsKeyIdentifier is not supported by this installation, which has no key management service: leave it out",
    )
}

/// A payload for an image without a run hook.
#[must_use]
pub fn payload_without_run_hook() -> ServiceError {
    validation("The run hook must be enabled in the MicroVM image to pass the run hook payload")
}

/// The idle time is longer than a microVM may live. Documented as a rule; the sentence is not recorded.
#[must_use]
pub fn idle_duration_too_long(seconds: u32, max: u32) -> ServiceError {
    validation(format!("MaxIdleDurationSeconds {seconds} exceeded max allowed of {max}."))
}

/// Not an ARN of a connector.
#[must_use]
pub fn malformed_connector() -> ServiceError {
    validation("Malformed network connector ARN")
}

/// The ARN of a managed connector that does not exist, or not in this direction.
#[must_use]
pub fn unrecognized_connector(arn: &str) -> ServiceError {
    validation(format!("Unrecognized managed network connector ARN: {arn}"))
}

/// No such connector of the account's own, in a request that is to use it. Not recorded.
#[must_use]
pub fn unknown_connector(arn: &str) -> ServiceError {
    validation(format!("Network connector not found for: {arn}"))
}

/// A connector that cannot be used now. That it must be ACTIVE is documented; the sentence is not recorded.
#[must_use]
pub fn connector_not_active(arn: &str, state: impl Display) -> ServiceError {
    validation(format!("The network connector {arn} is in state {state}; it must be ACTIVE to be used"))
}

/// A connector that leads out, among those that lead in. Not recorded.
#[must_use]
pub fn connector_leads_out(arn: &str) -> ServiceError {
    validation(format!("The network connector {arn} is of type VPC_EGRESS and cannot be used for ingress"))
}

/// A connector that is for something else. Not recorded.
#[must_use]
pub fn connector_not_for_microvms(arn: &str) -> ServiceError {
    validation(format!("The network connector {arn} is not associated with the compute resource type MicroVm"))
}

/// Connectors that would have to be one way out. Not recorded.
#[must_use]
pub fn egress_not_combinable() -> ServiceError {
    validation("INTERNET_EGRESS cannot be combined with other egress network connectors")
}

/// A connector whose subnet leads to the internet, past rules that are not enforced here yet. Pilotlight's own.
#[must_use]
pub fn egress_not_enforced(arn: &str, subnet: &str) -> ServiceError {
    validation(format!(
        "The network connector {arn} leads to the internet by {subnet}, and its security groups are not enforced by this \
         installation yet. Use a connector whose subnets have `internet = false`, which gives no egress at all, or \
         INTERNET_EGRESS"
    ))
}

/// A connector whose subnet is in the configuration no more. Pilotlight's own.
#[must_use]
pub fn connector_lost_subnet(arn: &str, subnet: &str) -> ServiceError {
    validation(format!(
        "The network connector {arn} names {subnet}, which is not declared in this server's configuration any more"
    ))
}

fn invalid_parameter(message: impl Into<String>) -> ServiceError {
    ServiceError::InvalidParameterValue { message: message.into() }
}

/// No such connector, in an operation on connectors; `arn` is what its ARN would be.
#[must_use]
pub fn connector_not_found(arn: impl Display) -> ServiceError {
    ServiceError::ConnectorNotFound { message: format!("Network connector not found for: {arn}") }
}

/// A token that the model lets a client leave out, and the service does not.
#[must_use]
pub fn client_token_required() -> ServiceError {
    invalid_parameter("ClientToken is a required field")
}

/// A role that the model lets a client leave out, and the service does not.
#[must_use]
pub fn operator_role_required() -> ServiceError {
    invalid_parameter("NetworkConnectorOperatorRole is required for VPC_EGRESS connector type")
}

/// A member that the model lets a client leave out, and the service does not.
#[must_use]
pub fn member_required(member: &str) -> ServiceError {
    invalid_parameter(format!("{member} cannot be null or empty"))
}

/// A name that could be taken for another kind of identifier. Not recorded.
#[must_use]
pub fn bad_connector_name(name: &str) -> ServiceError {
    invalid_parameter(format!("Name '{name}' must be neither an ARN nor have the form of a network connector's id"))
}

/// A subnet that there is not. Not recorded.
#[must_use]
pub fn unknown_subnet(id: &str) -> ServiceError {
    invalid_parameter(format!("The subnet ID '{id}' does not exist: declare it under [[subnets]] in the configuration"))
}

/// A security group that there is not. Not recorded.
#[must_use]
pub fn unknown_security_group(id: &str) -> ServiceError {
    invalid_parameter(format!(
        "The security group '{id}' does not exist: declare it under [[security_groups]] in the configuration"
    ))
}

/// Addresses that guests do not have here. Pilotlight's own.
#[must_use]
pub fn dual_stack_unsupported() -> ServiceError {
    invalid_parameter(
        "NetworkProtocol DualStack is not supported by this installation, whose subnets have IPv4: use IPv4",
    )
}

/// Addresses that this installation cannot get. Pilotlight's own.
#[must_use]
pub fn elastic_ip_unsupported() -> ServiceError {
    invalid_parameter("ElasticIpConfiguration ServiceManaged is not supported by this installation: use None")
}

/// The name is taken. Not recorded.
#[must_use]
pub fn duplicate_connector_name(name: &str) -> ServiceError {
    ServiceError::ResourceConflict { message: format!("A network connector with the name '{name}' already exists") }
}

/// A token that came before with other parameters. Not recorded.
#[must_use]
pub fn connector_token_reused() -> ServiceError {
    ServiceError::ResourceConflict {
        message: "The client token was already used in a request with different parameters".into(),
    }
}

/// A change that the connector's state does not allow. Not recorded.
#[must_use]
pub fn connector_busy(arn: impl Display, state: impl Display, updating: bool) -> ServiceError {
    let how = if updating { ", with an update in progress," } else { "" };
    ServiceError::ResourceConflict {
        message: format!("The network connector {arn} is in state {state}{how} and cannot be changed now"),
    }
}

/// Deletion of a connector that something uses. The service only asks its users not to.
#[must_use]
pub fn connector_in_use(arn: impl Display) -> ServiceError {
    ServiceError::ResourceConflict {
        message: format!(
            "The network connector {arn} is used by microVMs that have not ended, or by versions of images"
        ),
    }
}

/// Deletion of the version that counts. Documented as a rule; the sentence is not recorded.
#[must_use]
pub fn connector_version_latest(arn: impl Display) -> ServiceError {
    ServiceError::ResourceConflict {
        message: format!(
            "{arn} is the version in force or the latest one: it goes only with the whole network connector"
        ),
    }
}

/// A version, where the operation is about all of them. Not recorded.
#[must_use]
pub fn connector_version_unwanted(identifier: &str) -> ServiceError {
    invalid_parameter(format!("Identifier '{identifier}' must not name a version here"))
}

/// A marker that no list gave out. Not recorded.
#[must_use]
pub fn bad_marker() -> ServiceError {
    invalid_parameter("Marker is not one that this list gave out with the same State")
}

/// More connectors than there can be. The number is not documented by the service.
#[must_use]
pub fn connector_limit(max: u32) -> ServiceError {
    ServiceError::NetworkConnectorLimitExceeded {
        message: format!("The account has reached the maximum of {max} network connectors"),
    }
}

/// More versions of a connector than there can be. The number is not documented by the service.
#[must_use]
pub fn connector_version_limit(max: u32) -> ServiceError {
    ServiceError::NetworkConnectorLimitExceeded {
        message: format!("The network connector has reached the maximum of {max} versions: delete older ones first"),
    }
}

/// No such resource, when asked for its tags. Not recorded for what is neither an image nor a connector.
#[must_use]
pub fn unknown_taggable(arn: &str) -> ServiceError {
    not_found(format!("Resource not found: {arn}"))
}

/// More tags than a resource may have. AWS's usual limit; the sentence is not recorded.
#[must_use]
pub fn too_many_tags(count: usize, max: usize) -> ServiceError {
    ServiceError::InvalidParameterValue {
        message: format!("The resource would have {count} tags, more than the {max} that it may have"),
    }
}

/// Keys that are AWS's own. The rule is AWS's usual one; the sentence is not recorded.
#[must_use]
pub fn reserved_tag(key: &str) -> ServiceError {
    ServiceError::InvalidParameterValue {
        message: format!("The tag key '{key}' begins with 'aws:', which is reserved: choose another key"),
    }
}

/// Tagging something that is being deleted. Not recorded.
#[must_use]
pub fn resource_being_deleted(arn: &str) -> ServiceError {
    ServiceError::ResourceConflict { message: format!("The resource {arn} is being deleted and cannot be changed") }
}

/// A token for longer than the service allows.
#[must_use]
pub fn token_lifetime_too_long(minutes: u32, max: u32) -> ServiceError {
    validation(format!("ExpirationMinutes {minutes} exceeded max allowed of {max}."))
}

/// A range of ports that ends before it begins. Not documented by the service.
#[must_use]
pub fn port_range_reversed(start: u16, end: u16) -> ServiceError {
    validation(format!("The startPort {start} of a port range must not be greater than its endPort {end}"))
}

/// More separate ranges of ports than a token holds. Not documented by the service.
#[must_use]
pub fn too_many_port_ranges(count: usize, max: usize) -> ServiceError {
    validation(format!("The allowedPorts make {count} separate ranges of ports, more than the {max} a token can hold"))
}

/// A token for a shell that the microVM does not let in.
#[must_use]
pub fn shell_needs_connector() -> ServiceError {
    validation("Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM.")
}

/// A token for a shell of a microVM whose connectors contradict each other.
#[must_use]
pub fn shell_with_all_ingress() -> ServiceError {
    validation(
        "ALL_INGRESS cannot be combined with other ingress network connectors; use HTTP_INGRESS and/or SHELL_INGRESS \
         instead",
    )
}

/// Suspend or resume of a microVM that has ended.
#[must_use]
pub fn microvm_terminated(id: impl Display) -> ServiceError {
    validation(format!("The MicroVM {id} has been terminated and its state cannot be changed."))
}

/// A change of a microVM that its present state does not allow. Not recorded: no such state was met.
#[must_use]
pub fn microvm_state_conflict(id: impl Display, state: impl Display) -> ServiceError {
    conflict(format!("The MicroVM {id} is in state {state} and cannot be changed now."))
}

/// Deletion of an image that microVMs run from.
#[must_use]
pub fn image_has_running_microvms() -> ServiceError {
    validation("Cannot delete microvm image with running microvms.")
}

/// Deletion of an image that is being built.
#[must_use]
pub fn image_not_deletable_now(arn: impl Display) -> ServiceError {
    validation(format!("Cannot delete MicroVM image in its current state: {arn}"))
}

/// A change of an image, or of a version of it, while another change or its deletion is going on. Recorded for UPDATING.
#[must_use]
pub fn image_busy(state: impl Display) -> ServiceError {
    conflict(format!("MicroVM Image is already in state: {state}"))
}

/// Deletion of the only version.
#[must_use]
pub fn last_version() -> ServiceError {
    validation("This is the last version. Please delete the entire image")
}

/// Deletion of a version that microVMs run from. The rule is recorded; the sentence is that of images.
#[must_use]
pub fn version_has_running_microvms() -> ServiceError {
    validation("Cannot delete microvm image version with running microvms.")
}

/// Activation of a version that was not built. Not recorded.
#[must_use]
pub fn version_not_built(arn: impl Display, version: impl Display) -> ServiceError {
    validation(format!(
        "Version {version} of MicroVM image {arn} was not built successfully, so its status cannot be ACTIVE"
    ))
}

/// No such managed image, in a list of versions. Not recorded.
#[must_use]
pub fn unknown_managed_image(arn: impl Display) -> ServiceError {
    not_found(format!("Managed MicroVMImage not found for MicroVMImageID: {arn}"))
}

/// An idempotency key that came before with other parameters. The type is recorded, the sentence is not.
#[must_use]
pub fn client_token_reused() -> ServiceError {
    conflict("The client token was already used in a request with different parameters".into())
}

/// The memory of all microVMs together would exceed what there is.
#[must_use]
pub fn memory_quota_exceeded() -> ServiceError {
    ServiceError::ServiceQuotaExceeded {
        message: "The base maximum allocated memory limit has been reached for this account.".into(),
    }
}

/// Too many calls of one operation. The type is modelled; the sentence is AWS's usual one.
#[must_use]
pub fn rate_exceeded(retry_after_seconds: u32) -> ServiceError {
    ServiceError::Throttling { message: "Rate exceeded".into(), retry_after_seconds: Some(retry_after_seconds) }
}

/// Too many images. Not recorded.
#[must_use]
pub fn image_quota_exceeded() -> ServiceError {
    ServiceError::ServiceQuotaExceeded {
        message: "The maximum number of MicroVM images has been reached for this account.".into(),
    }
}

/// Too many versions of one image. Not recorded.
#[must_use]
pub fn version_quota_exceeded() -> ServiceError {
    ServiceError::ServiceQuotaExceeded {
        message:
            "The maximum number of versions has been reached for this MicroVM image. Delete one that is not needed."
                .into(),
    }
}

/// Too many builds at once. Only its gist was recorded.
#[must_use]
pub fn build_quota_exceeded() -> ServiceError {
    ServiceError::ServiceQuotaExceeded {
        message: "The maximum number of concurrent MicroVM image builds has been reached for this account.".into(),
    }
}

/// No host has room, for this reason. Not recorded.
#[must_use]
pub fn insufficient_capacity(reason: impl Display) -> ServiceError {
    ServiceError::InsufficientCapacity {
        message: format!("There is not enough capacity to run the MicroVM now: {reason}. Try again later."),
    }
}

/// A page token that no list gave out, or an otherwise unreadable input: the service answers without a word.
#[must_use]
pub fn unreadable_input() -> ServiceError {
    ServiceError::Serialization { message: None }
}

/// Input of the wrong JSON type.
#[must_use]
pub fn wrong_type(message: impl Into<String>) -> ServiceError {
    ServiceError::Serialization { message: Some(message.into()) }
}

/// The caller's policies do not allow it, or one of them denies it.
#[must_use]
pub fn not_authorized(caller: &str, action: &str, resource: &str, explicitly: bool) -> ServiceError {
    let because = match explicitly {
        true => "with an explicit deny in an identity-based policy".to_owned(),
        false => format!("because no identity-based policy allows the {action} action"),
    };
    ServiceError::AccessDenied {
        message: Some(format!(
            "User: {caller} is not authorized to perform: {action} on resource: {resource} {because}"
        )),
    }
}

/// Something broke on this side; what, is in the log.
#[must_use]
pub fn internal_error() -> ServiceError {
    ServiceError::InternalServer { message: "An internal error occurred.".into(), retry_after_seconds: None }
}

/// No operation of the service.
#[must_use]
pub fn unknown_operation(method: &str, path: &str) -> ServiceError {
    let path: String = path.chars().take(300).collect();
    ServiceError::UnknownOperation { message: format!("No operation of this service matches {method} {path}") }
}

/// A body beyond the limit.
#[must_use]
pub fn request_too_large(bytes_max: usize) -> ServiceError {
    ServiceError::RequestTooLarge { message: format!("Request must be smaller than {bytes_max} bytes") }
}
