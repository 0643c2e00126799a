//! The container's first process: builds the walls, gives up every right, starts the command, reaps what is orphaned.
//!
//! It tells the supervisor by lines: `map` (write my id map), `started`, `exit STATUS`, `bad TEXT` (the task's fault),
//! `fault TEXT` (the machine's). When the supervisor is gone, so is it, and with it every process of the container.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::{DumpableBehavior, Pid, Resource, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::mounts::CardFiles;
use super::sys::{self, Fork};
use super::{mounts, seccomp, user};
use crate::card::cuda::{Cuda, CudaContext};
use crate::container::image::ImageConfig;
use crate::container::state::Task;
use crate::module::on_card::CardUse;
use crate::module::{self, ModuleError};
use crate::runner::{ContainerWork, ModuleWork, Network, Work};
use crate::slice::Level;
use crate::slice::pace::{DeskPace, FreePace, Pace};

/// What a shell looks through when nobody said otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files of one process.
const OPEN_FILES_MAX: u64 = 65_536;
/// Memory that a process may lock.
const LOCKED_BYTES_MAX: u64 = 64 << 10;
/// The command goes first when memory is short, this process last.
const COMMAND_OOM_SCORE: &str = "500";

/// What the first process is given.
pub struct Setup<'a> {
    pub task: &'a Task,
    /// The attempt's folder.
    pub folder: &'a Path,
    /// Lowest first.
    pub layers: &'a [PathBuf],
    pub config: &'a ImageConfig,
    /// The driver's library, open where this program is to use it, and what else a share of a card takes.
    pub card: Option<&'a (Option<Cuda>, CardFiles)>,
    /// A byte when it is in its cgroup, one when its ids are mapped; the end when the supervisor is gone.
    pub lifeline: OwnedFd,
    pub status: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// Whether the kernel must hold processes and memory by resource limits.
    pub limit_pids: bool,
    pub limit_memory: bool,
}

enum Failure {
    Task(String),
    Machine(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Machine(error.to_string())
    }
}

/// Runs as the container's first process until the command has ended.
pub fn run(setup: Setup<'_>) -> ! {
    let failure = match start(&setup) {
        Ok(command) => watch(&setup, command),
        Err(failure) => failure,
    };
    let line = match failure {
        Failure::Task(text) => format!("bad {text}"),
        Failure::Machine(text) => format!("fault {text}"),
    };
    say(&setup, &line);
    sys::exit(1)
}

/// Builds the walls and starts the command; answers its process id.
fn start(setup: &Setup<'_>) -> Result<i32, Failure> {
    let network = match &setup.task.spec.work {
        Work::Container(work) => work.network,
        Work::Module(_) => Network::None,
    };
    rustix::process::setsid().map_err(io::Error::from)?;
    await_byte(setup)?;
    rustix::process::chdir(setup.folder).map_err(io::Error::from)?;
    let mut namespaces =
        UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    if network == Network::None {
        namespaces |= UnshareFlags::NEWNET;
    }
    sys::unshare(namespaces).map_err(at("leave the machine's namespaces"))?;
    let card = setup.task.card.as_ref().zip(setup.card.map(|(_, files)| files));
    mounts::enter(setup.layers, &setup.task.spec, card)?;
    rustix::system::sethostname(b"makai").map_err(io::Error::from).map_err(at("set the host name"))?;
    if network == Network::None {
        sys::loopback_up().map_err(at("switch loopback on"))?;
    }
    sys::leave_keyring().map_err(at("leave the keyring"))?;
    // Mounts and namespaces made so far belong to the namespace outside: from in here nothing can undo them.
    sys::unshare(UnshareFlags::NEWUSER).map_err(at("take a user namespace"))?;
    say(setup, "map");
    await_byte(setup)?;
    become_user(0, 0)?;
    let (report, reported) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let command = match sys::fork().map_err(at("start the command's process"))? {
        Fork::Child => {
            drop(report);
            command(setup, reported)
        }
        Fork::Parent { child } => child,
    };
    drop(reported);
    give_up_rights(CapabilitySet::KILL)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from)?;
    seccomp::confine().map_err(at("install the system call filter"))?;
    // The end of the pipe, without a word, is the command's first instruction.
    let mut text = Vec::new();
    io::Read::read_to_end(&mut std::fs::File::from(report), &mut text)?;
    match String::from_utf8_lossy(&text).split_once(' ') {
        None => Ok(command),
        Some(("bad", text)) => Err(Failure::Task(text.to_owned())),
        Some((_, text)) => Err(Failure::Machine(text.to_owned())),
    }
}

