//! Who may send which request: the door's guard, before an operation sees it.
//!
//! ```text
//! request ─ who (key, or anonymous) ─> checks of its operation ─ bucket's documents (+ the object's list) ─> verdict
//!     ─> the operation, acting for the bucket's owner
//! ```
//!
//! | room        | holds                                                         |
//! |-------------|---------------------------------------------------------------|
//! | `operation` | what each operation must be allowed                           |
//! | `request`   | what policies are told of a request                           |
//! | `grants`    | access lists in headers and XML                               |
//!
//! Always: an operation runs only after its checks; what it needs to know of the requester is in [`Granted`]; the
//! [`Caller`] that it is given names the tenant whose bucket it works on, so that no operation can reach another's.

pub(super) mod grants;
mod operation;
mod request;

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderName, HeaderValue};
use makai_raft::facts::Timestamp;
use makai_raft::facts::command::Refusal;
use makai_raft::facts::object::{ObjectHead, ObjectHeaders};
use makai_raft::facts::version::VersionId;
use s3s::access::{S3Access, S3AccessContext};
use s3s::dto::CopySource;
use s3s::path::S3Path;
use s3s::{S3Error, S3Request, S3Result, s3_error};

use self::operation::{Check, ListOf, checks};
use self::request::Facts;
use super::body::Notes;
use super::encryption;
use super::errors::{custom, refused, unidentified};
use crate::identity::session::{Lender, SESSION_ID_PREFIX, Session, SessionError};
use crate::identity::{Caller, Identity, Secret, UserRights};
use crate::objects::documents::{BucketAccess, Ownership};
use crate::objects::sealing::Sealing;
use crate::objects::{Objects, ObjectsError};
use crate::policy::acl::{Acl, Permission};
use crate::policy::condition::Context;
use crate::policy::document::Kind;
use crate::policy::evaluate::{Access as Deciding, Request, Verdict, authorize};
use crate::policy::principal::{account_of, canonical_id};
use crate::policy::{Account, Policy, Requester};
use crate::rights::requester_of;

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) address: Option<SocketAddr>,
    pub(super) is_tls: bool,
}

/// Who sent a request; put into it once its signature is verified.
#[derive(Debug, Clone)]
pub(super) struct Who {
    /// `None`: anonymous.
    pub(super) caller: Option<Caller>,
    /// What limits the key; `None`: it is its tenant's own.
    user: Option<Arc<UserRights>>,
    /// Narrows what a temporary key may.
    session: Option<SessionRights>,
}

/// That a key is temporary, and what narrows it.
#[derive(Debug, Clone)]
struct SessionRights {
    policy: Option<Arc<Policy>>,
}

tokio::task_local! {
    /// The token that came with the request under way.
    pub(super) static SESSION_TOKEN: Option<String>;
}

/// What the token of the request under way holds, where `access_key` is a temporary one.
pub(super) fn session_of(identity: &Identity, access_key: &str, now: Timestamp) -> S3Result<Option<Session>> {
    let token = SESSION_TOKEN.try_with(Clone::clone).ok().flatten();
    let is_temporary = access_key.starts_with(SESSION_ID_PREFIX);
    let Some(token) = token.filter(|_| is_temporary) else { return Ok(None) };
    identity.session(access_key, &token, now).map(Some).map_err(|error| match error {
        SessionError::Invalid => {
            custom("InvalidToken", 400, "The provided token is malformed or otherwise invalid.")
        }
        SessionError::Ended => custom("ExpiredToken", 400, "The provided token has expired."),
    })
}

impl Who {
    fn account(&self) -> Option<Account<'_>> {
        let caller = self.caller.as_ref()?;
        Some(Account { id: caller.tenant.0, name: &caller.tenant_name })
    }

    /// Whether the key is a temporary one.
    pub(super) fn is_session(&self) -> bool {
        self.session.is_some()
    }

    /// Whether something but its account limits the requester.
    pub(super) fn is_limited(&self) -> bool {
        self.user.is_some() || self.session_policy().is_some()
    }

    fn session_policy(&self) -> Option<&Policy> {
        self.session.as_ref()?.policy.as_deref()
    }

    pub(super) fn requester(&self) -> Requester<'_> {
        requester_of(self.caller.as_ref(), self.user.as_deref())
    }
}

