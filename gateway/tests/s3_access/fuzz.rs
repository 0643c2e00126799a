//! The door as a whole, given anything: it answers every request, and never says that the fault is its own.
//!
//! `MAKAI_FUZZ_SECONDS=N` gives each test N seconds, with other dice each time.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::{By, Client};

/// Requests that are signed, and so reach the operations.
const SIGNED: usize = 600;
/// Runs of bytes that are no requests, or hardly.
const RAW: usize = 200;
/// Requests as clients send them, damaged on their way.
const DAMAGED: usize = 400;

const QUERIES: [&str; 40] = [
    "acl",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "legal-hold",
    "lifecycle",
    "list-type=2",
    "location",
    "logging",
    "max-keys=0",
    "max-keys=x",
    "notification",
    "object-lock",
    "ownershipControls",
    "partNumber=0",
    "partNumber=1",
    "partNumber=99999",
    "policy",
    "policyStatus",
    "prefix=%00",
    "publicAccessBlock",
    "replication",
    "requestPayment",
    "response-expires=x",
    "restore",
    "retention",
    "select",
    "select-type=2",
    "tagging",
    "torrent",
    "uploadId=",
    "uploadId=x",
    "uploads",
    "versionId=",
    "versionId=null",
    "versionId=%F0%9F",
    "versioning",
    "versions",
    "website",
];
const HEADERS: [&str; 26] = [
    "cache-control",
    "content-encoding",
    "content-md5",
    "content-type",
    "expires",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "origin",
    "range",
    "x-amz-acl",
    "x-amz-checksum-algorithm",
    "x-amz-checksum-crc32",
    "x-amz-checksum-mode",
    "x-amz-copy-source",
    "x-amz-copy-source-range",
    "x-amz-grant-read",
    "x-amz-metadata-directive",
    "x-amz-object-attributes",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-customer-key",
    "x-amz-storage-class",
    "x-amz-tagging",
];
const VALUES: [&str; 22] = [
    "",
    "*",
    "-1",
    "0",
    "1",
    "99999999999999999999",
    "AES256",
    "COPY",
    "CRC32",
    "ENABLED",
    "GOVERNANCE",
    "REPLACE",
    "Tue, 14 Nov 2023 22:13:20 GMT",
    "\"x\"",
    "a=b&c=d",
    "bucket/k",
    "bucket/k?versionId=x",
    "bytes=0-",
    "bytes=9-1",
    "id=x",
    "multipart/form-data; boundary=b",
    "private",
];
const BODIES: [&str; 18] = [
    "",
    "x",
    "{}",
    "<",
    "<a/>",
    "<Delete><Object><Key></Key></Object></Delete>",
    "<Delete><Object><Key>k</Key><Size>-1</Size></Object></Delete>",
    "<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>",
    "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>",
    "<LifecycleConfiguration><Rule><Status>Enabled</Status><Filter/><Expiration><Days>99999999999</Days></Expiration></Rule></LifecycleConfiguration>",
    "<CompleteMultipartUpload><Part><PartNumber>-1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>",
    "<AccessControlPolicy><Owner><ID>x</ID></Owner></AccessControlPolicy>",
    "<CORSConfiguration><CORSRule><AllowedMethod>GET</AllowedMethod><AllowedOrigin>*</AllowedOrigin></CORSRule></CORSConfiguration>",
    "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>",
    "<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>9999-12-31T23:59:59Z</RetainUntilDate></Retention>",
    "<ServerSideEncryptionConfiguration><Rule/></ServerSideEncryptionConfiguration>",
    "<CreateBucketConfiguration><LocationConstraint>us-east-1</LocationConstraint></CreateBucketConfiguration>",
    "--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--b--",
];

/// The same requests in every run.
fn runner() -> TestRunner {
    match seconds() {
        None => TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
        Some(_) => TestRunner::default(),
    }
}

fn seconds() -> Option<u64> {
    std::env::var("MAKAI_FUZZ_SECONDS").ok()?.parse().ok()
}

/// Counts up to `count`, or for as long as was asked for.
#[expect(clippy::disallowed_methods, reason = "how long a person lets it run")]
fn rounds(count: usize) -> impl Iterator<Item = usize> {
    let until =
        seconds().map(|seconds| tokio::time::Instant::now() + std::time::Duration::from_secs(seconds));
    (0..).take_while(move |round| until.map_or(*round < count, |until| tokio::time::Instant::now() < until))
}

