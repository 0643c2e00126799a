//! What doors read and change of a tenant's users, keys and directory.

use std::sync::Arc;

use bytes::Bytes;
use makai_raft::facts::Timestamp;
use makai_raft::facts::command::{Command, Refusal};
use makai_raft::facts::identity::{IdentityAnswer, IdentityCommand, IdentityQuery, User};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::{AccessKey, TenantId};
use makai_raft::handle::MetaError;

use super::directory::{Directory, path_or_root};
use super::session::RoleSession;
use super::{
    Caller, Identity, IdentityError, NewAccessKey, PURPOSE_SECRET, UserRights, compile, new_access_key,
    seal_secret, unexpected_answer,
};

/// How often a change of a directory is made anew because another came first.
const CHANGES_MAX: usize = 16;

/// Why a change of users, keys or a directory was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError<E> {
    /// By the rule of who asked for it.
    #[error("refused")]
    Refused(E),
    #[error(transparent)]
    Facts(#[from] MetaError),
    #[error("{0}")]
    Internal(String),
}

impl Identity {
    /// A tenant's name.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn tenant_name(&self, id: TenantId) -> Result<String, IdentityError> {
        if let Some(name) = self.inner.tenant_names.get(&id) {
            return Ok(name);
        }
        match self.inner.metadata.query(Query::Tenant { id }).await {
            Ok(Answer::Tenant(tenant)) => {
                self.inner.tenant_names.put(id, tenant.name.clone());
                Ok(tenant.name)
            }
            Ok(_) => Err(unexpected_answer()),
            Err(MetaError::Refused(_)) => Err(IdentityError::UnknownTenant(id)),
            Err(error) => Err(IdentityError::Unavailable(error.to_string())),
        }
    }

    /// A tenant's directory, as it is or was less than [`CACHE_TTL`](super::CACHE_TTL) ago.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn directory(&self, tenant: TenantId) -> Result<Arc<Directory>, IdentityError> {
        if let Some(directory) = self.inner.directories.get(&tenant) {
            return Ok(directory);
        }
        let (_, directory) = self.read_directory(tenant).await.map_err(|error| match error {
            ChangeError::Facts(MetaError::Refused(_)) => IdentityError::UnknownTenant(tenant),
            ChangeError::Facts(error) => IdentityError::Unavailable(error.to_string()),
            ChangeError::Refused(()) => unexpected_answer(),
            ChangeError::Internal(why) => IdentityError::Unavailable(why),
        })?;
        let directory = Arc::new(directory);
        self.inner.directories.put(tenant, Arc::clone(&directory));
        Ok(directory)
    }

    /// A tenant's directory as it is, and its revision.
    ///
    /// # Errors
    /// The facts do not answer, or what they hold cannot be read.
    pub async fn read_directory<E>(&self, tenant: TenantId) -> Result<(u64, Directory), ChangeError<E>> {
        let query = Query::Identity(IdentityQuery::Directory { tenant });
        match self.inner.metadata.query(query).await? {
            Answer::Identity(IdentityAnswer::Directory(read)) if read.revision == 0 => {
                Ok((0, Directory::default()))
            }
            Answer::Identity(IdentityAnswer::Directory(read)) => {
                let directory = serde_json::from_slice(&read.text).map_err(|error| {
                    ChangeError::Internal(format!("a tenant's directory is damaged: {error}"))
                })?;
                Ok((read.revision, directory))
            }
            _ => Err(ChangeError::Internal(unexpected_answer().to_string())),
        }
    }

    /// Changes a tenant's directory; `change` is called anew where another change came first.
    ///
    /// # Errors
    /// `change` refuses, or the facts do.
    pub async fn change_directory<T, E>(
        &self,
        tenant: TenantId,
        change: impl FnMut(&mut Directory) -> Result<T, E>,
    ) -> Result<T, ChangeError<E>> {
        let set = |revision, text| IdentityCommand::SetDirectory { tenant, revision, text };
        self.change_directory_by(tenant, change, set).await
    }

    /// Gives a user another name; `change` has the directory follow, and is called anew as in [`Self::change_directory`].
    ///
    /// # Errors
    /// `change` refuses, or the facts do.
    pub async fn rename_user<E>(
        &self,
        tenant: TenantId,
        name: &str,
        new_name: &str,
        change: impl FnMut(&mut Directory) -> Result<(), E>,
    ) -> Result<(), ChangeError<E>> {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let set = |revision, text| IdentityCommand::RenameUser {
            tenant,
            name: name.clone(),
            new_name: new_name.clone(),
            revision,
            text,
        };
        self.change_directory_by(tenant, change, set).await
    }

    async fn change_directory_by<T, E>(
        &self,
        tenant: TenantId,
        mut change: impl FnMut(&mut Directory) -> Result<T, E>,
        set: impl Fn(u64, Bytes) -> IdentityCommand,
    ) -> Result<T, ChangeError<E>> {
        for _ in 0..CHANGES_MAX {
            let (revision, mut directory) = self.read_directory(tenant).await?;
            let value = change(&mut directory).map_err(ChangeError::Refused)?;
            let text =
                serde_json::to_vec(&directory).map_err(|error| ChangeError::Internal(error.to_string()))?;
            let set = Command::Identity(set(revision, Bytes::from(text)));
            match self.inner.metadata.propose(set).await {
                Ok(_) => {
                    self.forget(tenant);
                    return Ok(value);
                }
                Err(MetaError::Refused(Refusal::PreconditionFailed)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(MetaError::Overloaded.into())
    }

    /// Has this gateway ask anew what it knows of a tenant's keys; others do within [`CACHE_TTL`](super::CACHE_TTL).
    pub fn forget(&self, tenant: TenantId) {
        self.inner.directories.forget(|id, _| *id == tenant);
        self.inner
            .access_keys
            .forget(|_, known| known.as_ref().is_none_or(|known| known.caller.tenant == tenant));
    }

    /// A tenant's users, by name.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn users(&self, tenant: TenantId) -> Result<Vec<User>, MetaError> {
        match self.inner.metadata.query(Query::Identity(IdentityQuery::Users { tenant })).await? {
            Answer::Identity(IdentityAnswer::Users(users)) => Ok(users),
            _ => Err(MetaError::Unavailable(unexpected_answer().to_string())),
        }
    }

    /// A tenant's access keys, each with the name of its user.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn keys(&self, tenant: TenantId) -> Result<Vec<(AccessKey, Option<String>)>, MetaError> {
        match self.inner.metadata.query(Query::Identity(IdentityQuery::Keys { tenant })).await? {
            Answer::Identity(IdentityAnswer::Keys(keys)) => Ok(keys),
            _ => Err(MetaError::Unavailable(unexpected_answer().to_string())),
        }
    }

    /// Changes users or keys of a tenant.
    ///
    /// # Errors
    /// The facts refuse.
    pub async fn change(&self, tenant: TenantId, command: IdentityCommand) -> Result<(), MetaError> {
        let outcome = self.inner.metadata.propose(Command::Identity(command)).await;
        self.forget(tenant);
        outcome.map(|_| ())
    }

    /// Makes an access key, of a user or of the tenant itself.
    ///
    /// # Errors
    /// The facts refuse, or the system gave no randomness.
    pub async fn create_key(
        &self,
        tenant: TenantId,
        user: Option<&str>,
    ) -> Result<NewAccessKey, ChangeError<()>> {
        let new = new_access_key().map_err(|error| ChangeError::Internal(error.to_string()))?;
        let secret = new.secret.expose().as_bytes();
        let sealed = seal_secret(&self.inner.cluster_key, PURPOSE_SECRET, &new.id, secret);
        let key = AccessKey {
            id: new.id.clone(),
            tenant,
            sealed_secret: sealed.map_err(|error| ChangeError::Internal(error.to_string()))?,
            created_at: Timestamp(0),
            is_enabled: true,
        };
        self.inner.metadata.propose(Command::PutAccessKey { key }).await?;
        if let Some(user) = user {
            // Nobody knows the secret yet: until it is the user's, the key is of no use to anyone.
            let set = IdentityCommand::SetKeyUser { id: new.id.clone(), user: Some(user.to_owned()) };
            if let Err(error) = self.inner.metadata.propose(Command::Identity(set)).await {
                self.delete_key(tenant, &new.id).await?;
                return Err(error.into());
            }
        }
        Ok(new)
    }

    /// # Errors
    /// The facts refuse.
    pub async fn delete_key(&self, tenant: TenantId, id: &str) -> Result<(), MetaError> {
        let outcome = self.inner.metadata.propose(Command::DeleteAccessKey { id: id.to_owned() }).await;
        self.forget(tenant);
        outcome.map(|_| ())
    }

    /// Who a session in a role is, and what it may; `None`: the role is no more.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn role(
        &self,
        session: &RoleSession,
        access_key_id: &str,
    ) -> Result<Option<(Caller, Arc<UserRights>)>, IdentityError> {
        let directory = self.directory(session.tenant).await?;
        let role = directory.roles.get(&session.role).filter(|role| role.created_ms == session.role_made_ms);
        let Some(role) = role else { return Ok(None) };
        let caller = Caller {
            tenant: session.tenant,
            tenant_name: self.tenant_name(session.tenant).await?,
            access_key_id: access_key_id.to_owned(),
        };
        let policies = compile(&session.role, &directory.texts_of_role(role))?;
        let (name, own) = (session.role.clone(), Some(session.name.clone()));
        let path = path_or_root(&role.path).to_owned();
        Ok(Some((caller, Arc::new(UserRights { path, name, session: own, policies }))))
    }
}