/// Waits for the command's end; answers only when the supervisor is gone.
fn watch(setup: &Setup<'_>, command: i32) -> Failure {
    say(setup, "started");
    let signals = match sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => return error.into(),
    };
    loop {
        while let Some(ended) = sys::reap(None, false) {
            if ended.pid == command {
                say(setup, &format!("exit {}", ended.status));
                sys::exit(0);
            }
        }
        let mut sources = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&setup.lifeline, PollFlags::IN)];
        _ = rustix::event::poll(&mut sources, None);
        if !sources[1].revents().is_empty() {
            return Failure::Machine("the supervisor is gone".into());
        }
        while let Some(signal) = sys::next_signal(signals.as_fd()) {
            if signal == libc::SIGTERM
                && let Some(command) = Pid::from_raw(command)
            {
                _ = rustix::process::kill_process(command, Signal::TERM);
            }
        }
    }
}

/// The command's own process: from the container's first process to the command's first instruction.
fn command(setup: &Setup<'_>, report: OwnedFd) -> ! {
    let failure = match &setup.task.spec.work {
        Work::Container(work) => become_command(setup, work),
        Work::Module(work) => match become_executor(setup) {
            Err(failure) => failure,
            Ok(card) => {
                drop(report);
                execute(setup, work, card)
            }
        },
    };
    let line = match failure {
        Failure::Task(text) => format!("bad {text}"),
        Failure::Machine(text) => format!("fault {text}"),
    };
    _ = rustix::io::write(&report, line.as_bytes());
    sys::exit(127)
}

/// As a command, but for starting a program: what runs is this one, and of the task only what the executor interprets or a card
/// runs. The driver is started before the last walls stand, as it opens devices; the task's module is compiled behind them.
fn become_executor(setup: &Setup<'_>) -> Result<Option<CudaContext>, Failure> {
    _ = std::fs::write("/proc/self/oom_score_adj", COMMAND_OOM_SCORE);
    rustix::process::setsid().map_err(io::Error::from)?;
    rustix::stdio::dup2_stdout(&setup.stdout).map_err(io::Error::from)?;
    rustix::stdio::dup2_stderr(&setup.stderr).map_err(io::Error::from)?;
    give_up_bounding_set();
    resource_limits(setup)?;
    let card = match (setup.card, setup.task.spec.gpus.first()) {
        (Some((Some(cuda), _)), Some(slice)) => {
            let context = cuda.context(&slice.gpu_uuid);
            Some(context.map_err(|error| Failure::Machine(error.to_string()))?)
        }
        _ => None,
    };
    give_up_rights(CapabilitySet::empty())?;
    sys::reset_signals();
    seccomp::confine()?;
    Ok(card)
}

/// Runs a module; its faults go to the supervisor by the status lines, as there is no exit code for them.
fn execute(setup: &Setup<'_>, work: &ModuleWork, card: Option<CudaContext>) -> ! {
    let memory_bytes = setup.task.spec.limits.memory_bytes;
    let (input, output) = (Path::new("/in"), Path::new("/out"));
    // The supervisor holds the time limit; this process ends with a signal like any command.
    let done = match card {
        None => module::run(work, memory_bytes, input, output, &mut || false).map(|ran| {
            for why in &ran.interpreted {
                eprintln!("interpreted, as it is not compiled: {why}");
            }
            format!(
                "{} launches, {} of compiled code, {} instructions",
                ran.launches, ran.compiled, ran.instructions
            )
        }),
        Some(mut card) => on_card(setup, work, input, output, &mut card),
    };
    match done {
        Ok(said) => {
            println!("{said}");
            sys::exit(0)
        }
        Err(error) => {
            let kind = match &error {
                ModuleError::Bad(_) => "bad-module",
                ModuleError::Fault(_) | ModuleError::Stopped { .. } => "module-fault",
                ModuleError::Io { .. } | ModuleError::Card(_) => "fault",
            };
            let source =
                std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            eprintln!("{error}{source}");
            say(setup, &format!("{kind} {error}{source}"));
            sys::exit(1)
        }
    }
}

