//! A folder of this machine, mounted for a test.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use makai_gateway::fuse::disk_cache::DiskCache;
use makai_gateway::fuse::kernel::{Attach, attach, detach};
use makai_gateway::fuse::mount::{Mount, Options};
use makai_gateway::fuse::service::{Attr, Change, Edit, FileRef, Operation, Payload};
use tokio::runtime::Runtime;

use crate::files_in_memory::{self, FilesInMemory};

const FORGETS_MAX: usize = 1024;
const UNSENT_BYTES_MAX: usize = 8 << 20;
const CACHE_BYTES_MAX: usize = 8 << 20;

/// A mounted folder; unmounted and removed at the end.
pub struct Mounted {
    pub path: PathBuf,
    pub service: Arc<FilesInMemory>,
    pub mount: Arc<Mount>,
    runtime: Option<Runtime>,
    ended: Option<JoinHandle<std::io::Result<()>>>,
}

pub fn mounted(name: &str, durable_close: bool) -> Option<Mounted> {
    mounted_over(Arc::default(), name, durable_close, None)
}

pub fn mounted_over(
    service: Arc<FilesInMemory>,
    name: &str,
    durable_close: bool,
    disk_cache: Option<Arc<DiskCache>>,
) -> Option<Mounted> {
    let path = std::env::temp_dir().join(format!("makai-fuse-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    let runtime = Runtime::new().unwrap();
    let options = Options {
        durable_close,
        unsent_bytes_max: UNSENT_BYTES_MAX,
        cache_bytes_max: CACHE_BYTES_MAX,
        disk_cache,
        decides_alone: true,
        now: files_in_memory::now,
    };
    let (forgets, forgotten) = tokio::sync::mpsc::channel(FORGETS_MAX);
    let mount = runtime.block_on(Mount::begin(service.clone(), options, forgets)).unwrap();
    let how = Attach { directory: path.clone(), source: "memory".into(), ..Attach::default() };
    match attach(mount.clone(), &how, forgotten, runtime.handle().clone()) {
        Ok(attached) => {
            runtime.spawn(mount.clone().follow_changes());
            runtime.spawn(mount.clone().send_by_age());
            let ended = Some(std::thread::spawn(move || attached.join()));
            Some(Mounted { path, service, mount, runtime: Some(runtime), ended })
        }
        Err(error) => {
            println!("skipped: this machine does not mount: {error}");
            runtime.shutdown_background();
            fs::remove_dir(&path).unwrap();
            None
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        detach(&self.path).unwrap();
        let ended = self.ended.take().map(JoinHandle::join);
        if let Some(runtime) = self.runtime.take() {
            let _ = runtime.block_on(self.mount.end());
            runtime.shutdown_background();
        }
        let _ = fs::remove_dir(&self.path);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(Ok(())))), "the session ends cleanly");
    }
}

impl Mounted {
    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What the pool itself has of a file.
    pub fn stored(&self, name: &str) -> Vec<u8> {
        use makai_gateway::fuse::service::FileService as _;
        let file = FileRef { ino: self.service.find(name).unwrap(), place: None };
        self.block_on(self.service.read(&file, 0, u64::from(u32::MAX))).unwrap().data.to_vec()
    }

    /// What the pool itself says of a file.
    pub fn stat(&self, name: &str) -> Attr {
        use makai_gateway::fuse::service::FileService as _;
        let file = FileRef { ino: self.service.find(name).unwrap(), place: None };
        self.block_on(self.service.attributes(&file)).unwrap()
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }

    /// Another mount writes to a file.
    pub fn write_elsewhere(&self, name: &str, offset: u64, data: &'static [u8]) {
        let ino = self.service.find(name).unwrap();
        let data = Payload::Inline(Bytes::from_static(data));
        let edits = vec![Edit::Write { offset, data }];
        let file = FileRef { ino, place: None };
        let edit = Operation::Edit { file, edits, mtime: None };
        self.service.change_elsewhere(edit, vec![Change::Node(ino)]).unwrap();
    }
}

/// Asks until it is so; the deadline only ends a test that fails.
pub fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("not within 5 s: {what}");
}
