//! Buckets and the documents beside them.

use makai_erasure::Scheme;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::access::grants::Asked;
use super::errors::{custom, refused};
use super::headers::{bucket_tagging, owner, tag_set, timestamp};
use super::listing::{decode_token, encode_token};
use super::operations::Operations;
use crate::identity::Caller;
use crate::objects::documents::{ACL, OWNERSHIP, Ownership};
use crate::policy::acl::Acl;

/// Names a bucket's coding at its making: `x-makai-scheme: 4+2`.
const SCHEME_HEADER: &str = "x-makai-scheme";
/// The document that holds a bucket's tags, as `a=b&c=d`.
const TAGGING: &str = "tagging";
const BUCKETS_PER_ANSWER_MAX: usize = 10_000;

impl Operations {
    pub(super) async fn create_bucket(
        &self,
        caller: &Caller,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let input = &request.input;
        let documents = self.new_bucket_documents(caller, &request).await?;
        let asked =
            input.create_bucket_configuration.as_ref().and_then(|asked| asked.location_constraint.as_ref());
        if let Some(asked) = asked.map(BucketLocationConstraint::as_str)
            && !asked.is_empty()
            && asked != self.region
        {
            let shown: String = asked.chars().take(64).collect();
            return Err(s3_error!(
                InvalidLocationConstraint,
                "The location constraint {shown:?} is not valid: this endpoint is in {:?}.",
                self.region
            ));
        }
        let scheme = match request.headers.get(SCHEME_HEADER) {
            None => None,
            Some(value) => {
                let scheme = value.to_str().unwrap_or_default().parse::<Scheme>();
                Some(scheme.map_err(|error| s3_error!(InvalidArgument, "{SCHEME_HEADER}: {error}"))?)
            }
        };
        let made = if input.object_lock_enabled_for_bucket == Some(true) {
            self.objects.create_locked_bucket(caller, &input.bucket, scheme).await
        } else {
            self.objects.create_bucket(caller, &input.bucket, scheme).await
        };
        made.map_err(refused)?;
        if !documents.is_empty() {
            self.objects.set_access_documents(caller, &input.bucket, documents).await.map_err(refused)?;
        }
        let location = Some(format!("/{}", input.bucket));
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    /// What a new bucket's headers say about access to it.
    async fn new_bucket_documents(
        &self,
        caller: &Caller,
        request: &S3Request<CreateBucketInput>,
    ) -> S3Result<Vec<(&'static str, Option<bytes::Bytes>)>> {
        let owner = caller.tenant.0;
        let asked = Asked::of_headers(&request.headers)?;
        let acl = asked.list(&self.objects, owner, owner).await?;
        let ownership = match request.input.object_ownership.as_ref().map(ObjectOwnership::as_str) {
            None => None,
            Some(name) => Some(Ownership::from_name(name).ok_or_else(|| {
                s3_error!(InvalidArgument, "x-amz-object-ownership is no ownership setting.")
            })?),
        };
        let is_private = acl == Acl::private(owner);
        if ownership == Some(Ownership::BucketOwnerEnforced) && !is_private {
            return Err(custom(
                "InvalidBucketAclWithObjectOwnership",
                400,
                "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
            ));
        }
        let mut documents = Vec::new();
        documents.extend(ownership.map(|ownership| (OWNERSHIP, Some(ownership.name().into()))));
        documents.extend((!is_private).then(|| (ACL, Some(acl.to_text().into()))));
        Ok(documents)
    }

    pub(super) async fn delete_bucket(
        &self,
        caller: &Caller,
        request: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        self.objects.delete_bucket(caller, &request.input.bucket).await.map_err(refused)?;
        Ok(S3Response::new(DeleteBucketOutput {}))
    }

    pub(super) async fn head_bucket(
        &self,
        caller: &Caller,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.objects.bucket(caller, &request.input.bucket).await.map_err(refused)?;
        let bucket_region = Some(self.region.clone());
        Ok(S3Response::new(HeadBucketOutput { bucket_region, ..HeadBucketOutput::default() }))
    }

    pub(super) async fn list_buckets(
        &self,
        caller: &Caller,
        request: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        let input = request.input;
        let entries_max = match input.max_buckets {
            None => BUCKETS_PER_ANSWER_MAX,
            Some(count) => usize::try_from(count)
                .ok()
                .filter(|count| (1..=BUCKETS_PER_ANSWER_MAX).contains(count))
                .ok_or_else(|| {
                    s3_error!(InvalidArgument, "max-buckets must be 1 to {BUCKETS_PER_ANSWER_MAX}.")
                })?,
        };
        let after = input.continuation_token.as_deref().map(decode_token).transpose()?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let all = self.objects.buckets(caller).await.map_err(refused)?;
        let mut names = all
            .into_iter()
            .filter(|bucket| bucket.name.starts_with(&prefix))
            .filter(|bucket| after.as_ref().is_none_or(|after| bucket.name > *after))
            .peekable();
        let buckets: Vec<_> = names.by_ref().take(entries_max).collect();
        let next = if names.peek().is_some() {
            buckets.last().map(|bucket| encode_token(&bucket.name))
        } else {
            None
        };
        let buckets = buckets.into_iter().map(|bucket| Bucket {
            bucket_region: Some(self.region.clone()),
            creation_date: Some(timestamp(bucket.created_at)),
            name: Some(bucket.name),
        });
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets.collect()),
            continuation_token: next,
            owner: Some(owner(caller)),
            prefix: input.prefix,
        }))
    }

    pub(super) async fn get_bucket_location(
        &self,
        caller: &Caller,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.objects.bucket(caller, &request.input.bucket).await.map_err(refused)?;
        // S3's oldest region is spelled as none.
        let region =
            (self.region != "us-east-1").then(|| BucketLocationConstraint::from(self.region.clone()));
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint: region }))
    }

    pub(super) async fn get_bucket_tagging(
        &self,
        caller: &Caller,
        request: S3Request<GetBucketTaggingInput>,
    ) -> S3Result<S3Response<GetBucketTaggingOutput>> {
        let tags =
            self.objects.bucket_document(caller, &request.input.bucket, TAGGING).await.map_err(refused)?;
        let tags = tags.ok_or_else(|| s3_error!(NoSuchTagSet, "The TagSet does not exist."))?;
        let tag_set = tag_set(&String::from_utf8_lossy(&tags));
        Ok(S3Response::new(GetBucketTaggingOutput { tag_set }))
    }

    pub(super) async fn put_bucket_tagging(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketTaggingInput>,
    ) -> S3Result<S3Response<PutBucketTaggingOutput>> {
        let input = request.input;
        let tags = bucket_tagging(input.tagging.tag_set)?;
        let stored =
            self.objects.set_bucket_document(caller, &input.bucket, TAGGING, Some(tags.into())).await;
        stored.map_err(refused)?;
        Ok(S3Response::new(PutBucketTaggingOutput {}))
    }

    pub(super) async fn delete_bucket_tagging(
        &self,
        caller: &Caller,
        request: S3Request<DeleteBucketTaggingInput>,
    ) -> S3Result<S3Response<DeleteBucketTaggingOutput>> {
        self.objects
            .set_bucket_document(caller, &request.input.bucket, TAGGING, None)
            .await
            .map_err(refused)?;
        Ok(S3Response::new(DeleteBucketTaggingOutput {}))
    }
}
