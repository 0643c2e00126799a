//! A bucket's lifecycle: what clients may write, and the header that tells when an object expires.

use std::collections::BTreeSet;

use makai_raft::facts::Timestamp as Millis;
use makai_raft::facts::object::ObjectHead;
use makai_raft::lifecycle::{
    CLASSES, Calendar, DAY_MS, Expiration as Expires_, NoncurrentExpiration,
    NoncurrentTransition as LaterTransition, Rule, Rules, Scope, Transition as Transition_, When,
};
use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::errors::refused;
use super::headers::{http_date, timestamp, unix_seconds};
use super::operations::Operations;
use crate::identity::Caller;

/// Rules of one bucket, as S3 has it.
const RULES_MAX: usize = 1000;
const ID_CHARS_MAX: usize = 255;
/// What S3 keeps at most of one key's noncurrent versions.
const NEWER_NONCURRENT_MAX: i32 = 100;

fn malformed(why: &str) -> S3Error {
    s3_error!(MalformedXML, "{why}")
}

fn invalid(why: &str) -> S3Error {
    s3_error!(InvalidArgument, "{why}")
}

fn positive(days: i32, name: &str) -> S3Result<u32> {
    u32::try_from(days)
        .ok()
        .filter(|days| *days > 0)
        .ok_or_else(|| s3_error!(InvalidArgument, "'{name}' must be a positive integer."))
}

fn size(bytes: i64) -> S3Result<u64> {
    u64::try_from(bytes).map_err(|_| invalid("A size of a Filter is not negative."))
}

fn tag(tag: &Tag) -> (String, String) {
    (tag.key.clone().unwrap_or_default(), tag.value.clone().unwrap_or_default())
}

fn scope(rule: &LifecycleRule) -> S3Result<Scope> {
    let filter = match (&rule.filter, &rule.prefix) {
        (Some(_), Some(_)) => return Err(malformed("A Rule has a Filter or a Prefix, not both.")),
        (None, None) => return Err(malformed("A Rule needs a Filter; an empty one is for all objects.")),
        (None, Some(prefix)) => return Ok(Scope::Bare(prefix.clone())),
        (Some(filter), None) => filter,
    };
    let mut scopes = Vec::new();
    if let Some(prefix) = &filter.prefix {
        scopes.push(Scope::Prefix(prefix.clone()));
    }
    if let Some(given) = &filter.tag {
        let (key, value) = tag(given);
        scopes.push(Scope::Tag(key, value));
    }
    if let Some(bound) = filter.object_size_greater_than {
        scopes.push(Scope::LargerThan(size(bound)?));
    }
    if let Some(bound) = filter.object_size_less_than {
        scopes.push(Scope::SmallerThan(size(bound)?));
    }
    if let Some(and) = &filter.and {
        scopes.push(all_of(and)?);
    }
    if scopes.len() > 1 {
        return Err(malformed("A Filter names one condition; several stand in And."));
    }
    Ok(scopes.pop().unwrap_or(Scope::All))
}

fn all_of(and: &LifecycleRuleAndOperator) -> S3Result<Scope> {
    let tags: Vec<_> = and.tags.iter().flatten().map(tag).collect();
    let names: BTreeSet<_> = tags.iter().map(|(name, _)| name).collect();
    if names.len() < tags.len() {
        return Err(invalid("Duplicate Tag Keys are not allowed."));
    }
    let larger_than = and.object_size_greater_than.map(size).transpose()?;
    let smaller_than = and.object_size_less_than.map(size).transpose()?;
    if let (Some(larger), Some(smaller)) = (larger_than, smaller_than)
        && larger.saturating_add(1) >= smaller
    {
        return Err(invalid("ObjectSizeGreaterThan must be less than ObjectSizeLessThan."));
    }
    Ok(Scope::And { prefix: and.prefix.clone(), tags, larger_than, smaller_than })
}

fn expiration(asked: &LifecycleExpiration) -> S3Result<Expires_> {
    match (&asked.date, asked.days, asked.expired_object_delete_marker) {
        (None, Some(days), None) => positive(days, "Days").map(Expires_::Days),
        (Some(date), None, None) => midnight(date).map(Expires_::Date),
        (None, None, Some(is_asked)) => Ok(Expires_::LoneMarker(is_asked)),
        _ => Err(malformed("An Expiration has one of Days, Date and ExpiredObjectDeleteMarker.")),
    }
}

fn midnight(date: &Timestamp) -> S3Result<Millis> {
    let at = Millis(unix_seconds(date).saturating_mul(1000));
    if at.0.is_multiple_of(DAY_MS) { Ok(at) } else { Err(invalid("'Date' must be at midnight GMT.")) }
}

