//! What the door promises on the wire, said to it byte by byte.

mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use makai_gateway::objects::{ByteRange, ObjectsError, ObjectsOptions};
use makai_gateway::s3::S3DoorConfig;
use pool::Pool;
use ring::{digest, hmac};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// One request, signed as the public description of SigV4 says.
struct Signed<'a> {
    pool: &'a Pool,
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: Vec<(&'a str, String)>,
    payload_hash: String,
    access_key: &'a str,
    secret_key: &'a str,
}

impl<'a> Signed<'a> {
    fn new(pool: &'a Pool, method: &'a str, path: &'a str) -> Self {
        let payload_hash = "UNSIGNED-PAYLOAD".into();
        let (access_key, secret_key) = (pool.access_key.as_str(), pool.secret_key.as_str());
        Self { pool, method, path, query: "", headers: Vec::new(), payload_hash, access_key, secret_key }
    }

    fn header(mut self, name: &'a str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn by_another_tenant(self) -> Self {
        Self { access_key: &self.pool.other_access_key, secret_key: &self.pool.other_secret_key, ..self }
    }

    fn host(self, host: &'a str) -> Self {
        self.header("host", host)
    }

    /// The request's head.
    fn head(self) -> Vec<u8> {
        let stamp = amz_date();
        let date = &stamp[..8];
        let mut headers: BTreeMap<&str, String> = self.headers.into_iter().collect();
        headers.entry("host").or_insert_with(|| self.pool.address.to_string());
        headers.insert("x-amz-date", stamp.clone());
        headers.insert("x-amz-content-sha256", self.payload_hash.clone());
        let names = headers.keys().copied().collect::<Vec<_>>().join(";");
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = [self.method, self.path, self.query, &lines, &names, &self.payload_hash].join("\n");
        let scope = format!("{date}/us-east-1/s3/aws4_request");
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hash}");
        let mut key = format!("AWS4{}", self.secret_key).into_bytes();
        for part in [date, "us-east-1", "s3", "aws4_request", &text] {
            let with = hmac::Key::new(hmac::HMAC_SHA256, &key);
            key = hmac::sign(&with, part.as_bytes()).as_ref().to_vec();
        }
        let target =
            if self.query.is_empty() { self.path.into() } else { format!("{}?{}", self.path, self.query) };
        let mut head = format!("{} {target} HTTP/1.1\r\n", self.method);
        for (name, value) in &headers {
            head += &format!("{name}: {value}\r\n");
        }
        let (id, signature) = (self.access_key, hex::encode(key));
        head += &format!(
            "authorization: AWS4-HMAC-SHA256 Credential={id}/{scope},SignedHeaders={names},Signature={signature}\r\n\r\n"
        );
        head.into_bytes()
    }
}

/// `YYYYMMDDTHHMMSSZ`, by the days-to-civil algorithm.
fn amz_date() -> String {
    #[expect(clippy::disallowed_methods, reason = "signatures are checked against the real time")]
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (days, seconds) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn code(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.body).ok()?;
        Some(text.split_once("<Code>")?.1.split_once("</Code>")?.0)
    }
}

/// Reads one answer that has a length.
async fn read(stream: &mut TcpStream, has_body: bool) -> io::Result<Answer> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    if status == 100 {
        return Box::pin(read(stream, has_body)).await;
    }
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; if has_body { length } else { 0 }];
    stream.read_exact(&mut body).await?;
    Ok(Answer { status, headers, body })
}

async fn send(pool: &Pool, request: Signed<'_>, body: &[u8]) -> Answer {
    let has_body = request.method != "HEAD";
    let mut stream = TcpStream::connect(pool.address).await.unwrap();
    stream.write_all(&request.head()).await.unwrap();
    // A refused request's connection may close before all is sent.
    let _ = stream.write_all(body).await;
    read(&mut stream, has_body).await.unwrap()
}

async fn put(pool: &Pool, path: &str, body: &[u8]) -> Answer {
    send(pool, Signed::new(pool, "PUT", path).header("content-length", body.len()), body).await
}

async fn get(pool: &Pool, path: &str) -> Answer {
    send(pool, Signed::new(pool, "GET", path), b"").await
}

