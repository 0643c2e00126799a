//! Identity and access management: users and their keys, groups, roles, policies, issuers of identities.
//!
//! ```text
//! call ─ may the caller's policies do it to this name? ─> users and keys: facts; all else: the tenant's directory
//! ```
//!
//! | room       | holds                                                       |
//! |------------|-------------------------------------------------------------|
//! | `users`    | users and their access keys                                 |
//! | `groups`   | groups and who is in them                                   |
//! | `roles`    | roles and who may assume them                               |
//! | `held`     | policies of users, groups and roles: inline and attached    |
//! | `policies` | policies that can be attached, and their versions           |
//! | `issuers`  | OpenID Connect providers                                    |
//!
//! An account is a tenant: its own keys may do everything, users what their policies say. Names differ
//! by more than their case. A change counts at once on the gateway that made it, and within [`CACHE_TTL`](crate::identity::CACHE_TTL) on others.

mod groups;
mod held;
mod issuers;
mod policies;
mod roles;
mod users;

use makai_raft::facts::Timestamp;
use makai_raft::facts::command::Refusal;
use makai_raft::facts::tenant::TenantId;
use makai_raft::handle::MetaError;
use ring::digest;
use s3s::{S3Error, S3Result, s3_error};

use super::xml::{self, leaf, list};
use super::{Call, internal, validation};
use crate::identity::directory::{Directory, path_or_root};
use crate::identity::{Caller, ChangeError};
use crate::policy::Policy;
use crate::policy::document::Kind;
use crate::s3::access::anonymous;
use crate::s3::body::Notes;
use crate::s3::errors::{custom, unidentified};

/// Bytes of an inline or attached policy.
const POLICY_BYTES_MAX: usize = 10 * 1024;
/// Groups, roles or shared policies of one tenant.
const ENTRIES_MAX: usize = 1000;
/// Policies attached to, or inline in, one user, group or role.
const HELD_MAX: usize = 20;
const PATH_BYTES_MAX: usize = 512;

const ACTIONS: [&str; 79] = [
    "AddClientIDToOpenIDConnectProvider",
    "AddUserToGroup",
    "AttachGroupPolicy",
    "AttachRolePolicy",
    "AttachUserPolicy",
    "CreateAccessKey",
    "CreateGroup",
    "CreateOpenIDConnectProvider",
    "CreatePolicy",
    "CreatePolicyVersion",
    "CreateRole",
    "CreateUser",
    "DeleteAccessKey",
    "DeleteGroup",
    "DeleteGroupPolicy",
    "DeleteOpenIDConnectProvider",
    "DeletePolicy",
    "DeletePolicyVersion",
    "DeleteRole",
    "DeleteRolePolicy",
    "DeleteUser",
    "DeleteUserPolicy",
    "DetachGroupPolicy",
    "DetachRolePolicy",
    "DetachUserPolicy",
    "GetAccessKeyLastUsed",
    "GetAccountSummary",
    "GetGroup",
    "GetGroupPolicy",
    "GetOpenIDConnectProvider",
    "GetPolicy",
    "GetPolicyVersion",
    "GetRole",
    "GetRolePolicy",
    "GetUser",
    "GetUserPolicy",
    "ListAccessKeys",
    "ListAccountAliases",
    "ListAttachedGroupPolicies",
    "ListAttachedRolePolicies",
    "ListAttachedUserPolicies",
    "ListEntitiesForPolicy",
    "ListGroupPolicies",
    "ListGroups",
    "ListGroupsForUser",
    "ListInstanceProfilesForRole",
    "ListMFADevices",
    "ListOpenIDConnectProviders",
    "ListPolicies",
    "ListPolicyVersions",
    "ListRolePolicies",
    "ListRoleTags",
    "ListRoles",
    "ListSSHPublicKeys",
    "ListServiceSpecificCredentials",
    "ListSigningCertificates",
    "ListUserPolicies",
    "ListUserTags",
    "ListUsers",
    "ListVirtualMFADevices",
    "PutGroupPolicy",
    "PutRolePolicy",
    "PutUserPolicy",
    "RemoveClientIDFromOpenIDConnectProvider",
    "RemoveUserFromGroup",
    "SetDefaultPolicyVersion",
    "TagRole",
    "TagUser",
    "UntagRole",
    "UntagUser",
    "UpdateAccessKey",
    "UpdateAssumeRolePolicy",
    "UpdateGroup",
    "UpdateOpenIDConnectProviderThumbprint",
    "UpdateRole",
    "UpdateRoleDescription",
    "UpdateUser",
    "GetLoginProfile",
    "DeleteLoginProfile",
];

