//! Counts the device memory of a container's slice, over all of its processes, and the card time that they say they used.
//!
//! ```text
//! library in front of the driver ── TAKE bytes ──> fits? ── YES held | NO held ──>
//!                                 ── GIVE bytes ──>        ── ASK ──> YES held, limit        ── USED ns, launches ──>
//! ```
//!
//! A message has 17 bytes: a letter and two numbers, little-endian. Part of the loop of the attempt's supervisor: it never blocks.
//!
//! What always holds: what is counted never exceeds the slice; what a process holds is given back when its connection ends, as
//! the driver frees the process's memory then; a process that says anything unheard-of, or gives back what it does not hold, is
//! cut off.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::pace::{MESSAGE_BYTES, message, read_message};

const TAKE: u8 = b'T';
const GIVE: u8 = b'B';
const ASK: u8 = b'Q';
const USED: u8 = b'U';
const YES: u8 = b'Y';
const NO: u8 = b'N';
/// Processes that are heard at once.
const PROCESSES_MAX: usize = 1024;
/// Messages of one process that are heard in one round.
const ROUND_MAX: usize = 64;

#[derive(Debug)]
struct Process {
    stream: UnixStream,
    held: u64,
    /// Start of a message whose end has not come yet.
    part: Vec<u8>,
}

/// What a slice's processes used in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub busy_ns: u64,
    pub launches: u64,
    pub memory_peak_bytes: u64,
}

/// The clerk of one slice.
#[derive(Debug)]
pub struct Clerk {
    listener: UnixListener,
    limit: u64,
    held: u64,
    used: Used,
    processes: Vec<Process>,
}

impl Clerk {
    /// Opens the socket, for a slice of so many bytes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        // Only the container sees it; its processes are users of their own.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self { listener, limit, held: 0, used: Used::default(), processes: Vec::new() })
    }

    /// What may become readable when there is something to do.
    pub fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let processes = self.processes.iter().map(|process| process.stream.as_fd());
        std::iter::once(self.listener.as_fd()).chain(processes)
    }

    #[must_use]
    pub fn used(&self) -> Used {
        self.used
    }

    /// Bytes that are held now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Does what is to be done now.
    pub fn serve(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            // One too many is closed again, and gets no memory.
            if self.processes.len() < PROCESSES_MAX && stream.set_nonblocking(true).is_ok() {
                self.processes.push(Process { stream, held: 0, part: Vec::new() });
            }
        }
        let mut at = 0;
        while at < self.processes.len() {
            if self.hear(at) {
                at += 1;
            } else {
                let gone = self.processes.swap_remove(at);
                self.held = self.held.saturating_sub(gone.held);
            }
        }
    }

    /// Hears one process. False: it has gone, or is to go.
    fn hear(&mut self, at: usize) -> bool {
        for _ in 0..ROUND_MAX {
            let process = &mut self.processes[at];
            let mut bytes = [0; MESSAGE_BYTES];
            let wanted = MESSAGE_BYTES - process.part.len();
            match process.stream.read(&mut bytes[..wanted]) {
                Ok(0) => return false,
                Ok(count) => process.part.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
            let Ok(whole) = <&[u8; MESSAGE_BYTES]>::try_from(process.part.as_slice()) else { continue };
            let heard = read_message(whole);
            process.part.clear();
            if !self.answer(at, heard) {
                return false;
            }
        }
        true
    }

    fn answer(&mut self, at: usize, (kind, first, second): (u8, u64, u64)) -> bool {
        let process = &mut self.processes[at];
        let answer = match kind {
            TAKE => {
                let is_fit = first <= self.limit.saturating_sub(self.held);
                if is_fit {
                    self.held += first;
                    process.held += first;
                    self.used.memory_peak_bytes = self.used.memory_peak_bytes.max(self.held);
                }
                message(if is_fit { YES } else { NO }, self.held, self.limit)
            }
            GIVE if first <= process.held => {
                process.held -= first;
                self.held = self.held.saturating_sub(first);
                return true;
            }
            ASK => message(YES, self.held, self.limit),
            USED => {
                self.used.busy_ns = self.used.busy_ns.saturating_add(first);
                self.used.launches = self.used.launches.saturating_add(second);
                return true;
            }
            _ => return false,
        };
        // Whoever asks reads the answer: a socket whose buffer is full belongs to one that does not.
        process.stream.write_all(&answer).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(stream: &mut UnixStream, kind: u8, first: u64, second: u64) {
        stream.write_all(&message(kind, first, second)).unwrap();
    }

    fn hear(stream: &mut UnixStream) -> (u8, u64, u64) {
        let mut bytes = [0; MESSAGE_BYTES];
        stream.read_exact(&mut bytes).unwrap();
        read_message(&bytes)
    }

    /// The sum of all processes stays within the slice, to the byte; what one held is free when it is gone; a liar is cut off.
    #[test]
    fn a_slice_is_counted_over_its_processes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clerk");
        let mut clerk = Clerk::open(&path, 100).unwrap();
        let [mut one, mut two] = [(); 2].map(|()| UnixStream::connect(&path).unwrap());
        for (wanted, answer) in
            [(60, (YES, 60, 100)), (41, (NO, 60, 100)), (40, (YES, 100, 100)), (1, (NO, 100, 100))]
        {
            let stream = if wanted == 60 { &mut one } else { &mut two };
            say(stream, TAKE, wanted, 0);
            clerk.serve();
            assert_eq!(hear(stream), answer, "{wanted}");
        }
        say(&mut one, GIVE, 10, 0);
        say(&mut one, USED, 7, 2);
        say(&mut one, ASK, 0, 0);
        clerk.serve();
        assert_eq!(hear(&mut one), (YES, 90, 100));
        drop(two);
        clerk.serve();
        assert_eq!(clerk.held(), 50);
        assert_eq!(clerk.used(), Used { busy_ns: 7, launches: 2, memory_peak_bytes: 100 });
        say(&mut one, GIVE, 51, 0);
        clerk.serve();
        assert_eq!((one.read(&mut [0; 1]).unwrap(), clerk.held()), (0, 0));
    }
}