/// A pool with the bucket `bucket`.
async fn start(config: S3DoorConfig) -> Pool {
    let pool = Pool::start("127.0.0.1:0".parse().unwrap(), config, None).await;
    assert_eq!(put(&pool, "/bucket", b"").await.status, 200);
    pool
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn what_is_put_is_what_is_got() {
    let pool = start(S3DoorConfig::default()).await;
    for len in [0, 1, 4096, 4097, 3_000_001] {
        let body = bytes(len);
        let answer = put(&pool, "/bucket/key", &body).await;
        assert_eq!(answer.status, 200);
        let got = get(&pool, "/bucket/key").await;
        assert_eq!((got.status, got.body == body), (200, true), "{len} bytes");
        assert_eq!(got.headers["etag"], answer.headers["etag"]);
    }
}

#[tokio::test]
async fn every_answer_has_an_id_of_its_own_on_one_connection() {
    let pool = start(S3DoorConfig::default()).await;
    let mut stream = TcpStream::connect(pool.address).await.unwrap();
    let mut ids = BTreeSet::new();
    for path in ["/bucket", "/bucket/none", "/nowhere", "/Bad_Name", "/bucket"] {
        stream.write_all(&Signed::new(&pool, "GET", path).head()).await.unwrap();
        let answer = read(&mut stream, true).await.unwrap();
        assert_eq!(answer.headers["server"], "MAKAI");
        let id = answer.headers["x-amz-request-id"].clone();
        if answer.status >= 400 {
            assert!(
                String::from_utf8(answer.body).unwrap().contains(&format!("<RequestId>{id}</RequestId>"))
            );
        }
        ids.insert(id);
    }
    assert_eq!(ids.len(), 5);
}

#[tokio::test]
async fn a_buckets_name_may_stand_in_the_host() {
    let pool = start(S3DoorConfig { domains: vec!["s3.test".into()], ..S3DoorConfig::default() }).await;
    let request = Signed::new(&pool, "PUT", "/key").host("bucket.s3.test").header("content-length", 1);
    assert_eq!(send(&pool, request, b"x").await.status, 200);
    assert_eq!(get(&pool, "/bucket/key").await.body, b"x");
    let request = Signed::new(&pool, "GET", "/bucket/key").host("s3.test:9000");
    assert_eq!(send(&pool, request, b"").await.body, b"x");
}

#[tokio::test]
async fn a_body_cut_at_any_byte_is_never_seen() {
    let pool = start(S3DoorConfig::default()).await;
    let body = bytes(100_000);
    for cut in [0, 1, 50_000, 99_999] {
        let mut stream = TcpStream::connect(pool.address).await.unwrap();
        let head = Signed::new(&pool, "PUT", "/bucket/cut").header("content-length", body.len()).head();
        stream.write_all(&head).await.unwrap();
        stream.write_all(&body[..cut]).await.unwrap();
        stream.shutdown().await.unwrap();
        // The end of the connection is the door's last word on it.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert_eq!(get(&pool, "/bucket/cut").await.code(), Some("NoSuchKey"), "cut at {cut}");
    }
}

#[tokio::test]
async fn one_unsigned_chunk_may_hold_the_whole_body() {
    let pool = start(S3DoorConfig::default()).await;
    let body = bytes(20 * 1024 * 1024);
    let wire = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let mut request = Signed::new(&pool, "PUT", "/bucket/chunk")
        .header("content-length", wire.len())
        .header("content-encoding", "aws-chunked")
        .header("x-amz-decoded-content-length", body.len())
        .header("x-amz-trailer", "x-amz-meta-none");
    request.payload_hash = "STREAMING-UNSIGNED-PAYLOAD-TRAILER".into();
    assert_eq!(send(&pool, request, &wire).await.status, 200);
    let got = get(&pool, "/bucket/chunk").await;
    assert!(got.body == body);
    assert_eq!(got.headers.get("content-encoding"), None);
}

#[tokio::test]
async fn beyond_the_bound_clients_are_told_to_slow_down() {
    let pool = start(S3DoorConfig { requests_max: 1, ..S3DoorConfig::default() }).await;
    let mut slow = TcpStream::connect(pool.address).await.unwrap();
    let head = Signed::new(&pool, "PUT", "/bucket/slow")
        .header("content-length", 5)
        .header("expect", "100-continue");
    slow.write_all(&head.head()).await.unwrap();
    // Asked to go on, the slow request is under way.
    let mut go_on = [0; 25];
    slow.read_exact(&mut go_on).await.unwrap();
    assert_eq!(go_on, *b"HTTP/1.1 100 Continue\r\n\r\n");
    let refused = get(&pool, "/bucket").await;
    assert_eq!((refused.status, refused.code()), (503, Some("SlowDown")));
    slow.write_all(b"hello").await.unwrap();
    assert_eq!(read(&mut slow, true).await.unwrap().status, 200);
    assert_eq!(get(&pool, "/bucket/slow").await.body, b"hello");
}

#[tokio::test]
async fn a_closing_door_finishes_what_is_under_way_and_takes_nothing_new() {
    let pool = start(S3DoorConfig::default()).await;
    let mut open = TcpStream::connect(pool.address).await.unwrap();
    let head = Signed::new(&pool, "PUT", "/bucket/late")
        .header("content-length", 5)
        .header("expect", "100-continue");
    open.write_all(&head.head()).await.unwrap();
    let mut go_on = [0; 25];
    open.read_exact(&mut go_on).await.unwrap();
    let mut idle = TcpStream::connect(pool.address).await.unwrap();
    idle.write_all(&Signed::new(&pool, "HEAD", "/bucket").head()).await.unwrap();
    assert_eq!(read(&mut idle, false).await.unwrap().status, 200);

    pool.shutdown.cancel();
    // An idle connection is closed at once, and with the listener gone nobody gets in.
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(TcpStream::connect(pool.address).await.is_err());
    open.write_all(b"hello").await.unwrap();
    assert_eq!(read(&mut open, true).await.unwrap().status, 200);
    pool.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_range_that_is_none_is_ignored_and_never_lets_anyone_in() {
    let pool = start(S3DoorConfig::default()).await;
    put(&pool, "/bucket/key", b"0123456789").await;
    for range in ["bytes=1-2,4-5", "bytes=9-1", "lines=1-2"] {
        let answer = send(&pool, Signed::new(&pool, "GET", "/bucket/key").header("range", range), b"").await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"0123456789".as_slice()), "{range}");
        let mut anonymous = TcpStream::connect(pool.address).await.unwrap();
        let head = format!("GET /bucket/key HTTP/1.1\r\nhost: {}\r\nrange: {range}\r\n\r\n", pool.address);
        anonymous.write_all(head.as_bytes()).await.unwrap();
        let answer = read(&mut anonymous, true).await.unwrap();
        assert_eq!((answer.status, answer.code()), (403, Some("AccessDenied")), "{range}");
    }
    let answer =
        send(&pool, Signed::new(&pool, "GET", "/bucket/key").header("range", "bytes=1-2"), b"").await;
    assert_eq!((answer.status, answer.body.as_slice()), (206, b"12".as_slice()));
    for range in
        ["bytes=18446744073709551615-", "bytes=99999999999999999999999-", "bytes=9223372036854775808-"]
    {
        let answer = send(&pool, Signed::new(&pool, "GET", "/bucket/key").header("range", range), b"").await;
        assert_eq!((answer.status, answer.code()), (416, Some("InvalidRange")), "{range}");
    }
    let range = "bytes=3-18446744073709551615";
    let answer = send(&pool, Signed::new(&pool, "GET", "/bucket/key").header("range", range), b"").await;
    assert_eq!((answer.status, answer.body.as_slice()), (206, b"3456789".as_slice()));
}

