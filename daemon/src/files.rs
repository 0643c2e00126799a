//! Small files of a node, written so that a crash leaves the old or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Replaces `path` with `bytes`, readable by the owner alone: written beside, synced, renamed, directory synced.
///
/// # Errors
/// The file is as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(folder_of(path))?.sync_all()
}

/// The folder that `path` lies in: a name alone lies in the working folder.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Holds a folder for this process until dropped.
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: another process holds it.
    pub fn take(dir: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// The process that holds a folder, as Linux tells; nobody is kept from taking it meanwhile.
    #[must_use]
    pub fn holder(dir: &Path) -> Option<u32> {
        let inode = fs::metadata(dir.join("lock")).ok()?.ino();
        fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| held(line, inode))
    }
}

/// The process that holds a file by a line of `/proc/locks` (proc_locks(5)): number, kind, two words, process, device and inode.
/// The device is left out of account: not all filesystems show there the one that files say they lie on.
fn held(line: &str, inode: u64) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace();
    let (kind, pid, file) = (fields.nth(1)?, fields.nth(2)?, fields.next()?);
    let is_it = kind == "FLOCK" && file.rsplit_once(':')?.1.parse() == Ok(inode);
    pid.parse().ok().filter(|pid| is_it && *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_folder_tells_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(FolderLock::holder(dir.path()), None, "there is no lock");
        let lock = FolderLock::take(dir.path()).unwrap();
        assert_eq!(FolderLock::holder(dir.path()), Some(std::process::id()));
        drop(lock);
        // A child that another test starts has the file open until it becomes another program.
        let dropped = crate::clock::timer();
        while let Some(holder) = FolderLock::holder(dir.path()) {
            assert!(dropped.elapsed() < std::time::Duration::from_secs(10), "{holder} holds it");
            std::thread::yield_now();
        }
        assert_eq!(held("5: POSIX  ADVISORY  WRITE 71 08:01:9 0 EOF", 9), None);
        assert_eq!(held("5: -> FLOCK  ADVISORY  WRITE 71 08:01:9 0 EOF", 9), None, "this one waits");
        assert_eq!(held("5: FLOCK  ADVISORY  WRITE 71 08:01:9 0 EOF", 9), Some(71));
    }
}
