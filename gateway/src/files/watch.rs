//! What others changed, as it comes.
//!
//! A stream asks the facts for events: at once when this gateway made a change, else every [`LOOK_EVERY`].

use std::sync::Arc;
use std::time::Duration;

use makai_raft::facts::files::{FileAnswer, FileQuery};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::errors::Failure;
use super::{Does, Files, convert, mismatch, named};
use crate::grpc::Admitted;
use crate::grpc::proto::file::v1 as proto;

/// How late a change made through another gateway is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(15);
/// How often a stream says that nothing has changed.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// Messages that wait for a slow client; it then reads them from the facts later.
const WAITING_MAX: usize = 4;
const EVENTS_PER_MESSAGE: u32 = 1000;

/// Rings when this gateway has changed something.
#[derive(Clone, Default)]
pub struct Changes {
    bell: Arc<Notify>,
}

impl Changes {
    pub fn ring(&self) {
        self.bell.notify_waiters();
    }
}

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
            let mut silent = Duration::ZERO;
            let stopping = files.gate.stopping().clone();
            let mut is_first = true;
            loop {
                let rung = files.changes.bell.notified();
                let query = FileQuery::Events {
                    bucket: bucket.clone(),
                    session: request.session,
                    after,
                    entries_max: EVENTS_PER_MESSAGE,
                };
                let reply = match files.ask(query).await {
                    Ok(FileAnswer::Events { sequence, events, is_lost }) => {
                        after = sequence;
                        let mut events: Vec<_> = events.iter().map(convert::event).collect();
                        if is_lost {
                            events = vec![proto::Event { what: Some(proto::event::What::All(true)) }];
                        }
                        proto::WatchReply { sequence, events }
                    }
                    Ok(_) => return drop(sender.send(Err(mismatch().into())).await),
                    Err(failure) => return drop(sender.send(Err(failure.into())).await),
                };
                let is_full = reply.events.len() >= EVENTS_PER_MESSAGE as usize;
                if is_first || !reply.events.is_empty() || silent >= SILENCE_MAX {
                    (is_first, silent) = (false, Duration::ZERO);
                    if sender.send(Ok(reply)).await.is_err() {
                        return;
                    }
                }
                if is_full {
                    continue;
                }
                tokio::select! {
                    () = rung => {}
                    () = tokio::time::sleep(LOOK_EVERY) => silent += LOOK_EVERY,
                    () = stopping.cancelled() => {
                        let status = Status::unavailable("this gateway closes; connect to another");
                        return drop(sender.send(Err(status)).await);
                    }
                    () = sender.closed() => return,
                }
            }
        });
        Ok(ReceiverStream::new(stream))
    }
}
