//! The security token service: credentials that end by themselves.
//!
//! | action | lends |
//! |---|---|
//! | `GetSessionToken` | the caller's own rights |
//! | `AssumeRole` | those of a role whose trust names the caller; without `RoleArn`, or with the caller's own: its own |
//! | `AssumeRoleWithWebIdentity` | those of a role whose trust names the issuer that signed the token |
//!
//! Each may be narrowed by `Policy`. `GetCallerIdentity` lends nothing.

use makai_raft::facts::Timestamp;
use makai_raft::facts::tenant::TenantId;
use s3s::{S3Error, S3Result, s3_error};

use super::xml::{self, leaf, node};
use super::{Call, internal, validation};
use crate::identity::directory::{Role, name_of};
use crate::identity::issuers::{Claims, TokenError};
use crate::identity::session::{Lender, NewSession, RoleSession, SESSION_POLICY_BYTES_MAX};
use crate::policy::condition::Context;
use crate::policy::document::Kind;
use crate::policy::principal::Meant;
use crate::policy::{Account, Policy, Requester};
use crate::s3::access::{anonymous, denied};
use crate::s3::errors::{custom, unidentified};

/// Seconds that credentials last: at least, without being asked for, at most.
const ROLE_SECONDS: [u64; 3] = [900, 3600, 43_200];
const TOKEN_SECONDS: [u64; 3] = [900, 43_200, 129_600];
/// Credentials that temporary ones assume a role for last no longer.
const CHAINED_SECONDS_MAX: u64 = 3600;

const ACTIONS: [&str; 4] =
    ["AssumeRole", "AssumeRoleWithWebIdentity", "GetCallerIdentity", "GetSessionToken"];

pub(super) fn known(action: &str) -> Option<&'static str> {
    ACTIONS.into_iter().find(|known| *known == action)
}

pub(super) async fn answer(call: &Call<'_>, action: &str) -> S3Result<String> {
    if action == "AssumeRoleWithWebIdentity" {
        return with_web_identity(call).await;
    }
    let caller = call.who.caller.as_ref().ok_or_else(anonymous)?;
    match action {
        "GetCallerIdentity" => caller_identity(call),
        "GetSessionToken" => {
            refuse_sessions(call)?;
            let seconds = duration(call, TOKEN_SECONDS)?;
            let lender = Lender::Key(caller.access_key_id.clone());
            let session = lend(call, lender, None, seconds)?;
            Ok(xml::answer(action, xml::STS, &credentials(&session)))
        }
        _ => match call.field("RoleArn").filter(|arn| call.who.requester().arn().as_deref() != Some(*arn)) {
            Some(arn) => assume(call, arn).await,
            None => {
                refuse_sessions(call)?;
                let seconds = duration(call, ROLE_SECONDS)?;
                let lender = Lender::Key(caller.access_key_id.clone());
                let session = lend(call, lender, policy(call)?, seconds)?;
                Ok(xml::answer(action, xml::STS, &credentials(&session)))
            }
        },
    }
}

fn refuse_sessions(call: &Call<'_>) -> S3Result<()> {
    if call.who.is_session() {
        return Err(s3_error!(
            AccessDenied,
            "Temporary credentials lend no others: use the key they came from, or name a role."
        ));
    }
    Ok(())
}

fn duration(call: &Call<'_>, [least, default, most]: [u64; 3]) -> S3Result<u64> {
    call.number("DurationSeconds", least, default, most)
}

/// What narrows the session.
fn policy(call: &Call<'_>) -> S3Result<Option<String>> {
    let Some(text) = call.field("Policy") else { return Ok(None) };
    if text.len() > SESSION_POLICY_BYTES_MAX {
        return Err(custom("PackedPolicyTooLarge", 400, "The session's policy is too large."));
    }
    Policy::parse(text.as_bytes(), Kind::Identity)
        .map_err(|error| custom("MalformedPolicyDocument", 400, error.to_string()))?;
    Ok(Some(text.to_owned()))
}

fn lend(call: &Call<'_>, lender: Lender, policy: Option<String>, seconds: u64) -> S3Result<NewSession> {
    let until = Timestamp(call.now.0.saturating_add(seconds * 1000));
    let session = call.guard.identity.lend(lender, policy, until);
    session.map_err(|error| internal(&error.to_string()))
}

