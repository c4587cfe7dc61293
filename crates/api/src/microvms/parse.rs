//! Reading the microVM operations' requests: shapes and constraints as the model has them.

use crate::{
    arn::ImageArn,
    constraint::{Constraints, KMS_KEY, NON_BLANK, ROLE_ARN, TextRule},
    error::ServiceError,
    input::{Field, FromInput, Input},
    logging::Logging,
    sensitive::Sensitive,
};

use super::{
    CreateMicrovmAuthTokenRequest, CreateMicrovmShellAuthTokenRequest, GetMicrovmRequest, IdlePolicy,
    ListMicrovmsRequest, PortRange, PortSpecification, ResumeMicrovmRequest, RunMicrovmRequest, SuspendMicrovmRequest,
    TerminateMicrovmRequest, Unit,
};

const IMAGE_IDENTIFIER: TextRule = TextRule::length(1, 256);
const MICROVM_IDENTIFIER: TextRule = TextRule::length(1, 256);
const VERSION: TextRule = TextRule::length(1, 2048).matching(&NON_BLANK);
const ROLE: TextRule = TextRule::length(20, 2048).matching(&ROLE_ARN);
const KEY: TextRule = TextRule::length(1, 2048).matching(&KMS_KEY);
const CONNECTOR: TextRule = TextRule::length(1, 2048);
const CLIENT_TOKEN: TextRule = TextRule::length(1, 128);
// 4096 as measured, not the 16 KB the documents speak of.
const RUN_HOOK_PAYLOAD: TextRule = TextRule::length(0, 4096).hidden();

fn idle_policy(field: Field<'_>, c: &mut Constraints) -> Option<IdlePolicy> {
    let policy = field.members(c)?;
    let idle = policy.field("maxIdleDurationSeconds").required(c).number(c, 60, i32::MAX);
    let suspended = policy.field("suspendedDurationSeconds").required(c).number(c, 0, i32::MAX);
    let auto_resume = policy.field("autoResumeEnabled").required(c).boolean(c);
    Some(IdlePolicy {
        max_idle_duration_seconds: idle?.cast_unsigned(),
        suspended_duration_seconds: suspended?.cast_unsigned(),
        auto_resume_enabled: auto_resume?,
    })
}

impl FromInput for RunMicrovmRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let c = &mut Constraints::new();
        let connectors =
            |name, c: &mut Constraints| input.body(name).list(c, 0, 10, |c, field| field.text(c, &CONNECTOR));
        let ingress_network_connectors = connectors("ingressNetworkConnectors", c);
        let egress_network_connectors = connectors("egressNetworkConnectors", c);
        let image = input.body("imageIdentifier").required(c).text(c, &IMAGE_IDENTIFIER).unwrap_or_default();
        let image_version = input.body("imageVersion").text(c, &VERSION);
        let execution_role_arn = input.body("executionRoleArn").text(c, &ROLE);
        let idle_policy = idle_policy(input.body("idlePolicy"), c);
        let logging = Logging::read(input.body("logging"), c);
        let kms_key_identifier = input.body("kmsKeyIdentifier").text(c, &KEY);
        let run_hook_payload = input.body("runHookPayload").text(c, &RUN_HOOK_PAYLOAD).map(Sensitive::new);
        let maximum_duration_in_seconds = input
            .body("maximumDurationInSeconds")
            .number(c, 1, input.longest_s().cast_signed())
            .map(i32::cast_unsigned);
        let client_token = input.body("clientToken").text(c, &CLIENT_TOKEN);
        std::mem::take(c).finish()?;
        Ok(Self {
            image: ImageArn::of_run_operation(&image)?,
            image_version,
            ingress_network_connectors,
            egress_network_connectors,
            execution_role_arn,
            idle_policy,
            logging,
            kms_key_identifier,
            run_hook_payload,
            maximum_duration_in_seconds,
            client_token,
        })
    }
}

fn microvm_identifier(input: &Input, constraints: &mut Constraints) -> String {
    input.path("microvmIdentifier").required(constraints).text(constraints, &MICROVM_IDENTIFIER).unwrap_or_default()
}

macro_rules! from_microvm_identifier {
    ($($name:ident)+) => {
        $(impl FromInput for $name {
            fn from_input(input: &Input) -> Result<Self, ServiceError> {
                let mut constraints = Constraints::new();
                let microvm_identifier = microvm_identifier(input, &mut constraints);
                constraints.finish()?;
                Ok(Self { microvm_identifier })
            }
        })+
    };
}

from_microvm_identifier!(GetMicrovmRequest SuspendMicrovmRequest ResumeMicrovmRequest TerminateMicrovmRequest);

impl FromInput for ListMicrovmsRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let page = input.page(&mut constraints);
        let image = input.query("imageIdentifier").text(&mut constraints, &IMAGE_IDENTIFIER);
        let image_version = input.query("imageVersion").text(&mut constraints, &TextRule::any());
        constraints.finish()?;
        let image = image.as_deref().map(ImageArn::of_image_operation).transpose()?;
        Ok(Self { page, image, image_version })
    }
}

fn port(field: Field<'_>, c: &mut Constraints) -> Option<u16> {
    field.number(c, 1, 65535).and_then(|port| u16::try_from(port).ok())
}

fn port_specification(field: Field<'_>, c: &mut Constraints) -> Option<PortSpecification> {
    match field.union(c, &["port", "range", "allPorts"])? {
        ("port", field) => port(field, c).map(PortSpecification::Port),
        ("range", field) => {
            let range = field.members(c)?;
            let start = port(range.field("startPort").required(c), c);
            let end = port(range.field("endPort").required(c), c);
            Some(PortSpecification::Range(PortRange { start_port: start?, end_port: end? }))
        }
        (_, field) => field.members(c).map(|_| PortSpecification::AllPorts(Unit {})),
    }
}

fn expiration(input: &Input, c: &mut Constraints) -> u32 {
    let minutes = input.body("expirationInMinutes").required(c).number(c, 1, i32::MAX);
    minutes.unwrap_or_default().cast_unsigned()
}

impl FromInput for CreateMicrovmShellAuthTokenRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let microvm_identifier = microvm_identifier(input, &mut constraints);
        let expiration_in_minutes = expiration(input, &mut constraints);
        constraints.finish()?;
        Ok(Self { microvm_identifier, expiration_in_minutes })
    }
}

impl FromInput for CreateMicrovmAuthTokenRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let c = &mut Constraints::new();
        let microvm_identifier = microvm_identifier(input, c);
        let expiration_in_minutes = expiration(input, c);
        let allowed_ports = input
            .body("allowedPorts")
            .required(c)
            .list(c, 1, usize::MAX, |c, field| port_specification(field, c))
            .unwrap_or_default();
        std::mem::take(c).finish()?;
        Ok(Self { microvm_identifier, expiration_in_minutes, allowed_ports })
    }
}
