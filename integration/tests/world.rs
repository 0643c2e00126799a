//! Under any troubles, the cluster keeps its promises: what was acknowledged is there, reads show what was written and
//! nothing older than they may, and a healed cluster serves and mends itself.

use makai_integration::world::{Mutant, Report, fresh_seeds, run};

/// Seeds that are tried each time.
const SEEDS: std::ops::Range<u64> = 1..7;
/// And that many drawn anew.
const FRESH: u64 = 2;
/// Seeds tried until a mutant is noticed.
const MUTANT_SEEDS: std::ops::Range<u64> = 100..106;

/// `RUST_LOG` says what is told of the product's inside.
fn listen() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    drop(tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init());
}

fn keeps_its_promises(seed: u64) -> Report {
    let report = run(seed, None).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    println!("seed {seed}: {report:?}");
    report
}

/// Durability, atomicity, strong consistency, right bytes, and life after death.
#[test]
fn promises_are_kept_whatever_goes_wrong() {
    listen();
    let mut done = 0;
    for seed in SEEDS.chain(fresh_seeds(FRESH)) {
        done += keeps_its_promises(seed).done;
    }
    assert!(done > 300, "only {done} operations were answered: the worlds show little");
}

fn is_noticed(mutant: Mutant) {
    listen();
    for seed in MUTANT_SEEDS {
        match run(seed, Some(mutant)) {
            Ok(report) => println!("seed {seed}: {mutant:?} went unnoticed: {report:?}"),
            Err(broken) => {
                println!("seed {seed}: {broken}");
                return;
            }
        }
    }
    panic!("{mutant:?} was never noticed");
}

#[test]
fn disks_that_forget_are_noticed() {
    is_noticed(Mutant::DisksForgetSyncs);
}

#[test]
fn shards_acknowledged_too_early_are_noticed() {
    is_noticed(Mutant::ShardsAcknowledgedEarly);
}

#[test]
fn old_answers_are_noticed() {
    is_noticed(Mutant::OldAnswersReplayed);
}
