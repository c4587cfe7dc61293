//! S3 over files, as the real service answers it. s3s-fs does the work; this puts right what a client would trip over:
//!
//! - a bucket that one owns is made again without a word, as in us-east-1;
//! - a bucket with objects in it is not deleted with everything in it;
//! - what is put into a bucket that is not there makes no bucket;
//! - a folder is no object, and a key that is no file's name is refused with a sentence;
//! - lists are encoded where that is asked for, as every SDK does: a key with a `+` comes back as it was;
//! - an upload in parts that is not there is `NoSuchUpload`.

use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::{
    S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CommonPrefixList, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CopySource, CreateBucketInput,
        CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketInput,
        DeleteBucketOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
        DeletedObject, EncodingType, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput,
        HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
        ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput,
        ObjectList, PutObjectInput, PutObjectOutput, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput,
        UploadPartOutput,
    },
};
use s3s_fs::FileSystem;

/// What stands for itself in an encoded key.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Longest part of a key between slashes: a file's name.
const PART_BYTES_MAX: usize = 255;

/// Longest bucket and key together: s3s-fs keeps what else it knows of an object in a file whose name holds both, in
/// base64.
const NAMES_BYTES_MAX: usize = 166;

/// The same while parts of it are uploaded: that file's name holds the upload, too.
const UPLOAD_NAMES_BYTES_MAX: usize = 133;

/// S3 over the files below a directory.
#[derive(Debug)]
pub struct Files {
    inner: FileSystem,
    root: PathBuf,
}

fn refused(code: S3ErrorCode, message: &str) -> S3Error {
    S3Error::with_message(code, message.to_owned())
}

/// Does the key have parts that a file system reads as something else? It would be another name of another object, and slip
/// past a policy. One that ends with a slash is a folder's.
pub fn has_second_name(key: &str) -> bool {
    key.strip_suffix('/').unwrap_or(key).split('/').any(|part| matches!(part, "" | "." | ".."))
}

/// The key, if a file can have it as its name.
fn named(key: &str) -> Option<&str> {
    let name = key.strip_suffix('/').unwrap_or(key);
    let fits = |part: &str| part.len() <= PART_BYTES_MAX && !part.contains('\0');
    (!has_second_name(key) && name.split('/').all(fits)).then_some(name)
}

impl Files {
    /// The objects below a directory.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let inner =
            FileSystem::new(root).map_err(|error| anyhow::anyhow!("cannot serve {}: {error:?}", root.display()))?;
        Ok(Self { inner, root: root.to_owned() })
    }

    /// Where an object is, or would be; `None` if it cannot be anywhere.
    fn path(&self, bucket: &str, key: &str) -> Option<PathBuf> {
        named(key).map(|name| self.root.join(bucket).join(name))
    }

    fn needs_bucket(&self, bucket: &str) -> S3Result<()> {
        match self.root.join(bucket).is_dir() {
            true => Ok(()),
            false => Err(refused(S3ErrorCode::NoSuchBucket, "The specified bucket does not exist")),
        }
    }

    /// Something can be read under the key: a folder is not an object, unless it is asked for as one.
    fn needs_object(&self, bucket: &str, key: &str) -> S3Result<()> {
        self.needs_bucket(bucket)?;
        let path = self.path(bucket, key);
        match path.is_some_and(|path| if key.ends_with('/') { path.is_dir() } else { path.is_file() }) {
            true => Ok(()),
            false => Err(refused(S3ErrorCode::NoSuchKey, "The specified key does not exist.")),
        }
    }

    /// Something can be written under the key.
    fn needs_room(&self, bucket: &str, key: &str, names_bytes_max: usize) -> S3Result<()> {
        self.needs_bucket(bucket)?;
        if bucket.len() + key.len() > names_bytes_max {
            return Err(refused(S3ErrorCode::KeyTooLongError, "Your key is too long for this endpoint"));
        }
        let Some(path) = self.path(bucket, key) else {
            let message = "Objects are files here: a key must not have empty parts, '.' or '..' between its slashes";
            return Err(refused(S3ErrorCode::InvalidArgument, message));
        };
        let bucket = self.root.join(bucket);
        let below_a_file = path.ancestors().skip(1).take_while(|above| *above != bucket).any(Path::is_file);
        if below_a_file || (path.is_dir() && !key.ends_with('/')) {
            let message = "Objects are files here: a key cannot be another object's key and a folder of other keys";
            return Err(refused(S3ErrorCode::InvalidArgument, message));
        }
        Ok(())
    }

    fn needs_upload(&self, upload_id: &str) -> S3Result<()> {
        let plain = upload_id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if plain && self.root.join(format!(".upload-{upload_id}.json")).is_file() {
            return Ok(());
        }
        let message = "The specified upload does not exist. The upload ID may be invalid, or the upload may have been \
                       aborted or completed.";
        Err(refused(S3ErrorCode::NoSuchUpload, message))
    }
}

