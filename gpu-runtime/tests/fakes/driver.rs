//! Cards made of software, behind the interfaces of the driver's two libraries: for tests alone.
//!
//! ```text
//! cards.json, beside the library ──> devices
//! PTX ──> the CPU executor of this crate (bit for bit what a card computes) ──> memory
//! launches ──> one timeline per card, shared by all processes through a file ──> events
//! ```
//!
//! Copied as `libcuda.so.1` and as `libnvidia-ml.so.1` into a folder of a test's own, and loaded by that path. A kernel takes the time
//! that its name ends with (`_2000us`), others a nanosecond an instruction. Memory comes dirty, as a real card's may; memory that
//! is given back dirty is written down in `journal`. Lines `INDEX XID` in `xid` become health events; lines `INDEX PID MIB` in
//! `processes` are the processes that use cards.
//!
//! Files are opened when the library is loaded, as a confined process has no path to them later. In a container, which sees
//! the libraries alone, the variable `FAKE_CARDS` stands for `cards.json`.

mod wide;

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use makai_gpu_runtime::module::ptx::{self, run::address_of};
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// Device addresses below this many buffers are a module's own variables.
const OWN_BUFFERS: usize = 64;
const DIRT: u8 = 0xA5;
const OUT_OF_MEMORY: c_int = 2;
const NOT_FOUND: c_int = 500;
const INVALID: c_int = 1;
const ILLEGAL_ADDRESS: c_int = 700;
const INVALID_PTX: c_int = 218;

struct World {
    folder: PathBuf,
    cards: Value,
    /// When each card will be idle, eight bytes each.
    timeline: File,
    journal: File,
}

#[derive(Default)]
struct Process {
    card: usize,
    buffers: BTreeMap<usize, Vec<u8>>,
    modules: Vec<(ptx::code::Module, Vec<Vec<u8>>)>,
    /// Module and kernel.
    functions: Vec<(usize, usize)>,
    events: Vec<u64>,
    stream_ends: u64,
    /// What a kernel did that the context does not survive.
    fault: c_int,
    wide: wide::Wide,
}

static WORLD: OnceLock<Option<World>> = OnceLock::new();
static PROCESS: Mutex<Option<Process>> = Mutex::new(None);

#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    WORLD.get_or_init(open);
}

fn open() -> Option<World> {
    let here = at_load as extern "C" fn() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        range.contains(&here).then(|| PathBuf::from(&rest[rest.find('/').unwrap_or(0)..]))
    })?;
    let folder = path.parent()?.to_owned();
    let text = std::fs::read_to_string(folder.join("cards.json"));
    // In a container the libraries alone are seen.
    let (text, folder) = match text {
        Ok(text) => (text, folder),
        Err(_) => (std::env::var("FAKE_CARDS").ok()?, std::env::temp_dir()),
    };
    let cards = serde_json::from_str(&text).ok()?;
    let file = |name: &str| {
        File::options().read(true).write(true).create(true).truncate(false).open(folder.join(name)).ok()
    };
    let (timeline, journal) = (file("timeline")?, file("journal")?);
    Some(World { folder, cards, timeline, journal })
}

fn world() -> Option<&'static World> {
    WORLD.get_or_init(open).as_ref()
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Writes an answer.
fn put<T>(at: *mut T, value: T) -> c_int {
    if at.is_null() {
        return INVALID;
    }
    // SAFETY: the interface says that it points to room for an answer of this type.
    unsafe { at.write(value) };
    0
}

