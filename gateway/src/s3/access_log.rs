//! Server access logs: a line for each request to a bucket that logs, delivered as objects to the bucket that it names.
//!
//! ```text
//! answer sent ─> line ─> buffer of its bucket ─ every interval, or when it is full ─> one object in the target bucket
//! ```
//!
//! As with S3, delivery is a best effort: lines that a gateway holds when it is killed are lost; one that stops delivers
//! them first. A buffer is bounded: what does not fit is counted and said in the node's log.

use std::collections::HashMap;
use std::fmt;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use makai_raft::facts::Timestamp;
use makai_raft::facts::command::Precondition;
use makai_raft::facts::object::ObjectHeaders;
use ring::rand::{SecureRandom, SystemRandom};
use s3s::dto::{BucketLoggingStatus, LoggingEnabled, PartitionDateSource};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::documents::read_xml;
use crate::identity::Caller;
use crate::objects::documents::BucketAccess;
use crate::objects::{Objects, Upstream};

/// Bytes of lines of one bucket that are delivered before their time has come.
const BUFFER_BYTES_FULL: usize = 256 * 1024;
/// Bytes of lines of one bucket that wait at most.
const BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Buckets that have lines waiting.
const BUFFERS_MAX: usize = 1000;
/// Bytes of a request's text in a line.
const FIELD_BYTES_MAX: usize = 2048;

/// What a line says beside what its bucket knows.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) at: Timestamp,
    pub(super) remote: Option<String>,
    /// Canonical id or ARN; `None`: anonymous.
    pub(super) requester: Option<String>,
    pub(super) request_id: String,
    pub(super) operation: String,
    pub(super) key: Option<String>,
    /// `GET /bucket/key?versionId=1 HTTP/1.1`
    pub(super) request: String,
    pub(super) status: StatusCode,
    pub(super) error_code: Option<String>,
    pub(super) object_bytes: Option<u64>,
    pub(super) referer: Option<String>,
    pub(super) user_agent: Option<String>,
    pub(super) version_id: Option<String>,
    pub(super) host: Option<String>,
    pub(super) is_signed: bool,
    pub(super) is_presigned: bool,
}

/// A header in a line.
pub(super) fn text_of(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.chars().take(FIELD_BYTES_MAX).collect())
}

/// `[06/Feb/2019:00:00:38 +0000]`
fn log_time(at: Timestamp) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let [year, month, day, hour, minute, second] = at.civil();
    let name = MONTHS.get(usize::try_from(month - 1).unwrap_or(0)).copied().unwrap_or("Jan");
    format!("[{day:02}/{name}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000]")
}

/// A field without blanks that would end it; `-`: nothing.
fn bare(field: Option<&str>) -> String {
    match field {
        None | Some("") => "-".to_owned(),
        Some(text) => text
            .chars()
            .map(|one| if one.is_whitespace() || one.is_control() { '+' } else { one })
            .take(FIELD_BYTES_MAX)
            .collect(),
    }
}

fn quoted(field: Option<&str>) -> String {
    match field {
        None | Some("") => "-".to_owned(),
        Some(text) => {
            let clean = text.chars().filter(|one| !one.is_control()).take(FIELD_BYTES_MAX);
            format!("\"{}\"", clean.collect::<String>().replace('"', "%22"))
        }
    }
}

impl Line {
    /// In the order of S3's log format.
    fn text(&self, access: &BucketAccess, bytes_sent: u64, total: Duration, turn_around: Duration) -> String {
        let number = |number: u64| if number == 0 { "-".to_owned() } else { number.to_string() };
        let auth = match (self.is_signed, self.is_presigned) {
            (_, true) => "QueryString",
            (true, false) => "AuthHeader",
            (false, false) => "-",
        };
        let fields = [
            access.owner().canonical_id(),
            access.bucket.name.clone(),
            log_time(self.at),
            bare(self.remote.as_deref()),
            bare(self.requester.as_deref()),
            self.request_id.clone(),
            self.operation.clone(),
            bare(self.key.as_deref()),
            quoted(Some(&self.request)),
            self.status.as_u16().to_string(),
            bare(self.error_code.as_deref()),
            number(bytes_sent),
            self.object_bytes.map_or_else(|| "-".to_owned(), number),
            total.as_millis().to_string(),
            turn_around.as_millis().to_string(),
            quoted(self.referer.as_deref()),
            quoted(self.user_agent.as_deref()),
            bare(self.version_id.as_deref()),
            self.request_id.clone(),
            if self.is_signed || self.is_presigned { "SigV4" } else { "-" }.to_owned(),
            "-".to_owned(),
            auth.to_owned(),
            bare(self.host.as_deref()),
            "-".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
        ];
        let mut line = fields.join(" ");
        line.push('\n');
        line
    }
}

/// Lines of one bucket that wait, and where they go.
struct Buffer {
    owner: Caller,
    bucket: String,
    to: LoggingEnabled,
    lines: String,
}

/// The logs of one gateway.
#[derive(Clone)]
pub(super) struct AccessLogs {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Objects,
    region: String,
    interval: Duration,
    buffers: Mutex<HashMap<String, Buffer>>,
    is_full: Notify,
}

