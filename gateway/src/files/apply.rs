//! Operations: their data is made durable first, all small pieces of a request in one blob; then one command names it.
//!
//! Content that is inline can only be replaced. The facts stop at an edit of such content; it is read here, edited, and
//! the operations go on from there.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream;
use makai_erasure::BlobId;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::command::{NewBlob, Refusal};
use makai_raft::facts::files::{
    Edit, FileCommand, FileDone, FileKind, FileOp, FileRefusal, FileReply, Make, OPS_MAX, SetAttributes,
    Whole, XattrHow,
};
use makai_raft::facts::object::{Content, Extent, INLINE_BYTES_MAX};
use ring::hmac;

use super::errors::Failure;
use super::{Does, Files, convert, mismatch, named, tokens};
use crate::grpc::proto::file::v1 as proto;
use crate::identity::Caller;
use crate::objects::LeaseWait;
use proto::change::What as ChangeWhat;
use proto::operation::What;

/// Bytes of data in the operations of one request.
const DATA_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a symbolic link's target.
const TARGET_BYTES_MAX: usize = 4095;
/// Inline contents that one request edits.
const INLINE_EDITS_MAX: usize = OPS_MAX + 5;

/// Bytes of one request that are kept in the metadata; where it has more, its contents are packed.
const INLINE_BYTES_PER_REQUEST_MAX: usize = 64 * 1024;

/// Who asks, and how.
#[derive(Clone, Copy)]
struct Asked {
    session: u64,
    request: u64,
    is_brief: bool,
}

/// What the operations of a request name.
struct Data {
    key: hmac::Key,
    bucket: u64,
    /// Larger contents are packed.
    inline_bytes_max: u64,
    /// Bytes on their way into one blob.
    packed: BytesMut,
    blobs: HashMap<BlobId, NewBlob>,
}

/// Stands for the blob of packed bytes until it is stored.
const PACKED: BlobId = BlobId([0xFF; 16]);

impl Data {
    fn pack(&mut self, data: &[u8]) -> Extent {
        let offset = self.packed.len() as u64;
        self.packed.extend_from_slice(data);
        Extent { blob: PACKED, offset, length: data.len() as u64, part: 0 }
    }

    fn extents(&mut self, bytes: Option<proto::Bytes>) -> Result<Vec<Extent>, Failure> {
        let Some(bytes) = bytes else { return Err(Failure::invalid("bytes are missing")) };
        if !bytes.data.is_empty() {
            if !bytes.pieces.is_empty() {
                return Err(Failure::invalid("bytes are given as data or as pieces, not both"));
            }
            return Ok(vec![self.pack(&bytes.data)]);
        }
        let mut extents = Vec::with_capacity(bytes.pieces.len());
        for piece in bytes.pieces {
            let blob = tokens::open(&self.key, self.bucket, &piece.token)?;
            extents.push(Extent { blob: blob.id, offset: piece.offset, length: piece.length, part: 0 });
            self.blobs.insert(blob.id, blob);
        }
        Ok(extents)
    }
}

impl Files {
    pub(super) async fn apply_operations(
        &self,
        caller: &Caller,
        request: proto::ApplyRequest,
    ) -> Result<proto::ApplyReply, Failure> {
        if request.operations.len() > OPS_MAX {
            return Err(Failure::invalid(format!("at most {OPS_MAX} operations at once")));
        }
        // Whoever may read a file may lock it.
        let is_lock = |operation: &proto::Operation| matches!(operation.what, Some(What::SetLock(_)));
        let does = if request.operations.iter().all(is_lock) { Does::Look } else { Does::Change };
        let bucket = self.bucket(caller, &request.bucket, does).await?;
        let key = self.objects.voucher(caller).await?;
        // Every voter keeps what is inline: of much, the disks keep one packed blob instead.
        let is_much =
            request.operations.iter().map(small_bytes).sum::<usize>() > INLINE_BYTES_PER_REQUEST_MAX;
        let mut data = Data {
            key,
            bucket: bucket.id,
            inline_bytes_max: if is_much { 0 } else { INLINE_BYTES_MAX },
            packed: BytesMut::new(),
            blobs: HashMap::new(),
        };
        // An operation that cannot be understood has its own error, and the others go on.
        let mut results: Vec<Option<proto::Result>> = Vec::with_capacity(request.operations.len());
        let mut ops = Vec::with_capacity(request.operations.len());
        let mut places = Vec::with_capacity(request.operations.len());
        for (at, operation) in request.operations.into_iter().enumerate() {
            match self.understand(caller, &bucket, operation, &mut data).await {
                Ok(op) => {
                    ops.push(op);
                    places.push(at);
                    results.push(None);
                }
                Err(failure) => results.push(Some(failed(&failure))),
            }
            if data.packed.len() > DATA_BYTES_MAX {
                return Err(Failure::invalid("at most 4 MiB of data in one request; use Store for more"));
            }
        }
        self.store_packed(caller, &bucket, &mut ops, &mut data).await?;
        let blobs: Vec<NewBlob> = data.blobs.into_values().collect();
        let asked = Asked { session: request.session, request: request.request_id, is_brief: request.brief };
        let done = self.carry_out(caller, &bucket, asked, ops, blobs).await?;
        for (at, done) in places.into_iter().zip(done) {
            results[at] = Some(match done {
                Ok(done) => succeeded(&done),
                Err(refusal) => failed(&refusal.into()),
            });
        }
        let results =
            results.into_iter().map(|result| result.ok_or_else(mismatch)).collect::<Result<_, _>>()?;
        Ok(proto::ApplyReply { results })
    }

