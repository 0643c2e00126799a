//! Who may launch next on one card: fair queueing on measured GPU time.
//!
//! ```text
//! request ─> line of its slice ─ least virtual time, within its cap ─> grant ─> the card ─> finished(measured) ─> settle
//! ```
//!
//! - A slice's **virtual time** grows by the GPU time it used, divided by its weight; the slice that is furthest behind is next
//!   (start-time fair queueing; Goyal, Vin and Cheng, 1996). A launch is charged by the moving estimate of its function
//!   when it is granted and settled when it was measured, so that short and long kernels share alike.
//! - A **hard cap** is a budget in GPU time that fills with wall time at the capped rate; below zero the slice waits. It fills up to
//!   [`CAP_CREDIT_NS`] while the slice waits for others, and only to [`CAP_BURST_NS`] while it has nothing to do.
//! - **Anticipation**: a loop that waits for each kernel before it launches the next has an empty line for a moment. If it has lately
//!   come back within [`ANTICIPATION_NS`], the card is kept for it that long; the card time so held is charged to it, so that
//!   nobody gains by dawdling.
//! - A slice that was away comes back at the present virtual time: being idle saves nothing up.
//!
//! Pure: time comes as nanoseconds in arguments. Work that is already on the card is never taken back.

use std::collections::{BTreeMap, VecDeque};

/// Longest time that the card is kept idle for a slice that is expected back.
pub const ANTICIPATION_NS: u64 = 500_000;
/// Estimated work on the card up to which a further launch is granted, so that the card never waits for a decision.
pub const PIPELINE_NS: u64 = 200_000;
/// What a capped slice may use at once after a pause.
pub const CAP_BURST_NS: u64 = 10_000_000;
/// What a capped slice may catch up at once after it had to wait for others.
pub const CAP_CREDIT_NS: u64 = 1_000_000_000;
/// Estimate for a function that was never measured.
pub const UNKNOWN_FUNCTION_NS: u64 = 1_000_000;
/// Requests that wait in one slice's line.
pub const LINE_MAX: usize = 4096;
/// Functions of one slice whose times are remembered; others count as unknown.
pub const FUNCTIONS_MAX: usize = 4096;
/// Pauses count as no longer than this, so that a slice that was away for long is soon known again.
const PAUSE_NS_MAX: u64 = 4 * ANTICIPATION_NS;
/// Part of a new measurement in a moving estimate: one in so many.
const ESTIMATE_WEIGHT: u64 = 4;
/// Weight of a whole card.
const WEIGHT_WHOLE: u128 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId(pub u64);

/// A kernel of a slice, by the number its worker gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(pub u64);

/// One granted launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a slice is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Thousandths of the card. 0 counts as 1.
    pub sm_millis: u32,
    /// Never more than that, even where the card is idle.
    pub is_hard_cap: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Launch this now.
    Grant { slice: SliceId, ticket: Ticket, function: FunctionId },
    /// Nothing may launch before then, unless something happens.
    WaitUntil(u64),
    /// Nothing waits, or the card has enough to do.
    Idle,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArbiterError {
    #[error("slice {} is not on this card", .0.0)]
    NoSuchSlice(SliceId),
    #[error("slice {} has {LINE_MAX} launches waiting; wait for some to finish", .0.0)]
    LineFull(SliceId),
}

#[derive(Debug)]
struct Client {
    due: Due,
    /// GPU nanoseconds used, times [`WEIGHT_WHOLE`], by weight.
    virtual_ns: u128,
    line: VecDeque<FunctionId>,
    estimates: BTreeMap<FunctionId, u64>,
    on_card: usize,
    /// Of a hard cap: nanoseconds times [`WEIGHT_WHOLE`], so that no fraction is lost however often it is filled.
    budget: i128,
    budget_at: u64,
    /// When its line and the card were last both empty of it.
    quiet_since: Option<u64>,
    /// Moving estimate of how long it stays quiet.
    pause_ns: u64,
    used_ns: u64,
}

#[derive(Debug)]
struct Launch {
    slice: SliceId,
    function: FunctionId,
    estimate_ns: u64,
}

/// Arbiter of one card.
#[derive(Debug, Default)]
pub struct Arbiter {
    clients: BTreeMap<SliceId, Client>,
    on_card: BTreeMap<Ticket, Launch>,
    next_ticket: u64,
    /// Virtual time of the slice served last: where a newcomer starts.
    virtual_now: u128,
    /// The slice that the card is kept for, and since when.
    kept_for: Option<(SliceId, u64)>,
}

