//! Shards to and from the disks of other nodes.
//!
//! Requests on bulk connections; bodies are MessagePack maps, so that a later release may add fields:
//!
//! | kind | request                     | then                              | answer                    |
//! |------|-----------------------------|-----------------------------------|---------------------------|
//! | 1    | put: disk, [`ShardHeader`]  | the shard's blocks and its footer | empty, once it is durable |
//! | 2    | read: disk, key, range      |                                   | the bytes                 |
//! | 3    | footer: disk, key           |                                   | [`ShardFooter`]           |
//! | 4    | delete: disk, keys          |                                   | empty                     |
//!
//! A put is not answered before its footer unless it failed: the writer starts to send at once, and learns of a
//! full disk by the stream being stopped and the answer standing there. A put whose stream ends in any way before
//! the footer leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader, ShardPeers, ShardSink};
use makai_erasure::{DiskId, NodeId, ShardKey};
use quinn::RecvStream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::frame::{self, BLOCK_BYTES_MAX, Status};
use super::link::{Link, OpenFault, Reset, Sending, StreamFault, Waited};
use super::{ConnectionKind, Shared, Transport, TransportError, broken, peers};
use crate::clock;

const PUT: u16 = 1;
const READ: u16 = 2;
const FOOTER: u16 = 3;
const DELETE: u16 = 4;

