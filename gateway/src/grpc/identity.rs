//! Tells a client who it is.

use tonic::{Request, Response, Status};

use super::gate::Gate;
use super::proto::identity::v1::identity_server::Identity;
use super::proto::identity::v1::{WhoAmIRequest, WhoAmIResponse};

pub struct IdentityService {
    pub gate: Gate,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let caller = &admitted.caller;
        Ok(Response::new(WhoAmIResponse {
            tenant: caller.tenant_name.clone(),
            tenant_id: caller.tenant.0,
            access_key_id: caller.access_key_id.clone(),
        }))
    }
}
