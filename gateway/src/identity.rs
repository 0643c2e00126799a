//! Whose request it is: access keys and tenants' data keys, unsealed with the cluster's key and cached.

use makai_raft::facts::tenant::TenantId;

/// Who a door found a request to come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub tenant: TenantId,
    pub tenant_name: String,
    pub access_key_id: String,
}