pub(super) fn known(action: &str) -> Option<&'static str> {
    ACTIONS.into_iter().find(|known| *known == action)
}

/// A call of a known caller, about its own account.
struct Own<'a> {
    call: &'a Call<'a>,
    tenant: TenantId,
    tenant_name: &'a str,
    /// The account's number, as ARNs have it.
    number: String,
}

pub(super) async fn answer(call: &Call<'_>, action: &str, notes: &Notes) -> S3Result<String> {
    let Caller { tenant, tenant_name, .. } = call.who.caller.as_ref().ok_or_else(anonymous)?;
    let own = Own { call, tenant: *tenant, tenant_name, number: format!("{:012}", tenant.0) };
    let _ = notes.target.set(own.authorize(action).await?);
    if let Some((verb, of)) = held::parse(action) {
        return held::answer(&own, action, verb, of).await;
    }
    let result = match action {
        "CreateUser"
        | "GetUser"
        | "ListUsers"
        | "DeleteUser"
        | "UpdateUser"
        | "TagUser"
        | "UntagUser"
        | "ListUserTags"
        | "CreateAccessKey"
        | "ListAccessKeys"
        | "UpdateAccessKey"
        | "DeleteAccessKey"
        | "GetAccessKeyLastUsed" => users::answer(&own, action).await?,
        "CreateGroup"
        | "GetGroup"
        | "ListGroups"
        | "DeleteGroup"
        | "UpdateGroup"
        | "AddUserToGroup"
        | "RemoveUserFromGroup"
        | "ListGroupsForUser" => groups::answer(&own, action).await?,
        "CreateRole"
        | "GetRole"
        | "ListRoles"
        | "DeleteRole"
        | "UpdateRole"
        | "UpdateRoleDescription"
        | "UpdateAssumeRolePolicy"
        | "TagRole"
        | "UntagRole"
        | "ListRoleTags" => roles::answer(&own, action).await?,
        "GetAccountSummary" => own.summary().await?,
        "ListAccountAliases" => {
            [list("AccountAliases", [xml_text(own.tenant_name)]), leaf("IsTruncated", "false")].concat()
        }
        // What AWS knows of users and is not known here: none.
        "ListInstanceProfilesForRole" => nothing("InstanceProfiles"),
        "ListMFADevices" => nothing("MFADevices"),
        "ListVirtualMFADevices" => nothing("VirtualMFADevices"),
        "ListSSHPublicKeys" => nothing("SSHPublicKeys"),
        "ListSigningCertificates" => nothing("Certificates"),
        "ListServiceSpecificCredentials" => list("ServiceSpecificCredentials", []),
        "GetLoginProfile" | "DeleteLoginProfile" => {
            return Err(custom("NoSuchEntity", 404, "Users have access keys here, and no passwords."));
        }
        _ if action.contains("OpenIDConnect") => issuers::answer(&own, action).await?,
        _ => policies::answer(&own, action).await?,
    };
    Ok(xml::answer(action, xml::IAM, &result))
}

fn nothing(name: &str) -> String {
    [list(name, []), leaf("IsTruncated", "false")].concat()
}

fn xml_text(text: &str) -> String {
    leaf("x", text).trim_start_matches("<x>").trim_end_matches("</x>").to_owned()
}