#[tokio::test]
async fn no_signed_request_is_the_doors_own_fault() {
    let client = Client::start().await;
    let mut runner = runner();
    let paths = ["/", "/bucket", "/bucket/", "/bucket/k", "/bucket/a/../b", "/bucket/%00", "/other", "/x"];
    let requests = (
        select(vec!["GET", "GET", "PUT", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
        select(paths.to_vec()),
        proptest::collection::btree_set(select(QUERIES.to_vec()), 0..3),
        proptest::collection::btree_map(select(HEADERS.to_vec()), select(VALUES.to_vec()), 0..4),
        select(BODIES.to_vec()),
        select(vec![By::One, By::One, By::Two, By::Nobody]),
    );
    let mut said = std::collections::BTreeMap::new();
    for number in rounds(SIGNED) {
        let request = requests.new_tree(&mut runner).unwrap().current();
        let (method, path, queries, headers, body, by) = request.clone();
        // What is made before gives later requests something to meet.
        if number % 50 == 0 {
            client.put("/bucket").send().await;
            client.put("/bucket/k").body("x").send().await;
        }
        let query: Vec<_> = queries.into_iter().collect();
        let mut sent = client.request(method, &format!("{path}?{}", query.join("&"))).by(by);
        for (name, value) in headers {
            sent = sent.header(name, value);
        }
        let answer = sent.body(body).send().await;
        let is_own_fault = answer.status >= 500 && answer.status != 501;
        assert!(!is_own_fault, "{request:?}: {} {}", answer.status, answer.body);
        *said.entry(answer.status).or_insert(0) += 1;
    }
    assert!(said.len() > 6, "requests reach many places: {said:?}");
}

#[tokio::test]
async fn no_bytes_take_the_door_down() {
    let client = Client::start().await;
    let mut runner = runner();
    let line = "(GET|PUT|POST|\\PC{0,3}) /[a-z/%0-9]{0,12}(\\?[a-zA-Z=&%-]{0,20})? HTTP/1\\.[01]";
    let head = "([a-zA-Z-]{0,12}: ?[ -~]{0,20}\r\n){0,4}";
    let texts = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        (line, head, "[ -~]{0,40}")
            .prop_map(|(line, head, rest)| format!("{line}\r\n{head}\r\n{rest}").into_bytes()),
    ];
    for _ in rounds(RAW) {
        let bytes = texts.new_tree(&mut runner).unwrap().current();
        check_answer(&client, &bytes).await;
    }
    assert_eq!(client.get("/bucket").send().await.status, 200);
}

/// Sends bytes and the end of them; the answer, if there is one, finds no fault with the door.
async fn check_answer(client: &Client, bytes: &[u8]) {
    let mut stream = TcpStream::connect(client.pool.address).await.unwrap();
    // The door may hang up before all is sent.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    let is_own_fault = answer.starts_with("HTTP/1.1 5") && !answer.starts_with("HTTP/1.1 501");
    assert!(!is_own_fault, "{:?}: {answer}", String::from_utf8_lossy(bytes));
}

#[tokio::test]
async fn no_damaged_request_is_the_doors_own_fault() {
    let client = Client::start().await;
    client.put("/bucket/k").body("x").send().await;
    let mut runner = runner();
    let what = (
        select(vec!["GET", "PUT", "POST", "DELETE", "HEAD"]),
        select(vec!["/bucket", "/bucket/k", "/"]),
        select(QUERIES.to_vec()),
        proptest::collection::btree_map(select(HEADERS.to_vec()), select(VALUES.to_vec()), 0..3),
        select(BODIES.to_vec()),
        // Where it is damaged, how, and with what.
        proptest::collection::vec((any::<proptest::sample::Index>(), 0..5u8, any::<u8>()), 1..4),
    );
    for _ in rounds(DAMAGED) {
        let (method, path, query, headers, body, damage) = what.new_tree(&mut runner).unwrap().current();
        let mut request = client.request(method, &format!("{path}?{query}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut bytes = request.body(body).into_bytes();
        for (place, how, with) in damage {
            let at = place.index(bytes.len());
            match how {
                0 => bytes[at] ^= 1 << (with % 8),
                1 => bytes[at] = with,
                2 => bytes.insert(at, with),
                3 => _ = bytes.drain(at..(at + usize::from(with)).min(bytes.len())),
                _ => {
                    let again = bytes[at..(at + usize::from(with)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, again);
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        check_answer(&client, &bytes).await;
    }
    assert_eq!(client.get("/bucket").send().await.status, 200);
}
