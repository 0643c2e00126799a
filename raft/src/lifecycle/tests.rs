//! Decisions against rules written out by hand.

use super::*;
use crate::facts::object::ObjectHeaders;
use crate::facts::version::VersionId;

const NOW: u64 = 1_700_000_000_000;
/// The last midnight before [`NOW`].
const MIDNIGHT: u64 = NOW - NOW % DAY_MS;

fn rule(scope: Scope) -> Rule {
    Rule {
        id: "r".into(),
        is_enabled: true,
        scope,
        expiration: None,
        noncurrent: None,
        abort_days: None,
        transitions: Vec::new(),
        noncurrent_transitions: Vec::new(),
    }
}

fn expiring(scope: Scope, expiration: Expiration) -> Rules {
    Rules { rules: vec![Rule { expiration: Some(expiration), ..rule(scope) }] }
}

fn head(key: &str, number: u64, age_days: u64) -> ObjectHead {
    ObjectHead {
        key: key.into(),
        version: number,
        inode: 1,
        modified_at: Timestamp(MIDNIGHT - age_days * DAY_MS),
        size: 10,
        etag: "e".into(),
        headers: ObjectHeaders { tagging: Some("a=1&b=x+y".into()), ..ObjectHeaders::default() },
        checksum: None,
        part_count: 0,
        has_version_id: true,
        file: None,
    }
}

fn version(key: &str, number: u64, age_days: u64, is_latest: bool) -> ListedVersion {
    ListedVersion::Version { head: head(key, number, age_days), is_latest }
}

fn marker(key: &str, number: u64, age_days: u64, is_latest: bool) -> ListedVersion {
    let modified_at = Timestamp(MIDNIGHT - age_days * DAY_MS);
    ListedVersion::Marker {
        key: key.into(),
        version: VersionId::Number(number),
        number,
        modified_at,
        is_latest,
    }
}

fn decided(rules: &Rules, listed: &[ListedVersion]) -> Decided {
    let (mut sweep, mut all) = (Sweep::new(rules, Timestamp(NOW), Calendar::default()), Decided::default());
    listed.iter().for_each(|entry| sweep.see(entry, &mut all));
    sweep.end(&mut all);
    all
}

/// What goes: number, and whether as the current one.
fn sweep(rules: &Rules, listed: &[ListedVersion]) -> Vec<(u64, bool)> {
    let over = decided(rules, listed).over;
    over.into_iter().map(|expired| (expired.number, expired.is_current)).collect()
}

/// What gets another storage class: number, and which.
fn moves(rules: &Rules, listed: &[ListedVersion]) -> Vec<(u64, String)> {
    let moved = decided(rules, listed).moved;
    moved.into_iter().map(|moved| (moved.number, moved.class)).collect()
}

#[test]
fn a_day_ends_at_midnight() {
    let calendar = Calendar::default();
    for (from, days, due) in [(0, 0, 0), (0, 1, 1), (1, 1, 2), (DAY_MS, 1, 2), (DAY_MS + 1, 0, 2)] {
        assert_eq!(calendar.due(Timestamp(from), days), Timestamp(due * DAY_MS), "{from} + {days}");
    }
    let short = Calendar { day_ms: 10 };
    assert_eq!(short.due(Timestamp(11), 3), Timestamp(50));
    assert!(calendar.due(Timestamp(u64::MAX), u32::MAX) >= calendar.due(Timestamp(0), u32::MAX));
}

#[test]
fn current_versions_go_by_age_and_date() {
    let listed = [version("a", 1, 10, true), version("b", 2, 9, true), version("c", 3, 0, true)];
    let all = || Scope::Prefix(String::new());
    assert_eq!(sweep(&expiring(all(), Expiration::Days(10)), &listed), [(1, true)]);
    assert_eq!(sweep(&expiring(all(), Expiration::Days(9)), &listed), [(1, true), (2, true)]);
    assert_eq!(sweep(&expiring(all(), Expiration::Date(Timestamp(NOW))), &listed).len(), 3);
    assert_eq!(sweep(&expiring(all(), Expiration::Date(Timestamp(NOW + 1))), &listed), []);
    let mut disabled = expiring(all(), Expiration::Days(1));
    disabled.rules[0].is_enabled = false;
    assert_eq!(sweep(&disabled, &listed), []);
}

