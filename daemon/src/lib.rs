//! What is one node: the parts of the other crates, put together on one machine.
//!
//! | room          | holds                                                                | touches         |
//! |---------------|----------------------------------------------------------------------|-----------------|
//! | [`node`]      | assembly: builds the parts from the ground up, stops them in reverse | all below       |
//! | [`identity`]  | the Ed25519 key that is this node's name                             | one file        |
//! | [`transport`] | requests and shards between nodes; the only room that names quinn    | network         |
//! | [`members`]   | who the other nodes are, what they may ask                           | transport       |
//! | [`disks`]     | this node's shard stores behind the port that remote ones have too   | disks           |
//! | `counted`     | how long this node's proposals and questions take                     | ports           |
//! | `news`        | how this node knows that the facts have not changed                   | nothing         |
//! | `distrust`    | what untrusted nodes may do to disks here: bring what the facts vouch for | ports       |
//! | `relay`       | the disks of nodes that cannot be dialled, served by one that can    | ports           |
//! | [`reconcile`] | loops that bring what is nearer to what should be: one a file        | ports           |
//! | [`door`]      | the S3 listener and its certificates                                 | network         |
//! | [`console`]   | health, metrics and the commands of the CLI, as JSON over HTTP       | network         |
//! | [`accounts`]  | this node's keys for claims, its answers to audits, what it counts   | files, ports    |
//! | [`cli`]       | a command a file                                                     | console, files  |
//! | [`process`]   | what a process costs, as Linux counts it                              | files           |
//! | [`state`], [`ticket`], [`files`], [`clock`] | memory of the cluster; join tokens; atomic files; the clock | files |

pub mod accounts;
pub mod cli;
pub mod clock;
pub mod console;
mod counted;
pub mod disks;
mod distrust;
pub mod door;
pub mod files;
pub mod identity;
pub mod members;
mod news;
pub mod node;
pub mod process;
pub mod reconcile;
mod relay;
pub mod state;
pub mod ticket;
pub mod transport;
