//! Who calls, and whether there is room for another call.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use makai_ops::metrics as names;
use makai_raft::facts::Timestamp;
use ring::digest::{SHA256, digest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::serve::{ORIGIN, ORIGIN_HERE, ORIGIN_TLS};
use super::token::Token;
use crate::identity::{Caller, Identity, IdentityError};

/// Bytes of an `authorization` value: an access key id and a secret are far shorter.
const AUTHORIZATION_BYTES_MAX: usize = 1024;

/// What every call passes first. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    identity: Identity,
    now: fn() -> Timestamp,
    /// Tokens are taken in plain text from other machines too.
    allow_plain: bool,
    calls: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// A call that may go on, and its place among those under way: held until the answer has ended.
#[derive(Debug)]
pub struct Admitted {
    pub caller: Caller,
    _place: OwnedSemaphorePermit,
}

impl Gate {
    pub(super) fn new(
        identity: Identity,
        calls_max: usize,
        now: fn() -> Timestamp,
        allow_plain: bool,
    ) -> Self {
        let (calls, stopping) = (Arc::new(Semaphore::new(calls_max)), CancellationToken::new());
        Self { identity, now, allow_plain, calls, stopping }
    }

    /// Whom the gate asks who calls.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Fires when the door closes: streams without an end of their own end then, with `UNAVAILABLE`.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// # Errors
    /// `UNAUTHENTICATED` without valid credentials, `RESOURCE_EXHAUSTED` where too much is under way, `UNAVAILABLE`
    /// where nobody can tell whose credentials they are.
    pub async fn admit(&self, metadata: &MetadataMap) -> Result<Admitted, Status> {
        let place = Arc::clone(&self.calls).try_acquire_owned().map_err(|_| {
            metrics::counter!(names::GATEWAY_SLOWDOWNS, "bound" => "calls").increment(1);
            Status::resource_exhausted("too many calls are under way here; slow down")
        })?;
        let shown = credentials(metadata)?;
        self.check_way(metadata, &shown)?;
        let id = match &shown {
            Shown::Secret { id, .. } => id,
            Shown::Token(token) => {
                token.check_time((self.now)().0 / 1000).map_err(Status::unauthenticated)?;
                &token.access_key_id
            }
        };
        let known = match self.identity.secret(id).await {
            Ok(known) => known,
            Err(error) => return Err(refusal(&error)),
        };
        let is_its = match &shown {
            // Digests of equal length: how long the comparison takes tells nothing of the secret.
            Shown::Secret { secret, .. } => {
                digest(&SHA256, secret.as_bytes()).as_ref()
                    == digest(&SHA256, known.expose().as_bytes()).as_ref()
            }
            Shown::Token(token) => token.is_of(known.expose()),
        };
        if !is_its {
            return Err(Status::unauthenticated(format!(
                "the secret is not that of access key {id}; check both"
            )));
        }
        let caller = self.identity.caller(id).await.map_err(|error| refusal(&error))?;
        Ok(Admitted { caller, _place: place })
    }

    /// Whether what is shown may come this way: a secret stays on its machine, and a token is not to be overheard.
    fn check_way(&self, metadata: &MetadataMap, shown: &Shown) -> Result<(), Status> {
        let origin = metadata.get(ORIGIN).map_or(&b""[..], |origin| origin.as_bytes());
        let is_here = origin == ORIGIN_HERE.as_bytes();
        match shown {
            Shown::Secret { .. } if !is_here => Err(Status::unauthenticated(
                "a secret is taken from this machine alone; sign a token with it: `authorization: Bearer makait1...` \
                 (gateway/examples/python/makai_token.py does so)",
            )),
            Shown::Token(_) if !is_here && origin != ORIGIN_TLS.as_bytes() && !self.allow_plain => {
                Err(Status::unauthenticated(
                    "tokens are not taken in plain text from other machines: give the gateway certificates (s3.tls_...), or, where \
                     another wall is around it, grpc.allow_plain",
                ))
            }
            _ => Ok(()),
        }
    }
}

fn refusal(error: &IdentityError) -> Status {
    match error {
        IdentityError::UnknownAccessKey(_) | IdentityError::UnknownTenant(_) => {
            Status::unauthenticated(error.to_string())
        }
        IdentityError::Unavailable(_) => Status::unavailable(error.to_string()),
        IdentityError::Sealed { .. } => {
            tracing::error!(%error, "a stored secret does not open");
            Status::internal("the stored secret does not open; tell the operator")
        }
    }
}

/// What a caller shows of itself.
enum Shown {
    Secret { id: String, secret: String },
    Token(Token),
}

fn credentials(metadata: &MetadataMap) -> Result<Shown, Status> {
    let wrong = || {
        Status::unauthenticated(
            "give the metadata `authorization: Bearer makait1.ACCESS_KEY_ID.EXPIRES.SIGNATURE`, or, on the gateway's own machine, \
             `Basic base64(access_key_id:secret_access_key)`",
        )
    };
    let value = metadata.get("authorization").ok_or_else(wrong)?.as_bytes();
    if value.len() > AUTHORIZATION_BYTES_MAX {
        return Err(wrong());
    }
    let value = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (scheme, encoded) = value.split_once(' ').ok_or_else(wrong)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Token::parse(encoded).map(Shown::Token).ok_or_else(wrong);
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(wrong());
    }
    let plain = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| wrong())?;
    let plain = String::from_utf8(plain).map_err(|_| wrong())?;
    let (id, secret) = plain.split_once(':').ok_or_else(wrong)?;
    Ok(Shown::Secret { id: id.to_owned(), secret: secret.to_owned() })
}