/// What an operation may know of how its request was let in.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) who: Who,
    /// The bucket that the request names.
    pub(super) bucket: Option<Arc<BucketAccess>>,
    /// The access list of what the request makes; `None`: its bucket's owner's alone.
    pub(super) new_acl: Option<Acl>,
    /// How what the request makes is sealed, or what it brings to open what it reads.
    pub(super) sealing: Sealing,
    /// Whether it is refused where that does not open the object.
    opens: bool,
    /// Of the source that a copy names.
    source: Option<Box<Granted>>,
    notes: Option<Arc<Notes>>,
    facts: Facts,
    checks: Vec<Check>,
}

/// The grant of a request.
pub(super) fn granted<T>(request: &S3Request<T>) -> S3Result<Arc<Granted>> {
    request.extensions.get::<Arc<Granted>>().cloned().ok_or_else(denied)
}

pub(super) fn denied() -> S3Error {
    s3_error!(AccessDenied, "Access Denied")
}

impl Granted {
    /// The bucket that the request names.
    pub(super) fn bucket(&self) -> S3Result<&BucketAccess> {
        self.bucket.as_deref().ok_or_else(denied)
    }

    /// The text to keep of the list of a new object.
    pub(super) fn new_acl_text(&self) -> Option<String> {
        let owner = self.bucket.as_ref()?.bucket.tenant.0;
        self.new_acl.as_ref().filter(|acl| **acl != Acl::private(owner)).map(Acl::to_text)
    }

    /// Refuses what the object at hand, unlike the one looked at before, does not allow.
    pub(super) fn check_object(&self, head: &ObjectHead) -> S3Result<()> {
        let access = self.bucket()?;
        for check in &self.checks {
            if self.verdict(access, check, Some(head)) != Verdict::Allowed {
                return Err(denied());
            }
        }
        if self.opens {
            self.sealing.of_object(&head.headers).map_err(|fault| refused(fault.into()))?;
            self.say_sealing(&head.headers);
        }
        Ok(())
    }

    /// Has the answer say how an object is encrypted.
    pub(super) fn say_sealing(&self, headers: &ObjectHeaders) {
        if let Some(notes) = &self.notes {
            notes.say(encryption::answer_headers(headers, &self.sealing));
        }
    }

    /// Has the answer say how many tags an object has, where the operation's own answer has no field for it.
    pub(super) fn say_tag_count(&self, count: Option<i32>) {
        if let (Some(notes), Some(count)) = (&self.notes, count) {
            notes.say(vec![(HeaderName::from_static("x-amz-tagging-count"), HeaderValue::from(count))]);
        }
    }

    /// The objects, sealed and opened with what the request says.
    pub(super) fn sealed(&self, objects: &Objects) -> Objects {
        objects.sealed_by(self.sealing.clone())
    }

    /// Completes the headers of a new object by its list and its encryption, and has the answer say the latter.
    pub(super) fn complete(&self, headers: &mut ObjectHeaders) -> S3Result<()> {
        headers.acl = self.new_acl_text();
        headers.encryption = self.sealing.mark().map_err(refused)?;
        self.say_sealing(headers);
        Ok(())
    }

    /// Whether what is made is said to be another server's replica; who may not say so is refused.
    pub(super) fn makes_replica(&self, headers: &http::HeaderMap, key: &str) -> S3Result<bool> {
        if headers.get("x-amz-replication-status").is_none_or(|status| status != "REPLICA") {
            return Ok(false);
        }
        self.allows("s3:ReplicateObject", key, Permission::FullControl)?;
        Ok(true)
    }

    /// The objects, for a part of an upload: sealed as the upload says, with the key that the part brings.
    pub(super) fn of_upload(&self, objects: &Objects, upload: &ObjectHeaders) -> S3Result<Objects> {
        let sealing = self.sealing.of_object(upload).map_err(|fault| refused(fault.into()))?;
        self.say_sealing(upload);
        Ok(objects.sealed_by(sealing))
    }

