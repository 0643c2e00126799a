//! Modules through the real worker: confined like any task, and held to its limits.

use makai_gpu_runtime::runner::{
    Argument, End, Fill, ModuleBuffer, ModuleStep, ModuleWork, RunError, Runner, TaskSpec, Work,
};

use crate::kit::Kit;

const SAXPY: &str = include_str!("../module/ptx/saxpy.ptx");
const HOSTILE: &str = include_str!("../module/ptx/hostile.ptx");

fn hostile(kit: &Kit, kernel: &str) -> TaskSpec {
    let buffer = ModuleBuffer { name: "out".into(), bytes: 64, fill: Fill::Zero, output: Some("out".into()) };
    let arguments = vec![Argument::Buffer { name: "out".into() }];
    let step = ModuleStep {
        kernel: kernel.into(),
        grid: [1, 1, 1],
        block: [32, 1, 1],
        shared_bytes: 0,
        arguments,
        repeat: 1,
    };
    let mut task = kit.task(kernel, &[]);
    task.work = Work::Module(ModuleWork { ptx: HOSTILE.into(), buffers: vec![buffer], steps: vec![step] });
    task
}

#[tokio::test]
async fn a_module_reads_its_inputs_and_writes_its_outputs() {
    let Some(kit) = Kit::new().await else { return };
    let mut task = kit.task("saxpy", &[]);
    let floats = |values: [f32; 4]| values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>();
    std::fs::write(
        task.input.as_ref().unwrap().join("x"),
        [vec![0; 8], floats([1.0, 2.0, 3.0, 4.0])].concat(),
    )
    .unwrap();
    let at = |name: &str| Argument::Buffer { name: name.into() };
    task.work = Work::Module(ModuleWork {
        ptx: SAXPY.into(),
        buffers: vec![
            ModuleBuffer {
                name: "x".into(),
                bytes: 16,
                fill: Fill::Input { file: "x".into(), offset: 8 },
                output: None,
            },
            ModuleBuffer {
                name: "y".into(),
                bytes: 16,
                fill: Fill::Inline { bytes: floats([10.0, 20.0, 30.0, 40.0]) },
                output: Some("y".into()),
            },
        ],
        steps: vec![ModuleStep {
            kernel: "saxpy".into(),
            grid: [1, 1, 1],
            block: [32, 1, 1],
            shared_bytes: 0,
            arguments: vec![Argument::U32 { value: 4 }, Argument::F32 { value: 2.0 }, at("x"), at("y")],
            repeat: 2,
        }],
    });
    let (outcome, said) = kit.run(&task).await;
    assert!(outcome.is_success(), "{outcome:?} {said:?}");
    assert_eq!(std::fs::read(task.output.unwrap().join("y")).unwrap(), floats([14.0, 28.0, 42.0, 56.0]));
    assert!(said.stdout.starts_with("2 launches"), "{said:?}");
    task = kit.task("no-input", &[]);
    task.work = Work::Module(ModuleWork {
        ptx: SAXPY.into(),
        buffers: vec![ModuleBuffer {
            name: "x".into(),
            bytes: 4,
            fill: Fill::Input { file: "x".into(), offset: 0 },
            output: None,
        }],
        steps: vec![ModuleStep {
            kernel: "saxpy".into(),
            grid: [1, 1, 1],
            block: [1, 1, 1],
            shared_bytes: 0,
            arguments: vec![Argument::U32 { value: 0 }, Argument::F32 { value: 2.0 }, at("x"), at("x")],
            repeat: 1,
        }],
    });
    let (outcome, _) = kit.run(&task).await;
    assert_eq!(outcome.end, End::BadModule, "{outcome:?}");
    assert!(outcome.message.contains("no input \"x\""), "{outcome:?}");
}

#[tokio::test]
async fn hostile_modules_end_with_a_reason() {
    let Some(kit) = Kit::new().await else { return };
    let mut task = hostile(&kit, "forever");
    task.limits.time_ms = 300;
    let (outcome, _) = kit.run(&task).await;
    assert_eq!(outcome.end, End::TimeLimit, "{outcome:?}");
    let (outcome, said) = kit.run(&hostile(&kit, "outside")).await;
    assert_eq!(outcome.end, End::ModuleFault, "{outcome:?}");
    assert!(outcome.message.contains("at byte 64 of a buffer of 64 bytes"), "{outcome:?}");
    assert!(said.stderr.contains("thread [16, 0, 0]"), "{said:?}");
    let mut task = hostile(&kit, "wild");
    let Work::Module(work) = &mut task.work else { panic!("a module") };
    (work.steps[0].grid, work.steps[0].block) = ([1 << 20, 1 << 10, 1], [1024, 1, 1]);
    let refused = kit.runner.start(&task).await;
    assert!(
        matches!(&refused, Err(RunError::Invalid(why)) if why.contains("1099511627776 threads")),
        "{refused:?}"
    );
}
