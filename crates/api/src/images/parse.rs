//! Reading the image operations' requests: shapes and constraints as the model has them.

use crate::{
    arn::ImageArn,
    catalogue,
    constraint::{Constraints, IMAGE_NAME, KMS_KEY, NON_BLANK, ROLE_ARN, TextRule},
    error::ServiceError,
    input::{Field, FromInput, Input, Members},
    logging::Logging,
    sensitive::Sensitive,
    tags::{TAG_KEY, TAG_VALUE},
};

use super::{
    CodeArtifact, CpuConfiguration, CreateMicrovmImageRequest, DeleteMicrovmImageRequest,
    DeleteMicrovmImageVersionRequest, GetMicrovmImageBuildRequest, GetMicrovmImageRequest,
    GetMicrovmImageVersionRequest, Hooks, ListManagedMicrovmImageVersionsRequest, ListManagedMicrovmImagesRequest,
    ListMicrovmImageBuildsRequest, ListMicrovmImageVersionsRequest, ListMicrovmImagesRequest, MicrovmHooks,
    MicrovmImageHooks, Resources, UpdateMicrovmImageRequest, UpdateMicrovmImageVersionRequest, VersionRequest,
};

const IMAGE_IDENTIFIER: TextRule = TextRule::length(1, 256);
const NON_BLANK_TEXT: TextRule = TextRule::length(1, 2048).matching(&NON_BLANK);
const ROLE: TextRule = TextRule::length(20, 2048).matching(&ROLE_ARN);
const KEY: TextRule = TextRule::length(1, 2048).matching(&KMS_KEY);
const NAME: TextRule = TextRule::length(1, 64).matching(&IMAGE_NAME);
const CONNECTOR: TextRule = TextRule::length(1, 2048);
const CLIENT_TOKEN: TextRule = TextRule::length(1, 128);
const ENVIRONMENT_KEY: TextRule = TextRule::length(1, 256).matching(&NON_BLANK);
const ENVIRONMENT_VALUE: TextRule = TextRule::length(0, 4096).hidden();

/// Most environment variables an image can have.
const ENVIRONMENT_MAX: usize = 100;

fn image_identifier(input: &Input, constraints: &mut Constraints) -> String {
    input.path("imageIdentifier").required(constraints).text(constraints, &IMAGE_IDENTIFIER).unwrap_or_default()
}

fn image_version(input: &Input, constraints: &mut Constraints) -> String {
    input.path("imageVersion").required(constraints).text(constraints, &NON_BLANK_TEXT).unwrap_or_default()
}

fn timeout(hooks: &Members<'_>, name: &str, constraints: &mut Constraints, seconds_max: i32) -> Option<u32> {
    hooks.field(name).number(constraints, 1, seconds_max).map(i32::cast_unsigned)
}

fn hooks(field: Field<'_>, c: &mut Constraints) -> Option<Hooks> {
    let hooks = field.members(c)?;
    let port = hooks.field("port").number(c, 1, 65535).map(|port| u16::try_from(port).unwrap_or_default());
    let microvm_hooks = hooks.field("microvmHooks").members(c).map(|hooks| MicrovmHooks {
        run: hooks.field("run").word(c),
        run_timeout_in_seconds: timeout(&hooks, "runTimeoutInSeconds", c, 60),
        resume: hooks.field("resume").word(c),
        resume_timeout_in_seconds: timeout(&hooks, "resumeTimeoutInSeconds", c, 60),
        suspend: hooks.field("suspend").word(c),
        suspend_timeout_in_seconds: timeout(&hooks, "suspendTimeoutInSeconds", c, 60),
        terminate: hooks.field("terminate").word(c),
        terminate_timeout_in_seconds: timeout(&hooks, "terminateTimeoutInSeconds", c, 60),
    });
    let microvm_image_hooks = hooks.field("microvmImageHooks").members(c).map(|hooks| MicrovmImageHooks {
        ready: hooks.field("ready").word(c),
        ready_timeout_in_seconds: timeout(&hooks, "readyTimeoutInSeconds", c, 3600),
        validate: hooks.field("validate").word(c),
        validate_timeout_in_seconds: timeout(&hooks, "validateTimeoutInSeconds", c, 3600),
    });
    Some(Hooks { port, microvm_hooks, microvm_image_hooks })
}

fn artifact(field: Field<'_>, c: &mut Constraints) -> Option<CodeArtifact> {
    let (_, uri) = field.union(c, &["uri"])?;
    uri.text(c, &NON_BLANK_TEXT).map(|uri| CodeArtifact { uri })
}

fn cpu_configuration(field: Field<'_>, c: &mut Constraints) -> Option<CpuConfiguration> {
    let architecture = field.members(c)?.field("architecture").required(c).word(c)?;
    Some(CpuConfiguration { architecture })
}

fn resources(field: Field<'_>, c: &mut Constraints) -> Option<Resources> {
    let minimum = field.members(c)?.field("minimumMemoryInMiB").required(c).number(c, i32::MIN, i32::MAX)?;
    Some(Resources { minimum_memory_in_mib: minimum })
}

