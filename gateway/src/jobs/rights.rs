//! What a job reads and writes, held to what its submitter may.
//!
//! Looked at once, when the job is submitted: its tasks then read and write as its tenant, however long they run.

use makai_raft::facts::jobs::{INDEX_MARK, JobSpec, ObjectPath};
use tonic::Status;

use super::service::JobsService;
use crate::identity::Caller;
use crate::objects::ObjectsError;
use crate::rights::{Reach, Rights};

impl JobsService {
    /// # Errors
    /// `PERMISSION_DENIED` with the object that the caller's policies do not let it read or write, `INVALID_ARGUMENT` for
    /// an output that later tasks would take for input.
    pub(super) async fn check_rights(&self, caller: &Caller, spec: &JobSpec) -> Result<(), Status> {
        let rights = Rights::new(self.gate.identity().clone(), self.options.objects.clone());
        let each = spec.each.iter().map(|each| &each.from);
        let read = spec.inputs.iter().map(|input| &input.from).chain(spec.work.object()).chain(each);
        for path in read {
            let (bucket, reach) = reach(path)?;
            let list = [("s3:ListBucket", Reach::Bucket), ("s3:GetObject", reach)];
            let needed = if is_prefix(path) { &list[..] } else { &list[1..] };
            said(path, "read", rights.check(caller, bucket, needed).await)?;
        }
        for path in spec.outputs.iter().map(|output| &output.to) {
            let (bucket, reach) = reach(path)?;
            // A folder is published below it, a file as it.
            let below = match reach {
                Reach::Key(key) | Reach::Below(key) => Reach::Below(key),
                Reach::Bucket => Reach::Below(""),
            };
            said(path, "write", rights.check(caller, bucket, &[("s3:PutObject", below)]).await)?;
        }
        check_apart(spec)
    }
}

/// Whether tasks of an array would find among their inputs what others of them have published. Pure.
fn check_apart(spec: &JobSpec) -> Result<(), Status> {
    if spec.tasks < 2 {
        return Ok(());
    }
    for input in spec.inputs.iter().map(|input| &input.from).filter(|path| is_prefix(path)) {
        let is_below = |to: &&ObjectPath| to.bucket == input.bucket && to.key.starts_with(&input.key);
        if let Some(to) = spec.outputs.iter().map(|output| &output.to).find(is_below) {
            return Err(Status::invalid_argument(format!(
                "the output s3://{}/{} lies below the input s3://{}/{}: later tasks would find there what earlier ones wrote; \
                 give the output another bucket or prefix",
                to.bucket, to.key, input.bucket, input.key
            )));
        }
    }
    Ok(())
}

fn is_prefix(path: &ObjectPath) -> bool {
    path.key.is_empty() || path.key.ends_with('/')
}

/// A path's bucket, and what of it all tasks together reach.
fn reach(path: &ObjectPath) -> Result<(&str, Reach<'_>), Status> {
    if path.bucket.contains(INDEX_MARK) {
        return Err(Status::invalid_argument(format!(
            "s3://{}/{}: tasks of a job share their buckets; put {INDEX_MARK} into the key",
            path.bucket, path.key
        )));
    }
    let reach = match path.key.split_once(INDEX_MARK) {
        Some((before, _)) => Reach::Below(before),
        None if is_prefix(path) => Reach::Below(&path.key),
        None => Reach::Key(&path.key),
    };
    Ok((&path.bucket, reach))
}

fn said(path: &ObjectPath, what: &str, checked: Result<(), ObjectsError>) -> Result<(), Status> {
    let ObjectPath { bucket, key } = path;
    checked.map_err(|error| match error {
        ObjectsError::AccessDenied => Status::permission_denied(format!(
            "s3://{bucket}/{key}: this access key's policies do not let it {what} all of that"
        )),
        ObjectsError::Refused(refusal) => {
            Status::failed_precondition(format!("s3://{bucket}/{key}: {refusal}"))
        }
        error => Status::unavailable(format!("s3://{bucket}/{key}: {error}")),
    })
}