/// A storage class that a rule may give.
fn class(asked: Option<&TransitionStorageClass>) -> S3Result<String> {
    let name =
        asked.map(TransitionStorageClass::as_str).ok_or_else(|| malformed("StorageClass is missing."))?;
    if CLASSES.contains(&name) {
        return Ok(name.to_owned());
    }
    let shown: String = name.chars().take(40).collect();
    Err(s3_error!(
        InvalidArgument,
        "The storage class {shown:?} is not available to transitions, for nothing is archived: use one of {}.",
        CLASSES.join(", ")
    ))
}

fn days_from_zero(days: i32, name: &str) -> S3Result<u32> {
    u32::try_from(days).map_err(|_| s3_error!(InvalidArgument, "'{name}' must not be negative."))
}

fn transition(asked: &Transition) -> S3Result<Transition_> {
    let when = match (&asked.date, asked.days) {
        (None, Some(days)) => When::Days(days_from_zero(days, "Days")?),
        (Some(date), None) => When::Date(midnight(date)?),
        _ => return Err(malformed("A Transition has one of Days and Date.")),
    };
    Ok(Transition_ { when, class: class(asked.storage_class.as_ref())? })
}

fn newer_kept(asked: Option<i32>) -> S3Result<Option<u32>> {
    match asked {
        None => Ok(None),
        Some(count @ 1..=NEWER_NONCURRENT_MAX) => Ok(Some(count.unsigned_abs())),
        Some(_) => Err(invalid("'NewerNoncurrentVersions' must be 1 to 100.")),
    }
}

fn noncurrent_transition(asked: &NoncurrentVersionTransition) -> S3Result<LaterTransition> {
    let days = asked.noncurrent_days.ok_or_else(|| malformed("NoncurrentDays is missing."))?;
    Ok(LaterTransition {
        days: days_from_zero(days, "NoncurrentDays")?,
        newer_kept: newer_kept(asked.newer_noncurrent_versions)?,
        class: class(asked.storage_class.as_ref())?,
    })
}

/// What expires has been what it was to become before.
fn check_order(rule: &Rule) -> S3Result<()> {
    let is_late = |by: u32| {
        let mut all = rule.transitions.iter();
        all.any(|transition| matches!(transition.when, When::Days(days) if days >= by))
    };
    if let Some(Expires_::Days(by)) = rule.expiration
        && is_late(by)
    {
        return Err(invalid(
            "'Days' in the Expiration action must be greater than 'Days' in the Transition action.",
        ));
    }
    if let Some(NoncurrentExpiration { days: by, .. }) = rule.noncurrent
        && rule.noncurrent_transitions.iter().any(|transition| transition.days >= by)
    {
        return Err(invalid(
            "'NoncurrentDays' in the NoncurrentVersionExpiration action must be greater than 'NoncurrentDays' in the \
             NoncurrentVersionTransition action.",
        ));
    }
    Ok(())
}

/// A rule counts days or names dates, in all that it does with current versions.
fn check_clock(rule: &Rule) -> S3Result<()> {
    let expiration = rule.expiration.and_then(|expiration| match expiration {
        Expires_::Days(_) => Some(true),
        Expires_::Date(_) => Some(false),
        Expires_::LoneMarker(_) => None,
    });
    let moves = rule.transitions.iter().map(|transition| matches!(transition.when, When::Days(_)));
    let all: BTreeSet<bool> = moves.chain(expiration).collect();
    if all.len() > 1 {
        return Err(s3_error!(
            InvalidRequest,
            "Found mixed 'Date' and 'Days' based Expiration and Transition actions in lifecycle rule '{}'.",
            rule.id
        ));
    }
    Ok(())
}

fn noncurrent(asked: &NoncurrentVersionExpiration) -> S3Result<NoncurrentExpiration> {
    let days = asked.noncurrent_days.ok_or_else(|| malformed("NoncurrentDays is missing."))?;
    let days = positive(days, "NoncurrentDays")?;
    Ok(NoncurrentExpiration { days, newer_kept: newer_kept(asked.newer_noncurrent_versions)? })
}