fn text_at(text: *const c_char) -> String {
    // SAFETY: the interface says that it is a text that ends with a zero byte.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Bytes of the caller.
fn bytes_at<'a>(at: *const c_void, bytes: usize) -> &'a [u8] {
    // SAFETY: the interface says that so many bytes are there for the time of the call.
    unsafe { std::slice::from_raw_parts(at.cast(), bytes) }
}

fn put_text(at: *mut c_char, room: c_uint, text: &str) -> c_int {
    let bytes: Vec<u8> = text.bytes().take((room as usize).saturating_sub(1)).chain([0]).collect();
    // SAFETY: the interface says that there is room for so many bytes.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast(), bytes.len()) };
    0
}

fn process() -> MutexGuard<'static, Option<Process>> {
    PROCESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something with the process's state; after a fault nothing works any more.
fn with(run: impl FnOnce(&mut Process) -> c_int) -> c_int {
    match process().as_mut() {
        None => 3,
        Some(process) if process.fault != 0 => process.fault,
        Some(process) => run(process),
    }
}

fn wait_until(at_ns: u64) {
    while now_ns() < at_ns {
        std::thread::sleep(Duration::from_nanos(at_ns - now_ns().min(at_ns)));
    }
}

fn card_of(uuid: &str) -> Option<usize> {
    let cards = world()?.cards.as_array()?;
    cards.iter().position(|card| {
        let is_instance = card["mig"].as_array().is_some_and(|all| all.iter().any(|one| one["uuid"] == uuid));
        card["uuid"] == uuid || is_instance
    })
}

fn memory_bytes(card: usize) -> u64 {
    let mib = world().and_then(|world| world.cards[card]["memory_mib"].as_u64());
    mib.unwrap_or(0) << 20
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> c_int {
    let wanted = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let Some(card) = card_of(&wanted) else { return 100 };
    if let Some(code) = world().and_then(|world| world.cards[card]["init_fails"].as_i64()) {
        return code as c_int;
    }
    *process() = Some(Process { card, ..Process::default() });
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    put(version, 13_000)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    with(|_| put(count, 1))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: *mut c_int, index: c_int) -> c_int {
    if index == 0 { put(device, 0) } else { 101 }
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxCreate_v2(context: *mut *mut c_void, _flags: c_uint, _device: c_int) -> c_int {
    with(|_| put(context, 16 as *mut c_void))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(_context: *mut c_void) -> c_int {
    with(|process| {
        process.buffers.clear();
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(_limit: c_int, _value: usize) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    with(|process| {
        let held = process.buffers.values().map(Vec::len).sum::<usize>() + process.wide.held() as usize;
        let bytes = memory_bytes(process.card) as usize;
        put(free, bytes.saturating_sub(held));
        put(total, bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> c_int {
    with(|process| {
        let held = process.buffers.values().map(Vec::len).sum::<usize>() + process.wide.held() as usize;
        if bytes == 0 || (held + bytes) as u64 > memory_bytes(process.card) {
            return OUT_OF_MEMORY;
        }
        let index = process.buffers.keys().next_back().map_or(OWN_BUFFERS, |last| last + 1);
        process.buffers.insert(index, vec![DIRT; bytes]);
        put(address, address_of(index))
    })
}

/// A buffer and an offset into it.
fn place(process: &mut Process, address: u64, bytes: usize) -> Option<&mut [u8]> {
    let shift = address_of(0).trailing_zeros();
    let index = usize::try_from(address >> shift).ok()?.checked_sub(1)?;
    let offset = (address & (address_of(0) - 1)) as usize;
    process.buffers.get_mut(&index)?.get_mut(offset..offset.checked_add(bytes)?)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    with(|process| {
        let index = (address >> address_of(0).trailing_zeros()) as usize;
        let Some(buffer) = process.buffers.remove(&index.wrapping_sub(1)) else { return INVALID };
        if buffer.iter().any(|byte| *byte != 0)
            && let Some(world) = world()
        {
            let line = format!("{} bytes were given back dirty\n", buffer.len());
            let _ = (&world.journal).write_all(line.as_bytes());
        }
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(address: u64, value: u8, bytes: usize) -> c_int {
    with(|process| {
        wait_until(process.stream_ends);
        place(process, address, bytes).map_or(INVALID, |place| {
            place.fill(value);
            0
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(address: u64, from: *const c_void, bytes: usize) -> c_int {
    with(|process| {
        wait_until(process.stream_ends);
        place(process, address, bytes).map_or(INVALID, |place| {
            place.copy_from_slice(bytes_at(from, bytes));
            0
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, address: u64, bytes: usize) -> c_int {
    with(|process| {
        wait_until(process.stream_ends);
        let Some(from) = place(process, address, bytes) else { return INVALID };
        // SAFETY: the interface says that there is room for so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.cast(), bytes) };
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    module: *mut *mut c_void,
    image: *const c_void,
    count: c_uint,
    keys: *mut c_int,
    values: *mut *mut c_void,
) -> c_int {
    with(|process| match ptx::load(&text_at(image.cast())) {
        Ok(loaded) => {
            let own = loaded.globals.iter().map(|global| {
                let mut bytes = vec![0; global.bytes as usize];
                bytes[..global.initial.len()].copy_from_slice(&global.initial);
                bytes
            });
            let own = own.collect();
            process.modules.push((loaded, own));
            put(module, process.modules.len() as *mut c_void)
        }
        Err(error) => {
            let said = format!("ptxas fatal: {error}");
            for at in 0..count as usize {
                // SAFETY: the interface says that both lists have so many entries.
                let (key, value) = unsafe { (*keys.add(at), *values.add(at)) };
                if key == 5 {
                    put_text(value.cast(), 1024, &said);
                }
            }
            INVALID_PTX
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> c_int {
    with(|process| {
        let (module, name) = ((module as usize).wrapping_sub(1), text_at(name));
        let found = process
            .modules
            .get(module)
            .and_then(|(loaded, _)| loaded.kernels.iter().position(|kernel| kernel.name == name));
        found.map_or(NOT_FOUND, |kernel| {
            process.functions.push((module, kernel));
            put(function, process.functions.len() as *mut c_void)
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> c_int {
    put(stream, 16 as *mut c_void)
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    _stream: *mut c_void,
    _arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int {
    launch_kernel(function, [grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared, extra)
}

/// What all launches come to. By the name of another of the driver's functions they would be found in the library in front of it,
/// which comes first where names are looked up, and be counted twice.
fn launch_kernel(
    function: *mut c_void,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    extra: *mut *mut c_void,
) -> c_int {
    with(|process| {
        let Some(&(module, kernel)) = process.functions.get((function as usize).wrapping_sub(1)) else {
            return 400;
        };
        let mut parameters = Vec::new();
        if !extra.is_null() {
            // SAFETY: the interface says: key, buffer, key, pointer to its length, end.
            let (buffer, bytes) = unsafe { (*extra.add(1), *(*extra.add(3)).cast::<usize>()) };
            parameters = bytes_at(buffer, bytes).to_vec();
        }
        let launch = ptx::run::Launch { grid, block, dynamic_shared_bytes: shared, parameters };
        execute(process, module, kernel, &launch)
    })
}

fn execute(process: &mut Process, module: usize, kernel: usize, launch: &ptx::run::Launch) -> c_int {
    let (loaded, own) = &mut process.modules[module];
    let code = &loaded.kernels[kernel];
    if ptx::run::check(code, launch).is_err() {
        return INVALID;
    }
    // The executor numbers buffers from the module's own variables on.
    let last = process.buffers.keys().next_back().map_or(0, |last| last + 1);
    let mut buffers: Vec<Vec<u8>> = vec![Vec::new(); last.max(own.len())];
    for (at, variable) in own.iter_mut().enumerate() {
        buffers[at] = std::mem::take(variable);
    }
    for (at, buffer) in &mut process.buffers {
        buffers[*at] = std::mem::take(buffer);
    }
    let ran = ptx::run::launch(code, launch, &mut buffers, &mut |_| false);
    for (at, variable) in own.iter_mut().enumerate() {
        *variable = std::mem::take(&mut buffers[at]);
    }
    for (at, buffer) in &mut process.buffers {
        *buffer = std::mem::take(&mut buffers[*at]);
    }
    let takes_ns = match (&ran, modelled_us(&code.name)) {
        (_, Some(us)) => us * 1000,
        (Ok(steps), None) => *steps,
        (Err(_), None) => 1000,
    };
    process.stream_ends = occupy(process.card, process.stream_ends, takes_ns);
    if ran.is_err() {
        process.fault = ILLEGAL_ADDRESS;
    }
    0
}

/// `NAME_2000us` takes two milliseconds.
fn modelled_us(name: &str) -> Option<u64> {
    name.strip_suffix("us")?.rsplit_once('_')?.1.parse().ok()
}

/// Takes the card for so long as soon as it is free; answers the end.
fn occupy(card: usize, not_before: u64, takes_ns: u64) -> u64 {
    let Some(world) = world() else { return not_before };
    let _ = flock(&world.timeline, FlockOperation::LockExclusive);
    let mut bytes = [0; 8];
    let at = card as u64 * 8;
    let _ = world.timeline.read_exact_at(&mut bytes, at);
    let end = now_ns().max(not_before).max(u64::from_le_bytes(bytes)) + takes_ns;
    let _ = world.timeline.write_all_at(&end.to_le_bytes(), at);
    let _ = flock(&world.timeline, FlockOperation::Unlock);
    end
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> c_int {
    with(|process| {
        process.events.push(0);
        put(event, process.events.len() as *mut c_void)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: *mut c_void, _stream: *mut c_void) -> c_int {
    // A fault shows when something waits for it.
    match process().as_mut() {
        None => 3,
        Some(process) => {
            let at = process.stream_ends.max(now_ns());
            process.events.get_mut((event as usize).wrapping_sub(1)).map_or(400, |event| {
                *event = at;
                0
            })
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: *mut c_void) -> c_int {
    let at =
        process().as_ref().and_then(|process| process.events.get((event as usize).wrapping_sub(1)).copied());
    wait_until(at.unwrap_or(0));
    with(|_| 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(ms: *mut f32, from: *mut c_void, to: *mut c_void) -> c_int {
    with(|process| {
        let at = |event: *mut c_void| process.events.get((event as usize).wrapping_sub(1)).copied();
        let (Some(from), Some(to)) = (at(from), at(to)) else { return 400 };
        put(ms, (to.saturating_sub(from) as f64 / 1e6) as f32)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: c_int, name: *mut *const c_char) -> c_int {
    let text: &CStr = match code {
        INVALID => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        46 => c"CUDA_ERROR_DEVICE_UNAVAILABLE",
        100 => c"CUDA_ERROR_NO_DEVICE",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        _ => return INVALID,
    };
    put(name, text.as_ptr())
}

// The management library: answers are 0, or 2 invalid argument, 3 not supported, 6 not found, 10 timed out.

/// A card by its handle, or an instance of one.
fn nvml_device(handle: *mut c_void) -> Option<&'static Value> {
    let number = handle as usize;
    let card = world()?.cards.get((number & 0xFF).checked_sub(1)?)?;
    if number >> 8 == 0 { Some(card) } else { card["mig"].get((number >> 8) - 1) }
}

fn told(handle: *mut c_void, answer: impl FnOnce(&Value) -> c_int) -> c_int {
    nvml_device(handle).map_or(2, answer)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> c_int {
    if world().is_some() { 0 } else { 9 }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetDriverVersion(text: *mut c_char, room: c_uint) -> c_int {
    let driver = world().and_then(|world| world.cards[0]["driver"].as_str());
    put_text(text, room, driver.unwrap_or("580.65.06"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    put(count, world().and_then(|world| world.cards.as_array()).map_or(0, |cards| cards.len() as c_uint))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) -> c_int {
    put(device, (index as usize + 1) as *mut c_void)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut *mut c_void) -> c_int {
    card_of(&text_at(uuid)).map_or(6, |card| put(device, (card + 1) as *mut c_void))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, text: *mut c_char, room: c_uint) -> c_int {
    told(device, |card| put_text(text, room, card["uuid"].as_str().unwrap_or_default()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetName(device: *mut c_void, text: *mut c_char, room: c_uint) -> c_int {
    told(device, |card| put_text(text, room, card["model"].as_str().unwrap_or_default()))
}

#[repr(C)]
struct Memory {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: *mut c_void, memory: *mut Memory) -> c_int {
    told(device, |card| {
        let total = card["memory_mib"].as_u64().unwrap_or(0) << 20;
        put(memory, Memory { version: 2 << 24, total, reserved: 0, free: total, used: 0 })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: *mut c_void,
    major: *mut c_int,
    minor: *mut c_int,
) -> c_int {
    told(device, |card| {
        put(major, card["capability"][0].as_i64().unwrap_or(8) as c_int);
        put(minor, card["capability"][1].as_i64().unwrap_or(9) as c_int)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMinorNumber(device: *mut c_void, minor: *mut c_uint) -> c_int {
    told(device, |card| put(minor, card["minor"].as_u64().unwrap_or(200) as c_uint))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigMode(device: *mut c_void, now: *mut c_uint, then: *mut c_uint) -> c_int {
    told(device, |card| {
        if card["mig"].is_null() {
            return 3;
        }
        put(now, 1);
        put(then, 1)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: *mut c_void, count: *mut c_uint) -> c_int {
    told(device, |card| put(count, card["mig"].as_array().map_or(0, |all| all.len() as c_uint)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: *mut c_void,
    index: c_uint,
    found: *mut *mut c_void,
) -> c_int {
    told(device, |card| {
        let handle = device as usize | (index as usize + 1) << 8;
        if card["mig"].get(index as usize).is_some() { put(found, handle as *mut c_void) } else { 6 }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetSupportedEventTypes(_device: *mut c_void, kinds: *mut u64) -> c_int {
    put(kinds, 8)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetCreate(set: *mut *mut c_void) -> c_int {
    put(set, 16 as *mut c_void)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(_set: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(_device: *mut c_void, _kinds: u64, _set: *mut c_void) -> c_int {
    0
}

#[repr(C)]
struct EventData {
    device: *mut c_void,
    kind: u64,
    data: u64,
    instance: c_uint,
    compute_instance: c_uint,
}

static EVENTS_TOLD: Mutex<usize> = Mutex::new(0);

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(_set: *mut c_void, data: *mut EventData, timeout_ms: c_uint) -> c_int {
    let Some(world) = world() else { return 1 };
    let until = now_ns() + u64::from(timeout_ms) * 1_000_000;
    let mut told = EVENTS_TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let mut text = String::new();
        let _ = File::open(world.folder.join("xid")).and_then(|mut file| file.read_to_string(&mut text));
        // A line counts once its end is written.
        let lines: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        if let Some((card, xid)) = lines.get(*told).and_then(|line| line.trim().split_once(' ')) {
            *told += 1;
            let (card, xid) = (card.parse().unwrap_or(0_usize), xid.parse().unwrap_or(0));
            let device = (card + 1) as *mut c_void;
            return put(
                data,
                EventData { device, kind: 8, data: xid, instance: u32::MAX, compute_instance: u32::MAX },
            );
        }
        if now_ns() >= until {
            return 10;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[repr(C)]
struct ProcessInfo {
    pid: c_uint,
    memory_bytes: u64,
    instance: c_uint,
    compute_instance: c_uint,
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: *mut c_void,
    count: *mut c_uint,
    into: *mut ProcessInfo,
) -> c_int {
    const INSUFFICIENT_SIZE: c_int = 7;
    let Some(world) = world() else { return 1 };
    let text = std::fs::read_to_string(world.folder.join("processes")).unwrap_or_default();
    let card = device as usize - 1;
    let found: Vec<[u64; 3]> = text
        .lines()
        .map(|line| line.split(' ').map(|number| number.parse().unwrap_or(0)).collect::<Vec<u64>>())
        .filter_map(|numbers| numbers.try_into().ok())
        .filter(|numbers: &[u64; 3]| numbers[0] == card as u64)
        .collect();
    // SAFETY: the interface says that it points to how many there is room for.
    let room = unsafe { *count } as usize;
    put(count, found.len() as c_uint);
    if found.len() > room {
        return INSUFFICIENT_SIZE;
    }
    for (at, [_, pid, mib]) in found.into_iter().enumerate() {
        let memory_bytes = mib << 20;
        let info =
            ProcessInfo { pid: pid as c_uint, memory_bytes, instance: u32::MAX, compute_instance: u32::MAX };
        // SAFETY: the interface says that there is room for so many.
        unsafe { into.add(at).write(info) };
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    _device: *mut c_void,
    count: *mut c_uint,
    _into: *mut ProcessInfo,
) -> c_int {
    put(count, 0)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(_code: c_int) -> *const c_char {
    c"an error of the fake driver".as_ptr()
}
