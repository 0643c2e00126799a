//! Between S3's headers and what `objects` keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use makai_raft::facts::Timestamp as Millis;
use makai_raft::facts::command::Precondition;
use makai_raft::facts::object::{ObjectHead, ObjectHeaders};
use makai_raft::facts::version::ObjectLock;
use s3s::dto::{CopySource, ETag, ETagCondition, Metadata, Owner, Range, Tag, Timestamp, TimestampFormat};
use s3s::{S3Result, s3_error};

use super::errors::custom;
use crate::identity::Caller;
use crate::objects::{ByteRange, CopyFrom};
use crate::policy::acl::Acl;

/// Bytes of user metadata, names and values.
const USER_METADATA_BYTES_MAX: usize = 2048;
const OBJECT_TAGS_MAX: usize = 10;
const BUCKET_TAGS_MAX: usize = 50;
const TAG_KEY_CHARS_MAX: usize = 128;
const TAG_VALUE_CHARS_MAX: usize = 256;
/// What S3 says of an object whose type nobody gave.
pub(super) const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";
/// Classes that promise nothing which the pool does not do.
const STORAGE_CLASSES: [&str; 6] =
    ["STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"];

/// A tenant, as S3 writes owners: 64 hex digits.
pub(super) fn owner_id(caller: &Caller) -> String {
    format!("{:064x}", caller.tenant.0)
}

pub(super) fn owner(caller: &Caller) -> Owner {
    Owner { id: Some(owner_id(caller)), display_name: Some(caller.tenant_name.clone()) }
}

/// The account that has an object, or began an upload: who its access list names, else the bucket's owner.
pub(super) fn account_of(headers: &ObjectHeaders, bucket_owner: &Caller) -> u64 {
    let acl = headers.acl.as_deref().and_then(Acl::from_text);
    acl.map_or(bucket_owner.tenant.0, |acl| acl.owner)
}

pub(super) fn timestamp(at: Millis) -> Timestamp {
    // Beyond every calendar that clients read, a time says as little as the epoch.
    const MILLIS_MAX: u64 = 253_402_300_799_000;
    let since = Duration::from_millis(if at.0 > MILLIS_MAX { 0 } else { at.0 });
    Timestamp::from(SystemTime::UNIX_EPOCH + since)
}

/// Whole seconds since the epoch; times before it are 0.
pub(super) fn unix_seconds(at: &Timestamp) -> u64 {
    let mut text = Vec::new();
    if at.format(TimestampFormat::EpochSeconds, &mut text).is_err() {
        return 0;
    }
    let text = String::from_utf8_lossy(&text);
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

pub(super) fn http_date(at: &Timestamp) -> Option<String> {
    let mut text = Vec::new();
    at.format(TimestampFormat::HttpDate, &mut text).ok()?;
    String::from_utf8(text).ok()
}

pub(super) fn etag(head: &ObjectHead) -> ETag {
    ETag::Strong(head.etag.clone())
}

/// The headers of S3 messages that make an object.
pub(super) struct Fields<'a> {
    pub(super) content_type: Option<&'a String>,
    pub(super) content_encoding: Option<&'a String>,
    pub(super) content_disposition: Option<&'a String>,
    pub(super) content_language: Option<&'a String>,
    pub(super) cache_control: Option<&'a String>,
    pub(super) expires: Option<&'a Timestamp>,
    pub(super) metadata: Option<&'a Metadata>,
    pub(super) storage_class: Option<&'a str>,
    pub(super) website_redirect: Option<&'a String>,
    pub(super) tagging: Option<&'a String>,
    pub(super) lock: ObjectLock,
}

/// What an S3 message says of the object to make; refuses what would be promised and not kept.
macro_rules! object_headers {
    ($input:expr) => {{
        let lock = $crate::s3::lock::lock_of_headers(
            $input.object_lock_mode.as_ref(),
            $input.object_lock_retain_until_date.as_ref(),
            $input.object_lock_legal_hold_status.as_ref(),
        );
        lock.and_then(|lock| {
            $crate::s3::headers::object_headers_of(&$crate::s3::headers::Fields {
                content_type: $input.content_type.as_ref(),
                content_encoding: $input.content_encoding.as_ref(),
                content_disposition: $input.content_disposition.as_ref(),
                content_language: $input.content_language.as_ref(),
                cache_control: $input.cache_control.as_ref(),
                expires: $input.expires.as_ref(),
                metadata: $input.metadata.as_ref(),
                storage_class: $input.storage_class.as_ref().map(|class| class.as_str()),
                website_redirect: $input.website_redirect_location.as_ref(),
                tagging: $input.tagging.as_ref(),
                lock,
            })
        })
    }};
}
pub(super) use object_headers;

