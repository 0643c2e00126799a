//! How endangered a group is, and which of its slots are to be made again elsewhere.
//!
//! ```text
//! (scheme, is each disk here, away since, or gone) ─ danger ─> spare shards, slots to make again
//! ```
//!
//! Pure. A machine that is switched off for the night costs nothing: a disk that is away counts as held for a grace, and
//! after it is made again only once the group is at its soft threshold, together with all others that are past theirs: one
//! reading serves many. At the hard threshold, which counts what can be read right now, only a short wait is left, and as many
//! as lift the group above it are made again, those that are away longest: the others may be back in the morning.
//! Thresholds follow simulations of machines that leave at 5 % a month and are up 95 % of the time.

use crate::layout::Scheme;

/// Shards of a group below which it is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// At or below it, what is away for longer than the grace is made again.
    pub soft: usize,
    /// At or below it, grace no longer counts, for as many as lift it above.
    pub hard: usize,
}

/// Half of the parity, and a quarter of it. Two parity shards leave none before it is urgent: small clusters are those whose
/// machines are switched off together, and mending at each night would cost more than it guards.
#[must_use]
pub fn thresholds(scheme: Scheme) -> Thresholds {
    let (data, parity) = (usize::from(scheme.data), usize::from(scheme.parity));
    Thresholds { soft: data + parity.div_ceil(2), hard: data + parity.div_ceil(2).min((parity + 1) / 4) }
}

/// Whether a disk can be read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Here,
    Away {
        for_ms: u64,
    },
    /// Its node answers and has it no longer.
    Gone,
}

/// How long is waited for a disk that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub grace_ms: u64,
    /// At the hard threshold.
    pub urgent_ms: u64,
    /// So many went at once that they will be back at once: only what is urgent is mended.
    pub is_outage: bool,
}

/// What is to be done about a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Danger {
    /// Shards that can be read now beyond those that are needed; negative: it cannot be read.
    pub spare: i32,
    /// Slots to be made again on other disks now.
    pub slots: Vec<u8>,
}

/// Looks at one group, slot by slot.
#[must_use]
pub fn danger(scheme: Scheme, disks: &[Presence], patience: Patience) -> Danger {
    let Thresholds { soft, hard } = thresholds(scheme);
    let reachable = disks.iter().filter(|presence| **presence == Presence::Here).count();
    let is_past = |presence: &Presence, limit_ms: u64| match presence {
        Presence::Here => false,
        Presence::Away { for_ms } => *for_ms >= limit_ms,
        Presence::Gone => true,
    };
    let held = disks.iter().filter(|presence| !is_past(presence, patience.grace_ms)).count();
    // A group has at most 255 disks.
    let spare = reachable as i32 - i32::from(scheme.data);
    let is_soft_due = held <= soft && !patience.is_outage;
    let is_due = |presence: &Presence| match presence {
        Presence::Away { .. } => is_soft_due && is_past(presence, patience.grace_ms),
        // It comes back only if somebody puts it back: nothing is won by waiting.
        Presence::Gone => true,
        Presence::Here => false,
    };
    let numbered = || (0u8..).zip(disks);
    let mut slots: Vec<u8> =
        numbered().filter(|(_, presence)| is_due(presence)).map(|(slot, _)| slot).collect();
    let urgent_ms = patience.urgent_ms.min(patience.grace_ms);
    let mut urgent: Vec<(u64, u8)> = numbered()
        .filter_map(|(slot, presence)| match presence {
            Presence::Away { for_ms } if *for_ms >= urgent_ms && !slots.contains(&slot) => {
                Some((*for_ms, slot))
            }
            _ => None,
        })
        .collect();
    // Those away longest first; of several as long, the first.
    urgent.sort_unstable_by_key(|(for_ms, slot)| (std::cmp::Reverse(*for_ms), *slot));
    let needed = (hard + 1).saturating_sub(reachable + slots.len());
    slots.extend(urgent.into_iter().take(needed).map(|(_, slot)| slot));
    slots.sort_unstable();
    Danger { spare, slots }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Presence::{Away, Gone, Here};

    const HOUR_MS: u64 = 3_600_000;
    const PATIENCE: Patience = Patience { grace_ms: 24 * HOUR_MS, urgent_ms: 600_000, is_outage: false };

    fn away(hours: u64) -> Presence {
        Away { for_ms: hours * HOUR_MS }
    }

    fn slots(data: u8, parity: u8, missing: &[Presence], patience: Patience) -> Vec<u8> {
        let scheme = Scheme::new(data, parity).unwrap();
        let mut disks = vec![Here; scheme.shard_count()];
        disks[..missing.len()].copy_from_slice(missing);
        danger(scheme, &disks, patience).slots
    }

    #[test]
    fn thresholds_are_those_of_the_simulations() {
        let of = |data, parity| {
            let Thresholds { soft, hard } = thresholds(Scheme::new(data, parity).unwrap());
            (soft, hard)
        };
        assert_eq!([of(2, 2), of(4, 3), of(6, 4)], [(3, 2), (6, 5), (8, 7)]);
        assert_eq!([of(10, 6), of(16, 8), of(16, 12)], [(13, 11), (20, 18), (22, 19)]);
        assert_eq!([of(1, 0), of(1, 1), of(1, 2)], [(1, 1), (2, 1), (2, 1)]);
    }

    #[test]
    fn a_night_costs_nothing_and_what_stays_away_is_made_again() {
        assert_eq!(slots(2, 2, &[away(10)], PATIENCE), [0u8; 0]);
        assert_eq!(slots(2, 2, &[away(25)], PATIENCE), [0]);
        assert_eq!(slots(2, 2, &[away(25), away(1)], PATIENCE), [0], "no shard is spare, one is made");
        assert_eq!(slots(2, 2, &[away(2), away(3)], PATIENCE), [1], "the one that is away longest");
        assert_eq!(slots(2, 2, &[Away { for_ms: 1000 }, away(1)], PATIENCE), [1], "one may be rebooting");
    }

    #[test]
    fn wide_groups_wait_and_are_mended_in_one_go() {
        assert_eq!(slots(16, 8, &[away(100); 3], PATIENCE), [0u8; 0]);
        assert_eq!(slots(16, 8, &[away(100); 4], PATIENCE), [0, 1, 2, 3]);
        assert_eq!(slots(16, 8, &[away(1); 5], PATIENCE), [0u8; 0]);
        // At the hard threshold, as many as lift it above.
        assert_eq!(slots(16, 8, &[away(1); 6], PATIENCE), [0]);
        assert_eq!(
            slots(16, 8, &[away(1), away(3), away(1), away(2), away(1), away(1), away(1)], PATIENCE),
            [1, 3]
        );
        assert_eq!(
            slots(16, 8, &[Away { for_ms: 1000 }; 8], PATIENCE),
            [0u8; 0],
            "all of them may be rebooting"
        );
    }

    #[test]
    fn in_an_outage_only_what_is_urgent_is_mended() {
        let outage = Patience { is_outage: true, ..PATIENCE };
        assert_eq!(slots(16, 8, &[away(100); 4], outage), [0u8; 0]);
        assert_eq!(slots(16, 8, &[away(100); 7], outage), [0, 1]);
    }

    #[test]
    fn a_disk_that_is_gone_is_not_waited_for() {
        assert_eq!(slots(16, 8, &[Gone, away(1)], PATIENCE), [0]);
        assert_eq!(danger(Scheme::new(2, 2).unwrap(), &[Gone, Gone, Gone, Here], PATIENCE).spare, -1);
    }
}
