//! What a version brings along is passed on by who launches it, whichever version that turns out to be.

use std::sync::Arc;

use api::images::UpdateMicrovmImageRequest;

use super::*;
use crate::{
    auth::{Caller, User},
    iam::{Policy, authorize, needs},
};

/// Somebody who may launch every image, and pass on this connector alone.
fn passing(arn: &str) -> Caller {
    let statements = json!([
        { "Effect": "Allow", "Action": "lambda:RunMicrovm", "Resource": "*" },
        { "Effect": "Allow", "Action": "lambda:PassNetworkConnector", "Resource": arn },
    ]);
    let policy = Policy::parse(&json!({ "Statement": statements }).to_string()).unwrap();
    let user = User { name: "ann".into(), id: "AIDA".into(), policies: vec![policy] };
    Caller::of_user(Arc::new(user), "000000000000", "us-east-1", "AKIA")
}

/// What is asked before `RunMicrovm` begins.
async fn allowed(fixture: &Fixture, caller: &Caller) -> Result<(), ServiceError> {
    let image = fixture.arn("a");
    let needs = needs::image(&image).passing_connectors(None, needs::Otherwise::EgressOf(image.clone(), None));
    authorize(caller, &**fixture.control(), "lambda:RunMicrovm", needs, &mut vec![]).await
}

#[tokio::test]
async fn a_version_that_comes_between_leave_and_launch_is_asked_about_again() {
    let fixture = fixture().await;
    let (open, closed) = (ready(&fixture, "open").await.arn, ready(&fixture, "closed").await.arn);
    let version = |arn: &str| {
        let mut version = create_request("a").version;
        version.egress_network_connectors = Some(vec![arn.to_owned()]);
        version
    };
    fixture.create(CreateMicrovmImageRequest { version: version(&open), ..create_request("a") }).await.unwrap();
    fixture.until_image("a", api::images::ImageState::Created).await;

    let ann = passing(&open);
    allowed(&fixture, &ann).await.unwrap();
    let update = UpdateMicrovmImageRequest { image: fixture.arn("a"), version: version(&closed), client_token: None };
    fixture.control().update_microvm_image(&fixture.caller, update).await.unwrap();
    fixture.until_image("a", api::images::ImageState::Updated).await;
    let run = async |request| fixture.control().run_microvm(&ann, request).await;
    let refused = run(run_request(fixture.arn("a"))).await.unwrap_err();
    let denial = catalogue::not_authorized(&ann.arn, "lambda:PassNetworkConnector", &closed, false);
    assert_eq!(refused, denial);
    assert_eq!(allowed(&fixture, &ann).await, Err(denial), "as it is for who asks now");
    assert_eq!(fixture.host.count(crate::testing::Call::Run), 0);

    // What she may pass on is launched, and root passes on what it likes.
    let first = RunMicrovmRequest { image_version: Some("1.0".into()), ..run_request(fixture.arn("a")) };
    assert_eq!(run(first).await.unwrap().egress_network_connectors, [open]);
    assert_eq!(fixture.run(run_request(fixture.arn("a"))).await.unwrap().egress_network_connectors, [closed]);
}
