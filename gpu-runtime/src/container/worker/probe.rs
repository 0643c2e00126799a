//! Finds out which walls this machine can build, by building them around a process that does nothing.

use std::fs;
use std::io;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::sys::{self, Fork};
use super::{Confinement, Ids, seccomp};
use crate::container::cgroup::Controllers;

/// The first id of the first range: above what accounts, subordinate ids and service managers give out by default, and
/// with all ranges below 2^31.
const FIRST_ID: u32 = 1_900_000_000;
const LAST_ID: u32 = FIRST_ID + 2048 * Ids::RANGE - 1;
/// Nobody, everywhere.
const NOBODY: u32 = 65_534;

/// What a probe answers on standard output.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Able(Confinement),
    /// A wall is missing: which, and what to do.
    Unable(String),
}

/// Prints an [`Answer`] as JSON.
///
/// # Errors
/// When even that fails.
pub fn print() -> Result<(), String> {
    let ids = ids();
    let answer = match try_out(ids) {
        Ok(()) => Answer::Able(Confinement {
            ids,
            controllers: Controllers::detect(),
            is_program_exposed: ids == Ids::Own && is_program_writable(),
        }),
        Err(error) => Answer::Unable(error),
    };
    println!("{}", serde_json::to_string(&answer).map_err(|error| error.to_string())?);
    Ok(())
}

fn ids() -> Ids {
    if !rustix::process::geteuid().is_root() {
        return Ids::Own;
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let covers = |wanted: u32| {
        map.lines().any(|line| {
            let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
            let (inside, _, count) = (numbers.next(), numbers.next(), numbers.next());
            matches!((inside, count), (Some(first), Some(count)) if (first..first + count).contains(&u64::from(wanted)))
        })
    };
    if covers(FIRST_ID) && covers(LAST_ID) {
        Ids::Range { first: FIRST_ID }
    } else {
        Ids::One { outside: NOBODY }
    }
}

/// By its owner and mode: a program that runs cannot be opened for writing, but one day it does not run.
fn is_program_writable() -> bool {
    let own = rustix::process::geteuid().as_raw();
    rustix::fs::stat("/proc/self/exe").is_ok_and(|found| found.st_uid == own || found.st_mode & 0o002 != 0)
}

/// Builds every wall in a child, which ends with the step that failed.
fn try_out(ids: Ids) -> Result<(), String> {
    const STEPS: [&str; 6] = [
        "user namespaces are refused: on Debian, set sysctl kernel.unprivileged_userns_clone=1 or run the daemon as root",
        "mount, process, network, IPC and host name namespaces are refused: run the daemon outside of other containers",
        "mounting in a namespace of its own is refused: run the daemon outside of other containers",
        "overlayfs is missing: load the kernel module overlay (modprobe overlay)",
        "/proc cannot be mounted in a process namespace: run the daemon outside of other containers",
        "system call filters are missing: the kernel needs CONFIG_SECCOMP_FILTER",
    ];
    let scratch = std::env::temp_dir();
    let machine = |error: io::Error| format!("this machine cannot try out confinement: {error}");
    let status = match sys::fork().map_err(machine)? {
        Fork::Child => {
            let failed = walls(ids, &scratch);
            sys::exit(failed.map_or(0, |step| step + 1))
        }
        Fork::Parent { child } => sys::reap(Some(child), true).map(|ended| sys::status_of(ended.status)),
    };
    match status {
        Some(Ok(0)) => Ok(()),
        Some(Ok(step)) => {
            let step = usize::try_from(step - 1).ok().and_then(|step| STEPS.get(step));
            Err(step.map_or_else(|| "the probe failed".to_owned(), |step| (*step).to_owned()))
        }
        _ => Err("the probe was killed".into()),
    }
}

/// The step that failed, if one did.
fn walls(ids: Ids, scratch: &std::path::Path) -> Option<i32> {
    let is_own = ids == Ids::Own;
    if is_own && sys::own_user_namespace().is_err() {
        return Some(0);
    }
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    if sys::unshare(namespaces).is_err() {
        return Some(1);
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    let mounted = rustix::mount::mount_change("/", private)
        .and_then(|()| rustix::mount::mount("tmpfs", scratch, "tmpfs", MountFlags::NOSUID, c"size=1m"));
    if mounted.is_err() {
        return Some(2);
    }
    let made = ["a", "b", "root", "proc"].iter().try_for_each(|name| fs::create_dir(scratch.join(name)));
    let options =
        format!("userxattr,lowerdir={}:{}", scratch.join("a").display(), scratch.join("b").display());
    let overlay = std::ffi::CString::new(options).ok().filter(|_| made.is_ok()).map(|options| {
        rustix::mount::mount(
            "overlay",
            scratch.join("root"),
            "overlay",
            MountFlags::RDONLY,
            options.as_c_str(),
        )
    });
    if !matches!(overlay, Some(Ok(()))) {
        return Some(3);
    }
    let inner = match sys::fork() {
        Ok(Fork::Child) => {
            let proc = rustix::mount::mount("proc", scratch.join("proc"), "proc", MountFlags::NOSUID, None);
            if proc.is_err() {
                sys::exit(5);
            }
            if sys::unshare(UnshareFlags::NEWUSER).is_err() {
                sys::exit(1);
            }
            let filtered = rustix::thread::set_no_new_privs(true)
                .map_err(io::Error::from)
                .and_then(|()| seccomp::confine());
            sys::exit(if filtered.is_err() { 6 } else { 0 })
        }
        Ok(Fork::Parent { child }) => sys::reap(Some(child), true).map(|ended| sys::status_of(ended.status)),
        Err(_) => None,
    };
    match inner {
        Some(Ok(0)) => None,
        Some(Ok(step)) => Some(step - 1),
        _ => Some(1),
    }
}
