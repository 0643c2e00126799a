//! What a bucket's lifecycle wants of its versions: rules, and the decisions that follow from them. Pure.
//!
//! ```text
//! rules of a bucket ┐
//! its versions, in the order of their listing ─> Sweep ─> versions whose time is over, and those of another class
//! now, calendar     ┘
//! ```
//!
//! Rules are kept with the bucket as `MKLC`, a format byte (1), then MessagePack with positional fields.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::facts::Timestamp;
use crate::facts::object::{ObjectHead, Upload};
use crate::facts::version::{Expired, ListedVersion, Transitioned};

const MAGIC: &[u8] = b"MKLC\x01";
/// Milliseconds of a real day.
pub const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Storage classes that rules may give, the coldest last. All are kept alike: a class is a name that clients sort by.
pub const CLASSES: [&str; 4] = ["STANDARD_IA", "INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR"];

/// How cold a class is: 0 of those that no rule gives.
fn coldness(class: Option<&str>) -> usize {
    class.and_then(|class| CLASSES.iter().position(|known| *known == class)).map_or(0, |at| at + 1)
}

/// Why stored rules cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the lifecycle's rules are damaged ({0}); put them again")]
pub struct RulesError(String);

/// A bucket's lifecycle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub id: String,
    pub is_enabled: bool,
    pub scope: Scope,
    pub expiration: Option<Expiration>,
    pub noncurrent: Option<NoncurrentExpiration>,
    /// Days until an upload that is not completed is aborted.
    pub abort_days: Option<u32>,
    #[serde(default)]
    pub transitions: Vec<Transition>,
    #[serde(default)]
    pub noncurrent_transitions: Vec<NoncurrentTransition>,
}

/// When current versions get a storage class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    pub when: When,
    /// One of [`CLASSES`].
    pub class: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    Days(u32),
    Date(Timestamp),
}

/// When versions that are not current get a storage class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoncurrentTransition {
    pub days: u32,
    /// Noncurrent versions that are left as they are whatever their age; `None`: none.
    pub newer_kept: Option<u32>,
    /// One of [`CLASSES`].
    pub class: String,
}

/// Which objects a rule is about, in the form that the client chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// A prefix beside the filter, as the first version of the API had it.
    Bare(String),
    /// A filter that names nothing.
    All,
    Prefix(String),
    Tag(String, String),
    LargerThan(u64),
    SmallerThan(u64),
    And {
        prefix: Option<String>,
        tags: Vec<(String, String)>,
        larger_than: Option<u64>,
        smaller_than: Option<u64>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expiration {
    Days(u32),
    Date(Timestamp),
    /// Of delete markers that hide nothing any more.
    LoneMarker(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoncurrentExpiration {
    pub days: u32,
    /// Noncurrent versions that stay whatever their age; `None`: none.
    pub newer_kept: Option<u32>,
}

/// How long a day is: shorter than a real one only where an operator tests lifecycles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    pub day_ms: u64,
}

impl Default for Calendar {
    fn default() -> Self {
        Self { day_ms: DAY_MS }
    }
}

impl Calendar {
    /// The first midnight (UTC) at or after `days` days after `from`: so S3 counts.
    #[must_use]
    pub fn due(self, from: Timestamp, days: u32) -> Timestamp {
        let day_ms = self.day_ms.max(1);
        let at = from.0.saturating_add(u64::from(days).saturating_mul(day_ms));
        Timestamp(at.div_ceil(day_ms).saturating_mul(day_ms))
    }
}

impl Rules {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = MAGIC.to_vec();
        // Plain data into memory: nothing of it can fail.
        let _ = rmp_serde::encode::write(&mut bytes, self);
        bytes.into()
    }

    /// # Errors
    /// The bytes are no rules of a format known here.
    pub fn decode(bytes: &[u8]) -> Result<Self, RulesError> {
        let body = bytes.strip_prefix(MAGIC).ok_or_else(|| RulesError("its format is not known".into()))?;
        rmp_serde::from_slice(body).map_err(|error| RulesError(error.to_string()))
    }

    fn enabled(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| rule.is_enabled)
    }

    /// Whether any version can ever be due.
    #[must_use]
    pub fn concerns_versions(&self) -> bool {
        self.enabled().any(|rule| {
            let moves = !rule.transitions.is_empty() || !rule.noncurrent_transitions.is_empty();
            rule.expiration.is_some() || rule.noncurrent.is_some() || moves
        })
    }

    /// Whether any upload can ever be due.
    #[must_use]
    pub fn concerns_uploads(&self) -> bool {
        self.enabled().any(|rule| rule.abort_days.is_some())
    }

    /// What the keys of all enabled rules begin with.
    #[must_use]
    pub fn common_prefix(&self) -> String {
        let mut prefixes = self.enabled().map(|rule| rule.scope.prefix());
        let Some(first) = prefixes.next() else { return String::new() };
        let common = prefixes.fold(first, |common, other| {
            let same = common.bytes().zip(other.bytes()).take_while(|(one, two)| one == two).count();
            let end = (0..=same).rev().find(|&end| common.is_char_boundary(end)).unwrap_or(0);
            &common[..end]
        });
        common.to_owned()
    }

    /// When the current version expires, and the id of the rule that says so: the earliest there is.
    #[must_use]
    pub fn expiry(&self, head: &ObjectHead, calendar: Calendar) -> Option<(Timestamp, &str)> {
        let due = |rule: &Rule| match rule.expiration? {
            Expiration::Days(days) => Some(calendar.due(head.modified_at, days)),
            Expiration::Date(date) => Some(date),
            Expiration::LoneMarker(_) => None,
        };
        self.concerning(head)
            .filter_map(|rule| Some((due(rule)?, rule.id.as_str())))
            .min_by_key(|(at, _)| *at)
    }

    /// The rules that are about a version.
    fn concerning<'a>(&'a self, head: &ObjectHead) -> impl Iterator<Item = &'a Rule> {
        let tagging = head.headers.tagging.as_deref();
        self.enabled().filter(move |rule| rule.scope.holds(&head.key, head.size, tagging))
    }

    /// Whether the upload was begun too long ago.
    #[must_use]
    pub fn is_abandoned(&self, upload: &Upload, now: Timestamp, calendar: Calendar) -> bool {
        self.enabled().any(|rule| {
            let is_due = |days| calendar.due(upload.started_at, days) <= now;
            upload.key.starts_with(rule.scope.prefix()) && rule.abort_days.is_some_and(is_due)
        })
    }
}

