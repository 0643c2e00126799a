//! Unpacked layers, kept for the next task that needs them.
//!
//! ```text
//! IMAGES/BOOT/image-CONTENT.json    an image's layers and configuration
//!            /layer-DIGEST/         an unpacked layer, there only when it is whole and verified
//!            /layer-DIGEST.lock     held shared by who uses it, alone by who makes or removes it
//!            /layer-DIGEST.json     its size
//!            /part-PID-N/           a layer being unpacked
//! ```
//!
//! `BOOT` is the kernel's boot id. Layers are never flushed to disk, so what a power cut may have torn is not there any
//! more: [`Store::open`] removes the folders of other boots.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::files::{self, Files};
use super::manifest::{self, ImageConfig, Layer};
use super::unpack::{Budget, unpack};
use super::{Bounds, ImageError};
use crate::runner::{ContentId, Image};

/// What an archive may hold beside its files' bytes, for each of them: headers, long names, padding.
const OVERHEAD_BYTES_PER_ENTRY: u64 = 4096;
/// Pause of one that found a layer missing, as others did at the same time.
const MISSING_PAUSE: Duration = Duration::from_millis(5);

/// The unpacked layers of this machine. Any number of processes may use one at once.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    bounds: Bounds,
}

/// An image ready to be mounted; its layers stay as long as this lives.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Lowest first.
    pub layers: Vec<PathBuf>,
    pub config: ImageConfig,
    _pins: Vec<OwnedFd>,
}

#[derive(Serialize, Deserialize)]
struct KnownImage {
    layers: Vec<String>,
    config: ImageConfig,
}

#[derive(Serialize, Deserialize)]
struct KnownLayer {
    bytes: u64,
    entries: u64,
}

