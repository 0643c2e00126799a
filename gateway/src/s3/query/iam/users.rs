//! Users and their access keys. A key is changed without a pause: make the second, move clients to it, delete the first.

use makai_raft::facts::Timestamp;
use makai_raft::facts::identity::{IdentityCommand, User};
use makai_raft::facts::tenant::AccessKey;
use s3s::S3Result;

use super::{Own, change_error, conflict, exists, facts_error, no_such, tags_xml};
use crate::identity::ChangeError;
use crate::identity::directory::{Directory, Member};
use crate::s3::errors::custom;
use crate::s3::query::xml::{self, leaf, list, node};
use crate::s3::query::{internal, validation};

pub(super) const USER_KEYS_MAX: usize = 10;

pub(super) async fn answer(own: &Own<'_>, action: &str) -> S3Result<String> {
    match action {
        "CreateUser" => create(own).await,
        "GetUser" => get(own).await,
        "ListUsers" => {
            let (users, directory) = (own.users().await?, own.read().await?);
            let one = |user: &User| {
                let path = directory.path_of_user(&user.name).to_owned();
                (user.name.clone(), path, own.user_xml(user, &directory, false))
            };
            own.paged_by_name("Users", users.iter().map(one))
        }
        "DeleteUser" => delete(own).await,
        "UpdateUser" => update(own).await,
        "TagUser" | "UntagUser" => tag(own, action).await,
        "ListUserTags" => {
            let user = own.user(own.call.required("UserName")?).await?;
            let directory = own.read().await?;
            let tags = directory.users.get(&user.name).map(|member| member.tags.clone()).unwrap_or_default();
            Ok([tags_xml(&tags), leaf("IsTruncated", "false")].concat())
        }
        "CreateAccessKey" => create_key(own).await,
        "ListAccessKeys" => {
            let user = own.meant_user().await?;
            let keys = own.keys_of(user.as_deref()).await?;
            let name = user.as_deref().unwrap_or(own.tenant_name);
            let listed = keys.iter().map(|key| (key.id.clone(), key_xml(key, name)));
            own.paged("AccessKeyMetadata", listed)
        }
        "UpdateAccessKey" => {
            let (key, _) = own.key().await?;
            let is_enabled = match own.call.required("Status")? {
                "Active" => true,
                "Inactive" => false,
                _ => return Err(validation("Status is Active or Inactive.")),
            };
            let set = IdentityCommand::SetKeyEnabled { id: key.id, is_enabled };
            own.call.guard.identity.change(own.tenant, set).await.map_err(facts_error)?;
            Ok(String::new())
        }
        "DeleteAccessKey" => {
            let (key, _) = own.key().await?;
            own.call.guard.identity.delete_key(own.tenant, &key.id).await.map_err(facts_error)?;
            own.change(|directory| {
                directory.limits.remove(&key.id);
                Ok(())
            })
            .await?;
            Ok(String::new())
        }
        _ => {
            let (_, user) = own.any_key().await?;
            let used = [leaf("Region", "N/A"), leaf("ServiceName", "N/A")].concat();
            let name = user.as_deref().unwrap_or(own.tenant_name);
            Ok([leaf("UserName", name), node("AccessKeyLastUsed", used)].concat())
        }
    }
}

fn key_xml(key: &AccessKey, user: &str) -> String {
    let status = if key.is_enabled { "Active" } else { "Inactive" };
    let inside = [
        leaf("UserName", user),
        leaf("AccessKeyId", &key.id),
        leaf("Status", status),
        leaf("CreateDate", xml::time(key.created_at)),
    ];
    inside.concat()
}

