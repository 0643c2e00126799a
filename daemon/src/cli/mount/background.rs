//! A mount that goes on without its terminal: started by a first process, which ends once it is attached.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;

use super::Args;

/// Tells the process that it is the one in the background.
pub const DETACHED: &str = "--detached";

/// Starts this command again, in the background, and waits until it is attached or has failed.
///
/// # Errors
/// It does not start; the log cannot be written.
pub fn start(args: &Args) -> anyhow::Result<ExitCode> {
    let path = args.log.clone().unwrap_or_else(|| log_of(&args.directory));
    let log = open_log(&path).with_context(|| format!("open the log {path:?}; give another: --log FILE"))?;
    let before = log.metadata()?.len();
    let mut child = Command::new(std::env::current_exe()?)
        .args(super::options::command_line().into_iter().skip(1))
        .arg(DETACHED)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start the process in the background")?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if line.is_empty() {
        child.wait()?;
        let mut said = String::new();
        let mut log = File::open(&path)?;
        log.seek(SeekFrom::Start(before))?;
        log.take(LOG_SHOWN_BYTES_MAX).read_to_string(&mut said)?;
        eprint!("{said}");
        return Ok(ExitCode::FAILURE);
    }
    println!("{}; process {}, log {}", line.trim_end(), child.id(), path.display());
    Ok(ExitCode::SUCCESS)
}

const LOG_SHOWN_BYTES_MAX: u64 = 64 << 10;

fn open_log(path: &Path) -> anyhow::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(OpenOptions::new().create(true).append(true).open(path)?)
}

/// Where a mount says what goes wrong, if nothing else is asked for.
fn log_of(directory: &Path) -> PathBuf {
    let shown = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let name = format!("mount{}.log", shown.to_string_lossy().replace('/', "-"));
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|_| !rustix::process::getuid().is_root());
    match home {
        Some(home) => home.join(".local/state/makai").join(name),
        None => Path::new("/var/log/makai").join(name),
    }
}

/// Leaves the terminal and its session.
pub fn leave_terminal() {
    // Refused where this process leads a group already: then no terminal sends it signals either.
    let _ = rustix::process::setsid();
}

/// Tells a service manager that asked for it that the mount is attached (`Type=notify`).
pub fn tell_service_manager() {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", Path::new(&address)));
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager is not told that the mount is ready");
    }
}
