//! Promise: no bytes from outside take a node down or fill its memory.
//!
//! `MAKAI_FUZZ_SECONDS=N` gives each parser N seconds, with other dice each time (`MAKAI_TEST_SEED=N` repeats them).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use makai_integration::targets;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Damaged samples for each parser.
const ROUNDS: usize = 20_000;
const BYTES_MAX: usize = 64 * 1024;
/// How much memory the process may come to have while samples of at most 64 KiB are parsed.
const GROWN_KIB_MAX: u64 = 256 * 1024;
/// Bytes that mean something to some format: marks of lengths, ends, quotes, path parts.
const TELLING: [u8; 24] = [
    0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC6, 0xC9, 0xCF, 0xD3, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xFE, 0xFF,
    b'"', b'{', b'[', b'=', b'\n', b'*',
];

fn samples() -> anyhow::Result<Vec<Vec<u8>>> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut samples = vec![Vec::new()];
    for folder in [own.join("golden/0.1.0"), own.join("../config/examples")] {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("{folder:?}"))? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|kind| ["msgpack", "json", "toml"].iter().any(|known| kind == *known))
            {
                samples.push(std::fs::read(&path)?);
            }
        }
    }
    for text in [
        "4+3",
        r#"{"Version":"2012-10-17","Statement":{"Effect":"Deny","Principal":{"AWS":["arn:aws:iam::1:user/a","*"]},"NotAction":"s3:Get*","Resource":["arn:aws:s3:::bucket/${aws:username}/*","arn:aws:s3:::bucket"],"Condition":{"ForAllValues:StringLikeIfExists":{"aws:TagKeys":["a*"]},"IpAddress":{"aws:SourceIp":"::1/64"},"DateLessThan":{"aws:CurrentTime":"2026-01-01T00:00:00Z"},"Null":{"aws:x":true}}}}"#,
    ] {
        samples.push(text.as_bytes().to_vec());
    }
    samples.sort();
    Ok(samples)
}

/// A sample, damaged in one to eight ways.
fn damaged(random: &mut StdRng, samples: &[Vec<u8>]) -> Vec<u8> {
    let pick = |random: &mut StdRng| &samples[random.random_range(0..samples.len())];
    let mut bytes = pick(random).clone();
    for _ in 0..random.random_range(1..=8) {
        let at = random.random_range(0..=bytes.len());
        let end = at + random.random_range(0..=32).min(bytes.len() - at);
        match random.random_range(0..8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = TELLING[random.random_range(0..TELLING.len())],
            2 => bytes.insert(at, TELLING[random.random_range(0..TELLING.len())]),
            3 => bytes.truncate(at),
            4 => _ = bytes.drain(at..end),
            5 => {
                let again = bytes[at..end].to_vec();
                let times = random.random_range(1..=64);
                bytes.splice(at..at, again.repeat(times));
            }
            6 => {
                let other = pick(random);
                let from = random.random_range(0..=other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let number: [u8; 8] = random.random();
                bytes.splice(at..end, number);
            }
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

/// The most memory that this process ever had.
fn peak_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(peak.trim().trim_end_matches(" kB").parse()?)
}

#[test]
#[expect(clippy::disallowed_methods, reason = "bounds how long a person lets it look; decides nothing else")]
fn no_bytes_from_outside_take_a_node_down() -> anyhow::Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = number("MAKAI_FUZZ_SECONDS");
    let seed = number("MAKAI_TEST_SEED").or_else(|| seconds.map(|_| rand::random())).unwrap_or(1);
    println!("MAKAI_TEST_SEED={seed}");
    let samples = samples()?;
    ensure!(samples.len() > 12, "samples of every format: {}", samples.len());
    let before = peak_kib()?;
    for (name, target) in targets::ALL {
        let mut random = StdRng::seed_from_u64(seed);
        let began = Instant::now();
        let mut rounds = 0;
        while seconds.map_or(rounds < ROUNDS, |seconds| began.elapsed() < Duration::from_secs(seconds)) {
            let bytes = damaged(&mut random, &samples);
            let outcome = std::panic::catch_unwind(|| target(&bytes));
            ensure!(outcome.is_ok(), "{name} panics at {}", hex_of(&bytes));
            rounds += 1;
        }
        println!("{name}: {rounds} samples in {:?}", began.elapsed());
        let grown = peak_kib()?.saturating_sub(before);
        ensure!(grown < GROWN_KIB_MAX, "{name}: the process grew by {grown} KiB");
    }
    Ok(())
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
