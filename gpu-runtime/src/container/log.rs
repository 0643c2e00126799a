//! An attempt's output as the worker keeps it.
//!
//! Format, integers little-endian: the file starts with [`MAGIC`]; then records of stream (1 byte: 1 standard output,
//! 2 standard error, 3 the worker's notices), Unix milliseconds (8), length (4) and that many bytes. A record is written
//! with one call, so a reader sees a torn one only while it is being written, or when the machine stopped there.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::runner::{LogPage, LogRecord, LogStream};

/// Magic and version.
pub const MAGIC: [u8; 8] = *b"MKLOG\x00\x00\x01";
/// The most bytes of one record; what arrives in one read of a pipe.
pub const RECORD_BYTES_MAX: usize = 64 << 10;
const HEADER_BYTES: usize = 13;
/// How far a job may run ahead of its rate: a burst of so many seconds.
const BURST_SECS: u64 = 4;
/// Between two notices of what was dropped.
const NOTICE_EVERY_MS: u64 = 1000;

/// Writes a log and keeps it to its bounds. Time is the caller's.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    bytes_left: u64,
    bytes_per_sec: u64,
    /// What may be written now, and when that was last topped up.
    tokens: u64,
    topped_up_at_ms: u64,
    pub bytes_kept: u64,
    pub bytes_dropped: u64,
    /// Dropped since the last notice, and when that was.
    unsaid: u64,
    said_at_ms: u64,
}

impl LogWriter {
    /// Starts a new log.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, bytes_max: u64, bytes_per_sec: u64, now_ms: u64) -> io::Result<Self> {
        let mut file = File::options().write(true).create(true).truncate(true).open(path)?;
        file.write_all(&MAGIC)?;
        Ok(Self {
            file,
            bytes_left: bytes_max,
            bytes_per_sec,
            tokens: bytes_per_sec.saturating_mul(BURST_SECS),
            topped_up_at_ms: now_ms,
            bytes_kept: 0,
            bytes_dropped: 0,
            unsaid: 0,
            said_at_ms: now_ms,
        })
    }

    /// Keeps what the rate and the total allow, and drops the rest, which a notice counts within a second.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, stream: LogStream, bytes: &[u8], now_ms: u64) -> io::Result<()> {
        let grown = now_ms.saturating_sub(self.topped_up_at_ms).saturating_mul(self.bytes_per_sec) / 1000;
        if grown > 0 {
            self.tokens =
                self.tokens.saturating_add(grown).min(self.bytes_per_sec.saturating_mul(BURST_SECS));
            self.topped_up_at_ms = now_ms;
        }
        let keep = usize::try_from(self.tokens.min(self.bytes_left)).unwrap_or(usize::MAX).min(bytes.len());
        for part in bytes[..keep].chunks(RECORD_BYTES_MAX) {
            self.record(stream, part, now_ms)?;
        }
        self.tokens -= keep as u64;
        self.bytes_left -= keep as u64;
        self.bytes_kept += keep as u64;
        let dropped = (bytes.len() - keep) as u64;
        self.bytes_dropped += dropped;
        self.unsaid += dropped;
        if self.unsaid > 0 && now_ms.saturating_sub(self.said_at_ms) >= NOTICE_EVERY_MS {
            self.say_dropped(now_ms)?;
        }
        Ok(())
    }

    /// A line of the worker's own; not counted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn notice(&mut self, line: &str, now_ms: u64) -> io::Result<()> {
        self.record(LogStream::Notice, format!("{line}\n").as_bytes(), now_ms)
    }

    /// Says what was dropped and not yet said.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(&mut self, now_ms: u64) -> io::Result<()> {
        if self.unsaid > 0 { self.say_dropped(now_ms) } else { Ok(()) }
    }

    fn say_dropped(&mut self, now_ms: u64) -> io::Result<()> {
        let why = if self.bytes_left == 0 {
            "the log has reached its largest size".to_owned()
        } else {
            format!("it came faster than {} bytes a second", self.bytes_per_sec)
        };
        let line = format!("{} bytes of output dropped: {why}", self.unsaid);
        (self.unsaid, self.said_at_ms) = (0, now_ms);
        self.notice(&line, now_ms)
    }

    fn record(&mut self, stream: LogStream, bytes: &[u8], now_ms: u64) -> io::Result<()> {
        let mut record = Vec::with_capacity(HEADER_BYTES + bytes.len());
        record.push(match stream {
            LogStream::Stdout => 1,
            LogStream::Stderr => 2,
            LogStream::Notice => 3,
        });
        record.extend_from_slice(&now_ms.to_le_bytes());
        record.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        record.extend_from_slice(bytes);
        self.file.write_all(&record)
    }
}

