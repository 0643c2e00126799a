//! Forms of browsers (POST Object): read, held against their policy, and put while their file still comes.
//!
//! ```text
//! body ─ parser ─> fields ─ signature and policy ─> grant, as of a PUT with these headers ─> put_object <─ file
//! ```
//!
//! Always: a form is what its policy says, or is unsigned and the bucket lets everybody write; the file is never held.

mod parser;
mod policy;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Body as _;
use ring::hmac;
use s3s::dto::{ObjectLockLegalHoldStatus, ObjectLockMode, PutObjectInput, StorageClass, StreamingBlob};
use s3s::dto::{Tagging, Timestamp, TimestampFormat};
use s3s::{S3Error, S3Request, S3Result, s3_error};

use self::parser::{BEFORE_FILE_BYTES_MAX, FormError, Parser, Piece};
use self::policy::Policy;
use super::access::{Guard, Peer, SESSION_TOKEN, Who, acting, denied};
use super::body::{FileBounds, Inbound, Notes, PUT_BYTES_MAX};
use super::dates;
use super::documents::read_xml;
use super::errors::custom;
use super::headers::object_tagging;
use super::hosts::location;
use super::operations::Operations;

/// How long after its date a signature is good, as S3 has it: its key changes by the day.
const SIGNATURE_SECS_MAX: i64 = 7 * 24 * 60 * 60;
/// Fields that are about the form, not about the object.
const NOT_HEADERS: [&str; 5] =
    ["x-amz-signature", "x-amz-credential", "x-amz-algorithm", "x-amz-date", "x-amz-security-token"];
/// Fields that are headers of the object, beside `x-amz-*`.
const HEADERS: [&str; 7] = [
    "content-type",
    "content-encoding",
    "content-disposition",
    "content-language",
    "content-md5",
    "cache-control",
    "expires",
];

/// What forms are put with.
pub(super) struct Forms {
    pub(super) guard: Guard,
    pub(super) operations: Operations,
}

/// The head of a request that brings a form.
pub(super) struct Asked<'a> {
    pub(super) head: &'a http::request::Parts,
    /// The bucket that host or path names.
    pub(super) bucket: Option<&'a str>,
    pub(super) names_key: bool,
}

type Fields = BTreeMap<String, String>;

fn refused_form(error: FormError) -> S3Error {
    match error {
        FormError::Malformed => s3_error!(
            MalformedPOSTRequest,
            "The body of your POST request is not well-formed multipart/form-data."
        ),
        FormError::TooLarge => s3_error!(
            MaxPostPreDataLengthExceededError,
            "Your POST request fields preceding the upload file were too large: at most {BEFORE_FILE_BYTES_MAX} bytes."
        ),
        FormError::Truncated => s3_error!(IncompleteBody, "The form ended before its last boundary."),
    }
}

/// A form's bytes, piece by piece.
struct Reader {
    body: Inbound,
    parser: Parser,
    is_last: bool,
    notes: Arc<Notes>,
}

impl Reader {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<S3Result<Piece>> {
        loop {
            match self.parser.next(self.is_last) {
                Ok(Some(piece)) => return Poll::Ready(Ok(piece)),
                Ok(None) if self.is_last => return Poll::Ready(Ok(Piece::End)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(refused_form(error))),
            }
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => self.is_last = true,
                Some(Ok(frame)) => self.parser.push(frame.data_ref().map_or(&[][..], |data| data)),
                Some(Err(_)) => {
                    let fault = self.notes.fault().map(|fault| fault.error());
                    return Poll::Ready(Err(fault.unwrap_or_else(|| refused_form(FormError::Truncated))));
                }
            }
        }
    }

    /// The fields before the file, and what the browser calls it.
    async fn fields(&mut self) -> S3Result<(Fields, Option<String>)> {
        let mut fields = Fields::new();
        loop {
            match std::future::poll_fn(|cx| self.poll_piece(cx)).await? {
                Piece::Field { name, value } => {
                    fields.insert(name, value);
                }
                Piece::File { file_name } => return Ok((fields, file_name)),
                Piece::Data(_) | Piece::End => {
                    return Err(s3_error!(
                        InvalidArgument,
                        "POST requires exactly one file upload per request."
                    ));
                }
            }
        }
    }
}

