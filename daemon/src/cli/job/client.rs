//! The gRPC client of the CLI: which gateway, with which credentials.

use anyhow::{Context as _, anyhow};
use makai_gateway::grpc::proto::jobs::v1::jobs_client::JobsClient;
use makai_gateway::grpc::proto::jobs::v1::{SubmitRequest, SubmitResponse};
use makai_gateway::grpc::token;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::cli::remote::Target;
use crate::clock;

const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Signs a token for each call.
#[derive(Clone)]
pub struct Credentials {
    access_key_id: String,
    secret_access_key: String,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let expires_secs = clock::now().0 / 1000 + token::LIFE_SECS;
        let value = token::bearer(&self.access_key_id, &self.secret_access_key, expires_secs);
        let mut value: MetadataValue<Ascii> = value
            .parse()
            .map_err(|_| Status::unauthenticated("the profile's access key id cannot be sent"))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// A connection to one of the cluster's gateways.
pub struct Client {
    pub jobs: JobsClient<InterceptedService<Channel, Credentials>>,
    endpoints: Vec<String>,
    at: usize,
    credentials: Credentials,
}

impl Client {
    /// # Errors
    /// The profile names no gateway, or no credentials.
    pub fn open(target: &Target) -> anyhow::Result<Self> {
        let profile = target.profile()?;
        let mut endpoints = vec![profile.grpc.endpoint];
        endpoints.extend(profile.nodes.into_iter().map(|node| node.grpc));
        endpoints.retain(|endpoint| !endpoint.is_empty());
        endpoints.dedup();
        let first = endpoints.first().context("the profile names no gRPC endpoint (grpc.endpoint)")?;
        let credentials = Credentials {
            access_key_id: profile.s3.access_key_id,
            secret_access_key: profile.s3.secret_access_key,
        };
        let jobs = JobsClient::with_interceptor(channel(first)?, credentials.clone());
        Ok(Self { jobs, endpoints, at: 0, credentials })
    }

    /// Turns to the next gateway of the profile.
    ///
    /// # Errors
    /// Its address is none.
    pub fn next_gateway(&mut self) -> anyhow::Result<()> {
        self.at = (self.at + 1) % self.endpoints.len();
        let channel = channel(&self.endpoints[self.at])?;
        self.jobs = JobsClient::with_interceptor(channel, self.credentials.clone());
        Ok(())
    }

    /// Submits at any gateway that answers: the token makes that safe.
    ///
    /// # Errors
    /// It is refused, or nobody answers.
    pub async fn submit(&mut self, request: SubmitRequest) -> anyhow::Result<SubmitResponse> {
        let mut tried = 0;
        loop {
            match self.jobs.submit(request.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_worth_retrying(&status) && tried < self.endpoints.len() => {
                    tried += 1;
                    self.next_gateway()?;
                }
                Err(status) => return Err(anyhow!("{}", status.message())),
            }
        }
    }
}

fn channel(endpoint: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())
        .with_context(|| format!("{endpoint:?} is no address of a gRPC door"))?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy())
}

/// Whether another gateway, or the same one later, may do it.
pub fn is_worth_retrying(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}
