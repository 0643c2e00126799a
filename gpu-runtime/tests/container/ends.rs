//! Ordinary tasks, and every way in which an attempt can end.

use std::os::unix::fs::PermissionsExt;

use makai_gpu_runtime::container::ContainerRunner;
use makai_gpu_runtime::runner::{End, Level, Network, RunError, Runner};

use crate::kit::{Kit, config, container, ended, output, processes, until_says};

#[tokio::test]
async fn a_task_reads_its_input_and_writes_its_output() {
    let Some(kit) = Kit::new().await else { return };
    let task = kit.task("copy", &["copy", "/in/a", "/out/b"]);
    std::fs::write(task.input.as_ref().unwrap().join("a"), [7; 100_000]).unwrap();
    let (outcome, _) = kit.run(&task).await;
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(std::fs::read(task.output.unwrap().join("b")).unwrap(), [7; 100_000]);
    assert_eq!((outcome.usage.input_bytes, outcome.usage.output_bytes), (100_000, 100_000));
    assert!(outcome.started_at_ms.unwrap() <= outcome.ended_at_ms);
}

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let Some(kit) = Kit::new().await else { return };
    let (outcome, said) = kit.run(&kit.task("say", &["say", "hello"])).await;
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("hello\n", "to stderr\n"));
    assert_eq!(outcome.usage.log_bytes, 16);
    for code in [0, 1, 42, 255] {
        let (outcome, _) = kit.run(&kit.task(&format!("exit-{code}"), &["exit", &code.to_string()])).await;
        assert_eq!(outcome.end, End::Exited { code });
    }
    let (outcome, _) = kit.run(&kit.task("abort", &["abort"])).await;
    assert_eq!(outcome.end, End::Signalled { signal: 6 });
}

