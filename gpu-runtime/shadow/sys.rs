//! System calls, a lock over a futex, and the dynamic linker.
//!
//! Every system call passes numbers and pointers to memory of the caller that outlives it; the kernel writes nowhere else.

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};

// The oldest version of the two functions that the C library of this architecture has: images may be older than the machine.
#[cfg(target_arch = "x86_64")]
global_asm!(".symver dlopen, dlopen@GLIBC_2.2.5", ".symver dlsym, dlsym@GLIBC_2.2.5");
#[cfg(target_arch = "aarch64")]
global_asm!(".symver dlopen, dlopen@GLIBC_2.17", ".symver dlsym, dlsym@GLIBC_2.17");

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Opens a library that is loaded already, or loads it.
pub fn open_library(name: &CStr) -> *mut c_void {
    const LAZY: c_int = 1;
    // SAFETY: a text that ends with a zero byte.
    unsafe { dlopen(name.as_ptr(), LAZY) }
}

pub fn symbol(library: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: an open library, and a text that ends with a zero byte.
    unsafe { dlsym(library, name.as_ptr()) }
}

#[cfg(target_arch = "x86_64")]
mod number {
    pub const READ: usize = 0;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const SIGPROCMASK: usize = 14;
    pub const MADVISE: usize = 28;
    pub const NANOSLEEP: usize = 35;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const SENDTO: usize = 44;
    pub const FUTEX: usize = 202;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const WRITE: usize = 1;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const READ: usize = 63;
    pub const CLOSE: usize = 57;
    pub const MMAP: usize = 222;
    pub const MUNMAP: usize = 215;
    pub const SIGPROCMASK: usize = 135;
    pub const MADVISE: usize = 233;
    pub const NANOSLEEP: usize = 101;
    pub const SOCKET: usize = 198;
    pub const CONNECT: usize = 203;
    pub const SENDTO: usize = 206;
    pub const FUTEX: usize = 98;
    pub const CLOCK_GETTIME: usize = 113;
    pub const EXIT_GROUP: usize = 94;
    pub const OPENAT: usize = 56;
    pub const WRITE: usize = 64;
}

/// Negative: an error's number.
fn call(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: as said at the head of this file; the instruction changes the named registers alone.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack));
    }
    result
}

pub fn exit(code: i32) -> ! {
    loop {
        call(number::EXIT_GROUP, [code as usize, 0, 0, 0, 0, 0]);
    }
}

/// A line on standard error.
pub fn say(text: &[u8]) {
    call(number::WRITE, [2, text.as_ptr() as usize, text.len(), 0, 0, 0]);
}

/// Whole pages of zeros of this process; `is_wiped`: zeros again in a child. Null: there is no memory.
pub fn pages(bytes: usize, is_wiped: bool) -> *mut c_void {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    const WIPE_ON_FORK: usize = 18;
    let at = call(number::MMAP, [0, bytes, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]);
    if at <= 0 {
        return core::ptr::null_mut();
    }
    if is_wiped && call(number::MADVISE, [at as usize, bytes, WIPE_ON_FORK, 0, 0, 0]) != 0 {
        call(number::MUNMAP, [at as usize, bytes, 0, 0, 0, 0]);
        return core::ptr::null_mut();
    }
    at as *mut c_void
}

pub fn unmap(at: *mut c_void, bytes: usize) {
    call(number::MUNMAP, [at as usize, bytes, 0, 0, 0, 0]);
}

pub fn now_ns() -> u64 {
    let mut time = [0_i64; 2];
    call(number::CLOCK_GETTIME, [1, time.as_mut_ptr() as usize, 0, 0, 0, 0]);
    time[0] as u64 * 1_000_000_000 + time[1] as u64
}

pub fn sleep_ns(ns: u64) {
    let time = [(ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64];
    call(number::NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]);
}

