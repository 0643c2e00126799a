//! What a process keeps, in memory that is zero at first and zero again in its children; and what it was told of its slice.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_void};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

use crate::book::Book;
use crate::sys::{self, Lock};
use crate::turns::Turns;

/// Name of the file beside this library that tells of the slice; its layout is [`Slice`]'s.
const SLICE_FILE: &[u8] = b"makai-slice\0";
const MAGIC: [u8; 8] = *b"mkslic01";

/// All that a process keeps. All zeros is its beginning.
#[repr(C)]
pub struct State {
    /// Guards `book` and the talk with the clerk.
    pub lock: Lock,
    /// Socket to the clerk, plus one; 0: none yet.
    pub clerk: AtomicI32,
    pub book: UnsafeCell<Book>,
    pub turns: Turns,
}

static STATE: AtomicPtr<State> = AtomicPtr::new(core::ptr::null_mut());

/// This process's state. `None`: there is no memory for it.
pub fn state() -> Option<&'static State> {
    let mut at = STATE.load(Ordering::Acquire);
    if at.is_null() {
        let new = sys::pages(size_of::<State>(), true).cast::<State>();
        if new.is_null() {
            return None;
        }
        at = match STATE.compare_exchange(core::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new,
            Err(other) => {
                sys::unmap(new.cast(), size_of::<State>());
                other
            }
        };
    }
    // SAFETY: mapped once, as large as a state, never unmapped; all zeros is a state, and all of it that changes is atomic or
    // behind a lock.
    Some(unsafe { &*at })
}

/// What the node tells of the slice, as the file has it: little-endian, no padding.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slice {
    magic: [u8; 8],
    /// Device memory.
    pub memory_bytes: u64,
    /// What the desk knows it by.
    pub number: u64,
    pub secret: u64,
    /// Thousandths of the card's time.
    pub sm_millis: u64,
    /// Sockets; each ends with a zero byte.
    pub clerk: [u8; 108],
    pub desk: [u8; 108],
}

const SLICE_BYTES: usize = 256;
const _: () = assert!(size_of::<Slice>() == SLICE_BYTES);

struct Told(UnsafeCell<Slice>);
// SAFETY: written once, before `IS_TOLD` says so, and only read after that.
unsafe impl Sync for Told {}

static TOLD: Told = Told(UnsafeCell::new(Slice {
    magic: [0; 8],
    memory_bytes: 0,
    number: 0,
    secret: 0,
    sm_millis: 0,
    clerk: [0; 108],
    desk: [0; 108],
}));
/// 0 unknown, 1 being read, 2 told, 3 there is none.
static IS_TOLD: AtomicU32 = AtomicU32::new(0);

/// What this process was told of its slice. A child has been told what its parent was.
pub fn slice() -> Option<&'static Slice> {
    loop {
        match IS_TOLD.load(Ordering::Acquire) {
            // SAFETY: written before the word said so, and never again.
            2 => return Some(unsafe { &*TOLD.0.get() }),
            3 => return None,
            0 if IS_TOLD.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).is_ok() => {
                let found = read_slice();
                if let Some(found) = found {
                    // SAFETY: whoever took the word from 0 to 1 is alone here.
                    unsafe { *TOLD.0.get() = found };
                }
                IS_TOLD.store(if found.is_some() { 2 } else { 3 }, Ordering::Release);
                if found.is_none() {
                    sys::say(
                        b"makai: the file makai-slice beside libcuda.so.1 is missing or malformed: no card\n",
                    );
                }
            }
            _ => sys::sleep_ns(100_000),
        }
    }
}

fn read_slice() -> Option<Slice> {
    #[repr(C)]
    struct Place {
        path: *const c_char,
        base: *mut c_void,
        symbol: *const c_char,
        address: *mut c_void,
    }
    let find = crate::entries::linker(c"dladdr");
    if find.is_null() {
        return None;
    }
    // SAFETY: the C library's `dladdr` has this form.
    let find: unsafe extern "C" fn(*const c_void, *mut Place) -> i32 = unsafe { core::mem::transmute(find) };
    let null: *mut c_void = core::ptr::null_mut();
    let mut place = Place { path: null.cast(), base: null, symbol: null.cast(), address: null };
    // SAFETY: an address of this library, and room for the answer.
    if unsafe { find(slice as *const c_void, &raw mut place) } == 0 || place.path.is_null() {
        return None;
    }
    // SAFETY: a text of the dynamic linker's that lives as long as this library.
    let own = unsafe { CStr::from_ptr(place.path) }.to_bytes();
    let folder = own.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let mut path = [0_u8; 4096];
    path.get_mut(..folder)?.copy_from_slice(own.get(..folder)?);
    path.get_mut(folder..folder + SLICE_FILE.len())?.copy_from_slice(SLICE_FILE);
    let mut bytes = [0_u8; SLICE_BYTES];
    let count = sys::read_file(CStr::from_bytes_until_nul(&path).ok()?, &mut bytes);
    // SAFETY: as long as a slice, which is plain numbers and bytes.
    let found: Slice = unsafe { core::mem::transmute(bytes) };
    let is_whole =
        count == SLICE_BYTES && found.magic == MAGIC && found.clerk[107] == 0 && found.desk[107] == 0;
    is_whole.then_some(found)
}
