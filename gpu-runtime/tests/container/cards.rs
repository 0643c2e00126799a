//! Shares of cards, from the driver's libraries through the real worker to a module's result: on cards made of software.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use makai_gpu_runtime::card::guard::{Owner, whose};
use makai_gpu_runtime::card::host::{Host, HostConfig, PAUSED};
use makai_gpu_runtime::runner::{
    Argument, End, Fill, GpuLevel, ModuleBuffer, ModuleStep, ModuleWork, RunError, Runner, TaskSpec, Work,
};
use makai_gpu_runtime::slice::{Kind, Slice};

use crate::kit::{self, Kit};

const SAXPY: &str = include_str!("../module/ptx/saxpy.ptx");
const HOSTILE: &str = include_str!("../module/ptx/hostile.ptx");
/// Kernels that take as long as their names say.
const SPIN: &str = ".version 7.0\n.target sm_70\n.address_size 64\n\
    .visible .entry spin_20000us()\n{\n\tret;\n}\n.visible .entry spin_2000us()\n{\n\tret;\n}\n";
pub const CARD: &str =
    r#"[{"uuid": "GPU-1", "model": "NVIDIA Test Card", "memory_mib": 64, "capability": [8, 9]}]"#;

/// The libraries of a driver whose cards are made of software, in a folder.
pub fn driver(folder: &Path, cards: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let profile = own.parent().and_then(Path::parent).unwrap();
    let built = profile.join("examples/libfake_driver.so");
    if !built.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "-p", "makai-gpu-runtime", "--example", "fake_driver"]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "the fake driver builds");
    }
    let driver = folder.join("driver");
    std::fs::create_dir_all(&driver).unwrap();
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        std::fs::copy(&built, driver.join(name)).unwrap();
    }
    std::fs::write(driver.join("cards.json"), cards).unwrap();
    driver
}

/// A runner of a machine with these cards.
pub async fn kit(cards: &str) -> Option<(Kit, Arc<Host>, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    let driver = driver(folder.path(), cards);
    let host = Arc::new(host(folder.path(), &driver));
    let own = Arc::clone(&host);
    let mut kit = Kit::with(|config| config.cards = Some(own)).await?;
    // Lives as long as the runner does.
    kit.driver = Some(folder);
    kit.cards = Some(Arc::clone(&host));
    Some((kit, host, driver))
}

fn host(folder: &Path, driver: &Path) -> Host {
    let config = HostConfig {
        cuda_library: Some(driver.join("libcuda.so.1")),
        nvml_library: Some(driver.join("libnvidia-ml.so.1")),
        reserve_mib: 0,
        shares_for_containers: true,
        desk: folder.join("desk"),
        paused: Some(folder.join("paused.json")),
    };
    Host::open(config).unwrap()
}

pub fn slice(memory_mib: u64, sm_millis: u32) -> Slice {
    Slice {
        gpu_uuid: "GPU-1".into(),
        memory_mib,
        sm_millis,
        is_hard_cap: false,
        kind: Kind::Shared,
        enforcement: GpuLevel::Advisory,
    }
}

fn step(kernel: &str, arguments: Vec<Argument>, repeat: u32) -> ModuleStep {
    ModuleStep {
        kernel: kernel.into(),
        grid: [1, 1, 1],
        block: [32, 1, 1],
        shared_bytes: 0,
        arguments,
        repeat,
    }
}

fn module(kit: &Kit, name: &str, work: ModuleWork, share: Slice) -> TaskSpec {
    let mut task = kit.task(name, &[]);
    (task.work, task.gpus) = (Work::Module(work), vec![share]);
    task.limits.memory_bytes = 128 << 20;
    task
}

fn buffer(name: &str, bytes: u64, fill: Fill) -> ModuleBuffer {
    ModuleBuffer { name: name.into(), bytes, fill, output: Some(name.into()) }
}

fn saxpy(y: ModuleBuffer) -> ModuleWork {
    let at = |name: &str| Argument::Buffer { name: name.into() };
    let arguments = vec![Argument::U32 { value: 4 }, Argument::F32 { value: 2.0 }, at("x"), at("y")];
    let x = ModuleBuffer { output: None, ..buffer("x", 16, Fill::Input { file: "x".into(), offset: 0 }) };
    ModuleWork { ptx: SAXPY.into(), buffers: vec![x, y], steps: vec![step("saxpy", arguments, 2)] }
}