/// Those who say nothing hold the door for nobody, and who is being served stays.
#[tokio::test]
async fn silent_connections_make_room() {
    let pool = start(S3DoorConfig { connections_max: 4, ..S3DoorConfig::default() }).await;
    put(&pool, "/bucket/key", b"0123456789").await;
    let mut silent = Vec::new();
    let mut served = TcpStream::connect(pool.address).await.unwrap();
    let head = Signed::new(&pool, "PUT", "/bucket/slow")
        .header("content-length", 5)
        .header("expect", "100-continue");
    served.write_all(&head.head()).await.unwrap();
    served.read_exact(&mut [0; 25]).await.unwrap();
    for _ in 0..8 {
        silent.push(TcpStream::connect(pool.address).await.unwrap());
    }
    let answer = send(&pool, Signed::new(&pool, "GET", "/bucket/key"), b"").await;
    assert_eq!(answer.status, 200);
    let mut byte = [0; 1];
    let first = silent[0].read(&mut byte).await;
    assert!(first.is_err() || first.is_ok_and(|bytes| bytes == 0), "the first of them is closed");
    served.write_all(b"hello").await.unwrap();
    assert_eq!(read(&mut served, true).await.unwrap().status, 200);
}

#[tokio::test]
async fn another_tenant_gets_nothing() {
    let pool = start(S3DoorConfig::default()).await;
    put(&pool, "/bucket/key", b"secret").await;
    for (method, path) in [
        ("GET", "/bucket/key"),
        ("GET", "/bucket"),
        ("PUT", "/bucket/key"),
        ("DELETE", "/bucket/key"),
        ("DELETE", "/bucket"),
    ] {
        let request = Signed::new(&pool, method, path).header("content-length", 0).by_another_tenant();
        let answer = send(&pool, request, b"").await;
        assert_eq!((answer.status, answer.code()), (403, Some("AccessDenied")), "{method} {path}");
    }
    let copy = Signed::new(&pool, "PUT", "/theirs/key").header("x-amz-copy-source", "/bucket/key");
    let theirs = Signed::new(&pool, "PUT", "/theirs").header("content-length", 0).by_another_tenant();
    assert_eq!(send(&pool, theirs, b"").await.status, 200);
    let answer = send(&pool, copy.header("content-length", 0).by_another_tenant(), b"").await;
    assert_eq!((answer.status, answer.code()), (403, Some("AccessDenied")));
    assert_eq!(get(&pool, "/bucket/key").await.body, b"secret");
}

