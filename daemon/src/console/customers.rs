//! What an operator does for customers: quotas, their keys for objects, the servers they replicate to; and who
//! administered what.
//!
//! | request                                      | answers                                                   |
//! |----------------------------------------------|-----------------------------------------------------------|
//! | `PUT /api/v1/quotas`                         | [`QuotaRequest`]                                          |
//! | `GET /api/v1/audit?before=&limit=`           | entries, newest first: [`Entry`]                          |
//! | `GET /api/v1/kms?tenant=`                    | [`KmsListed`]                                             |
//! | `POST /api/v1/kms`                           | [`KmsRequest`] -> [`KmsKeyShown`]                         |
//! | `PUT /api/v1/kms`                            | [`KmsRule`]                                               |
//! | `GET /api/v1/replication-targets?tenant=`    | [`TargetListed`]s, without their secrets                  |
//! | `PUT`, `DELETE /api/v1/replication-targets`  | [`TargetRequest`]                                         |

use std::sync::Arc;

use http::StatusCode;
use makai_gateway::audit::Asker;
use makai_gateway::identity::Identity;
use makai_gateway::identity::kms::{KmsChange, KmsError, KmsKeyShown};
use makai_gateway::identity::targets::{TargetError, TargetListed};
use makai_raft::facts::audit::{AuditAnswer, AuditQuery, Deed, Entry};
use makai_raft::facts::command::Command;
use makai_raft::facts::query::{Answer, ENTRIES_PER_ANSWER_MAX, Query};
use makai_raft::facts::tenant::{Quota, QuotaOf};
use serde::{Deserialize, Serialize};

use super::{Console, Failure, failure, meta_failure, parameter};
use crate::clock;

/// Of a tenant or in a bucket: one of the two.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuotaRequest {
    #[serde(default)]
    pub tenant: Option<String>,
    #[serde(default)]
    pub bucket: Option<String>,
    pub quota: Quota,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KmsListed {
    pub keys: Vec<KmsKeyShown>,
    /// Whether a key must be made before it is used.
    pub is_strict: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KmsRequest {
    pub tenant: String,
    pub key: String,
    pub change: KmsChange,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KmsRule {
    pub tenant: String,
    pub is_strict: bool,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct TargetRequest {
    pub tenant: String,
    pub name: String,
    #[serde(default)]
    pub endpoint: String,
    #[serde(default)]
    pub region: String,
    #[serde(default)]
    pub access_key_id: String,
    #[serde(default)]
    pub secret_access_key: String,
}

/// Who holds the console's token.
pub(super) struct Operator;

impl Asker for Operator {
    fn deed(&self) -> Deed {
        Deed { by: "operator".into(), action: "operator:".into(), ..Deed::default() }
    }
}

fn kms_failure(error: KmsError) -> Failure {
    let status = match error {
        KmsError::NotFound(_) => StatusCode::NOT_FOUND,
        KmsError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        KmsError::Disabled(_) | KmsError::PendingDeletion(_) | KmsError::Limit(_) => StatusCode::CONFLICT,
    };
    failure(status, error)
}

fn target_failure(error: TargetError) -> Failure {
    let status = match error {
        TargetError::NotFound(_) => StatusCode::NOT_FOUND,
        TargetError::Invalid(_) => StatusCode::BAD_REQUEST,
        TargetError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    failure(status, error)
}

fn need<'q>(query: Option<&'q str>, name: &str) -> Result<&'q str, Failure> {
    parameter(query, name)
        .ok_or_else(|| failure(StatusCode::BAD_REQUEST, format!("name the {name}: ?{name}=NAME")))
}

impl Console {
    fn identity(&self) -> Result<Identity, Failure> {
        Ok(Identity::new(Arc::clone(&self.shell.facts), self.cluster_key()?))
    }

    pub(super) async fn set_quota(&self, request: QuotaRequest) -> Result<(), Failure> {
        let of = match (&request.tenant, request.bucket) {
            (Some(name), None) => QuotaOf::Tenant(self.tenant(name).await?.id),
            (None, Some(name)) => QuotaOf::Bucket(name),
            _ => return Err(failure(StatusCode::BAD_REQUEST, "name a tenant or a bucket")),
        };
        self.propose(Command::SetQuota { of, quota: request.quota }).await.map(|_| ())
    }

    pub(super) async fn audit(&self, query: Option<&str>) -> Result<Vec<Entry>, Failure> {
        let number = |name| parameter(query, name).and_then(|text| text.parse().ok());
        let before = number("before").unwrap_or(0);
        let entries_max = number("limit").and_then(|limit| u32::try_from(limit).ok());
        let entries_max = entries_max.unwrap_or(100).min(ENTRIES_PER_ANSWER_MAX);
        let asked = Query::Audit(AuditQuery::Entries { before, entries_max });
        match self.shell.facts.query(asked).await.map_err(meta_failure)? {
            Answer::Audit(AuditAnswer::Entries(entries)) => Ok(entries),
            other => Err(failure(StatusCode::INTERNAL_SERVER_ERROR, format!("{other:?}"))),
        }
    }

    pub(super) async fn kms_keys(&self, query: Option<&str>) -> Result<KmsListed, Failure> {
        let tenant = self.tenant(need(query, "tenant")?).await?.id;
        let (keys, is_strict) = self.identity()?.kms_keys(tenant, clock::now()).await.map_err(kms_failure)?;
        Ok(KmsListed { keys, is_strict })
    }

    pub(super) async fn change_kms(&self, request: KmsRequest) -> Result<KmsKeyShown, Failure> {
        let tenant = self.tenant(&request.tenant).await?.id;
        let changed = self.identity()?.change_kms(tenant, &request.key, request.change, clock::now()).await;
        changed.map_err(kms_failure)
    }

    pub(super) async fn rule_kms(&self, rule: KmsRule) -> Result<(), Failure> {
        let tenant = self.tenant(&rule.tenant).await?.id;
        self.identity()?.set_kms_strict(tenant, rule.is_strict).await.map_err(kms_failure)
    }

    pub(super) async fn targets(&self, query: Option<&str>) -> Result<Vec<TargetListed>, Failure> {
        let tenant = self.tenant(need(query, "tenant")?).await?.id;
        self.identity()?.targets(tenant).await.map_err(target_failure)
    }

    pub(super) async fn put_target(&self, request: TargetRequest) -> Result<(), Failure> {
        let tenant = self.tenant(&request.tenant).await?.id;
        let TargetRequest { name, endpoint, region, access_key_id, secret_access_key, .. } = request;
        let listed = TargetListed { name, endpoint, region, access_key_id };
        self.identity()?.put_target(tenant, listed, &secret_access_key).await.map_err(target_failure)
    }

    pub(super) async fn delete_target(&self, request: TargetRequest) -> Result<(), Failure> {
        let tenant = self.tenant(&request.tenant).await?.id;
        self.identity()?.delete_target(tenant, &request.name).await.map_err(target_failure)
    }
}
