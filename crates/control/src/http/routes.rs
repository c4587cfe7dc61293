//! The table of the services' operations.

use std::{pin::Pin, sync::Arc};

use api::{
    connector::ManagedConnector,
    error::ServiceError,
    input::{FromInput, Input},
};
use http::Method;
use serde::Serialize;

use super::operations::Operations;
use crate::{
    audit::Call,
    auth::Caller,
    iam::{
        authorize,
        needs::{Otherwise, anything, connector, image, image_of, named, new_image},
    },
};

/// An answer under way: its body.
pub type Answering = Pin<Box<dyn Future<Output = Result<Vec<u8>, ServiceError>> + Send>>;

/// A request with all that is needed to answer it.
pub struct Asked {
    /// Who answers.
    pub operations: Arc<dyn Operations>,
    /// Who asks.
    pub caller: Caller,
    /// What came.
    pub input: Input,
    /// Its line in the audit log.
    pub call: Arc<Call>,
}

/// Reads the request, asks whether its caller may, asks, writes the answer.
pub type Answer = fn(Asked) -> Answering;

/// One operation.
pub struct Route {
    /// Its name in the model.
    pub name: &'static str,
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// Status of its success.
    pub status: u16,
    /// How to answer.
    pub answer: Answer,
}

impl Route {
    /// An error as this operation's model has it: those on connectors are of a family that words some of them otherwise.
    pub fn worded(&self, error: ServiceError) -> ServiceError {
        if self.path.starts_with("/2026-04-04/") { error.of_connectors() } else { error }
    }

    /// What policies call it.
    pub fn action(&self) -> String {
        format!("lambda:{}", self.name)
    }
}

fn body_of<T: Serialize>(response: &T) -> Result<Vec<u8>, ServiceError> {
    serde_json::to_vec(response).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "an answer could not be written");
        api::catalogue::internal_error()
    })
}

/// Reads the request of an operation; its type is that operation's.
fn read<'a, R: FromInput, A>(
    _: impl FnOnce(&'a dyn Operations, &'a Caller, R) -> A,
    input: &Input,
) -> Result<R, ServiceError> {
    R::from_input(input)
}

// A route says what it needs leave for, or it does not compile: its name is the action, and what follows
// `on` reads the resource, and what is passed on, out of the request. What follows `making` reads the id of what was made
// out of the answer, for the audit log.
macro_rules! routes {
    ($($name:literal $method:ident $path:literal
        => $status:literal $call:ident on $needs:expr $(, making $made:expr)?;)+) => {
        /// Every operation of the services behind the signing name `lambda` that microVMs belong to.
        pub(super) static ROUTES: &[Route] = &[
            $(Route {
                name: $name,
                method: Method::$method,
                path: $path,
                status: $status,
                answer: routes!(@answer $name $call $needs $(, $made)?),
            },)+
        ];
    };
    (@answer $name:literal $call:ident $needs:expr $(, $made:expr)?) => {
        |asked| Box::pin(async move {
            let Asked { operations, caller, input, call } = asked;
            let request = read(<dyn Operations as Operations>::$call, &input)?;
            let needs = out_of(&request, $needs);
            let mut about = Vec::new();
            let leave = authorize(&caller, &*operations, concat!("lambda:", $name), needs, &mut about).await;
            call.is_about(about);
            leave?;
            let answer = operations.$call(&caller, request).await?;
            $(call.is_about([out_of(&answer, $made)]);)?
            body_of(&answer)
        })
    };
}

fn out_of<T, R>(whole: &T, part: impl FnOnce(&T) -> R) -> R {
    part(whole)
}

/// What is used where a request names no connectors.
const ENDPOINT: Otherwise = Otherwise::Managed(ManagedConnector::HttpIngress);
const INTERNET: Otherwise = Otherwise::Managed(ManagedConnector::InternetEgress);

