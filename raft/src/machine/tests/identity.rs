//! What the doors ask before they serve.

use super::*;
use crate::facts::identity::{ACL_BYTES_MAX, IdentityAnswer, IdentityCommand, IdentityQuery};

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
