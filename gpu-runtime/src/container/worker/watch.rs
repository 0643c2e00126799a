//! What is watched rather than held by the kernel: the output folder, and memory where there are no cgroups.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

/// How deep an output folder may go; walking it holds one open folder per level.
pub const DEPTH_MAX: usize = 64;
/// How many files and folders it may hold: each costs the machine an inode.
pub const ENTRIES_MAX: u64 = 1_000_000;
const BLOCK_BYTES: u64 = 512;

/// What an output folder holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes on the disk.
    pub disk_bytes: u64,
    /// Bytes in its files.
    pub file_bytes: u64,
    pub entries: u64,
    pub is_too_deep: bool,
}

/// Adds up a folder that is being written to; never follows a link, never leaves it.
///
/// # Errors
/// When the folder itself cannot be opened.
pub fn size_of(folder: &Path) -> io::Result<Size> {
    let mut size = Size::default();
    walk(folder, &mut |seen| {
        let Seen::Entry { stat, .. } = seen else {
            size.is_too_deep = true;
            return Ok(Step::Skip);
        };
        size.entries += 1;
        size.disk_bytes = size.disk_bytes.saturating_add((stat.st_blocks as u64).saturating_mul(BLOCK_BYTES));
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            size.file_bytes = size.file_bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        }
        Ok(if size.entries > ENTRIES_MAX { Step::Stop } else { Step::Go })
    })?;
    Ok(size)
}

/// Leaves only files and folders in a folder whose writers are gone, owned by this process and readable by it alone.
///
/// # Errors
/// When something cannot be removed or given over.
pub fn sweep(folder: &Path) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    walk(folder, &mut |seen| match seen {
        Seen::TooDeep { at, name } => {
            // Brought up to the top first, so that removing it is never deeper than walking is.
            remove_deep(at, name)?;
            Ok(Step::Skip)
        }
        Seen::Entry { at, name, stat } => {
            let kind = FileType::from_raw_mode(stat.st_mode);
            if !matches!(kind, FileType::RegularFile | FileType::Directory) {
                rustix::fs::unlinkat(at, name, AtFlags::empty())?;
                return Ok(Step::Skip);
            }
            if stat.st_uid != uid.as_raw() || stat.st_gid != gid.as_raw() {
                rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            let mode = if kind == FileType::Directory { 0o700 } else { 0o600 };
            rustix::fs::chmodat(at, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
            Ok(Step::Go)
        }
    })
}

/// Removes a folder however deep it is.
///
/// # Errors
/// When something in it cannot be removed. That it is not there is no error.
pub fn remove(folder: &Path) -> io::Result<()> {
    match sweep(folder).and_then(|()| fs::remove_dir_all(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

enum Seen<'a> {
    Entry {
        at: &'a OwnedFd,
        name: &'a std::ffi::CStr,
        stat: rustix::fs::Stat,
    },
    /// A folder on a level that is not walked.
    TooDeep {
        at: &'a OwnedFd,
        name: &'a std::ffi::CStr,
    },
}

enum Step {
    Go,
    Skip,
    Stop,
}

/// Visits everything below a folder, each folder before what is in it. What vanishes meanwhile is passed over.
fn walk(folder: &Path, visit: &mut dyn FnMut(Seen<'_>) -> io::Result<Step>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty())?;
    let mut levels = vec![(Dir::read_from(&root)?, root)];
    loop {
        let depth = levels.len();
        let Some((listing, here)) = levels.last_mut() else { return Ok(()) };
        let Some(entry) = listing.next() else {
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(&*here, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        match visit(Seen::Entry { at: here, name, stat })? {
            Step::Stop => return Ok(()),
            Step::Skip => continue,
            Step::Go => {}
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if depth >= DEPTH_MAX {
                visit(Seen::TooDeep { at: here, name })?;
                continue;
            }
            match rustix::fs::openat(&*here, name, flags, Mode::empty()) {
                Ok(below) => levels.push((Dir::read_from(&below)?, below)),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Removes a folder that may be deeper than there are descriptors: each folder in it is first moved up beside it.
fn remove_deep(at: &OwnedFd, name: &std::ffi::CStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut waiting = vec![name.to_owned()];
    let mut moved = 0u64;
    while let Some(name) = waiting.pop() {
        rustix::fs::chmodat(at, &name, Mode::from_raw_mode(0o700), AtFlags::empty())?;
        let folder = rustix::fs::openat(at.as_fd(), &name, flags, Mode::empty())?;
        // Listed anew after every change, as a listing need not show what was moved meanwhile.
        loop {
            let mut is_changed = false;
            for entry in Dir::read_from(&folder)? {
                let entry = entry?;
                if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    continue;
                }
                is_changed = true;
                let stat = rustix::fs::statat(&folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    moved += 1;
                    let beside = std::ffi::CString::new(format!(".makai-removing-{moved}"))?;
                    rustix::fs::renameat(&folder, entry.file_name(), at, &beside)?;
                    waiting.push(beside);
                } else {
                    rustix::fs::unlinkat(&folder, entry.file_name(), AtFlags::empty())?;
                }
            }
            if !is_changed {
                break;
            }
        }
        rustix::fs::unlinkat(at, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Memory of all processes in the process namespace of `first`, with its file systems in memory: what a cgroup would
/// count, but for pages of files.
#[must_use]
pub fn memory_of(first: i32) -> u64 {
    const PAGE_BYTES: u64 = 4096;
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(&first.to_string()) else { return 0 };
    let mut total = 0u64;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        if namespace(pid).as_ref() != Some(&wanted) {
            continue;
        }
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        let mut fields = statm.split(' ').skip(1).map(|field| field.parse::<u64>().unwrap_or(0));
        let (resident, shared) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
        total = total.saturating_add(resident.saturating_sub(shared).saturating_mul(PAGE_BYTES));
    }
    for name in ["tmp", "run", "dev/shm"] {
        if let Ok(found) = rustix::fs::statvfs(format!("/proc/{first}/root/{name}")) {
            total = total.saturating_add((found.f_blocks - found.f_bfree).saturating_mul(found.f_frsize));
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of folders far deeper than there are descriptors, with a file and a link at its end, is swept away.
    #[test]
    fn a_well_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        let mut at = rustix::fs::open(&out, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
            rustix::fs::symlinkat("/", &at, "link").unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        assert!(size_of(&out).unwrap().is_too_deep);
        sweep(&out).unwrap();
        let left = size_of(&out).unwrap();
        assert!(!left.is_too_deep && left.entries < DEPTH_MAX as u64, "{left:?}");
        remove(&out).unwrap();
        assert!(!out.exists());
    }

    #[test]
    fn links_and_pipes_are_swept_and_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        fs::create_dir_all(out.join("kept")).unwrap();
        fs::write(out.join("kept/file"), [7; 5000]).unwrap();
        fs::write(folder.path().join("outside"), [7; 100_000]).unwrap();
        std::os::unix::fs::symlink(folder.path(), out.join("way")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, out.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        assert_eq!(size_of(&out).unwrap().file_bytes, 5000);
        sweep(&out).unwrap();
        let mut names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["kept"]);
        assert!(folder.path().join("outside").exists());
    }
}
