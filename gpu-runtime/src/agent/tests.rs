//! The agent against a desk and a runner in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use makai_raft::facts::desk::{ListedObject, Source, Target};
use makai_raft::facts::jobs::{
    End, Input, InputRange, JobId, JobSpec, ModuleArgument, ModuleBuffer, ModuleCode, ModuleFill, ModuleStep,
    ModuleWork, ObjectPath, Output, Resources, Statement, Work,
};
use makai_raft::facts::tenant::TenantId;
use tokio::time::timeout;

use super::*;
use crate::runner::{Enforcement, Level, LogRecord, Outcome, TaskSpec, Usage};

const WITHIN: Duration = Duration::from_secs(10);
const NODE: NodeId = NodeId([7; 32]);

#[derive(Default)]
struct Desk {
    assigned: Mutex<Vec<AssignedTask>>,
    writes: Mutex<BTreeMap<String, Vec<u8>>>,
    finished: Mutex<Vec<Statement>>,
    /// Nobody answers.
    is_down: AtomicBool,
    heard: Notify,
}

#[async_trait]
impl Pool for Desk {
    async fn ask(&self, _about: Option<AttemptId>, request: Request) -> Result<Reply, String> {
        if self.is_down.load(Ordering::Relaxed) {
            self.heard.notify_one();
            return Err("down".into());
        }
        let is_current =
            |id: &AttemptId| self.assigned.lock().unwrap().iter().any(|task| task.attempt == *id);
        Ok(match request {
            Request::Assignments => Reply::Assignments(self.assigned.lock().unwrap().clone()),
            Request::Start { .. } => Reply::Done,
            Request::List { source: Source::Image, .. } => Reply::Objects {
                objects: vec![ListedObject { name: String::new(), size: 5, version: 1 }],
                is_truncated: false,
            },
            Request::List { after, .. } => {
                // Two pages, the second with a name that leaves the folder of the input.
                let name = if after.is_empty() { "a/b" } else { "c" };
                Reply::Objects {
                    objects: vec![ListedObject { name: name.into(), size: 3, version: 2 }],
                    is_truncated: after.is_empty(),
                }
            }
            Request::Read { source, offset, len, .. } => {
                let all: &[u8] = if source == Source::Image { b"image" } else { b"abc" };
                let (from, to) = (offset as usize, (offset + len) as usize);
                Reply::Bytes(Bytes::copy_from_slice(&all[from..to]))
            }
            Request::Write { attempt, .. } if !is_current(&attempt) => Reply::Fault(Fault::Stale(attempt)),
            Request::Write { to, offset, bytes, .. } => {
                let name = match to {
                    Target::Log => "log".to_owned(),
                    Target::Output { at, path } => format!("{at}:{path}"),
                };
                let mut writes = self.writes.lock().unwrap();
                let written = writes.entry(name).or_default();
                written.truncate(offset as usize);
                written.extend_from_slice(&bytes);
                Reply::Done
            }
            Request::Finish { statement, .. } if !is_current(&statement.attempt) => {
                Reply::Fault(Fault::Stale(statement.attempt))
            }
            Request::Finish { statement, .. } => {
                self.assigned.lock().unwrap().retain(|task| task.attempt != statement.attempt);
                self.finished.lock().unwrap().push(statement);
                self.heard.notify_one();
                Reply::Done
            }
        })
    }
}

/// What a runner keeps of an attempt.
#[derive(Debug, Clone)]
struct Fake {
    id: runner::AttemptId,
    end: watch::Sender<Option<Outcome>>,
    machine: Arc<Machine>,
}

#[derive(Debug, Default)]
struct Machine {
    running: Mutex<BTreeMap<String, (Fake, TaskSpec)>>,
    starts: Mutex<Vec<String>>,
    changed: Notify,
}

#[derive(Debug, Clone)]
struct FakeRunner(Arc<Machine>);

fn enforcement() -> Enforcement {
    Enforcement { level: Level::Strict, weaknesses: Vec::new(), gpu: None }
}

#[async_trait]
impl Runner for FakeRunner {
    fn enforcement(&self) -> Enforcement {
        enforcement()
    }

    fn has_image(&self, _content: &runner::ContentId) -> bool {
        false
    }

    async fn start(&self, task: &TaskSpec) -> Result<Box<dyn Attempt>, RunError> {
        let name = task.attempt.as_str().to_owned();
        self.0.starts.lock().unwrap().push(name.clone());
        let fake = Fake { id: task.attempt.clone(), end: watch::channel(None).0, machine: self.0.clone() };
        self.0.running.lock().unwrap().insert(name, (fake.clone(), task.clone()));
        self.0.changed.notify_one();
        Ok(Box::new(fake))
    }

