//! Nodes on loopback with real sockets.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use futures::future::{join_all, try_join_all};
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader, ShardSink};
use makai_erasure::{BlobId, PgId, Scheme, ShardKey};
use proptest::prelude::*;
use tokio::sync::Notify;

use super::frame::RequestHead;
use super::*;
use crate::clock;

const ECHO: u16 = 1;
const REFUSE: u16 = 2;
const NEVER: u16 = 3;
const GATED: u16 = 4;
const WHO: u16 = 5;

const SOON: Duration = Duration::from_secs(20);

/// A node's work: echoes, refuses, hangs; admits whom the test says.
struct Handler {
    disks: Arc<MemoryDisks>,
    admits: AtomicBool,
    gate: Semaphore,
    arrived: Notify,
}

#[async_trait]
impl PeerHandler for Handler {
    fn admit(&self, _peer: NodeId, _kind: ConnectionKind) -> bool {
        self.admits.load(Ordering::SeqCst)
    }

    async fn control(&self, from: NodeId, kind: u16, body: Bytes) -> Result<Bytes, String> {
        self.arrived.notify_one();
        match kind {
            ECHO => Ok(body),
            REFUSE => Err(String::from_utf8_lossy(&body).into_owned()),
            GATED => {
                self.gate.acquire().await.unwrap().forget();
                Ok(body)
            }
            WHO => Ok(Bytes::copy_from_slice(&from.0)),
            _ => std::future::pending().await,
        }
    }

    fn local_shards(&self) -> Arc<dyn ShardPeers> {
        Arc::new(SharedDisks(self.disks.clone()))
    }
}

/// Disks in memory.
struct MemoryDisks {
    shards: Mutex<HashMap<(DiskId, ShardKey), (Bytes, ShardFooter)>>,
    /// Writes begun and neither finished nor forgotten.
    open: AtomicUsize,
    taken_bytes: AtomicUsize,
    /// While set, each block waits for a permit.
    is_slow: AtomicBool,
    permits: Semaphore,
    forgotten: Notify,
}

const FULL_DISK: DiskId = DiskId([0xff; 16]);
const SHORT_DISK: DiskId = DiskId([0xee; 16]);

struct MemorySink {
    disks: Arc<MemoryDisks>,
    disk: DiskId,
    key: ShardKey,
    bytes: Vec<u8>,
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        self.disks.open.fetch_sub(1, Ordering::SeqCst);
        self.disks.forgotten.notify_one();
    }
}

#[async_trait]
impl ShardSink for MemorySink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), PeerError> {
        if self.disks.is_slow.load(Ordering::SeqCst) {
            self.disks.permits.acquire().await.unwrap().forget();
        }
        self.disks.taken_bytes.fetch_add(bytes.len(), Ordering::SeqCst);
        self.bytes.extend_from_slice(&bytes);
        if self.disk == SHORT_DISK && self.bytes.len() > 100_000 {
            return Err(PeerError::Full("100 kB are enough".to_owned()));
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>, footer: ShardFooter) -> Result<(), PeerError> {
        let bytes = std::mem::take(&mut self.bytes).into();
        self.disks.shards.lock().unwrap().insert((self.disk, self.key), (bytes, footer));
        Ok(())
    }
}

/// `ShardPeers` needs to hand itself to its sinks.
struct SharedDisks(Arc<MemoryDisks>);

#[async_trait]
impl ShardPeers for SharedDisks {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
        if disk == FULL_DISK {
            return Err(PeerError::Full("no room".to_owned()));
        }
        self.0.open.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(MemorySink { disks: self.0.clone(), disk, key: header.key, bytes: Vec::new() }))
    }

    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError> {
        let shards = self.0.shards.lock().unwrap();
        let (bytes, _) = shards.get(&(disk, key)).ok_or(PeerError::Missing)?;
        let range = offset as usize..(offset + len) as usize;
        bytes
            .get(range)
            .map(Bytes::copy_from_slice)
            .ok_or_else(|| PeerError::Refused("past the end".to_owned()))
    }

    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError> {
        let shards = self.0.shards.lock().unwrap();
        shards.get(&(disk, key)).map(|(_, footer)| footer.clone()).ok_or(PeerError::Missing)
    }

    async fn delete(&self, disk: DiskId, keys: Vec<ShardKey>) -> Result<(), PeerError> {
        let mut shards = self.0.shards.lock().unwrap();
        keys.iter().for_each(|key| _ = shards.remove(&(disk, *key)));
        Ok(())
    }

    fn is_up(&self, _disk: DiskId) -> bool {
        true
    }
}

struct Node {
    transport: Transport,
    handler: Arc<Handler>,
}

