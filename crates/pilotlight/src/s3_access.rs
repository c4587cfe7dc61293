//! Who may do what through the S3 endpoint: the keys and policies are those of the API.

use std::sync::Arc;

use api::error::ServiceError;
use control::{
    audit::Call,
    auth::{Caller, Principals},
    iam::permit,
};
use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Result,
    access::{S3Access, S3AccessContext},
    auth::{Credentials, S3Auth, SecretKey},
    dto::{CopyObjectInput, CopySource, DeleteObjectsInput, UploadPartCopyInput},
    path::S3Path,
};

use crate::storage::has_second_name;

/// Knows the principals, and asks for each request whether its own may.
#[derive(Clone)]
pub struct Gate {
    /// Who there is.
    pub principals: Arc<Principals>,
    /// The region this server answers as.
    pub region: String,
}

fn refused(code: S3ErrorCode, message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    S3Error::with_message(code, message)
}

fn unknown_key() -> S3Error {
    refused(S3ErrorCode::InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records.")
}

#[async_trait::async_trait]
impl S3Auth for Gate {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        self.principals.secret(access_key).map(|secret| SecretKey::from(secret.expose())).ok_or_else(unknown_key)
    }
}

/// What policies call an operation, and the ARN of what it is about.
fn action_and_resource(operation: &str, path: &S3Path) -> (String, String) {
    let action = match operation {
        "ListBuckets" => "ListAllMyBuckets",
        "ListObjects" | "ListObjectsV2" | "HeadBucket" => "ListBucket",
        "GetObject" | "HeadObject" => "GetObject",
        "PutObject"
        | "CopyObject"
        | "CreateMultipartUpload"
        | "UploadPart"
        | "UploadPartCopy"
        | "CompleteMultipartUpload"
        | "PostObject" => "PutObject",
        "DeleteObjects" => "DeleteObject",
        "ListParts" => "ListMultipartUploadParts",
        "ListMultipartUploads" => "ListBucketMultipartUploads",
        // The others are called alike.
        other => other,
    };
    let resource = match path {
        S3Path::Root => "arn:aws:s3:::*".to_owned(),
        S3Path::Bucket { bucket } => format!("arn:aws:s3:::{bucket}"),
        S3Path::Object { bucket, key } => object(bucket, key),
    };
    (format!("s3:{action}"), resource)
}

fn object(bucket: &str, key: &str) -> String {
    format!("arn:aws:s3:::{bucket}/{key}")
}

fn check_key(key: &str) -> S3Result<()> {
    if has_second_name(key) {
        let message = "Keys with empty parts, or parts that are '.' or '..', are not supported here.";
        return Err(refused(S3ErrorCode::InvalidArgument, message));
    }
    Ok(())
}

fn may(caller: &Caller, action: &str, resource: &str) -> S3Result<()> {
    // With or without a slash at its end, a key is the same file.
    let plain = resource.strip_suffix('/').filter(|_| resource.contains('/'));
    for resource in [Some(resource), plain].into_iter().flatten() {
        permit(caller, action, resource).map_err(|error| match error {
            ServiceError::AccessDenied { message: Some(message) } => refused(S3ErrorCode::AccessDenied, message),
            other => refused(S3ErrorCode::AccessDenied, other.to_string()),
        })?;
    }
    Ok(())
}

impl Gate {
    fn caller(&self, credentials: Option<&Credentials>) -> S3Result<Caller> {
        let Some(credentials) = credentials else {
            return Err(refused(S3ErrorCode::AccessDenied, "Signature is required"));
        };
        self.principals.caller(&credentials.access_key, &self.region).ok_or_else(unknown_key)
    }

    fn check_more<T>(&self, request: &S3Request<T>, action: &str, bucket: &str, key: &str) -> S3Result<()> {
        check_key(key)?;
        let resource = object(bucket, key);
        if let Some(call) = request.extensions.get::<Arc<Call>>() {
            call.is_about([resource.clone()]);
        }
        may(&self.caller(request.credentials.as_ref())?, action, &resource)
    }

    fn check_source<T>(&self, request: &S3Request<T>, source: &CopySource) -> S3Result<()> {
        match source {
            CopySource::Bucket { bucket, key, .. } => self.check_more(request, "s3:GetObject", bucket, key),
            _ => {
                Err(refused(S3ErrorCode::NotImplemented, "Copy from bucket and key; there are no access points here."))
            }
        }
    }
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let operation = context.s3_op().name();
        let (action, resource) = action_and_resource(operation, context.s3_path());
        let key = match context.s3_path() {
            S3Path::Object { key, .. } => check_key(key),
            S3Path::Root | S3Path::Bucket { .. } => Ok(()),
        };
        let of_many = operation == "DeleteObjects";
        let call = context.extensions_mut().get::<Arc<Call>>().cloned();
        if let Some(call) = &call {
            call.wants(&action);
        }
        let caller = self.caller(context.credentials())?;
        if let Some(call) = &call {
            call.signed_by(&caller);
            call.is_about([resource.clone()]);
        }
        key?;
        // Which objects, is in the body: each is asked for below.
        if of_many {
            return Ok(());
        }
        may(&caller, &action, &resource)
    }

    async fn copy_object(&self, request: &mut S3Request<CopyObjectInput>) -> S3Result<()> {
        self.check_source(request, &request.input.copy_source)
    }

    async fn upload_part_copy(&self, request: &mut S3Request<UploadPartCopyInput>) -> S3Result<()> {
        self.check_source(request, &request.input.copy_source)
    }

    async fn delete_objects(&self, request: &mut S3Request<DeleteObjectsInput>) -> S3Result<()> {
        let bucket = &request.input.bucket;
        request
            .input
            .delete
            .objects
            .iter()
            .try_for_each(|object| self.check_more(request, "s3:DeleteObject", bucket, &object.key))
    }
}

