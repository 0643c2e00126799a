//! One request: its id, its limits, and what it is refused for before and after `s3s`.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use makai_ops::metrics as names;
use makai_raft::facts::Timestamp;
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use s3s::auth::{S3Auth, SecretKey};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::dto::Range;
use s3s::host::{S3Host, VirtualHost};
use s3s::route::S3Route;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Error, S3Request, S3Response, S3Result, StdError, s3_error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::access::{Guard, Peer, SESSION_TOKEN};
use super::access_log::{self, AccessLogs, Line};
use super::body::{Digests, Inbound, Notes, payload_mismatch};
use super::checksums::Promise;
use super::chunked::Framing;
use super::cors;
use super::dates;
use super::errors::{custom, default_message};
use super::forms::{self, Forms};
use super::headers::within_numbers;
use super::operations::Operations;
use super::query;
use super::subresources;
use super::website::{self, Pages, Visit, Websites};
use crate::audit::{self, Asker};
use crate::identity::Identity;
use crate::objects::Objects;
use crate::objects::documents::BucketAccess;
use crate::outbound::Outbound;
use crate::seats::Busy;

/// Bytes of an XML body: 10,000 parts with their checksums, or 1,000 keys, fit.
const XML_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a presigned URL may be good for, as S3 has it.
const PRESIGNED_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;
/// How long a client may take to send the next bytes of a body.
const BODY_STALL_MAX: Duration = Duration::from_secs(60);
/// What is read of the body of a refused request while its answer is sent: a connection closed with bytes unread would
/// be reset, and the answer lost.
const LEFTOVER_BYTES_MAX: u64 = 1024 * 1024;
const LEFTOVER_TIME_MAX: Duration = Duration::from_secs(5);

const SERVER: HeaderValue = HeaderValue::from_static("MAKAI");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
/// Names the gateway that answered.
const HOST_ID: HeaderName = HeaderName::from_static("x-amz-id-2");

/// What an operator chooses about the door.
#[derive(Debug, Clone)]
pub struct S3DoorConfig {
    /// The region that the door says it is in. Signatures of any region are accepted.
    pub region: String,
    /// Domains below which the first label names a bucket (`bucket.s3.example.com`). Path-style always works.
    pub domains: Vec<String>,
    /// Requests under way at once; more are told to slow down.
    pub requests_max: usize,
    /// Connections at once, over all listeners; more wait unaccepted.
    pub connections_max: usize,
    /// Domains below which the first label names a bucket whose website is served.
    pub website_domains: Vec<String>,
    /// How long lines of access logs wait before they are delivered.
    pub log_interval: Duration,
    /// What webhooks may be.
    pub outbound: Outbound,
}

impl Default for S3DoorConfig {
    fn default() -> Self {
        Self {
            region: "us-east-1".into(),
            domains: Vec::new(),
            requests_max: 1024,
            connections_max: 4096,
            website_domains: Vec::new(),
            log_interval: Duration::from_secs(300),
            outbound: Outbound::default(),
        }
    }
}

/// Why a door cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum S3DoorError {
    #[error("domain {0:?} is not a host name without port: write e.g. \"s3.example.com\"")]
    Domain(String),
    #[error(
        "region {0:?} is not 1 to 64 of lower-case letters, digits and hyphens: write e.g. \"us-east-1\""
    )]
    Region(String),
    #[error("the system's random number generator failed")]
    Random,
}

/// The S3 door. Cheap to clone.
#[derive(Clone)]
pub struct S3Door {
    inner: Arc<Inner>,
}

struct Inner {
    service: S3Service,
    guard: Guard,
    objects: Objects,
    hosts: Hosts,
    websites: Websites,
    logs: AccessLogs,
    forms: Forms,
    requests: Arc<Semaphore>,
    connections_max: usize,
    id_seed: u64,
    id_count: AtomicU64,
    host_id: String,
}

impl fmt::Debug for S3Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Door").finish_non_exhaustive()
    }
}

