//! Checks of a card as it is used here: one a process, as the driver can be started with one card only once in a process.
//!
//! | part      | shows                                                                                             |
//! |-----------|---------------------------------------------------------------------------------------------------|
//! | `driver`  | the libraries are there; cards, as they would be offered                                          |
//! | `results` | kernels of integers, floats and memory give the bytes that the executor for processors gives      |
//! | `memory`  | a slice holds exactly its memory, and finds nothing of who was there before                       |
//! | `speed`   | kernels take as long under the worker's accounting as plainly launched one after the other        |
//! | `shares`  | two workers of 30 and 70 % get that of the time, by the arbiter's own turns                       |
//! | `launches`| what a launch costs a program of C behind the library that keeps containers to their shares       |
//!
//! `gpu-runtime/gpu-check` runs all of them. Nothing here sets anything of a card: clocks, modes, instances stay as they are.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::cuda::Cuda;
use super::{CardLaunch, GpuContext, nvml, shadow};
use crate::module::{bench, on_card};
use crate::runner::{Fill, ModuleWork};
use crate::slice::clerk::Clerk;
use crate::slice::desk::Desk;
use crate::slice::pace::{DeskPace, FreePace, Pace, Pass};

/// Where a part looks, and for how long it measures.
#[derive(Debug, Clone)]
pub struct Options {
    /// The driver's two libraries, where the system's own are not meant.
    pub cuda: Option<PathBuf>,
    pub nvml: Option<PathBuf>,
    /// A card by its name; empty: the first.
    pub uuid: String,
    pub measured_for: Duration,
    /// This program, for parts that need more than one process.
    pub program: PathBuf,
}

pub const PARTS: [&str; 6] = ["driver", "results", "memory", "speed", "shares", "launches"];
/// The child of `shares`: not for people.
pub const SHARE: &str = "share";

const MIB: u64 = 1 << 20;
/// Launches that a measurement goes by at least.
const LAUNCHES_MIN: u32 = 20;
/// Of each share, how far what it got may be from its due, in thousandths.
const SHARE_OFF_MAX: u64 = 20;
const SPEED_MIN: f64 = 0.99;
const SHADOW_NS_MAX: f64 = 50.0;

type Checked = Result<String, String>;

fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Runs one part. `more`: what the child of a part is told.
///
/// # Errors
/// What was found wrong, or why it cannot be told here.
pub fn run(part: &str, options: &Options, more: &[String]) -> Checked {
    match part {
        "driver" => driver(options),
        "results" => results(options),
        "memory" => memory(options),
        "speed" => speed(options),
        "shares" => shares(options),
        "launches" => launches(options),
        SHARE => share(options, more),
        other => Err(format!("{other:?} is none of {}", PARTS.join(", "))),
    }
}

fn driver(options: &Options) -> Checked {
    let version = Cuda::open(options.cuda.as_deref()).map_err(text)?.version().map_err(text)?;
    let cards = nvml::Cards::open(options.nvml.as_deref())?.list(0);
    let mut told = format!("speaks CUDA {}.{}", version / 1000, version % 1000 / 10);
    for card in &cards {
        let (major, minor) = card.capability;
        let _ = write!(
            told,
            "; {} {}, {} MiB, compute {major}.{minor}, driver {}",
            card.model, card.uuid, card.memory_mib, card.driver
        );
    }
    if cards.is_empty() { Err(format!("{told}, and shows no card")) } else { Ok(told) }
}

fn uuid(options: &Options) -> Result<String, String> {
    if !options.uuid.is_empty() {
        return Ok(options.uuid.clone());
    }
    let cards = nvml::Cards::open(options.nvml.as_deref())?.list(0);
    cards.first().map(|card| card.uuid.clone()).ok_or_else(|| "there is no card".into())
}

fn open(options: &Options) -> Result<impl GpuContext, String> {
    Cuda::open(options.cuda.as_deref()).map_err(text)?.context(&uuid(options)?).map_err(text)
}

/// A task with numbers in its buffers, and all of them as outputs. Floats have few digits: their sums are exact in any order.
fn task(kind: bench::Kind) -> ModuleWork {
    let mut work = bench::work(kind);
    let mut seed = 1_u32;
    for buffer in &mut work.buffers {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((seed >> 16) % 64) as f32 / 8.0 - 4.0
        };
        buffer.fill =
            Fill::Inline { bytes: (0..buffer.bytes / 4).flat_map(|_| next().to_le_bytes()).collect() };
        buffer.output = Some(buffer.name.clone());
    }
    work
}

fn bytes_of(work: &ModuleWork) -> u64 {
    work.buffers.iter().map(|buffer| buffer.bytes).sum::<u64>() + 64 * MIB
}

