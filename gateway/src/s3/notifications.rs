//! Notifications of a bucket: who is told what, and the telling.
//!
//! ```text
//! change of a key ─> journal of its bucket (facts) ─ Messenger, in order ─ rules: event, prefix, suffix ─> POST to a webhook
//!                                                        └ all told ─> the journal advances
//! ```
//!
//! A webhook is named as `arn:makai:webhook:::URL`, wherever S3 takes the ARN of a queue, a topic or a function. Always: an
//! event is told at least once, in the order of the bucket's changes, or dropped after [`KEPT_MS`] with a word in the log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Request, Uri};
use makai_raft::facts::Timestamp;
use makai_raft::facts::journal::{Change, Happening};
use makai_raft::handle::{MetaError, Metadata};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};
use serde_json::{Value, json};

use super::documents::{read_xml, write_xml};
use super::errors::refused;
use super::following::{Acts, Following, OfBucket};
use super::operations::Operations;
use crate::identity::Caller;
use crate::objects::Objects;
use crate::objects::documents::BucketAccess;
use crate::outbound::{Outbound, whole};
use crate::policy::principal::canonical_id;

const NOTIFICATION: &str = "notification";
/// What the messenger is called among those who follow a bucket.
const FOLLOWER: &str = "notification";
const WEBHOOK: &str = "arn:makai:webhook:::";
const RULES_MAX: usize = 100;
/// How long a webhook may take, and what of its answer is read.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long an event waits for its webhook.
pub const KEPT_MS: u64 = 24 * 60 * 60 * 1000;

const EVENTS: [&str; 17] = [
    "s3:ObjectCreated:*",
    "s3:ObjectCreated:Put",
    "s3:ObjectCreated:Post",
    "s3:ObjectCreated:Copy",
    "s3:ObjectCreated:CompleteMultipartUpload",
    "s3:ObjectRemoved:*",
    "s3:ObjectRemoved:Delete",
    "s3:ObjectRemoved:DeleteMarkerCreated",
    "s3:LifecycleExpiration:*",
    "s3:LifecycleExpiration:Delete",
    "s3:LifecycleExpiration:DeleteMarkerCreated",
    "s3:LifecycleTransition",
    "s3:ObjectTagging:*",
    "s3:ObjectTagging:Put",
    "s3:ObjectTagging:Delete",
    "s3:ObjectAcl:*",
    "s3:ObjectAcl:Put",
];

/// What S3 calls something that happened, `s3:` left out.
fn event_name(happening: Happening) -> &'static str {
    match happening {
        Happening::Put => "ObjectCreated:Put",
        Happening::Posted => "ObjectCreated:Post",
        Happening::Copied => "ObjectCreated:Copy",
        Happening::Completed => "ObjectCreated:CompleteMultipartUpload",
        Happening::Deleted => "ObjectRemoved:Delete",
        Happening::Marked => "ObjectRemoved:DeleteMarkerCreated",
        Happening::Expired => "LifecycleExpiration:Delete",
        Happening::ExpiredByMarker => "LifecycleExpiration:DeleteMarkerCreated",
        Happening::Transitioned => "LifecycleTransition",
        Happening::Tagged => "ObjectTagging:Put",
        Happening::Untagged => "ObjectTagging:Delete",
        Happening::AclChanged => "ObjectAcl:Put",
    }
}

/// Who is told what.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    id: String,
    url: String,
    events: Vec<String>,
    prefix: String,
    suffix: String,
}

impl Rule {
    fn wants(&self, change: &Change) -> bool {
        let name = event_name(change.happening);
        let is_event = self.events.iter().any(|event| {
            let event = event.strip_prefix("s3:").unwrap_or(event);
            event == name || event.strip_suffix('*').is_some_and(|kind| name.starts_with(kind))
        });
        is_event && change.key.starts_with(&self.prefix) && change.key.ends_with(&self.suffix)
    }
}