fn loopback(port: u16) -> TransportConfig {
    TransportConfig { listen: ([127, 0, 0, 1], port).into(), ..TransportConfig::default() }
}

impl Node {
    async fn start() -> Self {
        Self::with(loopback(0), &NodeIdentity::generate().unwrap()).await
    }

    async fn with(config: TransportConfig, identity: &NodeIdentity) -> Self {
        Self::try_with(config, identity).await.unwrap()
    }

    async fn try_with(config: TransportConfig, identity: &NodeIdentity) -> Result<Self, TransportError> {
        let disks = Arc::new(MemoryDisks {
            shards: Mutex::default(),
            open: AtomicUsize::new(0),
            taken_bytes: AtomicUsize::new(0),
            is_slow: AtomicBool::new(false),
            permits: Semaphore::new(0),
            forgotten: Notify::new(),
        });
        let handler = Arc::new(Handler {
            disks,
            admits: AtomicBool::new(true),
            gate: Semaphore::new(0),
            arrived: Notify::new(),
        });
        let transport = Transport::start(config, identity, handler.clone()).await?;
        Ok(Self { transport, handler })
    }

    fn id(&self) -> NodeId {
        self.transport.id()
    }

    fn knows(&self, other: &Self) {
        self.transport.set_addresses(other.id(), vec![other.transport.local_addr().to_string()]);
    }

    async fn ask(&self, other: &Self, kind: u16, body: impl Into<Bytes>) -> Result<Bytes, TransportError> {
        self.transport.request(other.id(), kind, body.into(), SOON).await
    }

    /// The disks as this node sees them: disks whose first byte is 0 are its own, all others `other`'s.
    fn shards_of(&self, other: &Self) -> RemoteShards {
        let (here, there) = (self.id(), other.id());
        let locate = move |disk: DiskId| Some(if disk.0[0] == 0 { here } else { there });
        self.transport.shards(Arc::new(locate), Arc::new(|_| true))
    }
}

/// A node whose requests are written by hand.
struct RawPeer {
    endpoint: Endpoint,
    connection: quinn::Connection,
}

impl RawPeer {
    async fn connect(node: &Node, kind: ConnectionKind) -> Self {
        let tls = Tls::new(&NodeIdentity::generate().unwrap(), PROTOCOL_VERSIONS).unwrap();
        let (config, _) = tls.client(node.id(), kind).unwrap();
        Self::connect_with(node, config).await.unwrap()
    }

    async fn connect_with(node: &Node, config: rustls::ClientConfig) -> Result<Self, quinn::ConnectionError> {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connecting = endpoint.connect_with(config, node.transport.local_addr(), "makai").unwrap();
        Ok(Self { connection: connecting.await?, endpoint })
    }

    /// Sends bytes as one stream and returns what comes back, or `None` where the stream is reset.
    async fn exchange(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        // The node may refuse the stream before it has come whole.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        recv.read_to_end(1 << 20).await.ok()
    }
}

fn request_bytes(kind: u16, body: &[u8]) -> Vec<u8> {
    [&RequestHead { kind, length: body.len() as u32 }.encode(), body].concat()
}

fn shard(number: u8, len_max: u64) -> ShardHeader {
    ShardHeader {
        key: ShardKey { blob: BlobId([number; 16]), index: number },
        pg: PgId(7),
        scheme: Scheme { data: 2, parity: 1 },
        len_max,
        opened_at_ms: 1,
    }
}

fn footer(plain_len: u64) -> ShardFooter {
    ShardFooter { blob_plain_len: plain_len, roots: vec![[1; 32], [2; 32], [3; 32]] }
}

