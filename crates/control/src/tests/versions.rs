//! What versions of an image go through.

use api::{
    catalogue,
    error::ServiceError,
    host::{HostError, ImageRef},
    ids::ImageVersion,
    images::{
        Architecture, CpuConfiguration, ImageState, UpdateMicrovmImageRequest, VersionRequest, VersionState,
        VersionStatus,
    },
    microvms::{MicrovmState as State, RunMicrovmRequest},
    word::Word,
};
use proptest::{collection::vec, prelude::*};

use crate::{
    http::Operations,
    testing::{Call, Fixture, create_request, on_two_threads, run_request, until, version_request},
};

fn version(major: u32) -> ImageVersion {
    ImageVersion::from_major(major)
}

async fn launched(fixture: &Fixture, pinned: Option<&str>) -> Result<ImageVersion, ServiceError> {
    let request = RunMicrovmRequest { image_version: pinned.map(Into::into), ..run_request(fixture.arn("a")) };
    let made = fixture.run(request).await?;
    fixture.terminate(&made.microvm_id).await.unwrap();
    fixture.until_state(&made.microvm_id, State::Terminated).await;
    Ok(made.image_version)
}

async fn failing_update(fixture: &Fixture) {
    fixture.host.fail(Call::Build, HostError::Lost { reason: "CONTAINER_BUILD_FAILED: it did".into() });
    fixture.update("a").await.unwrap();
    fixture.until_image("a", ImageState::UpdateFailed).await;
}

#[tokio::test]
async fn an_update_makes_a_version_and_costs_no_launch() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    fixture.host.hold(Call::Build);
    let updating = fixture.update("a").await.unwrap();
    assert_eq!((updating.state, updating.image_version), (ImageState::Updating, version(2)));
    assert_eq!(updating.latest_active_image_version, Some(version(1)));
    assert_eq!(launched(&fixture, None).await.unwrap(), version(1));
    let busy = catalogue::image_busy(ImageState::Updating).to_string();
    assert_eq!(busy, "MicroVM Image is already in state: UPDATING");
    assert_eq!(fixture.update("a").await.unwrap_err().to_string(), busy);
    let patched = fixture.set_status("a", "1.0", VersionStatus::Inactive).await;
    assert_eq!(patched.unwrap_err().to_string(), busy);
    assert_eq!(fixture.delete_version("a", "1.0").await.unwrap_err().to_string(), busy);
    let deleted = fixture.delete_image("a").await.unwrap_err().to_string();
    assert_eq!(deleted, catalogue::image_not_deletable_now(fixture.arn("a")).to_string());
    fixture.host.release(Call::Build);
    fixture.until_image("a", ImageState::Updated).await;
    let image = fixture.image("a").await.unwrap();
    assert_eq!((image.latest_active_image_version, image.latest_failed_image_version), (Some(version(2)), None));
    assert_eq!(launched(&fixture, None).await.unwrap(), version(2));
    assert_eq!(launched(&fixture, Some("1.0")).await.unwrap(), version(1));
}

#[tokio::test]
async fn an_update_that_fails_leaves_what_worked() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    failing_update(&fixture).await;
    let image = fixture.image("a").await.unwrap();
    assert_eq!(
        (image.latest_active_image_version, image.latest_failed_image_version),
        (Some(version(1)), Some(version(2)))
    );
    let versions = fixture.versions("a").await.unwrap();
    assert_eq!((versions[0].state, versions[0].status), (VersionState::Failed, VersionStatus::Inactive));
    assert_eq!(launched(&fixture, None).await.unwrap(), version(1));
    let activated = fixture.set_status("a", "2.0", VersionStatus::Active).await.unwrap_err().to_string();
    assert_eq!(activated, catalogue::version_not_built(fixture.arn("a"), "2.0").to_string());
    assert!(fixture.set_status("a", "2.0", VersionStatus::Inactive).await.is_ok(), "it is so already");
}

