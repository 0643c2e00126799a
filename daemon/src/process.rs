//! What processes cost: processor time and memory, as Linux counts them in `/proc`.

use std::fs;
use std::io;
use std::time::Duration;

/// What a process has cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In user and kernel mode, all threads, dead ones too. Counted in ticks of 10 ms on most machines.
    pub cpu: Duration,
    /// Memory it holds in RAM.
    pub memory_bytes: u64,
    /// The most of it since it started, or since [`forget_peak`].
    pub memory_bytes_peak: u64,
    /// Since it started.
    pub age: Duration,
}

/// What processes together cost between two moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    pub cpu: Duration,
    /// The sum of their peaks: not of one moment, so never less than what they held at once.
    pub memory_bytes_peak: u64,
}

/// Processes under watch.
#[derive(Debug)]
pub struct Watch {
    before: Vec<(u32, Usage)>,
}

impl Watch {
    /// Where the system allows it, peaks of memory start anew.
    ///
    /// # Errors
    /// A process is not there.
    pub fn start(pids: &[u32]) -> io::Result<Self> {
        pids.iter().for_each(|pid| forget_peak(*pid));
        let before = pids.iter().map(|pid| Ok((*pid, usage(*pid)?))).collect::<io::Result<_>>()?;
        Ok(Self { before })
    }

    /// # Errors
    /// A process has ended meanwhile: its cost is lost.
    pub fn stop(&self) -> io::Result<Cost> {
        let mut cost = Cost::default();
        for (pid, before) in &self.before {
            let now = usage(*pid)?;
            cost.cpu += now.cpu.saturating_sub(before.cpu);
            cost.memory_bytes_peak += now.memory_bytes_peak;
        }
        Ok(cost)
    }
}

/// # Errors
/// The process is not there, or this is no Linux.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("read {path}: {error}; is process {pid} running?"))
        })
    };
    let unreadable = |file: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/{file} is not as Linux writes it"))
    };
    let (cpu, started) = ticks(&read("stat")?).ok_or_else(|| unreadable("stat"))?;
    let status = read("status")?;
    let memory = |name| memory_bytes(&status, name).ok_or_else(|| unreadable("status"));
    let since_boot = fs::read_to_string("/proc/uptime").ok().as_deref().and_then(first_seconds);
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    let time = |ticks: u64| Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / ticks_per_second));
    Ok(Usage {
        cpu: time(cpu),
        memory_bytes: memory("VmRSS:")?,
        memory_bytes_peak: memory("VmHWM:")?,
        age: since_boot.unwrap_or_default().saturating_sub(time(started)),
    })
}

/// File descriptors of this process.
///
/// # Errors
/// This is no Linux.
pub fn open_files() -> io::Result<usize> {
    // One of them is the folder that is read.
    Ok(fs::read_dir("/proc/self/fd")?.count().saturating_sub(1))
}

/// Not everyone may: then the peak is that of the process's whole life.
fn forget_peak(pid: u32) {
    const RESET_PEAK: &str = "5";
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), RESET_PEAK);
}

/// Processor time and start, in ticks: fields 14 and 15, and 22, of `stat`, counted behind the name, which may hold blanks and
/// brackets. proc(5).
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let started = fields.nth(6)?.parse().ok()?;
    Some((user.checked_add(system)?, started))
}

fn memory_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The first number of `/proc/uptime`.
fn first_seconds(uptime: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(uptime.split_ascii_whitespace().next()?.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_with_brackets() {
        let stat = "7 (a) 1 2) S 1 7 7 0 -1 4194560 100 0 1 0 350 27 0 0 20 0 4 0 123 1 1";
        assert_eq!(ticks(stat), Some((377, 123)));
        assert_eq!(ticks("7 (a) S 1"), None);
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(memory_bytes(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(memory_bytes(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(first_seconds("12.5 20.1\n"), Some(Duration::from_millis(12_500)));
        assert_eq!(first_seconds("-1 x"), None);
    }

    #[test]
    fn this_process_has_memory_and_its_time_never_falls() {
        let pid = std::process::id();
        let watch = Watch::start(&[pid]).unwrap();
        let before = usage(pid).unwrap();
        assert!(before.memory_bytes_peak > 100_000 && before.memory_bytes > 100_000);
        assert!(before.age < Duration::from_secs(24 * 60 * 60));
        assert!(open_files().unwrap() >= 3);
        assert!(watch.stop().unwrap().memory_bytes_peak > 100_000);
        assert!(usage(pid).unwrap().cpu >= before.cpu);
        assert!(Watch::start(&[u32::MAX]).is_err());
    }
}
