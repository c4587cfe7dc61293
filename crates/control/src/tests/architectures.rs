//! Versions that are built for several architectures.

use api::{
    error::ServiceError,
    host::{HostError, ImageRef},
    ids::ImageVersion,
    images::{
        Architecture::{self, Arm64, X86_64},
        BuildState, Chipset, CpuConfiguration, CreateMicrovmImageRequest, GetMicrovmImageBuildRequest,
        GetMicrovmImageBuildResponse, GetMicrovmImageVersionResponse, ImageState, ListMicrovmImageBuildsRequest,
        ListMicrovmImageBuildsResponse, UpdateMicrovmImageRequest, VersionRequest, VersionState, VersionStatus,
    },
    microvms::MicrovmState as State,
    page::PageRequest,
};

use crate::{
    http::Operations,
    recovery::REASON_INTERRUPTED,
    testing::{Call, Fixture, create_request, run_request, until, version_request},
};

fn version_for(architectures: &[Architecture]) -> VersionRequest {
    let asked = architectures.iter().map(|&architecture| CpuConfiguration { architecture }).collect();
    VersionRequest { cpu_configurations: Some(asked), ..version_request() }
}

fn request(name: &str, architectures: &[Architecture]) -> CreateMicrovmImageRequest {
    CreateMicrovmImageRequest { version: version_for(architectures), ..create_request(name) }
}

async fn create(fixture: &Fixture, name: &str, architectures: &[Architecture]) -> ImageRef {
    let made = fixture.create(request(name, architectures)).await.unwrap();
    ImageRef { image_id: made.id, version: made.image_version }
}

fn list(fixture: &Fixture, name: &str) -> ListMicrovmImageBuildsRequest {
    ListMicrovmImageBuildsRequest {
        image: fixture.arn(name),
        image_version: "1.0".into(),
        page: PageRequest::default(),
        architecture: None,
        chipset: None,
        chipset_generation: None,
    }
}

async fn listed(
    fixture: &Fixture,
    request: ListMicrovmImageBuildsRequest,
) -> Result<ListMicrovmImageBuildsResponse, ServiceError> {
    fixture.control().list_microvm_image_builds(&fixture.caller, request).await
}

/// The builds of version 1.0, oldest first, each as it is told by itself.
async fn builds(fixture: &Fixture, name: &str) -> Vec<GetMicrovmImageBuildResponse> {
    let mut builds = vec![];
    for item in listed(fixture, list(fixture, name)).await.unwrap().items.into_iter().rev() {
        let get = GetMicrovmImageBuildRequest {
            image: fixture.arn(name),
            image_version: "1.0".into(),
            build_id: item.build_id.to_string(),
        };
        let got = fixture.control().get_microvm_image_build(&fixture.caller, get).await.unwrap();
        // How far it has come may differ: time passes between the two.
        assert_eq!((got.build.build_id, got.build.architecture), (item.build_id, item.architecture));
        assert_eq!(got.build.created_at, item.created_at);
        builds.push(got);
    }
    builds
}

async fn states(fixture: &Fixture, name: &str) -> Vec<(Architecture, BuildState)> {
    builds(fixture, name).await.into_iter().map(|it| (it.build.architecture, it.build.build_state)).collect()
}

async fn version(fixture: &Fixture, name: &str) -> GetMicrovmImageVersionResponse {
    fixture.versions(name).await.unwrap().pop().unwrap()
}

fn broken() -> HostError {
    HostError::Lost { reason: "CONTAINER_BUILD_FAILED: it did".into() }
}

