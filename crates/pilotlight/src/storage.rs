//! The built-in S3 endpoint, and how builds read from it.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use api::host::{ArtifactError, ArtifactSource};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use s3s::{
    S3, S3ErrorCode, S3Request,
    dto::GetObjectInput,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::io::AsyncWriteExt;

use self::files::Files;
use crate::s3_access::Gate;

mod files;

pub(crate) use files::has_second_name;

/// S3 over a directory.
pub struct Storage {
    root: PathBuf,
}

impl Storage {
    /// S3 over the data directory's `s3`.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let root = data_dir.join("s3");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self { root })
    }

    fn files(&self) -> anyhow::Result<Files> {
        Files::open(&self.root)
    }

    /// The endpoint for S3 clients, for those who may.
    pub fn service(&self, gate: Gate) -> anyhow::Result<S3Service> {
        let mut builder = S3ServiceBuilder::new(self.files()?);
        builder.set_auth(gate.clone());
        builder.set_access(gate);
        Ok(builder.build())
    }

    /// The same objects, for builds.
    pub fn artifacts(&self) -> anyhow::Result<Arc<dyn ArtifactSource>> {
        Ok(Arc::new(Artifacts { files: self.files()? }))
    }
}

struct Artifacts {
    files: Files,
}

/// A request as the S3 implementation takes it; only its input matters.
fn request<T>(input: T) -> S3Request<T> {
    S3Request {
        input,
        method: http::Method::GET,
        uri: http::Uri::default(),
        headers: http::HeaderMap::new(),
        extensions: http::Extensions::new(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }
}

#[async_trait::async_trait]
impl ArtifactSource for Artifacts {
    async fn fetch(&self, bucket: &str, key: &str, to: &Path, bytes_max: u64) -> Result<u64, ArtifactError> {
        let other = |error: s3s::S3Error| ArtifactError::Other(io::Error::other(error.to_string()));
        // A folder is an object to S3 clients, and no artifact.
        if key.ends_with('/') {
            return Err(ArtifactError::NoSuchKey { bucket: bucket.to_owned(), key: key.to_owned() });
        }
        let get = GetObjectInput::builder().bucket(bucket.to_owned()).key(key.to_owned()).build();
        let get = get.map_err(|error| ArtifactError::Other(io::Error::other(error.to_string())))?;
        let object = self.files.get_object(request(get)).await.map_err(|error| match error.code() {
            S3ErrorCode::NoSuchKey => ArtifactError::NoSuchKey { bucket: bucket.to_owned(), key: key.to_owned() },
            S3ErrorCode::NoSuchBucket => ArtifactError::NoSuchBucket { bucket: bucket.to_owned() },
            _ => other(error),
        })?;
        let Some(body) = object.output.body else { return save(stream::empty(), to, bytes_max).await };
        let failed = |error| ArtifactError::Other(io::Error::other(format!("{error}")));
        save(body.map_err(failed), to, bytes_max).await
    }
}

/// Writes an artifact to a file as it comes, up to a limit; answers how many bytes it has.
pub(crate) async fn save(
    mut body: impl Stream<Item = Result<Bytes, ArtifactError>> + Unpin,
    to: &Path,
    bytes_max: u64,
) -> Result<u64, ArtifactError> {
    let mut bytes = 0u64;
    let mut file = tokio::fs::File::create(to).await.map_err(write_error)?;
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        bytes += chunk.len() as u64;
        if bytes > bytes_max {
            return Err(ArtifactError::TooLarge { bytes_max });
        }
        file.write_all(&chunk).await.map_err(write_error)?;
    }
    file.flush().await.map_err(write_error)?;
    Ok(bytes)
}

fn write_error(error: io::Error) -> ArtifactError {
    match error.kind() {
        io::ErrorKind::StorageFull => ArtifactError::StorageFull,
        _ => ArtifactError::Other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let data = tempfile::tempdir().expect("a directory");
        let storage = Storage::open(data.path()).expect("storage");
        let artifacts = storage.artifacts().expect("artifacts");
        let to = data.path().join("out");
        let error = artifacts.fetch("none", "x.zip", &to, 10).await.expect_err("no bucket");
        assert!(error.to_string().starts_with("S3_NO_SUCH_BUCKET: "), "{error}");
        std::fs::create_dir(data.path().join("s3/code")).expect("a bucket");
        let error = artifacts.fetch("code", "x.zip", &to, 10).await.expect_err("no key");
        assert!(error.to_string().starts_with("S3_NO_SUCH_KEY: "), "{error}");
        std::fs::write(data.path().join("s3/code/x.zip"), "0123456789").expect("an object");
        for other in ["/x.zip", "./x.zip", "y/../x.zip", "x.zip/"] {
            let error = artifacts.fetch("code", other, &to, 10).await.expect_err("an object has one name");
            assert!(error.to_string().starts_with("S3_NO_SUCH_KEY: "), "{error}");
        }
        assert_eq!(artifacts.fetch("code", "x.zip", &to, 10).await.expect("the object"), 10);
        assert_eq!(std::fs::read(&to).expect("the copy"), b"0123456789");
        let error = artifacts.fetch("code", "x.zip", &to, 9).await.expect_err("over the limit");
        assert!(matches!(error, ArtifactError::TooLarge { .. }), "{error}");
    }
}
