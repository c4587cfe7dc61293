//! Images: zipped, uploaded, created and waited for, all through boto3.

use std::{fs, io::Write, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::{Aws, repository, until};

/// The bucket the stage's artifacts are in.
pub const BUCKET: &str = "artifacts";

/// The managed base image, mandatory in every request.
pub const BASE_IMAGE: &str = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1";

/// Any role: local roles are not checked.
pub const ROLE: &str = "arn:aws:iam::000000000000:role/build";

/// Longest wait for a build.
const BUILD_MAX: Duration = Duration::from_secs(300);

/// A build context.
#[derive(Debug, Clone, Default)]
pub struct Source {
    files: Vec<(String, Vec<u8>)>,
}

impl Source {
    /// A context with just this Dockerfile.
    #[must_use]
    pub fn dockerfile(text: &str) -> Self {
        Self::default().with("Dockerfile", text.as_bytes())
    }

    /// An example of this repository.
    pub fn example(name: &str) -> anyhow::Result<Self> {
        let directory = repository().join("examples").join(name);
        let mut context = Self::default();
        context.add(&directory, "").with_context(|| format!("reading {}", directory.display()))?;
        ensure!(context.text("Dockerfile").is_some(), "{} has no Dockerfile", directory.display());
        Ok(context)
    }

    /// The example's app with doors for the tests.
    pub fn probe() -> anyhow::Result<Self> {
        let example = Self::example("flask-counter")?;
        let dockerfile = example.text("Dockerfile").unwrap_or_default();
        // The last CMD counts; ENTRYPOINT is emptied with it.
        let dockerfile =
            format!("{dockerfile}\nCOPY probe.py keepsakes.py ./\nENTRYPOINT []\nCMD [\"python3\", \"probe.py\"]\n");
        let (probe, keepsakes) = (include_bytes!("../probe/probe.py"), include_bytes!("../probe/keepsakes.py"));
        let source = example.with("Dockerfile", dockerfile.as_bytes());
        Ok(source.with("probe.py", probe).with("keepsakes.py", keepsakes))
    }

    fn add(&mut self, directory: &Path, prefix: &str) -> anyhow::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.add(&entry.path(), &format!("{name}/"))?;
            } else {
                self.files.push((name, fs::read(entry.path())?));
            }
        }
        Ok(())
    }

    /// The same with one more file, or with that file replaced.
    #[must_use]
    pub fn with(mut self, name: &str, bytes: &[u8]) -> Self {
        self.files.retain(|(known, _)| known != name);
        self.files.push((name.to_owned(), bytes.to_owned()));
        self
    }

    /// A file's text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        let (_, bytes) = self.files.iter().find(|(known, _)| known == name)?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Writes it as a zip. Names are written as they are, `..` and all.
    pub fn zip(&self, to: &Path) -> anyhow::Result<()> {
        let mut zip = ZipWriter::new(fs::File::create(to)?);
        for (name, bytes) in &self.files {
            zip.start_file(name.as_str(), SimpleFileOptions::default())?;
            zip.write_all(bytes)?;
        }
        zip.finish()?.sync_all()?;
        Ok(())
    }
}

/// A zip that unpacks to so many MiB of nothing.
pub fn bomb(to: &Path, mebibytes: usize) -> anyhow::Result<()> {
    let mut zip = ZipWriter::new(fs::File::create(to)?);
    let nothing = vec![0; 1 << 20];
    zip.start_file("Dockerfile", SimpleFileOptions::default())?;
    zip.write_all(b"FROM pilotlight/debian:12\n")?;
    zip.start_file("zeros", SimpleFileOptions::default().large_file(true))?;
    for _ in 0..mebibytes {
        zip.write_all(&nothing)?;
    }
    zip.finish()?;
    Ok(())
}

/// An image whose build has ended.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Its ARN.
    pub arn: String,
    /// Its states, in the order seen, each once.
    pub states: Vec<String>,
    /// What the create answered.
    pub created: Value,
    /// `GetMicrovmImageVersion` of version 1.0 at the end.
    pub version: Value,
    /// `GetMicrovmImageBuild` of its build at the end.
    pub build: Value,
}

impl Image {
    /// The last state.
    #[must_use]
    pub fn state(&self) -> &str {
        self.states.last().map_or("", String::as_str)
    }

    /// Why its build failed.
    #[must_use]
    pub fn reason(&self) -> String {
        self.build["stateReason"].as_str().unwrap_or_default().to_owned()
    }
}

/// Uploads a zip.
pub fn upload(aws: &Aws, zip: &Path, key: &str) -> anyhow::Result<()> {
    aws.call("s3", "put_object", json!({"Bucket": BUCKET, "Key": key, "BodyFile": zip}))?;
    Ok(())
}

/// The parameters of a create.
#[must_use]
pub fn create_parameters(name: &str, key: &str) -> Value {
    json!({
        "name": name,
        "baseImageArn": BASE_IMAGE,
        "buildRoleArn": ROLE,
        "codeArtifact": {"uri": format!("s3://{BUCKET}/{key}")},
        "resources": [{"minimumMemoryInMiB": 512}],
    })
}

/// Uploads a zip, which is removed here, and asks for an image of it.
pub fn create(aws: &Aws, name: &str, zip: &Path) -> anyhow::Result<Value> {
    upload(aws, zip, &format!("{name}.zip"))?;
    fs::remove_file(zip)?;
    create_of(aws, name)
}

/// Asks for an image of the zip that was uploaded under its name.
pub fn create_of(aws: &Aws, name: &str) -> anyhow::Result<Value> {
    aws.microvms("create_microvm_image", create_parameters(name, &format!("{name}.zip")))
}

/// Waits until the build has ended, one way or the other.
pub fn settled(aws: &Aws, created: Value) -> anyhow::Result<Image> {
    let text = |name: &str| created[name].as_str().map(str::to_owned).with_context(|| format!("{name}: {created}"));
    let (name, arn) = (text("name")?, text("imageArn")?);
    let mut states = vec![text("state")?];
    until("the build to end", BUILD_MAX, || {
        let image = aws.microvms("get_microvm_image", json!({"imageIdentifier": arn}))?;
        let state = image["state"].as_str().context("no state")?.to_owned();
        if states.last() != Some(&state) {
            states.push(state.clone());
        }
        if state == "CREATING" {
            // A poll a second is what a person's script does.
            std::thread::sleep(Duration::from_millis(200));
            bail!("still CREATING");
        }
        Ok(())
    })?;
    let of_version = json!({"imageIdentifier": arn, "imageVersion": "1.0"});
    let version = aws.microvms("get_microvm_image_version", of_version.clone())?;
    let builds = aws.microvms("list_microvm_image_builds", of_version.clone())?;
    let [build] = &builds["items"].as_array().context("no items")?[..] else { bail!("not one build: {builds}") };
    let mut of_build = of_version;
    of_build["buildId"] = build["buildId"].clone();
    let build = aws.microvms("get_microvm_image_build", of_build)?;
    Ok(Image { name, arn, states, created, version, build })
}
