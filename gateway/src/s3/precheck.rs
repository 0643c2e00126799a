//! What a request's head alone decides: what it is refused for before it is parsed, and how its body is to be read.

use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Uri};
use makai_raft::facts::Timestamp;
use s3s::{S3Error, S3Result, s3_error};

use super::body::Digests;
use super::checksums::Promise;
use super::chunked::Framing;
use super::dates;
use super::errors::custom;
use super::failures::contains;
use super::subresources;

/// How long a presigned URL may be good for, as S3 has it.
const PRESIGNED_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;

/// What needs neither body nor identity to be refused.
pub(super) fn refuse_early(head: &mut http::request::Parts, now: Timestamp) -> S3Result<()> {
    if !is_percent_encoded(head.uri.path()) {
        return Err(s3_error!(InvalidURI, "Couldn't parse the specified URI: a percent sign is no escape."));
    }
    let asked = head.uri.query().unwrap_or_default();
    if asked.split('&').any(|pair| pair == "X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256") {
        return Err(asymmetric());
    }
    if let Some(authorization) = head.headers.get(header::AUTHORIZATION) {
        let authorization = authorization.to_str().map(str::to_owned);
        let authorization = authorization.map_err(|_| s3_error!(AccessDenied, "Access Denied"))?;
        check_authorization(&authorization, &mut head.headers, now)?;
    }
    let query = head.uri.query().unwrap_or_default();
    let Some(expires) = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Expires=")) else {
        return Ok(());
    };
    match expires.parse::<i64>() {
        Ok(seconds) if seconds <= 0 => return Err(s3_error!(AccessDenied, "Request has expired")),
        Ok(seconds) if seconds.unsigned_abs() <= PRESIGNED_SECONDS_MAX => {}
        _ => {
            return Err(custom(
                "AuthorizationQueryParametersError",
                403,
                format!("X-Amz-Expires must be a number of seconds, at most {PRESIGNED_SECONDS_MAX}."),
            ));
        }
    }
    Ok(())
}

/// Whether each percent sign of a path begins an escape.
fn is_percent_encoded(path: &str) -> bool {
    path.split('%')
        .skip(1)
        .all(|piece| piece.len() >= 2 && piece.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
}

/// Whether a request is signed with SigV2, in its headers or its query.
pub(super) fn is_v2(head: &http::request::Parts) -> bool {
    let is_in_header =
        head.headers.get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"AWS "));
    is_in_header || has_parameter(&head.uri, "AWSAccessKeyId")
}

/// Clients of SigV2 sign `/bucket/` where they ask for `/bucket`.
pub(super) fn end_bucket_with_slash(uri: &mut Uri) {
    let path = uri.path();
    if path.len() > 1 && !path[1..].contains('/') {
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        if let Ok(ended) = format!("{path}/{query}").parse() {
            *uri = ended;
        }
    }
}

fn asymmetric() -> S3Error {
    s3_error!(
        NotImplemented,
        "SigV4A (AWS4-ECDSA-P256-SHA256) is not implemented: sign with AWS4-HMAC-SHA256."
    )
}

/// Whether the header `Authorization` has a form that can be verified.
fn check_authorization(authorization: &str, headers: &mut HeaderMap, now: Timestamp) -> S3Result<()> {
    let (scheme, rest) = authorization.trim().split_once(' ').unwrap_or((authorization.trim(), ""));
    match scheme {
        "" => Err(s3_error!(AccessDenied, "Access Denied")),
        "AWS4-ECDSA-P256-SHA256" => Err(asymmetric()),
        "AWS4-HMAC-SHA256" => {
            let has = |name: &str| rest.split(',').any(|part| part.trim().split('=').next() == Some(name));
            let needed = ["Credential", "SignedHeaders", "Signature"];
            if let Some(missing) = needed.into_iter().find(|name| !has(name)) {
                return Err(s3_error!(
                    AuthorizationHeaderMalformed,
                    "The authorization header is malformed; the authorization header requires {missing}."
                ));
            }
            dates::complete_v4(headers)
        }
        "AWS" if rest.contains(':') => {
            dates::check_v2(headers, i64::try_from(now.0 / 1000).unwrap_or(i64::MAX))
        }
        "AWS" => Err(s3_error!(
            InvalidArgument,
            "AWS authorization header is invalid. Expected AwsAccessKeyId:signature"
        )),
        _ => Err(s3_error!(InvalidArgument, "Unsupported Authorization Type")),
    }
}

