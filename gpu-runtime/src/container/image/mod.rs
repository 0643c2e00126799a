//! Images: from a file that a customer made to a root file system that a task may see.
//!
//! ```text
//! file ── archive ──> manifest, configuration ──> layers ── gzip ── tar ── unpack ──> store: a folder per layer
//! ```
//!
//! | room         | holds                                                            |
//! |--------------|------------------------------------------------------------------|
//! | [`tar`]      | a tar reader for archives that nobody vouches for                 |
//! | `files`      | an image's files by name, in a tar or in a folder                 |
//! | `manifest`   | OCI image layout and `docker save`: which layers, which command   |
//! | `unpack`     | one layer into one folder, in overlayfs' form                     |
//! | [`store`]    | unpacked layers, shared by all attempts, least recently used out  |
//!
//! What always holds: nothing of an image reaches outside its own layer's folder; a layer is used only when its digest
//! was verified; bytes, entries, layers and names are bounded before they are read; set-user-id bits, devices,
//! ownership and extended attributes are never taken over.

mod files;
mod manifest;
pub mod store;
pub mod tar;
mod unpack;

use std::io;

pub use manifest::ImageConfig;
pub use store::{Prepared, Store};

/// What an image may hold. The owner of a machine sets it; see `Bounds::default` for what fits nearly all images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bounds {
    /// Bytes of all its files, unpacked.
    pub image_bytes: u64,
    /// Files, folders and links in all layers.
    pub entries: u64,
    /// Bytes of unpacked layers that the machine keeps for the next task.
    pub cache_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { image_bytes: 32 << 30, entries: 2_000_000, cache_bytes: 64 << 30 }
    }
}

/// The most layers of an image: what others' tools allow, and what overlayfs takes in one mount.
pub const LAYERS_MAX: usize = 127;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image is at fault: no machine will take it.
    #[error("{0}")]
    Bad(String),
    /// The machine is: another one may take it.
    #[error("{doing}")]
    Io { doing: String, source: io::Error },
    /// The attempt was asked to end meanwhile.
    #[error("ended while the image was being unpacked")]
    Stopped,
}

impl ImageError {
    /// For errors of a source that may itself be malformed: what a decoder refuses is the image's fault.
    fn reading(error: io::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
        match error.kind() {
            InvalidData | InvalidInput | UnexpectedEof | Other => {
                Self::Bad(format!("the image's file is damaged: {error}"))
            }
            _ => Self::Io { doing: "read the image's file".into(), source: error },
        }
    }

    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    fn errno(doing: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let doing = doing.into();
        move |errno| Self::Io { doing, source: errno.into() }
    }
}
