//! The gRPC door: one server for every service that customers call over gRPC.
//!
//! ```text
//! connection ─ serve (bounds, TLS) ─ h2 ─> service ─ gate (who, how many at once) ─> the service's room
//! ```
//!
//! | file       | holds                                                        |
//! |------------|--------------------------------------------------------------|
//! | `counted`  | calls as metrics                                             |
//! | `gate`     | who calls, and whether there is room for another call        |
//! | [`token`]  | what an access key signs to show who calls                   |
//! | `serve`    | listener, TLS, connections: bounded, drained at the end      |
//! | `identity` | the service that tells a client who it is                    |
//! | [`proto`]  | what is generated from `proto/`                              |
//!
//! A service is added with [`GrpcDoor::add`] before [`GrpcDoor::serve`]; health and reflection know it then. Each of its
//! methods begins with [`Gate::admit`] and keeps the returned [`Admitted`] until its answer, or its stream, has ended.
//!
//! Always: nothing but health and reflection answers without valid credentials; a secret itself is taken from this machine alone, and
//! tokens over TLS or from this machine, unless the operator says that another wall is around the door; connections, streams, calls and
//! messages have bounds; who goes over one is told `RESOURCE_EXHAUSTED`; a stream ends when [`Gate::stopping`] fires.

mod counted;
mod gate;
mod held;
mod identity;
mod serve;
pub mod token;

/// What is generated from `proto/`.
#[allow(clippy::all, missing_docs, reason = "generated code")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/makai.rs"));
    pub use makai::*;

    /// Every definition, as reflection gives it to clients.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

pub use gate::{Admitted, Gate};
pub use serve::{GrpcDoor, GrpcDoorConfig, GrpcError, MESSAGE_BYTES_MAX};
