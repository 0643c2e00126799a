//! Users and whose keys are; what the doors need to know of a bucket before they serve it.

use bytes::Bytes;

use super::buckets;
use super::draft::{Draft, Outcome, all, expect, keys_in, read, shift};
use super::keys;
use super::kv::View;
use super::{tenants, versions};
use crate::facts::command::{Refusal, Reply};
use crate::facts::identity::{
    ACL_BYTES_MAX, DIRECTORY_BYTES_MAX, Directory, IdentityAnswer, IdentityCommand, IdentityQuery,
    POLICY_BYTES_MAX, TENANT_USERS_MAX, USER_POLICIES_MAX, User,
};
use crate::facts::query::Answer;
use crate::facts::tenant::{AccessKey, TenantId};

/// Documents of one answer.
const DOCUMENTS_MAX: usize = 32;

pub fn run(draft: &mut Draft<'_>, command: &IdentityCommand) -> Outcome<Reply> {
    match command {
        IdentityCommand::PutUser { user } => put_user(draft, user),
        IdentityCommand::DeleteUser { tenant, name } => delete_user(draft, *tenant, name),
        IdentityCommand::SetKeyUser { id, user } => set_key_user(draft, id, user.as_deref()),
        IdentityCommand::SetKeyEnabled { id, is_enabled } => {
            let key = AccessKey { is_enabled: *is_enabled, ..tenants::find_key(draft, id)? };
            draft.write(keys::access_key(id), &key)?;
            Ok(Reply::Done)
        }
        IdentityCommand::SetDirectory { tenant, revision, text } => {
            set_directory(draft, *tenant, *revision, text)
        }
        IdentityCommand::RenameUser { tenant, name, new_name, revision, text } => {
            set_directory(draft, *tenant, *revision, text)?;
            rename_user(draft, *tenant, name, new_name)
        }
        IdentityCommand::SetObjectAcl { bucket, key, acl, version } => {
            if acl.as_ref().is_some_and(|acl| acl.len() > ACL_BYTES_MAX) {
                let why = format!("an access list has at most {ACL_BYTES_MAX} bytes");
                return Err(Refusal::Invalid(why).into());
            }
            versions::set_acl(draft, bucket, key, *version, acl.as_ref())
        }
    }
}

fn check_name(name: &str) -> Outcome<()> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
    if (1..=64).contains(&name.len()) && name.bytes().all(is_name) {
        return Ok(());
    }
    Err(Refusal::Invalid("a user's name has 1 to 64 of A-Z, a-z, 0-9 and +=,.@_-".to_owned()).into())
}

fn put_user(draft: &mut Draft<'_>, user: &User) -> Outcome<Reply> {
    let invalid = |why: String| Err(Refusal::Invalid(why).into());
    check_name(&user.name)?;
    let is_bounded =
        |(name, text): &(String, String)| (1..=128).contains(&name.len()) && text.len() <= POLICY_BYTES_MAX;
    if user.policies.len() > USER_POLICIES_MAX || !user.policies.iter().all(is_bounded) {
        return invalid(format!(
            "a user has at most {USER_POLICIES_MAX} policies of {POLICY_BYTES_MAX} bytes"
        ));
    }
    tenants::get(draft, user.tenant)?;
    let place = keys::user(user.tenant, &user.name);
    let created_at = match read::<User>(draft, &place)? {
        Some(old) => old.created_at,
        None => {
            let all = keys::users(user.tenant);
            if keys_in(draft, &all, &keys::end_of(&all), TENANT_USERS_MAX)?.len() == TENANT_USERS_MAX {
                return invalid(format!("the tenant has {TENANT_USERS_MAX} users, as many as may be"));
            }
            draft.now
        }
    };
    draft.write(place, &User { created_at, ..user.clone() })?;
    Ok(Reply::Done)
}

fn find_user(view: &dyn View, tenant: TenantId, name: &str) -> Outcome<User> {
    let not_found = || Refusal::NotFound(format!("user {name:?}"));
    Ok(read(view, &keys::user(tenant, name))?.ok_or_else(not_found)?)
}

