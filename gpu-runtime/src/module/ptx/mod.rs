//! PTX: from NVIDIA's assembly text to something that runs here.
//!
//! | room     | holds                                                              |
//! |----------|--------------------------------------------------------------------|
//! | [`text`] | the text, read: declarations and instructions                       |
//! | [`code`] | instructions resolved to slots and types; what is not supported     |
//! | [`math`] | what one instruction computes, bit for bit                          |
//! | [`run`]  | the executor: blocks of threads, barriers, memory, limits           |
//! | [`native`] | kernels compiled for this processor, and which are not            |
//!
//! What always holds: no text, however made, panics or takes memory without a bound; an unsupported instruction is named
//! with its line; a result is bit-equal to the card's unless [`code::Code::inexact`] says why it need not be.

pub mod code;
pub mod math;
pub mod native;
pub mod run;
pub mod text;

/// Why a module cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PtxError {
    #[error("line {line}: {text}")]
    Malformed { line: u32, text: String },
    /// A card may take it.
    #[error("line {line}: {instruction} in the kernel {kernel} is not supported by the CPU executor")]
    Unsupported { line: u32, instruction: String, kernel: String },
}

impl PtxError {
    fn malformed(line: u32, text: impl Into<String>) -> Self {
        Self::Malformed { line, text: text.into() }
    }
}

/// Reads a module and resolves its kernels.
///
/// # Errors
/// As [`PtxError`].
pub fn load(text: &str) -> Result<code::Module, PtxError> {
    code::resolve(&text::read(text)?)
}
