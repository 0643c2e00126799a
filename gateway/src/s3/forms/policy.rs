//! What a form's policy lets its fields and its file be.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Error, S3Result, s3_error};
use serde_json::Value;

use super::super::headers::unix_seconds;

/// Fields that need no condition: they say how the others are signed, or nothing.
const FREE: [&str; 6] = ["x-amz-signature", "signature", "awsaccesskeyid", "file", "submit", "policy"];
/// As free are fields that begin so: what nobody reads, and what the file is held against.
const FREE_STARTS: [&str; 2] = ["x-ignore-", "x-amz-checksum-"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Is { field: String, value: String },
    Begins { field: String, prefix: String },
    Length(RangeInclusive<u64>),
}

/// A policy, as its signer wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    /// Seconds since the epoch.
    until: u64,
    conditions: Vec<Condition>,
}

fn invalid(why: &str) -> S3Error {
    s3_error!(InvalidPolicyDocument, "Invalid Policy: {why}")
}

fn failed(why: String) -> S3Error {
    s3_error!(AccessDenied, "Invalid according to Policy: {why}")
}

impl Policy {
    pub(super) fn parse(base64: &str) -> S3Result<Self> {
        let json = BASE64_STANDARD.decode(base64.trim()).map_err(|_| invalid("it is not in Base64."))?;
        let json: Value = serde_json::from_slice(&json).map_err(|_| invalid("Invalid JSON."))?;
        let until = json.get("expiration").ok_or_else(|| invalid("it has no expiration."))?;
        let until = until.as_str().filter(|text| text.contains('T') && text.ends_with('Z'));
        let until = until.and_then(|text| Timestamp::parse(TimestampFormat::DateTime, text).ok());
        let until = until.ok_or_else(|| invalid("its expiration is no time of ISO 8601."))?;
        let conditions = json.get("conditions").and_then(Value::as_array);
        let conditions = conditions.ok_or_else(|| invalid("it has no list of conditions."))?;
        let conditions = conditions.iter().map(condition).collect::<Option<_>>();
        let conditions = conditions.ok_or_else(|| invalid("a condition has no form that is known."))?;
        Ok(Self { until: unix_seconds(&until), conditions })
    }

    /// What the policy says of a field, where it must be one value.
    pub(super) fn value_of(&self, name: &str) -> Option<&str> {
        self.conditions.iter().find_map(|condition| match condition {
            Condition::Is { field, value } if field == name => Some(value.as_str()),
            _ => None,
        })
    }

    /// Bytes that the file may have.
    pub(super) fn length(&self) -> Option<RangeInclusive<u64>> {
        self.conditions.iter().find_map(|condition| match condition {
            Condition::Length(range) => Some(range.clone()),
            _ => None,
        })
    }

    /// Refuses what the policy does not let `fields`, names in lower case, be for a file in `bucket`.
    pub(super) fn check(
        &self,
        fields: &BTreeMap<String, String>,
        bucket: &str,
        now_secs: u64,
    ) -> S3Result<()> {
        if now_secs >= self.until {
            return Err(failed("Policy expired.".to_owned()));
        }
        let given = |field: &str| match field {
            "bucket" => bucket,
            field => fields.get(field).map_or("", String::as_str),
        };
        for condition in &self.conditions {
            let (is_met, field) = match condition {
                Condition::Is { field, value } => (given(field) == value, field),
                Condition::Begins { field, prefix } => (given(field).starts_with(prefix.as_str()), field),
                Condition::Length(_) => continue,
            };
            if !is_met {
                return Err(failed(format!("Policy Condition failed: {field:?}")));
            }
        }
        let is_named = |name: &str| {
            self.conditions.iter().any(|condition| match condition {
                Condition::Is { field, .. } | Condition::Begins { field, .. } => field == name,
                Condition::Length(_) => false,
            })
        };
        let is_free = |name: &&str| {
            FREE.contains(name) || FREE_STARTS.iter().any(|start| name.starts_with(start)) || is_named(name)
        };
        // A policy that names no bucket would be good for all that its signer has.
        let mut names = fields.keys().map(String::as_str).chain(["bucket"]);
        match names.find(|name| !is_free(name)) {
            None => Ok(()),
            Some(name) => Err(failed(format!("Extra input fields: {name}"))),
        }
    }
}

