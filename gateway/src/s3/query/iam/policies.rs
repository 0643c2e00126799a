//! Policies that can be attached, and their versions.

use makai_raft::facts::Timestamp;
use s3s::S3Result;

use super::{ENTRIES_MAX, Own, check_room, conflict, encoded, exists};
use crate::identity::directory::{Directory, Shared, built_in, built_in_text, name_of, path_or_root};
use crate::policy::document::Kind;
use crate::s3::errors::custom;
use crate::s3::query::validation;
use crate::s3::query::xml::{self, leaf, list, node};

const VERSIONS_MAX: usize = 5;

pub(super) async fn answer(own: &Own<'_>, action: &str) -> S3Result<String> {
    match action {
        "CreatePolicy" => create(own).await,
        "ListPolicies" => list_all(own).await,
        "ListEntitiesForPolicy" => entities(own).await,
        _ => of_one(own, action).await,
    }
}

async fn of_one(own: &Own<'_>, action: &str) -> S3Result<String> {
    let arn = own.call.required("PolicyArn")?;
    if let Some(text) = built_in_text(arn) {
        let shared = Shared {
            versions: [(1, (text.to_owned(), 0))].into(),
            current: 1,
            newest: 1,
            ..Shared::default()
        };
        return match action {
            "GetPolicy" => Ok(node("Policy", xml_of(own, arn, &shared, &own.read().await?))),
            "GetPolicyVersion" => one_version(own, &shared),
            "ListPolicyVersions" => versions(own, &shared),
            _ => Err(custom("AccessDenied", 403, "Policies that every account has cannot be changed.")),
        };
    }
    let name = name_of(arn);
    let prefix = own.arn("policy", "/", "");
    let path = arn.strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_suffix(name));
    let path = path.ok_or_else(|| no_policy(arn))?;
    // Whoever has the name must have the path, too.
    let is_it = |shared: &Shared| path_or_root(&shared.path)[1..] == *path;
    match action {
        "GetPolicy" | "GetPolicyVersion" | "ListPolicyVersions" => {
            let directory = own.read().await?;
            let shared = directory.policies.get(name).filter(|shared| is_it(shared));
            let shared = shared.ok_or_else(|| no_policy(arn))?;
            match action {
                "GetPolicy" => Ok(node("Policy", xml_of(own, arn, shared, &directory))),
                "GetPolicyVersion" => one_version(own, shared),
                _ => versions(own, shared),
            }
        }
        "CreatePolicyVersion" => {
            let text = own.document("PolicyDocument", Kind::Identity)?;
            let becomes_current = own.call.field("SetAsDefault") == Some("true");
            let now = own.call.now;
            let (number, shared) = own
                .change(|directory| {
                    let shared = directory.policies.get_mut(name).filter(|shared| is_it(shared));
                    let shared = shared.ok_or_else(|| no_policy(arn))?;
                    check_room(shared.versions.len(), VERSIONS_MAX, "VersionsPerPolicy")?;
                    shared.newest += 1;
                    shared.versions.insert(shared.newest, (text.clone(), now.0));
                    if becomes_current {
                        shared.current = shared.newest;
                    }
                    Ok((shared.newest, shared.clone()))
                })
                .await?;
            Ok(node("PolicyVersion", version_xml(&shared, number, false)))
        }
        "SetDefaultPolicyVersion" | "DeletePolicyVersion" => {
            let number = version_named(own)?;
            own.change(|directory| {
                let shared = directory.policies.get_mut(name).filter(|shared| is_it(shared));
                let shared = shared.ok_or_else(|| no_policy(arn))?;
                if !shared.versions.contains_key(&number) {
                    return Err(no_version(number));
                }
                if action == "SetDefaultPolicyVersion" {
                    shared.current = number;
                } else if shared.current == number {
                    return Err(custom(
                        "DeleteConflict",
                        409,
                        "Cannot delete the default version of a policy.",
                    ));
                } else {
                    shared.versions.remove(&number);
                }
                Ok(())
            })
            .await?;
            Ok(String::new())
        }
        _ => {
            own.change(|directory| {
                let shared = directory.policies.get(name).filter(|shared| is_it(shared));
                let shared = shared.ok_or_else(|| no_policy(arn))?;
                if directory.attachments(arn) > 0 {
                    return Err(conflict("detach the policy from all entities"));
                }
                if shared.versions.len() > 1 {
                    return Err(conflict("delete all versions but the default one"));
                }
                directory.policies.remove(name);
                Ok(())
            })
            .await?;
            Ok(String::new())
        }
    }
}

fn no_policy(arn: &str) -> s3s::S3Error {
    custom("NoSuchEntity", 404, format!("Policy {arn} was not found."))
}

fn no_version(number: u32) -> s3s::S3Error {
    custom("NoSuchEntity", 404, format!("Policy version v{number} does not exist."))
}

fn version_named(own: &Own<'_>) -> S3Result<u32> {
    let text = own.call.required("VersionId")?;
    let number = text.strip_prefix('v').and_then(|number| number.parse().ok());
    number.ok_or_else(|| validation("VersionId is v1, v2 and so on."))
}