#[test]
fn a_scope_holds_what_it_names() {
    let and = |prefix: Option<&str>, tags: &[(&str, &str)], larger_than, smaller_than| Scope::And {
        prefix: prefix.map(str::to_owned),
        tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        larger_than,
        smaller_than,
    };
    let cases = [
        (Scope::All, true),
        (Scope::Bare("k".into()), true),
        (Scope::Prefix("ke".into()), true),
        (Scope::Prefix("x".into()), false),
        (Scope::Tag("a".into(), "1".into()), true),
        (Scope::Tag("b".into(), "x y".into()), true),
        (Scope::Tag("a".into(), "2".into()), false),
        (Scope::LargerThan(9), true),
        (Scope::LargerThan(10), false),
        (Scope::SmallerThan(11), true),
        (Scope::SmallerThan(10), false),
        (and(Some("k"), &[("a", "1"), ("b", "x y")], Some(9), Some(11)), true),
        (and(Some("x"), &[("a", "1")], None, None), false),
        (and(None, &[("a", "1"), ("c", "")], None, None), false),
        (and(None, &[], Some(10), None), false),
        (and(None, &[], None, Some(10)), false),
    ];
    for (scope, holds) in cases {
        assert_eq!(scope.holds("key", 10, Some("a=1&b=x+y")), holds, "{scope:?}");
    }
}

#[test]
fn other_versions_go_by_what_followed_them() {
    // Version 1 was followed 5 days ago, 2 was followed 3 days ago, the marker yesterday.
    let listed = [
        version("k", 5, 0, true),
        marker("k", 4, 1, false),
        version("k", 3, 3, false),
        version("k", 2, 5, false),
        version("k", 1, 50, false),
    ];
    let noncurrent = |days, newer_kept| {
        let noncurrent = Some(NoncurrentExpiration { days, newer_kept });
        Rules { rules: vec![Rule { noncurrent, ..rule(Scope::All) }] }
    };
    let gone =
        |rules: &Rules| sweep(rules, &listed).into_iter().map(|(number, _)| number).collect::<Vec<_>>();
    assert_eq!(gone(&noncurrent(0, None)), [4, 3, 2, 1]);
    assert_eq!(gone(&noncurrent(1, None)), [3, 2, 1]);
    assert_eq!(gone(&noncurrent(4, None)), [1]);
    assert_eq!(gone(&noncurrent(6, None)), []);
    assert_eq!(gone(&noncurrent(1, Some(2))), [2, 1]);
    assert_eq!(gone(&noncurrent(1, Some(4))), []);
}

#[test]
fn markers_go_when_they_hide_nothing() {
    let listed = [
        marker("alone", 1, 5, true),
        marker("hides", 3, 5, true),
        version("hides", 2, 50, false),
        version("there", 4, 5, true),
        marker("two", 7, 0, true),
        marker("two", 6, 5, false),
        marker("z", 8, 0, true),
    ];
    let lone = expiring(Scope::All, Expiration::LoneMarker(true));
    assert_eq!(sweep(&lone, &listed), [(1, false), (8, false)]);
    assert_eq!(sweep(&expiring(Scope::All, Expiration::LoneMarker(false)), &listed), []);
    assert_eq!(sweep(&expiring(Scope::All, Expiration::Days(5)), &listed), [(1, false), (4, true)]);
    assert_eq!(
        sweep(&expiring(Scope::Tag("a".into(), "1".into()), Expiration::Days(5)), &listed),
        [(4, true)]
    );
}