/// `number`: of the rule, for those that come without an id.
fn rule(asked: &LifecycleRule, number: usize) -> S3Result<Rule> {
    let is_enabled = match asked.status.as_str() {
        ExpirationStatus::ENABLED => true,
        ExpirationStatus::DISABLED => false,
        _ => return Err(malformed("The Status of a Rule is Enabled or Disabled.")),
    };
    let id = match asked.id.as_deref().filter(|id| !id.is_empty()) {
        None => format!("rule-{number}"),
        Some(id) if id.chars().count() > ID_CHARS_MAX => {
            return Err(invalid("ID length should not exceed allowed limit of 255."));
        }
        Some(id) => id.to_owned(),
    };
    let scope = scope(asked)?;
    let abort_days = match &asked.abort_incomplete_multipart_upload {
        None => None,
        Some(abort) => {
            let days = abort.days_after_initiation;
            let days = days.ok_or_else(|| malformed("DaysAfterInitiation is missing."))?;
            Some(positive(days, "DaysAfterInitiation")?)
        }
    };
    let expiration = asked.expiration.as_ref().map(expiration).transpose()?;
    let noncurrent = asked.noncurrent_version_expiration.as_ref().map(noncurrent).transpose()?;
    let transitions = asked.transitions.iter().flatten().map(transition);
    let transitions: Vec<_> = transitions.collect::<S3Result<_>>()?;
    let noncurrent_transitions = asked.noncurrent_version_transitions.iter().flatten();
    let noncurrent_transitions: Vec<_> =
        noncurrent_transitions.map(noncurrent_transition).collect::<S3Result<_>>()?;
    let moves = !transitions.is_empty() || !noncurrent_transitions.is_empty();
    if expiration.is_none() && noncurrent.is_none() && abort_days.is_none() && !moves {
        return Err(s3_error!(
            InvalidRequest,
            "At least one action needs to be specified in a rule: an expiration, a transition or an abort."
        ));
    }
    check_scope(&scope, expiration, abort_days)?;
    let rule = Rule {
        id,
        is_enabled,
        scope,
        expiration,
        noncurrent,
        abort_days,
        transitions,
        noncurrent_transitions,
    };
    check_clock(&rule)?;
    check_order(&rule)?;
    Ok(rule)
}

/// What uploads and markers do not have cannot choose among them.
fn check_scope(scope: &Scope, expiration: Option<Expires_>, abort_days: Option<u32>) -> S3Result<()> {
    let (has_tags, has_sizes) = match scope {
        Scope::Tag(..) => (true, false),
        Scope::LargerThan(_) | Scope::SmallerThan(_) => (false, true),
        Scope::And { tags, larger_than, smaller_than, .. } => {
            (!tags.is_empty(), larger_than.is_some() || smaller_than.is_some())
        }
        Scope::Bare(_) | Scope::All | Scope::Prefix(_) => (false, false),
    };
    if abort_days.is_some() && (has_tags || has_sizes) {
        return Err(s3_error!(
            InvalidRequest,
            "AbortIncompleteMultipartUpload cannot be specified with Tags or object sizes."
        ));
    }
    if matches!(expiration, Some(Expires_::LoneMarker(_))) && has_tags {
        return Err(s3_error!(InvalidRequest, "ExpiredObjectDeleteMarker cannot be specified with Tags."));
    }
    Ok(())
}

fn rules(asked: &[LifecycleRule]) -> S3Result<Rules> {
    if asked.is_empty() || asked.len() > RULES_MAX {
        return Err(malformed("A lifecycle has 1 to 1000 rules."));
    }
    let rules: Vec<Rule> =
        asked.iter().zip(1..).map(|(asked, number)| rule(asked, number)).collect::<S3Result<_>>()?;
    let ids: BTreeSet<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
    if ids.len() < rules.len() {
        return Err(invalid("Rule ID must be unique. Found same ID for more than one rule."));
    }
    Ok(Rules { rules })
}

fn shown_tag((key, value): &(String, String)) -> Tag {
    Tag { key: Some(key.clone()), value: Some(value.clone()) }
}

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn filter(scope: &Scope) -> Option<LifecycleRuleFilter> {
    let mut filter = LifecycleRuleFilter::default();
    match scope {
        Scope::Bare(_) => return None,
        Scope::All => {}
        Scope::Prefix(prefix) => filter.prefix = Some(prefix.clone()),
        Scope::Tag(key, value) => filter.tag = Some(shown_tag(&(key.clone(), value.clone()))),
        Scope::LargerThan(bound) => filter.object_size_greater_than = Some(bytes(*bound)),
        Scope::SmallerThan(bound) => filter.object_size_less_than = Some(bytes(*bound)),
        Scope::And { prefix, tags, larger_than, smaller_than } => {
            filter.and = Some(LifecycleRuleAndOperator {
                object_size_greater_than: larger_than.map(bytes),
                object_size_less_than: smaller_than.map(bytes),
                prefix: prefix.clone(),
                tags: (!tags.is_empty()).then(|| tags.iter().map(shown_tag).collect()),
            });
        }
    }
    Some(filter)
}

