//! The operator's door: health, metrics, and the commands of the CLI as JSON over HTTP.
//!
//! | request                     | answers                                                        | needs the token |
//! |-----------------------------|----------------------------------------------------------------|-----------------|
//! | `GET /`                     | a page for people, which asks for the token and then the calls below | no        |
//! | `GET /healthz`              | 200 once the node serves                                       | no              |
//! | `GET /metrics`              | Prometheus text                                                | no              |
//! | `GET /api/v1/status`        | [`Status`]                                                     | yes             |
//! | `POST /api/v1/join-token`   | [`JoinTokenRequest`] -> [`JoinTokenAnswer`]                     | yes             |
//! | `POST /api/v1/standing`     | [`StandingRequest`] -> the node                                 | yes             |
//! | `POST /api/v1/gpu`          | [`CardRequest`] -> [`CardAnswer`]: this machine's cards         | yes             |
//! | `GET /api/v1/due?node=`     | [`due::DiskDue`] for each of its disks                          | yes             |
//! | `GET /api/v1/lost?cursor=`  | [`lost::LostPage`]: objects that cannot be read                | yes             |
//! | `POST /api/v1/rebalance`    | [`RebalanceRequest`] -> nothing                                 | yes             |
//! | `GET /api/v1/backup`        | the facts as a snapshot's stream; a voter only                 | yes             |
//! | `GET /api/v1/tenants`       | tenants                                                        | yes             |
//! | `POST /api/v1/tenants`      | [`TenantRequest`] -> [`KeyAnswer`]                              | yes             |
//! | `GET /api/v1/keys?tenant=`  | ids of its keys                                                | yes             |
//! | `POST /api/v1/keys`         | [`KeyRequest`] -> [`KeyAnswer`]                                 | yes             |
//! | `DELETE /api/v1/keys?id=`   |                                                                | yes             |
//! | `/api/v1/buckets...`        | buckets of all tenants: [`buckets`]                             | yes             |
//! | `/api/v1/quotas`, `audit`, `kms`, `replication-targets` | [`customers`]                    | yes             |
//! | `/api/v1/accounts...`       | usage, earnings, claims, the ledger: [`crate::accounts::api`]   | yes             |
//!
//! The token is in `admin.token` of the node's folder and travels as `Authorization: Bearer`. The console speaks plain
//! HTTP: it listens on loopback unless an operator puts it behind a proxy that adds TLS.

pub mod buckets;
pub mod customers;
pub mod due;
pub mod lost;
mod metrics;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use makai_erasure::{DiskId, NodeId};
use makai_gateway::audit::Audited;
use makai_gateway::identity::directory::Limit;
use makai_gateway::identity::{ChangeError, Identity};
use makai_gateway::policy::Policy;
use makai_gateway::policy::document::Kind;
use makai_gpu_runtime::inventory::Inventory;
use makai_raft::facts::cluster::{ClusterMap, JoinToken, Role, Standing};
use makai_raft::facts::command::{Command, Reply};
use makai_raft::facts::identity::{IdentityAnswer, IdentityCommand, IdentityQuery, User};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::Tenant;
use makai_raft::handle::MetaError;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accounts::{api, fees, payouts, stakes, trainings};
use crate::members::{DiskBeat, Members, VIEW, decode, known_peers};
use crate::node;
use crate::reconcile::Shell;
use crate::reconcile::reach::LineNow;
use crate::reconcile::shards::ProgressNow;
use crate::ticket::Ticket;
use crate::{clock, state};

const BODY_BYTES_MAX: usize = 64 * 1024;
const CONNECTIONS_MAX: usize = 64;
/// A connection is closed after this, used or not.
const CONNECTION_MAX: Duration = Duration::from_secs(300);
const TOKEN_USES_MAX: u32 = 10_000;
/// A status waits no longer for the leader.
const VIEW_TIMEOUT: Duration = Duration::from_secs(2);
const NO_TOKEN: &str =
    "send `Authorization: Bearer TOKEN` with the token in admin.token of the node's folder (node.dir)";
const WRONG_TOKEN: &str = "this is not the token of this node: each node has its own, in admin.token of its folder (node.dir); where it was \
                           made anew, a profile that holds the old one has to be written again";
const PAGE: &str = include_str!("console/page.html");