fn pattern(len: usize) -> Bytes {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> T {
    timeout(limit, work).await.expect("takes longer than it may")
}

/// Returns once `probe` has been true; how often it looks is of no consequence.
async fn until(mut probe: impl FnMut() -> bool) {
    within(SOON, async {
        while !probe() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A node that knows no address answers and asks over the connection that its peer opened.
#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_both_directions() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    assert_eq!(a.ask(&b, ECHO, "there").await.unwrap(), "there");
    assert_eq!(b.ask(&a, ECHO, "and back").await.unwrap(), "and back");
    assert_eq!(b.ask(&a, WHO, "").await.unwrap(), b.id().0.as_slice());
    assert_eq!(a.ask(&b, WHO, "").await.unwrap(), a.id().0.as_slice());
    assert_eq!((a.transport.stats().dials, b.transport.stats().dials), (1, 0));
    assert!(a.transport.is_connected(b.id()) && b.transport.is_connected(a.id()));
    let stats = a.transport.peer_stats(b.id()).unwrap();
    assert!(stats.connections == 1 && stats.rtt > Duration::ZERO && stats.received_bytes > 0, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_every_size_and_refusals_come_through() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    for len in [0, 1, 1200, 65_536, 65_537, 1_000_000, CONTROL_BYTES_MAX] {
        let body = pattern(len);
        assert!(a.ask(&b, ECHO, body.clone()).await.unwrap() == body, "{len} bytes");
    }
    let error = a.ask(&b, ECHO, pattern(CONTROL_BYTES_MAX + 1)).await.unwrap_err();
    assert!(matches!(error, TransportError::TooLarge { .. }), "{error}");
    let error = a.ask(&b, REFUSE, "no such tenant").await.unwrap_err();
    assert_eq!(error, TransportError::Refused { peer: b.id(), reason: "no such tenant".to_owned() });
    // A refusal longer than an answer may be is cut, not lost.
    let error = a.ask(&b, REFUSE, "x".repeat(100_000)).await.unwrap_err();
    assert!(matches!(&error, TransportError::Refused { reason, .. } if reason.len() == 65_536));
    // A node answers itself without the network.
    assert_eq!(a.transport.request(a.id(), WHO, Bytes::new(), SOON).await.unwrap(), a.id().0.as_slice());
}

/// A dial reaches the key it names or fails, whoever lives at the address.
#[tokio::test(flavor = "multi_thread")]
async fn another_key_at_the_address_is_refused() {
    let (a, b) = (Node::start().await, Node::start().await);
    let expected = NodeIdentity::generate().unwrap().id();
    let address = b.transport.local_addr().to_string();
    a.transport.set_addresses(expected, vec![address.clone()]);
    let error = a.transport.request(expected, ECHO, Bytes::new(), SOON).await.unwrap_err();
    assert_eq!(error, TransportError::WrongPeer { expected, shown: b.id(), address });
    assert!(!a.transport.is_connected(b.id()) && !b.transport.is_connected(a.id()));
    // Once the address is corrected, the pause after the failure is over.
    a.transport.set_addresses(expected, vec![]);
    a.knows(&b);
    assert!(a.ask(&b, ECHO, "x").await.is_ok());
}

/// The accepting side wants proof of an Ed25519 key: no certificate, another kind of key, or a stolen certificate
/// without its key do not get in.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_proven_node_key_is_refused() {
    let node = Node::start().await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = Tls::new(&NodeIdentity::generate().unwrap(), PROTOCOL_VERSIONS).unwrap();
    let ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let ecdsa_certificate = rcgen::CertificateParams::default().self_signed(&ecdsa).unwrap().der().clone();
    let key_of = |der: Vec<u8>| {
        provider
            .key_provider
            .load_private_key(rustls_pki_types::PrivatePkcs8KeyDer::from(der).into())
            .unwrap()
    };
    let victim = NodeIdentity::generate().unwrap();
    let thief = NodeIdentity::generate().unwrap().private_key().secret_pkcs8_der().to_vec();
    let credentials = [
        None,
        Some((ecdsa_certificate, key_of(ecdsa.serialize_der()))),
        Some((victim.certificate(), key_of(thief))),
    ];
    for (case, credential) in credentials.into_iter().enumerate() {
        let (mut config, _) = tls.client(node.id(), ConnectionKind::Control).unwrap();
        config.client_auth_cert_resolver = match credential {
            Some((certificate, key)) => Arc::new(rustls::sign::SingleCertAndKey::from(
                rustls::sign::CertifiedKey::new(vec![certificate], key),
            )),
            None => Arc::new(NoCredential),
        };
        // The client may see its handshake done before the server has judged it.
        match RawPeer::connect_with(&node, config).await {
            Ok(raw) => _ = within(SOON, raw.connection.closed()).await,
            Err(error) => {
                assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{case}: {error}")
            }
        }
        until(|| node.transport.stats().handshakes_failed == case as u64 + 1).await;
        assert_eq!(node.transport.stats().connections, 0, "{case}");
    }
}

#[derive(Debug)]
struct NoCredential;

impl rustls::client::ResolvesClientCert for NoCredential {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Membership is asked at the door and again for each request.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_admitted_gets_nothing() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    b.handler.admits.store(false, Ordering::SeqCst);
    let error = a.ask(&b, ECHO, "x").await.unwrap_err();
    assert_eq!(error, TransportError::NotAdmitted { peer: b.id() });
    let shards = a.shards_of(&b);
    let missing = shards.read(DiskId([1; 16]), shard(1, 0).key, 0, 1).await;
    assert!(matches!(missing, Err(PeerError::Unreachable(_))), "{missing:?}");
    // Admitted again, the pause after the failures over, it gets in.
    b.handler.admits.store(true, Ordering::SeqCst);
    let mut answer = Err(error);
    within(SOON, async {
        while answer.is_err() {
            answer = a.ask(&b, ECHO, "x").await;
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Removed while connected, it is shut out at once.
    b.handler.admits.store(false, Ordering::SeqCst);
    assert_eq!(a.ask(&b, ECHO, "x").await.unwrap_err(), TransportError::NotAdmitted { peer: b.id() });
    b.transport.disconnect(a.id());
    until(|| !a.transport.is_connected(b.id())).await;
}

/// Nodes that share no version say so, both of them named, whichever is older; those that share one use it.
#[tokio::test(flavor = "multi_thread")]
async fn versions_meet_or_are_told() {
    let speaking = async |versions: &[u16]| {
        let config = TransportConfig { versions: versions.to_vec(), ..loopback(0) };
        Node::with(config, &NodeIdentity::generate().unwrap()).await
    };
    let (old, new, both) = (speaking(&[1]).await, speaking(&[9]).await, speaking(&[9, 1]).await);
    for (from, to, ours, theirs) in [(&old, &new, "1", "9"), (&new, &old, "9", "1")] {
        from.knows(to);
        let error = from.ask(to, ECHO, "x").await.unwrap_err();
        let expected = TransportError::Version {
            peer: to.id(),
            ours: format!("makai-control/{ours}"),
            theirs: format!("makai-control/{theirs}"),
        };
        assert_eq!(error, expected);
        assert!(error.is_unsent());
    }
    for one in [&old, &new] {
        both.knows(one);
        one.knows(&both);
        assert!(both.ask(one, ECHO, "x").await.is_ok() && one.ask(&both, ECHO, "x").await.is_ok());
    }
    // A stranger that offers foreign protocols only is refused in the handshake.
    let tls = Tls::new(&NodeIdentity::generate().unwrap(), &[1]).unwrap();
    let (mut config, _) = tls.client(old.id(), ConnectionKind::Control).unwrap();
    config.alpn_protocols = vec![b"h3".to_vec(), b"makai-control/99".to_vec()];
    assert!(RawPeer::connect_with(&old, config).await.is_err());
}

/// What breaks the protocol ends its own stream and is counted; the connection goes on.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_harm_themselves_only() {
    let node = Node::start().await;
    let good = request_bytes(ECHO, b"good");
    let answer = [&[0, 0, 0, 0, 4], b"good".as_slice()].concat();
    for kind in ConnectionKind::ALL {
        let raw = RawPeer::connect(&node, kind).await;
        let before = node.transport.stats().streams_malformed;
        let mut oversize = good.clone();
        oversize[5..9].copy_from_slice(&u32::MAX.to_be_bytes());
        let mut future_version = good.clone();
        future_version[2] = 2;
        let malformed: [&[u8]; 7] = [
            b"",
            b"M",
            b"GET / HTTP/1.1\r\n\r\n",
            &oversize,
            &future_version,
            &good[..good.len() - 1],
            &[good.as_slice(), b"more"].concat(),
        ];
        for (case, bytes) in malformed.iter().enumerate() {
            assert_eq!(within(SOON, raw.exchange(bytes)).await, None, "{kind:?} case {case}");
        }
        until(|| node.transport.stats().streams_malformed == before + malformed.len() as u64).await;
        if kind == ConnectionKind::Control {
            assert_eq!(within(SOON, raw.exchange(&good)).await, Some(answer.clone()));
        }
        assert!(raw.connection.close_reason().is_none());
        raw.endpoint.close(0u32.into(), b"");
    }
}

/// Bodies of bulk requests that do not decode, puts that break off or lie about their lengths leave nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_shards_leave_nothing() {
    let node = Node::start().await;
    let raw = RawPeer::connect(&node, ConnectionKind::Bulk).await;
    #[derive(serde::Serialize)]
    struct Put {
        disk: DiskId,
        header: ShardHeader,
    }
    let put = rmp_serde::to_vec_named(&Put { disk: DiskId([1; 16]), header: shard(1, 100) }).unwrap();
    let put = request_bytes(1, &put);
    let with = |tail: &[u8]| [put.as_slice(), tail].concat();
    let malformed = [
        request_bytes(1, b"\xc1"),
        request_bytes(2, b""),
        request_bytes(3, &[0x91; 5000]),
        request_bytes(4, b"\xdd\xff\xff\xff\xff"),
        with(b""),
        with(&[0, 0, 0, 5, 1, 2]),
        with(&[0, 0x20, 0, 0]),
        with(&[0, 0, 0, 1, 9, 0, 0, 0, 0]),
        with(&[0, 0, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0xc0]),
        with(&[0, 0, 0, 1, 9, 0, 0, 0, 0, 0xff, 0, 0, 0]),
    ];
    for (case, bytes) in malformed.iter().enumerate() {
        assert_eq!(within(SOON, raw.exchange(bytes)).await, None, "case {case}");
    }
    // Longer than announced: refused with a reason.
    let answer = within(SOON, raw.exchange(&with(&[0, 0, 0, 101]))).await.unwrap();
    assert_eq!(answer[0], 2);
    let answer = within(SOON, raw.exchange(&request_bytes(77, b""))).await.unwrap();
    assert!(String::from_utf8_lossy(&answer[5..]).contains("kind 77"));
    until(|| node.transport.stats().streams_malformed == malformed.len() as u64).await;
    assert_eq!(node.handler.disks.open.load(Ordering::SeqCst), 0);
    assert!(node.handler.disks.shards.lock().unwrap().is_empty());
}

/// Any bytes at all on streams of either kind: no panic, no lost connection, and the node still answers.
#[test]
fn any_bytes_are_survived() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (node, raws) = runtime.block_on(async {
        let node = Node::start().await;
        let raws = [
            RawPeer::connect(&node, ConnectionKind::Control).await,
            RawPeer::connect(&node, ConnectionKind::Bulk).await,
        ];
        (node, raws)
    });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let streams = proptest::collection::vec(any::<u8>(), 0..300);
    runner
        .run(&(streams, any::<bool>(), 0u16..6, any::<bool>()), |(bytes, is_bulk, kind, has_head)| {
            // Those of the handler's kinds that answer; all of the bulk ones do.
            let kind = if is_bulk { kind } else { [ECHO, REFUSE, WHO][usize::from(kind) % 3] };
            let bytes = if has_head { request_bytes(kind, &bytes) } else { bytes };
            runtime.block_on(within(SOON, raws[usize::from(is_bulk)].exchange(&bytes)));
            prop_assert!(raws.iter().all(|raw| raw.connection.close_reason().is_none()));
            Ok(())
        })
        .unwrap();
    let answer = runtime.block_on(raws[0].exchange(&request_bytes(ECHO, b"still here")));
    assert_eq!(&answer.unwrap()[5..], b"still here");
    assert_eq!(node.transport.stats().control_held_bytes + node.transport.stats().bulk_held_bytes, 0);
}

/// Shards of all sizes come back as they went, range by range, and failures come back as what they were.
#[tokio::test(flavor = "multi_thread")]
async fn shards_come_back_as_they_went() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    let shards = a.shards_of(&b);
    let (here, there) = (DiskId([0; 16]), DiskId([1; 16]));
    for (number, len) in (1..).zip([0usize, 1, 4096, 65_536, 1 << 20, (9 << 20) + 17]) {
        for disk in [here, there] {
            let bytes = pattern(len);
            let header = shard(number, len as u64);
            let mut sink = shards.put(disk, header.clone()).await.unwrap();
            // Pieces as they come: small ones, and one longer than a block.
            let cut = len.min(10_000);
            for piece in [bytes.slice(..cut / 3), bytes.slice(cut / 3..cut), bytes.slice(cut..)] {
                sink.send(piece).await.unwrap();
            }
            sink.finish(footer(len as u64)).await.unwrap();
            assert_eq!(shards.footer(disk, header.key).await.unwrap(), footer(len as u64));
            for (from, to) in [(0, len), (len / 3, len / 2), (len, len)] {
                let read = shards.read(disk, header.key, from as u64, (to - from) as u64).await.unwrap();
                assert!(read == bytes.slice(from..to), "{from}..{to} of {len} on {disk:?}");
            }
            let past = shards.read(disk, header.key, 0, len as u64 + 1).await;
            assert_eq!(past, Err(PeerError::Refused("past the end".to_owned())));
        }
    }
    // This node's disk took its shards without the network, the other one all of its own.
    assert_eq!(a.handler.disks.shards.lock().unwrap().len(), 6);
    assert_eq!(b.handler.disks.shards.lock().unwrap().len(), 6);
    let keys: Vec<ShardKey> = (1..=6).map(|number| shard(number, 0).key).collect();
    shards.delete(there, keys.clone()).await.unwrap();
    assert_eq!(shards.read(there, keys[0], 0, 1).await, Err(PeerError::Missing));
    assert_eq!(shards.footer(there, keys[0]).await, Err(PeerError::Missing));
    assert!(b.handler.disks.shards.lock().unwrap().is_empty());
    assert!(shards.is_up(here) && shards.is_up(there));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_or_abandoned_put_leaves_nothing() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    let shards = a.shards_of(&b);
    // Abandoned half-way: forgotten there.
    let mut sink = shards.put(DiskId([1; 16]), shard(1, 1 << 20)).await.unwrap();
    sink.send(pattern(1000)).await.unwrap();
    until(|| b.handler.disks.taken_bytes.load(Ordering::SeqCst) == 1000).await;
    drop(sink);
    within(SOON, b.handler.disks.forgotten.notified()).await;
    assert_eq!(b.handler.disks.open.load(Ordering::SeqCst), 0);
    assert_eq!(b.transport.stats().streams_malformed, 0, "giving up is no fault");
    // Refused by the disk at its start, or on the way: the reason arrives.
    for (disk, reason) in [(FULL_DISK, "no room"), (SHORT_DISK, "100 kB are enough")] {
        let mut sink = shards.put(disk, shard(2, 1 << 30)).await.unwrap();
        let error = within(SOON, async {
            loop {
                if let Err(error) = sink.send(pattern(50_000)).await {
                    return error;
                }
            }
        })
        .await;
        assert_eq!(error, PeerError::Full(reason.to_owned()));
        assert_eq!(sink.finish(footer(1)).await, Err(error));
    }
    // A short one learns it at the end.
    let sink = shards.put(FULL_DISK, shard(2, 10)).await.unwrap();
    assert_eq!(sink.finish(footer(1)).await, Err(PeerError::Full("no room".to_owned())));
    // Longer than the header said.
    let mut sink = shards.put(DiskId([1; 16]), shard(3, 10)).await.unwrap();
    assert!(matches!(sink.send(pattern(11)).await, Err(PeerError::Refused(_))));
    drop(sink);
    until(|| b.handler.disks.open.load(Ordering::SeqCst) == 0).await;
    assert!(b.handler.disks.shards.lock().unwrap().is_empty());
}

/// Between a fast writer and a slow disk lie at most the windows and one block; the rest waits with the writer.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_holds_the_writer_back() {
    const BLOCK: usize = 256 * 1024;
    const BLOCKS: usize = 256;
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    b.handler.disks.is_slow.store(true, Ordering::SeqCst);
    let shards = a.shards_of(&b);
    let config = loopback(0);
    // Written and unacknowledged here, received and unread there, one block in the disk's hands.
    let bound = config.send_window_bytes as usize + config.stream_window_bytes as usize + 2 * BLOCK;
    let sent = Arc::new(AtomicUsize::new(0));
    let sent_too = sent.clone();
    let writer = tokio::spawn(async move {
        let mut sink = shards.put(DiskId([1; 16]), shard(1, (BLOCK * BLOCKS) as u64)).await.unwrap();
        let block = pattern(BLOCK);
        for _ in 0..BLOCKS {
            sink.send(block.clone()).await.unwrap();
            sent_too.fetch_add(BLOCK, Ordering::SeqCst);
        }
        sink.finish(footer(1)).await.unwrap();
    });
    // Until the windows are full the writer must get on without the disk.
    until(|| sent.load(Ordering::SeqCst) >= config.stream_window_bytes as usize / 2).await;
    for _ in 0..BLOCKS {
        let ahead = sent.load(Ordering::SeqCst) - b.handler.disks.taken_bytes.load(Ordering::SeqCst);
        assert!(ahead <= bound, "{ahead} bytes lie between writer and disk, {bound} may");
        assert!(b.transport.stats().bulk_held_bytes <= 2 * BLOCK as u64);
        let taken = b.handler.disks.taken_bytes.load(Ordering::SeqCst);
        b.handler.disks.permits.add_permits(1);
        until(|| b.handler.disks.taken_bytes.load(Ordering::SeqCst) > taken).await;
    }
    within(SOON, writer).await.unwrap();
    assert_eq!(b.handler.disks.taken_bytes.load(Ordering::SeqCst), BLOCK * BLOCKS);
    until(|| b.transport.stats().bulk_held_bytes == 0).await;
}

/// However many reads are asked for at once, the serving node holds no more than its bound.
#[tokio::test(flavor = "multi_thread")]
async fn reads_are_held_within_the_bound() {
    const HELD_MAX: u64 = 4 << 20;
    let mut config = loopback(0);
    config.bulk.held_bytes = HELD_MAX;
    let (a, b) = (Node::start().await, Node::with(config, &NodeIdentity::generate().unwrap()).await);
    a.knows(&b);
    let shards = a.shards_of(&b);
    let bytes = pattern(1 << 20);
    let key = shard(1, 0).key;
    b.handler.disks.shards.lock().unwrap().insert((DiskId([1; 16]), key), (bytes.clone(), footer(1)));
    let reads = join_all((0..64).map(|_| shards.read(DiskId([1; 16]), key, 0, 1 << 20))).await;
    assert!(reads.into_iter().all(|read| read.unwrap() == bytes));
    let stats = b.transport.stats();
    assert!(stats.bulk_held_bytes_peak > 0 && stats.bulk_held_bytes_peak <= HELD_MAX, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_at_once_share_one_connection() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    let answers =
        try_join_all((0..1000u32).map(|n| a.ask(&b, ECHO, n.to_be_bytes().to_vec()))).await.unwrap();
    for (n, answer) in (0u32..).zip(answers) {
        assert_eq!(answer, n.to_be_bytes().as_slice());
    }
    assert_eq!(a.transport.stats().dials, 1);
    assert_eq!(b.transport.stats().requests_served, 1000);
}

/// Nothing answers at the address: the first request learns it within the dial's time, the next ones at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_address_fails_fast() {
    let a = Node::start().await;
    // Bound, so that no other process answers there, and never read.
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = NodeIdentity::generate().unwrap().id();
    a.transport.set_addresses(peer, vec![deaf.local_addr().unwrap().to_string()]);
    let ask = async |limit: Duration| {
        let begun = clock::timer();
        let error = a.transport.request(peer, ECHO, Bytes::new(), limit).await.unwrap_err();
        assert!(matches!(error, TransportError::Unreachable { .. }) && error.is_unsent(), "{error}");
        begun.elapsed()
    };
    // A caller in a hurry does not wait for the dial, which goes on for the others.
    assert!(ask(Duration::from_millis(50)).await < Duration::from_millis(700));
    let first = ask(SOON).await;
    assert!(first < Duration::from_millis(2500), "{first:?}");
    assert_eq!(a.transport.stats().dials_failed, 1);
    let begun = clock::timer();
    join_all((0..100).map(|_| ask(SOON))).await;
    assert!(
        begun.elapsed() < Duration::from_millis(700),
        "100 requests to a dead peer took {:?}",
        begun.elapsed()
    );
    // No address at all.
    a.transport.set_addresses(peer, vec![]);
    assert!(ask(SOON).await < Duration::from_millis(200));
}

/// A node in a runtime of its own, which can die without a word.
fn start_mortal(identity: &NodeIdentity, port: u16) -> Option<(tokio::runtime::Runtime, Node)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let node = runtime.block_on(Node::try_with(loopback(port), identity)).ok()?;
    Some((runtime, node))
}