impl S3Door {
    /// # Errors
    /// The configuration is wrong: see [`S3DoorError`].
    pub fn new(objects: Objects, identity: Identity, config: S3DoorConfig) -> Result<Self, S3DoorError> {
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let mut domains = config.domains.iter().chain(&config.website_domains);
        if let Some(domain) = domains.find(|domain| !domain.split('.').all(is_label)) {
            return Err(S3DoorError::Domain(domain.clone()));
        }
        if !is_label(&config.region) || config.region.len() > 64 {
            return Err(S3DoorError::Region(config.region));
        }
        let mut seed = [0; 8];
        SystemRandom::new().fill(&mut seed).map_err(|_| S3DoorError::Random)?;

        let requests = Arc::new(Semaphore::new(config.requests_max.clamp(1, Semaphore::MAX_PERMITS)));
        let hosts = Hosts { suffixes: config.domains.iter().map(|domain| format!(".{domain}")).collect() };
        let all_hosts = hosts.clone();
        let websites = Websites::new(&config.website_domains);
        let logs = AccessLogs::new(objects.clone(), config.region.clone(), config.log_interval);
        let operations =
            Operations { objects: objects.clone(), region: config.region, outbound: config.outbound };
        let forms_operations = operations.clone();
        let guard = || Guard { identity: identity.clone(), objects: objects.clone() };

        // What the signature has been verified for, with the header that hides it from the parser taken away.
        let mut verified = S3ServiceBuilder::new(operations.clone());
        verified.set_config(limits());
        verified.set_host(hosts.clone());
        verified.set_auth(Auth(guard()));
        verified.set_access(guard());

        let mut service = S3ServiceBuilder::new(operations);
        service.set_config(limits());
        service.set_host(hosts);
        service.set_auth(Auth(guard()));
        service.set_access(guard());
        service.set_route(Beside { service: verified.build(), guard: guard() });

        let forms = Forms { guard: guard(), operations: forms_operations };

        let inner = Inner {
            service: service.build(),
            guard: guard(),
            objects,
            hosts: all_hosts,
            websites,
            logs,
            forms,
            requests,
            connections_max: config.connections_max.clamp(1, Semaphore::MAX_PERMITS),
            id_seed: u64::from_be_bytes(seed),
            id_count: AtomicU64::new(0),
            host_id: hex::encode(digest::digest(&digest::SHA256, &seed)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Connections that may be open at once.
    #[must_use]
    pub fn connections_max(&self) -> usize {
        self.inner.connections_max
    }

    /// Delivers access logs until `stop`, and then what is left of them.
    pub(super) async fn deliver_logs(&self, stop: CancellationToken) {
        self.inner.logs.run(stop).await;
    }

    /// Serves one request.
    #[expect(clippy::disallowed_methods, reason = "measures the request; decides nothing that is agreed")]
    ///
    /// `busy`: kept until its answer has gone.
    pub(super) async fn handle(
        &self,
        request: Request<Incoming>,
        busy: Busy,
    ) -> Result<Response<Answer>, Infallible> {
        let id = self.next_id();
        let begun = Instant::now();
        // `100 Continue` is not sent for a body of no bytes, and botocore then garbles the answer to the next request
        // on this connection: it is told to make a new one.
        let is_botocore_trap = request.headers().contains_key(header::EXPECT)
            && request.version() < Version::HTTP_2
            && request.body().is_end_stream();
        let permit = Arc::clone(&self.inner.requests).try_acquire_owned().ok();
        let method = request.method().clone();
        let site =
            host_of(request.headers(), request.uri()).and_then(|host| self.inner.websites.bucket(host));
        let bucket = site.clone().or_else(|| self.inner.hosts.bucket(request.headers(), request.uri()));
        let about = About::of(&request);
        let origin = request.headers().contains_key(header::ORIGIN).then(|| request.headers().clone());
        let resource = request.uri().path().to_owned();
        let notes = Arc::new(Notes::from_peer(request.extensions().get::<Peer>()));
        let is_query = query::is_match(&method, request.uri(), request.headers());
        let outcome = match &permit {
            Some(_) if let Some(site) = &site => self.visit(site, request, &notes).await,
            Some(_) if method == Method::OPTIONS => {
                cors::preflight(&self.inner.objects, bucket.as_deref(), request.headers()).await
            }
            Some(_) => {
                let asker = Arc::clone(&notes) as Arc<dyn Asker>;
                audit::scope(asker, self.call(request, &notes)).await
            }
            None => {
                Err(s3_error!(SlowDown, "Please reduce your request rate: too many requests are under way."))
            }
        };
        let response = match outcome {
            Ok(response) => response,
            Err(error) => error.to_http_response().unwrap_or_else(|_| internal_error()),
        };
        let (mut head, body) = response.into_parts();
        let mut code = head.status.as_str().to_owned();
        let body = if head.status.is_client_error() || head.status.is_server_error() {
            if let Some(leftover) = notes.take_leftover() {
                tokio::spawn(drain(leftover));
            }
            let body = if site.is_some() && is_page(&head) {
                body
            } else {
                let asked = Asked {
                    resource: &resource,
                    bucket: bucket.as_deref(),
                    id: &id,
                    host: &self.inner.host_id,
                };
                reword(&mut head, &body, &notes, &asked)
            };
            let body = if is_query { query::reword(&mut head.headers, &body) } else { body };
            code = error_code(&body).unwrap_or(code);
            body
        } else if head.status == StatusCode::NOT_MODIFIED {
            head.headers.remove(header::CONTENT_TYPE);
            s3s::Body::empty()
        } else {
            body
        };
        if head.status.is_success() {
            head.headers.extend(notes.take_headers());
        }
        let logged = bucket.as_deref().and_then(|bucket| {
            let access = self.inner.objects.last_access(bucket).filter(|access| access.logging.is_some())?;
            let line =
                about.line(self.inner.objects.time(), &notes, &id, bucket, site.is_some(), &head, &code);
            Some(Logged { logs: self.inner.logs.clone(), access, line, turn_around: begun.elapsed() })
        });
        if let (Some(asked), Some(bucket)) = (&origin, &bucket)
            && method != Method::OPTIONS
        {
            head.headers.extend(cors::on_answer(&self.inner.objects, bucket, method.as_str(), asked).await);
        }
        // `s3s` answers HEAD with 200 whatever the range.
        if head.status == StatusCode::OK && head.headers.contains_key(header::CONTENT_RANGE) {
            head.status = StatusCode::PARTIAL_CONTENT;
        }
        if is_botocore_trap {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        head.headers.insert(header::SERVER, SERVER);
        if let Ok(value) = HeaderValue::try_from(&id) {
            head.headers.insert(REQUEST_ID, value);
        }
        if let Ok(value) = HeaderValue::try_from(&self.inner.host_id) {
            head.headers.insert(HOST_ID, value);
        }
        let operation = notes.operation.get().cloned().unwrap_or_else(|| "none".into());
        tracing::debug!(request = id, operation, code, "answered");
        metrics::counter!(names::GATEWAY_REQUESTS, "door" => "s3", "operation" => operation.clone(), "code" => code)
            .increment(1);
        Ok(Response::from_parts(
            head,
            Answer { body, begun, operation, sent: 0, logged, _permit: permit, _busy: busy },
        ))
    }

    /// Serves a visit to a bucket's website.
    async fn visit(
        &self,
        bucket: &str,
        request: Request<Incoming>,
        notes: &Arc<Notes>,
    ) -> S3Result<Response<s3s::Body>> {
        let peer = request.extensions().get::<Peer>().copied();
        let host = host_of(request.headers(), request.uri()).unwrap_or_default().to_owned();
        let Some(path) = website::decode(request.uri().path().trim_start_matches('/')) else {
            return Ok(website::page(StatusCode::BAD_REQUEST, "InvalidURI"));
        };
        let visit = Visit { host: &host, is_tls: peer.is_some_and(|peer| peer.is_tls), path: &path };
        let pages = Pages { service: &self.inner.service, peer, notes };
        let (method, headers) = (request.method(), request.headers());
        match website::serve(&self.inner.objects, &pages, bucket, method, &visit, headers).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let status = error.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                Ok(website::page(status, error.code().as_str()))
            }
        }
    }

    async fn call(&self, request: Request<Incoming>, notes: &Arc<Notes>) -> S3Result<Response<s3s::Body>> {
        let (mut head, body) = request.into_parts();
        refuse_early(&mut head, self.inner.objects.time())?;
        if query::is_match(&head.method, &head.uri, &head.headers) {
            let call = query::call(&self.inner.guard, &head, body, notes);
            return SESSION_TOKEN.scope(session_token(&head), call).await;
        }
        if is_form(&head) {
            let waits_for_continue = head.headers.contains_key(header::EXPECT);
            let inbound =
                Inbound::new(body, Arc::clone(notes), BODY_STALL_MAX, None, None, !waits_for_continue);
            let bucket = self.inner.hosts.bucket(&head.headers, &head.uri);
            let names_key = self.inner.hosts.names_key(&head.headers, &head.uri);
            let asked = forms::Asked { head: &head, bucket: bucket.as_deref(), names_key };
            return self.inner.forms.post(asked, inbound, notes).await;
        }
        if self.inner.hosts.bucket(&head.headers, &head.uri).is_some()
            && let Some(error) = subresources::misplaced(
                &head.method,
                head.uri.query().unwrap_or_default(),
                self.inner.hosts.names_key(&head.headers, &head.uri),
            )
        {
            return Err(error);
        }
        let body = if body.is_end_stream() {
            s3s::Body::empty()
        } else {
            let framing = framing(&head.headers);
            // Sent without a length of its own, as the AWS SDK for C++ does: `s3s` puts the decoded one in place.
            if framing.is_some()
                && !head.headers.contains_key(header::CONTENT_LENGTH)
                && let Some(decoded) = head.headers.get("x-amz-decoded-content-length").cloned()
            {
                head.headers.insert(header::CONTENT_LENGTH, decoded);
            }
            // What nobody signs is not decoded either: the frames would be kept as the object's bytes.
            if framing.is_some() && !head.headers.contains_key(header::AUTHORIZATION) {
                return Err(s3_error!(
                    InvalidRequest,
                    "Only signed requests may send their body in chunks (aws-chunked): send it as it is."
                ));
            }
            let digests = if framing.is_none() { digests(&head)? } else { None };
            let waits_for_continue = head.headers.contains_key(header::EXPECT);
            let inbound =
                Inbound::new(body, Arc::clone(notes), BODY_STALL_MAX, framing, digests, !waits_for_continue);
            let has_length = head.headers.contains_key(header::CONTENT_LENGTH);
            let is_versioning = head.method == Method::PUT && has_parameter(&head.uri, "versioning");
            if !has_length || is_versioning {
                let body = whole(inbound, notes, if has_length { too_big } else { no_length }).await?;
                if is_versioning {
                    check_versioning(&body)?;
                }
                // Sent in HTTP's chunks, as from a pipe: `s3s` wants to know a length.
                if !has_length {
                    head.headers.insert(header::CONTENT_LENGTH, body.len().into());
                }
                s3s::Body::from(body)
            } else {
                s3s::Body::http_body(inbound)
            }
        };
        head.extensions.insert(Arc::clone(notes));
        let sends_hash = head.headers.get("x-amz-content-sha256").is_some_and(|value| value.len() == 64);
        let length =
            head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let length: u64 = length.unwrap_or(0);
        let token = session_token(&head);
        let asks_subresource = head.uri.query().is_some();
        let call = self.inner.service.call(Request::from_parts(head, body));
        let mut response = SESSION_TOKEN.scope(token, call).await.map_err(|error| {
            tracing::error!(error = %StdError::from(error), "an answer could not be written as XML");
            s3_error!(InternalError, "We encountered an internal error. Please report the request id.")
        })?;
        // S3 gives the ETag without its quotes here, and here alone.
        if notes.operation.get().is_some_and(|operation| operation == "GetObjectAttributes")
            && response.status().is_success()
            && let Some(said) = response.body().bytes()
        {
            let said = String::from_utf8_lossy(&said).into_owned();
            let bare = said.replace("<ETag>&quot;", "<ETag>").replace("&quot;</ETag>", "</ETag>");
            response.headers_mut().remove(header::CONTENT_LENGTH);
            *response.body_mut() = s3s::Body::from(bare);
        }
        // What is not known of a resource itself is a method that it does not have.
        if response.status() == StatusCode::NOT_IMPLEMENTED
            && !asks_subresource
            && response.body().bytes().is_some_and(|said| contains(&said, b"<Message>Unknown operation<"))
        {
            return Err(s3_error!(
                MethodNotAllowed,
                "The specified method is not allowed against this resource."
            ));
        }
        // `s3s` tells a body that it could not read to its end as an internal error without a message.
        if response.status() == StatusCode::INTERNAL_SERVER_ERROR
            && let Some(said) = response.body().bytes()
            && !contains(&said, b"<Message>")
        {
            match notes.fault() {
                Some(fault) => return Err(fault.error()),
                None if length > XML_BYTES_MAX as u64 => return Err(too_big()),
                None if sends_hash => return Err(payload_mismatch()),
                None => {}
            }
        }
        Ok(response)
    }

    /// 16 hex digits, of which no two in one process are the same.
    fn next_id(&self) -> String {
        let count = self.inner.id_count.fetch_add(1, Ordering::Relaxed);
        // A bijection (the finalizer of SplitMix64), so that ids do not look like a count.
        let mut id = self.inner.id_seed.wrapping_add(count.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        id = (id ^ (id >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        id = (id ^ (id >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        format!("{:016X}", id ^ (id >> 31))
    }
}

fn limits() -> Arc<StaticConfigProvider> {
    let mut config = S3Config::default();
    config.xml_max_body_size = XML_BYTES_MAX;
    config.presigned_url_max_skew_time_secs =
        dates::SKEW_SECS_MAX.unsigned_abs().try_into().unwrap_or(u32::MAX);
    Arc::new(StaticConfigProvider::new(Arc::new(config)))
}

/// The token of a temporary key, in the headers or the query.
fn session_token(head: &http::request::Parts) -> Option<String> {
    if let Some(token) = head.headers.get("x-amz-security-token") {
        return token.to_str().ok().map(str::to_owned);
    }
    let query = form_urlencoded::parse(head.uri.query()?.as_bytes());
    query.into_iter().find(|(name, _)| name == "X-Amz-Security-Token").map(|(_, token)| token.into_owned())
}

/// What needs neither body nor identity to be refused.
fn refuse_early(head: &mut http::request::Parts, now: Timestamp) -> S3Result<()> {
    let asked = head.uri.query().unwrap_or_default();
    if asked.split('&').any(|pair| pair == "X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256") {
        return Err(asymmetric());
    }
    if let Some(authorization) = head.headers.get(header::AUTHORIZATION) {
        let authorization = authorization.to_str().map(str::to_owned);
        let authorization = authorization.map_err(|_| s3_error!(AccessDenied, "Access Denied"))?;
        check_authorization(&authorization, &mut head.headers, now)?;
        if authorization.starts_with("AWS ") {
            end_bucket_with_slash(&mut head.uri);
        }
    }
    let query = head.uri.query().unwrap_or_default();
    let Some(expires) = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Expires=")) else {
        return Ok(());
    };
    match expires.parse::<i64>() {
        Ok(seconds) if seconds <= 0 => return Err(s3_error!(AccessDenied, "Request has expired")),
        Ok(seconds) if seconds.unsigned_abs() <= PRESIGNED_SECONDS_MAX => {}
        _ => {
            return Err(custom(
                "AuthorizationQueryParametersError",
                403,
                format!("X-Amz-Expires must be a number of seconds, at most {PRESIGNED_SECONDS_MAX}."),
            ));
        }
    }
    Ok(())
}

/// Clients of SigV2 sign `/bucket/` where they ask for `/bucket`.
fn end_bucket_with_slash(uri: &mut Uri) {
    let path = uri.path();
    if path.len() > 1 && !path[1..].contains('/') {
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        if let Ok(ended) = format!("{path}/{query}").parse() {
            *uri = ended;
        }
    }
}

fn asymmetric() -> S3Error {
    s3_error!(
        NotImplemented,
        "SigV4A (AWS4-ECDSA-P256-SHA256) is not implemented: sign with AWS4-HMAC-SHA256."
    )
}

/// Whether the header `Authorization` has a form that can be verified.
fn check_authorization(authorization: &str, headers: &mut HeaderMap, now: Timestamp) -> S3Result<()> {
    let (scheme, rest) = authorization.trim().split_once(' ').unwrap_or((authorization.trim(), ""));
    match scheme {
        "" => Err(s3_error!(AccessDenied, "Access Denied")),
        "AWS4-ECDSA-P256-SHA256" => Err(asymmetric()),
        "AWS4-HMAC-SHA256" => {
            let has = |name: &str| rest.split(',').any(|part| part.trim().split('=').next() == Some(name));
            let needed = ["Credential", "SignedHeaders", "Signature"];
            if let Some(missing) = needed.into_iter().find(|name| !has(name)) {
                return Err(s3_error!(
                    AuthorizationHeaderMalformed,
                    "The authorization header is malformed; the authorization header requires {missing}."
                ));
            }
            dates::complete_v4(headers)
        }
        "AWS" if rest.contains(':') => {
            dates::check_v2(headers, i64::try_from(now.0 / 1000).unwrap_or(i64::MAX))
        }
        "AWS" => Err(s3_error!(
            InvalidArgument,
            "AWS authorization header is invalid. Expected AwsAccessKeyId:signature"
        )),
        _ => Err(s3_error!(InvalidArgument, "Unsupported Authorization Type")),
    }
}

/// Whether the body is a browser's form.
fn is_form(head: &http::request::Parts) -> bool {
    let content_type = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let form = b"multipart/form-data";
    head.method == Method::POST
        && content_type.get(..form.len()).is_some_and(|start| start.eq_ignore_ascii_case(form))
}

fn framing(headers: &HeaderMap) -> Option<Framing> {
    match headers.get("x-amz-content-sha256")?.as_bytes() {
        b"STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Some(Framing::new(false)),
        b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD" | b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => {
            Some(Framing::new(true))
        }
        _ => None,
    }
}

/// What to check of an XML body. Objects and parts are checked where they are stored.
fn digests(head: &http::request::Parts) -> S3Result<Option<Digests>> {
    let query = head.uri.query().unwrap_or_default();
    let names = || query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
    let is_xml = match head.method {
        Method::POST => true,
        Method::PUT => names().any(|name| subresources::WITH_XML.contains(&name)),
        _ => false,
    };
    if !is_xml {
        return Ok(None);
    }
    let mut headers = head.headers.clone();
    headers.remove("x-amz-trailer");
    // There, the checksum headers are about the object.
    if names().any(|name| name == "uploadId" || name == "uploads") {
        headers.retain_content_md5();
    }
    Ok(Some(Digests::new(Promise::read(&headers, None)?)))
}

trait RetainContentMd5 {
    fn retain_content_md5(&mut self);
}

impl RetainContentMd5 for HeaderMap {
    fn retain_content_md5(&mut self) {
        let md5 = self.remove("content-md5");
        self.clear();
        if let Some(md5) = md5 {
            self.insert("content-md5", md5);
        }
    }
}

fn has_parameter(uri: &Uri, wanted: &str) -> bool {
    let query = uri.query().unwrap_or_default();
    query.split('&').any(|pair| pair.split('=').next() == Some(wanted))
}

/// Reads a body to its end.
async fn whole(inbound: Inbound, notes: &Notes, too_long: fn() -> S3Error) -> S3Result<Bytes> {
    let read = Limited::new(inbound, XML_BYTES_MAX).collect().await;
    read.map(http_body_util::Collected::to_bytes)
        .map_err(|_| notes.fault().map_or_else(too_long, |fault| fault.error()))
}

/// `s3s` would leave out MinIO's exceptions from a versioning configuration without a word.
fn check_versioning(body: &[u8]) -> S3Result<()> {
    if ["ExcludeFolders", "ExcludedPrefixes"].iter().any(|name| contains(body, name.as_bytes())) {
        return Err(s3_error!(
            NotImplemented,
            "Versioning without some folders or prefixes is not implemented: version the whole bucket."
        ));
    }
    Ok(())
}

fn no_length() -> S3Error {
    s3_error!(
        MissingContentLength,
        "You must provide the Content-Length HTTP header: without it, a body may have {XML_BYTES_MAX} bytes."
    )
}

fn too_big() -> S3Error {
    s3_error!(MaxMessageLengthExceeded, "Your request was too big: its XML may have {XML_BYTES_MAX} bytes.")
}

/// Reads what a client is already sending, within bounds.
async fn drain(mut body: Incoming) {
    let mut read = 0;
    let all = async {
        while read < LEFTOVER_BYTES_MAX
            && let Some(Ok(frame)) = body.frame().await
        {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
    };
    // A client that takes longer loses the connection, as it would without.
    let _ = tokio::time::timeout(LEFTOVER_TIME_MAX, all).await;
}

fn internal_error() -> Response<s3s::Body> {
    let mut response = Response::new(s3s::Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// What an error's XML says of its request.
struct Asked<'a> {
    resource: &'a str,
    bucket: Option<&'a str>,
    id: &'a str,
    host: &'a str,
}

impl Asked<'_> {
    /// The element that S3 gives with some codes: what was not found, or cannot be done.
    fn subject(&self, code: &str) -> String {
        let element = |name: &str, text: &str| format!("<{name}>{}</{name}>", escape(text));
        let bucket = self.bucket.unwrap_or_default();
        if code.contains("Key") && code.starts_with("NoSuch") {
            let path = self.resource.trim_start_matches('/');
            let of_path = path.strip_prefix(bucket).and_then(|rest| rest.strip_prefix('/'));
            element("Key", &percent_decode(of_path.unwrap_or(path)))
        } else if code.contains("Bucket") || code.starts_with("NoSuch") {
            element("BucketName", bucket)
        } else {
            String::new()
        }
    }
}

/// The text that a path stands for. What XML cannot hold is replaced.
fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|digits| byte == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    let decoded = String::from_utf8_lossy(&decoded);
    decoded.replace(|char: char| char.is_control() && !char.is_ascii_whitespace(), "\u{FFFD}")
}

/// Writes an error's XML anew, with what `s3s` leaves out: a message in every case, the resource, the request's id.
fn reword(head: &mut http::response::Parts, body: &s3s::Body, notes: &Notes, asked: &Asked<'_>) -> s3s::Body {
    let said = body.bytes().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let code = element(&said, "Code").unwrap_or("InternalError");
    let message = element(&said, "Message").unwrap_or_else(|| default_message(code));
    if head.status.is_server_error() {
        let operation = notes.operation.get().map_or("", String::as_str);
        tracing::warn!(request = asked.id, operation, code, message, "a request failed");
    }
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{}\
         <Resource>{}</Resource><RequestId>{}</RequestId><HostId>{}</HostId></Error>",
        asked.subject(code),
        escape(asked.resource),
        asked.id,
        asked.host,
    );
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    s3s::Body::from(xml)
}

fn error_code(body: &s3s::Body) -> Option<String> {
    let said = body.bytes()?;
    Some(element(std::str::from_utf8(&said).ok()?, "Code")?.to_owned())
}

/// What stands between an element's tags, escapes and all.
pub(super) fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let rest = xml.split_once(&format!("<{name}>"))?.1;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// What a log says of a request, kept from before it is taken apart.
struct About {
    remote: Option<String>,
    request: String,
    path: String,
    query: String,
    method: Method,
    host: Option<String>,
    referer: Option<String>,
    user_agent: Option<String>,
    is_signed: bool,
}

impl About {
    fn of(request: &Request<Incoming>) -> Self {
        let peer = request.extensions().get::<Peer>();
        let (headers, uri) = (request.headers(), request.uri());
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Self {
            remote: peer.and_then(|peer| peer.address).map(|address| address.ip().to_canonical().to_string()),
            request: format!("{} {target} {:?}", request.method(), request.version()),
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            method: request.method().clone(),
            host: host_of(headers, uri).map(str::to_owned),
            referer: access_log::text_of(headers, &header::REFERER),
            user_agent: access_log::text_of(headers, &header::USER_AGENT),
            is_signed: headers.contains_key(header::AUTHORIZATION),
        }
    }

    fn line(
        self,
        at: makai_raft::facts::Timestamp,
        notes: &Notes,
        id: &str,
        bucket: &str,
        is_site: bool,
        head: &http::response::Parts,
        code: &str,
    ) -> Line {
        let in_path = self.path.strip_prefix('/').and_then(|path| path.strip_prefix(bucket));
        let key = match in_path {
            Some("") => "",
            Some(rest) if rest.starts_with('/') && !is_site => &rest[1..],
            _ => self.path.trim_start_matches('/'),
        };
        let names = || self.query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
        let about = names()
            .find(|name| subresources::WITH_XML.contains(name) || ["uploads", "versions"].contains(name));
        let about = match about {
            Some(name) => name.replace('-', "_").to_ascii_uppercase(),
            None if names().any(|name| name == "partNumber") => "PART".to_owned(),
            None if names().any(|name| name == "uploadId") => "UPLOAD".to_owned(),
            None if key.is_empty() => "BUCKET".to_owned(),
            None => "OBJECT".to_owned(),
        };
        let door = if is_site { "WEBSITE" } else { "REST" };
        let is_error = head.status.is_client_error() || head.status.is_server_error();
        let length =
            head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let whole = head
            .headers
            .get(header::CONTENT_RANGE)
            .and_then(|range| range.to_str().ok()?.rsplit('/').next()?.parse().ok());
        let version = self.query.split('&').find_map(|pair| pair.strip_prefix("versionId="));
        Line {
            at,
            remote: self.remote,
            requester: notes.requester.get().cloned(),
            request_id: id.to_owned(),
            operation: format!("{door}.{}.{about}", self.method),
            key: (!key.is_empty()).then(|| key.to_owned()),
            request: self.request,
            status: head.status,
            error_code: is_error.then(|| code.to_owned()),
            object_bytes: whole.or(length).filter(|_| !is_error),
            referer: self.referer,
            user_agent: self.user_agent,
            version_id: version.map(str::to_owned),
            host: self.host,
            is_signed: self.is_signed,
            is_presigned: names().any(|name| name == "X-Amz-Signature"),
        }
    }
}

/// A request to be written down when its answer is sent.
struct Logged {
    logs: AccessLogs,
    access: Arc<BucketAccess>,
    line: Line,
    turn_around: Duration,
}

/// Whether an error is a website's page already.
fn is_page(head: &http::response::Parts) -> bool {
    head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() != b"application/xml")
}

/// The name under which a request came.
fn host_of<'r>(headers: &'r HeaderMap, uri: &'r Uri) -> Option<&'r str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| uri.authority().map(|authority| authority.as_str()))
}

/// Where an object is, as who sent the request would write it.
pub(super) fn location(
    headers: &HeaderMap,
    uri: &Uri,
    extensions: &Extensions,
    bucket: &str,
    key: &str,
) -> String {
    let host = host_of(headers, uri).unwrap_or_default();
    let scheme = if extensions.get::<Peer>().is_some_and(|peer| peer.is_tls) { "https" } else { "http" };
    let is_virtual = host.strip_prefix(bucket).is_some_and(|rest| rest.starts_with('.'));
    let bucket = if is_virtual { String::new() } else { format!("/{bucket}") };
    let key = key.split('/').map(|part| form_urlencoded::byte_serialize(part.as_bytes()).collect::<String>());
    format!("{scheme}://{host}{bucket}/{}", key.collect::<Vec<_>>().join("/").replace('+', "%20"))
}

/// The body of an answer, which counts as under way until it is sent.
pub(super) struct Answer {
    body: s3s::Body,
    begun: Instant,
    operation: String,
    sent: u64,
    logged: Option<Logged>,
    _permit: Option<OwnedSemaphorePermit>,
    _busy: Busy,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(Logged { logs, access, line, turn_around }) = self.logged.take() {
            logs.add(&access, &line, self.sent, self.begun.elapsed(), turn_around);
        }
        let operation = std::mem::take(&mut self.operation);
        metrics::histogram!(names::GATEWAY_REQUEST_SECONDS, "door" => "s3", "operation" => operation)
            .record(self.begun.elapsed());
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.body)
    }
}

