//! The part of the platform's income that goes to who stakes.

use serde::{Deserialize, Serialize};

use super::{Address, Amount, RecoverableSignature};
use crate::facts::Timestamp;
use crate::facts::tenant::TenantId;

/// What of the income is shared, and by which age a stake weighs twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PledgeTerms {
    /// In ten-thousandths of what tenants pay, net of what is given back.
    pub income_bp: u32,
    pub ramp_ms: u64,
}

/// An address's stake as it shares the income. In billionths of a credit: what tenants pay in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pledge {
    pub payout: Address,
    /// Since its stake is what it is: each order begins its age anew.
    pub since: Timestamp,
    /// All that it was given, and all that it has paid for tenants with.
    pub earned: Amount,
    pub spent: Amount,
    /// Of its last order to pay.
    pub serial: u64,
}

impl Pledge {
    /// Nothing yet.
    #[must_use]
    pub fn of(payout: Address, since: Timestamp) -> Self {
        Self { payout, since, earned: Amount(0), spent: Amount(0), serial: 0 }
    }

    #[must_use]
    pub fn left(&self) -> Amount {
        self.earned.minus(self.spent)
    }
}

/// An address's word to pay what it was given into a tenant's balance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PledgeOrder {
    pub payout: Address,
    /// Grows with each order.
    pub serial: u64,
    pub tenant: TenantId,
    pub amount: Amount,
    /// The address, over [`pledge_digest`](crate::machine::accounts::pledge_digest).
    pub signature: RecoverableSignature,
}
