//! Blobs of which a good part is dead: they are known as such, and versions leave them without being changed.

use super::*;
use crate::facts::version::{
    HollowBlob, Move, VersionAnswer, VersionCommand, VersionId, VersionQuery, Versioning,
};

fn hollow(world: &World) -> Vec<HollowBlob> {
    let query = VersionQuery::Hollow { after: None, entries_max: 100 };
    match world.ask(Query::Version(query)) {
        Ok(Answer::Version(VersionAnswer::Hollow(hollow))) => hollow,
        other => panic!("{other:?}"),
    }
}

fn found(world: &World, key: &str, version: Option<VersionId>) -> (ObjectHead, Vec<Extent>) {
    let query = VersionQuery::Object {
        bucket: "aaa".to_owned(),
        key: key.to_owned(),
        version,
        from_offset: 0,
        extents_max: 100,
    };
    match world.ask(Query::Version(query)) {
        Ok(Answer::Object(found)) => {
            (found.head, found.extents.into_iter().map(|resolved| resolved.extent).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_lives_of_a_hollow_blob_moves_and_is_what_it_was() {
    let mut world = World::new();
    let versioning = Versioning::Enabled;
    let enable = VersionCommand::SetVersioning { bucket: "aaa".to_owned(), versioning };
    world.run(Command::Version(enable)).unwrap();
    // Eight files fill a blob; another's hole is too small to count.
    let part = BLOB_BYTES / 8;
    for number in 0..8 {
        let blobs = vec![new_blob(1, world.now)];
        world.put(&format!("f{number}"), content(vec![extent(1, number * part, part)], blobs)).unwrap();
    }
    world
        .put("other", content(vec![extent(2, 0, BLOB_BYTES * 7 / 8)], vec![new_blob(2, world.now)]))
        .unwrap();
    assert_eq!(hollow(&world), []);
    let remove = |world: &mut World, number: u64| {
        let key = format!("f{number}");
        let (head, _) = found(world, &key, None);
        let delete = VersionCommand::Delete {
            bucket: "aaa".to_owned(),
            key,
            version: Some(head.version_id()),
            bypass_governance: false,
            precondition: Precondition::default(),
        };
        world.run(Command::Version(delete)).unwrap();
    };
    for number in 2..8 {
        remove(&mut world, number);
    }
    let tenant = TenantId(1);
    let expected = HollowBlob { id: blob_id(1), tenant, plain_len: BLOB_BYTES, live: 2 * part };
    assert_eq!(hollow(&world), [expected]);
    // One of the two is not current any more.
    world.put("f1", empty()).unwrap();
    let old = world.ask(Query::Version(VersionQuery::Versions(crate::facts::version::ListVersions {
        bucket: "aaa".to_owned(),
        prefix: "f1".to_owned(),
        entries_max: 10,
        ..Default::default()
    })));
    let Ok(Answer::Version(VersionAnswer::Versions { entries, .. })) = old else { panic!() };
    let crate::facts::version::ListedVersion::Version { head: old, .. } = &entries[1] else { panic!() };
    let before = [found(&world, "f0", None).0, old.clone()];
    let move_to = |world: &mut World, target: u64| {
        let versions =
            before.iter().map(|head| Move { key: head.key.clone(), number: head.version }).collect();
        let moves = vec![(extent(1, 0, 2 * part), extent(target, 100, 2 * part))];
        let blobs = vec![new_blob(target, world.now)];
        let command = VersionCommand::Move { bucket: "aaa".to_owned(), versions, moves, blobs };
        world.run(Command::Version(command))
    };
    assert_eq!(move_to(&mut world, 3), Ok(Reply::Done));
    assert_eq!(found(&world, "f0", None), (before[0].clone(), vec![extent(3, 100, part)]));
    let id = Some(old.version_id());
    assert_eq!(found(&world, "f1", id), (before[1].clone(), vec![extent(3, 100 + part, part)]));
    // The old blob waits to be collected, and is hollow no more; the new one is, as it was made here.
    assert_eq!(hollow(&world).iter().map(|blob| blob.id).collect::<Vec<_>>(), [blob_id(3)]);
    assert_eq!(world.keys_under(0x53).len(), 1);
    // What is nowhere any more moves nothing, and takes no blob in.
    assert!(matches!(move_to(&mut world, 4), Err(Refusal::Invalid(_))));
    // Ranges that overlap, or change their length, are nobody's copy.
    for moves in [
        vec![(extent(3, 0, 10), extent(5, 0, 10)), (extent(3, 5, 10), extent(5, 10, 10))],
        vec![(extent(3, 0, 10), extent(5, 0, 11))],
    ] {
        let (versions, blobs) = (Vec::new(), vec![new_blob(5, world.now)]);
        let command = VersionCommand::Move { bucket: "aaa".to_owned(), versions, moves, blobs };
        assert!(matches!(world.run(Command::Version(command)), Err(Refusal::Invalid(_))));
    }
}