impl VersionRequest {
    fn read(input: &Input, c: &mut Constraints) -> Self {
        let text = |name, rule: &TextRule, c: &mut Constraints| input.body(name).text(c, rule);
        let required =
            |name, rule: &TextRule, c: &mut Constraints| input.body(name).required(c).text(c, rule).unwrap_or_default();
        Self {
            base_image_arn: required("baseImageArn", &NON_BLANK_TEXT, c),
            base_image_version: text("baseImageVersion", &NON_BLANK_TEXT, c),
            build_role_arn: required("buildRoleArn", &ROLE, c),
            code_artifact: artifact(input.body("codeArtifact").required(c), c)
                .unwrap_or_else(|| CodeArtifact { uri: String::new() }),
            description: text("description", &TextRule::any(), c),
            logging: Logging::read(input.body("logging"), c),
            egress_network_connectors: input
                .body("egressNetworkConnectors")
                .list(c, 0, 1, |c, field| field.text(c, &CONNECTOR)),
            cpu_configurations: input
                .body("cpuConfigurations")
                .list(c, 0, usize::MAX, |c, field| cpu_configuration(field, c)),
            resources: input.body("resources").list(c, 0, 1, |c, field| resources(field, c)),
            additional_os_capabilities: input
                .body("additionalOsCapabilities")
                .list(c, 0, usize::MAX, |c, field| field.word(c)),
            hooks: hooks(input.body("hooks"), c),
            environment_variables: input
                .body("environmentVariables")
                .texts(c, ENVIRONMENT_MAX, &ENVIRONMENT_KEY, &ENVIRONMENT_VALUE)
                .map(|texts| texts.into_iter().map(|(name, text)| (name, Sensitive::new(text))).collect()),
            kms_key_identifier: text("kmsKeyIdentifier", &KEY, c),
        }
    }
}

impl FromInput for CreateMicrovmImageRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let c = &mut constraints;
        let request = Self {
            name: input.body("name").required(c).text(c, &NAME).unwrap_or_default(),
            version: VersionRequest::read(input, c),
            tags: input.body("tags").texts(c, usize::MAX, &TAG_KEY, &TAG_VALUE),
            client_token: input.body("clientToken").text(c, &CLIENT_TOKEN),
        };
        constraints.finish()?;
        Ok(request)
    }
}

impl FromInput for UpdateMicrovmImageRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let c = &mut constraints;
        let image = image_identifier(input, c);
        let version = VersionRequest::read(input, c);
        let client_token = input.body("clientToken").text(c, &CLIENT_TOKEN);
        constraints.finish()?;
        Ok(Self { image: ImageArn::of_image_operation(&image)?, version, client_token })
    }
}

impl FromInput for GetMicrovmImageRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let image = image_identifier(input, &mut constraints);
        constraints.finish()?;
        Ok(Self { image: ImageArn::of_image_operation(&image)? })
    }
}

impl FromInput for DeleteMicrovmImageRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        GetMicrovmImageRequest::from_input(input).map(|GetMicrovmImageRequest { image }| Self { image })
    }
}

impl FromInput for ListMicrovmImagesRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let page = input.page(&mut constraints);
        let name_filter = input.query("nameFilter").text(&mut constraints, &NON_BLANK_TEXT);
        constraints.finish()?;
        Ok(Self { page, name_filter })
    }
}

impl FromInput for GetMicrovmImageVersionRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let image = image_identifier(input, &mut constraints);
        let image_version = image_version(input, &mut constraints);
        constraints.finish()?;
        Ok(Self { image: ImageArn::of_image_operation(&image)?, image_version })
    }
}

impl FromInput for DeleteMicrovmImageVersionRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        GetMicrovmImageVersionRequest::from_input(input)
            .map(|GetMicrovmImageVersionRequest { image, image_version }| Self { image, image_version })
    }
}

impl FromInput for UpdateMicrovmImageVersionRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let c = &mut constraints;
        let image = image_identifier(input, c);
        let image_version = image_version(input, c);
        let status = input.body("status").required(c).word(c);
        constraints.finish()?;
        // A word that is missing or unknown is a violation, and those have been told.
        let status = status.ok_or_else(catalogue::internal_error)?;
        Ok(Self { image: ImageArn::of_image_operation(&image)?, image_version, status })
    }
}

impl FromInput for ListMicrovmImageVersionsRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let page = input.page(&mut constraints);
        let image = image_identifier(input, &mut constraints);
        constraints.finish()?;
        Ok(Self { image: ImageArn::of_image_operation(&image)?, page })
    }
}

impl FromInput for ListManagedMicrovmImagesRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let page = input.page(&mut constraints);
        constraints.finish()?;
        Ok(Self { page })
    }
}

impl FromInput for ListManagedMicrovmImageVersionsRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let page = input.page(&mut constraints);
        let image = image_identifier(input, &mut constraints);
        constraints.finish()?;
        Ok(Self { image, page })
    }
}

impl FromInput for ListMicrovmImageBuildsRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let page = input.page(&mut constraints);
        let image = image_identifier(input, &mut constraints);
        let image_version = image_version(input, &mut constraints);
        let architecture = input.query("architecture").word(&mut constraints);
        let chipset = input.query("chipset").word(&mut constraints);
        let chipset_generation = input.query("chipsetGeneration").text(&mut constraints, &NON_BLANK_TEXT);
        constraints.finish()?;
        let image = ImageArn::of_image_operation(&image)?;
        Ok(Self { image, image_version, page, architecture, chipset, chipset_generation })
    }
}

impl FromInput for GetMicrovmImageBuildRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let image = image_identifier(input, &mut constraints);
        let image_version = image_version(input, &mut constraints);
        let build_id = input
            .path("buildId")
            .required(&mut constraints)
            .text(&mut constraints, &NON_BLANK_TEXT)
            .unwrap_or_default();
        constraints.finish()?;
        Ok(Self { image: ImageArn::of_image_operation(&image)?, image_version, build_id })
    }
}
