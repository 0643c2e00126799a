//! Promise: whatever a client sends, it is told what is wrong in S3's words; nothing of it stays, and others notice
//! nothing.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::Method;
use makai::cli::bench::s3::sigv4::sha256_hex;
use makai::console::{KeyAnswer, TenantRequest};
use makai_integration::cluster::{Cluster, ClusterOptions};
use makai_integration::s3::{Answer, Ask, Content, Failure, S3, element, unix_secs};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const KIB: u64 = 1024;
const MIB: usize = 1024 * 1024;
const BUCKET: &str = "bad-requests";
/// A request that is wrong is answered within this.
const TOLD_WITHIN: Duration = Duration::from_secs(20);
const SLOW_CLIENTS: usize = 300;
const NODE_BYTES_MAX: u64 = 1536 * KIB * KIB;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_told_so_and_harm_nobody() -> anyhow::Result<()> {
    let cluster = Cluster::start(ClusterOptions { nodes: 4, voters: 3, ..ClusterOptions::default() }).await?;
    let door = cluster.s3(1).clone();
    door.create_bucket(BUCKET, None).await?;
    let good = Content::new("good", 300 * KIB);
    door.put(BUCKET, "good", &good).await?;

    let slow = slow_clients(&door).await?;
    who_asks(&door).await.context("who asks")?;
    names(&door).await.context("names")?;
    digests(&door).await.context("digests")?;
    bodies_on_the_wire(&door).await.context("bodies on the wire")?;
    uploads_in_parts(&door).await.context("uploads in parts")?;
    xml(&door).await.context("XML")?;
    heads_on_the_wire(&door).await.context("heads on the wire")?;
    other_tenants(&cluster).await.context("other tenants")?;

    // The slow ones are still there, and nobody noticed.
    ensure!(slow.len() == SLOW_CLIENTS);
    for door in cluster.doors() {
        door.check(BUCKET, "good", &good).await?;
        door.put(BUCKET, "last", &good).await?;
    }
    let keys: Vec<String> = door.list(BUCKET, "").await?.into_iter().map(|(key, _)| key).collect();
    let allowed = |key: &String| ["good", "last"].contains(&key.as_str()) || key.len() == 1024;
    ensure!(keys.iter().all(allowed), "something of a refused request stayed: {keys:?}");
    for node in &cluster.nodes {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid().context("it runs")?))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
        println!("{}: at most {} MiB of memory", node.name, peak / KIB);
        ensure!(peak * KIB < NODE_BYTES_MAX, "{} took {peak} KiB", node.name);
    }
    drop(slow);
    cluster.finish().await
}

/// The request fails with this code.
fn told(code: &str, result: Result<Answer, Failure>) -> anyhow::Result<()> {
    match result {
        Err(Failure::Refused { code: said, message, .. }) if said == code => {
            ensure!(message.len() > 20, "{code} says too little: {message}");
            Ok(())
        }
        Err(other) => anyhow::bail!("expected {code}, was told {other}"),
        Ok(answer) => anyhow::bail!("expected {code}, it succeeded: {} {}", answer.status, answer.text()),
    }
}

fn put(key: &str) -> Ask<'static> {
    Ask::new(Method::PUT, format!("/{BUCKET}/{key}"))
}

async fn who_asks(door: &S3) -> anyhow::Result<()> {
    let mut wrong = door.credentials.clone();
    wrong.secret_key = wrong.secret_key.chars().rev().collect();
    told("SignatureDoesNotMatch", door.with(wrong).send(put("forged")).await)?;
    let mut unknown = door.credentials.clone();
    unknown.access_key = "AKIAXXXXXXXXXXXXXXXX".into();
    told("InvalidAccessKeyId", door.with(unknown).send(put("unknown")).await)?;
    let changed = door.sign(&put("signed-for-this"), unix_secs())?;
    let (mut head, body) = changed.into_parts();
    head.uri = format!("http://{}/{BUCKET}/and-sent-for-that", door.host).parse()?;
    told("SignatureDoesNotMatch", door.send_signed(http::Request::from_parts(head, body)).await)?;
    for skew in [-16 * 60, 16 * 60] {
        let time = unix_secs().saturating_add_signed(skew);
        told("RequestTimeTooSkewed", door.send_signed(door.sign(&put("skewed"), time)?).await)?;
    }
    let anonymous = http::Request::put(format!("http://{}/{BUCKET}/anonymous", door.host));
    told("AccessDenied", door.send_signed(anonymous.body(http_body_util::Full::new(Bytes::from("x")))?).await)
}

