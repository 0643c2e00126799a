//! Buckets of all tenants, for the operator.
//!
//! | request                            | answers                                         |
//! |------------------------------------|-------------------------------------------------|
//! | `GET /api/v1/buckets`              | every bucket, by name                           |
//! | `POST /api/v1/buckets`             | [`BucketRequest`] -> [`BucketListed`]           |
//! | `DELETE /api/v1/buckets?name=`     | refused while it holds anything                 |

use http::StatusCode;
use makai_erasure::Scheme;
use makai_raft::facts::Timestamp;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::command::{Command, Reply};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::{Quota, Tenant};
use makai_raft::facts::version::Versioning;
use serde::{Deserialize, Serialize};

use super::{Console, Failure, failure, meta_failure};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BucketRequest {
    pub tenant: String,
    pub name: String,
    /// `k+m`; `None`: the best that the cluster carries.
    #[serde(default)]
    pub scheme: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BucketListed {
    pub name: String,
    pub tenant: String,
    pub created_at: Timestamp,
    /// `k+m`; `None`: the cluster's default.
    pub scheme: Option<String>,
    pub versioning: Versioning,
    pub is_lockable: bool,
    pub objects: u64,
    pub bytes: u64,
    pub noncurrent_objects: u64,
    pub noncurrent_bytes: u64,
    pub mounts: u32,
    /// What it may hold at most.
    #[serde(default)]
    pub quota: Quota,
}

fn listed(bucket: Bucket, tenants: &[Tenant]) -> BucketListed {
    let owner = tenants.iter().find(|tenant| tenant.id == bucket.tenant);
    BucketListed {
        name: bucket.name,
        tenant: owner.map_or_else(String::new, |tenant| tenant.name.clone()),
        created_at: bucket.created_at,
        scheme: bucket.scheme.map(|scheme| scheme.to_string()),
        versioning: bucket.versioning,
        is_lockable: bucket.lock.is_some(),
        objects: bucket.object_count,
        bytes: bucket.object_bytes,
        noncurrent_objects: bucket.noncurrent_count,
        noncurrent_bytes: bucket.noncurrent_bytes,
        mounts: bucket.mounts,
        quota: bucket.quota,
    }
}

impl Console {
    pub(super) async fn buckets(&self) -> Result<Vec<BucketListed>, Failure> {
        let tenants = self.all_tenants().await?;
        let query = Query::Buckets { tenant: None };
        match self.shell.facts.query(query).await.map_err(meta_failure)? {
            Answer::Buckets(buckets) => {
                Ok(buckets.into_iter().map(|bucket| listed(bucket, &tenants)).collect())
            }
            other => Err(failure(StatusCode::INTERNAL_SERVER_ERROR, format!("{other:?}"))),
        }
    }

    pub(super) async fn create_bucket(&self, request: BucketRequest) -> Result<BucketListed, Failure> {
        let tenant = self.tenant(&request.tenant).await?;
        let scheme = request.scheme.as_deref().map(str::parse::<Scheme>).transpose();
        let scheme = scheme.map_err(|error| failure(StatusCode::BAD_REQUEST, error))?;
        if let Some(scheme) = scheme {
            let map = self.shell.map.get();
            let disks = map.map.disks.iter().filter(|disk| map.node_of(disk.id).is_some()).count();
            if scheme.shard_count() > disks {
                let why = format!("{scheme} needs {} disks; the cluster has {disks}", scheme.shard_count());
                return Err(failure(StatusCode::CONFLICT, why));
            }
        }
        let command = Command::CreateBucket { name: request.name, tenant: tenant.id, scheme };
        match self.propose(command).await? {
            Reply::Bucket(bucket) => Ok(listed(bucket, &[tenant])),
            other => Err(failure(StatusCode::INTERNAL_SERVER_ERROR, format!("{other:?}"))),
        }
    }

    pub(super) async fn delete_bucket(&self, name: Option<&str>) -> Result<(), Failure> {
        let name = name.ok_or_else(|| failure(StatusCode::BAD_REQUEST, "name the bucket: ?name=NAME"))?;
        self.propose(Command::DeleteBucket { name: name.to_owned() }).await.map(|_| ())
    }
}