routes! {
    "CreateMicrovmAuthToken" POST "/2025-09-09/microvms/{microvmIdentifier}/auth-token" => 200 create_microvm_auth_token
        on |it| image_of(&it.microvm_identifier);
    "CreateMicrovmImage" POST "/2025-09-09/microvm-images" => 201 create_microvm_image
        on |it| new_image(&it.name)
            .passing_role(Some(&it.version.build_role_arn))
            .passing_artifact(&it.version.code_artifact.uri)
            .passing_connectors(it.version.egress_network_connectors.as_deref(), INTERNET);
    "CreateMicrovmShellAuthToken" POST "/2025-09-09/microvms/{microvmIdentifier}/shell-auth-token"
        => 200 create_microvm_shell_auth_token on |it| image_of(&it.microvm_identifier);
    "DeleteMicrovmImage" DELETE "/2025-09-09/microvm-images/{imageIdentifier}" => 200 delete_microvm_image
        on |it| image(&it.image);
    "DeleteMicrovmImageVersion" DELETE "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}"
        => 200 delete_microvm_image_version on |it| image(&it.image);
    "GetMicrovm" GET "/2025-09-09/microvms/{microvmIdentifier}" => 200 get_microvm
        on |it| image_of(&it.microvm_identifier);
    "GetMicrovmImage" GET "/2025-09-09/microvm-images/{imageIdentifier}" => 200 get_microvm_image
        on |it| image(&it.image);
    "GetMicrovmImageBuild" GET "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}/builds/{buildId}"
        => 200 get_microvm_image_build on |it| image(&it.image);
    "GetMicrovmImageVersion" GET "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}"
        => 200 get_microvm_image_version on |it| image(&it.image);
    "ListManagedMicrovmImageVersions" GET "/2025-09-09/managed-microvm-images/{imageIdentifier}/versions"
        => 200 list_managed_microvm_image_versions on |_| anything();
    "ListManagedMicrovmImages" GET "/2025-09-09/managed-microvm-images" => 200 list_managed_microvm_images
        on |_| anything();
    "ListMicrovmImageBuilds" GET "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}/builds"
        => 200 list_microvm_image_builds on |it| image(&it.image);
    "ListMicrovmImageVersions" GET "/2025-09-09/microvm-images/{imageIdentifier}/versions"
        => 200 list_microvm_image_versions on |it| image(&it.image);
    "ListMicrovmImages" GET "/2025-09-09/microvm-images" => 200 list_microvm_images
        on |_| anything();
    "ListMicrovms" GET "/2025-09-09/microvms" => 200 list_microvms
        on |_| anything();
    "ListTags" GET "/2017-03-31/tags/{Resource}" => 200 list_tags
        on |it| named(&it.resource);
    "ResumeMicrovm" POST "/2025-09-09/microvms/{microvmIdentifier}/resume" => 200 resume_microvm
        on |it| image_of(&it.microvm_identifier);
    "RunMicrovm" POST "/2025-09-09/microvms" => 200 run_microvm
        on |it| image(&it.image)
            .passing_role(it.execution_role_arn.as_deref())
            .passing_connectors(it.ingress_network_connectors.as_deref(), ENDPOINT)
            .passing_connectors(
                it.egress_network_connectors.as_deref(),
                Otherwise::EgressOf(it.image.clone(), it.image_version.clone()),
            ), making |it| it.microvm_id.to_string();
    "SuspendMicrovm" POST "/2025-09-09/microvms/{microvmIdentifier}/suspend" => 200 suspend_microvm
        on |it| image_of(&it.microvm_identifier);
    "TagResource" POST "/2017-03-31/tags/{Resource}" => 204 tag_resource
        on |it| named(&it.resource);
    "TerminateMicrovm" DELETE "/2025-09-09/microvms/{microvmIdentifier}" => 200 terminate_microvm
        on |it| image_of(&it.microvm_identifier);
    "UntagResource" DELETE "/2017-03-31/tags/{Resource}" => 204 untag_resource
        on |it| named(&it.resource);
    "UpdateMicrovmImage" PUT "/2025-09-09/microvm-images/{imageIdentifier}" => 200 update_microvm_image
        on |it| image(&it.image)
            .passing_role(Some(&it.version.build_role_arn))
            .passing_artifact(&it.version.code_artifact.uri)
            .passing_connectors(it.version.egress_network_connectors.as_deref(), INTERNET);
    "UpdateMicrovmImageVersion" PATCH "/2025-09-09/microvm-images/{imageIdentifier}/versions/{imageVersion}"
        => 200 update_microvm_image_version on |it| image(&it.image);
    "CreateNetworkConnector" POST "/2026-04-04/network-connectors"
        => 202 create_network_connector on |it| anything().passing_role(it.operator_role.as_deref());
    "DeleteNetworkConnector" DELETE "/2026-04-04/network-connectors/{Identifier}"
        => 202 delete_network_connector on |it| connector(&it.identifier);
    "GetNetworkConnector" GET "/2026-04-04/network-connectors/{Identifier}"
        => 200 get_network_connector on |it| connector(&it.identifier);
    "ListNetworkConnectorVersions" GET "/2026-04-04/network-connectors/{Identifier}/versions"
        => 200 list_network_connector_versions on |it| connector(&it.identifier);
    "ListNetworkConnectors" GET "/2026-04-04/network-connectors"
        => 200 list_network_connectors on |_| anything();
    "UpdateNetworkConnector" PUT "/2026-04-04/network-connectors/{Identifier}"
        => 202 update_network_connector on |it| connector(&it.identifier).passing_role(it.operator_role.as_deref());
}

/// The operation of a method and path, and what the path captured, still encoded: an encoded slash is part of a name,
/// a bare one is not.
pub fn find<'p>(method: &Method, path: &'p str) -> Option<(&'static Route, Vec<(&'static str, &'p str)>)> {
    ROUTES.iter().filter(|route| route.method == *method).find_map(|route| Some((route, captured(route.path, path)?)))
}

fn captured<'p>(pattern: &'static str, path: &'p str) -> Option<Vec<(&'static str, &'p str)>> {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    let mut captures = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(captures),
            (Some(wanted), Some(given)) => match wanted.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) => captures.push((name, given)),
                None if wanted == given => {}
                None => return None,
            },
            (Some(_), None) | (None, Some(_)) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_found_by_its_own_path_and_no_other() {
        for route in ROUTES {
            let path = route.path.replace(['{', '}'], "");
            let (found, captures) = find(&route.method, &path).unwrap();
            assert_eq!(found.name, route.name);
            assert!(captures.iter().all(|(name, given)| name == given));
        }
        assert_eq!(ROUTES.len(), 30);
    }

    #[test]
    fn a_bare_slash_ends_a_name() {
        assert!(find(&Method::GET, "/2025-09-09/microvm-images/arn:aws:lambda:r:1:microvm-image/x").is_none());
        assert!(find(&Method::GET, "/2025-09-09/microvms/a/b").is_none());
        assert!(find(&Method::GET, "").is_none());
    }
}
