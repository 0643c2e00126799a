//! What an attempt printed: from the node that has it, else from the pool.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{BoxStream, unfold};
use makai_raft::facts::command::Refusal;
use makai_raft::facts::joblog;
use makai_raft::facts::jobs::{AttemptId, JobId, JobsAnswer, JobsQuery, Task, log_bucket, log_key};
use tonic::Status;

use super::service::{JobsService, unexpected};
use crate::grpc::proto::jobs::v1::logs_response::Stream;
use crate::grpc::proto::jobs::v1::{LogsRequest, LogsResponse};
use crate::identity::Caller;
use crate::objects::{ByteRange, ObjectsError};

/// How often a node is asked whether more was printed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Questions in a row that a node may leave unanswered before a follower is told.
const SILENCES_MAX: u32 = 100;

/// Where a reader is.
struct Reader {
    service: JobsService,
    caller: Caller,
    request: LogsRequest,
    /// The attempt that is read; 0: not known yet.
    attempt: u32,
    offset: u64,
    silences: u32,
    ready: BytesMut,
    /// What is ready ends the log.
    is_complete: bool,
}

pub fn stream(
    service: JobsService,
    caller: Caller,
    request: LogsRequest,
) -> BoxStream<'static, Result<LogsResponse, Status>> {
    let (attempt, offset) = (request.attempt, request.offset);
    let ready = BytesMut::new();
    let reader = Reader { service, caller, request, attempt, offset, silences: 0, ready, is_complete: false };
    unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(response)) => Some((Ok(response), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl Reader {
    /// The next record; `None`: there is none, and none to wait for.
    async fn next(&mut self) -> Result<Option<LogsResponse>, Status> {
        loop {
            let parsed = joblog::parse(&self.ready).map_err(|bad| Status::data_loss(bad.to_string()))?;
            if let Some((record, used)) = parsed {
                self.offset += used as u64;
                let stream = match record.stream {
                    1 => Stream::Stdout,
                    2 => Stream::Stderr,
                    _ => Stream::Notice,
                };
                let response = LogsResponse {
                    stream: stream.into(),
                    at_unix_ms: record.at_unix_ms,
                    data: Bytes::copy_from_slice(record.text),
                    next_offset: self.offset,
                    attempt: self.attempt,
                };
                self.ready.advance(used);
                return Ok(Some(response));
            }
            if self.is_complete || !self.fetch().await? {
                return Ok(None);
            }
        }
    }

    async fn task(&self) -> Result<Option<Task>, Status> {
        let LogsRequest { job_id, index, .. } = self.request;
        let query = JobsQuery::Tasks { job: JobId(job_id), from_index: index, entries_max: 1 };
        match self.service.ask(query).await? {
            JobsAnswer::Tasks(tasks) => Ok(tasks.into_iter().find(|task| task.index == index)),
            _ => Err(unexpected()),
        }
    }

    /// Gets more; false where there is nothing more to be had.
    async fn fetch(&mut self) -> Result<bool, Status> {
        // A record cut in the middle comes again, whole.
        self.ready.clear();
        let task = self.task().await?;
        let Some(task) = task.filter(|task| task.attempt > 0 && self.attempt <= task.attempt) else {
            return self.wait_for_more().await;
        };
        if self.attempt == 0 {
            self.attempt = task.attempt;
        }
        let id =
            AttemptId { job: JobId(self.request.job_id), index: self.request.index, attempt: self.attempt };
        if task.log.is_some_and(|(attempt, _)| attempt == self.attempt) {
            return self.fetch_from_pool(id).await;
        }
        // A log comes into the pool with its attempt's report: one that is over and has none there left none.
        let is_current = task.phase.is_active() && task.attempt == self.attempt;
        let Some(node) = task.node.filter(|_| is_current) else { return Ok(false) };
        match self.service.options.nodes.log(node, id, self.offset).await {
            Ok(part) => {
                self.silences = 0;
                self.offset = part.offset;
                self.ready.extend_from_slice(&part.records);
                if self.ready.is_empty() { self.wait_for_more().await } else { Ok(true) }
            }
            Err(_) if self.silences < SILENCES_MAX => {
                self.silences += 1;
                self.wait_for_more().await
            }
            Err(why) => Err(Status::unavailable(format!("the node that has the log of {id}: {why}"))),
        }
    }

    async fn wait_for_more(&self) -> Result<bool, Status> {
        if !self.request.follow {
            return Ok(false);
        }
        if self.attempt == 0 {
            let (_, state) = self.service.job(self.caller.tenant, self.request.job_id).await?;
            if state.phase.is_over() {
                return Ok(false);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(true)
    }

    async fn fetch_from_pool(&mut self, id: AttemptId) -> Result<bool, Status> {
        self.offset = self.offset.max(joblog::MAGIC.len() as u64);
        let last = self.offset + u64::from(super::LOG_PAGE_BYTES_MAX) + joblog::TEXT_BYTES_MAX as u64;
        let range = ByteRange::From { first: self.offset, last: Some(last) };
        let objects = &self.service.options.objects;
        let got = objects.get(&self.caller, &log_bucket(self.caller.tenant), &log_key(id), range).await;
        let mut download = match got {
            Ok(download) => download,
            Err(ObjectsError::RangeNotSatisfiable { .. }) => return Ok(false),
            Err(ObjectsError::Refused(Refusal::NoSuchKey | Refusal::NoSuchBucket)) => {
                return Err(Status::not_found(format!("the log of attempt {id} is not kept any more")));
            }
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        while let Some(bytes) = download.body.next().await {
            self.ready.extend_from_slice(&bytes.map_err(|error| Status::unavailable(error.to_string()))?);
        }
        self.is_complete = self.offset + self.ready.len() as u64 >= download.head.size;
        Ok(!self.ready.is_empty())
    }
}