impl Scope {
    #[must_use]
    pub fn prefix(&self) -> &str {
        match self {
            Self::Bare(prefix) | Self::Prefix(prefix) => prefix,
            Self::And { prefix, .. } => prefix.as_deref().unwrap_or_default(),
            Self::All | Self::Tag(..) | Self::LargerThan(_) | Self::SmallerThan(_) => "",
        }
    }

    /// `tagging`: URL-encoded as in `x-amz-tagging`.
    #[must_use]
    pub fn holds(&self, key: &str, size: u64, tagging: Option<&str>) -> bool {
        let has_tag = |name: &str, value: &str| {
            let tags = form_urlencoded::parse(tagging.unwrap_or_default().as_bytes());
            tags.into_iter().any(|(known, held)| known == name && held == value)
        };
        let is_sized = match self {
            Self::LargerThan(bound) => size > *bound,
            Self::SmallerThan(bound) => size < *bound,
            Self::Tag(name, value) => has_tag(name, value),
            Self::And { tags, larger_than, smaller_than, .. } => {
                larger_than.is_none_or(|bound| size > bound)
                    && smaller_than.is_none_or(|bound| size < bound)
                    && tags.iter().all(|(name, value)| has_tag(name, value))
            }
            Self::Bare(_) | Self::All | Self::Prefix(_) => true,
        };
        is_sized && key.starts_with(self.prefix())
    }
}

/// What is decided of versions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decided {
    pub over: Vec<Expired>,
    pub moved: Vec<Transitioned>,
}

/// Goes through a bucket's versions in the order of their listing and decides of each.
pub struct Sweep<'r> {
    rules: &'r Rules,
    now: Timestamp,
    calendar: Calendar,
    /// The key under way, and since when its next older version has not been current.
    key: Option<(String, Timestamp)>,
    /// Versions of the key that are newer and not current.
    newer: u32,
    /// The key's latest version is this marker: it goes unless another version follows.
    lone: Option<Expired>,
}

impl<'r> Sweep<'r> {
    #[must_use]
    pub fn new(rules: &'r Rules, now: Timestamp, calendar: Calendar) -> Self {
        Self { rules, now, calendar, key: None, newer: 0, lone: None }
    }

