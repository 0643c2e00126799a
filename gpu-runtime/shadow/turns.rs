//! Turns on the card. A turn is a number of launches that the node's desk has granted; it is measured by events around them.
//!
//! ```text
//! launch ─ credits left? ──────────────────────────────────────> the driver         (a few nanoseconds)
//!            └ no: close the turn ─ ask the desk, wait ─ open ─> the driver
//! closed turns ─ ring ─> a thread of this library: waits for their end, measures, tells the desk and the clerk
//! ```
//!
//! A turn aims at [`TURN_NS`] of card time, or at some times that while nobody else is on the card, so that asking costs little and others do not wait for long; how many launches that is
//! follows from what the function was measured to take. A turn in which nothing is launched for a while is closed by the thread: so
//! a program that waits for its results does not keep the card.
//!
//! Launches into a stream that is being captured are no launches: the graph's are, when it is launched.
//!
//! What always holds: nothing is launched without a turn; without a desk (the daemon restarts) a process keeps to its own share by
//! itself; a turn whose end cannot be measured is charged the time from its opening.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::book::{self, MESSAGE_BYTES, read_message};
use crate::state::{Slice, State, slice, state};
use crate::sys::{self, Lock};
use crate::{Code, Handle, SUCCESS, UNKNOWN, real};

/// Card time that one turn aims at.
const TURN_NS: u64 = 1_000_000;
/// Launches of one turn at most.
const LAUNCHES_MAX: u32 = 1024;
/// Usual turns that one may be worth.
const EXTENT_MAX: u64 = 16;
/// A turn in which nothing is launched for so long is closed.
const IDLE_NS: u64 = 500_000;
/// Streams of one turn; a launch into one more opens another.
const STREAMS: usize = 8;
/// Turns that are measured at a time.
const RING: usize = 4;
/// Functions whose times are remembered.
const FUNCTIONS: usize = 256;
/// How often a process without a desk looks for one.
const LOOK_EVERY_NS: u64 = 250_000_000;
/// Tickets that a process gives itself; a desk's are far below.
const OWN_TICKETS: u64 = 1 << 63;
const MAGIC: [u8; 8] = *b"mkpace01";
const ASK: u8 = b'A';
const GRANT: u8 = b'G';
const DONE: u8 = b'D';
/// The driver's names for its two streams without a handle.
const LEGACY: u64 = 1;
const OF_THREAD: u64 = 2;
/// An event that is waited for asleep.
const BLOCKING: u32 = 1;

#[derive(Clone, Copy)]
#[repr(C)]
struct Turn {
    ticket: u64,
    /// The desk's that gave it.
    desk: u32,
    launches: u32,
    function: u64,
    opened_ns: u64,
    context: Handle,
    /// Null: there is none.
    start: Handle,
    ends: [Handle; STREAMS],
}

/// All zeros is the beginning.
#[repr(C)]
pub struct Turns {
    lock: Lock,
    /// Launches left in the open turn; anything below 1: none.
    credits: AtomicI32,
    /// Captures under way.
    capturing: AtomicU32,
    /// Streams of the open turn.
    streams: [AtomicU64; STREAMS],
    stream_count: AtomicU32,
    is_open: AtomicU32,
    /// Under the lock.
    open: UnsafeCell<Turn>,
    ring: [UnsafeCell<Turn>; RING],
    /// Turns closed, under the lock, and turns measured, by the thread.
    head: AtomicU32,
    tail: AtomicU32,
    /// Changes when there is something for the thread.
    signal: AtomicU32,
    /// 0: none yet, 1: there is one, 2: none can be started.
    thread: AtomicU32,
    /// Socket to the desk, plus one; 0: none.
    desk: AtomicI32,
    /// Desks that there were.
    desks: AtomicU32,
    look_at_ns: AtomicU64,
    /// How long the last turn could be, in usual ones; 0: as 1.
    extent: AtomicU32,
    own_turn_ns: AtomicU64,
    own_tickets: AtomicU64,
    functions: [AtomicU64; FUNCTIONS],
    took_ns: [AtomicU64; FUNCTIONS],
}

