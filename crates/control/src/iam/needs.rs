//! What a request needs leave for: the thing its operation is authorised on, and what it passes on to that thing. The
//! table of routes says it for each.

use api::{
    arn::{Arn, ImageArn},
    connector::ManagedConnector,
    images::S3Location,
};

/// The thing an operation is authorised on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// None in particular: lists, and making what has no name yet. Policies write `*`.
    Anything,
    /// What has this ARN, be it there or not.
    Named(String),
    /// An image of the caller's account.
    OwnImage {
        /// Its name, be it taken or not.
        name: String,
    },
    /// A connector.
    Connector {
        /// As the caller wrote it: an id, a name, an ARN, one of a version.
        identifier: String,
    },
    /// The image a microVM was launched from.
    ImageOf {
        /// The microVM, as the caller wrote it.
        microvm: String,
    },
}

/// Something that a request hands to what it makes, for which its caller needs leave too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pass {
    /// A role: `iam:PassRole`.
    Role(String),
    /// The zip a build reads: `s3:GetObject`. Roles have no policies here that could say what a build may read.
    Artifact(S3Location),
    /// A connector: `lambda:PassNetworkConnector`.
    Connector(String),
    /// A connector that is used where the request names none.
    Default(ManagedConnector),
    /// The connectors that a version of an image brings along.
    EgressOf {
        /// The image.
        image: ImageArn,
        /// The version as the caller wrote it; without one, the newest active.
        version: Option<String>,
    },
}

/// All that a request needs leave for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// What its operation is authorised on.
    pub target: Target,
    /// What it passes on.
    pub passes: Vec<Pass>,
}

impl From<Target> for Needs {
    fn from(target: Target) -> Self {
        Self { target, passes: Vec::new() }
    }
}

/// Leave for the operation as such.
pub(crate) fn anything() -> Needs {
    Target::Anything.into()
}

/// Leave on an image.
pub(crate) fn image(arn: &ImageArn) -> Needs {
    Target::Named(arn.to_string()).into()
}

/// Leave on something whose ARN the request states.
pub(crate) fn named(arn: &str) -> Needs {
    Target::Named(canonical(arn)).into()
}

/// Leave on a connector of the caller's account.
pub(crate) fn connector(identifier: &str) -> Needs {
    Target::Connector { identifier: identifier.to_owned() }.into()
}

/// Leave on an image that is to be made.
pub(crate) fn new_image(name: &str) -> Needs {
    Target::OwnImage { name: name.to_owned() }.into()
}

/// Leave on the image that a microVM was launched from.
pub(crate) fn image_of(microvm: &str) -> Needs {
    Target::ImageOf { microvm: microvm.to_owned() }.into()
}

/// Where a request names no connectors.
pub(crate) enum Otherwise {
    /// This one is used.
    Managed(ManagedConnector),
    /// Those of the version are used.
    EgressOf(ImageArn, Option<String>),
}

impl Needs {
    /// A role is passed on, if there is one.
    pub(crate) fn passing_role(mut self, role: Option<&str>) -> Self {
        self.passes.extend(role.map(|role| Pass::Role(role.to_owned())));
        self
    }

    /// A build reads this for its caller. What is no location is refused later, and in better words.
    pub(crate) fn passing_artifact(mut self, uri: &str) -> Self {
        self.passes.extend(S3Location::parse(uri).ok().map(Pass::Artifact));
        self
    }

    /// Connectors are passed on; an empty list is none.
    pub(crate) fn passing_connectors(mut self, arns: Option<&[String]>, otherwise: Otherwise) -> Self {
        match (arns, otherwise) {
            (Some(arns @ [_, ..]), _) => self.passes.extend(arns.iter().cloned().map(Pass::Connector)),
            (_, Otherwise::Managed(connector)) => self.passes.push(Pass::Default(connector)),
            (_, Otherwise::EgressOf(image, version)) => self.passes.push(Pass::EgressOf { image, version }),
        }
        self
    }
}

/// An ARN as policies write it: a connector's without the number of a version, and each in the one partition there is here,
/// so that no other spelling of it slips past a denial.
pub(crate) fn canonical(arn: &str) -> String {
    let Ok(parts) = Arn::parse(arn) else { return arn.to_owned() };
    let Arn { service, region, account, resource, .. } = parts;
    let resource = match resource.strip_prefix("network-connector:nc-").and_then(|rest| rest.split_once(':')) {
        Some((id, _version)) => format!("network-connector:nc-{id}"),
        None => resource.to_owned(),
    };
    format!("arn:aws:{service}:{region}:{account}:{resource}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_has_one_spelling() {
        let own = "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1";
        assert_eq!(canonical(own), own);
        assert_eq!(canonical(&format!("{own}:7")), own);
        assert_eq!(canonical(&own.replacen("aws", "aws-cn", 1)), own);
        let managed = ManagedConnector::HttpIngress.arn("us-east-1");
        assert_eq!(canonical(&managed), managed);
        assert_eq!(canonical("HTTP_INGRESS"), "HTTP_INGRESS");
    }
}