async fn names(door: &S3) -> anyhow::Result<()> {
    door.send(put(&"k".repeat(1024)).body("x")).await.context("a key of 1024 bytes")?;
    told("KeyTooLongError", door.send(put(&"k".repeat(1025))).await)?;
    told("NoSuchBucket", door.send(Ask::new(Method::PUT, "/no-such-bucket/key").body("x")).await)?;
    told("NoSuchKey", door.get(BUCKET, "no-such-key").await)?;
    for name in ["Bad_Bucket", "ab", "192.168.5.4", "double..dot"] {
        told("InvalidBucketName", door.send(Ask::new(Method::PUT, format!("/{name}"))).await)
            .context(name)?;
    }
    door.send(Ask::new(Method::PUT, format!("/{BUCKET}"))).await.context("one's own bucket, made again")?;
    let scheme = Ask::new(Method::PUT, "/wide-bucket").header("x-makai-scheme", "40+20");
    told("InvalidArgument", door.send(scheme).await).context("a scheme wider than the cluster")?;
    let copy = put("copied").header("x-amz-copy-source", format!("/{BUCKET}/no-such-key"));
    told("NoSuchKey", door.send(copy).await)?;
    let range = Ask::new(Method::GET, format!("/{BUCKET}/good")).header("range", "bytes=999999999-");
    told("InvalidRange", door.send(range).await)
}

async fn digests(door: &S3) -> anyhow::Result<()> {
    let other = sha256_hex(b"other bytes");
    told(
        "XAmzContentSHA256Mismatch",
        door.send(put("hash").header("x-amz-content-sha256", other).body("bytes")).await,
    )?;
    let md5_of_nothing = "1B2M2Y8AsgTpgAmY7PhCfg==";
    told("BadDigest", door.send(put("md5").header("content-md5", md5_of_nothing).body("bytes")).await)?;
    told("InvalidDigest", door.send(put("md5").header("content-md5", "not base64").body("bytes")).await)?;
    let crc_of_nothing = "AAAAAA==";
    told(
        "BadDigest",
        door.send(put("crc").header("x-amz-checksum-crc32", crc_of_nothing).body("bytes")).await,
    )
}

/// What goes over the socket for a request whose body is sent by hand.
fn wire(door: &S3, ask: &Ask<'_>, length: Option<usize>) -> anyhow::Result<String> {
    let (head, _) = door.sign(ask, unix_secs())?.into_parts();
    let target = head.uri.path_and_query().context("a path")?;
    let mut text = format!("{} {target} HTTP/1.1\r\n", head.method);
    for (name, value) in head.headers.iter().filter(|(name, _)| *name != http::header::CONTENT_LENGTH) {
        text += &format!("{name}: {}\r\n", value.to_str()?);
    }
    if let Some(length) = length {
        text += &format!("content-length: {length}\r\n");
    }
    Ok(text + "\r\n")
}