/// What a node says of itself and its cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub node: NodeId,
    pub version: String,
    pub kernel: String,
    pub is_leader: bool,
    /// This node leads, or the leader told it what it has heard: without that, what is said of other nodes may be old.
    #[serde(default)]
    pub leader_answers: bool,
    pub leader: Option<NodeId>,
    pub term: Option<u64>,
    pub applied: Option<u64>,
    pub voters: Vec<NodeId>,
    pub default_scheme: String,
    pub map: ClusterMap,
    /// This node's disks.
    pub disks: Vec<DiskBeat>,
    /// Disks of all nodes as the leader heard last; empty where it does not answer.
    pub heard: Vec<DiskBeat>,
    /// What this node has repaired since its start.
    pub repair: ProgressNow,
    /// As the leader heard of all nodes; empty where it does not answer.
    #[serde(default)]
    pub repairs: Vec<NodeRepair>,
    /// What nodes offer to jobs, as the leader heard last, by node; empty where it does not answer.
    #[serde(default)]
    pub compute: Vec<NodeCompute>,
    /// As above, of their lines.
    #[serde(default)]
    pub lines: Vec<NodeLine>,
    /// Blobs that cannot be read, as the leader heard and its map says.
    #[serde(default)]
    pub lost: lost::LostCount,
    /// Why this voter takes no part in agreement, if it does not.
    #[serde(default)]
    pub held_back: Option<String>,
    /// Voters whose directories are older copies, as the leader knows.
    #[serde(default)]
    pub rewound: Vec<NodeId>,
}

/// What only the leader knows: what nodes told it. Empty where a node does not lead.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LeaderView {
    /// Who answers leads.
    pub leads: bool,
    pub heard: Vec<DiskBeat>,
    pub repairs: Vec<NodeRepair>,
    pub compute: Vec<NodeCompute>,
    pub lines: Vec<NodeLine>,
    /// As nodes told.
    pub lost: lost::LostCount,
    pub rewound: Vec<NodeId>,
}

