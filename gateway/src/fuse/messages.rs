//! The port's types as messages, and back; what a gateway gets wrong is refused here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tonic::{Code, Status};

use super::past::is_past;
use super::service::{
    Attr, AttrChange, Done, Edit, Errno, FileRef, Ino, Kind, Lock, LockKind, Operation, Payload, RenameMode,
    Result, SetTime, XattrMode,
};
use crate::grpc::proto::file::v1 as wire;

/// Names of refusals that this mount passes on; any other is `EIO`.
fn errno_named(name: &str) -> Option<Errno> {
    const NAMES: [(&str, Errno); 24] = [
        ("EACCES", Errno::ACCES),
        ("EAGAIN", Errno::AGAIN),
        ("EBADF", Errno::BADF),
        ("EDQUOT", Errno::DQUOT),
        ("EEXIST", Errno::EXIST),
        ("EFBIG", Errno::FBIG),
        ("EINTR", Errno::INTR),
        ("EINVAL", Errno::INVAL),
        ("EIO", Errno::IO),
        ("EISDIR", Errno::ISDIR),
        ("EMLINK", Errno(libc::EMLINK)),
        ("ENAMETOOLONG", Errno::NAMETOOLONG),
        ("ENODATA", Errno::NODATA),
        ("ENOENT", Errno::NOENT),
        ("ENOSPC", Errno::NOSPC),
        ("ENOTDIR", Errno::NOTDIR),
        ("ENOTEMPTY", Errno::NOTEMPTY),
        ("ENXIO", Errno::NXIO),
        ("EOPNOTSUPP", Errno::OPNOTSUPP),
        ("EPERM", Errno::PERM),
        ("ERANGE", Errno::RANGE),
        ("EROFS", Errno::ROFS),
        ("ESTALE", Errno::STALE),
        ("EXDEV", Errno::XDEV),
    ];
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, errno)| *errno)
}

pub(super) fn errno_of(status: &Status) -> Errno {
    let name = status.metadata().get("makai-errno").and_then(|name| name.to_str().ok());
    name.and_then(errno_named).unwrap_or_else(|| match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Errno::ACCES,
        Code::NotFound => Errno::NOENT,
        Code::ResourceExhausted => Errno::NOSPC,
        _ => {
            tracing::warn!(%status, "a gateway's answer is passed on as an I/O error");
            Errno::IO
        }
    })
}

pub(super) fn refusal(error: &wire::FileError) -> Errno {
    errno_named(&error.name).unwrap_or(Errno::IO)
}

/// Seconds from 1970 that a file's time may lie away: 34,000 years.
const TIME_SECONDS_MAX: u64 = 1 << 40;

pub(super) fn time(time: Option<wire::Time>) -> SystemTime {
    let is_sane = |time: &wire::Time| time.seconds.unsigned_abs() <= TIME_SECONDS_MAX;
    let Some(time) = time.filter(is_sane) else { return UNIX_EPOCH };
    let nanos = Duration::from_nanos(time.nanos.min(999_999_999).into());
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = match time.seconds < 0 {
        true => UNIX_EPOCH.checked_sub(seconds),
        false => UNIX_EPOCH.checked_add(seconds),
    };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

fn wire_time(time: SystemTime) -> wire::Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => wire::Time { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let is_part = before.subsec_nanos() > 0;
            let nanos = if is_part { 1_000_000_000 - before.subsec_nanos() } else { 0 };
            wire::Time { seconds: -(before.as_secs() as i64) - i64::from(is_part), nanos }
        }
    }
}

pub(super) fn kind(kind: i32) -> Option<Kind> {
    Some(match wire::Kind::try_from(kind).ok()? {
        wire::Kind::Unspecified => return None,
        wire::Kind::File => Kind::File,
        wire::Kind::Directory => Kind::Directory,
        wire::Kind::Symlink => Kind::Symlink,
        wire::Kind::Fifo => Kind::Fifo,
        wire::Kind::Socket => Kind::Socket,
        wire::Kind::CharDevice => Kind::CharDevice,
        wire::Kind::BlockDevice => Kind::BlockDevice,
    })
}

