//! The accepting side: handshakes, admission, and the requests that come in on any connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use makai_erasure::NodeId;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming, RecvStream};
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;

use super::frame::Status;
use super::link::{Close, Link, Reset, Sending, StreamFault};
use super::{CONTROL_BYTES_MAX, ConnectionKind, Shared, shards, tls};

/// Control requests up to this never wait behind longer ones: heartbeats and votes behind snapshots, members behind
/// strangers that announce much and send nothing.
const SMALL_BODY_BYTES: u32 = 64 * 1024;

/// Takes connections until the endpoint closes.
pub(super) async fn accept_connections(shared: Arc<Shared>, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        if shared.is_closing() || endpoint.open_connections() >= shared.config.connections_max {
            shared.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
            incoming.refuse();
            continue;
        }
        // Under a storm of handshakes, only those who prove their address are heard, and the rest try again.
        let room = shared.handshakes.available_permits();
        let is_stormy = room < shared.config.handshakes_max / 2;
        if is_stormy && !incoming.remote_address_validated() && incoming.may_retry() {
            // Fails only for validated addresses.
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = shared.handshakes.clone().try_acquire_owned() else {
            shared.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
            incoming.ignore();
            continue;
        };
        let shared_too = shared.clone();
        shared.tasks.spawn(async move {
            admit(&shared_too, incoming).await;
            drop(permit);
        });
    }
}

async fn admit(shared: &Arc<Shared>, incoming: Incoming) {
    let address = incoming.remote_address();
    let connection = match timeout(shared.config.handshake_timeout, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            shared.counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%address, %error, "a handshake failed");
            return;
        }
        Err(_) => {
            shared.counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
    };
    let close = |why: Close, reason: &str| {
        shared.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
        connection.close(why.code(), reason.as_bytes());
    };
    let (Some(peer), Some((kind, version))) = (node_behind(&connection), agreement(&connection)) else {
        return close(Close::NotAdmitted, "no node key");
    };
    if version.is_none() {
        tracing::warn!(?peer, %address, ours = shared.tls.spoken(kind), "a peer shares no protocol version; upgrade the older node");
        return close(Close::Version, &shared.tls.spoken(kind));
    }
    if peer == shared.id {
        tracing::warn!(%address, "another process uses this node's key; each node needs its own node.key");
        return close(Close::NotAdmitted, "this node's own key");
    }
    if !shared.handler.admit(peer, kind) {
        return close(Close::NotAdmitted, "not a member that may open this connection");
    }
    let _ = start_link(shared, peer, kind, connection, false);
}

/// The node at the other end, as TLS has proved it.
fn node_behind(connection: &Connection) -> Option<NodeId> {
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::node_of(certificates.first()?).ok()
}

/// The kind and version that the handshake agreed on.
pub(super) fn agreement(connection: &Connection) -> Option<(ConnectionKind, Option<u16>)> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    tls::agreed(&data.protocol?)
}

/// Makes a connection known and serves what comes in on it until it ends.
pub(super) fn start_link(
    shared: &Arc<Shared>,
    peer: NodeId,
    kind: ConnectionKind,
    connection: Connection,
    is_dialled: bool,
) -> Arc<Link> {
    let limits = &shared.config.limits(kind);
    connection.set_max_concurrent_bi_streams(limits.streams.into());
    connection.set_receive_window(limits.connection_window);
    let link =
        Link::new(peer, kind, connection, is_dialled, limits.held_bytes_per_connection, shared.patience());
    shared.peers.attach(&link, shared.config.connections_per_peer_max);
    let (shared_too, link_too) = (shared.clone(), link.clone());
    shared.tasks.spawn(async move {
        let end = serve_streams(&shared_too, &link_too).await;
        tracing::debug!(?peer, kind = kind.protocol(), %end, "a connection ended");
        shared_too.peers.detach(&link_too, &end, shared_too.config.redial_pause_max);
    });
    link
}

async fn serve_streams(shared: &Arc<Shared>, link: &Arc<Link>) -> quinn::ConnectionError {
    loop {
        let stream = tokio::select! {
            stream = link.connection.accept_bi() => stream,
            // Datagrams are probes: QUIC has acknowledged them already.
            probe = link.connection.read_datagram() => match probe {
                Ok(_) => continue,
                Err(end) => return end,
            },
        };
        let (send, recv) = match stream {
            Ok(stream) => stream,
            Err(end) => return end,
        };
        let (shared, link) = (shared.clone(), link.clone());
        let requests = shared.requests.clone();
        requests.spawn(async move { serve_stream(&shared, &link, Sending::new(send), recv).await });
    }
}

async fn serve_stream(shared: &Arc<Shared>, link: &Link, mut sending: Sending, mut recv: RecvStream) {
    let unwanted = if shared.is_closing() {
        Some(Reset::Stopping)
    } else {
        (!shared.handler.admit(link.peer, link.kind)).then_some(Reset::NotAdmitted)
    };
    if let Some(why) = unwanted {
        let _ = recv.stop(why.code());
        return sending.reset(why);
    }
    let served = match link.kind {
        ConnectionKind::Control => serve_control(shared, link, &mut sending, &mut recv).await,
        ConnectionKind::Bulk => shards::serve(shared, link, &mut sending, &mut recv).await,
    };
    match served {
        Ok(()) => {
            shared.counters.requests_served.fetch_add(1, Ordering::Relaxed);
            if shared.is_closing() {
                // The connections close once all requests are done: not before their answers have arrived.
                let _ = link.step(sending.delivered()).await;
            }
        }
        Err(fault) => {
            if fault.is_malformed() {
                shared.counters.streams_malformed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(peer = ?link.peer, kind = link.kind.protocol(), %fault, "a malformed request");
            } else if matches!(fault, StreamFault::Stalled(_)) {
                shared.counters.streams_stalled.fetch_add(1, Ordering::Relaxed);
            }
            let _ = recv.stop(fault.reset().code());
            sending.reset(fault.reset());
        }
    }
}

async fn serve_control(
    shared: &Shared,
    link: &Link,
    sending: &mut Sending,
    recv: &mut RecvStream,
) -> Result<(), StreamFault> {
    let head = link.read_request_head(recv, CONTROL_BYTES_MAX as u32).await?;
    let length = u64::from(head.length);
    let answered = if head.length <= SMALL_BODY_BYTES {
        // Read before it is accounted for: whoever announces and does not send holds nobody up.
        let body = link.read_body(recv, head.length, 0).await?;
        link.read_end(recv).await?;
        let _held = shared.control_small_gate.enter(length).await;
        shared.handler.control(link.peer, head.kind, body).await
    } else {
        let _own_share = link.gate.enter(length).await;
        let _held = shared.control_gate.enter(length).await;
        let body = link.read_body(recv, head.length, head.length).await?;
        link.read_end(recv).await?;
        shared.handler.control(link.peer, head.kind, body).await
    };
    match answered {
        Ok(body) if body.len() <= CONTROL_BYTES_MAX => link.answer(sending, Status::Done, body).await,
        Ok(body) => {
            let reason =
                format!("the answer has {} bytes; at most {CONTROL_BYTES_MAX} can be sent", body.len());
            link.refuse(sending, &reason).await
        }
        Err(reason) => link.refuse(sending, &reason).await,
    }
}
