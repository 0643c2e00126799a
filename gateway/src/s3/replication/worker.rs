//! The replicator: carries changes of keys to their targets.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt as _};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use makai_raft::facts::Timestamp;
use makai_raft::facts::command::Refusal;
use makai_raft::facts::journal::{Change, Happening};
use makai_raft::facts::object::ObjectHead;
use makai_raft::handle::{MetaError, Metadata};

use super::remote::{Remote, RemoteError, Sent};
use super::rules::{Rule, Rules};
use super::{FOLLOWER, Failed, KEPT_MS, State};
use crate::identity::Caller;
use crate::identity::targets::Target;
use crate::objects::documents::{BucketAccess, REPLICATION, REPLICATION_STATE};
use crate::objects::sealing::Sealing;
use crate::objects::{ByteRange, Objects, ObjectsError};
use crate::outbound::Outbound;
use crate::s3::documents::read_xml;
use crate::s3::failures::{element, escape};
use crate::s3::following::{self, Acts, Following};
use crate::s3::headers::{known_type, parse_tags};
use crate::s3::lock;

/// Keys of one bucket carried at once.
const KEYS_AT_ONCE: usize = 8;
/// Bytes that go in one request; what has more goes in parts of at least so many.
const WHOLE_BYTES_MAX: u64 = 512 * 1024 * 1024;
const PARTS_MAX: u64 = 10_000;
/// Says that what is put is a copy, so that it is copied no further.
const REPLICA: (&str, &str) = ("x-amz-replication-status", "REPLICA");

/// Copies to other servers. One at a time should work in a cluster; two only copy twice.
pub struct Replicator {
    following: Following,
    copying: Copying,
}

struct Copying {
    objects: Objects,
    outbound: Outbound,
    /// Of changes that wait for others before them: what is done already. By bucket and sequence.
    done: Mutex<HashMap<u64, BTreeMap<u64, Option<String>>>>,
}

impl Replicator {
    /// `here`: the facts as loops see them, for whether anything waits.
    #[must_use]
    pub fn new(
        facts: Arc<dyn Metadata>,
        here: Arc<dyn Metadata>,
        objects: Objects,
        outbound: Outbound,
    ) -> Self {
        let following = Following::new(facts, here, objects.clone());
        Self { following, copying: Copying { objects, outbound, done: Mutex::default() } }
    }

    /// Copies all that waits, once through all buckets.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn round(&mut self, now: Timestamp) -> Result<(), MetaError> {
        self.following.round(&self.copying, now).await
    }
}

impl Acts for Copying {
    const FOLLOWER: &'static str = FOLLOWER;
    const DOCUMENT: &'static str = REPLICATION;

    async fn act(
        &self,
        bucket: &following::OfBucket,
        changes: &[Change],
        now: Timestamp,
    ) -> Result<(), String> {
        let Some(xml) = &bucket.document else { return Ok(()) };
        let configuration = read_xml(xml).map_err(|error| error.to_string())?;
        let rules = Rules::read(&configuration).map_err(|error| error.to_string())?;
        let (owner, access) = (&bucket.owner, &*bucket.access);
        Page { copying: self, owner, access, rules: &rules, now }.carry(changes).await?;
        self.done.lock().unwrap_or_else(PoisonError::into_inner).remove(&access.bucket.id);
        Ok(())
    }
}

struct Page<'a> {
    copying: &'a Copying,
    owner: &'a Caller,
    access: &'a BucketAccess,
    rules: &'a Rules,
    now: Timestamp,
}