impl Own<'_> {
    pub(super) async fn users(&self) -> S3Result<Vec<User>> {
        self.call.guard.identity.users(self.tenant).await.map_err(facts_error)
    }

    pub(super) async fn user(&self, name: &str) -> S3Result<User> {
        let users = self.users().await?;
        let found = users.into_iter().find(|user| user.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| no_such("user", name))
    }

    fn user_id(&self, user: &User, directory: &Directory) -> String {
        let kept = directory.users.get(&user.name).map_or("", |member| member.id.as_str());
        self.kept_id(kept, "AIDA", &user.name, user.created_at)
    }

    pub(super) fn user_xml(&self, user: &User, directory: &Directory, with_tags: bool) -> String {
        let member = directory.users.get(&user.name);
        let path = directory.path_of_user(&user.name);
        let inside = [
            leaf("Path", path),
            leaf("UserName", &user.name),
            leaf("UserId", self.user_id(user, directory)),
            leaf("Arn", self.arn("user", path, &user.name)),
            leaf("CreateDate", xml::time(user.created_at)),
            member
                .filter(|member| with_tags && !member.tags.is_empty())
                .map(|member| tags_xml(&member.tags))
                .unwrap_or_default(),
        ];
        inside.concat()
    }

    /// The user whose keys are meant: the one named, else the caller's; `None`: the account itself.
    async fn meant_user(&self) -> S3Result<Option<String>> {
        match self.call.field("UserName") {
            Some(name) => Ok(Some(self.user(name).await?.name)),
            None => Ok(self.call.who.user_name().map(str::to_owned)),
        }
    }

    async fn keys_of(&self, user: Option<&str>) -> S3Result<Vec<AccessKey>> {
        let keys = self.call.guard.identity.keys(self.tenant).await.map_err(facts_error)?;
        Ok(keys.into_iter().filter(|(_, of)| of.as_deref() == user).map(|(key, _)| key).collect())
    }

    /// The key that the call names, whoever's of the account it is.
    async fn any_key(&self) -> S3Result<(AccessKey, Option<String>)> {
        let id = self.call.required("AccessKeyId")?;
        let keys = self.call.guard.identity.keys(self.tenant).await.map_err(facts_error)?;
        keys.into_iter().find(|(key, _)| key.id == id).ok_or_else(|| {
            custom("NoSuchEntity", 404, format!("The Access Key with id {id} cannot be found."))
        })
    }

    /// The key that the call names, of the user that it means.
    async fn key(&self) -> S3Result<(AccessKey, Option<String>)> {
        let user = self.meant_user().await?;
        let (key, of) = self.any_key().await?;
        if of != user {
            return Err(custom(
                "NoSuchEntity",
                404,
                format!("The Access Key with id {} cannot be found: name its user in UserName.", key.id),
            ));
        }
        Ok((key, of))
    }
}

async fn create(own: &Own<'_>) -> S3Result<String> {
    let path = own.path("Path")?.unwrap_or_default();
    let name = own.name("UserName", 64)?;
    let tags = own.call.tags()?;
    if own.users().await?.iter().any(|user| user.name.eq_ignore_ascii_case(name)) {
        return Err(exists("User", name));
    }
    // Nothing of a user of the same name that was there before may be the new one's.
    own.change(|directory| {
        directory.users.remove(name);
        for group in directory.groups.values_mut() {
            group.members.remove(name);
        }
        if !tags.is_empty() || !path.is_empty() {
            let member = Member { path: path.clone(), tags: tags.clone(), ..Member::default() };
            directory.users.insert(name.to_owned(), member);
        }
        Ok(())
    })
    .await?;
    let user =
        User { tenant: own.tenant, name: name.to_owned(), created_at: Timestamp(0), policies: Vec::new() };
    own.call
        .guard
        .identity
        .change(own.tenant, IdentityCommand::PutUser { user })
        .await
        .map_err(facts_error)?;
    let (user, directory) = (own.user(name).await?, own.read().await?);
    Ok(node("User", own.user_xml(&user, &directory, true)))
}

async fn get(own: &Own<'_>) -> S3Result<String> {
    let name = own.call.field("UserName").or_else(|| own.call.who.user_name());
    let Some(name) = name else {
        // The account itself.
        let inside = [
            leaf("Path", "/"),
            leaf("UserName", own.tenant_name),
            leaf("UserId", &own.number),
            leaf("Arn", format!("arn:aws:iam::{}:root", own.number)),
            leaf("CreateDate", xml::time(Timestamp(0))),
        ];
        return Ok(node("User", inside.concat()));
    };
    let (user, directory) = (own.user(name).await?, own.read().await?);
    Ok(node("User", own.user_xml(&user, &directory, true)))
}