    /// For whom a copy's source is read, and what must hold of the version that is read.
    pub(super) fn source(&self) -> S3Result<(Caller, &Self)> {
        let source = self.source.as_deref().ok_or_else(denied)?;
        Ok((acting(source).ok_or_else(denied)?, source))
    }

    /// Whether the requester may delete a key.
    pub(super) fn allows_delete(&self, key: &str, names_version: bool) -> S3Result<()> {
        let action = if names_version { "s3:DeleteObjectVersion" } else { "s3:DeleteObject" };
        self.allows(action, key, Permission::Write)
    }

    /// Whether the requester may end the retention of a key's versions early: the owner, and who a policy says.
    pub(super) fn allows_bypass(&self, key: &str) -> bool {
        let check = Check {
            action: "s3:BypassGovernanceRetention",
            key: Some(key.to_owned()),
            permission: None,
            list: ListOf::Bucket,
        };
        self.bucket().is_ok_and(|access| self.verdict(access, &check, None) == Verdict::Allowed)
    }

    /// Whether the requester may also do `action` to a key, by the bucket's documents.
    pub(super) fn allows(&self, action: &'static str, key: &str, permission: Permission) -> S3Result<()> {
        let check =
            Check { action, key: Some(key.to_owned()), permission: Some(permission), list: ListOf::Bucket };
        match self.verdict(self.bucket()?, &check, None) {
            Verdict::Allowed => Ok(()),
            _ => Err(denied()),
        }
    }

    fn verdict(&self, access: &BucketAccess, check: &Check, head: Option<&ObjectHead>) -> Verdict {
        let name = &access.bucket.name;
        let resource = match &check.key {
            Some(key) => format!("arn:aws:s3:::{name}/{key}"),
            None => format!("arn:aws:s3:::{name}"),
        };
        let is_enforced = access.ownership() == Ownership::BucketOwnerEnforced;
        let own_list;
        let mut object_owner = None;
        let list = match (check.list, head) {
            (ListOf::Bucket, _) => Some(&access.acl),
            (ListOf::Object, None) => None,
            (ListOf::Object, Some(head)) => {
                own_list = object_acl(access, head);
                object_owner = Some(own_list.owner).filter(|_| !is_enforced);
                Some(&own_list)
            }
        };
        let with_tags;
        let context = match head.and_then(|head| head.headers.tagging.as_deref()) {
            Some(tagging) if access.policy.is_some() || self.who.is_limited() => {
                with_tags = self.facts.with_tags(tagging);
                &with_tags
            }
            _ => &self.facts.context,
        };
        let request =
            Request { requester: self.who.requester(), action: check.action, resource: &resource, context };
        let shut = access.public_access();
        authorize(
            &request,
            &Deciding {
                bucket_owner: access.owner(),
                object_owner,
                bucket_policy: access.policy.as_ref(),
                identity_policies: self.who.user.as_ref().map(|user| user.policies.as_slice()),
                session_policy: self.who.session_policy(),
                acl: list.zip(check.permission).filter(|_| !is_enforced),
                ignores_public_acls: shut.ignores_acls,
                restricts_public_policy: shut.restricts_buckets,
            },
        )
    }
}

/// Whose an object is, and what others may do with it.
pub(super) fn object_acl(access: &BucketAccess, head: &ObjectHead) -> Acl {
    let own = head.headers.acl.as_deref().and_then(Acl::from_text);
    own.unwrap_or_else(|| Acl::private(access.bucket.tenant.0))
}

/// The guard.
pub(super) struct Guard {
    pub(super) identity: Identity,
    pub(super) objects: Objects,
}

