//! One read index for all who wait for one.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::wire::Trouble;

type Outcome = Result<u64, Trouble>;

#[derive(Clone, Default)]
pub(super) struct Barrier(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    is_running: bool,
    waiting: Vec<oneshot::Sender<Outcome>>,
}

impl Barrier {
    /// Returns what a call of `read_index` that began after this one gave.
    pub async fn wait<F>(&self, read_index: impl Fn() -> F + Send + 'static) -> Outcome
    where
        F: Future<Output = Outcome> + Send,
    {
        let (sender, outcome) = oneshot::channel();
        let is_first = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.waiting.push(sender);
            !std::mem::replace(&mut state.is_running, true)
        };
        if is_first {
            let barrier = self.clone();
            tokio::spawn(async move {
                while let Some(waiting) = barrier.next_round() {
                    let outcome = read_index().await;
                    for sender in waiting {
                        drop(sender.send(outcome.clone()));
                    }
                }
            });
        }
        outcome.await.map_err(|_| Trouble::Unavailable("the read barrier was given up".into()))?
    }

    /// Whether nobody waits.
    pub fn is_at_rest(&self) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).is_running
    }

    fn next_round(&self) -> Option<Vec<oneshot::Sender<Outcome>>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_running = !state.waiting.is_empty();
        state.is_running.then(|| std::mem::take(&mut state.waiting))
    }
}
