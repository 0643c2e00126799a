//! Time of a world: it stands while anything computes, and passes far faster than real time while all wait.
//!
//! The runtime's clock is paused and never advances by itself: the product has threads of its own (flushers), which
//! the runtime does not see at work. [`pace`] moves both clocks by a step after a breath of real time, in which those
//! threads run; a machine too busy to wake it in time is given more breaths.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Virtual time that passes at once.
const STEP: Duration = Duration::from_millis(4);
/// Real time given to threads before each step.
const BREATH: Duration = Duration::from_micros(80);
/// A breath that took longer means that the processors are wanted elsewhere: another one is taken.
const BREATH_MAX: Duration = Duration::from_micros(1000);
/// Breaths before time passes anyhow.
const BREATHS_MAX: usize = 20;
/// Real time after which a thread that waits for virtual time goes on: nothing may hang should time stand for it.
const BLOCK_MAX: Duration = Duration::from_secs(5);

/// Milliseconds since the world began.
#[derive(Debug, Default)]
pub struct Clock {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    now_ms: u64,
    leapt_ms: u64,
    has_ended: bool,
}

impl Clock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.state().now_ms
    }

    /// What wall clocks show: time that passed, and time that leapt.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        let state = self.state();
        state.now_ms + state.leapt_ms
    }

    /// Every wall clock goes forward at once, as after a night in which all machines slept.
    pub fn leap(&self, ms: u64) {
        self.state().leapt_ms += ms;
    }

    /// For threads: waits until `due_ms`, or the end.
    pub fn block_until(&self, due_ms: u64) {
        let waits = |state: &mut State| state.now_ms < due_ms && !state.has_ended;
        drop(self.moved.wait_timeout_while(self.state(), BLOCK_MAX, waits));
    }

    /// Nobody waits any more.
    pub fn end(&self) {
        self.state().has_ended = true;
        self.moved.notify_all();
    }

    fn advance(&self) {
        self.state().now_ms += STEP.as_millis() as u64;
        self.moved.notify_all();
    }
}

/// Lets time pass, for ever. Everything else of the world runs beside it on the same paused runtime.
pub async fn pace(clock: &Clock) {
    loop {
        // The runtime's clock does not advance by itself while this runs.
        if tokio::task::spawn_blocking(breathe).await.is_err() {
            return;
        }
        clock.advance();
        tokio::time::advance(STEP).await;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures how busy the machine is; the world's time is virtual"
)]
fn breathe() {
    for _ in 0..BREATHS_MAX {
        let begun = Instant::now();
        std::thread::sleep(BREATH);
        if begun.elapsed() < BREATH_MAX {
            return;
        }
    }
}
