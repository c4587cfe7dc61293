//! Code artifacts from an S3 that is not the built-in one.

use std::{io, path::Path, sync::Arc};

use anyhow::{Context, bail};
use api::host::{ArtifactError, ArtifactSource};
use futures_util::TryStreamExt;
use object_store::{
    ObjectStoreExt,
    aws::{AmazonS3, AmazonS3Builder},
};

use crate::{config::ExternalS3, storage::save};

/// Reads from it. Nothing is asked of it before the first build.
pub fn artifacts(config: &ExternalS3) -> anyhow::Result<Arc<dyn ArtifactSource>> {
    // What the HTTP client of the store looks for; a second time changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let key = match (&config.access_key_id, &config.secret_access_key) {
        (Some(id), Some(secret)) => (id.clone(), secret.expose().to_owned(), None),
        _ => match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => (id, secret, variable("AWS_SESSION_TOKEN")),
            _ => bail!(
                "there is no key for the S3 of artifacts: give artifacts.access_key_id and artifacts.secret_access_key, \
                 or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ),
        },
    };
    let external = External { config: config.clone(), key };
    // Whether the settings go together is known now, not at the first build.
    external.bucket("artifacts").context("the S3 of artifacts cannot be used")?;
    Ok(Arc::new(external))
}

struct External {
    config: ExternalS3,
    /// Id, secret and session token.
    key: (String, String, Option<String>),
}

impl External {
    fn bucket(&self, name: &str) -> object_store::Result<AmazonS3> {
        let (id, secret, token) = &self.key;
        let mut builder = AmazonS3Builder::new()
            .with_region(&self.config.region)
            .with_bucket_name(name)
            .with_access_key_id(id)
            .with_secret_access_key(secret);
        if let Some(token) = token {
            builder = builder.with_token(token);
        }
        if let Some(endpoint) = &self.config.endpoint {
            builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
        }
        builder.build()
    }
}

/// An error of the store, as a build's reason.
fn reason(error: object_store::Error, bucket: &str, key: &str) -> ArtifactError {
    let not_found = matches!(error, object_store::Error::NotFound { .. });
    let error = anyhow::Error::new(error);
    let said = format!("{error:#}");
    // The store tells the two apart only in what the service said.
    if not_found && said.contains("NoSuchBucket") {
        return ArtifactError::NoSuchBucket { bucket: bucket.to_owned() };
    }
    if not_found {
        return ArtifactError::NoSuchKey { bucket: bucket.to_owned(), key: key.to_owned() };
    }
    tracing::warn!(bucket, key, error = said, "an artifact could not be read");
    ArtifactError::Other(io::Error::other(error))
}

#[async_trait::async_trait]
impl ArtifactSource for External {
    async fn fetch(&self, bucket: &str, key: &str, to: &Path, bytes_max: u64) -> Result<u64, ArtifactError> {
        let no_such_key = || ArtifactError::NoSuchKey { bucket: bucket.to_owned(), key: key.to_owned() };
        let store = self.bucket(bucket).map_err(|error| reason(error, bucket, key))?;
        let path = object_store::path::Path::parse(key).map_err(|_| no_such_key())?;
        let object = store.get(&path).await.map_err(|error| reason(error, bucket, key))?;
        if object.meta.size > bytes_max {
            return Err(ArtifactError::TooLarge { bytes_max });
        }
        let body = object.into_stream().map_err(|error| reason(error, bucket, key));
        save(body, to, bytes_max).await
    }
}
