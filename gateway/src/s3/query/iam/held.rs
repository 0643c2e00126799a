//! Policies of users, groups and roles: inline, by name, and attached, by ARN.

use std::collections::{BTreeMap, BTreeSet};

use makai_raft::facts::identity::{IdentityCommand, User};
use s3s::S3Result;

use super::{HELD_MAX, Own, check_room, encoded, facts_error, no_such};
use crate::identity::directory::{Directory, name_of};
use crate::policy::document::Kind;
use crate::s3::errors::custom;
use crate::s3::query::xml::{self, leaf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    User,
    Group,
    Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Put,
    Get,
    Delete,
    List,
    Attach,
    Detach,
    ListAttached,
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::Group => "Group",
            Self::Role => "Role",
        }
    }

    fn lower(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group => "group",
            Self::Role => "role",
        }
    }
}

/// What an action does to whose policies, if it is one of these.
pub(super) fn parse(action: &str) -> Option<(Verb, Of)> {
    let verbs = [
        (Verb::Put, "Put", "Policy"),
        (Verb::Get, "Get", "Policy"),
        (Verb::Delete, "Delete", "Policy"),
        (Verb::List, "List", "Policies"),
        (Verb::Attach, "Attach", "Policy"),
        (Verb::Detach, "Detach", "Policy"),
        (Verb::ListAttached, "ListAttached", "Policies"),
    ];
    verbs.into_iter().find_map(|(verb, before, after)| {
        let of = action.strip_prefix(before)?.strip_suffix(after)?;
        [Of::User, Of::Group, Of::Role].into_iter().find(|one| one.name() == of).map(|of| (verb, of))
    })
}

/// What one holds, to be changed.
fn held<'d>(
    directory: &'d mut Directory,
    of: Of,
    name: &str,
) -> S3Result<(&'d mut BTreeMap<String, String>, &'d mut BTreeSet<String>)> {
    match of {
        Of::User => {
            let member = directory.users.entry(name.to_owned()).or_default();
            Ok((&mut member.inline, &mut member.attached))
        }
        Of::Group => {
            let group = directory.group_mut(name).ok_or_else(|| no_such("group", name))?;
            Ok((&mut group.inline, &mut group.attached))
        }
        Of::Role => {
            let role = directory.role_mut(name).ok_or_else(|| no_such("role", name))?;
            Ok((&mut role.inline, &mut role.attached))
        }
    }
}

pub(super) async fn answer(own: &Own<'_>, action: &str, verb: Verb, of: Of) -> S3Result<String> {
    let name = own.call.required(&format!("{}Name", of.name()))?;
    let user = if of == Of::User { Some(own.user(name).await?) } else { None };
    let spelled = user.as_ref().map(|user| user.name.clone());
    let name = spelled.as_deref().unwrap_or(name);
    let result = match verb {
        Verb::Put => {
            let policy = own.name("PolicyName", 128)?;
            let text = own.document("PolicyDocument", Kind::Identity)?;
            own.change(|directory| {
                let (inline, _) = held(directory, of, name)?;
                inline.insert(policy.to_owned(), text.clone());
                check_room(inline.len(), HELD_MAX + 1, "inline policies")
            })
            .await?;
            String::new()
        }
        Verb::Get => {
            let policy = own.call.required("PolicyName")?;
            let mut directory = own.read().await?;
            let inline = inline_of(&mut directory, of, name, user.as_ref())?;
            let text =
                inline.get(policy).ok_or_else(|| no_such(&format!("{} policy", of.lower()), policy))?;
            let inside = [
                leaf(&format!("{}Name", of.name()), name),
                leaf("PolicyName", policy),
                leaf("PolicyDocument", encoded(text)),
            ];
            inside.concat()
        }
        Verb::Delete => delete(own, of, name, user).await?,
        Verb::List => {
            let mut directory = own.read().await?;
            let inline = inline_of(&mut directory, of, name, user.as_ref())?;
            own.paged(
                "PolicyNames",
                inline.into_keys().map(|policy| (policy.clone(), super::xml_text(&policy))),
            )?
        }
        Verb::Attach => {
            let arn = own.call.required("PolicyArn")?;
            own.change(|directory| {
                own.check_attachable(directory, arn)?;
                let (_, attached) = held(directory, of, name)?;
                attached.insert(arn.to_owned());
                check_room(attached.len(), HELD_MAX + 1, "attached policies")
            })
            .await?;
            String::new()
        }
        Verb::Detach => {
            let arn = own.call.required("PolicyArn")?;
            own.change(|directory| {
                let (_, attached) = held(directory, of, name)?;
                if attached.remove(arn) { Ok(()) } else { Err(no_such("attached policy", arn)) }
            })
            .await?;
            String::new()
        }
        Verb::ListAttached => {
            let mut directory = own.read().await?;
            let (_, attached) = held(&mut directory, of, name)?;
            let one = |arn: &String| {
                (arn.clone(), [leaf("PolicyName", name_of(arn)), leaf("PolicyArn", arn)].concat())
            };
            own.paged("AttachedPolicies", attached.iter().map(one))?
        }
    };
    Ok(xml::answer(action, xml::IAM, &result))
}

/// Names and texts, those of a user that the facts have included.
fn inline_of(
    directory: &mut Directory,
    of: Of,
    name: &str,
    user: Option<&User>,
) -> S3Result<BTreeMap<String, String>> {
    let mut inline: BTreeMap<String, String> =
        user.map(|user| user.policies.iter().cloned().collect()).unwrap_or_default();
    inline.extend(held(directory, of, name)?.0.clone());
    Ok(inline)
}

async fn delete(own: &Own<'_>, of: Of, name: &str, user: Option<User>) -> S3Result<String> {
    let policy = own.call.required("PolicyName")?;
    let of_facts = user.filter(|user| user.policies.iter().any(|(known, _)| known == policy));
    own.change(|directory| {
        let (inline, _) = held(directory, of, name)?;
        let was_here = inline.remove(policy).is_some();
        if was_here || of_facts.is_some() {
            Ok(())
        } else {
            Err(no_such(&format!("{} policy", of.lower()), policy))
        }
    })
    .await?;
    if let Some(mut user) = of_facts {
        user.policies.retain(|(known, _)| known != policy);
        let put = IdentityCommand::PutUser { user };
        own.call.guard.identity.change(own.tenant, put).await.map_err(facts_error)?;
    }
    Ok(String::new())
}

impl Own<'_> {
    /// Whether an ARN names a policy of this account, or one that every account has.
    pub(super) fn check_attachable(&self, directory: &Directory, arn: &str) -> S3Result<()> {
        let is_own = || {
            directory
                .policies
                .get(name_of(arn))
                .is_some_and(|shared| arn == self.arn("policy", &shared.path, name_of(arn)))
        };
        let is_named = arn.starts_with("arn:aws:iam::aws:policy/") || is_own();
        if is_named && directory.attachable(arn).is_some() {
            return Ok(());
        }
        Err(custom("NoSuchEntity", 404, format!("Policy {arn} does not exist or is not attachable.")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_taken_apart() {
        assert_eq!(parse("PutUserPolicy"), Some((Verb::Put, Of::User)));
        assert_eq!(parse("ListAttachedRolePolicies"), Some((Verb::ListAttached, Of::Role)));
        assert_eq!(parse("ListGroupPolicies"), Some((Verb::List, Of::Group)));
        for other in ["GetPolicy", "ListPolicies", "DeletePolicy", "PutPolicy", "UpdateAssumeRolePolicy"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
