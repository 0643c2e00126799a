//! Memory: what is taken of the card is taken of the slice first, and what is asked of the card is answered of the slice.
//!
//! | of the driver's                          | here                                                                       |
//! |------------------------------------------|----------------------------------------------------------------------------|
//! | linear, pitched, managed memory           | its bytes, until it is freed or its context ends                            |
//! | arrays, mipmapped arrays                  | their elements' bytes                                                       |
//! | pools                                    | what the driver says that the pool has of the card, not what is used of it  |
//! | memory without an address                 | until it is released by all and mapped nowhere; for good once it was exported |
//! | memory of graphs                          | from the node on; until the graph is destroyed and graph memory is trimmed   |
//! | stacks, heap and output of kernels        | what the context's limits reserve                                           |
//! | sparse arrays, functions of 32-bit times  | refused                                                                     |
//! | contexts, modules' own code and variables | not counted: the node's watchdog allows for them                            |

use crate::book::{self, Kind, Row, UNCOUNTED};
use crate::state::{slice, state};
use crate::turns;
use crate::{Code, Handle, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, SUCCESS, real};

const RESERVED: i32 = 5;
const USED: i32 = 7;
/// Of an allocation's or a pool's location: a card.
const ON_DEVICE: u32 = 1;

fn context() -> u64 {
    let mut context: Handle = core::ptr::null_mut();
    real!(cuCtxGetCurrent(&raw mut context => *mut Handle));
    context as u64
}

/// What an answer's place holds after a success.
fn answer<T: Copy>(place: *const T) -> T {
    // SAFETY: the driver has just written there, as its success says.
    unsafe { *place }
}

/// Takes bytes of the slice; where there are not so many, pools give back what they do not use.
fn take(bytes: u64) -> bool {
    if book::take(bytes) {
        return true;
    }
    each_pool(|pool| {
        real!(cuMemPoolTrimTo(pool => Handle, 0 => usize));
        settle(pool);
    });
    book::take(bytes)
}

/// Takes bytes of the slice for what the driver allocates, and writes it down.
fn allocate(
    kind: Kind,
    bytes: u64,
    other: u64,
    call: impl FnOnce() -> Code,
    key: impl FnOnce() -> u64,
) -> Code {
    if !take(bytes) {
        return OUT_OF_MEMORY;
    }
    let code = call();
    if code != SUCCESS {
        book::give(bytes);
        return code;
    }
    // Where it cannot be written down it counts until the process ends.
    let key = key();
    book::with(|book| book.insert(Row::new(kind, key, bytes, other)));
    code
}

fn free(kind: Kind, key: u64, call: impl FnOnce() -> Code) -> Code {
    // Before the driver gives the key to another.
    let row = book::with(|book| book.remove(kind, key)).flatten();
    let code = call();
    if let Some(row) = row {
        if code == SUCCESS {
            book::give(row.bytes);
        } else {
            book::with(|book| book.insert(row));
        }
    }
    code
}

