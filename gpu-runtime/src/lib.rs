//! Where and how does a job run?
//!
//! Holds nothing yet: a node with role compute keeps its place in the cluster and runs no jobs.
