//! Arrays over objects: which objects there are is settled when the job is submitted, and kept as a list.
//!
//! ```text
//! list   MAGIC ─ where the objects of each task begin, u64 each, and the end ─ objects, MessagePack, one after the other
//! ```
//!
//! Always: a list never changes, so a task that is tried again gets the same objects; two numbers of it are enough to find a
//! task's part, whatever its length.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{JobId, ObjectPath, TEXT_BYTES_MAX, check_object, check_path};

/// Objects of one job.
pub const OBJECTS_MAX: u32 = 1_000_000;
/// Objects of one task.
pub const PER_TASK_MAX: u32 = 10_000;
/// Bytes of one job's list.
pub const LIST_BYTES_MAX: usize = 64 << 20;
/// Where a task finds its objects, if the job does not say.
pub const PATH_DEFAULT: &str = "each";

const MAGIC: &[u8; 8] = b"MAKAIOL1";
const PLACE_BYTES: u64 = 8;

/// A task for each object, or for so many of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Each {
    /// A prefix, or the object that names them.
    pub from: ObjectPath,
    /// `from` has a line for each object: `KEY` in the same bucket, or `s3://BUCKET/KEY`.
    pub is_manifest: bool,
    /// Relative to the task's input folder.
    pub path: String,
    /// Objects of one task, but of the last, which may have fewer; 0: to be settled.
    pub per_task: u32,
    /// `per_task` was settled by the time that tasks like these took.
    pub is_predicted: bool,
    /// How many there are; 0: not listed yet.
    pub objects: u32,
}

impl Each {
    /// Tasks that these objects take; 0: they are not listed yet.
    #[must_use]
    pub fn tasks(&self) -> u32 {
        self.objects.div_ceil(self.per_task.max(1))
    }

    /// How many objects a task has.
    #[must_use]
    pub fn of_task(&self, index: u32) -> u32 {
        let before = u64::from(index) * u64::from(self.per_task);
        u64::from(self.objects).saturating_sub(before).min(self.per_task.into()) as u32
    }

    /// # Errors
    /// What must change.
    pub fn check(&self) -> Result<(), String> {
        check_object("each", &self.from)?;
        check_path("each", &self.path, false)?;
        let is_prefix = self.from.key.is_empty() || self.from.key.ends_with('/');
        if self.is_manifest && is_prefix {
            return Err("each: a manifest is one object; give its key".into());
        }
        if self.objects > OBJECTS_MAX || self.per_task > PER_TASK_MAX {
            return Err(format!(
                "each: {} objects, {} a task; at most {OBJECTS_MAX}, and {PER_TASK_MAX} a task",
                self.objects, self.per_task
            ));
        }
        Ok(())
    }
}

/// One object of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EachObject {
    pub from: ObjectPath,
    /// Where it is below [`Each::path`].
    pub name: String,
}

/// Objects, while they are gathered.
#[derive(Debug, Default)]
pub struct ListWriter {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl ListWriter {
    /// # Errors
    /// There are too many, or its name is no path for a file.
    pub fn push(&mut self, object: &EachObject) -> Result<(), String> {
        check_path("each", &object.name, false)?;
        if object.name.ends_with('/') || object.name.len() > TEXT_BYTES_MAX {
            return Err(format!("each: {:?} is no path for a file", object.name));
        }
        check_object("each", &object.from)?;
        // Tasks are given a text with a line for each.
        if object.from.key.chars().any(char::is_control) {
            return Err(format!("each: {:?} has a control character", object.from.key));
        }
        let encoded = rmp_serde::to_vec(object).map_err(|error| format!("each: {error}"))?;
        if self.ends.len() >= OBJECTS_MAX as usize || self.bytes.len() + encoded.len() > LIST_BYTES_MAX {
            return Err(format!(
                "each: more than {OBJECTS_MAX} objects, or {LIST_BYTES_MAX} bytes of names; submit a job for each part"
            ));
        }
        self.bytes.extend_from_slice(&encoded);
        self.ends.push(self.bytes.len() as u32);
        Ok(())
    }

