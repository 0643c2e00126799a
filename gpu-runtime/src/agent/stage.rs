//! Image and inputs, out of the pool and into folders.

use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use makai_raft::facts::desk::{Fault, ListedObject, PIECE_BYTES_MAX, Reply, Request, Source};
use makai_raft::facts::jobs::{
    AssignedTask, AttemptId, Each, Input, ModuleCode, ModuleFill, ModuleWork, ObjectPath, Work, of_task,
};
use makai_raft::facts::tenant::TenantId;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::Agent;
use crate::inventory::source_number;
use crate::module::ptx::text::TEXT_BYTES_MAX;
use crate::runner::{ContentId, Image};

/// Bytes of a module's code.
const CODE_BYTES_MAX: u64 = TEXT_BYTES_MAX as u64;
/// Where a container finds its input folder.
pub const IN: &str = "/in";
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

/// What a task for objects was given.
#[derive(Debug, Default)]
pub struct Given {
    /// Objects in all.
    pub count: usize,
    /// The first: where it is below the input folder, and where it comes from.
    pub first: Option<(String, ObjectPath)>,
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
    pub tenant: TenantId,
    pub revoked: &'a mut watch::Receiver<bool>,
    pub bytes_in: u64,
    /// Bytes that the inputs may have.
    pub bytes_max: u64,
}

impl Stage<'_> {
    /// What the task runs: the image's file, or the module's text.
    pub async fn code(&mut self, work: &Work) -> Result<Code, StageError> {
        match work {
            Work::Container { image, .. } => Ok(Code::Image(self.object(image, u64::MAX).await?)),
            Work::Module(ModuleWork { code: ModuleCode::Text(text), .. }) => Ok(Code::Module(text.clone())),
            Work::Module(ModuleWork { code: ModuleCode::Object(code), .. }) => {
                let Image { path, .. } = self.object(code, CODE_BYTES_MAX).await?;
                let bytes = tokio::fs::read(path.unwrap_or_default()).await?;
                let text = String::from_utf8(bytes).map_err(|_| refused("the module is no text".into()))?;
                Ok(Code::Module(text))
            }
        }
    }

    async fn object(&mut self, from: &ObjectPath, bytes_max: u64) -> Result<Image, StageError> {
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
        self.note(from, object.size, [object.version; 2]);
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
            let (mut ends, before) = (None, self.bytes_in);
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
                    self.input(Source::Input(at), &object, &place, range).await?;
                    let [first, _] = ends.unwrap_or([object.version; 2]);
                    ends = Some([first, object.version]);
                }
                if !is_truncated {
                    break;
                }
            }
            // Where all of it is wanted it is in the cache now.
            if let Some(ends) = ends
                && range_of(task, input, self.attempt.index).is_none()
            {
                self.note(&input.from, self.bytes_in - before, ends);
            }
        }
        Ok(())
    }

    /// Puts the objects that the task is for below `folder`, and a list of them beside.
    pub async fn each(&mut self, each: &Each, folder: &Path) -> Result<Given, StageError> {
        let path = each.path.trim_end_matches('/');
        let place = below(folder, path)
            .ok_or_else(|| refused(format!("the path {path:?} leaves the input folder")))?;
        let (mut given, mut list, mut after) = (Given::default(), String::new(), String::new());
        loop {
            let (objects, is_truncated) = self.list(Source::Each, after).await?;
            after = objects.last().map(|last| last.name.clone()).unwrap_or_default();
            for object in objects {
                let at = u32::try_from(given.count).unwrap_or(u32::MAX);
                self.input(Source::EachAt(at), &object, &place, None).await?;
                let from = object.from.unwrap_or_default();
                let path = format!("{path}/{}", object.name);
                list.push_str(&format!("{IN}/{path}\ts3://{}/{}\n", from.bucket, from.key));
                given.first.get_or_insert((path, from));
                given.count += 1;
            }
            if !is_truncated || after.is_empty() {
                break;
            }
        }
        if given.count as u64 != u64::from(each.of_task(self.attempt.index)) {
            return Err(StageError::Fault(Fault::Unavailable(
                "the gateway listed other objects than the task has".into(),
            )));
        }
        let list_path = folder.join(list_name(each));
        tokio::fs::write(&list_path, list).await?;
        tokio::fs::set_permissions(&list_path, std::fs::Permissions::from_mode(0o644)).await?;
        Ok(given)
    }

    async fn input(
        &mut self,
        source: Source,
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
                None => self.fetch_range(source, object, &path, start..start + bytes).await.map(drop),
            };
        }
        let cached = match cached {
            Some((cached, _)) => cached,
            None => self.fetch(source, object).await?.0,
        };
        // The cache may have dropped it meanwhile, or lie on another filesystem.
        if tokio::fs::hard_link(&cached, &path).await.is_err() {
            let cached = self.fetch(source, object).await?.0;
            tokio::fs::copy(&cached, &path).await?;
        }
        Ok(())
    }

    fn note(&self, from: &ObjectPath, bytes: u64, ends: [u64; 2]) {
        let index = self.attempt.index;
        let path = ObjectPath { bucket: of_task(&from.bucket, index), key: of_task(&from.key, index) };
        self.agent.cache.note(source_number(self.tenant, &path), bytes, ends);
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

/// File of the input folder that lists what a task for objects was given.
pub fn list_name(each: &Each) -> String {
    format!("{}.list", each.path.trim_end_matches('/'))
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