/// The file.
impl Stream for Reader {
    type Item = S3Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match std::task::ready!(self.poll_piece(cx)) {
            Ok(Piece::Data(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

impl Forms {
    pub(super) async fn post(
        &self,
        asked: Asked<'_>,
        inbound: Inbound,
        notes: &Arc<Notes>,
    ) -> S3Result<Response<s3s::Body>> {
        let _ = notes.operation.set("PostObject".into());
        let bucket = asked.bucket.filter(|_| !asked.names_key).ok_or_else(|| {
            s3_error!(MethodNotAllowed, "The specified method is not allowed against this resource.")
        })?;
        if !s3s::path::check_bucket_name(bucket) {
            return Err(s3_error!(InvalidBucketName, "The specified bucket is not valid."));
        }
        let content_type = asked.head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let parser = content_type.and_then(Parser::new).ok_or_else(|| refused_form(FormError::Malformed))?;
        let mut reader = Reader { body: inbound, parser, is_last: false, notes: Arc::clone(notes) };
        let (mut fields, file_name) = reader.fields().await?;
        let key = fields.get_mut("key").ok_or_else(|| missing("key"))?;
        *key = key.replace("${filename}", &file_name.unwrap_or_default());
        let key = key.clone();
        if key.is_empty() {
            return Err(s3_error!(
                UserKeyMustBeSpecified,
                "The bucket POST must contain a key that is not empty."
            ));
        }
        let token = fields.get("x-amz-security-token").cloned();
        let (who, bounds) = SESSION_TOKEN.scope(token, self.who(&fields, bucket)).await?;
        let headers = object_headers(&fields)?;

        let peer = asked.head.extensions.get::<Peer>().copied();
        let origin = (peer, Some(Arc::clone(notes)));
        let uri = &asked.head.uri;
        let granted = self.guard.grant("PutObject", who, Some(bucket), Some(&key), uri, &headers, origin);
        let granted = granted.await?;
        let caller = acting(&granted).ok_or_else(denied)?;
        let mut input = put_input(bucket, &key, &headers)?;
        input.body = Some(StreamingBlob::wrap(reader));
        let mut extensions = http::Extensions::new();
        extensions.insert(Arc::new(granted));
        extensions.insert(bounds);
        extensions.insert(Arc::clone(notes));
        extensions.insert(caller.clone());
        let request = S3Request {
            input,
            method: Method::POST,
            uri: uri.clone(),
            headers,
            extensions,
            credentials: None,
            region: None,
            service: None,
            trailing_headers: None,
        };
        let put = self.operations.put_object(&caller, request).await?.output;
        let etag = put.e_tag.map(|etag| format!("\"{}\"", etag.value())).unwrap_or_default();
        let url = location(&asked.head.headers, &asked.head.uri, &asked.head.extensions, bucket, &key);
        let place = Place { url, bucket, key: &key, etag: &etag };
        answer(&fields, &place, put.version_id.as_deref())
    }

    /// Who sends the form, and how large its file may be.
    async fn who(&self, fields: &Fields, bucket: &str) -> S3Result<(Who, FileBounds)> {
        let signing = [
            "policy",
            "signature",
            "awsaccesskeyid",
            "x-amz-signature",
            "x-amz-credential",
            "x-amz-algorithm",
        ];
        if !signing.iter().any(|name| fields.contains_key(*name)) {
            return Ok((self.guard.who(None).await?, FileBounds(0..=PUT_BYTES_MAX)));
        }
        let field = |name: &'static str| {
            fields
                .get(name)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| missing(name))
        };
        let signed = field("policy")?;
        let policy = Policy::parse(signed)?;
        let now = self.guard.objects.time();
        let access_key = if fields.contains_key("awsaccesskeyid") || fields.contains_key("signature") {
            let (access_key, signature) = (field("awsaccesskeyid")?, field("signature")?);
            let secret = self.guard.secret(access_key).await?;
            let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.expose().as_bytes());
            verify(&key, signed, BASE64_STANDARD.decode(signature).ok())?;
            access_key
        } else {
            let (algorithm, credential) = (field("x-amz-algorithm")?, field("x-amz-credential")?);
            let (date, signature) = (field("x-amz-date")?, field("x-amz-signature")?);
            if algorithm != "AWS4-HMAC-SHA256" {
                return Err(s3_error!(NotImplemented, "x-amz-algorithm must be AWS4-HMAC-SHA256."));
            }
            for (name, value) in
                [("x-amz-algorithm", algorithm), ("x-amz-credential", credential), ("x-amz-date", date)]
            {
                if policy.value_of(name) != Some(value) {
                    return Err(s3_error!(
                        InvalidPolicyDocument,
                        "The policy does not say the form's {name}."
                    ));
                }
            }
            let scope: Vec<_> = credential.split('/').collect();
            let [access_key, day, region, "s3", "aws4_request"] = scope[..] else {
                return Err(s3_error!(
                    InvalidArgument,
                    "x-amz-credential must be KEY/YYYYMMDD/REGION/s3/aws4_request."
                ));
            };
            check_date(date, day, i64::try_from(now.0 / 1000).unwrap_or(i64::MAX))?;
            let secret = self.guard.secret(access_key).await?;
            let mut key = format!("AWS4{}", secret.expose()).into_bytes();
            for part in [day, region, "s3", "aws4_request"] {
                let with = hmac::Key::new(hmac::HMAC_SHA256, &key);
                key = hmac::sign(&with, part.as_bytes()).as_ref().to_vec();
            }
            verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed, hex::decode(signature).ok())?;
            access_key
        };
        policy.check(fields, bucket, now.0 / 1000)?;
        let bounds = policy.length().unwrap_or(0..=PUT_BYTES_MAX);
        Ok((self.guard.who(Some(access_key)).await?, FileBounds(bounds)))
    }
}

