//! Where workers take their turns: one arbiter a card, behind one socket of the node.
//!
//! ```text
//! workers ── socket ──> a thread each ──> the card's thread ── arbiter ──> grants, straight back to the socket
//! ```
//!
//! Threads of its own, not the runtime's: a turn is a matter of microseconds, and a card may have [`super::SLICES_MAX`] workers.
//!
//! A slice may come with several connections: the processes of a container. They share its turns in the order in which they ask.
//!
//! What always holds: a worker that goes away gives back its turns at once; one that says anything unheard-of, or does not
//! read its grants, is cut off; what waits is bounded by the arbiter's lines.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::arbiter::{Arbiter, Decision, Due, FunctionId, SliceId, Ticket};
use super::pace::{
    ASK, DONE, GRANT, GREETING_BYTES, MAGIC, MESSAGE_BYTES, Pass, SOCKET, message, read_message,
};

/// Messages of workers that wait for a card's thread.
const EVENTS_MAX: usize = 1024;
/// A worker says who it is within so long.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How many times a turn's length whoever is alone on a card may take at once, so that asking costs next to nothing: whoever comes
/// waits for one such turn, a few milliseconds, and no more.
const EXTENT_ALONE: u64 = 8;
/// Workers heard at once: all slices of all cards, and some that come anew.
const WORKERS_MAX: usize = 1024;

#[derive(Debug)]
struct Member {
    card: String,
    due: Due,
    secret: u64,
}

enum Event {
    Joined { slice: SliceId, visit: u64, due: Due, stream: UnixStream },
    Asked { slice: SliceId, visit: u64, function: FunctionId },
    Done { slice: SliceId, visit: u64, ticket: Ticket, measured_ns: u64 },
    Left { slice: SliceId, visit: u64 },
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<u64, Member>,
    cards: HashMap<String, SyncSender<Event>>,
    /// Number of the next worker that comes.
    visits: u64,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    state: Mutex<State>,
    workers: AtomicUsize,
}

