//! One node: the parts of the other crates, put together on one machine.
//!
//! | room          | holds                                                        | touches      |
//! |---------------|--------------------------------------------------------------|--------------|
//! | [`identity`]  | the Ed25519 key that is this node's name                     | one file     |
//! | [`transport`] | requests and shards between nodes; the only room that names quinn | network |

pub mod identity;
pub mod transport;