fn shown_transition(transition: &Transition_) -> Transition {
    let (days, date) = match transition.when {
        When::Days(days) => (Some(days.cast_signed()), None),
        When::Date(date) => (None, Some(timestamp(date))),
    };
    Transition { date, days, storage_class: Some(transition.class.clone().into()) }
}

fn shown_later(transition: &LaterTransition) -> NoncurrentVersionTransition {
    NoncurrentVersionTransition {
        newer_noncurrent_versions: transition.newer_kept.map(u32::cast_signed),
        noncurrent_days: Some(transition.days.cast_signed()),
        storage_class: Some(transition.class.clone().into()),
    }
}

fn shown(rule: &Rule) -> LifecycleRule {
    let days = |days: u32| Some(days.cast_signed());
    let (transitions, later) = (&rule.transitions, &rule.noncurrent_transitions);
    LifecycleRule {
        abort_incomplete_multipart_upload: rule
            .abort_days
            .map(|count| AbortIncompleteMultipartUpload { days_after_initiation: days(count) }),
        expiration: rule.expiration.map(|expiration| {
            let mut shown = LifecycleExpiration::default();
            match expiration {
                Expires_::Days(count) => shown.days = days(count),
                Expires_::Date(date) => shown.date = Some(timestamp(date)),
                Expires_::LoneMarker(is_asked) => shown.expired_object_delete_marker = Some(is_asked),
            }
            shown
        }),
        filter: filter(&rule.scope),
        id: Some(rule.id.clone()),
        noncurrent_version_expiration: rule.noncurrent.map(|noncurrent| NoncurrentVersionExpiration {
            newer_noncurrent_versions: noncurrent.newer_kept.map(u32::cast_signed),
            noncurrent_days: days(noncurrent.days),
        }),
        noncurrent_version_transitions: (!later.is_empty()).then(|| later.iter().map(shown_later).collect()),
        prefix: match &rule.scope {
            Scope::Bare(prefix) => Some(prefix.clone()),
            _ => None,
        },
        status: ExpirationStatus::from_static(if rule.is_enabled {
            ExpirationStatus::ENABLED
        } else {
            ExpirationStatus::DISABLED
        }),
        transitions: (!transitions.is_empty()).then(|| transitions.iter().map(shown_transition).collect()),
    }
}

impl Operations {
    pub(super) async fn get_bucket_lifecycle_configuration(
        &self,
        caller: &Caller,
        request: S3Request<GetBucketLifecycleConfigurationInput>,
    ) -> S3Result<S3Response<GetBucketLifecycleConfigurationOutput>> {
        let rules = self.objects.lifecycle(caller, &request.input.bucket).await.map_err(refused)?;
        let rules = rules.ok_or_else(|| {
            s3_error!(NoSuchLifecycleConfiguration, "The lifecycle configuration does not exist.")
        })?;
        Ok(S3Response::new(GetBucketLifecycleConfigurationOutput {
            rules: Some(rules.rules.iter().map(shown).collect()),
            // What S3 says where nothing else was asked for.
            transition_default_minimum_object_size: Some(TransitionDefaultMinimumObjectSize::from_static(
                TransitionDefaultMinimumObjectSize::ALL_STORAGE_CLASSES_128K,
            )),
        }))
    }

