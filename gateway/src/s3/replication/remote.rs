//! Requests to another S3 server, signed with the tenant's key there (SigV4, path style).

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use makai_raft::facts::Timestamp;
use ring::{digest, hmac};

use crate::identity::targets::Target;
use crate::outbound::{Body, Outbound, whole};
use crate::s3::failures::element;

/// What is read of an answer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// How long a request may take beside its bytes, and how slow those may come.
const TIME_MAX: Duration = Duration::from_secs(60);
const BYTES_PER_SECOND_MIN: u64 = 256 * 1024;
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Why a target did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RemoteError {
    /// It may do it another time.
    Later(String),
    /// It will not.
    Never(String),
}

/// One bucket of another server.
pub(super) struct Remote<'a> {
    pub(super) outbound: &'a Outbound,
    pub(super) target: &'a Target,
    pub(super) bucket: &'a str,
    pub(super) now: Timestamp,
}

/// A request's body.
pub(super) enum Sent {
    Whole(Bytes),
    /// Of so many bytes.
    Stream(Body, u64),
}

impl Remote<'_> {
    /// `query`: names and values, in the order of their names, as they are.
    pub(super) async fn send(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        headers: HeaderMap,
        body: Sent,
    ) -> Result<Response<Bytes>, RemoteError> {
        let later = |error: &dyn std::fmt::Display| RemoteError::Later(error.to_string());
        let request = self.request(method, key, query, headers, &body).map_err(|error| later(&error))?;
        let (body, length) = match body {
            Sent::Whole(bytes) => {
                let length = bytes.len() as u64;
                (whole(bytes), length)
            }
            Sent::Stream(body, length) => (body, length),
        };
        let time_max = TIME_MAX + Duration::from_secs(length / BYTES_PER_SECOND_MIN);
        let (head, ()) = request.into_parts();
        let answer = self.outbound.send(Request::from_parts(head, body), ANSWER_BYTES_MAX, time_max).await;
        answer.map_err(|error| later(&error))
    }

    /// As [`send`](Self::send), of what must succeed.
    pub(super) async fn must(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        headers: HeaderMap,
        body: Sent,
    ) -> Result<Response<Bytes>, RemoteError> {
        let answer = self.send(method, key, query, headers, body).await?;
        let said = String::from_utf8_lossy(answer.body());
        // A completed upload can fail behind a 200.
        let is_done = answer.status().is_success() && !said.contains("<Error>");
        if is_done { Ok(answer) } else { Err(refusal(answer.status(), &said)) }
    }

    fn request(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        headers: HeaderMap,
        body: &Sent,
    ) -> Result<Request<()>, http::Error> {
        let path = format!("/{}/{}", self.bucket, encoded(key, true));
        let query: Vec<String> = query
            .iter()
            .map(|(name, value)| format!("{}={}", encoded(name, false), encoded(value, false)))
            .collect();
        let query = query.join("&");
        let mark = if query.is_empty() { "" } else { "?" };
        let uri: http::Uri = format!("{}{path}{mark}{query}", self.target.endpoint).parse()?;
        let (hash, length) = match body {
            Sent::Whole(bytes) => (hex::encode(digest::digest(&digest::SHA256, bytes)), bytes.len() as u64),
            Sent::Stream(_, length) => (UNSIGNED.to_owned(), *length),
        };
        let [year, month, day, hour, minute, second] = self.now.civil();
        let date = format!("{year:04}{month:02}{day:02}");
        let stamp = format!("{date}T{hour:02}{minute:02}{second:02}Z");

        let mut request = Request::builder().method(method.clone()).uri(uri.clone()).body(())?;
        let all = request.headers_mut();
        *all = headers;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        all.insert(HOST, HeaderValue::try_from(authority)?);
        all.insert(HeaderName::from_static("x-amz-date"), HeaderValue::try_from(&stamp)?);
        all.insert(HeaderName::from_static("x-amz-content-sha256"), HeaderValue::try_from(&hash)?);

        let mut signed: Vec<(String, String)> = Vec::new();
        for (name, value) in all.iter() {
            let is_signed = name == HOST || name.as_str().starts_with("x-amz-");
            if let (true, Ok(value)) = (is_signed, value.to_str()) {
                let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
                signed.push((name.as_str().to_owned(), value));
            }
        }
        signed.sort();
        let names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(";");
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{hash}");
        let scope = format!("{date}/{}/s3/aws4_request", self.target.region);
        let canonical = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{canonical}");
        let mut secret = format!("AWS4{}", self.target.secret.expose()).into_bytes();
        for part in [date.as_str(), &self.target.region, "s3", "aws4_request"] {
            let with = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            secret = hmac::sign(&with, part.as_bytes()).as_ref().to_vec();
        }
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), text.as_bytes());
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
            self.target.access_key_id,
            hex::encode(signature)
        );
        all.insert(AUTHORIZATION, HeaderValue::try_from(authorization)?);
        all.insert(CONTENT_LENGTH, HeaderValue::from(length));
        Ok(request)
    }
}

/// Whether another try may help: what is wrong with the object stays wrong, what is wrong with the target may be mended.
fn refusal(status: StatusCode, said: &str) -> RemoteError {
    let code = element(said, "Code").unwrap_or_default();
    let message: String = element(said, "Message").unwrap_or_default().chars().take(200).collect();
    let why = format!("the target answered {status} {code} {message}");
    let is_objects = match status {
        StatusCode::BAD_REQUEST => !matches!(code, "RequestTimeout" | "IncompleteBody" | "ExpiredToken"),
        StatusCode::LENGTH_REQUIRED | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::NOT_IMPLEMENTED => true,
        _ => false,
    };
    if is_objects { RemoteError::Never(why) } else { RemoteError::Later(why) }
}

/// As SigV4 has it: everything but what is unreserved; of keys the slashes stay.
pub(super) fn encoded(text: &str, keeps_slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || keeps_slashes && byte == b'/' {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push_str(&hex::encode_upper([byte]));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_as_they_are_signed() {
        assert_eq!(encoded("a b/c+d*é~", true), "a%20b/c%2Bd%2A%C3%A9~");
        assert_eq!(encoded("a/b", false), "a%2Fb");
    }

    #[test]
    fn what_is_wrong_with_the_object_is_told_from_what_is_wrong_with_the_target() {
        let error = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
        for (status, code, is_final) in [
            (400, "InvalidArgument", true),
            (400, "EntityTooLarge", true),
            (501, "NotImplemented", true),
            (400, "RequestTimeout", false),
            (403, "AccessDenied", false),
            (404, "NoSuchBucket", false),
            (500, "InternalError", false),
            (503, "SlowDown", false),
        ] {
            let refused = refusal(StatusCode::from_u16(status).unwrap(), &error(code));
            assert_eq!(matches!(refused, RemoteError::Never(_)), is_final, "{status} {code}");
        }
    }
}
