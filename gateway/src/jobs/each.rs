//! Arrays over objects: which objects there are, how many of them a task gets, and the list that its tasks are given.
//!
//! ```text
//! prefix   ─ listed ────────────┐
//! manifest ─ read line by line ─┴─> list ─ run times of the like ─> objects of a task ─> stored, unseen ─ submission shows it
//! ```
//!
//! Always: what is listed is what the submitter may read; the list is stored before the job is, and is gone where the job is
//! refused.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use futures::StreamExt as _;
use makai_raft::facts::jobs::each::{ListWriter, OBJECTS_MAX, PER_TASK_MAX};
use makai_raft::facts::jobs::{Each, EachObject, JobSpec, ObjectPath, TASKS_MAX};
use makai_raft::facts::query::{ListObjects, Listed};
use tonic::Status;

use super::Capacity;
use super::check::status;
use super::service::JobsService;
use crate::identity::Caller;
use crate::objects::{ByteRange, Inlining, Stored, Upstream};
use crate::rights::{Reach, Rights};

/// What a task is to take where nobody says how many objects it gets: starting one costs little beside, and it is not
/// much that is lost with a machine.
const TASK_MS: u64 = 60_000;
/// Tasks for each place that there is, where there are so many objects: the last ones then end together.
const TASKS_PER_PLACE: u64 = 4;
/// Bytes of a manifest.
const MANIFEST_BYTES_MAX: u64 = 128 << 20;
const LISTED_MAX: u32 = 1000;
/// Objects of a manifest that are looked at before its job is taken, and how many at once.
const SAMPLED_MAX: usize = 100;
const SAMPLED_AT_ONCE: usize = 16;

/// Objects of one task, from what is known of tasks like it, and from what has room beside what else it has. Pure.
fn per_task(objects: u32, one: &Capacity, largest: u64, scratch_bytes: u64) -> u32 {
    let by_time = TASK_MS.checked_div(one.median_ms).unwrap_or(1);
    let by_bytes = (scratch_bytes / 2).checked_div(largest).unwrap_or(u64::MAX);
    let by_places = u64::from(objects) / one.tasks_at_once.saturating_mul(TASKS_PER_PLACE).max(1);
    let least = u64::from(objects.div_ceil(TASKS_MAX)).max(1);
    by_time.min(by_places).min(by_bytes).clamp(least, PER_TASK_MAX.into()) as u32
}

impl JobsService {
    /// Finds the objects of a job that has a task for each, and settles how many tasks that makes. Returns the list to store.
    ///
    /// # Errors
    /// There are none, or what names them cannot be read.
    pub(super) async fn settle_each(
        &self,
        caller: &Caller,
        spec: &mut JobSpec,
    ) -> Result<Option<Vec<u8>>, Status> {
        let Some(each) = spec.each.clone() else { return Ok(None) };
        each.check().map_err(Status::invalid_argument)?;
        let (list, largest) = match each.is_manifest {
            true => self.read_manifest(caller, &each.from).await?,
            false => self.list_prefix(caller, &each.from).await?,
        };
        let objects = list.objects();
        if objects == 0 {
            let ObjectPath { bucket, key } = &each.from;
            return Err(Status::failed_precondition(format!("each: s3://{bucket}/{key} names no object")));
        }
        let (mut count, is_predicted) = (each.per_task, each.per_task == 0);
        if is_predicted {
            let one = Each { per_task: 1, is_predicted, objects, ..each.clone() };
            let one = JobSpec { each: Some(one), tasks: 1, is_gang: false, ..spec.clone() };
            // Where nobody can tell, each object is a task.
            let known = self.options.nodes.capacity(caller.tenant, &one).await.unwrap_or_default();
            count = per_task(objects, &known, largest, spec.resources.scratch_bytes);
        }
        let each = Each { per_task: count, is_predicted, objects, ..each };
        spec.tasks = each.tasks();
        if spec.tasks > TASKS_MAX {
            return Err(Status::invalid_argument(format!(
                "each: {objects} objects, {count} a task, are {} tasks; at most {TASKS_MAX}: give more to a task",
                spec.tasks
            )));
        }
        spec.each = Some(each);
        spec.check().map_err(Status::invalid_argument)?;
        Ok(Some(list.finish(count)))
    }

