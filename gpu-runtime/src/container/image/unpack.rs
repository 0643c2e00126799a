//! One layer's archive into one folder, in the form that overlayfs stacks.
//!
//! Names are resolved by the kernel inside the folder (`openat2` with `RESOLVE_IN_ROOT`), so that neither `..` nor a
//! link made by an earlier entry leads out of it. `.wh.NAME` becomes overlayfs' whiteout, `.wh..wh..opq` its mark of an
//! opaque folder.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::ImageError;
use super::tar::{Archive, Entry, Kind};

/// The extended attribute by which overlayfs, mounted with `userxattr`, knows a folder that hides those below it.
pub const OPAQUE_XATTR: &str = "user.overlay.opaque";
/// How deep a path may go: what walks trees afterwards keeps one open folder per level.
const DEPTH_MAX: usize = 128;
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
const COPY_BYTES: usize = 128 << 10;

/// What an image may still use while its layers are unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub bytes: u64,
    pub entries: u64,
}

/// Unpacks an archive into an empty folder. `is_stopped` is asked before every entry and every few megabytes.
///
/// # Errors
/// As [`ImageError`]; what was unpacked until then stays for the caller to remove.
pub fn unpack(
    source: impl Read,
    into: &Path,
    budget: &mut Budget,
    is_stopped: &dyn Fn() -> bool,
) -> Result<(), ImageError> {
    let root = rustix::fs::open(into, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(ImageError::errno(format!("open {into:?}")))?;
    let mut unpacking = Unpacking { root, parent: None, budget, is_stopped, copy: vec![0; COPY_BYTES] };
    let mut archive = Archive::new(source);
    while let Some(entry) = archive.next_entry()? {
        if is_stopped() {
            return Err(ImageError::Stopped);
        }
        unpacking.take(&entry, &mut archive)?;
    }
    Ok(())
}

struct Unpacking<'a> {
    root: OwnedFd,
    /// The folder of the last entry: archives list folder by folder.
    parent: Option<(PathBuf, OwnedFd)>,
    budget: &'a mut Budget,
    is_stopped: &'a dyn Fn() -> bool,
    copy: Vec<u8>,
}

