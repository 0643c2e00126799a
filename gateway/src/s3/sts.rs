//! Temporary credentials: the calls of AWS's security token service that need no roles.
//!
//! `GetSessionToken` lends the caller's own rights; `AssumeRole` lends them, too, narrowed by `Policy` where it is
//! given: its `RoleArn` names the caller itself, or is left out.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Uri};
use makai_raft::facts::Timestamp;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::access::{Who, anonymous};
use super::errors::custom;
use super::headers::timestamp;
use crate::identity::Identity;
use crate::identity::session::{NewSession, SESSION_POLICY_BYTES_MAX};
use crate::policy::Policy;
use crate::policy::document::Kind;

const FORM: &str = "application/x-www-form-urlencoded";
const BODY_BYTES_MAX: usize = 8192;
/// Seconds that credentials last: at least, without being asked for, at most.
const ROLE_SECONDS: [u64; 3] = [900, 3600, 43_200];
const TOKEN_SECONDS: [u64; 3] = [900, 43_200, 129_600];

pub(super) fn is_match(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    method == Method::POST && uri.path() == "/" && content_type.starts_with(FORM.as_bytes())
}

/// Answers a call by `who`.
pub(super) async fn call(
    identity: &Identity,
    who: &Who,
    mut request: S3Request<s3s::Body>,
    now: Timestamp,
) -> S3Result<S3Response<s3s::Body>> {
    let caller = who.caller.as_ref().ok_or_else(anonymous)?;
    if who.is_session() {
        return Err(s3_error!(
            AccessDenied,
            "Temporary credentials lend no others: use the key they came from."
        ));
    }
    let body = request.input.store_all_limited(BODY_BYTES_MAX).await;
    let body = body.map_err(|_| s3_error!(MaxMessageLengthExceeded, "A call has {BODY_BYTES_MAX} bytes."))?;
    let fields: Vec<(String, String)> = form_urlencoded::parse(&body).into_owned().collect();
    let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
    let (action, bounds) = match field("Action") {
        Some("GetSessionToken") => ("GetSessionToken", TOKEN_SECONDS),
        Some("AssumeRole") => ("AssumeRole", ROLE_SECONDS),
        _ => {
            return Err(s3_error!(
                NotImplemented,
                "Of the security token service, GetSessionToken and AssumeRole are implemented."
            ));
        }
    };
    let invalid = |why: String| custom("ValidationError", 400, why);
    let [least, default, most] = bounds;
    let seconds = field("DurationSeconds").map_or(Some(default), |seconds| seconds.parse().ok());
    let seconds = seconds.filter(|seconds| (least..=most).contains(seconds));
    let seconds = seconds.ok_or_else(|| invalid(format!("DurationSeconds is {least} to {most}.")))?;
    let own = who.requester().arn();
    if let Some(role) =
        field("RoleArn").filter(|role| action == "AssumeRole" && own.as_deref() != Some(*role))
    {
        let shown: String = role.chars().take(100).collect();
        return Err(s3_error!(
            AccessDenied,
            "There is no role {shown}: leave RoleArn out to lend your own rights, which are those of {}.",
            own.unwrap_or_default()
        ));
    }
    let policy = field("Policy").filter(|_| action == "AssumeRole").map(str::to_owned);
    if let Some(text) = &policy {
        if text.len() > SESSION_POLICY_BYTES_MAX {
            return Err(custom("PackedPolicyTooLarge", 400, "The session's policy is too large."));
        }
        Policy::parse(text.as_bytes(), Kind::Identity)
            .map_err(|error| custom("MalformedPolicyDocument", 400, error.to_string()))?;
    }
    let until = Timestamp(now.0 + seconds * 1000);
    let session = identity.lend(&caller.access_key_id, policy, until);
    let session = session.map_err(|error| s3_error!(error, InternalError, "No session could be made."))?;
    let mut response = S3Response::new(s3s::Body::from(answer(action, &session)));
    response.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    Ok(response)
}

fn answer(action: &str, session: &NewSession) -> String {
    let mut until = Vec::new();
    // A time that cannot be written is left out.
    let _ = timestamp(session.until).format(s3s::dto::TimestampFormat::DateTime, &mut until);
    let NewSession { access_key_id, secret, token, .. } = session;
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response \
         xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
         <AccessKeyId>{access_key_id}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>\
         <SessionToken>{token}</SessionToken><Expiration>{}</Expiration></Credentials></{action}Result>\
         </{action}Response>",
        secret.expose(),
        String::from_utf8_lossy(&until),
    )
}
