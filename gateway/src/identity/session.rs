//! Temporary credentials: a key that borrows the rights of another, may narrow them, and ends by itself.
//!
//! Nothing of them is stored. The token that goes with each request holds them, sealed with the cluster's key for the
//! temporary key's id (purpose [`PURPOSE_SESSION`], format `MKS1`), as JSON: `{"key", "secret", "until", "policy",
//! "role"}`. A session ends with its time, or when the key or the role it borrows from is no more.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use makai_raft::facts::Timestamp;
use makai_raft::facts::tenant::TenantId;
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
    pub lender: Lender,
    pub secret: Secret,
    /// Narrows them.
    pub policy: Option<String>,
}

/// Whose rights a session borrows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lender {
    /// An access key's.
    Key(String),
    Role(RoleSession),
}

/// A role, assumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleSession {
    pub tenant: TenantId,
    pub role: String,
    /// When the role was made: one of the same name that is made later is another.
    pub role_made_ms: u64,
    /// What the session calls itself.
    pub name: String,
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
    /// Then `key` is empty.
    #[serde(default)]
    role: Option<RoleSession>,
}

impl Identity {
    /// Lends rights until `until`, narrowed by `policy`.
    ///
    /// # Errors
    /// The system gave no randomness.
    pub fn lend(
        &self,
        lender: Lender,
        policy: Option<String>,
        until: Timestamp,
    ) -> Result<NewSession, RandomError> {
        let new = new_access_key()?;
        let access_key_id = format!("{SESSION_ID_PREFIX}{}", &new.id[SESSION_ID_PREFIX.len()..]);
        let (key, role) = match lender {
            Lender::Key(key) => (key, None),
            Lender::Role(role) => (String::new(), Some(role)),
        };
        let sealed = Sealed { key, secret: new.secret.expose().into(), until: until.0, policy, role };
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
        let Sealed { key, secret, policy, role, .. } = sealed;
        let lender = role.map_or(Lender::Key(key), Lender::Role);
        Ok(Session { lender, secret: Secret(secret.into()), policy })
    }
}
