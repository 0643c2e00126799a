//! The gRPC service.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use makai_raft::facts::accounts::{AccountsAnswer, AccountsQuery, AccountsRefusal, Prices, SliceTime};
use makai_raft::facts::command::{Command, Refusal, Reply};
use makai_raft::facts::jobs::{
    Job as JobFact, JobId, JobState, JobsAnswer, JobsCommand, JobsQuery, JobsReply,
};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::TenantId;
use makai_raft::handle::{MetaError, Metadata};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{JobNodes, Never, logs, words};
use crate::grpc::proto::jobs::v1::jobs_server::{Jobs, JobsServer};
use crate::grpc::proto::jobs::v1::{
    CancelRequest, GetRequest, Job, ListRequest, ListResponse, ListTasksRequest, ListTasksResponse,
    LogsRequest, LogsResponse, SubmitRequest, SubmitResponse, WaitRequest, WatchRequest, WhyRequest,
    WhyResponse,
};
use crate::grpc::{Admitted, Gate};
use crate::objects::Objects;

const PAGE_SIZE_DEFAULT: u32 = 100;
const PAGE_SIZE_MAX: u32 = 1000;
/// Jobs looked at for one filtered page.
const LOOKED_AT_MAX: usize = 10_000;
/// Bytes of jobs in one page: clients take 4 MiB.
const ANSWER_BYTES_MAX: usize = 2 << 20;
/// How often a job is looked at for those who watch it: often at first, for short jobs.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(10);
const LOOK_EVERY_MAX: Duration = Duration::from_millis(500);

/// What the service stands on.
#[derive(Clone)]
pub struct JobsOptions {
    pub facts: Arc<dyn Metadata>,
    pub objects: Objects,
    pub nodes: Arc<dyn JobNodes>,
}

/// Submits, shows and ends jobs. Cheap to clone.
#[derive(Clone)]
pub struct JobsService {
    pub(super) gate: Gate,
    pub(super) options: JobsOptions,
}

impl JobsService {
    /// The service, to be added to the door whose gate this is.
    #[must_use]
    pub fn server(gate: Gate, options: JobsOptions) -> JobsServer<Self> {
        JobsServer::new(Self { gate, options })
    }

    pub(super) async fn ask(&self, query: JobsQuery) -> Result<JobsAnswer, Status> {
        match self.options.facts.query(Query::Jobs(query)).await {
            Ok(Answer::Jobs(answer)) => Ok(answer),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(status(error)),
        }
    }

    async fn propose(&self, command: JobsCommand) -> Result<Reply, Status> {
        let reply = self.options.facts.propose(Command::Jobs(command)).await;
        self.options.nodes.wake();
        reply.map_err(status)
    }

    pub(super) async fn job(&self, tenant: TenantId, id: u64) -> Result<(JobFact, JobState), Status> {
        match self.ask(JobsQuery::Job { tenant: Some(tenant), job: JobId(id) }).await? {
            JobsAnswer::Job(job, state) => Ok((job, state)),
            _ => Err(unexpected()),
        }
    }

    async fn submitted_as(&self, tenant: TenantId, token: &str) -> Result<Option<JobId>, Status> {
        match self.ask(JobsQuery::Submitted { tenant, client_token: token.to_owned() }).await? {
            JobsAnswer::Submitted(job) => Ok(job),
            _ => Err(unexpected()),
        }
    }

    /// The job once its version is not `known` any more, or once it is over; `None`: the door closes.
    async fn changed(&self, tenant: TenantId, id: u64, known: u64) -> Result<Option<Job>, Status> {
        let mut pause = LOOK_EVERY_MIN;
        loop {
            let (job, state) = self.job(tenant, id).await?;
            if state.version != known || state.phase.is_over() {
                return Ok(Some(words::job(job, &state)));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LOOK_EVERY_MAX),
                () = self.gate.stopping().cancelled() => return Ok(None),
            }
        }
    }

    async fn dry_run(
        &self,
        tenant: TenantId,
        spec: makai_raft::facts::jobs::JobSpec,
    ) -> Result<SubmitResponse, Status> {
        let capacity = self.options.nodes.capacity(tenant, &spec).await.map_err(Status::unavailable)?;
        if capacity.nodes == 0 {
            return Err(Status::failed_precondition(match self.options.nodes.never(&spec).await {
                Ok(Never::Never(why) | Never::Unknown(why)) => why,
                Ok(Never::Possible) | Err(_) => {
                    "no node that is up could run a task even if it were idle: ask for less, or leave out site and gpu".into()
                }
            }));
        }
        let prices = self.prices().await?;
        let of = |ms: u64| {
            u64::try_from(prices.of_slices(&SliceTime::of(&spec.resources, ms)).0 / 1000).unwrap_or(u64::MAX)
        };
        let tries = u64::from(spec.tasks).saturating_mul(spec.attempts_max.into());
        Ok(SubmitResponse {
            job_id: 0,
            existed: false,
            nodes: capacity.nodes,
            tasks_at_once: capacity.tasks_at_once,
            tasks_now: capacity.tasks_now,
            enforcement: words::enforcement(capacity.level),
            runtime_median_ms: capacity.median_ms,
            runtime_p90_ms: capacity.p90_ms,
            task_hour_micros: of(60 * 60 * 1000),
            cost_expected_micros: of(capacity.median_ms).saturating_mul(spec.tasks.into()),
            cost_max_micros: of(spec.time_limit_ms).saturating_mul(tries),
            tasks: spec.tasks,
            objects: spec.each.as_ref().map_or(0, |each| each.objects),
            objects_per_task: spec.each.as_ref().map_or(0, |each| each.per_task),
            note: String::new(),
        })
    }

    async fn prices(&self) -> Result<Prices, Status> {
        match self.options.facts.query(Query::Accounts(AccountsQuery::Billing)).await {
            Ok(Answer::Accounts(AccountsAnswer::Billing { prices, .. })) => Ok(prices),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(status(error)),
        }
    }
}

