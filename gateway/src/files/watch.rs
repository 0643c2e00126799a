//! What others changed, as it comes.
//!
//! A stream asks the facts for events, and the voter that answers waits until there are some, for [`WAIT_MS`] at most: a
//! change is told once that voter has applied it, and a mount of which nothing is to be told costs two questions a second.

use std::time::Duration;

use makai_raft::facts::files::{FileAnswer, FileQuery};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::errors::Failure;
use super::{Does, Files, convert, mismatch, named};
use crate::grpc::Admitted;
use crate::grpc::proto::file::v1 as proto;

/// How long a voter waits with an answer that tells nothing; so often a stream says that nothing has changed. A client misses
/// a stream after 3 s: another voter can be asked within that.
const WAIT_MS: u32 = 500;
/// Pause after an answer that tells nothing and did not wait.
const LOOK_AFTER_MIN: Duration = Duration::from_millis(15);
/// Messages that wait for a slow client; it then reads them from the facts later.
const WAITING_MAX: usize = 4;
const EVENTS_PER_MESSAGE: u32 = 1000;

pub type WatchStream = ReceiverStream<Result<proto::WatchReply, Status>>;

impl Files {
    pub(super) async fn watch_bucket(
        &self,
        admitted: Admitted,
        request: proto::WatchRequest,
    ) -> Result<WatchStream, Failure> {
        let bucket = named(&self.bucket(&admitted.caller, &request.bucket, Does::Look).await?);
        let (sender, stream) = mpsc::channel(WAITING_MAX);
        let files = self.clone();
        tokio::spawn(async move {
            let _admitted = admitted;
            let mut after = request.after_sequence;
            let stopping = files.gate.stopping().clone();
            let mut is_first = true;
            loop {
                let asked_at = timer();
                let query = FileQuery::Events {
                    bucket: bucket.clone(),
                    session: request.session,
                    after,
                    entries_max: EVENTS_PER_MESSAGE,
                    // The first answer says that the stream is open.
                    wait_ms: if is_first { 0 } else { WAIT_MS },
                };
                let answer = tokio::select! {
                    answer = files.ask(query) => answer,
                    () = stopping.cancelled() => {
                        let status = Status::unavailable("this gateway closes; connect to another");
                        return drop(sender.send(Err(status)).await);
                    }
                    () = sender.closed() => return,
                };
                let reply = match answer {
                    Ok(FileAnswer::Events { sequence, events, is_lost }) => {
                        after = sequence;
                        let told = events.iter().filter_map(|event| convert::event(event, request.session));
                        let mut events: Vec<_> = told.collect();
                        if is_lost {
                            events = vec![proto::Event { what: Some(proto::event::What::All(true)) }];
                        }
                        proto::WatchReply { sequence, events }
                    }
                    Ok(_) => return drop(sender.send(Err(mismatch().into())).await),
                    Err(failure) => return drop(sender.send(Err(failure.into())).await),
                };
                let is_empty = reply.events.is_empty();
                if sender.send(Ok(reply)).await.is_err() {
                    return;
                }
                let waited = timer().duration_since(asked_at);
                if is_empty && !is_first && waited < LOOK_AFTER_MIN {
                    tokio::time::sleep(LOOK_AFTER_MIN - waited).await;
                }
                is_first = false;
            }
        });
        Ok(ReceiverStream::new(stream))
    }
}

/// The runtime's clock: it only tells whether an answer was waited for.
#[expect(clippy::disallowed_methods, reason = "a pause is measured on the runtime's clock")]
fn timer() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
