//! What agreement costs, and what it lets through.

use super::*;
use proptest::prelude::*;

fn result(of: u8) -> [u8; 32] {
    [of; 32]
}

/// Takes results one by one; returns what was accepted and how many were asked for.
fn play(mut next: impl FnMut(usize) -> u8, quorum: u32) -> (Option<u8>, usize) {
    let mut results = Vec::new();
    loop {
        results.push(result(next(results.len())));
        match decide(&results, quorum) {
            Decision::Waits => {}
            Decision::Accepted => return (results.last().map(|last| last[0]), results.len()),
            Decision::Undecided | Decision::Forfeited => return (None, results.len()),
        }
    }
}

proptest! {
    /// What is accepted has a strict majority of all that were asked, and at least that of the quorum; who is asked
    /// is bounded.
    #[test]
    fn a_majority_is_accepted_or_nothing_is(quorum in 2u32..=5, votes in prop::collection::vec(0u8..4, 16)) {
        let (accepted, asked) = play(|at| votes[at], quorum);
        prop_assert!(asked <= (quorum + QUORUM_EXTRA) as usize);
        if let Some(accepted) = accepted {
            let agreeing = votes[..asked].iter().filter(|vote| **vote == accepted).count();
            prop_assert!(agreeing * 2 > asked && agreeing > quorum as usize / 2);
        }
    }
}

#[test]
fn honest_nodes_agree_with_as_few_runs_as_can_be() {
    assert_eq!(play(|_| 1, 2), (Some(1), 2));
    assert_eq!(play(|_| 1, 3), (Some(1), 2));
    assert_eq!(play(|_| 1, 5), (Some(1), 3));
    assert_eq!(play(|at| [1, 2, 1][at], 3), (Some(1), 3), "one liar costs one run");
    assert_eq!(play(|at| at as u8, 3), (None, 5), "nobody is believed");
}

/// Runs a task for a quorum of two: two at first, 1.1 after ten agreements, 1.02 after fifty.
#[test]
fn trust_is_earned_and_saves_runs() {
    const LOTS: u64 = 1_000_000;
    let runs = |streak| {
        let alone = (0..LOTS).filter(|lot| stands_alone(streak, *lot)).count() as f64;
        2.0 - alone / LOTS as f64
    };
    assert!((runs(0) - 2.0).abs() < 1e-9 && (runs(9) - 2.0).abs() < 1e-9);
    assert!((runs(10) - 1.1).abs() < 1e-3 && (runs(50) - 1.02).abs() < 1e-3);
}

/// A node that lies with a share of its results, against honest others and a quorum of two: fewer wrong results are
/// accepted than it tells, since trust ends with each lie found; of one that lies often, hardly any.
#[test]
fn lying_now_and_then_is_found_and_ends_trust() {
    const TASKS: u64 = 20_000;
    for lie_every in [2u64, 10, 50] {
        let (mut streak, mut accepted_lies, mut found) = (0u32, 0, 0);
        for task in 0..TASKS {
            let hash = blake3::hash(&[lie_every.to_be_bytes(), task.to_be_bytes()].concat());
            let number =
                |at: usize| u64::from_be_bytes(hash.as_bytes()[at..at + 8].try_into().unwrap_or_default());
            let is_lie = number(0).is_multiple_of(lie_every);
            if stands_alone(streak, number(8)) {
                accepted_lies += u64::from(is_lie);
            } else if is_lie {
                found += 1;
                streak = 0;
            } else {
                streak += 1;
            }
        }
        let share = accepted_lies as f64 / TASKS as f64;
        // What gets through is below what it lies, and every second task at the most is believed unseen.
        assert!(share < 1.0 / lie_every as f64, "{lie_every}: {share}");
        assert!(found > 0);
        if lie_every == 2 {
            assert!(share < 0.01, "who lies often is seldom trusted: {share}");
        }
    }
}
