//! Under any troubles, the cluster keeps its promises: what was acknowledged is there, reads show what was written and
//! nothing older than they may, and a healed cluster serves and mends itself.

use makai_integration::world::{Mutant, run};

/// Seeds that are tried each time.
const FIXED: std::ops::Range<u64> = 1..6;
/// And so many drawn anew: more with `MAKAI_WORLD_SEEDS=N`, one alone with `MAKAI_WORLD_SEED=S`.
const FRESH: u64 = 2;
/// Seeds tried until a mutant is noticed.
const MUTANT_SEEDS: std::ops::Range<u64> = 100..106;
/// Operations that a world answers at least, else it shows little.
const ANSWERED_MIN: usize = 15;

/// `RUST_LOG` says what is told of the product's inside; nothing by default, since everything fails here.
fn listen() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing_subscriber::filter::LevelFilter::OFF.into())
        .from_env_lossy();
    drop(tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init());
}

fn named(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

/// Durability, atomicity, strong consistency, right bytes, nothing kept for ever, and life after death.
fn promises_are_kept(seeds: impl Iterator<Item = u64>) {
    listen();
    for seed in seeds {
        let report = run(seed, None).unwrap_or_else(|broken| {
            panic!("MAKAI_WORLD_SEED={seed} makes the same troubles again: {broken}")
        });
        println!("seed {seed}: {report:?}");
        assert!(report.done >= ANSWERED_MIN, "seed {seed}: {report:?}");
    }
}

#[test]
fn promises_are_kept_in_worlds_known_to_be_hard() {
    promises_are_kept(FIXED);
}

#[test]
fn promises_are_kept_in_worlds_never_seen() {
    match named("MAKAI_WORLD_SEED") {
        Some(seed) => promises_are_kept([seed].into_iter()),
        None => {
            let count = named("MAKAI_WORLD_SEEDS").unwrap_or(FRESH);
            promises_are_kept((0..count).map(|_| rand::random()));
        }
    }
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
