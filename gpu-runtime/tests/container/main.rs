//! Containers through the real worker: what a task can do, and what it cannot.
//!
//! Needs namespaces and a C compiler. Where the machine refuses namespaces the tests say so and pass, unless
//! `MAKAI_TEST_CONTAINERS=require`, with which they fail: a place that is to run them sets it.

mod cards;
mod ends;
mod hostile;
mod images;
mod kit;
mod modules;
mod shares;
mod spare;
