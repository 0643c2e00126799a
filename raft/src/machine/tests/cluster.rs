//! Nodes, disks, groups and tokens.

use super::*;
use crate::facts::cluster::{ClusterMap, Condition, JoinToken, SlotMove};

fn map(world: &World) -> ClusterMap {
    match world.ask(Query::ClusterMap { known_epoch: None }) {
        Ok(Answer::ClusterMap(map)) => map,
        other => panic!("{other:?}"),
    }
}

fn token(id: &str, roles: &[Role], uses_left: u32) -> Command {
    Command::CreateJoinToken {
        token: JoinToken {
            id: id.to_owned(),
            secret_hash: [5; 32],
            roles: roles.to_vec(),
            expires_at: Timestamp(START_MS + 1000),
            uses_left,
        },
    }
}

fn join(number: u8, roles: &[Role], token: Option<(&str, u8)>) -> Command {
    Command::JoinNode {
        node: Node { roles: roles.to_vec(), ..node(number) },
        disks: vec![disk(number * 10, number)],
        token: token.map(|(id, secret)| (id.to_owned(), [secret; 32])),
    }
}

#[test]
fn a_cluster_begins_once() {
    let mut world = World::empty();
    assert_eq!(map(&world), ClusterMap::default());
    let init = Command::InitCluster { cluster_id: "c".to_owned() };
    assert_eq!(world.run(init.clone()), Ok(Reply::Done));
    assert!(matches!(world.run(init), Err(Refusal::AlreadyExists(_))));
    assert_eq!((map(&world).epoch, map(&world).cluster_id.as_str()), (1, "c"));
}

/// Whatever a node says of its number, standing and times, the cluster decides them.
#[test]
fn the_cluster_numbers_its_nodes() {
    let mut world = World::new();
    world.run(token("t", &[Role::Storage], 5)).expect("it is sound");
    world.now.0 += 5;
    let Ok(Reply::Node(second)) = world.run(join(2, &[Role::Storage], Some(("t", 5)))) else { panic!() };
    assert_eq!((second.number, second.standing, second.is_up), (2, Standing::Active, true));
    assert_eq!(second.joined_at, Timestamp(START_MS + 5));
    let Ok(Reply::Node(renewed)) = world.run(join(2, &[Role::Storage], None)) else { panic!() };
    assert_eq!(renewed, second);
    assert_eq!(map(&world).nodes.len(), 2);
}

#[test]
fn joining_needs_a_token_that_holds() {
    use Role::{Compute, Storage, Voter};
    let mut world = World::new();
    world.run(token("t", &[Storage, Compute], 2)).expect("it is sound");
    assert_eq!(world.run(join(2, &[Storage], None)), Err(Refusal::BadToken));
    assert_eq!(world.run(join(2, &[Storage], Some(("u", 5)))), Err(Refusal::BadToken));
    assert_eq!(world.run(join(2, &[Storage], Some(("t", 6)))), Err(Refusal::BadToken));
    let denied = Err(Refusal::RoleDenied(vec![Voter]));
    assert_eq!(world.run(join(2, &[Storage, Voter], Some(("t", 5)))), denied);
    // A refused join used nothing up: two more are let in, the third is not.
    assert!(world.run(join(2, &[Storage], Some(("t", 5)))).is_ok());
    assert!(world.run(join(3, &[Compute], Some(("t", 5)))).is_ok());
    assert_eq!(world.run(join(4, &[Storage], Some(("t", 5)))), Err(Refusal::BadToken));

    world.run(token("v", &[Storage], 1)).expect("it is sound");
    world.now.0 += 1000;
    assert_eq!(world.run(join(4, &[Storage], Some(("v", 5)))), Err(Refusal::BadToken));
}

/// A node that is known needs no token to stay what it is, and one to become more.
#[test]
fn renewal_takes_no_role_by_itself() {
    let mut world = World::new();
    let before = map(&world);
    let more = [Role::Storage, Role::Gateway];
    assert_eq!(world.run(join(1, &more, None)), Err(Refusal::RoleDenied(vec![Role::Gateway])));
    assert_eq!(map(&world), before);
    world.run(token("t", &[Role::Gateway], 1)).expect("it is sound");
    assert!(world.run(join(1, &more, Some(("t", 5)))).is_ok());
    assert!(world.run(join(1, &more, None)).is_ok());
    assert!(world.run(join(1, &[], None)).is_ok());
}