fn credentials(session: &NewSession) -> String {
    let inside = [
        leaf("AccessKeyId", &session.access_key_id),
        leaf("SecretAccessKey", session.secret.expose()),
        leaf("SessionToken", &session.token),
        leaf("Expiration", xml::time(session.until)),
    ];
    node("Credentials", inside.concat())
}

fn caller_identity(call: &Call<'_>) -> S3Result<String> {
    let (arn, id) = match call.who.requester() {
        Requester::Anonymous | Requester::Federated { .. } => return Err(anonymous()),
        Requester::Root(account) => (format!("arn:aws:iam::{}:root", account.number()), account.number()),
        Requester::User { account, path, name } => (
            format!("arn:aws:iam::{}:user{path}{name}", account.number()),
            format!("{}:{name}", account.number()),
        ),
        Requester::Role { account, name, session, .. } => (
            format!("arn:aws:sts::{}:assumed-role/{name}/{session}", account.number()),
            format!("{name}:{session}"),
        ),
    };
    let account = call.who.requester().account().map(|account| account.number()).unwrap_or_default();
    let inside = [leaf("Arn", arn), leaf("UserId", id), leaf("Account", account)];
    Ok(xml::answer("GetCallerIdentity", xml::STS, &inside.concat()))
}

/// A role that a call names.
struct Named {
    tenant: TenantId,
    tenant_name: String,
    name: String,
    /// Its ARN, as policies name it.
    arn: String,
    role: Role,
}

impl Named {
    /// One that does not exist is told as one that may not be assumed: who asks learns nothing of others' roles.
    async fn find(call: &Call<'_>, arn: &str) -> S3Result<Self> {
        let refused = || {
            let shown: String = arn.chars().take(200).collect();
            s3_error!(AccessDenied, "There is no role {shown}, or its trust does not name the caller.")
        };
        let rest = arn.strip_prefix("arn:aws:iam::").ok_or_else(refused)?;
        let (account, what) = rest.split_once(':').ok_or_else(refused)?;
        let name = what.strip_prefix("role/").map(name_of).ok_or_else(refused)?;
        // Without an account, the caller's is meant.
        let tenant = match (account, call.who.requester().account()) {
            ("", Some(own)) => TenantId(own.id),
            _ => TenantId(account.parse().map_err(|_| refused())?),
        };
        let identity = &call.guard.identity;
        let directory = identity.directory(tenant).await;
        let directory = match directory {
            Err(crate::identity::IdentityError::UnknownTenant(_)) => return Err(refused()),
            other => other.map_err(|error| unidentified(&error))?,
        };
        let arn = format!("arn:aws:iam::{tenant:012}:{what}", tenant = tenant.0);
        let (name, role) = directory.role(name).ok_or_else(refused)?;
        let role = role.clone();
        let tenant_name = identity.tenant_name(tenant).await.map_err(|error| unidentified(&error))?;
        Ok(Self { tenant, tenant_name, name: name.to_owned(), arn, role })
    }

    fn account(&self) -> Account<'_> {
        Account { id: self.tenant.0, name: &self.tenant_name }
    }

    /// The way in which the role's trust names a requester; nothing denies it.
    fn trusts(&self, requester: &Requester<'_>, action: &str, context: &Context) -> S3Result<Option<Meant>> {
        let trust = Policy::parse(self.role.trust.as_bytes(), Kind::Trust);
        let trust = trust.map_err(|error| internal(&format!("the trust of a role is damaged: {error}")))?;
        let opinion = trust.opinion(requester, action, "", context);
        Ok(opinion.allows.filter(|_| !opinion.is_denied))
    }

    fn lend(&self, call: &Call<'_>, seconds_max: u64) -> S3Result<(NewSession, String)> {
        let name = call.required("RoleSessionName")?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
        if !(2..=64).contains(&name.len()) || !name.bytes().all(is_name) {
            return Err(validation("RoleSessionName has 2 to 64 of A-Z, a-z, 0-9 and _+=,.@-"));
        }
        let [least, default, most] = ROLE_SECONDS;
        let most = self.role.session_seconds_max.clamp(least, most).min(seconds_max);
        let seconds = call.number("DurationSeconds", least, default.min(most), most)?;
        let lender = Lender::Role(RoleSession {
            tenant: self.tenant,
            role: self.name.clone(),
            role_made_ms: self.role.created_ms,
            name: name.to_owned(),
        });
        let session = lend(call, lender, policy(call)?, seconds)?;
        let number = self.account().number();
        let user = [
            leaf("AssumedRoleId", format!("{}:{name}", self.name)),
            leaf("Arn", format!("arn:aws:sts::{number}:assumed-role/{}/{name}", self.name)),
        ];
        let user = node("AssumedRoleUser", user.concat());
        Ok((session, user))
    }
}

