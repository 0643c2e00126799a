//! Temporary credentials: a key that borrows the rights of another, may narrow them, and ends by itself.
//!
//! Nothing of them is stored. The token that goes with each request holds them, sealed with the cluster's key for the
//! temporary key's id (purpose [`PURPOSE_SESSION`], format `MKS1`), as JSON: `{"key", "secret", "until", "policy"}`. A
//! session ends with its time, or when the key it borrows from is deleted or disabled.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use makai_raft::facts::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Identity, RandomError, Secret, new_access_key, open_secret, seal_secret};

/// Purpose of a sealed session; its id is the temporary access key's id.
pub const PURPOSE_SESSION: &str = "session";
/// How the ids of temporary keys begin, as AWS has it.
pub const SESSION_ID_PREFIX: &str = "ASIA";
/// Bytes of a policy that narrows a session, as AWS has it.
pub const SESSION_POLICY_BYTES_MAX: usize = 2048;
/// Bytes of a token: a policy and what stands beside it, sealed and in Base64.
const TOKEN_BYTES_MAX: usize = 8192;

/// A temporary credential, in the clear: told once.
#[derive(Debug, Clone)]
pub struct NewSession {
    pub access_key_id: String,
    pub secret: Secret,
    pub token: String,
    pub until: Timestamp,
}

/// What a token holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The access key whose rights it borrows.
    pub of_key: String,
    pub secret: Secret,
    /// Narrows them.
    pub policy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("the session token does not belong to the access key, or is damaged")]
    Invalid,
    #[error("the session has ended")]
    Ended,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    key: String,
    secret: String,
    until: u64,
    policy: Option<String>,
}

impl Identity {
    /// Lends the rights of the access key `of_key` until `until`, narrowed by `policy`.
    ///
    /// # Errors
    /// The system gave no randomness.
    pub fn lend(
        &self,
        of_key: &str,
        policy: Option<String>,
        until: Timestamp,
    ) -> Result<NewSession, RandomError> {
        let new = new_access_key()?;
        let access_key_id = format!("{SESSION_ID_PREFIX}{}", &new.id[SESSION_ID_PREFIX.len()..]);
        let sealed =
            Sealed { key: of_key.into(), secret: new.secret.expose().into(), until: until.0, policy };
        let json = serde_json::to_vec(&sealed).map_err(|_| RandomError)?;
        let token = seal_secret(&self.inner.cluster_key, PURPOSE_SESSION, &access_key_id, &json)?;
        let token = BASE64_URL_SAFE_NO_PAD.encode(token);
        Ok(NewSession { access_key_id, secret: new.secret, token, until })
    }

    /// What the token of a temporary key holds.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn session(&self, access_key_id: &str, token: &str, now: Timestamp) -> Result<Session, SessionError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(SessionError::Invalid);
        }
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| SessionError::Invalid)?;
        let json = open_secret(&self.inner.cluster_key, PURPOSE_SESSION, access_key_id, &sealed);
        let json = json.map_err(|_| SessionError::Invalid)?;
        let sealed: Sealed = serde_json::from_slice(&json).map_err(|_| SessionError::Invalid)?;
        if now.0 >= sealed.until {
            return Err(SessionError::Ended);
        }
        let Sealed { key, secret, policy, .. } = sealed;
        Ok(Session { of_key: key, secret: Secret(secret.into()), policy })
    }
}
