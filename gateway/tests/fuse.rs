//! A mount, attached to this machine's kernel, over files in memory. Where the machine has no `/dev/fuse` or nobody
//! may mount, each test says so and passes.

mod files_in_memory;
mod mounted;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use makai_gateway::fuse::service::{Change, Errno, Operation, Place};
use mounted::{eventually, mounted};

fn run(program: &str, arguments: &[&str], folder: &Path) -> bool {
    let output = match Command::new(program).args(arguments).current_dir(folder).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: no {program} on this machine");
            return false;
        }
        output => output.unwrap(),
    };
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    true
}

/// Bytes that differ at each place.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

#[test]
fn what_was_written_is_read_here_and_stored_when_it_is_synced() {
    let Some(mounted) = mounted("written", false) else { return };
    let mut model = vec![0; 300_000];
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(mounted.at("f")).unwrap();
    for (round, (at, length)) in [(100_000, 200_000), (0, 10), (99_000, 2_000), (4_095, 2)].iter().enumerate()
    {
        let data = pattern(*length, round as u32);
        file.write_all_at(&data, *at as u64).unwrap();
        model[*at..at + length].copy_from_slice(&data);
        assert_eq!(file.metadata().unwrap().len(), 300_000);
    }
    assert!(fs::read(mounted.at("f")).unwrap() == model);
    file.sync_all().unwrap();
    assert!(mounted.stored("f") == model);
    file.set_len(50_000).unwrap();
    file.set_len(60_000).unwrap();
    model.truncate(50_000);
    model.resize(60_000, 0);
    assert!(mounted.stored("f") == model, "lengthening fills with zeros");
    file.seek(SeekFrom::Start(49_999)).unwrap();
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert!(tail == model[49_999..]);
}

/// More than all buffers and caches hold together.
#[test]
fn a_file_larger_than_every_buffer_comes_back_whole() {
    let Some(mounted) = mounted("large", false) else { return };
    let data = pattern(40 << 20, 7);
    fs::write(mounted.at("large"), &data).unwrap();
    assert!(fs::read(mounted.at("large")).unwrap() == data);
    eventually("all bytes are stored without a sync", || mounted.stored("large") == data);
}

#[test]
fn bytes_are_sent_within_a_second_without_a_close_and_at_once_by_a_durable_one() {
    let Some(mounted) = mounted("age", true) else { return };
    let mut file = File::create(mounted.at("open")).unwrap();
    file.write_all(b"by age").unwrap();
    eventually("an open file's bytes are stored", || mounted.stored("open") == b"by age");
    fs::write(mounted.at("closed"), b"by close").unwrap();
    assert_eq!(mounted.stored("closed"), b"by close");
}

#[test]
fn a_failed_write_back_is_reported_once_by_every_open_file_and_the_next_write_works() {
    let Some(mounted) = mounted("failed", false) else { return };
    let mut first = File::create(mounted.at("f")).unwrap();
    let second = File::open(mounted.at("f")).unwrap();
    mounted.service.fail_edits_with(Some(Errno::DQUOT));
    first.write_all(b"lost").unwrap();
    let code = |done: std::io::Result<()>| done.err().and_then(|error| error.raw_os_error());
    assert_eq!(code(first.sync_all()), Some(libc::EDQUOT));
    assert_eq!(code(first.sync_all()), None, "it was told");
    assert_eq!(code(second.sync_all()), Some(libc::EDQUOT));
    mounted.service.fail_edits_with(None);
    assert_eq!(fs::metadata(mounted.at("f")).unwrap().len(), 0, "the size falls back to what is stored");
    first.write_all_at(b"kept", 0).unwrap();
    first.sync_all().unwrap();
    assert_eq!(mounted.stored("f"), b"kept");
}

