//! Which task runs next, and where: a pure function of facts and time that the leader evaluates.
//!
//! ```text
//! mix of recent tasks ─> waste function ─┐
//! nodes, what runs ─> rooms ─────────────┴─ placement ─┐
//! what waits ─ order ─> one after another ─────────────┴─ plan ─> start, preempt, reissue, wait (and why)
//! ```
//!
//! | room          | answers                                                   |
//! |---------------|-----------------------------------------------------------|
//! | [`model`]     | what is known, what is answered                           |
//! | [`placement`] | which node and which cards, so that little GPU is wasted  |
//! | [`order`]     | who goes first                                            |
//! | [`plan`]      | one round of all that                                     |
//! | [`predict`]   | how long, how much: from the past, with intervals         |
//! | [`moves`]     | what to move so that a task fits after all                |
//! | [`replay`]    | how well all that packs a recorded load                   |
//! | [`completion`] | how long the jobs of one take, by what is predicted of them |
//!
//! What always holds: no clock, no randomness, no I/O; equal inputs give equal answers; room is never given twice; every
//! refusal and every choice can be explained.

pub mod completion;
pub mod model;
pub mod moves;
pub mod order;
pub mod placement;
pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod predict;
pub mod replay;
#[cfg(test)]
mod tests;

pub use model::{
    Action, Cluster, Demand, Estimate, Gpu, GpuDemand, Node, NodeNumber, Queue, Refusal, Refusals, Running,
    Score, TaskId, Traits, Waiting,
};
pub use placement::{Place, Placer, Wish};
pub use plan::plan;
