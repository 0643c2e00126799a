//! The gRPC client of the CLI: which gateway, with which credentials.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use makai_gateway::grpc::proto::jobs::v1::jobs_client::JobsClient;
use makai_gateway::grpc::token;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::cli::remote::Target;
use crate::clock;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A gateway that says nothing for so long, asked whether it is there, is gone.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

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

/// The calls of one gateway.
pub type Jobs = JobsClient<InterceptedService<Channel, Credentials>>;

/// A connection to one of the cluster's gateways.
pub struct Client {
    pub jobs: Jobs,
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
        let mut known = BTreeSet::new();
        endpoints.retain(|endpoint| known.insert(endpoint.clone()));
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

    /// Asks any gateway that answers, the present one first. `call` is made again where one does not, so that it has to be safe
    /// to repeat.
    ///
    /// # Errors
    /// It is refused, or nobody answers; in words for people.
    pub async fn ask<T>(
        &mut self,
        mut call: impl AsyncFnMut(&mut Jobs) -> Result<Response<T>, Status>,
    ) -> anyhow::Result<T> {
        let mut tried = 1;
        loop {
            match call(&mut self.jobs).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_worth_retrying(&status) && tried < self.endpoints.len() => {
                    tried += 1;
                    self.next_gateway()?;
                }
                Err(status) => return Err(self.told(&status)),
            }
        }
    }

    /// A failure in words for people.
    pub fn told(&self, status: &Status) -> anyhow::Error {
        // What a gateway answered has no source; what kept it from answering has.
        let Some(mut cause) = status.source() else { return anyhow!("{}", words(status)) };
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        match &self.endpoints[..] {
            [only] => anyhow!("the gateway at {only} cannot be reached: {cause}"),
            all => anyhow!("none of the profile's gateways can be reached ({}): {cause}", all.join(", ")),
        }
    }
}

/// What a gateway said; where it said nothing, what its code stands for.
fn words(status: &Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        said => said.to_owned(),
    }
}

fn channel(endpoint: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())
        .with_context(|| format!("{endpoint:?} is no address of a gRPC door"))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT);
    let endpoint = endpoint.http2_keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_TIMEOUT);
    Ok(endpoint.connect_lazy())
}

/// Whether another gateway, or the same one later, may do it.
pub fn is_worth_retrying(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}
