//! `Condition`: operators over what is known of a request.
//!
//! How a key that is absent counts, as AWS documents it: a positive operator does not hold, a negated one does,
//! `...IfExists` and `ForAllValues:` hold, `ForAnyValue:` does not. Several values of one operator are alternatives;
//! of a negated one, all are excluded; several operators and keys must all hold.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::document::Malformed;
use super::pattern::{Pattern, Wildcards};

/// What is known of a request: each key in the form of [`key_name`], its values in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    values: BTreeMap<String, Vec<String>>,
}

impl Context {
    /// Adds one more value of `key`.
    pub fn add(&mut self, key: &str, value: impl Into<String>) {
        self.values.entry(key_name(key)).or_default().push(value.into());
    }

    /// `key` has the form of [`key_name`].
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[String]> {
        self.values.get(key).map(Vec::as_slice)
    }

    pub(super) fn single(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some([one]) => Some(one),
            _ => None,
        }
    }
}

/// Names of keys have no case; what follows a `/` is a tag's name, which has.
#[must_use]
pub fn key_name(key: &str) -> String {
    match key.split_once('/') {
        Some((kind, name)) => format!("{}/{name}", kind.to_ascii_lowercase()),
        None => key.to_ascii_lowercase(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    None,
    All,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equals,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    fn holds(self, value: f64, than: f64) -> bool {
        match self {
            Self::Equals => value == than,
            Self::Less => value < than,
            Self::LessOrEqual => value <= than,
            Self::Greater => value > than,
            Self::GreaterOrEqual => value >= than,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Text { patterns: Vec<Pattern>, wildcards: Wildcards, ignores_case: bool },
    Number { order: Order, values: Vec<f64> },
    Date { order: Order, values: Vec<f64> },
    Bool(Vec<bool>),
    Ip(Vec<Network>),
    Arn(Vec<Pattern>),
}

/// One key under one operator.
#[derive(Debug, Clone, PartialEq)]
struct Check {
    key: Box<str>,
    quantifier: Quantifier,
    if_exists: bool,
    is_negated: bool,
    test: Test,
}

/// Everything that must hold for a statement to count.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditions {
    checks: Vec<Check>,
    /// Keys that must be absent (`true`) or present.
    nulls: Vec<(Box<str>, bool)>,
}

impl Conditions {
    pub fn parse(value: &Value, has_variables: bool) -> Result<Self, Malformed> {
        let syntax = || Malformed::new("Invalid policy syntax: Condition is an object of operators");
        let mut parsed = Self::default();
        for (name, keys) in value.as_object().ok_or_else(syntax)? {
            let operator = Operator::parse(name)?;
            for (key, values) in keys.as_object().ok_or_else(syntax)? {
                if !is_key(key) {
                    return Err(Malformed::new(format!(
                        "Policy has an invalid condition key: {}",
                        shown(key)
                    )));
                }
                let values = texts(values)?;
                parsed.add(&operator, key_name(key).into(), &values, has_variables)?;
            }
        }
        Ok(parsed)
    }

    fn add(
        &mut self,
        operator: &Operator<'_>,
        key: Box<str>,
        values: &[String],
        has_variables: bool,
    ) -> Result<(), Malformed> {
        if operator.base == "Null" {
            for value in values {
                let is_absent = value.to_ascii_lowercase().parse::<bool>();
                self.nulls.push((key.clone(), is_absent.map_err(|_| wrong_value("Null", value))?));
            }
            return Ok(());
        }
        let (is_negated, test) = operator.test(values, has_variables)?;
        let Operator { quantifier, if_exists, .. } = *operator;
        self.checks.push(Check { key, quantifier, if_exists, is_negated, test });
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.checks.is_empty() && self.nulls.is_empty()
    }

    /// Whether `context` tells all that they ask for.
    pub fn are_told_by(&self, context: &Context) -> bool {
        self.keys().all(|key| context.get(key).is_some())
    }

    pub fn hold(&self, context: &Context) -> bool {
        self.nulls.iter().all(|(key, is_absent)| context.get(key).is_none() == *is_absent)
            && self.checks.iter().all(|check| check.holds(context))
    }

    /// The keys that are asked for.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let checks = self.checks.iter().map(|check| &*check.key);
        checks.chain(self.nulls.iter().map(|(key, _)| &**key))
    }

    /// Whether a key that names a place or an account is held to fixed values: who else asks is not served.
    pub fn narrow_the_public(&self) -> bool {
        const NARROW: [&str; 8] = [
            "aws:sourceip",
            "aws:sourcearn",
            "aws:sourceaccount",
            "aws:sourceowner",
            "aws:sourcevpc",
            "aws:sourcevpce",
            "aws:userid",
            "s3:dataaccesspointaccount",
        ];
        self.checks.iter().any(|check| {
            let is_principal = check.key.starts_with("aws:principal");
            let is_fixed = match &check.test {
                Test::Text { patterns, .. } | Test::Arn(patterns) => {
                    patterns.iter().all(|pattern| !pattern.has_variables() && !pattern.text().contains('*'))
                }
                Test::Ip(networks) => networks.iter().all(Network::is_narrow),
                Test::Number { .. } | Test::Date { .. } | Test::Bool(_) => false,
            };
            !check.is_negated
                && !check.if_exists
                && check.quantifier != Quantifier::All
                && is_fixed
                && (is_principal || NARROW.contains(&&*check.key))
        })
    }
}

impl Check {
    fn holds(&self, context: &Context) -> bool {
        let Some(values) = context.get(&self.key) else {
            return match self.quantifier {
                Quantifier::All => true,
                Quantifier::Any => self.if_exists,
                Quantifier::None => self.if_exists || self.is_negated,
            };
        };
        let lookup = |key: &str| context.single(key);
        let is_met = |value: &String| self.test.matches(value, &lookup) != self.is_negated;
        match (self.quantifier, self.is_negated) {
            (Quantifier::All, _) | (Quantifier::None, true) => values.iter().all(is_met),
            (Quantifier::Any, _) | (Quantifier::None, false) => values.iter().any(is_met),
        }
    }
}

impl Test {
    fn matches<'a>(&self, value: &str, lookup: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Text { patterns, wildcards, ignores_case } => {
                patterns.iter().any(|pattern| pattern.matches(value, *wildcards, *ignores_case, lookup))
            }
            Self::Arn(patterns) => patterns.iter().any(|pattern| arn_matches(pattern, value, lookup)),
            Self::Number { order, values } => {
                number(value).is_some_and(|value| values.iter().any(|than| order.holds(value, *than)))
            }
            Self::Date { order, values } => {
                date(value).is_some_and(|value| values.iter().any(|than| order.holds(value, *than)))
            }
            Self::Bool(values) => {
                value.to_ascii_lowercase().parse().is_ok_and(|value: bool| values.contains(&value))
            }
            Self::Ip(networks) => {
                value.parse().is_ok_and(|address| networks.iter().any(|network| network.contains(address)))
            }
        }
    }
}

