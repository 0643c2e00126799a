//! A worker that waits for its task.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::container::state::AttemptFolder;

/// The longest path of an attempt's folder.
const PATH_BYTES_MAX: usize = 4096;

/// Waits on the socket that is this process's standard input; `None`: there is no task to come. Afterwards the standard input is the attempt's
/// lock, as in a worker that was started for it.
///
/// # Errors
/// What came is no task.
pub fn wait() -> io::Result<Option<AttemptFolder>> {
    // What the daemon's terminal sends to it is none of this process's business.
    _ = rustix::process::setsid();
    let mut path = vec![0; PATH_BYTES_MAX];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let came = rustix::io::retry_on_intr(|| {
        let mut into = [io::IoSliceMut::new(&mut path)];
        rustix::net::recvmsg(rustix::stdio::stdin(), &mut into, &mut rights, RecvFlags::CMSG_CLOEXEC)
    })?;
    if came.bytes == 0 {
        return Ok(None);
    }
    let lock: Option<OwnedFd> = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let lock = lock.ok_or(io::ErrorKind::InvalidData)?;
    rustix::stdio::dup2_stdin(&lock)?;
    Ok(Some(AttemptFolder::new(OsStr::from_bytes(&path[..came.bytes]))))
}