#[tokio::test]
async fn an_image_that_was_never_built_can_be_mended() {
    let fixture = Fixture::new().await;
    fixture.host.fail(Call::Build, HostError::Lost { reason: "S3_NO_SUCH_KEY".into() });
    fixture.create(create_request("a")).await.unwrap();
    fixture.until_image("a", ImageState::CreateFailed).await;
    fixture.update("a").await.unwrap();
    fixture.until_image("a", ImageState::Updated).await;
    assert_eq!(launched(&fixture, None).await.unwrap(), version(2));
}

#[tokio::test]
async fn an_inactive_version_is_not_launched() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    fixture.update("a").await.unwrap();
    fixture.until_image("a", ImageState::Updated).await;
    let microvm = fixture.running(None).await;
    let patched = fixture.set_status("a", "2", VersionStatus::Inactive).await.unwrap();
    assert_eq!((patched.image_version, patched.status), (version(2), VersionStatus::Inactive));
    let image = fixture.image("a").await.unwrap();
    assert_eq!((image.state, image.latest_active_image_version), (ImageState::Updated, Some(version(1))));
    assert_eq!(fixture.state(&microvm).await, State::Running, "what runs is left alone");
    assert_eq!(launched(&fixture, None).await.unwrap(), version(1));
    let pinned = launched(&fixture, Some("2.0")).await.unwrap_err().to_string();
    assert_eq!(pinned, catalogue::no_active_version(fixture.arn("a"), Some("2.0")).to_string());
    fixture.set_status("a", "1.0", VersionStatus::Inactive).await.unwrap();
    let none = launched(&fixture, None).await.unwrap_err().to_string();
    assert_eq!(none, catalogue::no_active_version(fixture.arn("a"), None).to_string());
    fixture.set_status("a", "2.0", VersionStatus::Active).await.unwrap();
    assert_eq!(launched(&fixture, None).await.unwrap(), version(2));
}

#[tokio::test]
async fn a_version_that_is_removed_takes_its_number_with_it() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    let last = fixture.delete_version("a", "1.0").await.unwrap_err().to_string();
    assert_eq!(last, "This is the last version. Please delete the entire image");
    fixture.update("a").await.unwrap();
    fixture.until_image("a", ImageState::Updated).await;
    let microvm = fixture.running(None).await;
    let used = fixture.delete_version("a", "2.0").await.unwrap_err().to_string();
    assert_eq!(used, catalogue::version_has_running_microvms().to_string());
    fixture.terminate(&microvm).await.unwrap();
    fixture.until_state(&microvm, State::Terminated).await;

    fixture.host.hold(Call::RemoveImage);
    let id = fixture.image("a").await.unwrap().id;
    assert_eq!(fixture.delete_version("a", "2.0").await.unwrap().state, VersionState::Deleting);
    assert_eq!(fixture.delete_version("a", "2.0").await.unwrap().state, VersionState::Deleting, "asked again");
    let image = fixture.image("a").await.unwrap();
    assert_eq!((image.state, image.latest_active_image_version), (ImageState::Updating, Some(version(1))));
    assert!(launched(&fixture, Some("2.0")).await.is_err(), "nothing is launched from what goes");
    fixture.host.release(Call::RemoveImage);
    fixture.until_image("a", ImageState::Updated).await;
    assert!(!fixture.host.has_image(&ImageRef { image_id: id, version: version(2) }));
    assert!(fixture.host.has_image(&ImageRef { image_id: id, version: version(1) }));
    let gone = fixture.delete_version("a", "2.0").await.unwrap_err().to_string();
    assert_eq!(gone, catalogue::unknown_version(fixture.arn("a"), "2.0").to_string());
    assert_eq!(fixture.update("a").await.unwrap().image_version, version(3));
}

#[tokio::test]
async fn a_version_that_cannot_be_removed_can_be_tried_again() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    failing_update(&fixture).await;
    for _ in 0..4 {
        fixture.host.fail(Call::RemoveImage, HostError::Unchanged { reason: "the disk is stuck".into() });
    }
    fixture.delete_version("a", "2.0").await.unwrap();
    fixture.until_image("a", ImageState::UpdateFailed).await;
    assert_eq!(fixture.versions("a").await.unwrap()[0].state, VersionState::DeleteFailed);
    assert!(fixture.set_status("a", "2.0", VersionStatus::Active).await.is_err());
    fixture.delete_version("a", "2.0").await.unwrap();
    until("it is gone", async || fixture.versions("a").await.unwrap().len() == 1).await;
    fixture.until_image("a", ImageState::Updated).await;
}