    /// Takes the next version of the listing; adds to `decided` what is to be done.
    pub fn see(&mut self, listed: &ListedVersion, decided: &mut Decided) {
        let (key, number, modified_at, is_latest, head) = match listed {
            ListedVersion::CommonPrefix(_) => return,
            ListedVersion::Version { head, is_latest } => {
                (&head.key, head.version, head.modified_at, *is_latest, Some(head))
            }
            ListedVersion::Marker { key, number, modified_at, is_latest, .. } => {
                (key, *number, *modified_at, *is_latest, None)
            }
        };
        let since = match self.key.take() {
            Some((last, since)) if last == *key => {
                self.lone = None;
                Some(since)
            }
            _ => {
                self.end(decided);
                self.newer = 0;
                None
            }
        };
        self.key = Some((key.clone(), modified_at));
        let expired = |is_current| Expired { key: key.clone(), number, is_current };
        match (is_latest, head) {
            (true, Some(head)) => {
                let expiry = self.rules.expiry(head, self.calendar);
                if expiry.is_some_and(|(at, _)| at <= self.now) {
                    decided.over.push(expired(true));
                } else {
                    decided.moved.extend(moved(head, self.class_of_current(head)));
                }
            }
            (true, None) => {
                self.lone = self.is_marker_over(key, modified_at).then(|| expired(false));
            }
            (false, head) => {
                // Without its successor in sight it became noncurrent no later than now.
                if let Some(since) = since {
                    if self.is_noncurrent_over(key, head, since) {
                        decided.over.push(expired(false));
                    } else if let Some(head) = head {
                        decided.moved.extend(moved(head, self.class_of_noncurrent(head, since)));
                    }
                }
                self.newer = self.newer.saturating_add(1);
            }
        }
    }

    /// Says that no version of the last key follows.
    pub fn end(&mut self, decided: &mut Decided) {
        decided.over.extend(self.lone.take());
    }

    /// The coldest class whose time has come.
    fn class_of_current<'a>(&'a self, head: &'a ObjectHead) -> Option<&'a str> {
        let is_due = |when| match when {
            When::Days(days) => self.calendar.due(head.modified_at, days) <= self.now,
            When::Date(date) => date <= self.now,
        };
        let all = self.rules.concerning(head).flat_map(|rule| &rule.transitions);
        coldest(all.filter(|transition| is_due(transition.when)).map(|transition| transition.class.as_str()))
    }

    fn class_of_noncurrent<'a>(&'a self, head: &'a ObjectHead, since: Timestamp) -> Option<&'a str> {
        let all = self.rules.concerning(head).flat_map(|rule| &rule.noncurrent_transitions);
        let due = all.filter(|transition| {
            self.newer >= transition.newer_kept.unwrap_or(0)
                && self.calendar.due(since, transition.days) <= self.now
        });
        coldest(due.map(|transition| transition.class.as_str()))
    }

    fn is_marker_over(&self, key: &str, modified_at: Timestamp) -> bool {
        self.rules.enabled().filter(|rule| rule.scope.holds(key, 0, None)).any(|rule| match rule.expiration {
            Some(Expiration::LoneMarker(is_asked)) => is_asked,
            Some(Expiration::Days(days)) => self.calendar.due(modified_at, days) <= self.now,
            Some(Expiration::Date(date)) => date <= self.now,
            None => false,
        })
    }

    fn is_noncurrent_over(&self, key: &str, head: Option<&ObjectHead>, since: Timestamp) -> bool {
        let size = head.map_or(0, |head| head.size);
        let tagging = head.and_then(|head| head.headers.tagging.as_deref());
        self.rules.enabled().filter(|rule| rule.scope.holds(key, size, tagging)).any(|rule| {
            rule.noncurrent.is_some_and(|noncurrent| {
                self.newer >= noncurrent.newer_kept.unwrap_or(0)
                    && self.calendar.due(since, noncurrent.days) <= self.now
            })
        })
    }
}

fn coldest<'c>(classes: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    classes.max_by_key(|class| coldness(Some(class)))
}

/// That a version is to have `class`, unless it is as cold already.
fn moved(head: &ObjectHead, class: Option<&str>) -> Option<Transitioned> {
    let class = class?;
    let is_colder = coldness(Some(class)) > coldness(head.headers.storage_class.as_deref());
    is_colder.then(|| Transitioned { key: head.key.clone(), number: head.version, class: class.to_owned() })
}

#[cfg(test)]
mod tests;
