//! The join token as a person hands it on: where the cluster is, whom to trust there, and the secret that lets in.
//!
//! Text: `makai1.` and unpadded base64url of JSON. The secret is 32 random bytes; the facts keep its BLAKE3 only.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::state::KnownPeer;

const PREFIX: &str = "makai1.";
/// Longest text that is looked at.
const TEXT_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    pub cluster_id: String,
    pub token_id: String,
    /// 64 hex digits.
    pub secret: String,
    /// Voters to ask, by key and address.
    pub voters: Vec<KnownPeer>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token ({0}); get one with `makai node join-token` on a voter, and copy all of it"
)]
pub struct TicketError(String);

impl Ticket {
    #[must_use]
    pub fn to_text(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(json))
    }

    /// # Errors
    /// [`TicketError`]: cut short, or something else.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(TicketError(format!("{} bytes long", text.len())));
        }
        let body = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| TicketError(format!("it does not begin with {PREFIX}")))?;
        let json = BASE64_URL_SAFE_NO_PAD.decode(body).map_err(|error| TicketError(error.to_string()))?;
        serde_json::from_slice(&json).map_err(|error| TicketError(error.to_string()))
    }

    /// What the facts keep of the secret.
    #[must_use]
    pub fn secret_hash(secret: &str) -> [u8; 32] {
        *blake3::hash(secret.as_bytes()).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A ticket reads back; cut short or changed it is refused, never a panic.
        #[test]
        fn a_ticket_reads_back_or_is_refused(secret in "[0-9a-f]{64}", cut: prop::sample::Index, junk in ".{0,200}") {
            let ticket = Ticket { cluster_id: "c".into(), token_id: "t".into(), secret, voters: vec![] };
            let text = ticket.to_text();
            prop_assert_eq!(Ticket::parse(&format!(" {text}\n")), Ok(ticket));
            prop_assert!(Ticket::parse(&text[..cut.index(text.len())]).is_err());
            prop_assert!(Ticket::parse(&junk).is_err());
        }
    }
}