fn wire_kind(kind: Kind) -> i32 {
    let kind = match kind {
        Kind::File => wire::Kind::File,
        Kind::Directory => wire::Kind::Directory,
        Kind::Symlink => wire::Kind::Symlink,
        Kind::Fifo => wire::Kind::Fifo,
        Kind::Socket => wire::Kind::Socket,
        Kind::CharDevice => wire::Kind::CharDevice,
        Kind::BlockDevice => wire::Kind::BlockDevice,
    };
    kind.into()
}

pub(super) fn attr(told: wire::Attributes) -> Option<Attr> {
    if is_past(Ino(told.inode)) {
        return None; // Numbers of this mount's own.
    }
    Some(Attr {
        ino: Ino(told.inode),
        kind: kind(told.kind)?,
        mode: told.mode & 0o7777,
        uid: told.uid,
        gid: told.gid,
        nlink: told.links,
        rdev: told.rdev,
        size: told.size.min(i64::MAX as u64),
        blocks: told.blocks,
        atime: time(told.accessed_at),
        mtime: time(told.modified_at),
        ctime: time(told.changed_at),
        btime: time(told.created_at),
        data_version: told.data_version,
        has_no_xattrs: told.has_no_xattrs,
    })
}

pub(super) fn wire_file(file: &FileRef) -> Option<wire::FileRef> {
    let (parent, name) =
        file.place.as_ref().map_or((0, Bytes::new()), |place| (place.parent.0, place.name.clone()));
    Some(wire::FileRef { inode: file.ino.0, parent, name })
}

fn wire_set_time(time: SetTime) -> wire::TimeToSet {
    let to = match time {
        SetTime::Now => wire::time_to_set::To::Now(true),
        SetTime::At(time) => wire::time_to_set::To::At(wire_time(time)),
    };
    wire::TimeToSet { to: Some(to) }
}

fn wire_bytes(payload: Payload) -> wire::Bytes {
    match payload {
        Payload::Inline(data) => wire::Bytes { data, pieces: Vec::new() },
        Payload::Stored { token, length } => {
            wire::Bytes { data: Bytes::new(), pieces: vec![wire::Piece { token, offset: 0, length }] }
        }
    }
}

fn wire_edit(edit: Edit) -> wire::Change {
    use wire::change::What;
    let what = match edit {
        Edit::Replace { data, .. } => What::Replace(wire_bytes(Payload::Inline(data))),
        Edit::Write { offset, data } => What::Write(wire::Write { offset, bytes: Some(wire_bytes(data)) }),
        Edit::Append(data) => What::Append(wire_bytes(data)),
        Edit::Punch { offset, length } => What::Punch(wire::Range { offset, length }),
        Edit::Extend(size) => What::Extend(size),
        Edit::Copy { from, from_offset, offset, length } => {
            What::Copy(wire::CopyRange { from: wire_file(&from), from_offset, offset, length })
        }
        Edit::Finish => What::Finish(true),
    };
    wire::Change { what: Some(what) }
}

