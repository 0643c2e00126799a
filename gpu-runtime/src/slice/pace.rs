//! How a worker asks for its turns on a card, and the words in which it does.
//!
//! ```text
//! worker                                  desk of the node
//!   HELLO magic, slice, secret  ────────>   (closed again where the slice is not on the card)
//!   ASK function                ────────>   into the slice's line
//!   <────────────  GRANT ticket, extent    in the order in which it asked; so many times a turn's usual length will do
//!   DONE ticket, nanoseconds    ────────>   settled
//! ```
//!
//! A greeting has 24 bytes: [`MAGIC`], then the slice's number and its secret, little-endian; every other message 17: a letter and two
//! numbers. The socket lies in a folder that confined processes see, so whoever speaks here is believed nothing but what its
//! secret shows.
//!
//! What always holds: without a desk (the daemon restarts) a worker goes on, and keeps to its own share by itself, also where
//! the card would be idle.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::SM_MILLIS_WHOLE;

/// Magic and version.
pub const MAGIC: [u8; 8] = *b"mkpace01";
pub const GREETING_BYTES: usize = 24;
pub const MESSAGE_BYTES: usize = 17;
pub const ASK: u8 = b'A';
pub const GRANT: u8 = b'G';
pub const DONE: u8 = b'D';
/// Name of the socket in the folder that confined processes see.
pub const SOCKET: &str = "desk";
/// How often a worker without a desk looks for one.
const LOOK_EVERY_NS: u64 = 250_000_000;

/// What lets a worker take its turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    pub slice: u64,
    pub secret: u64,
    pub sm_millis: u32,
}

/// Gives out turns.
pub trait Pace {
    /// Wants a turn for a function, by a number that stands for equal work.
    fn ask(&mut self, function: u64);

    /// The ticket of the oldest turn asked for, where it has come. Waits for it when told to.
    fn granted(&mut self, must_wait: bool) -> Option<u64>;

    /// What was launched on a ticket has left the card.
    fn done(&mut self, ticket: u64, measured_ns: u64);
}

/// Whose slice is the whole card: every turn is its own.
#[derive(Debug, Default)]
pub struct FreePace {
    asked: u64,
    given: u64,
}

impl Pace for FreePace {
    fn ask(&mut self, _function: u64) {
        self.asked += 1;
    }

    fn granted(&mut self, _must_wait: bool) -> Option<u64> {
        (self.given < self.asked).then(|| {
            self.given += 1;
            self.given
        })
    }

    fn done(&mut self, _ticket: u64, _measured_ns: u64) {}
}

/// Asks the node's desk.
#[derive(Debug)]
pub struct DeskPace {
    path: PathBuf,
    pass: Pass,
    stream: Option<UnixStream>,
    look_at_ns: u64,
    /// Functions asked for and not granted yet.
    asked: VecDeque<u64>,
    /// Start of a message whose end has not come yet.
    part: Vec<u8>,
    /// Without a desk: when the next turn is due, and the last ticket of its own.
    own_turn_ns: u64,
    own_ticket: u64,
}

/// Tickets that a worker gives itself; a desk's are far below.
const OWN_TICKETS: u64 = 1 << 63;

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A message of two numbers.
#[must_use]
pub fn message(kind: u8, first: u64, second: u64) -> [u8; MESSAGE_BYTES] {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[0] = kind;
    bytes[1..9].copy_from_slice(&first.to_le_bytes());
    bytes[9..].copy_from_slice(&second.to_le_bytes());
    bytes
}

/// What a message says: letter and numbers.
#[must_use]
pub fn read_message(bytes: &[u8; MESSAGE_BYTES]) -> (u8, u64, u64) {
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(number)
    };
    (bytes[0], number(1), number(9))
}

/// What a worker says first.
#[must_use]
pub fn greeting(pass: &Pass) -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&pass.slice.to_le_bytes());
    bytes[16..].copy_from_slice(&pass.secret.to_le_bytes());
    bytes
}

impl DeskPace {
    /// `folder`: where the desk's socket is.
    #[must_use]
    pub fn new(folder: PathBuf, pass: Pass) -> Self {
        Self {
            path: folder.join(SOCKET),
            pass,
            stream: None,
            look_at_ns: 0,
            asked: VecDeque::new(),
            part: Vec::new(),
            own_turn_ns: 0,
            own_ticket: OWN_TICKETS,
        }
    }

    /// Looks for a desk where there was none; what waits is asked there anew.
    fn look(&mut self) {
        if self.stream.is_some() || now_ns() < self.look_at_ns {
            return;
        }
        self.look_at_ns = now_ns() + LOOK_EVERY_NS;
        let Ok(mut stream) = UnixStream::connect(&self.path) else { return };
        let asks = self.asked.iter().flat_map(|function| message(ASK, *function, 0));
        let said: Vec<u8> = greeting(&self.pass).into_iter().chain(asks).collect();
        if stream.write_all(&said).is_ok() {
            self.part.clear();
            self.stream = Some(stream);
        }
    }

    fn say(&mut self, message: [u8; MESSAGE_BYTES]) {
        if let Some(stream) = &mut self.stream
            && stream.write_all(&message).is_err()
        {
            self.stream = None;
        }
    }

    /// A ticket from the desk. `Err`: there is none any more.
    fn receive(&mut self, must_wait: bool) -> Result<Option<u64>, ()> {
        let stream = self.stream.as_mut().ok_or(())?;
        stream.set_nonblocking(!must_wait).map_err(drop)?;
        loop {
            let mut bytes = [0; MESSAGE_BYTES];
            let wanted = MESSAGE_BYTES - self.part.len();
            match stream.read(&mut bytes[..wanted]) {
                Ok(0) => return Err(()),
                Ok(count) => self.part.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(()),
            }
            if let Ok(whole) = <&[u8; MESSAGE_BYTES]>::try_from(self.part.as_slice()) {
                let (kind, ticket, _) = read_message(whole);
                self.part.clear();
                return if kind == GRANT { Ok(Some(ticket)) } else { Err(()) };
            }
        }
    }

    fn own_grant(&mut self, must_wait: bool) -> Option<u64> {
        let wait_ns = self.own_turn_ns.saturating_sub(now_ns());
        if wait_ns > 0 {
            if !must_wait {
                return None;
            }
            std::thread::sleep(Duration::from_nanos(wait_ns));
        }
        self.own_ticket += 1;
        Some(self.own_ticket)
    }
}

impl Pace for DeskPace {
    fn ask(&mut self, function: u64) {
        self.look();
        self.asked.push_back(function);
        self.say(message(ASK, function, 0));
    }

    fn granted(&mut self, must_wait: bool) -> Option<u64> {
        if self.asked.is_empty() {
            return None;
        }
        self.look();
        let ticket = match self.receive(must_wait) {
            Ok(ticket) => ticket,
            Err(()) => {
                self.stream = None;
                self.own_grant(must_wait)
            }
        };
        if ticket.is_some() {
            self.asked.pop_front();
        }
        ticket
    }

    fn done(&mut self, ticket: u64, measured_ns: u64) {
        // Its share of the time is spent when so much time has passed for others.
        let others = u64::from(SM_MILLIS_WHOLE.saturating_sub(self.pass.sm_millis));
        let pause_ns = measured_ns.saturating_mul(others) / u64::from(self.pass.sm_millis.max(1));
        self.own_turn_ns = now_ns().saturating_add(pause_ns);
        if ticket < OWN_TICKETS {
            self.say(message(DONE, ticket, measured_ns));
        }
    }
}
