//! What is administered leaves a trail: the way in which doors say who did it.
//!
//! ```text
//! request ─ scope(asker) ─> ... ─> Audited.propose ─ administers? ─> command with the deed that it is ─> facts
//! ```
//!
//! Always: a command that administers goes with its deed, so that the one is written where the other is; data goes as it is.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use makai_raft::facts::audit::{self, Deed};
use makai_raft::facts::command::{Command, Reply};
use makai_raft::facts::identity::IdentityCommand;
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::{QuotaOf, TenantId};
use makai_raft::facts::version::VersionCommand;
use makai_raft::handle::{MetaError, Metadata};

/// Who asks, as far as it is known when the facts are about to change.
pub trait Asker: Send + Sync {
    /// `action` and `target` may stay empty: the command's own names stand in for them.
    fn deed(&self) -> Deed;
}

tokio::task_local! {
    static ASKER: Arc<dyn Asker>;
}

/// Runs a request whose changes are `asker`'s.
pub async fn scope<F: Future>(asker: Arc<dyn Asker>, request: F) -> F::Output {
    ASKER.scope(asker, request).await
}

/// The facts; who changes them is the asker of the request under way, else `always`, else nobody who is written down.
pub struct Audited {
    facts: Arc<dyn Metadata>,
    always: Option<Arc<dyn Asker>>,
}

impl Audited {
    /// For a door that tells who asks by [`scope`].
    #[must_use]
    pub fn new(facts: Arc<dyn Metadata>) -> Self {
        Self { facts, always: None }
    }

    /// For one that always asks for the same.
    #[must_use]
    pub fn always(facts: Arc<dyn Metadata>, asker: Arc<dyn Asker>) -> Self {
        Self { facts, always: Some(asker) }
    }
}

#[async_trait]
impl Metadata for Audited {
    async fn propose(&self, command: Command) -> Result<Reply, MetaError> {
        let asker = ASKER.try_with(Arc::clone).ok().or_else(|| self.always.clone());
        let (Some(asker), Some((action, target))) = (asker, administers(&command)) else {
            return self.facts.propose(command).await;
        };
        let mut deed = asker.deed();
        if deed.action.is_empty() {
            action.clone_into(&mut deed.action);
        } else if let Some(door) = deed.action.strip_suffix(':') {
            deed.action = format!("{door}:{action}");
        }
        if deed.target.is_empty() {
            deed.target = target;
        }
        let audited = audit::Audited { deed, command: Box::new(command) };
        self.facts.propose(Command::Audited(audited)).await
    }

    async fn query(&self, query: Query) -> Result<Answer, MetaError> {
        self.facts.query(query).await
    }
}

/// What a command administers: its name, and of what it is. `None`: data, or what nodes do among themselves.
fn administers(command: &Command) -> Option<(&'static str, String)> {
    let bucket = |name: &str| format!("arn:aws:s3:::{name}");
    let account = |tenant: &TenantId| format!("arn:aws:iam::{:012}:root", tenant.0);
    let user = |tenant: &TenantId, name: &str| format!("arn:aws:iam::{:012}:user/{name}", tenant.0);
    Some(match command {
        Command::CreateTenant { name, .. } => ("CreateTenant", format!("tenant/{name}")),
        Command::SetTenantQuota { tenant, .. } => ("SetQuota", account(tenant)),
        Command::SetQuota { of: QuotaOf::Tenant(tenant), .. } => ("SetQuota", account(tenant)),
        Command::SetQuota { of: QuotaOf::Bucket(name), .. } => ("SetQuota", bucket(name)),
        Command::PutAccessKey { key } => ("CreateAccessKey", format!("access-key/{}", key.id)),
        Command::DeleteAccessKey { id } => ("DeleteAccessKey", format!("access-key/{id}")),
        Command::CreateBucket { name, .. } => ("CreateBucket", bucket(name)),
        Command::DeleteBucket { name } => ("DeleteBucket", bucket(name)),
        Command::SetBucketDocument { name, document, .. } => {
            ("SetBucketDocument", format!("{} {document}", bucket(name)))
        }
        Command::Identity(command) => match command {
            IdentityCommand::SetObjectAcl { .. } => return None,
            IdentityCommand::PutUser { user: put } => ("PutUser", user(&put.tenant, &put.name)),
            IdentityCommand::DeleteUser { tenant, name } => ("DeleteUser", user(tenant, name)),
            IdentityCommand::RenameUser { tenant, name, .. } => ("RenameUser", user(tenant, name)),
            IdentityCommand::SetKeyUser { id, .. } => ("SetKeyUser", format!("access-key/{id}")),
            IdentityCommand::SetKeyEnabled { id, .. } => ("SetKeyEnabled", format!("access-key/{id}")),
            IdentityCommand::SetDirectory { tenant, .. } => ("SetDirectory", account(tenant)),
        },
        Command::Version(command) => match command {
            VersionCommand::CreateLockedBucket { name, .. } => ("CreateBucket", bucket(name)),
            VersionCommand::SetVersioning { bucket: name, .. } => ("SetVersioning", bucket(name)),
            VersionCommand::SetBucketLock { bucket: name, .. } => ("SetBucketLock", bucket(name)),
            VersionCommand::SetLifecycle { bucket: name, .. } => ("SetLifecycle", bucket(name)),
            _ => return None,
        },
        Command::CreateJoinToken { token } => ("CreateJoinToken", format!("join-token/{}", token.id)),
        Command::SetNodeStanding { node, .. } => ("SetNodeStanding", format!("node/{node}")),
        Command::SetDiskStanding { disk, .. } => ("SetDiskStanding", format!("disk/{disk}")),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Taker(Mutex<Vec<Command>>);

    #[async_trait]
    impl Metadata for Taker {
        async fn propose(&self, command: Command) -> Result<Reply, MetaError> {
            self.0.lock().unwrap().push(command);
            Ok(Reply::Done)
        }

        async fn query(&self, _query: Query) -> Result<Answer, MetaError> {
            Err(MetaError::Overloaded)
        }
    }

    struct Ann(&'static str);

    impl Asker for Ann {
        fn deed(&self) -> Deed {
            Deed { by: "ann".into(), action: self.0.into(), ..Deed::default() }
        }
    }

    #[tokio::test]
    async fn what_administers_goes_with_its_deed_and_data_goes_as_it_is() {
        let taker = Arc::new(Taker::default());
        let facts = Audited::new(Arc::clone(&taker) as Arc<dyn Metadata>);
        let delete = || Command::DeleteBucket { name: "photos".into() };
        facts.propose(delete()).await.unwrap();
        assert_eq!(taker.0.lock().unwrap().pop(), Some(delete()), "nobody asks");
        for (action, expected) in
            [("", "DeleteBucket"), ("operator:", "operator:DeleteBucket"), ("s3:X", "s3:X")]
        {
            scope(Arc::new(Ann(action)), facts.propose(delete())).await.unwrap();
            let Some(Command::Audited(audit::Audited { deed, command })) = taker.0.lock().unwrap().pop()
            else {
                panic!("it administers")
            };
            assert_eq!((deed.by.as_str(), deed.action.as_str()), ("ann", expected));
            assert_eq!((deed.target.as_str(), *command), ("arn:aws:s3:::photos", delete()));
        }
        let data = || Command::AbortUpload { bucket: "b".into(), key: "k".into(), upload_id: "u".into() };
        scope(Arc::new(Ann("")), facts.propose(data())).await.unwrap();
        assert_eq!(taker.0.lock().unwrap().pop(), Some(data()));
    }
}
