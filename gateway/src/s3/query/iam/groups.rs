//! Groups and who is in them.

use makai_raft::facts::Timestamp;
use makai_raft::facts::identity::User;
use s3s::S3Result;

use super::{ENTRIES_MAX, Own, check_room, conflict, exists, no_such, users};
use crate::identity::directory::{Group, path_or_root};
use crate::s3::query::xml::{self, leaf, node};

pub(super) async fn answer(own: &Own<'_>, action: &str) -> S3Result<String> {
    match action {
        "CreateGroup" => {
            let path = own.path("Path")?.unwrap_or_default();
            let name = own.name("GroupName", 128)?;
            let created_ms = own.call.now.0;
            let group = own
                .change(|directory| {
                    if directory.group(name).is_some() {
                        return Err(exists("Group", name));
                    }
                    check_room(directory.groups.len(), ENTRIES_MAX, "GroupsPerAccount")?;
                    let group = Group { path: path.clone(), created_ms, ..Group::default() };
                    directory.groups.insert(name.to_owned(), group.clone());
                    Ok(group)
                })
                .await?;
            Ok(node("Group", xml_of(own, name, &group)))
        }
        "GetGroup" => {
            let name = own.call.required("GroupName")?;
            let directory = own.read().await?;
            let (name, group) = directory.group(name).ok_or_else(|| no_such("group", name))?;
            let all = own.users().await?;
            let members: Vec<User> =
                all.into_iter().filter(|user| group.members.contains(&user.name)).collect();
            let inside = [
                node("Group", xml_of(own, name, group)),
                users::listed(own, &members, &directory),
                leaf("IsTruncated", "false"),
            ];
            Ok(inside.concat())
        }
        "ListGroups" => {
            let directory = own.read().await?;
            let listed = directory.groups.iter();
            let one = |(name, group): (&String, &Group)| {
                (name.clone(), group.path.clone(), xml_of(own, name, group))
            };
            own.paged_by_name("Groups", listed.map(one))
        }
        "ListGroupsForUser" => {
            let user = own.user(own.call.required("UserName")?).await?;
            let directory = own.read().await?;
            let listed = directory.groups.iter().filter(|(_, group)| group.members.contains(&user.name));
            let one = |(name, group): (&String, &Group)| {
                (name.clone(), group.path.clone(), xml_of(own, name, group))
            };
            own.paged_by_name("Groups", listed.map(one))
        }
        "DeleteGroup" => {
            let name = own.call.required("GroupName")?;
            own.change(|directory| {
                let (name, group) = directory.group(name).ok_or_else(|| no_such("group", name))?;
                if !group.members.is_empty() {
                    return Err(conflict("remove users from group"));
                }
                if !group.attached.is_empty() || !group.inline.is_empty() {
                    return Err(conflict("delete policies"));
                }
                let name = name.to_owned();
                directory.groups.remove(&name);
                Ok(())
            })
            .await?;
            Ok(String::new())
        }
        "UpdateGroup" => {
            let asked = own.call.required("GroupName")?;
            let new_name = match own.call.field("NewGroupName") {
                Some(_) => Some(own.name("NewGroupName", 128)?),
                None => None,
            };
            let new_path = own.path("NewPath")?;
            own.change(|directory| {
                let (name, _) = directory.group(asked).ok_or_else(|| no_such("group", asked))?;
                let name = name.to_owned();
                let new_name = new_name.unwrap_or(&name);
                let is_taken = directory.group(new_name).is_some_and(|(taken, _)| taken != name);
                if is_taken {
                    return Err(exists("Group", new_name));
                }
                if let Some(mut group) = directory.groups.remove(&name) {
                    group.id = id_of(own, &name, &group);
                    if let Some(path) = &new_path {
                        group.path.clone_from(path);
                    }
                    directory.groups.insert(new_name.to_owned(), group);
                }
                Ok(())
            })
            .await?;
            Ok(String::new())
        }
        _ => {
            let name = own.call.required("GroupName")?;
            let user = own.user(own.call.required("UserName")?).await?;
            own.change(|directory| {
                let group = directory.group_mut(name).ok_or_else(|| no_such("group", name))?;
                if action == "AddUserToGroup" {
                    group.members.insert(user.name.clone());
                } else if !group.members.remove(&user.name) {
                    return Err(no_such("member", &user.name));
                }
                Ok(())
            })
            .await?;
            Ok(String::new())
        }
    }
}

fn id_of(own: &Own<'_>, name: &str, group: &Group) -> String {
    own.kept_id(&group.id, "AGPA", name, Timestamp(group.created_ms))
}

fn xml_of(own: &Own<'_>, name: &str, group: &Group) -> String {
    let made = Timestamp(group.created_ms);
    let inside = [
        leaf("Path", path_or_root(&group.path)),
        leaf("GroupName", name),
        leaf("GroupId", id_of(own, name, group)),
        leaf("Arn", own.arn("group", &group.path, name)),
        leaf("CreateDate", xml::time(made)),
    ];
    inside.concat()
}
