//! Mounts files in this process's memory: what the mount itself costs, and what test suites say of it, without a pool.
//!
//! `cargo run -p makai-gateway --example memory_mount -- DIR` serves until DIR is unmounted or Ctrl-C.

#[path = "../tests/files_in_memory/mod.rs"]
mod files_in_memory;

use std::path::PathBuf;
use std::sync::Arc;

use files_in_memory::FilesInMemory;
use makai_gateway::fuse::kernel::{Attach, attach, detach, detach_dead};
use makai_gateway::fuse::mount::{Mount, Options};

/// What the kernel has still to forget.
const FORGETS_MAX: usize = 1024;
const UNSENT_BYTES_MAX: usize = 64 << 20;
const CACHE_BYTES_MAX: usize = 64 << 20;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).expect("the directory to mount on"));
    detach_dead(&directory)?;
    let options = Options {
        durable_close: false,
        unsent_bytes_max: UNSENT_BYTES_MAX,
        cache_bytes_max: CACHE_BYTES_MAX,
        disk_cache: None,
        decides_alone: true,
        now: files_in_memory::now,
    };
    let (forgets, forgotten) = tokio::sync::mpsc::channel(FORGETS_MAX);
    let service = Arc::new(FilesInMemory::default());
    let mount = Mount::begin(service, options, forgets).await.map_err(std::io::Error::other)?;
    tokio::spawn(mount.clone().follow_changes());
    tokio::spawn(mount.clone().send_by_age());
    let how = Attach {
        directory: directory.clone(),
        source: "memory".into(),
        is_trusted: true,
        ..Attach::default()
    };
    let attached = attach(mount.clone(), &how, forgotten, tokio::runtime::Handle::current())?;
    println!("ready");
    let ended = tokio::task::spawn_blocking(move || attached.join());
    tokio::select! {
        ended = ended => ended.map_err(std::io::Error::other)??,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            detach(&directory)?;
        }
    }
    mount.end().await.map_err(std::io::Error::other)?;
    Ok(())
}
