//! An image's files by name, whether they lie in a tar or in a folder.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::tar::{Archive, Kind};
use super::{ImageError, LAYERS_MAX};

/// Files in the archive of one image: a manifest, a configuration and up to three files for each layer, for several
/// platforms. An archive with more is a root file system.
const FILES_MAX: usize = 32 * LAYERS_MAX;
/// The files by which an image is known.
pub const INDEX: &str = "index.json";
pub const DOCKER_MANIFEST: &str = "manifest.json";

const GZIP_MAGIC: [u8; 2] = [0x1F, 0x8B];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// The files of one image.
#[derive(Debug)]
pub enum Files {
    Folder(PathBuf),
    Archive {
        file: Arc<File>,
        /// Name to place and size.
        index: HashMap<String, (u64, u64)>,
    },
}

/// One of them, read from its start.
#[derive(Debug)]
pub struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Files {
    /// Opens an image. A compressed archive is first unpacked to `scratch`, at most `bytes_max` of it.
    ///
    /// # Errors
    /// As [`ImageError`].
    pub fn open(path: &Path, scratch: &Path, bytes_max: u64) -> Result<Self, ImageError> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_path_buf()));
        }
        let mut file = File::open(path).map_err(ImageError::io(format!("open the image {path:?}")))?;
        if compression(&mut file)? != Compression::None {
            let plain = plain_copy(file, scratch, bytes_max)?;
            file = plain;
        }
        Self::archive(file)
    }

    fn archive(mut file: File) -> Result<Self, ImageError> {
        file.seek(SeekFrom::Start(0)).map_err(ImageError::io("read the image's file"))?;
        let size = file.metadata().map_err(ImageError::io("read the image's file"))?.len();
        let mut index = HashMap::new();
        let mut count = 0usize;
        let mut archive = Archive::new(io::BufReader::new(&file));
        while let Some(entry) = archive.next_entry_by_seek(|source, bytes| {
            source.seek_relative(i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData)?)
        })? {
            count += 1;
            let name = String::from_utf8_lossy(&entry.path);
            let name = name.trim_start_matches("./").trim_start_matches('/');
            let is_marker = matches!(name, INDEX | DOCKER_MANIFEST);
            if index.len() < FILES_MAX || is_marker {
                match entry.kind {
                    Kind::File => {
                        let end = archive.position().checked_add(entry.size).filter(|end| *end <= size);
                        if end.is_none() {
                            return Err(ImageError::Bad(format!("the archive ends inside {name:?}")));
                        }
                        index.insert(name.to_owned(), (archive.position(), entry.size));
                    }
                    // `docker save` names a layer twice, the second time as a link.
                    Kind::Symlink | Kind::HardLink => {
                        let target = beside(name, &String::from_utf8_lossy(&entry.link), entry.kind);
                        if let Some(place) = index.get(&target).copied() {
                            index.insert(name.to_owned(), place);
                        }
                    }
                    _ => {}
                }
            }
        }
        if count > FILES_MAX && (index.contains_key(INDEX) || index.contains_key(DOCKER_MANIFEST)) {
            return Err(ImageError::Bad(format!(
                "the image's archive holds {count} files; an image of at most {LAYERS_MAX} layers has fewer than {FILES_MAX}"
            )));
        }
        Ok(Self::Archive { file: Arc::new(file), index })
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Archive { index, .. } => index.contains_key(name),
        }
    }

    /// # Errors
    /// [`ImageError::Bad`] when the image has no such file.
    pub fn part(&self, name: &str) -> Result<Part, ImageError> {
        let missing = || ImageError::Bad(format!("the image names the file {name:?} and does not hold it"));
        match self {
            Self::Archive { file, index } => {
                let (at, size) = *index.get(name).ok_or_else(missing)?;
                Ok(Part { file: Arc::clone(file), at, end: at + size })
            }
            Self::Folder(folder) => {
                let io = ImageError::errno(format!("open {folder:?}"));
                let root =
                    rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io)?;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file =
                    rustix::fs::openat2(&root, name, flags, Mode::empty(), resolve).map_err(|_| missing())?;
                let file = File::from(file);
                let found = file.metadata().map_err(ImageError::io(format!("read {name:?}")))?;
                if !found.is_file() {
                    return Err(missing());
                }
                Ok(Part { file: Arc::new(file), at: 0, end: found.len() })
            }
        }
    }

    /// The whole of a small file.
    ///
    /// # Errors
    /// [`ImageError::Bad`] when it is missing or larger than `bytes_max`.
    pub fn read(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, ImageError> {
        let mut part = self.part(name)?;
        let bytes = part.end - part.at;
        if bytes > bytes_max {
            return Err(ImageError::Bad(format!(
                "the image's file {name:?} has {bytes} bytes, more than {bytes_max}"
            )));
        }
        let mut body = Vec::new();
        part.read_to_end(&mut body).map_err(ImageError::reading)?;
        Ok(body)
    }

    /// The archive itself, as the root file system that it is when it is no image.
    #[must_use]
    pub fn whole(&self) -> Option<Part> {
        match self {
            Self::Folder(_) => None,
            Self::Archive { file, .. } => Some(Part { file: Arc::clone(file), at: 0, end: u64::MAX }),
        }
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let bytes = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += bytes as u64;
        Ok(bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
}

/// What a stream is packed with, by its first bytes, which are put back.
///
/// # Errors
/// [`ImageError::Bad`] for one that is not supported.
pub fn unpacked<'a>(mut source: impl Read + 'a) -> Result<Box<dyn Read + 'a>, ImageError> {
    let mut magic = [0; 4];
    let mut filled = 0;
    while filled < magic.len() {
        match source.read(&mut magic[filled..]).map_err(ImageError::reading)? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    let source = io::Cursor::new(magic).take(filled as u64).chain(source);
    Ok(match by_magic(&magic)? {
        Compression::None => Box::new(source),
        Compression::Gzip => {
            Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(64 << 10, source)))
        }
    })
}

