//! The worker: this program started anew, with one thread, to look after one attempt.
//!
//! | room        | holds                                                                      |
//! |-------------|----------------------------------------------------------------------------|
//! | `supervise` | the worker itself: image, limits, log, usage, outcome                       |
//! | `spare`     | a worker that was started before its task, up to its task                   |
//! | `init`      | the container's first process, and its command up to its first instruction  |
//! | `mounts`    | what a task sees of the file system                                         |
//! | `seccomp`   | the system call filter; its data is in `syscalls`                           |
//! | `user`      | who the command runs as                                                     |
//! | `watch`     | what is watched rather than held by the kernel                              |
//! | `probe`     | what this machine can do                                                    |
//!
//! What always holds: no code of a task runs before every wall stands; a command starts without capabilities, without a
//! way to gain any, behind the filter, with no descriptor but its three streams.

mod clock;
mod init;
mod mounts;
mod probe;
mod seccomp;
mod spare;
mod supervise;
mod sys;
mod syscalls;
mod user;
pub(super) mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::cgroup::Controllers;
use super::state::AttemptFolder;
pub(super) use probe::Answer;

/// What walls a machine can build, found out by building them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    pub ids: Ids,
    pub controllers: Controllers,
    /// Whether a task that runs as the daemon's user could write to the daemon's program, which a process can always
    /// reach as what it was started from.
    pub is_program_exposed: bool,
}

/// Which of the machine's user ids a container's ids are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ids {
    /// A range that only this attempt has, the first of the first range being `first`.
    Range { first: u32 },
    /// One id that owns nothing, shared by all attempts.
    One { outside: u32 },
    /// The daemon's own: it is not root.
    Own,
}

impl Ids {
    /// Ids of one container.
    pub const RANGE: u32 = 65_536;

    #[must_use]
    pub fn has_many(self) -> bool {
        matches!(self, Self::Range { .. })
    }
}

/// The worker's command line, after the name that leads here: `run FOLDER`; `spare`, which waits for the folder; `probe`, which prints JSON; or `shadow LIBRARY FOLDER`,
/// which tries whether the library for containers with shares works in front of the driver's.
///
/// Must be called before this process starts a second thread.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    let done = match words.iter().map(AsRef::as_ref).collect::<Vec<&str>>().as_slice() {
        ["run", _] => supervise::run(&AttemptFolder::new(PathBuf::from(&arguments[1])))
            .map_err(|error| error.to_string()),
        ["spare"] => match spare::wait() {
            Ok(Some(folder)) => supervise::run(&folder).map_err(|error| error.to_string()),
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        },
        ["probe"] => probe::print(),
        ["shadow", ..] if arguments.len() == 3 => {
            crate::card::shadow::check(&PathBuf::from(&arguments[1]), &PathBuf::from(&arguments[2]))
        }
        _ => Err("a worker is started by the daemon: worker run FOLDER, worker spare, worker probe, or worker shadow LIBRARY FOLDER".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("makai worker: {error}");
            ExitCode::FAILURE
        }
    }
}
