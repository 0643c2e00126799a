//! What tenants pay for, and what is left of what they paid in.
//!
//! Money of tenants is counted in credits. Prices are in millionths of a credit, balances in billionths, so that seconds of a
//! small slice do not round away; both are integers.

use serde::{Deserialize, Serialize};

use super::Amount;
use crate::facts::Timestamp;
use crate::facts::jobs::Resources;
use crate::facts::tenant::TenantId;

/// Billionths in a credit.
pub const UNITS_PER_CREDIT: u128 = 1_000_000_000;
/// What jobs use is charged at least so often.
pub const CHARGE_EVERY_MS: u64 = 60_000;
/// An attempt is begun only where so much of it can be paid in advance: two charges, so that one may be late.
pub const HOLD_MS: u64 = 2 * CHARGE_EVERY_MS;
/// The largest price: a thousand credits a unit.
pub const PRICE_MAX: u64 = 1_000_000_000;
/// Bytes of a reference of a payment.
pub const REFERENCE_BYTES_MAX: usize = 128;

/// What a whole card counts beside a core.
pub const CORES_PER_CARD: u64 = 32;

const GIB: u128 = 1 << 30;
const HOUR_MS: u128 = 60 * 60 * 1000;
const MONTH_MS: u128 = 30 * 24 * HOUR_MS;
/// Billionths in a millionth.
const UNITS_PER_PRICE: u128 = 1000;

/// What units cost, in millionths of a credit; 0: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prices {
    /// A month has thirty days.
    pub storage_gib_month: u64,
    pub ingress_gib: u64,
    pub egress_gib: u64,
    pub requests_thousand: u64,
    pub cpu_core_hour: u64,
    pub memory_gib_hour: u64,
    pub gpu_card_hour: u64,
}

fn cost(units: u128, price: u64, units_per_price: u128) -> u128 {
    units.saturating_mul(u128::from(price)).saturating_mul(UNITS_PER_PRICE) / units_per_price
}

impl Prices {
    #[must_use]
    pub fn all(&self) -> [u64; 7] {
        let Self { storage_gib_month, ingress_gib, egress_gib, requests_thousand, .. } = *self;
        let Self { cpu_core_hour, memory_gib_hour, gpu_card_hour, .. } = *self;
        [
            storage_gib_month,
            ingress_gib,
            egress_gib,
            requests_thousand,
            cpu_core_hour,
            memory_gib_hour,
            gpu_card_hour,
        ]
    }

    /// Of slices held for jobs. Rounded down, as all costs are.
    #[must_use]
    pub fn of_slices(&self, slices: &SliceTime) -> Amount {
        let SliceTime { cpu_core_ms, memory_mib_ms, gpu_card_ms } = *slices;
        let cpu = cost(cpu_core_ms.into(), self.cpu_core_hour, HOUR_MS);
        let memory = cost(memory_mib_ms, self.memory_gib_hour, 1024 * HOUR_MS);
        let gpu = cost(gpu_card_ms.into(), self.gpu_card_hour, HOUR_MS);
        Amount(cpu.saturating_add(memory).saturating_add(gpu))
    }

    /// Of bytes kept, moved, and requests.
    #[must_use]
    pub fn of_data(&self, stored_byte_ms: u128, ingress: u64, egress: u64, requests: u64) -> Amount {
        /// Bytes are taken in KiB where they are multiplied with time, so that the largest pool's month fits.
        const KIB: u128 = 1024;
        let stored = cost(stored_byte_ms / KIB, self.storage_gib_month, GIB / KIB * MONTH_MS);
        let moved = [
            cost(ingress.into(), self.ingress_gib, GIB),
            cost(egress.into(), self.egress_gib, GIB),
            cost(requests.into(), self.requests_thousand, 1000),
        ];
        Amount(moved.into_iter().fold(stored, u128::saturating_add))
    }
}

/// Slices of machines, held for some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceTime {
    pub cpu_core_ms: u64,
    pub memory_mib_ms: u128,
    /// A part of a card counts by its multiprocessors.
    pub gpu_card_ms: u64,
}