struct Auth(Guard);

#[async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let secret = self.0.secret(access_key).await?;
        Ok(SecretKey::from(secret.expose()))
    }
}

/// GET and HEAD with a `Range` that names no single range: HTTP has it ignored, `s3s` would refuse it. The signature has
/// been verified when this is called; the request goes on without the header and without being verified again.
struct Beside {
    service: S3Service,
    guard: Guard,
}

#[async_trait]
impl S3Route for Beside {
    fn is_match(
        &self,
        method: &Method,
        _uri: &Uri,
        headers: &HeaderMap,
        _extensions: &mut Extensions,
    ) -> bool {
        let has_ignored_range = headers.get(header::RANGE).is_some_and(|range| {
            !range.is_empty() && !range.to_str().is_ok_and(|range| Range::parse(range).is_ok())
        });
        (method == Method::GET || method == Method::HEAD) && has_ignored_range
    }

    async fn call(&self, mut request: S3Request<s3s::Body>) -> S3Result<S3Response<s3s::Body>> {
        let credentials = request.credentials.as_ref().map(|credentials| credentials.access_key.as_str());
        let who = self.guard.who(credentials).await?;
        request.extensions.insert(who);
        request.headers.remove(header::AUTHORIZATION);
        match request.headers.get(header::RANGE).and_then(within_numbers) {
            Some(range) => _ = request.headers.insert(header::RANGE, range),
            None => _ = request.headers.remove(header::RANGE),
        }
        let query = request.uri.query().unwrap_or_default().split('&');
        let is_kept = |pair: &&str| {
            let name = pair.split('=').next().unwrap_or_default();
            !name.starts_with("X-Amz-") && !["Signature", "AWSAccessKeyId", "Expires"].contains(&name)
        };
        let query: Vec<_> = query.filter(is_kept).collect();
        let target = format!("{}?{}", request.uri.path(), query.join("&"));
        let target = target.parse::<Uri>().map_err(|error| s3_error!(error, InvalidURI))?;

        let mut inner = Request::new(request.input);
        *inner.method_mut() = request.method;
        *inner.uri_mut() = target;
        *inner.headers_mut() = request.headers;
        *inner.extensions_mut() = request.extensions;
        let response = self.service.call(inner).await.map_err(|_| {
            custom("InternalError", 500, "We encountered an internal error. Please report the request id.")
        })?;
        let (head, body) = response.into_parts();
        let mut answer = S3Response::with_status(body, head.status);
        answer.headers = head.headers;
        Ok(answer)
    }
}