/// The rules of a configuration, or what is wrong with it.
fn rules(configuration: &NotificationConfiguration) -> S3Result<Vec<Rule>> {
    if configuration.event_bridge_configuration.is_some() {
        return Err(s3_error!(NotImplemented, "EventBridge is not here: name a webhook."));
    }
    let mut all = Vec::new();
    for queue in configuration.queue_configurations.iter().flatten() {
        all.push((&queue.id, &queue.queue_arn, &queue.events, &queue.filter));
    }
    for topic in configuration.topic_configurations.iter().flatten() {
        all.push((&topic.id, &topic.topic_arn, &topic.events, &topic.filter));
    }
    for function in configuration.lambda_function_configurations.iter().flatten() {
        all.push((&function.id, &function.lambda_function_arn, &function.events, &function.filter));
    }
    if all.len() > RULES_MAX {
        return Err(s3_error!(
            InvalidArgument,
            "A bucket has at most {RULES_MAX} notification configurations."
        ));
    }
    let mut ids = BTreeSet::new();
    let mut rules = Vec::new();
    for (number, (id, arn, events, filter)) in all.into_iter().enumerate() {
        let id = id.clone().unwrap_or_else(|| format!("notification-{number}"));
        if !ids.insert(id.clone()) {
            return Err(s3_error!(InvalidArgument, "Two notification configurations have the same Id."));
        }
        let url = arn.strip_prefix(WEBHOOK).filter(|url| is_url(url)).ok_or_else(|| {
            s3_error!(
                InvalidArgument,
                "Unable to validate the following destination configurations: name a webhook as {WEBHOOK}https://..."
            )
        })?;
        if events.is_empty() {
            return Err(s3_error!(MalformedXML, "A notification configuration has an Event."));
        }
        let mut names = events.iter().map(AsRef::<str>::as_ref);
        if let Some(event) = names.find(|event| !EVENTS.contains(event)) {
            let shown: String = event.chars().take(80).collect();
            return Err(s3_error!(
                InvalidArgument,
                "A specified event is not supported for notifications: {shown}"
            ));
        }
        let (mut prefix, mut suffix) = (None, None);
        let parts = filter.as_ref().and_then(|filter| filter.key.as_ref()?.filter_rules.as_ref());
        for part in parts.into_iter().flatten() {
            let name = part.name.as_ref().map(|name| name.as_str().to_ascii_lowercase());
            let place = match name.as_deref() {
                Some("prefix") => &mut prefix,
                Some("suffix") => &mut suffix,
                _ => {
                    return Err(s3_error!(
                        InvalidArgument,
                        "filter rule name must be either prefix or suffix"
                    ));
                }
            };
            if place.replace(part.value.clone().unwrap_or_default()).is_some() {
                return Err(s3_error!(
                    InvalidArgument,
                    "Cannot specify more than one prefix or suffix rule."
                ));
            }
        }
        rules.push(Rule {
            id,
            url: url.to_owned(),
            events: events.iter().map(|event| event.as_ref().to_owned()).collect(),
            prefix: prefix.unwrap_or_default(),
            suffix: suffix.unwrap_or_default(),
        });
    }
    Ok(rules)
}

fn is_url(url: &str) -> bool {
    let parsed: Option<Uri> = url.parse().ok();
    parsed.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
}

/// A change as S3 tells it.
fn record(region: &str, rule: &Rule, bucket: &BucketAccess, change: &Change) -> Value {
    let owner = canonical_id(bucket.bucket.tenant.0);
    // As in a form, but for the slash, which S3 leaves as it is.
    let key: String = form_urlencoded::byte_serialize(change.key.as_bytes()).collect();
    let key = key.replace("%2F", "/");
    let mut object = json!({ "key": key, "sequencer": format!("{:016X}", change.sequence) });
    if !change.etag.is_empty() {
        object["size"] = change.size.into();
        object["eTag"] = change.etag.as_str().into();
    }
    if let Some(version) = change.version {
        object["versionId"] = version.to_string().into();
    }
    json!({
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": region,
        "eventTime": time(change.at),
        "eventName": event_name(change.happening),
        "userIdentity": { "principalId": owner },
        "requestParameters": { "sourceIPAddress": "" },
        "responseElements": { "x-amz-request-id": "", "x-amz-id-2": "" },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": rule.id,
            "bucket": {
                "name": bucket.bucket.name,
                "ownerIdentity": { "principalId": owner },
                "arn": format!("arn:aws:s3:::{}", bucket.bucket.name),
            },
            "object": object,
        },
    })
}

