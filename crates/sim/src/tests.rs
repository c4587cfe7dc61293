use std::io::Write;

use api::{
    hooks::HookPlan,
    host::{ArtifactError, Egress, ImageLabels},
    ids::{BuildId, ImageId, ImageVersion},
    size::Size,
};

use super::*;

/// One object in one bucket.
struct OneObject(Vec<u8>);

#[async_trait::async_trait]
impl ArtifactSource for OneObject {
    async fn fetch(&self, bucket: &str, key: &str, to: &std::path::Path, _max: u64) -> Result<u64, ArtifactError> {
        if key != "app.zip" {
            return Err(ArtifactError::NoSuchKey { bucket: bucket.to_owned(), key: key.to_owned() });
        }
        std::fs::write(to, &self.0).map_err(ArtifactError::Other)?;
        Ok(self.0.len() as u64)
    }
}

fn zip(name: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file(name, zip::write::SimpleFileOptions::default()).expect("an entry");
    zip.write_all(b"FROM scratch\n").expect("its content");
    zip.finish().expect("a zip").into_inner()
}

struct Fixture {
    host: Arc<PretendHost>,
    data: tempfile::TempDir,
    image: ImageRef,
}

impl Fixture {
    fn new(object: Vec<u8>) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let host = Self::host(&data, object);
        Self { host, data, image: ImageRef { image_id: ImageId::random(), version: ImageVersion::FIRST } }
    }

    fn host(data: &tempfile::TempDir, object: Vec<u8>) -> Arc<PretendHost> {
        let delays = Delays { build: Duration::ZERO, verb: Duration::ZERO };
        PretendHost::new(Layout { data: data.path().to_owned() }, Arc::new(OneObject(object)), delays)
    }

    async fn build(&self, key: &str, environment: &[(&str, &str)]) -> Result<BuildReport, BuildFailure> {
        self.build_for(key, environment, None).await
    }

    async fn build_for(
        &self,
        key: &str,
        environment: &[(&str, &str)],
        among: Option<Architecture>,
    ) -> Result<BuildReport, BuildFailure> {
        let architecture = among.unwrap_or(Architecture::X86_64);
        let spec = BuildSpec {
            image: self.image.clone(),
            build_id: BuildId::random(),
            architecture,
            one_of_several: among.is_some(),
            labels: ImageLabels { name: "a".into(), arn: "arn".into(), region: "us-east-1".into() },
            bucket: "code".into(),
            key: key.into(),
            environment: environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            size: Size::DEFAULT,
            hooks: HookPlan::default(),
            all_capabilities: false,
            egress: Egress::Internet,
        };
        self.host.build(spec).await
    }

    fn microvm(&self) -> MicrovmSpec {
        MicrovmSpec {
            microvm_id: MicrovmId::random(),
            image: self.image.clone(),
            architecture: None,
            size: Size::DEFAULT,
            hooks: HookPlan::default(),
            run_hook_payload: None,
            egress: Egress::Internet,
        }
    }
}

#[tokio::test]
async fn artifacts_are_really_looked_at() {
    let good = Fixture::new(zip("Dockerfile"));
    assert_eq!(good.build("app.zip", &[]).await.expect("it builds").code_install_bytes, 13);
    let reason = |result: Result<BuildReport, BuildFailure>| result.expect_err("it fails").reason;
    assert!(reason(good.build("other.zip", &[]).await).starts_with("S3_NO_SUCH_KEY: "));
    assert!(reason(Fixture::new(b"no zip".to_vec()).build("app.zip", &[]).await).starts_with("ARCHIVE_INVALID: "));
    let bare = Fixture::new(zip("app.py")).build("app.zip", &[]).await;
    assert!(reason(bare).starts_with("ARCHIVE_DOCKERFILE_NOT_FOUND: "));
    assert_eq!(reason(good.build("app.zip", &[("SIM_BUILD_FAILS", "no luck")]).await), "no luck");
    assert_eq!(reason(good.build("app.zip", &[("SIM_BIULD_MS", "1")]).await), "there is no SIM_BIULD_MS");
    assert!(entries(&good.data.path().join("builds")).await.expect("a list").is_empty());
}

