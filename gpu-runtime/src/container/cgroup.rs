//! Limits that the kernel holds, on cgroup v2, v1 and machines that have both.
//!
//! An attempt's group is made below the group that this process is in, so that it stays inside whatever the machine's
//! owner or service manager allots to the daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The period over which a CPU limit holds.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// Tries to remove a group whose processes have just been killed.
const REMOVE_TRIES: u32 = 200;

/// Where groups can be made, per controller. A controller that this process may not use is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controllers {
    pub memory: Option<Parent>,
    pub cpu: Option<Parent>,
    pub cpuacct: Option<Parent>,
    pub pids: Option<Parent>,
}

/// The folder below which an attempt's group is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    pub folder: PathBuf,
    pub version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    V1,
    V2,
}

/// The most a group may use.
#[derive(Debug, Clone, Copy)]
pub struct GroupLimits {
    pub memory_bytes: u64,
    pub cpu_milli: u32,
    pub pids: u32,
}

/// One attempt's group in each controller.
#[derive(Debug)]
pub struct Group {
    memory: Option<Parent>,
    cpu: Option<Parent>,
    cpuacct: Option<Parent>,
    pids: Option<Parent>,
    /// Each folder once.
    folders: Vec<PathBuf>,
}

impl Controllers {
    /// Which controllers this process may make groups in; tried out, not guessed.
    #[must_use]
    pub fn detect() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut found = Self::from_proc(&mounts, &groups);
        if let Some(parent) = found.v2_parent() {
            delegate(&parent);
        }
        for slot in [&mut found.memory, &mut found.cpu, &mut found.cpuacct, &mut found.pids] {
            if slot.as_ref().is_some_and(|parent| !parent.is_usable()) {
                *slot = None;
            }
        }
        found.require_control_files();
        found
    }

    /// What `/proc/self/mountinfo` and `/proc/self/cgroup` say.
    fn from_proc(mounts: &str, groups: &str) -> Self {
        let own = |wanted: &dyn Fn(&str) -> bool| {
            groups.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':');
                let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
                wanted(controllers).then(|| path.to_owned())
            })
        };
        let mounted = |kind: &str, option: &str| {
            mounts.lines().find_map(|line| {
                let (before, after) = line.split_once(" - ")?;
                let mut before = before.split(' ').skip(3);
                let (root, at) = (before.next()?, before.next()?);
                let mut after = after.split(' ');
                let (found, options) = (after.next()?, after.nth(1)?);
                let fits =
                    found == kind && (option.is_empty() || options.split(',').any(|one| one == option));
                fits.then(|| (root.to_owned(), PathBuf::from(at)))
            })
        };
        let v2 = mounted("cgroup2", "").and_then(|mount| {
            let path = own(&|controllers| controllers.is_empty())?;
            Some(Parent { folder: below(&mount, &path)?, version: Version::V2 })
        });
        let controller = |name: &str| {
            let v1 = mounted("cgroup", name).and_then(|mount| {
                let path = own(&|controllers| controllers.split(',').any(|one| one == name))?;
                Some(Parent { folder: below(&mount, &path)?, version: Version::V1 })
            });
            v1.or_else(|| v2.clone())
        };
        Self {
            memory: controller("memory"),
            cpu: controller("cpu"),
            cpuacct: controller("cpuacct"),
            pids: controller("pids"),
        }
    }

    fn v2_parent(&self) -> Option<PathBuf> {
        [&self.memory, &self.cpu, &self.pids]
            .into_iter()
            .flatten()
            .find(|parent| parent.version == Version::V2)
            .map(|parent| parent.folder.clone())
    }

    /// Drops the v2 controllers that are not on in a group made here.
    fn require_control_files(&mut self) {
        for (slot, file) in
            [(&mut self.memory, "memory.max"), (&mut self.cpu, "cpu.max"), (&mut self.pids, "pids.max")]
        {
            if slot.as_ref().is_some_and(|parent| parent.version == Version::V2 && !parent.makes(file)) {
                *slot = None;
            }
        }
        // In v2 the CPU time of a group is there whatever is switched on.
    }
}

impl Parent {
    fn is_usable(&self) -> bool {
        self.try_out(|_| true)
    }

    fn makes(&self, file: &str) -> bool {
        self.try_out(|group| group.join(file).exists())
    }

    fn try_out(&self, found: impl FnOnce(&Path) -> bool) -> bool {
        let trial = self.folder.join(format!("makai-trial-{}", std::process::id()));
        if fs::create_dir(&trial).is_err() {
            return false;
        }
        let found = found(&trial);
        _ = fs::remove_dir(&trial);
        found
    }
}

