//! Looks after one attempt from its image to its outcome.
//!
//! ```text
//! task.json ── image ── skeleton, cgroups, ids ── fork ──> init ── fork ──> command
//!                 │                                          │ status lines      │ stdout, stderr
//!                 └──────────── loop: signals, status, output, limits ───────────┘──> log, usage.json, outcome.json
//! ```
//!
//! SIGTERM asks it to stop the attempt, SIGQUIT to end it by force.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, Mode, OFlags, Timespec};
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use super::mounts::CardFiles;
use super::sys::{self, Ended, Fork};
use super::{Ids, clock, init, mounts, watch};
use crate::card::cuda::Cuda;
use crate::card::{files, shadow};
use crate::container::cgroup::{self, Group, GroupLimits};
use crate::container::enforcement;
use crate::container::image::{ImageError, Prepared, Store};
use crate::container::log::LogWriter;
use crate::container::state::{AttemptFolder, CardAccess, Task};
use crate::runner::{End, Enforcement, LogStream, Outcome, RunError, Usage, Work};
use crate::slice::clerk::Clerk;
use crate::slice::pace::SOCKET;

/// How often limits are looked at.
const TICK_MS: u64 = 100;
/// How often `usage.json` is replaced.
const USAGE_EVERY_MS: u64 = 1000;
/// Output read in one tick, so that a flood costs the machine little of a core: 40 MB/s.
const READ_PER_TICK_BYTES: u64 = 4 << 20;
/// The share of time that adding up the output folder may take: one part in so many.
const WALK_SHARE: u64 = 20;
/// Ranges of ids that can be in use at once.
const ID_RANGES: u32 = 2048;

/// Runs the attempt in this folder to its end.
///
/// # Errors
/// When not even an outcome could be written; the runner then settles the attempt as lost.
pub fn run(folder: &AttemptFolder) -> Result<(), RunError> {
    let machine = |doing: &str| {
        let doing = doing.to_owned();
        move |source| RunError::Machine { doing, source }
    };
    rustix::process::umask(Mode::from_raw_mode(0o022));
    _ = rustix::process::setsid();
    let signals = sys::signal_fd(&[libc::SIGTERM, libc::SIGQUIT, libc::SIGCHLD, libc::SIGPIPE])
        .map_err(machine("block signals"))?;
    folder.write_worker()?;
    let task = folder.task()?;
    let limits = &task.spec.limits;
    let log =
        LogWriter::create(&folder.log_path(), limits.log_bytes, limits.log_bytes_per_sec, clock::unix_ms())
            .map_err(machine("make the attempt's log"))?;
    let mut attempt = Attempt {
        folder,
        task: &task,
        signals,
        log,
        group: None,
        card: None,
        clerk: None,
        usage: Usage::default(),
        end: None,
        kill_at_ms: None,
        started_ms: None,
        started_at_unix_ms: None,
    };
    let (end, message) = match attempt.run() {
        Ok(found) => found,
        Err(Failure::Ended(end, message)) => (end, message),
        Err(Failure::Machine(error)) => (End::MachineFault, format!("this machine failed: {error}")),
    };
    attempt.settle(end, message)
}

enum Failure {
    Ended(End, String),
    Machine(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Machine(error)
    }
}

struct Attempt<'a> {
    folder: &'a AttemptFolder,
    task: &'a Task,
    signals: OwnedFd,
    log: LogWriter,
    group: Option<Group>,
    /// The driver's library and what else its share of a card takes.
    card: Option<(Option<Cuda>, CardFiles)>,
    /// Who counts a container's share of a card.
    clerk: Option<Clerk>,
    usage: Usage,
    /// Why it is being ended from here, and when that turns to force.
    end: Option<(End, String)>,
    kill_at_ms: Option<u64>,
    started_ms: Option<u64>,
    started_at_unix_ms: Option<u64>,
}

