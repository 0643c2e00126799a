//! What this machine offers to jobs.

use std::io;
use std::path::Path;

use makai_raft::facts::jobs::ObjectPath;
use makai_raft::facts::tenant::TenantId;
use serde::{Deserialize, Serialize};

/// Share of the machine's memory that jobs may have where the owner sets no bound, in quarters: the rest is the system's,
/// the daemon's and the page cache's.
const MEMORY_QUARTERS: u64 = 3;

/// Of a processor's name.
const MODEL_CHARS_MAX: usize = 128;

/// One card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    pub uuid: String,
    /// As the driver names it.
    pub model: String,
    /// What jobs may have: the card's own less what its owner keeps.
    pub memory_mib: u64,
    /// As the driver prints it: `580.65.06`.
    #[serde(default)]
    pub driver: String,
    /// Compute capability, major and minor.
    #[serde(default)]
    pub capability: (u32, u32),
    /// Of an instance of a MIG card, which is offered as a card of its own: the card's.
    #[serde(default)]
    pub parent: String,
    /// Number of its device node.
    #[serde(default)]
    pub minor: u32,
    /// Why it takes nothing now: its owner has it, or it is ill. Empty: it takes tasks.
    #[serde(default)]
    pub closed: String,
    /// Strictest confinement that a share of it can have, as [`crate::slice::Level::number`].
    #[serde(default)]
    pub level_max: u8,
    /// Containers can have shares of it too, under the level `shadow`.
    #[serde(default)]
    pub has_shadow: bool,
}

impl Gpu {
    /// Major version of its driver; 0: not known.
    #[must_use]
    pub fn driver_major(&self) -> u32 {
        self.driver.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }
}

/// The processor, as far as it tells how fast tasks run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// As the kernel names it; empty: it does not.
    pub model: String,
    /// Millions of PTX instructions of integers that one core ran in a second, measured when the node began; 0: not yet.
    pub ptx_mips: u32,
}

/// Something that jobs begin with and that is on this machine already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which, as [`source_number`] has it.
    pub what: u64,
    pub bytes: u64,
}

/// A number for an object or prefix of a tenant: the same on every node.
#[must_use]
pub fn source_number(tenant: TenantId, path: &ObjectPath) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&tenant.0.to_le_bytes());
    hasher.update(&(path.bucket.len() as u64).to_le_bytes());
    hasher.update(path.bucket.as_bytes()).update(path.key.as_bytes());
    hasher.finalize().as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// What a node offers in all, whether or not it is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub scratch_bytes: u64,
    pub gpus: Vec<Gpu>,
    #[serde(default)]
    pub cpu: Cpu,
    /// Images and inputs that are here, those used most lately: a task that wants them has less to bring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Held>,
}

/// Bounds that the owner sets; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    pub cpu_millis_max: u64,
    pub memory_bytes_max: u64,
    pub scratch_bytes_max: u64,
}

fn bounded(found: u64, max: u64) -> u64 {
    if max == 0 { found } else { found.min(max) }
}

/// Looks at this machine. `dir`: where attempts keep their files; `gpus`: what its driver shows, see [`crate::card::host`].
///
/// # Errors
/// The system does not tell.
pub fn look(dir: &Path, bounds: Bounds, gpus: Vec<Gpu>) -> io::Result<Inventory> {
    let cores = std::thread::available_parallelism()?.get() as u64;
    let memory = memory_total()? / 4 * MEMORY_QUARTERS;
    let disk = rustix::fs::statvfs(dir)?;
    // Half of what is free: storage, logs and the cache live here too.
    let scratch = disk.f_bavail.saturating_mul(disk.f_frsize) / 2;
    Ok(Inventory {
        cpu_millis: bounded(cores * 1000, bounds.cpu_millis_max),
        memory_bytes: bounded(memory, bounds.memory_bytes_max),
        scratch_bytes: bounded(scratch, bounds.scratch_bytes_max),
        gpus,
        cpu: Cpu { model: cpu_model(), ptx_mips: 0 },
        held: Vec::new(),
    })
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or_default().chars().take(MODEL_CHARS_MAX).collect()
}

/// Bytes that this machine, or the group of processes this one is kept to, may use.
fn memory_total() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let total = parse_meminfo(&text).ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.into_iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
    Ok(limit.map_or(total, |limit: u64| limit.min(total)))
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_offers_something_and_never_more_than_its_owner_says() {
        let all = look(Path::new("/tmp"), Bounds::default(), Vec::new()).unwrap();
        assert!(all.cpu_millis >= 1000 && all.memory_bytes > 1 << 20, "{all:?}");
        let bounds = Bounds { cpu_millis_max: 500, memory_bytes_max: 1 << 20, scratch_bytes_max: 7 };
        let kept = look(Path::new("/tmp"), bounds, Vec::new()).unwrap();
        assert_eq!((kept.cpu_millis, kept.memory_bytes), (500, 1 << 20));
        assert!(kept.scratch_bytes <= 7);
        assert_eq!(parse_meminfo("MemTotal:     10 kB\n"), Some(10 * 1024));
        assert_eq!(parse_meminfo("MemFree: 1 kB\nMemTotal: x kB"), None);
    }
}
