//! A worker's clocks: it is the shell that limits time, so it must read them.

use rustix::time::{ClockId, clock_gettime};

fn ms(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Never goes back.
pub fn monotonic_ms() -> u64 {
    ms(ClockId::Monotonic)
}

/// What a person's clock says.
pub fn unix_ms() -> u64 {
    ms(ClockId::Realtime)
}