#[async_trait]
impl S3Access for Guard {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let operation = cx.s3_op().name().to_owned();
        let notes = cx.extensions_mut().get::<Arc<Notes>>().cloned();
        if let Some(notes) = &notes {
            let _ = notes.operation.set(operation.clone());
        }
        let who = match cx.extensions_mut().get::<Who>() {
            Some(who) => who.clone(),
            None => self.who(cx.credentials().map(|credentials| credentials.access_key.as_str())).await?,
        };
        if let (Some(notes), Some(requester)) = (&notes, who.logged_as()) {
            let _ = notes.requester.set(requester);
        }
        let peer = cx.extensions_mut().get::<Peer>().copied();
        let (name, key) = match cx.s3_path() {
            S3Path::Root => (None, None),
            S3Path::Bucket { bucket } => (Some(&**bucket), None),
            S3Path::Object { bucket, key } => (Some(&**bucket), Some(&**key)),
        };
        let origin = (peer, notes);
        let granted = self.grant(&operation, who, name, key, cx.uri(), cx.headers(), origin).await?;
        if let Some(acting) = acting(&granted) {
            cx.extensions_mut().insert(acting);
        }
        cx.extensions_mut().insert(Arc::new(granted));
        Ok(())
    }
}

/// The owner for whom the operation works, by the requester's key; a caller by itself where no bucket is named.
pub(super) fn acting(granted: &Granted) -> Option<Caller> {
    let caller = granted.who.caller.as_ref();
    match &granted.bucket {
        Some(access) => Some(Caller {
            tenant: access.bucket.tenant,
            tenant_name: access.tenant_name.clone(),
            access_key_id: caller.map(|caller| caller.access_key_id.clone()).unwrap_or_default(),
        }),
        None => caller.cloned(),
    }
}

/// The version that a query names.
fn version_of(query: &str) -> Option<VersionId> {
    query.split('&').find_map(|pair| VersionId::parse(pair.strip_prefix("versionId=")?))
}

impl Guard {
    /// Who has a key; without one: anonymous.
    pub(super) async fn who(&self, access_key: Option<&str>) -> S3Result<Who> {
        let Some(access_key) = access_key else {
            return Ok(Who { caller: None, user: None, session: None });
        };
        let session = session_of(&self.identity, access_key, self.objects.time())?;
        let (caller, user) = match session.as_ref().map(|session| &session.lender) {
            Some(Lender::Role(role)) => {
                let role =
                    self.identity.role(role, access_key).await.map_err(|error| unidentified(&error))?;
                let (caller, rights) = role.ok_or_else(role_gone)?;
                (caller, Some(rights))
            }
            lender => {
                let key = match lender {
                    Some(Lender::Key(key)) => key.as_str(),
                    _ => access_key,
                };
                let caller = self.identity.caller(key).await.map_err(|error| unidentified(&error))?;
                (caller, self.identity.user(key).await.map_err(|error| unidentified(&error))?)
            }
        };
        if !self.identity.admit(caller.tenant, &caller.access_key_id).await {
            return Err(s3_error!(
                SlowDown,
                "Please reduce your request rate: this access key has a limit, which it has reached."
            ));
        }
        let rights = |session: &Session| -> S3Result<SessionRights> {
            let policy = session.policy.as_ref();
            let policy = policy.map(|text| Policy::parse(text.as_bytes(), Kind::Identity)).transpose();
            Ok(SessionRights { policy: policy.map_err(|_| denied())?.map(Arc::new) })
        };
        let session = session.as_ref().map(rights).transpose()?;
        Ok(Who { caller: Some(caller), user, session })
    }

    /// The secret of a key. A temporary one's stands in the token at hand.
    pub(super) async fn secret(&self, access_key: &str) -> S3Result<Secret> {
        let Some(session) = session_of(&self.identity, access_key, self.objects.time())? else {
            return self.identity.secret(access_key).await.map_err(|error| unidentified(&error));
        };
        // What it borrows from may be gone.
        match &session.lender {
            Lender::Key(key) => {
                self.identity.secret(key).await.map_err(|error| unidentified(&error))?;
            }
            Lender::Role(role) => {
                let role = self.identity.role(role, access_key).await;
                role.map_err(|error| unidentified(&error))?.ok_or_else(role_gone)?;
            }
        }
        Ok(session.secret)
    }

