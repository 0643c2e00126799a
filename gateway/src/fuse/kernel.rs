//! The mount's side towards the kernel: translates requests and answers, and keeps nothing. The only code that names
//! `fuser`.
//!
//! A request that can be answered from memory is answered on the thread that read it; any other goes on as a task of
//! the runtime, so that no request waits behind another. The kernel is told what to forget from a thread of its own:
//! it may wait for a request that is being served.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BackgroundSession, Config, CopyFileRangeFlags, FileAttr, FileHandle, FileType, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, Notifier, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::mount::{Forget, Mount, NAME_BYTES_MAX, Seen};
use super::past::is_past;
use super::service::{
    Attr, AttrChange, Errno, Ino, Kind, Lock, LockKind, NewNode, RenameMode, Result, SeekTo, SetTime,
    XattrMode,
};

/// The kernel's number of a mount's root.
const KERNEL_ROOT: u64 = 1;
/// Threads that read requests.
const THREADS_MAX: usize = 4;
/// Largest write in one request; the kernel may allow less.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Requests of read-ahead and the like that the kernel may have under way.
const BACKGROUND_MAX: u16 = 64;
/// What `statfs` and `stat` call a block.
const BLOCK_BYTES: u32 = 4096;
/// Answers about free space where no quota limits it.
const FILES_MAX: u64 = 1 << 40;
/// Where it is enforced the kernel answers for this attribute itself. Elsewhere `ls -l` asks each file for it, until it hears that there
/// is no such thing here.
const NEVER_LABELLED: &str = "security.selinux";
/// How the filesystem is called in `mount`'s list.
pub const SUBTYPE: &str = "makai";

/// How a bucket is attached.
#[derive(Debug, Clone, Default)]
pub struct Attach {
    pub directory: PathBuf,
    /// What `mount` lists as the device.
    pub source: String,
    pub is_read_only: bool,
    /// All files belong to this user, whatever the pool says.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Permission bits that no file shows.
    pub umask: u32,
    /// Only who mounts may look.
    pub is_private: bool,
    /// Devices and set-id programs of the bucket count.
    pub is_trusted: bool,
    /// `flock` locks are this machine's alone.
    pub is_flock_local: bool,
}

/// A mount that is attached.
pub struct Attached {
    session: BackgroundSession,
}

/// Attaches a mount to its directory; `forgets` is what [`Mount::begin`] tells.
///
/// # Errors
/// The kernel refuses, or `/dev/fuse` is missing.
pub fn attach(
    mount: Arc<Mount>,
    attach: &Attach,
    mut forgets: mpsc::Receiver<Forget>,
    runtime: Handle,
) -> io::Result<Attached> {
    let mut config = Config::default();
    let set_id = if attach.is_trusted { MountOption::Suid } else { MountOption::NoSuid };
    let devices = if attach.is_trusted { MountOption::Dev } else { MountOption::NoDev };
    let access = if attach.is_read_only { MountOption::RO } else { MountOption::RW };
    config.mount_options = vec![
        // A comma would begin another option.
        MountOption::FSName(attach.source.replace(',', "_")),
        MountOption::Subtype(SUBTYPE.into()),
        MountOption::DefaultPermissions,
        set_id,
        devices,
        access,
    ];
    config.acl = if attach.is_private { SessionACL::Owner } else { SessionACL::All };
    config.n_threads = Some(std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX)));
    config.clone_fd = true;
    let root = mount.root();
    let view = View { root, uid: attach.uid, gid: attach.gid, umask: attach.umask };
    let kernel = Kernel { mount, runtime, view, is_flock_local: attach.is_flock_local };
    let session = fuser::Session::new(kernel, &attach.directory, &config)?.spawn()?;
    let notifier = session.notifier();
    std::thread::Builder::new().name("fuse-forgets".into()).spawn(move || {
        while let Some(forget) = forgets.blocking_recv() {
            tell(&notifier, view, &forget);
        }
    })?;
    Ok(Attached { session })
}

impl Attached {
    /// Waits until it was detached.
    ///
    /// # Errors
    /// The session ended by a fault.
    pub fn join(mut self) -> io::Result<()> {
        let session = std::mem::replace(&mut self.session.guard, std::thread::spawn(|| Ok(())));
        let ended = session.join().map_err(|_| io::Error::other("the session's thread panicked"))?;
        if ended.is_ok() {
            // It is off its directory. Dropped, it would take off what lies there now: fuser 0.18 takes a mount that is off for one
            // that is on, and the other way round.
            std::mem::forget(self.session);
        }
        ended
    }
}