fn rename_user(draft: &mut Draft<'_>, tenant: TenantId, name: &str, new_name: &str) -> Outcome<Reply> {
    let user = find_user(draft, tenant, name)?;
    check_name(new_name)?;
    if name == new_name {
        return Ok(Reply::Done);
    }
    let place = keys::user(tenant, new_name);
    if read::<User>(draft, &place)?.is_some() {
        return Err(Refusal::AlreadyExists(format!("user {new_name:?}")).into());
    }
    for id in tenants::key_ids(draft, tenant)? {
        if read::<String>(draft, &keys::key_user(&id))?.as_deref() == Some(name) {
            draft.write(keys::key_user(&id), new_name)?;
        }
    }
    draft.delete(keys::user(tenant, name));
    draft.write(place, &User { name: new_name.to_owned(), ..user })?;
    Ok(Reply::Done)
}

fn delete_user(draft: &mut Draft<'_>, tenant: TenantId, name: &str) -> Outcome<Reply> {
    find_user(draft, tenant, name)?;
    for id in tenants::key_ids(draft, tenant)? {
        if read::<String>(draft, &keys::key_user(&id))?.as_deref() == Some(name) {
            return Err(
                Refusal::Invalid(format!("access key {id} belongs to the user: delete it first")).into()
            );
        }
    }
    draft.delete(keys::user(tenant, name));
    Ok(Reply::Done)
}

fn set_key_user(draft: &mut Draft<'_>, id: &str, user: Option<&str>) -> Outcome<Reply> {
    let key = tenants::find_key(draft, id)?;
    match user {
        Some(name) => {
            find_user(draft, key.tenant, name)?;
            draft.write(keys::key_user(id), name)?;
        }
        None => draft.delete(keys::key_user(id)),
    }
    Ok(Reply::Done)
}

fn directory(view: &dyn View, tenant: TenantId) -> Outcome<Directory> {
    tenants::get(view, tenant)?;
    Ok(read(view, &keys::directory(tenant))?.unwrap_or_default())
}

fn set_directory(draft: &mut Draft<'_>, tenant: TenantId, revision: u64, text: &Bytes) -> Outcome<Reply> {
    if text.len() > DIRECTORY_BYTES_MAX {
        let why = format!("groups, roles and policies of a tenant have at most {DIRECTORY_BYTES_MAX} bytes");
        return Err(Refusal::Invalid(why).into());
    }
    let known = directory(draft, tenant)?;
    if known.revision != revision {
        return Err(Refusal::PreconditionFailed.into());
    }
    let next = Directory { revision: shift(revision, 1, 0, "changes of a directory")?, text: text.clone() };
    draft.write(keys::directory(tenant), &next)?;
    Ok(Reply::Done)
}

pub fn answer(view: &dyn View, query: &IdentityQuery) -> Outcome<Answer> {
    match query {
        IdentityQuery::Key { id } => {
            let key = tenants::find_key(view, id)?;
            let tenant = tenants::get(view, key.tenant)?;
            let user = match read::<String>(view, &keys::key_user(id))? {
                Some(name) => Some(expect(view, &keys::user(key.tenant, &name))?),
                None => None,
            };
            Ok(Answer::Identity(IdentityAnswer::Key { key, tenant, user }))
        }
        IdentityQuery::Users { tenant } => {
            tenants::get(view, *tenant)?;
            Ok(Answer::Identity(IdentityAnswer::Users(all(view, &keys::users(*tenant))?)))
        }
        IdentityQuery::Directory { tenant } => {
            Ok(Answer::Identity(IdentityAnswer::Directory(directory(view, *tenant)?)))
        }
        IdentityQuery::Keys { tenant } => {
            tenants::get(view, *tenant)?;
            let mut found = Vec::new();
            for id in tenants::key_ids(view, *tenant)? {
                let user = read::<String>(view, &keys::key_user(&id))?;
                found.push((expect(view, &keys::access_key(&id))?, user));
            }
            Ok(Answer::Identity(IdentityAnswer::Keys(found)))
        }
        IdentityQuery::BucketAccess { name, documents } => {
            let bucket = buckets::get(view, name)?;
            let tenant_name = tenants::get(view, bucket.tenant)?.name;
            let mut found = Vec::new();
            for document in documents.iter().take(DOCUMENTS_MAX) {
                found.push(buckets::read_document(view, bucket.id, document)?);
            }
            Ok(Answer::Identity(IdentityAnswer::BucketAccess { bucket, tenant_name, documents: found }))
        }
    }
}
