//! Encryption as clients ask for it: the headers of SSE-S3, SSE-KMS and SSE-C, and a bucket's default.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use makai_raft::facts::object::ObjectHeaders;
use md5::{Digest as _, Md5};
use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::access::granted;
use super::documents::{read_xml, write_xml};
use super::errors::{custom, refused};
use super::operations::Operations;
use crate::identity::Caller;
use crate::objects::documents::{BucketAccess, ENCRYPTION};
use crate::objects::sealing::{CustomerKey, NamedKey, Sealing};

const METHOD: &str = "x-amz-server-side-encryption";
const KMS_KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";
const BUCKET_KEY: &str = "x-amz-server-side-encryption-bucket-key-enabled";
const KMS_CONTEXT: &str = "x-amz-server-side-encryption-context";
const CUSTOMER: &str = "x-amz-server-side-encryption-customer";
const SOURCE_CUSTOMER: &str = "x-amz-copy-source-server-side-encryption-customer";
/// The key that is meant where SSE-KMS is asked for without naming one.
const DEFAULT_KMS_KEY: &str = "alias/aws/s3";
const KMS_KEY_BYTES_MAX: usize = 512;

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The customer's key that headers beginning with `prefix` give.
fn customer_key(headers: &HeaderMap, prefix: &str) -> S3Result<Option<CustomerKey>> {
    let part = |name: &str| text(headers, &format!("{prefix}-{name}"));
    let (algorithm, key, md5) = (part("algorithm"), part("key"), part("key-md5"));
    if algorithm.is_none() && key.is_none() && md5.is_none() {
        return Ok(None);
    }
    let missing = |what: &str| {
        s3_error!(
            InvalidArgument,
            "Requests specifying Server Side Encryption with Customer provided keys must \
             provide {what}."
        )
    };
    match algorithm {
        None => return Err(missing("a valid encryption algorithm")),
        Some("AES256") => {}
        Some(_) => {
            return Err(custom(
                "InvalidEncryptionAlgorithmError",
                400,
                "The encryption request you specified is not valid. The valid value is AES256.",
            ));
        }
    }
    let key = key.ok_or_else(|| missing("an appropriate secret key"))?;
    let md5 = md5.ok_or_else(|| missing("the MD5 of the secret key"))?;
    let key = BASE64_STANDARD.decode(key).ok().and_then(|key| <[u8; 32]>::try_from(key).ok());
    let key = key.ok_or_else(|| {
        s3_error!(InvalidArgument, "The secret key was invalid for the specified algorithm.")
    })?;
    if BASE64_STANDARD.encode(Md5::digest(key)) != md5 {
        return Err(s3_error!(
            InvalidArgument,
            "The calculated MD5 hash of the key did not match the hash that was provided."
        ));
    }
    Ok(Some(CustomerKey(key)))
}

/// What the request brings to open an object; `reads`: one that is there. Parts of an upload may repeat what it began with.
pub(super) fn to_open(headers: &HeaderMap, reads: bool) -> S3Result<Sealing> {
    if reads && (headers.contains_key(METHOD) || headers.contains_key(KMS_KEY)) {
        return Err(s3_error!(
            InvalidArgument,
            "{METHOD} header is not supported for this operation: what the pool sealed it opens by itself."
        ));
    }
    Ok(customer_key(headers, CUSTOMER)?.map_or(Sealing::Tenant, Sealing::Customer))
}

/// What the request brings to open the source of a copy.
pub(super) fn to_open_source(headers: &HeaderMap) -> S3Result<Sealing> {
    Ok(customer_key(headers, SOURCE_CUSTOMER)?.map_or(Sealing::Tenant, Sealing::Customer))
}

/// How a new object is to be sealed: by what the request says, else by the bucket's default. A named key has no version
/// yet.
pub(super) fn of_new(headers: &HeaderMap, access: &BucketAccess) -> S3Result<Sealing> {
    let customer = customer_key(headers, CUSTOMER)?;
    let (method, kms_key) = (text(headers, METHOD), text(headers, KMS_KEY));
    if let Some(key) = customer {
        if method.is_some() {
            return Err(s3_error!(
                InvalidArgument,
                "Server Side Encryption with Customer provided key is incompatible with the encryption method \
                 specified."
            ));
        }
        return Ok(Sealing::Customer(key));
    }
    if headers.contains_key(KMS_CONTEXT) {
        return Err(s3_error!(
            NotImplemented,
            "Encryption contexts are not implemented: leave {KMS_CONTEXT} out."
        ));
    }
    match method {
        Some("AES256") if kms_key.is_none() => Ok(Sealing::Declared),
        Some("aws:kms") => {
            let has_bucket_key = match text(headers, BUCKET_KEY) {
                Some(value) => value.eq_ignore_ascii_case("true"),
                None => default_rule(access)?.is_some_and(|rule| rule.bucket_key_enabled == Some(true)),
            };
            Ok(Sealing::Named(NamedKey { name: kms_name(kms_key)?, version: 0, has_bucket_key }))
        }
        Some("AES256") | None if kms_key.is_some() => {
            Err(s3_error!(InvalidArgument, "{KMS_KEY} is for {METHOD}: aws:kms alone."))
        }
        None => of_bucket(access),
        Some(_) => Err(s3_error!(
            InvalidArgument,
            "The encryption method specified is not supported: AES256 and aws:kms are."
        )),
    }
}

