//! The one place where an authenticated request is allowed or refused.

use api::{arn::ImageArn, catalogue, connectors::Identifier, error::ServiceError, images::S3Location};

use super::{
    evaluate::{Decision, decide, decide_all},
    needs::{Needs, Pass, Target, canonical},
    policy::Policy,
};
use crate::auth::{Caller, Identity};

/// What has to be looked up before it can be said what a request is about.
#[async_trait::async_trait]
pub trait Resources: Send + Sync + 'static {
    /// The image that a microVM was launched from; none if there is no such microVM.
    async fn image_of_microvm(&self, identifier: &str) -> Result<Option<ImageArn>, ServiceError>;

    /// ARN of the connector that a caller names by id, name or ARN, without a version; none if there is no such connector.
    async fn connector_arn(&self, identifier: &str) -> Result<Option<String>, ServiceError>;

    /// The connectors of a version, or of the newest active one; none if there is no such version.
    async fn egress_of_image(&self, image: &ImageArn, version: Option<&str>) -> Result<Vec<String>, ServiceError>;
}

/// What every image's name begins with.
fn images_of(caller: &Caller) -> String {
    format!("arn:aws:lambda:{}:{}:microvm-image:", caller.region, caller.account)
}

/// Allows a request or refuses it. What it was found to be about is noted in `about`, allowed or not.
pub async fn authorize(
    caller: &Caller,
    resources: &dyn Resources,
    action: &str,
    needs: Needs,
    about: &mut Vec<String>,
) -> Result<(), ServiceError> {
    match needs.target {
        Target::Anything => permit(caller, action, "*")?,
        Target::Named(arn) => {
            about.push(arn.clone());
            permit(caller, action, &arn)?;
        }
        Target::OwnImage { name } => {
            let arn = format!("{}{name}", images_of(caller));
            about.push(arn.clone());
            permit(caller, action, &arn)?;
        }
        Target::Connector { identifier } => {
            let written = Identifier::as_arn(&identifier, &caller.region, &caller.account);
            about.push(written.clone());
            if let Some(policies) = policies_of(caller) {
                let arn = match resources.connector_arn(&identifier).await? {
                    Some(arn) => arn,
                    None => canonical(&written),
                };
                // A refusal names what the caller wrote: it does not tell which connector has a name.
                refused_unless(decide(policies, action, &arn), caller, action, &written)?;
                about.push(arn);
            }
        }
        Target::ImageOf { microvm } => {
            about.push(microvm.clone());
            if let Some(policies) = policies_of(caller) {
                let image = resources.image_of_microvm(&microvm).await?;
                about.extend(image.as_ref().map(ImageArn::to_string));
                permit_microvm(caller, policies, action, image)?;
            }
        }
    }
    // Root needs no leave, so nothing is looked up for it.
    if policies_of(caller).is_none() {
        return Ok(());
    }
    for pass in needs.passes {
        let (action, passed) = match pass {
            Pass::Role(arn) => ("iam:PassRole", vec![arn]),
            Pass::Artifact(S3Location { bucket, key }) => {
                ("s3:GetObject", vec![format!("arn:aws:s3:::{bucket}/{key}")])
            }
            Pass::Connector(arn) => (PASS_CONNECTOR, vec![canonical(&arn)]),
            Pass::Default(connector) => (PASS_CONNECTOR, vec![connector.arn(&caller.region)]),
            Pass::EgressOf { image, version } => {
                let arns = resources.egress_of_image(&image, version.as_deref()).await?;
                (PASS_CONNECTOR, arns.iter().map(|arn| canonical(arn)).collect())
            }
        };
        for arn in passed {
            about.push(arn.clone());
            permit(caller, action, &arn)?;
        }
    }
    Ok(())
}

const PASS_CONNECTOR: &str = "lambda:PassNetworkConnector";

/// The policies that say what a caller may; none of the root's, which may everything.
fn policies_of(caller: &Caller) -> Option<&[Policy]> {
    match &caller.identity {
        Identity::Root => None,
        Identity::User(user) => Some(&user.policies),
    }
}

/// Allows an action on a resource whose name is known, or refuses it.
pub fn permit(caller: &Caller, action: &str, resource: &str) -> Result<(), ServiceError> {
    let Some(policies) = policies_of(caller) else { return Ok(()) };
    refused_unless(decide(policies, action, resource), caller, action, resource)
}

/// Allows passing a connector on, or refuses it.
pub(crate) fn permit_connector(caller: &Caller, arn: &str) -> Result<(), ServiceError> {
    permit(caller, PASS_CONNECTOR, &canonical(arn))
}

