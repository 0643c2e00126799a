//! In the making.

pub mod kv;

use std::ops::ControlFlow;

use crate::facts::command::{Batch, Command, Refusal, Reply};
use crate::facts::query::{Answer, Query};
use crate::facts::tenant::{Tenant, TenantId};
use kv::{Edit, KvError, View};

fn kv(error: impl std::fmt::Display) -> KvError {
    KvError(error.to_string())
}

fn tenant_key(name: &str) -> Vec<u8> {
    [b"t", name.as_bytes()].concat()
}

/// Applies a batch.
pub fn apply(
    edit: &mut dyn Edit,
    log_index: u64,
    batch: &Batch,
) -> Result<Vec<Result<Reply, Refusal>>, KvError> {
    let mut out = Vec::new();
    for (i, envelope) in batch.envelopes.iter().enumerate() {
        let seen = [&b"s"[..], &envelope.session.to_be_bytes(), &envelope.serial.to_be_bytes()].concat();
        if let Some(reply) = edit.get(&seen)? {
            out.push(rmp_serde::from_slice(&reply).map_err(kv)?);
            continue;
        }
        let reply = match &envelope.command {
            Command::CreateTenant { name, wrapped_key, quota_bytes } => {
                let key = tenant_key(name);
                if edit.get(&key)?.is_some() {
                    Err(Refusal::AlreadyExists(name.clone()))
                } else {
                    let tenant = Tenant {
                        id: TenantId(log_index * 10_000 + i as u64),
                        name: name.clone(),
                        wrapped_key: wrapped_key.clone(),
                        quota_bytes: *quota_bytes,
                        created_at: batch.at,
                        used_bytes: 0,
                        used_objects: 0,
                    };
                    edit.put(&key, &rmp_serde::to_vec(&tenant).map_err(kv)?)?;
                    Ok(Reply::Tenant(tenant))
                }
            }
            _ => Ok(Reply::Done),
        };
        edit.put(&seen, &rmp_serde::to_vec(&reply).map_err(kv)?)?;
        out.push(reply);
    }
    Ok(out)
}

/// Answers a query.
pub fn query(view: &dyn View, query: &Query) -> Result<Result<Answer, Refusal>, KvError> {
    match query {
        Query::TenantByName { name } => match view.get(&tenant_key(name))? {
            Some(tenant) => Ok(Ok(Answer::Tenant(rmp_serde::from_slice(&tenant).map_err(kv)?))),
            None => Ok(Err(Refusal::NotFound("tenant".into()))),
        },
        Query::Tenants => {
            let mut tenants = Vec::new();
            view.scan(b"t", b"u", &mut |_, value| {
                tenants.extend(rmp_serde::from_slice::<Tenant>(value));
                ControlFlow::Continue(())
            })?;
            Ok(Ok(Answer::Tenants(tenants)))
        }
        _ => Ok(Err(Refusal::Invalid("unknown".into()))),
    }
}
