//! `makai bench fuse`: what ordinary file operations cost in a directory, ours or a peer's.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::latency::Latencies;
use super::stopwatch;
use crate::cli::print_json;
use crate::process::Watch;

const SMALL_BYTES: usize = 4096;
const LARGE_PART_BYTES: usize = 1 << 20;
const MIB: u64 = 1 << 20;
/// Even: the directory has its name again.
const RENAMES: usize = 20;

/// Create, read and write files in a directory of any filesystem: rates, latencies, processor time
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory on the filesystem to measure; a folder is made in it and removed
    directory: PathBuf,
    /// Small files to create and read
    #[arg(long, default_value_t = 2000)]
    files: usize,
    /// Size of the large file, MiB
    #[arg(long, default_value_t = 256)]
    large_mib: u64,
    /// Programs that create small files at once, in a second round; 0: none
    #[arg(long, default_value_t = 16)]
    writers: usize,
    /// Random reads of 4 KiB
    #[arg(long, default_value_t = 5000)]
    reads: usize,
    /// The mount's process on this machine: its processor time is counted with the programs'
    #[arg(long, value_delimiter = ',')]
    mount_pids: Vec<u32>,
    /// Processes that serve the filesystem: their processor time is counted by itself
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    operations: u64,
    per_second: f64,
    mib_per_second: f64,
    p50_us: u128,
    p99_us: u128,
    /// Of this process and the mount's, for each operation.
    cpu_us: f64,
    /// Of the processes that serve it.
    server_cpu_us: f64,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let rows = tokio::task::spawn_blocking(move || {
        let folder = args.directory.join(format!("makai-bench-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("make {folder:?}"))?;
        let rows = measure(&args, &folder);
        fs::remove_dir_all(&folder).with_context(|| format!("remove {folder:?}"))?;
        rows
    });
    let rows = rows.await??;
    if json {
        print_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<34} {:>9} {:>11} {:>9} {:>9} {:>9} {:>10}",
        "", "per s", "MiB/s", "p50 us", "p99 us", "cpu us", "servers us"
    );
    for row in rows {
        println!(
            "{:<34} {:>9.0} {:>11.1} {:>9} {:>9} {:>9.1} {:>10.1}",
            row.what,
            row.per_second,
            row.mib_per_second,
            row.p50_us,
            row.p99_us,
            row.cpu_us,
            row.server_cpu_us
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &Args, folder: &Path) -> anyhow::Result<Vec<Row>> {
    ensure!(args.files > 0 && args.reads > 0 && args.large_mib > 0, "every count must be at least 1");
    let small = vec![0x5a; SMALL_BYTES];
    let part: Vec<u8> = (0..LARGE_PART_BYTES).map(|at| (at * 31 + at / 257) as u8).collect();
    let name = |number: usize| folder.join(format!("file-{number}"));
    let large = folder.join("large");
    let parts = args.large_mib * MIB / LARGE_PART_BYTES as u64;
    let mut rows = Vec::new();
    // Filesystems that make files later than they say do it within the time that is measured.
    rows.push(timed(args, "create 4 KiB, fsync of the folder", args.files, SMALL_BYTES, |number| {
        File::create_new(name(number))?.write_all(&small)?;
        if number + 1 == args.files { sync_folder(folder) } else { Ok(()) }
    })?);
    if args.writers > 0 {
        rows.push(created_at_once(args, folder, &small)?);
    }
    let mut buffer = vec![0; LARGE_PART_BYTES];
    rows.push(timed(args, "open + read 4 KiB + close", args.files, SMALL_BYTES, |number| {
        File::open(name(number))?.read_exact(&mut buffer[..SMALL_BYTES])?;
        ensure!(buffer[..SMALL_BYTES] == small, "{:?} holds other bytes than were written", name(number));
        Ok(())
    })?);
    rows.push(timed(args, "stat", args.files, 0, |number| {
        ensure!(
            fs::metadata(name(number))?.len() == SMALL_BYTES as u64,
            "{:?} has another size",
            name(number)
        );
        Ok(())
    })?);
    let mut listed = 0;
    rows.push(timed(args, "list, with attributes", 1, 0, |_| {
        for entry in fs::read_dir(folder)? {
            listed += usize::from(entry?.metadata()?.is_file());
        }
        Ok(())
    })?);
    ensure!(listed == args.files, "{listed} of {} files are listed", args.files);
    let moved = [folder.with_extension("moved"), folder.to_owned()];
    rows.push(timed(args, "rename of the directory", RENAMES, 0, |number| {
        Ok(fs::rename(&moved[(number + 1) % 2], &moved[number % 2])?)
    })?);
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&large)?;
    rows.push(timed(args, "write in order, then fsync", parts as usize, LARGE_PART_BYTES, |number| {
        file.write_all(&part)?;
        if number as u64 + 1 == parts {
            file.sync_all()?;
        }
        Ok(())
    })?);
    drop(file);
    let mut file = File::open(&large)?;
    rows.push(timed(args, "read in order", parts as usize, LARGE_PART_BYTES, |_| {
        file.read_exact(&mut buffer)?;
        ensure!(buffer == part, "{large:?} holds other bytes than were written");
        Ok(())
    })?);
    let places = args.large_mib * MIB / SMALL_BYTES as u64;
    let mut place = 1_u64;
    rows.push(timed(args, "random reads of 4 KiB", args.reads, SMALL_BYTES, |_| {
        // Knuth's multiplier: every place comes, in no order.
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (place >> 33) % places * SMALL_BYTES as u64;
        file.read_exact_at(&mut buffer[..SMALL_BYTES], offset)?;
        let from = (offset % LARGE_PART_BYTES as u64) as usize;
        ensure!(buffer[..SMALL_BYTES] == part[from..from + SMALL_BYTES], "{large:?} holds other bytes");
        Ok(())
    })?);
    rows.push(timed(args, "unlink, fsync of the folder", args.files, 0, |number| {
        fs::remove_file(name(number))?;
        if number + 1 == args.files { sync_folder(folder) } else { Ok(()) }
    })?);
    Ok(rows)
}

/// Some filesystems have nothing to sync of a directory, and say so.
fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => Err(error.into()),
        _ => Ok(()),
    }
}