#[tokio::test]
async fn each_architecture_is_built_for_once() {
    let fixture = Fixture::new().await;
    let image = create(&fixture, "a", &[X86_64, Arm64, X86_64]).await;
    fixture.until_image("a", ImageState::Created).await;
    assert_eq!(states(&fixture, "a").await, [(X86_64, BuildState::Successful), (Arm64, BuildState::Successful)]);
    let made = builds(&fixture, "a").await;
    assert_ne!(made[0].build.build_id, made[1].build.build_id);
    assert_eq!(made[0].build.created_at, made[1].build.created_at);
    assert_eq!(made.iter().map(|it| it.build.chipset).collect::<Vec<_>>(), [Chipset::Intel, Chipset::Graviton]);
    assert!(made.iter().all(|it| it.snapshot_build.unwrap().memory_snapshot_size_in_bytes == Some(1)));
    assert_eq!(fixture.host.builds(&image), [Arm64, X86_64]);
    let version = version(&fixture, "a").await;
    assert_eq!((version.state, version.status), (VersionState::Successful, VersionStatus::Active));
    assert_eq!(version.configuration.cpu_configurations, version_for(&[X86_64, Arm64, X86_64]).cpu_configurations);

    let unasked = create(&fixture, "b", &[]).await;
    fixture.until_image("b", ImageState::Created).await;
    assert_eq!(states(&fixture, "b").await, [(Arm64, BuildState::Successful)]);
    assert_eq!(fixture.host.builds(&unasked), [], "the only build is the version itself");
    fixture.host.become_for(&[X86_64]);
    let refused = fixture.create(request("c", &[X86_64, Arm64])).await.unwrap_err().to_string();
    assert!(refused.contains("ARM_64 in cpuConfigurations") && refused.contains("[X86_64]"), "{refused}");
    assert_eq!(fixture.host.broken_rules(), Vec::<String>::new());
}

#[tokio::test]
async fn builds_are_filtered_before_the_cut() {
    let fixture = Fixture::new().await;
    create(&fixture, "a", &[X86_64, Arm64]).await;
    fixture.until_image("a", ImageState::Created).await;
    let all = list(&fixture, "a");
    let found = async |request| {
        let page = listed(&fixture, request).await.unwrap();
        page.items.into_iter().map(|it| it.architecture).collect::<Vec<_>>()
    };
    assert_eq!(found(all.clone()).await, [Arm64, X86_64], "newest first");
    let one = PageRequest { max_results: Some(1), next_token: None };
    let intel = ListMicrovmImageBuildsRequest { chipset: Some(Chipset::Intel), page: one.clone(), ..all.clone() };
    let page = listed(&fixture, intel).await.unwrap();
    assert_eq!((page.items.len(), page.next_token), (1, None), "the page is full, and there is no other");
    let arm = ListMicrovmImageBuildsRequest { architecture: Some(Arm64), ..all.clone() };
    assert_eq!(found(arm.clone()).await, [Arm64]);
    assert_eq!(found(ListMicrovmImageBuildsRequest { chipset: Some(Chipset::Intel), ..arm.clone() }).await, []);
    assert_eq!(found(ListMicrovmImageBuildsRequest { chipset_generation: Some("4".into()), ..all.clone() }).await, []);

    let first = listed(&fixture, ListMicrovmImageBuildsRequest { page: one, ..all.clone() }).await.unwrap();
    let page = PageRequest { max_results: Some(1), next_token: first.next_token };
    assert_eq!(found(ListMicrovmImageBuildsRequest { page: page.clone(), ..all }).await, [X86_64]);
    assert!(
        listed(&fixture, ListMicrovmImageBuildsRequest { page, ..arm }).await.is_err(),
        "a token of another filter"
    );
}

#[tokio::test]
async fn a_launch_takes_the_build_that_the_host_runs() {
    let mut fixture = Fixture::new().await;
    create(&fixture, "a", &[Arm64, X86_64]).await;
    create(&fixture, "b", &[Arm64]).await;
    fixture.until_image("b", ImageState::Created).await;
    fixture.until_image("a", ImageState::Created).await;
    for host in [[X86_64, Arm64].as_slice(), &[Arm64, X86_64], &[Arm64]] {
        fixture.host.become_for(host);
        assert_eq!(fixture.host.launched_for(&fixture.running(None).await), Some(host[0]));
    }
    let of_b = fixture.run(run_request(fixture.arn("b"))).await.unwrap().microvm_id;
    fixture.until_state(&of_b, State::Running).await;
    assert_eq!(fixture.host.launched_for(&of_b), None, "there is only one");
    fixture.host.become_for(&[X86_64]);
    let refused = fixture.run(run_request(fixture.arn("b"))).await.unwrap_err().to_string();
    assert!(refused.contains("built for [ARM_64]") && refused.contains("runs [X86_64]"), "{refused}");
    // What was launched is known as what it was.
    fixture.crash().await;
    fixture.start().await;
    assert_eq!(fixture.state(&of_b).await, State::Running);
    assert_eq!(fixture.host.broken_rules(), Vec::<String>::new());
}