#[tokio::test]
async fn an_update_is_made_once_per_token() {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    let request = || UpdateMicrovmImageRequest {
        image: fixture.arn("a"),
        version: version_request(),
        client_token: Some("t".into()),
    };
    let update = async |request| fixture.control().update_microvm_image(&fixture.caller, request).await;
    let first = update(request()).await.unwrap();
    let again = update(request()).await.unwrap();
    assert_eq!((again.state, again.image_version), (ImageState::Updating, first.image_version));
    fixture.until_image("a", ImageState::Updated).await;
    assert_eq!(update(request()).await.unwrap().image_version, version(2));
    let mut other = request();
    other.version.description = Some("x".into());
    assert!(matches!(update(other).await, Err(ServiceError::Conflict { .. })));
    fixture.delete_version("a", "2.0").await.unwrap();
    until("it is gone", async || fixture.versions("a").await.unwrap().len() == 1).await;
    assert_eq!(update(request()).await.unwrap().image_version, version(3), "what is gone is not replayed");
}

#[tokio::test]
async fn quotas_hold_at_their_edge() {
    let mut fixture = Fixture::new().await;
    fixture.crash().await;
    fixture.config.quotas.versions_per_image = 2;
    fixture.config.quotas.builds = 2;
    fixture.start().await;
    fixture.ready_image("a").await;
    fixture.update("a").await.unwrap();
    fixture.until_image("a", ImageState::Updated).await;
    let full = fixture.update("a").await.unwrap_err();
    assert_eq!(full.to_string(), catalogue::version_quota_exceeded().to_string());
    fixture.delete_version("a", "1.0").await.unwrap();
    until("it is gone", async || fixture.versions("a").await.unwrap().len() == 1).await;
    fixture.until_image("a", ImageState::Updated).await;

    fixture.host.hold(Call::Build);
    fixture.update("a").await.unwrap();
    fixture.create(create_request("b")).await.unwrap();
    let full = fixture.create(create_request("c")).await.unwrap_err();
    assert_eq!(full.to_string(), catalogue::build_quota_exceeded().to_string());
    assert!(fixture.image("c").await.is_err(), "nothing half-made stays");
    fixture.host.release(Call::Build);
    fixture.until_image("b", ImageState::Created).await;
    fixture.create(create_request("c")).await.unwrap();
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Create,
    Update,
    Status(u32, VersionStatus),
    DeleteVersion(u32),
    DeleteImage,
    Run,
    TerminateAll,
    FailBuild,
    FailRemoval,
    Hold(Call),
    Release(Call),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 1u32..5;
    let call = prop::sample::select(vec![Call::Build, Call::RemoveImage]);
    let status = prop::sample::select(vec![VersionStatus::Active, VersionStatus::Inactive]);
    vec(
        prop_oneof![
            3 => Just(Step::Create),
            5 => Just(Step::Update),
            3 => (which.clone(), status).prop_map(|(version, status)| Step::Status(version, status)),
            3 => which.prop_map(Step::DeleteVersion),
            1 => Just(Step::DeleteImage),
            3 => Just(Step::Run),
            2 => Just(Step::TerminateAll),
            2 => Just(Step::FailBuild),
            1 => Just(Step::FailRemoval),
            2 => call.clone().prop_map(Step::Hold),
            3 => call.prop_map(Step::Release),
            1 => Just(Step::Restart),
        ],
        0..40,
    )
}

/// Another version, with a build for each architecture.
async fn update_for_both(fixture: &Fixture) -> Result<(), ServiceError> {
    let both = Architecture::ALL.iter().map(|&architecture| CpuConfiguration { architecture }).collect();
    let version = VersionRequest { cpu_configurations: Some(both), ..version_request() };
    let request = UpdateMicrovmImageRequest { image: fixture.arn("a"), version, client_token: None };
    fixture.control().update_microvm_image(&fixture.caller, request).await.map(|_| ())
}