fn results(options: &Options) -> Checked {
    let folder = tempdir("results")?;
    let (here, there) = (folder.join("processor"), folder.join("card"));
    fs::create_dir_all(&here).and_then(|()| fs::create_dir_all(&there)).map_err(text)?;
    let mut card = open(options)?;
    let mut same = 0;
    for kind in bench::Kind::ALL {
        let work = task(kind);
        let memory = bytes_of(&work);
        crate::module::run(&work, memory, &folder, &here, &mut || false).map_err(text)?;
        on_card::run(&work, memory, &folder, &there, &mut card, &mut FreePace::default(), &mut |_| ())
            .map_err(text)?;
        for name in work.buffers.iter().map(|buffer| &buffer.name) {
            let (one, other) =
                (fs::read(here.join(name)).map_err(text)?, fs::read(there.join(name)).map_err(text)?);
            if one != other {
                let at = one.iter().zip(&other).position(|(one, other)| one != other).unwrap_or(0);
                return Err(format!("{}: {name} differs from byte {at} on", kind.name()));
            }
            same += one.len();
        }
    }
    fs::remove_dir_all(&folder).map_err(text)?;
    Ok(format!("{same} bytes of {} kernels are those of a processor", bench::Kind::ALL.len()))
}

/// A task of one buffer, which holds `bytes` and is written down.
fn holding(bytes: u64, fill: Fill) -> ModuleWork {
    let mut work = bench::work(bench::Kind::Integers);
    work.buffers[0].bytes = bytes;
    work.buffers[0].fill = fill;
    work.buffers[0].output = Some("out".into());
    work
}

fn memory(options: &Options) -> Checked {
    const SLICE: u64 = 64 * MIB;
    let folder = tempdir("memory")?;
    let mut card = open(options)?;
    let mut held = |work: &ModuleWork| {
        on_card::run(work, SLICE, &folder, &folder, &mut card, &mut FreePace::default(), &mut |_| ())
    };
    let own = on_card::check(&holding(MIB, Fill::Zero), SLICE).map_err(text)?.variable_bytes;
    let most = (SLICE - own) / 512 * 512;
    held(&holding(most, Fill::Inline { bytes: vec![0xA5; MIB as usize] }))
        .map_err(|error| format!("all of a slice is refused: {error}"))?;
    if held(&holding(most + 1, Fill::Zero)).is_ok() {
        return Err("more than a slice is given".into());
    }
    held(&holding(most, Fill::Zero)).map_err(text)?;
    let found = fs::read(folder.join("out")).map_err(text)?;
    // What the kernel itself writes is at the beginning.
    let kernels = bench::work(bench::Kind::Integers).buffers[0].bytes as usize;
    let left = found.iter().skip(kernels).filter(|byte| **byte != 0).count();
    fs::remove_dir_all(&folder).map_err(text)?;
    match left {
        0 => Ok(format!(
            "{most} of {SLICE} bytes are given, one more is not; nothing was left of who was there before"
        )),
        left => Err(format!("{left} bytes of who was there before are left")),
    }
}

/// Takes no more turns once it is over: the task then ends as if it had no more launches.
struct Until<P> {
    pace: P,
    end_ns: u64,
}

impl<P: Pace> Pace for Until<P> {
    fn ask(&mut self, function: u64) {
        self.pace.ask(function);
    }

    fn granted(&mut self, must_wait: bool) -> Option<u64> {
        if now_ns() >= self.end_ns { None } else { self.pace.granted(must_wait) }
    }

    fn done(&mut self, ticket: u64, measured_ns: u64) {
        self.pace.done(ticket, measured_ns);
    }
}

/// Card time of one launch, plainly launched one after the other.
fn plain_ns(card: &mut dyn GpuContext, work: &ModuleWork, for_: Duration) -> Result<f64, String> {
    card.load(&work.ptx).map_err(text)?;
    let function = card.function(&work.steps[0].kernel).map_err(text)?;
    let outline = on_card::check(work, u64::MAX).map_err(text)?;
    let bytes = on_card::arena_bytes(work);
    let arena = card.allocate(bytes.max(512)).map_err(text)?;
    let parameters = on_card::laid_out(work, &outline, arena).map_err(text)?;
    let step = &work.steps[0];
    let launch = CardLaunch {
        function,
        grid: step.grid,
        block: step.block,
        shared_bytes: step.shared_bytes,
        parameters,
    };
    let (begun, mut count, mut busy) = (now_ns(), 0_u32, 0);
    // The first brings the code to the card.
    card.launch(&launch).map_err(text)?;
    while count < LAUNCHES_MIN || u128::from(now_ns() - begun) < for_.as_nanos() {
        let from = card.mark().map_err(text)?;
        for _ in 0..LAUNCHES_MIN {
            card.launch(&launch).map_err(text)?;
        }
        let to = card.mark().map_err(text)?;
        card.wait(to).map_err(text)?;
        busy += card.between_ns(from, to).map_err(text)?;
        count += LAUNCHES_MIN;
    }
    card.free(arena).map_err(text)?;
    Ok(busy as f64 / f64::from(count))
}

