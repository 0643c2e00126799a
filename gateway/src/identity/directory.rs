//! A tenant's directory: groups, roles, policies that several share, issuers of identities, limits of keys.
//!
//! ```text
//! user ─ its own policies, those attached to it, those of its groups ─┐
//! role ─ its own policies, those attached to it ──────────────────────┴─> the texts that decide
//! ```
//!
//! It is one JSON text in the facts, changed as a whole from the revision that was read: of two changes at once the later
//! one is made anew, so that none is lost. Users themselves and their keys are facts of their own.

use std::collections::{BTreeMap, BTreeSet};

use makai_raft::facts::identity::User;
use serde::{Deserialize, Serialize};

use super::kms::KmsKey;

/// What a user has beside the facts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Begins and ends with a slash; empty: `/`.
    pub path: String,
    /// The user's id, where its name is not that of its making.
    pub id: String,
    pub tags: BTreeMap<String, String>,
    /// Name and text; one that the facts have, too, counts as it stands here.
    pub inline: BTreeMap<String, String>,
    /// Names under which policies are attached: ARNs.
    pub attached: BTreeSet<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Group {
    /// Begins and ends with a slash; empty: `/`.
    pub path: String,
    /// Where its name is not that of its making.
    pub id: String,
    pub created_ms: u64,
    pub members: BTreeSet<String>,
    pub inline: BTreeMap<String, String>,
    pub attached: BTreeSet<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Role {
    /// Begins and ends with a slash; empty: `/`.
    pub path: String,
    /// Tells a role from another of the same name that was there before.
    pub created_ms: u64,
    /// The policy that says who may assume it.
    pub trust: String,
    pub description: String,
    pub session_seconds_max: u64,
    pub tags: BTreeMap<String, String>,
    pub inline: BTreeMap<String, String>,
    pub attached: BTreeSet<String>,
}

/// A policy that can be attached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shared {
    /// Begins and ends with a slash; empty: `/`.
    pub path: String,
    pub created_ms: u64,
    pub description: String,
    /// By number: text, and when it was made.
    pub versions: BTreeMap<u32, (String, u64)>,
    /// The version that counts.
    pub current: u32,
    /// The newest number given.
    pub newest: u32,
}

/// Who may vouch for identities that assume roles.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Issuer {
    /// As its tokens name it.
    pub url: String,
    pub created_ms: u64,
    /// Audiences that its tokens must be for.
    pub clients: BTreeSet<String>,
    /// Kept and answered; certificates are checked against the system's authorities.
    pub thumbprints: Vec<String>,
}

/// What a key may ask of each gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub requests_per_second: u32,
    /// Requests at once after a rest.
    pub burst: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Directory {
    pub users: BTreeMap<String, Member>,
    pub groups: BTreeMap<String, Group>,
    pub roles: BTreeMap<String, Role>,
    pub policies: BTreeMap<String, Shared>,
    /// By URL, its scheme left out.
    pub issuers: BTreeMap<String, Issuer>,
    /// By access key's id.
    pub limits: BTreeMap<String, Limit>,
    /// Keys for objects (SSE-KMS), by name.
    pub kms: BTreeMap<String, KmsKey>,
    /// Whether those must be made before they are used.
    pub kms_is_strict: bool,
    /// Other S3 servers that buckets are replicated to, by name.
    pub targets: BTreeMap<String, ReplicationTarget>,
}

/// Another S3 server, and the key that this tenant has there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicationTarget {
    /// `https://s3.example.com`, without a path.
    pub endpoint: String,
    pub region: String,
    pub access_key_id: String,
    /// Hex of the secret key, sealed with the cluster's key.
    pub sealed_secret: String,
}

/// Policies that every tenant has, under the names that AWS gives them.
const BUILT_IN: [(&str, &str); 5] = [
    (
        "AdministratorAccess",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#,
    ),
    (
        "AmazonS3FullAccess",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#,
    ),
    (
        "AmazonS3ReadOnlyAccess",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:Get*","s3:List*","s3:Describe*"],"Resource":"*"}]}"#,
    ),
    (
        "IAMFullAccess",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:*","Resource":"*"}]}"#,
    ),
    (
        "IAMReadOnlyAccess",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:Get*","iam:List*"],"Resource":"*"}]}"#,
    ),
];
const BUILT_IN_PREFIX: &str = "arn:aws:iam::aws:policy/";

/// Names and texts of the policies that every tenant has.
pub fn built_in() -> impl Iterator<Item = (&'static str, &'static str)> {
    BUILT_IN.into_iter()
}

/// The text of a policy that every tenant has.
#[must_use]
pub fn built_in_text(arn: &str) -> Option<&'static str> {
    let name = arn.strip_prefix(BUILT_IN_PREFIX)?;
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// What comes after the path in an ARN.
#[must_use]
pub fn name_of(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

/// A path as it is kept, in full.
#[must_use]
pub fn path_or_root(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// The entry of a name: names differ by more than their case.
fn spelled<'m, T>(all: &'m BTreeMap<String, T>, name: &str) -> Option<(&'m str, &'m T)> {
    let found =
        all.get_key_value(name).or_else(|| all.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)));
    found.map(|(known, entry)| (known.as_str(), entry))
}

impl Directory {
    #[must_use]
    pub fn path_of_user(&self, name: &str) -> &str {
        path_or_root(self.users.get(name).map_or("", |member| member.path.as_str()))
    }