/// The folder of a group: the mount may show only a part of the hierarchy.
fn below((root, at): &(String, PathBuf), path: &str) -> Option<PathBuf> {
    let inside = if root == "/" { path } else { path.strip_prefix(root.as_str())? };
    Some(at.join(inside.trim_start_matches('/')))
}

/// Turns the controllers on for groups below this one. A group with processes of its own must first hand them to a
/// group below it (the kernel's rule), which is done only when this process is alone there.
fn delegate(parent: &Path) {
    let available = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<_> =
        ["memory", "cpu", "pids"].into_iter().filter(|name| available.contains(name)).collect();
    let enable =
        || wanted.iter().all(|name| write(parent, "cgroup.subtree_control", &format!("+{name}")).is_ok());
    if wanted.is_empty() || enable() {
        return;
    }
    let inside = fs::read_to_string(parent.join("cgroup.procs")).unwrap_or_default();
    if inside.trim() == std::process::id().to_string() {
        let own = parent.join("makai-daemon");
        let moved = (own.is_dir() || fs::create_dir(&own).is_ok())
            && write(&own, "cgroup.procs", inside.trim()).is_ok();
        if moved {
            _ = enable();
        }
    }
}

impl Group {
    /// The folders that a group of this name has, before it is made.
    #[must_use]
    pub fn folders(controllers: &Controllers, name: &str) -> Vec<PathBuf> {
        let mut folders: Vec<_> =
            [&controllers.memory, &controllers.cpu, &controllers.cpuacct, &controllers.pids]
                .into_iter()
                .flatten()
                .map(|parent| parent.folder.join(name))
                .collect();
        folders.sort();
        folders.dedup();
        folders
    }

    /// Makes a group and sets its limits.
    ///
    /// # Errors
    /// When the kernel refuses; what was made is removed again.
    pub fn create(controllers: &Controllers, name: &str, limits: &GroupLimits) -> io::Result<Self> {
        let folders = Self::folders(controllers, name);
        let in_group = |parent: &Option<Parent>| {
            parent.as_ref().map(|parent| Parent { folder: parent.folder.join(name), version: parent.version })
        };
        let group = Self {
            memory: in_group(&controllers.memory),
            cpu: in_group(&controllers.cpu),
            cpuacct: in_group(&controllers.cpuacct),
            pids: in_group(&controllers.pids),
            folders,
        };
        let made = group.folders.iter().try_for_each(fs::create_dir).and_then(|()| group.limit(limits));
        match made {
            Ok(()) => Ok(group),
            Err(error) => {
                for folder in &group.folders {
                    _ = fs::remove_dir(folder);
                }
                Err(error)
            }
        }
    }

    fn limit(&self, limits: &GroupLimits) -> io::Result<()> {
        let memory = limits.memory_bytes.to_string();
        match &self.memory {
            Some(Parent { folder, version: Version::V2 }) => {
                write(folder, "memory.max", &memory)?;
                optional(write(folder, "memory.swap.max", "0"))?;
                // One process over the limit ends all, so that no half of a task goes on.
                optional(write(folder, "memory.oom.group", "1"))?;
            }
            Some(Parent { folder, version: Version::V1 }) => {
                write(folder, "memory.limit_in_bytes", &memory)?;
                optional(write(folder, "memory.memsw.limit_in_bytes", &memory))?;
                optional(write(folder, "memory.swappiness", "0"))?;
            }
            None => {}
        }
        let quota = (u64::from(limits.cpu_milli) * CPU_PERIOD_MICROS / 1000).max(1000);
        match &self.cpu {
            Some(Parent { folder, version: Version::V2 }) => {
                write(folder, "cpu.max", &format!("{quota} {CPU_PERIOD_MICROS}"))?;
            }
            Some(Parent { folder, version: Version::V1 }) => {
                write(folder, "cpu.cfs_period_us", &CPU_PERIOD_MICROS.to_string())?;
                write(folder, "cpu.cfs_quota_us", &quota.to_string())?;
            }
            None => {}
        }
        if let Some(Parent { folder, .. }) = &self.pids {
            write(folder, "pids.max", &limits.pids.to_string())?;
        }
        Ok(())
    }

