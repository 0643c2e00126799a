//! Which rule of a bucket's replication is meant by an object.

use std::collections::BTreeSet;

use s3s::dto::*;
use s3s::{S3Result, s3_error};

use crate::s3::headers::parse_tags;

/// Rules of one bucket, as S3 has it.
const RULES_MAX: usize = 1000;
const ID_CHARS_MAX: usize = 255;
const OWN_ARN: &str = "arn:makai:replication:::";
const PLAIN_ARN: &str = "arn:aws:s3:::";
/// The target of destinations that name none.
const DEFAULT_TARGET: &str = "default";

/// Where objects go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) target: String,
    pub(super) bucket: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) place: Place,
    /// Of the copies; `None`: the object's.
    pub(super) storage_class: Option<String>,
    pub(super) copies_markers: bool,
    is_enabled: bool,
    priority: i32,
    prefix: String,
    tags: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    pub(super) fn read(configuration: &ReplicationConfiguration) -> S3Result<Self> {
        let rules = &configuration.rules;
        if rules.is_empty() || rules.len() > RULES_MAX {
            return Err(s3_error!(MalformedXML, "A replication has 1 to {RULES_MAX} rules."));
        }
        let (mut ids, mut priorities) = (BTreeSet::new(), BTreeSet::new());
        let mut read = Vec::with_capacity(rules.len());
        for asked in rules {
            let rule = rule(asked)?;
            if let Some(id) = asked.id.as_deref().filter(|id| !id.is_empty())
                && !ids.insert(id)
            {
                return Err(s3_error!(InvalidArgument, "Two replication rules have the ID {id}."));
            }
            if asked.priority.is_some() && !priorities.insert((rule.place.clone(), rule.priority)) {
                return Err(s3_error!(
                    InvalidRequest,
                    "Two replication rules of one destination have the same Priority."
                ));
            }
            read.push(rule);
        }
        Ok(Self(read))
    }

    /// The names of all targets.
    pub(super) fn targets(&self) -> BTreeSet<&str> {
        self.0.iter().map(|rule| rule.place.target.as_str()).collect()
    }

    /// The rules that an object is replicated by: of each place the one of the highest priority. `tagging`: `None` where the
    /// tags are not known, as of a delete marker: then rules that ask for tags are left out.
    pub(super) fn of_object(&self, key: &str, tagging: Option<&str>) -> Vec<&Rule> {
        let tags = tagging.map(parse_tags).unwrap_or_default();
        let has = |tag: &(String, String)| tags.contains(tag);
        let meant = self
            .0
            .iter()
            .filter(|rule| rule.is_enabled && key.starts_with(&rule.prefix) && rule.tags.iter().all(has));
        let mut chosen: Vec<&Rule> = Vec::new();
        for rule in meant {
            match chosen.iter_mut().find(|other| other.place == rule.place) {
                Some(other) if other.priority < rule.priority => *other = rule,
                Some(_) => {}
                None => chosen.push(rule),
            }
        }
        chosen
    }
}

fn rule(asked: &ReplicationRule) -> S3Result<Rule> {
    let is_enabled = match asked.status.as_str() {
        ReplicationRuleStatus::ENABLED => true,
        ReplicationRuleStatus::DISABLED => false,
        _ => return Err(s3_error!(MalformedXML, "The Status of a Rule is Enabled or Disabled.")),
    };
    if asked.id.as_deref().is_some_and(|id| id.chars().count() > ID_CHARS_MAX) {
        return Err(s3_error!(InvalidArgument, "A rule's ID has at most {ID_CHARS_MAX} characters."));
    }
    if asked
        .existing_object_replication
        .as_ref()
        .is_some_and(|existing| existing.status.as_str() == ExistingObjectReplicationStatus::ENABLED)
    {
        return Err(s3_error!(
            NotImplemented,
            "Objects that are there before the rule are not replicated: copy them with a client once."
        ));
    }
    let destination = &asked.destination;
    let is_owner_changed = destination.access_control_translation.is_some();
    let needs_more = destination.replication_time.is_some() || destination.metrics.is_some();
    if is_owner_changed || destination.encryption_configuration.is_some() || needs_more {
        return Err(s3_error!(
            NotImplemented,
            "AccessControlTranslation, EncryptionConfiguration, ReplicationTime and Metrics are not implemented: leave \
             them out of the Destination."
        ));
    }
    let tag = |tag: &Tag| (tag.key.clone().unwrap_or_default(), tag.value.clone().unwrap_or_default());
    let (mut prefix, mut tags) = (asked.prefix.clone(), Vec::new());
    if let Some(filter) = &asked.filter {
        if prefix.is_some() {
            return Err(s3_error!(MalformedXML, "A Rule has a Filter or a Prefix, not both."));
        }
        let given = [filter.prefix.is_some(), filter.tag.is_some(), filter.and.is_some()];
        if given.into_iter().filter(|is_given| *is_given).count() > 1 {
            return Err(s3_error!(MalformedXML, "A Filter names one condition; several stand in And."));
        }
        if asked.delete_marker_replication.is_none() || asked.priority.is_none() {
            return Err(s3_error!(
                InvalidRequest,
                "A rule with a Filter has a Priority and a DeleteMarkerReplication."
            ));
        }
        prefix = filter.prefix.clone().or_else(|| filter.and.as_ref()?.prefix.clone());
        tags.extend(filter.tag.iter().map(tag));
        tags.extend(filter.and.iter().flat_map(|and| and.tags.iter().flatten()).map(tag));
    }
    let asked_markers = asked.delete_marker_replication.as_ref().and_then(|markers| markers.status.as_ref());
    let copies_markers = match asked_markers.map(DeleteMarkerReplicationStatus::as_str) {
        // Rules of the first kind, which have no filter, do.
        None => asked.filter.is_none(),
        Some(DeleteMarkerReplicationStatus::ENABLED) if !tags.is_empty() => {
            return Err(s3_error!(
                InvalidRequest,
                "Delete marker replication is not supported if any Tag filter is specified."
            ));
        }
        Some(DeleteMarkerReplicationStatus::ENABLED) => true,
        Some(DeleteMarkerReplicationStatus::DISABLED) => false,
        Some(_) => {
            return Err(s3_error!(MalformedXML, "DeleteMarkerReplication is Enabled or Disabled."));
        }
    };
    Ok(Rule {
        place: place(&destination.bucket)?,
        storage_class: destination.storage_class.as_ref().map(|class| class.as_str().to_owned()),
        copies_markers,
        is_enabled,
        priority: asked.priority.unwrap_or(0),
        prefix: prefix.unwrap_or_default(),
        tags,
    })
}