impl Page<'_> {
    /// Carries the changes, each key's in their order; remembers which are done until all are.
    async fn carry(&self, changes: &[Change]) -> Result<(), String> {
        let mut by_key: BTreeMap<&str, Vec<&Change>> = BTreeMap::new();
        for change in changes {
            by_key.entry(&change.key).or_default().push(change);
        }
        let keys: Vec<BoxFuture<'_, Result<(), String>>> =
            by_key.into_values().map(|changes| self.key(changes).boxed()).collect();
        let outcomes: Vec<Result<(), String>> =
            stream::iter(keys).buffer_unordered(KEYS_AT_ONCE).collect().await;
        outcomes.into_iter().collect::<Result<(), String>>()?;
        let failed = self.failed(changes);
        if failed.is_empty() { Ok(()) } else { self.tell(failed).await }
    }

    /// Which of `changes` have failed, and why.
    fn failed(&self, changes: &[Change]) -> Vec<Failed> {
        let done = self.copying.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.get(&self.access.bucket.id)
            .into_iter()
            .flatten()
            .filter_map(|(sequence, why)| {
                let change = changes.iter().find(|change| change.sequence == *sequence)?;
                Some(Failed {
                    key: change.key.clone(),
                    version: change.version.map(|version| version.to_string()),
                    at_ms: self.now.0,
                    why: why.clone()?,
                })
            })
            .collect()
    }

    /// Writes down what has failed.
    async fn tell(&self, failed: Vec<Failed>) -> Result<(), String> {
        let (objects, name) = (&self.copying.objects, &self.access.bucket.name);
        let kept = objects.bucket_document(self.owner, name, REPLICATION_STATE).await;
        let kept = kept.map_err(|error| error.to_string())?;
        let mut state: State = kept.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        for failed in failed {
            tracing::warn!(bucket = name, key = failed.key, why = failed.why, "an object is not replicated");
            state.add(failed);
        }
        let text = state.text().map_err(|error| error.to_string())?;
        let set = objects.set_bucket_document(self.owner, name, REPLICATION_STATE, Some(text)).await;
        set.map_err(|error| error.to_string())
    }

    async fn key(&self, changes: Vec<&Change>) -> Result<(), String> {
        let bucket = self.access.bucket.id;
        for change in changes {
            let is_done = {
                let done = self.copying.done.lock().unwrap_or_else(PoisonError::into_inner);
                done.get(&bucket).is_some_and(|done| done.contains_key(&change.sequence))
            };
            if is_done {
                continue;
            }
            let failed = match self.change(change).await {
                Ok(()) => None,
                Err(RemoteError::Never(why)) => Some(why),
                Err(RemoteError::Later(why)) if self.now.millis_since(change.at) > KEPT_MS => Some(why),
                Err(RemoteError::Later(why)) => return Err(format!("key {:?}: {why}", change.key)),
            };
            let mut done = self.copying.done.lock().unwrap_or_else(PoisonError::into_inner);
            done.entry(bucket).or_default().insert(change.sequence, failed);
        }
        Ok(())
    }

    async fn change(&self, change: &Change) -> Result<(), RemoteError> {
        match change.happening {
            Happening::Put | Happening::Posted | Happening::Copied | Happening::Completed => {
                self.copy(change).await
            }
            Happening::Marked => self.mark(change).await,
            Happening::Tagged | Happening::Untagged => self.tag(change).await,
            // As with S3: what is deleted for good, or changed by the bucket's lifecycle, stays at the target; access
            // lists name accounts that it need not know.
            Happening::Deleted
            | Happening::Expired
            | Happening::ExpiredByMarker
            | Happening::Transitioned
            | Happening::AclChanged => Ok(()),
        }
    }

    /// The version that a change made; `None`: it is no more, or not to be copied.
    async fn head(&self, change: &Change) -> Result<Option<ObjectHead>, RemoteError> {
        let name = &self.access.bucket.name;
        let found = self.copying.objects.find(self.owner, name, &change.key, change.version).await;
        match found {
            Ok(found) => Ok(Some(found.head).filter(|head| !head.headers.is_replica)),
            Err(ObjectsError::Refused(Refusal::NoSuchKey | Refusal::Version(_) | Refusal::NoSuchBucket)) => {
                Ok(None)
            }
            Err(error) => Err(RemoteError::Later(error.to_string())),
        }
    }

    async fn target(&self, rule: &Rule) -> Result<Target, RemoteError> {
        let target = self.copying.objects.replication_target(self.owner.tenant, &rule.place.target).await;
        target.map_err(|error| RemoteError::Later(error.to_string()))
    }

    fn remote<'r>(&'r self, target: &'r Target, rule: &'r Rule) -> Remote<'r> {
        let now = self.copying.objects.time();
        Remote { outbound: &self.copying.outbound, target, bucket: &rule.place.bucket, now }
    }

    async fn copy(&self, change: &Change) -> Result<(), RemoteError> {
        let Some(head) = self.head(change).await? else { return Ok(()) };
        let rules = self.rules.of_object(&head.key, head.headers.tagging.as_deref());
        if rules.is_empty() {
            return Ok(());
        }
        if Sealing::Tenant.of_object(&head.headers).is_err() {
            return Err(RemoteError::Never(
                "it is encrypted with a customer's key, which is not known here".to_owned(),
            ));
        }
        for rule in rules {
            let target = self.target(rule).await?;
            if head.size <= WHOLE_BYTES_MAX {
                self.copy_whole(&self.remote(&target, rule), rule, &head).await?;
            } else {
                self.copy_parts(&target, rule, &head).await?;
            }
        }
        Ok(())
    }

    async fn body(&self, head: &ObjectHead, range: ByteRange) -> Result<Sent, RemoteError> {
        let version = head.has_version_id.then(|| head.version_id());
        let name = &self.access.bucket.name;
        let download = self.copying.objects.get_version(self.owner, name, &head.key, version, range).await;
        let download = download.map_err(|error| RemoteError::Later(error.to_string()))?;
        let length = download.range.end.saturating_sub(download.range.start);
        let frames = download.body.map(|piece| match piece {
            Ok(bytes) => Ok(Frame::data(bytes)),
            Err(error) => Err(io::Error::other(error.to_string())),
        });
        Ok(Sent::Stream(StreamBody::new(frames).boxed_unsync(), length))
    }

    async fn copy_whole(
        &self,
        remote: &Remote<'_>,
        rule: &Rule,
        head: &ObjectHead,
    ) -> Result<(), RemoteError> {
        let mut headers = headers_of(head, rule)?;
        let md5 = hex::decode(&head.etag).ok().filter(|md5| md5.len() == 16);
        if let Some(md5) = md5.and_then(|md5| HeaderValue::try_from(BASE64_STANDARD.encode(md5)).ok()) {
            headers.insert(HeaderName::from_static("content-md5"), md5);
        }
        let body =
            if head.size == 0 { Sent::Whole(Bytes::new()) } else { self.body(head, ByteRange::All).await? };
        remote.must(Method::PUT, &head.key, &[], headers, body).await.map(|_| ())
    }

    async fn copy_parts(&self, target: &Target, rule: &Rule, head: &ObjectHead) -> Result<(), RemoteError> {
        let key = &head.key;
        let remote = self.remote(target, rule);
        let headers = headers_of(head, rule)?;
        let empty = || Sent::Whole(Bytes::new());
        let begun = remote.must(Method::POST, key, &[("uploads", "")], headers, empty()).await?;
        let said = String::from_utf8_lossy(begun.body()).into_owned();
        let upload_id = element(&said, "UploadId").unwrap_or_default();
        if upload_id.is_empty() {
            return Err(RemoteError::Later("the target gave no upload id".to_owned()));
        }
        match self.parts(target, rule, head, upload_id).await {
            Ok(xml) => {
                // Signed now: the parts may have taken long.
                let remote = self.remote(target, rule);
                let query = [("uploadId", upload_id)];
                let sent = Sent::Whole(Bytes::from(xml));
                remote.must(Method::POST, key, &query, HeaderMap::new(), sent).await.map(|_| ())
            }
            Err(error) => {
                // What is left there takes room; that this fails, too, changes nothing here.
                let query = [("uploadId", upload_id)];
                let _ = remote.send(Method::DELETE, key, &query, HeaderMap::new(), empty()).await;
                Err(error)
            }
        }
    }

    /// Sends all parts; gives what completes them.
    async fn parts(
        &self,
        target: &Target,
        rule: &Rule,
        head: &ObjectHead,
        upload_id: &str,
    ) -> Result<String, RemoteError> {
        let part_bytes = WHOLE_BYTES_MAX.max(head.size.div_ceil(PARTS_MAX));
        let mut xml = String::from("<CompleteMultipartUpload>");
        let step = usize::try_from(part_bytes).unwrap_or(usize::MAX);
        for (number, first) in (1_u32..).zip((0..head.size).step_by(step)) {
            let last = (first + part_bytes).min(head.size) - 1;
            let body = self.body(head, ByteRange::From { first, last: Some(last) }).await?;
            let number_text = number.to_string();
            let query = [("partNumber", number_text.as_str()), ("uploadId", upload_id)];
            let remote = self.remote(target, rule);
            let put = remote.must(Method::PUT, &head.key, &query, HeaderMap::new(), body).await?;
            let etag =
                put.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok()).unwrap_or_default();
            xml += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", escape(etag));
        }
        xml += "</CompleteMultipartUpload>";
        Ok(xml)
    }

    /// Hides the key at the targets whose rules say so, unless it is hidden or not there.
    async fn mark(&self, change: &Change) -> Result<(), RemoteError> {
        let rules: Vec<&Rule> =
            self.rules.of_object(&change.key, None).into_iter().filter(|rule| rule.copies_markers).collect();
        for rule in rules {
            let target = self.target(rule).await?;
            let remote = self.remote(&target, rule);
            let empty = || Sent::Whole(Bytes::new());
            let there = remote.send(Method::HEAD, &change.key, &[], HeaderMap::new(), empty()).await?;
            if there.status() != StatusCode::NOT_FOUND {
                remote.must(Method::DELETE, &change.key, &[], HeaderMap::new(), empty()).await?;
            }
        }
        Ok(())
    }

    /// Gives the copy of a current version its tags.
    async fn tag(&self, change: &Change) -> Result<(), RemoteError> {
        let Some(head) = self.head(change).await? else { return Ok(()) };
        let name = &self.access.bucket.name;
        let current = self.copying.objects.find(self.owner, name, &change.key, None).await;
        if !current.is_ok_and(|current| current.head.version == head.version) {
            return Ok(());
        }
        let tagging = head.headers.tagging.as_deref();
        let tags: String = tagging
            .map(parse_tags)
            .unwrap_or_default()
            .iter()
            .map(|(key, value)| {
                format!("<Tag><Key>{}</Key><Value>{}</Value></Tag>", escape(key), escape(value))
            })
            .collect();
        let xml = Bytes::from(format!("<Tagging><TagSet>{tags}</TagSet></Tagging>"));
        for rule in self.rules.of_object(&head.key, tagging) {
            let target = self.target(rule).await?;
            let (remote, query) = (self.remote(&target, rule), [("tagging", "")]);
            let sent = Sent::Whole(xml.clone());
            remote.must(Method::PUT, &head.key, &query, HeaderMap::new(), sent).await?;
        }
        Ok(())
    }
}