    /// Whether a request may do `operation`, by what its headers say.
    pub(super) async fn grant(
        &self,
        operation: &str,
        who: Who,
        name: Option<&str>,
        key: Option<&str>,
        uri: &http::Uri,
        headers: &http::HeaderMap,
        (peer, notes): (Option<Peer>, Option<Arc<Notes>>),
    ) -> S3Result<Granted> {
        let now = self.objects.time();
        let (Some(name), false) = (name, operation == "CreateBucket") else {
            if who.caller.is_none() {
                return Err(anonymous());
            }
            let facts = Facts::of_request(&who, uri.query().unwrap_or_default(), headers, peer, now);
            check_own(&who, operation, name, &facts)?;
            return Ok(Granted {
                who,
                bucket: None,
                new_acl: None,
                sealing: Sealing::Tenant,
                opens: false,
                source: None,
                notes: None,
                facts,
                checks: Vec::new(),
            });
        };
        let access = self.objects.bucket_access(name).await.map_err(refused)?;
        check_owner(headers, "x-amz-expected-bucket-owner", &access)?;
        let query = uri.query().unwrap_or_default();
        if access.requester_pays {
            let pays = check_payer(&who, query, headers, &access)?;
            if let Some(notes) = notes.as_ref().filter(|_| pays) {
                let charged = http::HeaderValue::from_static("requester");
                notes.say(vec![(http::HeaderName::from_static("x-amz-request-charged"), charged)]);
            }
        }
        // Without a policy nothing of it is asked for.
        let facts = if access.policy.is_some() || who.is_limited() {
            Facts::of_request(&who, query, headers, peer, now)
        } else {
            Facts::default()
        };
        let checks = checks(operation, key, query, headers);
        let source = match operation {
            "CopyObject" | "UploadPartCopy" => self.grant_source(&who, query, headers, peer, now).await?,
            _ => None,
        };
        let bucket = Some(Arc::clone(&access));
        let opens = matches!(operation, "GetObject" | "HeadObject" | "GetObjectAttributes");
        let sealing = Sealing::Tenant;
        let mut granted =
            Granted { who, bucket, new_acl: None, sealing, opens, source, notes, facts, checks };
        let head = self.head_if_needed(&granted, &access, key, version_of(query)).await?;
        for check in &granted.checks {
            if granted.verdict(&access, check, head.as_ref()) != Verdict::Allowed {
                return Err(self.refusal(&granted, &access, check, head.as_ref(), name, key).await);
            }
        }
        if operation::makes_object(operation) {
            granted.new_acl = self.new_object_acl(&granted, &access, headers).await?;
            let asked = encryption::of_new(headers, &access)?;
            granted.sealing =
                self.objects.with_version(access.bucket.tenant, asked).await.map_err(refused)?;
        } else {
            granted.sealing = encryption::to_open(headers, opens)?;
        }
        Ok(granted)
    }

    /// Whether the source of a copy may be read. A source that cannot be understood is left to the operation.
    async fn grant_source(
        &self,
        who: &Who,
        query: &str,
        headers: &http::HeaderMap,
        peer: Option<Peer>,
        now: Timestamp,
    ) -> S3Result<Option<Box<Granted>>> {
        let source = headers.get("x-amz-copy-source").and_then(|source| source.to_str().ok());
        let Some(Ok(CopySource::Bucket { bucket, key, version_id })) = source.map(CopySource::parse) else {
            return Ok(None);
        };
        let access = self.objects.bucket_access(&bucket).await.map_err(refused)?;
        check_owner(headers, "x-amz-source-expected-bucket-owner", &access)?;
        let facts = if access.policy.is_some() || who.is_limited() {
            Facts::of_request(who, query, headers, peer, now)
        } else {
            Facts::default()
        };
        let version = version_id.as_deref().and_then(VersionId::parse);
        let named = version_id.map_or("", |_| "versionId=");
        let checks = checks("GetObject", Some(&key), named, headers);
        let granted = Granted {
            who: who.clone(),
            bucket: Some(Arc::clone(&access)),
            new_acl: None,
            sealing: encryption::to_open_source(headers)?,
            opens: true,
            source: None,
            notes: None,
            facts,
            checks,
        };
        let head = self.head_if_needed(&granted, &access, Some(&key), version).await?;
        for check in &granted.checks {
            if granted.verdict(&access, check, head.as_ref()) != Verdict::Allowed {
                let name = access.bucket.name.clone();
                return Err(self.refusal(&granted, &access, check, head.as_ref(), &name, Some(&key)).await);
            }
        }
        Ok(Some(Box::new(granted)))
    }

