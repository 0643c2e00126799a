//! The order in which documents decide.
//!
//! ```text
//! explicit deny anywhere ─> denied
//! the owner's own root ───> allowed
//! the owner's users ──────> bucket policy that names them, or their own policies
//! other accounts ─────────> (bucket policy or access list) and, for their users, their own policies
//! anonymous ──────────────> bucket policy or access list
//! ```

use super::acl::{Acl, Permission};
use super::condition::Context;
use super::document::{Opinion, Policy};
use super::principal::{Account, Meant, Requester};

/// One thing that someone wants to do.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub requester: Requester<'a>,
    /// `s3:GetObject`
    pub action: &'a str,
    /// `arn:aws:s3:::bucket/key`
    pub resource: &'a str,
    pub context: &'a Context,
}

/// What decides about it.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// Whose the bucket is.
    pub bucket_owner: Account<'a>,
    /// Whose the object is, where that is another.
    pub object_owner: Option<u64>,
    pub bucket_policy: Option<&'a Policy>,
    /// Of the requester's user, its groups, or its role; `None`: of a root, whom its account does not limit.
    pub identity_policies: Option<&'a [Policy]>,
    /// Narrows what a temporary credential may do.
    pub session_policy: Option<&'a Policy>,
    /// The list that counts, and what of it the action needs; `None`: lists are disabled, or it needs none of theirs.
    pub acl: Option<(&'a Acl, Permission)>,
    pub ignores_public_acls: bool,
    pub restricts_public_policy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// A statement forbids it.
    ExplicitlyDenied,
    /// Nothing allows it.
    NotAllowed,
}

/// Decides.
#[must_use]
pub fn authorize(request: &Request<'_>, access: &Access<'_>) -> Verdict {
    let Request { requester, action, resource, context } = *request;
    decide(request, access, &|policy| policy.opinion(&requester, action, resource, context))
}

/// Decides about everything that begins with the request's resource: allowed is only what certainly is for all of it.
#[must_use]
pub fn authorize_below(request: &Request<'_>, access: &Access<'_>) -> Verdict {
    let Request { requester, action, resource, context } = *request;
    decide(request, access, &|policy| policy.opinion_below(&requester, action, resource, context))
}

fn decide(request: &Request<'_>, access: &Access<'_>, opinion: &dyn Fn(&Policy) -> Opinion) -> Verdict {
    let Request { requester, action, .. } = *request;
    let account = requester.account();
    let is_bucket_owner = account.is_some_and(|account| account.id == access.bucket_owner.id);
    let is_root = matches!(requester, Requester::Root(_));
    // Who locked the door can open it: S3 keeps these for the owner whatever the policy says.
    const KEPT: [&str; 3] = ["s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"];
    if is_bucket_owner && is_root && access.session_policy.is_none() && KEPT.contains(&action) {
        return Verdict::Allowed;
    }

    let bucket = access.bucket_policy.map(opinion).unwrap_or_default();
    let identity = access.identity_policies.map(|policies| {
        policies.iter().map(opinion).fold(Opinion::default(), |all, one| Opinion {
            is_denied: all.is_denied || one.is_denied,
            allows: all.allows.max(one.allows),
        })
    });
    let session = access.session_policy.map(opinion);
    if bucket.is_denied
        || identity.is_some_and(|opinion| opinion.is_denied)
        || session.is_some_and(|opinion| opinion.is_denied)
    {
        return Verdict::ExplicitlyDenied;
    }
    if session.is_some_and(|opinion| opinion.allows.is_none()) {
        return Verdict::NotAllowed;
    }

    let identity_allows = identity.is_none_or(|opinion| opinion.allows.is_some());
    let owner = access.object_owner.unwrap_or(access.bucket_owner.id);
    let is_owner = account.is_some_and(|account| account.id == owner);
    // A bucket's policy gives away what is the bucket's owner's, not what others have stored in it.
    let bucket_allows = bucket.allows.filter(|_| owner == access.bucket_owner.id).filter(|_| {
        let is_shut = access.restricts_public_policy && access.bucket_policy.is_some_and(Policy::is_public);
        is_bucket_owner || !is_shut
    });
    let acl_allows = access
        .acl
        .is_some_and(|(acl, permission)| acl.allows(&requester, permission, access.ignores_public_acls));
    let is_allowed = if is_owner {
        identity_allows || bucket_allows == Some(Meant::Itself)
    } else {
        (bucket_allows.is_some() || acl_allows) && identity_allows
    };
    if is_allowed { Verdict::Allowed } else { Verdict::NotAllowed }
}
