//! What a node must remember to find its cluster again: `cluster.json`, and the cluster's key for those trusted
//! with it, `cluster.key`.
//!
//! `voter.number` says as which voter it has begun: under that number it must not vote again without its facts.
//!
//! All are replaced whole. `cluster.json` carries `format`; a newer format is refused, so that a downgraded binary
//! does not misread it. The cluster's key is 64 hex digits; voters and gateways alone have it.

use std::io;
use std::path::{Path, PathBuf};

use makai_erasure::NodeId;
use makai_raft::facts::cluster::Role;
use serde::{Deserialize, Serialize};

use crate::files;

/// The format this release writes, and the newest it reads.
const FORMAT: u32 = 1;

/// A member, as far as needed to reach it before the facts can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    pub id: NodeId,
    pub addresses: Vec<String>,
    pub roles: Vec<Role>,
}

/// `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    pub format: u32,
    pub cluster_id: String,
    /// This node's number in the voter set.
    pub number: u64,
    pub peers: Vec<KnownPeer>,
}

/// Why a node's memory of its cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{path:?}: {source}; give the daemon's user access, or restore the file")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path:?} is damaged ({why}); restore it from a backup, or join again with an empty folder")]
    Damaged { path: PathBuf, why: String },
    #[error("{path:?} has format {found}, this release reads up to {FORMAT}; start the newer release again")]
    Newer { path: PathBuf, found: u32 },
}

fn state_path(dir: &Path) -> PathBuf {
    dir.join("cluster.json")
}

fn read(path: &Path) -> Result<Option<String>, StateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Io { path: path.into(), source }),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    files::replace(path, bytes).map_err(|source| StateError::Io { path: path.into(), source })
}

impl ClusterState {
    #[must_use]
    pub fn new(cluster_id: String, number: u64, peers: Vec<KnownPeer>) -> Self {
        Self { format: FORMAT, cluster_id, number, peers }
    }

    /// `None`: this node has not joined a cluster yet.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn load(dir: &Path) -> Result<Option<Self>, StateError> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let path = state_path(dir);
        let Some(text) = read(&path)? else { return Ok(None) };
        let damaged =
            |error: serde_json::Error| StateError::Damaged { path: path.clone(), why: error.to_string() };
        let Versioned { format } = serde_json::from_str(&text).map_err(damaged)?;
        if format > FORMAT {
            return Err(StateError::Newer { path, found: format });
        }
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// # Errors
    /// [`StateError::Io`]: the old one stands.
    pub fn save(&self, dir: &Path) -> Result<(), StateError> {
        let path = state_path(dir);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| StateError::Damaged { path: path.clone(), why: error.to_string() })?;
        write(&path, &text)
    }
}

/// `cluster.key`, if this node has it.
///
/// # Errors
/// [`StateError`]
pub fn load_cluster_key(dir: &Path) -> Result<Option<[u8; 32]>, StateError> {
    read_key(&dir.join("cluster.key"))
}

/// A file with a cluster's key.
///
/// # Errors
/// [`StateError`]
pub fn read_key(path: &Path) -> Result<Option<[u8; 32]>, StateError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let mut key = [0; 32];
    match hex::decode_to_slice(text.trim(), &mut key) {
        Ok(()) => Ok(Some(key)),
        Err(error) => Err(StateError::Damaged { path: path.into(), why: error.to_string() }),
    }
}

/// # Errors
/// [`StateError::Io`]
pub fn save_cluster_key(dir: &Path, key: &[u8; 32]) -> Result<(), StateError> {
    write(&dir.join("cluster.key"), hex::encode(key).as_bytes())
}

/// The number under which this node has begun to vote, beside the facts that a voter must not forget.
///
/// # Errors
/// [`StateError`]
pub fn voted_as(dir: &Path) -> Result<Option<u64>, StateError> {
    let path = dir.join("voter.number");
    let Some(text) = read(&path)? else { return Ok(None) };
    let number = text.trim().parse::<u64>();
    number.map(Some).map_err(|error| StateError::Damaged { path, why: error.to_string() })
}

/// # Errors
/// [`StateError::Io`]
pub fn votes_as(dir: &Path, number: u64) -> Result<(), StateError> {
    write(&dir.join("voter.number"), number.to_string().as_bytes())
}

/// The bearer token of this node's console, made on first use: `admin.token`, for those who can read the folder.
///
/// # Errors
/// [`StateError::Io`]
pub fn admin_token(dir: &Path) -> Result<String, StateError> {
    let path = dir.join("admin.token");
    if let Some(text) = read(&path)? {
        return Ok(text.trim().into());
    }
    let token = hex::encode(rand::random::<[u8; 32]>());
    write(&path, token.as_bytes())?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_finds_its_cluster_again_and_a_downgrade_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ClusterState::load(dir.path()).unwrap().is_none());
        let peer = KnownPeer { id: NodeId([7; 32]), addresses: vec!["a:1".into()], roles: vec![Role::Voter] };
        let mut state = ClusterState::new("c".into(), 3, vec![peer]);
        state.save(dir.path()).unwrap();
        assert_eq!(ClusterState::load(dir.path()).unwrap(), Some(state.clone()));
        state.format = FORMAT + 1;
        state.save(dir.path()).unwrap();
        assert!(
            matches!(ClusterState::load(dir.path()), Err(StateError::Newer { found, .. }) if found == FORMAT + 1)
        );
        std::fs::write(dir.path().join("cluster.json"), "{").unwrap();
        assert!(matches!(ClusterState::load(dir.path()), Err(StateError::Damaged { .. })));
    }
}