/// Each of an ARN's six parts by itself, so that `*` does not reach over a colon; the last may hold more.
fn arn_matches<'a>(pattern: &Pattern, value: &str, lookup: &dyn Fn(&str) -> Option<&'a str>) -> bool {
    let parts = |text: &str| text.splitn(6, ':').count();
    if parts(value) != 6 {
        return false;
    }
    if pattern.has_variables() || parts(pattern.text()) != 6 {
        return pattern.matches(value, Wildcards::Active, false, lookup);
    }
    let mut both = pattern.text().splitn(6, ':').zip(value.splitn(6, ':'));
    both.all(|(pattern, value)| super::pattern::glob(pattern, value))
}

struct Operator<'a> {
    quantifier: Quantifier,
    if_exists: bool,
    base: &'a str,
}

impl<'a> Operator<'a> {
    fn parse(name: &'a str) -> Result<Self, Malformed> {
        let (quantifier, rest) = match name.split_once(':') {
            None => (Quantifier::None, name),
            Some(("ForAllValues", rest)) => (Quantifier::All, rest),
            Some(("ForAnyValue", rest)) => (Quantifier::Any, rest),
            Some(_) => return Err(unknown(name)),
        };
        let (base, if_exists) = match rest.strip_suffix("IfExists") {
            Some(base) if base != "Null" => (base, true),
            Some(_) => return Err(unknown(name)),
            None => (rest, false),
        };
        const KNOWN: [&str; 27] = [
            "StringEquals",
            "StringNotEquals",
            "StringEqualsIgnoreCase",
            "StringNotEqualsIgnoreCase",
            "StringLike",
            "StringNotLike",
            "NumericEquals",
            "NumericNotEquals",
            "NumericLessThan",
            "NumericLessThanEquals",
            "NumericGreaterThan",
            "NumericGreaterThanEquals",
            "DateEquals",
            "DateNotEquals",
            "DateLessThan",
            "DateLessThanEquals",
            "DateGreaterThan",
            "DateGreaterThanEquals",
            "Bool",
            "BinaryEquals",
            "IpAddress",
            "NotIpAddress",
            "ArnEquals",
            "ArnLike",
            "ArnNotEquals",
            "ArnNotLike",
            "Null",
        ];
        if !KNOWN.contains(&base) {
            return Err(unknown(name));
        }
        Ok(Self { quantifier, if_exists, base })
    }