fn missing(name: &str) -> S3Error {
    s3_error!(
        InvalidArgument,
        "Bucket POST must contain a field named '{name}'. If it is specified, please check the order of the fields."
    )
}

fn verify(key: &hmac::Key, signed: &str, signature: Option<Vec<u8>>) -> S3Result<()> {
    let is_good = signature.is_some_and(|tag| hmac::verify(key, signed.as_bytes(), &tag).is_ok());
    if is_good { Ok(()) } else { Err(s3_error!(SignatureDoesNotMatch)) }
}

/// A form may be sent long after it was signed: its policy says until when.
fn check_date(date: &str, day: &str, now_secs: i64) -> S3Result<()> {
    let signed_at = dates::basic_seconds(date).filter(|_| date.starts_with(day));
    let signed_at = signed_at.ok_or_else(|| {
        s3_error!(InvalidArgument, "x-amz-date must be YYYYMMDDTHHMMSSZ, of the credential's day.")
    })?;
    if !(-dates::SKEW_SECS_MAX..=SIGNATURE_SECS_MAX).contains(&(now_secs - signed_at)) {
        return Err(s3_error!(
            AccessDenied,
            "Invalid according to Policy: the form was signed at another time."
        ));
    }
    Ok(())
}

/// The fields as the headers of a PUT that makes the same object.
fn object_headers(fields: &Fields) -> S3Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let (name, value) = match name.as_str() {
            "acl" => ("x-amz-acl", value.clone()),
            "tagging" => {
                let tags: Tagging = read_xml(value.as_bytes())
                    .map_err(|_| s3_error!(MalformedXML, "The field tagging is no Tagging."))?;
                ("x-amz-tagging", object_tagging(tags.tag_set)?)
            }
            name if HEADERS.contains(&name) => (name, value.clone()),
            name if name.starts_with("x-amz-") && !NOT_HEADERS.contains(&name) => (name, value.clone()),
            _ => continue,
        };
        let refused =
            || s3_error!(InvalidArgument, "The field {name} is no header, or has control characters.");
        let header = HeaderName::try_from(name).map_err(|_| refused())?;
        headers.insert(header, HeaderValue::try_from(value).map_err(|_| refused())?);
    }
    Ok(headers)
}

