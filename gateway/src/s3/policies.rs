//! A bucket's policy, what is shut to the public, and whose its objects are.

use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::access::{denied, granted};
use super::errors::{custom, refused};
use super::operations::Operations;
use crate::identity::Caller;
use crate::objects::documents::{OWNERSHIP, Ownership, POLICY, PUBLIC_ACCESS, PublicAccess};
use crate::policy::Policy as Compiled;
use crate::policy::acl::Acl;
use crate::policy::document::{Kind, Malformed};

impl Operations {
    pub(super) async fn get_bucket_policy(
        &self,
        caller: &Caller,
        request: S3Request<GetBucketPolicyInput>,
    ) -> S3Result<S3Response<GetBucketPolicyOutput>> {
        let text = self.objects.bucket_document(caller, &request.input.bucket, POLICY).await;
        let text = text.map_err(refused)?;
        let text = text.ok_or_else(|| s3_error!(NoSuchBucketPolicy, "The bucket policy does not exist"))?;
        let policy = Some(String::from_utf8_lossy(&text).into_owned());
        Ok(S3Response::new(GetBucketPolicyOutput { policy }))
    }

    pub(super) async fn put_bucket_policy(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketPolicyInput>,
    ) -> S3Result<S3Response<PutBucketPolicyOutput>> {
        let granted = granted(&request)?;
        let input = request.input;
        let policy = Compiled::parse(input.policy.as_bytes(), Kind::Bucket(&input.bucket))
            .map_err(|error| s3_error!(MalformedPolicy, "{error}"))?;
        if !self.objects.knows_all_named(&policy).await.map_err(refused)? {
            return Err(s3_error!(MalformedPolicy, "{}", Malformed::invalid_principal()));
        }
        if granted.bucket()?.public_access().blocks_policy && policy.is_public() {
            return Err(denied());
        }
        let documents = vec![(POLICY, Some(input.policy.into()))];
        self.objects.set_access_documents(caller, &input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketPolicyOutput {}))
    }

    pub(super) async fn delete_bucket_policy(
        &self,
        caller: &Caller,
        request: S3Request<DeleteBucketPolicyInput>,
    ) -> S3Result<S3Response<DeleteBucketPolicyOutput>> {
        let documents = vec![(POLICY, None)];
        self.objects.set_access_documents(caller, &request.input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(DeleteBucketPolicyOutput {}))
    }

    /// Public by its policy or by its access list.
    pub(super) async fn get_bucket_policy_status(
        &self,
        _caller: &Caller,
        request: S3Request<GetBucketPolicyStatusInput>,
    ) -> S3Result<S3Response<GetBucketPolicyStatusOutput>> {
        let granted = granted(&request)?;
        let access = granted.bucket()?;
        let shut = access.public_access();
        let by_policy = access.policy.as_ref().is_some_and(Compiled::is_public) && !shut.restricts_buckets;
        let counts_lists = access.ownership() != Ownership::BucketOwnerEnforced && !shut.ignores_acls;
        let is_public = Some(by_policy || counts_lists && access.acl.is_public());
        let policy_status = Some(PolicyStatus { is_public });
        Ok(S3Response::new(GetBucketPolicyStatusOutput { policy_status }))
    }

    pub(super) async fn get_public_access_block(
        &self,
        _caller: &Caller,
        request: S3Request<GetPublicAccessBlockInput>,
    ) -> S3Result<S3Response<GetPublicAccessBlockOutput>> {
        let granted = granted(&request)?;
        let shut = granted.bucket()?.public_access.ok_or_else(|| {
            custom(
                "NoSuchPublicAccessBlockConfiguration",
                404,
                "The public access block configuration was not found",
            )
        })?;
        let configuration = PublicAccessBlockConfiguration {
            block_public_acls: Some(shut.blocks_acls),
            block_public_policy: Some(shut.blocks_policy),
            ignore_public_acls: Some(shut.ignores_acls),
            restrict_public_buckets: Some(shut.restricts_buckets),
        };
        Ok(S3Response::new(GetPublicAccessBlockOutput {
            public_access_block_configuration: Some(configuration),
        }))
    }

    pub(super) async fn put_public_access_block(
        &self,
        caller: &Caller,
        request: S3Request<PutPublicAccessBlockInput>,
    ) -> S3Result<S3Response<PutPublicAccessBlockOutput>> {
        let asked = request.input.public_access_block_configuration;
        let shut = PublicAccess {
            blocks_acls: asked.block_public_acls.unwrap_or(false),
            ignores_acls: asked.ignore_public_acls.unwrap_or(false),
            blocks_policy: asked.block_public_policy.unwrap_or(false),
            restricts_buckets: asked.restrict_public_buckets.unwrap_or(false),
        };
        let documents = vec![(PUBLIC_ACCESS, Some(shut.to_text().into()))];
        self.objects.set_access_documents(caller, &request.input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(PutPublicAccessBlockOutput {}))
    }

    pub(super) async fn delete_public_access_block(
        &self,
        caller: &Caller,
        request: S3Request<DeletePublicAccessBlockInput>,
    ) -> S3Result<S3Response<DeletePublicAccessBlockOutput>> {
        let documents = vec![(PUBLIC_ACCESS, None)];
        self.objects.set_access_documents(caller, &request.input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(DeletePublicAccessBlockOutput {}))
    }

    pub(super) async fn get_bucket_ownership_controls(
        &self,
        _caller: &Caller,
        request: S3Request<GetBucketOwnershipControlsInput>,
    ) -> S3Result<S3Response<GetBucketOwnershipControlsOutput>> {
        let granted = granted(&request)?;
        let ownership = granted.bucket()?.ownership.ok_or_else(|| {
            custom("OwnershipControlsNotFoundError", 404, "The bucket ownership controls were not found")
        })?;
        let object_ownership = ObjectOwnership::from_static(ownership.name());
        let rules = vec![OwnershipControlsRule { object_ownership }];
        let ownership_controls = Some(OwnershipControls { rules });
        Ok(S3Response::new(GetBucketOwnershipControlsOutput { ownership_controls }))
    }

    pub(super) async fn put_bucket_ownership_controls(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketOwnershipControlsInput>,
    ) -> S3Result<S3Response<PutBucketOwnershipControlsOutput>> {
        let granted = granted(&request)?;
        let access = granted.bucket()?;
        let input = request.input;
        let asked = match input.ownership_controls.rules.as_slice() {
            [rule] => Ownership::from_name(rule.object_ownership.as_str()),
            _ => None,
        };
        let asked = asked.ok_or_else(|| {
            s3_error!(
                MalformedXML,
                "One rule says BucketOwnerPreferred, ObjectWriter or BucketOwnerEnforced."
            )
        })?;
        if asked == Ownership::BucketOwnerEnforced && access.acl != Acl::private(access.bucket.tenant.0) {
            return Err(custom(
                "InvalidBucketAclWithObjectOwnership",
                400,
                "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
            ));
        }
        let documents = vec![(OWNERSHIP, Some(asked.name().into()))];
        self.objects.set_access_documents(caller, &input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketOwnershipControlsOutput {}))
    }

    pub(super) async fn delete_bucket_ownership_controls(
        &self,
        caller: &Caller,
        request: S3Request<DeleteBucketOwnershipControlsInput>,
    ) -> S3Result<S3Response<DeleteBucketOwnershipControlsOutput>> {
        let documents = vec![(OWNERSHIP, None)];
        self.objects.set_access_documents(caller, &request.input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(DeleteBucketOwnershipControlsOutput {}))
    }
}