/// A stream's name for the driver's older functions.
pub fn legacy(stream: Handle) -> u64 {
    if stream.is_null() { LEGACY } else { stream as u64 }
}

/// A stream's name for functions that mean a thread's own by none.
pub fn of_thread(stream: Handle) -> u64 {
    if stream.is_null() { OF_THREAD } else { stream as u64 }
}

/// Makes a launch within a turn.
#[inline]
pub fn launch(function: u64, stream: u64, run: impl FnOnce() -> Code) -> Code {
    let Some(state) = state() else { return UNKNOWN };
    let turns = &state.turns;
    let is_plain = turns.capturing.load(Ordering::Relaxed) == 0 && turns.has_stream(stream);
    if (is_plain && turns.credits.fetch_sub(1, Ordering::AcqRel) > 0) || turns.enter(state, function, stream)
    {
        run()
    } else {
        UNKNOWN
    }
}

pub fn is_capturing(stream: u64) -> bool {
    let Some(state) = state() else { return false };
    if state.turns.capturing.load(Ordering::Acquire) == 0 {
        return false;
    }
    let mut status = 0;
    let code = real!(cuStreamIsCapturing(stream as Handle => Handle, &raw mut status => *mut i32));
    // An older stream cannot say while another is captured: then it is not.
    code == SUCCESS && status != 0
}

/// No event of ours may fall into a capture.
pub fn capture_begins() {
    if let Some(state) = state() {
        let held = state.turns.lock.take();
        state.turns.close(&held);
        state.turns.capturing.fetch_add(1, Ordering::AcqRel);
    }
}

pub fn capture_ended() {
    if let Some(state) = state() {
        let less = |count: u32| Some(count.saturating_sub(1));
        _ = state.turns.capturing.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }
}

/// A stream is about to be destroyed.
pub fn stream_ends(stream: u64) {
    if let Some(state) = state()
        && state.turns.has_stream(stream)
    {
        let held = state.turns.lock.take();
        state.turns.close(&held);
    }
}

/// A context is about to end: nothing of it is to be measured any more.
pub fn drain() {
    if let Some(state) = state() {
        let turns = &state.turns;
        let held = turns.lock.take();
        turns.close(&held);
        while turns.waiting() > 0 {
            turns.wait_for_thread();
        }
    }
}

impl Turns {
    #[inline]
    fn has_stream(&self, stream: u64) -> bool {
        let count = (self.stream_count.load(Ordering::Acquire) as usize).min(STREAMS);
        self.streams.iter().take(count).any(|own| own.load(Ordering::Relaxed) == stream)
    }

    fn waiting(&self) -> u32 {
        self.head.load(Ordering::Acquire).wrapping_sub(self.tail.load(Ordering::Acquire))
    }

    fn wait_for_thread(&self) {
        let tail = self.tail.load(Ordering::Acquire);
        if self.waiting() > 0 {
            sys::wait(&self.tail, tail, 0);
        }
    }

    /// A launch for which there was no credit. False: this process was told nothing of its slice.
    fn enter(&self, state: &State, function: u64, stream: u64) -> bool {
        let Some(slice) = slice() else { return false };
        let held = self.lock.take();
        if is_capturing(stream) {
            return true;
        }
        if self.is_open.load(Ordering::Acquire) != 0 && self.credits.load(Ordering::Acquire) > 0 {
            let count = self.stream_count.load(Ordering::Relaxed) as usize;
            let is_known = self.has_stream(stream);
            if (is_known || count < STREAMS) && self.credits.fetch_sub(1, Ordering::AcqRel) > 0 {
                if !is_known {
                    self.streams[count].store(stream, Ordering::Relaxed);
                    self.stream_count.store(count as u32 + 1, Ordering::Release);
                }
                return true;
            }
        }
        self.close(&held);
        self.open(slice, function, stream, &held);
        if self.thread.load(Ordering::Acquire) == 0 {
            self.start_thread(state);
        }
        true
    }