    async fn attempts(&self) -> Result<Vec<Box<dyn Attempt>>, RunError> {
        let running = self.0.running.lock().unwrap();
        Ok(running.values().map(|(fake, _)| Box::new(fake.clone()) as Box<dyn Attempt>).collect())
    }
}

#[async_trait]
impl Attempt for Fake {
    fn id(&self) -> &runner::AttemptId {
        &self.id
    }

    async fn wait(&self) -> Result<Outcome, RunError> {
        let mut end = self.end.subscribe();
        let ended = end.wait_for(Option::is_some).await.expect("the sender is here").clone();
        Ok(ended.expect("it has ended"))
    }

    async fn usage(&self) -> Result<Usage, RunError> {
        Ok(Usage::default())
    }

    async fn log(&self, offset: u64, _max_bytes: usize) -> Result<LogPage, RunError> {
        let record = LogRecord { stream: LogStream::Stdout, at_unix_ms: 1, bytes: b"hi".to_vec() };
        let records = if offset == 0 { vec![record] } else { Vec::new() };
        Ok(LogPage { records, next_offset: 8 + 15, is_complete: self.end.borrow().is_some() })
    }

    async fn stop(&self) -> Result<(), RunError> {
        Ok(())
    }

    async fn kill(&self) -> Result<(), RunError> {
        end(self, runner::End::Stopped);
        Ok(())
    }

    async fn forget(&self) -> Result<(), RunError> {
        self.machine.running.lock().unwrap().remove(self.id.as_str());
        self.machine.changed.notify_one();
        Ok(())
    }
}

fn task(attempt: u32) -> AssignedTask {
    let path = |key: &str| ObjectPath { bucket: "b".into(), key: key.into() };
    let work = Work::Container {
        image: path("image"),
        command: vec!["run".into(), "{index}".into()],
        env: Vec::new(),
        working_dir: String::new(),
        user: String::new(),
    };
    AssignedTask {
        attempt: AttemptId { job: JobId(1), index: 4, attempt },
        tenant: TenantId(1),
        is_running: false,
        spec: JobSpec {
            name: String::new(),
            work,
            resources: Resources { cpu_millis: 1, memory_bytes: 1 << 20, scratch_bytes: 100, gpu: None },
            inputs: vec![Input { from: path("in/"), path: "d".into(), range: None }],
            outputs: vec![Output { path: String::new(), to: path("out/{index}/") }],
            tasks: 5,
            priority: 50,
            attempts_max: 1,
            backoff_ms: 0,
            time_limit_ms: 1000,
            deadline: None,
            site: String::new(),
            after: Vec::new(),
            is_gang: false,
            price_max: 0,
            quorum: 0,
        },
        gpus: Vec::new(),
    }
}

struct Scene {
    desk: Arc<Desk>,
    machine: Arc<Machine>,
    dir: tempfile::TempDir,
}

struct Running {
    stop: watch::Sender<bool>,
    agent: Arc<Agent>,
    task: tokio::task::JoinHandle<Result<(), AgentError>>,
}

impl Scene {
    fn new() -> Self {
        Self { desk: Arc::default(), machine: Arc::default(), dir: tempfile::tempdir().unwrap() }
    }

    fn start(&self) -> Running {
        let agent = Agent::new(AgentOptions {
            node: NODE,
            pool: self.desk.clone(),
            runner: Arc::new(FakeRunner(self.machine.clone())),
            sign: Arc::new(Bytes::copy_from_slice),
            dir: self.dir.path().to_owned(),
            cache_bytes_max: 1000,
        })
        .unwrap();
        let (stop, stopping) = watch::channel(false);
        let follower = Arc::clone(&agent);
        Running { stop, agent, task: tokio::spawn(async move { follower.run(stopping).await }) }
    }

    fn assign(&self, task: AssignedTask, agent: &Agent) {
        self.desk.assigned.lock().unwrap().push(task);
        agent.wake();
    }

    async fn started(&self, attempt: u32) -> (Fake, TaskSpec) {
        let look = async {
            loop {
                let found =
                    self.machine.running.lock().unwrap().get(&name_of(task(attempt).attempt)).cloned();
                if let Some(found) = found {
                    return found;
                }
                self.machine.changed.notified().await;
            }
        };
        timeout(WITHIN, look).await.expect("it starts")
    }

    async fn gone(&self) {
        let look = async {
            while !self.machine.running.lock().unwrap().is_empty() {
                self.machine.changed.notified().await;
            }
        };
        timeout(WITHIN, look).await.expect("it is forgotten");
    }

    async fn finished(&self) -> Statement {
        let look = async {
            loop {
                if let Some(statement) = self.desk.finished.lock().unwrap().first() {
                    return statement.clone();
                }
                self.desk.heard.notified().await;
            }
        };
        timeout(WITHIN, look).await.expect("it is reported")
    }
}

