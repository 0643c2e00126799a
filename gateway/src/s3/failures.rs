//! Errors as S3 writes them: their XML, completed with what `s3s` leaves out.

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use super::body::Notes;
use super::errors::default_message;

/// What an error's XML says of its request.
pub(super) struct Asked<'a> {
    pub(super) resource: &'a str,
    pub(super) bucket: Option<&'a str>,
    pub(super) id: &'a str,
    /// Names the gateway that answers.
    pub(super) host: &'a str,
}

impl Asked<'_> {
    /// The element that S3 gives with some codes: what was not found, or cannot be done.
    fn subject(&self, code: &str) -> String {
        let element = |name: &str, text: &str| format!("<{name}>{}</{name}>", escape(text));
        let bucket = self.bucket.unwrap_or_default();
        if code.contains("Key") && code.starts_with("NoSuch") {
            let path = self.resource.trim_start_matches('/');
            let of_path = path.strip_prefix(bucket).and_then(|rest| rest.strip_prefix('/'));
            element("Key", &percent_decode(of_path.unwrap_or(path)))
        } else if code.contains("Bucket") || code.starts_with("NoSuch") {
            element("BucketName", bucket)
        } else {
            String::new()
        }
    }
}

/// Writes an error's XML anew, with what `s3s` leaves out: a message in every case, the resource, the request's id.
pub(super) fn reword(
    head: &mut http::response::Parts,
    body: &s3s::Body,
    notes: &Notes,
    asked: &Asked<'_>,
) -> s3s::Body {
    let said = body.bytes().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let code = element(&said, "Code").unwrap_or("InternalError");
    let message = element(&said, "Message").unwrap_or_else(|| default_message(code));
    if head.status.is_server_error() {
        let operation = notes.operation.get().map_or("", String::as_str);
        tracing::warn!(request = asked.id, operation, code, message = unescape(message), "a request failed");
    }
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{}\
         <Resource>{}</Resource><RequestId>{}</RequestId><HostId>{}</HostId></Error>",
        asked.subject(code),
        escape(asked.resource),
        asked.id,
        asked.host,
    );
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    s3s::Body::from(xml)
}

/// The text that a path stands for. What XML cannot hold is replaced.
fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|digits| byte == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    let decoded = String::from_utf8_lossy(&decoded);
    decoded.replace(|char: char| char.is_control() && !char.is_ascii_whitespace(), "\u{FFFD}")
}

pub(super) fn error_code(body: &s3s::Body) -> Option<String> {
    let said = body.bytes()?;
    Some(element(std::str::from_utf8(&said).ok()?, "Code")?.to_owned())
}

/// What stands between an element's tags, escapes and all.
pub(super) fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let rest = xml.split_once(&format!("<{name}>"))?.1;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Text as it was before it was put into XML.
fn unescape(xml: &str) -> String {
    let marks = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    marks.iter().fold(xml.to_owned(), |text, (mark, plain)| text.replace(mark, plain))
}

pub(super) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Whether an error is a website's page already.
pub(super) fn is_page(head: &http::response::Parts) -> bool {
    head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() != b"application/xml")
}

pub(super) fn internal_error() -> Response<s3s::Body> {
    let mut response = Response::new(s3s::Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

#[cfg(test)]
mod tests {
    use s3s::s3_error;

    use super::*;

    #[test]
    fn an_errors_xml_is_completed() {
        let asked = |resource| Asked { resource, bucket: Some("b"), id: "ID", host: "HOST" };
        let error = s3_error!(NoSuchKey, "It has <no> such key & never had.");
        let (mut head, body) = error.to_http_response().unwrap().into_parts();
        let body = reword(&mut head, &body, &Notes::default(), &asked("/b/a&b%20%01+%"));
        assert_eq!(
            String::from_utf8_lossy(&body.bytes().unwrap()),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey</Code>\
             <Message>It has &lt;no&gt; such key &amp; never had.</Message><Key>a&amp;b \u{FFFD}+%</Key>\
             <Resource>/b/a&amp;b%20%01+%</Resource><RequestId>ID</RequestId><HostId>HOST</HostId></Error>"
        );
        let (mut head, body) = s3_error!(NoSuchBucket).to_http_response().unwrap().into_parts();
        let body = reword(&mut head, &body, &Notes::default(), &asked("/b/k"));
        assert!(contains(&body.bytes().unwrap(), b"<BucketName>b</BucketName>"));
        let (mut head, body) = s3_error!(SignatureDoesNotMatch).to_http_response().unwrap().into_parts();
        let body = reword(&mut head, &body, &Notes::default(), &asked("/"));
        assert!(contains(&body.bytes().unwrap(), b"<Message>The request signature we calculated"));
    }
}
