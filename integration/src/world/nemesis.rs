//! What goes wrong, drawn from the seed: nodes die and come back, links go, messages vanish, disks slow down, nodes lie.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::net::Weather;

/// How a node dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// What it wrote stays.
    Kill,
    /// What it did not sync may go.
    PowerCut,
}

/// One thing that goes wrong. Nodes by number.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    Die {
        node: u8,
        death: Death,
    },
    LeaderDies {
        death: Death,
    },
    AllDie,
    Cut {
        from: u8,
        to: u8,
    },
    /// Every link of a node, out only or both ways.
    Isolate {
        node: u8,
        both_ways: bool,
    },
    Storm(Weather),
    SlowDisk {
        node: u8,
        sync_ms: u64,
    },
    Lie {
        node: u8,
    },
    LeaderSteps,
    /// Wall clocks go forward by hours: what is old is collected.
    TimeLeaps {
        hours: u64,
    },
}

/// Draws the next trouble, how long it lasts, and the calm before it.
#[must_use]
pub fn next(rng: &mut StdRng, nodes: u8) -> (Duration, Trouble, Duration) {
    let calm = Duration::from_millis(rng.random_range(50..1200));
    let lasts = Duration::from_millis(rng.random_range(200..3500));
    let node = rng.random_range(0..nodes);
    let other = (node + rng.random_range(1..nodes)) % nodes;
    let death = if rng.random_bool(0.5) { Death::Kill } else { Death::PowerCut };
    let trouble = match rng.random_range(0..100) {
        0..25 => Trouble::Die { node, death },
        25..37 => Trouble::LeaderDies { death },
        37..42 => Trouble::AllDie,
        42..50 => Trouble::Cut { from: node, to: other },
        50..62 => Trouble::Isolate { node, both_ways: rng.random_bool(0.5) },
        62..76 => Trouble::Storm(Weather {
            lost_percent: rng.random_range(0..15),
            repeated_percent: rng.random_range(0..30),
            delay_ms_max: rng.random_range(0..150),
        }),
        76..84 => Trouble::SlowDisk { node, sync_ms: rng.random_range(20..400) },
        84..91 => Trouble::Lie { node },
        91..96 => Trouble::TimeLeaps { hours: rng.random_range(1..5) },
        _ => Trouble::LeaderSteps,
    };
    (calm, trouble, lasts)
}