pub(super) fn wire_lock(lock: Lock) -> wire::Lock {
    let kind = match lock.kind {
        LockKind::Read => wire::LockType::Read,
        LockKind::Write => wire::LockType::Write,
        LockKind::Unlock => wire::LockType::Unlock,
    };
    let Lock { start, end, owner, pid, .. } = lock;
    wire::Lock { r#type: kind.into(), owner, is_flock: false, start, end, pid }
}

fn wire_change(file: &FileRef, change: AttrChange) -> wire::SetAttributes {
    wire::SetAttributes {
        file: wire_file(file),
        mode: change.mode,
        uid: change.uid,
        gid: change.gid,
        accessed_at: change.atime.map(wire_set_time),
        modified_at: change.mtime.map(wire_set_time),
        size: change.size,
    }
}

pub(super) fn wire_operation(operation: Operation) -> wire::Operation {
    use wire::operation::What;
    let what = match operation {
        Operation::Make { place, node, birth } => What::Make(wire::Make {
            parent: place.parent.0,
            name: place.name,
            kind: wire_kind(node.kind),
            inode: birth.ino.map_or(0, |ino| ino.0),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
            target: node.target,
            exclusive: true,
            xattrs: node.xattrs.into_iter().map(|(name, value)| wire::Xattr { name, value }).collect(),
            data: birth.data,
            made_at: birth.made_at.map(wire_time),
            modified_at: birth.mtime.map(wire_time),
            accessed_at: birth.atime.map(wire_time),
            leased: birth.is_leased,
        }),
        Operation::SetAttributes { file, change } => What::SetAttributes(wire_change(&file, change)),
        Operation::Link { file, to } => {
            What::Link(wire::Link { file: wire_file(&file), parent: to.parent.0, name: to.name })
        }
        Operation::Unlink { place, is_held } => {
            What::Unlink(wire::Unlink { parent: place.parent.0, name: place.name, is_held })
        }
        Operation::RemoveDirectory { place } => {
            What::RemoveDirectory(wire::RemoveDirectory { parent: place.parent.0, name: place.name })
        }
        Operation::Rename { from, to, mode, is_replaced_held } => {
            let how = match mode {
                RenameMode::Replace => wire::RenameHow::Replace,
                RenameMode::NoReplace => wire::RenameHow::NoReplace,
                RenameMode::Exchange => wire::RenameHow::Exchange,
            };
            What::Rename(wire::Rename {
                from_parent: from.parent.0,
                from_name: from.name,
                to_parent: to.parent.0,
                to_name: to.name,
                how: how.into(),
                is_replaced_held,
            })
        }
        Operation::Edit { file, edits, mtime } => What::Edit(wire::Edit {
            file: wire_file(&file),
            if_data_version: edits.iter().find_map(|edit| match edit {
                Edit::Replace { version, .. } => Some(*version),
                _ => None,
            }),
            changes: edits.into_iter().map(wire_edit).collect(),
            modified_at: mtime.map(wire_time),
        }),
        Operation::SetXattr { file, name, value, mode } => What::SetXattr(wire::SetXattr {
            file: wire_file(&file),
            name,
            value,
            create_only: mode == XattrMode::Create,
            replace_only: mode == XattrMode::Replace,
        }),
        Operation::Lock { file, lock } => {
            What::SetLock(wire::SetLock { file: wire_file(&file), lock: Some(wire_lock(lock)) })
        }
        Operation::Lease { directory, is_wanted } => {
            What::SetLease(wire::SetLease { directory: directory.0, wanted: is_wanted })
        }
    };
    wire::Operation { what: Some(what) }
}

pub(super) fn done(result: wire::Result) -> Result<Done> {
    match result.outcome {
        Some(wire::result::Outcome::Done(done)) => Ok(Done {
            attr: done.attributes.and_then(attr),
            directories: done.directories.into_iter().filter_map(attr).collect(),
            offset: done.offset,
        }),
        Some(wire::result::Outcome::Error(error)) => Err(refusal(&error)),
        None => Err(Errno::IO),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_come_back_before_and_after_1970(seconds in -4_000_000_000i64..4_000_000_000, nanos in 0u32..1_000_000_000) {
            let told = wire::Time { seconds, nanos };
            prop_assert_eq!(wire_time(time(Some(told))), told);
        }
    }

    #[test]
    fn what_a_gateway_gets_wrong_is_no_file() {
        assert_eq!(attr(wire::Attributes { kind: 99, ..wire::Attributes::default() }), None);
        let huge =
            wire::Attributes { kind: 1, size: u64::MAX, mode: u32::MAX, ..wire::Attributes::default() };
        let huge = attr(huge).unwrap();
        assert_eq!((huge.size, huge.mode), (i64::MAX as u64, 0o7777));
        assert_eq!(time(Some(wire::Time { seconds: i64::MAX, nanos: u32::MAX })), UNIX_EPOCH);
        assert_eq!(done(wire::Result { outcome: None }), Err(Errno::IO));
        let odd = wire::FileError { name: "EWHAT".into(), ..wire::FileError::default() };
        assert_eq!(refusal(&odd), Errno::IO);
    }
}
