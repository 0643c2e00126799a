//! A page of a bucket's keys, as S3 lists them.

use super::draft::Outcome;
use super::kv::{KvError, View};
use super::names::{Step, Visit, walk};
use super::objects::head_of;
use super::{buckets, keys, page};
use crate::facts::query::{Answer, ListObjects, Listed};

/// Stored bytes of the objects in one answer: a page of keys with long headers is cut short.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Keys under `prefix`, those that hold `delimiter` behind it rolled up; only what is above `after`.
///
/// Cost: in proportion to what is returned. Under the delimiter `/` a common prefix is one directory entry,
/// passed over whatever is below it; under others it is one seek.
pub fn list(view: &dyn View, list: &ListObjects) -> Outcome<Answer> {
    let bucket = buckets::get(view, &list.bucket)?;
    let (prefix, delimiter) = (list.prefix.as_bytes(), list.delimiter.as_bytes());
    let after = list.after.as_bytes();
    let first = match roll_up(after, prefix, delimiter) {
        _ if after < prefix => prefix.to_vec(),
        // All keys below it are rolled up to what is not above `after`.
        Some(common) => keys::end_of(common),
        None if after.is_empty() => Vec::new(),
        None => keys::after(after),
    };
    let window = Window { prefix, delimiter, entries_max: page(list.entries_max) };
    let (entries, is_truncated) = page_from(view, bucket.root, &first, &window)?;
    Ok(Answer::Objects { entries, is_truncated })
}

/// Which names a listing shows, and how many.
pub struct Window<'a> {
    pub prefix: &'a [u8],
    pub delimiter: &'a [u8],
    pub entries_max: usize,
}

/// A page of the tree from `first` on, and whether it goes on.
pub fn page_from(
    view: &dyn View,
    root: u64,
    first: &[u8],
    window: &Window<'_>,
) -> Result<(Vec<Listed>, bool), KvError> {
    let &Window { prefix, delimiter, entries_max } = window;
    let mut lister =
        Lister { view, prefix, delimiter, entries_max, entries: Vec::new(), bytes: 0, is_truncated: false };
    if lister.entries_max > 0 {
        walk(view, root, first, &mut lister)?;
    }
    Ok((lister.entries, lister.is_truncated))
}

/// The common prefix that `key` is shown as: up to the first delimiter behind `prefix`.
pub fn roll_up<'k>(key: &'k [u8], prefix: &[u8], delimiter: &[u8]) -> Option<&'k [u8]> {
    let rest = key.strip_prefix(prefix)?;
    if delimiter.is_empty() {
        return None;
    }
    let at = rest.windows(delimiter.len()).position(|window| window == delimiter)?;
    Some(&key[..prefix.len() + at + delimiter.len()])
}

struct Lister<'a> {
    view: &'a dyn View,
    prefix: &'a [u8],
    delimiter: &'a [u8],
    entries_max: usize,
    entries: Vec<Listed>,
    bytes: usize,
    is_truncated: bool,
}

impl Lister<'_> {
    fn is_full(&mut self) -> bool {
        self.is_truncated = self.entries.len() >= self.entries_max || self.bytes >= ANSWER_BYTES_MAX;
        self.is_truncated
    }

    /// Shows a common prefix that covers `path`. Each is met once, as the walk then leaves it.
    fn show_common(&mut self, path: &[u8], common: &[u8], is_entry: bool) -> Step {
        if self.is_full() {
            return Step::Stop;
        }
        self.bytes += common.len();
        self.entries.push(Listed::CommonPrefix(String::from_utf8_lossy(common).into_owned()));
        if is_entry && common == path { Step::Next } else { Step::Seek(keys::end_of(common)) }
    }
}

impl Visit for Lister<'_> {
    fn object(&mut self, path: &[u8], record: &[u8]) -> Result<Step, KvError> {
        if !path.starts_with(self.prefix) {
            return Ok(Step::Stop);
        }
        if let Some(common) = roll_up(path, self.prefix, self.delimiter) {
            return Ok(self.show_common(path, common, false));
        }
        if self.is_full() {
            return Ok(Step::Stop);
        }
        self.bytes += record.len();
        let head = head_of(self.view, path, record)?;
        self.entries.push(Listed::Object(head));
        Ok(Step::Next)
    }

    fn directory(&mut self, path: &[u8]) -> Option<Step> {
        if !path.starts_with(self.prefix) {
            return Some(Step::Stop);
        }
        let common = roll_up(path, self.prefix, self.delimiter)?;
        Some(self.show_common(path, common, true))
    }
}