fn one_version(own: &Own<'_>, shared: &Shared) -> S3Result<String> {
    let number = version_named(own)?;
    if !shared.versions.contains_key(&number) {
        return Err(no_version(number));
    }
    Ok(node("PolicyVersion", version_xml(shared, number, true)))
}

fn versions(own: &Own<'_>, shared: &Shared) -> S3Result<String> {
    own.paged(
        "Versions",
        shared.versions.keys().map(|number| (format!("{number:010}"), version_xml(shared, *number, false))),
    )
}

fn version_xml(shared: &Shared, number: u32, with_text: bool) -> String {
    let Some((text, made)) = shared.versions.get(&number) else { return String::new() };
    let inside = [
        if with_text { leaf("Document", encoded(text)) } else { String::new() },
        leaf("VersionId", format!("v{number}")),
        leaf("IsDefaultVersion", (number == shared.current).to_string()),
        leaf("CreateDate", xml::time(Timestamp(*made))),
    ];
    inside.concat()
}

fn xml_of(own: &Own<'_>, arn: &str, shared: &Shared, directory: &Directory) -> String {
    let made = Timestamp(shared.created_ms);
    let updated = shared.versions.get(&shared.current).map_or(made, |(_, made)| Timestamp(*made));
    let inside = [
        leaf("PolicyName", name_of(arn)),
        leaf("PolicyId", own.id("ANPA", arn, made)),
        leaf("Arn", arn),
        leaf("Path", path_or_root(&shared.path)),
        leaf("DefaultVersionId", format!("v{}", shared.current)),
        leaf("AttachmentCount", directory.attachments(arn).to_string()),
        leaf("IsAttachable", "true"),
        leaf("Description", &shared.description),
        leaf("CreateDate", xml::time(made)),
        leaf("UpdateDate", xml::time(updated)),
    ];
    inside.concat()
}

async fn create(own: &Own<'_>) -> S3Result<String> {
    let path = own.path("Path")?.unwrap_or_default();
    let name = own.name("PolicyName", 128)?;
    let text = own.document("PolicyDocument", Kind::Identity)?;
    let description = own.call.field("Description").unwrap_or_default();
    if description.chars().count() > 1000 {
        return Err(validation("Description has at most 1000 characters."));
    }
    let now = own.call.now.0;
    let shared = Shared {
        path,
        created_ms: now,
        description: description.to_owned(),
        versions: [(1, (text, now))].into(),
        current: 1,
        newest: 1,
    };
    let directory = own
        .change(|directory| {
            if directory.policy(name).is_some() {
                return Err(exists("A policy", name));
            }
            check_room(directory.policies.len(), ENTRIES_MAX, "PoliciesPerAccount")?;
            directory.policies.insert(name.to_owned(), shared.clone());
            Ok(directory.clone())
        })
        .await?;
    let arn = own.arn("policy", &shared.path, name);
    Ok(node("Policy", xml_of(own, &arn, &shared, &directory)))
}

async fn list_all(own: &Own<'_>) -> S3Result<String> {
    let directory = own.read().await?;
    let scope = own.call.field("Scope").unwrap_or("All");
    let only_attached = own.call.field("OnlyAttached") == Some("true");
    let mut found: Vec<(String, Shared)> = Vec::new();
    if scope != "Local" {
        found.extend(built_in().map(|(name, text)| {
            let versions = [(1, (text.to_owned(), 0))].into();
            let shared = Shared { versions, current: 1, newest: 1, ..Shared::default() };
            (format!("arn:aws:iam::aws:policy/{name}"), shared)
        }));
    }
    if scope != "AWS" {
        let own_ones = directory.policies.iter();
        found.extend(own_ones.map(|(name, shared)| (own.arn("policy", &shared.path, name), shared.clone())));
    }
    let prefix = own.call.field("PathPrefix").unwrap_or("/");
    found.retain(|(arn, shared)| {
        path_or_root(&shared.path).starts_with(prefix) && (!only_attached || directory.attachments(arn) > 0)
    });
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    own.paged(
        "Policies",
        found.into_iter().map(|(arn, shared)| {
            let xml = xml_of(own, &arn, &shared, &directory);
            (arn, xml)
        }),
    )
}

async fn entities(own: &Own<'_>) -> S3Result<String> {
    let arn = own.call.required("PolicyArn")?;
    let directory = own.read().await?;
    own.check_attachable(&directory, arn)?;
    let named = |kind: &str, name: &String| leaf(&format!("{kind}Name"), name);
    let groups = directory.groups.iter().filter(|(_, group)| group.attached.contains(arn));
    let users = directory.users.iter().filter(|(_, user)| user.attached.contains(arn));
    let roles = directory.roles.iter().filter(|(_, role)| role.attached.contains(arn));
    let inside = [
        list("PolicyGroups", groups.map(|(name, _)| named("Group", name))),
        list("PolicyUsers", users.map(|(name, _)| named("User", name))),
        list("PolicyRoles", roles.map(|(name, _)| named("Role", name))),
        leaf("IsTruncated", "false"),
    ];
    Ok(inside.concat())
}