    /// Stores a list, to become visible with its job.
    pub(super) async fn store_list(
        &self,
        caller: &Caller,
        spec: &JobSpec,
        list: Vec<u8>,
    ) -> Result<Stored, Status> {
        let bucket = spec.each.as_ref().map(|each| each.from.bucket.as_str()).unwrap_or_default();
        let size = Some(list.len() as u64);
        let body = futures::stream::iter([Ok(Bytes::from(list))]).boxed();
        let upstream = Upstream { body, size, check: Box::new(|_| Ok(None)) };
        let stored = self.options.objects.store_unseen(caller, bucket, upstream, Inlining::Allowed).await;
        let mut stored = stored.map_err(|error| status(bucket, "", &error))?;
        // It will lie in a bucket that is made with the tenant's first job.
        stored.content.bucket_id = 0;
        Ok(stored)
    }

    /// All objects below a prefix, and the size of the largest.
    async fn list_prefix(&self, caller: &Caller, from: &ObjectPath) -> Result<(ListWriter, u64), Status> {
        let ObjectPath { bucket, key: prefix } = from;
        let mut list = ListWriter::default();
        let (mut after, mut largest) = (String::new(), 0);
        loop {
            let page = ListObjects {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                delimiter: String::new(),
                after,
                entries_max: LISTED_MAX,
            };
            let listed = self.options.objects.list(caller, page).await;
            let (entries, is_truncated) = listed.map_err(|error| status(bucket, prefix, &error))?;
            after = String::new();
            for entry in entries {
                let Listed::Object(head) = entry else { continue };
                after.clone_from(&head.key);
                // What S3 clients make to show a folder.
                if head.key.ends_with('/') && head.size == 0 {
                    continue;
                }
                let name = head.key.strip_prefix(prefix.as_str()).unwrap_or(&head.key).to_owned();
                largest = largest.max(head.size);
                let from = ObjectPath { bucket: bucket.clone(), key: head.key };
                list.push(&EachObject { from, name }).map_err(Status::invalid_argument)?;
            }
            if !is_truncated || after.is_empty() {
                return Ok((list, largest));
            }
        }
    }

    /// All objects that a manifest names, and the size of the largest of the first ones.
    async fn read_manifest(&self, caller: &Caller, from: &ObjectPath) -> Result<(ListWriter, u64), Status> {
        let ObjectPath { bucket, key } = from;
        let failed = |error| status(bucket, key, &error);
        let objects = &self.options.objects;
        let mut download = objects.get(caller, bucket, key, ByteRange::All).await.map_err(failed)?;
        if download.head.size > MANIFEST_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "each: s3://{bucket}/{key} has {} bytes; a manifest has at most {MANIFEST_BYTES_MAX}",
                download.head.size
            )));
        }
        let mut bytes = Vec::with_capacity(download.head.size as usize);
        while let Some(piece) = download.body.next().await {
            bytes.extend_from_slice(&piece.map_err(failed)?);
        }
        let manifest = Manifest::read(&bytes, bucket)
            .map_err(|why| Status::invalid_argument(format!("each: s3://{bucket}/{key}: {why}")))?;
        self.may_read(caller, &manifest).await?;
        let mut list = ListWriter::default();
        for object in &manifest.objects {
            list.push(object).map_err(Status::invalid_argument)?;
        }
        let first: Vec<ObjectPath> =
            manifest.objects.iter().take(SAMPLED_MAX).map(|object| object.from.clone()).collect();
        let first = first.into_iter().map(|from| async move {
            let head = self.options.objects.head(caller, &from.bucket, &from.key).await;
            head.map(|head| head.size).map_err(|error| status(&from.bucket, &from.key, &error))
        });
        let sizes: Vec<Result<u64, Status>> =
            futures::stream::iter(first).buffered(SAMPLED_AT_ONCE).collect().await;
        let sizes = sizes.into_iter().collect::<Result<Vec<u64>, Status>>()?;
        Ok((list, sizes.into_iter().max().unwrap_or(0)))
    }

    /// Whether the caller may read all that a manifest names: asked once for what the keys of a bucket have in common, and key by
    /// key where that is not allowed as a whole.
    async fn may_read(&self, caller: &Caller, manifest: &Manifest) -> Result<(), Status> {
        let rights = Rights::new(self.gate.identity().clone(), self.options.objects.clone());
        for (bucket, common) in &manifest.common {
            let below = [("s3:GetObject", Reach::Below(common))];
            if rights.check(caller, bucket, &below).await.is_ok() {
                continue;
            }
            for EachObject { from, .. } in
                manifest.objects.iter().filter(|object| object.from.bucket == *bucket)
            {
                let checked = rights.check(caller, bucket, &[("s3:GetObject", Reach::Key(&from.key))]).await;
                checked.map_err(|error| status(bucket, &from.key, &error))?;
            }
        }
        Ok(())
    }
}

