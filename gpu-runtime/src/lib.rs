//! Where and how does a job run?
//!
//! ```text
//! agent ── TaskSpec ──> runner ──> container ──> worker process ──> Outcome
//! ```
//!
//! | room          | holds                                                              | touches              |
//! |---------------|--------------------------------------------------------------------|----------------------|
//! | [`runner`]    | the port: a task, an attempt, its limits, its outcome               | nothing              |
//! | [`container`] | containers: images, confinement, the worker process                 | processes, the kernel |
//! | [`module`]    | CUDA modules: PTX, checked and executed on the CPU                  | files, in a worker    |
//! | [`scheduler`] | which task runs next, on which node and card                         | nothing              |
//! | [`slice`]     | what is a share of a card, and what keeps it within that            | nothing              |

pub mod container;
pub mod module;
pub mod runner;
pub mod scheduler;
pub mod slice;