    /// Proposes the operations, and again what is left after each that edits inline content or waits for a directory that
    /// another mount has alone.
    async fn carry_out(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        asked: Asked,
        mut ops: Vec<FileOp>,
        blobs: Vec<NewBlob>,
    ) -> Result<Vec<Result<FileDone, Refusal>>, Failure> {
        let Asked { session, request, is_brief } = asked;
        let mut results = Vec::with_capacity(ops.len());
        let mut waiting = LeaseWait::default();
        let mut round = 0;
        let mut is_first = true;
        while (is_first || !ops.is_empty()) && round < INLINE_EDITS_MAX {
            is_first = false;
            let request = if request == 0 { 0 } else { request_of_round(request, round as u64) };
            let command = FileCommand::Apply {
                bucket: named(bucket),
                session,
                request,
                ops: ops.clone(),
                blobs: blobs.clone(),
                is_brief,
            };
            let FileReply::Applied(mut done) = self.tell(&bucket.name, command).await? else {
                return Err(mismatch());
            };
            let stopped = done.pop_if(|last| {
                matches!(last, Err(Refusal::File(FileRefusal::IsInline | FileRefusal::Leased { .. })))
            });
            if done.len() > ops.len() || (done.len() < ops.len() && stopped.is_none()) {
                return Err(mismatch());
            }
            // What was refused whole for a lease's sake is not remembered, and comes again as it was.
            let is_same =
                done.is_empty() && matches!(&stopped, Some(Err(Refusal::File(FileRefusal::Leased { .. }))));
            round += usize::from(!is_same);
            ops.drain(..done.len());
            results.extend(done);
            match stopped {
                Some(Err(Refusal::File(FileRefusal::Leased { bucket: named, directory }))) => {
                    let has_let_go = self.objects.await_lease(&mut waiting, &named, directory).await?;
                    if has_let_go {
                        continue;
                    }
                    // Who has it does not let go, again and again: this one is told so, the others go on.
                    results.push(Err(FileRefusal::Leased { bucket: named, directory }.into()));
                    ops.drain(..1);
                    round += 1;
                }
                Some(_) => {
                    if let Some(op) = ops.first_mut() {
                        self.unfold_inline(caller, bucket, session, op).await?;
                    }
                }
                None => {}
            }
        }
        if ops.is_empty() {
            Ok(results)
        } else {
            Err(Failure::new(super::errors::Errno::Ebusy, "the files change too fast"))
        }
    }

    /// Moves the content that an operation edits from the metadata into a blob: its bytes stay as they are.
    async fn unfold_inline(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        session: u64,
        op: &mut FileOp,
    ) -> Result<(), Failure> {
        let (file, if_data_version) = match op {
            FileOp::Edit { file, if_data_version, .. } => (file, Some(if_data_version)),
            FileOp::SetAttributes { file, .. } => (file, None),
            _ => return Err(mismatch()),
        };
        let content = self.content(bucket, file, 0, 1).await?;
        // Changed meanwhile: the facts look again.
        let Some(plain) = self.inline_bytes(caller, &content).await? else { return Ok(()) };
        let size = plain.len() as u64;
        let body = stream::iter([Ok(plain)]).boxed();
        let stored = self.objects.store_blobs(caller, bucket, body, Some(size)).await?;
        let whole = Whole { size, etag: Some(content.stat.etag.clone()), content: stored.content };
        let version = content.stat.data_version;
        let edit = FileOp::Edit {
            file: file.clone(),
            if_data_version: Some(version),
            edits: vec![Edit::Replace(whole)],
            modified_at: Some(content.stat.modified_at),
        };
        let command = FileCommand::Apply {
            bucket: named(bucket),
            session,
            request: 0,
            ops: vec![edit],
            blobs: stored.blobs,
            is_brief: false,
        };
        let FileReply::Applied(done) = self.tell(&bucket.name, command).await? else {
            return Err(mismatch());
        };
        if let Some(Ok(FileDone { stat: Some(stat), .. })) = done.first()
            && let Some(asked) = if_data_version
            && *asked == Some(version)
        {
            *asked = Some(stat.data_version);
        }
        Ok(())
    }