    /// Puts a process into the group; what it starts from then on is in it too.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        self.folders.iter().try_for_each(|folder| write(folder, "cgroup.procs", &pid.to_string()))
    }

    /// CPU time of all that is or was in the group.
    #[must_use]
    pub fn cpu_ms(&self) -> Option<u64> {
        let parent = self.cpuacct.as_ref()?;
        match parent.version {
            Version::V1 => Some(number(&parent.folder, "cpuacct.usage")? / 1_000_000),
            Version::V2 => Some(field(&parent.folder, "cpu.stat", "usage_usec")? / 1000),
        }
    }

    /// Memory in use now.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        let parent = self.memory.as_ref()?;
        match parent.version {
            Version::V1 => number(&parent.folder, "memory.usage_in_bytes"),
            Version::V2 => number(&parent.folder, "memory.current"),
        }
    }

    /// The most memory that was in use at once; absent on kernels that do not keep it.
    #[must_use]
    pub fn memory_peak_bytes(&self) -> Option<u64> {
        let parent = self.memory.as_ref()?;
        match parent.version {
            Version::V1 => number(&parent.folder, "memory.max_usage_in_bytes"),
            Version::V2 => number(&parent.folder, "memory.peak"),
        }
    }

    /// Processes that the kernel killed for lack of memory inside the group.
    #[must_use]
    pub fn memory_kills(&self) -> u64 {
        let kills = self.memory.as_ref().and_then(|parent| match parent.version {
            Version::V1 => field(&parent.folder, "memory.oom_control", "oom_kill"),
            Version::V2 => field(&parent.folder, "memory.events", "oom_kill"),
        });
        kills.unwrap_or(0)
    }

    /// How often a process was refused for lack of room.
    #[must_use]
    pub fn forks_refused(&self) -> u64 {
        self.pids.as_ref().and_then(|parent| field(&parent.folder, "pids.events", "max")).unwrap_or(0)
    }

    #[must_use]
    pub fn limits_memory(&self) -> bool {
        self.memory.is_some()
    }

    #[must_use]
    pub fn limits_pids(&self) -> bool {
        self.pids.is_some()
    }
}

/// Kills what is left in these groups and removes them. What is not there is no error.
///
/// # Errors
/// When a group does not empty, which takes a process that cannot be killed.
pub fn remove(folders: &[PathBuf]) -> io::Result<()> {
    folders.iter().try_for_each(|folder| remove_one(folder))
}

fn remove_one(folder: &Path) -> io::Result<()> {
    for attempt in 0..REMOVE_TRIES {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if attempt + 1 == REMOVE_TRIES => return Err(error),
            Err(_) => {}
        }
        if write(folder, "cgroup.kill", "1").is_err() {
            let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in
                pids.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw)
            {
                _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}

fn write(folder: &Path, file: &str, text: &str) -> io::Result<()> {
    let path = folder.join(file);
    let mut file = fs::File::options().write(true).open(&path)?;
    io::Write::write_all(&mut file, text.as_bytes())
        .map_err(|error| io::Error::new(error.kind(), format!("write {text:?} to {path:?}: {error}")))
}

/// A knob that older kernels, or kernels without swap accounting, do not have.
fn optional(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}

fn field(folder: &Path, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(parent: &Option<Parent>) -> Option<(&str, Version)> {
        parent.as_ref().map(|parent| (parent.folder.to_str().unwrap(), parent.version))
    }

    /// Debian 12 with systemd: one v2 tree, the daemon in its unit's group.
    #[test]
    fn finds_the_unit_on_v2() {
        let mounts = "26 25 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Controllers::from_proc(mounts, "0::/system.slice/makai.service\n");
        let own = Some(("/sys/fs/cgroup/system.slice/makai.service", Version::V2));
        assert_eq!((folder(&found.memory), folder(&found.cpu), folder(&found.pids)), (own, own, own));
    }

    /// Controllers on v1 and an empty v2 tree beside them: each is found where it is.
    #[test]
    fn finds_each_controller_on_hybrid() {
        let mounts = "32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "8:memory:/a/b\n1:cpu,cpuacct:/c\n0::/d\n";
        let found = Controllers::from_proc(mounts, groups);
        assert_eq!(folder(&found.memory), Some(("/cg/memory/a/b", Version::V1)));
        assert_eq!(folder(&found.cpuacct), Some(("/cg/cpu/c", Version::V1)));
        assert_eq!(folder(&found.pids), Some(("/cg/unified/d", Version::V2)));
    }

    /// In a container the mount shows a part of the tree: paths are taken from there.
    #[test]
    fn finds_the_part_that_a_container_sees() {
        let mounts = "35 31 0:32 /docker/x /cg rw - cgroup cgroup rw,memory\n";
        let found = Controllers::from_proc(mounts, "8:memory:/docker/x/sub\n");
        assert_eq!(folder(&found.memory), Some(("/cg/sub", Version::V1)));
        let elsewhere = Controllers::from_proc(mounts, "8:memory:/other\n");
        assert_eq!(elsewhere.memory, None);
    }
}
