//! What this process holds of its slice, and the talk with the clerk that counts it for all processes of the slice.
//!
//! ```text
//! TAKE bytes ──> YES | NO, held        GIVE bytes ──>        ASK ──> YES held, limit        USED ns, launches ──>
//! ```
//!
//! A message has 17 bytes: a letter and two numbers, little-endian. What a process holds is given back for it when its socket
//! closes, as the driver frees its memory then.

use core::sync::atomic::Ordering;

use crate::state::{State, slice, state};
use crate::sys;

pub const MESSAGE_BYTES: usize = 17;
const TAKE: u8 = b'T';
const GIVE: u8 = b'B';
const ASK: u8 = b'Q';
const USED: u8 = b'U';
const YES: u8 = b'Y';

/// What a row stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// By its address; `other`: its context.
    Address = 1,
    /// By its handle; `other`: its context.
    Array,
    /// Memory without an address, by its handle.
    Memory,
    /// Where such memory stands, by its address; `other`: its handle.
    Mapping,
    /// A pool, by its handle: what it has of the card.
    Pool,
    /// A graph, by its handle: what its nodes allocate.
    Graph,
}

/// A pool of the machine's memory has this many bytes: it does not count.
pub const UNCOUNTED: u64 = u64::MAX;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Row {
    pub key: u64,
    pub bytes: u64,
    pub other: u64,
    /// 0: free; [`GONE`]: was taken once.
    kind: u32,
    pub holds: u32,
    pub maps: u32,
    /// Its memory may be known to others, so it counts as long as the process lives.
    pub is_shared: u32,
}

const GONE: u32 = u32::MAX;

impl Row {
    pub fn new(kind: Kind, key: u64, bytes: u64, other: u64) -> Self {
        Self { key, bytes, other, kind: kind as u32, holds: 1, maps: 0, is_shared: 0 }
    }

    pub fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u32
    }
}

/// All rows, by kind and key. All zeros is an empty book.
#[repr(C)]
pub struct Book {
    rows: *mut Row,
    /// A power of two, or 0.
    room: usize,
    /// Rows that are not free, those that are gone included.
    taken: usize,
    /// Of graphs that are gone, and of captured allocations: theirs until the driver's graph memory is trimmed.
    pub graphs_gone: u64,
    /// What the context's limits reserve: stacks, heap, output.
    pub limits: [u64; 3],
}

const ROOM_MIN: usize = 256;

impl Book {
    fn rows(&mut self) -> &mut [Row] {
        if self.room == 0 {
            return &mut [];
        }
        // SAFETY: as many rows were mapped, zero at first, and this book alone points there.
        unsafe { core::slice::from_raw_parts_mut(self.rows, self.room) }
    }

