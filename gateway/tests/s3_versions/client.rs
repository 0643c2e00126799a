//! A client that signs as the public description of SigV4 says and reads answers byte by byte.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use makai_gateway::s3::S3DoorConfig;
use ring::{digest, hmac};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::pool::Pool;

pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What stands in the first element of this name.
    pub fn element(&self, name: &str) -> Option<String> {
        self.elements(name).into_iter().next()
    }

    pub fn elements(&self, name: &str) -> Vec<String> {
        elements(&self.text(), name)
    }

    /// Status and error code; of a success the code is empty.
    pub fn outcome(&self) -> (u16, String) {
        let code = if self.status >= 300 { self.element("Code") } else { None };
        (self.status, code.unwrap_or_default())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn version(&self) -> String {
        self.header("x-amz-version-id").unwrap_or_default().to_owned()
    }
}

pub fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let pieces = xml.split(&open).skip(1);
    pieces.filter_map(|piece| Some(piece.split_once(&close)?.0.to_owned())).collect()
}

/// A pool and the way to it.
pub struct Client {
    pub pool: Pool,
}

impl Client {
    /// A pool with the bucket `bucket`.
    pub async fn start() -> Self {
        let pool = Pool::start("127.0.0.1:0".parse().unwrap(), S3DoorConfig::default(), None).await;
        let client = Self { pool };
        client.ok("PUT", "/bucket", &[], "").await;
        client
    }

    /// As [`Client::start`], the bucket versioned.
    pub async fn versioned() -> Self {
        let client = Self::start().await;
        client.versioning("Enabled").await;
        client
    }

    pub async fn versioning(&self, status: &str) {
        let body = format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>");
        self.ok("PUT", "/bucket?versioning", &[], body).await;
    }

    /// The answer, which must be a success.
    pub async fn ok(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        let answer = self.call(method, target, headers, body).await;
        assert!(answer.status < 300, "{method} {target}: {} {}", answer.status, answer.text());
        answer
    }

    /// Status and error code.
    pub async fn outcome(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> (u16, String) {
        self.call(method, target, headers, body).await.outcome()
    }

    /// `target`: path and query, percent-encoded as they travel.
    pub async fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        let body = body.as_ref();
        let mut all: BTreeMap<String, String> =
            headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), (*value).to_owned())).collect();
        all.insert("host".into(), self.pool.address.to_string());
        all.insert("x-amz-date".into(), amz_date());
        all.insert("x-amz-content-sha256".into(), hex::encode(digest::digest(&digest::SHA256, body)));
        if method != "GET" && method != "HEAD" {
            all.insert("content-length".into(), body.len().to_string());
        }
        let authorization = self.authorization(method, target, &all);
        let mut head = format!("{method} {target} HTTP/1.1\r\nauthorization: {authorization}\r\n");
        for (name, value) in &all {
            head += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(self.pool.address).await.unwrap();
        stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        // A refused request's connection may close before all is sent.
        let _ = stream.write_all(body).await;
        read(&mut stream, method != "HEAD").await
    }

    fn authorization(&self, method: &str, target: &str, headers: &BTreeMap<String, String>) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut pairs: Vec<String> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
            .collect();
        pairs.sort();
        let names = headers.keys().map(String::as_str).collect::<Vec<_>>().join(";");
        let lines: String =
            headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let hash = &headers["x-amz-content-sha256"];
        let canonical = [method, path, &pairs.join("&"), &lines, &names, hash].join("\n");
        let stamp = &headers["x-amz-date"];
        let date = &stamp[..8];
        let scope = format!("{date}/us-east-1/s3/aws4_request");
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hash}");
        let mut key = format!("AWS4{}", self.pool.secret_key).into_bytes();
        for part in [date, "us-east-1", "s3", "aws4_request", &text] {
            key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
        }
        let (id, signature) = (&self.pool.access_key, hex::encode(key));
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope},SignedHeaders={names},Signature={signature}")
    }

    /// Every version and marker of the bucket as `key:id:kind`, in the order of the listing.
    pub async fn versions(&self, query: &str) -> Vec<String> {
        let listed = self.ok("GET", &format!("/bucket?versions{query}"), &[], "").await;
        in_order(&listed.text())
    }

    /// Completes an upload of parts of these sizes; gives its last answer.
    pub async fn multipart(&self, target: &str, headers: &[(&str, &str)], sizes: &[usize]) -> Answer {
        let begun = self.ok("POST", &format!("{target}?uploads"), headers, "").await;
        let id = begun.element("UploadId").unwrap();
        let mut parts = String::new();
        for (number, size) in (1..).zip(sizes) {
            let part = format!("{target}?partNumber={number}&uploadId={id}");
            let put = self.ok("PUT", &part, &[], bytes(*size)).await;
            let checksum = put
                .header("x-amz-checksum-crc32")
                .map(|value| format!("<ChecksumCRC32>{value}</ChecksumCRC32>"));
            parts += &format!(
                "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag>{}</Part>",
                put.headers["etag"],
                checksum.unwrap_or_default()
            );
        }
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        self.call("POST", &format!("{target}?uploadId={id}"), &[], body).await
    }
}

/// Versions and markers as they stand in a listing's XML; `*` marks the latest.
fn in_order(xml: &str) -> Vec<String> {
    let mut shown = Vec::new();
    for kind in ["Version", "DeleteMarker"] {
        for entry in elements(xml, kind) {
            let of = |name: &str| elements(&entry, name).remove(0);
            let latest = if of("IsLatest") == "true" { "*" } else { "" };
            let marker = if kind == "Version" { "" } else { "!" };
            shown.push(format!("{}:{}{marker}{latest}", of("Key"), of("VersionId")));
        }
    }
    shown
}

pub fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

pub fn unix_seconds() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "signatures are checked against the real time")]
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Year, month, day, hour, minute, second by the days-to-civil algorithm.
fn civil(seconds: u64) -> (u64, u64, u64, u64, u64, u64) {
    let (days, seconds) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day, seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn amz_date() -> String {
    let (year, month, day, hour, minute, second) = civil(unix_seconds());
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// So many seconds from now, as XML and lock headers write it.
pub fn iso_date(in_seconds: i64) -> String {
    let at = unix_seconds().saturating_add_signed(in_seconds);
    let (year, month, day, hour, minute, second) = civil(at);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

async fn read(stream: &mut TcpStream, has_body: bool) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; if has_body { length } else { 0 }];
    stream.read_exact(&mut body).await.unwrap();
    Answer { status, headers, body }
}