#[tokio::test]
async fn one_failure_fails_the_version_once_all_have_ended() {
    let fixture = Fixture::new().await;
    fixture.host.hold(Call::Build);
    let image = create(&fixture, "a", &[X86_64, Arm64]).await;
    assert_eq!(version(&fixture, "a").await.configuration.cpu_configurations.unwrap().len(), 2);
    until("the first has begun", async || fixture.host.count(Call::Build) == 1).await;
    assert_eq!(states(&fixture, "a").await, [(X86_64, BuildState::InProgress), (Arm64, BuildState::Pending)]);
    assert_eq!(version(&fixture, "a").await.state, VersionState::InProgress);
    // The first goes well, the second does not.
    fixture.host.hold(Call::RemoveImage);
    fixture.host.let_one_through(Call::Build);
    until("the second has begun", async || fixture.host.count(Call::Build) == 2).await;
    assert_eq!(states(&fixture, "a").await, [(X86_64, BuildState::Successful), (Arm64, BuildState::InProgress)]);
    assert_eq!(fixture.image("a").await.unwrap().state, ImageState::Creating);
    assert!(fixture.run(run_request(fixture.arn("a"))).await.is_err(), "half a version is none");
    fixture.host.fail(Call::Build, broken());
    fixture.host.release(Call::Build);
    fixture.until_image("a", ImageState::CreateFailed).await;
    let failed = version(&fixture, "a").await;
    assert_eq!((failed.state, failed.status), (VersionState::Failed, VersionStatus::Inactive));
    let ended = builds(&fixture, "a").await;
    assert_eq!((ended[0].build.build_state, ended[0].build.state_reason.as_deref()), (BuildState::Successful, None));
    assert_eq!(ended[0].snapshot_build.unwrap().disk_snapshot_size_in_bytes, Some(4), "what came of it is told");
    let reason = Some("CONTAINER_BUILD_FAILED: it did");
    assert_eq!((ended[1].build.build_state, ended[1].build.state_reason.as_deref()), (BuildState::Failed, reason));
    assert_eq!(fixture.host.builds(&image), [X86_64]);
    fixture.host.release(Call::RemoveImage);
    until("nothing of it is on the host", async || !fixture.host.has_image(&image)).await;
}

#[tokio::test]
async fn the_first_failure_lets_the_others_end() {
    let mut fixture = Fixture::new().await;
    fixture.host.fail(Call::Build, broken());
    // Not even by trying again and again.
    for _ in 0..4 {
        fixture.host.fail(Call::RemoveImage, HostError::Unchanged { reason: "the disk is stuck".into() });
    }
    let image = create(&fixture, "a", &[X86_64, Arm64]).await;
    fixture.until_image("a", ImageState::CreateFailed).await;
    assert_eq!(states(&fixture, "a").await, [(X86_64, BuildState::Failed), (Arm64, BuildState::Successful)]);
    until("it was tried", async || fixture.host.count(Call::RemoveImage) == 4).await;
    assert_eq!(fixture.host.builds(&image), [Arm64]);
    fixture.crash().await;
    fixture.start().await;
    assert!(!fixture.host.has_image(&image), "the next start removes what could not be removed");
}

#[tokio::test]
async fn a_kill_between_two_builds() {
    let mut fixture = Fixture::new().await;
    fixture.host.hold(Call::Build);
    let image = create(&fixture, "a", &[X86_64, Arm64]).await;
    until("the first has begun", async || fixture.host.count(Call::Build) == 1).await;
    fixture.crash().await;
    fixture.start().await;
    // The first was interrupted; the second waited, and goes on.
    until("the second has begun", async || fixture.host.count(Call::Build) == 2).await;
    assert_eq!(states(&fixture, "a").await, [(X86_64, BuildState::Failed), (Arm64, BuildState::InProgress)]);
    assert_eq!(version(&fixture, "a").await.state, VersionState::InProgress);
    assert_eq!(builds(&fixture, "a").await[0].build.state_reason.as_deref(), Some(REASON_INTERRUPTED));
    fixture.host.release(Call::Build);
    fixture.until_image("a", ImageState::CreateFailed).await;
    until("nothing of it is on the host", async || !fixture.host.has_image(&image)).await;

    // The first was done, and the second is interrupted.
    fixture.host.hold(Call::Build);
    let image = create(&fixture, "b", &[X86_64, Arm64]).await;
    fixture.host.let_one_through(Call::Build);
    until("the second has begun", async || states(&fixture, "b").await[1].1 == BuildState::InProgress).await;
    assert_eq!(fixture.host.builds(&image), [X86_64]);
    fixture.crash().await;
    fixture.host.release(Call::Build);
    fixture.start().await;
    assert_eq!(states(&fixture, "b").await, [(X86_64, BuildState::Successful), (Arm64, BuildState::Failed)]);
    assert_eq!(fixture.image("b").await.unwrap().state, ImageState::CreateFailed);
    assert!(!fixture.host.has_image(&image), "what is good for nothing is gone");
}

