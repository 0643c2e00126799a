//! Why a configuration cannot be used, by what the caller does next.

use std::fmt;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Wrong usage: the file is not there or not ours to read.
    #[error("read {path:?}: {source}; give --config the path of a readable TOML file")]
    Read { path: PathBuf, source: io::Error },
    /// Wrong usage: the operator must change these keys.
    #[error("{path:?} cannot be used:{}", list(.faults))]
    Faults { path: PathBuf, faults: Vec<Fault> },
    /// Wrong usage: the operator must put the token there, or correct the key.
    #[error(
        "cluster.join_token_file {path:?} {why}; write the token that `makai node join-token` printed into it"
    )]
    Token { path: PathBuf, why: String },
    /// A configuration made in memory that no file can say.
    #[error("this configuration cannot be written as TOML: {0}")]
    Write(String),
}

/// One thing to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `section.key`; empty: the file as a whole.
    pub key: String,
    /// Line of the file, from 1; `None` where the key is not given.
    pub line: Option<usize>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl Fault {
    pub(crate) fn of_file(message: String) -> Self {
        Self { key: String::new(), line: None, message }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if self.key.is_empty() {
            write!(f, "{}", self.message)
        } else {
            write!(f, "{} {}", self.key, self.message)
        }
    }
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}
