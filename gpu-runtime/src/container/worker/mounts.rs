//! What a task sees of the file system: its image, read-only; small file systems in memory; its inputs and outputs.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::container::state::CardAccess;
use crate::runner::{Network, TaskSpec, Work};

/// Where an attempt's image is mounted, in its folder, for the time that it takes to move into it.
const ROOT: &str = "root";
const SKELETON: &str = "skeleton";
/// The lowest layer of all, as overlayfs wants two.
const EMPTY: &str = "empty";
/// Devices that give nothing away.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Parts of `/proc` that tell of the machine, replaced by nothing.
const HIDDEN_FILES: [&str; 8] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kallsyms",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/sysrq-trigger",
];
const HIDDEN_FOLDERS: [&str; 4] = ["/proc/acpi", "/proc/asound", "/proc/scsi", "/proc/driver"];
/// Parts of `/proc` that steer the machine.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/tty"];
/// `/run` and `/dev/shm` beside a `/tmp` of half the task's memory.
const RUN_BYTES: u64 = 16 << 20;

/// Where a task with a share of a card sees the node's desk.
pub const DESK: &str = "/desk";
/// Where a container with cards sees the driver's libraries.
pub const DRIVER: &str = "/usr/local/nvidia/lib64";

/// What of the machine a task with a share of a card sees.
#[derive(Debug, Default)]
pub struct CardFiles {
    /// Names under `/dev`.
    pub devices: Vec<String>,
    /// Files of the machine, and where they are seen.
    pub files: Vec<(std::path::PathBuf, std::path::PathBuf)>,
}

/// Fills the layer that lies over the image: mount points, and what `/etc` must say of this container.
pub fn make_skeleton(folder: &Path, spec: &TaskSpec, card: Option<&CardFiles>) -> io::Result<()> {
    let skeleton = folder.join(SKELETON);
    fs::create_dir_all(folder.join(ROOT))?;
    fs::create_dir_all(folder.join(EMPTY))?;
    for name in ["proc", "dev", "sys", "tmp", "run", "etc"] {
        fs::create_dir_all(skeleton.join(name))?;
    }
    if spec.input.is_some() {
        fs::create_dir_all(skeleton.join("in"))?;
    }
    if spec.output.is_some() {
        fs::create_dir_all(skeleton.join("out"))?;
    }
    if let Some(card) = card {
        fs::create_dir_all(skeleton.join(DESK.trim_start_matches('/')))?;
        for (_, inside) in &card.files {
            let inside = skeleton.join(inside.strip_prefix("/").unwrap_or(inside));
            if let Some(folder) = inside.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(inside, "")?;
        }
    }
    fs::write(skeleton.join("etc/hostname"), "makai\n")?;
    fs::write(skeleton.join("etc/hosts"), "127.0.0.1 localhost makai\n::1 localhost\n")?;
    let resolver = match &spec.work {
        Work::Container(work) if work.network == Network::Host => {
            fs::read("/etc/resolv.conf").unwrap_or_default()
        }
        _ => Vec::new(),
    };
    fs::write(skeleton.join("etc/resolv.conf"), resolver)
}

/// Builds the task's file system and moves into it. The working folder must be the attempt's; the mount namespace new.
pub fn enter(
    layers: &[std::path::PathBuf],
    spec: &TaskSpec,
    card: Option<(&CardAccess, &CardFiles)>,
) -> io::Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(doing("leave the machine's mounts"))?;
    overlay(layers).map_err(|error| io::Error::new(error.kind(), format!("mount the image: {error}")))?;
    let inert = MountFlags::NOSUID | MountFlags::NODEV;
    mount("proc", "root/proc", "proc", inert | MountFlags::NOEXEC, "")?;
    let scratch = spec.limits.memory_bytes / 2;
    mount("tmpfs", "root/tmp", "tmpfs", inert, &format!("mode=1777,size={scratch}"))?;
    mount("tmpfs", "root/run", "tmpfs", inert, &format!("mode=1777,size={RUN_BYTES}"))?;
    let own = card.map_or(&[][..], |(_, files)| files.devices.as_slice());
    devices(scratch, own)?;
    if let Some((access, files)) = card {
        bind(&access.desk, "root/desk", inert | MountFlags::RDONLY | MountFlags::NOEXEC)?;
        for (file, inside) in &files.files {
            let inside = Path::new("root").join(inside.strip_prefix("/").unwrap_or(inside));
            let inside = inside.to_str().ok_or(io::ErrorKind::InvalidInput)?;
            bind(file, inside, inert | MountFlags::RDONLY)?;
        }
    }
    if let Some(input) = &spec.input {
        bind(input, "root/in", inert | MountFlags::RDONLY)?;
    }
    if let Some(output) = &spec.output {
        bind(output, "root/out", inert)?;
    }
    move_into_root()?;
    mask(card.is_some())
}