impl Unpacking<'_> {
    fn take(&mut self, entry: &Entry, body: &mut impl Read) -> Result<(), ImageError> {
        let path = inside(&entry.path)?;
        let shown = path.display().to_string();
        self.budget.entries =
            self.budget.entries.checked_sub(1).ok_or_else(|| {
                ImageError::Bad("the image holds more files than this machine takes".into())
            })?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else { return Ok(()) }; // The root itself.
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let io = |errno: Errno| match errno {
            Errno::NAMETOOLONG | Errno::LOOP | Errno::INVAL | Errno::NOTDIR | Errno::ILSEQ => {
                ImageError::Bad(format!("the entry {shown:?} cannot be made: {errno}"))
            }
            errno => ImageError::Io { doing: format!("unpack {shown:?}"), source: errno.into() },
        };
        let at = self.open_folder(&folder).map_err(io)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX) {
            return whiteout(at.as_fd(), name.as_bytes(), hidden).map_err(io);
        }
        if entry.kind == Kind::Device {
            // A worker brings its own /dev, so an image made from a running system loses nothing.
            return if path.starts_with("dev") {
                Ok(())
            } else {
                Err(ImageError::Bad(format!(
                    "the entry {shown:?} is a device; images may hold none outside dev/"
                )))
            };
        }
        let source = match entry.kind {
            Kind::HardLink => Some(self.link_source(&entry.link, &shown)?),
            _ => None,
        };
        self.make_way(at.as_fd(), &name, entry.kind, &shown)?;
        let at = at.as_fd();
        match (entry.kind, source) {
            (Kind::HardLink, Some((folder, target))) => {
                rustix::fs::linkat(&folder, &target, at, &name, AtFlags::empty()).map_err(io)?;
            }
            (Kind::Folder, _) => match rustix::fs::mkdirat(at, &name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(io(errno)),
            },
            (Kind::Symlink, _) => {
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), at, &name).map_err(io)?;
            }
            (Kind::Fifo, _) => {
                rustix::fs::mknodat(at, &name, FileType::Fifo, Mode::from_raw_mode(0o666), 0).map_err(io)?;
            }
            _ => self.write_file(at, &name, entry, body, &shown)?,
        }
        if matches!(entry.kind, Kind::File | Kind::Symlink) {
            let time = Timespec { tv_sec: entry.modified_at_secs, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            // A time that the file system cannot hold is not worth an image.
            _ = rustix::fs::utimensat(at, &name, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        Ok(())
    }

    /// The folder of that path inside the root, made where it is missing.
    fn open_folder(&mut self, path: &Path) -> Result<OwnedFd, Errno> {
        if let Some((last, folder)) = &self.parent
            && last == path
        {
            return rustix::io::fcntl_dupfd_cloexec(folder, 0);
        }
        let folder = match open_in(self.root.as_fd(), path) {
            Err(Errno::NOENT) => {
                let mut at = rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?;
                let mut so_far = PathBuf::new();
                for part in path {
                    so_far.push(part);
                    at = match open_in(self.root.as_fd(), &so_far) {
                        Err(Errno::NOENT) => {
                            rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755))?;
                            open_in(self.root.as_fd(), &so_far)?
                        }
                        found => found?,
                    };
                }
                at
            }
            found => found?,
        };
        self.parent = Some((path.to_path_buf(), rustix::io::fcntl_dupfd_cloexec(&folder, 0)?));
        Ok(folder)
    }

    /// Removes what stands in an entry's place; a folder stays for a folder.
    fn make_way(
        &mut self,
        at: BorrowedFd<'_>,
        name: &OsStr,
        kind: Kind,
        shown: &str,
    ) -> Result<(), ImageError> {
        let found = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(ImageError::errno(format!("look at {shown:?}"))(errno)),
        };
        if found == FileType::Directory && kind == Kind::Folder {
            return Ok(());
        }
        self.parent = None;
        let flags = if found == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(at, name, flags).map_err(|errno| match errno {
            Errno::NOTEMPTY => {
                ImageError::Bad(format!("the entry {shown:?} replaces a folder that holds files"))
            }
            errno => ImageError::errno(format!("replace {shown:?}"))(errno),
        })
    }

    /// Where a hard link leads: a plain file of the same layer.
    fn link_source(&mut self, link: &[u8], shown: &str) -> Result<(OwnedFd, std::ffi::OsString), ImageError> {
        let bad = |why: &str| {
            let link = String::from_utf8_lossy(link);
            ImageError::Bad(format!("the hard link {shown:?} leads to {link:?}, {why}"))
        };
        let target = inside(link)?;
        let name = target.file_name().ok_or_else(|| bad("which is no file"))?.to_owned();
        let folder = open_in(self.root.as_fd(), target.parent().unwrap_or(Path::new("")))
            .map_err(|_| bad("which is not in the same layer"))?;
        let found = rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|_| bad("which is not in the same layer"))?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile | FileType::Symlink => Ok((folder, name)),
            _ => Err(bad("which is no plain file")),
        }
    }

    fn write_file(
        &mut self,
        at: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
        body: &mut impl Read,
        shown: &str,
    ) -> Result<(), ImageError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let writing = || format!("unpack {shown:?}");
        let file = rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o600))
            .map_err(ImageError::errno(writing()))?;
        // The size is the archive's claim, so that a bomb is refused before its first byte.
        self.budget.bytes = self.budget.bytes.checked_sub(entry.size).ok_or_else(|| {
            ImageError::Bad(format!("the image is larger, unpacked, than this machine takes, at {shown:?}"))
        })?;
        let mut file = std::fs::File::from(file);
        let mut unasked = 0;
        loop {
            let bytes = match body.read(&mut self.copy) {
                Ok(0) => break,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ImageError::reading(error)),
            };
            file.write_all(&self.copy[..bytes]).map_err(ImageError::io(writing()))?;
            unasked += bytes;
            if unasked >= 64 * COPY_BYTES {
                unasked = 0;
                if (self.is_stopped)() {
                    return Err(ImageError::Stopped);
                }
            }
        }
        let mode = shared_mode(entry.mode);
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(ImageError::errno(writing()))
    }
}

