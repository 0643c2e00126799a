//! Access lists of buckets and objects.

use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::access::grants::{Asked, of_xml, to_xml};
use super::access::{denied, granted, lists_not_supported, object_acl};
use super::errors::{refused, unreadable};
use super::operations::Operations;
use super::versions::version_id;
use crate::identity::Caller;
use crate::objects::documents::{ACL, BucketAccess, Ownership};
use crate::policy::acl::Acl;

impl Operations {
    /// The list that a request says, by canned name, headers or body, for what `owner` has in `access`.
    async fn asked_acl(
        &self,
        access: &BucketAccess,
        owner: u64,
        headers: &http::HeaderMap,
        body: Option<&AccessControlPolicy>,
    ) -> S3Result<Acl> {
        if access.ownership() == Ownership::BucketOwnerEnforced {
            return Err(lists_not_supported());
        }
        let asked = Asked::of_headers(headers)?;
        let acl = match body {
            Some(_) if !asked.is_none() => {
                return Err(s3_error!(
                    UnexpectedContent,
                    "This request does not support content: say the access list in headers or in the body."
                ));
            }
            Some(body) => of_xml(&self.objects, body, owner).await?,
            None if asked.is_none() => {
                return Err(s3_error!(
                    MissingSecurityHeader,
                    "Your request was missing a required header: name an access list."
                ));
            }
            None => asked.list(&self.objects, owner, access.bucket.tenant.0).await?,
        };
        if acl.is_public() && access.public_access().blocks_acls {
            return Err(denied());
        }
        Ok(acl)
    }

    pub(super) async fn get_bucket_acl(
        &self,
        _caller: &Caller,
        request: S3Request<GetBucketAclInput>,
    ) -> S3Result<S3Response<GetBucketAclOutput>> {
        let granted = granted(&request)?;
        let access = granted.bucket()?;
        let (owner, grants) = match access.ownership() {
            Ownership::BucketOwnerEnforced => {
                to_xml(&self.objects, &Acl::private(access.bucket.tenant.0)).await?
            }
            _ => to_xml(&self.objects, &access.acl).await?,
        };
        Ok(S3Response::new(GetBucketAclOutput { grants: Some(grants), owner: Some(owner) }))
    }

    pub(super) async fn put_bucket_acl(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketAclInput>,
    ) -> S3Result<S3Response<PutBucketAclOutput>> {
        let granted = granted(&request)?;
        let access = granted.bucket()?;
        let body = request.input.access_control_policy.as_ref();
        let acl = self.asked_acl(access, access.acl.owner, &request.headers, body).await?;
        let document = (acl != Acl::private(access.bucket.tenant.0)).then(|| acl.to_text().into());
        let documents = vec![(ACL, document)];
        self.objects.set_access_documents(caller, &request.input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketAclOutput {}))
    }

    pub(super) async fn get_object_acl(
        &self,
        caller: &Caller,
        request: S3Request<GetObjectAclInput>,
    ) -> S3Result<S3Response<GetObjectAclOutput>> {
        let granted = granted(&request)?;
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        let found = self.objects.find(caller, &input.bucket, &input.key, version).await;
        let head = found.map_err(|error| unreadable(error, version))?.head;
        granted.check_object(&head)?;
        let access = granted.bucket()?;
        let acl = match access.ownership() {
            Ownership::BucketOwnerEnforced => Acl::private(access.bucket.tenant.0),
            _ => object_acl(access, &head),
        };
        let (owner, grants) = to_xml(&self.objects, &acl).await?;
        let grants = Some(grants);
        Ok(S3Response::new(GetObjectAclOutput { grants, owner: Some(owner), request_charged: None }))
    }

    pub(super) async fn put_object_acl(
        &self,
        caller: &Caller,
        request: S3Request<PutObjectAclInput>,
    ) -> S3Result<S3Response<PutObjectAclOutput>> {
        let granted = granted(&request)?;
        let access = granted.bucket()?;
        let input = &request.input;
        let version = version_id(input.version_id.as_deref())?;
        let found = self.objects.find(caller, &input.bucket, &input.key, version).await;
        let head = found.map_err(|error| unreadable(error, version))?.head;
        granted.check_object(&head)?;
        let owner = object_acl(access, &head).owner;
        let body = input.access_control_policy.as_ref();
        let acl = self.asked_acl(access, owner, &request.headers, body).await?;
        let text = (acl != Acl::private(access.bucket.tenant.0)).then(|| acl.to_text());
        let set = self.objects.set_object_acl(caller, &input.bucket, &input.key, version, text).await;
        set.map_err(|error| unreadable(error, version))?;
        Ok(S3Response::new(PutObjectAclOutput::default()))
    }
}