    /// A group and its name as it was given, whatever the case of `name`.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<(&str, &Group)> {
        spelled(&self.groups, name)
    }

    pub fn group_mut(&mut self, name: &str) -> Option<&mut Group> {
        let name = self.group(name)?.0.to_owned();
        self.groups.get_mut(&name)
    }

    /// A role and its name as it was given, whatever the case of `name`.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<(&str, &Role)> {
        spelled(&self.roles, name)
    }

    pub fn role_mut(&mut self, name: &str) -> Option<&mut Role> {
        let name = self.role(name)?.0.to_owned();
        self.roles.get_mut(&name)
    }

    /// A policy that can be attached, and its name as it was given, whatever the case of `name`.
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<(&str, &Shared)> {
        spelled(&self.policies, name)
    }

    /// Has what is `old`'s be `new`'s: tags, policies, places in groups.
    pub fn rename_user(&mut self, old: &str, new: &str) {
        if let Some(member) = self.users.remove(old) {
            self.users.insert(new.to_owned(), member);
        }
        for group in self.groups.values_mut() {
            if group.members.remove(old) {
                group.members.insert(new.to_owned());
            }
        }
    }

    /// The text of a policy that can be attached.
    #[must_use]
    pub fn attachable(&self, arn: &str) -> Option<&str> {
        if arn.starts_with(BUILT_IN_PREFIX) {
            return built_in_text(arn);
        }
        let shared = self.policies.get(name_of(arn))?;
        shared.versions.get(&shared.current).map(|(text, _)| text.as_str())
    }

    fn gather<'a>(
        &'a self,
        inline: impl IntoIterator<Item = (&'a String, &'a String)>,
        attached: &'a BTreeSet<String>,
        found: &mut Vec<(&'a str, &'a str)>,
    ) {
        found.extend(inline.into_iter().map(|(name, text)| (name.as_str(), text.as_str())));
        found.extend(attached.iter().filter_map(|arn| Some((arn.as_str(), self.attachable(arn)?))));
    }

    /// Names and texts of all policies that count for a user.
    #[must_use]
    pub fn texts_of_user<'a>(&'a self, user: &'a User) -> Vec<(&'a str, &'a str)> {
        let mut found = Vec::new();
        let member = self.users.get(&user.name);
        let is_here = |name: &str| member.is_some_and(|member| member.inline.contains_key(name));
        let own = user.policies.iter().filter(|(name, _)| !is_here(name));
        found.extend(own.map(|(name, text)| (name.as_str(), text.as_str())));
        if let Some(member) = member {
            self.gather(&member.inline, &member.attached, &mut found);
        }
        for group in self.groups.values().filter(|group| group.members.contains(&user.name)) {
            self.gather(&group.inline, &group.attached, &mut found);
        }
        found
    }

    /// Names and texts of all policies that count for a role.
    #[must_use]
    pub fn texts_of_role<'a>(&'a self, role: &'a Role) -> Vec<(&'a str, &'a str)> {
        let mut found = Vec::new();
        self.gather(&role.inline, &role.attached, &mut found);
        found
    }

    /// How many users, groups and roles a policy is attached to.
    #[must_use]
    pub fn attachments(&self, arn: &str) -> usize {
        let users = self.users.values().map(|user| &user.attached);
        let groups = self.groups.values().map(|group| &group.attached);
        let roles = self.roles.values().map(|role| &role.attached);
        users.chain(groups).chain(roles).filter(|attached| attached.contains(arn)).count()
    }
}

#[cfg(test)]
mod tests {
    use makai_raft::facts::Timestamp;
    use makai_raft::facts::tenant::TenantId;

    use super::*;

    #[test]
    fn a_user_has_its_own_policies_those_attached_and_those_of_its_groups() {
        let text = |of: &str| of.to_owned();
        let mut directory = Directory::default();
        let shared = Shared {
            versions: [(1, (text("old"), 0)), (2, (text("shared"), 0))].into(),
            current: 2,
            ..Shared::default()
        };
        directory.policies.insert(text("p"), shared);
        let ann = directory.users.entry(text("ann")).or_default();
        ann.inline.insert(text("both"), text("newer"));
        ann.attached.insert(text("arn:aws:iam::000000000001:policy/team/p"));
        ann.attached.insert(text("arn:aws:iam::000000000001:policy/gone"));
        let readers = directory.groups.entry(text("readers")).or_default();
        readers.members.insert(text("ann"));
        readers.attached.insert(text("arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"));
        directory.groups.entry(text("others")).or_default().inline.insert(text("x"), text("not hers"));
        let policies = vec![(text("both"), text("older")), (text("plain"), text("hers"))];
        let user = User { tenant: TenantId(1), name: text("ann"), created_at: Timestamp(0), policies };
        let texts: Vec<_> = directory.texts_of_user(&user).into_iter().map(|(_, text)| text).collect();
        let read_only = built_in_text("arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess").unwrap();
        assert_eq!(texts, ["hers", "newer", "shared", read_only]);
    }

    #[test]
    fn built_in_policies_can_be_read() {
        for (name, text) in built_in() {
            let read = crate::policy::Policy::parse(text.as_bytes(), crate::policy::document::Kind::Identity);
            assert!(read.is_ok(), "{name}: {read:?}");
        }
    }

    #[test]
    fn a_directory_of_an_older_release_is_read() {
        let read: Directory = serde_json::from_str(r#"{"groups":{"g":{"members":["ann"]}}}"#).unwrap();
        assert!(read.groups["g"].members.contains("ann") && read.roles.is_empty());
    }
}