fn floats(values: [f32; 4]) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The result is the kernel's, the use is what the card measured, the level is told, and no byte stays on the card.
#[tokio::test]
async fn a_module_runs_on_its_share_of_a_card() {
    let Some((kit, host, driver)) = kit(CARD).await else { return };
    let found = &host.list()[0];
    assert_eq!((found.uuid.as_str(), found.memory_mib, found.capability), ("GPU-1", 64, (8, 9)));
    assert_eq!((found.model.as_str(), found.driver_major()), ("NVIDIA Test Card", 580));
    let y = buffer("y", 16, Fill::Inline { bytes: floats([10.0, 20.0, 30.0, 40.0]) });
    let task = module(&kit, "saxpy", saxpy(y), slice(8, 500));
    std::fs::write(task.input.as_ref().unwrap().join("x"), floats([1.0, 2.0, 3.0, 4.0])).unwrap();
    let (outcome, said) = kit.run(&task).await;
    assert!(outcome.is_success(), "{outcome:?} {said:?}");
    let result = std::fs::read(task.output.unwrap().join("y")).unwrap();
    assert_eq!(result, floats([14.0, 28.0, 42.0, 56.0]));
    assert_eq!((outcome.usage.gpu_launches, outcome.usage.gpu_memory_peak_bytes), (2, 2 << 20));
    assert!(outcome.usage.gpu_busy_ns > 0, "{outcome:?}");
    assert_eq!(outcome.enforcement.gpu, Some(GpuLevel::OwnedHost));
    assert_eq!(std::fs::read_to_string(driver.join("journal")).unwrap(), "", "memory was given back dirty");
    let y = buffer("y", 16, Fill::Zero);
    let task = module(&kit, "alone", saxpy(y), slice(64, 1000));
    std::fs::write(task.input.as_ref().unwrap().join("x"), floats([1.0, 2.0, 3.0, 4.0])).unwrap();
    let (outcome, _) = kit.run(&task).await;
    assert_eq!(outcome.enforcement.gpu, Some(GpuLevel::Exclusive), "{outcome:?}");
    let result = std::fs::read(task.output.unwrap().join("y")).unwrap();
    assert_eq!(result, floats([4.0, 8.0, 12.0, 16.0]), "memory comes cleared");
}

/// The last byte of a slice may be used, not one more; a card is never promised twice.
#[tokio::test]
async fn a_slice_holds_exactly_its_memory() {
    let Some((kit, _, _)) = kit(CARD).await else { return };
    let sized = |name: &str, bytes: u64, share: Slice| {
        let out = ModuleBuffer { output: None, ..buffer("out", bytes, Fill::Zero) };
        let arguments = vec![Argument::Buffer { name: "out".into() }];
        let steps = vec![ModuleStep { block: [16, 1, 1], ..step("outside", arguments, 1) }];
        module(&kit, name, ModuleWork { ptx: HOSTILE.into(), buffers: vec![out], steps }, share)
    };
    let (outcome, said) = kit.run(&sized("full", 3 << 20, slice(3, 100))).await;
    assert!(outcome.is_success(), "{outcome:?} {said:?}");
    assert_eq!(outcome.usage.gpu_memory_peak_bytes, 3 << 20);
    let refused = kit.runner.start(&sized("over", (3 << 20) + 1, slice(3, 100))).await;
    let why = "take 3146240 bytes of the card; gpu.memory_mib gives 3145728";
    assert!(matches!(&refused, Err(RunError::Invalid(text)) if text.contains(why)), "{refused:?}");
    let mut spin = module(&kit, "spin", spin("spin_20000us", 1000), slice(40, 600));
    spin.limits.time_ms = 10_000;
    let running = kit.start(&spin).await;
    let refused = kit.runner.start(&sized("beside", 1 << 20, slice(30, 100))).await;
    let why = "30 MiB are asked for, 24 MiB are free on GPU GPU-1";
    assert!(matches!(&refused, Err(RunError::Refused(text)) if text.contains(why)), "{refused:?}");
    let refused = kit.runner.start(&sized("whole", 1 << 20, slice(1, 1000))).await;
    assert!(
        matches!(&refused, Err(RunError::Refused(text)) if text.contains("other slices are on the card")),
        "{refused:?}"
    );
    running.kill().await.unwrap();
    kit::ended(&*running).await;
    let (outcome, _) = kit.run(&sized("after", 60 << 20, slice(60, 100))).await;
    assert!(outcome.is_success(), "what ended holds nothing: {outcome:?}");
}

fn spin(kernel: &str, repeat: u32) -> ModuleWork {
    ModuleWork { ptx: SPIN.into(), buffers: Vec::new(), steps: vec![step(kernel, Vec::new(), repeat)] }
}