/// A manifest's objects, in its order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Manifest {
    objects: Vec<EachObject>,
    /// What the keys of each bucket begin with.
    common: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads its lines: `KEY` in `bucket`, or `s3://BUCKET/KEY`; empty ones are passed over. Pure.
    fn read(bytes: &[u8], bucket: &str) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is no text of UTF-8".to_owned())?;
        let mut manifest = Self::default();
        let mut names = HashSet::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                continue;
            }
            let (bucket, key, name) = match line.strip_prefix("s3://") {
                None => (bucket, line, line),
                Some(path) => {
                    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
                    (bucket, key, path)
                }
            };
            if bucket.is_empty() || key.is_empty() {
                return Err(format!("line {number}: {line:?} is neither KEY nor s3://BUCKET/KEY"));
            }
            if !names.insert(name) {
                return Err(format!("line {number}: {line:?} stands there twice"));
            }
            if manifest.objects.len() >= OBJECTS_MAX as usize {
                return Err(format!("it has more than {OBJECTS_MAX} lines"));
            }
            match manifest.common.get_mut(bucket) {
                Some(common) => {
                    let same = common.chars().zip(key.chars()).take_while(|(one, other)| one == other);
                    let len = same.map(|(same, _)| same.len_utf8()).sum();
                    common.truncate(len);
                }
                None => _ = manifest.common.insert(bucket.to_owned(), key.to_owned()),
            }
            let from = ObjectPath { bucket: bucket.to_owned(), key: key.to_owned() };
            manifest.objects.push(EachObject { from, name: name.to_owned() });
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_gets_what_takes_a_minute_and_leaves_work_for_every_place() {
        let known = |median_ms, tasks_at_once| Capacity { median_ms, tasks_at_once, ..Capacity::default() };
        for (objects, one, expected) in [
            (1000, known(0, 0), 1),
            (1000, known(0, 8), 1),
            (1000, known(1000, 1), 60),
            // Eight places get four tasks each.
            (1000, known(1000, 8), 31),
            (1000, known(120_000, 8), 1),
            (5, known(1, 100), 1),
            // However short they are, a task has bounds; and so has a job.
            (1_000_000, known(1, 1), PER_TASK_MAX),
            (1_000_000, known(0, 1), 10),
        ] {
            assert_eq!(per_task(objects, &one, 0, 0), expected, "{objects} {one:?}");
        }
        // Half of the scratch holds them, and one has to fit anyway.
        assert_eq!(per_task(1000, &known(1000, 1), 10, 100), 5);
        assert_eq!(per_task(1000, &known(1000, 1), 1000, 100), 1);
    }

    #[test]
    fn a_manifest_names_keys_of_its_bucket_or_of_others() {
        let read = |text: &str| Manifest::read(text.as_bytes(), "b");
        let manifest = read("p/one\r\n\np/ort\ns3://c/x\n").unwrap();
        let all: Vec<_> = manifest
            .objects
            .iter()
            .map(|EachObject { from, name }| (from.bucket.as_str(), from.key.as_str(), name.as_str()))
            .collect();
        assert_eq!(all, [("b", "p/one", "p/one"), ("b", "p/ort", "p/ort"), ("c", "x", "c/x")]);
        let common: Vec<_> = manifest.common.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(common, [("b", "p/o"), ("c", "x")]);
        for (wrong, why) in [("a\nb\na", "line 3"), ("s3://b", "line 1"), ("s3:///k", "line 1")] {
            assert!(read(wrong).unwrap_err().contains(why), "{wrong}");
        }
        assert!(Manifest::read(b"\xff", "b").is_err());
        assert_eq!(read("").unwrap(), Manifest::default());
    }
}