/// The headers that make a copy.
fn headers_of(head: &ObjectHead, rule: &Rule) -> Result<HeaderMap, RemoteError> {
    let headers = &head.headers;
    let content_type = known_type(head).map(str::to_owned);
    let mut all = HeaderMap::new();
    let mut add = |name: &str, value: &str| -> Result<(), RemoteError> {
        let parts = (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes()));
        let (Ok(name), Ok(value)) = parts else {
            return Err(RemoteError::Never(format!("its {name} cannot be sent as a header")));
        };
        all.insert(name, value);
        Ok(())
    };
    add(REPLICA.0, REPLICA.1)?;
    let standard = [
        ("content-type", &content_type),
        ("content-encoding", &headers.content_encoding),
        ("content-disposition", &headers.content_disposition),
        ("content-language", &headers.content_language),
        ("cache-control", &headers.cache_control),
        ("expires", &headers.expires),
        ("x-amz-website-redirect-location", &headers.website_redirect),
        ("x-amz-tagging", &headers.tagging),
    ];
    for (name, value) in standard {
        if let Some(value) = value {
            add(name, value)?;
        }
    }
    for (name, value) in &headers.user {
        add(&format!("x-amz-meta-{name}"), value)?;
    }
    if let Some(class) = rule.storage_class.as_ref().or(headers.storage_class.as_ref()) {
        add("x-amz-storage-class", class)?;
    }
    for (name, value) in lock::as_headers(&headers.lock) {
        add(name, &value)?;
    }
    Ok(all)
}