fn budget_of(ns: u64) -> i128 {
    i128::from(ns) * WEIGHT_WHOLE as i128
}

impl Client {
    fn charge(&mut self, ns: u64) {
        self.virtual_ns += u128::from(ns) * WEIGHT_WHOLE / u128::from(self.due.sm_millis);
        self.budget -= budget_of(ns);
        self.used_ns = self.used_ns.saturating_add(ns);
    }

    fn refund(&mut self, ns: u64) {
        let virtual_ns = u128::from(ns) * WEIGHT_WHOLE / u128::from(self.due.sm_millis);
        self.virtual_ns = self.virtual_ns.saturating_sub(virtual_ns);
        self.budget += budget_of(ns);
        self.used_ns = self.used_ns.saturating_sub(ns);
    }

    fn is_quiet(&self) -> bool {
        self.line.is_empty() && self.on_card == 0
    }

    /// Fills the budget of a hard cap up to `now`.
    fn fill_budget(&mut self, now: u64) {
        let passed = now.saturating_sub(self.budget_at);
        self.budget_at = self.budget_at.max(now);
        let filled = self.budget + i128::from(passed) * i128::from(self.due.sm_millis);
        let most = if self.is_quiet() { CAP_BURST_NS } else { CAP_CREDIT_NS };
        // What it earned while it waited for others is not lost by a short pause.
        self.budget = filled.min(budget_of(most)).max(self.budget);
    }

