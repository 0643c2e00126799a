//! A library in front of the CUDA driver's: what a container with a share of a card finds as `libcuda.so.1`.
//!
//! ```text
//! program ── dlopen, dlsym, cuGetProcAddress ──> here ── libcuda-real.so.1 (the driver's own, a dependency of this one)
//!                                                  │
//!              memory: asked of, given back to ────┼──> clerk, a socket of the attempt's supervisor: counts the slice's bytes
//!              launches: turns asked for ──────────┴──> desk, a socket of the node: shares the card's time
//! ```
//!
//! | file       | holds                                                                  |
//! |------------|------------------------------------------------------------------------|
//! | `entries`  | the functions that are hooked, and how a symbol becomes a hook          |
//! | `memory`   | hooks that take and give memory, and that tell how much there is        |
//! | `launch`   | hooks that launch, and those that turns must know of                    |
//! | `book`     | what this process holds of the slice                                    |
//! | `turns`    | turns on the card: asked for, measured, settled                         |
//! | `state`    | what a process keeps, and what it was told of its slice                 |
//! | `sys`      | system calls, a lock, and the dynamic linker's two functions            |
//!
//! - **Whatever is not hooked** is found in the driver's own library, which is a dependency of this one: `dlsym` looks there next. A
//!   driver's newer functions are never missing.
//! - **Variants are right by construction**: the driver's own `cuGetProcAddress` is asked, and where its answer *is* a function that
//!   is hooked, the hook is handed out instead. A function of a hooked name that is not known is refused.
//! - **A fork starts anew**: all that a process keeps lies in memory that the kernel wipes in its children.
//! - **It loads everywhere**: no allocator, no thread-locals, no standard library; of the C library it wants `dlopen` and `dlsym` as
//!   they were in 2002, so that it runs in images whose C library is older than the machine's.
//! - **It fails closed**: without the file that tells of the slice, the driver does not start.
//!
//! It keeps honest programs within their share. A program that opens `libcuda-real.so.1` by that name, or speaks to the device itself,
//! goes past it: the level `shadow` says so, and the node's watchdog ends what then takes more than its slice.
//!
//! Compiled by `build.rs` and carried inside the program: nothing is installed beside it.

#![no_std]
#![allow(non_snake_case, non_camel_case_types, clippy::missing_safety_doc, clippy::too_many_arguments)]

mod book;
mod entries;
mod launch;
mod memory;
mod state;
mod sys;
mod turns;

use core::ffi::c_void;

/// As in `cuda.h`.
pub type Code = i32;
pub type Handle = *mut c_void;
pub const SUCCESS: Code = 0;
pub const INVALID_VALUE: Code = 1;
pub const OUT_OF_MEMORY: Code = 2;
pub const NOT_FOUND: Code = 500;
pub const NOT_SUPPORTED: Code = 801;
pub const UNKNOWN: Code = 999;

/// Nothing here can be unwound; nothing here is expected to panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::say(b"makai: a fault of the library in front of libcuda\n");
    sys::exit(134)
}
