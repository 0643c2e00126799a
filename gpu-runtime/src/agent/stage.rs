//! Image and inputs, out of the pool and into folders.

use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use makai_raft::facts::desk::{Fault, ListedObject, PIECE_BYTES_MAX, Reply, Request, Source};
use makai_raft::facts::jobs::{
    AssignedTask, AttemptId, Input, ModuleCode, ModuleFill, ModuleWork, Work, of_task,
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::Agent;
use crate::module::ptx::text::TEXT_BYTES_MAX;
use crate::runner::{ContentId, Image};

/// Bytes of a module's code.
const CODE_BYTES_MAX: u64 = TEXT_BYTES_MAX as u64;
/// Objects that one task may have as inputs.
const INPUT_OBJECTS_MAX: usize = 100_000;

/// Why staging ended early.
#[derive(Debug)]
pub enum StageError {
    Fault(Fault),
    /// This machine cannot hold it.
    Disk(io::Error),
}

impl From<Fault> for StageError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for StageError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

fn refused(why: String) -> StageError {
    StageError::Fault(Fault::Refused(why))
}

fn unexpected(reply: &Reply) -> StageError {
    let shown: String = format!("{reply:?}").chars().take(200).collect();
    StageError::Fault(Fault::Unavailable(format!("the gateway answered something else: {shown}")))
}

/// What a task runs, on this machine.
pub enum Code {
    Image(Image),
    /// PTX.
    Module(String),
}

/// One attempt's staging.
pub struct Stage<'a> {
    pub agent: &'a Agent,
    pub attempt: AttemptId,
    pub revoked: &'a mut watch::Receiver<bool>,
    pub bytes_in: u64,
    /// Bytes that the inputs may have.
    pub bytes_max: u64,
}