impl Own<'_> {
    /// Whether the caller's policies let it do this; gives the ARN of what it is done to.
    async fn authorize(&self, action: &str) -> S3Result<String> {
        let directory = self.call.guard.identity.directory(self.tenant).await;
        let directory = directory.map_err(|error| unidentified(&error))?;
        let named = |field: &str, kind: &str| {
            let name = self.call.field(field)?;
            let (path, name) = match kind {
                "user" => (directory.path_of_user(name), name),
                "group" => directory.group(name).map_or(("", name), |(name, group)| (&*group.path, name)),
                "role" => directory.role(name).map_or(("", name), |(name, role)| (&*role.path, name)),
                _ => (self.call.field("Path").unwrap_or_default(), name),
            };
            // Of what is being made, the path is the one that it shall have.
            let path =
                if action.starts_with("Create") { self.call.field("Path").unwrap_or(path) } else { path };
            Some(self.arn(kind, path, name))
        };
        let own_user = || {
            let name = self.call.who.user_name()?;
            Some(self.arn("user", directory.path_of_user(name), name))
        };
        let given = |field: &str| self.call.field(field).map(str::to_owned);
        let is_of_user =
            ["GetUser", "CreateAccessKey", "ListAccessKeys", "UpdateAccessKey", "DeleteAccessKey"];
        let resource = match action {
            // Who joins or leaves a group changes the group.
            _ if action.ends_with("Group") || action.contains("GroupP") => named("GroupName", "group"),
            _ => named("RoleName", "role").or_else(|| named("UserName", "user")),
        };
        let resource = resource
            .or_else(|| given("PolicyArn"))
            .or_else(|| given("OpenIDConnectProviderArn"))
            .or_else(|| named("PolicyName", "policy"))
            .or_else(|| own_user().filter(|_| is_of_user.contains(&action)))
            .unwrap_or_else(|| "*".to_owned());
        if self.call.who.may(&format!("iam:{action}"), &resource, &self.call.context) {
            return Ok(resource);
        }
        let who = self.call.who.requester().arn().unwrap_or_default();
        Err(s3_error!(
            AccessDenied,
            "User: {who} is not authorized to perform: iam:{action} on resource: {resource}"
        ))
    }

    /// `path`: begins and ends with a slash, or is empty and means `/`.
    fn arn(&self, kind: &str, path: &str, name: &str) -> String {
        format!("arn:aws:iam::{}:{kind}{}{name}", self.number, path_or_root(path))
    }

    /// 20 of `[A-Z0-9]`, of which no two things that ever were have the same.
    fn id(&self, prefix: &str, name: &str, made: Timestamp) -> String {
        let text = format!("{prefix}\0{}\0{name}\0{}", self.tenant.0, made.0);
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        format!("{prefix}{}", hex::encode_upper(&hash.as_ref()[..8]))
    }

    /// The id that was kept, else the one made of a name.
    fn kept_id(&self, kept: &str, prefix: &str, name: &str, made: Timestamp) -> String {
        if kept.is_empty() { self.id(prefix, name, made) } else { kept.to_owned() }
    }

    async fn read(&self) -> S3Result<Directory> {
        let read = self.call.guard.identity.read_directory::<S3Error>(self.tenant).await;
        read.map(|(_, directory)| directory).map_err(change_error)
    }

    async fn change<T>(&self, change: impl FnMut(&mut Directory) -> S3Result<T>) -> S3Result<T> {
        let changed = self.call.guard.identity.change_directory(self.tenant, change).await;
        changed.map_err(change_error)
    }

    async fn summary(&self) -> S3Result<String> {
        let directory = self.read().await?;
        let identity = &self.call.guard.identity;
        let users = identity.users(self.tenant).await.map_err(facts_error)?.len();
        let counts = [
            ("Users", users),
            ("Groups", directory.groups.len()),
            ("Roles", directory.roles.len()),
            ("Policies", directory.policies.len()),
            ("Providers", directory.issuers.len()),
            ("GroupsQuota", ENTRIES_MAX),
            ("RolesQuota", ENTRIES_MAX),
            ("PoliciesQuota", ENTRIES_MAX),
            ("PolicySizeQuota", POLICY_BYTES_MAX),
            ("UsersQuota", makai_raft::facts::identity::TENANT_USERS_MAX),
            ("AccessKeysPerUserQuota", users::USER_KEYS_MAX),
        ];
        let entry = |(name, count): (&str, usize)| {
            xml::node("entry", [leaf("key", name), leaf("value", count.to_string())].concat())
        };
        Ok(xml::node("SummaryMap", counts.into_iter().map(entry).collect::<String>()))
    }

    /// A page of a list: what comes after `Marker`, at most `MaxItems`. `items`: by key, in order.
    fn paged(&self, name: &str, items: impl IntoIterator<Item = (String, String)>) -> S3Result<String> {
        let most = self.call.number("MaxItems", 1, 100, 1000)?;
        let after = self.call.field("Marker");
        let mut left = items.into_iter().filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
        let page: Vec<_> = left.by_ref().take(usize::try_from(most).unwrap_or(usize::MAX)).collect();
        let is_truncated = left.next().is_some();
        let marker = page.last().filter(|_| is_truncated).map(|(key, _)| leaf("Marker", key));
        let members = list(name, page.into_iter().map(|(_, xml)| xml));
        Ok([members, leaf("IsTruncated", is_truncated.to_string()), marker.unwrap_or_default()].concat())
    }

    /// A page of things that have names and paths, by name whatever its case.
    fn paged_by_name(
        &self,
        of: &str,
        items: impl IntoIterator<Item = (String, String, String)>,
    ) -> S3Result<String> {
        let prefix = self.call.field("PathPrefix").unwrap_or("/");
        let under = items.into_iter().filter(|(_, path, _)| path_or_root(path).starts_with(prefix));
        let mut under: Vec<_> = under.map(|(name, _, xml)| (name.to_ascii_lowercase(), xml)).collect();
        under.sort_by(|(one, _), (other, _)| one.cmp(other));
        self.paged(of, under)
    }

    /// The path in a field, as it is kept; `None`: the call has none.
    fn path(&self, field: &str) -> S3Result<Option<String>> {
        let Some(path) = self.call.field(field) else { return Ok(None) };
        let is_path = path.starts_with('/')
            && path.ends_with('/')
            && path.len() <= PATH_BYTES_MAX
            && path.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_path {
            return Err(validation(format!(
                "{field} begins and ends with a slash and has at most {PATH_BYTES_MAX} printable characters."
            )));
        }
        Ok(Some(path.to_owned()))
    }

    /// A policy in a field, and that it is one.
    fn document(&self, field: &str, kind: Kind<'_>) -> S3Result<String> {
        let text = self.call.required(field)?;
        if text.len() > POLICY_BYTES_MAX {
            return Err(custom(
                "LimitExceeded",
                409,
                format!("A policy has at most {POLICY_BYTES_MAX} bytes."),
            ));
        }
        Policy::parse(text.as_bytes(), kind)
            .map_err(|error| custom("MalformedPolicyDocument", 400, error.to_string()))?;
        Ok(text.to_owned())
    }

    fn name(&self, field: &str, length_max: usize) -> S3Result<&str> {
        let name = self.call.required(field)?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
        if name.len() > length_max || !name.bytes().all(is_name) {
            return Err(validation(format!("{field} has 1 to {length_max} of A-Z, a-z, 0-9 and _+=,.@-")));
        }
        Ok(name)
    }
}

