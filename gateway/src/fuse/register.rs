//! Which sessions the mounts of this machine have: a file for each, locked by the mount's process as long as that lives.
//!
//! A file that nobody locks was left by a mount that died. Its session has locks still, on files that no program here has
//! open any more; the next mount of the bucket ends it before it serves anything, so that no lock of the dead speaks for
//! what died with it. Who cannot keep files waits for the lease instead.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Far more than a mount writes.
const RECORD_BYTES_MAX: u64 = 64 << 10;
/// Dead mounts that one start ends.
const LEFT_MAX: usize = 64;

/// One mount's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub bucket: String,
    /// The cluster's gateways, as this mount knows them: two clusters have none in common.
    pub endpoints: Vec<String>,
    pub session: u64,
}

impl Record {
    fn is_of_the_same_bucket(&self, other: &Self) -> bool {
        self.bucket == other.bucket
            && self.endpoints.iter().any(|endpoint| other.endpoints.contains(endpoint))
    }
}

/// A record and the lock on it.
#[derive(Debug)]
pub struct Kept {
    pub record: Record,
    path: PathBuf,
    file: File,
}

impl Kept {
    /// Writes down a mount's session.
    ///
    /// # Errors
    /// The folder cannot be made or written to.
    pub fn begin(folder: &Path, record: Record) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join(format!("{:016x}", record.session));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        file.lock()?;
        let mut kept = Self { record, path, file };
        kept.write()?;
        Ok(kept)
    }

    /// The mount has another session from now on.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn change(&mut self, session: u64) -> io::Result<()> {
        self.record.session = session;
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(&serde_json::to_vec(&self.record)?)
    }

    /// The session has ended: nothing is left of it.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn end(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// What dead mounts of the same bucket left; what cannot be read is nobody's.
#[must_use]
pub fn left(folder: &Path, of: &Record) -> Vec<Kept> {
    let Ok(files) = fs::read_dir(folder) else { return Vec::new() };
    let left = files.filter_map(Result::ok).filter_map(|entry| abandoned(&entry.path()));
    left.filter(|kept| kept.record.is_of_the_same_bucket(of)).take(LEFT_MAX).collect()
}

/// A record whose writer is dead.
fn abandoned(path: &Path) -> Option<Kept> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return None,
    }
    let mut text = Vec::new();
    (&file).take(RECORD_BYTES_MAX).read_to_end(&mut text).ok()?;
    let record = serde_json::from_slice(&text).ok()?;
    Some(Kept { record, path: path.to_owned(), file })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u64; 0] = [];

    fn record(bucket: &str, door: &str, session: u64) -> Record {
        Record { bucket: bucket.into(), endpoints: vec![door.into(), "http://both:1".into()], session }
    }

    fn sessions(folder: &Path, of: &Record) -> Vec<u64> {
        let mut sessions: Vec<u64> = left(folder, of).iter().map(|kept| kept.record.session).collect();
        sessions.sort_unstable();
        sessions
    }

    #[test]
    fn what_dead_mounts_of_a_bucket_left_is_found_and_what_living_ones_have_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("mounts");
        let me = record("b", "http://one:1", 9);
        assert_eq!(sessions(&folder, &me), NONE, "no mount was ever here");
        let mut dead = Kept::begin(&folder, record("b", "http://two:1", 1)).unwrap();
        dead.change(11).unwrap();
        let living = Kept::begin(&folder, record("b", "http://one:1", 2)).unwrap();
        let other = Kept::begin(&folder, record("c", "http://one:1", 3)).unwrap();
        let elsewhere = Record { endpoints: vec!["http://far:1".into()], ..record("b", "", 4) };
        let elsewhere = Kept::begin(&folder, elsewhere).unwrap();
        assert_eq!(sessions(&folder, &me), NONE);
        drop((dead, other, elsewhere));
        assert_eq!(sessions(&folder, &me), [11]);
        living.end().unwrap();
        left(&folder, &me).into_iter().for_each(|kept| kept.end().unwrap());
        assert_eq!(sessions(&folder, &me), NONE);
        assert_eq!(sessions(&folder, &record("c", "http://one:1", 0)), [3]);
    }

    #[test]
    fn a_record_that_is_cut_or_no_record_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cut"), b"{\"bucket\":\"b\",\"endp").unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert_eq!(sessions(folder.path(), &record("b", "http://one:1", 1)), NONE);
    }
}
