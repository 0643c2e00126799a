//! One request: its id, its limits, its way to and from `s3s`.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use makai_ops::metrics as names;
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use s3s::auth::{S3Auth, SecretKey};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::dto::Range;
use s3s::route::S3Route;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Error, S3Request, S3Response, S3Result, StdError, s3_error};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::access::{Guard, Peer, SESSION_TOKEN};
use super::access_log::AccessLogs;
use super::answer::{About, Answer, Logged};
use super::body::{Inbound, Notes, payload_mismatch};
use super::cors;
use super::dates;
use super::errors::custom;
use super::failures::{Asked, contains, error_code, internal_error, is_page, reword};
use super::forms::{self, Forms};
use super::headers::within_numbers;
use super::hosts::{Hosts, host_of};
use super::operations::Operations;
use super::precheck::{
    check_versioning, digests, end_bucket_with_slash, framing, has_parameter, is_form, is_v2, refuse_early,
    session_token,
};
use super::query;
use super::subresources;
use super::website::{self, Pages, Visit, Websites};
use crate::audit::{self, Asker};
use crate::identity::Identity;
use crate::objects::Objects;
use crate::outbound::Outbound;
use crate::seats::Busy;

/// Bytes of an XML body: 10,000 parts with their checksums, or 1,000 keys, fit.
const XML_BYTES_MAX: usize = 4 * 1024 * 1024;
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
                metrics::counter!(names::GATEWAY_SLOWDOWNS, "bound" => "requests").increment(1);
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
        let answer = Answer { body, begun, operation, sent: 0, logged, _permit: permit, _busy: busy };
        Ok(Response::from_parts(head, answer))
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
        if is_v2(&head) && !self.inner.hosts.names_bucket(&head.headers, &head.uri) {
            end_bucket_with_slash(&mut head.uri);
        }
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
            let bare = ["\"", "&quot;"].iter().fold(said, |said, quote| {
                said.replace(&format!("<ETag>{quote}"), "<ETag>")
                    .replace(&format!("{quote}</ETag>"), "</ETag>")
            });
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

/// Reads a body to its end.
async fn whole(inbound: Inbound, notes: &Notes, too_long: fn() -> S3Error) -> S3Result<Bytes> {
    let read = Limited::new(inbound, XML_BYTES_MAX).collect().await;
    read.map(http_body_util::Collected::to_bytes)
        .map_err(|_| notes.fault().map_or_else(too_long, |fault| fault.error()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_a_message() {
        use crate::s3::body::Fault;
        for fault in [Fault::Truncated, Fault::Stalled(BODY_STALL_MAX)] {
            assert!(fault.error().message().is_some());
        }
    }
}
