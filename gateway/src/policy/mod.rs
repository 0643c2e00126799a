//! Who may do what: policy documents, access lists, and the order in which they decide.
//!
//! ```text
//! JSON ─ document (parse, check, compile) ─> Policy ─┐
//! grants ─────────────────────────────────> Acl ─────┼─ evaluate (request) ─> Verdict
//! settings (ownership, public access) ───────────────┘
//! ```
//!
//! | room         | holds                                                          |
//! |--------------|----------------------------------------------------------------|
//! | [`document`] | policies as AWS writes them, and the errors of malformed ones   |
//! | [`principal`]| who asks, and whom a statement names                            |
//! | [`condition`]| operators over what is known of a request                       |
//! | `pattern`    | `*`, `?` and `${variables}`                                     |
//! | [`acl`]      | owners and grants of buckets and objects                        |
//! | [`evaluate`] | explicit deny, bucket policy, user policies, access list, ownership |
//! | [`actions`]  | the actions there are, and what each is about                   |
//!
//! It is pure: time, address and headers arrive in the request. Always: what is not allowed is denied; an explicit
//! deny wins over every allow; evaluating costs at most (bytes of the policy) x (bytes of the longest value), and a
//! policy has at most [`document::POLICY_BYTES_MAX`] bytes.

pub mod acl;
pub mod actions;
pub mod condition;
pub mod document;
pub mod evaluate;
mod pattern;
pub mod principal;

#[cfg(test)]
mod tests;

pub use self::document::{Malformed, Policy};
pub use self::evaluate::{Access, Request, Verdict, authorize, authorize_below};
pub use self::principal::{Account, Requester};
