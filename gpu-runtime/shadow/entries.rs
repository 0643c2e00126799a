//! The driver's functions that are hooked, those that hooks call, and how a symbol becomes a hook.

use core::ffi::{CStr, c_char, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::launch::*;
use crate::memory::*;
use crate::{Code, INVALID_VALUE, NOT_FOUND, NOT_SUPPORTED, sys};

/// The driver's own library, as it stands beside this one.
const REAL: &CStr = c"libcuda-real.so.1";

macro_rules! entries {
    (hooked: $($hooked:ident)*; called: $($called:ident)*;) => {
        /// A function of the driver's.
        #[derive(Clone, Copy)]
        #[repr(usize)]
        #[allow(dead_code, reason = "some are hooked to be refused")]
        pub enum Entry { $($hooked,)* $($called,)* Count }

        const COUNT: usize = Entry::Count as usize;
        static NAMES: [&CStr; COUNT] = [
            $(name(concat!(stringify!($hooked), "\0")),)* $(name(concat!(stringify!($called), "\0")),)*
        ];
        struct Hooks([*const c_void; COUNT]);
        // SAFETY: addresses of functions, never changed.
        unsafe impl Sync for Hooks {}
        static HOOKS: Hooks = Hooks([
            $($hooked as *const c_void,)* $({ let _ = Entry::$called; core::ptr::null() },)*
        ]);
    };
}

const fn name(text: &str) -> &CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(name) => name,
        Err(_) => c"",
    }
}

entries! {
    hooked:
        cuInit cuGetProcAddress cuGetProcAddress_v2
        cuMemAlloc cuMemAlloc_v2 cuMemAllocPitch cuMemAllocPitch_v2 cuMemAllocManaged cuMemFree cuMemFree_v2
        cuMemAllocAsync cuMemAllocAsync_ptsz cuMemAllocFromPoolAsync cuMemAllocFromPoolAsync_ptsz
        cuMemFreeAsync cuMemFreeAsync_ptsz cuMemPoolCreate cuMemPoolDestroy cuMemPoolTrimTo
        cuArrayCreate cuArrayCreate_v2 cuArray3DCreate cuArray3DCreate_v2 cuArrayDestroy
        cuMipmappedArrayCreate cuMipmappedArrayDestroy
        cuMemCreate cuMemRelease cuMemMap cuMemUnmap cuMemRetainAllocationHandle cuMemExportToShareableHandle
        cuMemMapArrayAsync cuMemMapArrayAsync_ptsz
        cuMemGetInfo cuMemGetInfo_v2 cuDeviceTotalMem cuDeviceTotalMem_v2 cuCtxSetLimit
        cuGraphAddMemAllocNode cuGraphAddNode cuGraphAddNode_v2 cuGraphDestroy cuDeviceGraphMemTrim
        cuLaunchKernel cuLaunchKernel_ptsz cuLaunchKernelEx cuLaunchKernelEx_ptsz
        cuLaunchCooperativeKernel cuLaunchCooperativeKernel_ptsz cuLaunchCooperativeKernelMultiDevice
        cuLaunch cuLaunchGrid cuLaunchGridAsync cuGraphLaunch cuGraphLaunch_ptsz
        cuStreamBeginCapture cuStreamBeginCapture_v2 cuStreamBeginCapture_ptsz cuStreamBeginCapture_v2_ptsz
        cuStreamBeginCaptureToGraph cuStreamBeginCaptureToGraph_ptsz cuStreamEndCapture cuStreamEndCapture_ptsz
        cuStreamDestroy cuStreamDestroy_v2
        cuCtxDestroy cuCtxDestroy_v2 cuDevicePrimaryCtxReset cuDevicePrimaryCtxReset_v2
        cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2;
    called:
        cuCtxGetCurrent cuCtxSetCurrent cuCtxGetDevice cuDeviceGetMemPool cuMemPoolGetAttribute cuStreamSynchronize
        cuDeviceGetAttribute cuDeviceGetGraphMemAttribute cuStreamIsCapturing cuDevicePrimaryCtxRetain cuDevicePrimaryCtxGetState
        cuEventCreate cuEventRecord cuEventSynchronize cuEventElapsedTime cuEventDestroy_v2 cuThreadExchangeStreamCaptureMode;
}

static FOUND: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(core::ptr::null_mut()) }; COUNT];
static LIBRARY: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
static IS_BOUND: AtomicU32 = AtomicU32::new(0);

fn bind() {
    let library = sys::open_library(REAL);
    LIBRARY.store(library, Ordering::Release);
    if !library.is_null() {
        for (place, name) in FOUND.iter().zip(NAMES) {
            place.store(sys::symbol(library, name), Ordering::Release);
        }
    }
    // Threads that come here at once find the same.
    IS_BOUND.store(1, Ordering::Release);
}

/// The driver's own function; null: this driver has none of that name.
#[inline]
pub fn real(entry: Entry) -> *mut c_void {
    if IS_BOUND.load(Ordering::Acquire) == 0 {
        bind();
    }
    FOUND[entry as usize].load(Ordering::Relaxed)
}

/// A function of the C library, which the driver's library depends on.
pub fn linker(name: &CStr) -> *mut c_void {
    if IS_BOUND.load(Ordering::Acquire) == 0 {
        bind();
    }
    let library = LIBRARY.load(Ordering::Acquire);
    if library.is_null() { library } else { sys::symbol(library, name) }
}