impl Store {
    /// Opens the store in a folder, which is made.
    ///
    /// # Errors
    /// When the folder cannot be made or cleared of other boots' layers.
    pub fn open(images: &Path, bounds: Bounds) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot = boot.trim();
        let folder = images.join(boot);
        fs::create_dir_all(&folder)?;
        for other in fs::read_dir(images)? {
            let other = other?;
            if other.file_name() != boot {
                fs::remove_dir_all(other.path())?;
            }
        }
        Ok(Self { folder, bounds })
    }

    /// Whether an image can be mounted without its file.
    #[must_use]
    pub fn has(&self, content: &ContentId) -> bool {
        self.known(content).is_some_and(|known| known.layers.iter().all(|layer| self.layer(layer).is_dir()))
    }

    /// Makes an image ready, from what is unpacked already where it can.
    ///
    /// # Errors
    /// As [`ImageError`].
    pub fn prepare(&self, image: &Image, is_stopped: &dyn Fn() -> bool) -> Result<Prepared, ImageError> {
        if let Some(known) = self.known(&image.content)
            && let Some(prepared) = self.pin_all(known)
        {
            return Ok(prepared);
        }
        let path = image.path.as_deref().ok_or_else(|| ImageError::Io {
            doing: format!(
                "find the image {}: it is not unpacked here, and no file of it was given",
                image.content
            ),
            source: io::ErrorKind::NotFound.into(),
        })?;
        if !path.is_dir() {
            verify(path, &image.content, is_stopped)?;
        }
        let files = Files::open(path, &self.folder, self.bounds.image_bytes)?;
        let mut budget = Budget { bytes: self.bounds.image_bytes, entries: self.bounds.entries };
        let mut layers = Vec::new();
        let mut pins = Vec::new();
        let config = match manifest::read(&files)? {
            Some(manifest) => {
                for layer in &manifest.layers {
                    let name = hex::encode(layer.archive);
                    let source = || Ok(Box::new(files.part(&layer.name)?) as Box<dyn Read>);
                    pins.push(self.layer_from(&name, source, Some(layer), &mut budget, is_stopped)?);
                    layers.push(name);
                }
                manifest.config
            }
            None => {
                let name = format!("root-{}", image.content);
                let source = || match files.whole() {
                    Some(whole) => Ok(Box::new(whole) as Box<dyn Read>),
                    None => Err(ImageError::Bad("the folder holds no image: index.json is missing".into())),
                };
                pins.push(self.layer_from(&name, source, None, &mut budget, is_stopped)?);
                layers.push(name);
                ImageConfig::default()
            }
        };
        if layers.is_empty() {
            return Err(ImageError::Bad("the image has no layers".into()));
        }
        let known = KnownImage { layers, config };
        self.write_json(&self.image_file(&image.content), &known)?;
        self.trim()?;
        let paths = known.layers.iter().map(|layer| self.layer(layer)).collect();
        Ok(Prepared { layers: paths, config: known.config, _pins: pins })
    }

    /// One layer, unpacked unless it is there; the answer keeps it there.
    fn layer_from<'a>(
        &self,
        name: &str,
        source: impl FnOnce() -> Result<Box<dyn Read + 'a>, ImageError>,
        expected: Option<&Layer>,
        budget: &mut Budget,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<OwnedFd, ImageError> {
        let lock = self.open_lock(name)?;
        let locking = || ImageError::errno(format!("lock the layer {name}"));
        // Who uses the layer holds the lock shared for as long as it runs: then the layer is there, and a shared hold will do. Alone is
        // who makes it: minutes, at most.
        loop {
            rustix::fs::flock(&lock, FlockOperation::LockShared).map_err(locking())?;
            if self.layer(name).is_dir() {
                break;
            }
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if is_stopped() => return Err(ImageError::Stopped),
                // Others found it missing at the same time; one of us makes it.
                Err(Errno::WOULDBLOCK) => {
                    rustix::fs::flock(&lock, FlockOperation::Unlock).map_err(locking())?;
                    std::thread::sleep(MISSING_PAUSE);
                }
                Err(errno) => return Err(locking()(errno)),
            }
        }
        if self.layer(name).is_dir() {
            if let Some(known) = self.known_layer(name) {
                let more =
                    || ImageError::Bad("the image is larger, unpacked, than this machine takes".into());
                budget.bytes = budget.bytes.checked_sub(known.bytes).ok_or_else(more)?;
                budget.entries = budget.entries.checked_sub(known.entries).ok_or_else(more)?;
            }
        } else {
            let part = self.folder.join(format!("part-{}-{name}", std::process::id()));
            fs::create_dir_all(&part).map_err(ImageError::io(format!("make {part:?}")))?;
            let before = *budget;
            let done =
                source().and_then(|source| unpack_verified(source, &part, expected, budget, is_stopped));
            let done = done.and_then(|()| {
                let known = KnownLayer {
                    bytes: before.bytes - budget.bytes,
                    entries: before.entries - budget.entries,
                };
                self.write_json(&self.folder.join(format!("layer-{name}.json")), &known)?;
                fs::rename(&part, self.layer(name)).map_err(ImageError::io(format!("keep the layer {name}")))
            });
            if let Err(error) = done {
                // What is left of it, if anything, goes with the next boot.
                _ = fs::remove_dir_all(&part);
                return Err(error);
            }
        }
        // Converting gives the lock up for a moment, in which the layer may be trimmed: then all starts again elsewhere.
        rustix::fs::flock(&lock, FlockOperation::LockShared).map_err(locking())?;
        if self.layer(name).is_dir() {
            Ok(lock)
        } else {
            Err(ImageError::Io {
                doing: format!("keep the layer {name}: the store is too small for what runs at once"),
                source: io::ErrorKind::StorageFull.into(),
            })
        }
    }

    /// All layers of a known image, or `None` when one is not there any more.
    fn pin_all(&self, known: KnownImage) -> Option<Prepared> {
        let mut pins = Vec::new();
        for name in &known.layers {
            let lock = self.open_lock(name).ok()?;
            rustix::fs::flock(&lock, FlockOperation::LockShared).ok()?;
            if !self.layer(name).is_dir() {
                return None;
            }
            // What was used last is removed last.
            _ = rustix::fs::futimens(&lock, &now());
            pins.push(lock);
        }
        let layers = known.layers.iter().map(|layer| self.layer(layer)).collect();
        Some(Prepared { layers, config: known.config, _pins: pins })
    }

    /// Removes the least recently used layers that nobody uses until the rest fits the bound.
    fn trim(&self) -> Result<(), ImageError> {
        let listing = || ImageError::io(format!("list {:?}", self.folder));
        let mut layers = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(listing())? {
            let name = entry.map_err(listing())?.file_name().to_string_lossy().into_owned();
            let Some(name) = name.strip_prefix("layer-").and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            let used_at = self.lock_file(name).metadata().and_then(|file| file.modified());
            let bytes = self.known_layer(name).map_or(0, |known| known.bytes);
            layers.push((used_at.unwrap_or(SystemTime::UNIX_EPOCH), bytes, name.to_owned()));
        }
        let mut total: u64 = layers.iter().map(|(_, bytes, _)| bytes).sum();
        layers.sort();
        for (_, bytes, name) in layers {
            if total <= self.bounds.cache_bytes {
                break;
            }
            let lock = self.open_lock(&name)?;
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => continue,
                Err(errno) => return Err(ImageError::errno(format!("lock the layer {name}"))(errno)),
            }
            let removing = || ImageError::io(format!("remove the layer {name}"));
            let gone = self.folder.join(format!("part-{}-gone-{name}", std::process::id()));
            fs::rename(self.layer(&name), &gone).map_err(removing())?;
            fs::remove_dir_all(&gone).map_err(removing())?;
            fs::remove_file(self.folder.join(format!("layer-{name}.json"))).map_err(removing())?;
            total -= bytes;
        }
        Ok(())
    }

    fn known(&self, content: &ContentId) -> Option<KnownImage> {
        serde_json::from_slice(&fs::read(self.image_file(content)).ok()?).ok()
    }

    fn known_layer(&self, name: &str) -> Option<KnownLayer> {
        serde_json::from_slice(&fs::read(self.folder.join(format!("layer-{name}.json"))).ok()?).ok()
    }

    fn open_lock(&self, name: &str) -> Result<OwnedFd, ImageError> {
        let path = self.lock_file(name);
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        Ok(file.map_err(ImageError::io(format!("open {path:?}")))?.into())
    }

    fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
        let writing = || ImageError::io(format!("write {path:?}"));
        let part = self.folder.join(format!("part-{}.json", std::process::id()));
        fs::write(&part, serde_json::to_vec(value).map_err(io::Error::from).map_err(writing())?)
            .map_err(writing())?;
        fs::rename(&part, path).map_err(writing())
    }

    fn image_file(&self, content: &ContentId) -> PathBuf {
        self.folder.join(format!("image-{content}.json"))
    }

    fn layer(&self, name: &str) -> PathBuf {
        self.folder.join(format!("layer-{name}"))
    }

    fn lock_file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("layer-{name}.lock"))
    }
}