fn kms_name(key: Option<&str>) -> S3Result<String> {
    let name = key.unwrap_or(DEFAULT_KMS_KEY);
    let is_name = (1..=KMS_KEY_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    if is_name { Ok(name.to_owned()) } else { Err(custom("KMS.NotFoundException", 400, "Invalid keyId")) }
}

/// The rule of the bucket's default.
fn default_rule(access: &BucketAccess) -> S3Result<Option<ServerSideEncryptionRule>> {
    let Some(document) = &access.encryption else { return Ok(None) };
    let configuration: ServerSideEncryptionConfiguration = read_xml(document)?;
    Ok(configuration.rules.into_iter().next())
}

/// The bucket's default.
fn of_bucket(access: &BucketAccess) -> S3Result<Sealing> {
    let Some(rule) = default_rule(access)? else { return Ok(Sealing::Tenant) };
    let has_bucket_key = rule.bucket_key_enabled == Some(true);
    let default = rule.apply_server_side_encryption_by_default.as_ref();
    match default.map(|rule| (rule.sse_algorithm.as_str(), rule.kms_master_key_id.as_deref())) {
        Some((ServerSideEncryption::AWS_KMS, key)) => {
            Ok(Sealing::Named(NamedKey { name: kms_name(key)?, version: 0, has_bucket_key }))
        }
        Some(_) => Ok(Sealing::Declared),
        None => Ok(Sealing::Tenant),
    }
}

/// What an answer says of an object's encryption. `at_hand`: with the customer's key, if it was given.
pub(super) fn answer_headers(object: &ObjectHeaders, at_hand: &Sealing) -> Vec<(HeaderName, HeaderValue)> {
    let value = |text: &str| HeaderValue::from_str(text).ok();
    let all = match at_hand.of_object(object) {
        Ok(Sealing::Declared) => vec![(METHOD.to_owned(), value("AES256"))],
        Ok(Sealing::Named(NamedKey { name, has_bucket_key, .. })) => {
            let mut all = vec![(METHOD.to_owned(), value("aws:kms")), (KMS_KEY.to_owned(), value(&name))];
            if has_bucket_key {
                all.push((BUCKET_KEY.to_owned(), value("true")));
            }
            all
        }
        Ok(Sealing::Customer(key)) => vec![
            (format!("{CUSTOMER}-algorithm"), value("AES256")),
            (format!("{CUSTOMER}-key-md5"), value(&BASE64_STANDARD.encode(Md5::digest(key.0)))),
        ],
        Ok(Sealing::Tenant) | Err(_) => Vec::new(),
    };
    all.into_iter().filter_map(|(name, value)| Some((HeaderName::try_from(name).ok()?, value?))).collect()
}

fn not_found() -> S3Error {
    custom(
        "ServerSideEncryptionConfigurationNotFoundError",
        404,
        "The server side encryption configuration was not found",
    )
}

impl Operations {
    pub(super) async fn get_bucket_encryption(
        &self,
        _caller: &Caller,
        request: S3Request<GetBucketEncryptionInput>,
    ) -> S3Result<S3Response<GetBucketEncryptionOutput>> {
        let granted = granted(&request)?;
        let document = granted.bucket()?.encryption.as_ref().ok_or_else(not_found)?;
        let server_side_encryption_configuration = Some(read_xml(document)?);
        Ok(S3Response::new(GetBucketEncryptionOutput { server_side_encryption_configuration }))
    }

    pub(super) async fn put_bucket_encryption(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketEncryptionInput>,
    ) -> S3Result<S3Response<PutBucketEncryptionOutput>> {
        let configuration = request.input.server_side_encryption_configuration;
        let default = match configuration.rules.as_slice() {
            [rule] => rule.apply_server_side_encryption_by_default.as_ref(),
            _ => None,
        };
        let is_sound = default.is_some_and(|default| match default.sse_algorithm.as_str() {
            ServerSideEncryption::AES256 => default.kms_master_key_id.is_none(),
            ServerSideEncryption::AWS_KMS => kms_name(default.kms_master_key_id.as_deref()).is_ok(),
            _ => false,
        });
        if !is_sound {
            return Err(s3_error!(
                MalformedXML,
                "One rule names AES256 without a key, or aws:kms with or without one."
            ));
        }
        let documents = vec![(ENCRYPTION, Some(write_xml(&configuration)?))];
        self.objects.set_access_documents(caller, &request.input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketEncryptionOutput {}))
    }

    pub(super) async fn delete_bucket_encryption(
        &self,
        caller: &Caller,
        request: S3Request<DeleteBucketEncryptionInput>,
    ) -> S3Result<S3Response<DeleteBucketEncryptionOutput>> {
        let documents = vec![(ENCRYPTION, None)];
        self.objects.set_access_documents(caller, &request.input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(DeleteBucketEncryptionOutput {}))
    }
}