/// Calls the driver's own function with these arguments of these types.
#[macro_export]
macro_rules! real {
    ($entry:ident($($value:expr => $kind:ty),* $(,)?)) => {{
        let found = $crate::entries::real($crate::entries::Entry::$entry);
        if found.is_null() {
            $crate::NOT_SUPPORTED
        } else {
            // SAFETY: the driver's function of this name has this form by `cuda.h`; its arguments are the caller's own, or
            // pointers to locals.
            unsafe { core::mem::transmute::<*mut core::ffi::c_void, unsafe extern "C" fn($($kind),*) -> $crate::Code>(found)($($value),*) }
        }
    }};
}

/// A name without what tells its variants apart.
fn base(name: &[u8]) -> &[u8] {
    let name = name.strip_suffix(b"_ptsz").unwrap_or(name);
    name.strip_suffix(b"_v2").or(name.strip_suffix(b"_v3")).unwrap_or(name)
}

/// What `cuGetProcAddress` hands out for what the driver answered: a hook where that is a function that is hooked, and nothing where
/// it is another of the same name.
fn hook_of(found: *mut c_void, name: &[u8]) -> *mut c_void {
    for (at, hook) in HOOKS.0.iter().enumerate() {
        // A driver that is not linked to itself answers with the hook at once.
        if !hook.is_null() && (FOUND[at].load(Ordering::Relaxed) == found || hook.cast_mut() == found) {
            return hook.cast_mut();
        }
    }
    let is_hooked =
        NAMES.iter().zip(HOOKS.0).any(|(own, hook)| !hook.is_null() && base(own.to_bytes()) == base(name));
    if is_hooked { core::ptr::null_mut() } else { found }
}

/// Puts the hook where the driver's answer stands.
fn hand_out(code: Code, name: *const c_char, place: *mut *mut c_void, status: *mut i32) -> Code {
    const SYMBOL_NOT_FOUND: i32 = 1;
    if code != 0 || name.is_null() || place.is_null() {
        return code;
    }
    // SAFETY: the driver has just read the name and written the answer there.
    let (name, found) = unsafe { (CStr::from_ptr(name), *place) };
    if found.is_null() {
        return code;
    }
    let hook = hook_of(found, name.to_bytes());
    // SAFETY: as above.
    unsafe { *place = hook };
    if !hook.is_null() {
        return code;
    }
    if !status.is_null() {
        // SAFETY: the caller gave room for it.
        unsafe { *status = SYMBOL_NOT_FOUND };
    }
    NOT_FOUND
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetProcAddress(
    name: *const c_char,
    place: *mut *mut c_void,
    version: i32,
    flags: u64,
) -> Code {
    let code = real!(cuGetProcAddress(name => *const c_char, place => *mut *mut c_void, version => i32, flags => u64));
    hand_out(code, name, place, core::ptr::null_mut())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetProcAddress_v2(
    name: *const c_char,
    place: *mut *mut c_void,
    version: i32,
    flags: u64,
    status: *mut i32,
) -> Code {
    let code = real!(cuGetProcAddress_v2(
        name => *const c_char, place => *mut *mut c_void, version => i32, flags => u64, status => *mut i32
    ));
    hand_out(code, name, place, status)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: u32) -> Code {
    if crate::state::slice().is_none() || crate::state::state().is_none() {
        return crate::UNKNOWN;
    }
    real!(cuInit(flags => u32))
}

/// Whether this driver's `cuGetProcAddress` answers with functions that can be told apart: 0, or the number of the first name for
/// which it does not, from 1. `-1`: the driver's library is not beside this one. For the node, before it offers shares.
#[unsafe(no_mangle)]
pub extern "C" fn makai_shadow_check() -> i32 {
    const VERSIONS: [i32; 3] = [11_000, 12_000, 13_000];
    const STREAMS: [u64; 3] = [0, 1, 2];
    if real(Entry::cuInit).is_null() {
        return -1;
    }
    for (at, own) in NAMES.iter().enumerate().filter(|(at, _)| !HOOKS.0[*at].is_null()) {
        let mut text = [0_u8; 64];
        let short = base(own.to_bytes());
        let Some(room) = text.get_mut(..short.len()) else { return at as i32 + 1 };
        room.copy_from_slice(short);
        for (version, streams) in
            VERSIONS.into_iter().flat_map(|version| STREAMS.map(|streams| (version, streams)))
        {
            let (mut found, mut status) = (core::ptr::null_mut(), 0);
            let name = text.as_ptr().cast::<c_char>();
            let place = &raw mut found;
            let code = if real(Entry::cuGetProcAddress_v2).is_null() {
                real!(cuGetProcAddress(name => *const c_char, place => *mut *mut c_void, version => i32, streams => u64))
            } else {
                let status = &raw mut status;
                real!(cuGetProcAddress_v2(
                    name => *const c_char, place => *mut *mut c_void, version => i32, streams => u64, status => *mut i32
                ))
            };
            if code == 0 && !found.is_null() && hook_of(found, short).is_null() {
                return at as i32 + 1;
            }
            if code != 0 && code != NOT_SUPPORTED && code != NOT_FOUND && code != INVALID_VALUE {
                return at as i32 + 1;
            }
        }
    }
    0
}