/// Unpacks a layer's file and holds both of its digests against what the image says.
fn unpack_verified(
    source: Box<dyn Read + '_>,
    into: &Path,
    expected: Option<&Layer>,
    budget: &mut Budget,
    is_stopped: &dyn Fn() -> bool,
) -> Result<(), ImageError> {
    let bytes_max = budget.bytes.saturating_add(budget.entries.saturating_mul(OVERHEAD_BYTES_PER_ENTRY));
    let mut blob = Hashing::new(source);
    let mut archive = Hashing::new(files::unpacked(&mut blob)?.take(bytes_max));
    unpack(&mut archive, into, budget, is_stopped)?;
    let mut rest = vec![0; 64 << 10];
    while archive.read(&mut rest).map_err(ImageError::reading)? > 0 {
        if is_stopped() {
            return Err(ImageError::Stopped);
        }
    }
    if archive.source.limit() == 0 {
        return Err(ImageError::Bad("the image is larger, unpacked, than this machine takes".into()));
    }
    let archive = archive.finish();
    io::copy(&mut blob, &mut io::sink()).map_err(ImageError::reading)?;
    let blob = blob.finish();
    let Some(expected) = expected else { return Ok(()) };
    let differs = |what: &str, wanted: &[u8; 32], found: &[u8]| {
        ImageError::Bad(format!(
            "the layer {:?} has another {what}: sha256:{}, not sha256:{}",
            expected.name,
            hex::encode(found),
            hex::encode(wanted)
        ))
    };
    match &expected.blob {
        Some(wanted) if wanted[..] != blob[..] => Err(differs("digest", wanted, &blob)),
        _ if expected.archive[..] != archive[..] => {
            Err(differs("uncompressed digest", &expected.archive, &archive))
        }
        _ => Ok(()),
    }
}