/// A peer whose process dies is missed within seconds by those who wait for it, however long they would have
/// waited; and is found again once it is back on its port.
#[test]
fn a_killed_peer_is_missed_and_found_again() {
    let here = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let identity = NodeIdentity::generate().unwrap();
    let (mortal_runtime, mortal) = start_mortal(&identity, 0).unwrap();
    let port = mortal.transport.local_addr().port();
    let a = here.block_on(Node::start());
    a.knows(&mortal);
    let peer = mortal.id();
    let shards = a.shards_of(&mortal);
    let hour = Duration::from_secs(3600);

    // One long request and one unfinished put are under way when it dies.
    let transport = a.transport.clone();
    let waiting = here.spawn(async move { transport.request(peer, NEVER, Bytes::new(), hour).await });
    here.block_on(within(SOON, mortal.handler.arrived.notified()));
    let mut sink = here.block_on(shards.put(DiskId([1; 16]), shard(1, 1000))).unwrap();
    here.block_on(sink.send(pattern(100))).unwrap();
    mortal_runtime.shutdown_background();
    drop(mortal);
    let died = clock::timer();
    let error = here.block_on(within(SOON, waiting)).unwrap().unwrap_err();
    assert!(matches!(error, TransportError::Lost { .. }) && !error.is_unsent(), "{error}");
    let missed = died.elapsed();
    assert!(missed < Duration::from_secs(6), "missed after {missed:?}");
    let error = here.block_on(within(SOON, sink.finish(footer(1)))).unwrap_err();
    assert!(matches!(error, PeerError::Unreachable(_)), "{error}");

    // Later requests of either kind soon fail at once.
    let ask =
        || here.block_on(a.transport.request(peer, ECHO, Bytes::from_static(b"x"), Duration::from_secs(5)));
    let _ = ask();
    let begun = clock::timer();
    assert!(matches!(ask(), Err(TransportError::Unreachable { .. })));
    assert!(begun.elapsed() < Duration::from_millis(1000), "{:?}", begun.elapsed());

    // It comes back with the same key on the same port, as soon as the dead one's socket is gone.
    let deadline = clock::timer() + SOON;
    let (_runtime, again) = loop {
        match start_mortal(&identity, port) {
            Some(started) => break started,
            None => assert!(clock::timer() < deadline, "the port stays taken"),
        }
    };
    let back = clock::timer();
    while ask().is_err() {
        assert!(back.elapsed() < Duration::from_secs(10), "not found again");
    }
    assert_eq!(again.transport.stats().requests_served, 1);
    // Bulk has a connection of its own, which is dialled again by its own pace.
    let mut sink = loop {
        match here.block_on(shards.put(DiskId([1; 16]), shard(1, 1000))) {
            Ok(sink) => break sink,
            Err(error) => assert!(back.elapsed() < Duration::from_secs(10), "not found again: {error}"),
        }
    };
    here.block_on(sink.send(pattern(100))).unwrap();
    here.block_on(sink.finish(footer(1))).unwrap();
}

