//! Tenants and their access keys.

use bytes::Bytes;

use super::draft::{Draft, Outcome, all, expect, keys_in, read};
use super::keys::{self, Counter};
use super::kv::View;
use crate::facts::command::{Refusal, Reply};
use crate::facts::query::Answer;
use crate::facts::tenant::{AccessKey, Quota, Tenant, TenantId};

/// Bytes of a tenant's sealed key, or of a sealed secret.
const SEALED_BYTES_MAX: usize = 1024;
/// Access keys of one tenant, so that their listing stays one answer.
const TENANT_KEYS_MAX: usize = 1000;

pub fn get(view: &dyn View, id: TenantId) -> Outcome<Tenant> {
    Ok(read(view, &keys::tenant(id))?.ok_or_else(|| Refusal::NotFound(format!("tenant {}", id.0)))?)
}

pub fn by_name(view: &dyn View, name: &str) -> Outcome<Tenant> {
    match read::<TenantId>(view, &keys::tenant_name(name))? {
        Some(id) => Ok(expect(view, &keys::tenant(id))?),
        None => Err(Refusal::NotFound(format!("tenant {name:?}")).into()),
    }
}

pub fn create(
    draft: &mut Draft<'_>,
    name: &str,
    wrapped_key: &Bytes,
    quota_bytes: Option<u64>,
) -> Outcome<Reply> {
    let is_name = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if !(1..=64).contains(&name.len()) || !name.bytes().all(is_name) {
        return Err(Refusal::Invalid("a tenant's name has 1 to 64 of a-z, 0-9 and '-'".to_owned()).into());
    }
    check_sealed(wrapped_key)?;
    if draft.get(&keys::tenant_name(name))?.is_some() {
        return Err(Refusal::AlreadyExists(format!("tenant {name:?}")).into());
    }
    let tenant = Tenant {
        id: TenantId(draft.next(Counter::Tenant)?),
        name: name.to_owned(),
        wrapped_key: wrapped_key.clone(),
        quota_bytes,
        created_at: draft.now,
        used_bytes: 0,
        used_objects: 0,
        byte_ms: 0,
        counted_to: draft.now,
        quota_objects: None,
    };
    draft.write(keys::tenant_name(name), &tenant.id)?;
    draft.write(keys::tenant(tenant.id), &tenant)?;
    Ok(Reply::Tenant(tenant))
}

/// A quota below what is used already takes nothing away: it only lets nothing grow.
pub fn set_quota(draft: &mut Draft<'_>, id: TenantId, quota: Quota) -> Outcome<Reply> {
    let Quota { bytes_max, objects_max } = quota;
    let tenant = Tenant { quota_bytes: bytes_max, quota_objects: objects_max, ..get(draft, id)? };
    draft.write(keys::tenant(id), &tenant)?;
    Ok(Reply::Done)
}

/// Adds a key, or replaces the secret and state of one that the tenant has.
pub fn put_key(draft: &mut Draft<'_>, key: &AccessKey) -> Outcome<Reply> {
    let is_id = |byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9');
    if !(16..=128).contains(&key.id.len()) || !key.id.bytes().all(is_id) {
        return Err(Refusal::Invalid("an access key's id has 16 to 128 of A-Z and 0-9".to_owned()).into());
    }
    check_sealed(&key.sealed_secret)?;
    get(draft, key.tenant)?;
    let place = keys::access_key(&key.id);
    let mut created_at = draft.now;
    match read::<AccessKey>(draft, &place)? {
        Some(old) if old.tenant != key.tenant => {
            return Err(Refusal::AlreadyExists(format!("access key {}", key.id)).into());
        }
        Some(old) => created_at = old.created_at,
        None => {
            let owned = keys::tenant_keys(key.tenant);
            if keys_in(draft, &owned, &keys::end_of(&owned), TENANT_KEYS_MAX)?.len() == TENANT_KEYS_MAX {
                let why = format!("the tenant has {TENANT_KEYS_MAX} access keys, as many as may be");
                return Err(Refusal::Invalid(why).into());
            }
        }
    }
    draft.write(place, &AccessKey { created_at, ..key.clone() })?;
    draft.write(keys::tenant_key(key.tenant, &key.id), &())?;
    Ok(Reply::Done)
}

pub fn delete_key(draft: &mut Draft<'_>, id: &str) -> Outcome<Reply> {
    let key = find_key(draft, id)?;
    draft.delete(keys::access_key(id));
    draft.delete(keys::tenant_key(key.tenant, id));
    draft.delete(keys::key_user(id));
    Ok(Reply::Done)
}

pub fn find_key(view: &dyn View, id: &str) -> Outcome<AccessKey> {
    let not_found = || Refusal::NotFound(format!("access key {id:?}"));
    Ok(read(view, &keys::access_key(id))?.ok_or_else(not_found)?)
}

pub fn key(view: &dyn View, id: &str) -> Outcome<Answer> {
    let key = find_key(view, id)?;
    let tenant = expect(view, &keys::tenant(key.tenant))?;
    Ok(Answer::AccessKey(key, tenant))
}

pub fn keys_of(view: &dyn View, tenant: TenantId) -> Outcome<Answer> {
    get(view, tenant)?;
    let mut found = Vec::new();
    for id in key_ids(view, tenant)? {
        found.push(expect(view, &keys::access_key(&id))?);
    }
    Ok(Answer::AccessKeys(found))
}

pub fn key_ids(view: &dyn View, tenant: TenantId) -> Outcome<Vec<String>> {
    let owned = keys::tenant_keys(tenant);
    let found = keys_in(view, &owned, &keys::end_of(&owned), usize::MAX)?;
    Ok(found.iter().map(|key| String::from_utf8_lossy(&key[owned.len()..]).into_owned()).collect())
}

pub fn list(view: &dyn View) -> Outcome<Answer> {
    Ok(Answer::Tenants(all(view, &keys::tenants())?))
}

fn check_sealed(sealed: &Bytes) -> Result<(), Refusal> {
    if sealed.len() > SEALED_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a sealed key has at most {SEALED_BYTES_MAX} bytes")));
    }
    Ok(())
}
