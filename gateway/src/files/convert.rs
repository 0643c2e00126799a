//! Facts as messages, and back.

use makai_raft::facts::files::{
    FileEvent, FileKind, FileRef, FileTime, Lock, LockType, RenameHow, Stat, TimeToSet,
};

use super::errors::Failure;
use super::names::{FILE_NAME_BYTES_MAX, Meant, meant, shown};
use crate::grpc::proto::file::v1 as proto;

/// Bytes that `stat` counts blocks in.
const BLOCK_BYTES: u64 = 512;

pub fn time(at: FileTime) -> proto::Time {
    proto::Time { seconds: at.seconds, nanos: at.nanos }
}

pub fn attributes(stat: &Stat) -> proto::Attributes {
    proto::Attributes {
        inode: stat.inode,
        kind: kind(stat.kind).into(),
        mode: stat.mode,
        links: stat.links,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        size: stat.size,
        blocks: stat.size.saturating_sub(stat.hole_bytes).div_ceil(BLOCK_BYTES),
        accessed_at: Some(time(stat.accessed_at)),
        modified_at: Some(time(stat.modified_at)),
        changed_at: Some(time(stat.changed_at)),
        created_at: Some(time(stat.created_at)),
        data_version: stat.data_version,
        needs_place: stat.needs_place,
        etag: stat.etag.clone(),
        has_no_xattrs: stat.has_no_xattrs,
    }
}

fn kind(kind: FileKind) -> proto::Kind {
    match kind {
        FileKind::File => proto::Kind::File,
        FileKind::Directory => proto::Kind::Directory,
        FileKind::Symlink => proto::Kind::Symlink,
        FileKind::Fifo => proto::Kind::Fifo,
        FileKind::Socket => proto::Kind::Socket,
        FileKind::CharDevice => proto::Kind::CharDevice,
        FileKind::BlockDevice => proto::Kind::BlockDevice,
    }
}

pub fn kind_of(kind: proto::Kind) -> Result<FileKind, Failure> {
    Ok(match kind {
        proto::Kind::Unspecified => return Err(Failure::invalid("kind is missing")),
        proto::Kind::File => FileKind::File,
        proto::Kind::Directory => FileKind::Directory,
        proto::Kind::Symlink => FileKind::Symlink,
        proto::Kind::Fifo => FileKind::Fifo,
        proto::Kind::Socket => FileKind::Socket,
        proto::Kind::CharDevice => FileKind::CharDevice,
        proto::Kind::BlockDevice => FileKind::BlockDevice,
    })
}

pub fn time_of(at: Option<proto::Time>) -> Option<FileTime> {
    at.map(|at| FileTime { seconds: at.seconds, nanos: at.nanos })
}

pub fn time_to_set(to: Option<proto::TimeToSet>) -> Option<TimeToSet> {
    match to?.to? {
        proto::time_to_set::To::Now(_) => Some(TimeToSet::Now),
        proto::time_to_set::To::At(at) => {
            Some(TimeToSet::At(FileTime { seconds: at.seconds, nanos: at.nanos }))
        }
    }
}

pub fn rename_how(how: proto::RenameHow) -> RenameHow {
    match how {
        proto::RenameHow::Replace => RenameHow::Replace,
        proto::RenameHow::NoReplace => RenameHow::NoReplace,
        proto::RenameHow::Exchange => RenameHow::Exchange,
    }
}

/// A place whose name is too long to show is left out: such a file is found once a mount has changed it.
pub fn file_ref(file: Option<proto::FileRef>) -> Result<FileRef, Failure> {
    let file = file.ok_or_else(|| Failure::invalid("file is missing"))?;
    let place = if file.name.is_empty() || file.name.len() > FILE_NAME_BYTES_MAX {
        None
    } else {
        match meant(&file.name) {
            Ok(Meant::Name(name)) => Some((file.parent, name)),
            Ok(Meant::Long { .. }) | Err(_) => None,
        }
    };
    Ok(FileRef { inode: file.inode, place })
}

pub fn lock_of(lock: Option<proto::Lock>) -> Result<Lock, Failure> {
    let lock = lock.ok_or_else(|| Failure::invalid("lock is missing"))?;
    let kind = match lock.r#type() {
        proto::LockType::Unspecified => return Err(Failure::invalid("the lock's type is missing")),
        proto::LockType::Read => LockType::Read,
        proto::LockType::Write => LockType::Write,
        proto::LockType::Unlock => LockType::Unlock,
    };
    let proto::Lock { owner, is_flock, start, end, pid, .. } = lock;
    Ok(Lock { kind, owner, is_flock, start, end, pid })
}

pub fn lock(lock: Lock) -> proto::Lock {
    let kind = match lock.kind {
        LockType::Read => proto::LockType::Read,
        LockType::Write => proto::LockType::Write,
        LockType::Unlock => proto::LockType::Unlock,
    };
    let Lock { owner, is_flock, start, end, pid, .. } = lock;
    proto::Lock { r#type: kind.into(), owner, is_flock, start, end, pid }
}

/// As the session is told; `None`: it is another's affair.
pub fn event(event: &FileEvent, to: u64) -> Option<proto::Event> {
    use proto::event::What;
    let what = match event {
        FileEvent::Inode(inode) => What::Inode(*inode),
        FileEvent::Entry { parent, name } => {
            What::Entry(proto::EntryChanged { parent: *parent, name: shown(name).into() })
        }
        FileEvent::Orphaned(inode) => What::Orphaned(*inode),
        FileEvent::Unlocked(inode) => What::Unlocked(*inode),
        FileEvent::Recalled { directory, session } if *session == to => What::Recalled(*directory),
        FileEvent::Recalled { .. } => return None,
    };
    Some(proto::Event { what: Some(what) })
}
