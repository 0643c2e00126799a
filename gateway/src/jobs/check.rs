//! What can be known of a job before anything runs: whether its objects are there, and whether a module's launches fit
//! its code. A customer hears of it at once, instead of from the first task that fails.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use makai_raft::facts::command::Refusal;
use makai_raft::facts::jobs::{
    INDEX_MARK, JobSpec, ModuleCode, ModuleFill, ModuleWork, ObjectPath, Work, of_task,
};
use tonic::Status;

use super::service::JobsService;
use crate::identity::Caller;
use crate::objects::{ByteRange, ObjectsError};

/// Bytes of a module's code.
const CODE_BYTES_MAX: u64 = 8 << 20;

/// Asked for to learn of its bucket.
const ANY_KEY: &str = "any";

impl JobsService {
    /// # Errors
    /// `INVALID_ARGUMENT` with the field, `FAILED_PRECONDITION` with the object that is not there, `PERMISSION_DENIED` with the one
    /// that the caller may not reach.
    pub(super) async fn check(&self, caller: &Caller, spec: &JobSpec) -> Result<(), Status> {
        spec.check().map_err(Status::invalid_argument)?;
        self.check_rights(caller, spec).await?;
        self.check_buckets(caller, spec).await?;
        let Work::Module(work) = &spec.work else {
            if let Some(image) = spec.work.object() {
                self.size_of(caller, spec, image).await?;
            }
            return Ok(());
        };
        let ptx = match &work.code {
            ModuleCode::Text(text) => Some(text.clone()),
            ModuleCode::Object(object) => self.text(caller, spec, object).await?,
        };
        if let Some(ptx) = ptx {
            let resources = spec.resources.clone();
            let checked = self.options.nodes.check_module(work.clone(), ptx, resources).await;
            checked.map_err(Status::invalid_argument)?;
        }
        self.check_ranges(caller, spec, work).await
    }

    /// Whether the buckets are there: else a task would find out when its work is done.
    async fn check_buckets(&self, caller: &Caller, spec: &JobSpec) -> Result<(), Status> {
        let each = spec.each.iter().map(|each| &each.from.bucket);
        let sources = spec.inputs.iter().map(|input| &input.from.bucket).chain(each);
        let buckets: BTreeSet<&String> =
            sources.chain(spec.outputs.iter().map(|output| &output.to.bucket)).collect();
        for bucket in buckets.into_iter().filter(|bucket| !bucket.contains(INDEX_MARK)) {
            match self.options.objects.head(caller, bucket, ANY_KEY).await {
                Ok(_) | Err(ObjectsError::Refused(Refusal::NoSuchKey)) => {}
                Err(error) => return Err(status(bucket, "", &error)),
            }
        }
        Ok(())
    }

    /// Whether each buffer's object has the bytes that the first and the last task take of it.
    async fn check_ranges(&self, caller: &Caller, spec: &JobSpec, work: &ModuleWork) -> Result<(), Status> {
        for buffer in &work.buffers {
            let ModuleFill::Input { offset, offset_per_task } = buffer.fill else { continue };
            let Some(input) = spec.inputs.iter().find(|input| input.path == buffer.name) else { continue };
            let is_one = !input.from.key.contains(INDEX_MARK) && !input.from.bucket.contains(INDEX_MARK);
            let last = if is_one { spec.tasks - 1 } else { 0 };
            let Some(size) = self.size_of(caller, spec, &input.from).await? else { continue };
            let end = offset
                .saturating_add(offset_per_task.saturating_mul(last.into()))
                .saturating_add(buffer.bytes);
            if end > size {
                let ObjectPath { bucket, key } = &input.from;
                return Err(Status::invalid_argument(format!(
                    "the buffer {:?} of task {last} wants bytes {} to {end} of s3://{bucket}/{key}, which has {size}",
                    buffer.name,
                    end - buffer.bytes
                )));
            }
        }
        Ok(())
    }

    /// `None`: a job that this one waits for may yet make it.
    async fn size_of(
        &self,
        caller: &Caller,
        spec: &JobSpec,
        path: &ObjectPath,
    ) -> Result<Option<u64>, Status> {
        let (bucket, key) = (of_task(&path.bucket, 0), of_task(&path.key, 0));
        match self.options.objects.head(caller, &bucket, &key).await {
            Ok(head) => Ok(Some(head.size)),
            Err(ObjectsError::Refused(Refusal::NoSuchKey)) if !spec.after.is_empty() => Ok(None),
            Err(error) => Err(status(&bucket, &key, &error)),
        }
    }

    /// An object as text.
    async fn text(
        &self,
        caller: &Caller,
        spec: &JobSpec,
        path: &ObjectPath,
    ) -> Result<Option<String>, Status> {
        let (bucket, key) = (of_task(&path.bucket, 0), of_task(&path.key, 0));
        let failed = |error: ObjectsError| status(&bucket, &key, &error);
        let Some(size) = self.size_of(caller, spec, path).await? else { return Ok(None) };
        if size > CODE_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "s3://{bucket}/{key} has {size} bytes; a module has at most {CODE_BYTES_MAX}"
            )));
        }
        if size == 0 {
            return Err(Status::invalid_argument(format!("s3://{bucket}/{key} is empty; a module is PTX")));
        }
        let range = ByteRange::From { first: 0, last: Some(CODE_BYTES_MAX - 1) };
        let mut download = self.options.objects.get(caller, &bucket, &key, range).await.map_err(failed)?;
        let mut bytes = Vec::new();
        while let Some(piece) = download.body.next().await {
            bytes.extend_from_slice(&piece.map_err(failed)?);
        }
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Status::invalid_argument(format!("s3://{bucket}/{key} is no text; a module is PTX")))
    }
}

pub(super) fn status(bucket: &str, key: &str, error: &ObjectsError) -> Status {
    let text = format!("s3://{bucket}/{key}: {error}");
    match error {
        ObjectsError::Refused(Refusal::NoSuchKey | Refusal::NoSuchBucket) => {
            Status::failed_precondition(text)
        }
        ObjectsError::AccessDenied => Status::permission_denied(text),
        ObjectsError::Refused(_) | ObjectsError::RangeNotSatisfiable { .. } | ObjectsError::Sealing(_) => {
            Status::invalid_argument(text)
        }
        _ => Status::unavailable(text),
    }
}