/// Reads whole records from `offset`, at least one where one is there, then as many as fit `bytes_max`.
///
/// # Errors
/// When the file cannot be read; [`io::ErrorKind::InvalidInput`] for an offset that is not between two records;
/// [`io::ErrorKind::InvalidData`] for what is no log.
pub fn read_page(path: &Path, offset: u64, bytes_max: usize) -> io::Result<LogPage> {
    let mut at = offset.max(MAGIC.len() as u64);
    let mut page = LogPage { records: Vec::new(), next_offset: offset, is_complete: false };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(page),
        Err(error) => return Err(error),
    };
    let mut magic = [0; MAGIC.len()];
    if file.read_exact_at(&mut magic, 0).is_err() {
        return Ok(page); // Not yet written.
    }
    if magic != MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no log of this version"));
    }
    let size = file.metadata()?.len();
    let mut taken = 0;
    while size.saturating_sub(at) >= HEADER_BYTES as u64 {
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, at)?;
        let [stream, time @ .., l0, l1, l2, l3] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let stream = match stream {
            1 => LogStream::Stdout,
            2 => LogStream::Stderr,
            3 => LogStream::Notice,
            _ => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no record starts at {at}")));
            }
        };
        if length > RECORD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no record starts at {at}")));
        }
        let end = at + (HEADER_BYTES + length) as u64;
        if end > size || (taken > 0 && taken + length > bytes_max) {
            break;
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at + HEADER_BYTES as u64)?;
        page.records.push(LogRecord { stream, at_unix_ms: u64::from_le_bytes(time), bytes });
        taken += length;
        at = end;
    }
    page.next_offset = at;
    page.is_complete = at == size;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(page: &LogPage, stream: LogStream) -> Vec<u8> {
        page.records
            .iter()
            .filter(|record| record.stream == stream)
            .flat_map(|record| record.bytes.clone())
            .collect()
    }

    /// Reading page by page, however small the pages, gives what was written, in order.
    #[test]
    fn pages_join_to_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogWriter::create(&path, 1 << 30, 1 << 30, 5).unwrap();
        let mut written = Vec::new();
        for n in 0..200usize {
            let bytes = vec![n as u8; n * 7];
            log.write(LogStream::Stdout, &bytes, 5 + n as u64).unwrap();
            written.extend(bytes);
        }
        for bytes_max in [1, 1000, 1 << 20] {
            let (mut offset, mut read) = (0, Vec::new());
            loop {
                let page = read_page(&path, offset, bytes_max).unwrap();
                read.extend(text(&page, LogStream::Stdout));
                offset = page.next_offset;
                if page.is_complete {
                    break;
                }
            }
            assert_eq!(read, written);
        }
        assert_eq!(
            read_page(&path, MAGIC.len() as u64 + 1, 1).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    /// A flood is kept to burst and rate, every dropped byte is counted, and the log says how many.
    #[test]
    fn a_flood_is_bounded_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogWriter::create(&path, 1 << 30, 1000, 0).unwrap();
        let mut sent = 0;
        for now_ms in (0..10_000).step_by(10) {
            log.write(LogStream::Stderr, &[b'x'; 500], now_ms).unwrap();
            sent += 500;
        }
        log.finish(10_000).unwrap();
        assert_eq!(log.bytes_kept + log.bytes_dropped, sent);
        assert!((13_900..=14_000).contains(&log.bytes_kept), "{} of 4,000 + 10 s of 1,000", log.bytes_kept);
        let page = read_page(&path, 0, usize::MAX).unwrap();
        assert_eq!(text(&page, LogStream::Stderr).len() as u64, log.bytes_kept);
        let said: u64 = String::from_utf8(text(&page, LogStream::Notice))
            .unwrap()
            .lines()
            .map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(said, log.bytes_dropped);
    }

    #[test]
    fn the_total_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogWriter::create(&path, 100, 1 << 20, 0).unwrap();
        log.write(LogStream::Stdout, &[b'x'; 150], 0).unwrap();
        log.finish(1).unwrap();
        let page = read_page(&path, 0, usize::MAX).unwrap();
        assert_eq!(text(&page, LogStream::Stdout).len(), 100);
        assert!(
            String::from_utf8(text(&page, LogStream::Notice))
                .unwrap()
                .contains("50 bytes of output dropped: the log")
        );
    }
}