fn place(arn: &str) -> S3Result<Place> {
    let (target, bucket) = match (arn.strip_prefix(OWN_ARN), arn.strip_prefix(PLAIN_ARN)) {
        (Some(rest), _) => rest.split_once('/').unwrap_or(("", "")),
        (None, Some(bucket)) => (DEFAULT_TARGET, bucket),
        (None, None) => ("", ""),
    };
    if target.is_empty() || !s3s::path::check_bucket_name(bucket) {
        return Err(s3_error!(
            InvalidArgument,
            "The Bucket of a Destination is {OWN_ARN}TARGET/BUCKET, or {PLAIN_ARN}BUCKET at the target {DEFAULT_TARGET}."
        ));
    }
    Ok(Place { target: target.to_owned(), bucket: bucket.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::documents::read_xml;

    fn read(rules: &str) -> Result<Rules, String> {
        let xml = format!("<ReplicationConfiguration><Role>r</Role>{rules}</ReplicationConfiguration>");
        let configuration = read_xml(xml.as_bytes()).map_err(|error| error.to_string())?;
        Rules::read(&configuration).map_err(|error| error.code().as_str().to_owned())
    }

    fn rule(inside: &str, bucket: &str) -> String {
        format!(
            "<Rule><Status>Enabled</Status>{inside}<Destination><Bucket>{bucket}</Bucket></Destination></Rule>"
        )
    }

    const NO_MARKERS: &str = "<DeleteMarkerReplication><Status>Disabled</Status></DeleteMarkerReplication>";

    #[test]
    fn of_each_place_the_rule_of_the_highest_priority_counts() {
        let filter = |priority: u8, inside: &str| {
            format!("<Priority>{priority}</Priority>{NO_MARKERS}<Filter>{inside}</Filter>")
        };
        let rules = [
            rule(&filter(1, "<Prefix>a/</Prefix>"), "arn:aws:s3:::one-bucket"),
            rule(
                &filter(9, "<And><Prefix>a/</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></And>"),
                "arn:aws:s3:::one-bucket",
            ),
            rule(&filter(2, ""), "arn:makai:replication:::dr/two-bucket"),
            rule(&filter(3, "<Prefix>a/</Prefix>"), "arn:makai:replication:::dr/two-bucket"),
        ];
        let rules = read(&rules.concat()).unwrap();
        assert_eq!(rules.targets().into_iter().collect::<Vec<_>>(), ["default", "dr"]);
        let of = |key, tags| {
            let chosen = rules.of_object(key, tags).into_iter();
            chosen.map(|rule| (rule.place.bucket.as_str(), rule.priority)).collect::<Vec<_>>()
        };
        assert_eq!(of("b", None), [("two-bucket", 2)]);
        assert_eq!(of("a/b", None), [("one-bucket", 1), ("two-bucket", 3)]);
        assert_eq!(of("a/b", Some("k=v&x=y")), [("one-bucket", 9), ("two-bucket", 3)]);
        assert_eq!(of("a/b", Some("k=w")), [("one-bucket", 1), ("two-bucket", 3)]);
    }

    #[test]
    fn wrong_rules_are_told_as_s3_does() {
        let bucket = "arn:aws:s3:::one-bucket";
        let first = rule("<Prefix>p</Prefix>", bucket);
        assert!(read(&first).unwrap().of_object("pp", None)[0].copies_markers, "rules of the first kind do");
        for (rules, code) in [
            (rule("<Prefix/>", "arn:aws:s3:::"), "InvalidArgument"),
            (rule("<Prefix/>", "arn:makai:replication:::dr"), "InvalidArgument"),
            (rule("<Prefix/>", "one-bucket"), "InvalidArgument"),
            (rule("<Filter/>", bucket), "InvalidRequest"),
            (first.replace("Enabled", "On"), "MalformedXML"),
            (
                [rule("<ID>a</ID><Prefix>a</Prefix>", bucket), rule("<ID>a</ID><Prefix>b</Prefix>", bucket)]
                    .concat(),
                "InvalidArgument",
            ),
            (
                rule(
                    "<Priority>1</Priority><DeleteMarkerReplication><Status>Enabled</Status></DeleteMarkerReplication>\
                     <Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter>",
                    bucket,
                ),
                "InvalidRequest",
            ),
        ] {
            assert_eq!(read(&rules), Err(code.to_owned()), "{rules}");
        }
    }
}