    /// The object, where what may be done depends on it: its list or its tags.
    async fn head_if_needed(
        &self,
        granted: &Granted,
        access: &BucketAccess,
        key: Option<&str>,
        version: Option<VersionId>,
    ) -> S3Result<Option<ObjectHead>> {
        let Some(key) = key else { return Ok(None) };
        let is_owner = granted.who.account().is_some_and(|account| account.id == access.bucket.tenant.0);
        let own = granted.who.user.iter().flat_map(|user| &user.policies).chain(granted.who.session_policy());
        let asks_tags =
            access.policy.iter().chain(own).any(|policy| policy.asks_for("s3:existingobjecttag/"));
        let asks_list = granted.checks.iter().any(|check| check.list == ListOf::Object);
        // The owner's own reads are checked against the very version that is read.
        if !(asks_tags || asks_list && !is_owner) {
            return Ok(None);
        }
        let Some(acting) = acting(granted) else { return Ok(None) };
        match self.objects.find(&acting, &access.bucket.name, key, version).await {
            Ok(found) => Ok(Some(found.head)),
            Err(ObjectsError::Refused(Refusal::NoSuchKey | Refusal::Version(_))) => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }

    /// Who may not list a bucket does not learn which keys it lacks.
    async fn refusal(
        &self,
        granted: &Granted,
        access: &BucketAccess,
        check: &Check,
        head: Option<&ObjectHead>,
        name: &str,
        key: Option<&str>,
    ) -> S3Error {
        let may_list = {
            let permission = Some(Permission::Read);
            let check = Check { action: "s3:ListBucket", key: None, permission, list: ListOf::Bucket };
            granted.verdict(access, &check, None) == Verdict::Allowed
        };
        if let Some(key) = key.filter(|_| check.list == ListOf::Object && head.is_none() && may_list)
            && let Some(acting) = acting(granted)
            && let Err(error @ ObjectsError::Refused(_)) = self.objects.head(&acting, name, key).await
        {
            return refused(error);
        }
        denied()
    }

    /// The list that a new object gets, from what the request's headers say.
    async fn new_object_acl(
        &self,
        granted: &Granted,
        access: &BucketAccess,
        headers: &http::HeaderMap,
    ) -> S3Result<Option<Acl>> {
        let asked = grants::Asked::of_headers(headers)?;
        self.object_acl_of(granted, access, &asked).await
    }

    async fn object_acl_of(
        &self,
        granted: &Granted,
        access: &BucketAccess,
        asked: &grants::Asked,
    ) -> S3Result<Option<Acl>> {
        let bucket_owner = access.bucket.tenant.0;
        let writer = granted.who.account().map_or(bucket_owner, |account| account.id);
        let gives_to_owner = asked.canned.as_deref() == Some("bucket-owner-full-control");
        let ownership = access.ownership();
        if ownership == Ownership::BucketOwnerEnforced {
            if asked.is_none() || gives_to_owner {
                return Ok(None);
            }
            return Err(lists_not_supported());
        }
        let owner = match ownership {
            Ownership::BucketOwnerPreferred if gives_to_owner => bucket_owner,
            _ => writer,
        };
        let acl = asked.list(&self.objects, owner, bucket_owner).await?;
        if acl.is_public() && access.public_access().blocks_acls {
            return Err(denied());
        }
        // Who may only put may not give away.
        let gives_away = !acl.is_within(&access.owner());
        let is_limited = writer != bucket_owner && access.policy.is_some() || granted.who.is_limited();
        if gives_away && is_limited {
            for check in granted.checks.iter().filter(|check| check.action == "s3:PutObject") {
                let own = Check { action: "s3:PutObjectAcl", ..check.clone() };
                if granted.verdict(access, &own, None) != Verdict::Allowed {
                    return Err(denied());
                }
            }
        }
        Ok(Some(acl))
    }
}

impl Who {
    /// Whether the requester may do something to what is its tenant's own, for which there is no bucket to ask.
    pub(super) fn may(&self, action: &str, resource: &str, context: &Context) -> bool {
        let Some(account) = self.account() else { return false };
        let request = Request { requester: self.requester(), action, resource, context };
        let deciding = Deciding {
            bucket_owner: account,
            object_owner: None,
            bucket_policy: None,
            identity_policies: self.user.as_ref().map(|user| user.policies.as_slice()),
            session_policy: self.session_policy(),
            acl: None,
            ignores_public_acls: false,
            restricts_public_policy: false,
        };
        authorize(&request, &deciding) == Verdict::Allowed
    }

