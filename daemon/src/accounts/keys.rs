//! Keys for claims, and the memory of what was signed with them.
//!
//! | file            | holds                                                                       |
//! |-----------------|-----------------------------------------------------------------------------|
//! | `claim.key`     | a voter's authority over roots: 64 hex digits, secp256k1                     |
//! | `payout.key`    | where this node is paid unless it is told otherwise: the same form          |
//! | `lots.key`      | what a compute node draws lots with: the same form, a seed of ECVRF         |
//! | `claims.signed` | `makai-signed 1`, then a line per root: epoch, disputes until then, root    |
//!
//! A voter writes a root into `claims.signed` and syncs it before the signature leaves. It never signs two roots for one
//! epoch, unless the first was taken back by a dispute in between.

use std::io;
use std::path::{Path, PathBuf};

use makai_ops::claims::statement::ClaimKey;
use makai_ops::computing::vrf::VrfKey;
use makai_raft::facts::accounts::Hash;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::files;

const LOTS_FILE: &str = "lots.key";
const SIGNED_FILE: &str = "claims.signed";
const SIGNED_FIRST_LINE: &str = "makai-signed 1";
/// Lines kept: far more epochs than are ever open for signing.
const SIGNED_LINES_MAX: usize = 256;

/// Why a key cannot be used, or a root not be signed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{path:?}: {source}; give the daemon's user access, or restore the file")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path:?} holds no key (64 hex digits); restore it from a backup: what it could claim depends on it"
    )]
    Damaged { path: PathBuf },
    #[error(
        "{path:?} is damaged in line {line}; restore it, or remove it after making sure that no epoch is being signed"
    )]
    DamagedMemory { path: PathBuf, line: usize },
    #[error("epoch {epoch} was signed by this node with root {signed}; it does not sign {asked} too")]
    SignedBefore { epoch: u64, signed: Hash, asked: Hash },
    #[error("the operating system gave no random bytes for a key")]
    NoRandomness,
}

/// Reads a key, or makes it where there is none.
///
/// # Errors
/// [`KeyError`]; an existing file is never replaced.
pub fn load_or_create(dir: &Path, name: &str) -> Result<ClaimKey, KeyError> {
    load_or_create_as(dir, name, |bytes| ClaimKey::from_bytes(bytes))
}

/// As [`load_or_create`], for the key that lots are drawn with.
///
/// # Errors
/// [`KeyError`]
pub fn load_or_create_lots(dir: &Path) -> Result<VrfKey, KeyError> {
    load_or_create_as(dir, LOTS_FILE, |seed| Some(VrfKey::from_seed(seed)))
}

fn load_or_create_as<K>(
    dir: &Path,
    name: &str,
    as_key: impl Fn(&[u8; 32]) -> Option<K>,
) -> Result<K, KeyError> {
    let path = dir.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let mut bytes = [0; 32];
            let read = hex::decode_to_slice(text.trim(), &mut bytes).ok();
            read.and_then(|()| as_key(&bytes)).ok_or(KeyError::Damaged { path })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => loop {
            let mut bytes = [0; 32];
            SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::NoRandomness)?;
            if let Some(key) = as_key(&bytes) {
                let written = files::replace(&path, hex::encode(bytes).as_bytes());
                return written.map(|()| key).map_err(|source| KeyError::Io { path, source });
            }
        },
        Err(source) => Err(KeyError::Io { path, source }),
    }
}

fn parse_line(line: &str) -> Option<(u64, u32, Hash)> {
    let mut words = line.split(' ');
    let (epoch, disputes, root) = (words.next()?, words.next()?, words.next()?);
    Some((epoch.parse().ok()?, disputes.parse().ok()?, root.parse().ok()?))
}

/// What this node has signed, on disk.
#[derive(Debug)]
pub struct SignedRoots {
    path: PathBuf,
    /// Epoch, disputes until then, root; oldest first.
    lines: Vec<(u64, u32, Hash)>,
}

impl SignedRoots {
    /// # Errors
    /// [`KeyError`]
    pub fn load(dir: &Path) -> Result<Self, KeyError> {
        let path = dir.join(SIGNED_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, lines: Vec::new() });
            }
            Err(source) => return Err(KeyError::Io { path, source }),
        };
        let mut lines = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let damaged = || KeyError::DamagedMemory { path: path.clone(), line: at + 1 };
            if at == 0 {
                if line != SIGNED_FIRST_LINE {
                    return Err(damaged());
                }
                continue;
            }
            lines.push(parse_line(line).ok_or_else(damaged)?);
        }
        Ok(Self { path, lines })
    }

    /// Notes, durably, that a root is about to be signed. The same root again is no matter.
    ///
    /// # Errors
    /// [`KeyError::SignedBefore`]: another root of that epoch was; it must not be signed.
    pub fn note(&mut self, epoch: u64, disputes: u32, root: Hash) -> Result<(), KeyError> {
        let last = self.lines.iter().rev().find(|(of, ..)| *of == epoch);
        if let Some((_, disputed, signed)) = last {
            if *signed == root {
                return Ok(());
            }
            if disputes <= *disputed {
                return Err(KeyError::SignedBefore { epoch, signed: *signed, asked: root });
            }
        }
        self.lines.push((epoch, disputes, root));
        let excess = self.lines.len().saturating_sub(SIGNED_LINES_MAX);
        self.lines.drain(..excess);
        let mut text = format!("{SIGNED_FIRST_LINE}\n");
        for (epoch, disputes, root) in &self.lines {
            text.push_str(&format!("{epoch} {disputes} {root}\n"));
        }
        files::replace(&self.path, text.as_bytes()).map_err(|source| {
            // What is not on disk was not noted.
            self.lines.pop();
            KeyError::Io { path: self.path.clone(), source }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let made = load_or_create(dir.path(), "claim.key").unwrap().address();
        assert_eq!(load_or_create(dir.path(), "claim.key").unwrap().address(), made);
        assert_ne!(load_or_create(dir.path(), "payout.key").unwrap().address(), made);
        std::fs::write(dir.path().join("claim.key"), "no key").unwrap();
        assert!(matches!(load_or_create(dir.path(), "claim.key"), Err(KeyError::Damaged { .. })));
    }

    #[test]
    fn no_epoch_is_signed_twice_not_even_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Hash([1; 32]), Hash([2; 32]));
        let mut signed = SignedRoots::load(dir.path()).unwrap();
        signed.note(7, 0, a).unwrap();
        signed.note(7, 0, a).unwrap();
        signed.note(8, 0, b).unwrap();
        for mut memory in [signed, SignedRoots::load(dir.path()).unwrap()] {
            assert!(matches!(memory.note(7, 0, b), Err(KeyError::SignedBefore { epoch: 7, .. })));
        }
        // After a dispute the epoch may be signed anew, once.
        let mut memory = SignedRoots::load(dir.path()).unwrap();
        memory.note(7, 1, b).unwrap();
        let mut memory = SignedRoots::load(dir.path()).unwrap();
        assert!(memory.note(7, 1, a).is_err());
        std::fs::write(dir.path().join(SIGNED_FILE), "makai-signed 1\n7 x\n").unwrap();
        assert!(matches!(SignedRoots::load(dir.path()), Err(KeyError::DamagedMemory { line: 2, .. })));
    }
}
