//! Which buckets have rules of a lifecycle. What the rules say is not read here.

use std::ops::ControlFlow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::facts::bucket::Bucket;
use crate::facts::command::{Refusal, Reply};
use crate::facts::query::Answer;
use crate::facts::version::VersionAnswer;
use crate::machine::buckets::{self, DOCUMENT_BYTES_MAX};
use crate::machine::draft::{Draft, Outcome, read, scan_records};
use crate::machine::kv::View;
use crate::machine::{keys, page};

/// Stored bytes of the rules in one answer.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Rules {
    bucket: u64,
    name: String,
    rules: Bytes,
}

pub fn set(draft: &mut Draft<'_>, name: &str, rules: Option<&Bytes>) -> Outcome<Reply> {
    let bucket = buckets::get(draft, name)?;
    match rules {
        Some(rules) if rules.len() > DOCUMENT_BYTES_MAX => {
            let why = format!("rules of {} bytes; at most {DOCUMENT_BYTES_MAX}", rules.len());
            return Err(Refusal::Invalid(why).into());
        }
        Some(rules) => {
            let record = Rules { bucket: bucket.id, name: name.to_owned(), rules: rules.clone() };
            draft.write(keys::lifecycle(bucket.id), &record)?;
        }
        None => forget(draft, &bucket),
    }
    Ok(Reply::Done)
}

pub fn forget(draft: &mut Draft<'_>, bucket: &Bucket) {
    draft.delete(keys::lifecycle(bucket.id));
}

pub fn of(view: &dyn View, name: &str) -> Outcome<Answer> {
    let bucket = buckets::get(view, name)?;
    let found: Option<Rules> = read(view, &keys::lifecycle(bucket.id))?;
    Ok(Answer::Version(VersionAnswer::Lifecycle(found.map(|found| found.rules))))
}

pub fn list(view: &dyn View, after: u64, entries_max: u32) -> Outcome<Answer> {
    let entries_max = page(entries_max);
    let mut found = Vec::new();
    let mut bytes = 0;
    if entries_max > 0 {
        let from = keys::after(&keys::lifecycle(after));
        scan_records(view, &from, &keys::end_of(&keys::lifecycles()), &mut |_, rules: Rules| {
            bytes += rules.rules.len();
            found.push((rules.bucket, rules.name, rules.rules));
            let is_full = found.len() == entries_max || bytes >= ANSWER_BYTES_MAX;
            if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
    }
    Ok(Answer::Version(VersionAnswer::LifecycleBuckets(found)))
}
