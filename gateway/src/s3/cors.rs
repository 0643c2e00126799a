//! Cross-origin requests: a bucket's rules, the browser's question before a request, the headers on its answer.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use s3s::dto::{CORSConfiguration, CORSRule};
use s3s::{S3Result, s3_error};

use super::documents::read_xml;
use super::errors::{custom, refused};
use crate::objects::{Objects, ObjectsError};

/// Rules of one configuration, as S3 bounds them.
const RULES_MAX: usize = 100;
const ID_CHARS_MAX: usize = 255;
const METHODS: [&str; 5] = ["GET", "PUT", "HEAD", "POST", "DELETE"];
/// Browsers cache per origin and per question.
const VARIES: &str = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method";

pub(super) fn check_rules(rules: &[CORSRule]) -> S3Result<()> {
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(s3_error!(MalformedXML, "A CORS configuration has 1 to {RULES_MAX} rules."));
    }
    for rule in rules {
        if rule.allowed_methods.is_empty() || rule.allowed_origins.is_empty() {
            return Err(s3_error!(MalformedXML, "Each CORSRule has an AllowedMethod and an AllowedOrigin."));
        }
        if rule.id.as_ref().is_some_and(|id| id.chars().count() > ID_CHARS_MAX) {
            return Err(s3_error!(
                MalformedXML,
                "The ID of a CORSRule has at most {ID_CHARS_MAX} characters."
            ));
        }
        if let Some(method) = rule.allowed_methods.iter().find(|method| !METHODS.contains(&method.as_str())) {
            let shown: String = method.chars().take(40).collect();
            return Err(s3_error!(
                InvalidRequest,
                "Found unsupported HTTP method in CORS config. Unsupported method is {shown}"
            ));
        }
        let headers = rule.allowed_headers.iter().flatten();
        for pattern in rule.allowed_origins.iter().chain(headers) {
            if pattern.matches('*').count() > 1 {
                let shown: String = pattern.chars().take(80).collect();
                return Err(s3_error!(
                    InvalidRequest,
                    "AllowedOrigin and AllowedHeader \"{shown}\" can not have more than one wildcard."
                ));
            }
        }
    }
    Ok(())
}

/// Whether `value` has the shape of `pattern`, which has at most one `*`.
fn fits(pattern: &str, value: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == value,
        Some((before, after)) => {
            value.len() >= before.len() + after.len() && value.starts_with(before) && value.ends_with(after)
        }
    }
}

/// The first rule for `origin`, `method` and all of `headers`, and the headers of the answer that it makes.
fn matching<'r>(
    rules: &'r [CORSRule],
    origin: &str,
    method: &str,
    headers: Option<&str>,
) -> Option<(&'r CORSRule, bool)> {
    rules.iter().find_map(|rule| {
        let origins = rule.allowed_origins.iter();
        let matched = origins.clone().find(|pattern| fits(pattern, origin))?;
        let asked = headers.unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
        let allows = |name: &str| {
            let name = name.to_ascii_lowercase();
            rule.allowed_headers.iter().flatten().any(|pattern| fits(&pattern.to_ascii_lowercase(), &name))
        };
        let is_allowed =
            rule.allowed_methods.iter().any(|allowed| allowed == method) && asked.into_iter().all(allows);
        is_allowed.then_some((rule, matched == "*"))
    })
}

fn answer_headers(
    (rule, is_for_all): (&CORSRule, bool),
    origin: &str,
    asked: Option<&str>,
) -> Vec<(HeaderName, HeaderValue)> {
    let join = |texts: &[String]| texts.join(", ");
    let mut all = vec![
        (ACCESS_CONTROL_ALLOW_ORIGIN, if is_for_all { "*".to_owned() } else { origin.to_owned() }),
        (ACCESS_CONTROL_ALLOW_METHODS, join(&rule.allowed_methods)),
        (VARY, VARIES.to_owned()),
    ];
    if !is_for_all {
        all.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, "true".to_owned()));
    }
    if let Some(asked) = asked {
        all.push((ACCESS_CONTROL_ALLOW_HEADERS, asked.to_ascii_lowercase()));
    }
    if let Some(exposed) = rule.expose_headers.as_deref().filter(|exposed| !exposed.is_empty()) {
        all.push((ACCESS_CONTROL_EXPOSE_HEADERS, join(exposed)));
    }
    if let Some(seconds) = rule.max_age_seconds {
        all.push((ACCESS_CONTROL_MAX_AGE, seconds.to_string()));
    }
    all.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value).ok()?))).collect()
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn rules(objects: &Objects, bucket: &str) -> Result<Option<CORSConfiguration>, ObjectsError> {
    let access = objects.bucket_access(bucket).await?;
    Ok(access.cors.as_ref().and_then(|document| read_xml(document).ok()))
}

/// Answers OPTIONS.
pub(super) async fn preflight(
    objects: &Objects,
    bucket: Option<&str>,
    headers: &HeaderMap,
) -> S3Result<Response<s3s::Body>> {
    let insufficient =
        || custom("BadRequest", 400, "Insufficient information. Origin request header needed.");
    let origin = text(headers, &ORIGIN).ok_or_else(insufficient)?;
    let method =
        text(headers, &ACCESS_CONTROL_REQUEST_METHOD).filter(|method| METHODS.contains(method)).ok_or_else(
            || custom("BadRequest", 400, "Invalid Access-Control-Request-Method: it names no method."),
        )?;
    let asked = text(headers, &ACCESS_CONTROL_REQUEST_HEADERS);
    let forbidden = |why: &str| custom("AccessForbidden", 403, format!("CORSResponse: {why}"));
    let bucket = bucket.ok_or_else(|| forbidden("This CORS request is not allowed: it names no bucket."))?;
    let configuration = rules(objects, bucket).await.map_err(refused)?;
    let configuration = configuration.ok_or_else(|| forbidden("CORS is not enabled for this bucket."))?;
    let rule = matching(&configuration.cors_rules, origin, method, asked).ok_or_else(|| {
        forbidden(
            "This CORS request is not allowed. This is usually because the evaluation of Origin, request method / \
             Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted by the resource's \
             CORS spec.",
        )
    })?;
    let mut response = Response::new(s3s::Body::empty());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().extend(answer_headers(rule, origin, asked));
    Ok(response)
}

/// What a browser needs to see on the answer of a request that came from another origin.
pub(super) async fn on_answer(
    objects: &Objects,
    bucket: &str,
    method: &str,
    headers: &HeaderMap,
) -> Vec<(HeaderName, HeaderValue)> {
    let Some(origin) = text(headers, &ORIGIN) else { return Vec::new() };
    let Ok(Some(configuration)) = rules(objects, bucket).await else { return Vec::new() };
    let method = text(headers, &ACCESS_CONTROL_REQUEST_METHOD).unwrap_or(method);
    let asked = text(headers, &ACCESS_CONTROL_REQUEST_HEADERS);
    matching(&configuration.cors_rules, origin, method, asked)
        .map(|rule| answer_headers(rule, origin, asked))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_stands_for_any_run() {
        for (pattern, value, is_fit) in [
            ("*", "https://a", true),
            ("https://*.example.com", "https://www.example.com", true),
            ("https://*.example.com", "https://example.com", false),
            ("*suffix", "foo.suffix", true),
            ("start*end", "startend", true),
            ("start*end", "starend", false),
            ("ab*ba", "aba", false),
            ("prefix*", "prefix", true),
            ("exact", "exact", true),
            ("exact", "Exact", false),
        ] {
            assert_eq!(fits(pattern, value), is_fit, "{pattern} {value}");
        }
    }
}
