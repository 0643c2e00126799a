//! `makai bench codec`: what erasure coding costs on this CPU, on one core.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use makai_erasure::Scheme;
use makai_erasure::codec::{Codec, kernel_name};
use makai_erasure::layout::CELL_BYTES;
use serde::Serialize;

use super::{progress, stopwatch};
use crate::cli::print_json;

/// More than any cache holds, so that stripes come from memory.
const COLD_BYTES: usize = 256 << 20;

/// Erasure coding: GB of data per second on one core
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Schemes to measure
    #[arg(long, value_delimiter = ',', default_value = "2+2,4+2,6+4,10+4,16+8")]
    schemes: Vec<Scheme>,
    /// Seconds for each figure
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    scheme: String,
    kernel: &'static str,
    /// Of data, for stripes of 64 KiB cells that stay in cache.
    encode_hot_gb_per_sec: f64,
    /// The same for stripes from memory.
    encode_cold_gb_per_sec: f64,
    /// Data read to rebuild one lost data shard.
    rebuild_hot_gb_per_sec: f64,
}

/// Data bytes per second of `work`, which handles `bytes` each time.
fn rate(
    seconds: u64,
    bytes: usize,
    mut work: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let whole = Duration::from_secs(seconds);
    let begun = stopwatch();
    let mut rounds = 0;
    while begun.elapsed() < whole {
        for _ in 0..8 {
            work(rounds)?;
            rounds += 1;
        }
    }
    Ok((rounds * bytes) as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

fn measure(scheme: Scheme, seconds: u64) -> anyhow::Result<Row> {
    let codec = Codec::new(scheme)?;
    let (data, cell) = (usize::from(scheme.data), CELL_BYTES as usize);
    let stripe = scheme.shard_count() * cell;
    let count = COLD_BYTES.div_ceil(stripe).max(1);
    let mut memory: Vec<u8> = (0..count * stripe).map(|at| (at * 31 + at / 257) as u8).collect();
    let mut encode = |at: usize| -> anyhow::Result<()> {
        let stripe = memory.chunks_exact_mut(stripe).nth(at % count).context("the stripe is there")?;
        let (cells, parity) = stripe.split_at_mut(data * cell);
        let cells: Vec<&[u8]> = cells.chunks_exact(cell).collect();
        let mut parity: Vec<&mut [u8]> = parity.chunks_exact_mut(cell).collect();
        Ok(codec.encode(&cells, &mut parity)?)
    };
    let encode_cold_gb_per_sec = rate(seconds, data * cell, &mut encode)?;
    let encode_hot_gb_per_sec = rate(seconds, data * cell, |_| encode(0))?;
    let mut lost = vec![0; cell];
    let cells: Vec<(usize, &[u8])> =
        memory[..stripe].chunks_exact(cell).enumerate().skip(1).take(data).collect();
    let rebuild_hot_gb_per_sec = match cells.len() == data {
        true => rate(seconds, data * cell, |_| Ok(codec.rebuild(&cells, &mut [(0, &mut lost[..])])?))?,
        false => 0.0,
    };
    Ok(Row {
        scheme: scheme.to_string(),
        kernel: kernel_name(),
        encode_hot_gb_per_sec,
        encode_cold_gb_per_sec,
        rebuild_hot_gb_per_sec,
    })
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    makai_erasure::codec::self_test()?;
    if !args.json {
        println!("kernel {}, cells of {CELL_BYTES} bytes, one core, GB of data per second", kernel_name());
        println!("{:<8} {:>12} {:>12} {:>14}", "scheme", "encode hot", "encode cold", "rebuild 1 hot");
    }
    for scheme in args.schemes {
        let bar = progress(&format!("codec {scheme}"), Duration::from_secs(3 * args.seconds));
        let row = tokio::task::spawn_blocking(move || measure(scheme, args.seconds)).await??;
        bar.finish_and_clear();
        if args.json {
            print_json(&row)?;
        } else {
            println!(
                "{:<8} {:>12.1} {:>12.1} {:>14.1}",
                row.scheme, row.encode_hot_gb_per_sec, row.encode_cold_gb_per_sec, row.rebuild_hot_gb_per_sec
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