pub(super) fn unexpected() -> Status {
    Status::internal("the metadata answered another question; do the nodes run different releases?")
}

pub(super) fn status(error: MetaError) -> Status {
    match error {
        MetaError::Refused(refusal) => match refusal {
            Refusal::NotFound(_) => Status::not_found(refusal.to_string()),
            Refusal::Accounts(AccountsRefusal::BalanceSpent { .. }) => {
                Status::failed_precondition(refusal.to_string())
            }
            Refusal::QuotaExceeded { .. } | Refusal::QuotaReached(_) => {
                Status::resource_exhausted(refusal.to_string())
            }
            _ => Status::invalid_argument(refusal.to_string()),
        },
        MetaError::Unavailable(why) => Status::unavailable(why),
        MetaError::Overloaded => Status::resource_exhausted(error.to_string()),
    }
}

fn stopping() -> Status {
    Status::unavailable("this gateway stops; call again")
}

/// A stream that keeps its place among the calls under way until it has ended.
fn holding<T: Send + 'static>(
    admitted: Admitted,
    stream: impl futures::Stream<Item = T> + Send + 'static,
) -> BoxStream<'static, T> {
    stream
        .inspect(move |_| {
            let _ = &admitted;
        })
        .boxed()
}

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let SubmitRequest { spec, client_token, dry_run, queue_anyway } = request.into_inner();
        let mut spec = words::spec(spec.ok_or_else(|| Status::invalid_argument("spec is missing"))?)?;
        if !client_token.is_empty()
            && !dry_run
            && let Some(job) = self.submitted_as(admitted.caller.tenant, &client_token).await?
        {
            // Checked then; its inputs may be gone by now.
            return Ok(Response::new(SubmitResponse { job_id: job.0, existed: true, ..Default::default() }));
        }
        self.check(&admitted.caller, &spec).await?;
        let list = self.settle_each(&admitted.caller, &mut spec).await?;
        if dry_run {
            return Ok(Response::new(self.dry_run(admitted.caller.tenant, spec).await?));
        }
        // Where nobody can tell, it waits as any other, and who submits it is told.
        let note = match self.options.nodes.never(&spec).await {
            Ok(Never::Possible) => String::new(),
            Ok(Never::Never(why)) if !queue_anyway => {
                return Err(Status::failed_precondition(format!(
                    "{why}; ask for less, or queue it for a machine to come (--queue-anyway)"
                )));
            }
            Ok(Never::Never(why) | Never::Unknown(why)) => why,
            Err(why) => format!("whether any machine could run it is not known now: {why}"),
        };
        let stored = match list {
            Some(list) => Some(self.store_list(&admitted.caller, &spec, list).await?),
            None => None,
        };
        let command = JobsCommand::Submit {
            tenant: admitted.caller.tenant,
            access_key_id: admitted.caller.access_key_id.clone(),
            client_token,
            list: stored.as_ref().map(|stored| stored.content.clone()),
            spec,
        };
        let reply = self.options.facts.propose(Command::Jobs(command)).await;
        self.options.nodes.wake();
        let is_seen = match &reply {
            Ok(Reply::Jobs(JobsReply::Submitted { existed, .. })) => !existed,
            // Where nobody can tell, it may be.
            other => !matches!(other, Err(MetaError::Refused(_))),
        };
        if let Some(stored) = stored.filter(|_| !is_seen) {
            self.options.objects.drop_unseen(stored);
        }
        match reply.map_err(status)? {
            Reply::Jobs(JobsReply::Submitted { job, existed }) => {
                Ok(Response::new(SubmitResponse { job_id: job.0, existed, note, ..Default::default() }))
            }
            _ => Err(unexpected()),
        }
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Job>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let (job, state) = self.job(admitted.caller.tenant, request.get_ref().job_id).await?;
        Ok(Response::new(words::job(job, &state)))
    }

    async fn why(&self, request: Request<WhyRequest>) -> Result<Response<WhyResponse>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let (job, _) = self.job(admitted.caller.tenant, request.get_ref().job_id).await?;
        let lines = self.options.nodes.why(job.id).await.map_err(Status::unavailable)?;
        Ok(Response::new(WhyResponse { lines }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let ListRequest { page_size, page_token, phases } = request.into_inner();
        let entries_max = if page_size == 0 { PAGE_SIZE_DEFAULT } else { page_size.min(PAGE_SIZE_MAX) };
        let mut before = words::page_token(&page_token)?;
        let (mut jobs, mut looked_at, mut bytes) = (Vec::new(), 0, 0);
        loop {
            let query = JobsQuery::Jobs { tenant: admitted.caller.tenant, before, entries_max };
            let JobsAnswer::Jobs(page) = self.ask(query).await? else { return Err(unexpected()) };
            // A page of large jobs ends early.
            let is_last = page.is_empty();
            looked_at += page.len();
            for (job, state) in page {
                if jobs.len() == entries_max as usize || bytes >= ANSWER_BYTES_MAX {
                    break;
                }
                before = Some(job.id);
                if phases.is_empty() || phases.contains(&words::phase(state.phase).into()) {
                    let job = words::job(job, &state);
                    bytes += prost::Message::encoded_len(&job);
                    jobs.push(job);
                }
            }
            let is_full =
                jobs.len() == entries_max as usize || bytes >= ANSWER_BYTES_MAX || looked_at >= LOOKED_AT_MAX;
            if is_last && !is_full {
                return Ok(Response::new(ListResponse { jobs, next_page_token: String::new() }));
            }
            if is_full {
                let next_page_token = before.map(|id| id.0.to_string()).unwrap_or_default();
                return Ok(Response::new(ListResponse { jobs, next_page_token }));
            }
        }
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let ListTasksRequest { job_id, from_index, page_size } = *request.get_ref();
        self.job(admitted.caller.tenant, job_id).await?;
        let entries_max = if page_size == 0 { PAGE_SIZE_DEFAULT } else { page_size.min(PAGE_SIZE_MAX) };
        let query = JobsQuery::Tasks { job: JobId(job_id), from_index, entries_max };
        let JobsAnswer::Tasks(tasks) = self.ask(query).await? else { return Err(unexpected()) };
        Ok(Response::new(ListTasksResponse { tasks: tasks.into_iter().map(words::task).collect() }))
    }

    type WatchStream = BoxStream<'static, Result<Job, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let (tenant, id) = (admitted.caller.tenant, request.get_ref().job_id);
        let service = self.clone();
        let seen = futures::stream::unfold(Some(0), move |known| {
            let service = service.clone();
            async move {
                match service.changed(tenant, id, known?).await {
                    Ok(Some(job)) => {
                        let next = (job.ended_unix_ms == 0).then_some(job.version);
                        Some((Ok(job), next))
                    }
                    Ok(None) => Some((Err(stopping()), None)),
                    Err(error) => Some((Err(error), None)),
                }
            }
        });
        Ok(Response::new(holding(admitted, seen)))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Job>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let WaitRequest { job_id, timeout_ms } = *request.get_ref();
        let begun = now();
        let mut known = 0;
        loop {
            let changed = self.changed(admitted.caller.tenant, job_id, known);
            let seen = if timeout_ms == 0 {
                changed.await?
            } else {
                let left = Duration::from_millis(timeout_ms).saturating_sub(begun.elapsed());
                match tokio::time::timeout(left, changed).await {
                    Ok(seen) => seen?,
                    Err(_) => {
                        let (job, state) = self.job(admitted.caller.tenant, job_id).await?;
                        return Ok(Response::new(words::job(job, &state)));
                    }
                }
            };
            let job = seen.ok_or_else(stopping)?;
            if job.ended_unix_ms > 0 {
                return Ok(Response::new(job));
            }
            known = job.version;
        }
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<Job>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let tenant = admitted.caller.tenant;
        let CancelRequest { job_id, reason } = request.into_inner();
        let reason = if reason.is_empty() { "cancelled by its owner".to_owned() } else { reason };
        self.propose(JobsCommand::Cancel { tenant: Some(tenant), job: JobId(job_id), reason }).await?;
        let (job, state) = self.job(tenant, job_id).await?;
        Ok(Response::new(words::job(job, &state)))
    }

    type LogsStream = BoxStream<'static, Result<LogsResponse, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let tenant = admitted.caller.tenant;
        let request = request.into_inner();
        let (job, _) = self.job(tenant, request.job_id).await?;
        if request.index >= job.spec.tasks {
            let tasks = job.spec.tasks;
            return Err(Status::invalid_argument(format!("index: the job has tasks 0 to {}", tasks - 1)));
        }
        let parts = logs::stream(self.clone(), admitted.caller.clone(), request);
        let stopped = self.gate.stopping().clone();
        let parts = parts.take_until(async move { stopped.cancelled().await });
        Ok(Response::new(holding(admitted, parts)))
    }
}

#[expect(clippy::disallowed_methods, reason = "a stopwatch for one call; decides nothing that is agreed")]
fn now() -> Instant {
    Instant::now()
}
