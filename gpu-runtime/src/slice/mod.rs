//! A share of one GPU: what it holds, what keeps it within that, and who launches next.
//!
//! | room        | answers                                                             |
//! |-------------|---------------------------------------------------------------------|
//! | (here)      | what is a slice, and does one more fit on the card                  |
//! | [`ladder`]  | how strictly are its limits enforced, for this job on this card     |
//! | [`arbiter`] | whose launch is next, so that each gets its share of measured time  |
//! | [`desk`]    | the arbiters of this node, behind a socket                          |
//! | [`pace`]    | how a worker asks there                                             |
//! | [`clerk`]   | how much memory a container's processes hold of a slice             |
//!
//! What always holds: the slices of a card never hold more memory than it has, nor more than all of its multiprocessors under
//! hard caps; a MIG card and a shared one are never mixed; all arithmetic is checked.

pub mod arbiter;
#[cfg(test)]
mod arbiter_model;
pub mod clerk;
pub mod desk;
pub mod ladder;
pub mod pace;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use arbiter::{Due, SliceId};
pub use ladder::Level;

/// Thousandths of a card's multiprocessors that make the whole.
pub const SM_MILLIS_WHOLE: u32 = 1000;
/// Slices of one card.
pub const SLICES_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Whole,
    /// A hardware instance, by its profile as the driver names it (`1g.10gb`).
    Mig {
        profile: String,
    },
    Shared,
}

/// A share of one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// As the driver prints it: `GPU-...`.
    pub gpu_uuid: String,
    pub memory_mib: u64,
    /// 1 to 1000: what it is due of the card's time while others want it too.
    pub sm_millis: u32,
    /// It never gets more than its share, even where the card is idle.
    pub is_hard_cap: bool,
    pub kind: Kind,
    /// What keeps it within its limits; part of every quote, receipt and usage record.
    pub enforcement: Level,
}

impl Slice {
    /// What the arbiter owes it.
    #[must_use]
    pub fn due(&self) -> Due {
        Due { sm_millis: self.sm_millis, is_hard_cap: self.is_hard_cap }
    }
}

/// Why a slice is not on the card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SliceError {
    #[error("the slice is of GPU {wanted}, this is {gpu}")]
    OtherGpu { wanted: String, gpu: String },
    #[error("sm_millis is {0}; give 1 to 1000")]
    ShareOutOfRange(u32),
    #[error("{wanted_mib} MiB are asked for, {free_mib} MiB are free on GPU {gpu}")]
    Memory { gpu: String, wanted_mib: u64, free_mib: u64 },
    #[error("{wanted} thousandths are asked for, {free} are left of those that GPU {gpu} promises")]
    Share { gpu: String, wanted: u32, free: u32 },
    #[error(
        "GPU {gpu} holds other slices, and a whole card or a MIG instance cannot stand beside shared ones"
    )]
    Mixed { gpu: String },
    #[error("GPU {gpu} holds {SLICES_MAX} slices; wait for one to end")]
    TooMany { gpu: String },
    #[error("slice {} is on the card already", .0.0)]
    Twice(SliceId),
}

/// The slices of one card.
#[derive(Debug, Clone)]
pub struct Card {
    gpu_uuid: String,
    /// What slices may hold: the card's own less what its owner keeps.
    memory_mib: u64,
    slices: BTreeMap<SliceId, Slice>,
}

impl Card {
    /// An empty card. `reserve_mib` stays with the owner's desktop.
    #[must_use]
    pub fn new(gpu_uuid: String, memory_mib: u64, reserve_mib: u64) -> Self {
        Self { gpu_uuid, memory_mib: memory_mib.saturating_sub(reserve_mib), slices: BTreeMap::new() }
    }

    #[must_use]
    pub fn free_memory_mib(&self) -> u64 {
        let held = self.slices.values().fold(0_u64, |held, slice| held.saturating_add(slice.memory_mib));
        self.memory_mib.saturating_sub(held)
    }

    /// Thousandths that are not promised yet.
    #[must_use]
    pub fn free_sm_millis(&self) -> u32 {
        let held = self.slices.values().fold(0_u32, |held, slice| held.saturating_add(slice.sm_millis));
        SM_MILLIS_WHOLE.saturating_sub(held)
    }

    pub fn slices(&self) -> impl Iterator<Item = (SliceId, &Slice)> {
        self.slices.iter().map(|(&id, slice)| (id, slice))
    }