async fn delete(own: &Own<'_>) -> S3Result<String> {
    let user = own.user(own.call.required("UserName")?).await?;
    let name = user.name.as_str();
    if !own.keys_of(Some(name)).await?.is_empty() {
        return Err(conflict("delete access keys"));
    }
    if !user.policies.is_empty() {
        return Err(conflict("delete policies"));
    }
    own.change(|directory| {
        if directory.groups.values().any(|group| group.members.contains(name)) {
            return Err(conflict("remove users from group"));
        }
        if let Some(member) = directory.users.get(name) {
            if !member.attached.is_empty() {
                return Err(conflict("detach all policies"));
            }
            if !member.inline.is_empty() {
                return Err(conflict("delete policies"));
            }
        }
        directory.users.remove(name);
        Ok(())
    })
    .await?;
    let gone = IdentityCommand::DeleteUser { tenant: own.tenant, name: name.to_owned() };
    own.call.guard.identity.change(own.tenant, gone).await.map_err(facts_error)?;
    Ok(String::new())
}

/// Another name, another path, or both.
async fn update(own: &Own<'_>) -> S3Result<String> {
    let user = own.user(own.call.required("UserName")?).await?;
    let new_name = match own.call.field("NewUserName") {
        Some(_) => own.name("NewUserName", 64)?,
        None => user.name.as_str(),
    };
    let new_path = own.path("NewPath")?;
    let is_taken = |other: &User| other.name != user.name && other.name.eq_ignore_ascii_case(new_name);
    if own.users().await?.iter().any(is_taken) {
        return Err(exists("User", new_name));
    }
    let change = |directory: &mut Directory| -> S3Result<()> {
        let id = own.user_id(&user, directory);
        let member = directory.users.entry(user.name.clone()).or_default();
        member.id = id;
        if let Some(path) = &new_path {
            member.path.clone_from(path);
        }
        directory.rename_user(&user.name, new_name);
        Ok(())
    };
    if new_name == user.name {
        own.change(change).await?;
    } else {
        let renamed = own.call.guard.identity.rename_user(own.tenant, &user.name, new_name, change).await;
        renamed.map_err(change_error)?;
    }
    Ok(String::new())
}

async fn tag(own: &Own<'_>, action: &str) -> S3Result<String> {
    let user = own.user(own.call.required("UserName")?).await?;
    let new = own.call.tags()?;
    let gone = own.call.members("TagKeys");
    own.change(|directory| {
        let tags = &mut directory.users.entry(user.name.clone()).or_default().tags;
        if action == "TagUser" {
            tags.extend(new.clone());
        } else {
            tags.retain(|key, _| !gone.contains(&key.as_str()));
        }
        super::check_room(tags.len(), 51, "TagsPerUser")
    })
    .await?;
    Ok(String::new())
}

async fn create_key(own: &Own<'_>) -> S3Result<String> {
    let user = own.meant_user().await?;
    if user.is_some() {
        super::check_room(own.keys_of(user.as_deref()).await?.len(), USER_KEYS_MAX, "AccessKeysPerUser")?;
    }
    let made = own.call.guard.identity.create_key(own.tenant, user.as_deref()).await;
    let made = made.map_err(|error| match error {
        ChangeError::Facts(error) => facts_error(error),
        ChangeError::Internal(why) => internal(&why),
        ChangeError::Refused(()) => internal("a key was refused"),
    })?;
    let inside = [
        leaf("UserName", user.as_deref().unwrap_or(own.tenant_name)),
        leaf("AccessKeyId", &made.id),
        leaf("Status", "Active"),
        leaf("SecretAccessKey", made.secret.expose()),
        leaf("CreateDate", xml::time(own.call.now)),
    ];
    Ok(node("AccessKey", inside.concat()))
}

/// Members of a list of users.
pub(super) fn listed(own: &Own<'_>, users: &[User], directory: &Directory) -> String {
    list("Users", users.iter().map(|user| own.user_xml(user, directory, false)))
}