fn encoded(text: &mut Option<String>) {
    if let Some(text) = text {
        *text = utf8_percent_encode(text, PLAIN).to_string();
    }
}

fn encoded_lists(contents: &mut Option<ObjectList>, prefixes: &mut Option<CommonPrefixList>) {
    contents.iter_mut().flatten().for_each(|object| encoded(&mut object.key));
    prefixes.iter_mut().flatten().for_each(|prefix| encoded(&mut prefix.prefix));
}

fn asks_to_encode(encoding: Option<&EncodingType>) -> bool {
    encoding.is_some_and(|encoding| encoding.as_str() == EncodingType::URL)
}

/// Operations that are what s3s-fs makes of them once the conditions hold.
macro_rules! after {
    ($($name:ident($this:ident, $input:ident: $in:ident) -> $out:ident $conditions:block)+) => {
        #[async_trait::async_trait]
        impl S3 for Files {
            $(
                async fn $name(&self, request: S3Request<$in>) -> S3Result<S3Response<$out>> {
                    {
                        #[allow(unused_variables)]
                        let ($this, $input) = (self, &request.input);
                        $conditions
                    }
                    self.inner.$name(request).await
                }
            )+

            async fn create_bucket(
                &self,
                request: S3Request<CreateBucketInput>,
            ) -> S3Result<S3Response<CreateBucketOutput>> {
                if self.needs_bucket(&request.input.bucket).is_ok() {
                    return Ok(S3Response::new(CreateBucketOutput::default()));
                }
                self.inner.create_bucket(request).await
            }

            async fn delete_bucket(
                &self,
                request: S3Request<DeleteBucketInput>,
            ) -> S3Result<S3Response<DeleteBucketOutput>> {
                self.delete_empty_bucket(request).await
            }

            async fn delete_object(
                &self,
                request: S3Request<DeleteObjectInput>,
            ) -> S3Result<S3Response<DeleteObjectOutput>> {
                self.needs_bucket(&request.input.bucket)?;
                // Deleting what is not there succeeds.
                if self.needs_object(&request.input.bucket, &request.input.key).is_err() {
                    return Ok(S3Response::new(DeleteObjectOutput::default()));
                }
                self.inner.delete_object(request).await
            }

            async fn delete_objects(
                &self,
                request: S3Request<DeleteObjectsInput>,
            ) -> S3Result<S3Response<DeleteObjectsOutput>> {
                self.delete_each(request).await
            }

            async fn list_objects(
                &self,
                request: S3Request<ListObjectsInput>,
            ) -> S3Result<S3Response<ListObjectsOutput>> {
                let (encode, marker) =
                    (asks_to_encode(request.input.encoding_type.as_ref()), request.input.marker.clone());
                let mut response = self.inner.list_objects(request).await?;
                let page = &mut response.output;
                page.marker = marker;
                if encode {
                    encoded_lists(&mut page.contents, &mut page.common_prefixes);
                    for text in [&mut page.prefix, &mut page.delimiter, &mut page.marker, &mut page.next_marker] {
                        encoded(text);
                    }
                }
                Ok(response)
            }

            async fn list_objects_v2(
                &self,
                request: S3Request<ListObjectsV2Input>,
            ) -> S3Result<S3Response<ListObjectsV2Output>> {
                let encode = asks_to_encode(request.input.encoding_type.as_ref());
                let mut response = self.inner.list_objects_v2(request).await?;
                let page = &mut response.output;
                if encode {
                    encoded_lists(&mut page.contents, &mut page.common_prefixes);
                    for text in [&mut page.prefix, &mut page.delimiter, &mut page.start_after] {
                        encoded(text);
                    }
                }
                Ok(response)
            }
        }
    };
}

