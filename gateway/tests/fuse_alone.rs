//! Directories that are a mount's alone: what is decided in them here is what the pool then has. Mounted for real, over
//! files in memory; where the machine has no `/dev/fuse` or nobody may mount, each test says so and passes.

mod files_in_memory;
mod mounted;

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use makai_gateway::fuse::service::{Errno, FileService as _};
use mounted::{eventually, mounted};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn code<T>(done: std::io::Result<T>) -> Option<i32> {
    done.err().and_then(|error| error.raw_os_error())
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

#[test]
fn small_files_are_told_many_at_once_with_their_content_times_and_modes() {
    const FILES: usize = 1500;
    let Some(mounted) = mounted("many", false) else { return };
    let folder = mounted.at("d");
    fs::create_dir(&folder).unwrap();
    let before = mounted.service.messages();
    for number in 0..FILES {
        let path = folder.join(format!("f{number}"));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        file.write_all(format!("content {number}").as_bytes()).unwrap();
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
        file.set_modified(time).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600 | (number as u32 % 8))).unwrap();
    }
    sync_directory(&folder).unwrap();
    let messages = mounted.service.messages() - before;
    assert!(messages < FILES as u64 / 4, "{messages} messages tell of {FILES} files");
    for number in 0..FILES {
        let name = format!("d/f{number}");
        assert_eq!(mounted.stored(&name), format!("content {number}").as_bytes(), "{name}");
        let stored = mounted.stat(&name);
        assert_eq!(stored.mode, 0o600 | (number as u32 % 8));
        let seen = fs::metadata(folder.join(format!("f{number}"))).unwrap();
        assert_eq!((seen.mtime(), seen.ino()), (number as i64, stored.ino.0));
    }
}

/// Programs that copy set times, mode and owner by name, once they have closed: that travels with the file. Links are read as they
/// were made here, without the pool.
#[test]
fn what_follows_a_close_at_once_travels_with_the_file() {
    const FILES: u64 = 400;
    let Some(mounted) = mounted("dressed", false) else { return };
    let folder = mounted.at("d");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("first"), b"").unwrap();
    fs::write(folder.join("second"), b"").unwrap();
    let before = mounted.service.messages();
    for number in 0..FILES {
        let (path, link) = (folder.join(number.to_string()), folder.join(format!("l{number}")));
        fs::write(&path, if number % 2 == 0 { &b"content"[..] } else { b"" }).unwrap();
        let time = rustix::fs::Timespec { tv_sec: number as i64, tv_nsec: 5 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        std::os::unix::fs::symlink(number.to_string(), &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap().to_str(), Some(number.to_string().as_str()));
    }
    sync_directory(&folder).unwrap();
    let messages = mounted.service.messages() - before;
    assert!(messages < FILES / 2, "{messages} messages tell of {FILES} files and as many links");
    for number in 0..FILES {
        let stored = mounted.stat(&format!("d/{number}"));
        assert_eq!((stored.mode, nanos(stored.mtime)), (0o604, (number as i64, 5)));
        assert_eq!(
            mounted.stored(&format!("d/{number}")),
            if number % 2 == 0 { &b"content"[..] } else { b"" }
        );
    }
}

/// `fsync` of one file means all that was decided before it.
#[test]
fn a_synced_file_brings_everything_before_it() {
    let Some(mounted) = mounted("prefix", false) else { return };
    fs::create_dir(mounted.at("d")).unwrap();
    for number in 0..200 {
        fs::write(mounted.at(&format!("d/{number}")), [number]).unwrap();
    }
    fs::create_dir(mounted.at("d/e")).unwrap();
    fs::rename(mounted.at("d/0"), mounted.at("d/e/0")).unwrap();
    fs::remove_file(mounted.at("d/1")).unwrap();
    let last = File::create_new(mounted.at("d/last")).unwrap();
    last.sync_all().unwrap();
    assert_eq!(mounted.service.find("d/1"), Err(Errno::NOENT));
    assert!(mounted.service.find("d/last").is_ok());
    // What was written more than some milliseconds after its file was made comes within the second that `close` has.
    let is_stored = |name: &str, number: u8| mounted.stored(name) == [number];
    eventually("what was closed is stored", || is_stored("d/e/0", 0));
    for number in 2..200 {
        assert!(mounted.service.find(&format!("d/{number}")).is_ok(), "{number}");
        eventually("what was closed is stored", || is_stored(&format!("d/{number}"), number));
    }
}

