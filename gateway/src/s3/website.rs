//! Buckets as websites, under names of their own: `BUCKET.DOMAIN` for each of the configured website domains.
//!
//! ```text
//! GET path ─ plan (rules, index) ─> redirect, or a key ─ as an anonymous S3 request ─> page
//!                                                      └ error ─> rules for errors, folder, error document
//! ```
//!
//! Always: a visitor gets what an anonymous S3 request would get, and no more; errors are pages, not XML.

use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use s3s::dto::{RoutingRule, WebsiteConfiguration};
use s3s::service::S3Service;
use s3s::{S3Result, s3_error};

use super::access::{Peer, SESSION_TOKEN};
use super::body::Notes;
use super::documents::read_xml;
use super::errors::refused;
use crate::objects::Objects;

const REDIRECT_OF_OBJECT: &str = "x-amz-website-redirect-location";

/// The domains below which buckets are websites, each with its leading dot.
#[derive(Debug, Clone, Default)]
pub(super) struct Websites {
    suffixes: Vec<String>,
}

impl Websites {
    pub(super) fn new(domains: &[String]) -> Self {
        Self { suffixes: domains.iter().map(|domain| format!(".{domain}")).collect() }
    }

    /// The bucket whose website a host is.
    pub(super) fn bucket(&self, host: &str) -> Option<String> {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.to_ascii_lowercase();
        let bucket = self.suffixes.iter().find_map(|suffix| name.strip_suffix(suffix))?;
        (!bucket.is_empty()).then(|| bucket.to_owned())
    }
}

/// What a visitor asked for.
#[derive(Debug, Clone)]
pub(super) struct Visit<'a> {
    pub(super) host: &'a str,
    pub(super) is_tls: bool,
    /// Decoded, without its first slash.
    pub(super) path: &'a str,
}

/// What is done first for a visit.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Redirect(StatusCode, String),
    Key(String),
}

impl Visit<'_> {
    fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }

    fn plan(&self, site: &WebsiteConfiguration) -> Plan {
        if let Some(all) = &site.redirect_all_requests_to {
            let scheme = all.protocol.as_ref().map_or(self.scheme(), |protocol| protocol.as_str());
            let location = format!("{scheme}://{}/{}", all.host_name, encode(self.path));
            return Plan::Redirect(StatusCode::MOVED_PERMANENTLY, location);
        }
        if let Some((status, location)) = self.redirect(site, None) {
            return Plan::Redirect(status, location);
        }
        let is_folder = self.path.is_empty() || self.path.ends_with('/');
        let index = site.index_document.as_ref().filter(|_| is_folder).map(|index| index.suffix.as_str());
        Plan::Key(format!("{}{}", self.path, index.unwrap_or_default()))
    }

    /// Where the first rule for this path sends, before anything is read or on an error.
    fn redirect(
        &self,
        site: &WebsiteConfiguration,
        error: Option<StatusCode>,
    ) -> Option<(StatusCode, String)> {
        let error = error.map(|status| status.as_str().to_owned());
        let rule = site.routing_rules.iter().flatten().find(|rule| {
            let condition = rule.condition.as_ref();
            let asks = condition.and_then(|condition| condition.http_error_code_returned_equals.as_ref());
            let prefix = condition.and_then(|condition| condition.key_prefix_equals.as_deref());
            asks == error.as_ref() && self.path.starts_with(prefix.unwrap_or_default())
        })?;
        Some(self.follow(rule))
    }

    fn follow(&self, rule: &RoutingRule) -> (StatusCode, String) {
        let to = &rule.redirect;
        let prefix = rule.condition.as_ref().and_then(|condition| condition.key_prefix_equals.as_deref());
        let key = match (&to.replace_key_with, &to.replace_key_prefix_with) {
            (Some(key), _) => key.clone(),
            (None, Some(new)) => {
                let rest = self.path.strip_prefix(prefix.unwrap_or_default()).unwrap_or(self.path);
                format!("{new}{rest}")
            }
            (None, None) => self.path.to_owned(),
        };
        let scheme = to.protocol.as_ref().map_or(self.scheme(), |protocol| protocol.as_str());
        let host = to.host_name.as_deref().unwrap_or(self.host);
        let status = to.http_redirect_code.as_deref().and_then(|code| code.parse::<StatusCode>().ok());
        let status = status.filter(|status| status.is_redirection()).unwrap_or(StatusCode::MOVED_PERMANENTLY);
        (status, format!("{scheme}://{host}/{}", encode(&key)))
    }
}

