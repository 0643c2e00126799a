//! What a key may do, for doors that are not asked object by object: mounts and jobs.
//!
//! ```text
//! caller ─ identity: its user's policies ─┐
//! bucket ─ its policy ────────────────────┴─> policy::authorize, of one key or of all keys below a prefix ─> yes or no
//! ```
//!
//! Always: what is allowed here is allowed at the S3 door, object by object; where a policy distinguishes keys below the
//! prefix that is asked about, or asks for what this door does not know of a request (an address, an object's tags), the
//! answer is no.

use makai_raft::facts::Timestamp;

use crate::identity::{Caller, Identity, UserRights};
use crate::objects::{Objects, ObjectsError};
use crate::policy::condition::Context;
use crate::policy::evaluate::{Access, Request, Verdict, authorize, authorize_below};
use crate::policy::{Account, Requester};

/// What something is to be done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach<'a> {
    /// The bucket itself.
    Bucket,
    Key(&'a str),
    /// Every key that begins so.
    Below(&'a str),
}

/// Answers for the doors. Cheap to clone.
#[derive(Clone)]
pub struct Rights {
    identity: Identity,
    objects: Objects,
}

impl Rights {
    #[must_use]
    pub fn new(identity: Identity, objects: Objects) -> Self {
        Self { identity, objects }
    }

    /// Whether `caller` may do all of `actions` (`s3:GetObject`) in `bucket`.
    ///
    /// # Errors
    /// [`ObjectsError::AccessDenied`]; the bucket is not there, or nobody can tell now.
    pub async fn check(
        &self,
        caller: &Caller,
        bucket: &str,
        actions: &[(&str, Reach<'_>)],
    ) -> Result<(), ObjectsError> {
        let user = self.identity.user(&caller.access_key_id).await;
        let user = user.map_err(|error| ObjectsError::Unavailable(error.to_string()))?;
        let access = self.objects.bucket_access(bucket).await?;
        let requester = requester_of(Some(caller), user.as_deref());
        let context = context(&requester, self.objects.time());
        let deciding = Access {
            bucket_owner: access.owner(),
            object_owner: None,
            bucket_policy: access.policy.as_ref(),
            identity_policies: user.as_ref().map(|user| user.policies.as_slice()),
            session_policy: None,
            acl: None,
            ignores_public_acls: true,
            restricts_public_policy: access.public_access().restricts_buckets,
        };
        for (action, reach) in actions {
            let resource = match reach {
                Reach::Bucket => format!("arn:aws:s3:::{bucket}"),
                Reach::Key(key) | Reach::Below(key) => format!("arn:aws:s3:::{bucket}/{key}"),
            };
            let request = Request { requester, action, resource: &resource, context: &context };
            let verdict = match reach {
                Reach::Below(_) => authorize_below(&request, &deciding),
                Reach::Bucket | Reach::Key(_) => authorize(&request, &deciding),
            };
            if verdict != Verdict::Allowed {
                return Err(ObjectsError::AccessDenied);
            }
        }
        Ok(())
    }
}

/// Who asks, by a key that its user limits; without one: its tenant itself. Nobody: anonymous.
pub(crate) fn requester_of<'a>(caller: Option<&'a Caller>, user: Option<&'a UserRights>) -> Requester<'a> {
    let Some(caller) = caller else { return Requester::Anonymous };
    let account = Account { id: caller.tenant.0, name: &caller.tenant_name };
    match user {
        None => Requester::Root(account),
        Some(UserRights { path, name, session: None, .. }) => Requester::User { account, path, name },
        Some(UserRights { path, name, session: Some(session), .. }) => {
            Requester::Role { account, path, name, session }
        }
    }
}

/// What policies are told at every door: who asks, and when.
pub(crate) fn context(requester: &Requester<'_>, now: Timestamp) -> Context {
    let mut context = Context::default();
    let seconds = now.0 / 1000;
    context.add("aws:CurrentTime", seconds.to_string());
    context.add("aws:EpochTime", seconds.to_string());
    let number = requester.account().map(|account| account.number()).unwrap_or_default();
    let (kind, id) = match requester {
        Requester::Anonymous | Requester::Federated { .. } => ("Anonymous", "anonymous".to_owned()),
        Requester::Root(account) => ("Account", account.canonical_id()),
        Requester::User { name, .. } => ("User", format!("{number}:{name}")),
        Requester::Role { name, session, .. } => ("AssumedRole", format!("{number}:{name}:{session}")),
    };
    context.add("aws:PrincipalType", kind);
    context.add("aws:userid", id);
    if let Requester::User { name, .. } = requester {
        context.add("aws:username", *name);
    }
    if requester.account().is_some() {
        context.add("aws:PrincipalAccount", number);
    }
    if let Some(arn) = requester.arn() {
        context.add("aws:PrincipalArn", arn);
    }
    context
}