/// Takes a mount off its directory: new programs do not see it any more, those that have files open keep them.
///
/// # Errors
/// Nothing is mounted there, or this user may not.
pub fn detach(directory: &Path) -> io::Result<()> {
    const WAYS: [(&str, &[&str]); 3] =
        [("umount", &["-l"]), ("fusermount3", &["-uz"]), ("fusermount", &["-uz"])];
    let mut why = String::new();
    for (program, arguments) in WAYS {
        match Command::new(program).args(arguments).arg(directory).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => why += String::from_utf8_lossy(&output.stderr).trim(),
            Err(error) => why += &format!("{program}: {error}"),
        }
        why += "; ";
    }
    Err(io::Error::other(format!("{directory:?} is not unmounted: {why}unmount it by hand: umount -l")))
}

/// Takes a mount off whose process died, so that the directory can be used again; whether there was one.
///
/// # Errors
/// As [`detach`].
pub fn detach_dead(directory: &Path) -> io::Result<bool> {
    // Opened, not looked at: the kernel remembers for a while what a directory is like, whoever is dead.
    match std::fs::File::open(directory) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => detach(directory).map(|()| true),
        _ => Ok(false),
    }
}

/// Not known to the kernel any more is as good as forgotten.
fn tell(notifier: &Notifier, view: View, forget: &Forget) {
    let _ = match forget {
        Forget::Node(ino) => notifier.inval_inode(view.number(*ino), 0, 0),
        Forget::Name(place) => {
            notifier.inval_entry(view.number(place.parent), OsStr::from_bytes(&place.name))
        }
    };
}

/// How files are shown.
#[derive(Debug, Clone, Copy)]
struct View {
    root: Ino,
    uid: Option<u32>,
    gid: Option<u32>,
    umask: u32,
}

impl View {
    /// The kernel calls every root 1: it changes places with the pool's 1.
    fn number(self, ino: Ino) -> INodeNo {
        INodeNo(match ino.0 {
            ino if ino == self.root.0 => KERNEL_ROOT,
            KERNEL_ROOT => self.root.0,
            ino => ino,
        })
    }

    fn ino(self, number: INodeNo) -> Ino {
        Ino(self.number(Ino(number.0)).0)
    }

