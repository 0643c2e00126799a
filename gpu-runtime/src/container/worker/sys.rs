//! The few system calls that `rustix` does not offer, each behind a safe function.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::thread::UnshareFlags;

/// Which side of a [`fork`] this is.
pub enum Fork {
    Parent { child: i32 },
    Child,
}

/// A process that a wait found ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    pub pid: i32,
    /// As `wait` gives it.
    pub status: i32,
    /// CPU time of it and of all descendants that were waited for.
    pub cpu_ms: u64,
    /// The largest memory of any one of them.
    pub memory_peak_bytes: u64,
}

fn done(answer: libc::c_long) -> io::Result<libc::c_long> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Copies this process, which must have one thread.
///
/// # Errors
/// When the kernel refuses, or this process has more than one thread.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("a worker must have one thread, not {threads}")));
    }
    // SAFETY: the only thread of this process calls it, so no lock is held by a thread that the copy lacks.
    match done(unsafe { libc::fork() }.into())? {
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent { child: i32::try_from(child).map_err(io::Error::other)? }),
    }
}

/// Leaves namespaces for new ones.
///
/// # Errors
/// When the kernel refuses.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no caller gives up its file descriptors' table, the one flag with a hold on safe code.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Without root: a user namespace in which this process, as the only user there, may build the walls.
///
/// # Errors
/// When the kernel refuses.
pub fn own_user_namespace() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(UnshareFlags::NEWUSER)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Ends this process without running anything else.
pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Blocks signals and gives a descriptor that reports them.
///
/// # Errors
/// When the kernel refuses.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is read; all pointers are to locals.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        done(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()).into())?;
        let fd = done(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// The next signal that came, if one did.
pub fn next_signal(signals: BorrowedFd<'_>) -> Option<i32> {
    let mut buffer = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
    let bytes = rustix::io::read(signals, &mut buffer).ok()?;
    (bytes == buffer.len()).then(|| i32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]))
}

/// Gives every signal its default action again and blocks none, for a command about to be started.
pub fn reset_signals() {
    for signal in 1..65 {
        // SAFETY: sets a default action; numbers that cannot be set are refused by the kernel.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset; all pointers are to locals.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// A child that has ended: any, or the one given. `None` while none has, or none is left.
pub fn reap(pid: Option<i32>, block: bool) -> Option<Ended> {
    let mut status = 0;
    let flags = if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: both pointers are to locals, and rusage is plain data.
        let (found, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(pid.unwrap_or(-1), &mut status, flags, &mut usage), usage)
        };
        if found < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if found <= 0 {
            return None;
        }
        let ms = |time: libc::timeval| time.tv_sec as u64 * 1000 + time.tv_usec as u64 / 1000;
        return Some(Ended {
            pid: found,
            status,
            cpu_ms: ms(usage.ru_utime) + ms(usage.ru_stime),
            memory_peak_bytes: (usage.ru_maxrss as u64).saturating_mul(1024),
        });
    }
}

/// What a wait status says: an exit code, or the signal that ended it.
pub fn status_of(status: i32) -> Result<i32, i32> {
    if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status)) } else { Err(libc::WTERMSIG(status)) }
}

/// Takes an empty session keyring, so that the keys of who started the worker are out of reach.
///
/// # Errors
/// When the kernel refuses; a kernel without keyrings has none to hide.
pub fn leave_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    let answer =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    match done(answer) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Switches the loopback of this network namespace on.
///
/// # Errors
/// When the kernel refuses.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: the request is zeroed plain data holding a short name, and outlives the calls; the descriptor is owned.
    unsafe {
        let socket = done(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).into())?;
        let socket = OwnedFd::from_raw_fd(socket as i32);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        done(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request).into())?;
    }
    Ok(())
}

/// Marks every descriptor from `first` on to be closed when a command is started.
///
/// # Errors
/// When the kernel refuses.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: changes a flag of descriptors; none is closed here.
    done(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Installs a system call filter for this process and all it starts.
///
/// # Errors
/// When the kernel refuses, or has no filters.
pub fn set_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions from a slice that outlives the call.
    done(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) }).map(drop)
}

/// Replaces this process by a command. Returns only when it fails.
pub fn exec(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both lists end with a null pointer, and they and what they point to outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Lowers a resource limit, both what holds and how far it may be raised; never above what was inherited.
///
/// # Errors
/// When the kernel refuses.
pub fn limit(resource: rustix::process::Resource, most: u64) -> io::Result<()> {
    let inherited = rustix::process::getrlimit(resource);
    let most = inherited.maximum.map_or(most, |maximum| maximum.min(most));
    let limit = rustix::process::Rlimit { current: Some(most), maximum: Some(most) };
    rustix::process::setrlimit(resource, limit).map_err(io::Error::from)
}