/// A key in a path.
fn encode(key: &str) -> String {
    use std::fmt::Write as _;
    let mut path = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/!$&'()*+,;=:@".contains(&byte) {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

/// A path's text, its escapes undone; `None`: it is not UTF-8.
pub(super) fn decode(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        let digit =
            |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(if byte == b'%' { digit(rest.next())? << 4 | digit(rest.next())? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

/// Reads keys as anybody may.
pub(super) struct Pages<'a> {
    pub(super) service: &'a S3Service,
    pub(super) peer: Option<Peer>,
    pub(super) notes: &'a Arc<Notes>,
}

impl Pages<'_> {
    async fn read(&self, method: Method, path: String, headers: HeaderMap) -> S3Result<Response<s3s::Body>> {
        let mut request = Request::new(s3s::Body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse::<Uri>().map_err(|error| s3_error!(error, InvalidURI))?;
        *request.headers_mut() = headers;
        request.extensions_mut().insert(Arc::clone(self.notes));
        if let Some(peer) = self.peer {
            request.extensions_mut().insert(peer);
        }
        let answer = SESSION_TOKEN.scope(None, self.service.call(request)).await;
        answer.map_err(|_| s3_error!(InternalError, "We encountered an internal error. Please try again."))
    }
}

/// Answers a visit to `bucket`'s website.
pub(super) async fn serve(
    objects: &Objects,
    pages: &Pages<'_>,
    bucket: &str,
    method: &Method,
    visit: &Visit<'_>,
    headers: &HeaderMap,
) -> S3Result<Response<s3s::Body>> {
    if method != Method::GET && method != Method::HEAD {
        return Ok(page(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"));
    }
    let access = objects.bucket_access(bucket).await.map_err(refused)?;
    let site: WebsiteConfiguration = match &access.website {
        Some(document) => read_xml(document)?,
        None => {
            return Err(s3_error!(
                NoSuchWebsiteConfiguration,
                "The specified bucket does not have a website configuration"
            ));
        }
    };
    let key = match visit.plan(&site) {
        Plan::Redirect(status, location) => return moved(status, &location),
        Plan::Key(key) => key,
    };
    let mut asked = headers.clone();
    asked.remove(AUTHORIZATION);
    asked.insert(HOST, HeaderValue::from_static("website"));
    let path = |key: &str| format!("/{bucket}/{}", encode(key));
    let answer = pages.read(method.clone(), path(&key), asked.clone()).await?;
    let status = answer.status();
    if !status.is_client_error() && !status.is_server_error() {
        let redirect = answer.headers().get(REDIRECT_OF_OBJECT).and_then(|to| to.to_str().ok());
        return match redirect {
            Some(to) if to.starts_with('/') => {
                moved(StatusCode::MOVED_PERMANENTLY, &format!("{}://{}{to}", visit.scheme(), visit.host))
            }
            Some(to) => moved(StatusCode::MOVED_PERMANENTLY, to),
            None => Ok(answer),
        };
    }
    let code = code_of(&answer);
    let mut plain = HeaderMap::new();
    plain.insert(HOST, HeaderValue::from_static("website"));
    // A folder that is asked for without its slash.
    if let Some(index) = &site.index_document
        && (status == StatusCode::NOT_FOUND || status == StatusCode::FORBIDDEN)
        && !visit.path.is_empty()
        && !visit.path.ends_with('/')
    {
        let inside = format!("{}/{}", visit.path, index.suffix);
        if pages.read(Method::HEAD, path(&inside), plain.clone()).await?.status().is_success() {
            return moved(StatusCode::FOUND, &format!("/{}/", encode(visit.path)));
        }
    }
    if let Some((status, location)) = visit.redirect(&site, Some(status)) {
        return moved(status, &location);
    }
    if let Some(document) = &site.error_document {
        let mut answer = pages.read(method.clone(), path(&document.key), plain).await?;
        if answer.status().is_success() {
            *answer.status_mut() = status;
            return Ok(answer);
        }
    }
    Ok(page(status, &code))
}

fn code_of(answer: &Response<s3s::Body>) -> String {
    let said = answer.body().bytes().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let code = said.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    // HEAD has no body that would say it.
    let by_status = if answer.status() == StatusCode::NOT_FOUND { "NoSuchKey" } else { "AccessDenied" };
    code.map_or(by_status, |(code, _)| code).to_owned()
}

/// An error as visitors see it. `code` is one of the door's own.
pub(super) fn page(status: StatusCode, code: &str) -> Response<s3s::Body> {
    let reason = status.canonical_reason().unwrap_or_default();
    let number = status.as_u16();
    let text = format!(
        "<html>\n<head><title>{number} {reason}</title></head>\n<body>\n<h1>{number} {reason}</h1>\n<ul>\n\
         <li>Code: {code}</li>\n</ul>\n<hr/>\n</body>\n</html>\n"
    );
    let mut response = Response::new(s3s::Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

fn moved(status: StatusCode, location: &str) -> S3Result<Response<s3s::Body>> {
    let mut response = Response::new(s3s::Body::empty());
    *response.status_mut() = status;
    let location = HeaderValue::from_str(location);
    let location =
        location.map_err(|_| s3_error!(InvalidRequest, "The redirect's location is no header."))?;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(xml: &str) -> WebsiteConfiguration {
        read_xml(format!("<WebsiteConfiguration>{xml}</WebsiteConfiguration>").as_bytes()).unwrap()
    }

    fn visit(path: &str) -> Visit<'_> {
        Visit { host: "b.site.example", is_tls: false, path }
    }

    #[test]
    fn a_label_before_a_website_domain_is_a_bucket() {
        let websites = Websites::new(&["site.example".to_owned()]);
        assert_eq!(websites.bucket("My-Bucket.site.example:9000"), Some("my-bucket".to_owned()));
        for host in ["site.example", ".site.example", "b.other.example", "localhost:9000", "[::1]:9000"] {
            assert_eq!(websites.bucket(host), None, "{host}");
        }
    }

    #[test]
    fn folders_have_an_index_and_rules_come_before_it() {
        let index = site("<IndexDocument><Suffix>index.html</Suffix></IndexDocument>");
        for (path, key) in [("", "index.html"), ("a/", "a/index.html"), ("a", "a"), ("a/b.txt", "a/b.txt")] {
            assert_eq!(visit(path).plan(&index), Plan::Key(key.to_owned()), "{path}");
        }
        let ruled = site(
            "<IndexDocument><Suffix>i</Suffix></IndexDocument><RoutingRules>\
             <RoutingRule><Condition><KeyPrefixEquals>docs/</KeyPrefixEquals></Condition>\
             <Redirect><ReplaceKeyPrefixWith>documents/</ReplaceKeyPrefixWith></Redirect></RoutingRule>\
             <RoutingRule><Condition><HttpErrorCodeReturnedEquals>404</HttpErrorCodeReturnedEquals></Condition>\
             <Redirect><HostName>example.com</HostName><Protocol>https</Protocol><ReplaceKeyWith>sorry now</ReplaceKeyWith>\
             <HttpRedirectCode>307</HttpRedirectCode></Redirect></RoutingRule></RoutingRules>",
        );
        let to = |status: u16, location: &str| (StatusCode::from_u16(status).unwrap(), location.to_owned());
        let (status, location) = to(301, "http://b.site.example/documents/a%20b");
        assert_eq!(visit("docs/a b").plan(&ruled), Plan::Redirect(status, location));
        assert_eq!(visit("x").plan(&ruled), Plan::Key("x".to_owned()), "a rule for errors waits for one");
        let not_found = Some(StatusCode::NOT_FOUND);
        assert_eq!(visit("x").redirect(&ruled, not_found), Some(to(307, "https://example.com/sorry%20now")));
        assert_eq!(visit("x").redirect(&ruled, Some(StatusCode::FORBIDDEN)), None);
    }

    #[test]
    fn a_site_can_send_everyone_elsewhere() {
        let all = site("<RedirectAllRequestsTo><HostName>example.com</HostName></RedirectAllRequestsTo>");
        let location = "http://example.com/a/b".to_owned();
        assert_eq!(visit("a/b").plan(&all), Plan::Redirect(StatusCode::MOVED_PERMANENTLY, location));
    }

    #[test]
    fn paths_are_decoded_or_refused() {
        assert_eq!(decode("a%20b/%C3%BC"), Some("a b/ü".to_owned()));
        for wrong in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }
}