impl fmt::Debug for AccessLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLogs").finish_non_exhaustive()
    }
}

impl AccessLogs {
    pub(super) fn new(objects: Objects, region: String, interval: Duration) -> Self {
        let (buffers, is_full) = (Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { objects, region, interval, buffers, is_full }) }
    }

    /// Takes the line of a request whose answer is sent.
    pub(super) fn add(
        &self,
        access: &BucketAccess,
        line: &Line,
        bytes_sent: u64,
        total: Duration,
        turn_around: Duration,
    ) {
        let Some(document) = &access.logging else { return };
        let Ok(BucketLoggingStatus { logging_enabled: Some(to) }) = read_xml(document) else { return };
        let text = line.text(access, bytes_sent, total, turn_around);
        let mut buffers = self.inner.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = buffers.len() < BUFFERS_MAX || buffers.contains_key(&access.bucket.name);
        let buffer = has_room.then(|| {
            buffers.entry(access.bucket.name.clone()).or_insert_with(|| Buffer {
                owner: Caller {
                    tenant: access.bucket.tenant,
                    tenant_name: access.tenant_name.clone(),
                    access_key_id: String::new(),
                },
                bucket: access.bucket.name.clone(),
                to: to.clone(),
                lines: String::new(),
            })
        });
        match buffer.filter(|buffer| buffer.lines.len() + text.len() <= BUFFER_BYTES_MAX) {
            Some(buffer) => {
                buffer.to = to;
                buffer.lines.push_str(&text);
                if buffer.lines.len() >= BUFFER_BYTES_FULL {
                    self.inner.is_full.notify_one();
                }
            }
            None => {
                tracing::warn!(
                    bucket = access.bucket.name,
                    "a line of an access log is lost: delivery is too slow"
                );
            }
        }
    }

    /// Delivers until `stop`, and then what is left.
    pub(super) async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.inner.interval) => {}
                () = self.inner.is_full.notified() => {}
                () = stop.cancelled() => break,
            }
            self.deliver().await;
        }
        self.deliver().await;
    }

    async fn deliver(&self) {
        let waiting = std::mem::take(&mut *self.inner.buffers.lock().unwrap_or_else(PoisonError::into_inner));
        for buffer in waiting.into_values() {
            if let Err(why) = self.inner.put(&buffer).await {
                let bytes = buffer.lines.len();
                tracing::warn!(
                    bucket = buffer.bucket,
                    to = buffer.to.target_bucket,
                    bytes,
                    why,
                    "an access log is lost"
                );
            }
        }
    }
}

impl Inner {
    async fn put(&self, buffer: &Buffer) -> Result<(), String> {
        let mut unique = [0; 8];
        SystemRandom::new().fill(&mut unique).map_err(|_| "no randomness".to_owned())?;
        let key = self.key(buffer, self.objects.time(), &hex::encode_upper(unique));
        let body = Bytes::from(buffer.lines.clone().into_bytes());
        let size = Some(body.len() as u64);
        let upstream =
            Upstream { body: futures::stream::iter([Ok(body)]).boxed(), size, check: Box::new(|_| Ok(None)) };
        let headers =
            ObjectHeaders { content_type: Some("text/plain".to_owned()), ..ObjectHeaders::default() };
        let bucket = &buffer.to.target_bucket;
        let put = self.objects.put(&buffer.owner, bucket, &key, headers, upstream, Precondition::default());
        put.await.map(|_| ()).map_err(|error| error.to_string())
    }

    fn key(&self, buffer: &Buffer, at: Timestamp, unique: &str) -> String {
        let [year, month, day, hour, minute, second] = at.civil();
        let mut key = buffer.to.target_prefix.clone();
        let partitioned =
            buffer.to.target_object_key_format.as_ref().and_then(|format| format.partitioned_prefix.as_ref());
        if let Some(partitioned) = partitioned {
            let account = format!("{:012}", buffer.owner.tenant.0);
            let _ = write!(key, "{account}/{}/{}/{year:04}/{month:02}/{day:02}/", self.region, buffer.bucket);
            let by_event = partitioned.partition_date_source.as_ref().map(PartitionDateSource::as_str);
            if by_event == Some(PartitionDateSource::EVENT_TIME) {
                // By the day alone.
                let _ = write!(key, "{year:04}-{month:02}-{day:02}-00-00-00-{unique}");
                return key;
            }
        }
        let _ = write!(key, "{year:04}-{month:02}-{day:02}-{hour:02}-{minute:02}-{second:02}-{unique}");
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_fields_are_as_s3_writes_them() {
        assert_eq!(log_time(Timestamp(1_549_411_238_000)), "[06/Feb/2019:00:00:38 +0000]");
        assert_eq!(log_time(Timestamp(1_709_208_000_000)), "[29/Feb/2024:12:00:00 +0000]");
        assert_eq!(bare(Some("a b\nc")), "a+b+c");
        assert_eq!((bare(None), quoted(Some(""))), ("-".to_owned(), "-".to_owned()));
        assert_eq!(quoted(Some("a \"b\"\r\nforged line")), "\"a %22b%22forged line\"");
    }
}
