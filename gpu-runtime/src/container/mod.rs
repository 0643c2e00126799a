//! Containers: a command in an image, confined, by nothing but the kernel.
//!
//! ```text
//! ContainerRunner ── task.json ──> worker process ── image ── walls ── command
//!        ^                            │
//!        └── outcome, usage, log <────┘   (files in the attempt's folder; either side may be killed)
//! ```
//!
//! | room       | holds                                                                    |
//! |------------|--------------------------------------------------------------------------|
//! | [`image`]  | images, read, checked and unpacked once                                   |
//! | [`worker`] | the process that looks after one attempt, and the walls that it builds    |
//! | `cgroup`   | limits that the kernel holds                                              |
//! | `log`      | the format of an attempt's output                                         |
//! | `spare`    | a worker that was started before its task                                 |
//! | `state`    | an attempt's folder                                                       |
//! | `attempt`  | one attempt as the agent sees it                                          |
//!
//! What always holds: a task that could break out of one wall meets the next (an id that owns nothing on the machine, no
//! capabilities, a filtered kernel, namespaces, cgroups); the daemon never runs a task's code nor unpacks its image in
//! its own process; what a worker did not finish, [`ContainerRunner::open`] finishes.

mod attempt;
mod cgroup;
pub mod image;
mod log;
mod spare;
mod state;
pub mod worker;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ring::rand::SecureRandom as _;

use crate::card::host::Host;
use crate::card::{files, shadow};
use crate::module::on_card;
use crate::runner::{
    Attempt, AttemptId, ContainerWork, ContentId, Enforcement, GpuLevel, Level, Network, RunError, Runner,
    TaskSpec, Work,
};
use crate::slice::ladder::Program;
use crate::slice::pace::Pass;
use crate::slice::{Kind, SM_MILLIS_WHOLE};
use attempt::ContainerAttempt;
pub use image::Bounds;
use image::Store;
use spare::{Process, Spares};
use state::{AttemptFolder, CardAccess, Task};
use worker::{Confinement, Ids};

/// A task is handed over through arguments and environment: what the kernel takes in one start.
const WORDS_BYTES_MAX: usize = 1 << 20;
/// How the folder of an attempt is named while it is being made; no attempt's name starts so.
const PART_PREFIX: char = '+';
/// Shorter limits are over before they are looked at; larger ones are no limits.
const TIME_MS_RANGE: std::ops::RangeInclusive<u64> = 1..=366 * 24 * 3_600_000;
/// A container's own processes take this much before the command's first byte.
const MEMORY_BYTES_MIN: u64 = 4 << 20;

/// What the owner of the machine decides.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// Where attempts and unpacked images live. The folder must be this daemon's alone.
    pub state: PathBuf,
    /// The command that becomes a worker when `run FOLDER` follows it: this program and its hidden command.
    pub worker: Vec<OsString>,
    pub bounds: Bounds,
    /// Below this level the machine refuses tasks.
    pub level_min: Level,
    /// Whether a task may have the machine's network when its customer asks for it.
    pub allow_host_network: bool,
    /// Whether to use cgroups where they can be had. Without, limits are watched.
    pub use_cgroups: bool,
    /// This machine's cards.
    pub cards: Option<Arc<Host>>,
    /// How long after a task started a worker waits for another; zero: none is started before its task.
    pub spare_kept_for: Duration,
}

/// Runs containers on this machine.
#[derive(Clone)]
pub struct ContainerRunner {
    inner: Arc<Inner>,
}

struct Inner {
    config: ContainerConfig,
    confinement: Confinement,
    store: Store,
    starting: tokio::sync::Mutex<()>,
    spares: Arc<Spares>,
}

impl fmt::Debug for ContainerRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerRunner").field("state", &self.inner.config.state).finish_non_exhaustive()
    }
}