/// A peer that restarts at once tells the connections of its former life that they are gone.
#[test]
fn a_restarted_peer_is_noticed_at_once() {
    let here = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let identity = NodeIdentity::generate().unwrap();
    let (mortal_runtime, mortal) = start_mortal(&identity, 0).unwrap();
    let port = mortal.transport.local_addr().port();
    let a = here.block_on(Node::start());
    a.knows(&mortal);
    let peer = mortal.id();
    let ask = || here.block_on(a.transport.request(peer, ECHO, Bytes::from_static(b"x"), SOON));
    ask().unwrap();
    mortal_runtime.shutdown_background();
    drop(mortal);
    let deadline = clock::timer() + SOON;
    let (_runtime, _again) = loop {
        match start_mortal(&identity, port) {
            Some(started) => break started,
            None => assert!(clock::timer() < deadline, "the port stays taken"),
        }
    };
    let begun = clock::timer();
    while let Err(error) = ask() {
        assert!(begun.elapsed() < Duration::from_secs(2), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// A request that times out while the peer is alive costs nobody else their connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_does_not_cost_the_connection() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    let error =
        a.transport.request(b.id(), NEVER, Bytes::new(), Duration::from_millis(800)).await.unwrap_err();
    assert_eq!(error, TransportError::TimedOut { peer: b.id(), after: Duration::from_millis(800) });
    assert!(a.ask(&b, ECHO, "x").await.is_ok());
    assert_eq!(a.transport.stats().dials, 1);
    // Nor does a long one, which hears nothing from the peer but its life signs.
    let (slow, ()) = tokio::join!(a.ask(&b, GATED, "late"), async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        b.handler.gate.add_permits(1);
    });
    assert_eq!(slow.unwrap(), "late");
    assert_eq!(a.transport.stats().dials, 1);
}

/// Closing lets requests under way end, takes no new ones, tells the peers, and frees the port.
#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_what_was_begun() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    let asking = a.ask(&b, GATED, "last words");
    let closing = async {
        b.handler.arrived.notified().await;
        let close = b.transport.close(SOON);
        tokio::join!(close, async {
            until(|| b.transport.shared().is_closing()).await;
            let late = a.ask(&b, ECHO, "late").await.unwrap_err();
            assert!(matches!(late, TransportError::Unreachable { .. }), "{late}");
            b.handler.gate.add_permits(1);
        });
    };
    let (answer, ()) = tokio::join!(asking, closing);
    assert_eq!(answer.unwrap(), "last words");
    until(|| !a.transport.is_connected(b.id())).await;
    assert!(matches!(b.ask(&a, ECHO, "x").await, Err(TransportError::Closed)));
    let port = b.transport.local_addr().port();
    drop(b);
    until(|| std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()).await;
}

