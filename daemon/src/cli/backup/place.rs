//! Where a backup lies: a file, or an object of any S3 endpoint.
//!
//! ```text
//! file ─ parts of 16 MiB, each signed with its hash ─> endpoint        endpoint ─ ranges of 16 MiB ─> file
//! ```
//!
//! Always: one part is in memory; an upload that fails is aborted and nothing appears under its name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, Uri, header};
use makai_gateway::outbound::{Outbound, whole};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use crate::cli::bench::s3::sigv4::{
    AmzTime, Credentials, DayKey, Signed, encode_path, encode_query, sha256_hex,
};
use crate::cli::profile::Profile;
use crate::clock;

/// Bytes of a part: a facts' file of 10,000 of them has 160 GB.
const PART_BYTES: u64 = 16 << 20;
/// Answers other than ranges are short.
const ANSWER_BYTES_MAX: usize = 64 << 10;
const REQUEST_WITHIN: Duration = Duration::from_secs(300);
/// Times that a part is tried: endpoints answer `SlowDown`, and lines break.
const TRIES: u32 = 4;
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A file, or `s3://BUCKET/KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    File(PathBuf),
    Object { bucket: String, key: String },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("s3://") else { return Ok(Self::File(text.into())) };
        match rest.split_once('/') {
            Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
                Ok(Self::Object { bucket: bucket.into(), key: key.into() })
            }
            _ => Err(format!("{text:?} names no object: write s3://BUCKET/KEY")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Object { bucket, key } => write!(f, "s3://{bucket}/{key}"),
        }
    }
}

/// Which S3 endpoint holds the object, and who asks.
#[derive(Debug, Clone, clap::Args)]
pub struct EndpointArgs {
    /// For s3://BUCKET/KEY: the endpoint, e.g. https://s3.example.com. With AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL")]
    endpoint: Option<String>,
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    region: String,
    #[arg(long, env = "AWS_ACCESS_KEY_ID", hide_env_values = true, hide = true)]
    access_key_id: Option<String>,
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true, hide = true)]
    secret_access_key: Option<String>,
    /// Or all of that from the profile of another cluster
    #[arg(long, value_name = "FILE")]
    s3_profile: Option<PathBuf>,
}

impl EndpointArgs {
    /// # Errors
    /// Something is missing.
    pub fn endpoint(&self) -> anyhow::Result<Endpoint> {
        if let Some(path) = &self.s3_profile {
            let s3 = Profile::load(path)?.s3;
            let credentials = Credentials {
                access_key: s3.access_key_id,
                secret_key: s3.secret_access_key,
                region: s3.region,
            };
            return Endpoint::new(&s3.endpoint, credentials);
        }
        let url = self
            .endpoint
            .as_deref()
            .context("which S3 endpoint? give --endpoint URL or --s3-profile FILE")?;
        let (Some(access_key), Some(secret_key)) = (&self.access_key_id, &self.secret_access_key) else {
            bail!("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --s3-profile FILE");
        };
        let credentials = Credentials {
            access_key: access_key.clone(),
            secret_key: secret_key.clone(),
            region: self.region.clone(),
        };
        Endpoint::new(url, credentials)
    }
}

/// An S3 endpoint, addressed path-style.
pub struct Endpoint {
    base: String,
    host: String,
    credentials: Credentials,
    outbound: Outbound,
}

impl Endpoint {
    fn new(url: &str, credentials: Credentials) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/');
        let uri: Uri = base.parse().with_context(|| format!("{url:?} is no URL"))?;
        let host = uri.authority().with_context(|| format!("{url:?} has no host"))?.to_string();
        ensure!(
            matches!(uri.scheme_str(), Some("http" | "https")),
            "{url:?} must begin with http:// or https://"
        );
        ensure!(matches!(uri.path(), "" | "/"), "{url:?} must be a host and a port alone");
        // The operator names it: it may be on this network.
        Ok(Self { base: base.to_owned(), host, credentials, outbound: Outbound::new(true) })
    }

    /// One signed request; an error where S3 answers one.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        range: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<Response<Bytes>> {
        let (path, query) = (encode_path(path), encode_query(query));
        let payload_hash = sha256_hex(&body);
        let time = AmzTime::new(clock::now().0 / 1000);
        let mut headers: Vec<(&str, &str)> = vec![("host", &self.host)];
        headers.extend(range.map(|range| ("range", range)));
        headers.extend([("x-amz-content-sha256", payload_hash.as_str()), ("x-amz-date", time.as_str())]);
        let signed = Signed {
            method: method.as_str(),
            path: &path,
            query: &query,
            headers: &headers,
            payload_hash: &payload_hash,
        };
        let authorization = DayKey::new(&self.credentials, &time).authorization(&signed, &time);
        let ask = if query.is_empty() { path.clone() } else { format!("{path}?{query}") };
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{ask}", self.base))
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_LENGTH, body.len());
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        let bytes_max =
            if range.is_some() { PART_BYTES as usize + ANSWER_BYTES_MAX } else { ANSWER_BYTES_MAX };
        let answer = self.outbound.send(request.body(whole(body))?, bytes_max, REQUEST_WITHIN).await?;
        if !answer.status().is_success() {
            let told = String::from_utf8_lossy(answer.body());
            let code = element(&told, "Code").unwrap_or_default();
            let why = element(&told, "Message").unwrap_or_default();
            bail!("{method} {path}: {} {code} {why}", answer.status());
        }
        Ok(answer)
    }

    /// As [`ask`](Self::ask), a few times.
    async fn insist(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        range: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<Response<Bytes>> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.ask(method.clone(), path, query, range, body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) if tries == TRIES => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "trying again");
                    tokio::time::sleep(TRY_AGAIN_AFTER * tries).await;
                }
            }
        }
    }

    /// Puts a file under a name, whole or not at all.
    ///
    /// # Errors
    /// The endpoint refuses or does not answer, or the file cannot be read.
    pub async fn put(&self, bucket: &str, key: &str, file: &Path) -> anyhow::Result<()> {
        let path = format!("/{bucket}/{key}");
        let len = tokio::fs::metadata(file).await.with_context(|| format!("look at {file:?}"))?.len();
        if len <= PART_BYTES {
            let body = read_part(file, 0, len).await?;
            self.insist(Method::PUT, &path, &[], None, body).await?;
        } else {
            self.put_in_parts(&path, file, len).await?;
        }
        let stored = self.len(&path).await?;
        ensure!(stored == len, "{path} has {stored} bytes, {file:?} has {len}");
        Ok(())
    }

    async fn put_in_parts(&self, path: &str, file: &Path, len: u64) -> anyhow::Result<()> {
        let begun = self.insist(Method::POST, path, &[("uploads", "")], None, Bytes::new()).await?;
        let begun = String::from_utf8_lossy(begun.body()).into_owned();
        let upload = element(&begun, "UploadId").context("the endpoint gave no UploadId")?;
        let done = async {
            let mut parts = String::new();
            for (number, offset) in (1u32..).zip((0..len).step_by(PART_BYTES as usize)) {
                let body = read_part(file, offset, PART_BYTES.min(len - offset)).await?;
                let number = number.to_string();
                let query = [("partNumber", number.as_str()), ("uploadId", upload)];
                let answer = self.insist(Method::PUT, path, &query, None, body).await?;
                let etag = answer.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok());
                let etag = etag.context("the endpoint gave no ETag")?.trim_matches('"');
                parts += &format!("<Part><PartNumber>{number}</PartNumber><ETag>\"{etag}\"</ETag></Part>");
            }
            let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
            let query = [("uploadId", upload)];
            let answer = self.insist(Method::POST, path, &query, None, body.into()).await?;
            // S3 may find out after it has answered 200.
            let told = String::from_utf8_lossy(answer.body()).into_owned();
            ensure!(element(&told, "Code").is_none(), "{path}: {told}");
            anyhow::Ok(())
        };
        let done = done.await;
        if done.is_err() {
            let query = [("uploadId", upload)];
            if let Err(error) = self.ask(Method::DELETE, path, &query, None, Bytes::new()).await {
                tracing::warn!(%error, %upload, "the upload could not be aborted");
            }
        }
        done
    }

    async fn len(&self, path: &str) -> anyhow::Result<u64> {
        let head = self.insist(Method::HEAD, path, &[], None, Bytes::new()).await?;
        let len = head.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
        len.with_context(|| format!("{path}: the endpoint gave no Content-Length"))
    }

    /// Writes an object to a new file.
    ///
    /// # Errors
    /// The endpoint refuses or does not answer, or the file cannot be written.
    pub async fn get(&self, bucket: &str, key: &str, file: &Path) -> anyhow::Result<()> {
        let path = format!("/{bucket}/{key}");
        let len = self.len(&path).await?;
        let mut out = tokio::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .await
            .with_context(|| format!("create {file:?}"))?;
        for offset in (0..len).step_by(PART_BYTES as usize) {
            let range = format!("bytes={offset}-{}", (offset + PART_BYTES).min(len) - 1);
            let answer = self.insist(Method::GET, &path, &[], Some(&range), Bytes::new()).await?;
            let wanted = PART_BYTES.min(len - offset);
            ensure!(answer.body().len() as u64 == wanted, "{path} changed while it was read");
            out.write_all(answer.body()).await.with_context(|| format!("write {file:?}"))?;
        }
        out.sync_all().await.with_context(|| format!("write {file:?}"))
    }
}

async fn read_part(file: &Path, offset: u64, len: u64) -> anyhow::Result<Bytes> {
    let read = async {
        let mut from = tokio::fs::File::open(file).await?;
        from.seek(std::io::SeekFrom::Start(offset)).await?;
        let mut part = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        from.read_exact(&mut part).await?;
        std::io::Result::Ok(Bytes::from(part))
    };
    read.await.with_context(|| format!("read {file:?}"))
}

/// The text of the first such element of S3's flat XML, none of whose texts that are asked for is escaped.
fn element<'x>(xml: &'x str, name: &str) -> Option<&'x str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_file_or_an_object() {
        let object = Place::Object { bucket: "b".into(), key: "k/l".into() };
        assert_eq!("s3://b/k/l".parse(), Ok(object.clone()));
        assert_eq!(object.to_string(), "s3://b/k/l");
        assert_eq!("/a/b".parse(), Ok(Place::File("/a/b".into())));
        for wrong in ["s3://", "s3://b", "s3://b/", "s3:///k"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_endpoint_is_a_host_alone() {
        let credentials =
            || Credentials { access_key: String::new(), secret_key: String::new(), region: String::new() };
        let host = |url| Endpoint::new(url, credentials()).map(|endpoint| endpoint.host);
        assert_eq!(host("http://127.0.0.1:9000/").unwrap(), "127.0.0.1:9000");
        assert_eq!(host("https://s3.example").unwrap(), "s3.example");
        for wrong in ["s3.example", "ftp://s3.example", "https://s3.example/path", ""] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }
}