/// Who is to blame is told apart: the module, its kernel, the card.
#[tokio::test]
async fn faults_of_modules_and_of_cards_are_told_apart() {
    let ill = CARD.replace('}', r#", "init_fails": 46}"#);
    let Some((good, _, _)) = kit(CARD).await else { return };
    let Some((ill, _, _)) = kit(&ill).await else { return };
    let work = |ptx: &str, kernel: &str| {
        let out = buffer("out", 64, Fill::Zero);
        let steps = vec![step(kernel, vec![Argument::Buffer { name: "out".into() }], 1)];
        ModuleWork { ptx: ptx.into(), buffers: vec![out], steps }
    };
    let task = module(&good, "outside", work(HOSTILE, "wild"), slice(4, 100));
    let (outcome, _) = good.run(&task).await;
    assert_eq!(outcome.end, End::ModuleFault, "{outcome:?}");
    assert!(outcome.message.contains("step 0: wild: "), "{outcome:?}");
    assert!(outcome.message.contains("700 (CUDA_ERROR_ILLEGAL_ADDRESS)"), "{outcome:?}");
    assert!(!task.output.unwrap().join("out").exists());
    let broken = HOSTILE.replace("ld.global.u32", "ld.nowhere.u32");
    let (outcome, _) = good.run(&module(&good, "broken", work(&broken, "wild"), slice(4, 100))).await;
    assert_eq!(outcome.end, End::BadModule, "{outcome:?}");
    assert!(outcome.message.contains("CUDA_ERROR_INVALID_PTX): ptxas fatal"), "{outcome:?}");
    let (outcome, _) = ill.run(&module(&ill, "ill", work(HOSTILE, "wild"), slice(4, 100))).await;
    assert_eq!(outcome.end, End::MachineFault, "{outcome:?}");
    assert!(outcome.message.contains("46 (CUDA_ERROR_DEVICE_UNAVAILABLE)"), "{outcome:?}");
    let elsewhere = Slice { gpu_uuid: "GPU-2".into(), ..slice(4, 100) };
    let refused = good.runner.start(&module(&good, "elsewhere", work(HOSTILE, "wild"), elsewhere)).await;
    assert!(matches!(&refused, Err(RunError::Refused(why)) if why.contains("no card GPU-2")), "{refused:?}");
}

/// Two workers of their own, one with kernels ten times as long: each gets its share of the card's time.
#[tokio::test]
async fn shares_hold_between_processes() {
    let Some((kit, _, _)) = kit(CARD).await else { return };
    let spinning = |name: &str, kernel: &str, share: u32| {
        let mut task = module(&kit, name, spin(kernel, 1_000_000), slice(8, share));
        task.limits.time_ms = 3000;
        task
    };
    let (long, short) = (spinning("long", "spin_20000us", 300), spinning("short", "spin_2000us", 700));
    let ((long, _), (short, _)) = tokio::join!(kit.run(&long), kit.run(&short));
    assert_eq!((&long.end, &short.end), (&End::TimeLimit, &End::TimeLimit));
    let (long, short) = (long.usage.gpu_busy_ns as f64, short.usage.gpu_busy_ns as f64);
    let part = long / (long + short);
    assert!((0.25..=0.36).contains(&part), "30 % are its due: {part} of {} ms", (long + short) / 1e6);
}

/// A card that fails takes nothing more, and says why; a program's fault leaves it as it is. Instances are cards of their own.
#[tokio::test]
async fn health_events_close_a_card() {
    let cards = r#"[{"uuid": "GPU-1", "model": "A", "memory_mib": 64, "driver": "620.1"},
        {"uuid": "GPU-2", "model": "B", "memory_mib": 64,
         "mig": [{"uuid": "MIG-1", "model": "B MIG 1g.10gb", "memory_mib": 10}]}]"#;
    let folder = tempfile::tempdir().unwrap();
    let driver = driver(folder.path(), cards);
    let host = Arc::new(host(folder.path(), &driver));
    Host::watch(&host).unwrap();
    let listed = host.list();
    let instance = (listed[1].uuid.as_str(), listed[1].parent.as_str(), listed[1].level_max);
    assert_eq!((listed.len(), instance), (2, ("MIG-1", "GPU-2", GpuLevel::Hardware.number())));
    std::fs::write(driver.join("xid"), "0 31\n1 79\n").unwrap();
    let closed = async {
        while host.list()[1].closed.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), closed).await.expect("the card is closed");
    let listed = host.list();
    assert_eq!(
        (listed[0].closed.as_str(), listed[1].closed.as_str()),
        ("", "Xid 79: it has fallen off the bus")
    );
    let refused = host.admit(
        &Slice { gpu_uuid: "MIG-1".into(), ..slice(1, 100) },
        makai_gpu_runtime::slice::ladder::Program::Module,
        &[],
    );
    assert!(refused.as_ref().is_err_and(|why| why.contains("takes no tasks: Xid 79")), "{refused:?}");
}