/// All that a context held is free once it has ended.
pub fn context_ended(context: u64) {
    let is_its = |row: &Row| (row.is(Kind::Address) || row.is(Kind::Array)) && row.other == context;
    while let Some(row) = book::with(|book| book.remove_any(is_its)).flatten() {
        book::give(row.bytes);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc(_address: *mut u32, _bytes: u32) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    let call = || real!(cuMemAlloc_v2(address => *mut u64, bytes => usize));
    allocate(Kind::Address, bytes as u64, context(), call, || answer(address))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocPitch(
    _address: *mut u32,
    _pitch: *mut u32,
    _width: u32,
    _height: u32,
    _element: u32,
) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocPitch_v2(
    address: *mut u64,
    pitch: *mut usize,
    width: usize,
    height: usize,
    element: u32,
) -> Code {
    /// Rows begin at multiples of this.
    const PITCH: u64 = 512;
    let bytes = (width as u64).div_ceil(PITCH).saturating_mul(PITCH).saturating_mul(height as u64);
    let call = || {
        real!(cuMemAllocPitch_v2(
            address => *mut u64, pitch => *mut usize, width => usize, height => usize, element => u32
        ))
    };
    allocate(Kind::Address, bytes, context(), call, || answer(address))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocManaged(address: *mut u64, bytes: usize, flags: u32) -> Code {
    let call = || real!(cuMemAllocManaged(address => *mut u64, bytes => usize, flags => u32));
    allocate(Kind::Address, bytes as u64, context(), call, || answer(address))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree(_address: u32) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Code {
    free(Kind::Address, address, || real!(cuMemFree_v2(address => u64)))
}

fn pool_attribute(pool: Handle, attribute: i32) -> Option<u64> {
    let mut value = 0_u64;
    let code = real!(cuMemPoolGetAttribute(pool => Handle, attribute => i32, &raw mut value => *mut u64));
    (code == SUCCESS).then_some(value)
}

/// The pool that allocations without one come from; null: this driver has none.
fn current_pool() -> Handle {
    let (mut device, mut pool) = (0, core::ptr::null_mut());
    if real!(cuCtxGetDevice(&raw mut device => *mut i32)) == SUCCESS {
        real!(cuDeviceGetMemPool(&raw mut pool => *mut Handle, device => i32));
    }
    pool
}

/// Counts a pool for as much as it has of the card. False: it has grown beyond the slice.
fn settle(pool: Handle) -> bool {
    let Some(reserved) = pool_attribute(pool, RESERVED) else { return true };
    let counted = book::with(|book| book.find(Kind::Pool, pool as u64).map(|row| row.bytes)).flatten();
    let counted = counted.unwrap_or(0);
    if counted == UNCOUNTED {
        return true;
    }
    if reserved > counted && !book::take(reserved - counted) {
        return false;
    }
    count(pool, reserved);
    book::give(counted.saturating_sub(reserved));
    true
}

fn count(pool: Handle, bytes: u64) {
    book::with(|book| match book.find(Kind::Pool, pool as u64) {
        Some(row) => row.bytes = bytes,
        None => _ = book.insert(Row::new(Kind::Pool, pool as u64, bytes, 0)),
    });
}

/// Each pool that is known; a pool that comes meanwhile may be left out.
fn each_pool(run: impl Fn(Handle)) {
    let mut from = 0;
    while let Some((row, next)) = book::with(|book| book.next(Kind::Pool, from)).flatten() {
        from = next;
        if row.bytes != UNCOUNTED {
            run(row.key as Handle);
        }
    }
}

/// Takes what a pool must grow by for so many bytes.
fn take_for(pool: Handle, bytes: u64) -> bool {
    settle(pool);
    let (used, reserved) =
        (pool_attribute(pool, USED).unwrap_or(0), pool_attribute(pool, RESERVED).unwrap_or(0));
    let more = used.saturating_add(bytes).saturating_sub(reserved);
    if book::take(more) {
        let counted = book::with(|book| book.find(Kind::Pool, pool as u64).map(|row| row.bytes)).flatten();
        count(pool, counted.unwrap_or(0).saturating_add(more));
        return true;
    }
    // What the pools do not use may be enough; this one then has to grow by all of it.
    each_pool(|pool| {
        real!(cuMemPoolTrimTo(pool => Handle, 0 => usize));
        settle(pool);
    });
    let (used, reserved) =
        (pool_attribute(pool, USED).unwrap_or(0), pool_attribute(pool, RESERVED).unwrap_or(0));
    let more = used.saturating_add(bytes).saturating_sub(reserved);
    let is_taken = book::take(more);
    if is_taken {
        count(pool, reserved.saturating_add(more));
    }
    is_taken
}

/// An allocation in a stream's order.
fn allocate_from(
    pool: Handle,
    address: *mut u64,
    bytes: u64,
    stream: u64,
    call: impl FnOnce() -> Code,
) -> Code {
    if turns::is_capturing(stream) {
        // It becomes a node of a graph.
        return allocate_in_graph(bytes, None, call);
    }
    let is_counted = !pool.is_null()
        && book::with(|book| book.find(Kind::Pool, pool as u64).is_none_or(|row| row.bytes != UNCOUNTED))
            .unwrap_or(true);
    if !is_counted {
        return call();
    }
    if !take_for(pool, bytes) {
        return OUT_OF_MEMORY;
    }
    let code = call();
    if !settle(pool) && code == SUCCESS {
        // The driver grew the pool by more than was needed, and beyond the slice.
        let address = answer(address);
        real!(cuMemFreeAsync(address => u64, stream as Handle => Handle));
        real!(cuStreamSynchronize(stream as Handle => Handle));
        real!(cuMemPoolTrimTo(pool => Handle, 0 => usize));
        settle(pool);
        return OUT_OF_MEMORY;
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: Handle) -> Code {
    let call = || real!(cuMemAllocAsync(address => *mut u64, bytes => usize, stream => Handle));
    allocate_from(current_pool(), address, bytes as u64, turns::legacy(stream), call)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocAsync_ptsz(address: *mut u64, bytes: usize, stream: Handle) -> Code {
    let call = || real!(cuMemAllocAsync_ptsz(address => *mut u64, bytes => usize, stream => Handle));
    allocate_from(current_pool(), address, bytes as u64, turns::of_thread(stream), call)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocFromPoolAsync(
    address: *mut u64,
    bytes: usize,
    pool: Handle,
    stream: Handle,
) -> Code {
    let call = || real!(cuMemAllocFromPoolAsync(address => *mut u64, bytes => usize, pool => Handle, stream => Handle));
    allocate_from(pool, address, bytes as u64, turns::legacy(stream), call)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocFromPoolAsync_ptsz(
    address: *mut u64,
    bytes: usize,
    pool: Handle,
    stream: Handle,
) -> Code {
    let call = || real!(cuMemAllocFromPoolAsync_ptsz(address => *mut u64, bytes => usize, pool => Handle, stream => Handle));
    allocate_from(pool, address, bytes as u64, turns::of_thread(stream), call)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> Code {
    free(Kind::Address, address, || real!(cuMemFreeAsync(address => u64, stream => Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync_ptsz(address: u64, stream: Handle) -> Code {
    free(Kind::Address, address, || real!(cuMemFreeAsync_ptsz(address => u64, stream => Handle)))
}

/// The kind of place that properties of an allocation or a pool name: their third word.
fn location(properties: *const u32) -> Option<u32> {
    if properties.is_null() {
        return None;
    }
    // SAFETY: both begin with two words, and a location after them.
    Some(unsafe { *properties.add(2) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolCreate(pool: *mut Handle, properties: *const u32) -> Code {
    let Some(kind) = location(properties) else { return INVALID_VALUE };
    let code = real!(cuMemPoolCreate(pool => *mut Handle, properties => *const u32));
    if code == SUCCESS && kind != ON_DEVICE {
        count(answer(pool), UNCOUNTED);
    } else if code == SUCCESS {
        settle(answer(pool));
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolDestroy(pool: Handle) -> Code {
    let used = pool_attribute(pool, USED).unwrap_or(0);
    let code = real!(cuMemPoolDestroy(pool => Handle));
    if code == SUCCESS
        && let Some(row) = book::with(|book| book.remove(Kind::Pool, pool as u64)).flatten()
        && row.bytes != UNCOUNTED
    {
        // What is in use outlives the pool; nobody will tell when it ends.
        book::give(row.bytes.saturating_sub(used));
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolTrimTo(pool: Handle, bytes: usize) -> Code {
    let code = real!(cuMemPoolTrimTo(pool => Handle, bytes => usize));
    settle(pool);
    code
}

/// `CUDA_ARRAY_DESCRIPTOR`, and what `CUDA_ARRAY3D_DESCRIPTOR` has of it.
fn array_bytes(sides: [usize; 3], format: u32, channels: u32) -> u64 {
    let element: u64 = match format {
        0x01 | 0x08 => 1,
        0x02 | 0x09 | 0x10 => 2,
        0x03 | 0x0a | 0x20 => 4,
        // Compressed and planar ones: no element of theirs has more.
        _ => 16,
    };
    let elements =
        sides.into_iter().fold(1_u64, |product, side| product.saturating_mul((side as u64).max(1)));
    elements.saturating_mul(element).saturating_mul(u64::from(channels.max(1)))
}

#[repr(C)]
pub struct Flat {
    width: usize,
    height: usize,
    format: u32,
    channels: u32,
}

#[repr(C)]
pub struct Deep {
    width: usize,
    height: usize,
    depth: usize,
    format: u32,
    channels: u32,
    flags: u32,
}

const SPARSE: u32 = 0x40;

fn deep_bytes(shape: *const Deep) -> Result<u64, Code> {
    if shape.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller's description, by the interface.
    let shape = unsafe { &*shape };
    if shape.flags & SPARSE != 0 {
        return Err(NOT_SUPPORTED);
    }
    Ok(array_bytes([shape.width, shape.height, shape.depth], shape.format, shape.channels))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuArrayCreate(_array: *mut Handle, _shape: *const Flat) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuArrayCreate_v2(array: *mut Handle, shape: *const Flat) -> Code {
    if shape.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's description, by the interface.
    let of = unsafe { &*shape };
    let bytes = array_bytes([of.width, of.height, 1], of.format, of.channels);
    let call = || real!(cuArrayCreate_v2(array => *mut Handle, shape => *const Flat));
    allocate(Kind::Array, bytes, context(), call, || answer(array) as u64)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuArray3DCreate(_array: *mut Handle, _shape: *const Deep) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuArray3DCreate_v2(array: *mut Handle, shape: *const Deep) -> Code {
    let call = || real!(cuArray3DCreate_v2(array => *mut Handle, shape => *const Deep));
    match deep_bytes(shape) {
        Ok(bytes) => allocate(Kind::Array, bytes, context(), call, || answer(array) as u64),
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuArrayDestroy(array: Handle) -> Code {
    free(Kind::Array, array as u64, || real!(cuArrayDestroy(array => Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMipmappedArrayCreate(array: *mut Handle, shape: *const Deep, levels: u32) -> Code {
    let call = || real!(cuMipmappedArrayCreate(array => *mut Handle, shape => *const Deep, levels => u32));
    match deep_bytes(shape) {
        // Each level has at most half of the one before along a side; flat ones sum to a third, lines to as much again.
        Ok(bytes) if levels > 1 => {
            allocate(Kind::Array, bytes.saturating_mul(2), context(), call, || answer(array) as u64)
        }
        Ok(bytes) => allocate(Kind::Array, bytes, context(), call, || answer(array) as u64),
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMipmappedArrayDestroy(array: Handle) -> Code {
    free(Kind::Array, array as u64, || real!(cuMipmappedArrayDestroy(array => Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemCreate(memory: *mut u64, bytes: usize, properties: *const u32, flags: u64) -> Code {
    let call =
        || real!(cuMemCreate(memory => *mut u64, bytes => usize, properties => *const u32, flags => u64));
    match location(properties) {
        None => INVALID_VALUE,
        Some(ON_DEVICE) => allocate(Kind::Memory, bytes as u64, 0, call, || answer(memory)),
        Some(_) => call(),
    }
}

/// Gives a piece of memory back once nobody holds it and it stands nowhere.
fn let_go(memory: u64, change: impl FnOnce(&mut Row)) {
    let bytes = book::with(|book| {
        let row = book.find(Kind::Memory, memory)?;
        change(row);
        let is_free = row.holds == 0 && row.maps == 0 && row.is_shared == 0;
        if is_free { book.remove(Kind::Memory, memory).map(|row| row.bytes) } else { None }
    });
    book::give(bytes.flatten().unwrap_or(0));
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemRelease(memory: u64) -> Code {
    let code = real!(cuMemRelease(memory => u64));
    if code == SUCCESS {
        let_go(memory, |row| row.holds = row.holds.saturating_sub(1));
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemMap(address: u64, bytes: usize, offset: usize, memory: u64, flags: u64) -> Code {
    let code = real!(cuMemMap(address => u64, bytes => usize, offset => usize, memory => u64, flags => u64));
    if code == SUCCESS {
        book::with(|book| {
            let Some(row) = book.find(Kind::Memory, memory) else { return };
            row.maps += 1;
            if !book.insert(Row::new(Kind::Mapping, address, bytes as u64, memory))
                && let Some(row) = book.find(Kind::Memory, memory)
            {
                // Nobody will know when it ends.
                row.is_shared = 1;
            }
        });
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemUnmap(address: u64, bytes: usize) -> Code {
    let code = real!(cuMemUnmap(address => u64, bytes => usize));
    if code == SUCCESS {
        let end = address.saturating_add(bytes as u64);
        let is_within = |row: &Row| row.is(Kind::Mapping) && row.key >= address && row.key < end;
        while let Some(row) = book::with(|book| book.remove_any(is_within)).flatten() {
            let_go(row.other, |row| row.maps = row.maps.saturating_sub(1));
        }
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemRetainAllocationHandle(memory: *mut u64, address: *mut core::ffi::c_void) -> Code {
    let code = real!(cuMemRetainAllocationHandle(memory => *mut u64, address => *mut core::ffi::c_void));
    if code == SUCCESS {
        let memory = answer(memory);
        book::with(|book| book.find(Kind::Memory, memory).map(|row| row.holds += 1));
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemExportToShareableHandle(into: Handle, memory: u64, kind: i32, flags: u64) -> Code {
    let code = real!(cuMemExportToShareableHandle(into => Handle, memory => u64, kind => i32, flags => u64));
    if code == SUCCESS {
        // Whoever gets it may keep it for longer than this process does.
        book::with(|book| book.find(Kind::Memory, memory).map(|row| row.is_shared = 1));
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemMapArrayAsync(_maps: Handle, _count: u32, _stream: Handle) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemMapArrayAsync_ptsz(_maps: Handle, _count: u32, _stream: Handle) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo(_free: *mut u32, _total: *mut u32) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    let code = real!(cuMemGetInfo_v2(free => *mut usize, total => *mut usize));
    if code != SUCCESS {
        return code;
    }
    each_pool(|pool| _ = settle(pool));
    let (Some(slice), Some(held)) = (slice(), book::held()) else { return crate::UNKNOWN };
    let left = slice.memory_bytes.saturating_sub(held).min(answer(free) as u64);
    // SAFETY: the driver has written there.
    unsafe { (*free, *total) = (left as usize, slice.memory_bytes as usize) };
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem(_bytes: *mut u32, _device: i32) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) -> Code {
    let code = real!(cuDeviceTotalMem_v2(bytes => *mut usize, device => i32));
    if code != SUCCESS {
        return code;
    }
    let Some(slice) = slice() else { return crate::UNKNOWN };
    // SAFETY: the driver has written there.
    unsafe { *bytes = slice.memory_bytes as usize };
    code
}

/// Memory that every context reserves for its kernels' stacks, output and heap.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetLimit(limit: i32, value: usize) -> Code {
    const STACK: i32 = 0;
    const HEAP: i32 = 2;
    const PROCESSORS: i32 = 16;
    const THREADS_OF_EACH: i32 = 39;
    let call = || real!(cuCtxSetLimit(limit => i32, value => usize));
    if !(STACK..=HEAP).contains(&limit) {
        return call();
    }
    let mut wanted = value as u64;
    if limit == STACK {
        let mut device = 0;
        real!(cuCtxGetDevice(&raw mut device => *mut i32));
        for attribute in [PROCESSORS, THREADS_OF_EACH] {
            let mut count = 0;
            real!(cuDeviceGetAttribute(&raw mut count => *mut i32, attribute => i32, device => i32));
            wanted = wanted.saturating_mul(u64::from(count.unsigned_abs()).max(1));
        }
    }
    let before = book::with(|book| book.limits[limit as usize]).unwrap_or(0);
    if wanted > before && !take(wanted - before) {
        return OUT_OF_MEMORY;
    }
    let code = call();
    if code == SUCCESS {
        book::with(|book| book.limits[limit as usize] = wanted);
        book::give(before.saturating_sub(wanted));
    } else {
        book::give(wanted.saturating_sub(before));
    }
    code
}

/// Memory that a graph takes when it runs; `graph`: whose it is, where that is known.
fn allocate_in_graph(bytes: u64, graph: Option<u64>, call: impl FnOnce() -> Code) -> Code {
    if bytes == 0 {
        return call();
    }
    if !take(bytes) {
        return OUT_OF_MEMORY;
    }
    let code = call();
    if code != SUCCESS {
        book::give(bytes);
        return code;
    }
    book::with(|book| {
        let Some(graph) = graph else {
            book.graphs_gone = book.graphs_gone.saturating_add(bytes);
            return;
        };
        match book.find(Kind::Graph, graph) {
            Some(row) => row.bytes = row.bytes.saturating_add(bytes),
            None => _ = book.insert(Row::new(Kind::Graph, graph, bytes, 0)),
        }
    });
    code
}

/// Bytes of an allocating node: `offset` is where they stand in its description.
fn node_bytes(description: *const u8, offset: usize) -> u64 {
    // SAFETY: the caller's description, by the interface; the driver reads the same bytes.
    unsafe { description.add(offset).cast::<u64>().read_unaligned() }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddMemAllocNode(
    node: *mut Handle,
    graph: Handle,
    after: *const Handle,
    count: usize,
    of: *mut u8,
) -> Code {
    /// Behind the pool's properties and the list of accesses.
    const BYTES_AT: usize = 104;
    if of.is_null() {
        return INVALID_VALUE;
    }
    let call = || {
        real!(cuGraphAddMemAllocNode(
            node => *mut Handle, graph => Handle, after => *const Handle, count => usize, of => *mut u8
        ))
    };
    allocate_in_graph(node_bytes(of, BYTES_AT), Some(graph as u64), call)
}

/// What a node of any kind allocates.
fn any_node_bytes(of: *const u8) -> u64 {
    const ALLOCATES: u32 = 10;
    const BYTES_AT: usize = 16 + 104;
    // SAFETY: the caller's description, by the interface; it begins with its kind.
    let kind = unsafe { of.cast::<u32>().read_unaligned() };
    if kind == ALLOCATES { node_bytes(of, BYTES_AT) } else { 0 }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddNode(
    node: *mut Handle,
    graph: Handle,
    after: *const Handle,
    count: usize,
    of: *mut u8,
) -> Code {
    if of.is_null() {
        return INVALID_VALUE;
    }
    let call = || {
        real!(cuGraphAddNode(
            node => *mut Handle, graph => Handle, after => *const Handle, count => usize, of => *mut u8
        ))
    };
    allocate_in_graph(any_node_bytes(of), Some(graph as u64), call)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphAddNode_v2(
    node: *mut Handle,
    graph: Handle,
    after: *const Handle,
    edges: *const u8,
    count: usize,
    of: *mut u8,
) -> Code {
    if of.is_null() {
        return INVALID_VALUE;
    }
    let call = || {
        real!(cuGraphAddNode_v2(
            node => *mut Handle, graph => Handle, after => *const Handle, edges => *const u8, count => usize, of => *mut u8
        ))
    };
    allocate_in_graph(any_node_bytes(of), Some(graph as u64), call)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: Handle) -> Code {
    let code = real!(cuGraphDestroy(graph => Handle));
    if code == SUCCESS {
        book::with(|book| {
            if let Some(row) = book.remove(Kind::Graph, graph as u64) {
                book.graphs_gone = book.graphs_gone.saturating_add(row.bytes);
            }
        });
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGraphMemTrim(device: i32) -> Code {
    const RESERVED_NOW: i32 = 2;
    let code = real!(cuDeviceGraphMemTrim(device => i32));
    let mut reserved = 0_u64;
    let asked = real!(cuDeviceGetGraphMemAttribute(device => i32, RESERVED_NOW => i32, &raw mut reserved => *mut u64));
    if code == SUCCESS && asked == SUCCESS && state().is_some() {
        let freed = book::with(|book| {
            let freed = book.graphs_gone.saturating_sub(reserved);
            book.graphs_gone -= freed;
            freed
        });
        book::give(freed.unwrap_or(0));
    }
    code
}