/// The container's first process and the pipes to it.
struct Container {
    pid: i32,
    lifeline: OwnedFd,
    status: OwnedFd,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Status text up to the last whole line.
    unread: String,
    exit: Option<i32>,
    failure: Option<(End, String)>,
    /// Card time in nanoseconds, launches, bytes held.
    gpu: (u64, u64, u64),
}

impl Attempt<'_> {
    fn run(&mut self) -> Result<(End, String), Failure> {
        if self.task.confinement.ids == Ids::Own {
            sys::own_user_namespace()?;
        }
        let (image, ids) = self.prepare()?;
        let mut container = self.start(&image, ids)?;
        let done = self.watch(&mut container);
        if done.is_err() {
            _ = kill(container.pid);
        }
        let ended = match &done {
            Ok(ended) => *ended,
            Err(_) => sys::reap(Some(container.pid), true),
        };
        self.drain(&mut container)?;
        self.count(ended);
        done?;
        Ok(self.judge(&container))
    }

    /// The image, the folders and the range of ids.
    fn prepare(&mut self) -> Result<(Prepared, Option<(OwnedFd, u32)>), Failure> {
        let task = self.task;
        let spec = &task.spec;
        let is_stopped = || {
            let mut pending = [PollFd::new(&self.signals, PollFlags::IN)];
            matches!(rustix::event::poll(&mut pending, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
        };
        let image = match &spec.work {
            Work::Container(work) => {
                Store::open(&self.task.images, self.task.bounds)?.prepare(&work.image, &is_stopped)
            }
            Work::Module(_) => Ok(Prepared::default()),
        };
        let image = image.map_err(|error| match error {
            ImageError::Bad(text) => Failure::Ended(End::BadImage, text),
            ImageError::Stopped => {
                Failure::Ended(End::Stopped, "stopped while its image was being unpacked".into())
            }
            ImageError::Io { doing, source } => {
                Failure::Machine(io::Error::new(source.kind(), format!("{doing}: {source}")))
            }
        })?;
        if let Some(access) = &task.card {
            let devices = files::device_nodes(&access.minors);
            let library = access.library.as_deref();
            self.card = Some(match &spec.work {
                // Opened out here, where the library is; started in there, by the executor.
                Work::Module(_) => {
                    let cuda = Cuda::open(library).map_err(io::Error::other)?;
                    let own = files::compiler_libraries().into_iter();
                    (Some(cuda), CardFiles { devices, files: own.map(|path| (path.clone(), path)).collect() })
                }
                Work::Container(_) => {
                    let mut shown = files::driver_libraries(library);
                    shown.retain(|path| access.shadow.is_none() || !is_named(path, "libcudadebugger"));
                    let mut files: Vec<_> =
                        shown.into_iter().map(|path| (path.clone(), name_of(&path))).collect();
                    if let Some(front) = &access.shadow {
                        files.iter_mut().filter(|(path, _)| is_named(path, "libcuda.so")).for_each(|file| {
                            file.0.clone_from(front);
                        });
                        files.extend(self.share(access, library)?);
                    }
                    let folders = files::linker_folders(&image.layers);
                    let folders = || folders.iter().map(PathBuf::as_path).chain([Path::new(mounts::DRIVER)]);
                    let inside = |(path, name): &(PathBuf, OsString)| {
                        folders().map(|folder| (path.clone(), folder.join(name))).collect::<Vec<_>>()
                    };
                    (None, CardFiles { devices, files: files.iter().flat_map(inside).collect() })
                }
            });
        }
        let card = self.card.as_ref().map(|(_, files)| files);
        mounts::make_skeleton(self.folder.path(), spec, card)?;
        if let Some(input) = &spec.input {
            self.usage.input_bytes = watch::size_of(input)?.file_bytes;
        }
        if let Some(output) = &spec.output {
            // Any id of the container may write there, and only the container sees it.
            fs::set_permissions(output, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        }
        let ids = match self.task.confinement.ids {
            Ids::Range { first } => Some(take_ids(&self.task.ids, first)?),
            Ids::One { .. } | Ids::Own => None,
        };
        let limits = GroupLimits {
            memory_bytes: spec.limits.memory_bytes,
            cpu_milli: spec.limits.cpu_milli,
            pids: spec.limits.pids,
        };
        // Daemons of other clusters on this machine have attempts of the same name, in other folders.
        let place = blake3::hash(self.folder.path().as_os_str().as_encoded_bytes()).to_hex();
        let name = format!("makai-{}-{}", spec.attempt, &place[..16]);
        let controllers = &self.task.confinement.controllers;
        // Written first: whoever finds the groups after a crash must know that they are this attempt's.
        self.folder.write_cgroups(&Group::folders(controllers, &name)).map_err(io::Error::other)?;
        self.group = Some(Group::create(controllers, &name, &limits)?);
        Ok((image, ids))
    }

    /// What a container with a share of a card sees beside the driver's libraries; its clerk begins.
    fn share(&mut self, access: &CardAccess, library: Option<&Path>) -> io::Result<Vec<(PathBuf, OsString)>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the driver's library is gone");
        let real = files::driver_library(library).ok_or_else(missing)?;
        let bytes = self.task.spec.gpus.first().map_or(0, |slice| slice.memory_mib << 20);
        let (clerk, told) =
            (self.folder.path().join(shadow::CLERK), self.folder.path().join(shadow::SLICE_FILE));
        // By descriptor: the folder's path may be longer than a socket's.
        let folder = rustix::fs::open(self.folder.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let short = format!("/proc/self/fd/{}/{}", std::os::fd::AsRawFd::as_raw_fd(&folder), shadow::CLERK);
        self.clerk = Some(Clerk::open(Path::new(&short), bytes)?);
        let (clerk_inside, desk) =
            (Path::new(mounts::DRIVER).join(shadow::CLERK), Path::new(mounts::DESK).join(SOCKET));
        fs::write(&told, shadow::slice_file(&access.pass, bytes, &clerk_inside, &desk)?)?;
        Ok([(real, shadow::REAL), (clerk, shadow::CLERK), (told, shadow::SLICE_FILE)]
            .map(|(path, name)| (path, name.into()))
            .into())
    }

    fn start(&mut self, image: &Prepared, ids: Option<(OwnedFd, u32)>) -> Result<Container, Failure> {
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let pipe = || rustix::pipe::pipe_with(flags).map_err(io::Error::from);
        let ((lifeline_in, lifeline), (status, status_in)) = (pipe()?, pipe()?);
        let ((stdout, stdout_in), (stderr, stderr_in)) = (pipe()?, pipe()?);
        let group = self.group.as_ref();
        let setup = init::Setup {
            task: self.task,
            folder: self.folder.path(),
            layers: &image.layers,
            config: &image.config,
            card: self.card.as_ref(),
            lifeline: lifeline_in,
            status: status_in,
            stdout: stdout_in,
            stderr: stderr_in,
            limit_pids: !group.is_some_and(Group::limits_pids),
            limit_memory: !group.is_some_and(Group::limits_memory),
        };
        // Holds for the next child alone.
        sys::unshare(UnshareFlags::NEWPID)?;
        let pid = match sys::fork()? {
            Fork::Child => {
                drop((lifeline, status, stdout, stderr));
                init::run(setup)
            }
            Fork::Parent { child } => child,
        };
        drop(setup);
        for output in [&status, &stdout, &stderr] {
            rustix::io::ioctl_fionbio(output, true).map_err(io::Error::from)?;
        }
        let mut container = Container {
            pid,
            lifeline,
            status,
            stdout: Some(stdout),
            stderr: Some(stderr),
            unread: String::new(),
            exit: None,
            failure: None,
            gpu: (0, 0, 0),
        };
        let begun = self.begin(&mut container, ids);
        if begun.is_err() {
            _ = kill(container.pid);
            sys::reap(Some(container.pid), true);
        }
        begun.map(|()| container)
    }

    fn begin(&self, container: &mut Container, ids: Option<(OwnedFd, u32)>) -> Result<(), Failure> {
        if let Some(group) = &self.group {
            group.add(container.pid)?;
        }
        go_on(container)?;
        // Building the walls takes milliseconds and nothing of the task runs meanwhile.
        while container.failure.is_none() {
            let mut sources = [PollFd::new(&container.status, PollFlags::IN)];
            _ = rustix::event::poll(&mut sources, None);
            let (lines, is_open) = read_lines(container);
            for line in lines {
                if line == "map" {
                    map_ids(
                        container.pid,
                        &self.task.confinement.ids,
                        ids.as_ref().map(|(_, first)| *first),
                    )?;
                    // The range is this attempt's as long as its first process lives, which holds the lock too.
                    return Ok(go_on(container)?);
                }
                container.take(&line);
            }
            if !is_open {
                break;
            }
        }
        Ok(())
    }

    /// Until the first process has ended.
    fn watch(&mut self, container: &mut Container) -> Result<Option<Ended>, Failure> {
        let mut tick_at = clock::monotonic_ms();
        let (mut usage_at, mut walk_at) = (tick_at, tick_at);
        let mut budget = READ_PER_TICK_BYTES;
        loop {
            let now = clock::monotonic_ms();
            if now >= tick_at {
                self.tick(container, now.saturating_sub(tick_at) + TICK_MS)?;
                if now >= walk_at {
                    self.weigh_output(now)?;
                    let took = clock::monotonic_ms().saturating_sub(now);
                    walk_at = now + took * WALK_SHARE;
                }
                if now >= usage_at {
                    self.folder.write_usage(&self.usage).map_err(io::Error::other)?;
                    usage_at = now + USAGE_EVERY_MS;
                }
                tick_at = now + TICK_MS;
                budget = READ_PER_TICK_BYTES;
            }
            if self.kill_at_ms.is_some_and(|at| now >= at) {
                self.kill_at_ms = None;
                kill(container.pid)?;
            }
            self.await_event(container, tick_at, budget > 0);
            if let Some(clerk) = &mut self.clerk {
                clerk.serve();
            }
            while let Some(signal) = sys::next_signal(self.signals.as_fd()) {
                match signal {
                    libc::SIGTERM => self.stop(container, End::Stopped, "stopped as asked", false)?,
                    libc::SIGQUIT => self.stop(container, End::Stopped, "stopped by force as asked", true)?,
                    _ => {}
                }
            }
            self.read_status(container);
            budget = self.read_output(container, budget)?;
            if let Some(ended) = sys::reap(Some(container.pid), false) {
                if let Some(clerk) = &mut self.clerk {
                    clerk.serve();
                }
                self.read_status(container);
                return Ok(Some(ended));
            }
        }
    }

    fn await_event(&self, container: &Container, until_ms: u64, may_read: bool) {
        let wait = until_ms.saturating_sub(clock::monotonic_ms());
        let timeout =
            Timespec { tv_sec: 0, tv_nsec: i64::try_from(wait * 1_000_000).unwrap_or(0).min(999_999_999) };
        let mut sources = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if container.exit.is_none() && container.failure.is_none() {
            sources.push(PollFd::new(&container.status, PollFlags::IN));
        }
        let clerk = self.clerk.iter().flat_map(Clerk::sources);
        sources.extend(clerk.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN)));
        if may_read {
            sources.extend(container.stdout.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            sources.extend(container.stderr.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        }
        _ = rustix::event::poll(&mut sources, Some(&timeout));
    }

    fn read_status(&mut self, container: &mut Container) {
        for line in read_lines(container).0 {
            if line == "started" {
                self.started_ms = Some(clock::monotonic_ms());
                self.started_at_unix_ms = Some(clock::unix_ms());
            } else {
                container.take(&line);
            }
        }
        let (busy_ns, launches, bytes) = match &self.clerk {
            Some(clerk) => {
                let used = clerk.used();
                (used.busy_ns, used.launches, used.memory_peak_bytes)
            }
            None => container.gpu,
        };
        (self.usage.gpu_busy_ns, self.usage.gpu_launches) = (busy_ns, launches);
        self.usage.gpu_memory_peak_bytes = self.usage.gpu_memory_peak_bytes.max(bytes);
    }

    /// Measures, and ends what is over a limit.
    fn tick(&mut self, container: &Container, since_ms: u64) -> Result<(), Failure> {
        let limits = &self.task.spec.limits;
        let measured = match &self.group {
            Some(group) if group.limits_memory() => group.memory_bytes().unwrap_or(0),
            _ => watch::memory_of(container.pid),
        };
        let kills = self.group.as_ref().map_or(0, Group::memory_kills);
        self.usage.memory_peak_bytes = self.usage.memory_peak_bytes.max(measured);
        // In thousandths until it is said: a tick is a tenth of a second.
        self.usage.memory_byte_seconds =
            self.usage.memory_byte_seconds.saturating_add((measured / 1000).saturating_mul(since_ms));
        if let Some(started) = self.started_ms {
            self.usage.wall_ms = clock::monotonic_ms().saturating_sub(started);
        }
        if let Some(cpu_ms) = self.group.as_ref().and_then(Group::cpu_ms) {
            self.usage.cpu_ms = cpu_ms;
        }
        self.usage.log_bytes = self.log.bytes_kept;
        self.usage.log_bytes_dropped = self.log.bytes_dropped;
        let is_over =
            self.group.as_ref().is_none_or(|group| !group.limits_memory()) && measured > limits.memory_bytes;
        if kills > 0 || is_over {
            let message = self.memory_message();
            self.stop(container, End::MemoryLimit, &message, true)?;
        }
        if self.usage.wall_ms >= limits.time_ms {
            let message =
                format!("it ran for longer than its limit of {} ms; raise limits.time_ms", limits.time_ms);
            self.stop(container, End::TimeLimit, &message, false)?;
        }
        if let Some((end @ End::DiskLimit, message)) = self.end.clone()
            && self.kill_at_ms.is_none()
        {
            self.stop(container, end, &message, true)?;
        }
        Ok(())
    }

    /// Names both limits where it met both: the kernel's memory for processes counts as the task's, also for those it
    /// refuses, so that one which forks without end may end by either.
    fn memory_message(&self) -> String {
        format!(
            "it used more memory than its limit of {} bytes; raise limits.memory_bytes{}",
            self.task.spec.limits.memory_bytes,
            self.refused_message()
        )
    }

    /// How often it was refused a process, where it was.
    fn refused_message(&self) -> String {
        match self.group.as_ref().map_or(0, Group::forks_refused) {
            0 => String::new(),
            refused => format!(
                "; {refused} times it was refused a process over its limit of {}: raise limits.pids if it needs more",
                self.task.spec.limits.pids
            ),
        }
    }

    fn weigh_output(&mut self, _now_ms: u64) -> Result<(), Failure> {
        let Some(output) = &self.task.spec.output else { return Ok(()) };
        let limit = self.task.spec.limits.disk_bytes;
        let size = watch::size_of(output)?;
        self.usage.output_bytes = size.file_bytes;
        let message = if size.disk_bytes > limit {
            format!("its output takes more disk than its limit of {limit} bytes; raise limits.disk_bytes")
        } else if size.entries > watch::ENTRIES_MAX {
            format!("its output holds more than {} files", watch::ENTRIES_MAX)
        } else if size.is_too_deep {
            format!("its output's folders are nested more than {} deep", watch::DEPTH_MAX)
        } else {
            return Ok(());
        };
        if self.end.is_none() {
            self.end = Some((End::DiskLimit, message));
        }
        Ok(())
    }

    /// Ends the attempt for a reason; the first one counts.
    fn stop(&mut self, container: &Container, end: End, message: &str, by_force: bool) -> io::Result<()> {
        let now = clock::monotonic_ms();
        let grace = if by_force { 0 } else { self.task.spec.limits.stop_grace_ms };
        if self.end.is_none() || (end == End::DiskLimit && self.kill_at_ms.is_none()) {
            self.log.notice(message, clock::unix_ms())?;
            self.end = Some((end, message.to_owned()));
        } else if !by_force {
            return Ok(());
        }
        self.kill_at_ms = Some(self.kill_at_ms.map_or(now + grace, |at| at.min(now + grace)));
        if by_force {
            return kill(container.pid);
        }
        match Pid::from_raw(container.pid).map(|pid| rustix::process::kill_process(pid, Signal::TERM)) {
            Some(Err(errno)) if errno != rustix::io::Errno::SRCH => Err(errno.into()),
            _ => Ok(()),
        }
    }

    /// Reads what is there of the command's output, up to a budget; answers what is left of that.
    fn read_output(&mut self, container: &mut Container, mut budget: u64) -> io::Result<u64> {
        let mut buffer = [0; 64 << 10];
        for (pipe, stream) in
            [(&mut container.stdout, LogStream::Stdout), (&mut container.stderr, LogStream::Stderr)]
        {
            while budget > 0
                && let Some(open) = &*pipe
            {
                match rustix::io::read(open, &mut buffer) {
                    Ok(0) => *pipe = None,
                    Ok(bytes) => {
                        self.log.write(stream, &buffer[..bytes], clock::unix_ms())?;
                        budget = budget.saturating_sub(bytes as u64);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(budget)
    }

    /// What the pipes still hold once every writer is gone.
    fn drain(&mut self, container: &mut Container) -> io::Result<()> {
        self.read_output(container, u64::MAX)?;
        self.log.finish(clock::unix_ms())
    }

    /// The last measurements.
    fn count(&mut self, ended: Option<Ended>) {
        if let Some(started) = self.started_ms {
            self.usage.wall_ms = clock::monotonic_ms().saturating_sub(started);
        }
        let group = self.group.as_ref();
        self.usage.cpu_ms = group.and_then(Group::cpu_ms).or(ended.map(|ended| ended.cpu_ms)).unwrap_or(0);
        let peak = group
            .and_then(Group::memory_peak_bytes)
            .or(ended.map(|ended| ended.memory_peak_bytes))
            .unwrap_or(0);
        self.usage.memory_peak_bytes = self.usage.memory_peak_bytes.max(peak);
        self.usage.log_bytes = self.log.bytes_kept;
        self.usage.log_bytes_dropped = self.log.bytes_dropped;
    }

    /// Why it ended.
    fn judge(&mut self, container: &Container) -> (End, String) {
        if self.group.as_ref().is_some_and(|group| group.memory_kills() > 0) {
            return (End::MemoryLimit, self.memory_message());
        }
        _ = self.weigh_output(0);
        if let Some(end) = self.end.take() {
            return end;
        }
        let hint = self.refused_message();
        if let Some(failure) = &container.failure {
            return failure.clone();
        }
        match container.exit.map(sys::status_of) {
            Some(Ok(code)) => (End::Exited { code }, format!("exited with code {code}{hint}")),
            Some(Err(libc::SIGXFSZ)) => {
                let limit = self.task.spec.limits.disk_bytes;
                (
                    End::DiskLimit,
                    format!(
                        "it wrote a file larger than its limit of {limit} bytes; raise limits.disk_bytes"
                    ),
                )
            }
            Some(Err(signal @ libc::SIGSYS)) => (
                End::Signalled { signal },
                "ended by SIGSYS: it made a system call of another architecture".into(),
            ),
            Some(Err(signal)) => (End::Signalled { signal }, format!("ended by signal {signal}{hint}")),
            None => (End::WorkerLost, "the container's first process was killed from outside".into()),
        }
    }

    /// Leaves nothing behind but the outcome.
    fn settle(mut self, end: End, message: String) -> Result<(), RunError> {
        let machine = |doing: &'static str| move |source| RunError::Machine { doing: doing.into(), source };
        drop(self.group.take());
        cgroup::remove(&self.folder.cgroups()?).map_err(machine("remove the attempt's cgroups"))?;
        if let Some(output) = &self.task.spec.output {
            watch::sweep(output).map_err(machine("sweep the attempt's output folder"))?;
            self.usage.output_bytes =
                watch::size_of(output).map_err(machine("weigh the attempt's output"))?.file_bytes;
        }
        self.folder.write_usage(&self.usage)?;
        let outcome = Outcome {
            end,
            message,
            usage: self.usage,
            enforcement: Enforcement {
                gpu: self.task.spec.gpus.first().map(|slice| slice.enforcement),
                ..enforcement(&self.task.confinement)
            },
            started_at_ms: self.started_at_unix_ms,
            ended_at_ms: clock::unix_ms(),
        };
        self.folder.write_outcome(&outcome)
    }
}

impl Container {
    /// A line that ends the attempt.
    fn take(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("exit", status)) => self.exit = status.parse().ok(),
            Some(("gpu", numbers)) => {
                let mut numbers = numbers.split(' ').map_while(|number| number.parse().ok());
                if let (Some(busy), Some(launches), Some(bytes)) =
                    (numbers.next(), numbers.next(), numbers.next())
                {
                    self.gpu = (busy, launches, bytes);
                }
            }
            Some(("bad-module", text)) => self.failure = Some((End::BadModule, text.to_owned())),
            Some(("module-fault", text)) => self.failure = Some((End::ModuleFault, text.to_owned())),
            Some(("bad", text)) => self.failure = Some((End::BadCommand, text.to_owned())),
            Some(("fault", text)) => {
                self.failure = Some((End::MachineFault, format!("this machine failed: {text}")))
            }
            _ => {}
        }
    }
}

fn name_of(path: &Path) -> OsString {
    path.file_name().unwrap_or_default().to_owned()
}

fn is_named(path: &Path, prefix: &str) -> bool {
    name_of(path).to_str().is_some_and(|name| name.starts_with(prefix))
}

/// Whole lines that have come, and whether more can.
fn read_lines(container: &mut Container) -> (Vec<String>, bool) {
    let mut buffer = [0; 4096];
    let mut is_open = true;
    loop {
        match rustix::io::read(&container.status, &mut buffer) {
            Ok(0) => is_open = false,
            Ok(bytes) => {
                container.unread.push_str(&String::from_utf8_lossy(&buffer[..bytes]));
                continue;
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => {}
        }
        break;
    }
    let mut lines = Vec::new();
    while let Some(end) = container.unread.find('\n') {
        lines.push(container.unread[..end].to_owned());
        container.unread.drain(..=end);
    }
    (lines, is_open)
}

fn go_on(container: &Container) -> io::Result<()> {
    match rustix::io::write(&container.lifeline, b"g") {
        Ok(_) | Err(rustix::io::Errno::PIPE) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn kill(pid: i32) -> io::Result<()> {
    match Pid::from_raw(pid).map(|pid| rustix::process::kill_process(pid, Signal::KILL)) {
        Some(Err(errno)) if errno != rustix::io::Errno::SRCH => Err(errno.into()),
        _ => Ok(()),
    }
}

fn map_ids(pid: i32, ids: &Ids, range: Option<u32>) -> io::Result<()> {
    let map = match (ids, range) {
        (_, Some(first)) => format!("0 {first} {}", Ids::RANGE),
        (Ids::One { outside }, None) => format!("0 {outside} 1"),
        (_, None) => "0 0 1".to_owned(),
    };
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), &map)
            .map_err(|error| io::Error::new(error.kind(), format!("map the container's ids: {error}")))?;
    }
    Ok(())
}

/// A range of ids that no other attempt has: its lock, and its first id.
fn take_ids(folder: &Path, first: u32) -> io::Result<(OwnedFd, u32)> {
    fs::create_dir_all(folder)?;
    for index in 0..ID_RANGES {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let lock = rustix::fs::open(folder.join(index.to_string()), flags, Mode::from_raw_mode(0o600))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok((lock, first + index * Ids::RANGE)),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::other(format!("all {ID_RANGES} ranges of user ids are in use")))
}