/// A microVM's operations are authorised on its image. Whether there is such a microVM, and of which image, is for those
/// to know who may do this to it: one that is not there is for those who may do it to all, and every refusal reads the
/// same, whatever was found.
fn permit_microvm(
    caller: &Caller,
    policies: &[Policy],
    action: &str,
    image: Option<ImageArn>,
) -> Result<(), ServiceError> {
    let prefix = images_of(caller);
    let of_all = decide_all(policies, action, &prefix);
    let allowed = match image {
        Some(image) => decide(policies, action, &image.to_string()) == Decision::Allowed,
        None => of_all == Decision::Allowed,
    };
    match (allowed, of_all) {
        (true, _) => Ok(()),
        (false, Decision::Denied) => refused_unless(Decision::Denied, caller, action, &format!("{prefix}*")),
        (false, Decision::NotAllowed | Decision::Allowed) => {
            refused_unless(Decision::NotAllowed, caller, action, &format!("{prefix}*"))
        }
    }
}

fn refused_unless(decision: Decision, caller: &Caller, action: &str, resource: &str) -> Result<(), ServiceError> {
    match decision {
        Decision::Allowed => Ok(()),
        Decision::NotAllowed => Err(catalogue::not_authorized(&caller.arn, action, resource, false)),
        Decision::Denied => Err(catalogue::not_authorized(&caller.arn, action, resource, true)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{auth::User, iam::needs};

    /// One microVM, `microvm-1`, of the image `shop`; every image brings one connector.
    struct World;

    const EGRESS: &str = "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:3";

    #[async_trait::async_trait]
    impl Resources for World {
        async fn image_of_microvm(&self, identifier: &str) -> Result<Option<ImageArn>, ServiceError> {
            let shop = ImageArn::new("us-east-1", "000000000000", "shop");
            Ok((identifier == "microvm-1").then_some(shop))
        }

        async fn connector_arn(&self, identifier: &str) -> Result<Option<String>, ServiceError> {
            let known = ["office", "nc-1", "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1", EGRESS];
            Ok(known.contains(&identifier).then(|| canonical(EGRESS)))
        }

        async fn egress_of_image(&self, _: &ImageArn, _: Option<&str>) -> Result<Vec<String>, ServiceError> {
            Ok(vec![EGRESS.into()])
        }
    }

    fn user(statements: serde_json::Value) -> Caller {
        let policy = Policy::parse(&json!({ "Statement": statements }).to_string()).expect("a policy");
        let user = User { name: "ann".into(), id: "AIDA".into(), policies: vec![policy] };
        Caller::of_user(Arc::new(user), "000000000000", "us-east-1", "AKIA")
    }

    async fn asked(caller: &Caller, action: &str, needs: Needs) -> Result<Vec<String>, String> {
        let mut about = Vec::new();
        match authorize(caller, &World, action, needs, &mut about).await {
            Ok(()) => Ok(about),
            Err(ServiceError::AccessDenied { message: Some(message) }) => Err(message),
            Err(error) => panic!("{error}"),
        }
    }

    fn shop(effect: &str) -> serde_json::Value {
        json!({
            "Effect": effect,
            "Action": "lambda:*",
            "Resource": "arn:aws:lambda:us-east-1:000000000000:microvm-image:shop",
        })
    }

    fn all(effect: &str) -> serde_json::Value {
        json!({ "Effect": effect, "Action": "*", "Resource": "*" })
    }

    #[tokio::test]
    async fn the_recorded_sentences() {
        let nobody = user(json!([shop("Allow")]));
        assert_eq!(
            asked(&nobody, "lambda:ListMicrovms", needs::anything()).await.expect_err("denied"),
            "User: arn:aws:iam::000000000000:user/ann is not authorized to perform: lambda:ListMicrovms on resource: * \
             because no identity-based policy allows the lambda:ListMicrovms action"
        );
        let denied = user(json!([all("Allow"), shop("Deny")]));
        let image = ImageArn::new("us-east-1", "000000000000", "shop");
        assert_eq!(
            asked(&denied, "lambda:RunMicrovm", needs::image(&image)).await.expect_err("denied"),
            format!(
                "User: arn:aws:iam::000000000000:user/ann is not authorized to perform: lambda:RunMicrovm on resource: \
                 {image} with an explicit deny in an identity-based policy"
            )
        );
    }

    #[tokio::test]
    async fn who_may_not_does_not_learn_whether_a_microvm_is_there() {
        let of = |microvm: &str| needs::image_of(microvm);
        for statements in [
            json!([all("Deny")]),
            json!([all("Allow"), shop("Deny")]),
            json!([{ "Effect": "Allow", "Action": "lambda:*", "Resource": "arn:aws:lambda:*:*:microvm-image:other" }]),
        ] {
            let caller = user(statements.clone());
            let there = asked(&caller, "lambda:GetMicrovm", of("microvm-1")).await.expect_err("denied");
            let absent = asked(&caller, "lambda:GetMicrovm", of("microvm-2")).await.expect_err("denied");
            assert_eq!(there, absent, "{statements}");
        }
        let some = user(json!([shop("Allow")]));
        assert!(asked(&some, "lambda:GetMicrovm", of("microvm-1")).await.is_ok());
        assert!(asked(&some, "lambda:GetMicrovm", of("microvm-2")).await.is_err());
        let every = user(json!([all("Allow")]));
        for microvm in ["microvm-1", "microvm-2"] {
            assert!(asked(&every, "lambda:GetMicrovm", of(microvm)).await.is_ok(), "so that it is not found");
        }
    }

    #[tokio::test]
    async fn a_connector_is_the_same_whatever_it_is_called() {
        let one = |effect: &str| json!({ "Effect": effect, "Action": "lambda:*", "Resource": canonical(EGRESS) });
        let (may, may_not) = (user(json!([one("Allow")])), user(json!([all("Allow"), one("Deny")])));
        for name in ["office", "nc-1", EGRESS] {
            let get = "lambda:GetNetworkConnector";
            assert!(asked(&may, get, needs::connector(name)).await.is_ok(), "{name}");
            let refusal = asked(&may_not, get, needs::connector(name)).await.expect_err("denied");
            assert!(refusal.contains("with an explicit deny"), "{refusal}");
            assert_eq!(refusal.contains("nc-1"), name.contains("nc-1"), "it tells what the caller did not know");
        }
        assert!(asked(&may, "lambda:GetNetworkConnector", needs::connector("other")).await.is_err());
    }

    #[tokio::test]
    async fn what_is_passed_on_needs_leave_too() {
        let image = ImageArn::new("us-east-1", "000000000000", "shop");
        let run = || {
            needs::image(&image)
                .passing_role(Some("arn:aws:iam::000000000000:role/app"))
                .passing_connectors(None, needs::Otherwise::Managed(api::connector::ManagedConnector::HttpIngress))
                .passing_connectors(Some(&[]), needs::Otherwise::EgressOf(image.clone(), None))
        };
        let pass = |action: &str, resource: &str| json!({ "Effect": "Allow", "Action": action, "Resource": resource });
        let build = needs::new_image("shop").passing_artifact("s3://code/shop.zip");
        let builder = user(json!([shop("Allow")]));
        let unread = asked(&builder, "lambda:CreateMicrovmImage", build.clone()).await.expect_err("denied");
        assert!(unread.contains("s3:GetObject on resource: arn:aws:s3:::code/shop.zip because"), "{unread}");
        let builder = user(json!([shop("Allow"), pass("s3:GetObject", "arn:aws:s3:::code/*")]));
        asked(&builder, "lambda:CreateMicrovmImage", build).await.expect("allowed");
        let role = pass("iam:PassRole", "arn:aws:iam::*:role/app");
        let ingress = pass("lambda:PassNetworkConnector", "arn:aws:lambda:*:aws:network-connector:*:HTTP_INGRESS");
        let egress = pass("lambda:PassNetworkConnector", EGRESS.strip_suffix(":3").expect("a version"));
        let refused = async |statements: serde_json::Value| {
            asked(&user(statements), "lambda:RunMicrovm", run()).await.expect_err("denied")
        };
        assert!(
            refused(json!([shop("Allow")]))
                .await
                .contains("iam:PassRole on resource: arn:aws:iam::000000000000:role/app")
        );
        assert!(refused(json!([shop("Allow"), role])).await.contains("aws-network-connector:HTTP_INGRESS because"));
        assert!(refused(json!([shop("Allow"), role, ingress])).await.contains("network-connector:nc-1 because"));
        let whole = user(json!([shop("Allow"), role, ingress, egress]));
        assert_eq!(asked(&whole, "lambda:RunMicrovm", run()).await.expect("allowed").len(), 4);
        // The version of a connector is not a way around a denial.
        let deny =
            json!({ "Effect": "Deny", "Action": "lambda:PassNetworkConnector", "Resource": "arn:aws:lambda:*:nc-1" });
        assert!(refused(json!([all("Allow"), deny])).await.contains("network-connector:nc-1 with an explicit deny"));
    }
}