    /// When a capped slice may launch again; `None`: now.
    fn capped_until(&self, now: u64) -> Option<u64> {
        if !self.due.is_hard_cap || self.budget >= 0 {
            return None;
        }
        let wait = self.budget.unsigned_abs().div_ceil(u128::from(self.due.sm_millis));
        Some(now.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    fn saw_pause(&mut self, pause_ns: u64) {
        self.pause_ns =
            (self.pause_ns * (ESTIMATE_WEIGHT - 1) + pause_ns.min(PAUSE_NS_MAX)) / ESTIMATE_WEIGHT;
    }

    fn estimate(&self, function: FunctionId) -> u64 {
        self.estimates.get(&function).copied().unwrap_or(UNKNOWN_FUNCTION_NS)
    }

    fn learn(&mut self, function: FunctionId, measured_ns: u64) {
        if let Some(estimate) = self.estimates.get_mut(&function) {
            *estimate = (*estimate * (ESTIMATE_WEIGHT - 1) + measured_ns) / ESTIMATE_WEIGHT;
        } else if self.estimates.len() < FUNCTIONS_MAX {
            self.estimates.insert(function, measured_ns);
        }
    }
}

impl Arbiter {
    pub fn add(&mut self, slice: SliceId, due: Due, now: u64) {
        let client = Client {
            due: Due { sm_millis: due.sm_millis.max(1), ..due },
            virtual_ns: self.virtual_now,
            line: VecDeque::new(),
            estimates: BTreeMap::new(),
            on_card: 0,
            budget: 0,
            budget_at: now,
            quiet_since: Some(now),
            pause_ns: 0,
            used_ns: 0,
        };
        self.clients.insert(slice, client);
    }

    /// Its launches that wait are dropped; those on the card end by themselves and are charged to nobody.
    pub fn remove(&mut self, slice: SliceId) {
        self.clients.remove(&slice);
        self.kept_for = self.kept_for.filter(|(kept, _)| *kept != slice);
    }

    /// GPU time that a slice has used or held, settled as far as it was measured.
    #[must_use]
    pub fn used_ns(&self, slice: SliceId) -> Option<u64> {
        self.clients.get(&slice).map(|client| client.used_ns)
    }

    /// A slice wants to launch.
    ///
    /// # Errors
    /// The slice is unknown, or too much of it waits already.
    pub fn request(&mut self, slice: SliceId, function: FunctionId, now: u64) -> Result<(), ArbiterError> {
        let virtual_now = self.virtual_now;
        let client = self.clients.get_mut(&slice).ok_or(ArbiterError::NoSuchSlice(slice))?;
        if client.line.len() >= LINE_MAX {
            return Err(ArbiterError::LineFull(slice));
        }
        client.fill_budget(now);
        if let Some(since) = client.quiet_since.take() {
            let pause = now.saturating_sub(since);
            client.saw_pause(pause);
            let is_kept = self.kept_for.is_some_and(|(kept, _)| kept == slice);
            if !is_kept {
                client.virtual_ns = client.virtual_ns.max(virtual_now);
            }
        }
        if let Some((_, since)) = self.kept_for.take_if(|(kept, _)| *kept == slice) {
            client.charge(now.saturating_sub(since));
        }
        client.line.push_back(function);
        Ok(())
    }

    /// A launch has left the card. `measured_ns`: its time on the card where it was sampled.
    pub fn finished(&mut self, ticket: Ticket, measured_ns: Option<u64>, now: u64) {
        let Some(launch) = self.on_card.remove(&ticket) else { return };
        let Some(client) = self.clients.get_mut(&launch.slice) else { return };
        client.fill_budget(now);
        client.on_card = client.on_card.saturating_sub(1);
        if let Some(measured_ns) = measured_ns {
            client.learn(launch.function, measured_ns);
            if measured_ns >= launch.estimate_ns {
                client.charge(measured_ns - launch.estimate_ns);
            } else {
                client.refund(launch.estimate_ns - measured_ns);
            }
        }
        if client.is_quiet() {
            client.quiet_since = Some(now);
        }
    }

    /// What to do now. Call again after every event, and at the time that [`Decision::WaitUntil`] names.
    pub fn next(&mut self, now: u64) -> Decision {
        let on_card: u64 = self.on_card.values().map(|launch| launch.estimate_ns).sum();
        if !self.on_card.is_empty() && on_card >= PIPELINE_NS {
            return Decision::Idle;
        }
        let mut wake: Option<u64> = None;
        let mut best: Option<(u128, SliceId)> = None;
        for (&slice, client) in &mut self.clients {
            if client.line.is_empty() {
                continue;
            }
            client.fill_budget(now);
            match client.capped_until(now) {
                Some(until) => wake = Some(wake.map_or(until, |wake| wake.min(until))),
                None if best.is_none_or(|(least, _)| client.virtual_ns < least) => {
                    best = Some((client.virtual_ns, slice));
                }
                None => {}
            }
        }
        let Some((virtual_ns, slice)) = best else {
            self.let_go(now);
            return wake.map_or(Decision::Idle, Decision::WaitUntil);
        };
        if let Some(until) = self.keep_for_another(virtual_ns, now) {
            return Decision::WaitUntil(wake.map_or(until, |wake| wake.min(until)));
        }
        self.let_go(now);
        self.grant(slice)
    }

    fn grant(&mut self, slice: SliceId) -> Decision {
        let Some(client) = self.clients.get_mut(&slice) else { return Decision::Idle };
        let Some(function) = client.line.pop_front() else { return Decision::Idle };
        let estimate_ns = client.estimate(function);
        self.virtual_now = self.virtual_now.max(client.virtual_ns);
        client.charge(estimate_ns);
        client.on_card += 1;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.on_card.insert(ticket, Launch { slice, function, estimate_ns });
        Decision::Grant { slice, ticket, function }
    }

    /// Until when the card is kept for a slice that is further behind and expected back at any moment.
    fn keep_for_another(&mut self, virtual_ns: u128, now: u64) -> Option<u64> {
        let expected = self.clients.iter().filter_map(|(&slice, client)| {
            let since = client.quiet_since?;
            let is_regular = client.pause_ns <= ANTICIPATION_NS / 2;
            let patience = client.pause_ns.saturating_mul(4).clamp(ANTICIPATION_NS / 10, ANTICIPATION_NS);
            let until = since.saturating_add(patience);
            let is_behind = client.virtual_ns < virtual_ns && client.capped_until(now).is_none();
            (is_regular && is_behind && until > now).then_some((client.virtual_ns, slice, until))
        });
        let (_, slice, until) = expected.min()?;
        if self.kept_for.is_none_or(|(kept, _)| kept != slice) {
            self.let_go(now);
            // Idle card time counts; what others' launches still use does not.
            self.kept_for = self.on_card.is_empty().then_some((slice, now));
        }
        Some(until)
    }

    /// Stops keeping the card, and charges for it.
    fn let_go(&mut self, now: u64) {
        if let Some((slice, since)) = self.kept_for.take()
            && let Some(client) = self.clients.get_mut(&slice)
        {
            client.charge(now.saturating_sub(since));
            // It did not come back as it used to.
            client.saw_pause(PAUSE_NS_MAX);
        }
    }
}
