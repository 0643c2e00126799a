//! Whether those exist whom a bucket's policy names.

use std::collections::{BTreeMap, BTreeSet};

use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::TenantId;
use makai_raft::handle::MetaError;

use super::{Identity, IdentityError, unexpected_answer};
use crate::policy::Policy;
use crate::policy::principal::{AccountName, Named};

impl Identity {
    /// Whether there are all whom the policy names: accounts by number, users and roles. A name that no tenant has is let
    /// pass: S3 knows numbers alone, and a policy may be written before its reader is.
    ///
    /// Cost: at most three queries for each account that is named.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn knows_all(&self, policy: &Policy) -> Result<bool, IdentityError> {
        let mut accounts: BTreeMap<&AccountName, BTreeSet<Named<'_>>> = BTreeMap::new();
        for (account, named) in policy.named() {
            accounts.entry(account).or_default().insert(named);
        }
        for (account, named) in accounts {
            let tenant = match (self.account(account).await?, account) {
                (Some(tenant), _) => tenant,
                (None, AccountName::Name(_)) => continue,
                (None, AccountName::Number(_)) => return Ok(false),
            };
            if !self.knows(tenant, &named).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn account(&self, account: &AccountName) -> Result<Option<TenantId>, IdentityError> {
        let query = match account {
            AccountName::Number(id) => Query::Tenant { id: TenantId(*id) },
            AccountName::Name(name) => Query::TenantByName { name: name.to_string() },
        };
        match self.inner.metadata.query(query).await {
            Ok(Answer::Tenant(tenant)) => Ok(Some(tenant.id)),
            Ok(_) => Err(unexpected_answer()),
            Err(MetaError::Refused(_)) => Ok(None),
            Err(error) => Err(unavailable(&error)),
        }
    }

    async fn knows(&self, tenant: TenantId, named: &BTreeSet<Named<'_>>) -> Result<bool, IdentityError> {
        if named.iter().any(|named| matches!(named, Named::User(_))) {
            let users = self.users(tenant).await.map_err(|error| unavailable(&error))?;
            let is_unknown = |wanted: &str| users.iter().all(|user| user.name != wanted);
            if named.iter().any(|named| matches!(named, Named::User(name) if is_unknown(name))) {
                return Ok(false);
            }
        }
        if named.iter().any(|named| matches!(named, Named::Role(_))) {
            let read = self.read_directory::<MetaError>(tenant).await;
            let (_, directory) = read.map_err(|error| IdentityError::Unavailable(error.to_string()))?;
            let is_unknown = |wanted: &str| !directory.roles.contains_key(wanted);
            if named.iter().any(|named| matches!(named, Named::Role(name) if is_unknown(name))) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn unavailable(error: &MetaError) -> IdentityError {
    IdentityError::Unavailable(error.to_string())
}
