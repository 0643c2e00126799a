//! `profile.json`: how the CLI and clients find a cluster. `makai dev` writes it; `--profile` or `MAKAI_PROFILE`
//! names it, else `~/.config/makai/profile.json`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    pub s3: S3Profile,
    pub grpc: GrpcProfile,
    pub console: ConsoleProfile,
    pub metrics: MetricsProfile,
    pub nodes: Vec<NodeProfile>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct S3Profile {
    pub endpoint: String,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrpcProfile {
    pub endpoint: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsoleProfile {
    pub url: String,
    pub token: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsProfile {
    pub urls: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeProfile {
    pub id: String,
    pub pid: u32,
    pub dir: PathBuf,
    pub config: PathBuf,
    pub s3: String,
    pub grpc: String,
    pub console: ConsoleProfile,
    pub roles: Vec<String>,
}

impl Profile {
    /// # Errors
    /// The file cannot be read, or is not a profile.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("read profile {path:?}: name a cluster's profile.json by --profile FILE or MAKAI_PROFILE")
        })?;
        serde_json::from_str(&text).with_context(|| format!("{path:?} is not a profile"))
    }

    /// Where the profile lies that is meant without `--profile`.
    #[must_use]
    pub fn default_path() -> Option<PathBuf> {
        let home = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
        Some(home.join("makai").join("profile.json"))
    }
}
