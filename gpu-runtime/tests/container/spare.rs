//! Workers that were started before their tasks: what they become, and that nothing is left of them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use makai_gpu_runtime::container::ContainerRunner;
use makai_gpu_runtime::runner::{AttemptId, End, Limits, ModuleStep, ModuleWork, Runner, TaskSpec, Work};
use rustix::process::{Pid, Signal};

use crate::kit::{Kit, config, ended, until_says};

const PATIENCE: Duration = Duration::from_secs(30);
/// Folder in which this program, started by a test, is the daemon that is to be killed.
const DAEMON: &str = "MAKAI_TEST_SPARE_DAEMON";

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn spare_of(runner: &ContainerRunner) -> u32 {
    until("a spare is there", || runner.spare_pid().is_some()).await;
    runner.spare_pid().unwrap()
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn signal(pid: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn worker_of(folder: &Path, name: &str) -> u32 {
    let file = folder.join("state/attempts").join(name).join("worker.json");
    let worker: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    worker["body"]["pid"].as_u64().unwrap() as u32
}

/// A module of one thread that does nothing.
fn nothing(name: &str) -> TaskSpec {
    let ptx = ".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry nothing()\n{\nret;\n}\n";
    let step = ModuleStep {
        kernel: "nothing".into(),
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        arguments: Vec::new(),
        repeat: 1,
    };
    TaskSpec {
        attempt: AttemptId::new(name).unwrap(),
        work: Work::Module(ModuleWork { ptx: ptx.into(), buffers: Vec::new(), steps: vec![step] }),
        limits: Limits { memory_bytes: 64 << 20, pids: 32, ..Limits::default() },
        input: None,
        output: None,
        gpus: Vec::new(),
    }
}

/// The next task's worker is the process that waited for it, which is given no other; and it is confined like any.
#[tokio::test]
async fn a_spare_becomes_the_next_tasks_worker() {
    let Some(kit) = Kit::new().await else { return };
    assert_eq!(kit.runner.spare_pid(), None, "none before the first task");
    ended(&*kit.start(&nothing("first")).await).await;
    let mut before = worker_of(kit.folder.path(), "first");
    for name in ["second", "third"] {
        let spare = spare_of(&kit.runner).await;
        assert_ne!(spare, before);
        let outcome = ended(&*kit.start(&nothing(name)).await).await;
        assert!(outcome.is_success(), "{outcome:?}");
        before = worker_of(kit.folder.path(), name);
        assert_eq!(before, spare);
    }
    let spare = spare_of(&kit.runner).await;
    let (outcome, said) = kit.run(&kit.task("container", &["say", "hello"])).await;
    assert!(outcome.is_success(), "{outcome:?} {said:?}");
    assert_eq!(said.stdout, "hello\n");
    assert_eq!(worker_of(kit.folder.path(), "container"), spare);
}

#[tokio::test]
async fn a_spare_that_was_killed_is_no_tasks_worker() {
    let Some(kit) = Kit::new().await else { return };
    ended(&*kit.start(&nothing("first")).await).await;
    let spare = spare_of(&kit.runner).await;
    signal(spare, Signal::KILL);
    until("it is gone, and no zombie left", || !is_there(spare)).await;
    let outcome = ended(&*kit.start(&nothing("second")).await).await;
    assert!(outcome.is_success(), "{outcome:?}");
    assert_ne!(worker_of(kit.folder.path(), "second"), spare);
}

/// Killed between the word of its task and its first instruction for it, it loses the task like any worker: nothing ran, and all is known.
#[tokio::test]
async fn a_spare_that_is_killed_with_its_task_loses_it() {
    let Some(kit) = Kit::new().await else { return };
    ended(&*kit.start(&nothing("first")).await).await;
    let spare = spare_of(&kit.runner).await;
    signal(spare, Signal::STOP);
    let attempt = kit.start(&nothing("lost")).await;
    signal(spare, Signal::KILL);
    let outcome = ended(&*attempt).await;
    assert_eq!((outcome.end, outcome.started_at_ms), (End::WorkerLost, None));
    attempt.forget().await.unwrap();
    assert!(!kit.folder.path().join("state/attempts/lost").exists());
    let outcome = ended(&*kit.start(&nothing("next")).await).await;
    assert!(outcome.is_success(), "{outcome:?}");
}

#[tokio::test]
async fn a_spare_goes_when_no_task_comes_and_with_its_runner() {
    let Some(kit) = Kit::with(|config| config.spare_kept_for = Duration::from_millis(100)).await else {
        return;
    };
    ended(&*kit.start(&nothing("first")).await).await;
    let spare = spare_of(&kit.runner).await;
    until("it goes when no task comes", || !is_there(spare)).await;
    assert_eq!(kit.runner.spare_pid(), None);
    // The next task has another kept.
    ended(&*kit.start(&nothing("second")).await).await;
    spare_of(&kit.runner).await;

    let Some(kit) = Kit::new().await else { return };
    ended(&*kit.start(&nothing("first")).await).await;
    let spare = spare_of(&kit.runner).await;
    drop(kit.runner);
    until("it goes with its runner", || !is_there(spare)).await;
}

#[tokio::test]
async fn none_is_kept_where_none_is_wanted() {
    let Some(kit) = Kit::with(|config| config.spare_kept_for = Duration::ZERO).await else { return };
    for name in ["first", "second"] {
        assert!(ended(&*kit.start(&nothing(name)).await).await.is_success());
    }
    assert_eq!(kit.runner.spare_pid(), None);
}

/// Not a test: the daemon that the next one kills.
#[tokio::test]
async fn daemon_to_be_killed() {
    let Ok(folder) = std::env::var(DAEMON) else { return };
    let folder = Path::new(&folder);
    let runner = ContainerRunner::open(config(folder)).await.unwrap();
    let first = runner.start(&nothing("first")).await.unwrap();
    ended(&*first).await;
    let spare = spare_of(&runner).await;
    std::fs::write(folder.join("part"), spare.to_string()).unwrap();
    std::fs::rename(folder.join("part"), folder.join("spare")).unwrap();
    std::future::pending::<()>().await;
}

/// A daemon that is killed leaves no spare, but the attempts that run.
#[tokio::test]
async fn a_spare_dies_with_its_daemon() {
    let Some(kit) = Kit::new().await else { return };
    let running = kit.start(&kit.task("stays", &["sleep", "1000"])).await;
    until_says(&*running, "sleeping").await;
    let own = std::env::current_exe().unwrap();
    let mut daemon = Command::new(own)
        .args(["--exact", "spare::daemon_to_be_killed", "--nocapture"])
        .env(DAEMON, kit.folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = kit.folder.path().join("spare");
    until("the daemon has a spare", || told.exists()).await;
    let spare: u32 = std::fs::read_to_string(&told).unwrap().parse().unwrap();
    assert!(is_there(spare));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    until("the spare is gone", || !is_there(spare)).await;
    assert!(is_there(worker_of(kit.folder.path(), "stays")), "what runs goes on");
    running.kill().await.unwrap();
    assert_eq!(ended(&*running).await.end, End::Stopped);
}