    pub(super) async fn put_bucket_lifecycle_configuration(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketLifecycleConfigurationInput>,
    ) -> S3Result<S3Response<PutBucketLifecycleConfigurationOutput>> {
        let input = request.input;
        let asked = input.lifecycle_configuration.map(|asked| asked.rules).unwrap_or_default();
        let rules = rules(&asked)?;
        self.objects.set_lifecycle(caller, &input.bucket, Some(&rules)).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketLifecycleConfigurationOutput::default()))
    }

    pub(super) async fn delete_bucket_lifecycle(
        &self,
        caller: &Caller,
        request: S3Request<DeleteBucketLifecycleInput>,
    ) -> S3Result<S3Response<DeleteBucketLifecycleOutput>> {
        self.objects.set_lifecycle(caller, &request.input.bucket, None).await.map_err(refused)?;
        Ok(S3Response::new(DeleteBucketLifecycleOutput {}))
    }

    /// `x-amz-expiration` of a current version that some rule lets expire.
    pub(super) async fn expiration(&self, bucket: &str, head: &ObjectHead) -> Option<String> {
        let rules = self.objects.recent_lifecycle(bucket).await?;
        let (at, id) = rules.expiry(head, Calendar::default())?;
        let id = form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>().replace('+', "%20");
        Some(format!("expiry-date=\"{}\", rule-id=\"{id}\"", http_date(&timestamp(at))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> LifecycleRule {
        LifecycleRule {
            abort_incomplete_multipart_upload: None,
            expiration: Some(LifecycleExpiration { days: Some(1), ..LifecycleExpiration::default() }),
            filter: Some(LifecycleRuleFilter::default()),
            id: Some("id".into()),
            noncurrent_version_expiration: None,
            noncurrent_version_transitions: None,
            prefix: None,
            status: ExpirationStatus::from_static(ExpirationStatus::ENABLED),
            transitions: None,
        }
    }

    fn code(asked: &[LifecycleRule]) -> Option<String> {
        rules(asked).err().map(|error| error.code().as_str().to_owned())
    }

    /// Every form of a rule comes back as it was written.
    #[test]
    fn rules_are_shown_as_they_were_put() {
        let tagged = Tag { key: Some("k".into()), value: Some("v".into()) };
        let filters = [
            LifecycleRuleFilter::default(),
            LifecycleRuleFilter { prefix: Some("p/".into()), ..Default::default() },
            LifecycleRuleFilter { tag: Some(tagged.clone()), ..Default::default() },
            LifecycleRuleFilter { object_size_greater_than: Some(5), ..Default::default() },
            LifecycleRuleFilter { object_size_less_than: Some(5), ..Default::default() },
            LifecycleRuleFilter {
                and: Some(LifecycleRuleAndOperator {
                    object_size_greater_than: Some(1),
                    object_size_less_than: Some(9),
                    prefix: Some("p".into()),
                    tags: Some(vec![tagged]),
                }),
                ..Default::default()
            },
        ];
        for filter in filters {
            let put = LifecycleRule { filter: Some(filter), ..asked() };
            let kept = rules(std::slice::from_ref(&put)).unwrap();
            assert_eq!(shown(&kept.rules[0]), put);
        }
        let bare = LifecycleRule {
            filter: None,
            prefix: Some("p".into()),
            expiration: Some(LifecycleExpiration {
                expired_object_delete_marker: Some(true),
                ..Default::default()
            }),
            noncurrent_version_expiration: Some(NoncurrentVersionExpiration {
                newer_noncurrent_versions: Some(2),
                noncurrent_days: Some(3),
            }),
            abort_incomplete_multipart_upload: Some(AbortIncompleteMultipartUpload {
                days_after_initiation: Some(7),
            }),
            ..asked()
        };
        assert_eq!(shown(&rules(std::slice::from_ref(&bare)).unwrap().rules[0]), bare);
    }

    #[test]
    fn what_no_rule_may_say_is_refused_as_s3_does() {
        let with = |change: &dyn Fn(&mut LifecycleRule)| {
            let mut rule = asked();
            change(&mut rule);
            code(&[rule])
        };
        let expire =
            |expiration: LifecycleExpiration| with(&|rule| rule.expiration = Some(expiration.clone()));
        let date = |seconds: u64| Some(timestamp(Millis(seconds * 1000)));
        assert_eq!(code(&[]).as_deref(), Some("MalformedXML"));
        assert_eq!(with(&|_| {}), None);
        assert_eq!(
            with(&|rule| rule.status = ExpirationStatus::from_static("enabled")).as_deref(),
            Some("MalformedXML")
        );
        assert_eq!(with(&|rule| rule.id = Some("i".repeat(256))).as_deref(), Some("InvalidArgument"));
        assert_eq!(with(&|rule| rule.filter = None).as_deref(), Some("MalformedXML"));
        assert_eq!(with(&|rule| rule.prefix = Some("p".into())).as_deref(), Some("MalformedXML"));
        assert_eq!(with(&|rule| rule.expiration = None).as_deref(), Some("InvalidRequest"));
        let days = |days| LifecycleExpiration { days: Some(days), ..Default::default() };
        assert_eq!(expire(days(0)).as_deref(), Some("InvalidArgument"));
        assert_eq!(expire(days(-1)).as_deref(), Some("InvalidArgument"));
        let at = |date| LifecycleExpiration { date, ..Default::default() };
        assert_eq!(expire(at(date(86_400))), None);
        assert_eq!(expire(at(date(86_401))).as_deref(), Some("InvalidArgument"));
        let both = LifecycleExpiration { date: date(0), ..days(1) };
        assert_eq!(expire(both).as_deref(), Some("MalformedXML"));
        assert_eq!(code(&[asked(), asked()]).as_deref(), Some("InvalidArgument"));
        let unnamed = LifecycleRule { id: None, ..asked() };
        assert_eq!(code(&[unnamed.clone(), unnamed]), None);
    }
}
