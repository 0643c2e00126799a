//! The agent against a desk and a runner in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use makai_raft::facts::desk::{ListedObject, Source, Target, ToldAttempt};
use makai_raft::facts::jobs::{
    Each, End, Input, InputRange, JobId, JobSpec, ModuleArgument, ModuleBuffer, ModuleCode, ModuleFill,
    ModuleStep, ModuleWork, ObjectPath, Output, Resources, Statement, Work,
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
    /// What each request said of attempts that run.
    told_running: Mutex<Vec<Vec<AttemptId>>>,
    /// Nobody answers.
    is_down: AtomicBool,
    heard: Notify,
    /// While it is shut, no look and no word that attempts run is answered; what looks find is what was there when they were asked.
    gate: Gate,
}

/// Shut by whoever holds it.
#[derive(Default)]
struct Gate {
    shut: tokio::sync::RwLock<()>,
    /// Somebody waits.
    waits: Notify,
}

impl Gate {
    async fn pass(&self) {
        if self.shut.try_read().is_err() {
            self.waits.notify_one();
            drop(self.shut.read().await);
        }
    }
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
            Request::Assignments => {
                let assigned = self.assigned.lock().unwrap().clone();
                self.gate.pass().await;
                Reply::Assignments(assigned)
            }
            Request::Start { attempts } => {
                self.told_running.lock().unwrap().push(attempts);
                self.gate.pass().await;
                Reply::Done
            }
            Request::List { source: Source::Image, .. } => Reply::Objects {
                objects: vec![ListedObject { size: 5, version: 1, ..ListedObject::default() }],
                is_truncated: false,
            },
            Request::List { source: Source::Each, after, .. } => {
                let name = if after.is_empty() { "x/1" } else { "2" };
                let from = ObjectPath { bucket: "b".into(), key: format!("p/{name}") };
                let object = ListedObject { name: name.into(), size: 3, version: 9, from: Some(from) };
                Reply::Objects { objects: vec![object], is_truncated: after.is_empty() }
            }
            Request::List { after, .. } => {
                // Two pages, the second with a name that leaves the folder of the input.
                let name = if after.is_empty() { "a/b" } else { "c" };
                Reply::Objects {
                    objects: vec![ListedObject { name: name.into(), size: 3, version: 2, from: None }],
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
            each: None,
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

/// A task for objects finds them, and a list of them; only where one at a time was asked for is the one named.
#[tokio::test]
async fn a_task_for_objects_is_told_which() {
    for (per_task, is_predicted) in [(2, false), (1, true)] {
        let scene = Scene::new();
        let running = scene.start();
        let mut task = task(1);
        let from = ObjectPath { bucket: "b".into(), key: "p/".into() };
        // Of the one at a time, this desk lists two: nothing runs.
        let objects = if per_task == 2 { 10 } else { 5 };
        let path = "each".to_owned();
        task.spec.each = Some(Each { from, is_manifest: false, path, per_task, is_predicted, objects });
        if per_task == 1 {
            scene.assign(task, &running.agent);
            let statement = scene.finished().await;
            let End::Failed { why } = statement.end else { panic!("{statement:?}") };
            assert!(why.contains("other objects"), "{why}");
            continue;
        }
        scene.assign(task, &running.agent);
        let (fake, spec) = scene.started(1).await;
        let input = spec.input.unwrap();
        assert_eq!(std::fs::read(input.join("each/x/1")).unwrap(), b"abc");
        assert_eq!(std::fs::read(input.join("each/2")).unwrap(), b"abc");
        let list = std::fs::read_to_string(input.join("each.list")).unwrap();
        assert_eq!(list, "/in/each/x/1\ts3://b/p/x/1\n/in/each/2\ts3://b/p/2\n");
        let runner::Work::Container(work) = &spec.work else { panic!("a container") };
        assert_eq!(
            (&*work.env["MAKAI_OBJECT_COUNT"], &*work.env["MAKAI_OBJECT_LIST"]),
            ("2", "/in/each.list")
        );
        assert!(!work.env.contains_key("MAKAI_OBJECT"));
        end(&fake, runner::End::Exited { code: 0 });
        scene.finished().await;
    }
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

fn told(attempt: u32) -> Vec<Told> {
    let AssignedTask { attempt: AttemptId { job, index, attempt }, tenant, spec, gpus, .. } = task(attempt);
    vec![Told { job, tenant, spec, attempts: vec![ToldAttempt { index, attempt, gpus }] }]
}

/// What is told begins though a look is under way, and what that finds, which is older, does not end it.
#[tokio::test]
async fn what_is_told_begins_at_once_and_stays() {
    let scene = Scene::new();
    let shut = scene.desk.gate.shut.write().await;
    let running = scene.start();
    timeout(WITHIN, scene.desk.gate.waits.notified()).await.expect("it looks");
    scene.desk.assigned.lock().unwrap().push(task(1));
    running.agent.tell(told(1));
    let (fake, _) = scene.started(1).await;
    drop(shut);
    running.agent.wake();
    // The next look begins when the older answer has been taken.
    soon("it looks again", || running.agent.lock().looks > 1).await;
    end(&fake, runner::End::Signalled { signal: 9 });
    assert_eq!(scene.finished().await.end, End::Signalled { signal: 9 });
}

/// One word of too many attempts is a wake: what begins is what the facts then say.
#[tokio::test]
async fn who_is_told_too_much_asks() {
    let scene = Scene::new();
    let running = scene.start();
    scene.desk.assigned.lock().unwrap().push(task(1));
    let mut many = told(1);
    let other = |index| ToldAttempt { index, attempt: 1, gpus: Vec::new() };
    many[0].attempts = (10..=10 + TOLD_MAX as u32).map(other).collect();
    running.agent.tell(many);
    scene.started(1).await;
    assert_eq!(running.agent.busy(), 1);
}

/// What had to make room for what is told does not hold its place until the next look is due.
#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods, reason = "the test's own clock, which stands still but for timers")]
async fn what_made_room_goes_at_once() {
    let scene = Scene::new();
    let running = scene.start();
    scene.assign(task(1), &running.agent);
    scene.started(1).await;
    *scene.desk.assigned.lock().unwrap() = vec![task(2)];
    let begun = tokio::time::Instant::now();
    running.agent.tell(told(2));
    let first = name_of(task(1).attempt);
    while scene.machine.running.lock().unwrap().contains_key(&first) {
        scene.machine.changed.notified().await;
    }
    assert!(begun.elapsed() < LOOK_EVERY / 2, "{:?}", begun.elapsed());
    scene.started(2).await;
}

/// What is over and known by the facts to be so is not begun anew by a word that was long on its way.
#[tokio::test]
async fn a_late_word_begins_nothing() {
    let scene = Scene::new();
    let running = scene.start();
    scene.assign(task(1), &running.agent);
    let (fake, _) = scene.started(1).await;
    end(&fake, runner::End::Signalled { signal: 9 });
    scene.finished().await;
    scene.gone().await;
    soon("the facts name it no more", || {
        running.agent.wake();
        running.agent.lock().by_id.is_empty()
    })
    .await;
    scene.desk.assigned.lock().unwrap().push(task(2));
    running.agent.tell(told(1));
    running.agent.tell(told(2));
    scene.started(2).await;
    assert_eq!(*scene.machine.starts.lock().unwrap(), ["job-1-4-1", "job-1-4-2"]);
}

/// Of a job's first attempt it is told that it runs before it is told how it ended; of others together, and not of those that are over.
#[tokio::test]
async fn that_attempts_run_is_told_once_for_many() {
    let scene = Scene::new();
    let running = scene.start();
    let of = |index, attempt| AssignedTask {
        attempt: AttemptId { index, ..task(attempt).attempt },
        ..task(attempt)
    };
    let shut = scene.desk.gate.shut.write().await;
    let give = |task: AssignedTask| {
        scene.desk.assigned.lock().unwrap().push(task.clone());
        let AssignedTask { attempt: AttemptId { job, index, attempt }, tenant, spec, gpus, .. } = task;
        running.agent.tell(vec![Told {
            job,
            tenant,
            spec,
            attempts: vec![ToldAttempt { index, attempt, gpus }],
        }]);
    };
    give(task(1));
    let (first, _) = scene.started(1).await;
    let requests = || scene.desk.told_running.lock().unwrap().clone();
    soon("it is told", || requests().len() == 1).await;
    end(&first, runner::End::Signalled { signal: 9 });
    (0..4).for_each(|index| give(of(index, 1)));
    let running_here = || running.agent.lock().by_id.values().filter(|known| known.attempt.is_some()).count();
    soon("all run", || running_here() == 5).await;
    assert!(scene.desk.finished.lock().unwrap().is_empty(), "it is not told yet that the job's first runs");
    drop(shut);
    scene.finished().await;
    soon("all are told", || requests().iter().flatten().count() == 5).await;
    assert_eq!((requests().len(), &*requests()[0]), (2, &[task(1).attempt][..]));
    // The job is known to run: of one that is over before it is told, nothing is.
    let shut = scene.desk.gate.shut.write().await;
    for attempt in [2, 3] {
        give(of(9, attempt));
        let id = of(9, attempt).attempt;
        let runs = || running.agent.lock().by_id.get(&id).is_some_and(|known| known.attempt.is_some());
        soon("it runs", runs).await;
        let fake = scene.machine.running.lock().unwrap()[&name_of(id)].0.clone();
        end(&fake, runner::End::Signalled { signal: 9 });
        soon("it is over", || !runs()).await;
    }
    drop(shut);
    give(of(10, 1));
    soon("the next is told", || requests().concat().contains(&of(10, 1).attempt)).await;
    assert!(!requests().concat().contains(&of(9, 3).attempt), "{:?}", requests());
}

async fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN, look).await.unwrap_or_else(|_| panic!("{what}"));
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
