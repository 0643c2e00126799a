//! Roles and who may assume them.

use makai_raft::facts::Timestamp;
use s3s::S3Result;

use super::{ENTRIES_MAX, Own, check_room, conflict, encoded, exists, no_such, tags_xml};
use crate::identity::directory::{Directory, Role, path_or_root};
use crate::policy::document::Kind;
use crate::s3::query::validation;
use crate::s3::query::xml::{self, leaf, node};

const SESSION_SECONDS: [u64; 3] = [3600, 3600, 43_200];
const DESCRIPTION_CHARS_MAX: usize = 1000;

pub(super) async fn answer(own: &Own<'_>, action: &str) -> S3Result<String> {
    match action {
        "CreateRole" => create(own).await,
        "ListRoles" => {
            let directory = own.read().await?;
            let one =
                |(name, role): (&String, &Role)| (name.clone(), role.path.clone(), xml_of(own, name, role));
            own.paged_by_name("Roles", directory.roles.iter().map(one))
        }
        "GetRole" => {
            let name = own.call.required("RoleName")?;
            let directory = own.read().await?;
            let (name, role) = directory.role(name).ok_or_else(|| no_such("role", name))?;
            Ok(node("Role", xml_of(own, name, role)))
        }
        "ListRoleTags" => {
            let name = own.call.required("RoleName")?;
            let directory = own.read().await?;
            let (_, role) = directory.role(name).ok_or_else(|| no_such("role", name))?;
            Ok([tags_xml(&role.tags), leaf("IsTruncated", "false")].concat())
        }
        "DeleteRole" => {
            let name = own.call.required("RoleName")?;
            own.change(|directory| {
                let (name, role) = directory.role(name).ok_or_else(|| no_such("role", name))?;
                if !role.attached.is_empty() || !role.inline.is_empty() {
                    return Err(conflict("detach or delete all policies"));
                }
                let name = name.to_owned();
                directory.roles.remove(&name);
                Ok(())
            })
            .await?;
            Ok(String::new())
        }
        "UpdateAssumeRolePolicy" => {
            let trust = own.document("PolicyDocument", Kind::Trust)?;
            update(own, |role| role.trust.clone_from(&trust)).await?;
            Ok(String::new())
        }
        "UpdateRole" | "UpdateRoleDescription" => {
            let description = own.call.field("Description");
            check_description(description)?;
            let seconds = match own.call.field("MaxSessionDuration") {
                Some(_) => Some(session_seconds(own)?),
                None => None,
            };
            let role = update(own, |role| {
                if let Some(description) = description {
                    description.clone_into(&mut role.description);
                }
                role.session_seconds_max = seconds.unwrap_or(role.session_seconds_max);
            })
            .await?;
            let asked = own.call.required("RoleName")?;
            let directory = own.read().await?;
            let name = directory.role(asked).map_or(asked, |(name, _)| name);
            // Only the older of the two answers with the role.
            let is_told = action == "UpdateRoleDescription";
            Ok(if is_told { node("Role", xml_of(own, name, &role)) } else { String::new() })
        }
        "TagRole" => {
            let new = own.call.tags()?;
            update(own, |role| role.tags.extend(new.clone())).await?;
            Ok(String::new())
        }
        _ => {
            let gone = own.call.members("TagKeys");
            update(own, |role| role.tags.retain(|key, _| !gone.contains(&key.as_str()))).await?;
            Ok(String::new())
        }
    }
}

fn find<'d>(directory: &'d mut Directory, name: &str) -> S3Result<&'d mut Role> {
    directory.role_mut(name).ok_or_else(|| no_such("role", name))
}

async fn update(own: &Own<'_>, mut change: impl FnMut(&mut Role)) -> S3Result<Role> {
    let name = own.call.required("RoleName")?;
    own.change(|directory| {
        let role = find(directory, name)?;
        change(role);
        check_room(role.tags.len(), 51, "TagsPerRole")?;
        Ok(role.clone())
    })
    .await
}

fn check_description(description: Option<&str>) -> S3Result<()> {
    if description.is_some_and(|text| text.chars().count() > DESCRIPTION_CHARS_MAX) {
        return Err(validation(format!("Description has at most {DESCRIPTION_CHARS_MAX} characters.")));
    }
    Ok(())
}

fn session_seconds(own: &Own<'_>) -> S3Result<u64> {
    let [least, default, most] = SESSION_SECONDS;
    own.call.number("MaxSessionDuration", least, default, most)
}

async fn create(own: &Own<'_>) -> S3Result<String> {
    let path = own.path("Path")?.unwrap_or_default();
    let name = own.name("RoleName", 64)?;
    check_description(own.call.field("Description"))?;
    let role = Role {
        path,
        created_ms: own.call.now.0,
        trust: own.document("AssumeRolePolicyDocument", Kind::Trust)?,
        description: own.call.field("Description").unwrap_or_default().to_owned(),
        session_seconds_max: session_seconds(own)?,
        tags: own.call.tags()?,
        ..Role::default()
    };
    own.change(|directory| {
        if directory.role(name).is_some() {
            return Err(exists("Role", name));
        }
        check_room(directory.roles.len(), ENTRIES_MAX, "RolesPerAccount")?;
        directory.roles.insert(name.to_owned(), role.clone());
        Ok(())
    })
    .await?;
    Ok(node("Role", xml_of(own, name, &role)))
}

fn xml_of(own: &Own<'_>, name: &str, role: &Role) -> String {
    let made = Timestamp(role.created_ms);
    let inside = [
        leaf("Path", path_or_root(&role.path)),
        leaf("RoleName", name),
        leaf("RoleId", own.id("AROA", name, made)),
        leaf("Arn", own.arn("role", &role.path, name)),
        leaf("CreateDate", xml::time(made)),
        leaf("AssumeRolePolicyDocument", encoded(&role.trust)),
        leaf("Description", &role.description),
        leaf("MaxSessionDuration", role.session_seconds_max.to_string()),
        if role.tags.is_empty() { String::new() } else { tags_xml(&role.tags) },
    ];
    inside.concat()
}