impl ContainerRunner {
    /// Finds out what this machine can enforce, and finishes what an earlier daemon left.
    ///
    /// # Errors
    /// [`RunError::Refused`] when the machine cannot confine a task, or less well than the owner wants; the text says
    /// what is missing. [`RunError::Machine`] when the state folder cannot be used.
    pub async fn open(config: ContainerConfig) -> Result<Self, RunError> {
        let machine = |doing: String| move |source| RunError::Machine { doing, source };
        let attempts = config.state.join("attempts");
        for folder in [&config.state, &attempts] {
            fs::create_dir_all(folder).map_err(machine(format!("make {folder:?}")))?;
        }
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&config.state, private)
            .map_err(machine(format!("close {:?} to others", config.state)))?;
        remove_half_made(&attempts).map_err(machine(format!("clear {attempts:?}")))?;
        let mut confinement = probe(&config.worker).await?;
        if !config.use_cgroups {
            confinement.controllers = cgroup::Controllers::default();
        }
        let found = enforcement(&confinement);
        if found.level < config.level_min {
            return Err(RunError::Refused(format!(
                "this machine cannot hold tasks to their limits as strictly as its owner asks: {}",
                found.weaknesses.join("; ")
            )));
        }
        let images = config.state.join("images");
        let store = Store::open(&images, config.bounds).map_err(machine(format!("open {images:?}")))?;
        if let Some(cards) = config.cards.as_ref().filter(|cards| cards.wants_shadow()) {
            cards.set_shadow(try_shadow(&config.worker, cards, &config.state).await);
        }
        let spares = Spares::new(config.worker.clone(), config.spare_kept_for);
        let starting = tokio::sync::Mutex::default();
        let runner = Self { inner: Arc::new(Inner { config, confinement, store, starting, spares }) };
        for attempt in runner.known()? {
            attempt.settle_if_lost()?;
        }
        for task in runner.on_cards()? {
            runner.let_in(&task);
        }
        Ok(runner)
    }

    /// Tasks of attempts that hold shares of cards now.
    fn on_cards(&self) -> Result<Vec<Task>, RunError> {
        let mut found = Vec::new();
        for attempt in self.known()? {
            // An attempt that ended, or whose folder is on its way out, holds nothing.
            let is_over = attempt.folder().outcome().map_or(true, |outcome| outcome.is_some());
            match attempt.folder().task() {
                Ok(task) if !is_over && task.card.is_some() => found.push(task),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Lets an attempt take its turns.
    fn let_in(&self, task: &Task) {
        let desk = self.inner.config.cards.as_ref().and_then(|cards| cards.desk());
        if let (Some(desk), Some(access), Some(slice)) = (desk, &task.card, task.spec.gpus.first()) {
            desk.admit(&slice.gpu_uuid, &access.pass, slice.is_hard_cap);
        }
    }

    /// The way to its share of a card; the share is then what keeps it there.
    fn card_access(&self, spec: &mut TaskSpec) -> Result<Option<CardAccess>, RunError> {
        if spec.gpus.is_empty() {
            return Ok(None);
        }
        let refused = |why: String| RunError::Refused(why);
        let Some(cards) = &self.inner.config.cards else {
            return Err(refused("this machine offers no card".into()));
        };
        let program = match spec.work {
            Work::Module(_) if spec.gpus.len() > 1 => {
                return Err(RunError::Invalid("a module runs on one card".into()));
            }
            Work::Module(_) => Program::Module,
            Work::Container(_) => Program::Container,
        };
        let is_share =
            |slice: &crate::slice::Slice| slice.kind == Kind::Shared && slice.sm_millis < SM_MILLIS_WHOLE;
        if spec.gpus.len() > 1 && spec.gpus.iter().any(is_share) {
            return Err(RunError::Invalid("a share is of one card; several are given whole".into()));
        }
        let mut held: Vec<_> = self.on_cards()?.into_iter().flat_map(|task| task.spec.gpus).collect();
        let mut minors = Vec::new();
        for slice in &mut spec.gpus {
            let admitted = cards.admit(slice, program, &held).map_err(refused)?;
            let level = admitted.slice.enforcement;
            let is_kept = matches!(level, GpuLevel::Exclusive | GpuLevel::Hardware | GpuLevel::Shadow);
            if program == Program::Container && !is_kept {
                return Err(refused(format!(
                    "nothing here keeps a container to its share by the level {level}"
                )));
            }
            let (attempt, why) = (&spec.attempt, &admitted.why);
            tracing::info!(%attempt, slice = ?admitted.slice, why, "a share of a card");
            minors.push(admitted.minor);
            held.push(admitted.slice.clone());
            *slice = admitted.slice;
        }
        let sm_millis = spec.gpus.first().map_or(0, |slice| slice.sm_millis);
        let desk = cards.desk().ok_or_else(|| refused("this machine has no desk for cards".into()))?;
        let mut secret = [0; 8];
        ring::rand::SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| refused("this machine gives no random numbers".into()))?;
        let number = blake3::hash(spec.attempt.as_str().as_bytes());
        let pass = Pass {
            slice: number.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first)),
            secret: u64::from_le_bytes(secret),
            sm_millis,
        };
        let library = cards.cuda_library().map(Path::to_owned);
        let is_shadowed = spec.gpus.iter().any(|slice| slice.enforcement == GpuLevel::Shadow);
        let shadow = if is_shadowed && program == Program::Container {
            let doing = || "write the library for containers with shares".to_owned();
            let written = shadow::install(&self.inner.config.state);
            Some(written.map_err(|source| RunError::Machine { doing: doing(), source })?)
        } else {
            None
        };
        Ok(Some(CardAccess { library, desk: desk.folder().to_owned(), pass, minors, shadow }))
    }

    /// Attempts that run on cards now: by the process that looks after each, and what each was given of its card in MiB where others
    /// may be beside it.
    ///
    /// # Errors
    /// [`RunError::Machine`] when the state folder cannot be read.
    pub fn card_users(&self) -> Result<(BTreeMap<u32, String>, BTreeMap<String, u64>), RunError> {
        let (mut workers, mut slices) = (BTreeMap::new(), BTreeMap::new());
        for task in self.on_cards()? {
            let name = task.spec.attempt.as_str().to_owned();
            let folder = AttemptFolder::of(&self.attempts(), &task.spec.attempt);
            if let Some(pid) = folder.worker_pid()? {
                workers.insert(pid, name.clone());
            }
            let is_shared = |slice: &&crate::slice::Slice| {
                !matches!(slice.enforcement, GpuLevel::Exclusive | GpuLevel::Hardware)
            };
            if let Some(slice) = task.spec.gpus.first().filter(is_shared) {
                slices.insert(name, slice.memory_mib);
            }
        }
        Ok((workers, slices))
    }

    fn known(&self) -> Result<Vec<ContainerAttempt>, RunError> {
        let folder = self.attempts();
        let listing = |source| RunError::Machine { doing: format!("list {folder:?}"), source };
        let mut known = Vec::new();
        for entry in fs::read_dir(&folder).map_err(listing)? {
            let name = entry.map_err(listing)?.file_name().to_string_lossy().into_owned();
            // Folders being made or removed have other names than attempts.
            if let Ok(id) = AttemptId::new(name) {
                known.push(self.attempt(id));
            }
        }
        Ok(known)
    }

    fn attempt(&self, id: AttemptId) -> ContainerAttempt {
        let folder = AttemptFolder::of(&self.attempts(), &id);
        ContainerAttempt::new(id, folder, enforcement(&self.inner.confinement))
    }

    fn attempts(&self) -> PathBuf {
        self.inner.config.state.join("attempts")
    }

    fn check(&self, spec: &TaskSpec) -> Result<(), RunError> {
        let limits = &spec.limits;
        let fault = if !TIME_MS_RANGE.contains(&limits.time_ms) {
            format!(
                "limits.time_ms is {}; it must be {} to {}",
                limits.time_ms,
                TIME_MS_RANGE.start(),
                TIME_MS_RANGE.end()
            )
        } else if limits.memory_bytes < MEMORY_BYTES_MIN {
            format!(
                "limits.memory_bytes is {}; at least {MEMORY_BYTES_MIN} are needed to start",
                limits.memory_bytes
            )
        } else if limits.pids < 2 || limits.cpu_milli == 0 {
            "limits.pids must be at least 2, limits.cpu_milli at least 1".into()
        } else {
            return match &spec.work {
                Work::Container(work) => self.check_container(work),
                Work::Module(work) => {
                    let checked = match spec.gpus.first() {
                        Some(slice) if slice.memory_mib == 0 => on_card::check(work, u64::MAX).map(drop),
                        Some(slice) => {
                            on_card::check(work, slice.memory_mib.saturating_mul(1 << 20)).map(drop)
                        }
                        None => crate::module::check(work, limits.memory_bytes).map(drop),
                    };
                    checked.map_err(|error| RunError::Invalid(error.to_string()))
                }
            };
        };
        Err(RunError::Invalid(fault))
    }

    fn check_container(&self, work: &ContainerWork) -> Result<(), RunError> {
        let words = work.command.iter().chain(work.env.keys()).chain(work.env.values());
        let bytes: usize = words.clone().map(|word| word.len() + 1).sum();
        let fault = if bytes > WORDS_BYTES_MAX {
            format!("command and environment have {bytes} bytes; at most {WORDS_BYTES_MAX} can be passed")
        } else if words.clone().any(|word| word.contains('\0')) {
            "command or environment hold a zero byte, which no argument can".into()
        } else if work.env.keys().any(|name| name.is_empty() || name.contains('=')) {
            "a variable's name in env is empty or holds '='".into()
        } else if work.network == Network::Host && !self.inner.config.allow_host_network {
            return Err(RunError::Refused("the owner of this machine grants tasks no network".into()));
        } else {
            return Ok(());
        };
        Err(RunError::Invalid(fault))
    }

    /// A process for an attempt: one that waits for it, or a new one.
    fn worker(&self, folder: &AttemptFolder, lock: OwnedFd) -> Result<Process, RunError> {
        if let Some(spare) = self.inner.spares.take() {
            match spare.give(folder.path(), &lock) {
                Ok(process) => return Ok(process),
                Err(error) => tracing::debug!(%error, "the worker that was started ahead is gone"),
            }
        }
        let mut worker = command(&self.inner.config.worker)?;
        worker.arg("run").arg(folder.path()).stdin(Stdio::from(lock));
        worker.stdout(Stdio::null()).stderr(Stdio::null());
        let started = worker.spawn();
        let doing = || format!("start a worker in {:?}", folder.path());
        Ok(Process::watch(started.map_err(|source| RunError::Machine { doing: doing(), source })?))
    }

    /// The process that waits for a task, where one does.
    #[must_use]
    pub fn spare_pid(&self) -> Option<u32> {
        self.inner.spares.pid()
    }

    /// Makes the attempt's folder whole before it gets its name, so that a start cut short leaves no half of one.
    fn make_folder(&self, task: &Task) -> io::Result<Option<OwnedFd>> {
        let spec = &task.spec;
        let attempts = self.attempts();
        let part = attempts.join(format!("{PART_PREFIX}{}-{}", spec.attempt, std::process::id()));
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir(&part)?;
        let folder = AttemptFolder::new(&part);
        folder.write_task(task).map_err(io::Error::other)?;
        // Held from before anyone can see the attempt until its last process has ended.
        let lock = folder.try_lock().map_err(io::Error::other)?;
        match fs::rename(&part, attempts.join(spec.attempt.as_str())) {
            Ok(()) => Ok(lock),
            Err(error) => {
                fs::remove_dir_all(&part)?;
                match error.kind() {
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }
}

#[async_trait]
impl Runner for ContainerRunner {
    fn enforcement(&self) -> Enforcement {
        enforcement(&self.inner.confinement)
    }

    fn has_image(&self, content: &ContentId) -> bool {
        self.inner.store.has(content)
    }

    async fn start(&self, spec: &TaskSpec) -> Result<Box<dyn Attempt>, RunError> {
        self.check(spec)?;
        let starting =
            |source| RunError::Machine { doing: format!("start the attempt {}", spec.attempt), source };
        let attempt = self.attempt(spec.attempt.clone());
        // One at a time, so that two do not take the same room on a card.
        let _one = self.inner.starting.lock().await;
        if attempt.folder().path().is_dir() {
            return Ok(Box::new(attempt));
        }
        let mut own = spec.clone();
        let card = self.card_access(&mut own)?;
        let task = Task {
            spec: own,
            confinement: self.inner.confinement.clone(),
            images: self.inner.config.state.join("images"),
            ids: self.inner.config.state.join("ids"),
            bounds: self.inner.config.bounds,
            card,
        };
        let Some(lock) = self.make_folder(&task).map_err(starting)? else {
            return Ok(Box::new(attempt));
        };
        self.let_in(&task);
        let worker = match self.worker(attempt.folder(), lock) {
            Ok(worker) => worker,
            Err(error) => {
                // Nobody may take the attempt for one that ran.
                _ = fs::remove_dir_all(attempt.folder().path());
                return Err(error);
            }
        };
        if let (Some(cards), Some(access)) = (self.inner.config.cards.clone(), &task.card) {
            let slice = access.pass.slice;
            // Who watches the process is there as long as that is.
            _ = worker.then.send(Box::new(move || {
                if let Some(desk) = cards.desk() {
                    desk.dismiss(slice);
                }
            }));
        }
        Ok(Box::new(attempt))
    }

    async fn attempts(&self) -> Result<Vec<Box<dyn Attempt>>, RunError> {
        Ok(self.known()?.into_iter().map(|attempt| Box::new(attempt) as Box<dyn Attempt>).collect())
    }
}

/// Removes the folders of attempts whose start was cut short: they have no attempt's name yet.
fn remove_half_made(attempts: &Path) -> io::Result<()> {
    for entry in fs::read_dir(attempts)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PART_PREFIX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// What walls this machine can build: asked of a process of its own, as they cannot be built in one with threads.
async fn probe(worker: &[OsString]) -> Result<Confinement, RunError> {
    let asking = |source| RunError::Machine { doing: "start a worker".into(), source };
    let answer = command(worker)?.arg("probe").stdin(Stdio::null()).output().await.map_err(asking)?;
    match serde_json::from_slice(&answer.stdout) {
        Ok(worker::Answer::Able(confinement)) => Ok(confinement),
        Ok(worker::Answer::Unable(why)) => {
            Err(RunError::Refused(format!("this machine cannot confine tasks: {why}")))
        }
        Err(_) => {
            let said = String::from_utf8_lossy(&answer.stderr).into_owned();
            Err(asking(io::Error::other(format!("{worker:?} probe answered nothing of use: {said}"))))
        }
    }
}

/// Whether the library for containers with shares works in front of this machine's driver: asked of a process of its own, which
/// loads both.
async fn try_shadow(worker: &[OsString], cards: &Host, state: &Path) -> Result<(), String> {
    let Some(real) = files::driver_library(cards.cuda_library()) else {
        return Err(
            "the driver's library is not where distributions keep it; name it: compute.cuda_library".into()
        );
    };
    let folder = state.join("shadow-check");
    let empty = fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    let failed = |error: io::Error| format!("try it in {folder:?}: {error}");
    empty.and_then(|()| fs::create_dir(&folder)).map_err(failed)?;
    let mut asked = command(worker).map_err(|error| error.to_string())?;
    asked.arg("shadow").arg(&real).arg(&folder).stdin(Stdio::null());
    let answer = asked.output().await.map_err(failed)?;
    _ = fs::remove_dir_all(&folder);
    match answer.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&answer.stderr).trim().to_owned()),
    }
}