fn condition(json: &Value) -> Option<Condition> {
    let field = |text: &str| text.strip_prefix('$').unwrap_or(text).to_ascii_lowercase();
    if let Some(object) = json.as_object() {
        let mut entries = object.iter();
        let (name, value) = entries.next().filter(|_| object.len() == 1)?;
        return Some(Condition::Is { field: field(name), value: value.as_str()?.to_owned() });
    }
    let [operator, first, second] = json.as_array()?.as_slice() else { return None };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    match operator.as_str()?.to_ascii_lowercase().as_str() {
        "eq" => Some(Condition::Is { field: field(first.as_str()?), value: text(second)? }),
        "starts-with" => Some(Condition::Begins { field: field(first.as_str()?), prefix: text(second)? }),
        "content-length-range" => {
            let range = number(first)?..=number(second)?;
            (!range.is_empty()).then_some(Condition::Length(range))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(policy: &Value) -> S3Result<Policy> {
        Policy::parse(&BASE64_STANDARD.encode(policy.to_string()))
    }

    fn check(conditions: &Value, fields: &[(&str, &str)], now: u64) -> Result<(), String> {
        let policy = json!({ "expiration": "2030-01-01T00:00:00.000Z", "conditions": conditions });
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let checked = parse(&policy).unwrap().check(&fields, "b", now);
        checked.map_err(|error| error.code().as_str().to_owned())
    }

    #[test]
    fn a_form_is_what_its_policy_says() {
        let all = json!([
            { "bucket": "b" },
            ["StArTs-WiTh", "$KeY", "p/"],
            ["eq", "$acl", "private"],
            ["starts-with", "$x-amz-meta-any", ""],
            ["content-length-range", 1, "9"],
        ]);
        let good = [
            ("key", "p/a"),
            ("acl", "private"),
            ("policy", "x"),
            ("x-ignore-this", "y"),
            ("x-amz-checksum-sha1", "z"),
        ];
        let until = 1_893_456_000;
        assert_eq!(check(&all, &good, until - 1), Ok(()));
        let denied = Err("AccessDenied".to_owned());
        assert_eq!(check(&all, &good, until), denied, "it has expired");
        assert_eq!(check(&all, &[("key", "q/a"), ("acl", "private")], 0), denied);
        assert_eq!(check(&all, &[("key", "p/a"), ("acl", "public")], 0), denied);
        assert_eq!(check(&all, &[("key", "p/a")], 0), denied, "acl is missing");
        let extra = [("key", "p/a"), ("acl", "private"), ("x-amz-meta-b", "1")];
        assert_eq!(check(&all, &extra, 0), denied, "a field that nobody signed");
        assert_eq!(check(&json!([["starts-with", "$key", ""]]), &[("key", "a")], 0), denied, "no bucket");
        assert_eq!(check(&json!([{ "bucket": "other" }]), &[], 0), denied);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let until = "2030-01-01T00:00:00Z";
        for policy in [
            json!({}),
            json!({ "conditions": [] }),
            json!({ "expiration": until }),
            json!({ "EXPIRATION": until, "conditions": [] }),
            json!({ "expiration": "2030-01-01 00:00:00+00:00", "conditions": [] }),
            json!({ "expiration": until, "conditions": [{}] }),
            json!({ "expiration": until, "conditions": [{ "a": "b", "c": "d" }] }),
            json!({ "expiration": until, "conditions": [["content-length-range", 0]] }),
            json!({ "expiration": until, "conditions": [["content-length-range", -1, 0]] }),
            json!({ "expiration": until, "conditions": [["content-length-range", 2, 1]] }),
            json!({ "expiration": until, "conditions": [["like", "$key", "x"]] }),
        ] {
            let error = parse(&policy).unwrap_err();
            assert_eq!(error.code().as_str(), "InvalidPolicyDocument", "{policy}");
        }
        assert!(Policy::parse("*").is_err());
        assert!(Policy::parse("e30gfQ==").is_err());
    }
}