fn by_magic(magic: &[u8; 4]) -> Result<Compression, ImageError> {
    if magic[..2] == GZIP_MAGIC {
        Ok(Compression::Gzip)
    } else if *magic == ZSTD_MAGIC {
        Err(ImageError::Bad("the image is compressed with zstd; build it with gzip layers".into()))
    } else {
        Ok(Compression::None)
    }
}

fn compression(file: &mut File) -> Result<Compression, ImageError> {
    let mut magic = [0; 4];
    let bytes = file.read_at(&mut magic, 0).map_err(ImageError::reading)?;
    if bytes < magic.len() { Ok(Compression::None) } else { by_magic(&magic) }
}

/// An archive that was compressed as a whole, where its files can be reached.
fn plain_copy(file: File, scratch: &Path, bytes_max: u64) -> Result<File, ImageError> {
    let writing = || format!("unpack the image into {scratch:?}");
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let plain =
        rustix::fs::open(scratch, flags, Mode::from_raw_mode(0o600)).map_err(ImageError::errno(writing()))?;
    let mut plain = File::from(plain);
    let mut source = unpacked(file)?.take(bytes_max.saturating_add(1));
    let mut copy = vec![0; 128 << 10];
    let mut written = 0u64;
    loop {
        let bytes = match source.read(&mut copy) {
            Ok(0) => break,
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ImageError::reading(error)),
        };
        plain.write_all(&copy[..bytes]).map_err(ImageError::io(writing()))?;
        written += bytes as u64;
    }
    if written > bytes_max {
        return Err(ImageError::Bad("the image is larger, unpacked, than this machine takes".into()));
    }
    Ok(plain)
}

/// Where a link of the archive leads: a hard link's target is a path of the archive, a symbolic one's is relative.
fn beside(name: &str, link: &str, kind: Kind) -> String {
    let mut parts: Vec<&str> = match (kind, name.rsplit_once('/')) {
        (Kind::Symlink, Some((folder, _))) => folder.split('/').collect(),
        _ => Vec::new(),
    };
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
