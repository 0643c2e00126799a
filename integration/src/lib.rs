//! Does the whole cluster keep its promises?
//!
//! ```text
//! test ─ cluster ─> real daemons: own processes, own sockets, own folders; killed, stopped, started again
//!      ─ s3 ─> their S3 doors, every byte of an answer checked against what its key implies
//!      ─ load ─> clients that remember what was acknowledged, and what they were told
//! ```
//!
//! | room        | holds                                                              | touches            |
//! |-------------|--------------------------------------------------------------------|--------------------|
//! | [`cluster`] | daemons from configuration files, their lives and deaths           | processes, folders |
//! | [`chain`]   | a real EVM, and endpoints before it that misbehave                  | processes, network |
//! | [`ports`]   | ports that nobody else takes while a test holds them               | sockets, lock files |
//! | [`s3`]      | an S3 client that hides nothing: no retries, every error seen      | network            |
//! | [`load`]    | many clients at once, and the model of what must be there          | network            |
//! | [`hooks`]   | a webhook that keeps what it is told                                 | sockets            |
//! | [`mounts`]  | buckets mounted by the program itself                              | the kernel         |
//! | [`wait`]    | conditions with deadlines                                          | the clock          |
//! | [`targets`] | parsers of outside bytes, as functions that must bear anything         | nothing            |
//! | [`churn`]   | a year of home PCs in virtual time, under the daemon's own rules    | nothing            |
//! | [`world`]   | seeded histories with failing network, disks and clocks            | nothing            |
//!
//! In every room: a test waits for what it needs, never for a time; what it started it ends, also when it fails; when
//! it fails it prints the end of each daemon's log and keeps their folders.

pub mod chain;
pub mod churn;
pub mod cluster;
pub mod hooks;
pub mod load;
pub mod mounts;
pub mod ports;
pub mod s3;
pub mod targets;
pub mod wait;
pub mod world;
