//! What a run found, as a table for people or JSON for programs.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::latency::Latencies;
use crate::process::Cost;

/// Codes of answers that were not what was put: worse than any error.
pub(super) const WRONG_BYTES: &str = "wrong-bytes";
pub(super) const WRONG_LENGTH: &str = "wrong-length";

const BYTES_PER_GB: f64 = 1e9;
const BYTES_PER_MB: f64 = 1e6;

/// One size with one number of clients.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) size_bytes: u64,
    pub(super) clients: usize,
    /// From the first start to the last end.
    pub(super) elapsed: Duration,
    /// Object bytes of the operations that succeeded; of listings, their XML.
    pub(super) bytes: u64,
    pub(super) latencies: Latencies,
    pub(super) errors: BTreeMap<String, u64>,
    /// `None`: no processes were named.
    pub(super) server_cost: Option<Cost>,
    pub(super) client_cpu: Duration,
}

impl Row {
    fn per_second(&self, amount: f64) -> f64 {
        amount / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// `None` where nothing was done.
    fn cpu_us_per_op(&self, cpu: Duration) -> Option<f64> {
        let count = self.latencies.count();
        (count > 0).then(|| cpu.as_secs_f64() * 1e6 / count as f64)
    }

    fn cpu_s_per_gb(&self, cpu: Duration) -> Option<f64> {
        (self.bytes > 0).then(|| cpu.as_secs_f64() * BYTES_PER_GB / self.bytes as f64)
    }

    fn is_good(&self) -> bool {
        self.latencies.count() > 0
            && !self.errors.contains_key(WRONG_BYTES)
            && !self.errors.contains_key(WRONG_LENGTH)
    }

    fn to_json(&self) -> Value {
        let latency = &self.latencies;
        let cpu = self.server_cost.map(|cost| cost.cpu);
        json!({
            "size_bytes": self.size_bytes,
            "clients": self.clients,
            "seconds": self.elapsed.as_secs_f64(),
            "operations": latency.count(),
            "operations_per_second": self.per_second(latency.count() as f64),
            "bytes": self.bytes,
            "megabytes_per_second": self.per_second(self.bytes as f64) / BYTES_PER_MB,
            "latency_ms": {
                "mean": ms(latency.mean()),
                "p50": ms(latency.percentile(500)),
                "p90": ms(latency.percentile(900)),
                "p99": ms(latency.percentile(990)),
                "p999": ms(latency.percentile(999)),
                "max": ms(latency.max()),
            },
            "errors": self.errors,
            "server_cpu_us_per_operation": cpu.and_then(|cpu| self.cpu_us_per_op(cpu)),
            "server_cpu_seconds_per_gigabyte": cpu.and_then(|cpu| self.cpu_s_per_gb(cpu)),
            "server_memory_bytes_peak": self.server_cost.map(|cost| cost.memory_bytes_peak),
            "client_cpu_us_per_operation": self.cpu_us_per_op(self.client_cpu),
        })
    }

    fn to_line(&self) -> String {
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_owned(),
        };
        let latency = &self.latencies;
        let cpu = self.server_cost.map(|cost| cost.cpu);
        let errors: Vec<String> = self.errors.iter().map(|(code, count)| format!("{code} {count}")).collect();
        format!(
            "{:>8} {:>7} {:>9.0} {:>9.1} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>10} {:>8} {:>9} {:>10}  {}",
            size_text(self.size_bytes),
            self.clients,
            self.per_second(latency.count() as f64),
            self.per_second(self.bytes as f64) / BYTES_PER_MB,
            ms(latency.percentile(500)),
            ms(latency.percentile(900)),
            ms(latency.percentile(990)),
            ms(latency.max()),
            number(cpu.and_then(|cpu| self.cpu_us_per_op(cpu)), 0),
            number(cpu.and_then(|cpu| self.cpu_s_per_gb(cpu)), 2),
            number(self.server_cost.map(|cost| cost.memory_bytes_peak as f64 / BYTES_PER_MB), 0),
            number(self.cpu_us_per_op(self.client_cpu), 0),
            if errors.is_empty() { "-".to_owned() } else { errors.join(", ") },
        )
    }
}

fn ms(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1e3
}

/// `4KiB`, `1MiB`, or bytes.
pub(super) fn size_text(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// Prints lines as they come, or one document at the end.
#[derive(Debug)]
pub(super) struct Report {
    endpoint: String,
    op: &'static str,
    is_json: bool,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(endpoint: &str, op: &'static str, is_json: bool) -> Self {
        Self { endpoint: endpoint.to_owned(), op, is_json, rows: Vec::new() }
    }

    pub(super) fn add(&mut self, row: Row) {
        if !self.is_json {
            if self.rows.is_empty() {
                self.print(&format!(
                    "{} at {}\n{:>8} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8} {:>9} {:>10}  errors",
                    self.op,
                    self.endpoint,
                    "size",
                    "clients",
                    "op/s",
                    "MB/s",
                    "p50 ms",
                    "p90 ms",
                    "p99 ms",
                    "max ms",
                    "CPU us/op",
                    "CPU s/GB",
                    "peak MB",
                    "own us/op"
                ));
            }
            self.print(&row.to_line());
        }
        self.rows.push(row);
    }

    /// A reader that has gone away is no failure of the measurement.
    fn print(&self, text: &str) {
        let _ = writeln!(io::stdout(), "{text}");
    }

    /// Whether every row did something and no answer was wrong.
    pub(super) fn is_good(&self) -> bool {
        self.rows.iter().all(Row::is_good)
    }

    pub(super) fn finish(self) -> anyhow::Result<()> {
        if self.is_json {
            let rows: Vec<Value> = self.rows.iter().map(Row::to_json).collect();
            let document = json!({"endpoint": self.endpoint, "operation": self.op, "rows": rows});
            self.print(&serde_json::to_string_pretty(&document)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_counts_per_second_per_operation_and_per_gigabyte() {
        let mut latencies = Latencies::default();
        (0..1000).for_each(|_| latencies.add(Duration::from_millis(2)));
        let cost = Cost { cpu: Duration::from_secs(2), memory_bytes_peak: 7_000_000 };
        let row = Row {
            size_bytes: 1 << 20,
            clients: 8,
            elapsed: Duration::from_secs(4),
            bytes: 500_000_000,
            latencies,
            errors: BTreeMap::new(),
            server_cost: Some(cost),
            client_cpu: Duration::from_secs(1),
        };
        let json = row.to_json();
        let number = |key: &str| json[key].as_f64().unwrap();
        assert_eq!(number("operations_per_second"), 250.0);
        assert_eq!(number("megabytes_per_second"), 125.0);
        assert_eq!(number("server_cpu_us_per_operation"), 2000.0);
        assert_eq!(number("server_cpu_seconds_per_gigabyte"), 4.0);
        assert_eq!(number("client_cpu_us_per_operation"), 1000.0);
        assert!(row.is_good());
        let errors = BTreeMap::from([(WRONG_BYTES.to_owned(), 1)]);
        assert!(!Row { errors, ..row }.is_good());
    }

    #[test]
    fn a_size_is_said_in_the_largest_whole_unit() {
        let sizes = [(0, "0B"), (1000, "1000B"), (4096, "4KiB"), (1 << 20, "1MiB"), (5 << 30, "5GiB")];
        for (bytes, text) in sizes {
            assert_eq!(size_text(bytes), text);
        }
    }
}