    fn start(room: usize, kind: u32, key: u64) -> usize {
        let mixed = (key ^ u64::from(kind) << 56).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 32) as usize & (room - 1)
    }

    pub fn find(&mut self, kind: Kind, key: u64) -> Option<&mut Row> {
        let rows = self.rows();
        let room = rows.len();
        if room == 0 {
            return None;
        }
        let mut at = Self::start(room, kind as u32, key);
        for _ in 0..room {
            if rows[at].kind == 0 {
                return None;
            }
            if rows[at].is(kind) && rows[at].key == key {
                return Some(&mut rows[at]);
            }
            at = (at + 1) & (room - 1);
        }
        None
    }

    /// Writes a row down. False: there is no memory for it.
    pub fn insert(&mut self, row: Row) -> bool {
        if self.taken * 4 >= self.room * 3 && !self.grow() {
            return false;
        }
        let rows = self.rows();
        let room = rows.len();
        let mut at = Self::start(room, row.kind, row.key);
        while rows[at].kind != 0 && rows[at].kind != GONE {
            at = (at + 1) & (room - 1);
        }
        let is_new = rows[at].kind == 0;
        rows[at] = row;
        self.taken += usize::from(is_new);
        true
    }

    pub fn remove(&mut self, kind: Kind, key: u64) -> Option<Row> {
        let row = self.find(kind, key)?;
        let found = *row;
        row.kind = GONE;
        Some(found)
    }

    /// Removes the first row for which this holds.
    pub fn remove_any(&mut self, test: impl Fn(&Row) -> bool) -> Option<Row> {
        let row = self.rows().iter_mut().find(|row| row.kind != 0 && row.kind != GONE && test(row))?;
        let found = *row;
        row.kind = GONE;
        Some(found)
    }

    /// The row of a kind at or behind a place, and the place behind it.
    pub fn next(&mut self, kind: Kind, from: usize) -> Option<(Row, usize)> {
        let rows = self.rows();
        let at = rows.iter().skip(from).position(|row| row.is(kind))? + from;
        Some((rows[at], at + 1))
    }

    fn grow(&mut self) -> bool {
        let (old, old_room) = (self.rows, self.room);
        let live = self.rows().iter().filter(|row| row.kind != 0 && row.kind != GONE).count();
        let room = (live * 4).next_power_of_two().max(ROOM_MIN);
        let rows = sys::pages(room * size_of::<Row>(), false).cast::<Row>();
        if rows.is_null() {
            return false;
        }
        (self.rows, self.room, self.taken) = (rows, room, 0);
        for at in 0..old_room {
            // SAFETY: the rows of before, which nobody else points to any more.
            let row = unsafe { *old.add(at) };
            if row.kind != 0 && row.kind != GONE {
                self.insert(row);
            }
        }
        if old_room > 0 {
            sys::unmap(old.cast(), old_room * size_of::<Row>());
        }
        true
    }
}

/// Does something with the book, alone.
pub fn with<T>(run: impl FnOnce(&mut Book) -> T) -> Option<T> {
    let state = state()?;
    let _held = state.lock.take();
    // SAFETY: the lock is held, and nothing that runs under it comes here again.
    Some(run(unsafe { &mut *state.book.get() }))
}

fn message(kind: u8, first: u64, second: u64) -> [u8; MESSAGE_BYTES] {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[0] = kind;
    bytes[1..9].copy_from_slice(&first.to_le_bytes());
    bytes[9..].copy_from_slice(&second.to_le_bytes());
    bytes
}

/// Letter and numbers.
pub fn read_message(bytes: &[u8; MESSAGE_BYTES]) -> (u8, u64, u64) {
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(number)
    };
    (bytes[0], number(1), number(9))
}

/// The socket to the clerk; the lock must be held.
fn clerk(state: &State) -> Option<i32> {
    let known = state.clerk.load(Ordering::Relaxed);
    if known > 0 {
        return Some(known - 1);
    }
    let socket = sys::connect(&slice()?.clerk)?;
    state.clerk.store(socket + 1, Ordering::Release);
    Some(socket)
}

/// Asks the clerk and waits for its answer.
fn ask(kind: u8, first: u64) -> Option<(u8, u64, u64)> {
    let state = state()?;
    let _held = state.lock.take();
    let socket = clerk(state)?;
    let mut answer = [0; MESSAGE_BYTES];
    let is_answered =
        sys::send(socket, &message(kind, first, 0)) && sys::read_all(socket, &mut answer) == MESSAGE_BYTES;
    is_answered.then(|| read_message(&answer))
}

/// Takes bytes of the slice; false: there are not so many.
pub fn take(bytes: u64) -> bool {
    bytes == 0 || ask(TAKE, bytes).is_some_and(|(answer, ..)| answer == YES)
}

pub fn give(bytes: u64) {
    if let Some(state) = state()
        && bytes > 0
    {
        let _held = state.lock.take();
        if let Some(socket) = clerk(state) {
            sys::send(socket, &message(GIVE, bytes, 0));
        }
    }
}

/// What all processes of the slice hold.
pub fn held() -> Option<u64> {
    ask(ASK, 0).filter(|(answer, ..)| *answer == YES).map(|(_, held, _)| held)
}

/// Tells the clerk of card time that was used.
pub fn tell_used(ns: u64, launches: u64) {
    if let Some(state) = state() {
        let _held = state.lock.take();
        if let Some(socket) = clerk(state) {
            sys::send(socket, &message(USED, ns, launches));
        }
    }
}