/// Longest body of a bulk request, without a shard's blocks.
const REQUEST_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Longest footer: 255 roots and room for what later releases add.
const FOOTER_BYTES_MAX: u32 = 64 * 1024;
/// Bytes of one read request; longer reads are several.
const READ_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Bytes of one read by a caller: twice the longest shard.
const READ_TOTAL_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Keys of one delete request: under half of the request's bound.
const DELETE_KEYS_MAX: usize = 32 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct PutRequest {
    disk: DiskId,
    header: ShardHeader,
    /// Repair: no customer waits for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_background: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct ReadRequest {
    disk: DiskId,
    key: ShardKey,
    offset: u64,
    len: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_background: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct FooterRequest {
    disk: DiskId,
    key: ShardKey,
}

#[derive(Debug, Serialize, Deserialize)]
struct DeleteRequest {
    disk: DiskId,
    keys: Vec<ShardKey>,
}

type Locate = Arc<dyn Fn(DiskId) -> Option<NodeId> + Send + Sync>;
type IsUp = Arc<dyn Fn(NodeId) -> bool + Send + Sync>;
type Relays = Arc<dyn Fn() -> Vec<NodeId> + Send + Sync>;

/// The disks of the cluster: this node's own directly, all others over bulk connections.
#[derive(Clone)]
pub struct RemoteShards {
    transport: Transport,
    locate: Locate,
    local: NodeId,
    local_shards: Arc<dyn ShardPeers>,
    is_up: IsUp,
    relays: Option<Relays>,
    is_background: bool,
}

impl RemoteShards {
    /// `locate` names the node that holds a disk; `is_up` says whether a node is believed to answer.
    #[must_use]
    pub fn new(
        transport: Transport,
        locate: Locate,
        local: NodeId,
        local_shards: Arc<dyn ShardPeers>,
        is_up: IsUp,
    ) -> Self {
        Self { transport, locate, local, local_shards, is_up, relays: None, is_background: false }
    }

    /// For what no customer waits for.
    #[must_use]
    pub fn in_background(mut self) -> Self {
        self.is_background = true;
        self
    }

    fn note(&self) {
        if !self.is_background {
            self.transport.shared().note_customer();
        }
    }

    /// Asks nodes that cannot be asked directly through others.
    #[must_use]
    pub fn through(mut self, relays: Relays) -> Self {
        self.relays = Some(relays);
        self
    }

    /// Whom to ask for a disk: the node that holds it, or one that relays to it.
    fn node(&self, disk: DiskId) -> Result<NodeId, PeerError> {
        let node = (self.locate)(disk)
            .ok_or_else(|| PeerError::Unreachable(format!("no node is known to hold disk {disk}")))?;
        if node == self.local || self.transport.is_reachable(node) {
            return Ok(node);
        }
        Ok(self.relay_to(node).unwrap_or(node))
    }

    /// Who relays to a node that nobody can dial; one that has an address and does not answer is down.
    fn relay_to(&self, node: NodeId) -> Option<NodeId> {
        if self.transport.has_address(node) {
            return None;
        }
        let relays = (self.relays.as_ref()?)();
        relays.into_iter().find(|relay| *relay != self.local && self.transport.is_reachable(*relay))
    }

    /// A request that is answered whole.
    async fn ask<R: Serialize>(
        &self,
        node: NodeId,
        kind: u16,
        request: &R,
        answer_bytes_max: u32,
    ) -> Result<Bytes, PeerError> {
        let shared = self.transport.shared();
        // Twice: a stall bounds the transfer of the answer, after its first byte.
        let limit = shared.config.shard_answer_max + shared.config.stall_max;
        let answer =
            shared.ask(node, ConnectionKind::Bulk, kind, encode(request)?, answer_bytes_max, limit).await;
        let (status, body) = answer.map_err(transport_error)?;
        outcome(status, body)
    }
}

#[async_trait]
impl ShardPeers for RemoteShards {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
        self.note();
        let node = self.node(disk)?;
        if node == self.local {
            return self.local_shards.put(disk, header).await;
        }
        let shared = self.transport.shared();
        let len_max = header.len_max;
        let request = encode(&PutRequest { disk, header, is_background: self.is_background })?;
        let answer_max = shared.config.shard_answer_max;
        let deadline = clock::timer() + answer_max;
        let mut is_second_try = false;
        loop {
            let link = shared.link(node, ConnectionKind::Bulk, deadline).await.map_err(transport_error)?;
            let left = deadline.saturating_duration_since(clock::timer());
            let fault = match link.wait(left, link.open(PUT, request.clone())).await {
                Ok(Ok((sending, recv))) => {
                    return Ok(Box::new(RemoteSink {
                        transport: self.transport.clone(),
                        link,
                        sending,
                        recv,
                        answer_max,
                        len_left: len_max,
                        failed: None,
                    }));
                }
                Ok(Err(OpenFault::NotSent(_))) if !is_second_try => {
                    is_second_try = true;
                    continue;
                }
                Ok(Err(OpenFault::NotSent(end))) => peers::connection_fault(node, &end),
                Ok(Err(OpenFault::Broken(fault))) => broken(node, &fault),
                Err(Waited::Silent) => broken(node, &StreamFault::Silent),
                Err(Waited::TooLong) => TransportError::TimedOut { peer: node, after: answer_max },
            };
            return Err(transport_error(fault));
        }
    }

    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError> {
        self.note();
        let node = self.node(disk)?;
        if node == self.local {
            return self.local_shards.read(disk, key, offset, len).await;
        }
        if len > READ_TOTAL_BYTES_MAX || offset.checked_add(len).is_none() {
            return Err(PeerError::Refused(format!("{len} bytes at {offset} are more than a shard has")));
        }
        let mut whole = BytesMut::new();
        let mut done = 0;
        loop {
            let piece_len = (len - done).min(u64::from(READ_BYTES_MAX));
            let is_background = self.is_background;
            let request = ReadRequest { disk, key, offset: offset + done, len: piece_len, is_background };
            let piece = self.ask(node, READ, &request, piece_len as u32).await?;
            // Longer ones do not get through.
            if piece.len() as u64 != piece_len {
                let told = piece.len();
                return Err(PeerError::Corrupt(format!("{told} bytes came of the {piece_len} asked for")));
            }
            done += piece_len;
            if done == len && whole.is_empty() {
                return Ok(piece);
            }
            whole.extend_from_slice(&piece);
            if done == len {
                return Ok(whole.freeze());
            }
        }
    }

    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError> {
        let node = self.node(disk)?;
        if node == self.local {
            return self.local_shards.footer(disk, key).await;
        }
        let body = self.ask(node, FOOTER, &FooterRequest { disk, key }, FOOTER_BYTES_MAX).await?;
        decode(&body).map_err(|fault| PeerError::Corrupt(format!("the footer sent {fault}")))
    }

    async fn delete(&self, disk: DiskId, keys: Vec<ShardKey>) -> Result<(), PeerError> {
        let node = self.node(disk)?;
        if node == self.local {
            return self.local_shards.delete(disk, keys).await;
        }
        for some in keys.chunks(DELETE_KEYS_MAX) {
            self.ask(node, DELETE, &DeleteRequest { disk, keys: some.to_vec() }, 0).await?;
        }
        Ok(())
    }

    fn is_up(&self, disk: DiskId) -> bool {
        match (self.locate)(disk) {
            Some(node) if node == self.local => self.local_shards.is_up(disk),
            Some(node) => {
                (self.is_up)(node) && (self.transport.is_reachable(node) || self.relay_to(node).is_some())
            }
            None => false,
        }
    }
}