impl SliceTime {
    #[must_use]
    pub fn of(resources: &Resources, span_ms: u64) -> Self {
        let gpu_millis = resources.gpu.as_ref().map_or(0, |gpu| {
            if gpu.cards > 0 { u64::from(gpu.cards) * 1000 } else { u64::from(gpu.sm_millis) }
        });
        let part = |millis: u64| u64::try_from(u128::from(millis) * u128::from(span_ms) / 1000);
        Self {
            cpu_core_ms: part(resources.cpu_millis.into()).unwrap_or(u64::MAX),
            memory_mib_ms: u128::from(resources.memory_bytes >> 20) * u128::from(span_ms),
            gpu_card_ms: part(gpu_millis).unwrap_or(u64::MAX),
        }
    }

    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Time of cores, a whole card as [`CORES_PER_CARD`] of them.
    #[must_use]
    pub fn in_cores_ms(&self) -> u64 {
        self.cpu_core_ms.saturating_add(self.gpu_card_ms.saturating_mul(CORES_PER_CARD))
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_core_ms: self.cpu_core_ms.saturating_add(other.cpu_core_ms),
            memory_mib_ms: self.memory_mib_ms.saturating_add(other.memory_mib_ms),
            gpu_card_ms: self.gpu_card_ms.saturating_add(other.gpu_card_ms),
        }
    }
}

/// What a tenant that pays in advance has left. One that never paid in has no such record and is not charged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    pub tenant: TenantId,
    /// Never below zero.
    pub amount: Amount,
    /// Of that, set aside for attempts that run.
    pub held: Amount,
    /// What data cost when nothing was left: the next payment covers it first.
    pub owed: Amount,
    /// All that was ever paid in, and all that was ever charged.
    pub credited: Amount,
    pub spent: Amount,
    pub changed_at: Timestamp,
}

impl Balance {
    /// Nothing yet.
    #[must_use]
    pub fn of(tenant: TenantId) -> Self {
        let none = Amount(0);
        let changed_at = Timestamp(0);
        Self { tenant, amount: none, held: none, owed: none, credited: none, spent: none, changed_at }
    }

    /// What may be spent now.
    #[must_use]
    pub fn free(&self) -> Amount {
        self.amount.minus(self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::jobs::GpuShare;

    /// Units that people know cost what the table says.
    #[test]
    fn a_month_an_hour_and_a_gibibyte_cost_their_price() {
        let prices = Prices {
            storage_gib_month: 5_000,
            ingress_gib: 1,
            egress_gib: 20_000,
            requests_thousand: 400,
            cpu_core_hour: 30_000,
            memory_gib_hour: 4_000,
            gpu_card_hour: 2_000_000,
        };
        let month = prices.of_data(GIB * MONTH_MS, 0, 0, 0);
        assert_eq!(month, Amount(5_000 * UNITS_PER_PRICE));
        let moved = prices.of_data(0, 1 << 30, 3 << 30, 5_000);
        assert_eq!(moved, Amount((1 + 60_000 + 2_000) * UNITS_PER_PRICE));
        let gpu = Some(GpuShare { cards: 0, sm_millis: 500, ..GpuShare::default() });
        let resources = Resources { cpu_millis: 2000, memory_bytes: 3 << 30, scratch_bytes: 0, gpu };
        let hour = SliceTime::of(&resources, HOUR_MS as u64);
        assert_eq!(prices.of_slices(&hour), Amount((60_000 + 12_000 + 1_000_000) * UNITS_PER_PRICE));
        let second = prices.of_slices(&SliceTime::of(&resources, 1000));
        // Each of the three parts loses less than one of the smallest units.
        let exact = prices.of_slices(&hour).0 / 3600;
        assert!((exact - 2..=exact).contains(&second.0), "a second rounds away: {} of {exact}", second.0);
    }

    #[test]
    fn the_largest_use_at_the_largest_price_has_a_cost() {
        let prices = Prices { storage_gib_month: PRICE_MAX, gpu_card_hour: PRICE_MAX, ..Prices::default() };
        let exabytes = prices.of_data((1u128 << 62) * MONTH_MS, 0, 0, 0);
        assert_eq!(exabytes, Amount((1u128 << 32) * u128::from(PRICE_MAX) * UNITS_PER_PRICE));
        let slices = SliceTime { gpu_card_ms: u64::MAX, ..SliceTime::default() };
        assert!(prices.of_slices(&slices) > exabytes.minus(exabytes));
    }
}
