//! Tasks that mean harm: each ends in a clear state with a reason, and the machine goes on.

use std::time::Duration;

use makai_gpu_runtime::runner::{End, Level, TaskSpec};

use crate::kit::{Kit, Output, ended, output, processes, until_says};

/// After whatever happened, the same runner runs the next task.
async fn still_serves(kit: &Kit, task: &TaskSpec) {
    let name = format!("after-{}", task.attempt);
    let (outcome, _) = kit.run(&kit.task(&name, &["exit", "0"])).await;
    assert!(outcome.is_success(), "{outcome:?}");
}

#[tokio::test]
async fn a_fork_bomb_is_held() {
    let Some(kit) = Kit::new().await else { return };
    let mut task = kit.task("fork-bomb", &["fork-bomb"]);
    task.limits.time_ms = 5000;
    let (outcome, said) = kit.run(&task).await;
    assert!(said.stdout.contains("refused"), "{outcome:?} {said:?}");
    if kit.runner_level() == Level::Strict {
        assert!(outcome.message.contains("limits.pids"), "{outcome:?}");
    }
    still_serves(&kit, &task).await;
}

#[tokio::test]
async fn a_memory_bomb_is_ended() {
    let Some(kit) = Kit::new().await else { return };
    let task = kit.task("memory-bomb", &["memory-bomb"]);
    let (outcome, _) = kit.run(&task).await;
    if kit.runner_level() == Level::Strict {
        assert_eq!(outcome.end, End::MemoryLimit, "{outcome:?}");
        assert!(outcome.message.contains("limits.memory_bytes"));
    } else {
        // Where the kernel holds each process by itself, this one is refused memory and ends by itself.
        assert!(matches!(outcome.end, End::MemoryLimit | End::Exited { code: 9 }), "{outcome:?}");
    }
    assert!((48 << 20..=65 << 20).contains(&outcome.usage.memory_peak_bytes), "{outcome:?}");
    still_serves(&kit, &task).await;
}

/// Files in memory count as memory: `/tmp` is full at half of it, and the task is told so.
#[tokio::test]
async fn files_in_memory_are_bounded() {
    let Some(kit) = Kit::new().await else { return };
    let task = kit.task("tmp-bomb", &["tmp-bomb"]);
    let (outcome, said) = kit.run(&task).await;
    assert!(said.stderr.contains("No space left") || outcome.end == End::MemoryLimit, "{outcome:?} {said:?}");
    assert!(outcome.usage.memory_peak_bytes <= 65 << 20, "{outcome:?}");
}

#[tokio::test]
async fn a_disk_bomb_is_ended() {
    let Some(kit) = Kit::new().await else { return };
    let mut task = kit.task("disk-bomb", &["disk-bomb"]);
    task.limits.disk_bytes = 8 << 20;
    let (outcome, _) = kit.run(&task).await;
    assert_eq!(outcome.end, End::DiskLimit, "{outcome:?}");
    assert!(outcome.message.contains("limits.disk_bytes"));
    still_serves(&kit, &task).await;
}

#[tokio::test]
async fn a_well_of_folders_is_ended_and_swept() {
    let Some(kit) = Kit::new().await else { return };
    let task = kit.task("deep", &["deep"]);
    let attempt = kit.start(&task).await;
    let outcome = ended(&*attempt).await;
    assert_eq!(outcome.end, End::DiskLimit, "{outcome:?}");
    assert!(outcome.message.contains("nested"));
    std::fs::remove_dir_all(task.output.unwrap()).unwrap();
}

/// A flood costs neither disk nor a core, and the log says what is missing.
#[tokio::test]
async fn a_log_flood_is_bounded_and_said() {
    let Some(kit) = Kit::new().await else { return };
    let mut task = kit.task("flood", &["flood"]);
    (task.limits.time_ms, task.limits.log_bytes, task.limits.log_bytes_per_sec) = (1500, 1 << 20, 64 << 10);
    let (outcome, said) = kit.run(&task).await;
    assert_eq!(outcome.end, End::TimeLimit);
    assert_eq!(said.stdout.len() as u64, outcome.usage.log_bytes);
    assert!(outcome.usage.log_bytes <= 64 << 13, "{outcome:?}");
    assert!(outcome.usage.log_bytes_dropped > 1 << 20, "{outcome:?}");
    let dropped: u64 = said
        .notices
        .lines()
        .filter_map(|line| line.split_once(" bytes of output dropped")?.0.parse::<u64>().ok())
        .sum();
    assert_eq!(dropped, outcome.usage.log_bytes_dropped, "{}", said.notices);
}