pub(super) fn object_headers_of(fields: &Fields<'_>) -> S3Result<ObjectHeaders> {
    let user: BTreeMap<_, _> = fields.metadata.into_iter().flatten().collect();
    let user_bytes: usize = user.iter().map(|(name, value)| name.len() + value.len()).sum();
    if user_bytes > USER_METADATA_BYTES_MAX {
        return Err(s3_error!(
            MetadataTooLarge,
            "Your metadata headers have {user_bytes} bytes and exceed the maximum of {USER_METADATA_BYTES_MAX}."
        ));
    }
    if let Some(class) = fields.storage_class.filter(|class| !STORAGE_CLASSES.contains(class)) {
        let shown: String = class.chars().take(40).collect();
        return Err(s3_error!(
            InvalidStorageClass,
            "The storage class {shown:?} is not available: leave it out, or use one of {}.",
            STORAGE_CLASSES.join(", ")
        ));
    }
    if let Some(target) = fields.website_redirect
        && !["/", "http://", "https://"].iter().any(|start| target.starts_with(start))
    {
        return Err(custom(
            "InvalidRedirectLocation",
            400,
            "The website redirect location must have a prefix of 'http://' or 'https://' or '/'.",
        ));
    }
    let tagging = match fields.tagging {
        Some(tagging) => Some(header_tagging(tagging)?),
        None => None,
    };
    Ok(ObjectHeaders {
        content_type: fields.content_type.cloned(),
        content_encoding: fields.content_encoding.and_then(|value| stored_encoding(value)),
        content_disposition: fields.content_disposition.cloned(),
        content_language: fields.content_language.cloned(),
        cache_control: fields.cache_control.cloned(),
        expires: fields.expires.and_then(http_date),
        user: user.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        storage_class: fields.storage_class.filter(|&class| class != "STANDARD").map(str::to_owned),
        website_redirect: fields.website_redirect.cloned(),
        tagging: tagging.filter(|tagging| !tagging.is_empty()),
        lock: fields.lock,
        ..ObjectHeaders::default()
    })
}

/// `aws-chunked` is how the bytes travelled, not what they are.
fn stored_encoding(value: &str) -> Option<String> {
    let names: Vec<_> = value.split(',').map(str::trim).collect();
    if !names.contains(&"aws-chunked") {
        return (!value.is_empty()).then(|| value.to_owned());
    }
    let kept: Vec<_> = names.into_iter().filter(|name| !name.is_empty() && *name != "aws-chunked").collect();
    (!kept.is_empty()).then(|| kept.join(", "))
}

fn etag_text(condition: &ETagCondition) -> String {
    condition.as_etag().map_or_else(|| "*".to_owned(), |etag| etag.value().to_owned())
}

pub(super) fn precondition(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> Precondition {
    Precondition {
        if_match: if_match.map(etag_text).into_iter().collect(),
        if_none_match: if_none_match.map(etag_text).into_iter().collect(),
    }
}

/// The conditions of a read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Conditions<'a> {
    pub(super) if_match: Option<&'a ETagCondition>,
    pub(super) if_none_match: Option<&'a ETagCondition>,
    pub(super) if_modified_since: Option<&'a Timestamp>,
    pub(super) if_unmodified_since: Option<&'a Timestamp>,
}