    /// Stores what was packed, and names it where it stands for itself.
    async fn store_packed(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        ops: &mut [FileOp],
        data: &mut Data,
    ) -> Result<(), Failure> {
        if data.packed.is_empty() {
            return Ok(());
        }
        let packed = data.packed.split().freeze();
        let size = Some(packed.len() as u64);
        let body = stream::iter([Ok(packed)]).boxed();
        let stored = self.objects.store_blobs(caller, bucket, body, size).await?;
        let [blob] = &stored.blobs[..] else { return Err(mismatch()) };
        for extent in ops.iter_mut().flat_map(extents_of) {
            if extent.blob == PACKED {
                extent.blob = blob.id;
            }
        }
        data.blobs.insert(blob.id, blob.clone());
        Ok(())
    }

    async fn understand(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        operation: proto::Operation,
        data: &mut Data,
    ) -> Result<FileOp, Failure> {
        Ok(match operation.what.ok_or_else(|| Failure::invalid("an operation is missing"))? {
            What::Make(make) => FileOp::Make(self.make_of(caller, bucket, make, data).await?),
            What::SetAttributes(asked) => FileOp::SetAttributes {
                file: convert::file_ref(asked.file)?,
                set: SetAttributes {
                    mode: asked.mode,
                    uid: asked.uid,
                    gid: asked.gid,
                    accessed_at: convert::time_to_set(asked.accessed_at),
                    modified_at: convert::time_to_set(asked.modified_at),
                    size: asked.size,
                },
            },
            What::Link(link) => FileOp::Link {
                file: convert::file_ref(link.file)?,
                parent: link.parent,
                name: self.name(bucket, link.parent, &link.name).await?,
            },
            What::Unlink(unlink) => FileOp::Unlink {
                parent: unlink.parent,
                name: self.name(bucket, unlink.parent, &unlink.name).await?,
                is_held: unlink.is_held,
            },
            What::RemoveDirectory(remove) => FileOp::RemoveDirectory {
                parent: remove.parent,
                name: self.name(bucket, remove.parent, &remove.name).await?,
            },
            What::Rename(rename) => FileOp::Rename {
                from_parent: rename.from_parent,
                from_name: self.name(bucket, rename.from_parent, &rename.from_name).await?,
                to_parent: rename.to_parent,
                to_name: self.name(bucket, rename.to_parent, &rename.to_name).await?,
                how: convert::rename_how(rename.how()),
                is_replaced_held: rename.is_replaced_held,
            },
            What::Edit(edit) => {
                let mut edits = Vec::with_capacity(edit.changes.len());
                for change in edit.changes {
                    edits.push(self.change_of(caller, bucket, change, data).await?);
                }
                FileOp::Edit {
                    file: convert::file_ref(edit.file)?,
                    if_data_version: edit.if_data_version,
                    edits,
                    modified_at: convert::time_of(edit.modified_at),
                }
            }
            What::SetXattr(set) => FileOp::SetXattr {
                file: convert::file_ref(set.file)?,
                name: set.name,
                value: set.value,
                how: match (set.create_only, set.replace_only) {
                    (true, true) => {
                        return Err(Failure::invalid("create_only and replace_only exclude each other"));
                    }
                    (true, false) => XattrHow::Create,
                    (false, true) => XattrHow::Replace,
                    (false, false) => XattrHow::Any,
                },
            },
            What::SetLease(set) => FileOp::SetLease { directory: set.directory, is_wanted: set.wanted },
            What::SetLock(set) => {
                FileOp::SetLock { file: convert::file_ref(set.file)?, lock: convert::lock_of(set.lock)? }
            }
        })
    }

    async fn make_of(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        make: proto::Make,
        data: &mut Data,
    ) -> Result<Make, Failure> {
        let kind = convert::kind_of(make.kind())?;
        let content = match kind {
            FileKind::Symlink => {
                let is_path =
                    (1..=TARGET_BYTES_MAX).contains(&make.target.len()) && !make.target.contains(&0);
                if !is_path {
                    let why = format!("a target has 1 to {TARGET_BYTES_MAX} bytes and no NUL");
                    return Err(Failure::invalid(why));
                }
                self.whole(caller, bucket, make.target, INLINE_BYTES_MAX, data).await?
            }
            FileKind::File => self.whole(caller, bucket, make.data, data.inline_bytes_max, data).await?,
            _ => Whole::empty(),
        };
        Ok(Make {
            parent: make.parent,
            name: self.name(bucket, make.parent, &make.name).await?,
            kind,
            inode: make.inode,
            mode: make.mode,
            uid: make.uid,
            gid: make.gid,
            rdev: make.rdev,
            is_exclusive: make.exclusive,
            xattrs: make.xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect(),
            content,
            made_at: convert::time_of(make.made_at),
            modified_at: convert::time_of(make.modified_at),
            accessed_at: convert::time_of(make.accessed_at),
            is_leased: make.leased,
        })
    }

