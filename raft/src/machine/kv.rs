//! The port through which the machine sees its facts: an ordered map of byte strings.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

/// The store failed or holds bytes that are no facts: the node cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata store: {0}")]
pub struct KvError(pub String);

/// One consistent view.
pub trait View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    /// Visits `from..to` in byte order until `visit` breaks.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError>;
}

/// A view that can be changed; the shell commits it whole or not at all.
pub trait Edit: View {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), KvError>;
    fn delete(&mut self, key: Vec<u8>) -> Result<(), KvError>;
}

/// Facts in memory: for simulations, and for a log replayed without a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemKv {
    pub entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl View for MemKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.entries.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        if from < to {
            let range = (Bound::Included(from), Bound::Excluded(to));
            for (key, value) in self.entries.range::<[u8], _>(range) {
                if visit(key, value).is_break() {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Edit for MemKv {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), KvError> {
        self.entries.insert(key, value);
        Ok(())
    }

    fn delete(&mut self, key: Vec<u8>) -> Result<(), KvError> {
        self.entries.remove(&key);
        Ok(())
    }
}
