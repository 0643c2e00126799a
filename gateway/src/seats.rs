//! Who may be connected to a door: so many at once, and whoever sits idle longest makes room where all seats are taken and it
//! has been idle for a while: an answer that has just been made may still be on its way.
//!
//! ```text
//! accepted ─ admit ─ a seat is free? ──────────────────────────────> seated ─ begin ─> busy until the answer has gone
//!                    none: of the address with most idle ones, the one that is idle longest is unseated, now or
//!                    as soon as one has been idle for long enough
//! ```
//!
//! Always: a connection that is being served is never unseated; who says nothing holds a seat only while nobody wants it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Nobody is unseated sooner: what it was answered has gone by then, and it has not asked again.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// How often a newcomer looks whether somebody has become idle.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The seats of a door. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Seats {
    free: Arc<Semaphore>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Seats are numbered as they are taken, and anew as they become idle: the least has been idle longest.
    next: u64,
    idle: BTreeMap<u64, Idle>,
}

#[derive(Debug)]
struct Idle {
    from: IpAddr,
    since: Instant,
    unseated: CancellationToken,
}

/// Held by a connection while it is open.
#[derive(Debug)]
pub struct Seat {
    shared: Arc<Shared>,
    _free: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Shared {
    taken: Arc<Mutex<Taken>>,
    from: IpAddr,
    unseated: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Requests under way.
    busy: usize,
    /// Its number among those that are idle.
    idle_as: Option<u64>,
    /// It is closed, whatever of its answers is still held somewhere.
    is_gone: bool,
}

/// A request of a seated connection, until it is dropped.
#[derive(Debug)]
pub struct Busy(Arc<Shared>);

/// Begins requests of a seated connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bell(Arc<Shared>);

impl Seats {
    /// `max`: at least 1.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let free = Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS)));
        Self { free, taken: Arc::default() }
    }