fn change_error(error: ChangeError<S3Error>) -> S3Error {
    match error {
        ChangeError::Refused(error) => error,
        ChangeError::Facts(error) => facts_error(error),
        ChangeError::Internal(why) => internal(&why),
    }
}

fn facts_error(error: MetaError) -> S3Error {
    match error {
        MetaError::Refused(Refusal::NotFound(what)) => {
            custom("NoSuchEntity", 404, format!("There is no {what}."))
        }
        MetaError::Refused(Refusal::AlreadyExists(what)) => {
            custom("EntityAlreadyExists", 409, format!("There is {what} already."))
        }
        MetaError::Refused(Refusal::Invalid(why)) => custom("LimitExceeded", 409, why),
        MetaError::Refused(refusal) => internal(&refusal.to_string()),
        MetaError::Unavailable(why) => s3_error!(ServiceUnavailable, "Please try again: {why}"),
        MetaError::Overloaded => {
            custom("ConcurrentModification", 409, "Too many changes at once: try again.")
        }
    }
}

fn no_such(kind: &str, name: &str) -> S3Error {
    custom("NoSuchEntity", 404, format!("The {kind} with name {name} cannot be found."))
}

fn exists(kind: &str, name: &str) -> S3Error {
    custom("EntityAlreadyExists", 409, format!("{kind} with name {name} already exists."))
}

fn conflict(why: &str) -> S3Error {
    custom("DeleteConflict", 409, format!("Cannot delete entity, must {why} first."))
}

fn check_room(entries: usize, most: usize, what: &str) -> S3Result<()> {
    if entries < most {
        return Ok(());
    }
    Err(custom("LimitExceeded", 409, format!("Cannot exceed quota for {what}: {most}")))
}

/// A text as these APIs put it into XML: percent-encoded.
fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

fn tags_xml<'t>(tags: impl IntoIterator<Item = (&'t String, &'t String)>) -> String {
    let one = |(key, value): (&String, &String)| [leaf("Key", key), leaf("Value", value)].concat();
    list("Tags", tags.into_iter().map(one))
}