    /// Whether it is negated, and what it tests.
    fn test(&self, values: &[String], has_variables: bool) -> Result<(bool, Test), Malformed> {
        let patterns = || values.iter().map(|value| Pattern::new(value, has_variables)).collect();
        let base = self.base;
        let is_negated = base.contains("Not");
        let order = || match base.trim_start_matches("Numeric").trim_start_matches("Date") {
            "LessThan" => Order::Less,
            "LessThanEquals" => Order::LessOrEqual,
            "GreaterThan" => Order::Greater,
            "GreaterThanEquals" => Order::GreaterOrEqual,
            _ => Order::Equals,
        };
        fn all<T>(base: &str, values: &[String], read: fn(&str) -> Option<T>) -> Result<Vec<T>, Malformed> {
            values.iter().map(|value| read(value).ok_or_else(|| wrong_value(base, value))).collect()
        }
        let test = if base.starts_with("String") || base == "BinaryEquals" {
            let wildcards = if base.ends_with("Like") { Wildcards::Active } else { Wildcards::Literal };
            Test::Text { patterns: patterns(), wildcards, ignores_case: base.ends_with("IgnoreCase") }
        } else if base.starts_with("Numeric") {
            Test::Number { order: order(), values: all(base, values, number)? }
        } else if base.starts_with("Date") {
            Test::Date { order: order(), values: all(base, values, date)? }
        } else if base == "Bool" {
            Test::Bool(all(base, values, |value| value.to_ascii_lowercase().parse().ok())?)
        } else if base.ends_with("IpAddress") {
            Test::Ip(all(base, values, Network::parse)?)
        } else {
            Test::Arn(patterns())
        };
        Ok((is_negated, test))
    }
}

fn is_key(key: &str) -> bool {
    let Some((service, name)) = key.split_once(':') else { return false };
    // What an issuer of identities says is asked for by its address: `accounts.example.com/realm:sub`.
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-_/".contains(&byte);
    !service.is_empty() && !name.is_empty() && service.bytes().all(is_letter)
}

fn texts(value: &Value) -> Result<Vec<String>, Malformed> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(yes) => Ok(yes.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(Malformed::new("Invalid policy syntax: a condition's value is a text, or a list of texts")),
    };
    match value {
        Value::Array(values) => values.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn unknown(name: &str) -> Malformed {
    Malformed::new(format!("Invalid Condition type : {}", shown(name)))
}

fn wrong_value(operator: &str, value: &str) -> Malformed {
    Malformed::new(format!("Invalid value {:?} for the condition operator {operator}", shown(value)))
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|number| number.is_finite())
}

