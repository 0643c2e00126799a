//! Requests to the door: signed as the public description of SigV4 says, or not at all.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use makai_gateway::s3::S3DoorConfig;
use ring::{digest, hmac};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::pool::Pool;

/// Canonical ids of the pool's tenants.
pub const ONE: &str = "0000000000000000000000000000000000000000000000000000000000000001";
pub const TWO: &str = "0000000000000000000000000000000000000000000000000000000000000002";

/// Who sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The owner of `bucket`.
    One,
    Two,
    Nobody,
    /// A user of tenant one: access key and secret.
    User(&'static str, &'static str),
}

pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    /// Status and error code; no code: empty.
    pub fn said(&self) -> (u16, &str) {
        let code = self.body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        (self.status, code.map_or("", |(code, _)| code))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

pub struct Client {
    pub pool: Pool,
}

pub struct Request<'c> {
    client: &'c Client,
    by: By,
    method: &'c str,
    path: String,
    query: Vec<(String, String)>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Client {
    /// A pool in which tenant one has the bucket `bucket`.
    pub async fn start() -> Self {
        let pool = Pool::start("127.0.0.1:0".parse().unwrap(), S3DoorConfig::default(), None).await;
        let client = Self { pool };
        assert_eq!(client.put("/bucket").send().await.said(), (200, ""));
        client
    }

    pub fn request<'c>(&'c self, method: &'c str, target: &str) -> Request<'c> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_owned(), value.to_owned())
        });
        Request {
            client: self,
            by: By::One,
            method,
            path: path.to_owned(),
            query: query.collect(),
            headers: BTreeMap::new(),
            body: Vec::new(),
        }
    }

    pub fn get(&self, target: &str) -> Request<'_> {
        self.request("GET", target)
    }

    pub fn put(&self, target: &str) -> Request<'_> {
        self.request("PUT", target)
    }

    pub fn delete(&self, target: &str) -> Request<'_> {
        self.request("DELETE", target)
    }

    pub async fn set_policy(&self, policy: &serde_json::Value) -> Answer {
        self.put("/bucket?policy").body(policy.to_string()).send().await
    }
}

impl Request<'_> {
    pub fn by(mut self, by: By) -> Self {
        self.by = by;
        self
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.insert(name.to_owned(), value.to_string());
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// As it stands on the wire.
    pub fn into_bytes(mut self) -> Vec<u8> {
        let has_body = self.method != "HEAD";
        self.headers.entry("host".into()).or_insert_with(|| self.client.pool.address.to_string());
        if self.method != "GET" && has_body {
            self.headers.insert("content-length".into(), self.body.len().to_string());
        }
        self.query.sort();
        let query: Vec<_> = self.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = query.join("&");
        let pool = &self.client.pool;
        let authorization = match self.by {
            By::Nobody => None,
            By::User(access_key, secret_key) => Some(self.sign(access_key, secret_key, &query)),
            By::One => Some(self.sign(&pool.access_key, &pool.secret_key, &query)),
            By::Two => Some(self.sign(&pool.other_access_key, &pool.other_secret_key, &query)),
        };
        let target = if query.is_empty() { self.path.clone() } else { format!("{}?{query}", self.path) };
        let mut head = format!("{} {target} HTTP/1.1\r\n", self.method);
        for (name, value) in
            self.headers.iter().chain(authorization.iter().map(|(name, value)| (name, value)))
        {
            head += &format!("{name}: {value}\r\n");
        }
        head += "connection: close\r\n\r\n";
        [head.into_bytes(), self.body].concat()
    }

    pub async fn send(self) -> Answer {
        let mut stream = TcpStream::connect(self.client.pool.address).await.unwrap();
        // A refused request's connection may close before all is sent.
        let _ = stream.write_all(&self.into_bytes()).await;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        let all = String::from_utf8_lossy(&all).into_owned();
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Answer { status, headers, body: body.to_owned() }
    }

    /// Signs what is there; returns the header.
    fn sign(&mut self, access_key: &str, secret_key: &str, query: &str) -> (String, String) {
        let stamp = amz_date();
        let date = &stamp[..8];
        self.headers.insert("x-amz-date".into(), stamp.clone());
        self.headers.insert("x-amz-content-sha256".into(), "UNSIGNED-PAYLOAD".into());
        let names = self.headers.keys().map(String::as_str).collect::<Vec<_>>().join(";");
        let lines: String = self.headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = [self.method, &self.path, query, &lines, &names, "UNSIGNED-PAYLOAD"].join("\n");
        let scope = format!("{date}/us-east-1/s3/aws4_request");
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hash}");
        let signature = hex::encode(signature(secret_key, date, &text));
        let credential = format!("Credential={access_key}/{scope},SignedHeaders={names}");
        ("authorization".into(), format!("AWS4-HMAC-SHA256 {credential},Signature={signature}"))
    }
}

/// The signature of `text` by the key of `date`.
pub fn signature(secret_key: &str, date: &str, text: &str) -> Vec<u8> {
    let mut key = format!("AWS4{secret_key}").into_bytes();
    for part in [date, "us-east-1", "s3", "aws4_request", text] {
        let with = hmac::Key::new(hmac::HMAC_SHA256, &key);
        key = hmac::sign(&with, part.as_bytes()).as_ref().to_vec();
    }
    key
}

/// `YYYYMMDDTHHMMSSZ`, by the days-to-civil algorithm.
pub fn amz_date() -> String {
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