/// A shard on its way to another node. Dropped before the footer, it resets its stream.
struct RemoteSink {
    /// Keeps the node's endpoints open.
    transport: Transport,
    link: Arc<Link>,
    sending: Sending,
    recv: RecvStream,
    answer_max: Duration,
    len_left: u64,
    failed: Option<PeerError>,
}

impl RemoteSink {
    async fn write(&mut self, parts: &mut [Bytes]) -> Result<(), PeerError> {
        let fault = match self.link.write(&mut self.sending, parts).await {
            Ok(()) => return Ok(()),
            Err(fault) => fault,
        };
        let error = match fault {
            // The peer has answered before the end: with why.
            StreamFault::Ended(code) if code == Reset::Answered.code() => match self.answer().await {
                Ok(()) => PeerError::Refused("the shard was answered before its end".to_owned()),
                Err(error) => error,
            },
            fault => transport_error(broken(self.link.peer, &fault)),
        };
        self.failed = Some(error.clone());
        Err(error)
    }

    async fn answer(&mut self) -> Result<(), PeerError> {
        let peer = self.link.peer;
        let read = self.link.read_answer(&mut self.recv, 0, 0);
        let (status, body) = match self.link.wait(self.answer_max, read).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(fault)) => return Err(transport_error(broken(peer, &fault))),
            Err(Waited::Silent) => return Err(transport_error(broken(peer, &StreamFault::Silent))),
            Err(Waited::TooLong) => {
                return Err(transport_error(TransportError::TimedOut { peer, after: self.answer_max }));
            }
        };
        self.transport.shared().peers.get(peer).inspect(|peer| peer.answered(ConnectionKind::Bulk));
        outcome(status, body).map(|_| ())
    }
}

#[async_trait]
impl ShardSink for RemoteSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), PeerError> {
        self.send_all(vec![bytes]).await
    }

    async fn send_all(&mut self, pieces: Vec<Bytes>) -> Result<(), PeerError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        let Some(len_left) = self.len_left.checked_sub(len) else {
            let error = PeerError::Refused("the shard is longer than its header says".to_owned());
            self.failed = Some(error.clone());
            return Err(error);
        };
        self.len_left = len_left;
        let mut parts = Vec::with_capacity(2 * pieces.len());
        for mut bytes in pieces {
            while !bytes.is_empty() {
                let block = bytes.split_to(bytes.len().min(BLOCK_BYTES_MAX as usize));
                parts.push(Bytes::copy_from_slice(&(block.len() as u32).to_be_bytes()));
                parts.push(block);
            }
        }
        self.write(&mut parts).await
    }

    async fn finish(mut self: Box<Self>, footer: ShardFooter) -> Result<(), PeerError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let footer = encode(&footer)?;
        let mut heads = [0; 8];
        heads[4..].copy_from_slice(&(footer.len() as u32).to_be_bytes());
        self.write(&mut [Bytes::copy_from_slice(&heads), footer]).await?;
        self.sending.finish();
        self.answer().await
    }
}

/// Serves one bulk request out of this node's own disks.
pub(super) async fn serve(
    shared: &Shared,
    link: &Link,
    sending: &mut Sending,
    recv: &mut RecvStream,
) -> Result<(), StreamFault> {
    let head = link.read_request_head(recv, REQUEST_BYTES_MAX).await?;
    let held = hold(shared, link, u64::from(head.length)).await;
    let body = link.read_body(recv, head.length, head.length).await?;
    let disks = shared.handler.served_shards(link.peer);
    match head.kind {
        PUT => {
            let request: PutRequest = decode(&body)?;
            if !request.is_background && shared.handler.serves_customers(link.peer) {
                shared.note_customer();
            }
            drop((body, held));
            let stored = serve_put(shared, link, recv, &*disks, request).await?;
            let is_early = stored.is_err();
            answer(link, sending, stored.map(|()| Bytes::new())).await?;
            if is_early {
                let _ = recv.stop(Reset::Answered.code());
            }
            Ok(())
        }
        READ => {
            let request: ReadRequest = decode(&body)?;
            if !request.is_background && shared.handler.serves_customers(link.peer) {
                shared.note_customer();
            }
            link.read_end(recv).await?;
            drop((body, held));
            if request.len > u64::from(READ_BYTES_MAX) {
                let reason = format!("{} bytes are more than one read gives", request.len);
                return answer(link, sending, Err(PeerError::Refused(reason))).await;
            }
            let _held = hold(shared, link, request.len).await;
            let read = disks.read(request.disk, request.key, request.offset, request.len).await;
            answer(link, sending, read).await
        }
        FOOTER => {
            let request: FooterRequest = decode(&body)?;
            link.read_end(recv).await?;
            let footer = disks.footer(request.disk, request.key).await;
            answer(link, sending, footer.and_then(|footer| encode(&footer))).await
        }
        DELETE => {
            let request: DeleteRequest = decode(&body)?;
            link.read_end(recv).await?;
            let deleted = disks.delete(request.disk, request.keys).await;
            answer(link, sending, deleted.map(|()| Bytes::new())).await
        }
        other => {
            let reason = format!("bulk requests of kind {other} are not known here");
            link.refuse(sending, &reason).await?;
            let _ = recv.stop(Reset::Answered.code());
            Ok(())
        }
    }
}

