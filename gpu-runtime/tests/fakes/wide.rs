//! What programs of their own use of the driver beyond what modules need: pools, arrays, memory without an address, graphs, captures,
//! and `cuGetProcAddress`. Memory here is counted, not kept.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};

use super::*;

type Handle = *mut c_void;

const DEFAULT_POOL: u64 = 0x100;
/// The card gives pools memory in pieces of this many bytes.
const POOL_PIECE: u64 = 64 << 10;

#[derive(Default, Clone, Copy)]
struct Pool {
    reserved: u64,
    used: u64,
}

/// What is counted, by a handle of its own.
#[derive(Default)]
pub struct Wide {
    last: u64,
    /// Arrays, and memory without an address.
    held: BTreeMap<u64, u64>,
    pools: BTreeMap<u64, Pool>,
    /// Allocations of pools: pool and bytes.
    pooled: BTreeMap<u64, (u64, u64)>,
    /// Memory that is held so often, and stands in so many places.
    holds: BTreeMap<u64, (u32, u32)>,
    maps: BTreeMap<u64, u64>,
    /// Bytes of nodes, by graph.
    graphs: BTreeMap<u64, u64>,
    graph_reserved: u64,
    is_capturing: bool,
    has_primary: bool,
}

impl Wide {
    pub fn held(&self) -> u64 {
        let pools: u64 = self.pools.values().map(|pool| pool.reserved).sum();
        self.held.values().sum::<u64>() + pools + self.graph_reserved
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        0x7000_0000_0000 + self.last * 0x1_0000_0000
    }
}

fn has_room(process: &Process, bytes: u64) -> bool {
    let held = process.buffers.values().map(Vec::len).sum::<usize>() as u64 + process.wide.held();
    held.saturating_add(bytes) <= memory_bytes(process.card)
}

/// Bytes of the card that are taken: what a test holds against the slice.
#[unsafe(no_mangle)]
extern "C" fn fakeHeld() -> u64 {
    let process = process();
    let buffers = |process: &Process| process.buffers.values().map(Vec::len).sum::<usize>() as u64;
    process.as_ref().map_or(0, |process| buffers(process) + process.wide.held())
}

/// A function that a library in front of this one never heard of.
#[unsafe(no_mangle)]
extern "C" fn cuFutureThing() -> c_int {
    42
}