fn command(worker: &[OsString]) -> Result<tokio::process::Command, RunError> {
    let Some((program, arguments)) = worker.split_first() else {
        return Err(RunError::Refused("no worker program is configured".into()));
    };
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().kill_on_drop(false);
    Ok(command)
}

/// How well these walls hold, in the words of receipts.
fn enforcement(confinement: &Confinement) -> Enforcement {
    let mut weaknesses = Vec::new();
    let controllers = &confinement.controllers;
    let watched = [
        (controllers.memory.is_none(), "memory"),
        (controllers.cpu.is_none(), "CPU"),
        (controllers.pids.is_none(), "processes"),
    ];
    let watched: Vec<_> =
        watched.iter().filter(|(is_watched, _)| *is_watched).map(|(_, name)| *name).collect();
    if !watched.is_empty() {
        weaknesses.push(format!(
            "{} of a task are not held by cgroups: give the daemon's unit Delegate=yes, or run it as root",
            watched.join(", ")
        ));
    }
    match confinement.ids {
        Ids::Range { .. } => {}
        Ids::One { .. } => weaknesses.push(
            "tasks share one user id outside: this machine's user namespace maps no range of ids for them"
                .into(),
        ),
        Ids::Own => {
            weaknesses.push("tasks run as the daemon's own user outside: run the daemon as root".into())
        }
    }
    if confinement.is_program_exposed {
        weaknesses.push("the daemon's user may write to the daemon's program: install it as root".into());
    }
    let level = if weaknesses.is_empty() { Level::Strict } else { Level::Watched };
    Enforcement { level, weaknesses, gpu: None }
}