/// How long a living writer may have nothing to send: a customer that sends 1 MiB in that time is served.
const WRITER_IDLE_MAX: Duration = Duration::from_secs(3600);

/// Takes a shard's blocks and footer. The sink is dropped on every way out but the last.
async fn serve_put(
    shared: &Shared,
    link: &Link,
    recv: &mut RecvStream,
    disks: &dyn ShardPeers,
    request: PutRequest,
) -> Result<Result<(), PeerError>, StreamFault> {
    let mut len_left = request.header.len_max;
    let mut sink = match disks.put(request.disk, request.header).await {
        Ok(sink) => sink,
        Err(error) => return Ok(Err(error)),
    };
    loop {
        // Its customer may be slow: a stripe that fills for minutes is no fault of the writer, and one that died is noticed
        // all the same.
        let head = link.read_exact_within(WRITER_IDLE_MAX, recv).await?;
        let length = frame::checked_length(head, BLOCK_BYTES_MAX)?;
        if length == 0 {
            break;
        }
        len_left = match len_left.checked_sub(u64::from(length)) {
            Some(left) => left,
            None => {
                return Ok(Err(PeerError::Refused("the shard is longer than its header says".to_owned())));
            }
        };
        let _held = hold(shared, link, u64::from(length)).await;
        let block = link.read_body(recv, length, length).await?;
        if let Err(error) = sink.send(block).await {
            return Ok(Err(error));
        }
    }
    let length = frame::checked_length(link.read_exact(recv).await?, FOOTER_BYTES_MAX)?;
    let footer = link.read_body(recv, length, length).await?;
    link.read_end(recv).await?;
    Ok(sink.finish(decode(&footer)?).await)
}

/// Waits until `bytes` more may be held for this peer, and for all.
async fn hold<'a>(
    shared: &'a Shared,
    link: &'a Link,
    bytes: u64,
) -> (tokio::sync::SemaphorePermit<'a>, tokio::sync::SemaphorePermit<'a>) {
    (link.gate.enter(bytes).await, shared.bulk_gate.enter(bytes).await)
}

async fn answer(
    link: &Link,
    sending: &mut Sending,
    outcome: Result<Bytes, PeerError>,
) -> Result<(), StreamFault> {
    let (status, body) = match outcome {
        Ok(body) => (Status::Done, body),
        Err(error) => (Status::Failed, encode(&shortened(error)).unwrap_or_default()),
    };
    link.answer(sending, status, body).await
}

/// An error whose text fits an answer.
fn shortened(mut error: PeerError) -> PeerError {
    const TEXT_BYTES_MAX: usize = 4096;
    if let PeerError::Corrupt(text)
    | PeerError::Full(text)
    | PeerError::Unreachable(text)
    | PeerError::Refused(text) = &mut error
    {
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    error
}

fn outcome(status: Status, body: Bytes) -> Result<Bytes, PeerError> {
    match status {
        Status::Done => Ok(body),
        Status::Refused => Err(PeerError::Refused(String::from_utf8_lossy(&body).into_owned())),
        Status::Failed => Err(decode(&body).unwrap_or_else(|fault| {
            PeerError::Unreachable(format!("its failure cannot be read: it {fault}"))
        })),
    }
}

/// What a failure of the way to a disk means for the shard: another disk may do.
fn transport_error(error: TransportError) -> PeerError {
    match error {
        TransportError::TooLarge { .. } => PeerError::Refused(error.to_string()),
        error => PeerError::Unreachable(error.to_string()),
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes, PeerError> {
    match rmp_serde::to_vec_named(value) {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(PeerError::Refused(format!("the request cannot be encoded: {error}"))),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StreamFault> {
    rmp_serde::from_slice(bytes).map_err(|error| StreamFault::Body(error.to_string()))
}