/// Runs a module on its share of a card; what it uses goes to the supervisor by the status lines.
fn on_card(
    setup: &Setup<'_>,
    work: &ModuleWork,
    input: &Path,
    output: &Path,
    card: &mut CudaContext,
) -> Result<String, ModuleError> {
    let (Some(access), Some(slice)) = (&setup.task.card, setup.task.spec.gpus.first()) else {
        return Err(ModuleError::Card("no share of a card was given".into()));
    };
    let mut tell = |used: &CardUse| {
        say(setup, &format!("gpu {} {} {}", used.busy_ns, used.launches, used.memory_bytes));
    };
    let mut free = FreePace::default();
    let mut desk = DeskPace::new(mounts::DESK.into(), access.pass.clone());
    let is_alone = matches!(slice.enforcement, Level::Exclusive | Level::Hardware);
    let pace: &mut dyn Pace = if is_alone { &mut free } else { &mut desk };
    let memory_bytes = slice.memory_mib << 20;
    let used = module::on_card::run(work, memory_bytes, input, output, card, pace, &mut tell)?;
    Ok(format!("{} launches, {} us on the card", used.launches, used.busy_ns / 1000))
}

fn give_up_bounding_set() {
    for capability in CapabilitySet::all().iter() {
        // The kernel knows fewer than this build does, or more, which setting them afterwards covers.
        _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
}

/// Returns only when the command could not be started.
fn become_command(setup: &Setup<'_>, work: &ContainerWork) -> Failure {
    let prepare = || -> Result<(Vec<CString>, Vec<CString>, Vec<CString>), Failure> {
        let mut user = user::find(if work.user.is_empty() { &setup.config.user } else { &work.user })
            .map_err(Failure::Task)?;
        if !setup.task.confinement.ids.has_many() {
            (user.uid, user.gid) = (0, 0);
        }
        let environment = environment(work, setup, &user.home);
        let arguments = arguments(work, setup.config)?;
        _ = std::fs::write("/proc/self/oom_score_adj", COMMAND_OOM_SCORE);
        rustix::process::setsid().map_err(io::Error::from)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        rustix::stdio::dup2_stdin(null.map_err(io::Error::from)?).map_err(io::Error::from)?;
        rustix::stdio::dup2_stdout(&setup.stdout).map_err(io::Error::from)?;
        rustix::stdio::dup2_stderr(&setup.stderr).map_err(io::Error::from)?;
        sys::close_on_exec_from(3)?;
        give_up_bounding_set();
        become_user(user.uid, user.gid)?;
        let folder = if work.working_dir.is_empty() { &setup.config.working_dir } else { &work.working_dir };
        let folder = if folder.is_empty() { "/" } else { folder };
        rustix::process::chdir(folder).map_err(|errno| {
            Failure::Task(format!("the working folder {folder:?} cannot be entered: {errno}"))
        })?;
        let paths = candidates(&arguments[0], &environment)?;
        resource_limits(setup)?;
        give_up_rights(CapabilitySet::empty())?;
        sys::reset_signals();
        seccomp::confine()?;
        let texts = |texts: Vec<String>| texts.into_iter().map(c_string).collect::<Result<Vec<_>, _>>();
        Ok((paths, texts(arguments)?, texts(environment)?))
    };
    match prepare() {
        Ok((paths, arguments, environment)) => exec(&paths, &arguments, &environment),
        Err(failure) => failure,
    }
}

fn exec(paths: &[CString], arguments: &[CString], environment: &[CString]) -> Failure {
    let name = arguments[0].to_string_lossy();
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for path in paths {
        let error = sys::exec(path, arguments, environment);
        if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) {
            last = error;
            if last.raw_os_error() != Some(libc::EACCES) {
                break;
            }
        }
    }
    let hint = match last.raw_os_error() {
        Some(libc::ENOENT) => ": it, or the interpreter that it names, is not in the image",
        Some(libc::ENOEXEC) => {
            ": it is no program for this machine; a script needs a first line #!INTERPRETER"
        }
        Some(libc::EACCES) => ": it is not executable",
        Some(libc::E2BIG) => ": its arguments and environment are too long",
        _ => "",
    };
    Failure::Task(format!("the command {name:?} cannot be started: {last}{hint}"))
}

