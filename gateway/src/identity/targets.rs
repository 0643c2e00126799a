//! Other S3 servers that a tenant's buckets are replicated to, and the keys that it has there, sealed.

use http::Uri;
use makai_raft::facts::tenant::TenantId;
use serde::{Deserialize, Serialize};

use super::directory::ReplicationTarget;
use super::{ChangeError, Identity, Secret, open_secret, seal_secret};

/// Targets of one tenant.
const TARGETS_MAX: usize = 100;
const PURPOSE: &str = "replication";

/// A target, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetListed {
    pub name: String,
    pub endpoint: String,
    pub region: String,
    pub access_key_id: String,
}

/// A target and the secret of the key for it.
#[derive(Debug, Clone)]
pub struct Target {
    pub endpoint: String,
    pub region: String,
    pub access_key_id: String,
    pub secret: Secret,
}

/// Why a target was not read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("there is no replication target {0:?}: make it with `makai replication-target set`")]
    NotFound(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<ChangeError<Self>> for TargetError {
    fn from(error: ChangeError<Self>) -> Self {
        match error {
            ChangeError::Refused(error) => error,
            ChangeError::Facts(error) => Self::Unavailable(error.to_string()),
            ChangeError::Internal(why) => Self::Unavailable(why),
        }
    }
}

fn check(target: &TargetListed, secret: &str) -> Result<(), TargetError> {
    let invalid = |why: &str| Err(TargetError::Invalid(why.to_owned()));
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !(1..=64).contains(&target.name.len()) || !target.name.bytes().all(is_name) {
        return invalid("a target's name has 1 to 64 of A-Z, a-z, 0-9, _ and -");
    }
    let parsed: Option<Uri> = target.endpoint.parse().ok();
    let is_endpoint = parsed.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some()
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
    });
    if !is_endpoint || target.endpoint.len() > 255 {
        return invalid(
            "an endpoint is https://HOST or http://HOST, with a port where it needs one, and without a path",
        );
    }
    let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(1..=64).contains(&target.region.len()) || !target.region.bytes().all(is_label) {
        return invalid("a region has 1 to 64 of a-z, 0-9 and -");
    }
    let is_key =
        |text: &str| (1..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_key(&target.access_key_id) || !is_key(secret) {
        return invalid("an access key's id and its secret have 1 to 256 printable characters each");
    }
    Ok(())
}

impl Identity {
    /// A tenant's targets, by name.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn targets(&self, tenant: TenantId) -> Result<Vec<TargetListed>, TargetError> {
        let (_, directory) = self.read_directory::<TargetError>(tenant).await?;
        let listed = |(name, target): (String, ReplicationTarget)| TargetListed {
            name,
            endpoint: target.endpoint,
            region: target.region,
            access_key_id: target.access_key_id,
        };
        Ok(directory.targets.into_iter().map(listed).collect())
    }

    /// A target with its secret, as it is or was less than [`CACHE_TTL`](super::CACHE_TTL) ago.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn target(&self, tenant: TenantId, name: &str) -> Result<Target, TargetError> {
        let unavailable = |error: super::IdentityError| TargetError::Unavailable(error.to_string());
        let directory = self.directory(tenant).await.map_err(unavailable)?;
        let target = directory.targets.get(name).ok_or_else(|| TargetError::NotFound(name.to_owned()))?;
        let sealed = hex::decode(&target.sealed_secret).unwrap_or_default();
        let id = format!("{}/{name}", tenant.0);
        let secret = open_secret(&self.inner.cluster_key, PURPOSE, &id, &sealed).ok();
        let secret = secret.and_then(|secret| String::from_utf8(secret).ok()).ok_or_else(|| {
            TargetError::Unavailable(format!(
                "the key of target {name:?} does not open with the cluster's key"
            ))
        })?;
        Ok(Target {
            endpoint: target.endpoint.trim_end_matches('/').to_owned(),
            region: target.region.clone(),
            access_key_id: target.access_key_id.clone(),
            secret: Secret(secret.into()),
        })
    }

    /// Makes a target, or replaces what is known of one.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn put_target(
        &self,
        tenant: TenantId,
        target: TargetListed,
        secret: &str,
    ) -> Result<(), TargetError> {
        check(&target, secret)?;
        let id = format!("{}/{}", tenant.0, target.name);
        let sealed = seal_secret(&self.inner.cluster_key, PURPOSE, &id, secret.as_bytes());
        let sealed = sealed.map_err(|error| TargetError::Unavailable(error.to_string()))?;
        let kept = ReplicationTarget {
            endpoint: target.endpoint,
            region: target.region,
            access_key_id: target.access_key_id,
            sealed_secret: hex::encode(sealed),
        };
        let changed = self.change_directory::<(), TargetError>(tenant, |directory| {
            if directory.targets.len() >= TARGETS_MAX && !directory.targets.contains_key(&target.name) {
                return Err(TargetError::Invalid(format!("a tenant has at most {TARGETS_MAX} targets")));
            }
            directory.targets.insert(target.name.clone(), kept.clone());
            Ok(())
        });
        Ok(changed.await?)
    }

    /// # Errors
    /// See [`TargetError`].
    pub async fn delete_target(&self, tenant: TenantId, name: &str) -> Result<(), TargetError> {
        let changed = self.change_directory::<(), TargetError>(tenant, |directory| {
            let gone = directory.targets.remove(name);
            gone.map(|_| ()).ok_or_else(|| TargetError::NotFound(name.to_owned()))
        });
        Ok(changed.await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_server_by_its_name_and_port() {
        let target = |endpoint: &str| TargetListed {
            name: "dr".into(),
            endpoint: endpoint.into(),
            region: "eu-west-1".into(),
            access_key_id: "AK".into(),
        };
        for endpoint in ["https://s3.example.com", "http://127.0.0.1:9000/", "https://[::1]:9000"] {
            assert_eq!(check(&target(endpoint), "secret"), Ok(()), "{endpoint}");
        }
        for endpoint in ["", "s3.example.com", "ftp://h", "https://h/bucket", "https://h?x", "https://"] {
            assert!(check(&target(endpoint), "secret").is_err(), "{endpoint}");
        }
        assert!(check(&target("https://h"), "").is_err());
        assert!(check(&TargetListed { name: "a b".into(), ..target("https://h") }, "s").is_err());
    }
}