#[tokio::test]
async fn user_folder_and_environment_are_the_tasks() {
    let Some(kit) = Kit::new().await else { return };
    let mut task = kit.task("env", &["env"]);
    let work = container(&mut task);
    work.command[0] = "task".into(); // Found along the path.
    work.env.insert("COLOUR".into(), "blue".into());
    work.user = "web".into();
    work.working_dir = "/srv".into();
    let (outcome, said) = kit.run(&task).await;
    assert!(outcome.is_success(), "{outcome:?}");
    let mut lines: Vec<_> = said.stdout.lines().collect();
    lines.sort_unstable();
    let ids = if rustix_is_root() { "uid=33 gid=34" } else { "uid=0 gid=0" };
    assert_eq!(lines.len(), 4, "nothing of the daemon's own environment: {lines:?}");
    assert_eq!(
        &lines[..3],
        ["COLOUR=blue", "HOME=/srv", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    );
    assert_eq!(lines[3], format!("pwd=/srv {ids} pid=2"));
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// What cannot be started says what is missing, and is the task's fault.
#[tokio::test]
async fn a_wrong_command_is_named() {
    let Some(kit) = Kit::new().await else { return };
    type Change = fn(&mut makai_gpu_runtime::runner::ContainerWork);
    let wrong: [(&str, Change, &str); 5] = [
        ("missing", |work| work.command[0] = "/bin/none".into(), "\"/bin/none\" cannot be started"),
        ("no-program", |work| work.command[0] = "/etc/passwd".into(), "no program for this machine"),
        ("no-folder", |work| work.working_dir = "/none".into(), "working folder \"/none\" cannot be entered"),
        ("no-user", |work| work.user = "ghost".into(), "no user \"ghost\""),
        ("nothing", |work| work.command.clear(), "neither entry point nor command"),
    ];
    for (name, change, expected) in wrong {
        let mut task = kit.task(name, &["exit", "0"]);
        change(container(&mut task));
        let (outcome, _) = kit.run(&task).await;
        assert_eq!(outcome.end, End::BadCommand, "{outcome:?}");
        assert!(outcome.message.contains(expected), "{outcome:?}");
        assert!(outcome.started_at_ms.is_none());
    }
}

#[tokio::test]
async fn a_stop_is_a_request_first() {
    let Some(kit) = Kit::new().await else { return };
    let attempt = kit.start(&kit.task("polite", &["polite"])).await;
    until_says(&*attempt, "waiting").await;
    attempt.stop().await.unwrap();
    assert_eq!(ended(&*attempt).await.end, End::Stopped);
    assert!(output(&*attempt).await.stdout.ends_with("bye\n"));
    attempt.stop().await.unwrap();
}

#[tokio::test]
async fn a_time_limit_ends_a_task() {
    let Some(kit) = Kit::new().await else { return };
    let mut task = kit.task("spin", &["spin"]);
    task.limits.time_ms = 300;
    let (outcome, said) = kit.run(&task).await;
    assert_eq!(outcome.end, End::TimeLimit);
    assert!(outcome.message.contains("limits.time_ms"), "{outcome:?}");
    assert!(said.notices.contains("longer than its limit"));
    assert!((300..5000).contains(&outcome.usage.wall_ms), "{outcome:?}");
    assert!(outcome.usage.cpu_ms > 0 && outcome.usage.memory_peak_bytes > 0);
}

/// Half a core is half a core, by the kernel's own count.
#[tokio::test]
async fn a_cpu_limit_holds() {
    let Some(kit) = Kit::new().await else { return };
    if kit.runner_level() < Level::Strict {
        return eprintln!("SKIPPED: no cgroups, so CPU is not limited");
    }
    let mut task = kit.task("half", &["spin"]);
    (task.limits.time_ms, task.limits.cpu_milli, task.limits.stop_grace_ms) = (1000, 200, 0);
    let (outcome, _) = kit.run(&task).await;
    assert!(outcome.usage.cpu_ms * 1000 <= outcome.usage.wall_ms * 200 + 40_000, "{outcome:?}");
}

/// Starting an id again joins the attempt that is there, also after its end.
#[tokio::test]
async fn an_attempt_runs_once() {
    let Some(kit) = Kit::new().await else { return };
    let task = kit.task("once", &["say", "hello"]);
    let (first, second) = tokio::join!(kit.start(&task), kit.start(&task));
    let (first, second) = (ended(&*first).await, ended(&*second).await);
    assert_eq!(first, second);
    let again = kit.start(&task).await;
    assert_eq!(ended(&*again).await, first);
    assert_eq!(output(&*again).await.stdout, "hello\n");
}

/// A daemon that starts anew finds what an earlier one started, running or ended, and may end and forget it.
#[tokio::test]
async fn attempts_outlive_the_daemon() {
    let Some(kit) = Kit::new().await else { return };
    let first = kit.start(&kit.task("long", &["sleep", "1000"])).await;
    until_says(&*first, "sleeping").await;
    let short = kit.start(&kit.task("short", &["exit", "3"])).await;
    ended(&*short).await;

    let half_made = kit.folder.path().join("state/attempts/+cut-short-1");
    std::fs::create_dir(&half_made).unwrap();
    let next = ContainerRunner::open(config(kit.folder.path())).await.unwrap();
    assert!(!half_made.exists());
    let mut found = next.attempts().await.unwrap();
    found.sort_by_key(|attempt| attempt.id().clone());
    let names: Vec<_> = found.iter().map(|attempt| attempt.id().as_str()).collect();
    assert_eq!(names, ["long", "short"]);
    assert_eq!(ended(&*found[1]).await.end, End::Exited { code: 3 });
    assert!(found[0].usage().await.unwrap().wall_ms < 100_000);
    found[0].kill().await.unwrap();
    assert_eq!(ended(&*found[0]).await.end, End::Stopped);
    for attempt in found {
        attempt.forget().await.unwrap();
        attempt.forget().await.unwrap();
    }
    assert!(next.attempts().await.unwrap().is_empty());
}

/// A killed worker takes all of its container with it, and the attempt ends as lost, the machine's fault.
#[tokio::test]
async fn a_killed_worker_leaves_nothing() {
    let Some(kit) = Kit::new().await else { return };
    let mark = format!("9{:09}", std::process::id());
    let attempt = kit.start(&kit.task("lost", &["sleep", &mark])).await;
    until_says(&*attempt, "sleeping").await;
    let folder = kit.folder.path().join("state/attempts/lost");
    let worker: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("worker.json")).unwrap()).unwrap();
    let pid = worker["body"]["pid"].as_i64().unwrap();
    // SAFETY: sends a signal to the worker that this test started.
    assert_eq!(unsafe { libc::kill(pid as i32, libc::SIGKILL) }, 0);
    let outcome = ended(&*attempt).await;
    assert_eq!(outcome.end, End::WorkerLost);
    assert!(outcome.end.is_machines_fault());
    assert_eq!(processes(&mark), Vec::<String>::new());
    let groups: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("cgroups.json")).unwrap()).unwrap();
    for group in groups["body"].as_array().unwrap() {
        assert!(!std::path::Path::new(group.as_str().unwrap()).exists(), "{group}");
    }
    attempt.forget().await.unwrap();
    assert!(!folder.exists());
}

#[tokio::test]
async fn what_a_machine_or_task_forbids_is_refused_before_it_starts() {
    let Some(kit) = Kit::new().await else { return };
    let mut task = kit.task("network", &["exit", "0"]);
    let work = container(&mut task);
    work.network = Network::Host;
    assert!(
        matches!(kit.runner.start(&task).await, Err(RunError::Refused(why)) if why.contains("no network"))
    );
    let mut task = kit.task("zero", &["exit", "0\0"]);
    assert!(
        matches!(kit.runner.start(&task).await, Err(RunError::Invalid(why)) if why.contains("zero byte"))
    );
    task = kit.task("tiny", &["exit", "0"]);
    task.limits.memory_bytes = 1;
    assert!(
        matches!(kit.runner.start(&task).await, Err(RunError::Invalid(why)) if why.contains("memory_bytes"))
    );
    assert!(kit.runner.attempts().await.unwrap().is_empty());
}

/// What a task leaves are files and folders that the daemon can read, whatever it made of them.
#[tokio::test]
async fn litter_is_swept() {
    let Some(kit) = Kit::new().await else { return };
    let task = kit.task("litter", &["litter"]);
    let (outcome, said) = kit.run(&task).await;
    assert!(outcome.is_success(), "{outcome:?} {said:?}");
    let mut left: Vec<_> = std::fs::read_dir(task.output.unwrap())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            (entry.file_name().into_string().unwrap(), mode & 0o7777)
        })
        .collect();
    left.sort();
    assert_eq!(left, [("closed".to_owned(), 0o700), ("task".to_owned(), 0o600)]);
}
