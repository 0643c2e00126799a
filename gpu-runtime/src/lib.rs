//! Where and how does a job run?
//!
//! ```text
//! facts ─> agent ── TaskSpec ──> runner ──> container ──> worker process ──> Outcome ─> agent ─> facts
//! ```
//!
//! | room          | holds                                                              | touches              |
//! |---------------|--------------------------------------------------------------------|----------------------|
//! | [`agent`]     | what of the facts is this node's to do, staged, run and reported    | ports: `Pool`, `Runner` |
//! | [`card`]      | a card, through its driver                                          | `libcuda`, `libnvidia-ml` |
//! | [`inventory`] | what this machine offers                                            | `/proc`              |
//! | [`runner`]    | the port: a task, an attempt, its limits, its outcome               | nothing              |
//! | [`container`] | containers: images, confinement, the worker process                 | processes, the kernel |
//! | [`module`]    | CUDA modules: PTX, checked and executed on the CPU                  | files, in a worker    |
//! | [`scheduler`] | which task runs next, on which node and card                         | nothing              |
//! | [`slice`]     | what is a share of a card, and what keeps it within that            | nothing              |

pub mod agent;
pub mod card;
pub mod container;
pub mod inventory;
pub mod module;
pub mod runner;
pub mod scheduler;
pub mod slice;