/// Ignoring SIGTERM, in as many sessions as it likes, gains a task its grace and no more.
#[tokio::test]
async fn a_stubborn_task_is_ended_by_force_with_all_its_processes() {
    let Some(kit) = Kit::new().await else { return };
    let mark = format!("stubborn-{}", std::process::id());
    let attempt = kit.start(&kit.task("stubborn", &["stubborn", &mark])).await;
    until_says(&*attempt, "ignoring").await;
    assert_eq!(processes(&mark).len(), 5);
    attempt.stop().await.unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(10), attempt.wait()).await.unwrap().unwrap();
    assert_eq!(outcome.end, End::Stopped);
    assert_eq!(processes(&mark), Vec::<String>::new());
}

#[tokio::test]
async fn orphans_are_reaped() {
    let Some(kit) = Kit::new().await else { return };
    let (outcome, said) = kit.run(&kit.task("orphans", &["orphans"])).await;
    assert!(outcome.is_success(), "{outcome:?} {said:?}");
    assert_eq!(said.value("zombies"), "0");
}

/// Every way out that is known to be tried, and what the kernel answers.
#[tokio::test]
async fn a_task_reaches_nothing_outside() {
    let Some(kit) = Kit::new().await else { return };
    let (outcome, said) = kit.run(&kit.task("reach", &["reach"])).await;
    assert!(outcome.is_success(), "{outcome:?} {said:?}");
    closed(&said);
    assert_eq!(said.value("kill_init"), "ok", "a signal that the first process does not get");
    assert_eq!(said.value("loopback"), "ok", "its own");
    assert_eq!(said.value("descriptors"), "0");
    for (name, value) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        let line = said.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        assert_eq!(line, Some(value), "{name}");
    }
}

fn closed(said: &Output) {
    let refused = |name: &str, errors: &[&str]| {
        assert!(errors.contains(&said.value(name)), "{name}={} {:?}", said.value(name), said);
    };
    for name in [
        "mount",
        "remount",
        "umount",
        "chroot",
        "unshare_user",
        "unshare_mount",
        "clone_user",
        "setns",
        "ptrace",
        "ptrace_init",
        "keyctl",
        "add_key",
        "bpf",
        "io_uring",
        "mknod",
        "sethostname",
        "settime",
    ] {
        refused(name, &["EPERM"]);
    }
    refused("setuid_outside", &["EINVAL", "EPERM"]);
    refused("write_root", &["EROFS"]);
    refused("write_in", &["EROFS", "EACCES"]);
    refused("sysctl", &["EROFS", "EACCES"]);
    refused("disk", &["ENOENT"]);
    refused("cgroups", &["ENOENT"]);
    for name in ["init_root", "init_exe", "init_memory"] {
        refused(name, &["EACCES", "EPERM"]);
    }
    refused("packet_socket", &["EAFNOSUPPORT"]);
    refused("crypto_socket", &["EAFNOSUPPORT"]);
    refused("network", &["ENETUNREACH"]);
}

/// Without cgroups the same limits hold, watched, and outcomes say that they were.
#[tokio::test]
async fn without_cgroups_limits_are_watched_and_said() {
    let Some(kit) = Kit::with(|config| config.use_cgroups = false).await else { return };
    assert_eq!(kit.runner_level(), Level::Watched);
    let (outcome, _) = kit.run(&kit.task("memory", &["memory-bomb"])).await;
    assert!(matches!(outcome.end, End::MemoryLimit | End::Exited { code: 9 }), "{outcome:?}");
    assert_eq!(outcome.enforcement.level, Level::Watched);
    assert!(outcome.enforcement.weaknesses[0].contains("Delegate=yes"), "{outcome:?}");
    let mut task = kit.task("fork", &["fork-bomb"]);
    task.limits.time_ms = 5000;
    let (outcome, said) = kit.run(&task).await;
    assert!(said.stdout.contains("refused"), "{outcome:?} {said:?}");
    let (outcome, said) = kit.run(&kit.task("reach", &["reach"])).await;
    assert!(outcome.is_success(), "{outcome:?}");
    closed(&said);
}

/// The output of a task that is being killed is still all there up to its end.
#[tokio::test]
async fn a_kill_keeps_what_was_said() {
    let Some(kit) = Kit::new().await else { return };
    let attempt = kit.start(&kit.task("killed", &["sleep", "1000"])).await;
    until_says(&*attempt, "sleeping").await;
    attempt.kill().await.unwrap();
    let outcome = ended(&*attempt).await;
    assert_eq!(outcome.end, End::Stopped);
    assert_eq!(output(&*attempt).await.stdout, "sleeping\n");
}