impl Stage<'_> {
    /// What the task runs: the image's file, or the module's text.
    pub async fn code(&mut self, work: &Work) -> Result<Code, StageError> {
        match work {
            Work::Container { .. } => Ok(Code::Image(self.object(u64::MAX).await?)),
            Work::Module(ModuleWork { code: ModuleCode::Text(text), .. }) => Ok(Code::Module(text.clone())),
            Work::Module(ModuleWork { code: ModuleCode::Object(_), .. }) => {
                let Image { path, .. } = self.object(CODE_BYTES_MAX).await?;
                let bytes = tokio::fs::read(path.unwrap_or_default()).await?;
                let text = String::from_utf8(bytes).map_err(|_| refused("the module is no text".into()))?;
                Ok(Code::Module(text))
            }
        }
    }

    async fn object(&mut self, bytes_max: u64) -> Result<Image, StageError> {
        let listed = self.list(Source::Image, String::new()).await?.0;
        let object = listed.into_iter().next().ok_or_else(|| refused("there is no image".into()))?;
        if object.size > bytes_max {
            let size = object.size;
            return Err(refused(format!("the module has {size} bytes; at most {bytes_max}")));
        }
        let (path, content) = match self.agent.cache.find(object.version) {
            Some(found) => found,
            None => self.fetch(Source::Image, &object).await?,
        };
        Ok(Image { content, path: Some(path) })
    }

    /// Puts every input of the task below `folder`.
    pub async fn inputs(&mut self, task: &AssignedTask, folder: &Path) -> Result<(), StageError> {
        let mut count = 0;
        for (at, input) in (0u32..).zip(&task.spec.inputs) {
            let path = of_task(&input.path, self.attempt.index);
            let place = below(folder, path.trim_end_matches('/'))
                .ok_or_else(|| refused(format!("input path {path:?} leaves the input folder")))?;
            let mut after = String::new();
            loop {
                let (objects, is_truncated) = self.list(Source::Input(at), after.clone()).await?;
                if let Some(last) = objects.last() {
                    after.clone_from(&last.name);
                }
                let range = range_of(task, input, self.attempt.index);
                for object in objects {
                    count += 1;
                    if count > INPUT_OBJECTS_MAX {
                        return Err(refused(format!("more than {INPUT_OBJECTS_MAX} objects as inputs")));
                    }
                    self.input(at, &object, &place, range).await?;
                }
                if !is_truncated {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn input(
        &mut self,
        at: u32,
        object: &ListedObject,
        place: &Path,
        range: Option<(u64, u64)>,
    ) -> Result<(), StageError> {
        // What S3 clients make to show a folder.
        if object.name.ends_with('/') && object.size == 0 {
            return Ok(());
        }
        let path = if object.name.is_empty() { Some(place.to_owned()) } else { below(place, &object.name) };
        let path = path.ok_or_else(|| refused(format!("key {:?} is no path for a file", object.name)))?;
        let whole = (0, object.size);
        let (start, bytes) = range.unwrap_or(whole);
        if start.checked_add(bytes).is_none_or(|end| end > object.size) {
            return Err(refused(format!("{bytes} bytes from {start} on are wanted of {}", object.size)));
        }
        self.bytes_in += bytes;
        if self.bytes_in > self.bytes_max {
            return Err(refused(format!("inputs have more than the {} bytes of scratch", self.bytes_max)));
        }
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        let cached = self.agent.cache.find(object.version);
        if (start, bytes) != whole {
            return match cached {
                Some((cached, _)) => Ok(copy_range(&cached, &path, start, bytes).await?),
                // A part is no version: it is not kept for others.
                None => {
                    self.fetch_range(Source::Input(at), object, &path, start..start + bytes).await.map(drop)
                }
            };
        }
        let cached = match cached {
            Some((cached, _)) => cached,
            None => self.fetch(Source::Input(at), object).await?.0,
        };
        // The cache may have dropped it meanwhile, or lie on another filesystem.
        if tokio::fs::hard_link(&cached, &path).await.is_err() {
            let cached = self.fetch(Source::Input(at), object).await?.0;
            tokio::fs::copy(&cached, &path).await?;
        }
        Ok(())
    }

    async fn list(&mut self, source: Source, after: String) -> Result<(Vec<ListedObject>, bool), StageError> {
        let request = Request::List { attempt: self.attempt, source, after };
        match self.agent.ask(self.attempt, request, self.revoked).await? {
            Reply::Objects { objects, is_truncated } => Ok((objects, is_truncated)),
            other => Err(unexpected(&other)),
        }
    }

    /// Downloads a version into the cache.
    async fn fetch(
        &mut self,
        source: Source,
        object: &ListedObject,
    ) -> Result<(PathBuf, ContentId), StageError> {
        let part = self.agent.cache.part();
        let content = self.fetch_range(source, object, &part, 0..object.size).await?;
        let path = self.agent.cache.keep(&part, object.version, &content)?;
        Ok((path, content))
    }

    /// Downloads bytes of a version into a file.
    async fn fetch_range(
        &mut self,
        source: Source,
        object: &ListedObject,
        path: &Path,
        range: Range<u64>,
    ) -> Result<ContentId, StageError> {
        let mut file = tokio::fs::File::create(path).await?;
        let mut hasher = blake3::Hasher::new();
        let mut offset = range.start;
        while offset < range.end {
            let bytes = self.read(source, object, offset, range.end).await?;
            if bytes.is_empty() {
                return Err(refused(format!("{:?} ended early", object.name)));
            }
            hasher.update(&bytes);
            file.write_all(&bytes).await?;
            offset += bytes.len() as u64;
        }
        file.flush().await?;
        file.set_permissions(std::fs::Permissions::from_mode(0o644)).await?;
        Ok(ContentId(*hasher.finalize().as_bytes()))
    }

    async fn read(
        &mut self,
        source: Source,
        object: &ListedObject,
        offset: u64,
        end: u64,
    ) -> Result<Bytes, StageError> {
        let request = Request::Read {
            attempt: self.attempt,
            source,
            name: object.name.clone(),
            version: object.version,
            offset,
            len: PIECE_BYTES_MAX.min(end - offset),
        };
        match self.agent.ask(self.attempt, request, self.revoked).await? {
            Reply::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }
}

/// Where what a task wants of an input begins, and how much it is; `None`: all of it.
fn range_of(task: &AssignedTask, input: &Input, index: u32) -> Option<(u64, u64)> {
    if let Some(range) = input.range {
        return Some((range.start(index), range.bytes));
    }
    let Work::Module(work) = &task.spec.work else { return None };
    let buffer = work.buffers.iter().find(|buffer| buffer.name == input.path)?;
    match buffer.fill {
        ModuleFill::Input { offset, offset_per_task } => {
            Some((offset.saturating_add(offset_per_task.saturating_mul(index.into())), buffer.bytes))
        }
        ModuleFill::Zero | ModuleFill::Inline(_) => None,
    }
}

async fn copy_range(from: &Path, to: &Path, start: u64, bytes: u64) -> io::Result<()> {
    let mut source = tokio::fs::File::open(from).await?;
    source.seek(io::SeekFrom::Start(start)).await?;
    let mut file = tokio::fs::File::create(to).await?;
    let copied = tokio::io::copy(&mut source.take(bytes), &mut file).await?;
    file.flush().await?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644)).await?;
    if copied < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// `folder/path`, if that lies below the folder.
pub fn below(folder: &Path, path: &str) -> Option<PathBuf> {
    let is_plain = !path.is_empty()
        && !path.contains('\0')
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    is_plain.then(|| folder.join(path))
}