/// A variant that nobody but this driver knows.
extern "C" fn allocate_v9(address: *mut u64, bytes: usize) -> c_int {
    cuMemAlloc_v2(address, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> c_int {
    with(|process| put(bytes, memory_bytes(process.card) as usize))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) -> c_int {
    let found = match attribute {
        16 => 8,
        39 => 1024,
        _ => 0,
    };
    put(value, found)
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> c_int {
    put(context, 16 as Handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(_context: Handle) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: *mut c_int) -> c_int {
    put(device, 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> c_int {
    with(|process| {
        wait_until(process.stream_ends);
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(_stream: Handle) -> c_int {
    cuCtxSynchronize()
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, _device: c_int) -> c_int {
    with(|process| {
        process.wide.has_primary = true;
        put(context, 16 as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxReset_v2(_device: c_int) -> c_int {
    with(|process| {
        process.buffers.clear();
        process.wide.has_primary = false;
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxGetState(_device: c_int, flags: *mut c_uint, is_active: *mut c_int) -> c_int {
    with(|process| {
        put(flags, 0);
        put(is_active, process.wide.has_primary.into())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocPitch_v2(
    address: *mut u64,
    pitch: *mut usize,
    width: usize,
    height: usize,
    _element: c_uint,
) -> c_int {
    put(pitch, width.next_multiple_of(512));
    cuMemAlloc_v2(address, width.next_multiple_of(512) * height)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocManaged(address: *mut u64, bytes: usize, _flags: c_uint) -> c_int {
    cuMemAlloc_v2(address, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetMemPool(pool: *mut Handle, _device: c_int) -> c_int {
    put(pool, DEFAULT_POOL as Handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolCreate(pool: *mut Handle, _properties: *const u32) -> c_int {
    with(|process| {
        let handle = process.wide.next();
        process.wide.pools.insert(handle, Pool::default());
        put(pool, handle as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolDestroy(pool: Handle) -> c_int {
    with(|process| if process.wide.pools.remove(&(pool as u64)).is_some() { 0 } else { INVALID })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(pool: Handle, bytes: usize) -> c_int {
    with(|process| {
        let Some(pool) = process.wide.pools.get_mut(&(pool as u64)) else { return INVALID };
        pool.reserved = pool.used.next_multiple_of(POOL_PIECE).max(pool.reserved.min(bytes as u64));
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolGetAttribute(pool: Handle, attribute: c_int, value: *mut u64) -> c_int {
    with(|process| {
        let pool = *process.wide.pools.entry(pool as u64).or_default();
        match attribute {
            5 => put(value, pool.reserved),
            7 => put(value, pool.used),
            _ => INVALID,
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocFromPoolAsync(
    address: *mut u64,
    bytes: usize,
    pool: Handle,
    _stream: Handle,
) -> c_int {
    with(|process| {
        let (key, bytes) = (pool as u64, bytes as u64);
        let Pool { reserved, used } = *process.wide.pools.entry(key).or_default();
        let grown = reserved.max((used + bytes).next_multiple_of(POOL_PIECE));
        if !has_room(process, grown - reserved) {
            return OUT_OF_MEMORY;
        }
        process.wide.pools.insert(key, Pool { reserved: grown, used: used + bytes });
        let handle = process.wide.next();
        process.wide.pooled.insert(handle, (key, bytes));
        put(address, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocFromPoolAsync_ptsz(
    address: *mut u64,
    bytes: usize,
    pool: Handle,
    stream: Handle,
) -> c_int {
    cuMemAllocFromPoolAsync(address, bytes, pool, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: Handle) -> c_int {
    cuMemAllocFromPoolAsync(address, bytes, DEFAULT_POOL as Handle, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync_ptsz(address: *mut u64, bytes: usize, stream: Handle) -> c_int {
    cuMemAllocFromPoolAsync(address, bytes, DEFAULT_POOL as Handle, stream)
}

/// Its memory stays with the pool, as a pool of a large threshold keeps it.
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, _stream: Handle) -> c_int {
    with(|process| {
        let Some((pool, bytes)) = process.wide.pooled.remove(&address) else { return INVALID };
        if let Some(pool) = process.wide.pools.get_mut(&pool) {
            pool.used -= bytes;
        }
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync_ptsz(address: u64, stream: Handle) -> c_int {
    cuMemFreeAsync(address, stream)
}

fn take(process: &mut Process, bytes: u64, handle: *mut u64) -> c_int {
    if !has_room(process, bytes) {
        return OUT_OF_MEMORY;
    }
    let key = process.wide.next();
    process.wide.held.insert(key, bytes);
    put(handle, key)
}

#[repr(C)]
struct Shape {
    width: usize,
    height: usize,
    depth: usize,
    format: c_uint,
    channels: c_uint,
    flags: c_uint,
}

/// Bytes of an array of numbers of four bytes.
fn array(process: &mut Process, array: *mut Handle, sides: [usize; 3], channels: c_uint) -> c_int {
    let elements: usize = sides.into_iter().map(|side| side.max(1)).product();
    take(process, elements as u64 * 4 * u64::from(channels), array.cast())
}

#[unsafe(no_mangle)]
extern "C" fn cuArray3DCreate_v2(into: *mut Handle, shape: *const Shape) -> c_int {
    // SAFETY: the interface says that it is a description.
    let Shape { width, height, depth, channels, .. } = unsafe { shape.read() };
    with(|process| array(process, into, [width, height, depth], channels))
}

#[unsafe(no_mangle)]
extern "C" fn cuMipmappedArrayCreate(into: *mut Handle, shape: *const Shape, _levels: c_uint) -> c_int {
    cuArray3DCreate_v2(into, shape)
}

#[unsafe(no_mangle)]
extern "C" fn cuArrayDestroy(array: Handle) -> c_int {
    with(|process| if process.wide.held.remove(&(array as u64)).is_some() { 0 } else { INVALID })
}

#[unsafe(no_mangle)]
extern "C" fn cuMipmappedArrayDestroy(array: Handle) -> c_int {
    cuArrayDestroy(array)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemCreate(memory: *mut u64, bytes: usize, _properties: *const u32, _flags: u64) -> c_int {
    with(|process| {
        let code = take(process, bytes as u64, memory);
        if code == 0 {
            let last = process.wide.held.keys().next_back().copied().unwrap_or(0);
            process.wide.holds.insert(last, (1, 0));
        }
        code
    })
}

fn let_go(process: &mut Process, memory: u64, held: u32, mapped: u32) -> c_int {
    let Some((holds, maps)) = process.wide.holds.get_mut(&memory) else { return INVALID };
    (*holds, *maps) = (holds.saturating_sub(held), maps.saturating_sub(mapped));
    if (*holds, *maps) == (0, 0) {
        process.wide.held.remove(&memory);
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuMemRelease(memory: u64) -> c_int {
    with(|process| let_go(process, memory, 1, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemMap(address: u64, _bytes: usize, _offset: usize, memory: u64, _flags: u64) -> c_int {
    with(|process| {
        let Some((_, maps)) = process.wide.holds.get_mut(&memory) else { return INVALID };
        *maps += 1;
        process.wide.maps.insert(address, memory);
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemUnmap(address: u64, _bytes: usize) -> c_int {
    with(|process| match process.wide.maps.remove(&address) {
        Some(memory) => let_go(process, memory, 0, 1),
        None => INVALID,
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphCreate(graph: *mut Handle, _flags: c_uint) -> c_int {
    with(|process| {
        let handle = process.wide.next();
        process.wide.graphs.insert(handle, 0);
        put(graph, handle as Handle)
    })
}

/// Not by the exported name: the library in front of this one would count it again.
fn add_memory_node(node: *mut Handle, graph: Handle, of: *mut u8) -> c_int {
    // SAFETY: the interface says that a description has its size there.
    let bytes = unsafe { of.add(104).cast::<u64>().read_unaligned() };
    with(|process| {
        let Some(nodes) = process.wide.graphs.get_mut(&(graph as u64)) else { return INVALID };
        *nodes += bytes;
        put(node, 16 as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphAddMemAllocNode(
    node: *mut Handle,
    graph: Handle,
    _after: *const Handle,
    _count: usize,
    of: *mut u8,
) -> c_int {
    add_memory_node(node, graph, of)
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphAddNode(
    node: *mut Handle,
    graph: Handle,
    _after: *const Handle,
    _count: usize,
    of: *mut u8,
) -> c_int {
    // SAFETY: the interface says that a description of any node holds this one at 16.
    add_memory_node(node, graph, unsafe { of.add(16) })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: Handle) -> c_int {
    with(|process| if process.wide.graphs.remove(&(graph as u64)).is_some() { 0 } else { INVALID })
}

/// A graph stands for its executable form here; it takes a millisecond, and its memory.
#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(graph: Handle, _stream: Handle) -> c_int {
    with(|process| {
        let Some(bytes) = process.wide.graphs.get(&(graph as u64)).copied() else { return INVALID };
        process.wide.graph_reserved = process.wide.graph_reserved.max(bytes);
        process.stream_ends = occupy(process.card, process.stream_ends, 1_000_000);
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch_ptsz(graph: Handle, stream: Handle) -> c_int {
    cuGraphLaunch(graph, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGraphMemTrim(_device: c_int) -> c_int {
    with(|process| {
        process.wide.graph_reserved = 0;
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetGraphMemAttribute(_device: c_int, _attribute: c_int, value: *mut u64) -> c_int {
    with(|process| put(value, process.wide.graph_reserved))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(_stream: Handle, status: *mut c_int) -> c_int {
    with(|process| put(status, process.wide.is_capturing.into()))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(_stream: Handle, _mode: c_int) -> c_int {
    with(|process| {
        process.wide.is_capturing = true;
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamEndCapture(_stream: Handle, graph: *mut Handle) -> c_int {
    with(|process| {
        process.wide.is_capturing = false;
        0
    });
    cuGraphCreate(graph, 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(_stream: Handle) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(_event: Handle) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuThreadExchangeStreamCaptureMode(_mode: *mut c_int) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel_ptsz(
    f: Handle,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    shared: c_uint,
    _stream: Handle,
    _arguments: *mut Handle,
    extra: *mut Handle,
) -> c_int {
    launch_kernel(f, [gx, gy, gz], [bx, by, bz], shared, extra)
}

#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    _stream: Handle,
}

fn launch_described(config: *const Config, f: Handle, extra: *mut Handle) -> c_int {
    // SAFETY: the interface says that it is a description.
    let Config { grid, block, shared, .. } = unsafe { config.read() };
    launch_kernel(f, grid, block, shared, extra)
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    f: Handle,
    _arguments: *mut Handle,
    extra: *mut Handle,
) -> c_int {
    launch_described(config, f, extra)
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx_ptsz(
    config: *const Config,
    f: Handle,
    _arguments: *mut Handle,
    extra: *mut Handle,
) -> c_int {
    launch_described(config, f, extra)
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchCooperativeKernel(
    f: Handle,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    shared: c_uint,
    _stream: Handle,
    _arguments: *mut Handle,
) -> c_int {
    launch_kernel(f, [gx, gy, gz], [bx, by, bz], shared, std::ptr::null_mut())
}

/// The addresses of a function: for the older streams, and for a thread's own where that is another.
fn address_of_name(name: &str, version: c_int, is_of_thread: bool) -> Option<Handle> {
    let either =
        |legacy: *const (), of_thread: *const ()| Some(if is_of_thread { of_thread } else { legacy });
    let found = match name {
        "cuMemAlloc" if version >= 99_000 => Some(allocate_v9 as *const ()),
        "cuMemAlloc" => Some(cuMemAlloc_v2 as *const ()),
        "cuMemFree" => Some(cuMemFree_v2 as *const ()),
        "cuMemAllocPitch" => Some(cuMemAllocPitch_v2 as *const ()),
        "cuMemAllocManaged" => Some(cuMemAllocManaged as *const ()),
        "cuMemAllocAsync" => either(cuMemAllocAsync as *const (), cuMemAllocAsync_ptsz as *const ()),
        "cuMemAllocFromPoolAsync" => {
            either(cuMemAllocFromPoolAsync as *const (), cuMemAllocFromPoolAsync_ptsz as *const ())
        }
        "cuMemFreeAsync" => either(cuMemFreeAsync as *const (), cuMemFreeAsync_ptsz as *const ()),
        "cuMemGetInfo" => Some(cuMemGetInfo_v2 as *const ()),
        "cuDeviceTotalMem" => Some(cuDeviceTotalMem_v2 as *const ()),
        "cuMemCreate" => Some(cuMemCreate as *const ()),
        "cuLaunchKernel" => either(cuLaunchKernel as *const (), cuLaunchKernel_ptsz as *const ()),
        "cuLaunchKernelEx" => either(cuLaunchKernelEx as *const (), cuLaunchKernelEx_ptsz as *const ()),
        "cuGraphLaunch" => either(cuGraphLaunch as *const (), cuGraphLaunch_ptsz as *const ()),
        "cuInit" => Some(cuInit as *const ()),
        "cuDriverGetVersion" => Some(cuDriverGetVersion as *const ()),
        "cuFutureThing" => Some(cuFutureThing as *const ()),
        "cuGetProcAddress" if version >= 12_000 => Some(cuGetProcAddress_v2 as *const ()),
        "cuGetProcAddress" => Some(cuGetProcAddress as *const ()),
        _ => None,
    };
    found.map(|found| found as Handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuGetProcAddress(name: *const c_char, place: *mut Handle, version: c_int, flags: u64) -> c_int {
    let found = address_of_name(&text_at(name), version, flags & 2 != 0);
    put(place, found.unwrap_or(std::ptr::null_mut()));
    if found.is_some() { 0 } else { NOT_FOUND }
}

#[unsafe(no_mangle)]
extern "C" fn cuGetProcAddress_v2(
    name: *const c_char,
    place: *mut Handle,
    version: c_int,
    flags: u64,
    status: *mut c_int,
) -> c_int {
    let code = cuGetProcAddress(name, place, version, flags);
    if !status.is_null() {
        put(status, i32::from(code != 0));
    }
    code
}
