//! The documents of a bucket that are kept as the XML that S3 defines, and answered as they were given.

use bytes::Bytes;
use s3s::dto::*;
use s3s::xml::{Deserialize, Deserializer, Serialize, Serializer};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::access::granted;
use super::cors::check_rules;
use super::errors::refused;
use super::operations::Operations;
use crate::identity::Caller;
use crate::objects::documents::{CORS, LOGGING, PAYER, WEBSITE};

pub(super) fn write_xml<T: Serialize>(value: &T) -> S3Result<Bytes> {
    let mut xml = Vec::new();
    value
        .serialize(&mut Serializer::new(&mut xml))
        .map_err(|error| s3_error!(error, InternalError, "The document could not be written."))?;
    Ok(xml.into())
}

pub(super) fn read_xml<T: for<'x> Deserialize<'x>>(xml: &[u8]) -> S3Result<T> {
    let read = T::deserialize(&mut Deserializer::new(xml));
    read.map_err(|error| s3_error!(error, InternalError, "The bucket's document is damaged."))
}

impl Operations {
    async fn document<T: for<'x> Deserialize<'x>>(
        &self,
        caller: &Caller,
        bucket: &str,
        name: &str,
    ) -> S3Result<Option<T>> {
        let document = self.objects.bucket_document(caller, bucket, name).await.map_err(refused)?;
        document.map(|xml| read_xml(&xml)).transpose()
    }

    pub(super) async fn get_bucket_cors(
        &self,
        _caller: &Caller,
        request: S3Request<GetBucketCorsInput>,
    ) -> S3Result<S3Response<GetBucketCorsOutput>> {
        let granted = granted(&request)?;
        let document = granted.bucket()?.cors.as_ref();
        let document = document
            .ok_or_else(|| s3_error!(NoSuchCORSConfiguration, "The CORS configuration does not exist"))?;
        let configuration: CORSConfiguration = read_xml(document)?;
        Ok(S3Response::new(GetBucketCorsOutput { cors_rules: Some(configuration.cors_rules) }))
    }