    /// Gives a newcomer a seat, if need be that of another. Waits while everybody is being served or was a moment ago.
    pub async fn admit(&self, from: IpAddr) -> Seat {
        let free = loop {
            if let Ok(free) = Arc::clone(&self.free).try_acquire_owned() {
                break free;
            }
            self.lock().unseat(timer());
            // The semaphore is never closed.
            if let Ok(Ok(free)) = timeout(LOOK_EVERY, Arc::clone(&self.free).acquire_owned()).await {
                break free;
            }
        };
        let unseated = CancellationToken::new();
        let (taken, state) = (Arc::clone(&self.taken), Mutex::default());
        let shared = Arc::new(Shared { taken, from, unseated, state });
        shared.rest(&mut shared.lock());
        Seat { shared, _free: free }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Of the address with most idle connections, tells the one that is idle longest to go.
    fn unseat(&mut self, now: Instant) {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        // In the order of their numbers, which is that of time.
        for idle in self.idle.values().take_while(|idle| now.duration_since(idle.since) >= IDLE_MIN) {
            *counts.entry(idle.from).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or(0);
        let first = self.idle.iter().find(|(_, idle)| counts.get(&idle.from) == Some(&most));
        if let Some(number) = first.map(|(number, _)| *number)
            && let Some(idle) = self.idle.remove(&number)
        {
            idle.unseated.cancel();
        }
    }
}

impl Seat {
    /// Fires when another needs the seat: close the connection then.
    #[must_use]
    pub fn unseated(&self) -> CancellationToken {
        self.shared.unseated.clone()
    }

    #[must_use]
    pub fn bell(&self) -> Bell {
        Bell(Arc::clone(&self.shared))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_gone = true;
        self.shared.rise(&mut state);
    }
}

impl Bell {
    /// Whether a request of the connection is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.0.lock().busy > 0
    }

    /// From now until the answer is dropped, the connection keeps its seat.
    #[must_use]
    pub fn begin(&self) -> Busy {
        let mut state = self.0.lock();
        state.busy += 1;
        self.0.rise(&mut state);
        drop(state);
        Busy(Arc::clone(&self.0))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.busy = state.busy.saturating_sub(1);
        if state.busy == 0 && !state.is_gone && !self.0.unseated.is_cancelled() {
            self.0.rest(&mut state);
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is idle from now on.
    fn rest(&self, state: &mut State) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = taken.next;
        taken.next += 1;
        taken.idle.insert(number, Idle { from: self.from, since: timer(), unseated: self.unseated.clone() });
        state.idle_as = Some(number);
    }

    /// Is idle no more.
    fn rise(&self, state: &mut State) {
        if let Some(number) = state.idle_as.take() {
            self.taken.lock().unwrap_or_else(PoisonError::into_inner).idle.remove(&number);
        }
    }
}

/// The runtime's time, which a test may pause.
#[expect(clippy::disallowed_methods, reason = "a shell's timer")]
fn timer() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures::FutureExt as _;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    async fn a_while() {
        tokio::time::advance(IDLE_MIN).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_idle_longest_makes_room_and_who_is_served_stays() {
        let seats = Seats::new(3);
        let served = seats.admit(ip(1)).await;
        let busy = served.bell().begin();
        let (first, second) = (seats.admit(ip(1)).await, seats.admit(ip(1)).await);
        a_while().await;
        let newcomer = tokio::spawn({
            let seats = seats.clone();
            async move { seats.admit(ip(2)).await }
        });
        first.unseated().cancelled().await;
        assert!(!served.unseated().is_cancelled() && !second.unseated().is_cancelled());
        drop(first);
        let newcomer = newcomer.await.unwrap();
        // Served since, the second has not been idle as long as the newcomer.
        drop(second.bell().begin());
        a_while().await;
        assert!(seats.admit(ip(3)).now_or_never().is_none(), "nobody has gone yet");
        assert_eq!((newcomer.unseated().is_cancelled(), second.unseated().is_cancelled()), (true, false));
        drop((second, busy));
        assert!(!served.unseated().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_with_most_idle_connections_gives_way() {
        let seats = Seats::new(4);
        let lone = seats.admit(ip(1)).await;
        let many = [seats.admit(ip(2)).await, seats.admit(ip(2)).await, seats.admit(ip(2)).await];
        a_while().await;
        assert!(seats.admit(ip(3)).now_or_never().is_none());
        let gone: Vec<bool> = many.iter().map(|seat| seat.unseated().is_cancelled()).collect();
        assert_eq!((gone, lone.unseated().is_cancelled()), (vec![true, false, false], false));
    }

    /// A newcomer that finds all served takes the seat of the first that has then been idle for a while, and no sooner: its answer
    /// may still be on its way.
    #[tokio::test(start_paused = true)]
    async fn who_was_served_a_moment_ago_stays_until_it_has_rested() {
        let seats = Seats::new(1);
        let seat = seats.admit(ip(1)).await;
        let busy = seat.bell().begin();
        let newcomer = tokio::spawn({
            let seats = seats.clone();
            async move { seats.admit(ip(2)).await }
        });
        a_while().await;
        tokio::task::yield_now().await;
        drop(busy);
        let rested_at = timer() + IDLE_MIN;
        seat.unseated().cancelled().await;
        assert!((rested_at..rested_at + 2 * LOOK_EVERY).contains(&timer()));
        drop(seat);
        newcomer.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_makes_room_while_all_are_served() {
        let seats = Seats::new(1);
        let seat = seats.admit(ip(1)).await;
        let _busy = seat.bell().begin();
        a_while().await;
        assert!(seats.admit(ip(2)).now_or_never().is_none());
        assert!(!seat.unseated().is_cancelled());
        drop(seat);
        assert!(seats.admit(ip(2)).now_or_never().is_some());
    }

    /// An answer may be held for longer than its connection: that one does not come back for it.
    #[tokio::test(start_paused = true)]
    async fn who_has_gone_is_not_idle() {
        let seats = Seats::new(1);
        let seat = seats.admit(ip(1)).await;
        let busy = seat.bell().begin();
        drop(seat);
        drop(busy);
        assert!(seats.lock().idle.is_empty());
    }
}