/// Small files made by several threads, each in a directory of its own.
fn created_at_once(args: &Args, folder: &Path, small: &[u8]) -> anyhow::Result<Row> {
    let each = args.files.div_ceil(args.writers);
    let folders: Vec<PathBuf> =
        (0..args.writers).map(|writer| folder.join(format!("writer-{writer}"))).collect();
    for folder in &folders {
        fs::create_dir(folder)?;
    }
    let write = |folder: &PathBuf| -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::default();
        for number in 0..each {
            let one = stopwatch();
            File::create_new(folder.join(format!("file-{number}")))?.write_all(small)?;
            latencies.add(one.elapsed());
        }
        sync_folder(folder)?;
        Ok(latencies)
    };
    let measured = Measured::begin(args)?;
    let mut latencies = Latencies::default();
    std::thread::scope(|scope| {
        let writers: Vec<_> = folders.iter().map(|folder| scope.spawn(move || write(folder))).collect();
        for writer in writers {
            let Ok(done) = writer.join() else { anyhow::bail!("a writer panicked") };
            latencies.merge(&done?);
        }
        Ok(())
    })?;
    let row = measured.end("create, by several at once", each * args.writers, SMALL_BYTES, &latencies)?;
    for folder in &folders {
        fs::remove_dir_all(folder)?;
    }
    Ok(row)
}

/// A measurement under way.
struct Measured {
    near: Watch,
    servers: Watch,
    begun: std::time::Instant,
}

impl Measured {
    fn begin(args: &Args) -> anyhow::Result<Self> {
        let mut near = args.mount_pids.clone();
        near.push(std::process::id());
        Ok(Self { near: Watch::start(&near)?, servers: Watch::start(&args.pids)?, begun: stopwatch() })
    }

    fn end(
        self,
        what: &'static str,
        count: usize,
        bytes: usize,
        latencies: &Latencies,
    ) -> anyhow::Result<Row> {
        let seconds = self.begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let (near, servers) = (self.near.stop()?, self.servers.stop()?);
        Ok(Row {
            what,
            operations: count as u64,
            per_second: count as f64 / seconds,
            mib_per_second: (count * bytes) as f64 / MIB as f64 / seconds,
            p50_us: latencies.percentile(500).as_micros(),
            p99_us: latencies.percentile(990).as_micros(),
            cpu_us: near.cpu.as_secs_f64() * 1e6 / count as f64,
            server_cpu_us: servers.cpu.as_secs_f64() * 1e6 / count as f64,
        })
    }
}

fn timed(
    args: &Args,
    what: &'static str,
    count: usize,
    bytes: usize,
    mut work: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Row> {
    let measured = Measured::begin(args)?;
    let mut latencies = Latencies::default();
    for number in 0..count {
        let one = stopwatch();
        work(number).with_context(|| format!("{what}, operation {number}"))?;
        latencies.add(one.elapsed());
    }
    measured.end(what, count, bytes, &latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_measured_and_nothing_stays_behind() {
        let folder = tempfile::tempdir().unwrap();
        let args = Args {
            directory: folder.path().into(),
            files: 3,
            writers: 2,
            large_mib: 2,
            reads: 7,
            mount_pids: Vec::new(),
            pids: Vec::new(),
            json: false,
        };
        let within = folder.path().join("within");
        fs::create_dir(&within).unwrap();
        let rows = measure(&args, &within).unwrap();
        let counts: Vec<_> = rows.iter().map(|row| row.operations).collect();
        assert_eq!(counts, [3, 4, 3, 3, 1, RENAMES as u64, 2, 2, 7, 3]);
        assert!(rows.iter().all(|row| row.per_second > 0.0));
        let left: Vec<_> = fs::read_dir(&within).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["large"]);
    }
}