#[test]
fn what_others_write_append_and_remove_is_seen() {
    let Some(mounted) = mounted("others", false) else { return };
    let path = mounted.at("f");
    fs::write(&path, b"mine, mine").unwrap();
    let open = File::open(&path).unwrap();
    open.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"mine, mine");
    mounted.write_elsewhere("f", 6, b"THEIRS");
    eventually("the bytes of others", || fs::read(&path).unwrap() == b"mine, THEIRS");
    let mut append = OpenOptions::new().append(true).open(&path).unwrap();
    mounted.write_elsewhere("f", 12, b", more");
    append.write_all(b"; end").unwrap();
    append.sync_all().unwrap();
    assert_eq!(mounted.stored("f"), b"mine, THEIRS, more; end", "an append lands at the end as it is");
    eventually("the same here", || fs::read(&path).unwrap() == b"mine, THEIRS, more; end");

    let root = mounted.mount.root();
    let place = Place { parent: root, name: Bytes::from_static(b"f") };
    let unlink = Operation::Unlink { place: place.clone(), is_held: false };
    mounted.service.change_elsewhere(unlink, vec![Change::Name(place)]).unwrap();
    eventually("a name that others removed is gone", || fs::metadata(&path).is_err());
    eventually("it has no name any more", || open.metadata().unwrap().nlink() == 0);
    let mut kept = [0; 4];
    open.read_exact_at(&mut kept, 0).unwrap();
    assert_eq!(&kept, b"mine", "an open file outlives its name");
}

#[test]
fn a_file_outlives_its_name_while_it_is_open_and_not_longer() {
    let Some(mounted) = mounted("orphan", false) else { return };
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mounted.at("f")).unwrap();
    file.write_all_at(b"before", 0).unwrap();
    fs::remove_file(mounted.at("f")).unwrap();
    file.write_all_at(b"after!", 3).unwrap();
    file.sync_all().unwrap();
    let mut all = [0; 9];
    file.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(&all, b"befafter!");
    assert_eq!(fs::read_dir(&mounted.path).unwrap().count(), 0);
}

#[test]
fn a_directory_of_many_pages_is_listed_once_and_whole() {
    let Some(mounted) = mounted("listing", false) else { return };
    let names: Vec<String> = (0..1_234).map(|number| format!("file-{number:05}")).collect();
    for name in &names {
        File::create(mounted.at(name)).unwrap();
    }
    let list = || {
        let entries = fs::read_dir(&mounted.path).unwrap();
        let mut found: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        found
    };
    assert_eq!(list(), names);
    fs::remove_file(mounted.at(&names[500])).unwrap();
    assert_eq!(list().len(), names.len() - 1);
}

#[test]
fn names_too_long_and_offsets_too_far_are_refused() {
    let Some(mounted) = mounted("refused", false) else { return };
    let code = |done: std::io::Result<File>| done.err().and_then(|error| error.raw_os_error());
    assert_eq!(code(File::create(mounted.at(&"n".repeat(255)))), None);
    assert_eq!(code(File::create(mounted.at(&"n".repeat(256)))), Some(libc::ENAMETOOLONG));
    let file = File::create(mounted.at("far")).unwrap();
    let far = file.write_all_at(b"x", i64::MAX as u64);
    assert!(matches!(far.unwrap_err().raw_os_error(), Some(libc::EFBIG | libc::EINVAL)));
    assert_eq!(file.metadata().unwrap().len(), 0);
}

/// Not even who opens it for reading alone may empty it.
#[test]
fn a_program_that_runs_is_not_changed() {
    let Some(mounted) = mounted("running", false) else { return };
    // By another process: a program that any process has open for writing cannot be started.
    if !run("cp", &["/bin/sleep", "program"], &mounted.path) {
        return;
    }
    let before = fs::read(mounted.at("program")).unwrap();
    let mut running = Command::new(mounted.at("program")).arg("60").spawn().unwrap();
    let (mut writes, mut empties) = (OpenOptions::new(), OpenOptions::new());
    for how in [writes.write(true), empties.read(true).custom_flags(libc::O_TRUNC)] {
        let opened = how.open(mounted.at("program")).map(drop);
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::ETXTBSY));
        assert!(fs::read(mounted.at("program")).unwrap() == before);
    }
    running.kill().unwrap();
    running.wait().unwrap();
    File::create(mounted.at("program")).unwrap();
    assert!(fs::read(mounted.at("program")).unwrap().is_empty());
}