impl Conditions<'_> {
    /// Says 304 or 412 where the conditions ask for it. ETags win over dates (RFC 9110, 13.2.2).
    pub(super) fn check(&self, head: &ObjectHead) -> S3Result<()> {
        let modified_at = head.modified_at.0 / 1000;
        let names =
            |condition: &ETagCondition| condition.as_etag().is_none_or(|etag| etag.value() == head.etag);
        let failed = match (self.if_match, self.if_unmodified_since) {
            (Some(condition), _) => !names(condition),
            (None, Some(since)) => modified_at > unix_seconds(since),
            (None, None) => false,
        };
        if failed {
            return Err(s3_error!(
                PreconditionFailed,
                "At least one of the pre-conditions you specified did not hold."
            ));
        }
        let unchanged = match (self.if_none_match, self.if_modified_since) {
            (Some(condition), _) => names(condition),
            (None, Some(since)) => modified_at <= unix_seconds(since),
            (None, None) => false,
        };
        if unchanged {
            let mut error = s3_error!(NotModified, "Not Modified");
            let mut headers = http::HeaderMap::new();
            if let Ok(value) = etag(head).to_http_header() {
                headers.insert(http::header::ETAG, value);
            }
            if let Some(value) = http_date(&timestamp(head.modified_at)).and_then(|date| date.parse().ok()) {
                headers.insert(http::header::LAST_MODIFIED, value);
            }
            error.set_headers(headers);
            return Err(error);
        }
        Ok(())
    }
}

pub(super) fn byte_range(range: Option<&Range>) -> ByteRange {
    match range {
        None => ByteRange::All,
        Some(&Range::Int { first, last }) => ByteRange::From { first, last },
        Some(&Range::Suffix { length }) => ByteRange::Last(length),
    }
}

/// A range whose numbers are greater than the parser takes, with the greatest that it does take in their place: no object is so
/// long. `None`: that does not make it a range.
pub(super) fn within_numbers(range: &HeaderValue) -> Option<HeaderValue> {
    let (first, last) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() && last.is_empty() {
        return None;
    }
    let bounded = |digits: &str| {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse::<u64>().unwrap_or(u64::MAX).min(i64::MAX as u64).to_string())
    };
    let or_none = |digits: &str| if digits.is_empty() { Some(String::new()) } else { bounded(digits) };
    let range = format!("bytes={}-{}", or_none(first)?, or_none(last)?);
    Range::parse(&range).ok()?;
    HeaderValue::try_from(range).ok()
}

/// `bytes=FIRST-LAST` of `x-amz-copy-source-range`, as the bytes from FIRST to before the end.
pub(super) fn copy_range(range: &str) -> S3Result<std::ops::Range<u64>> {
    match Range::parse(range) {
        Ok(Range::Int { first, last: Some(last) }) => Ok(first..last + 1),
        _ => Err(s3_error!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the \
             zero-based offsets of the first and last bytes to copy."
        )),
    }
}

/// The conditions on a source, as S3's messages carry them.
pub(super) struct SourceConditions<'a> {
    pub(super) if_match: Option<&'a ETagCondition>,
    pub(super) if_none_match: Option<&'a ETagCondition>,
    pub(super) if_modified_since: Option<&'a Timestamp>,
    pub(super) if_unmodified_since: Option<&'a Timestamp>,
}

macro_rules! source_conditions {
    ($input:expr) => {
        $crate::s3::headers::SourceConditions {
            if_match: $input.copy_source_if_match.as_ref(),
            if_none_match: $input.copy_source_if_none_match.as_ref(),
            if_modified_since: $input.copy_source_if_modified_since.as_ref(),
            if_unmodified_since: $input.copy_source_if_unmodified_since.as_ref(),
        }
    };
}
pub(super) use source_conditions;

pub(super) fn copy_from(source: &CopySource, conditions: &SourceConditions<'_>) -> S3Result<CopyFrom> {
    let CopySource::Bucket { bucket, key, version_id } = source else {
        return Err(s3_error!(
            NotImplemented,
            "Access points are not implemented: name the source as BUCKET/KEY in x-amz-copy-source."
        ));
    };
    Ok(CopyFrom {
        bucket: bucket.to_string(),
        key: key.to_string(),
        version: super::versions::version_id(version_id.as_deref())?,
        precondition: precondition(conditions.if_match, conditions.if_none_match),
        if_modified_since: conditions.if_modified_since.map(unix_seconds),
        if_unmodified_since: conditions.if_unmodified_since.map(unix_seconds),
    })
}