fn time(at: Timestamp) -> String {
    let mut text = Vec::new();
    // A time that cannot be written is left out.
    let _ = super::headers::timestamp(at).format(TimestampFormat::DateTime, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Sends a message; an error says why it may not have arrived.
async fn tell(outbound: &Outbound, url: &str, message: &Value) -> Result<(), String> {
    let request =
        Request::post(url).header(CONTENT_TYPE, "application/json").body(whole(message.to_string()));
    let request = request.map_err(|error| error.to_string())?;
    let answer = outbound.send(request, ANSWER_BYTES_MAX, ANSWER_TIME_MAX).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let status = answer.status();
    if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
}

impl Operations {
    pub(super) async fn get_bucket_notification_configuration(
        &self,
        caller: &Caller,
        request: S3Request<GetBucketNotificationConfigurationInput>,
    ) -> S3Result<S3Response<GetBucketNotificationConfigurationOutput>> {
        let bucket = &request.input.bucket;
        let kept = self.objects.bucket_document(caller, bucket, NOTIFICATION).await.map_err(refused)?;
        let kept: NotificationConfiguration = kept.map(|xml| read_xml(&xml)).transpose()?.unwrap_or_default();
        Ok(S3Response::new(GetBucketNotificationConfigurationOutput {
            event_bridge_configuration: kept.event_bridge_configuration,
            lambda_function_configurations: kept.lambda_function_configurations,
            queue_configurations: kept.queue_configurations,
            topic_configurations: kept.topic_configurations,
        }))
    }

    /// As S3 does, each webhook is asked with a test event before it is kept.
    pub(super) async fn put_bucket_notification_configuration(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketNotificationConfigurationInput>,
    ) -> S3Result<S3Response<PutBucketNotificationConfigurationOutput>> {
        let input = request.input;
        let rules = rules(&input.notification_configuration)?;
        let urls: BTreeSet<&str> = rules.iter().map(|rule| rule.url.as_str()).collect();
        if !input.skip_destination_validation.unwrap_or(false) {
            let test = json!({
                "Service": "Amazon S3", "Event": "s3:TestEvent", "Time": time(self.objects.time()),
                "Bucket": input.bucket, "RequestId": "", "HostId": "",
            });
            for url in urls {
                tell(&self.outbound, url, &test).await.map_err(|why| {
                    let why: String = why.chars().take(300).collect();
                    s3_error!(
                        InvalidArgument,
                        "Unable to validate the following destination configurations: {WEBHOOK}{url}: {why}"
                    )
                })?;
            }
        }
        let document =
            if rules.is_empty() { None } else { Some(write_xml(&input.notification_configuration)?) };
        let is_on = document.is_some();
        let follow = self.objects.follow(caller, &input.bucket, FOLLOWER, true);
        if is_on {
            // First, so that nothing which happens once the rules stand is missed.
            follow.await.map_err(refused)?;
        }
        let kept = self.objects.set_bucket_document(caller, &input.bucket, NOTIFICATION, document).await;
        kept.map_err(refused)?;
        if !is_on {
            self.objects.follow(caller, &input.bucket, FOLLOWER, false).await.map_err(refused)?;
        }
        Ok(S3Response::new(PutBucketNotificationConfigurationOutput {}))
    }
}

/// Tells webhooks. One at a time should work in a cluster; two only tell twice.
pub struct Messenger {
    following: Following,
    telling: Telling,
}

struct Telling {
    outbound: Outbound,
    region: String,
}

impl Messenger {
    /// `here`: the facts as loops see them, for whether anything waits.
    #[must_use]
    pub fn new(
        facts: Arc<dyn Metadata>,
        here: Arc<dyn Metadata>,
        objects: Objects,
        outbound: Outbound,
        region: String,
    ) -> Self {
        Self { following: Following::new(facts, here, objects), telling: Telling { outbound, region } }
    }

    /// Tells of all that waits, once through all buckets.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn round(&mut self, now: Timestamp) -> Result<(), MetaError> {
        self.following.round(&self.telling, now).await
    }
}

impl Acts for Telling {
    const FOLLOWER: &'static str = FOLLOWER;
    const DOCUMENT: &'static str = NOTIFICATION;

    async fn act(&self, bucket: &OfBucket, changes: &[Change], now: Timestamp) -> Result<(), String> {
        let kept: Option<NotificationConfiguration> = bucket
            .document
            .as_ref()
            .map(|xml| read_xml(xml))
            .transpose()
            .map_err(|error| error.to_string())?;
        let rules = rules(&kept.unwrap_or_default()).map_err(|error| error.to_string())?;
        let (fresh, old): (Vec<_>, Vec<_>) =
            changes.iter().partition(|change| now.millis_since(change.at) <= KEPT_MS);
        if !old.is_empty() {
            tracing::warn!(
                bucket = bucket.access.bucket.name,
                count = old.len(),
                "events are dropped: no webhook took them in time"
            );
        }
        for rule in &rules {
            let records: Vec<Value> = fresh
                .iter()
                .filter(|change| rule.wants(change))
                .map(|change| record(&self.region, rule, &bucket.access, change))
                .collect();
            if !records.is_empty() {
                tell(&self.outbound, &rule.url, &json!({ "Records": records })).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(inside: &str) -> Result<Vec<Rule>, String> {
        let xml = format!(
            "<NotificationConfiguration><QueueConfiguration>{inside}</QueueConfiguration></NotificationConfiguration>"
        );
        let configuration = read_xml(xml.as_bytes()).map_err(|error| error.to_string())?;
        rules(&configuration).map_err(|error| error.code().as_str().to_owned())
    }

    fn change(happening: Happening, key: &str) -> Change {
        let (key, etag) = (key.to_owned(), String::new());
        Change { sequence: 1, at: Timestamp(0), happening, key, version: None, size: 0, etag }
    }

    #[test]
    fn rules_choose_by_event_and_name() {
        let rules = parsed(
            "<Id>a</Id><Queue>arn:makai:webhook:::https://h.example/x?y=z</Queue><Event>s3:ObjectCreated:*</Event>\
             <Event>s3:ObjectRemoved:Delete</Event><Filter><S3Key><FilterRule><Name>Prefix</Name><Value>in/</Value>\
             </FilterRule><FilterRule><Name>suffix</Name><Value>.jpg</Value></FilterRule></S3Key></Filter>",
        );
        let rule = &rules.unwrap()[0];
        assert_eq!((rule.id.as_str(), rule.url.as_str()), ("a", "https://h.example/x?y=z"));
        for (happening, key, wants) in [
            (Happening::Put, "in/a.jpg", true),
            (Happening::Completed, "in/a.jpg", true),
            (Happening::Deleted, "in/a.jpg", true),
            (Happening::Marked, "in/a.jpg", false),
            (Happening::Tagged, "in/a.jpg", false),
            (Happening::Put, "out/a.jpg", false),
            (Happening::Put, "in/a.png", false),
        ] {
            assert_eq!(rule.wants(&change(happening, key)), wants, "{happening:?} {key}");
        }
    }

    #[test]
    fn wrong_rules_are_told_as_s3_does() {
        let webhook = "<Queue>arn:makai:webhook:::https://h.example/</Queue>";
        for (inside, code) in [
            (
                "<Queue>arn:aws:sqs:us-east-1:1:q</Queue><Event>s3:ObjectCreated:*</Event>".to_owned(),
                "InvalidArgument",
            ),
            (
                "<Queue>arn:makai:webhook:::nowhere</Queue><Event>s3:ObjectCreated:*</Event>".to_owned(),
                "InvalidArgument",
            ),
            (format!("{webhook}<Event>s3:ObjectRestore:*</Event>"), "InvalidArgument"),
            (
                format!(
                    "{webhook}<Event>s3:ObjectCreated:*</Event><Filter><S3Key><FilterRule><Name>infix</Name>\
                     <Value>x</Value></FilterRule></S3Key></Filter>"
                ),
                "InvalidArgument",
            ),
        ] {
            assert_eq!(parsed(&inside), Err(code.to_owned()), "{inside}");
        }
    }
}
