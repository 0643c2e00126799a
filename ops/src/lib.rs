//! Who used what, who is owed what, is it well?
//!
//! | room        | holds                                                        | touches |
//! |-------------|--------------------------------------------------------------|---------|
//! | [`metrics`] | the name, unit and meaning of every metric a node publishes  | the process's metric recorder |
//!
//! Metering, audits, rewards and claims are not here yet: nothing is accounted, and nothing is paid.
//!
//! Always: a metric's name is written once, here; a label never carries an identity, spans do.

pub mod metrics;