/// `bucket.domain` names a bucket; every other host is path-style.
#[derive(Clone)]
struct Hosts {
    /// Each with its leading dot.
    suffixes: Vec<String>,
}

impl Hosts {
    /// The bucket that a request names, by host or by path.
    fn bucket(&self, headers: &HeaderMap, uri: &Uri) -> Option<String> {
        let named = host_of(headers, uri)
            .and_then(|host| self.parse_host_header(host).ok()?.bucket().map(str::to_owned));
        let of_path = || uri.path().split('/').nth(1).filter(|name| !name.is_empty()).map(str::to_owned);
        named.or_else(of_path)
    }
}

impl Hosts {
    /// Whether the path names a key in the bucket.
    fn names_key(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let path = uri.path().trim_start_matches('/');
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| uri.authority().map(|authority| authority.as_str()));
        let is_in_host = host
            .and_then(|host| self.parse_host_header(host).ok())
            .is_some_and(|host| host.bucket().is_some());
        let key = if is_in_host { path } else { path.split_once('/').map_or("", |(_, key)| key) };
        !key.is_empty()
    }
}

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let bucket = self.suffixes.iter().find_map(|suffix| {
            let at =
                name.len().checked_sub(suffix.len()).filter(|&at| at > 0 && name.is_char_boundary(at))?;
            name[at..].eq_ignore_ascii_case(suffix).then(|| name[..at].to_ascii_lowercase())
        });
        let host = VirtualHost::new(host);
        Ok(match bucket {
            Some(bucket) => host.with_bucket(bucket),
            None => host,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> http::request::Parts {
        let request = Request::builder().method(method).uri(uri);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_label_before_a_domain_is_a_bucket() {
        let hosts = Hosts { suffixes: vec![".s3.example.com".into(), ".pool.lan".into()] };
        let bucket = |host| hosts.parse_host_header(host).unwrap().bucket().map(str::to_owned);
        assert_eq!(bucket("photos.s3.example.com"), Some("photos".into()));
        assert_eq!(bucket("Photos.S3.example.com:9000"), Some("photos".into()));
        assert_eq!(bucket("my.photos.pool.lan"), Some("my.photos".into()));
        for path_style in
            ["s3.example.com", ".s3.example.com", "localhost:9000", "[::1]:9000", "gateway-3", "é.lan"]
        {
            assert_eq!(bucket(path_style), None, "{path_style}");
        }
    }

    #[test]
    fn what_is_refused_before_it_is_parsed() {
        let now = Timestamp(1_700_000_000_000);
        let code = |mut head: http::request::Parts| {
            refuse_early(&mut head, now).err().map(|error| error.code().as_str().to_owned())
        };
        let date = ("date", "Tue, 14 Nov 2023 22:13:20 GMT");
        let v4 = "AWS4-HMAC-SHA256 Credential=x/y, SignedHeaders=host, Signature=z";
        for (authorization, expected) in [
            ("AWS AK:sig", None),
            ("AWS AK", Some("InvalidArgument")),
            ("", Some("AccessDenied")),
            ("Basic YTpi", Some("InvalidArgument")),
            (v4, None),
            ("AWS4-HMAC-SHA256 Credential=x", Some("AuthorizationHeaderMalformed")),
            ("AWS4-ECDSA-P256-SHA256 Credential=x", Some("NotImplemented")),
        ] {
            let head = head("GET", "/", &[("authorization", authorization), date]);
            assert_eq!(code(head).as_deref(), expected, "{authorization}");
        }
        assert_eq!(code(head("GET", "/", &[("authorization", v4)])), Some("AccessDenied".into()));
        for (seconds, expected) in [
            ("0", "AccessDenied"),
            ("-1", "AccessDenied"),
            ("604801", "AuthorizationQueryParametersError"),
            ("", "AuthorizationQueryParametersError"),
            ("99999999999999999999", "AuthorizationQueryParametersError"),
        ] {
            let uri = format!("/b/k?X-Amz-Expires={seconds}");
            assert_eq!(code(head("GET", &uri, &[])).as_deref(), Some(expected), "{seconds}");
        }
        assert_eq!(code(head("GET", "/b/k?X-Amz-Expires=604800", &[])), None);
    }

    #[test]
    fn an_errors_xml_is_completed() {
        let asked = |resource| Asked { resource, bucket: Some("b"), id: "ID", host: "HOST" };
        let error = s3_error!(NoSuchKey, "It has <no> such key & never had.");
        let (mut head, body) = error.to_http_response().unwrap().into_parts();
        let body = reword(&mut head, &body, &Notes::default(), &asked("/b/a&b%20%01+%"));
        assert_eq!(
            String::from_utf8_lossy(&body.bytes().unwrap()),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey</Code>\
             <Message>It has &lt;no&gt; such key &amp; never had.</Message><Key>a&amp;b \u{FFFD}+%</Key>\
             <Resource>/b/a&amp;b%20%01+%</Resource><RequestId>ID</RequestId><HostId>HOST</HostId></Error>"
        );
        let (mut head, body) = s3_error!(NoSuchBucket).to_http_response().unwrap().into_parts();
        let body = reword(&mut head, &body, &Notes::default(), &asked("/b/k"));
        assert!(contains(&body.bytes().unwrap(), b"<BucketName>b</BucketName>"));
        let (mut head, body) = s3_error!(SignatureDoesNotMatch).to_http_response().unwrap().into_parts();
        let body = reword(&mut head, &body, &Notes::default(), &asked("/"));
        assert!(contains(&body.bytes().unwrap(), b"<Message>The request signature we calculated"));
    }

    #[test]
    fn a_fault_has_a_message() {
        use crate::s3::body::Fault;
        for fault in [Fault::Truncated, Fault::Stalled(BODY_STALL_MAX)] {
            assert!(fault.error().message().is_some());
        }
    }
}