/// The holder is another process; so is the waiter, which is killed.
#[test]
fn a_process_that_waits_for_a_lock_can_be_killed() {
    let Some(mounted) = mounted("killed", false) else { return };
    let script = "import fcntl,sys\nf=open('lock','a')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('held',flush=True)\nsys.stdin.read()";
    let start = || {
        let mut command = Command::new("python3");
        command.args(["-c", script]).current_dir(&mounted.path);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()
    };
    let Ok(mut holder) = start() else { return println!("skipped: no python3 on this machine") };
    let mut said = [0; 4];
    holder.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    let mut waiter = start().unwrap();
    let waits = format!("/proc/{}/stack", waiter.id());
    eventually("the second waits", || {
        fs::read_to_string(&waits).is_ok_and(|stack| stack.contains("fuse_")) || !Path::new(&waits).exists()
    });
    waiter.kill().unwrap();
    eventually_ends(&mut waiter);
    holder.kill().unwrap();
    eventually_ends(&mut holder);
    let mut third = start().unwrap();
    third.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    third.kill().unwrap();
    eventually_ends(&mut third);
}

fn eventually_ends(child: &mut std::process::Child) {
    for _ in 0..500 {
        if child.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("the process cannot be killed");
}

#[test]
fn direct_and_synchronous_writes_are_what_they_say() {
    let Some(mounted) = mounted("direct", false) else { return };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.custom_flags(libc::O_SYNC).open(mounted.at("sync")).unwrap();
    file.write_all_at(b"now", 0).unwrap();
    assert_eq!(mounted.stored("sync"), b"now");
    let file = options.custom_flags(libc::O_DIRECT).open(mounted.at("direct")).unwrap();
    let data = pattern(8192, 3);
    file.write_all_at(&data, 4096).unwrap();
    let mut back = vec![0; 8192];
    file.read_exact_at(&mut back, 4096).unwrap();
    assert!(back == data);
}

#[test]
fn ordinary_programs_work() {
    let Some(mounted) = mounted("programs", false) else { return };
    let folder = &mounted.path;
    fs::create_dir(mounted.at("origin")).unwrap();
    let origin = mounted.at("origin");
    if run("git", &["init", "-q", "."], &origin) {
        for number in 0..30 {
            fs::write(origin.join(format!("file{number}")), pattern(number * 700, number as u32)).unwrap();
        }
        run("git", &["add", "."], &origin);
        let who = ["-c", "user.name=a", "-c", "user.email=a@b.c"];
        run("git", &[&who[..], &["commit", "-qm", "All"]].concat(), &origin);
        run("git", &["clone", "-q", "origin", "clone"], folder);
        run("git", &["fsck", "--strict"], &mounted.at("clone"));
        run("git", &["gc", "-q"], &mounted.at("clone"));
        run("diff", &["-r", "-x", ".git", "origin", "clone"], folder);
    }
    if run("tar", &["cf", "all.tar", "origin"], folder) {
        fs::create_dir(mounted.at("unpacked")).unwrap();
        run("tar", &["xf", "../all.tar"], &mounted.at("unpacked"));
        run("diff", &["-r", "origin", "unpacked/origin"], folder);
    }
    let database = "import sqlite3\nfor mode in ('delete','wal'):\n c=sqlite3.connect(mode+'.db')\n \
                    c.execute('pragma journal_mode='+mode)\n c.execute('create table t(a,b)')\n \
                    [(c.execute('insert into t values(?,?)',(i,'x'*i)),c.commit()) for i in range(100)]\n c.close()\n \
                    c=sqlite3.connect(mode+'.db')\n assert c.execute('pragma integrity_check').fetchone()[0]=='ok'\n \
                    assert c.execute('select count(*),sum(length(b)) from t').fetchone()==(100,4950)";
    run("python3", &["-c", database], folder);
}

/// `ls` asks for labels file by file until it hears that there are none; one that is there is told.
#[test]
fn a_file_is_not_labelled_unless_it_is() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    use rustix::io::Errno;
    let Some(mounted) = mounted("labels", false) else { return };
    let path = mounted.at("f");
    fs::write(&path, b"").unwrap();
    let label = |name: &str| {
        let mut value = [0u8; 64];
        getxattr(&path, name, &mut value).map(|length| value[..length].to_vec())
    };
    assert_eq!(label("security.selinux"), Err(Errno::OPNOTSUPP));
    assert_eq!(label("user.any"), Err(Errno::NODATA));
    if setxattr(&path, "security.selinux", b"label", XattrFlags::empty()).is_ok() {
        assert_eq!(label("security.selinux"), Ok(b"label".to_vec()));
    } else {
        println!("skipped: this user may set no label");
    }
}