    pub(super) async fn put_bucket_cors(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketCorsInput>,
    ) -> S3Result<S3Response<PutBucketCorsOutput>> {
        let input = request.input;
        check_rules(&input.cors_configuration.cors_rules)?;
        let documents = vec![(CORS, Some(write_xml(&input.cors_configuration)?))];
        self.objects.set_access_documents(caller, &input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketCorsOutput {}))
    }

    pub(super) async fn delete_bucket_cors(
        &self,
        caller: &Caller,
        request: S3Request<DeleteBucketCorsInput>,
    ) -> S3Result<S3Response<DeleteBucketCorsOutput>> {
        let documents = vec![(CORS, None)];
        self.objects.set_access_documents(caller, &request.input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(DeleteBucketCorsOutput {}))
    }

    pub(super) async fn get_bucket_website(
        &self,
        _caller: &Caller,
        request: S3Request<GetBucketWebsiteInput>,
    ) -> S3Result<S3Response<GetBucketWebsiteOutput>> {
        let granted = granted(&request)?;
        let document = granted.bucket()?.website.as_ref().ok_or_else(|| {
            s3_error!(
                NoSuchWebsiteConfiguration,
                "The specified bucket does not have a website configuration"
            )
        })?;
        let WebsiteConfiguration { error_document, index_document, redirect_all_requests_to, routing_rules } =
            read_xml(document)?;
        Ok(S3Response::new(GetBucketWebsiteOutput {
            error_document,
            index_document,
            redirect_all_requests_to,
            routing_rules,
        }))
    }

    pub(super) async fn put_bucket_website(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketWebsiteInput>,
    ) -> S3Result<S3Response<PutBucketWebsiteOutput>> {
        let input = request.input;
        let website = &input.website_configuration;
        let is_alone = website.error_document.is_none() && website.routing_rules.is_none();
        let is_sound = match (&website.redirect_all_requests_to, &website.index_document) {
            (Some(_), None) => is_alone,
            (None, Some(index)) => !index.suffix.is_empty() && !index.suffix.contains('/'),
            _ => false,
        };
        if !is_sound {
            return Err(s3_error!(
                InvalidArgument,
                "A website has an IndexDocument whose suffix is not empty and has no slash, or redirects all requests."
            ));
        }
        let documents = vec![(WEBSITE, Some(write_xml(website)?))];
        self.objects.set_access_documents(caller, &input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketWebsiteOutput {}))
    }

    pub(super) async fn delete_bucket_website(
        &self,
        caller: &Caller,
        request: S3Request<DeleteBucketWebsiteInput>,
    ) -> S3Result<S3Response<DeleteBucketWebsiteOutput>> {
        let documents = vec![(WEBSITE, None)];
        self.objects.set_access_documents(caller, &request.input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(DeleteBucketWebsiteOutput {}))
    }

    pub(super) async fn get_bucket_request_payment(
        &self,
        caller: &Caller,
        request: S3Request<GetBucketRequestPaymentInput>,
    ) -> S3Result<S3Response<GetBucketRequestPaymentOutput>> {
        let kept = self.document::<RequestPaymentConfiguration>(caller, &request.input.bucket, PAYER).await?;
        let payer = kept.map_or_else(|| Payer::from_static(Payer::BUCKET_OWNER), |kept| kept.payer);
        Ok(S3Response::new(GetBucketRequestPaymentOutput { payer: Some(payer) }))
    }

    /// Where requesters pay, all but the owner must say that they know.
    pub(super) async fn put_bucket_request_payment(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketRequestPaymentInput>,
    ) -> S3Result<S3Response<PutBucketRequestPaymentOutput>> {
        let input = request.input;
        match input.request_payment_configuration.payer.as_str() {
            Payer::BUCKET_OWNER | Payer::REQUESTER => {}
            _ => return Err(s3_error!(MalformedXML, "Payer is BucketOwner or Requester.")),
        }
        let document = vec![(PAYER, Some(write_xml(&input.request_payment_configuration)?))];
        self.objects.set_access_documents(caller, &input.bucket, document).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketRequestPaymentOutput {}))
    }

    pub(super) async fn get_bucket_logging(
        &self,
        caller: &Caller,
        request: S3Request<GetBucketLoggingInput>,
    ) -> S3Result<S3Response<GetBucketLoggingOutput>> {
        let kept = self.document::<BucketLoggingStatus>(caller, &request.input.bucket, LOGGING).await?;
        let logging_enabled = kept.and_then(|kept| kept.logging_enabled);
        Ok(S3Response::new(GetBucketLoggingOutput { logging_enabled }))
    }

    /// Logs go to a bucket of the same tenant.
    pub(super) async fn put_bucket_logging(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketLoggingInput>,
    ) -> S3Result<S3Response<PutBucketLoggingOutput>> {
        let input = request.input;
        let status = &input.bucket_logging_status;
        if let Some(to) = &status.logging_enabled {
            if to.target_grants.as_ref().is_some_and(|grants| !grants.is_empty()) {
                return Err(s3_error!(
                    NotImplemented,
                    "TargetGrants are not implemented: let others read logs by the target bucket's policy."
                ));
            }
            if to.target_object_key_format.as_ref().is_some_and(|format| !is_key_format(format)) {
                return Err(s3_error!(
                    MalformedXML,
                    "TargetObjectKeyFormat is either SimplePrefix or PartitionedPrefix with a PartitionDateSource of \
                     EventTime or DeliveryTime."
                ));
            }
            self.objects.bucket(caller, &to.target_bucket).await.map_err(|_| {
                s3_error!(
                    InvalidTargetBucketForLogging,
                    "The target bucket for logging does not exist, or is not of the owner of this bucket."
                )
            })?;
        }
        let document = status.logging_enabled.as_ref().map(|_| write_xml(status)).transpose()?;
        self.objects
            .set_access_documents(caller, &input.bucket, vec![(LOGGING, document)])
            .await
            .map_err(refused)?;
        Ok(S3Response::new(PutBucketLoggingOutput {}))
    }

    pub(super) async fn get_bucket_accelerate_configuration(
        &self,
        caller: &Caller,
        request: S3Request<GetBucketAccelerateConfigurationInput>,
    ) -> S3Result<S3Response<GetBucketAccelerateConfigurationOutput>> {
        // No status: never accelerated.
        self.objects.bucket(caller, &request.input.bucket).await.map_err(refused)?;
        Ok(S3Response::new(GetBucketAccelerateConfigurationOutput::default()))
    }
}

fn is_key_format(format: &TargetObjectKeyFormat) -> bool {
    let sources = [PartitionDateSource::EVENT_TIME, PartitionDateSource::DELIVERY_TIME];
    match (&format.simple_prefix, &format.partitioned_prefix) {
        (Some(_), None) => true,
        (None, Some(by)) => by.partition_date_source.as_ref().is_none_or(|by| sources.contains(&by.as_str())),
        (Some(_), Some(_)) | (None, None) => false,
    }
}