/// Tags of `a=b&c=d`.
pub(super) fn parse_tags(text: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

/// The tags of `x-amz-tagging`.
fn header_tagging(text: &str) -> S3Result<String> {
    let tags = parse_tags(text);
    let is_hex = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    let names: BTreeSet<_> = tags.iter().map(|(key, _)| key.as_str()).collect();
    if !text.split('%').skip(1).all(is_hex) || names.contains("") || names.len() < tags.len() {
        return Err(s3_error!(
            InvalidArgument,
            "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag \
             name duplicates."
        ));
    }
    tagging_string(&tags, OBJECT_TAGS_MAX)
}

/// What S3 takes in keys and values of tags.
fn is_tag_text(text: &str) -> bool {
    text.chars().all(|one| one.is_alphanumeric() || one.is_whitespace() || "+-=._:/@".contains(one))
}

fn tagging_string(tags: &[(String, String)], tags_max: usize) -> S3Result<String> {
    if tags.len() > tags_max {
        let code = if tags_max == OBJECT_TAGS_MAX {
            s3s::S3ErrorCode::InvalidTag
        } else {
            s3s::S3ErrorCode::TooManyTags
        };
        let message = format!("{} tags are too many: at most {tags_max} are kept.", tags.len());
        return Err(s3s::S3Error::with_message(code, message));
    }
    let mut seen = BTreeSet::new();
    for (key, value) in tags {
        let fits = |text: &str, chars_max: usize| text.chars().count() <= chars_max;
        if key.is_empty() || !fits(key, TAG_KEY_CHARS_MAX) || !fits(value, TAG_VALUE_CHARS_MAX) {
            return Err(s3_error!(
                InvalidTag,
                "A tag's key has 1 to {TAG_KEY_CHARS_MAX} characters, its value at most {TAG_VALUE_CHARS_MAX}."
            ));
        }
        if !is_tag_text(key) || !is_tag_text(value) {
            return Err(s3_error!(
                InvalidTag,
                "Tags are made of letters, digits, spaces and the characters + - = . _ : / @."
            ));
        }
        if key.starts_with("aws:") {
            return Err(s3_error!(InvalidTag, "Keys of tags that begin with aws: are S3's own."));
        }
        if !seen.insert(key) {
            return Err(s3_error!(InvalidTag, "Cannot provide multiple Tags with the same key."));
        }
    }
    Ok(form_urlencoded::Serializer::new(String::new()).extend_pairs(tags).finish())
}

fn pairs(tags: Vec<Tag>) -> Vec<(String, String)> {
    tags.into_iter().map(|tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default())).collect()
}

pub(super) fn object_tagging(tags: Vec<Tag>) -> S3Result<String> {
    tagging_string(&pairs(tags), OBJECT_TAGS_MAX)
}

pub(super) fn bucket_tagging(tags: Vec<Tag>) -> S3Result<String> {
    tagging_string(&pairs(tags), BUCKET_TAGS_MAX)
}

pub(super) fn tag_set(tagging: &str) -> Vec<Tag> {
    let tags = parse_tags(tagging).into_iter();
    tags.map(|(key, value)| Tag { key: Some(key), value: Some(value) }).collect()
}

/// Sets what an answer to GET or HEAD says of an object.
macro_rules! describe {
    ($output:expr, $head:expr) => {{
        let (output, head) = (&mut $output, &$head);
        let headers = &head.headers;
        output.accept_ranges = Some("bytes".into());
        output.e_tag = Some($crate::s3::headers::etag(head));
        output.last_modified = Some($crate::s3::headers::timestamp(head.modified_at));
        output.content_type = Some($crate::s3::headers::content_type(head));
        output.content_encoding.clone_from(&headers.content_encoding);
        output.content_disposition.clone_from(&headers.content_disposition);
        output.content_language.clone_from(&headers.content_language);
        output.cache_control.clone_from(&headers.cache_control);
        output.expires = $crate::s3::headers::expires(headers);
        output.metadata = $crate::s3::headers::metadata(headers);
        output.storage_class = headers.storage_class.clone().map(s3s::dto::StorageClass::from);
        output.website_redirect_location.clone_from(&headers.website_redirect);
        let lock = $crate::s3::lock::shown(&headers.lock);
        output.object_lock_mode = lock.mode;
        output.object_lock_retain_until_date = lock.until;
        output.object_lock_legal_hold_status = lock.hold;
    }};
}
pub(super) use describe;

pub(super) fn content_type(head: &ObjectHead) -> String {
    known_type(head).unwrap_or(DEFAULT_CONTENT_TYPE).to_owned()
}

/// As who put the object said. A program on a mount says nothing: of its files it is what their names end in.
pub(super) fn known_type(head: &ObjectHead) -> Option<&str> {
    let by_name = || head.file.as_ref().and_then(|_| mime_guess::from_path(&head.key).first_raw());
    head.headers.content_type.as_deref().or_else(by_name)
}

