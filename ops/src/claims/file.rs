//! The ledger as a file: its chain from the first link, and the facts of the newest signed epochs.
//!
//! ```text
//! makai-ledger 1
//! {"entry":{"height":1,"at":..,"prev":"0x..","body":"hex of MessagePack","hash":"0x.."}}      one a link, ascending
//! {"epoch":{..}}                                                                             then each kept epoch:
//! {"usage":{..}}   {"account":{..}}   {"leaf":{..}}                                          its facts, in order
//! {"end":{"lines":N,"blake3":"0x.."}}                                                        over all lines before
//! ```
//!
//! Every line is JSON without blanks in one spelling; lines end in one line feed. A file that says the same in other
//! bytes is refused: one ledger, one file.

use bytes::Bytes;
use makai_raft::facts::Timestamp;
use makai_raft::facts::accounts::{Epoch, Hash, Leaf, LedgerEntry, NodeAccount, NodeUsage};
use serde::{Deserialize, Serialize};

/// The first line; the number is the format's version.
pub const FIRST_LINE: &str = "makai-ledger 1";
/// A longer line is none of this format.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerFile {
    pub entries: Vec<LedgerEntry>,
    /// Ascending, without gaps, the newest signed one last.
    pub epochs: Vec<EpochFile>,
}

/// A signed epoch with what it was computed from and what it made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochFile {
    pub epoch: Epoch,
    pub usage: Vec<NodeUsage>,
    pub accounts: Vec<NodeAccount>,
    pub leaves: Vec<Leaf>,
}

/// Why bytes are no such file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    #[error("it does not begin with {FIRST_LINE:?}: it is no ledger, or of a newer release")]
    NoLedger,
    #[error("line {line}: {why}")]
    Line { line: usize, why: String },
    #[error("it does not end as it should: a part is missing, or bytes were changed")]
    End,
}

#[derive(Serialize, Deserialize)]
struct EntryLine {
    height: u64,
    at: Timestamp,
    prev: Hash,
    body: String,
    hash: Hash,
}

#[derive(Serialize, Deserialize)]
struct EndLine {
    lines: u64,
    blake3: Hash,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Entry(EntryLine),
    Epoch(Box<Epoch>),
    Usage(Box<NodeUsage>),
    Account(Box<NodeAccount>),
    Leaf(Leaf),
    End(EndLine),
}

impl LedgerFile {
    /// # Errors
    /// A record that has no JSON form; none of these lacks one.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = format!("{FIRST_LINE}\n").into_bytes();
        let mut lines = 1u64;
        let mut add = |out: &mut Vec<u8>, line: &Line| -> Result<(), serde_json::Error> {
            serde_json::to_writer(&mut *out, line)?;
            out.push(b'\n');
            lines += 1;
            Ok(())
        };
        for entry in &self.entries {
            let LedgerEntry { height, at, prev, body, hash } = entry.clone();
            add(&mut out, &Line::Entry(EntryLine { height, at, prev, body: hex::encode(body), hash }))?;
        }
        for file in &self.epochs {
            add(&mut out, &Line::Epoch(Box::new(file.epoch.clone())))?;
            for usage in &file.usage {
                add(&mut out, &Line::Usage(Box::new(usage.clone())))?;
            }
            for account in &file.accounts {
                add(&mut out, &Line::Account(Box::new(account.clone())))?;
            }
            for leaf in &file.leaves {
                add(&mut out, &Line::Leaf(*leaf))?;
            }
        }
        let blake3 = Hash(*blake3::hash(&out).as_bytes());
        serde_json::to_writer(&mut out, &Line::End(EndLine { lines, blake3 }))?;
        out.push(b'\n');
        Ok(out)
    }

    /// Reads a file; any bytes may be given. That its statements hold is for [`super::check`] to say.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        let rest = bytes.strip_prefix(FIRST_LINE.as_bytes()).and_then(|rest| rest.strip_prefix(b"\n"));
        let mut rest = rest.ok_or(FileError::NoLedger)?;
        let mut file = Self::default();
        let mut number = 1usize;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let before = bytes.len() - rest.len();
            let (text, next) = (&rest[..end], &rest[end + 1..]);
            rest = next;
            number += 1;
            let fault = |why: &str| FileError::Line { line: number, why: why.to_owned() };
            if text.len() > LINE_BYTES_MAX {
                return Err(fault("it is longer than any line of a ledger"));
            }
            let line: Line = serde_json::from_slice(text).map_err(|error| fault(&error.to_string()))?;
            if serde_json::to_vec(&line).ok().as_deref() != Some(text) {
                return Err(fault("it is not in the one spelling of this format"));
            }
            match line {
                Line::End(end) => {
                    let is_whole = rest.is_empty()
                        && end.lines == number as u64 - 1
                        && end.blake3.0 == *blake3::hash(&bytes[..before]).as_bytes();
                    return if is_whole { Ok(file) } else { Err(FileError::End) };
                }
                line => file.take(line).map_err(|why| fault(&why))?,
            }
        }
        Err(FileError::End)
    }

    fn take(&mut self, line: Line) -> Result<(), String> {
        let has_epoch = !self.epochs.is_empty();
        let current = self.epochs.last_mut();
        let misplaced = || "it stands before the epoch that it belongs to".to_owned();
        match line {
            Line::Entry(_) if has_epoch => {
                return Err("a link of the chain stands behind an epoch".to_owned());
            }
            Line::Entry(EntryLine { height, at, prev, body, hash }) => {
                let body = Bytes::from(hex::decode(body).map_err(|error| error.to_string())?);
                self.entries.push(LedgerEntry { height, at, prev, body, hash });
            }
            Line::Epoch(epoch) => {
                let (usage, accounts, leaves) = (Vec::new(), Vec::new(), Vec::new());
                self.epochs.push(EpochFile { epoch: *epoch, usage, accounts, leaves });
            }
            Line::Usage(usage) => current.ok_or_else(misplaced)?.usage.push(*usage),
            Line::Account(account) => current.ok_or_else(misplaced)?.accounts.push(*account),
            Line::Leaf(leaf) => current.ok_or_else(misplaced)?.leaves.push(leaf),
            Line::End(_) => {}
        }
        Ok(())
    }
}