/// Seconds since 1970: of `2013-08-16`, `2013-08-16T12:34Z`, `2013-08-16T12:34:56.7+02:00`, or a count of seconds.
fn date(text: &str) -> Option<f64> {
    let text = text.trim();
    if let Some(seconds) = number(text) {
        return Some(seconds);
    }
    let (day, time) = match text.split_once(['T', ' ']) {
        Some((day, time)) => (day, Some(time)),
        None => (text, None),
    };
    let mut day = day.splitn(3, '-').map(str::parse::<u32>);
    let (year, month, day) = (day.next()?.ok()?, day.next()?.ok()?, day.next()?.ok()?);
    if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let midnight = f64::from(days_since_1970(year, month, day)) * 86_400.0;
    let Some(time) = time else { return Some(midnight) };
    let (time, offset) = match time.find(['Z', '+', '-']) {
        Some(at) => (&time[..at], zone(&time[at..])?),
        None => (time, 0.0),
    };
    let mut parts = time.split(':');
    let (hour, minute) = (parts.next()?.parse::<u8>().ok()?, parts.next()?.parse::<u8>().ok()?);
    let second = parts.next().map_or(Some(0.0), number)?;
    let is_time = hour < 24 && minute < 60 && (0.0..61.0).contains(&second) && parts.next().is_none();
    is_time.then(|| midnight + f64::from(hour) * 3600.0 + f64::from(minute) * 60.0 + second - offset)
}

/// Seconds east of Greenwich of `Z`, `+02:00`, `-0130`.
fn zone(text: &str) -> Option<f64> {
    if text == "Z" {
        return Some(0.0);
    }
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    let digits: String = text.get(1..)?.chars().filter(|one| *one != ':').collect();
    if digits.len() != 4 {
        return None;
    }
    let (hours, minutes) = (digits.get(..2)?.parse::<u8>().ok()?, digits.get(2..)?.parse::<u8>().ok()?);
    Some(sign * (f64::from(hours) * 3600.0 + f64::from(minutes) * 60.0))
}

/// By the days-from-civil algorithm (Howard Hinnant, *chrono-Compatible Low-Level Date Algorithms*).
fn days_since_1970(year: u32, month: u32, day: u32) -> i32 {
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = i64::from((month + 9) % 12);
    let day_of_year = (153 * shifted + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    i32::try_from(era * 146_097 + day_of_era - 719_468).unwrap_or(i32::MAX)
}

/// An address with how many of its first bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let base: IpAddr = address.parse().ok()?;
        let bits_max = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(bits_max), |bits| bits.parse().ok())?;
        (bits <= bits_max).then_some(Self { base, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let (base, address, width) = match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                (u128::from(base.to_bits()), u128::from(address.to_bits()), 32)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => (base.to_bits(), address.to_bits(), 128),
            _ => return false,
        };
        let shift = width - u32::from(self.bits);
        base.checked_shr(shift).unwrap_or(0) == address.checked_shr(shift).unwrap_or(0)
    }

    /// Whether it is no bigger than AWS calls non-public: /8 of IPv4, /32 of IPv6.
    fn is_narrow(&self) -> bool {
        self.bits >= if self.base.is_ipv4() { 8 } else { 32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_every_form_that_policies_have() {
        // Expected values from `date -u -d ... +%s`.
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("2013-08-16", 1_376_611_200.0),
            ("2013-08-16T12:34:56Z", 1_376_656_496.0),
            ("2013-08-16T12:34Z", 1_376_656_440.0),
            ("2013-08-16T12:34:56+02:00", 1_376_649_296.0),
            ("2000-02-29T23:59:59Z", 951_868_799.0),
            ("1376656496", 1_376_656_496.0),
        ] {
            assert_eq!(date(text), Some(seconds), "{text}");
        }
        for text in ["", "yesterday", "2013-13-01", "2013-01-01T25:00:00Z", "2013-01-01T1", "NaN"] {
            assert_eq!(date(text), None, "{text}");
        }
    }

    #[test]
    fn networks_contain_their_addresses() {
        for (network, address, is_in) in [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("1.2.3.4", "1.2.3.4", true),
            ("1.2.3.4", "1.2.3.5", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "10.0.0.1", false),
        ] {
            let network = Network::parse(network).unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), is_in, "{network:?} {address}");
        }
        for wrong in ["10.0.0.0/33", "10.0.0/8", "::/129", "host", "10.0.0.0/-1"] {
            assert_eq!(Network::parse(wrong), None, "{wrong}");
        }
    }
}
