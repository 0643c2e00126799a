//! The trail: what is in it, and what is not.

use super::*;
use crate::facts::audit::{AuditAnswer, AuditQuery, Audited, Deed, ENTRIES_MAX, Entry, TEXT_BYTES_MAX};
use crate::machine::keys::{self, Counter};
use crate::machine::{draft, kv::Edit as _};

fn audited(target: &str, command: Command) -> Command {
    let deed = Deed {
        by: "operator".into(),
        from: "10.0.0.1".into(),
        action: "operator:X".into(),
        target: target.into(),
    };
    Command::Audited(Audited { deed, command: Box::new(command) })
}

fn bucket(name: &str) -> Command {
    Command::CreateBucket { name: name.into(), tenant: TenantId(1), scheme: None }
}

impl World {
    fn trail(&self, before: u64, entries_max: u32) -> Vec<Entry> {
        match self.ask(Query::Audit(AuditQuery::Entries { before, entries_max })) {
            Ok(Answer::Audit(AuditAnswer::Entries(entries))) => entries,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_was_done_is_in_the_trail_and_what_was_refused_is_not() {
    let mut world = World::new();
    assert_eq!(world.trail(0, 10), []);
    let made = world.run(audited("one", bucket("new-one")));
    assert!(matches!(made, Ok(Reply::Bucket(_))), "the answer is the command's own: {made:?}");
    assert_eq!(world.run(audited("again", bucket("new-one"))), Err(Refusal::BucketOwned));
    world.now.0 += 5;
    world.run(audited(&"é".repeat(TEXT_BYTES_MAX), bucket("new-two"))).expect("the name is free");
    let twice = audited("twice", audited("twice", bucket("new-three")));
    assert!(matches!(world.run(twice), Err(Refusal::Invalid(_))));

    let trail = world.trail(0, 10);
    let told: Vec<_> = trail.iter().map(|entry| (entry.sequence, entry.at.0 - START_MS)).collect();
    assert_eq!(told, [(2, 5), (1, 0)]);
    assert_eq!(trail[1].deed.target, "one");
    assert_eq!(trail[0].deed.target.len(), TEXT_BYTES_MAX);
    assert_eq!(world.trail(2, 10), trail[1..]);
    assert_eq!(world.trail(0, 1), trail[..1]);
    assert_eq!(world.trail(1, 10), []);
}

#[test]
fn the_oldest_goes_when_the_trail_is_full() {
    let mut world = World::new();
    world.run(audited("first", bucket("new-one"))).expect("the name is free");
    let number = draft::encode(&ENTRIES_MAX).expect("a number");
    world.kv.put(keys::counter(Counter::Audit), number).expect("the store is sound");
    world.run(audited("last", bucket("new-two"))).expect("the name is free");
    let trail = world.trail(0, 10);
    assert_eq!(trail.len(), 1, "what lies behind a gap is not looked for");
    assert_eq!((trail[0].sequence, trail[0].deed.target.as_str()), (ENTRIES_MAX + 1, "last"));
    assert_eq!(world.trail(2, 10), [], "the first is gone");
}
