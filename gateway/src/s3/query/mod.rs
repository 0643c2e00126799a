//! The query APIs at the door: temporary credentials (STS) and users, groups, roles and their policies (IAM), as AWS's
//! tools call them. A call is a form, posted to `/`.
//!
//! ```text
//! POST / ─ bounded ─> signature (of any of the services' names) ─> who ─> action ─ may it? ─> XML
//! ```
//!
//! | room        | holds                                                            |
//! |-------------|------------------------------------------------------------------|
//! | `signature` | SigV4 over a body that is at hand                                |
//! | `sts`       | credentials that end by themselves                               |
//! | `iam`       | who there is, and what each may                                  |
//! | `xml`       | answers                                                          |

mod iam;
mod signature;
mod sts;
mod xml;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Response, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use makai_raft::facts::Timestamp;
use s3s::{S3Error, S3Result, s3_error};

use super::access::{Guard, Peer, Who, anonymous, role_gone, session_of};
use super::body::Notes;
use super::errors::{custom, unidentified};
use crate::identity::session::Lender;
use crate::policy::condition::Context;

const FORM: &str = "application/x-www-form-urlencoded";
/// Bytes of a call: a policy of 20 KiB, every byte of it escaped, fits.
const BODY_BYTES_MAX: usize = 128 * 1024;
/// How long a call may take to arrive.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
const FIELDS_MAX: usize = 1000;

/// Whether a request is a call of these APIs.
pub(super) fn is_match(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    method == Method::POST && uri.path() == "/" && content_type.starts_with(FORM.as_bytes())
}

/// A call, understood as far as all actions need it.
struct Call<'a> {
    guard: &'a Guard,
    who: Who,
    fields: BTreeMap<String, String>,
    /// What policies are told of it.
    context: Context,
    now: Timestamp,
}

impl Call<'_> {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    fn required(&self, name: &str) -> S3Result<&str> {
        let missing =
            || custom("ValidationError", 400, format!("The call lacks the required parameter {name}."));
        self.field(name).filter(|value| !value.is_empty()).ok_or_else(missing)
    }

    /// A number within bounds, or its default.
    fn number(&self, name: &str, least: u64, default: u64, most: u64) -> S3Result<u64> {
        let Some(text) = self.field(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| validation(format!("{name} is {least} to {most}.")))
    }

    /// The values of `PREFIX.member.1` and so on.
    fn members(&self, prefix: &str) -> Vec<&str> {
        let at = |number: usize| self.field(&format!("{prefix}.member.{number}"));
        (1..).map_while(at).collect()
    }

    /// Keys and values of `Tags.member.1.Key` and so on.
    fn tags(&self) -> S3Result<BTreeMap<String, String>> {
        let mut tags = BTreeMap::new();
        for number in 1..=51 {
            let Some(key) = self.field(&format!("Tags.member.{number}.Key")) else { break };
            let value = self.field(&format!("Tags.member.{number}.Value")).unwrap_or_default();
            if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
                return Err(validation("A tag's key has 1 to 128 characters, its value at most 256."));
            }
            tags.insert(key.to_owned(), value.to_owned());
        }
        if tags.len() > 50 {
            return Err(custom("LimitExceeded", 409, "There are at most 50 tags."));
        }
        Ok(tags)
    }
}

fn validation(why: impl Into<String>) -> S3Error {
    custom("ValidationError", 400, why)
}

/// What a caller may know of why something inside failed.
fn internal(why: &str) -> S3Error {
    tracing::error!(why, "a call failed inside");
    custom("ServiceFailure", 500, "We encountered an internal error. Please report the request id.")
}

/// Answers a call.
pub(super) async fn call(
    guard: &Guard,
    head: &http::request::Parts,
    body: Incoming,
    notes: &Notes,
) -> S3Result<Response<s3s::Body>> {
    let read = tokio::time::timeout(BODY_TIME_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let read = read.map_err(|_| s3_error!(RequestTimeout, "The call's body took too long to arrive."))?;
    let body: Bytes = match read {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(s3_error!(MaxMessageLengthExceeded, "A call has at most {BODY_BYTES_MAX} bytes."));
        }
        Err(_) => return Err(s3_error!(IncompleteBody, "The call's body ended early.")),
    };
    let now = guard.objects.time();
    let (who, service) = identify(guard, head, &body, now).await?;
    let fields: BTreeMap<String, String> =
        form_urlencoded::parse(&body).into_owned().take(FIELDS_MAX).collect();
    let peer = head.extensions.get::<Peer>().copied();
    let context = who.context(&head.headers, peer, now);
    let call = Call { guard, who, fields, context, now };
    let action = call.required("Action")?.to_owned();
    let known = sts::known(&action).or_else(|| iam::known(&action));
    let _ = notes.service.set(if iam::known(&action).is_some() { "iam" } else { "sts" });
    if let Some(requester) = call.who.logged_as() {
        let _ = notes.requester.set(requester);
    }
    let _ = notes.operation.set(known.unwrap_or("UnknownAction").to_owned());
    let answer = if sts::known(&action).is_some() {
        sts::answer(&call, &action).await?
    } else if iam::known(&action).is_some() {
        match service.as_deref() {
            Some("iam") => {}
            None => return Err(anonymous()),
            // What is signed for S3 may leave its body out of the signature.
            Some(_) => {
                return Err(s3_error!(
                    AuthorizationHeaderMalformed,
                    "The authorization header is malformed: sign this call for the service iam."
                ));
            }
        }
        iam::answer(&call, &action, notes).await?
    } else {
        let shown: String = action.chars().take(60).collect();
        return Err(custom(
            "InvalidAction",
            400,
            format!(
                "Could not find operation {shown}: of STS and IAM, this server has what the manual lists."
            ),
        ));
    };
    let mut response = Response::new(s3s::Body::from(answer));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    Ok(response)
}

/// Who signed the call, for which service; nobody: anonymous.
async fn identify(
    guard: &Guard,
    head: &http::request::Parts,
    body: &[u8],
    now: Timestamp,
) -> S3Result<(Who, Option<String>)> {
    let Some(signed) = signature::Signed::read(head)? else { return Ok((guard.who(None).await?, None)) };
    signed.check_time(now)?;
    let key = signed.access_key;
    let session = session_of(&guard.identity, key, now)?;
    let secret = match &session {
        None => guard.identity.secret(key).await.map_err(|error| unidentified(&error))?,
        Some(session) => {
            if let Lender::Role(role) = &session.lender {
                let role = guard.identity.role(role, key).await.map_err(|error| unidentified(&error))?;
                role.ok_or_else(role_gone)?;
            }
            session.secret.clone()
        }
    };
    signed.verify(head, body, secret.expose())?;
    Ok((guard.who(Some(key)).await?, Some(signed.service.to_owned())))
}

/// An error of the door in the words of these APIs.
pub(super) fn reword(headers: &mut HeaderMap, body: &s3s::Body) -> s3s::Body {
    let said = body.bytes().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let element = |name: &str| {
        let rest = said.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once(&format!("</{name}>"))?.0)
    };
    let code = match element("Code").unwrap_or("ServiceFailure") {
        "InvalidAccessKeyId" | "InvalidToken" => "InvalidClientTokenId",
        "InternalError" => "ServiceFailure",
        "SlowDown" => "Throttling",
        code => code,
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    s3s::Body::from(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ErrorResponse xmlns=\"{}\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>{}</Message></Error><RequestId>{}</RequestId></ErrorResponse>",
        xml::IAM,
        element("Message").unwrap_or_default(),
        element("RequestId").unwrap_or_default(),
    ))
}
