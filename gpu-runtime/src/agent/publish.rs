//! Outputs and log, into the pool: durable, and visible once the result counts.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use makai_raft::facts::desk::{Fault, PIECE_BYTES_MAX, Request, Target};
use makai_raft::facts::joblog;
use makai_raft::facts::jobs::{
    AssignedTask, AttemptId, OUTPUT_OBJECTS_MAX, Output, Published, of_task, output_key,
};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

use super::stage::{StageError, below};
use super::{Agent, log_part};
use crate::runner::Attempt;

/// One attempt's publishing.
pub struct Publish<'a> {
    pub agent: &'a Agent,
    pub attempt: AttemptId,
    pub revoked: &'a mut watch::Receiver<bool>,
}

impl Publish<'_> {
    /// Writes what the task left in `folder` and the job asks for; returns what becomes visible.
    pub async fn outputs(
        &mut self,
        task: &AssignedTask,
        folder: &Path,
    ) -> Result<Vec<Published>, StageError> {
        let mut published = Vec::new();
        for (at, output) in (0u32..).zip(&task.spec.outputs) {
            for (path, file) in files_of(output, self.attempt.index, folder)? {
                if published.len() == OUTPUT_OBJECTS_MAX {
                    let why = format!("the task left more than {OUTPUT_OBJECTS_MAX} files to publish");
                    return Err(StageError::Fault(Fault::Refused(why)));
                }
                let to = output_key(output, self.attempt.index, &path);
                let (size, blake3) = self.file(Target::Output { at, path }, &file).await?;
                published.push(Published { bucket: to.bucket, key: to.key, size, blake3 });
            }
        }
        Ok(published)
    }

    async fn file(&mut self, to: Target, path: &Path) -> Result<(u64, [u8; 32]), StageError> {
        let mut file = tokio::fs::File::open(path).await?;
        let mut hasher = blake3::Hasher::new();
        let (mut offset, mut next) = (0, read_piece(&mut file).await?);
        loop {
            let piece = next;
            next = if piece.len() as u64 == PIECE_BYTES_MAX {
                read_piece(&mut file).await?
            } else {
                Bytes::new()
            };
            hasher.update(&piece);
            let len = piece.len() as u64;
            let is_last = next.is_empty();
            self.write(to.clone(), offset, piece, is_last).await?;
            offset += len;
            if is_last {
                return Ok((offset, *hasher.finalize().as_bytes()));
            }
        }
    }

    /// Writes the log, whole.
    pub async fn log(&mut self, attempt: &dyn Attempt) -> Result<(), StageError> {
        let mut bytes = joblog::MAGIC.to_vec();
        let (mut written, mut at) = (0, 0);
        loop {
            let part = log_part(attempt, at).await;
            let part = part.map_err(|error| StageError::Disk(io::Error::other(error.to_string())))?;
            let is_over = part.is_complete || part.records.is_empty();
            at = part.offset + part.records.len() as u64;
            bytes.extend_from_slice(&part.records);
            if is_over || bytes.len() as u64 >= PIECE_BYTES_MAX / 2 {
                let len = bytes.len() as u64;
                self.write(Target::Log, written, std::mem::take(&mut bytes).into(), is_over).await?;
                written += len;
            }
            if is_over {
                return Ok(());
            }
        }
    }

    async fn write(
        &mut self,
        to: Target,
        offset: u64,
        bytes: Bytes,
        is_last: bool,
    ) -> Result<(), StageError> {
        let request = Request::Write { attempt: self.attempt, to, offset, bytes, is_last };
        self.agent.ask(self.attempt, request, self.revoked).await?;
        Ok(())
    }
}

async fn read_piece(file: &mut tokio::fs::File) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    file.take(PIECE_BYTES_MAX).read_to_end(&mut bytes).await?;
    Ok(bytes.into())
}

/// The files of an output, each with its path below it, in order. A file that is named and missing is a refusal.
fn files_of(output: &Output, index: u32, folder: &Path) -> Result<Vec<(String, PathBuf)>, StageError> {
    let path = of_task(&output.path, index);
    let refused = |why: String| StageError::Fault(Fault::Refused(why));
    let start = match path.trim_end_matches('/') {
        "" => folder.to_owned(),
        path => below(folder, path)
            .ok_or_else(|| refused(format!("output path {path:?} leaves the output folder")))?,
    };
    let about = start
        .symlink_metadata()
        .map_err(|_| refused(format!("the task succeeded, but left no {path:?} in its output folder")))?;
    if about.is_file() {
        // A key that ends as a prefix takes the file under its own name.
        let is_prefix = output.to.key.is_empty() || output.to.key.ends_with('/');
        let name = start.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        return Ok(vec![(if is_prefix { name.to_owned() } else { String::new() }, start)]);
    }
    let mut found = Vec::new();
    let mut folders = vec![start.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path();
                let name = path.strip_prefix(&start).ok().and_then(Path::to_str).map(str::to_owned);
                let name = name.ok_or_else(|| refused(format!("{path:?} has a name that is not UTF-8")))?;
                found.push((name, path));
            }
        }
    }
    found.sort();
    Ok(found)
}