after! {
    head_bucket(files, input: HeadBucketInput) -> HeadBucketOutput {}
    list_buckets(files, input: ListBucketsInput) -> ListBucketsOutput {}
    get_bucket_location(files, input: GetBucketLocationInput) -> GetBucketLocationOutput {}
    get_object(files, input: GetObjectInput) -> GetObjectOutput {
        files.needs_object(&input.bucket, &input.key)?;
    }
    head_object(files, input: HeadObjectInput) -> HeadObjectOutput {
        files.needs_object(&input.bucket, &input.key)?;
    }
    put_object(files, input: PutObjectInput) -> PutObjectOutput {
        files.needs_room(&input.bucket, &input.key, NAMES_BYTES_MAX)?;
    }
    copy_object(files, input: CopyObjectInput) -> CopyObjectOutput {
        if let CopySource::Bucket { bucket, key, .. } = &input.copy_source {
            files.needs_object(bucket, key)?;
        }
        files.needs_room(&input.bucket, &input.key, NAMES_BYTES_MAX)?;
    }
    create_multipart_upload(files, input: CreateMultipartUploadInput) -> CreateMultipartUploadOutput {
        files.needs_room(&input.bucket, &input.key, UPLOAD_NAMES_BYTES_MAX)?;
    }
    upload_part(files, input: UploadPartInput) -> UploadPartOutput {
        files.needs_upload(&input.upload_id)?;
    }
    upload_part_copy(files, input: UploadPartCopyInput) -> UploadPartCopyOutput {
        files.needs_upload(&input.upload_id)?;
        if let CopySource::Bucket { bucket, key, .. } = &input.copy_source {
            files.needs_object(bucket, key)?;
        }
    }
    list_parts(files, input: ListPartsInput) -> ListPartsOutput {
        files.needs_upload(&input.upload_id)?;
    }
    complete_multipart_upload(files, input: CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput {
        files.needs_upload(&input.upload_id)?;
        files.needs_room(&input.bucket, &input.key, NAMES_BYTES_MAX)?;
    }
    abort_multipart_upload(files, input: AbortMultipartUploadInput) -> AbortMultipartUploadOutput {
        files.needs_upload(&input.upload_id)?;
    }
}

impl Files {
    async fn delete_empty_bucket(
        &self,
        request: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let bucket = request.input.bucket.clone();
        let first = ListObjectsV2Input { bucket, max_keys: Some(1), ..ListObjectsV2Input::default() };
        let page = self.inner.list_objects_v2(super::request(first)).await?;
        if page.output.contents.is_some_and(|contents| !contents.is_empty()) {
            return Err(refused(S3ErrorCode::BucketNotEmpty, "The bucket you tried to delete is not empty"));
        }
        self.inner.delete_bucket(request).await
    }

    async fn delete_each(&self, request: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let DeleteObjectsInput { bucket, delete, .. } = request.input;
        self.needs_bucket(&bucket)?;
        let quiet = delete.quiet.unwrap_or(false);
        let mut output = DeleteObjectsOutput::default();
        for object in delete.objects {
            let one = DeleteObjectInput { bucket: bucket.clone(), key: object.key.clone(), ..Default::default() };
            match self.delete_object(super::request(one)).await {
                Ok(_) if quiet => {}
                Ok(_) => {
                    let deleted = DeletedObject { key: Some(object.key), ..DeletedObject::default() };
                    output.deleted.get_or_insert_default().push(deleted);
                }
                Err(error) => {
                    let failed = s3s::dto::Error {
                        code: Some(error.code().as_str().to_owned()),
                        key: Some(object.key),
                        message: error.message().map(str::to_owned),
                        ..s3s::dto::Error::default()
                    };
                    output.errors.get_or_insert_default().push(failed);
                }
            }
        }
        Ok(S3Response::new(output))
    }
}
