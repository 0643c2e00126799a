//! At most once, whatever comes twice, late or out of order.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::machine::sessions::{REPLIES_KEPT_MAX, SEEN_STEP_MS};

fn envelope(session: u64, serial: u64, answered_below: u64, command: Command) -> Envelope {
    Envelope { session, serial, answered_below, command }
}

fn tenant(name: &str) -> Command {
    Command::CreateTenant { name: name.to_owned(), wrapped_key: Bytes::new(), quota_bytes: None }
}

/// The store without its sessions and its place in the log.
fn facts(world: &World) -> MemKv {
    let mut kv = world.kv.clone();
    kv.entries.retain(|key, _| !matches!(key[0], 0x01 | 0x08 | 0x09));
    kv
}

proptest! {
    /// Repeats in any place, of replies or refusals, answer what was answered and change nothing.
    #[test]
    fn repeats_change_nothing(
        names in vec(0..6u8, 1..12),
        repeats in vec((any::<Index>(), any::<Index>()), 0..12),
        batch_len in 1..5usize,
    ) {
        let once: Vec<Envelope> = names
            .iter()
            .enumerate()
            .map(|(at, name)| envelope(at as u64 % 2, at as u64, 0, tenant(&format!("t{name}"))))
            .collect();
        let mut with_repeats: Vec<(usize, Envelope)> = once.iter().cloned().enumerate().collect();
        for (what, place) in repeats {
            let what = what.index(once.len());
            let original = with_repeats.iter().position(|(at, _)| *at == what).expect("each is there");
            let place = original + 1 + place.index(with_repeats.len() - original);
            with_repeats.insert(place, (what, once[what].clone()));
        }
        let (mut plain, mut repeated) = (World::empty(), World::empty());
        let expected = plain.batch(once);
        for part in with_repeats.chunks(batch_len) {
            let results = repeated.batch(part.iter().map(|(_, envelope)| envelope.clone()).collect());
            for ((at, _), result) in part.iter().zip(results) {
                prop_assert_eq!(&result, &expected[*at]);
            }
        }
        prop_assert_eq!(facts(&repeated), facts(&plain));
    }
}

/// Answered replies are forgotten, and a copy of their command that turns up late is not applied.
#[test]
fn an_answered_command_is_never_applied_again() {
    let mut world = World::empty();
    world.batch(vec![envelope(5, 0, 0, tenant("a")), envelope(5, 1, 0, tenant("b"))]);
    assert_eq!(world.keys_under(0x09).len(), 2);
    world.batch(vec![envelope(5, 2, 2, Command::DeleteAccessKey { id: "x".to_owned() })]);
    assert_eq!(world.keys_under(0x09).len(), 1);
    let before = facts(&world);
    let late = world.batch(vec![envelope(5, 1, 0, tenant("late")), envelope(5, 0, 0, tenant("later"))]);
    assert!(late.iter().all(|result| matches!(result, Err(Refusal::Invalid(_)))));
    assert_eq!(facts(&world), before);
}

/// A session that never says what it has answered is bounded all the same.
#[test]
fn replies_kept_are_bounded() {
    let mut world = World::empty();
    for serial in [0, 1, REPLIES_KEPT_MAX, 3 * REPLIES_KEPT_MAX, u64::MAX] {
        world.batch(vec![envelope(5, serial, 0, tenant("a"))]);
        let kept = world.keys_under(0x09);
        let oldest = kept.iter().map(|key| u64::from_be_bytes(key[9..].try_into().expect("8 bytes"))).min();
        assert!(oldest.is_some_and(|oldest| serial - oldest < REPLIES_KEPT_MAX));
    }
}

/// Sessions go once idle for as long as asked, never before, and never the one that asks.
#[test]
fn idle_sessions_expire() {
    const IDLE_MS: u64 = 3_600_000;
    let mut world = World::empty();
    world.batch(vec![envelope(5, 0, 0, tenant("a")), envelope(6, 0, 0, tenant("b"))]);
    world.now.0 += SEEN_STEP_MS - 1;
    world.batch(vec![envelope(6, 0, 0, tenant("b"))]); // Seen again, too soon to be written.
    world.now.0 += IDLE_MS;
    let expire = Command::ExpireSessions { idle_ms: IDLE_MS };
    world.batch(vec![envelope(7, 0, 0, expire.clone())]);
    assert_eq!(world.keys_under(0x08).len(), 3);
    world.now.0 += 2;
    world.batch(vec![envelope(6, 1, 0, tenant("c")), envelope(7, 1, 1, expire.clone())]);
    assert_eq!(world.keys_under(0x08).len(), 2);
    world.now.0 += 2 * IDLE_MS;
    world.batch(vec![envelope(7, 2, 2, expire)]);
    assert_eq!((world.keys_under(0x08).len(), world.keys_under(0x09).len()), (1, 1));
}

/// A session's record is not rewritten by every command, only as its floor moves or a while has passed.
#[test]
fn being_seen_is_written_rarely() {
    let mut world = World::empty();
    world.batch(vec![envelope(5, 0, 0, tenant("a"))]);
    let record = |world: &World| {
        world.kv.entries.iter().find(|(key, _)| key[0] == 0x08).map(|(_, value)| value.clone())
    };
    let first = record(&world);
    world.now.0 += SEEN_STEP_MS - 1;
    world.batch(vec![envelope(5, 1, 0, tenant("b"))]);
    assert_eq!(record(&world), first);
    world.now.0 += 1;
    world.batch(vec![envelope(5, 2, 0, tenant("c"))]);
    assert_ne!(record(&world), first);
}

/// One entry is applied once, and the clock of the machine never goes back.
#[test]
fn entries_come_in_order() {
    let mut world = World::empty();
    world.batch(vec![envelope(5, 0, 0, tenant("a"))]);
    let before = world.kv.clone();
    let again = Batch { at: world.now, envelopes: vec![envelope(5, 1, 0, tenant("b"))] };
    assert!(apply(&mut world.kv, 1, &again).is_err());
    assert_eq!(world.kv, before);

    world.now.0 -= 1000;
    let Ok(Reply::Tenant(tenant)) = world.batch(vec![envelope(5, 1, 0, tenant("b"))]).remove(0) else {
        panic!("a tenant is made")
    };
    assert_eq!(tenant.created_at, Timestamp(START_MS));
}