    fn place(function: u64) -> usize {
        (function.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize % FUNCTIONS
    }

    fn open(&self, slice: &Slice, function: u64, stream: u64, _held: &sys::Held<'_>) {
        while self.waiting() as usize >= RING {
            self.wait_for_thread();
        }
        let at = Self::place(function);
        let is_known = self.functions[at].load(Ordering::Relaxed) == function;
        let each_ns = if is_known { self.took_ns[at].load(Ordering::Relaxed).max(1) } else { TURN_NS };
        // Whoever is alone on the card may take longer turns. That the next is as the last is a guess.
        let guess = self.extent.load(Ordering::Relaxed).max(1);
        let most = (TURN_NS * u64::from(guess) / each_ns).clamp(1, u64::from(LAUNCHES_MAX * guess)) as u32;
        // A turn is known by function and size, so that what was measured of it fits the next: powers of two alone.
        let power = u32::BITS - 1 - most.leading_zeros();
        let (ticket, desk, extent) = self.ask(slice, function.wrapping_mul(31).wrapping_add(power.into()));
        self.extent.store(extent, Ordering::Relaxed);
        let launches = ((1_u32 << power) / (guess / extent.min(guess))).max(1);
        let mut context: Handle = core::ptr::null_mut();
        real!(cuCtxGetCurrent(&raw mut context => *mut Handle));
        let turn = Turn {
            ticket,
            desk,
            launches,
            function,
            opened_ns: sys::now_ns(),
            context,
            start: mark(stream),
            ends: [core::ptr::null_mut(); STREAMS],
        };
        // SAFETY: the lock is held.
        unsafe { *self.open.get() = turn };
        self.streams[0].store(stream, Ordering::Relaxed);
        self.stream_count.store(1, Ordering::Release);
        self.is_open.store(1, Ordering::Release);
        self.credits.store(launches as i32 - 1, Ordering::Release);
        self.wake_thread();
    }

    fn wake_thread(&self) {
        self.signal.fetch_add(1, Ordering::AcqRel);
        sys::wake(&self.signal);
    }

    /// Ends the open turn, where there is one, and hands it to the thread. There is room in the ring: a turn is opened only then.
    fn close(&self, _held: &sys::Held<'_>) {
        if self.is_open.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
        let left = self.credits.swap(0, Ordering::AcqRel).max(0).unsigned_abs();
        // SAFETY: the lock is held.
        let mut turn = unsafe { *self.open.get() };
        turn.launches = turn.launches.saturating_sub(left).max(1);
        let count = self.stream_count.swap(0, Ordering::AcqRel) as usize;
        for (end, stream) in turn.ends.iter_mut().zip(&self.streams).take(count) {
            let stream = stream.load(Ordering::Relaxed);
            if !is_capturing(stream) {
                *end = mark(stream);
            }
        }
        let head = self.head.load(Ordering::Relaxed);
        // SAFETY: the lock is held, and the thread reads this place only once the head says so.
        unsafe { *self.ring[head as usize % RING].get() = turn };
        self.head.store(head.wrapping_add(1), Ordering::Release);
        if self.thread.load(Ordering::Acquire) == 2 {
            self.settle_next();
        } else {
            self.wake_thread();
        }
    }

    /// Measures the oldest closed turn, and tells of it.
    fn settle_next(&self) {
        let tail = self.tail.load(Ordering::Relaxed);
        // SAFETY: closed, and not yet given to the next: only who moves the tail reads it.
        let turn = unsafe { *self.ring[tail as usize % RING].get() };
        real!(cuCtxSetCurrent(turn.context => Handle));
        let mut measured = None;
        for end in turn.ends.into_iter().filter(|end| !end.is_null()) {
            let mut ms = 0_f32;
            if real!(cuEventSynchronize(end => Handle)) == SUCCESS
                && !turn.start.is_null()
                && real!(cuEventElapsedTime(&raw mut ms => *mut f32, turn.start => Handle, end => Handle))
                    == SUCCESS
            {
                let ns = (f64::from(ms.max(0.0)) * 1e6) as u64;
                measured = Some(measured.unwrap_or(0).max(ns));
            }
            real!(cuEventDestroy_v2(end => Handle));
        }
        if !turn.start.is_null() {
            real!(cuEventDestroy_v2(turn.start => Handle));
        }
        let ns = measured.unwrap_or_else(|| sys::now_ns().saturating_sub(turn.opened_ns));
        let each = ns / u64::from(turn.launches);
        let at = Self::place(turn.function);
        let is_known = self.functions[at].swap(turn.function, Ordering::Relaxed) == turn.function;
        let before = self.took_ns[at].load(Ordering::Relaxed);
        self.took_ns[at].store(if is_known { (before * 3 + each) / 4 } else { each }, Ordering::Relaxed);
        self.done(&turn, ns);
        book::tell_used(ns, turn.launches.into());
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        sys::wake(&self.tail);
    }

    /// A ticket, the desk's number that gave it, and how many usual turns it is worth. Waits for it.
    fn ask(&self, slice: &Slice, function: u64) -> (u64, u32, u32) {
        let now = sys::now_ns();
        if self.desk.load(Ordering::Relaxed) == 0 && now >= self.look_at_ns.load(Ordering::Relaxed) {
            self.look_at_ns.store(now + LOOK_EVERY_NS, Ordering::Relaxed);
            let mut hello = [0; 24];
            hello[..8].copy_from_slice(&MAGIC);
            hello[8..16].copy_from_slice(&slice.number.to_le_bytes());
            hello[16..].copy_from_slice(&slice.secret.to_le_bytes());
            if let Some(socket) = sys::connect(&slice.desk) {
                if sys::send(socket, &hello) {
                    self.desks.fetch_add(1, Ordering::Relaxed);
                    self.desk.store(socket + 1, Ordering::Release);
                } else {
                    sys::close(socket);
                }
            }
        }
        let desk = self.desk.load(Ordering::Relaxed);
        if desk > 0 {
            let mut answer = [0; MESSAGE_BYTES];
            if sys::send(desk - 1, &message(ASK, function, 0))
                && sys::read_all(desk - 1, &mut answer) == MESSAGE_BYTES
            {
                let (kind, ticket, extent) = read_message(&answer);
                if kind == GRANT {
                    let extent = extent.clamp(1, EXTENT_MAX) as u32;
                    return (ticket, self.desks.load(Ordering::Relaxed), extent);
                }
            }
            self.desk.store(0, Ordering::Release);
            sys::close(desk - 1);
        }
        let wait_ns = self.own_turn_ns.load(Ordering::Acquire).saturating_sub(sys::now_ns());
        if wait_ns > 0 {
            sys::sleep_ns(wait_ns);
        }
        (OWN_TICKETS + self.own_tickets.fetch_add(1, Ordering::Relaxed), 0, 1)
    }

    fn done(&self, turn: &Turn, ns: u64) {
        let share = slice().map_or(1000, |slice| slice.sm_millis.clamp(1, 1000));
        // Its share of the time is spent when so much time has passed for others.
        let pause = ns.saturating_mul(1000 - share) / share;
        self.own_turn_ns.store(sys::now_ns().saturating_add(pause), Ordering::Release);
        let desk = self.desk.load(Ordering::Acquire);
        if desk > 0 && turn.desk == self.desks.load(Ordering::Relaxed) && turn.ticket < OWN_TICKETS {
            // One message at once: it never mixes with another thread's.
            sys::send(desk - 1, &message(DONE, turn.ticket, ns));
        }
    }

    fn start_thread(&self, state: &State) {
        let start = crate::entries::linker(c"pthread_create");
        let mut started = false;
        if !start.is_null() {
            type Body = extern "C" fn(*mut c_void) -> *mut c_void;
            // SAFETY: the C library's `pthread_create` has this form.
            let start: unsafe extern "C" fn(*mut u64, *const c_void, Body, *mut c_void) -> i32 =
                unsafe { core::mem::transmute(start) };
            let mut thread = 0;
            // The program's signals are its own threads' affair.
            let before = sys::block_signals(None);
            let state = core::ptr::from_ref(state).cast_mut().cast();
            // SAFETY: a function of this library, which is never unloaded while it runs, and a state that is never unmapped.
            started = unsafe { start(&raw mut thread, core::ptr::null(), body, state) } == 0;
            sys::block_signals(Some(before));
        }
        self.thread.store(if started { 1 } else { 2 }, Ordering::Release);
    }

    /// Settles turns as they end, and closes one that stands idle. `before`: the open turn's ticket and credits a while ago.
    fn look(&self, before: &mut (u64, i32)) {
        if self.waiting() > 0 {
            return self.settle_next();
        }
        let signal = self.signal.load(Ordering::Acquire);
        if self.waiting() > 0 {
            return;
        }
        if self.is_open.load(Ordering::Acquire) == 0 {
            return sys::wait(&self.signal, signal, 0);
        }
        sys::wait(&self.signal, signal, IDLE_NS);
        if self.waiting() > 0 || self.signal.load(Ordering::Acquire) != signal {
            return;
        }
        let now = (u64::from(self.head.load(Ordering::Acquire)), self.credits.load(Ordering::Acquire));
        if now != *before {
            *before = now;
            return;
        }
        // The program may wait for what it launched: until that has ended, and a moment longer, the turn is its own.
        let end = match self.lock.try_take() {
            Some(_held) if self.is_open.load(Ordering::Acquire) != 0 => {
                // SAFETY: the lock is held.
                let context = unsafe { (*self.open.get()).context };
                real!(cuCtxSetCurrent(context => Handle));
                let stream = self.streams[0].load(Ordering::Relaxed);
                if is_capturing(stream) { core::ptr::null_mut() } else { mark(stream) }
            }
            _ => return,
        };
        if !end.is_null() {
            real!(cuEventSynchronize(end => Handle));
            real!(cuEventDestroy_v2(end => Handle));
        }
        sys::wait(&self.signal, signal, IDLE_NS);
        if self.signal.load(Ordering::Acquire) != signal || self.credits.load(Ordering::Acquire) != now.1 {
            return;
        }
        if let Some(held) = self.lock.try_take() {
            self.close(&held);
        }
    }
}

fn message(kind: u8, first: u64, second: u64) -> [u8; MESSAGE_BYTES] {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[0] = kind;
    bytes[1..9].copy_from_slice(&first.to_le_bytes());
    bytes[9..].copy_from_slice(&second.to_le_bytes());
    bytes
}

/// An event at a stream's present end; null: there can be none.
fn mark(stream: u64) -> Handle {
    let mut event: Handle = core::ptr::null_mut();
    if real!(cuEventCreate(&raw mut event => *mut Handle, BLOCKING => u32)) != SUCCESS {
        return core::ptr::null_mut();
    }
    if real!(cuEventRecord(event => Handle, stream as Handle => Handle)) != SUCCESS {
        real!(cuEventDestroy_v2(event => Handle));
        return core::ptr::null_mut();
    }
    event
}

/// The thread that measures.
extern "C" fn body(state: *mut c_void) -> *mut c_void {
    /// What it asks of the driver is no concern of captures by others.
    const RELAXED: i32 = 2;
    let mut mode = RELAXED;
    real!(cuThreadExchangeStreamCaptureMode(&raw mut mode => *mut i32));
    // SAFETY: a state, which is never unmapped.
    let turns = unsafe { &(*state.cast::<State>()).turns };
    let mut before = (u64::MAX, 0);
    loop {
        turns.look(&mut before);
    }
}