#[tokio::test]
async fn the_door_speaks_http_2_over_tls() {
    let made = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone());
    let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut server = server.with_single_cert(vec![certificate.clone()], key).unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let pool =
        Pool::start("127.0.0.1:0".parse().unwrap(), S3DoorConfig::default(), Some(Arc::new(server))).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider);
    let client = client.with_safe_default_protocol_versions().unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(pool.address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);

    for (method, expected) in [("PUT", 200), ("GET", 200), ("DELETE", 204), ("GET", 404)] {
        // Of what HTTP/1.1 would send, the signed headers; the host becomes the authority.
        let head = String::from_utf8(Signed::new(&pool, method, "/bucket").host("localhost").head()).unwrap();
        let mut request = http::Request::builder().method(method).uri("https://localhost/bucket");
        for (name, value) in
            head.lines().filter_map(|line| line.split_once(": ")).filter(|(name, _)| *name != "host")
        {
            request = request.header(name, value);
        }
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.version()),
            (expected, http::Version::HTTP_2),
            "{method}"
        );
        assert!(answer.headers().contains_key("x-amz-request-id"));
        answer.into_body().collect().await.unwrap();
    }
}

/// Whatever clients leave lying, a gateway holds no more for them than it is allowed to; who comes then is told.
#[tokio::test]
async fn slow_readers_hold_a_bounded_room() {
    const WINDOW: usize = 2 << 20;
    let options = ObjectsOptions {
        // Half of it is a tenant's: one window.
        read_bytes_in_flight_max: 2 * WINDOW as u64,
        room_wait: Duration::from_millis(100),
        ..ObjectsOptions::default()
    };
    let listen = "127.0.0.1:0".parse().unwrap();
    let pool = Pool::start_with(listen, S3DoorConfig::default(), None, options).await;
    send(&pool, Signed::new(&pool, "PUT", "/bucket"), b"").await;
    let content = bytes(3 * WINDOW + 17);
    put(&pool, "/bucket/key", &content).await;
    let caller = pool.identity.caller(&pool.access_key).await.unwrap();
    let get = || pool.objects.get(&caller, "bucket", "key", ByteRange::All);
    let slow = get().await.unwrap();
    let refused = get().await.map(|_| ()).unwrap_err();
    assert!(matches!(refused, ObjectsError::SlowDown(_)), "{refused}");
    let taken: Vec<_> = slow.body.map(Result::unwrap).collect().await;
    assert!(taken.concat() == content, "the slow one gets every byte");
    let next = get().await.unwrap().body.map(Result::unwrap).collect::<Vec<_>>().await;
    assert!(next.concat() == content);
}

/// Two disks fail under a write and are there again by its end: it is not answered before they have their shards too, since of
/// those that have them, others may die then.
#[tokio::test]
async fn a_write_is_completed_on_disks_that_answer_again() {
    let pool = Pool::start("127.0.0.1:0".parse().unwrap(), S3DoorConfig::default(), None).await;
    send(&pool, Signed::new(&pool, "PUT", "/bucket"), b"").await;
    for (refused, kept) in [(1, 4), (u32::MAX, 2)] {
        let before = pool.disks.shard_count();
        for disk in [1, 3] {
            pool.disks.refuse(disk, refused);
        }
        put(&pool, &format!("/bucket/{kept}"), &bytes(100_000)).await;
        assert_eq!(
            pool.disks.shard_count() - before,
            kept,
            "of the four of 2+2, two refused {refused} times"
        );
        for disk in [1, 3] {
            pool.disks.refuse(disk, 0);
        }
    }
}