async fn assume(call: &Call<'_>, arn: &str) -> S3Result<String> {
    const ACTION: &str = "sts:AssumeRole";
    let role = Named::find(call, arn).await?;
    let requester = call.who.requester();
    let mut context = call.context.clone();
    if let Some(id) = call.field("ExternalId") {
        context.add("sts:ExternalId", id);
    }
    if let Some(name) = call.field("RoleSessionName") {
        context.add("sts:RoleSessionName", name);
    }
    let is_own = requester.account().is_some_and(|account| account.id == role.tenant.0);
    let is_allowed = match role.trusts(&requester, ACTION, &context)? {
        None | Some(Meant::No) => false,
        // Named itself, within its own account: nobody else need allow it.
        Some(Meant::Itself) if is_own => true,
        Some(_) => call.who.may(ACTION, &role.arn, &context),
    };
    if !is_allowed {
        let who = requester.arn().unwrap_or_default();
        return Err(s3_error!(
            AccessDenied,
            "User: {who} is not authorized to perform: {ACTION} on resource: {arn}, or there is no such role"
        ));
    }
    let seconds_max = if call.who.is_session() { CHAINED_SECONDS_MAX } else { ROLE_SECONDS[2] };
    let (session, user) = role.lend(call, seconds_max)?;
    Ok(xml::answer("AssumeRole", xml::STS, &[credentials(&session), user].concat()))
}

fn token_error(error: &TokenError) -> S3Error {
    let code = match error {
        TokenError::Invalid(_) | TokenError::Audience => "InvalidIdentityToken",
        TokenError::Expired => "ExpiredTokenException",
        TokenError::Issuer(_) => "IDPCommunicationError",
    };
    custom(code, 400, error.to_string())
}

async fn with_web_identity(call: &Call<'_>) -> S3Result<String> {
    const ACTION: &str = "sts:AssumeRoleWithWebIdentity";
    let token = call.required("WebIdentityToken")?;
    let arn = call.required("RoleArn")?;
    let said = Claims::unverified(token).map_err(|error| token_error(&error))?;
    let role = Named::find(call, arn).await?;
    let identity = &call.guard.identity;
    let issuer = said.iss.split_once("://").map_or(said.iss.as_str(), |(_, rest)| rest);
    let issuer = issuer.trim_end_matches('/');
    let directory = identity.directory(role.tenant).await.map_err(|error| unidentified(&error))?;
    // What another scheme vouches for, another may have written.
    let known = directory.issuers.get(issuer).filter(|known| known.url == said.iss).ok_or_else(|| {
        custom(
            "InvalidIdentityToken",
            400,
            "No OpenIDConnect provider found in your account for the token's issuer",
        )
    })?;
    let claims = identity.verify_token(token, &known.clients, call.now).await;
    let claims = claims.map_err(|error| token_error(&error))?;
    let audiences = claims.audiences();
    let mut context = call.context.clone();
    context.add(&format!("{issuer}:sub"), claims.sub.as_str());
    for audience in &audiences {
        context.add(&format!("{issuer}:aud"), audience.as_str());
    }
    if let Some(name) = call.field("RoleSessionName") {
        context.add("sts:RoleSessionName", name);
    }
    let requester = Requester::Federated { account: role.account(), issuer };
    if role.trusts(&requester, ACTION, &context)? != Some(Meant::Itself) {
        return Err(denied());
    }
    let (session, user) = role.lend(call, ROLE_SECONDS[2])?;
    let inside = [
        leaf("SubjectFromWebIdentityToken", &claims.sub),
        leaf(
            "Audience",
            audiences.iter().find(|audience| known.clients.contains(*audience)).cloned().unwrap_or_default(),
        ),
        credentials(&session),
        user,
        leaf("Provider", format!("arn:aws:iam::{}:oidc-provider/{issuer}", role.account().number())),
    ];
    Ok(xml::answer("AssumeRoleWithWebIdentity", xml::STS, &inside.concat()))
}