impl LeaderView {
    #[must_use]
    pub fn of(members: &Members) -> Self {
        let Some(meta) = members.meta().filter(|meta| meta.is_leader()) else { return Self::default() };
        let heard = members.heard();
        let repairs: Vec<NodeRepair> =
            heard.iter().map(|(node, heard)| NodeRepair { node: *node, repair: heard.repair }).collect();
        let sum = |of: fn(&ProgressNow) -> u64| repairs.iter().map(|node| of(&node.repair)).sum();
        let lost = lost::LostCount {
            gone_blobs: sum(|repair| repair.gone_blobs),
            away_blobs: sum(|repair| repair.away_blobs),
        };
        let offers = heard
            .iter()
            .filter_map(|(node, heard)| Some(NodeCompute { node: *node, offer: heard.compute.clone()? }));
        let mut compute: Vec<NodeCompute> = offers.collect();
        compute.sort_by_key(|node| node.node);
        let lines = heard.iter().map(|(node, heard)| NodeLine { node: *node, line: heard.line }).collect();
        let heard = heard.into_values().flat_map(|heard| heard.disks).collect();
        let status = meta.status();
        let is_rewound = |(number, _): &&(u64, NodeId)| status.rewound.contains(number);
        let rewound = status.voters.iter().filter(is_rewound).map(|(_, node)| *node).collect();
        Self { leads: true, heard, repairs, compute, lines, lost, rewound }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinTokenRequest {
    pub roles: Vec<Role>,
    pub valid_secs: u64,
    pub uses: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinTokenAnswer {
    pub token: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StandingRequest {
    pub node: NodeId,
    /// One of its disks; `None`: the node with all of them.
    #[serde(default)]
    pub disk: Option<DiskId>,
    pub standing: Standing,
}

/// Takes cards of this machine back from jobs, or gives them to jobs again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CardRequest {
    /// As the driver prints it; `None`: all of this machine.
    pub gpu: Option<String>,
    pub is_paused: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CardAnswer {
    pub gpus: Vec<String>,
    /// Attempts that had to go; they begin again elsewhere.
    pub ended: usize,
    /// Until the last of them was gone.
    pub took_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RebalanceRequest {
    pub is_paused: bool,
}

/// What a node has repaired since its start, as the leader heard last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeRepair {
    pub node: NodeId,
    pub repair: ProgressNow,
}

/// What a node offers to jobs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeCompute {
    pub node: NodeId,
    pub offer: Inventory,
}

/// What a node measured of its line, as the leader heard last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeLine {
    pub node: NodeId,
    pub line: LineNow,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantRequest {
    pub name: String,
    pub quota_bytes: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantAnswer {
    pub name: String,
    pub quota_bytes: Option<u64>,
    pub used_bytes: u64,
    pub used_objects: u64,
    #[serde(default)]
    pub quota_objects: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRequest {
    pub tenant: String,
    /// Whose the key will be; `None`: the tenant's own.
    #[serde(default)]
    pub user: Option<String>,
}

/// `None`: no limit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LimitRequest {
    pub access_key_id: String,
    pub limit: Option<Limit>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyChange {
    pub access_key_id: String,
    pub is_enabled: bool,
}

/// A user, with the policies to put in place of those it has: name and JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UserRequest {
    pub tenant: String,
    pub user: String,
    #[serde(default)]
    pub policies: Vec<(String, String)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UserAnswer {
    pub user: String,
    pub policies: Vec<(String, String)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyAnswer {
    pub tenant: String,
    pub access_key_id: String,
    pub secret_access_key: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyListed {
    pub access_key_id: String,
    pub is_enabled: bool,
}

/// Why a request was not carried out, for the person who made it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApiError {
    pub error: String,
}

type Failure = (StatusCode, String);

/// An answer's bytes, whole or in pieces.
type Body = BoxBody<Bytes, std::io::Error>;

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

fn failure(status: StatusCode, why: impl ToString) -> Failure {
    (status, why.to_string())
}

fn meta_failure(error: MetaError) -> Failure {
    match error {
        MetaError::Refused(refusal) => failure(StatusCode::CONFLICT, refusal),
        error => failure(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}

struct Console {
    shell: Shell,
    token: String,
    recorder: PrometheusHandle,
}

/// Starts the console where the configuration has one; returns its address.
///
/// # Errors
/// The address cannot be bound.
pub async fn start(
    shell: &Shell,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<Option<SocketAddr>> {
    let Some(listen) = shell.config.console.listen else { return Ok(None) };
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("listen on {listen} (console.listen)"))?;
    let address = listener.local_addr()?;
    let recorder = metrics::install(tasks, stop)?;
    let token = state::admin_token(&shell.config.node.dir)?;
    // What is administered here is written down as the operator's.
    let facts = Audited::always(Arc::clone(&shell.facts), Arc::new(customers::Operator));
    let shell = Shell { facts: Arc::new(facts), ..shell.clone() };
    let console = Arc::new(Console { shell, token, recorder });
    let (stop, connections) = (stop.clone(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    let tracker = tasks.clone();
    tasks.spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let (Ok((stream, _)), Ok(room)) = (accepted, Arc::clone(&connections).try_acquire_owned()) else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (console, stop) = (Arc::clone(&console), stop.clone());
            tracker.spawn(async move {
                let service = service_fn(move |request| {
                    let console = Arc::clone(&console);
                    async move { Ok::<_, Infallible>(console.answer(request).await) }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    _ = connection => {}
                    () = tokio::time::sleep(CONNECTION_MAX) => {}
                    () = stop.cancelled() => {}
                }
                drop(room);
            });
        }
    });
    Ok(Some(address))
}

fn json<T: Serialize>(value: &T) -> Result<Response<Body>, Failure> {
    let body =
        serde_json::to_vec(value).map_err(|error| failure(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    let mut response = Response::new(full(body));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// What a person sees; all it shows, it asks for with the token.
fn page() -> Response<Body> {
    let mut response = Response::new(full(Bytes::from_static(PAGE.as_bytes())));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    if let Ok(policy) = header::HeaderValue::try_from(page_policy()) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// Only the page's own script and style run, nothing comes from elsewhere, and nobody may frame it: it holds the operator's
/// token. CSP level 3, hash sources.
fn page_policy() -> String {
    let hash_of = |name: &str| {
        let (from, to) = (format!("<{name}>"), format!("</{name}>"));
        let inside =
            PAGE.split_once(&from).and_then(|(_, rest)| rest.split_once(&to)).map_or("", |(text, _)| text);
        BASE64_STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, inside.as_bytes()))
    };
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
        hash_of("style"),
        hash_of("script"),
    )
}

/// The value of `name` in a query string of unescaped values.
fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    query?
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}

impl Console {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_head_or_get = matches!(*request.method(), Method::GET | Method::HEAD);
        let answered = match request.uri().path() {
            "/" if is_head_or_get => Ok(page()),
            "/healthz" if is_head_or_get => Ok(Response::new(full("ok\n"))),
            "/metrics" if is_head_or_get => Ok(Response::new(full(self.metrics_page()))),
            _ if !self.is_authorized(&request) => {
                let is_given = request.headers().contains_key(header::AUTHORIZATION);
                Err(failure(StatusCode::UNAUTHORIZED, if is_given { WRONG_TOKEN } else { NO_TOKEN }))
            }
            _ => self.call(request).await,
        };
        answered.unwrap_or_else(|(status, error)| {
            let mut response =
                json(&ApiError { error }).unwrap_or_else(|_| Response::new(full("internal error")));
            *response.status_mut() = status;
            response
        })
    }

    fn is_authorized(&self, request: &Request<Incoming>) -> bool {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        // RFC 9110 section 11.1: the scheme's case does not matter.
        let given = given
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map_or("", |(_, token)| token.trim());
        // Hashes compare in constant time with regard to the token.
        blake3::hash(given.as_bytes()) == blake3::hash(self.token.as_bytes())
    }

    async fn call(&self, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| failure(StatusCode::BAD_REQUEST, error))?.to_bytes();
        let query = parts.uri.query();
        match (&parts.method, parts.uri.path()) {
            (&Method::GET, "/api/v1/status") => {
                let view = match LeaderView::of(&self.shell.members) {
                    own if own.leads => own,
                    _ => self.ask_leader().await.unwrap_or_default(),
                };
                let mut status = self.status(view);
                status.lost = lost::count(&self.shell, status.lost).await;
                json(&status)
            }
            (&Method::GET, "/api/v1/lost") => json(&self.lost(parameter(query, "cursor")).await?),
            (&Method::POST, "/api/v1/join-token") => json(&self.join_token(read(&body)?).await?),
            (&Method::POST, "/api/v1/standing") => json(&self.standing(read(&body)?).await?),
            (&Method::POST, "/api/v1/gpu") => json(&self.cards(read(&body)?).await?),
            (&Method::GET, "/api/v1/due") => json(&self.due(parameter(query, "node")).await?),
            (&Method::POST, "/api/v1/rebalance") => {
                let RebalanceRequest { is_paused } = read(&body)?;
                self.propose(Command::SetRebalance { is_paused }).await?;
                self.shell.map_changed.notify_one();
                json(&())
            }
            (&Method::GET, "/api/v1/backup") => self.backup().await,
            (&Method::GET, "/api/v1/tenants") => json(&self.tenants().await?),
            (&Method::POST, "/api/v1/tenants") => json(&self.create_tenant(read(&body)?).await?),
            (&Method::GET, "/api/v1/keys") => json(&self.keys(parameter(query, "tenant")).await?),
            (&Method::POST, "/api/v1/keys") => json(&self.create_key(read(&body)?).await?),
            (&Method::DELETE, "/api/v1/keys") => json(&self.delete_key(parameter(query, "id")).await?),
            (&Method::PATCH, "/api/v1/keys") => json(&self.set_key(read(&body)?).await?),
            (&Method::GET, "/api/v1/buckets") => json(&self.buckets().await?),
            (&Method::POST, "/api/v1/buckets") => json(&self.create_bucket(read(&body)?).await?),
            (&Method::DELETE, "/api/v1/buckets") => {
                json(&self.delete_bucket(parameter(query, "name")).await?)
            }
            (&Method::PUT, "/api/v1/quotas") => json(&self.set_quota(read(&body)?).await?),
            (&Method::GET, "/api/v1/audit") => json(&self.audit(query).await?),
            (&Method::GET, "/api/v1/kms") => json(&self.kms_keys(query).await?),
            (&Method::POST, "/api/v1/kms") => json(&self.change_kms(read(&body)?).await?),
            (&Method::PUT, "/api/v1/kms") => json(&self.rule_kms(read(&body)?).await?),
            (&Method::GET, "/api/v1/replication-targets") => json(&self.targets(query).await?),
            (&Method::PUT, "/api/v1/replication-targets") => json(&self.put_target(read(&body)?).await?),
            (&Method::DELETE, "/api/v1/replication-targets") => {
                json(&self.delete_target(read(&body)?).await?)
            }
            (&Method::PUT, "/api/v1/limits") => json(&self.set_limit(read(&body)?).await?),
            (&Method::GET, "/api/v1/users") => json(&self.users(parameter(query, "tenant")).await?),
            (&Method::PUT, "/api/v1/users") => json(&self.put_user(read(&body)?).await?),
            (&Method::DELETE, "/api/v1/users") => json(&self.delete_user(read(&body)?).await?),
            (method, path) if path.starts_with("/api/v1/accounts") => {
                self.accounts(method, path, query, &body).await
            }
            (_, path) => Err(failure(StatusCode::NOT_FOUND, format!("{path} is no path of this console"))),
        }
    }

    async fn accounts(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        body: &[u8],
    ) -> Result<Response<Body>, Failure> {
        let unavailable = |error: anyhow::Error| match error.downcast::<MetaError>() {
            Ok(error) => meta_failure(error),
            Err(error) => failure(StatusCode::CONFLICT, format!("{error:#}")),
        };
        let shell = &self.shell;
        match (method, path.trim_start_matches("/api/v1/accounts")) {
            (&Method::GET, "") => json(&api::overview(shell).await.map_err(unavailable)?),
            (&Method::GET, "/claims") => json(&api::claims(shell).await.map_err(unavailable)?),
            (&Method::GET, "/usage") => json(&api::usage(shell).await.map_err(unavailable)?),
            (&Method::GET, "/earnings") => json(&api::earnings(shell).await.map_err(unavailable)?),
            (&Method::GET, path @ ("/proof" | "/claim-cost")) => {
                let node = parameter(query, "node").and_then(|node| node.parse().ok());
                let node = node.ok_or_else(|| failure(StatusCode::BAD_REQUEST, "name the node: ?node=ID"))?;
                match path {
                    "/proof" => json(&api::proof(shell, node).await.map_err(unavailable)?),
                    _ => json(&fees::claim_cost(shell, node).await.map_err(unavailable)?),
                }
            }
            (&Method::POST, "/estimate") => {
                json(&api::estimate(shell, &read(body)?).await.map_err(unavailable)?)
            }
            (&Method::POST, "/credit") => json(&api::credit(shell, read(body)?).await.map_err(unavailable)?),
            (&Method::POST, "/claim") => {
                let request: api::ClaimRequest = read(body)?;
                json(&api::claim(shell, request.node).await.map_err(unavailable)?)
            }
            (&Method::POST, "/dispute") => {
                json(&api::dispute(shell, read(body)?).await.map_err(unavailable)?)
            }
            (&Method::GET, "/payouts") => json(&payouts::rows(shell).await.map_err(unavailable)?),
            (&Method::PUT, "/payout") => json(&payouts::set(shell, read(body)?).await.map_err(unavailable)?),
            (&Method::GET, "/stakes") => json(&stakes::stakes(shell).await.map_err(unavailable)?),
            (&Method::PUT, "/stake") => json(&stakes::order(shell, read(body)?).await.map_err(unavailable)?),
            (&Method::GET, "/tenant") => {
                let name = parameter(query, "name").unwrap_or_default();
                json(&stakes::tenant(shell, name).await.map_err(unavailable)?)
            }
            (&Method::POST, "/pledge") => {
                json(&stakes::spend(shell, read(body)?).await.map_err(unavailable)?)
            }
            (&Method::GET, "/trainings") => json(&trainings::rows(shell).await.map_err(unavailable)?),
            (&Method::PUT, "/training") => {
                json(&trainings::announce(shell, read(body)?).await.map_err(unavailable)?)
            }
            (&Method::PUT, "/checkpoint") => {
                json(&trainings::commit(shell, read(body)?).await.map_err(unavailable)?)
            }
            (&Method::POST, "/verdict") => {
                json(&trainings::judge(shell, read(body)?).await.map_err(unavailable)?)
            }
            (&Method::GET, "/opening") => json(&api::opening(shell).await.map_err(unavailable)?),
            (&Method::GET, "/ledger") => {
                Ok(Response::new(full(api::ledger(shell).await.map_err(unavailable)?)))
            }
            (_, path) => Err(failure(StatusCode::NOT_FOUND, format!("accounts have no {path:?}"))),
        }
    }

    /// What the leader has heard, where this node does not lead.
    async fn ask_leader(&self) -> Option<LeaderView> {
        let leader = self.shell.members.leader()?;
        let asked = self.shell.transport.request(leader, VIEW, Bytes::new(), VIEW_TIMEOUT);
        let view: LeaderView = decode(&asked.await.ok()?).ok()?;
        view.leads.then_some(view)
    }

    fn status(&self, view: LeaderView) -> Status {
        let shell = &self.shell;
        let map = shell.map.get();
        let meta = shell.members.meta().map(makai_raft::handle::MetaNode::status);
        let LeaderView { leads, heard, repairs, compute, lines, lost, rewound } = view;
        Status {
            node: shell.id,
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: makai_erasure::codec::kernel_name().into(),
            is_leader: shell.is_leader(),
            leader_answers: leads,
            leader: meta.as_ref().and_then(|meta| meta.leader),
            term: meta.as_ref().map(|meta| meta.term),
            applied: meta.as_ref().and_then(|meta| meta.applied),
            held_back: meta.as_ref().and_then(|meta| meta.held_back.clone()),
            rewound,
            voters: meta.map(|meta| meta.voters.into_iter().map(|(_, id)| id).collect()).unwrap_or_default(),
            default_scheme: map.default_scheme().to_string(),
            map: map.map.clone(),
            disks: crate::reconcile::heartbeat::disk_beats(shell),
            heard,
            repair: shell.progress.now(),
            repairs,
            compute,
            lines,
            lost,
        }
    }

    fn metrics_page(&self) -> String {
        metrics::gather(&self.shell, &self.status(LeaderView::of(&self.shell.members)));
        self.recorder.render()
    }

    async fn join_token(&self, request: JoinTokenRequest) -> Result<JoinTokenAnswer, Failure> {
        let map = self.shell.map.get();
        let (token_id, secret) =
            (hex::encode(rand::random::<[u8; 8]>()), hex::encode(rand::random::<[u8; 32]>()));
        let lifetime_ms = request.valid_secs.saturating_mul(1000);
        let token = JoinToken {
            id: token_id.clone(),
            secret_hash: Ticket::secret_hash(&secret),
            roles: request.roles,
            expires_at: makai_raft::facts::Timestamp(clock::now().0.saturating_add(lifetime_ms)),
            uses_left: request.uses.clamp(1, TOKEN_USES_MAX),
        };
        self.propose(Command::CreateJoinToken { token }).await?;
        let voters =
            known_peers(&map.map).into_iter().filter(|peer| peer.roles.contains(&Role::Voter)).collect();
        let ticket = Ticket { cluster_id: map.map.cluster_id.clone(), token_id, secret, voters };
        Ok(JoinTokenAnswer { token: ticket.to_text() })
    }

    async fn standing(&self, request: StandingRequest) -> Result<(), Failure> {
        let StandingRequest { node, disk, standing } = request;
        match disk {
            Some(disk) => {
                let map = self.shell.map.get();
                if !map.map.disks.iter().any(|known| known.id == disk && known.node == node) {
                    let why = format!("node {node} has no disk {disk}");
                    return Err(failure(StatusCode::NOT_FOUND, why));
                }
                self.propose(Command::SetDiskStanding { disk, standing }).await?
            }
            None => self.propose(Command::SetNodeStanding { node, standing }).await?,
        };
        self.shell.map_changed.notify_one();
        Ok(())
    }

    async fn cards(&self, request: CardRequest) -> Result<CardAnswer, Failure> {
        let Some(room) = self.shell.jobs.cards() else {
            return Err(failure(StatusCode::CONFLICT, "this machine offers no cards to jobs"));
        };
        let begun = clock::instant();
        let done = room.pause(&self.shell, request.gpu.as_deref(), request.is_paused).await;
        let (gpus, ended) = done.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => failure(StatusCode::NOT_FOUND, error),
            _ => failure(StatusCode::INTERNAL_SERVER_ERROR, error),
        })?;
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(CardAnswer { gpus, ended, took_ms })
    }

    /// Streams the facts; a client that reads slowly holds one piece of them and a view, no writer.
    async fn backup(&self) -> Result<Response<Body>, Failure> {
        let Some(meta) = self.shell.members.meta().cloned() else {
            return Err(failure(StatusCode::CONFLICT, "this node is no voter and has no facts; ask a voter"));
        };
        let (pieces, taken) = tokio::sync::mpsc::channel::<std::io::Result<Frame<Bytes>>>(2);
        tokio::spawn(async move {
            let sent = pieces.clone();
            let written = meta.backup(move |piece| match sent.blocking_send(Ok(Frame::data(piece))) {
                Ok(()) => std::ops::ControlFlow::Continue(()),
                Err(_) => std::ops::ControlFlow::Break(()),
            });
            if let Err(error) = written.await {
                tracing::warn!(%error, "a backup was not given");
                let _ = pieces.send(Err(std::io::Error::other(error.to_string()))).await;
            }
        });
        let stream =
            futures::stream::unfold(taken, |mut taken| async move { Some((taken.recv().await?, taken)) });
        Ok(Response::new(StreamBody::new(stream).boxed()))
    }

    async fn all_tenants(&self) -> Result<Vec<Tenant>, Failure> {
        match self.shell.facts.query(Query::Tenants).await.map_err(meta_failure)? {
            Answer::Tenants(tenants) => Ok(tenants),
            other => Err(failure(StatusCode::INTERNAL_SERVER_ERROR, format!("{other:?}"))),
        }
    }

    async fn tenant(&self, name: &str) -> Result<Tenant, Failure> {
        let tenants = self.all_tenants().await?;
        let found = tenants.into_iter().find(|tenant| tenant.name == name);
        found.ok_or_else(|| failure(StatusCode::NOT_FOUND, format!("there is no tenant {name:?}")))
    }

    async fn tenants(&self) -> Result<Vec<TenantAnswer>, Failure> {
        let answer = |tenant: Tenant| TenantAnswer {
            name: tenant.name,
            quota_bytes: tenant.quota_bytes,
            used_bytes: tenant.used_bytes,
            used_objects: tenant.used_objects,
            quota_objects: tenant.quota_objects,
        };
        Ok(self.all_tenants().await?.into_iter().map(answer).collect())
    }

    fn cluster_key(&self) -> Result<[u8; 32], Failure> {
        self.shell.members.cluster_key().ok_or_else(|| {
            failure(StatusCode::CONFLICT, "this node may not handle secrets; ask a voter or gateway")
        })
    }

    async fn create_tenant(&self, request: TenantRequest) -> Result<KeyAnswer, Failure> {
        let key = self.cluster_key()?;
        let refused = |error: anyhow::Error| failure(StatusCode::CONFLICT, format!("{error:#}"));
        let facts = &*self.shell.facts;
        let tenant =
            node::create_tenant(facts, &key, &request.name, request.quota_bytes).await.map_err(refused)?;
        let (access_key_id, secret_access_key) =
            node::create_key(facts, &key, &tenant).await.map_err(refused)?;
        Ok(KeyAnswer { tenant: tenant.name, access_key_id, secret_access_key })
    }

    async fn keys(&self, tenant: Option<&str>) -> Result<Vec<KeyListed>, Failure> {
        let name = tenant.ok_or_else(|| failure(StatusCode::BAD_REQUEST, "name the tenant: ?tenant=NAME"))?;
        let tenant = self.tenant(name).await?.id;
        match self.shell.facts.query(Query::AccessKeys { tenant }).await.map_err(meta_failure)? {
            Answer::AccessKeys(keys) => {
                let listed = |key: makai_raft::facts::tenant::AccessKey| KeyListed {
                    access_key_id: key.id,
                    is_enabled: key.is_enabled,
                };
                Ok(keys.into_iter().map(listed).collect())
            }
            other => Err(failure(StatusCode::INTERNAL_SERVER_ERROR, format!("{other:?}"))),
        }
    }

    async fn create_key(&self, request: KeyRequest) -> Result<KeyAnswer, Failure> {
        let key = self.cluster_key()?;
        let tenant = self.tenant(&request.tenant).await?;
        let made = node::create_key(&*self.shell.facts, &key, &tenant).await;
        let (access_key_id, secret_access_key) =
            made.map_err(|error| failure(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")))?;
        if request.user.is_some() {
            // Nobody knows the secret yet: until it is the user's, the key is of no use to anyone.
            let set = IdentityCommand::SetKeyUser { id: access_key_id.clone(), user: request.user };
            if let Err(error) = self.propose(Command::Identity(set)).await {
                self.propose(Command::DeleteAccessKey { id: access_key_id }).await?;
                return Err(error);
            }
        }
        Ok(KeyAnswer { tenant: tenant.name, access_key_id, secret_access_key })
    }

    async fn delete_key(&self, id: Option<&str>) -> Result<(), Failure> {
        let id = id.ok_or_else(|| failure(StatusCode::BAD_REQUEST, "name the key: ?id=ID"))?;
        self.propose(Command::DeleteAccessKey { id: id.into() }).await.map(|_| ())
    }

    async fn set_key(&self, change: KeyChange) -> Result<(), Failure> {
        let KeyChange { access_key_id: id, is_enabled } = change;
        self.propose(Command::Identity(IdentityCommand::SetKeyEnabled { id, is_enabled })).await.map(|_| ())
    }

    async fn set_limit(&self, request: LimitRequest) -> Result<(), Failure> {
        let LimitRequest { access_key_id: id, limit } = request;
        let key = self.shell.facts.query(Query::AccessKey { id: id.clone() }).await.map_err(meta_failure)?;
        let Answer::AccessKey(_, tenant) = key else {
            return Err(failure(StatusCode::INTERNAL_SERVER_ERROR, "the facts answered another question"));
        };
        let identity = Identity::new(Arc::clone(&self.shell.facts), self.cluster_key()?);
        let changed = identity.change_directory::<(), ()>(tenant.id, |directory| {
            match limit {
                Some(limit) => _ = directory.limits.insert(id.clone(), limit),
                None => _ = directory.limits.remove(&id),
            }
            Ok(())
        });
        changed.await.map_err(|error| match error {
            ChangeError::Facts(error) => meta_failure(error),
            other => failure(StatusCode::INTERNAL_SERVER_ERROR, other),
        })
    }

    async fn users(&self, tenant: Option<&str>) -> Result<Vec<UserAnswer>, Failure> {
        let name = tenant.ok_or_else(|| failure(StatusCode::BAD_REQUEST, "name the tenant: ?tenant=NAME"))?;
        let tenant = self.tenant(name).await?.id;
        let query = Query::Identity(IdentityQuery::Users { tenant });
        match self.shell.facts.query(query).await.map_err(meta_failure)? {
            Answer::Identity(IdentityAnswer::Users(users)) => {
                let listed = |user: User| UserAnswer { user: user.name, policies: user.policies };
                Ok(users.into_iter().map(listed).collect())
            }
            other => Err(failure(StatusCode::INTERNAL_SERVER_ERROR, format!("{other:?}"))),
        }
    }

    async fn put_user(&self, request: UserRequest) -> Result<(), Failure> {
        let tenant = self.tenant(&request.tenant).await?.id;
        for (name, text) in &request.policies {
            Policy::parse(text.as_bytes(), Kind::Identity)
                .map_err(|error| failure(StatusCode::BAD_REQUEST, format!("policy {name:?}: {error}")))?;
        }
        let created_at = makai_raft::facts::Timestamp(0);
        let user = User { tenant, name: request.user, created_at, policies: request.policies };
        self.propose(Command::Identity(IdentityCommand::PutUser { user })).await.map(|_| ())
    }

    async fn delete_user(&self, request: UserRequest) -> Result<(), Failure> {
        let tenant = self.tenant(&request.tenant).await?.id;
        let delete = IdentityCommand::DeleteUser { tenant, name: request.user };
        self.propose(Command::Identity(delete)).await.map(|_| ())
    }

    async fn propose(&self, command: Command) -> Result<Reply, Failure> {
        self.shell.facts.propose(command).await.map_err(meta_failure)
    }
}

fn read<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| failure(StatusCode::BAD_REQUEST, error))
}