/// The file is the one that its name says: a wrong name would hand one customer another's root.
fn verify(path: &Path, content: &ContentId, is_stopped: &dyn Fn() -> bool) -> Result<(), ImageError> {
    let reading = || ImageError::io(format!("read the image {path:?}"));
    let mut file = File::open(path).map_err(reading())?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let bytes = file.read(&mut buffer).map_err(reading())?;
        if bytes == 0 {
            break;
        }
        hasher.update(&buffer[..bytes]);
        if is_stopped() {
            return Err(ImageError::Stopped);
        }
    }
    if hasher.finalize().as_bytes() == &content.0 {
        Ok(())
    } else {
        Err(ImageError::Io {
            doing: format!("use the image {path:?}: its BLAKE3 is not {content}; stage it again"),
            source: io::ErrorKind::InvalidData.into(),
        })
    }
}

struct Hashing<R> {
    source: R,
    hash: Context,
}

impl<R> Hashing<R> {
    fn new(source: R) -> Self {
        Self { source, hash: Context::new(&SHA256) }
    }

    fn finish(self) -> Vec<u8> {
        self.hash.finish().as_ref().to_vec()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.source.read(buffer)?;
        self.hash.update(&buffer[..bytes]);
        Ok(bytes)
    }
}

fn now() -> rustix::fs::Timestamps {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    rustix::fs::Timestamps { last_access: now, last_modification: now }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root file system of one file of this many bytes of a value.
    fn image(folder: &Path, value: u8, bytes: usize) -> Image {
        let mut archive = ::tar::Builder::new(Vec::new());
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes as u64);
        archive.append_data(&mut header, "file", &vec![value; bytes][..]).unwrap();
        let archive = archive.into_inner().unwrap();
        let path = folder.join(format!("image-{value}"));
        fs::write(&path, &archive).unwrap();
        Image { content: ContentId(*blake3::hash(&archive).as_bytes()), path: Some(path) }
    }

    /// The store keeps to its bound, gives up what was used longest ago, and never what is in use.
    #[test]
    fn the_least_recently_used_layer_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds { image_bytes: 1 << 20, entries: 10, cache_bytes: 250_000 };
        let store = Store::open(&folder.path().join("store"), bounds).unwrap();
        let images: Vec<_> = (0..4).map(|value| image(folder.path(), value, 100_000)).collect();
        let has = || images.iter().map(|image| store.has(&image.content)).collect::<Vec<_>>();
        let used = |index: usize, secs: i64| {
            let layer = format!("root-{}", images[index].content);
            let time = rustix::fs::Timespec { tv_sec: secs, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(store.open_lock(&layer).unwrap(), &times).unwrap();
        };
        let prepare = |index: usize| store.prepare(&images[index], &|| false).unwrap();
        drop(prepare(0));
        let held = prepare(1);
        assert_eq!(has(), [true, true, false, false]);
        used(0, 2_000);
        used(1, 1_000);
        // The older one is in use, so the other goes.
        drop(prepare(2));
        assert_eq!(has(), [false, true, true, false]);
        assert_eq!(fs::read(held.layers[0].join("file")).unwrap(), vec![1; 100_000]);
        drop(held);
        used(1, 1_000);
        drop(prepare(3));
        assert_eq!(has(), [false, false, true, true]);
        // What went comes back from its file, and not without.
        drop(prepare(0));
        let gone = Image { path: None, ..images[1].clone() };
        assert!(matches!(store.prepare(&gone, &|| false), Err(ImageError::Io { .. })));
    }

    /// Unpacking is not flushed to disk, so another boot's layers are not to be trusted.
    #[test]
    fn another_boots_layers_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("another-boot");
        fs::create_dir_all(old.join("layer-x")).unwrap();
        Store::open(folder.path(), Bounds::default()).unwrap();
        assert!(!old.exists());
    }
}
