//! From what a person wishes to a node's configuration. Touches nothing.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use makai_config::{DiskConfig, NodeConfig, Role, Secret};

/// How the node begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    Found,
    /// With this token.
    Join(String),
}

/// One directory to offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub path: PathBuf,
    /// 0: all that is free.
    pub capacity_bytes_max: u64,
}

#[derive(Debug, Clone)]
pub struct Wishes {
    pub dir: PathBuf,
    pub start: Start,
    pub roles: BTreeSet<Role>,
    pub disks: Vec<Disk>,
    pub name: String,
    pub owner: String,
    pub site: String,
    pub advertise: Vec<String>,
}

/// `voter, storage`: at least one, each known.
pub fn roles(text: &str) -> Result<BTreeSet<Role>, String> {
    let known = [Role::Voter, Role::Storage, Role::Gateway, Role::Compute];
    let role = |word: &str| {
        let found = known.into_iter().find(|role| role.as_str() == word);
        found.ok_or_else(|| format!("{word:?} is no role; there are voter, storage, gateway and compute"))
    };
    let words = text.split([',', ' ']).filter(|word| !word.is_empty());
    let roles = words.map(role).collect::<Result<BTreeSet<_>, _>>()?;
    if roles.is_empty() { Err("a node needs a role".into()) } else { Ok(roles) }
}

/// `PATH` or `PATH=SIZE`.
pub fn disk(text: &str) -> Result<Disk, String> {
    let (path, size) = match text.rsplit_once('=') {
        Some((path, size)) => (path, bytes(size)?),
        None => (text, 0),
    };
    if !Path::new(path).is_absolute() {
        return Err(format!("{path:?} is no absolute path: the daemon may start anywhere"));
    }
    Ok(Disk { path: path.into(), capacity_bytes_max: size })
}

/// `500GB`, `2TiB`, `1000000000`.
fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("TB", 1_000_000_000_000),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("T", 1_000_000_000_000),
        ("G", 1_000_000_000),
        ("M", 1_000_000),
        ("B", 1),
    ];
    let text = text.trim();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number, *unit)))
        .unwrap_or((text, 1));
    let read = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    read.filter(|size| *size > 0).ok_or_else(|| format!("{text:?} is no size; write e.g. 500GB or 2TiB"))
}

/// The configuration of a node in a file of `folder`.
///
/// # Errors
/// What is wished for does not hold together, e.g. a name that is too long: every fault, with its key.
pub fn config(wishes: &Wishes, folder: &Path) -> anyhow::Result<NodeConfig> {
    let mut config = NodeConfig::default();
    config.node.dir = wishes.dir.clone();
    config.node.name = wishes.name.clone();
    config.node.owner = wishes.owner.clone();
    config.node.site = wishes.site.clone();
    config.node.roles = wishes.roles.clone();
    config.peers.advertise = wishes.advertise.clone();
    match &wishes.start {
        Start::Found => config.cluster.init = true,
        Start::Join(token) => config.cluster.join_token = Some(Secret::new(token)),
    }
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if wishes.roles.contains(&Role::Gateway) {
        config.s3.listen = Some(loopback(9000));
        config.grpc.listen = Some(loopback(9001));
    } else {
        config.s3.listen = None;
        config.grpc.listen = None;
    }
    let disk = |disk: &Disk| DiskConfig {
        path: disk.path.clone(),
        capacity_bytes_max: disk.capacity_bytes_max,
        ..DiskConfig::default()
    };
    config.disk = wishes.disks.iter().map(disk).collect();
    let faults = |faults: Vec<makai_config::Fault>| {
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", lines.join("\n"))
    };
    NodeConfig::parse(&config.to_toml()?, folder).map_err(faults).context("these answers make no node")
}

/// Of this machine; empty where the system does not tell.
pub fn host_name() -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    told.trim().chars().take(makai_config::sections::LABEL_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes() -> Wishes {
        Wishes {
            dir: "/var/lib/makai".into(),
            start: Start::Found,
            roles: roles("voter storage").unwrap(),
            disks: vec![disk("/mnt/a/makai=2TiB").unwrap(), disk("/mnt/b").unwrap()],
            name: "pc".into(),
            owner: "alice".into(),
            site: String::new(),
            advertise: vec!["pc.example:7400".into()],
        }
    }

    #[test]
    fn what_is_wished_for_is_what_loads() {
        let config = config(&wishes(), Path::new("/etc/makai")).unwrap();
        assert!(config.cluster.init && config.s3.listen.is_none() && config.grpc.listen.is_none());
        let sizes: Vec<u64> = config.disk.iter().map(|disk| disk.capacity_bytes_max).collect();
        assert_eq!(sizes, [2 << 40, 0]);
        let again = NodeConfig::parse(&config.to_toml().unwrap(), Path::new("/etc/makai")).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn a_wish_that_cannot_be_is_told_with_its_key() {
        let wrong = Wishes { name: "x".repeat(1000), advertise: vec!["nowhere".into()], ..wishes() };
        let told = format!("{:#}", config(&wrong, Path::new("/")).unwrap_err());
        assert!(told.contains("node.name") && told.contains("peers.advertise"), "{told}");
        assert!(roles("storage,miner").unwrap_err().contains("miner"));
        assert!(roles("").is_err());
        for text in ["relative", "/a=", "/a=0", "/a=5 apples", "/a=99999999TiB"] {
            assert!(disk(text).is_err(), "{text}");
        }
        assert_eq!(disk("/a=1.5").map_err(|_| ()), Err(()));
    }
}