/// Nodes that dial each other at the same moment both get through.
#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_dials_both_work() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.knows(&b);
    b.knows(&a);
    let (there, back) = tokio::join!(a.ask(&b, ECHO, "1"), b.ask(&a, ECHO, "2"));
    assert_eq!((there.unwrap().as_ref(), back.unwrap().as_ref()), (b"1".as_slice(), b"2".as_slice()));
    assert!(a.transport.stats().connections <= 2);
}

/// Strangers that announce much and send nothing hold up neither members' small requests nor, for long, large ones.
#[tokio::test(flavor = "multi_thread")]
async fn announcements_without_bytes_hold_nobody_up() {
    let mut config = loopback(0);
    config.control.held_bytes = 8 << 20;
    config.stall_max = Duration::from_secs(1);
    let (a, b) = (Node::start().await, Node::with(config, &NodeIdentity::generate().unwrap()).await);
    a.knows(&b);
    let stranger = RawPeer::connect(&b, ConnectionKind::Control).await;
    let mut held = Vec::new();
    for length in [8 << 20, 60_000, 60_000] {
        let (mut send, recv) = stranger.connection.open_bi().await.unwrap();
        send.write_all(&RequestHead { kind: ECHO, length }.encode()).await.unwrap();
        held.push((send, recv));
    }
    until(|| b.transport.stats().control_held_bytes == 8 << 20).await;
    let begun = clock::timer();
    assert!(a.ask(&b, ECHO, pattern(60_000)).await.is_ok());
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(a.ask(&b, ECHO, pattern(1 << 20)).await.is_ok());
    until(|| b.transport.stats().streams_stalled == 3).await;
}