/// Sends bytes, says that no more will come, and returns all that comes back.
async fn exchange(door: &S3, bytes: &[u8]) -> anyhow::Result<String> {
    let talk = async {
        let mut socket = TcpStream::connect(&door.host).await?;
        // A server may answer and close before it has read all.
        let _ = socket.write_all(bytes).await;
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(TOLD_WITHIN, talk).await.context("the connection stays open, unanswered")?
}

/// Told the code, or, where the client has hung up already, nothing.
fn told_or_cut(codes: &[&str], answer: &str) -> anyhow::Result<()> {
    let code = element(answer, "Code").unwrap_or_default();
    ensure!(answer.is_empty() || codes.contains(&code), "expected one of {codes:?}: {answer}");
    Ok(())
}

async fn bodies_on_the_wire(door: &S3) -> anyhow::Result<()> {
    // Fewer bytes than announced, small and beyond what is kept inline.
    for (announced, sent) in [(1000, 500), (4 * MIB, 3 * MIB)] {
        let mut bytes = wire(door, &put("truncated"), Some(announced))?.into_bytes();
        bytes.resize(bytes.len() + sent, b'x');
        told_or_cut(&["IncompleteBody", "RequestTimeout"], &exchange(door, &bytes).await?)?;
        told("NoSuchKey", door.get(BUCKET, "truncated").await)?;
    }

    let chunked = |decoded: &str| {
        put("chunked")
            .header("content-encoding", "aws-chunked")
            .header("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
            .header("x-amz-decoded-content-length", decoded)
            .header("x-amz-trailer", "x-amz-checksum-crc32")
    };
    let whole = "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n";
    let cases = [
        ("a wrong trailer", "5", whole.replace("NhCm", "AAAA"), &["BadDigest"][..]),
        ("a length that lies", "6", whole.to_owned(), &["IncompleteBody"]),
        ("a length that lies", "4", whole.to_owned(), &["IncompleteBody", "InvalidRequest"]),
        ("a chunk that is cut", "5", "5\r\nhel".to_owned(), &["IncompleteBody"]),
        ("no last chunk", "5", "5\r\nhello\r\n".to_owned(), &["IncompleteBody"]),
        (
            "no number",
            "5",
            whole.replace("5\r\n", "zz\r\n"),
            &["IncompleteBody", "InvalidRequest", "InvalidChunkSizeError"],
        ),
        (
            "an endless number",
            "5",
            "f".repeat(100_000),
            &["IncompleteBody", "InvalidRequest", "InvalidChunkSizeError"],
        ),
    ];
    for (what, decoded, body, codes) in cases {
        let result = door.send(chunked(decoded).body(body.clone())).await;
        let code = result.as_ref().map_or_else(|failure| failure.code().to_owned(), |_| "success".into());
        ensure!(codes.contains(&code.as_str()), "{what}: expected one of {codes:?}, was told {result:?}");
        told("NoSuchKey", door.get(BUCKET, "chunked").await).context(what)?;
    }
    let crc = "NhCmhg=="; // CRC-32 of "hello" (ISO 3309), big-endian, in base64.
    let good = chunked("5").body(format!("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:{crc}\r\n\r\n"));
    door.send(good).await.context("a chunked body that is right")?;
    ensure!(&door.get(BUCKET, "chunked").await?.body[..] == b"hello");
    door.delete(BUCKET, "chunked").await?;

    let no_length = wire(door, &put("endless"), None)?;
    told_or_cut(&["MissingContentLength"], &exchange(door, no_length.as_bytes()).await?)?;
    let twice = wire(door, &put("twice"), Some(3))?
        .replace("content-length: 3", "content-length: 3\r\ncontent-length: 4");
    let answer = exchange(door, format!("{twice}abcd").as_bytes()).await?;
    ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    told("NoSuchKey", door.get(BUCKET, "twice").await)
}

async fn uploads_in_parts(door: &S3) -> anyhow::Result<()> {
    let key = format!("/{BUCKET}/parts");
    let begun = door.send(Ask::new(Method::POST, &key).query("uploads", "")).await?.text();
    let id = element(&begun, "UploadId").context("no UploadId")?;
    let part = |number: &str, body: Bytes| {
        Ask::new(Method::PUT, &key).query("partNumber", number).query("uploadId", id).body(body)
    };
    for number in ["0", "10001", "-1", "many"] {
        told("InvalidArgument", door.send(part(number, "x".into())).await).context(number.to_owned())?;
    }
    let mut etags = Vec::new();
    for number in ["1", "2"] {
        etags.push(door.send(part(number, "small".into())).await?.header("etag").to_owned());
    }
    let complete = |parts: String| {
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        Ask::new(Method::POST, &key).query("uploadId", id).body(body)
    };
    let named = |number: u32, etag: &str| {
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
    };
    let in_order = named(1, &etags[0]) + &named(2, &etags[1]);
    told("InvalidPartOrder", door.send(complete(named(2, &etags[1]) + &named(1, &etags[0]))).await)?;
    told("EntityTooSmall", door.send(complete(in_order.clone())).await)?;
    told("InvalidPart", door.send(complete(named(1, &etags[0]) + &named(3, &etags[1]))).await)?;
    told("InvalidPart", door.send(complete(named(1, "\"00000000000000000000000000000000\""))).await)?;
    told("MalformedXML", door.send(complete(String::new())).await)?;
    let too_many = (1..=10_001).map(|number| named(number, &etags[0])).collect();
    let failure = door.send(complete(too_many)).await.err().context("10,001 parts were taken")?;
    ensure!(["MalformedXML", "InvalidArgument", "InvalidPart"].contains(&failure.code()), "{failure}");
    let nobody = Ask::new(Method::POST, &key)
        .query("uploadId", "no-such-upload")
        .body(format!("<CompleteMultipartUpload>{in_order}</CompleteMultipartUpload>"));
    told("NoSuchUpload", door.send(nobody).await)?;
    door.send(Ask::new(Method::DELETE, &key).query("uploadId", id)).await?;
    told("NoSuchUpload", door.send(part("1", "late".into())).await)
}

async fn xml(door: &S3) -> anyhow::Result<()> {
    let delete = |body: String| Ask::new(Method::POST, format!("/{BUCKET}")).query("delete", "").body(body);
    let mut bomb = String::from("<?xml version=\"1.0\"?><!DOCTYPE lolz [<!ENTITY a \"aaaaaaaaaa\">");
    for (name, of) in ('b'..='i').zip('a'..) {
        bomb += &format!("<!ENTITY {name} \"{}\">", format!("&{of};").repeat(10));
    }
    bomb += "]><Delete><Object><Key>&i;</Key></Object></Delete>";
    told("MalformedXML", door.send(delete(bomb)).await).context("an XML bomb")?;
    told("MalformedXML", door.send(delete("<Delete><Object>".into())).await)?;
    told("MalformedXML", door.send(delete("{\"json\": true}".into())).await)?;
    told("MalformedXML", door.send(delete("<Delete>".repeat(100_000))).await).context("deep XML")?;
    let too_many = "<Object><Key>k</Key></Object>".repeat(1001);
    told("MalformedXML", door.send(delete(format!("<Delete>{too_many}</Delete>"))).await)
        .context("1001 keys")?;
    let huge = format!("<Delete><Object><Key>{}</Key></Object></Delete>", "k".repeat(6 * MIB));
    let failure = door.send(delete(huge)).await.err().context("6 MiB of XML were taken")?;
    ensure!(
        ["MaxMessageLengthExceeded", "MalformedXML", "EntityTooLarge"].contains(&failure.code()),
        "{failure}"
    );
    Ok(())
}

async fn heads_on_the_wire(door: &S3) -> anyhow::Result<()> {
    let refusals = ["HTTP/1.1 400", "HTTP/1.1 431", "HTTP/1.1 414", "HTTP/1.1 403", "HTTP/1.1 505"];
    let heads: [(&str, Vec<u8>); 6] = [
        ("noise", (0..2000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()),
        ("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20)),
        (
            "a head without end",
            format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}", "a".repeat(MIB)).into_bytes(),
        ),
        (
            "a thousand headers",
            format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-a: b\r\n".repeat(1000)).into_bytes(),
        ),
        (
            "a path without end",
            format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(200_000)).into_bytes(),
        ),
        (
            "another protocol",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\xff\xff\x04\x00\x00\x00\x00\x00".repeat(3),
        ),
    ];
    for (what, bytes) in heads {
        let answer = exchange(door, &bytes).await.context(what)?;
        let is_refused = refusals.iter().any(|refusal| answer.starts_with(refusal));
        ensure!(
            is_refused || !answer.starts_with("HTTP/1.1"),
            "{what}: {}",
            &answer[..answer.len().min(300)]
        );
    }
    Ok(())
}

/// Connections that begin a head and never end it, and uploads that never go on.
async fn slow_clients(door: &S3) -> anyhow::Result<Vec<TcpStream>> {
    let mut open = Vec::new();
    for number in 0..SLOW_CLIENTS {
        let mut socket = TcpStream::connect(&door.host).await?;
        let text = match number % 3 {
            0 => String::new(),
            1 => "GET /bad-requests/good HTTP/1.1\r\nhost: x\r\nx-sl".to_owned(),
            _ => wire(door, &put(&format!("slow{number}")), Some(MIB))? + &"x".repeat(10_000),
        };
        socket.write_all(text.as_bytes()).await?;
        open.push(socket);
    }
    Ok(open)
}

async fn other_tenants(cluster: &Cluster) -> anyhow::Result<()> {
    let request = TenantRequest { name: "stranger".into(), quota_bytes: Some(100_000) };
    let key: Option<KeyAnswer> =
        cluster.nodes[0].console(Method::POST, "/api/v1/tenants", Some(&request)).await?;
    let key = key.context("no key")?;
    let mut credentials = cluster.credentials.clone();
    (credentials.access_key, credentials.secret_key) = (key.access_key_id, key.secret_access_key);
    let stranger = cluster.s3(2).with(credentials);
    told("AccessDenied", stranger.get(BUCKET, "good").await)?;
    told("AccessDenied", stranger.send(put("theirs").body("x")).await)?;
    told("AccessDenied", stranger.send(Ask::new(Method::DELETE, format!("/{BUCKET}/good"))).await)?;
    told(
        "AccessDenied",
        stranger.send(Ask::new(Method::GET, format!("/{BUCKET}")).query("list-type", "2")).await,
    )?;
    told("BucketAlreadyExists", stranger.send(Ask::new(Method::PUT, format!("/{BUCKET}"))).await)?;
    stranger.create_bucket("of-a-stranger", None).await?;
    let copy =
        Ask::new(Method::PUT, "/of-a-stranger/stolen").header("x-amz-copy-source", format!("/{BUCKET}/good"));
    told("AccessDenied", stranger.send(copy).await)?;
    stranger.put("of-a-stranger", "fits", &Content::new("fits", 90_000)).await?;
    let over = Ask::new(Method::PUT, "/of-a-stranger/over").body(Content::new("over", 20_000).bytes());
    told("QuotaExceeded", stranger.send(over).await)?;
    stranger.delete("of-a-stranger", "fits").await?;
    stranger.put("of-a-stranger", "over", &Content::new("over", 20_000)).await?;
    Ok(())
}