#[tokio::test]
async fn a_life_is_as_the_contract_says() {
    let it = Fixture::new(zip("Dockerfile"));
    let microvm = it.microvm();
    assert!(matches!(it.host.run(&microvm).await, Err(HostError::Lost { .. })), "there is no image yet");
    it.build("app.zip", &[]).await.expect("it builds");
    let first = it.host.run(&microvm).await.expect("it runs");
    it.host.dial(&microvm.microvm_id, &first, app::PORT).await.map(drop).expect("its app listens");
    let refused = it.host.dial(&microvm.microvm_id, &first, 1).await.map(drop);
    assert!(matches!(refused, Err(DialError::Refused { port: 1 })));
    it.host.suspend(&microvm).await.expect("it is suspended");
    let gone = it.host.dial(&microvm.microvm_id, &first, app::PORT).await.map(drop);
    assert!(matches!(gone, Err(DialError::Gone)));
    assert!(matches!(it.host.suspend(&microvm).await, Err(HostError::Lost { .. })), "it has no VM");

    // The next process knows the suspended ones, and nothing of any other.
    let lost = it.microvm();
    it.host.run(&lost).await.expect("it runs");
    let next = Fixture::host(&it.data, zip("Dockerfile"));
    let found =
        next.reconcile(std::slice::from_ref(&microvm), std::slice::from_ref(&it.image)).await.expect("it looks");
    assert_eq!(found, [(microvm.microvm_id, Found::Suspended)]);
    assert!(!it.data.path().join("microvms").join(lost.microvm_id.to_string()).exists());
    let second = next.resume(&microvm).await.expect("it is resumed");
    assert_ne!(first, second);
    assert_eq!(next.resume(&microvm).await.expect("again"), second);
    next.terminate(&microvm).await.expect("it ends");
    next.terminate(&microvm).await.expect("again");
    assert!(matches!(next.resume(&microvm).await, Err(HostError::Lost { .. })));
    next.remove_image(&it.image).await.expect("it is removed");
    next.remove_image(&it.image).await.expect("again");
    assert!(matches!(next.run(&microvm).await, Err(HostError::Lost { .. })));
}

#[tokio::test]
async fn an_app_may_end_by_itself() {
    let it = Fixture::new(zip("Dockerfile"));
    it.build("app.zip", &[("SIM_ENDS_AFTER_MS", "1")]).await.expect("it builds");
    let microvm = it.microvm();
    let vm_id = it.host.run(&microvm).await.expect("it runs");
    let HostEvent::Ended { microvm_id, vm_id: ended, reason } = it.host.next_event().await;
    assert_eq!((microvm_id, ended), (microvm.microvm_id, vm_id));
    assert_eq!(reason, "Container Stopped with Exit Code: 0");
}

#[tokio::test]
async fn builds_of_one_version_are_not_in_each_others_way() {
    use Architecture::{Arm64, X86_64};
    let it = Fixture::new(zip("Dockerfile"));
    let on = |architecture| MicrovmSpec { architecture: Some(architecture), ..it.microvm() };
    let script = [("SIM_BUILD_FAILS", "no luck"), ("SIM_BUILD_FAILS_FOR", "X86_64")];
    it.build_for("app.zip", &script, Some(Arm64)).await.expect("it builds");
    assert_eq!(it.build_for("app.zip", &script, Some(X86_64)).await.expect_err("it fails").reason, "no luck");
    it.host.run(&on(Arm64)).await.expect("the other failed and left this one alone");
    assert!(matches!(it.host.run(&on(X86_64)).await, Err(HostError::Lost { .. })));
    it.build_for("app.zip", &[], Some(X86_64)).await.expect("it builds");
    for architecture in [Arm64, X86_64] {
        it.host.run(&on(architecture)).await.expect("both are there");
    }
    it.host.remove_image(&it.image).await.expect("it is removed");
    for architecture in [Arm64, X86_64] {
        assert!(matches!(it.host.run(&on(architecture)).await, Err(HostError::Lost { .. })));
    }
}