#[tokio::test]
async fn a_build_that_waited_through_a_restart_completes_its_version() {
    let mut fixture = Fixture::new().await;
    fixture.host.hold(Call::Build);
    let image = create(&fixture, "a", &[X86_64, Arm64]).await;
    until("the first has begun", async || fixture.host.count(Call::Build) == 1).await;
    let control = fixture.control().clone();
    let host = fixture.host.clone();
    let drained = tokio::join!(fixture.drain(), async {
        until("it drains", async || control.shared.draining.is_cancelled()).await;
        host.release(Call::Build);
    });
    drop((control, drained));
    assert_eq!(fixture.host.builds(&image), [X86_64]);
    fixture.start().await;
    fixture.until_image("a", ImageState::Created).await;
    assert_eq!(states(&fixture, "a").await, [(X86_64, BuildState::Successful), (Arm64, BuildState::Successful)]);
    assert_eq!(fixture.host.builds(&image), [Arm64, X86_64], "the one that was done was kept");
}

#[tokio::test]
async fn all_of_a_version_is_removed_and_counts_as_one() {
    let mut fixture = Fixture::new().await;
    fixture.crash().await;
    fixture.config.quotas.builds = 1;
    fixture.start().await;
    fixture.host.hold(Call::Build);
    let first = create(&fixture, "a", &[X86_64, Arm64]).await;
    assert!(matches!(fixture.create(create_request("b")).await, Err(ServiceError::ServiceQuotaExceeded { .. })));
    fixture.host.release(Call::Build);
    fixture.until_image("a", ImageState::Created).await;
    let (image, version) = (fixture.arn("a"), version_for(&[Arm64, X86_64]));
    let update = UpdateMicrovmImageRequest { image, version, client_token: None };
    fixture.control().update_microvm_image(&fixture.caller, update).await.unwrap();
    fixture.until_image("a", ImageState::Updated).await;
    let second = ImageRef { version: ImageVersion::from_major(2), ..first.clone() };
    assert_eq!(fixture.host.images(), 4);
    fixture.delete_version("a", "1.0").await.unwrap();
    until("it is gone", async || fixture.versions("a").await.unwrap().len() == 1).await;
    assert_eq!((fixture.host.builds(&first), fixture.host.builds(&second)), (vec![], vec![Arm64, X86_64]));
    fixture.delete_image("a").await.unwrap();
    until("it is gone", async || fixture.image("a").await.is_err()).await;
    assert_eq!(fixture.host.images(), 0);
}

#[tokio::test]
async fn records_of_before_go_on() {
    let mut fixture = Fixture::new().await;
    fixture.host.become_for(&[Arm64]);
    fixture.ready_image("a").await;
    let running = fixture.running(None).await;
    let suspended = fixture.suspended(None).await;
    fixture.crash().await;
    crate::store::forget_architectures(&fixture.database()).await;
    fixture.start().await;
    assert_eq!(states(&fixture, "a").await, [(Arm64, BuildState::Successful)]);
    assert_eq!(fixture.state(&running).await, State::Running);
    fixture.resume(&suspended).await.unwrap();
    fixture.until_state(&suspended, State::Running).await;
    let fresh = fixture.running(None).await;
    assert_eq!(fixture.host.launched_for(&fresh), None, "its files are where they were");
    assert_eq!(fixture.host.broken_rules(), Vec::<String>::new());
}
