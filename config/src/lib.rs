//! What the operator asked for.
//!
//! ```text
//! TOML text ─ parse (every key known, every value of its type) ─> sections ─ check (ranges, sections
//! against each other) ─ resolve (paths made absolute, what follows from the rest filled in) ─> NodeConfig
//! ```
//!
//! | room         | holds                                               | touches  |
//! |--------------|-----------------------------------------------------|----------|
//! | [`sections`], [`accounts`] | every key: its type, default, unit and reason | nothing |
//! | `parse`      | text to sections, and where each key stands         | nothing  |
//! | `check`      | ranges, and what one key asks of another            | nothing  |
//! | `examples/`  | the manual: a commented file for each kind of node  |          |
//!
//! Always: [`NodeConfig::load`] and [`NodeConfig::parse`] name all faults at once, each with its key, its
//! line and what to change; an unknown key is a fault; every key has a default, except `node.dir`; a secret
//! is never printed. What [`NodeConfig::to_toml`] writes, `parse` reads back as the same configuration.

pub mod accounts;
mod check;
mod error;
mod parse;
pub mod sections;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use accounts::{AccountsConfig, LedgerConfig, LedgerKind, OnDisagreement, PricesConfig};
pub use error::{ConfigError, Fault};
pub use sections::{
    ClusterConfig, ComputeConfig, ConsoleConfig, DiskConfig, GrpcConfig, LimitsConfig, NodeSection,
    PeersConfig, RaftConfig, Role, S3Config, Secret, StorageConfig,
};

/// A configuration file longer than this is not one.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// A join token file longer than this holds no token.
pub const TOKEN_BYTES_MAX: u64 = 4096;
/// Where a storage node keeps shards when no `[[disk]]` is given, inside `node.dir`.
pub const DEFAULT_DISK_DIR: &str = "disk0";

/// What one node was asked to be. `Default` holds every default; a file is read by [`NodeConfig::load`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    pub node: NodeSection,
    pub cluster: ClusterConfig,
    pub peers: PeersConfig,
    pub s3: S3Config,
    pub grpc: GrpcConfig,
    pub console: ConsoleConfig,
    pub storage: StorageConfig,
    pub compute: ComputeConfig,
    pub raft: RaftConfig,
    pub limits: LimitsConfig,
    pub accounts: AccountsConfig,
    pub prices: PricesConfig,
    pub ledger: LedgerConfig,
    /// The directories that this node offers, `[[disk]]` each. Never empty on a storage node once loaded.
    pub disk: Vec<DiskConfig>,
}

impl NodeConfig {
    /// Reads, checks and resolves one file. Relative paths in it are taken from the file's own folder; an
    /// empty `node.name` becomes this machine's host name.
    ///
    /// # Errors
    /// [`ConfigError::Read`]: the file cannot be read. [`ConfigError::Faults`]: everything in it that must
    /// change.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let path_full = std::path::absolute(path).map_err(read)?;
        let size_bytes = std::fs::metadata(path).map_err(read)?.len();
        if size_bytes > FILE_BYTES_MAX {
            let message = format!("has {size_bytes} bytes; a configuration has at most {FILE_BYTES_MAX}");
            return Err(ConfigError::Faults { path: path.to_owned(), faults: vec![Fault::of_file(message)] });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let folder = path_full.parent().unwrap_or(Path::new("/"));
        let mut config = Self::parse(&text, folder)
            .map_err(|faults| ConfigError::Faults { path: path.to_owned(), faults })?;
        if config.node.name.is_empty() {
            config.node.name = host_name();
        }
        Ok(config)
    }

    /// Checks and resolves the text of a file that lies in `folder`.
    ///
    /// # Errors
    /// Everything that must change, in the order of the file; never empty.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Fault>> {
        let mut faults = parse::Faults::new(text)?;
        let mut config = parse::sections(text, &mut faults);
        config.resolve(folder);
        check::check(&config, &mut faults);
        faults.into_result(config)
    }

    /// The file that says this. Every key is written, so that its reader need not know the defaults.
    ///
    /// # Errors
    /// Never for a configuration that was loaded; a path that is not UTF-8 cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self).map_err(|error| ConfigError::Write(error.to_string()))
    }

    #[must_use]
    pub fn has_role(&self, role: Role) -> bool {
        self.node.roles.contains(&role)
    }

    /// The token to join with, from the configuration or from the file that it names; `None` where neither is
    /// given. Read only when the node joins: the file may be gone afterwards.
    ///
    /// # Errors
    /// [`ConfigError::Token`]: the file cannot be read, is empty or is no token.
    pub fn read_join_token(&self) -> Result<Option<Secret>, ConfigError> {
        let Some(path) = &self.cluster.join_token_file else { return Ok(self.cluster.join_token.clone()) };
        let fault = |why: String| ConfigError::Token { path: path.clone(), why };
        let cannot = |error: std::io::Error| fault(format!("cannot be read: {error}"));
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(cannot)?;
        file.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
        match text.trim() {
            "" => Err(fault("is empty".to_owned())),
            _ if text.len() as u64 > TOKEN_BYTES_MAX => {
                Err(fault(format!("has more than {TOKEN_BYTES_MAX} bytes")))
            }
            token => Ok(Some(Secret::new(token))),
        }
    }

    /// Every key as `section.key`, in the order of the sections.
    #[must_use]
    pub fn keys() -> Vec<String> {
        parse::known_keys()
    }

    fn resolve(&mut self, folder: &Path) {
        let absolute = |path: &mut PathBuf| {
            if !path.as_os_str().is_empty() {
                *path = folder.join(&*path).components().collect();
            }
        };
        absolute(&mut self.node.dir);
        self.disk.iter_mut().for_each(|disk| absolute(&mut disk.path));
        let files = [&mut self.cluster.join_token_file, &mut self.s3.tls_cert, &mut self.s3.tls_key];
        files.into_iter().flatten().for_each(absolute);

        if self.disk.is_empty() && self.has_role(Role::Storage) {
            self.disk
                .push(DiskConfig { path: self.node.dir.join(DEFAULT_DISK_DIR), ..DiskConfig::default() });
        }
        if self.peers.advertise.is_empty() && !self.peers.listen.ip().is_unspecified() {
            self.peers.advertise.push(self.peers.listen.to_string());
        }
    }
}

/// Empty where the system does not tell.
fn host_name() -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    told.trim().chars().take(sections::LABEL_BYTES_MAX).collect()
}
