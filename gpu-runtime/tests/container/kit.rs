//! A runner in a folder of its own, an image with one program, and tasks for both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use makai_gpu_runtime::card::host::Host;
use makai_gpu_runtime::container::{Bounds, ContainerConfig, ContainerRunner};
use makai_gpu_runtime::runner::{
    Attempt, AttemptId, ContainerWork, ContentId, Image, Level, Limits, LogStream, Network, Outcome,
    RunError, Runner, TaskSpec, Work,
};
use tar::{Builder, EntryType, Header};

/// No attempt here may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Kit {
    pub runner: ContainerRunner,
    pub folder: tempfile::TempDir,
    /// Libraries of a driver, where a test has one.
    pub driver: Option<tempfile::TempDir>,
    pub cards: Option<Arc<Host>>,
}

/// The static program of `task.c`, built once.
pub fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("task");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/container/task.c");
        let built = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&program).arg(source).status();
        assert!(built.expect("a C compiler: apt-get install gcc libc6-dev").success());
        std::fs::read(program).unwrap()
    })
}

/// Appends a file, folder or link to an archive.
pub fn entry(archive: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, link: &str, body: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_mode(0o755);
    header.set_size(body.len() as u64);
    header.set_cksum();
    archive.append(&header, body).unwrap();
}

/// A root file system with `/bin/task` and a user.
pub fn root_tar() -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    entry(&mut archive, EntryType::Regular, "bin/task", "", program());
    entry(&mut archive, EntryType::Regular, "etc/passwd", "", b"root:x:0:0::/root:/\nweb:x:33:34::/srv:/\n");
    entry(&mut archive, EntryType::Directory, "srv/", "", b"");
    archive.into_inner().unwrap()
}

/// What a task of this kit runs.
pub fn container(task: &mut TaskSpec) -> &mut ContainerWork {
    match &mut task.work {
        Work::Container(work) => work,
        Work::Module(_) => panic!("a task of a module"),
    }
}

impl Kit {
    /// `None` where the machine has no namespaces, which is said.
    pub async fn new() -> Option<Self> {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ContainerConfig)) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        match ContainerRunner::open(config).await {
            Ok(runner) => Some(Self { runner, folder, driver: None, cards: None }),
            Err(RunError::Refused(why))
                if std::env::var("MAKAI_TEST_CONTAINERS").as_deref() != Ok("require") =>
            {
                eprintln!("SKIPPED: {why}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A library of this kit's driver.
    pub fn driver_file(&self, name: &str) -> PathBuf {
        self.driver.as_ref().expect("a kit with cards").path().join("driver").join(name)
    }

    /// What the runner was opened with.
    pub fn config(&self) -> ContainerConfig {
        ContainerConfig { cards: self.cards.clone(), ..config(self.folder.path()) }
    }

    /// Writes an image file and names it.
    pub fn image(&self, bytes: &[u8]) -> Image {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self.folder.path().join(format!("image-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&path, bytes).unwrap();
        Image { content: ContentId(*blake3::hash(bytes).as_bytes()), path: Some(path) }
    }

    /// A task of the program with these words, inputs in `in` and outputs in `out` of a folder of its own.
    pub fn task(&self, name: &str, words: &[&str]) -> TaskSpec {
        let folder = self.folder.path().join(format!("task-{name}"));
        for part in ["in", "out"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
        }
        let command = std::iter::once("/bin/task").chain(words.iter().copied()).map(str::to_owned).collect();
        TaskSpec {
            attempt: AttemptId::new(name).unwrap(),
            work: Work::Container(ContainerWork {
                image: self.image(&root_tar()),
                command,
                env: BTreeMap::new(),
                working_dir: String::new(),
                user: String::new(),
                network: Network::None,
            }),
            limits: Limits {
                memory_bytes: 64 << 20,
                pids: 32,
                time_ms: 20_000,
                stop_grace_ms: 300,
                ..Limits::default()
            },
            input: Some(folder.join("in")),
            output: Some(folder.join("out")),
            gpus: Vec::new(),
        }
    }

    pub fn runner_level(&self) -> Level {
        self.runner.enforcement().level
    }

    pub async fn start(&self, task: &TaskSpec) -> Box<dyn Attempt> {
        self.runner.start(task).await.unwrap()
    }

    /// Runs a task to its end; answers that and all of its output.
    pub async fn run(&self, task: &TaskSpec) -> (Outcome, Output) {
        let attempt = self.start(task).await;
        let outcome = ended(&*attempt).await;
        (outcome, output(&*attempt).await)
    }
}

pub fn config(folder: &Path) -> ContainerConfig {
    ContainerConfig {
        state: folder.join("state"),
        worker: vec![PathBuf::from(env!("CARGO_BIN_EXE_makai-worker")).into()],
        bounds: Bounds { image_bytes: 8 << 20, entries: 2000, cache_bytes: 64 << 20 },
        level_min: Level::Watched,
        allow_host_network: false,
        use_cgroups: true,
        cards: None,
        spare_kept_for: Duration::from_secs(60),
    }
}

pub async fn ended(attempt: &dyn Attempt) -> Outcome {
    tokio::time::timeout(PATIENCE, attempt.wait()).await.expect("the attempt ends").unwrap()
}

/// What came out of an attempt, by stream.
#[derive(Debug, Default)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub notices: String,
}

impl Output {
    /// The value of a line `NAME=VALUE`.
    pub fn value(&self, name: &str) -> &str {
        let line = self.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {name}= in {self:?}"))
    }
}

pub async fn output(attempt: &dyn Attempt) -> Output {
    let mut output = Output::default();
    let mut offset = 0;
    loop {
        let page = attempt.log(offset, 1 << 20).await.unwrap();
        for record in &page.records {
            let text = String::from_utf8_lossy(&record.bytes);
            match record.stream {
                LogStream::Stdout => output.stdout.push_str(&text),
                LogStream::Stderr => output.stderr.push_str(&text),
                LogStream::Notice => output.notices.push_str(&text),
            }
        }
        if page.records.is_empty() {
            return output;
        }
        offset = page.next_offset;
    }
}

/// Waits until an attempt has written this.
pub async fn until_says(attempt: &dyn Attempt, words: &str) {
    let says = async {
        while !output(attempt).await.stdout.contains(words) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, says).await.unwrap_or_else(|_| panic!("the task says {words:?}"));
}

/// Processes of the machine whose command line holds these words.
pub fn processes(words: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(words) {
            found.push(line);
        }
    }
    found
}
