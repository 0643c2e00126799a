//! Text to sections: every key known, every value of its type; and where in the file each key stands.
//!
//! The sections' own definitions are the schema: a section's keys are those its default serializes to, and a
//! value is right when the section deserializes with it. A value that is wrong is reported and its default
//! stands in for it, so that the rest can still be checked.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::{DiskConfig, Fault, NodeConfig};

/// The section that may stand several times.
const DISK: &str = "disk";
/// An unknown key at most this many edits from a known one is taken for a slip of it.
const SLIP_EDITS_MAX: usize = 3;

/// What must change, and the lines to say so.
pub(crate) struct Faults {
    faults: Vec<Fault>,
    /// Line of each key that is given, and of each section.
    lines: BTreeMap<String, usize>,
    /// Keys whose value could not be read: their default stands in, and says nothing about the file.
    unreadable: BTreeSet<String>,
}

impl Faults {
    /// # Errors
    /// The text is not TOML: every place where it is not.
    pub(crate) fn new(text: &str) -> Result<Self, Vec<Fault>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let fault = |error: &toml::de::Error| Fault {
                key: String::new(),
                line: error.span().map(|span| line_at(text, span.start)),
                message: format!("is not TOML: {}", error.message()),
            };
            return Err(errors.iter().map(fault).collect());
        }
        let mut lines = BTreeMap::new();
        note_lines(text, "", table.get_ref(), &mut lines);
        Ok(Self { faults: Vec::new(), lines, unreadable: BTreeSet::new() })
    }

    pub(crate) fn push(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.push_between(key, &[], message);
    }

    /// A fault that the values of `others` have a part in: it is only one if they could be read.
    pub(crate) fn push_between(
        &mut self,
        key: impl Into<String>,
        others: &[&str],
        message: impl Into<String>,
    ) {
        let key = key.into();
        if self.unreadable.contains(&key) || others.iter().any(|other| self.unreadable.contains(*other)) {
            return;
        }
        let section = key.split('.').next().unwrap_or_default();
        let line = self.lines.get(&key).or_else(|| self.lines.get(section)).copied();
        self.faults.push(Fault { line, message: message.into(), key });
    }

    fn push_unreadable(&mut self, key: String, message: String) {
        self.push(key.clone(), message);
        self.unreadable.insert(key);
    }

    pub(crate) fn into_result(mut self, config: NodeConfig) -> Result<NodeConfig, Vec<Fault>> {
        self.faults.sort_by_key(|fault| fault.line);
        if self.faults.is_empty() { Ok(config) } else { Err(self.faults) }
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn note_lines(text: &str, parent: &str, table: &DeTable<'_>, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let name = joined(parent, key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => note_lines(text, &name, inner, lines),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let DeValue::Table(inner) = item.get_ref() {
                        note_lines(text, &item_name(&name, index), inner, lines);
                    }
                }
            }
            _ => {}
        }
        lines.insert(name, line_at(text, key.span().start));
    }
}

fn joined(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

/// `disk[0]`: how a fault names one of several.
pub(crate) fn item_name(section: &str, index: usize) -> String {
    format!("{section}[{index}]")
}

/// Reads what can be read and reports the rest. `text` is TOML, as [`Faults::new`] has seen.
pub(crate) fn sections(text: &str, faults: &mut Faults) -> NodeConfig {
    let mut given: Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(error) => {
            faults.push("", format!("is not TOML: {}", error.message()));
            return NodeConfig::default();
        }
    };
    let mut next = |name: &str| given.remove(name);
    let config = NodeConfig {
        node: section("node", next("node"), faults),
        cluster: section("cluster", next("cluster"), faults),
        peers: section("peers", next("peers"), faults),
        s3: section("s3", next("s3"), faults),
        grpc: section("grpc", next("grpc"), faults),
        console: section("console", next("console"), faults),
        storage: section("storage", next("storage"), faults),
        compute: section("compute", next("compute"), faults),
        raft: section("raft", next("raft"), faults),
        limits: section("limits", next("limits"), faults),
        accounts: section("accounts", next("accounts"), faults),
        prices: section("prices", next("prices"), faults),
        ledger: section("ledger", next("ledger"), faults),
        disk: disks(next(DISK), faults),
    };
    let known: Vec<String> = table_of(&NodeConfig::default()).keys().cloned().collect();
    for name in given.keys() {
        faults.push(name.clone(), unknown("section", name, &known));
    }
    config
}

fn disks(given: Option<Value>, faults: &mut Faults) -> Vec<DiskConfig> {
    match given {
        None => Vec::new(),
        Some(Value::Array(items)) => {
            let read = |(index, item)| section(&item_name(DISK, index), Some(item), faults);
            items.into_iter().enumerate().map(read).collect()
        }
        Some(_) => {
            faults.push(DISK, "may stand several times; write [[disk]]");
            Vec::new()
        }
    }
}

fn section<S: Serialize + DeserializeOwned + Default>(
    name: &str,
    given: Option<Value>,
    faults: &mut Faults,
) -> S {
    let given = match given {
        None => return S::default(),
        Some(Value::Table(table)) => table,
        Some(_) => {
            faults.push(name, format!("is a section; write [{name}] and its keys below it"));
            return S::default();
        }
    };
    let known: Vec<String> = table_of(&S::default()).keys().cloned().collect();
    let mut readable = Table::new();
    for (key, value) in given {
        let full_name = joined(name, &key);
        if !known.contains(&key) {
            faults.push(full_name, unknown("key", &key, &known));
            continue;
        }
        let alone = Table::from_iter([(key.clone(), value.clone())]);
        match alone.try_into::<S>() {
            Ok(_) => _ = readable.insert(key, value),
            Err(error) => {
                faults.push_unreadable(full_name, format!("cannot be read: {}", error.message()));
            }
        }
    }
    // Each value was read alone, so all together are read too; the default covers what serde may add.
    readable.try_into().unwrap_or_default()
}

fn table_of(value: &impl Serialize) -> Table {
    Table::try_from(value).unwrap_or_default()
}

fn unknown(what: &str, name: &str, known: &[String]) -> String {
    let nearest = known.iter().map(|candidate| (edits(name, candidate), candidate)).min();
    match nearest {
        Some((edits, nearest)) if edits <= SLIP_EDITS_MAX.min(nearest.len() / 2) => {
            format!("is no {what}; did you mean {nearest}?")
        }
        _ => format!("is no {what}; remove it, or use one of {}", known.join(", ")),
    }
}

/// Characters to insert, remove or replace to make `b` of `a`.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, in_a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, in_b) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(in_a != in_b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

pub(crate) fn known_keys() -> Vec<String> {
    let with_disk = NodeConfig { disk: vec![DiskConfig::default()], ..NodeConfig::default() };
    let mut keys = Vec::new();
    for (section, value) in table_of(&with_disk) {
        let inner = match value {
            Value::Array(mut items) => items.pop(),
            table => Some(table),
        };
        if let Some(Value::Table(inner)) = inner {
            keys.extend(inner.keys().map(|key| joined(&section, key)));
        }
    }
    keys
}
