//! Ports that nobody else takes while a test holds them.
//!
//! They lie below the range from which the kernel gives ports to connections, so a daemon that is away does not lose
//! its port to one; a locked file for each keeps other test processes off.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, bail};

const FIRST: u16 = 15_000;
const COUNT: u16 = 16_000;

/// A port of the loopback address, for UDP and TCP, until dropped.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _lock: File,
}

/// # Errors
/// The system's folder for temporary files cannot be written, or no port is free.
pub fn take() -> anyhow::Result<Port> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let folder = std::env::temp_dir().join("makai-test-ports");
    fs::create_dir_all(&folder).with_context(|| format!("make {folder:?}"))?;
    // Processes begin far apart, so that they seldom meet.
    let start = std::process::id().wrapping_mul(61) % u32::from(COUNT);
    for _ in 0..COUNT {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let number = FIRST + u16::try_from((start + step) % u32::from(COUNT)).unwrap_or(0);
        let path = folder.join(number.to_string());
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = lock.with_context(|| format!("open {path:?}"))?;
        let address = (Ipv4Addr::LOCALHOST, number);
        if lock.try_lock().is_ok() && TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(Port { number, _lock: lock });
        }
    }
    bail!("no port from {FIRST} to {} is free on this machine", FIRST + COUNT - 1)
}