pub(super) fn expires(headers: &ObjectHeaders) -> Option<Timestamp> {
    Timestamp::parse(TimestampFormat::HttpDate, headers.expires.as_deref()?).ok()
}

pub(super) fn metadata(headers: &ObjectHeaders) -> Option<Metadata> {
    (!headers.user.is_empty()).then(|| headers.user.iter().cloned().collect())
}

pub(super) fn length(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use s3s::S3ErrorCode;

    use super::*;

    fn fields() -> Fields<'static> {
        Fields {
            content_type: None,
            content_encoding: None,
            content_disposition: None,
            content_language: None,
            cache_control: None,
            expires: None,
            metadata: None,
            storage_class: None,
            website_redirect: None,
            tagging: None,
            lock: ObjectLock::default(),
        }
    }

    fn code<T>(result: S3Result<T>) -> Option<S3ErrorCode> {
        result.err().map(|error| error.code().clone())
    }

    fn head(etag: &str, modified_at_ms: u64) -> ObjectHead {
        ObjectHead {
            key: "k".into(),
            version: 1,
            inode: 1,
            modified_at: Millis(modified_at_ms),
            size: 10,
            etag: etag.into(),
            headers: ObjectHeaders::default(),
            checksum: None,
            part_count: 0,
            has_version_id: false,
            file: None,
        }
    }

    #[test]
    fn user_metadata_has_a_bound_on_names_and_values() {
        let fits: Metadata = [("a".repeat(48), "b".repeat(2000))].into();
        assert!(object_headers_of(&Fields { metadata: Some(&fits), ..fields() }).is_ok());
        let too_large: Metadata = [("a".repeat(49), "b".repeat(2000))].into();
        let refused = object_headers_of(&Fields { metadata: Some(&too_large), ..fields() });
        assert_eq!(code(refused), Some(S3ErrorCode::MetadataTooLarge));
    }

    #[test]
    fn the_encoding_of_the_journey_is_not_kept() {
        assert_eq!(stored_encoding("aws-chunked"), None);
        assert_eq!(stored_encoding("aws-chunked,gzip"), Some("gzip".into()));
        assert_eq!(stored_encoding("gzip, aws-chunked"), Some("gzip".into()));
        assert_eq!(stored_encoding("gzip,br"), Some("gzip,br".into()));
        assert_eq!(stored_encoding("deflate, gzip"), Some("deflate, gzip".into()));
        assert_eq!(stored_encoding("deflate,gzip,aws-chunked"), Some("deflate, gzip".into()));
        assert_eq!(stored_encoding(""), None);
    }

    #[test]
    fn tags_survive_and_wrong_ones_are_refused() {
        let tags = "project=blue%20sky&empty=&plus=a%2Bb";
        let kept =
            object_headers_of(&Fields { tagging: Some(&tags.into()), ..fields() }).unwrap().tagging.unwrap();
        let expected = [("project", "blue sky"), ("empty", ""), ("plus", "a+b")];
        assert_eq!(parse_tags(&kept), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(tag_set(&kept).len(), 3);
        let eleven: Vec<_> = (0..11).map(|n| format!("k{n}=v")).collect();
        for (bad, expected) in [
            ("a=1&a=2", S3ErrorCode::InvalidArgument),
            ("=x", S3ErrorCode::InvalidArgument),
            ("a%2=x", S3ErrorCode::InvalidArgument),
            ("k%3F=x", S3ErrorCode::InvalidTag),
            ("k=v!", S3ErrorCode::InvalidTag),
            (&format!("{}=x", "k".repeat(129)), S3ErrorCode::InvalidTag),
            (&format!("k={}", "v".repeat(257)), S3ErrorCode::InvalidTag),
            (&eleven.join("&"), S3ErrorCode::InvalidTag),
        ] {
            let refused = object_headers_of(&Fields { tagging: Some(&bad.to_owned()), ..fields() });
            assert_eq!(code(refused), Some(expected), "{bad}");
        }
        let other = Tag { key: Some("ключ @1".into()), value: Some("a/b:c".into()) };
        assert!(object_tagging(vec![other.clone()]).is_ok());
        assert!(object_tagging(vec![other.clone(), other]).is_err(), "one key twice");
    }

    #[test]
    fn what_would_not_be_kept_is_refused() {
        let glacier = object_headers_of(&Fields { storage_class: Some("GLACIER"), ..fields() });
        assert_eq!(code(glacier), Some(S3ErrorCode::InvalidStorageClass));
    }

    /// The table of RFC 9110, 13.2.2, as S3 documents it for GetObject.
    #[test]
    fn conditions_follow_their_order() {
        let head = head("abc", 1_700_000_000_500);
        let at = |seconds: u64| timestamp(Millis(seconds * 1000));
        let (same, other): (ETagCondition, ETagCondition) =
            ("\"abc\"".parse().unwrap(), "\"xyz\"".parse().unwrap());
        let (before, then, after) = (at(1_699_999_999), at(1_700_000_000), at(1_700_000_001));
        let check = |if_match, if_none_match, if_modified_since, if_unmodified_since| {
            let conditions = Conditions { if_match, if_none_match, if_modified_since, if_unmodified_since };
            code(conditions.check(&head))
        };
        let (not_modified, failed) = (Some(S3ErrorCode::NotModified), Some(S3ErrorCode::PreconditionFailed));
        assert_eq!(check(None, None, None, None), None);
        assert_eq!(check(Some(&same), None, None, None), None);
        assert_eq!(check(Some(&ETagCondition::Any), None, None, None), None);
        assert_eq!(check(Some(&other), None, None, None), failed);
        assert_eq!(check(None, Some(&same), None, None), not_modified);
        assert_eq!(check(None, Some(&ETagCondition::Any), None, None), not_modified);
        assert_eq!(check(None, Some(&other), None, None), None);
        assert_eq!(check(None, None, Some(&before), None), None);
        assert_eq!(check(None, None, Some(&then), None), not_modified);
        assert_eq!(check(None, None, Some(&after), None), not_modified);
        assert_eq!(check(None, None, None, Some(&before)), failed);
        assert_eq!(check(None, None, None, Some(&then)), None);
        // An ETag that matches outweighs the date beside it.
        assert_eq!(check(Some(&same), None, None, Some(&before)), None);
        assert_eq!(check(None, Some(&other), Some(&after), None), None);
        assert_eq!(check(Some(&other), Some(&same), None, None), failed);
    }

    #[test]
    fn a_304_still_names_the_version() {
        let head = head("abc", 1_700_000_000_000);
        let conditions = Conditions { if_none_match: Some(&ETagCondition::Any), ..Conditions::default() };
        let error = conditions.check(&head).unwrap_err();
        assert_eq!(error.headers().unwrap()["etag"], "\"abc\"");
        assert_eq!(error.headers().unwrap()["last-modified"], "Tue, 14 Nov 2023 22:13:20 GMT");
    }

    #[test]
    fn numbers_beyond_all_objects_are_still_numbers() {
        let bounded = |range: &'static str| within_numbers(&HeaderValue::from_static(range));
        assert_eq!(bounded("bytes=18446744073709551615-").unwrap(), "bytes=9223372036854775807-");
        assert_eq!(bounded("bytes=0-99999999999999999999999").unwrap(), "bytes=0-9223372036854775807");
        assert_eq!(bounded("bytes=-99999999999999999999").unwrap(), "bytes=-9223372036854775807");
        for none in [
            "bytes=9-1",
            "bytes=-",
            "bytes=1-2,4-5",
            "bytes=+1-",
            "lines=1-2",
            "bytes=99999999999999999999-1",
        ] {
            assert_eq!(bounded(none), None, "{none}");
        }
    }

    #[test]
    fn a_copy_range_has_both_ends() {
        assert_eq!(copy_range("bytes=0-4").unwrap(), 0..5);
        assert_eq!(copy_range("bytes=7-7").unwrap(), 7..8);
        for bad in ["bytes=5-", "bytes=-5", "bytes=5-4", "0-4", "bytes=0-4,6-8", ""] {
            assert_eq!(code(copy_range(bad)), Some(S3ErrorCode::InvalidArgument), "{bad}");
        }
    }

    #[test]
    fn times_are_whole_seconds_and_never_panic() {
        assert_eq!(unix_seconds(&timestamp(Millis(1_700_000_000_999))), 1_700_000_000);
        assert_eq!(unix_seconds(&timestamp(Millis(0))), 0);
        assert_eq!(unix_seconds(&timestamp(Millis(u64::MAX))), 0);
    }
}