/// A container's own program finds the driver of its whole card; one that would share a card only by our own host code is refused.
#[tokio::test]
async fn a_container_gets_whole_cards() {
    let Some((kit, _, _)) = kit(CARD).await else { return };
    let image = crate::shares::image(&kit, CONTAINER);
    let mut task = kit.task("whole", &[]);
    kit::container(&mut task).image = image.clone();
    kit::container(&mut task).command = vec!["/bin/program".into()];
    kit::container(&mut task).env.insert("FAKE_CARDS".into(), CARD.into());
    task.gpus = vec![Slice { kind: Kind::Whole, ..slice(0, 1000) }];
    let (outcome, said) = kit.run(&task).await;
    assert!(outcome.is_success(), "{outcome:?} {said:?}");
    assert_eq!((said.value("cards"), said.value("memory")), ("1", "67108864"));
    assert_eq!(outcome.enforcement.gpu, Some(GpuLevel::Exclusive));
    let mut task = kit.task("share", &[]);
    kit::container(&mut task).image = image;
    task.gpus = vec![Slice { enforcement: GpuLevel::OwnedHost, ..slice(8, 500) }];
    let running = kit.start(&module(&kit, "beside", spin("spin_20000us", 1000), slice(8, 100))).await;
    let refused = kit.runner.start(&task).await;
    assert!(
        matches!(&refused, Err(RunError::Refused(why)) if why.contains("a container brings its own host code")),
        "{refused:?}"
    );
    running.kill().await.unwrap();
    kit::ended(&*running).await;
}

/// Whose processes are on a card is told by the driver and by who started them: a task's, its container's too, or somebody else's; and
/// a card that its owner has taken back stays his when the daemon begins anew.
#[tokio::test]
async fn who_uses_a_card_is_known() {
    let Some((kit, host, driver)) = kit(CARD).await else { return };
    let running = kit.start(&module(&kit, "mine", spin("spin_20000us", 1000), slice(8, 100))).await;
    let (workers, slices) = kit.runner.card_users().unwrap();
    assert_eq!(slices["mine"], 8);
    let worker = async {
        loop {
            if let Some((pid, _)) = kit.runner.card_users().unwrap().0.into_iter().next() {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let worker = tokio::time::timeout(Duration::from_secs(30), worker).await.expect("it has a worker");
    drop(workers);
    let stranger = std::process::id();
    std::fs::write(driver.join("processes"), format!("0 {worker} 10\n0 {stranger} 20\n")).unwrap();
    let found = host.cards().unwrap().processes();
    let workers = kit.runner.card_users().unwrap().0;
    let told: Vec<_> = found.iter().map(|one| (one.memory_mib, whose(one.pid, &workers))).collect();
    assert_eq!(told[0], (Some(10), Owner::Attempt("mine".into())));
    assert!(matches!(&told[1], (Some(20), Owner::Other(_))), "{told:?}");
    let taken = host.pause(None, true).unwrap();
    assert_eq!((taken.len(), host.list()[0].closed.as_str()), (1, PAUSED));
    let again = self::host(driver.parent().unwrap(), &driver);
    assert_eq!(again.list()[0].closed, PAUSED);
    assert!(host.pause(Some("GPU-9"), true).is_err());
    again.pause(Some("GPU-1"), false).unwrap();
    assert_eq!(again.list()[0].closed, "");
    running.kill().await.unwrap();
    kit::ended(&*running).await;
}

const CONTAINER: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(void) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!cuda) { puts(dlerror()); return 1; }
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
    int (*count)(int *) = (int (*)(int *))dlsym(cuda, "cuDeviceGetCount");
    int (*memory)(size_t *, size_t *) = (int (*)(size_t *, size_t *))dlsym(cuda, "cuMemGetInfo_v2");
    int cards = 0; size_t left = 0, all = 0;
    int code = init(0);
    if (code) { printf("cuInit: %d\n", code); return 1; }
    if (count(&cards) || memory(&left, &all)) return 1;
    printf("cards=%d\nmemory=%zu\n", cards, all);
    return 0;
}
"#;
