//! Launches: each is made within a turn. And what turns must know of: captures begin, streams and contexts end.

use crate::memory::context_ended;
use crate::turns::{self, launch, legacy, of_thread};
use crate::{Code, Handle, INVALID_VALUE, NOT_SUPPORTED, SUCCESS, real};

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel(
    f: Handle,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: Handle,
    arguments: Handle,
    extra: Handle,
) -> Code {
    launch(f as u64, legacy(stream), || {
        real!(cuLaunchKernel(
            f => Handle, gx => u32, gy => u32, gz => u32, bx => u32, by => u32, bz => u32, shared => u32, stream => Handle,
            arguments => Handle, extra => Handle
        ))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel_ptsz(
    f: Handle,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: Handle,
    arguments: Handle,
    extra: Handle,
) -> Code {
    launch(f as u64, of_thread(stream), || {
        real!(cuLaunchKernel_ptsz(
            f => Handle, gx => u32, gy => u32, gz => u32, bx => u32, by => u32, bz => u32, shared => u32, stream => Handle,
            arguments => Handle, extra => Handle
        ))
    })
}

/// Stream of a `CUlaunchConfig`: behind seven numbers, aligned.
fn stream_of(config: *const u8) -> Handle {
    // SAFETY: the caller's description, by the interface; the driver reads the same bytes.
    unsafe { config.add(32).cast::<Handle>().read_unaligned() }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernelEx(config: *const u8, f: Handle, arguments: Handle, extra: Handle) -> Code {
    if config.is_null() {
        return INVALID_VALUE;
    }
    launch(
        f as u64,
        legacy(stream_of(config)),
        || real!(cuLaunchKernelEx(config => *const u8, f => Handle, arguments => Handle, extra => Handle)),
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernelEx_ptsz(
    config: *const u8,
    f: Handle,
    arguments: Handle,
    extra: Handle,
) -> Code {
    if config.is_null() {
        return INVALID_VALUE;
    }
    launch(
        f as u64,
        of_thread(stream_of(config)),
        || real!(cuLaunchKernelEx_ptsz(config => *const u8, f => Handle, arguments => Handle, extra => Handle)),
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchCooperativeKernel(
    f: Handle,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: Handle,
    arguments: Handle,
) -> Code {
    launch(f as u64, legacy(stream), || {
        real!(cuLaunchCooperativeKernel(
            f => Handle, gx => u32, gy => u32, gz => u32, bx => u32, by => u32, bz => u32, shared => u32, stream => Handle,
            arguments => Handle
        ))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchCooperativeKernel_ptsz(
    f: Handle,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: Handle,
    arguments: Handle,
) -> Code {
    launch(f as u64, of_thread(stream), || {
        real!(cuLaunchCooperativeKernel_ptsz(
            f => Handle, gx => u32, gy => u32, gz => u32, bx => u32, by => u32, bz => u32, shared => u32, stream => Handle,
            arguments => Handle
        ))
    })
}

/// A slice is a share of one card.
#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchCooperativeKernelMultiDevice(_launches: Handle, _count: u32, _flags: u32) -> Code {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunch(f: Handle) -> Code {
    launch(f as u64, legacy(core::ptr::null_mut()), || real!(cuLaunch(f => Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchGrid(f: Handle, width: i32, height: i32) -> Code {
    launch(
        f as u64,
        legacy(core::ptr::null_mut()),
        || real!(cuLaunchGrid(f => Handle, width => i32, height => i32)),
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchGridAsync(f: Handle, width: i32, height: i32, stream: Handle) -> Code {
    launch(
        f as u64,
        legacy(stream),
        || real!(cuLaunchGridAsync(f => Handle, width => i32, height => i32, stream => Handle)),
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(graph: Handle, stream: Handle) -> Code {
    launch(graph as u64, legacy(stream), || real!(cuGraphLaunch(graph => Handle, stream => Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch_ptsz(graph: Handle, stream: Handle) -> Code {
    launch(graph as u64, of_thread(stream), || real!(cuGraphLaunch_ptsz(graph => Handle, stream => Handle)))
}

/// A capture that begins; where it does not, it is as if it had ended.
fn begin(call: impl FnOnce() -> Code) -> Code {
    turns::capture_begins();
    let code = call();
    if code != SUCCESS {
        turns::capture_ended();
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture(stream: Handle) -> Code {
    begin(|| real!(cuStreamBeginCapture(stream => Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_ptsz(stream: Handle) -> Code {
    begin(|| real!(cuStreamBeginCapture_ptsz(stream => Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: Handle, mode: i32) -> Code {
    begin(|| real!(cuStreamBeginCapture_v2(stream => Handle, mode => i32)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2_ptsz(stream: Handle, mode: i32) -> Code {
    begin(|| real!(cuStreamBeginCapture_v2_ptsz(stream => Handle, mode => i32)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCaptureToGraph(
    stream: Handle,
    graph: Handle,
    after: Handle,
    edges: Handle,
    count: usize,
    mode: i32,
) -> Code {
    begin(|| {
        real!(cuStreamBeginCaptureToGraph(
            stream => Handle, graph => Handle, after => Handle, edges => Handle, count => usize, mode => i32
        ))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCaptureToGraph_ptsz(
    stream: Handle,
    graph: Handle,
    after: Handle,
    edges: Handle,
    count: usize,
    mode: i32,
) -> Code {
    begin(|| {
        real!(cuStreamBeginCaptureToGraph_ptsz(
            stream => Handle, graph => Handle, after => Handle, edges => Handle, count => usize, mode => i32
        ))
    })
}

/// A capture that was invalidated has ended too, with an error.
fn end(stream: u64, call: impl FnOnce() -> Code) -> Code {
    let was = turns::is_capturing(stream);
    let code = call();
    if was && !turns::is_capturing(stream) {
        turns::capture_ended();
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> Code {
    end(legacy(stream), || real!(cuStreamEndCapture(stream => Handle, graph => *mut Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamEndCapture_ptsz(stream: Handle, graph: *mut Handle) -> Code {
    end(of_thread(stream), || real!(cuStreamEndCapture_ptsz(stream => Handle, graph => *mut Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy(stream: Handle) -> Code {
    turns::stream_ends(stream as u64);
    real!(cuStreamDestroy(stream => Handle))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Code {
    turns::stream_ends(stream as u64);
    real!(cuStreamDestroy_v2(stream => Handle))
}

fn destroy(context: Handle, call: impl FnOnce() -> Code) -> Code {
    turns::drain();
    let code = call();
    if code == SUCCESS {
        context_ended(context as u64);
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxDestroy(context: Handle) -> Code {
    destroy(context, || real!(cuCtxDestroy(context => Handle)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxDestroy_v2(context: Handle) -> Code {
    destroy(context, || real!(cuCtxDestroy_v2(context => Handle)))
}

/// A card's own context, which its holders share; null: there is none now.
fn primary(device: i32) -> Handle {
    let mut context = core::ptr::null_mut();
    let (mut flags, mut is_active) = (0_u32, 0_i32);
    real!(cuDevicePrimaryCtxGetState(device => i32, &raw mut flags => *mut u32, &raw mut is_active => *mut i32));
    if is_active != 0
        && real!(cuDevicePrimaryCtxRetain(&raw mut context => *mut Handle, device => i32)) == SUCCESS
    {
        real!(cuDevicePrimaryCtxRelease_v2(device => i32));
    }
    context
}

/// Ends the card's own context, or a hold on it.
fn end_primary(device: i32, call: impl FnOnce() -> Code) -> Code {
    let context = primary(device);
    turns::drain();
    let code = call();
    if code == SUCCESS && !context.is_null() && primary(device).is_null() {
        context_ended(context as u64);
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxReset(device: i32) -> Code {
    end_primary(device, || real!(cuDevicePrimaryCtxReset(device => i32)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxReset_v2(device: i32) -> Code {
    end_primary(device, || real!(cuDevicePrimaryCtxReset_v2(device => i32)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease(device: i32) -> Code {
    end_primary(device, || real!(cuDevicePrimaryCtxRelease(device => i32)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: i32) -> Code {
    end_primary(device, || real!(cuDevicePrimaryCtxRelease_v2(device => i32)))
}
