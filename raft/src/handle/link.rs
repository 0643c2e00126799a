//! openraft's network on the port [`RaftPeers`].

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use makai_erasure::NodeId;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::wire::{self, Kind, SnapshotAnswer, SnapshotEnd, SnapshotPiece, Trouble};
use super::{RaftPeerError, RaftPeers};
use crate::facts::GroupId;
use crate::log::types::{Types, Vote, VoterNode};
use crate::store::{Frozen, SnapshotData, snapshot};

/// For one piece of a snapshot, not for the whole: a transfer may take as long as it progresses.
const SNAPSHOT_PIECE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pieces read ahead of the network.
const SNAPSHOT_PIECES_AHEAD: usize = 2;

/// Makes links.
#[derive(Clone)]
pub(super) struct Links {
    pub peers: Arc<dyn RaftPeers>,
    pub group: GroupId,
    pub cluster_id: String,
    /// For one append, follower's fsync included.
    pub append_timeout: Duration,
    pub transfers: Arc<AtomicU64>,
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, _target: u64, node: &VoterNode) -> Link {
        Link { links: self.clone(), to: node.key }
    }
}

/// The way to one peer. The port decides how many connections that takes.
pub(super) struct Link {
    links: Links,
    to: NodeId,
}

enum LinkError {
    Peer(RaftPeerError),
    Trouble(Trouble),
}

impl LinkError {
    fn into_rpc(self) -> RPCError<Types> {
        match self {
            Self::Peer(error @ (RaftPeerError::Unreachable(_) | RaftPeerError::Refused(_))) => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
            Self::Peer(error @ RaftPeerError::Timeout) => RPCError::Network(NetworkError::new(&error)),
            Self::Trouble(trouble) => RPCError::Unreachable(Unreachable::new(&trouble)),
        }
    }
}

impl Link {
    async fn ask<T: DeserializeOwned>(
        &self,
        kind: Kind,
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<T, LinkError> {
        let message = wire::encode(kind as u8, self.links.group, body).map_err(LinkError::Trouble)?;
        let answer = self.links.peers.request(self.to, message, timeout).await.map_err(LinkError::Peer)?;
        wire::decode_answer(kind, &answer).map_err(LinkError::Trouble)
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotData>,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let SnapshotData::Frozen(view) = snapshot.snapshot else {
            return Err(closed("only a view of this node's facts is sent"));
        };
        let transfer = self.links.transfers.fetch_add(1, Ordering::Relaxed);
        let mut pieces = read_ahead(self.links.cluster_id.clone(), view);
        let mut offset = 0;
        while let Some(piece) = pieces.recv().await {
            let bytes = piece.map_err(closed)?;
            let len = bytes.len() as u64;
            let body = SnapshotPiece { vote, transfer, offset, bytes };
            match self.ask(Kind::SnapshotPiece, &body, SNAPSHOT_PIECE_TIMEOUT).await {
                Ok(SnapshotAnswer::Received) => offset += len,
                Ok(SnapshotAnswer::HigherVote(vote)) => return Ok(SnapshotResponse::new(vote)),
                Ok(SnapshotAnswer::Refused(why)) => return Err(refused(&why)),
                Ok(SnapshotAnswer::Installed(_)) => return Err(refused("an end before the end")),
                Err(error) => return Err(error.into_rpc().into()),
            }
        }
        let end = SnapshotEnd { vote, transfer, meta: snapshot.meta };
        loop {
            match self.ask(Kind::SnapshotEnd, &end, SNAPSHOT_PIECE_TIMEOUT).await {
                Ok(SnapshotAnswer::Received) => {}
                Ok(SnapshotAnswer::Installed(vote) | SnapshotAnswer::HigherVote(vote)) => {
                    return Ok(SnapshotResponse::new(vote));
                }
                Ok(SnapshotAnswer::Refused(why)) => return Err(refused(&why)),
                Err(error) => return Err(error.into_rpc().into()),
            }
        }
    }
}

fn closed(why: impl ToString) -> StreamingError<Types> {
    StreamingError::Closed(ReplicationClosed::new(why))
}

fn refused(why: &str) -> StreamingError<Types> {
    StreamingError::Unreachable(Unreachable::from_string(format!("snapshot refused: {why}")))
}

/// Reads on a thread that may block, no further ahead than [`SNAPSHOT_PIECES_AHEAD`].
fn read_ahead(cluster_id: String, view: Arc<Frozen>) -> mpsc::Receiver<Result<Bytes, String>> {
    let (sender, pieces) = mpsc::channel(SNAPSHOT_PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let result =
            snapshot::write(&cluster_id, &view, &mut |piece| match sender.blocking_send(Ok(piece)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            });
        if let Err(error) = result {
            drop(sender.blocking_send(Err(error.to_string())));
        }
    });
    pieces
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let timeout = option.hard_ttl().max(self.links.append_timeout);
        self.ask(Kind::Append, &rpc, timeout).await.map_err(LinkError::into_rpc)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(Kind::Vote, &rpc, option.hard_ttl()).await.map_err(LinkError::into_rpc)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(Kind::PreVote, &rpc, option.hard_ttl()).await.map_err(LinkError::into_rpc)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.ask(Kind::TransferLeader, &request, option.hard_ttl()).await.map_err(LinkError::into_rpc)
    }
}