fn overlay(layers: &[std::path::PathBuf]) -> io::Result<()> {
    // By descriptor: short enough for any number of layers, and any character in a path.
    let open = |path: &Path| -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    };
    let mut folders = vec![open(Path::new(SKELETON))?];
    for layer in layers.iter().rev() {
        folders.push(open(layer)?);
    }
    folders.push(open(Path::new(EMPTY))?);
    let stack: Vec<_> =
        folders.iter().map(|folder| format!("/proc/self/fd/{}", folder.as_raw_fd())).collect();
    let options = format!("userxattr,lowerdir={}", stack.join(":"));
    mount("overlay", "root", "overlay", MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, &options)
}

fn devices(shared_memory_bytes: u64, own: &[String]) -> io::Result<()> {
    let inert = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("tmpfs", "root/dev", "tmpfs", inert, "mode=755,size=64k")?;
    for name in DEVICES.into_iter().chain(own.iter().map(String::as_str)) {
        fs::write(format!("root/dev/{name}"), "")?;
        rustix::mount::mount_bind(format!("/dev/{name}"), format!("root/dev/{name}"))
            .map_err(doing(format!("bind /dev/{name}")))?;
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        std::os::unix::fs::symlink(target, format!("root/dev/{name}"))?;
    }
    fs::create_dir("root/dev/shm")?;
    let options = format!("mode=1777,size={shared_memory_bytes}");
    mount("tmpfs", "root/dev/shm", "tmpfs", inert | MountFlags::NODEV, &options)?;
    let flags = MountFlags::RDONLY | MountFlags::BIND | inert;
    rustix::mount::mount_remount("root/dev", flags, "").map_err(doing("close /dev"))
}

fn move_into_root() -> io::Result<()> {
    rustix::process::chdir(ROOT).map_err(doing("enter the image"))?;
    // The old root comes to lie over the new one, and is taken off it.
    rustix::process::pivot_root(".", ".").map_err(doing("make the image the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(doing("let the machine's files go"))?;
    rustix::process::chdir("/").map_err(doing("enter the image"))
}

fn mask(has_card: bool) -> io::Result<()> {
    for path in HIDDEN_FILES {
        if Path::new(path).exists() {
            rustix::mount::mount_bind("/dev/null", path).map_err(doing(format!("hide {path}")))?;
        }
    }
    for path in HIDDEN_FOLDERS {
        // The driver's library reads its parameters there.
        if Path::new(path).is_dir() && !(has_card && path == "/proc/driver") {
            mount("tmpfs", path, "tmpfs", MountFlags::RDONLY | MountFlags::NOSUID, "size=4k")?;
        }
    }
    for path in READ_ONLY {
        if Path::new(path).exists() {
            bind(Path::new(path), path, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV)?;
        }
    }
    Ok(())
}

/// Shows a folder at another place, with these restrictions and those that it has already: inside a user namespace the
/// kernel lets none of them go.
fn bind(source: &Path, target: &str, flags: MountFlags) -> io::Result<()> {
    rustix::mount::mount_bind(source, target).map_err(doing(format!("show {source:?}")))?;
    let inherited = rustix::fs::statvfs(target).map_err(doing(format!("look at {source:?}")))?.f_flag;
    let mut flags = flags | MountFlags::BIND;
    for (given, kept) in [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if inherited.contains(given) {
            flags |= kept;
        }
    }
    rustix::mount::mount_remount(target, flags, "").map_err(doing(format!("restrict {source:?}")))
}

fn mount(source: &str, target: &str, kind: &str, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = CString::new(options)?;
    rustix::mount::mount(source, target, kind, flags, options.as_c_str())
        .map_err(doing(format!("mount {target}")))
}

fn doing(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> io::Error {
    move |errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("{}: {error}", what.into()))
    }
}