    /// What the requester's own policies are told of a call that names no bucket.
    pub(super) fn context(&self, headers: &http::HeaderMap, peer: Option<Peer>, now: Timestamp) -> Context {
        Facts::of_request(self, "", headers, peer, now).context
    }

    /// How logs name the requester.
    pub(super) fn logged_as(&self) -> Option<String> {
        match self.requester() {
            Requester::Root(account) => Some(account.canonical_id()),
            other => other.arn(),
        }
    }

    /// The name of the user; `None`: a tenant's own key, or a role.
    pub(super) fn user_name(&self) -> Option<&str> {
        self.user.as_deref().filter(|user| user.session.is_none()).map(|user| user.name.as_str())
    }
}

/// The role of a session is no more.
pub(super) fn role_gone() -> S3Error {
    s3_error!(InvalidAccessKeyId, "The role of these temporary credentials does not exist any more.")
}

/// What a user does with no bucket of its tenant's yet: its own policies decide.
fn check_own(who: &Who, operation: &str, name: Option<&str>, facts: &Facts) -> S3Result<()> {
    if !who.is_limited() {
        return Ok(());
    }
    let action = if operation == "CreateBucket" { "s3:CreateBucket" } else { "s3:ListAllMyBuckets" };
    let resource = format!("arn:aws:s3:::{}", name.unwrap_or("*"));
    if who.may(action, &resource, &facts.context) { Ok(()) } else { Err(denied()) }
}

pub(super) fn lists_not_supported() -> S3Error {
    custom("AccessControlListNotSupported", 400, "The bucket does not allow ACLs")
}

pub(super) fn anonymous() -> S3Error {
    s3_error!(
        AccessDenied,
        "Anonymous access is not allowed: sign the request (SigV4) with an access key, or use a presigned URL."
    )
}

/// Refuses those who do not say that they know that they pay: anybody but the owner.
fn check_payer(who: &Who, query: &str, headers: &http::HeaderMap, access: &BucketAccess) -> S3Result<bool> {
    let is_owner = who.account().is_some_and(|account| account.id == access.bucket.tenant.0);
    let says = headers.get("x-amz-request-payer").is_some_and(|payer| payer == "requester")
        || query.split('&').any(|pair| pair == "x-amz-request-payer=requester");
    if is_owner || says && who.caller.is_some() { Ok(!is_owner) } else { Err(denied()) }
}

/// Refuses a request whose sender thought that the bucket was another's.
pub(super) fn check_owner(headers: &http::HeaderMap, header: &str, access: &BucketAccess) -> S3Result<()> {
    let Some(expected) = headers.get(header) else { return Ok(()) };
    let owner = access.owner();
    let expected = expected.as_bytes();
    if expected == owner.canonical_id().as_bytes() || expected == owner.number().as_bytes() {
        return Ok(());
    }
    Err(denied())
}

/// The account that a canonical id names, if there is one.
pub(super) async fn known_account(objects: &Objects, id: &str) -> S3Result<Option<u64>> {
    let Some(account) = account_of(id).filter(|account| canonical_id(*account) == id) else {
        return Ok(None);
    };
    Ok(objects.tenant_name(account).await.map_err(refused)?.map(|_| account))
}