    /// A whole content: in the metadata where it is small.
    async fn whole(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        bytes: Bytes,
        inline_bytes_max: u64,
        data: &mut Data,
    ) -> Result<Whole, Failure> {
        let size = bytes.len() as u64;
        if size == 0 {
            return Ok(Whole::empty());
        }
        if size > inline_bytes_max {
            return Ok(Whole { size, etag: None, content: Content::Extents(vec![data.pack(&bytes)]) });
        }
        let sealed = self.objects.seal_inline(caller, bucket, bytes).await?;
        Ok(Whole { size, etag: Some(sealed.etag), content: sealed.content })
    }

    async fn change_of(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        change: proto::Change,
        data: &mut Data,
    ) -> Result<Edit, Failure> {
        Ok(match change.what.ok_or_else(|| Failure::invalid("a change is missing"))? {
            ChangeWhat::Replace(bytes) if bytes.pieces.is_empty() => {
                Edit::Replace(self.whole(caller, bucket, bytes.data, data.inline_bytes_max, data).await?)
            }
            ChangeWhat::Replace(bytes) => {
                let extents = data.extents(Some(bytes))?;
                let size = extents.iter().fold(0u64, |sum, extent| sum.saturating_add(extent.length));
                Edit::Replace(Whole { size, etag: None, content: Content::Extents(extents) })
            }
            ChangeWhat::Write(write) => {
                Edit::Write { offset: write.offset, extents: data.extents(write.bytes)? }
            }
            ChangeWhat::Append(bytes) => Edit::Append(data.extents(Some(bytes))?),
            ChangeWhat::Truncate(size) => Edit::Truncate(size),
            ChangeWhat::Extend(size) => Edit::Extend(size),
            ChangeWhat::Finish(_) => Edit::Finish,
            ChangeWhat::Punch(range) => Edit::Punch { offset: range.offset, length: range.length },
            ChangeWhat::Copy(copy) => Edit::Copy {
                from: convert::file_ref(copy.from)?,
                from_offset: copy.from_offset,
                offset: copy.offset,
                length: copy.length,
            },
        })
    }
}

/// Bytes of an operation that could be inline.
fn small_bytes(operation: &proto::Operation) -> usize {
    let bytes = match &operation.what {
        Some(What::Make(make)) => make.data.len(),
        Some(What::Edit(edit)) => edit
            .changes
            .iter()
            .map(|change| match &change.what {
                Some(ChangeWhat::Replace(bytes)) => bytes.data.len(),
                _ => 0,
            })
            .sum(),
        _ => 0,
    };
    if bytes as u64 <= INLINE_BYTES_MAX { bytes } else { 0 }
}

/// What is left of a request is known again by its round. Clients count their requests: those of rounds lie elsewhere.
fn request_of_round(request: u64, round: u64) -> u64 {
    if round == 0 {
        return request;
    }
    // SplitMix64's step: neighbours lie far apart.
    let mixed = request ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ (mixed >> 31)) | 1 << 63
}

/// The extents that an operation brings.
fn extents_of(op: &mut FileOp) -> Vec<&mut Extent> {
    fn of_content(content: &mut Content) -> &mut [Extent] {
        match content {
            Content::Extents(extents) => extents,
            Content::Empty | Content::Inline { .. } => &mut [],
        }
    }
    match op {
        FileOp::Make(make) => of_content(&mut make.content.content).iter_mut().collect(),
        FileOp::Edit { edits, .. } => {
            let mut found: Vec<&mut Extent> = Vec::new();
            for edit in edits {
                match edit {
                    Edit::Replace(Whole { content, .. }) => found.extend(of_content(content)),
                    Edit::Write { extents, .. } | Edit::Append(extents) => found.extend(extents),
                    _ => {}
                }
            }
            found
        }
        _ => Vec::new(),
    }
}

fn failed(failure: &Failure) -> proto::Result {
    proto::Result { outcome: Some(proto::result::Outcome::Error(failure.error())) }
}

fn succeeded(done: &FileDone) -> proto::Result {
    let done = proto::Done {
        attributes: done.stat.as_ref().map(convert::attributes),
        directories: done.directories.iter().map(convert::attributes).collect(),
        offset: done.offset,
        is_new: done.is_new,
    };
    proto::Result { outcome: Some(proto::result::Outcome::Done(done)) }
}