#[test]
fn a_disk_belongs_to_one_node() {
    let mut world = World::new();
    world.run(token("t", &[Role::Storage], 9)).expect("it is sound");
    let token = Some(("t".to_owned(), [5; 32]));
    let mut announce =
        |disks: Vec<Disk>| world.run(Command::JoinNode { node: node(2), disks, token: token.clone() });
    assert!(matches!(announce(vec![disk(1, 2)]), Err(Refusal::AlreadyExists(_))));
    assert!(matches!(announce(vec![disk(9, 1)]), Err(Refusal::Invalid(_))));
    assert!(matches!(announce(vec![disk(9, 2), disk(9, 2)]), Err(Refusal::Invalid(_))));
    assert!(announce(vec![disk(9, 2)]).is_ok());
    let grown = Disk { capacity_bytes: 7, ..disk(9, 2) };
    assert!(announce(vec![grown]).is_ok());
    assert!(announce(vec![]).is_ok());
    let disks = map(&world).disks;
    let found = disks.iter().find(|found| found.id == disk(9, 2).id).expect("it stays");
    assert_eq!((found.capacity_bytes, found.standing), (7, Standing::Active));
}

/// The epoch grows with each change of the map, by nothing else, and an unchanged map is not sent again.
#[test]
fn the_epoch_tells_of_changes() {
    let mut world = World::new();
    let steps = [
        (Command::SetNodeUp { node: node(1).id, is_up: true }, 0),
        (Command::SetNodeUp { node: node(1).id, is_up: false }, 1),
        (Command::SetNodeStanding { node: node(1).id, standing: Standing::Active }, 0),
        (Command::SetNodeStanding { node: node(1).id, standing: Standing::Draining }, 1),
        (Command::SetDiskStanding { disk: disk(1, 1).id, standing: Standing::Lost }, 1),
        (Command::SetDiskStanding { disk: disk(1, 1).id, standing: Standing::Lost }, 0),
        (Command::SetDiskCondition { disk: disk(1, 1).id, condition: Condition::Missing }, 1),
        (Command::SetDiskCondition { disk: disk(1, 1).id, condition: Condition::Missing }, 0),
        (Command::SetRebalance { is_paused: false }, 0),
        (Command::SetRebalance { is_paused: true }, 1),
        (Command::SetRebalance { is_paused: true }, 0),
        (Command::JoinNode { node: node(1), disks: vec![disk(1, 1)], token: None }, 0),
        (
            Command::JoinNode {
                node: Node { version: "2".to_owned(), ..node(1) },
                disks: vec![],
                token: None,
            },
            1,
        ),
        (Command::JoinNode { node: node(9), disks: vec![], token: None }, 0),
        (Command::SetNodeUp { node: node(9).id, is_up: true }, 0),
        (put("aaa", "k", whole(1, 1, world.now)), 0),
    ];
    for (command, growth) in steps {
        let before = map(&world);
        let shown = format!("{command:?}");
        _ = world.run(command);
        let after = map(&world);
        assert_eq!(after.epoch, before.epoch + growth, "{shown}");
        assert_eq!(after == before, growth == 0, "{shown}");
        assert_eq!(world.ask(Query::ClusterMap { known_epoch: Some(after.epoch) }), Ok(Answer::Unchanged));
    }
}

#[test]
fn groups_change_step_by_step() {
    let mut world = World::new();
    let old = map(&world).groups[0].clone();
    let disks = |numbers: &[u8]| numbers.iter().map(|&number| disk(number, 1).id).collect::<Vec<_>>();
    let set = |world: &mut World, groups: &[Group]| {
        let map_epoch = map(world).epoch;
        world.run(Command::PutGroups { map_epoch, groups: groups.to_vec() })
    };
    let epoch = map(&world).epoch;
    let stale = Command::PutGroups { map_epoch: epoch - 1, groups: vec![old.clone()] };
    assert_eq!(world.run(stale), Err(Refusal::StaleMap(epoch)));

    let next = Group { version: 2, disks: disks(&[1, 2, 4]), ..old.clone() };
    for fault in [
        Group { version: 1, ..next.clone() },
        Group { version: 3, ..next.clone() },
        Group { version: 2, ..old.clone() },
        Group { disks: disks(&[1, 2]), ..next.clone() },
        Group { disks: disks(&[1, 2, 2]), ..next.clone() },
        Group { scheme: Scheme { data: 1, parity: 2 }, ..next.clone() },
        Group { id: PgId(2), version: 2, ..old.clone() },
        Group { id: PgId(2), scheme: Scheme { data: 0, parity: 3 }, ..old.clone() },
    ] {
        let shown = format!("{fault:?}");
        let refused = set(&mut world, &[fault]);
        assert!(matches!(refused, Err(Refusal::Invalid(_))), "{shown}: {refused:?}");
    }
    let unknown = Group { disks: disks(&[1, 2, 99]), ..next.clone() };
    assert!(matches!(set(&mut world, &[unknown]), Err(Refusal::NotFound(_))));
    let new = Group { id: PgId(2), ..old.clone() };
    assert!(matches!(set(&mut world, &[new.clone(), new.clone()]), Err(Refusal::Invalid(_))));
    assert_eq!(map(&world).groups, std::slice::from_ref(&old));

    assert_eq!(set(&mut world, &[next.clone(), new.clone()]), Ok(Reply::Done));
    assert_eq!((map(&world).groups, map(&world).epoch), (vec![next.clone(), new], epoch + 1));
    assert_eq!(set(&mut world, &[next]), Ok(Reply::Done));
    assert_eq!(map(&world).epoch, epoch + 1);
}