#[cfg(test)]
mod tests {
    use api::sensitive::Sensitive;
    use control::{
        auth::{AccessKey, User},
        iam::Policy,
    };
    use s3s::dto::{Delete, ObjectIdentifier};

    use super::*;

    fn gate(statements: &str) -> Gate {
        let key = |id: &str| AccessKey { id: id.into(), secret: Sensitive::new("secret") };
        let principals = Principals::new("000000000000".into(), key("ROOT"));
        let policy = Policy::parse(&format!(r#"{{"Statement": [{statements}]}}"#)).expect("a policy");
        let user = User { name: "ann".into(), id: "AIDA".into(), policies: vec![policy] };
        principals.replace([(key("ANN"), Arc::new(user))]);
        Gate { principals, region: "us-east-1".into() }
    }

    fn request<T>(input: T) -> S3Request<T> {
        S3Request {
            input,
            method: http::Method::POST,
            uri: http::Uri::default(),
            headers: http::HeaderMap::new(),
            extensions: http::Extensions::new(),
            credentials: Some(Credentials { access_key: "ANN".into(), secret_key: SecretKey::from("secret") }),
            region: None,
            service: None,
            trailing_headers: None,
        }
    }

    const CODE: &str = r#"{"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::code/*"},
        {"Effect": "Deny", "Action": "s3:*", "Resource": "arn:aws:s3:::code/private"}"#;

    fn ann_may(gate: &Gate, operation: &str, bucket: &str, key: &str) -> bool {
        let path = S3Path::Object { bucket: bucket.into(), key: key.into() };
        let (action, resource) = action_and_resource(operation, &path);
        let caller = gate.principals.caller("ANN", "us-east-1").expect("a user");
        check_key(key).is_ok() && may(&caller, &action, &resource).is_ok()
    }

    #[test]
    fn an_object_has_no_second_name() {
        let gate = gate(CODE);
        assert!(ann_may(&gate, "GetObject", "code", "app.zip"));
        assert!(!ann_may(&gate, "GetObject", "other", "app.zip"));
        for key in
            ["private", "private/", "./private", "a/../private", "/private", "a//private", "../other/app.zip", "/"]
        {
            assert!(!ann_may(&gate, "GetObject", "code", key), "{key}");
        }
        assert!(ann_may(&gate, "PutObject", "code", "directory/"));
    }

    #[test]
    fn operations_have_the_names_that_policies_know() {
        let bucket = || S3Path::Bucket { bucket: "code".into() };
        let names = |operation, path| action_and_resource(operation, &path);
        assert_eq!(names("ListBuckets", S3Path::Root), ("s3:ListAllMyBuckets".into(), "arn:aws:s3:::*".into()));
        assert_eq!(names("ListObjectsV2", bucket()), ("s3:ListBucket".into(), "arn:aws:s3:::code".into()));
        assert_eq!(names("CreateBucket", bucket()), ("s3:CreateBucket".into(), "arn:aws:s3:::code".into()));
        let object = S3Path::Object { bucket: "code".into(), key: "a/b".into() };
        assert_eq!(names("UploadPart", object), ("s3:PutObject".into(), "arn:aws:s3:::code/a/b".into()));
    }

    #[tokio::test]
    async fn every_object_of_a_list_is_asked_for() {
        let gate = gate(CODE);
        let delete = |keys: &[&str]| {
            let objects = keys
                .iter()
                .map(|key| ObjectIdentifier { key: (*key).to_owned(), ..ObjectIdentifier::default() })
                .collect();
            let delete = Delete { objects, quiet: None };
            let input = DeleteObjectsInput::builder().bucket("code".to_owned()).delete(delete).build();
            request(input.expect("all that is required"))
        };
        gate.delete_objects(&mut delete(&["a", "b/c"])).await.expect("both are allowed");
        let error = gate.delete_objects(&mut delete(&["a", "private"])).await.expect_err("one is denied");
        assert_eq!(error.code(), &S3ErrorCode::AccessDenied);
        let message = error.message().expect("a message");
        assert!(
            message.contains("s3:DeleteObject on resource: arn:aws:s3:::code/private with an explicit deny"),
            "{message}"
        );
        assert!(gate.delete_objects(&mut delete(&["../other/x"])).await.is_err());
    }

    #[tokio::test]
    async fn what_is_copied_is_read() {
        let gate = gate(CODE);
        let source =
            |bucket: &str, key: &str| CopySource::Bucket { bucket: bucket.into(), key: key.into(), version_id: None };
        gate.check_source(&request(()), &source("code", "a")).expect("it may be read");
        for (bucket, key) in [("code", "private"), ("other", "a"), ("code", "../other/a")] {
            gate.check_source(&request(()), &source(bucket, key)).expect_err("it may not");
        }
        assert!(gate.get_secret_key("NOBODY").await.is_err());
        assert!(gate.caller(None).is_err());
    }
}
