//! In the making.

pub mod kv;

use crate::facts::command::{Batch, Command, Refusal, Reply};
use crate::facts::query::{Answer, Query};
use kv::{Edit, KvError, View};

fn replied(session: u64, serial: u64) -> Vec<u8> {
    [&b"s"[..], &session.to_be_bytes(), &serial.to_be_bytes()].concat()
}

/// Applies a batch: bucket documents are counters of how often they were set.
pub fn apply(edit: &mut dyn Edit, _log_index: u64, batch: &Batch) -> Result<Vec<Result<Reply, Refusal>>, KvError> {
    let mut out = Vec::new();
    for envelope in &batch.envelopes {
        let seen = replied(envelope.session, envelope.serial);
        if edit.get(&seen)?.is_none() {
            edit.put(&seen, b"")?;
            if let Command::SetBucketDocument { name, document, value } = &envelope.command {
                let key = [&b"d"[..], name.as_bytes(), b"/", document.as_bytes()].concat();
                let count = edit.get(&key)?.and_then(|value| value.get(..8).map(|count| {
                    let mut out = [0; 8];
                    out.copy_from_slice(count);
                    u64::from_le_bytes(out)
                }));
                let mut stored = (count.unwrap_or(0) + 1).to_le_bytes().to_vec();
                stored.extend_from_slice(value.as_deref().unwrap_or_default());
                edit.put(&key, &stored)?;
            }
        }
        out.push(Ok(Reply::Done));
    }
    Ok(out)
}

/// Answers a query.
pub fn query(view: &dyn View, query: &Query) -> Result<Result<Answer, Refusal>, KvError> {
    match query {
        Query::BucketDocument { name, document } => {
            let key = [&b"d"[..], name.as_bytes(), b"/", document.as_bytes()].concat();
            Ok(Ok(Answer::Document(view.get(&key)?.map(Into::into))))
        }
        _ => Ok(Err(Refusal::Invalid("unknown".into()))),
    }
}