/// What a PUT with these headers would ask for.
fn put_input(bucket: &str, key: &str, headers: &HeaderMap) -> S3Result<PutObjectInput> {
    let text = |name: &str| {
        let value = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        value.filter(|value| !value.is_empty())
    };
    let time = |name: &str, format| {
        let parse = |text: String| Timestamp::parse(format, &text);
        let parsed = text(name).map(parse).transpose();
        parsed.map_err(|error| s3_error!(error, InvalidArgument, "The field {name} is no time."))
    };
    let metadata = headers.keys().filter_map(|name| {
        let meta = name.as_str().strip_prefix("x-amz-meta-")?;
        Some((meta.to_owned(), text(name.as_str()).unwrap_or_default()))
    });
    Ok(PutObjectInput {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        cache_control: text("cache-control"),
        content_disposition: text("content-disposition"),
        content_encoding: text("content-encoding"),
        content_language: text("content-language"),
        content_type: text("content-type"),
        expires: time("expires", TimestampFormat::HttpDate)?,
        metadata: Some(metadata.collect()),
        object_lock_legal_hold_status: text("x-amz-object-lock-legal-hold")
            .map(ObjectLockLegalHoldStatus::from),
        object_lock_mode: text("x-amz-object-lock-mode").map(ObjectLockMode::from),
        object_lock_retain_until_date: time(
            "x-amz-object-lock-retain-until-date",
            TimestampFormat::DateTime,
        )?,
        storage_class: text("x-amz-storage-class").map(StorageClass::from),
        tagging: text("x-amz-tagging"),
        website_redirect_location: text("x-amz-website-redirect-location"),
        ..PutObjectInput::default()
    })
}

/// Where a form's file is now.
struct Place<'a> {
    url: String,
    bucket: &'a str,
    key: &'a str,
    /// With its quotes.
    etag: &'a str,
}

/// What the browser is told: to go elsewhere, or what was made.
fn answer(fields: &Fields, place: &Place<'_>, version: Option<&str>) -> S3Result<Response<s3s::Body>> {
    let unwritten = |_| custom("InternalError", 500, "The answer could not be written.");
    let mut response = Response::new(s3s::Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::ETAG, HeaderValue::try_from(place.etag).map_err(unwritten)?);
    if let Some(version) = version.and_then(|version| HeaderValue::try_from(version).ok()) {
        headers.insert("x-amz-version-id", version);
    }
    let redirect = fields.get("success_action_redirect").or_else(|| fields.get("redirect"));
    if let Some(location) = redirect.and_then(|target| redirection(target, place)) {
        headers.insert(header::LOCATION, location);
        *response.status_mut() = StatusCode::SEE_OTHER;
        return Ok(response);
    }
    headers.insert(header::LOCATION, HeaderValue::try_from(&place.url).map_err(unwritten)?);
    *response.status_mut() = match fields.get("success_action_status").map(String::as_str) {
        Some("200") => StatusCode::OK,
        Some("201") => StatusCode::CREATED,
        _ => StatusCode::NO_CONTENT,
    };
    if response.status() == StatusCode::CREATED {
        let escape = super::failures::escape;
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<PostResponse><Location>{}</Location><Bucket>{}</Bucket>\
             <Key>{}</Key><ETag>{}</ETag></PostResponse>",
            escape(&place.url),
            escape(place.bucket),
            escape(place.key),
            escape(place.etag)
        );
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        *response.body_mut() = s3s::Body::from(xml);
    }
    Ok(response)
}

/// `None`: the form's field is no address to go to, which is as if it were not there.
fn redirection(target: &str, place: &Place<'_>) -> Option<HeaderValue> {
    let is_url =
        ["http://", "https://"].iter().any(|start| target.len() > start.len() && target.starts_with(start));
    let is_plain = target.bytes().all(|byte| byte.is_ascii_graphic());
    let (target, fragment) = target.split_once('#').map_or((target, None), |(url, rest)| (url, Some(rest)));
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("bucket", place.bucket)
        .append_pair("key", place.key)
        .append_pair("etag", place.etag)
        .finish();
    let joint = if target.contains('?') { '&' } else { '?' };
    let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
    let location = format!("{target}{joint}{query}{fragment}");
    HeaderValue::try_from(location).ok().filter(|_| is_url && is_plain)
}