/// What an image's file may be to everyone in the container: all ids there belong to one customer, and none owns the
/// file outside. Who could run it may; nobody changes it; set-user-id bits are gone.
fn shared_mode(mode: u32) -> u32 {
    if mode & 0o111 == 0 { 0o644 } else { 0o755 }
}

fn whiteout(at: BorrowedFd<'_>, name: &[u8], hidden: &[u8]) -> Result<(), Errno> {
    if name == OPAQUE_NAME {
        let here =
            rustix::fs::openat(at, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        return rustix::fs::fsetxattr(&here, OPAQUE_XATTR, b"y", XattrFlags::empty());
    }
    if hidden.is_empty() || hidden.starts_with(WHITEOUT_PREFIX) || matches!(hidden, b"." | b"..") {
        return Ok(()); // Other builders' notes to themselves.
    }
    let hidden = OsStr::from_bytes(hidden);
    let device: Dev = rustix::fs::makedev(0, 0);
    match rustix::fs::mknodat(at, hidden, FileType::CharacterDevice, Mode::empty(), device) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn open_in(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )
}

/// A path of an archive as a path inside its root: the slashes in front and single dots are dropped.
fn inside(path: &[u8]) -> Result<PathBuf, ImageError> {
    let bad = |why: &str| ImageError::Bad(format!("the path {:?} {why}", String::from_utf8_lossy(path)));
    let mut inside = PathBuf::new();
    let mut depth = 0;
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(bad("leads out of the image")),
            part => {
                depth += 1;
                inside.push(OsStr::from_bytes(part));
            }
        }
    }
    if depth > DEPTH_MAX { Err(bad("is nested too deeply")) } else { Ok(inside) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    use ::tar::{Builder, EntryType, Header};

    use super::*;

    /// An entry as hostile tools write it: the name is not looked at.
    fn raw(builder: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, link: &str, mode: u32, body: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(mode);
        header.set_size(body.len() as u64);
        header.set_cksum();
        builder.append(&header, body).unwrap();
    }

    fn unpacked(
        entries: &[(EntryType, &str, &str, u32, &[u8])],
    ) -> (tempfile::TempDir, Result<(), ImageError>) {
        let mut builder = Builder::new(Vec::new());
        for (kind, path, link, mode, body) in entries {
            raw(&mut builder, *kind, path, link, *mode, body);
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("layer")).unwrap();
        std::fs::write(folder.path().join("outside"), "untouched").unwrap();
        let mut budget = Budget { bytes: 1 << 20, entries: 100 };
        let bytes = builder.into_inner().unwrap();
        let done = unpack(&bytes[..], &folder.path().join("layer"), &mut budget, &|| false);
        assert_eq!(std::fs::read(folder.path().join("outside")).unwrap(), b"untouched");
        (folder, done)
    }

    use EntryType::{Block, Char, Directory, Link, Regular, Symlink};

    #[test]
    fn an_ordinary_layer_keeps_contents_links_and_what_may_run() {
        let (folder, done) = unpacked(&[
            (Directory, "bin/", "", 0o700, b""),
            (Regular, "bin/sh", "", 0o4700, b"shell"),
            (Link, "bin/ash", "bin/sh", 0, b""),
            (Symlink, "usr/bin", "../bin", 0o777, b""),
            (Regular, "./usr/bin/ls", "", 0o600, b"list"),
            (Char, "dev/null", "", 0o666, b""),
        ]);
        done.unwrap();
        let layer = folder.path().join("layer");
        assert_eq!(std::fs::read(layer.join("bin/ash")).unwrap(), b"shell");
        assert_eq!(std::fs::read(layer.join("bin/ls")).unwrap(), b"list");
        let mode = |path: &str| layer.join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("bin/sh"), mode("bin/ls"), mode("bin")), (0o755, 0o644, 0o755));
        assert!(!layer.join("dev/null").exists());
    }

    /// Every way out of a layer that archives are known to try ends inside it or in a refusal that names the entry.
    #[test]
    fn nothing_is_written_outside() {
        for path in ["../outside", "a/../../outside", "/../outside"] {
            let (_folder, done) = unpacked(&[(Regular, path, "", 0o644, b"harm")]);
            assert!(done.unwrap_err().to_string().contains("leads out of the image"), "{path}");
        }
        for link in ["..", "/proc/self/cwd", "../../../../../../../../tmp"] {
            let (folder, done) = unpacked(&[
                (Symlink, "way", link, 0o777, b""),
                (Regular, "way/outside", "", 0o644, b"harm"),
                (Regular, "way", "", 0o644, b"a file over the link"),
            ]);
            if done.is_ok() {
                assert!(folder.path().join("layer/way").symlink_metadata().unwrap().is_file());
            }
        }
        let (folder, done) =
            unpacked(&[(Symlink, "file", "../outside", 0o777, b""), (Regular, "file", "", 0o644, b"harm")]);
        done.unwrap();
        assert!(folder.path().join("layer/file").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn hard_links_lead_to_files_of_the_same_layer() {
        for target in ["../outside", "/etc/passwd", "missing", "folder", ""] {
            let (_folder, done) =
                unpacked(&[(Directory, "folder/", "", 0o755, b""), (Link, "link", target, 0, b"")]);
            assert!(matches!(done, Err(ImageError::Bad(_))), "{target}: {done:?}");
        }
        // Through a link of the layer: the kernel keeps it inside.
        let (_folder, done) =
            unpacked(&[(Symlink, "way", "/", 0o777, b""), (Link, "link", "way/etc/passwd", 0, b"")]);
        assert!(matches!(done, Err(ImageError::Bad(_))), "{done:?}");
    }

    #[test]
    fn devices_are_refused() {
        for kind in [Char, Block] {
            let (_folder, done) = unpacked(&[(kind, "tmp/disk", "", 0o666, b"")]);
            assert!(done.unwrap_err().to_string().contains("is a device"));
        }
    }

    #[test]
    fn whiteouts_take_the_overlay_form() {
        let (folder, done) = unpacked(&[
            (Regular, "a/.wh.gone", "", 0o644, b""),
            (Regular, "b/.wh..wh..opq", "", 0o644, b""),
            (Regular, "b/.wh...", "", 0o644, b""),
        ]);
        done.unwrap();
        let layer = folder.path().join("layer");
        assert!(layer.join("a/gone").symlink_metadata().unwrap().file_type().is_char_device());
        let mut value = [0u8; 8];
        let bytes = rustix::fs::getxattr(layer.join("b"), OPAQUE_XATTR, &mut value[..]).unwrap();
        assert_eq!(&value[..bytes], b"y");
    }

    #[test]
    fn bytes_and_entries_are_bounded() {
        let (_folder, done) = unpacked(&[(Regular, "big", "", 0o644, &[0; (1 << 20) + 1])]);
        assert!(done.unwrap_err().to_string().contains("larger, unpacked, than this machine takes"));
        let names: Vec<_> = (0..101).map(|n| format!("f{n}")).collect();
        let entries: Vec<_> =
            names.iter().map(|name| (Regular, name.as_str(), "", 0o644, &b""[..])).collect();
        let (_folder, done) = unpacked(&entries);
        assert!(done.unwrap_err().to_string().contains("more files than this machine takes"));
    }
}
