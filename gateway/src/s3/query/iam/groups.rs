//! Groups and who is in them.

use makai_raft::facts::Timestamp;
use makai_raft::facts::identity::User;
use s3s::S3Result;

use super::{ENTRIES_MAX, Own, check_room, conflict, exists, no_such, users};
use crate::identity::directory::Group;
use crate::s3::query::xml::{self, leaf, node};

pub(super) async fn answer(own: &Own<'_>, action: &str) -> S3Result<String> {
    match action {
        "CreateGroup" => {
            own.check_path()?;
            let name = own.name("GroupName", 128)?;
            let created_ms = own.call.now.0;
            let group = own
                .change(|directory| {
                    if directory.groups.contains_key(name) {
                        return Err(exists("Group", name));
                    }
                    check_room(directory.groups.len(), ENTRIES_MAX, "GroupsPerAccount")?;
                    let group = Group { created_ms, ..Group::default() };
                    directory.groups.insert(name.to_owned(), group.clone());
                    Ok(group)
                })
                .await?;
            Ok(node("Group", xml_of(own, name, &group)))
        }
        "GetGroup" => {
            let name = own.call.required("GroupName")?;
            let directory = own.read().await?;
            let group = directory.groups.get(name).ok_or_else(|| no_such("group", name))?;
            let all = own.users().await?;
            let members: Vec<User> =
                all.into_iter().filter(|user| group.members.contains(&user.name)).collect();
            let inside = [
                node("Group", xml_of(own, name, group)),
                users::listed(own, &members),
                leaf("IsTruncated", "false"),
            ];
            Ok(inside.concat())
        }
        "ListGroups" => {
            let directory = own.read().await?;
            let listed = directory.groups.iter();
            own.paged("Groups", listed.map(|(name, group)| (name.clone(), xml_of(own, name, group))))
        }
        "ListGroupsForUser" => {
            let user = own.user(own.call.required("UserName")?).await?;
            let directory = own.read().await?;
            let listed = directory.groups.iter().filter(|(_, group)| group.members.contains(&user.name));
            own.paged("Groups", listed.map(|(name, group)| (name.clone(), xml_of(own, name, group))))
        }
        "DeleteGroup" => {
            let name = own.call.required("GroupName")?;
            own.change(|directory| {
                let group = directory.groups.get(name).ok_or_else(|| no_such("group", name))?;
                if !group.members.is_empty() {
                    return Err(conflict("remove users from group"));
                }
                if !group.attached.is_empty() || !group.inline.is_empty() {
                    return Err(conflict("delete policies"));
                }
                directory.groups.remove(name);
                Ok(())
            })
            .await?;
            Ok(String::new())
        }
        _ => {
            let name = own.call.required("GroupName")?;
            let user = own.user(own.call.required("UserName")?).await?;
            own.change(|directory| {
                let group = directory.groups.get_mut(name).ok_or_else(|| no_such("group", name))?;
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

fn xml_of(own: &Own<'_>, name: &str, group: &Group) -> String {
    let made = Timestamp(group.created_ms);
    let inside = [
        leaf("Path", "/"),
        leaf("GroupName", name),
        leaf("GroupId", own.id("AGPA", name, made)),
        leaf("Arn", own.arn("group", name)),
        leaf("CreateDate", xml::time(made)),
    ];
    inside.concat()
}