    #[must_use]
    pub fn objects(&self) -> u32 {
        self.ends.len() as u32
    }

    /// The list for tasks of so many objects each.
    #[must_use]
    pub fn finish(self, per_task: u32) -> Vec<u8> {
        let ends = self.ends.chunks(per_task.max(1) as usize).filter_map(|of_task| of_task.last());
        let tasks = self.ends.len().div_ceil(per_task.max(1) as usize) as u64;
        let start = MAGIC.len() as u64 + PLACE_BYTES * (tasks + 1);
        let mut list = Vec::with_capacity(start as usize + self.bytes.len());
        list.extend_from_slice(MAGIC);
        for end in std::iter::once(&0).chain(ends) {
            list.extend_from_slice(&(start + u64::from(*end)).to_le_bytes());
        }
        list.extend_from_slice(&self.bytes);
        list
    }
}

/// Where a list says where a task's objects are: two numbers.
#[must_use]
pub fn place_of(index: u32) -> Range<u64> {
    let from = MAGIC.len() as u64 + PLACE_BYTES * u64::from(index);
    from..from + 2 * PLACE_BYTES
}

/// Where a task's objects are, from what [`place_of`] named; `None`: it is no part of a list.
#[must_use]
pub fn part_of(place: &[u8]) -> Option<Range<u64>> {
    let from = u64::from_le_bytes(place.get(..8)?.try_into().ok()?);
    let to = u64::from_le_bytes(place.get(8..16)?.try_into().ok()?);
    (from < to && to <= LIST_BYTES_MAX as u64 * 2 && place.len() == 16).then_some(from..to)
}

/// The objects of a part; `None`: it is none.
#[must_use]
pub fn parse(mut part: &[u8]) -> Option<Vec<EachObject>> {
    let mut objects = Vec::new();
    while !part.is_empty() {
        objects.push(rmp_serde::from_read(&mut part).ok()?);
    }
    Some(objects)
}

/// Key of a job's list in [`super::log_bucket`].
#[must_use]
pub fn list_key(job: JobId) -> String {
    format!("{}/objects", job.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(at: usize) -> EachObject {
        let name = format!("{at}{}", "x".repeat(at % 7));
        EachObject { from: ObjectPath { bucket: "b".into(), key: format!("p/{name}") }, name }
    }

    /// The parts of all tasks, one after the other, are the objects that were put in, however they are cut.
    #[test]
    fn parts_are_the_whole() {
        let objects: Vec<EachObject> = (0..100).map(object).collect();
        for per_task in [1, 3, 50, 99, 100, 1000] {
            let mut list = ListWriter::default();
            objects.iter().for_each(|object| list.push(object).unwrap());
            let each = Each { per_task, objects: list.objects(), ..Each::default() };
            let bytes = list.finish(per_task);
            let at = |range: Range<u64>| &bytes[range.start as usize..range.end as usize];
            let mut found = Vec::new();
            for index in 0..each.tasks() {
                let part = parse(at(part_of(at(place_of(index))).unwrap())).unwrap();
                assert_eq!(part.len() as u32, each.of_task(index), "{per_task}, {index}");
                found.extend(part);
            }
            assert_eq!(found, objects, "{per_task}");
            assert_eq!(each.of_task(each.tasks()), 0);
        }
    }

    #[test]
    fn what_cannot_be_a_file_is_no_object_of_a_list() {
        let mut list = ListWriter::default();
        for name in ["", "/a", "a/../b", "a/", "a//b", "a\0"] {
            let from = ObjectPath { bucket: "b".into(), key: "k".into() };
            assert!(list.push(&EachObject { from, name: name.into() }).is_err(), "{name:?}");
        }
        assert_eq!(list.objects(), 0);
        assert_eq!(part_of(&[0; 15]), None);
        assert_eq!(part_of(&[255; 16]), None);
        assert_eq!(parse(b"\xc1"), None);
    }
}