/// The desk of a node. Closes when it is dropped.
#[derive(Debug)]
pub struct Desk {
    shared: Arc<Shared>,
    is_closed: Arc<AtomicBool>,
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

impl Desk {
    /// Opens the desk in a folder of its own, which confined processes are shown.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
        let path = folder.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        // Workers are users of their own; the secret says who may take turns.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            state: Mutex::default(),
            workers: AtomicUsize::new(0),
        });
        let desk = Self { shared: Arc::clone(&shared), is_closed: Arc::default() };
        let is_closed = Arc::clone(&desk.is_closed);
        thread("desk", move || {
            for stream in listener.incoming() {
                if is_closed.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if shared.workers.fetch_add(1, Ordering::AcqRel) < WORKERS_MAX {
                    let shared = Arc::clone(&shared);
                    // A machine that cannot start a thread closes the socket, and the worker tries again.
                    let _ = thread("desk-worker", move || {
                        shared.serve(stream);
                        shared.workers.fetch_sub(1, Ordering::AcqRel);
                    });
                } else {
                    shared.workers.fetch_sub(1, Ordering::AcqRel);
                }
            }
        })?;
        Ok(desk)
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Lets a slice take turns on a card. `pass`: as its worker shows it; a pass that is known is renewed.
    pub fn admit(&self, card: &str, pass: &Pass, is_hard_cap: bool) {
        let due = Due { sm_millis: pass.sm_millis, is_hard_cap };
        let member = Member { card: card.to_owned(), due, secret: pass.secret };
        self.shared.lock().members.insert(pass.slice, member);
    }

    /// Its worker is gone for good.
    pub fn dismiss(&self, slice: u64) {
        self.shared.lock().members.remove(&slice);
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.is_closed.store(true, Ordering::Release);
        // Wakes the thread that waits for workers; where that fails there is none any more.
        drop(UnixStream::connect(self.shared.folder.join(SOCKET)));
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The card's thread, the number of this visit and what the slice is due, where the secret is right.
    fn enter(&self, slice: u64, secret: u64) -> Option<(SyncSender<Event>, u64, Due)> {
        let mut state = self.lock();
        let member = state.members.get(&slice).filter(|member| member.secret == secret)?;
        let (card, due) = (member.card.clone(), member.due);
        if !state.cards.contains_key(&card) {
            let (events, heard) = sync_channel(EVENTS_MAX);
            thread("desk-card", move || arbitrate(&heard)).ok()?;
            state.cards.insert(card.clone(), events);
        }
        state.visits += 1;
        Some((state.cards.get(&card)?.clone(), state.visits, due))
    }

    /// Hears one worker until it goes.
    fn serve(&self, mut stream: UnixStream) {
        let mut hello = [0; GREETING_BYTES];
        let greeted = stream
            .set_read_timeout(Some(GREETING_TIMEOUT))
            .and_then(|()| stream.read_exact(&mut hello))
            .and_then(|()| stream.set_read_timeout(None));
        if greeted.is_err() || hello[..8] != MAGIC {
            return;
        }
        let number =
            |at: usize| hello[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let Some((events, visit, due)) = self.enter(number(8), number(16)) else { return };
        let slice = SliceId(number(8));
        let Ok(grants) = stream.try_clone() else { return };
        if events.send(Event::Joined { slice, visit, due, stream: grants }).is_err() {
            return;
        }
        let mut bytes = [0; MESSAGE_BYTES];
        while stream.read_exact(&mut bytes).is_ok() {
            let event = match read_message(&bytes) {
                (ASK, function, _) => Event::Asked { slice, visit, function: FunctionId(function) },
                (DONE, ticket, measured_ns) => {
                    Event::Done { slice, visit, ticket: Ticket(ticket), measured_ns }
                }
                _ => break,
            };
            if events.send(event).is_err() {
                return;
            }
        }
        // Fails only with the card's thread, and then there is nothing to leave.
        let _ = events.send(Event::Left { slice, visit });
    }
}

/// One process that takes turns.
struct Visitor {
    stream: UnixStream,
    on_card: BTreeSet<Ticket>,
}

/// A slice that takes turns.
#[derive(Default)]
struct Client {
    is_hard_cap: bool,
    visitors: BTreeMap<u64, Visitor>,
    /// Whose the requests in the slice's line are, in their order.
    asked: VecDeque<u64>,
}

/// One card's turns, until nobody can come any more.
fn arbitrate(heard: &Receiver<Event>) {
    let mut turns = Turns { arbiter: Arbiter::default(), clients: BTreeMap::new() };
    loop {
        let wake_ns = turns.grant();
        let event = match wake_ns {
            None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => heard.recv_timeout(Duration::from_nanos(at.saturating_sub(now_ns()))),
        };
        match event {
            Ok(event) => turns.take(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

struct Turns {
    arbiter: Arbiter,
    clients: BTreeMap<SliceId, Client>,
}

impl Turns {
    /// Grants what may run now; answers when to look again.
    fn grant(&mut self) -> Option<u64> {
        loop {
            match self.arbiter.next(now_ns()) {
                Decision::Grant { slice, ticket, .. } => {
                    let is_alone = self.clients.len() == 1;
                    let Some(client) = self.clients.get_mut(&slice) else { continue };
                    let visit = client.asked.pop_front();
                    let visitor = visit.and_then(|visit| Some((visit, client.visitors.get_mut(&visit)?)));
                    let Some((visit, visitor)) = visitor else {
                        // Who asked is gone: the turn was nobody's.
                        self.arbiter.finished(ticket, None, now_ns());
                        continue;
                    };
                    visitor.on_card.insert(ticket);
                    let extent = if is_alone && !client.is_hard_cap { EXTENT_ALONE } else { 1 };
                    if visitor.stream.write_all(&message(GRANT, ticket.0, extent)).is_err() {
                        self.leave(slice, visit);
                    }
                }
                Decision::WaitUntil(at) => return Some(at),
                Decision::Idle => return None,
            }
        }
    }

    fn take(&mut self, event: Event) {
        let now = now_ns();
        match event {
            Event::Joined { slice, visit, due, stream } => {
                // A worker that does not read its grants must hold up nobody.
                if stream.set_write_timeout(Some(Duration::from_millis(1))).is_ok() {
                    let client = self.clients.entry(slice).or_insert_with(|| {
                        self.arbiter.add(slice, due, now);
                        Client { is_hard_cap: due.is_hard_cap, ..Client::default() }
                    });
                    client.visitors.insert(visit, Visitor { stream, on_card: BTreeSet::new() });
                }
            }
            Event::Asked { slice, visit, function } => {
                let Some(client) = self.clients.get_mut(&slice) else { return };
                if !client.visitors.contains_key(&visit) {
                    return;
                }
                client.asked.push_back(visit);
                if let Err(error) = self.arbiter.request(slice, function, now) {
                    client.asked.pop_back();
                    tracing::warn!(%error, "a worker asks for too much, and is cut off");
                    self.leave(slice, visit);
                }
            }
            Event::Done { slice, visit, ticket, measured_ns } => {
                // A ticket is settled by who holds it.
                let visitor = self.clients.get_mut(&slice).and_then(|client| client.visitors.get_mut(&visit));
                if visitor.is_some_and(|visitor| visitor.on_card.remove(&ticket)) {
                    self.arbiter.finished(ticket, Some(measured_ns), now);
                }
            }
            Event::Left { slice, visit } => self.leave(slice, visit),
        }
    }

    /// A process goes; with its last one the slice does.
    fn leave(&mut self, slice: SliceId, visit: u64) {
        let Some(client) = self.clients.get_mut(&slice) else { return };
        let Some(visitor) = client.visitors.remove(&visit) else { return };
        for ticket in visitor.on_card {
            self.arbiter.finished(ticket, None, now_ns());
        }
        // Its own end of the socket may be gone.
        let _ = visitor.stream.shutdown(Shutdown::Both);
        if client.visitors.is_empty() {
            self.clients.remove(&slice);
            self.arbiter.remove(slice);
        }
    }
}