fn endless(kind: bench::Kind) -> ModuleWork {
    let mut work = bench::work(kind);
    work.steps[0].repeat = u32::MAX;
    work
}

fn speed(options: &Options) -> Checked {
    let mut card = open(options)?;
    let nowhere = Path::new("/nonexistent");
    let (mut told, mut worst) = (Vec::new(), f64::MAX);
    for kind in bench::Kind::ALL {
        let part = options.measured_for / (2 * bench::Kind::ALL.len() as u32);
        let work = endless(kind);
        let plain = plain_ns(&mut card, &work, part)?;
        let begun = now_ns();
        let mut pace = Until { pace: FreePace::default(), end_ns: begun + part.as_nanos() as u64 };
        let used = on_card::run(&work, u64::MAX, nowhere, nowhere, &mut card, &mut pace, &mut |_| ())
            .map_err(text)?;
        let each = used.busy_ns as f64 / used.launches.max(1) as f64;
        worst = worst.min(plain / each);
        told.push(format!(
            "{}: {:.1} us plainly, {:.1} us by the worker",
            kind.name(),
            plain / 1e3,
            each / 1e3
        ));
    }
    let told = format!("{:.1} % of plain at the worst ({})", worst * 100.0, told.join("; "));
    if worst >= SPEED_MIN { Ok(told) } else { Err(told) }
}

/// One worker of `shares`: slice, secret, thousandths, the desk's folder, when to begin and to end.
fn share(options: &Options, more: &[String]) -> Checked {
    let number = |at: usize| -> Result<u64, String> {
        let word = more.get(at).ok_or("a word is missing")?;
        word.parse().map_err(text)
    };
    let pass = Pass { slice: number(0)?, secret: number(1)?, sm_millis: number(2)? as u32 };
    let (begin_ns, end_ns) = (number(4)?, number(5)?);
    let kind = if pass.slice == 1 { bench::Kind::Floats } else { bench::Kind::Integers };
    let mut card = open(options)?;
    let desk = PathBuf::from(more.get(3).ok_or("a word is missing")?);
    let mut pace = Until { pace: DeskPace::new(desk, pass), end_ns };
    std::thread::sleep(Duration::from_nanos(begin_ns.saturating_sub(now_ns())));
    let nowhere = Path::new("/nonexistent");
    let used = on_card::run(&endless(kind), u64::MAX, nowhere, nowhere, &mut card, &mut pace, &mut |_| ())
        .map_err(text)?;
    Ok(format!("busy_ns={}", used.busy_ns))
}

fn shares(options: &Options) -> Checked {
    const DUE: [u32; 2] = [300, 700];
    // Two processes start the driver first.
    const BEFORE: Duration = Duration::from_secs(3);
    let folder = tempdir("shares")?;
    let desk = Desk::open(&folder).map_err(text)?;
    let uuid = uuid(options)?;
    let begin_ns = now_ns() + BEFORE.as_nanos() as u64;
    let end_ns = begin_ns + options.measured_for.as_nanos() as u64;
    let mut children = Vec::new();
    for (slice, sm_millis) in (1_u64..).zip(DUE) {
        let pass = Pass { slice, secret: begin_ns ^ slice, sm_millis };
        desk.admit(&uuid, &pass, false);
        let mut child = Command::new(&options.program);
        child.args(["gpu", "trial", SHARE, "--gpu", &uuid]);
        for (name, library) in [("--cuda", &options.cuda), ("--nvml", &options.nvml)] {
            library.iter().for_each(|library| _ = child.arg(name).arg(library));
        }
        child.args([pass.slice, pass.secret, sm_millis.into()].map(|number| number.to_string()));
        child.arg(&folder).args([begin_ns, end_ns].map(|number| number.to_string()));
        children.push(child.stdout(std::process::Stdio::piped()).spawn().map_err(text)?);
    }
    let mut busy = Vec::new();
    for child in children {
        let out = child.wait_with_output().map_err(text)?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let found = said
            .split("busy_ns=")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        busy.push(found.ok_or_else(|| format!("a worker ended early: {said}"))?);
    }
    fs::remove_dir_all(&folder).map_err(text)?;
    let sum: u64 = busy.iter().sum::<u64>().max(1);
    let got: Vec<u64> = busy.iter().map(|busy| busy * 1000 / sum).collect();
    let told = format!(
        "30 and 70 % due, {:.1} and {:.1} % got, {:.0} % of the time",
        got[0] as f64 / 10.0,
        got[1] as f64 / 10.0,
        sum as f64 * 100.0 / options.measured_for.as_nanos() as f64
    );
    let is_fair = got.iter().zip(DUE).all(|(got, due)| got.abs_diff(due.into()) <= SHARE_OFF_MAX);
    if is_fair { Ok(told) } else { Err(told) }
}