fn end(fake: &Fake, end: runner::End) {
    let outcome = Outcome {
        end,
        message: String::new(),
        usage: Usage { cpu_ms: 9, ..Usage::default() },
        enforcement: enforcement(),
        started_at_ms: Some(1),
        ended_at_ms: 2,
    };
    fake.end.send_replace(Some(outcome));
}

#[tokio::test]
async fn a_task_is_staged_run_published_and_forgotten() {
    let scene = Scene::new();
    let running = scene.start();
    scene.assign(task(1), &running.agent);
    let (fake, spec) = scene.started(1).await;
    let input = spec.input.unwrap();
    assert_eq!(std::fs::read(input.join("d/a/b")).unwrap(), b"abc");
    assert_eq!(std::fs::read(input.join("d/c")).unwrap(), b"abc");
    let runner::Work::Container(work) = &spec.work else { panic!("a container") };
    assert_eq!(work.command, ["run", "4"]);
    assert_eq!(work.env["MAKAI_TASK_INDEX"], "4");
    assert_eq!(work.image.content.0, *blake3::hash(b"image").as_bytes());
    let output = spec.output.unwrap();
    std::fs::create_dir(output.join("deep")).unwrap();
    std::fs::write(output.join("deep/file"), "result").unwrap();
    std::fs::write(output.join("empty"), "").unwrap();
    end(&fake, runner::End::Exited { code: 0 });
    let statement = scene.finished().await;
    assert_eq!((statement.node, statement.end.clone()), (NODE, End::Exited { code: 0 }));
    assert_eq!((statement.usage.cpu_ms, statement.usage.bytes_in, statement.usage.bytes_out), (9, 6, 6));
    let said: Vec<_> = statement.outputs.iter().map(|output| (output.key.as_str(), output.size)).collect();
    assert_eq!(said, [("out/4/deep/file", 6), ("out/4/empty", 0)]);
    assert_eq!(statement.outputs[0].blake3, *blake3::hash(b"result").as_bytes());
    let writes = scene.desk.writes.lock().unwrap().clone();
    assert_eq!(writes["0:deep/file"], b"result");
    let (record, _) = joblog::parse(&writes["log"][8..]).unwrap().unwrap();
    assert_eq!(record.text, b"hi");
    scene.gone().await;
}

/// A module reaches the runner as this task runs it: code, the offset of its index, its index among the arguments.
#[tokio::test]
async fn a_module_is_the_tasks_own() {
    let scene = Scene::new();
    let running = scene.start();
    let path = |key: &str| ObjectPath { bucket: "b".into(), key: key.into() };
    let buffer =
        |name: &str, fill| ModuleBuffer { name: name.into(), bytes: 3, fill, is_output: name == "y" };
    let fill = ModuleFill::Input { offset: 7, offset_per_task: 100 };
    let step = ModuleStep {
        kernel: "k".into(),
        grid: [1, 2, 3],
        block: [4, 5, 6],
        shared_bytes: 7,
        arguments: vec![ModuleArgument::Buffer("x".into()), ModuleArgument::TaskIndex],
        repeat: 2,
    };
    let mut wanted = task(1);
    wanted.spec.work = Work::Module(ModuleWork {
        code: ModuleCode::Object(path("image")),
        buffers: vec![buffer("x/a", fill), buffer("y", ModuleFill::Zero)],
        steps: vec![step],
    });
    wanted.spec.inputs = vec![Input { from: path("in/"), path: "x".into(), range: None }];
    scene.assign(wanted, &running.agent);
    let (_, spec) = scene.started(1).await;
    let runner::Work::Module(work) = spec.work else { panic!("a module") };
    assert_eq!(work.ptx, "image");
    assert_eq!(work.buffers[0].fill, runner::Fill::Input { file: "x/a".into(), offset: 407 });
    assert_eq!((&work.buffers[0].output, &work.buffers[1].output), (&None, &Some("y".into())));
    let arguments = [runner::Argument::Buffer { name: "x".into() }, runner::Argument::Integer { value: 4 }];
    assert_eq!(work.steps[0].arguments, arguments);
    assert_eq!((work.steps[0].grid, work.steps[0].repeat), ([1, 2, 3], 2));
}