/// Where a command may be: as it says, or along the path.
fn candidates(name: &str, environment: &[String]) -> Result<Vec<CString>, Failure> {
    if name.contains('/') {
        return Ok(vec![c_string(name.to_owned())?]);
    }
    let path = environment.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(':')
        .map(|folder| c_string(Path::new(folder).join(name).to_string_lossy().into_owned()))
        .collect()
}

fn arguments(work: &ContainerWork, config: &ImageConfig) -> Result<Vec<String>, Failure> {
    let arguments = if work.command.is_empty() {
        config.entrypoint.iter().chain(&config.command).cloned().collect()
    } else {
        work.command.clone()
    };
    if arguments.first().is_some_and(|name: &String| !name.is_empty()) {
        Ok(arguments)
    } else {
        Err(Failure::Task(
            "no command: the task gives none, and the image has neither entry point nor command".into(),
        ))
    }
}

fn environment(work: &ContainerWork, setup: &Setup<'_>, home: &str) -> Vec<String> {
    let config = setup.config;
    let mut environment: BTreeMap<&str, &str> = BTreeMap::from([("PATH", DEFAULT_PATH), ("HOME", home)]);
    environment.extend(config.env.iter().filter_map(|entry| entry.split_once('=')));
    environment.extend(work.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let cards: Vec<&str> = setup.task.spec.gpus.iter().map(|slice| slice.gpu_uuid.as_str()).collect();
    let (cards, mut libraries) = (cards.join(","), mounts::DRIVER.to_owned());
    if !cards.is_empty() {
        libraries.extend(environment.get("LD_LIBRARY_PATH").into_iter().flat_map(|path| [":", path]));
        environment.extend([("LD_LIBRARY_PATH", libraries.as_str()), ("CUDA_VISIBLE_DEVICES", &cards)]);
    }
    environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn resource_limits(setup: &Setup<'_>) -> Result<(), Failure> {
    let limits = &setup.task.spec.limits;
    sys::limit(Resource::Core, 0)?;
    sys::limit(Resource::Nofile, OPEN_FILES_MAX)?;
    sys::limit(Resource::Memlock, LOCKED_BYTES_MAX)?;
    sys::limit(Resource::Msgqueue, 0)?;
    sys::limit(Resource::Nice, 0)?;
    sys::limit(Resource::Rtprio, 0)?;
    sys::limit(Resource::Fsize, limits.disk_bytes.max(limits.memory_bytes))?;
    if setup.limit_pids {
        sys::limit(Resource::Nproc, u64::from(limits.pids))?;
    }
    if setup.limit_memory {
        // Of each process alone; the supervisor adds them up.
        sys::limit(Resource::Data, limits.memory_bytes)?;
    }
    Ok(())
}

fn become_user(uid: u32, gid: u32) -> Result<(), Failure> {
    // A single mapped id comes with groups that cannot be changed: those of the daemon's user.
    _ = rustix::thread::set_thread_groups(&[]);
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(io::Error::from)
        .map_err(at("take the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .map_err(io::Error::from)
        .map_err(at("take the user"))?;
    Ok(())
}

/// Keeps no capability but these, and no way to gain one.
fn give_up_rights(kept: CapabilitySet) -> Result<(), Failure> {
    rustix::thread::clear_ambient_capability_set().map_err(io::Error::from)?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
        .map_err(io::Error::from)
        .map_err(at("give up capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(io::Error::from).map_err(at("give up new privileges"))?;
    Ok(())
}

fn await_byte(setup: &Setup<'_>) -> Result<(), Failure> {
    let mut byte = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(&setup.lifeline, &mut byte)) {
        Ok(1) => Ok(()),
        _ => Err(Failure::Machine("the supervisor is gone".into())),
    }
}

fn say(setup: &Setup<'_>, line: &str) {
    let line = line.replace('\n', " ");
    _ = rustix::io::write(&setup.status, format!("{line}\n").as_bytes());
}

fn at(doing: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{doing}: {error}"))
}

fn c_string(text: String) -> Result<CString, Failure> {
    CString::new(OsStr::new(&text).as_bytes())
        .map_err(|_| Failure::Task(format!("{text:?} holds a zero byte, which no argument can")))
}