#[test]
fn what_cannot_be_made_is_told_by_the_next_call() {
    let Some(mounted) = mounted("refused", false) else { return };
    fs::create_dir(mounted.at("d")).unwrap();
    fs::write(mounted.at("d/kept"), b"kept").unwrap();
    sync_directory(&mounted.at("d")).unwrap();
    mounted.service.fail_makes_with(Some(Errno::NOSPC));
    let mut open = File::create_new(mounted.at("d/open")).unwrap();
    let _ = open.write_all(b"lost");
    assert_eq!(code(open.sync_all()), Some(libc::ENOSPC), "who has it open is told");
    assert_eq!(code(open.sync_all()), None, "once");
    assert_eq!(code(sync_directory(&mounted.at("d"))), Some(libc::ENOSPC), "so is who syncs the directory");
    mounted.service.fail_makes_with(None);
    eventually("the name is gone", || !mounted.at("d/open").exists());
    let mut anew = File::create_new(mounted.at("d/open")).unwrap();
    anew.write_all(b"anew").unwrap();
    anew.sync_all().unwrap();
    sync_directory(&mounted.at("d")).unwrap();
    assert_eq!(mounted.stored("d/open"), b"anew");
    assert_eq!(mounted.stored("d/kept"), b"kept");
}

#[test]
fn a_directory_that_another_wants_is_told_of_and_given_back() {
    let Some(mounted) = mounted("recalled", false) else { return };
    fs::create_dir(mounted.at("d")).unwrap();
    for number in 0..50 {
        fs::write(mounted.at(&format!("d/{number}")), b"x").unwrap();
    }
    let times = times_of(&mounted.at("d"));
    mounted.service.recall(mounted.service.find("d").unwrap());
    eventually("all of it is told", || {
        (0..50).all(|number| mounted.service.find(&format!("d/{number}")).is_ok())
    });
    eventually("it is given back", || !mounted.service.is_leased(mounted.service.find("d").unwrap()));
    let stat = mounted.stat("d");
    assert_ne!(times, [stat.mtime, stat.ctime].map(nanos), "the pool has a clock of its own");
    eventually("the pool is asked again", || times_of(&mounted.at("d")) == times);
    let before = mounted.service.messages();
    for number in 50..60 {
        fs::write(mounted.at(&format!("d/{number}")), b"x").unwrap();
        assert!(mounted.service.find(&format!("d/{number}")).is_ok(), "the pool is asked at once");
    }
    assert!(mounted.service.messages() >= before + 10);
    assert_ne!(times_of(&mounted.at("d")), times, "it was changed since");
}

/// When a directory was modified and changed, as the mount says now and not as the kernel remembers: seconds and nanoseconds.
fn times_of(path: &Path) -> [(i64, u32); 2] {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let stat = statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS).unwrap();
    [stat.stx_mtime, stat.stx_ctime].map(|time| (time.tv_sec, time.tv_nsec))
}

fn nanos(time: SystemTime) -> (i64, u32) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    (since.as_secs() as i64, since.subsec_nanos())
}

/// A step of a program on a tree of few names.
#[derive(Debug, Clone)]
enum Step {
    Write(String, u8, bool),
    Append(String, u8),
    Mkdir(String),
    Rmdir(String),
    Unlink(String),
    Rename(String, String),
    Link(String, String),
    Chmod(String, u32),
    Truncate(String, u64),
    Sync(String),
    Recall(String),
}

fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (path(), any::<u8>(), any::<bool>()).prop_map(|(path, byte, is_new)| Step::Write(path, byte, is_new)),
        2 => (path(), any::<u8>()).prop_map(|(path, byte)| Step::Append(path, byte)),
        4 => path().prop_map(Step::Mkdir),
        2 => path().prop_map(Step::Rmdir),
        3 => path().prop_map(Step::Unlink),
        4 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (path(), path()).prop_map(|(from, to)| Step::Link(from, to)),
        2 => (path(), 0o400u32..0o777).prop_map(|(path, mode)| Step::Chmod(path, mode)),
        1 => (path(), 0u64..9000).prop_map(|(path, size)| Step::Truncate(path, size)),
        1 => path().prop_map(Step::Sync),
        1 => path().prop_map(Step::Recall),
    ]
}

fn take(root: &Path, step: &Step) -> Option<i32> {
    let at = |path: &str| root.join(path);
    match step {
        Step::Write(path, byte, is_new) => {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(!is_new).create_new(*is_new);
            let length = usize::from(*byte) * 40;
            code(options.open(at(path)).and_then(|mut file| file.write_all(&vec![*byte; length])))
        }
        Step::Append(path, byte) => {
            let file = OpenOptions::new().append(true).create(true).open(at(path));
            code(file.and_then(|mut file| file.write_all(&[*byte; 3])))
        }
        Step::Mkdir(path) => code(fs::create_dir(at(path))),
        Step::Rmdir(path) => code(fs::remove_dir(at(path))),
        Step::Unlink(path) => code(fs::remove_file(at(path))),
        Step::Rename(from, to) => code(fs::rename(at(from), at(to))),
        Step::Link(from, to) => code(fs::hard_link(at(from), at(to))),
        Step::Chmod(path, mode) => {
            // A directory that may not be entered would change what the steps after it do.
            let mode = if at(path).is_dir() { mode | 0o700 } else { *mode };
            code(fs::set_permissions(at(path), fs::Permissions::from_mode(mode)))
        }
        Step::Truncate(path, size) => {
            code(OpenOptions::new().write(true).open(at(path)).and_then(|file| file.set_len(*size)))
        }
        Step::Sync(path) => code(File::open(at(path)).and_then(|file| file.sync_all())),
        Step::Recall(_) => None,
    }
}

/// Every file below, with its kind, mode, links and content.
fn tree(root: &Path) -> Vec<(String, bool, u32, u64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if meta.is_dir() {
                folders.push(path);
                found.push((name, true, meta.mode() & 0o777, meta.nlink(), Vec::new()));
            } else {
                let bytes = fs::read(&path).unwrap();
                found.push((name, false, meta.mode() & 0o777, meta.nlink(), bytes));
            }
        }
    }
    found.sort();
    found
}

/// Against a filesystem of the kernel's own: each step ends alike, what is seen is alike, and what the pool has once the
/// directories were synced is what is seen.
#[test]
fn names_that_are_decided_here_are_those_of_any_filesystem() {
    let Some(mounted) = mounted("steps", false) else { return };
    let cases = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let folders = std::cell::Cell::new(0);
    let steps = prop::collection::vec(step(), 1..120);
    let outcome = TestRunner::new(cases).run(&steps, |steps| {
        folders.set(folders.get() + 1);
        let name = format!("case{}", folders.get());
        let other = tempfile::tempdir().unwrap();
        let (ours, theirs) = (mounted.at(&name), other.path().join("root"));
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&theirs).unwrap();
        for step in &steps {
            if let Step::Recall(path) = step
                && let Ok(ino) = mounted.service.find(&format!("{name}/{path}"))
            {
                mounted.service.recall(ino);
            }
            prop_assert_eq!(take(&ours, step), take(&theirs, step), "{:?}", step);
        }
        prop_assert_eq!(tree(&ours), tree(&theirs));
        sync_directory(&ours).unwrap();
        for (path, is_directory, mode, _, bytes) in tree(&theirs) {
            let path = format!("{name}/{path}");
            let stored = mounted.stat(&path);
            prop_assert_eq!(stored.mode, mode, "{}", path);
            if !is_directory {
                File::open(mounted.at(&path)).unwrap().sync_all().unwrap();
                prop_assert!(mounted.stored(&path) == bytes, "{} is stored as another", path);
            }
        }
        Ok(())
    });
    outcome.unwrap();
    let left = mounted.block_on(mounted.service.space()).unwrap();
    assert!(left.files > 0);
}