/// Of a range, only its bytes are brought, and only they count; one that the object does not have is told.
#[tokio::test]
async fn a_range_is_all_that_is_brought() {
    let scene = Scene::new();
    let running = scene.start();
    let with = |bytes| {
        let mut wanted = task(1);
        wanted.spec.inputs[0].range = Some(InputRange { offset: 1, offset_per_task: 0, bytes });
        wanted
    };
    scene.assign(with(2), &running.agent);
    let (fake, spec) = scene.started(1).await;
    assert_eq!(std::fs::read(spec.input.unwrap().join("d/a/b")).unwrap(), b"bc");
    end(&fake, runner::End::Exited { code: 0 });
    assert_eq!(scene.finished().await.usage.bytes_in, 4);
    scene.gone().await;
    scene.desk.finished.lock().unwrap().clear();
    scene.assign(
        AssignedTask { attempt: AttemptId { attempt: 2, ..task(1).attempt }, ..with(3) },
        &running.agent,
    );
    let refused = scene.finished().await.end;
    assert!(
        matches!(&refused, End::Refused { why } if why.contains("3 bytes from 1 on are wanted of 3")),
        "{refused:?}"
    );
}

/// A card that its owner takes back is told as a loss, which is no fault of the task's; what has other cards stays.
#[tokio::test]
async fn what_holds_a_card_makes_way_for_its_owner() {
    let scene = Scene::new();
    let running = scene.start();
    let on = |attempt, gpu: &str| AssignedTask { gpus: vec![gpu.into()], ..task(attempt) };
    scene.assign(on(1, "GPU-1"), &running.agent);
    scene.started(1).await;
    let stays = AssignedTask { attempt: AttemptId { index: 3, ..task(1).attempt }, ..on(1, "GPU-2") };
    scene.assign(stays, &running.agent);
    timeout(WITHIN, async {
        while scene.machine.running.lock().unwrap().len() < 2 {
            scene.machine.changed.notified().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(running.agent.take_back(|uuid| uuid == "GPU-1", "wanted").await, 1);
    let statement = scene.finished().await;
    assert_eq!((statement.attempt.index, statement.end), (4, End::Lost { why: "wanted".into() }));
    assert_eq!(running.agent.end_for("job-1-3-1", &End::OutOfMemory).await, 1);
}

/// Whatever is not this node's any more is killed, and nothing is said of it.
#[tokio::test]
async fn an_attempt_that_is_revoked_is_killed() {
    let scene = Scene::new();
    let running = scene.start();
    scene.assign(task(1), &running.agent);
    scene.started(1).await;
    scene.desk.assigned.lock().unwrap().clear();
    running.agent.wake();
    scene.gone().await;
    assert!(scene.desk.finished.lock().unwrap().is_empty());
}

/// A new agent joins what ran before, starts nothing twice, and ends what nobody wants any more.
#[tokio::test]
async fn attempts_outlive_the_agent() {
    let scene = Scene::new();
    let first = scene.start();
    scene.assign(task(1), &first.agent);
    scene
        .assign(AssignedTask { attempt: AttemptId { index: 3, ..task(1).attempt }, ..task(1) }, &first.agent);
    let (fake, spec) = scene.started(1).await;
    timeout(WITHIN, async {
        while scene.machine.running.lock().unwrap().len() < 2 {
            scene.machine.changed.notified().await;
        }
    })
    .await
    .unwrap();
    first.stop.send_replace(true);
    timeout(WITHIN, first.task).await.unwrap().unwrap().unwrap();
    scene.desk.assigned.lock().unwrap().retain(|assigned| assigned.attempt == task(1).attempt);

    std::fs::write(spec.output.unwrap().join("r"), "x").unwrap();
    let second = scene.start();
    end(&fake, runner::End::Exited { code: 0 });
    let statement = scene.finished().await;
    assert_eq!(statement.outputs.len(), 1);
    scene.gone().await;
    let starts = scene.machine.starts.lock().unwrap().clone();
    assert_eq!(starts.len(), 2, "{starts:?}");
    drop(second);
}

/// A report that nobody hears is repeated until somebody does.
#[tokio::test(start_paused = true)]
async fn a_report_waits_for_a_gateway() {
    let scene = Scene::new();
    let running = scene.start();
    scene.assign(task(1), &running.agent);
    let (fake, _) = scene.started(1).await;
    scene.desk.is_down.store(true, Ordering::Relaxed);
    end(&fake, runner::End::MemoryLimit);
    for _ in 0..20 {
        scene.desk.heard.notified().await;
    }
    scene.desk.is_down.store(false, Ordering::Relaxed);
    assert_eq!(scene.finished().await.end, End::OutOfMemory);
    scene.gone().await;
}

#[test]
fn a_path_never_leaves_its_folder() {
    let folder = std::path::Path::new("/f");
    for wrong in ["", "/etc", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b", ".."] {
        assert_eq!(stage::below(folder, wrong), None, "{wrong:?}");
    }
    assert_eq!(stage::below(folder, "a/b c"), Some("/f/a/b c".into()));
}