    /// Puts a slice on the card.
    ///
    /// # Errors
    /// It does not fit, and why; the card is unchanged.
    pub fn admit(&mut self, id: SliceId, slice: Slice) -> Result<(), SliceError> {
        let gpu = || self.gpu_uuid.clone();
        if slice.gpu_uuid != self.gpu_uuid {
            return Err(SliceError::OtherGpu { wanted: slice.gpu_uuid, gpu: gpu() });
        }
        if !(1..=SM_MILLIS_WHOLE).contains(&slice.sm_millis) {
            return Err(SliceError::ShareOutOfRange(slice.sm_millis));
        }
        if self.slices.contains_key(&id) {
            return Err(SliceError::Twice(id));
        }
        if self.slices.len() >= SLICES_MAX {
            return Err(SliceError::TooMany { gpu: gpu() });
        }
        let stands_beside = |other: &Slice| {
            matches!(
                (&slice.kind, &other.kind),
                (Kind::Shared, Kind::Shared) | (Kind::Mig { .. }, Kind::Mig { .. })
            )
        };
        if !self.slices.values().all(stands_beside) {
            return Err(SliceError::Mixed { gpu: gpu() });
        }
        let (wanted_mib, free_mib) = (slice.memory_mib, self.free_memory_mib());
        if wanted_mib > free_mib {
            return Err(SliceError::Memory { gpu: gpu(), wanted_mib, free_mib });
        }
        let (wanted, free) = (slice.sm_millis, self.free_sm_millis());
        if wanted > free {
            return Err(SliceError::Share { gpu: gpu(), wanted, free });
        }
        self.slices.insert(id, slice);
        Ok(())
    }

    /// Takes a slice off the card; its memory has been cleared by then.
    pub fn release(&mut self, id: SliceId) -> Option<Slice> {
        self.slices.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn any_slice() -> impl Strategy<Value = Slice> {
        let kind = prop_oneof![
            4 => Just(Kind::Shared),
            1 => Just(Kind::Whole),
            1 => Just(Kind::Mig { profile: "1g.10gb".into() }),
        ];
        (kind, prop_oneof![0_u64..12_000, Just(u64::MAX)], 0_u32..1200, any::<bool>()).prop_map(
            |(kind, memory_mib, sm_millis, is_hard_cap)| Slice {
                gpu_uuid: "GPU-1".into(),
                memory_mib,
                sm_millis,
                is_hard_cap,
                kind,
                enforcement: Level::OwnedHost,
            },
        )
    }

    proptest! {
        /// Whatever comes and goes, the sums hold, kinds are not mixed, and a refusal changes nothing.
        #[test]
        fn a_card_is_never_promised_twice(steps in vec((any_slice(), 0_u64..8, any::<bool>()), 1..60)) {
            let mut card = Card::new("GPU-1".into(), 24_000, 1024);
            for (slice, id, leaves) in steps {
                let id = SliceId(id);
                if leaves {
                    card.release(id);
                    continue;
                }
                let before: Vec<(SliceId, Slice)> = card.slices().map(|(id, slice)| (id, slice.clone())).collect();
                if card.admit(id, slice).is_err() {
                    let after: Vec<(SliceId, Slice)> = card.slices().map(|(id, slice)| (id, slice.clone())).collect();
                    prop_assert_eq!(before, after);
                }
                let memory: u128 = card.slices().map(|(_, slice)| u128::from(slice.memory_mib)).sum();
                let share: u32 = card.slices().map(|(_, slice)| slice.sm_millis).sum();
                prop_assert!(memory <= 22_976 && share <= 1000);
                let wholes = card.slices().filter(|(_, slice)| slice.kind == Kind::Whole).count();
                let shared = card.slices().filter(|(_, slice)| slice.kind == Kind::Shared).count();
                let all = card.slices().count();
                prop_assert!((wholes == 0 || all == 1) && (shared == 0 || shared == all));
            }
        }
    }

    /// Each refusal names what is in the way.
    #[test]
    fn refusals_say_what_is_missing() {
        let slice = Slice {
            gpu_uuid: "GPU-1".into(),
            memory_mib: 20_000,
            sm_millis: 600,
            is_hard_cap: true,
            kind: Kind::Shared,
            enforcement: Level::OwnedHost,
        };
        let mut card = Card::new("GPU-1".into(), 24_000, 1000);
        card.admit(SliceId(1), slice.clone()).expect("the card is empty");
        let refuse =
            |card: &Card, slice: Slice| card.clone().admit(SliceId(2), slice).expect_err("full").to_string();
        assert!(refuse(&card, slice.clone()).contains("20000 MiB are asked for, 3000 MiB are free"));
        let small = Slice { memory_mib: 1000, ..slice.clone() };
        assert!(refuse(&card, small.clone()).contains("600 thousandths are asked for, 400 are left"));
        let whole = Slice { kind: Kind::Whole, ..small.clone() };
        assert!(refuse(&card, whole).contains("cannot stand beside"));
        assert!(refuse(&card, Slice { gpu_uuid: "GPU-2".into(), ..small.clone() }).contains("GPU-2"));
        assert_eq!(card.admit(SliceId(1), small), Err(SliceError::Twice(SliceId(1))));
    }
}
