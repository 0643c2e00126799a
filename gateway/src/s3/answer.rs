//! An answer under way: counted while it is sent, measured and written down when it has gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use makai_ops::metrics as names;
use makai_raft::facts::Timestamp;
use s3s::StdError;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::access::Peer;
use super::access_log::{self, AccessLogs, Line};
use super::body::Notes;
use super::hosts::host_of;
use super::subresources;
use crate::objects::documents::BucketAccess;
use crate::seats::Busy;

/// The body of an answer, which counts as under way until it is sent.
pub(super) struct Answer {
    pub(super) body: s3s::Body,
    pub(super) begun: Instant,
    pub(super) operation: String,
    pub(super) sent: u64,
    pub(super) logged: Option<Logged>,
    pub(super) _permit: Option<OwnedSemaphorePermit>,
    pub(super) _busy: Busy,
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

/// What a log says of a request, kept from before it is taken apart.
pub(super) struct About {
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
    pub(super) fn of(request: &Request<Incoming>) -> Self {
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

    pub(super) fn line(
        self,
        at: Timestamp,
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
        let names = || subresources::names(&self.query);
        let about = names().find(|name| {
            subresources::WITH_XML.contains(&&**name) || ["uploads", "versions"].contains(&&**name)
        });
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
pub(super) struct Logged {
    pub(super) logs: AccessLogs,
    pub(super) access: Arc<BucketAccess>,
    pub(super) line: Line,
    pub(super) turn_around: Duration,
}
