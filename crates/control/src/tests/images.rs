//! What images go through.

use api::{
    error::ServiceError,
    host::{HostError, ImageRef},
    ids::ImageVersion,
    images::{
        BuildState, CreateMicrovmImageRequest, GetMicrovmImageBuildRequest, GetMicrovmImageVersionRequest, ImageState,
        ListMicrovmImageBuildsRequest, ListMicrovmImagesRequest, VersionState, VersionStatus,
    },
    microvms::MicrovmState as State,
    page::PageRequest,
};

use crate::{
    http::Operations,
    testing::{Call, Fixture, create_request, run_request, until},
};

async fn build(fixture: &Fixture, name: &str) -> api::images::GetMicrovmImageBuildResponse {
    let list = ListMicrovmImageBuildsRequest {
        image: fixture.arn(name),
        image_version: "1.0".into(),
        page: PageRequest::default(),
        architecture: None,
        chipset: None,
        chipset_generation: Some("1".into()),
    };
    let builds = fixture.control().list_microvm_image_builds(&fixture.caller, list).await.unwrap();
    assert_eq!(builds.items.len(), 1);
    let get = GetMicrovmImageBuildRequest {
        image: fixture.arn(name),
        image_version: "1.0".into(),
        build_id: builds.items[0].build_id.to_string(),
    };
    fixture.control().get_microvm_image_build(&fixture.caller, get).await.unwrap()
}

#[tokio::test]
async fn a_whole_life() {
    let fixture = Fixture::new().await;
    fixture.host.hold(Call::Build);
    let made = fixture.create(create_request("a")).await.unwrap();
    assert_eq!((made.state, made.image_version), (ImageState::Creating, ImageVersion::FIRST));
    let same = fixture.create(create_request("a")).await.unwrap_err().to_string();
    assert_eq!(same, "A MicroVM image with the name 'a' already exists in this account");
    let early = fixture.delete_image("a").await.unwrap_err().to_string();
    assert_eq!(early, format!("Cannot delete MicroVM image in its current state: {}", fixture.arn("a")));
    assert!(fixture.run(run_request(fixture.arn("a"))).await.is_err());
    fixture.host.release(Call::Build);
    fixture.until_image("a", ImageState::Created).await;
    let version = GetMicrovmImageVersionRequest { image: fixture.arn("a"), image_version: "1.0".into() };
    let version = fixture.control().get_microvm_image_version(&fixture.caller, version).await.unwrap();
    assert_eq!((version.state, version.status), (VersionState::Successful, VersionStatus::Active));
    let done = build(&fixture, "a").await;
    assert_eq!(done.build.build_state, BuildState::Successful);
    assert_eq!(done.snapshot_build.unwrap().disk_snapshot_size_in_bytes, Some(4));

    let microvm = fixture.running(None).await;
    let used = fixture.delete_image("a").await.unwrap_err().to_string();
    assert_eq!(used, "Cannot delete microvm image with running microvms.");
    fixture.terminate(&microvm).await.unwrap();
    fixture.until_state(&microvm, State::Terminated).await;
    fixture.host.hold(Call::RemoveImage);
    assert_eq!(fixture.delete_image("a").await.unwrap().state, ImageState::Deleting);
    assert_eq!(fixture.delete_image("a").await.unwrap().state, ImageState::Deleting);
    assert!(fixture.create(create_request("a")).await.is_err(), "the name is taken until it is gone");
    fixture.host.release(Call::RemoveImage);
    until("it is gone", async || fixture.image("a").await.is_err()).await;
    assert!(!fixture.host.has_image(&ImageRef { image_id: made.id, version: ImageVersion::FIRST }));
    let gone = fixture.image("a").await.unwrap_err().to_string();
    assert_eq!(gone, format!("MicroVMImage not found for MicroVMImageID: {}", fixture.arn("a")));
    let again = fixture.create(create_request("a")).await.unwrap();
    assert_ne!(again.id, made.id);
}

#[tokio::test]
async fn a_failed_build_says_why_on_the_build() {
    let fixture = Fixture::new().await;
    let reason = "S3_NO_SUCH_KEY: there is no such object";
    fixture.host.fail(Call::Build, HostError::Lost { reason: reason.into() });
    fixture.create(create_request("a")).await.unwrap();
    fixture.until_image("a", ImageState::CreateFailed).await;
    let image = fixture.image("a").await.unwrap();
    assert_eq!(
        (image.latest_active_image_version, image.latest_failed_image_version),
        (None, Some(ImageVersion::FIRST))
    );
    let failed = build(&fixture, "a").await;
    assert_eq!((failed.build.build_state, failed.build.state_reason.as_deref()), (BuildState::Failed, Some(reason)));
    assert_eq!(failed.snapshot_build.unwrap().code_install_size_in_bytes, Some(3));
    fixture.delete_image("a").await.unwrap();
    until("it is gone", async || fixture.image("a").await.is_err()).await;
}

#[tokio::test]
async fn builds_take_turns() {
    let fixture = Fixture::new().await;
    fixture.host.hold(Call::Build);
    fixture.create(create_request("a")).await.unwrap();
    until("a has begun", async || fixture.host.count(Call::Build) == 1).await;
    fixture.create(create_request("b")).await.unwrap();
    assert_eq!(build(&fixture, "b").await.build.build_state, BuildState::Pending);
    assert_eq!(build(&fixture, "a").await.build.build_state, BuildState::InProgress);
    fixture.host.release(Call::Build);
    fixture.until_image("b", ImageState::Created).await;
}

#[tokio::test]
async fn a_token_makes_one_image_while_it_lives() {
    let fixture = Fixture::new().await;
    let request = || CreateMicrovmImageRequest { client_token: Some("t".into()), ..create_request("a") };
    let first = fixture.create(request()).await.unwrap();
    fixture.until_image("a", ImageState::Created).await;
    assert_eq!(fixture.create(request()).await.unwrap(), first);
    let mut other = request();
    other.version.description = Some("x".into());
    assert!(matches!(fixture.create(other).await, Err(ServiceError::Conflict { .. })));
    fixture.delete_image("a").await.unwrap();
    until("it is gone", async || fixture.image("a").await.is_err()).await;
    assert_ne!(fixture.create(request()).await.unwrap().id, first.id);
}

#[tokio::test]
async fn the_filter_comes_after_the_cut() {
    let fixture = Fixture::new().await;
    for name in ["x1", "y1", "y2"] {
        fixture.create(create_request(name)).await.unwrap();
    }
    let page = |next_token| ListMicrovmImagesRequest {
        page: PageRequest { max_results: Some(2), next_token },
        name_filter: Some("x".into()),
    };
    let first = fixture.control().list_microvm_images(&fixture.caller, page(None)).await.unwrap();
    assert_eq!(first.items, []);
    let second = fixture.control().list_microvm_images(&fixture.caller, page(first.next_token)).await.unwrap();
    assert_eq!(second.items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(), ["x1"]);
    assert_eq!(second.next_token, None);
    let forged = page(Some("forged".into()));
    assert!(fixture.control().list_microvm_images(&fixture.caller, forged).await.is_err());
}

#[tokio::test]
async fn another_account_has_nothing_here() {
    let fixture = Fixture::new().await;
    let caller = crate::auth::Caller { account: "111111111111".into(), ..fixture.caller.clone() };
    let refused = fixture.control().create_microvm_image(&caller, create_request("a")).await;
    assert_eq!(refused, Err(ServiceError::AccessDenied { message: None }));
}
