//! Room that requests share: so much in all, and half of it for one tenant at most, so that however slow its clients are, others
//! find some.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use makai_raft::facts::tenant::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Tenants whose share is remembered while they have nothing of it.
const SHARES_MAX: usize = 1024;

/// So many units of something.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    share: usize,
    shares: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

/// A part of a room, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Room {
    /// `least`: what one request may have to take at once.
    pub(super) fn new(units: usize, least: usize) -> Self {
        let units = units.clamp(least, Semaphore::MAX_PERMITS);
        Self { all: Arc::new(Semaphore::new(units)), share: (units / 2).max(least), shares: Mutex::default() }
    }

    /// Waits for room.
    pub(super) async fn take(&self, tenant: TenantId, units: u32) -> Option<Place> {
        let own = {
            let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
            if shares.len() >= SHARES_MAX {
                shares.retain(|_, share| Arc::strong_count(share) > 1);
            }
            Arc::clone(shares.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(self.share))))
        };
        // Never closed, so that there always is a place in the end.
        let own = own.acquire_many_owned(units).await.ok()?;
        let all = Arc::clone(&self.all).acquire_many_owned(units).await.ok()?;
        Some(Place { _own: own, _all: all })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_tenant_has_half_and_others_the_rest() {
        let room = Room::new(8, 2);
        let take = |tenant, units| room.take(TenantId(tenant), units).now_or_never().flatten();
        let first = take(1, 3).unwrap();
        assert!(take(1, 2).is_none(), "its share has four");
        let others = (take(2, 4).unwrap(), take(1, 1).unwrap());
        assert!(take(3, 1).is_none(), "all is taken");
        drop(first);
        assert!(take(3, 3).is_some());
        drop(others);
        assert!(Room::new(0, 2).take(TenantId(1), 2).now_or_never().flatten().is_some());
    }
}