/// Asks for everything at once, several at a time, and looks whether what is left at the end holds together.
async fn play(steps: Vec<Step>) {
    let mut fixture = Fixture::new().await;
    let mut launched = vec![];
    for chunk in steps.chunks(3) {
        // Refusals are fine; what matters is what is true at the end.
        let asked = futures_util::future::join_all(chunk.iter().map(async |step| match *step {
            Step::Create => drop(fixture.create(create_request("a")).await),
            Step::Update => drop(update_for_both(&fixture).await),
            Step::Status(version, status) => drop(fixture.set_status("a", &version.to_string(), status).await),
            Step::DeleteVersion(version) => drop(fixture.delete_version("a", &version.to_string()).await),
            Step::DeleteImage => drop(fixture.delete_image("a").await),
            Step::FailBuild => fixture.host.fail(Call::Build, HostError::Lost { reason: "it broke".into() }),
            Step::FailRemoval => fixture.host.fail(Call::RemoveImage, HostError::Unchanged { reason: "stuck".into() }),
            Step::Hold(call) => fixture.host.hold(call),
            Step::Release(call) => fixture.host.release(call),
            Step::Run | Step::TerminateAll | Step::Restart => {}
        }));
        asked.await;
        for step in chunk {
            match step {
                Step::Run => launched.extend(fixture.run(run_request(fixture.arn("a"))).await.map(|it| it.microvm_id)),
                Step::TerminateAll => {
                    for id in launched.drain(..) {
                        fixture.terminate(&id).await.unwrap();
                        fixture.until_state(&id, State::Terminated).await;
                    }
                }
                Step::Restart => {
                    fixture.crash().await;
                    fixture.start().await;
                }
                _ => {}
            }
        }
    }
    fixture.host.release(Call::Build);
    fixture.host.release(Call::RemoveImage);
    let settled = async || match fixture.image("a").await {
        Ok(image) => !matches!(image.state, ImageState::Creating | ImageState::Updating | ImageState::Deleting),
        Err(_) => true,
    };
    until("the image comes to rest", settled).await;
    if let Ok(image) = fixture.image("a").await {
        let versions = fixture.versions("a").await.unwrap();
        assert!(
            versions.windows(2).all(|pair| pair[0].image_version > pair[1].image_version),
            "newest first, each once"
        );
        let newest = |wanted: &dyn Fn(&&api::images::GetMicrovmImageVersionResponse) -> bool| {
            versions.iter().find(wanted).map(|it| it.image_version)
        };
        let active = newest(&|it| it.state == VersionState::Successful && it.status == VersionStatus::Active);
        assert_eq!(image.latest_active_image_version, active);
        assert_eq!(image.latest_failed_image_version, newest(&|it| it.state == VersionState::Failed));
        for it in &versions {
            let built = it.state == VersionState::Successful;
            let reference = ImageRef { image_id: image.id, version: it.image_version };
            let settled = matches!(it.state, VersionState::Failed | VersionState::DeleteFailed);
            assert!(built || settled, "{}", it.state);
            assert!(!built || fixture.host.has_image(&reference), "what is told to be built is there");
        }
        let runs = fixture.run(run_request(fixture.arn("a"))).await;
        let may = active.is_some() && image.state != ImageState::DeleteFailed;
        assert_eq!(runs.is_ok(), may, "{:?} {runs:?}", image.state);
        launched.extend(runs.map(|it| it.microvm_id));
    }
    for id in launched {
        fixture.terminate(&id).await.unwrap();
        fixture.until_state(&id, State::Terminated).await;
    }
    fixture.host.forgive();
    if fixture.image("a").await.is_ok() {
        fixture.delete_image("a").await.unwrap();
        until("it is gone", async || fixture.image("a").await.is_err()).await;
    }
    assert_eq!(fixture.host.images(), 0, "nothing is left of it");
    assert_eq!(fixture.host.broken_rules(), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_at_once_leaves_an_image_whole(steps in steps()) {
        on_two_threads(play(steps));
    }
}
