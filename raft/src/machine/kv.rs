//! The port through which the machine sees its facts: an ordered map of byte strings.

use std::ops::ControlFlow;

/// The store failed: the node cannot go on.
#[derive(Debug, thiserror::Error)]
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
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError>;
    fn delete(&mut self, key: &[u8]) -> Result<(), KvError>;
}