    fn attr(self, attr: &Attr) -> FileAttr {
        FileAttr {
            ino: self.number(attr.ino),
            size: attr.size,
            blocks: attr.blocks,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            crtime: attr.btime,
            kind: file_type(attr.kind),
            perm: (attr.mode & !self.umask & 0o7777) as u16,
            nlink: attr.nlink,
            uid: self.uid.unwrap_or(attr.uid),
            gid: self.gid.unwrap_or(attr.gid),
            rdev: attr.rdev,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

struct Kernel {
    mount: Arc<Mount>,
    runtime: Handle,
    view: View,
    is_flock_local: bool,
}

impl Kernel {
    /// Runs to its end here if nothing has to be waited for.
    fn serve(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        let _inside = self.runtime.enter();
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(work);
        }
    }

    fn entry(&self, reply: ReplyEntry, seen: impl Future<Output = Result<Seen>> + Send + 'static) {
        let view = self.view;
        self.serve(async move {
            match seen.await {
                Ok(seen) => reply.entry(&seen.valid_for, &view.attr(&seen.attr), Generation(0)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn empty(&self, reply: ReplyEmpty, work: impl Future<Output = Result<()>> + Send + 'static) {
        self.serve(async move {
            match work.await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn new_node(&self, request: &Request, kind: Kind, mode: u32, rdev: u32, target: &[u8]) -> NewNode {
        NewNode {
            kind,
            mode: mode & 0o7777,
            uid: request.uid(),
            gid: request.gid(),
            rdev,
            target: Bytes::copy_from_slice(target),
            xattrs: Vec::new(),
        }
    }

    fn make(&self, parent: INodeNo, name: &OsStr, node: NewNode, umask: u32, reply: ReplyEntry) {
        let (mount, parent, name) = (self.mount.clone(), self.view.ino(parent), name.to_owned());
        self.entry(reply, async move { mount.make(parent, &name, node, umask).await });
    }
}

/// Before 1970 too.
fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::At(time),
        TimeOrNow::Now => SetTime::Now,
    }
}

fn open_flags(may_keep: bool) -> FopenFlags {
    if may_keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}

/// Answers what an extended attribute's reader has room for.
fn sized(reply: ReplyXattr, size: u32, value: Result<impl AsRef<[u8]>>) {
    match value {
        Ok(value) if size == 0 => reply.size(value.as_ref().len() as u32),
        Ok(value) if value.as_ref().len() <= size as usize => reply.data(value.as_ref()),
        Ok(_) => reply.error(errno(Errno::RANGE)),
        Err(error) => reply.error(errno(error)),
    }
}

/// Whether a fatal signal waits for a thread that itself waits for an answer: the kernel does not tell, `/proc` does.
fn is_killed(pid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return true; // It is gone, or of another namespace: nobody could end its waiting.
    };
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    };
    let pending = mask("SigPnd:") | mask("ShdPnd:");
    pending & !mask("SigBlk:") & !mask("SigIgn:") != 0
}

fn kernel_lock(owner: LockOwner, start: u64, end: u64, kind: i32, pid: u32) -> Result<Lock> {
    let kind = match kind {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return Err(Errno::INVAL),
    };
    Ok(Lock { kind, start, end, owner: owner.0, pid })
}

impl fuser::Filesystem for Kernel {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not `FUSE_ATOMIC_O_TRUNC`: with it a running program is emptied before the kernel says that it may not be.
        const WANTED: [InitFlags; 10] = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        for flag in WANTED {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        if !self.is_flock_local {
            let _ = config.add_capabilities(InitFlags::FUSE_FLOCK_LOCKS);
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (mount, view, name) = (self.mount.clone(), self.view, name.to_owned());
        self.serve(async move {
            match mount.lookup(view.ino(parent), &name).await {
                Ok(seen) => reply.entry(&seen.valid_for, &view.attr(&seen.attr), Generation(0)),
                Err((Errno::NOENT, valid_for)) if !valid_for.is_zero() => {
                    reply.entry(&valid_for, &nothing(), Generation(0));
                }
                Err((error, _)) => reply.error(errno(error)),
            }
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.mount.forget(self.view.ino(ino), count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let (mount, view) = (self.mount.clone(), self.view);
        self.serve(async move {
            match mount.attributes(view.ino(ino)).await {
                Ok(seen) => reply.attr(&seen.valid_for, &view.attr(&seen.attr)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (mount, view) = (self.mount.clone(), self.view);
        let change = AttrChange {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        self.serve(async move {
            match mount.set_attributes(view.ino(ino), change).await {
                Ok(seen) => reply.attr(&seen.valid_for, &view.attr(&seen.attr)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let (mount, ino) = (self.mount.clone(), self.view.ino(ino));
        self.serve(async move {
            match mount.read_link(ino).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::CharDevice,
            libc::S_IFBLK => Kind::BlockDevice,
            libc::S_IFREG | 0 => Kind::File,
            _ => return reply.error(errno(Errno::INVAL)),
        };
        let node = self.new_node(request, kind, mode, rdev, b"");
        self.make(parent, name, node, umask, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let node = self.new_node(request, Kind::Directory, mode, 0, b"");
        self.make(parent, name, node, umask, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = self.new_node(request, Kind::Symlink, 0o777, 0, target.as_os_str().as_bytes());
        self.make(parent, name, node, 0, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (mount, parent, name) = (self.mount.clone(), self.view.ino(parent), name.to_owned());
        self.empty(reply, async move { mount.unlink(parent, &name).await });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (mount, parent, name) = (self.mount.clone(), self.view.ino(parent), name.to_owned());
        self.empty(reply, async move { mount.remove_directory(parent, &name).await });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(errno(Errno::INVAL)),
        };
        let (mount, view) = (self.mount.clone(), self.view);
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.empty(reply, async move {
            mount.rename((view.ino(parent), &name), (view.ino(new_parent), &new_name), mode).await
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (mount, view, name) = (self.mount.clone(), self.view, name.to_owned());
        self.entry(reply, async move { mount.link(view.ino(ino), view.ino(parent), &name).await });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (mount, ino) = (self.mount.clone(), self.view.ino(ino));
        let may_write = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        if is_past(ino) && may_write {
            return reply.error(errno(Errno::ROFS));
        }
        self.serve(async move {
            match mount.open(ino, may_write).await {
                Ok((number, may_keep)) => reply.opened(FileHandle(number), open_flags(may_keep)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (mount, view, name) = (self.mount.clone(), self.view, name.to_owned());
        let node = self.new_node(request, Kind::File, mode, 0, b"");
        let may_write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        self.serve(async move {
            let parent = view.ino(parent);
            let created = async {
                let seen = match mount.make(parent, &name, node, umask).await {
                    // Another made it since the kernel looked.
                    Err(Errno::EXIST) if flags & libc::O_EXCL == 0 => {
                        mount.lookup(parent, &name).await.map_err(|(errno, _)| errno)?
                    }
                    made => {
                        let seen = made?;
                        return Ok((seen, mount.open_new(seen.attr.ino, may_write).await?));
                    }
                };
                let opened = mount.open(seen.attr.ino, may_write).await?;
                if flags & libc::O_TRUNC != 0
                    && seen.attr.size > 0
                    && let Err(errno) = mount.empty(seen.attr.ino).await
                {
                    mount.release(opened.0, None).await;
                    return Err(errno);
                }
                Ok((seen, opened))
            };
            match created.await {
                Ok((seen, (number, may_keep))) => {
                    let (attr, handle) = (view.attr(&seen.attr), FileHandle(number));
                    reply.created(&seen.valid_for, &attr, Generation(0), handle, open_flags(may_keep));
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mount = self.mount.clone();
        self.serve(async move {
            let read = async { mount.read(&*mount.file(handle.0)?, offset, u64::from(size)).await };
            match read.await {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = match self.mount.file(handle.0) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        // What comes from a shared mapping has its place.
        let is_append = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let is_sync = flags.0 & libc::O_DSYNC != 0;
        let _inside = self.runtime.enter();
        match self.mount.write_now(&file, offset, data, is_append) {
            Some(Ok(written)) if !is_sync => reply.written(written),
            Some(Err(error)) => reply.error(errno(error)),
            done => {
                let (mount, data) = (self.mount.clone(), data.to_vec());
                self.serve(async move {
                    let written = async {
                        let written = match done {
                            Some(written) => written?,
                            None => mount.write(&file, offset, &data, is_append).await?,
                        };
                        if is_sync {
                            mount.sync(&file).await?;
                        }
                        Ok(written)
                    };
                    match written.await {
                        Ok(written) => reply.written(written),
                        Err(error) => reply.error(errno(error)),
                    }
                });
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let mount = self.mount.clone();
        self.empty(reply, async move { mount.flush(&*mount.file(handle.0)?, owner.0).await });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        // Of `flock`: such a lock lives as long as the open file.
        owner: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let mount = self.mount.clone();
        self.empty(reply, async move {
            mount.release(handle.0, owner.map(|owner| owner.0)).await;
            Ok(())
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let mount = self.mount.clone();
        self.empty(reply, async move { mount.sync(&*mount.file(handle.0)?).await });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.mount.open_directory(self.view.ino(ino)) {
            Ok(number) => reply.opened(FileHandle(number), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let (mount, view) = (self.mount.clone(), self.view);
        self.serve(async move {
            let page = match mount.list(handle.0, offset).await {
                Ok(page) => page,
                Err(error) => return reply.error(errno(error)),
            };
            for (offset, name, ino) in page.dots {
                if reply.add(view.number(ino), offset, FileType::Directory, name) {
                    return reply.ok();
                }
            }
            for entry in page.entries {
                let name = OsStr::from_bytes(&entry.place.name);
                if reply.add(view.number(entry.attr.ino), entry.offset, file_type(entry.attr.kind), name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (mount, view) = (self.mount.clone(), self.view);
        self.serve(async move {
            let page = match mount.list(handle.0, offset).await {
                Ok(page) => page,
                Err(error) => return reply.error(errno(error)),
            };
            for (offset, name, ino) in page.dots {
                let attr = FileAttr { ino: view.number(ino), kind: FileType::Directory, ..nothing() };
                if reply.add(attr.ino, offset, name, &Duration::ZERO, &attr, Generation(0)) {
                    return reply.ok();
                }
            }
            for entry in page.entries {
                let seen = match mount.refer_listed(&entry).await {
                    Ok(seen) => seen,
                    Err(Errno::NOENT | Errno::STALE) => continue, // Removed meanwhile.
                    Err(error) => return reply.error(errno(error)),
                };
                let (name, attr) = (OsStr::from_bytes(&entry.place.name), view.attr(&seen.attr));
                if reply.add(attr.ino, entry.offset, name, &seen.valid_for, &attr, Generation(0)) {
                    mount.forget(entry.attr.ino, 1); // There was no room to tell of it.
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.mount.release_directory(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let (mount, ino) = (self.mount.clone(), self.view.ino(ino));
        self.empty(reply, async move { mount.sync_directory(ino).await });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let mount = self.mount.clone();
        self.serve(async move {
            match mount.space().await {
                Ok(space) => {
                    let total = space.bytes_total / u64::from(BLOCK_BYTES);
                    let free = space.bytes_total.saturating_sub(space.bytes_used) / u64::from(BLOCK_BYTES);
                    let files_free = FILES_MAX.saturating_sub(space.files);
                    let names = NAME_BYTES_MAX as u32;
                    reply.statfs(total, free, free, FILES_MAX, files_free, BLOCK_BYTES, names, BLOCK_BYTES);
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Either,
        };
        let (mount, ino) = (self.mount.clone(), self.view.ino(ino));
        let (name, value) = (name.to_owned(), value.to_vec());
        self.empty(reply, async move { mount.set_xattr(ino, &name, Some(&value), mode).await });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (mount, ino, name) = (self.mount.clone(), self.view.ino(ino), name.to_owned());
        self.serve(async move {
            let value = match mount.xattr(ino, &name).await {
                Err(Errno::NODATA) if name == NEVER_LABELLED => Err(Errno::OPNOTSUPP),
                value => value,
            };
            sized(reply, size, value);
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (mount, ino) = (self.mount.clone(), self.view.ino(ino));
        self.serve(async move { sized(reply, size, mount.xattr_names(ino).await) });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (mount, ino, name) = (self.mount.clone(), self.view.ino(ino), name.to_owned());
        self.empty(reply, async move { mount.set_xattr(ino, &name, None, XattrMode::Replace).await });
    }

    fn getlk(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let (mount, ino) = (self.mount.clone(), self.view.ino(ino));
        self.serve(async move {
            let held = async { mount.lock_conflict(ino, kernel_lock(owner, start, end, kind, pid)?).await };
            match held.await {
                Ok(Some(held)) => {
                    let kind = if held.kind == LockKind::Read { libc::F_RDLCK } else { libc::F_WRLCK };
                    reply.locked(held.start, held.end, kind, held.pid);
                }
                Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        may_wait: bool,
        reply: ReplyEmpty,
    ) {
        let (mount, ino, waiter) = (self.mount.clone(), self.view.ino(ino), request.pid());
        self.empty(reply, async move {
            let lock = kernel_lock(owner, start, end, kind, pid)?;
            mount.set_lock(ino, lock, may_wait, || is_killed(waiter)).await
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mount = self.mount.clone();
        self.empty(reply, async move { mount.allocate(&*mount.file(handle.0)?, mode, offset, length).await });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let mount = self.mount.clone();
        self.serve(async move {
            let found = async {
                let to = match whence {
                    libc::SEEK_DATA => SeekTo::Data,
                    libc::SEEK_HOLE => SeekTo::Hole,
                    _ => return Err(Errno::INVAL),
                };
                let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
                let found = mount.seek(&*mount.file(handle.0)?, offset, to).await?;
                i64::try_from(found).map_err(|_| Errno::IO)
            };
            match found.await {
                Ok(found) => reply.offset(found),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let mount = self.mount.clone();
        self.serve(async move {
            let copied = async {
                let (from, to) = (mount.file(from.0)?, mount.file(to.0)?);
                let length = length.min(u64::from(!(BLOCK_BYTES - 1)));
                mount.copy_range((&*from, from_offset), (&*to, to_offset), length).await
            };
            match copied.await {
                Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }
}

/// No file: the kernel remembers that a name stands for nothing.
fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}
