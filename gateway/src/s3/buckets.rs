//! Buckets and the documents beside them.

use makai_erasure::Scheme;
use makai_raft::facts::command::Refusal;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::access::grants::Asked;
use super::access::{denied, granted, lists_not_supported};
use super::errors::{custom, refused};
use super::headers::{bucket_tagging, owner, tag_set, timestamp};
use super::listing::{decode_token, encode_token};
use super::operations::Operations;
use crate::identity::Caller;
use crate::objects::ObjectsError;
use crate::objects::documents::{ACL, OWNERSHIP, Ownership};
use crate::policy::acl::Acl;

/// Names a bucket's coding at its making: `x-makai-scheme: 4+2`.
const SCHEME_HEADER: &str = "x-makai-scheme";
/// The document that holds a bucket's tags, as `a=b&c=d`.
const TAGGING: &str = "tagging";
/// The document that holds the region that a bucket was asked for in, where that is another than the door's.
const LOCATION: &str = "location";
const BUCKETS_PER_ANSWER_MAX: usize = 10_000;
/// S3's oldest, which some calls still treat by rules of their own.
const FIRST_REGION: &str = "us-east-1";

/// What S3 keeps for itself.
const RESERVED_STARTS: [&str; 3] = ["xn--", "sthree-", "amzn-s3-demo-"];
const RESERVED_ENDS: [&str; 5] = ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"];

/// A new bucket's name is one of DNS, too: each label begins and ends with a letter or digit.
fn check_new_name(name: &str) -> S3Result<()> {
    let is_plain = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_label = |label: &str| is_plain(label.as_bytes().first()) && is_plain(label.as_bytes().last());
    let is_reserved = RESERVED_STARTS.iter().any(|start| name.starts_with(start))
        || RESERVED_ENDS.iter().any(|end| name.ends_with(end));
    if name.split('.').all(is_label) && !is_reserved {
        return Ok(());
    }
    Err(s3_error!(
        InvalidBucketName,
        "The specified bucket is not valid: its parts between dots begin and end with a letter or digit, and it is \
         none of the names that S3 reserves."
    ))
}

/// Whether it is spelled as a region is, `eu-west-1`, `us-gov-east-1` or `EU`: many clients are set to one, and name it
/// at any endpoint. All buckets are in the one pool wherever they are asked for.
fn is_region(name: &str) -> bool {
    let parts: Vec<&str> = name.split('-').collect();
    let is_word =
        |part: &str| (1..=16).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_lowercase());
    match parts.as_slice() {
        ["EU"] => true,
        [country, words @ .., number] => {
            country.len() == 2
                && is_word(country)
                && (1..=2).contains(&words.len())
                && words.iter().all(|word| is_word(word))
                && (1..=2).contains(&number.len())
                && number.bytes().all(|byte| byte.is_ascii_digit())
        }
        _ => false,
    }
}

impl Operations {
    pub(super) async fn create_bucket(
        &self,
        caller: &Caller,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let input = &request.input;
        check_new_name(&input.bucket)?;
        let documents = self.new_bucket_documents(caller, &request).await?;
        let asked =
            input.create_bucket_configuration.as_ref().and_then(|asked| asked.location_constraint.as_ref());
        let asked = asked
            .map(BucketLocationConstraint::as_str)
            .filter(|asked| !asked.is_empty() && *asked != self.region);
        if let Some(asked) = asked.filter(|asked| !is_region(asked)) {
            let shown: String = asked.chars().take(64).collect();
            return Err(s3_error!(
                InvalidLocationConstraint,
                "The location constraint {shown:?} is not valid: it is no name of a region, and this endpoint is in \
                 {:?}.",
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
        match made {
            Err(ObjectsError::Refused(Refusal::BucketOwned))
                if self.region == FIRST_REGION && asked.is_none() =>
            {
                self.make_again(caller, &request, documents).await?;
                let location = Some(format!("/{}", input.bucket));
                return Ok(S3Response::new(CreateBucketOutput { location }));
            }
            made => made.map_err(refused)?,
        };
        if !documents.is_empty() {
            self.objects.set_access_documents(caller, &input.bucket, documents).await.map_err(refused)?;
        }
        if let Some(asked) = asked {
            let location = Some(asked.to_owned().into());
            let stored = self.objects.set_bucket_document(caller, &input.bucket, LOCATION, location).await;
            stored.map_err(refused)?;
        }
        let location = Some(format!("/{}", input.bucket));
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    /// Makes a bucket that its owner has already: in S3's oldest region that succeeds, and sets its access list anew.
    /// A requester who is less than the account sets nothing.
    async fn make_again(
        &self,
        caller: &Caller,
        request: &S3Request<CreateBucketInput>,
        documents: Vec<(&'static str, Option<bytes::Bytes>)>,
    ) -> S3Result<()> {
        let bucket = &request.input.bucket;
        if granted(request)?.who.is_limited() {
            return if documents.is_empty() { Ok(()) } else { Err(denied()) };
        }
        let access = self.objects.bucket_access(bucket).await.map_err(refused)?;
        let acl = documents.into_iter().find(|(name, _)| *name == ACL).and_then(|(_, acl)| acl);
        let is_enforced = access.ownership() == Ownership::BucketOwnerEnforced;
        if is_enforced && acl.is_some() {
            return Err(lists_not_supported());
        }
        let private = Acl::private(caller.tenant.0);
        let is_same =
            acl.as_deref().unwrap_or(private.to_text().as_bytes()) == access.acl.to_text().as_bytes();
        if !is_same {
            let documents = vec![(ACL, acl)];
            self.objects.set_access_documents(caller, bucket, documents).await.map_err(refused)?;
        }
        Ok(())
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
        let asked =
            self.objects.bucket_document(caller, &request.input.bucket, LOCATION).await.map_err(refused)?;
        let region = match asked {
            None => self.region.clone(),
            Some(asked) => String::from_utf8_lossy(&asked).into_owned(),
        };
        // It is spelled as none.
        let region = (region != FIRST_REGION).then(|| BucketLocationConstraint::from(region));
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