/// The first bytes of a file; how many there were.
pub fn read_file(path: &CStr, into: &mut [u8]) -> usize {
    const READ_ONLY_CLOSED_ON_EXEC: usize = 0o2_000_000;
    let file = call(
        number::OPENAT,
        [-100_isize as usize, path.as_ptr() as usize, READ_ONLY_CLOSED_ON_EXEC, 0, 0, 0],
    );
    if file < 0 {
        return 0;
    }
    let count = read_all(file as i32, into);
    close(file as i32);
    count
}

/// Reads until the end or until `into` is full; interruptions do not end it.
pub fn read_all(file: i32, into: &mut [u8]) -> usize {
    const INTERRUPTED: isize = -4;
    let mut count = 0;
    while count < into.len() {
        let rest = &mut into[count..];
        match call(number::READ, [file as usize, rest.as_mut_ptr() as usize, rest.len(), 0, 0, 0]) {
            INTERRUPTED => {}
            read if read > 0 => count += read as usize,
            _ => break,
        }
    }
    count
}

pub fn close(file: i32) {
    call(number::CLOSE, [file as usize, 0, 0, 0, 0, 0]);
}

/// Whether all of it was sent.
pub fn send(socket: i32, bytes: &[u8]) -> bool {
    const NO_SIGNAL: usize = 0x4000;
    const INTERRUPTED: isize = -4;
    let mut sent = 0;
    while sent < bytes.len() {
        let rest = &bytes[sent..];
        match call(number::SENDTO, [socket as usize, rest.as_ptr() as usize, rest.len(), NO_SIGNAL, 0, 0]) {
            INTERRUPTED => {}
            count if count > 0 => sent += count as usize,
            _ => return false,
        }
    }
    true
}

/// A stream to a socket in the file system. `path` ends with a zero byte.
pub fn connect(path: &[u8]) -> Option<i32> {
    const UNIX: u16 = 1;
    const STREAM_CLOSED_ON_EXEC: usize = 1 | 0o2_000_000;
    let mut address = [0_u8; 110];
    address[..2].copy_from_slice(&UNIX.to_ne_bytes());
    let room = address.get_mut(2..2 + path.len())?;
    room.copy_from_slice(path);
    let socket = call(number::SOCKET, [UNIX.into(), STREAM_CLOSED_ON_EXEC, 0, 0, 0, 0]);
    if socket < 0 {
        return None;
    }
    if call(number::CONNECT, [socket as usize, address.as_ptr() as usize, address.len(), 0, 0, 0]) != 0 {
        close(socket as i32);
        return None;
    }
    Some(socket as i32)
}

/// All signals blocked, or those of before again.
pub fn block_signals(before: Option<u64>) -> u64 {
    const SET: usize = 2;
    let (wanted, mut old) = (before.unwrap_or(u64::MAX), 0_u64);
    call(number::SIGPROCMASK, [SET, &raw const wanted as usize, &raw mut old as usize, 8, 0, 0]);
    old
}

/// Waits while `word` has this value, no longer than `ns`; 0: without end. May come back early.
pub fn wait(word: &AtomicU32, value: u32, ns: u64) {
    const WAIT_PRIVATE: usize = 128;
    let time = [(ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64];
    let timeout = if ns == 0 { 0 } else { time.as_ptr() as usize };
    call(number::FUTEX, [word.as_ptr() as usize, WAIT_PRIVATE, value as usize, timeout, 0, 0]);
}

pub fn wake(word: &AtomicU32) {
    const WAKE_PRIVATE: usize = 129;
    call(number::FUTEX, [word.as_ptr() as usize, WAKE_PRIVATE, i32::MAX as usize, 0, 0, 0]);
}

/// A lock that is free when its word is zero.
#[repr(transparent)]
pub struct Lock(AtomicU32);

/// Held until it is dropped.
pub struct Held<'a>(&'a Lock);

impl Lock {
    pub fn take(&self) -> Held<'_> {
        if self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.0.swap(2, Ordering::Acquire) != 0 {
                wait(&self.0, 2, 0);
            }
        }
        Held(self)
    }

    pub fn try_take(&self) -> Option<Held<'_>> {
        let is_free = self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        is_free.then(|| Held(self))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.0.0.swap(0, Ordering::Release) == 2 {
            wake(&self.0.0);
        }
    }
}