/// The token of a temporary key, in the headers or the query.
pub(super) fn session_token(head: &http::request::Parts) -> Option<String> {
    if let Some(token) = head.headers.get("x-amz-security-token") {
        return token.to_str().ok().map(str::to_owned);
    }
    let query = form_urlencoded::parse(head.uri.query()?.as_bytes());
    query.into_iter().find(|(name, _)| name == "X-Amz-Security-Token").map(|(_, token)| token.into_owned())
}

/// Whether the body is a browser's form.
pub(super) fn is_form(head: &http::request::Parts) -> bool {
    let content_type = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let form = b"multipart/form-data";
    head.method == Method::POST
        && content_type.get(..form.len()).is_some_and(|start| start.eq_ignore_ascii_case(form))
}

pub(super) fn framing(headers: &HeaderMap) -> Option<Framing> {
    match headers.get("x-amz-content-sha256")?.as_bytes() {
        b"STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Some(Framing::new(false)),
        b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD" | b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => {
            Some(Framing::new(true))
        }
        _ => None,
    }
}

/// What to check of an XML body. Objects and parts are checked where they are stored.
pub(super) fn digests(head: &http::request::Parts) -> S3Result<Option<Digests>> {
    let query = head.uri.query().unwrap_or_default();
    let names = || subresources::names(query);
    let is_xml = match head.method {
        Method::POST => true,
        Method::PUT => names().any(|name| subresources::WITH_XML.contains(&&*name)),
        _ => false,
    };
    if !is_xml {
        return Ok(None);
    }
    let mut headers = head.headers.clone();
    headers.remove("x-amz-trailer");
    // There, the checksum headers are about the object.
    if names().any(|name| name == "uploadId" || name == "uploads") {
        headers.retain_content_md5();
    }
    Ok(Some(Digests::new(Promise::read(&headers, None)?)))
}

trait RetainContentMd5 {
    fn retain_content_md5(&mut self);
}

impl RetainContentMd5 for HeaderMap {
    fn retain_content_md5(&mut self) {
        let md5 = self.remove("content-md5");
        self.clear();
        if let Some(md5) = md5 {
            self.insert("content-md5", md5);
        }
    }
}

pub(super) fn has_parameter(uri: &Uri, wanted: &str) -> bool {
    let query = uri.query().unwrap_or_default();
    subresources::names(query).any(|name| name == wanted)
}

/// `s3s` would leave out MinIO's exceptions from a versioning configuration without a word.
pub(super) fn check_versioning(body: &[u8]) -> S3Result<()> {
    if ["ExcludeFolders", "ExcludedPrefixes"].iter().any(|name| contains(body, name.as_bytes())) {
        return Err(s3_error!(
            NotImplemented,
            "Versioning without some folders or prefixes is not implemented: version the whole bucket."
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> http::request::Parts {
        let request = Request::builder().method(method).uri(uri);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_is_refused_before_it_is_parsed() {
        let now = Timestamp(1_700_000_000_000);
        let code = |mut head: http::request::Parts| {
            refuse_early(&mut head, now).err().map(|error| error.code().as_str().to_owned())
        };
        let date = ("date", "Tue, 14 Nov 2023 22:13:20 GMT");
        let v4 = "AWS4-HMAC-SHA256 Credential=x/y, SignedHeaders=host, Signature=z";
        for (authorization, expected) in [
            ("AWS AK:sig", None),
            ("AWS AK", Some("InvalidArgument")),
            ("", Some("AccessDenied")),
            ("Basic YTpi", Some("InvalidArgument")),
            (v4, None),
            ("AWS4-HMAC-SHA256 Credential=x", Some("AuthorizationHeaderMalformed")),
            ("AWS4-ECDSA-P256-SHA256 Credential=x", Some("NotImplemented")),
        ] {
            let head = head("GET", "/", &[("authorization", authorization), date]);
            assert_eq!(code(head).as_deref(), expected, "{authorization}");
        }
        assert_eq!(code(head("GET", "/", &[("authorization", v4)])), Some("AccessDenied".into()));
        for (seconds, expected) in [
            ("0", "AccessDenied"),
            ("-1", "AccessDenied"),
            ("604801", "AuthorizationQueryParametersError"),
            ("", "AuthorizationQueryParametersError"),
            ("99999999999999999999", "AuthorizationQueryParametersError"),
        ] {
            let uri = format!("/b/k?X-Amz-Expires={seconds}");
            assert_eq!(code(head("GET", &uri, &[])).as_deref(), Some(expected), "{seconds}");
        }
        assert_eq!(code(head("GET", "/b/k?X-Amz-Expires=604800", &[])), None);
    }
}
