//! Buckets of a cluster, mounted on this machine by the program itself.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use crate::cluster::{Cluster, program};
use crate::wait;

const MOUNTED_WITHIN: Duration = Duration::from_secs(90);
const DETACHED_WITHIN: Duration = Duration::from_secs(20);

/// A mounted bucket: its process, and where it is attached.
pub struct Mounted {
    pub path: PathBuf,
    child: Child,
    /// Killed: the mount point is the next mount's to take.
    is_left: bool,
}

impl Mounted {
    /// `None`: this machine does not mount.
    ///
    /// # Errors
    /// It should, and does not.
    pub fn start(
        profile: &Path,
        bucket: &str,
        path: PathBuf,
        options: &[&str],
    ) -> anyhow::Result<Option<Self>> {
        // It is there already, and cannot be looked at, where a mount died.
        let _ = fs::create_dir_all(&path);
        let mut child = Command::new(program()?)
            .args(["mount", "--profile"])
            .arg(profile)
            .args(options)
            .arg(bucket)
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("no output")?;
        let (said, line) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(out).read_line(&mut line).map(|_| line);
            said.send(read)
        });
        let Ok(line) = line.recv_timeout(MOUNTED_WITHIN) else {
            child.kill()?;
            bail!("the mount says nothing within {} s", MOUNTED_WITHIN.as_secs());
        };
        if line?.is_empty() {
            let status = child.wait()?;
            ensure!(!may_mount(), "the mount ended at once: {status}");
            return Ok(None);
        }
        Ok(Some(Self { path, child, is_left: false }))
    }

    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// kill -9; the mount point is left as it is.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.is_left = true;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// `umount`, and waits until the process has sent all and ended.
    ///
    /// # Errors
    /// It does not end, or says that bytes are lost.
    pub async fn unmount(mut self) -> anyhow::Result<()> {
        let done = Command::new("umount").arg(&self.path).output()?;
        ensure!(done.status.success(), "umount: {}", String::from_utf8_lossy(&done.stderr));
        // What lies below is another's.
        self.is_left = true;
        let status = wait::until("the mount's process ends", DETACHED_WITHIN, || {
            let status = self.child.try_wait();
            async move { status?.context("it runs") }
        })
        .await?;
        ensure!(status.success(), "the mount ended with {status}");
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.is_left {
            return;
        }
        let _ = Command::new("umount").arg("-l").arg(&self.path).stderr(Stdio::null()).status();
    }
}

/// Whether this machine and this user may.
#[must_use]
pub fn may_mount() -> bool {
    rustix::process::geteuid().is_root() && OpenOptions::new().read(true).open("/dev/fuse").is_ok()
}

/// What `makai dev` writes for its users, with gateways at these gRPC addresses.
///
/// # Errors
/// It cannot be written.
pub fn write_profile_of(cluster: &Cluster, doors: &[String]) -> anyhow::Result<PathBuf> {
    let profile = json!({
        "s3": {
            "access_key_id": cluster.credentials.access_key,
            "secret_access_key": cluster.credentials.secret_key,
        },
        "grpc": { "endpoint": doors[0] },
        "nodes": doors.iter().map(|door| json!({ "grpc": door })).collect::<Vec<_>>(),
    });
    let path = cluster.dir().join("profile.json");
    fs::write(&path, serde_json::to_vec(&profile)?)?;
    Ok(path)
}

/// A profile with all gateways of a cluster.
///
/// # Errors
/// It cannot be written.
pub fn write_profile(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let mut doors = Vec::new();
    for node in &cluster.nodes {
        doors.push(format!("http://{}", node.config.grpc.listen.context("no gRPC door")?));
    }
    write_profile_of(cluster, &doors)
}