#[test]
fn versions_get_colder_as_they_age_and_never_warmer() {
    let after = |days, class: &str| Transition { when: When::Days(days), class: class.into() };
    let at = |time| Transition { when: When::Date(Timestamp(time)), class: "GLACIER_IR".into() };
    let later =
        |days, newer_kept, class: &str| NoncurrentTransition { days, newer_kept, class: class.into() };
    let of = |transitions: &[Transition], noncurrent_transitions: &[NoncurrentTransition]| Rules {
        rules: vec![Rule {
            transitions: transitions.to_vec(),
            noncurrent_transitions: noncurrent_transitions.to_vec(),
            ..rule(Scope::All)
        }],
    };
    let mut cold = head("d", 5, 9);
    cold.headers.storage_class = Some("GLACIER_IR".into());
    let listed = [
        version("a", 1, 0, true),
        version("b", 2, 3, true),
        version("c", 4, 9, true),
        version("c", 3, 20, false),
        ListedVersion::Version { head: cold, is_latest: true },
        marker("e", 6, 9, true),
    ];
    let class = |name: &str| name.to_owned();
    let both = [after(7, "ONEZONE_IA"), after(3, "STANDARD_IA")];
    assert_eq!(moves(&of(&both, &[]), &listed), [(2, class("STANDARD_IA")), (4, class("ONEZONE_IA"))]);
    assert_eq!(moves(&of(&[at(NOW + 1)], &[]), &listed), []);
    assert_eq!(moves(&of(&[at(NOW)], &[]), &listed).len(), 3, "all but the cold one and those not current");
    let old = |days, kept| of(&[], &[later(days, kept, "STANDARD_IA")]);
    assert_eq!(moves(&old(9, None), &listed), [(3, class("STANDARD_IA"))]);
    assert_eq!((moves(&old(10, None), &listed), moves(&old(9, Some(1)), &listed)), (vec![], vec![]));
    let mut gone = of(&both, &[]);
    gone.rules[0].expiration = Some(Expiration::Days(9));
    assert_eq!(moves(&gone, &listed), [(2, class("STANDARD_IA"))], "what expires goes as it is");
    assert!(gone.concerns_versions() && old(1, None).concerns_versions());
    assert_eq!(Rules::decode(&gone.encode()), Ok(gone));
}

#[test]
fn the_earliest_rule_is_named() {
    let with = |id: &str, expiration| Rule {
        id: id.into(),
        expiration: Some(expiration),
        ..rule(Scope::Prefix("k".into()))
    };
    let rules = Rules {
        rules: vec![
            with("late", Expiration::Days(9)),
            with("soon", Expiration::Days(2)),
            with("x", Expiration::LoneMarker(true)),
        ],
    };
    let due = Timestamp(MIDNIGHT + 2 * DAY_MS);
    assert_eq!(rules.expiry(&head("k", 1, 0), Calendar::default()), Some((due, "soon")));
    assert_eq!(rules.expiry(&head("other", 1, 0), Calendar::default()), None);
}

#[test]
fn uploads_are_abandoned_by_prefix_and_age() {
    let rules = Rules { rules: vec![Rule { abort_days: Some(2), ..rule(Scope::Prefix("k".into())) }] };
    let upload = |key: &str, age_days: u64| Upload {
        id: "u".into(),
        key: key.into(),
        started_at: Timestamp(MIDNIGHT - age_days * DAY_MS),
        headers: ObjectHeaders::default(),
        checksum_algorithm: None,
        checksum_is_composite: false,
    };
    let is_abandoned = |upload| rules.is_abandoned(&upload, Timestamp(NOW), Calendar::default());
    assert!(is_abandoned(upload("k", 2)));
    assert!(!is_abandoned(upload("k", 1)));
    assert!(!is_abandoned(upload("x", 2)));
    assert!(rules.concerns_uploads() && !rules.concerns_versions());
}

#[test]
fn rules_come_back_as_they_were_and_other_bytes_do_not() {
    let rules = Rules {
        rules: vec![
            Rule { abort_days: Some(7), ..rule(Scope::Bare("a/b".into())) },
            Rule {
                expiration: Some(Expiration::Date(Timestamp(NOW))),
                noncurrent: Some(NoncurrentExpiration { days: 3, newer_kept: Some(2) }),
                ..rule(Scope::And {
                    prefix: Some("a/é".into()),
                    tags: vec![("k".into(), "v".into())],
                    larger_than: Some(1),
                    smaller_than: None,
                })
            },
        ],
    };
    let bytes = rules.encode();
    assert_eq!(Rules::decode(&bytes), Ok(rules.clone()));
    assert_eq!(rules.common_prefix(), "a/");
    for bad in [&b""[..], b"MKLC", b"MKLC\x02\x90", &bytes[..bytes.len() - 1]] {
        assert!(Rules::decode(bad).is_err(), "{bad:?}");
    }
}