#[test]
fn a_slot_moves_once_the_other_disk_holds_it_all() {
    let mut world = World::new();
    let old = map(&world).groups[0].clone();
    let to = disk(4, 1).id;
    let moving = SlotMove { slot: 1, to, is_remake: false };
    let map_epoch = map(&world).epoch;
    let with =
        |moves: Vec<SlotMove>| Command::PutGroups { map_epoch, groups: vec![Group { moves, ..old.clone() }] };
    for fault in [
        vec![SlotMove { slot: old.disks.len() as u8, ..moving }],
        vec![SlotMove { to: old.disks[0], ..moving }],
        vec![moving, moving],
        vec![moving, SlotMove { slot: 0, to: disk(4, 1).id, ..moving }],
    ] {
        assert!(matches!(world.run(with(fault)), Err(Refusal::Invalid(_))));
    }
    assert_eq!(world.run(with(vec![moving])), Ok(Reply::Done));
    assert_eq!(map(&world).groups[0].moves, [moving]);

    assert!(world.run(put("aaa", "k", whole(1, 1, world.now))).is_ok());
    let finish = |sequence, slot, version| Command::FinishMove { pg: old.id, slot, to, version, sequence };
    let unready = Err(Refusal::PreconditionFailed);
    assert_eq!(world.run(finish(0, 1, old.version)), unready, "a blob came meanwhile");
    assert_eq!(world.run(finish(1, 0, old.version)), unready, "that slot does not move");
    assert_eq!(world.run(finish(1, 1, old.version + 1)), unready, "of another version");
    assert_eq!(world.run(finish(1, 1, old.version)), Ok(Reply::Done));
    let new = map(&world).groups[0].clone();
    let mut disks = old.disks.clone();
    disks[1] = to;
    assert_eq!(new, Group { version: old.version + 1, disks, ..old.clone() });
    assert_eq!(world.run(finish(1, 1, new.version)), unready, "a move ends once");
}

#[test]
fn a_slow_disk_weighs_what_it_can_read_back() {
    let of = |capacity_bytes, speed_bytes_per_sec| {
        Disk { capacity_bytes, speed_bytes_per_sec, ..disk(1, 1) }.weight_bytes()
    };
    assert_eq!(of(12_000_000_000_000, 0), 12_000_000_000_000, "its speed is unknown");
    assert_eq!(of(12_000_000_000_000, 200_000_000), 12_000_000_000_000);
    assert_eq!(of(12_000_000_000_000, 20_000_000), 2_419_200_000_000);
    assert_eq!((of(0, 0), of(1 << 40, 1)), (1, 1));
}

/// Of a PC that is off eight hours of each day a third is told, of one that was off for a day once next to nothing, and what is
/// long ago is forgotten.
#[test]
fn downtime_is_told_by_what_happened() {
    const HOUR: u64 = 3_600_000;
    let begun = Node { joined_at: Timestamp(0), changed_at: Timestamp(0), is_up: true, ..node(1) };
    let after = |days: u64, hours_off: u64| {
        let mut node = begun.clone();
        for day in 0..days {
            node.note_up(false, Timestamp((24 * day + 24 - hours_off) * HOUR));
            node.note_up(true, Timestamp((24 * day + 24) * HOUR));
        }
        node
    };
    let nightly = after(20, 8);
    let at = |day: u64| Timestamp(24 * HOUR * day);
    assert!(nightly.downtime_ppm(at(20)).abs_diff(333_333) < 100, "{}", nightly.downtime_ppm(at(20)));
    assert!(nightly.is_part_time(at(20)) && !nightly.is_part_time(Timestamp(HOUR)));
    let long = after(200, 8).downtime_ppm(at(200));
    assert!(long.abs_diff(333_333) < 10_000, "{long}");
    let mut once = begun.clone();
    once.note_up(false, at(40));
    assert_eq!(once.downtime_ppm(at(41)), 1_000_000 / 30);
    once.note_up(true, at(41));
    assert!(!once.is_part_time(at(41)) && once.downtime_ppm(at(200)) == 0, "{}", once.downtime_ppm(at(200)));
    let mut gone = begun;
    gone.note_up(false, at(40));
    assert!(gone.is_part_time(at(60)) && gone.downtime_ppm(at(100)) == 1_000_000);
}
