//! What the doors ask before they serve.

use super::*;
use crate::facts::identity::{
    ACL_BYTES_MAX, Directory, IdentityAnswer, IdentityCommand, IdentityQuery, User,
};
use crate::facts::tenant::AccessKey;

fn set_acl(key: &str, acl: Option<String>) -> Command {
    let (bucket, key) = ("aaa".to_owned(), key.to_owned());
    Command::Identity(IdentityCommand::SetObjectAcl { bucket, key, acl, version: None })
}

#[test]
fn a_buckets_documents_come_in_the_order_asked_for_with_its_tenants_name() {
    let mut world = World::new();
    let value = Bytes::from_static(b"{}");
    let (name, document) = ("aaa".to_owned(), "policy".to_owned());
    let set = Command::SetBucketDocument {
        name: name.clone(),
        document: document.clone(),
        value: Some(value.clone()),
    };
    world.run(set).expect("the bucket exists");
    let documents = vec!["acl".to_owned(), document];
    let ask =
        |name: String| Query::Identity(IdentityQuery::BucketAccess { name, documents: documents.clone() });
    let Ok(Answer::Identity(IdentityAnswer::BucketAccess { bucket, tenant_name, documents: found })) =
        world.ask(ask(name))
    else {
        panic!("the bucket exists")
    };
    let Ok(Answer::Tenant(tenant)) = world.ask(Query::Tenant { id: bucket.tenant }) else {
        panic!("it exists")
    };
    assert_eq!((tenant_name, found), (tenant.name, vec![None, Some(value)]));
    assert_eq!(world.ask(ask("none".to_owned())), Err(Refusal::NoSuchBucket));
}

#[test]
fn a_list_is_its_objects_until_the_next_version() {
    let mut world = World::new();
    assert_eq!(world.run(set_acl("k", None)), Err(Refusal::NoSuchKey));
    world.put("k", empty()).expect("the bucket exists");
    let acl = |world: &World| {
        let ask =
            Query::Object { bucket: "aaa".to_owned(), key: "k".to_owned(), from_offset: 0, extents_max: 1 };
        let Ok(Answer::Object(answer)) = world.ask(ask) else { panic!("it exists") };
        answer.head.headers.acl
    };
    let list = Some("acl1 1 all:READ".to_owned());
    assert_eq!(world.run(set_acl("k", list.clone())), Ok(Reply::Done));
    assert_eq!(acl(&world), list);
    let too_long = world.run(set_acl("k", Some("x".repeat(ACL_BYTES_MAX + 1))));
    assert!(matches!(too_long, Err(Refusal::Invalid(_))));
    assert_eq!(acl(&world), list);
    world.put("k", empty()).expect("the bucket exists");
    assert_eq!(acl(&world), None);
}

#[test]
fn a_user_has_keys_or_can_go_and_a_disabled_key_comes_back() {
    let mut world = World::new();
    let tenant = TenantId(1);
    let id = "AKTESTAKTESTAKTEST01".to_owned();
    let key = AccessKey {
        id: id.clone(),
        tenant,
        sealed_secret: Bytes::from_static(b"sealed"),
        created_at: Timestamp(0),
        is_enabled: true,
    };
    world.run(Command::PutAccessKey { key }).expect("the tenant exists");
    let identity = |command| Command::Identity(command);
    let policies = vec![("read".to_owned(), "{}".to_owned())];
    let user = User { tenant, name: "ann".to_owned(), created_at: Timestamp(0), policies: policies.clone() };
    let set = |user: Option<&str>| {
        identity(IdentityCommand::SetKeyUser { id: id.clone(), user: user.map(str::to_owned) })
    };
    assert!(matches!(world.run(set(Some("ann"))), Err(Refusal::NotFound(_))));
    world.run(identity(IdentityCommand::PutUser { user: user.clone() })).expect("the name is right");
    world.run(set(Some("ann"))).expect("both exist");
    let of_key = |world: &World| {
        let Ok(Answer::Identity(IdentityAnswer::Key { key, user, .. })) =
            world.ask(Query::Identity(IdentityQuery::Key { id: id.clone() }))
        else {
            panic!("the key exists")
        };
        (key.is_enabled, user.map(|user| (user.name, user.policies)))
    };
    assert_eq!(of_key(&world), (true, Some(("ann".to_owned(), policies))));
    let disable = |is_enabled| identity(IdentityCommand::SetKeyEnabled { id: id.clone(), is_enabled });
    for is_enabled in [false, true] {
        world.run(disable(is_enabled)).expect("the key exists");
        assert_eq!(of_key(&world).0, is_enabled);
    }
    let rename = |name: &str, new_name: &str, revision| {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let text = Bytes::from_static(b"{}");
        identity(IdentityCommand::RenameUser { tenant, name, new_name, revision, text })
    };
    assert_eq!(world.run(rename("ann", "bea", 1)), Err(Refusal::PreconditionFailed));
    assert!(matches!(world.run(rename("bob", "bea", 0)), Err(Refusal::NotFound(_))));
    world
        .run(identity(IdentityCommand::PutUser { user: User { name: "bob".to_owned(), ..user.clone() } }))
        .unwrap();
    assert!(matches!(world.run(rename("ann", "bob", 0)), Err(Refusal::AlreadyExists(_))));
    world.run(rename("ann", "bea", 0)).expect("what was refused before changed nothing, nor the directory");
    assert_eq!(of_key(&world), (true, Some(("bea".to_owned(), user.policies.clone()))));
    world.run(rename("bea", "ann", 1)).expect("the name is free again");
    world
        .run(identity(IdentityCommand::DeleteUser { tenant, name: "bob".to_owned() }))
        .expect("it has no keys");
    let delete = || identity(IdentityCommand::DeleteUser { tenant, name: "ann".to_owned() });
    assert!(matches!(world.run(delete()), Err(Refusal::Invalid(_))));
    world.run(set(None)).expect("both exist");
    world.run(delete()).expect("no key is the user's");
    assert_eq!(of_key(&world), (true, None));
    let wrong = User { name: "a b".to_owned(), ..user };
    assert!(matches!(
        world.run(identity(IdentityCommand::PutUser { user: wrong })),
        Err(Refusal::Invalid(_))
    ));
    let asked = world.ask(Query::Identity(IdentityQuery::Users { tenant }));
    assert_eq!(asked, Ok(Answer::Identity(IdentityAnswer::Users(Vec::new()))));
}

#[test]
fn a_directory_changes_only_from_what_was_read() {
    let mut world = World::new();
    let tenant = TenantId(1);
    let set = |revision, text: &'static [u8]| {
        let text = Bytes::from_static(text);
        Command::Identity(IdentityCommand::SetDirectory { tenant, revision, text })
    };
    assert_eq!(world.run(set(1, b"early")), Err(Refusal::PreconditionFailed));
    assert_eq!(world.run(set(0, b"first")), Ok(Reply::Done));
    assert_eq!(world.run(set(0, b"late")), Err(Refusal::PreconditionFailed));
    assert_eq!(world.run(set(1, b"second")), Ok(Reply::Done));
    let read = world.ask(Query::Identity(IdentityQuery::Directory { tenant }));
    let Ok(Answer::Identity(IdentityAnswer::Directory(directory))) = read else { panic!("{read:?}") };
    assert_eq!((directory.revision, &directory.text[..]), (2, &b"second"[..]));
    let other = world.ask(Query::Identity(IdentityQuery::Directory { tenant: TenantId(2) }));
    assert_eq!(other, Ok(Answer::Identity(IdentityAnswer::Directory(Directory::default()))));
}