/// Launches an empty kernel until a time is over, and prints what one took its own thread.
const LAUNCHER: &str = include_str!("trial.c");

fn launches(options: &Options) -> Checked {
    let folder = tempdir("launches")?;
    let (source, program) = (folder.join("launcher.c"), folder.join("launcher"));
    fs::write(&source, LAUNCHER).map_err(text)?;
    let built = Command::new("cc").arg("-O1").arg("-o").arg(&program).arg(&source).arg("-ldl").output();
    match built {
        Ok(built) if built.status.success() => {}
        Ok(built) => return Err(format!("cc: {}", String::from_utf8_lossy(&built.stderr))),
        Err(error) => return Err(format!("a C compiler (cc) is needed: {error}")),
    }
    let uuid = uuid(options)?;
    let real = options.cuda.clone().unwrap_or_else(|| PathBuf::from(super::cuda::LIBRARY));
    let front = folder.join("front");
    fs::create_dir_all(&front).map_err(text)?;
    fs::write(front.join(shadow::NAME), shadow::LIBRARY).map_err(text)?;
    std::os::unix::fs::symlink(found(&real)?, front.join(shadow::REAL)).map_err(text)?;
    let desk = Desk::open(&folder.join("desk")).map_err(text)?;
    let pass = Pass { slice: 1, secret: now_ns(), sm_millis: 1000 };
    desk.admit(&uuid, &pass, false);
    let clerk_path = front.join(shadow::CLERK);
    let mut clerk = Clerk::open(&clerk_path, 1 << 40).map_err(text)?;
    let told = shadow::slice_file(
        &pass,
        1 << 40,
        &clerk_path,
        &folder.join("desk").join(crate::slice::pace::SOCKET),
    );
    fs::write(front.join(shadow::SLICE_FILE), told.map_err(text)?).map_err(text)?;
    let is_over = AtomicBool::new(false);
    let measured = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                clerk.serve();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let ms = (options.measured_for.as_millis() / 6).max(1).to_string();
        let run = |library: &Path| -> Result<f64, String> {
            let out = Command::new(&program)
                .args([library.as_os_str(), ms.as_ref()])
                .env("CUDA_VISIBLE_DEVICES", &uuid)
                .output()
                .map_err(text)?;
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            said.trim()
                .parse()
                .map_err(|_| format!("{library:?}: {said}{}", String::from_utf8_lossy(&out.stderr)))
        };
        // Three of each, by turns: the least of each is the least disturbed.
        let by_turns = || {
            let mut least = [f64::MAX; 2];
            for _ in 0..3 {
                for (least, library) in least.iter_mut().zip([&*real, &front.join(shadow::NAME)]) {
                    *least = least.min(run(library)?);
                }
            }
            Ok::<_, String>(least)
        };
        let measured = by_turns();
        // Whatever came of it: the scope waits for its thread.
        is_over.store(true, Ordering::Release);
        measured
    });
    let [plain, fronted] = measured?;
    fs::remove_dir_all(&folder).map_err(text)?;
    let more = fronted - plain;
    let told =
        format!("{plain:.0} ns a launch plainly, {fronted:.0} ns behind the library: {more:.0} ns more");
    if more <= SHADOW_NS_MAX { Ok(told) } else { Err(told) }
}

/// A library's own file: what the loader finds by a bare name.
fn found(library: &Path) -> Result<PathBuf, String> {
    if library.is_absolute() {
        return Ok(library.to_owned());
    }
    Cuda::open(Some(library)).map_err(text)?;
    let maps = fs::read_to_string("/proc/self/maps").map_err(text)?;
    let name = library.file_stem().and_then(|name| name.to_str()).unwrap_or("libcuda.so");
    let path =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains(name));
    path.map(PathBuf::from).ok_or_else(|| format!("{library:?} is loaded from nowhere"))
}

fn tempdir(name: &str) -> Result<PathBuf, String> {
    let folder = std::env::temp_dir().join(format!("makai-gpu-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(text)?;
    Ok(folder)
}
