//! Keys of jobs. Numbers are big-endian.
//!
//! | first | then                                      | record                                            |
//! |-------|-------------------------------------------|---------------------------------------------------|
//! | `70`  | job (8)                                   | the job as submitted                              |
//! | `71`  | job (8)                                   | where it is                                       |
//! | `72`  | tenant (8), job (8)                       | nothing                                           |
//! | `73`  | tenant (8), client token                  | the job submitted with it                         |
//! | `74`  | job (8), index (4)                        | a task that was tried or cancelled                |
//! | `75`  | 255 - priority (1), job (8), index (4)    | a task that waits again: from when, where it was  |
//! | `75`  | 255 - priority (1), job (8), `FF FF FF FF` | the job has tasks that were never tried          |
//! | `76`  | node (32), job (8), index (4)             | a current attempt and what it holds               |
//! | `77`  | deadline (8), job (8)                     | nothing                                           |
//! | `78`  | end (8), job (8)                          | nothing: a job that is over                       |
//! | `79`  | sequence (8)                              | receipt                                           |
//! | `7A`  | tenant (8)                                | how many of its jobs are not over                 |
//! | `7B`  | job (8)                                   | how many jobs it waits for                        |
//! | `7C`  | job (8), job (8)                          | nothing: the second waits for the first           |
//! | `7D`  | node (32)                                 | what the machine offered last                     |
//! | `7E`  | job (8), index (4)                        | results that wait for others to agree             |
//! | `7F`  | node (32)                                 | how often in a row it agreed with others          |

use makai_erasure::NodeId;

use super::super::keys::join;
use crate::facts::Timestamp;
use crate::facts::jobs::JobId;
use crate::facts::tenant::TenantId;

/// In place of an index: all tasks that were never tried.
pub const FRESH: u32 = u32::MAX;

pub fn job(job: JobId) -> Vec<u8> {
    join(0x70, &[&job.0.to_be_bytes()])
}

pub fn state(job: JobId) -> Vec<u8> {
    join(0x71, &[&job.0.to_be_bytes()])
}

pub fn tenant_jobs(tenant: TenantId) -> Vec<u8> {
    join(0x72, &[&tenant.0.to_be_bytes()])
}

pub fn tenant_job(tenant: TenantId, job: JobId) -> Vec<u8> {
    join(0x72, &[&tenant.0.to_be_bytes(), &job.0.to_be_bytes()])
}

pub fn token(tenant: TenantId, token: &str) -> Vec<u8> {
    join(0x73, &[&tenant.0.to_be_bytes(), token.as_bytes()])
}

pub fn tasks(job: JobId) -> Vec<u8> {
    join(0x74, &[&job.0.to_be_bytes()])
}

pub fn task(job: JobId, index: u32) -> Vec<u8> {
    join(0x74, &[&job.0.to_be_bytes(), &index.to_be_bytes()])
}

pub fn queue() -> Vec<u8> {
    vec![0x75]
}

pub fn queue_of(priority: u8, job: JobId) -> Vec<u8> {
    join(0x75, &[&[u8::MAX - priority], &job.0.to_be_bytes()])
}

pub fn queued(priority: u8, job: JobId, index: u32) -> Vec<u8> {
    join(0x75, &[&[u8::MAX - priority], &job.0.to_be_bytes(), &index.to_be_bytes()])
}

/// Job and index of a key of the queue.
pub fn parse_queued(key: &[u8]) -> Option<(JobId, u32)> {
    let job = u64::from_be_bytes(key.get(2..10)?.try_into().ok()?);
    let index = u32::from_be_bytes(key.get(10..14)?.try_into().ok()?);
    Some((JobId(job), index))
}

pub fn active() -> Vec<u8> {
    vec![0x76]
}

pub fn active_of(node: &NodeId) -> Vec<u8> {
    join(0x76, &[&node.0])
}

pub fn active_task(node: &NodeId, job: JobId, index: u32) -> Vec<u8> {
    join(0x76, &[&node.0, &job.0.to_be_bytes(), &index.to_be_bytes()])
}

pub fn deadlines_until(at: Timestamp) -> (Vec<u8>, Vec<u8>) {
    (vec![0x77], join(0x77, &[&at.0.saturating_add(1).to_be_bytes()]))
}

pub fn deadline(at: Timestamp, job: JobId) -> Vec<u8> {
    join(0x77, &[&at.0.to_be_bytes(), &job.0.to_be_bytes()])
}

pub fn ended_before(at: Timestamp) -> (Vec<u8>, Vec<u8>) {
    (vec![0x78], join(0x78, &[&at.0.to_be_bytes()]))
}

pub fn ended(at: Timestamp, job: JobId) -> Vec<u8> {
    join(0x78, &[&at.0.to_be_bytes(), &job.0.to_be_bytes()])
}

/// The job at the end of a key.
pub fn parse_last_job(key: &[u8]) -> Option<JobId> {
    let at = key.len().checked_sub(8)?;
    Some(JobId(u64::from_be_bytes(key.get(at..)?.try_into().ok()?)))
}

pub fn receipts() -> Vec<u8> {
    vec![0x79]
}

pub fn receipt(sequence: u64) -> Vec<u8> {
    join(0x79, &[&sequence.to_be_bytes()])
}

pub fn tenant_open(tenant: TenantId) -> Vec<u8> {
    join(0x7A, &[&tenant.0.to_be_bytes()])
}

/// There as long as the job waits for others: it is not in the queue then.
pub fn held(job: JobId) -> Vec<u8> {
    join(0x7B, &[&job.0.to_be_bytes()])
}

pub fn followers(of: JobId) -> Vec<u8> {
    join(0x7C, &[&of.0.to_be_bytes()])
}

pub fn follower(of: JobId, job: JobId) -> Vec<u8> {
    join(0x7C, &[&of.0.to_be_bytes(), &job.0.to_be_bytes()])
}

pub fn machines() -> Vec<u8> {
    vec![0x7D]
}

pub fn machine(node: &NodeId) -> Vec<u8> {
    join(0x7D, &[&node.0])
}

pub fn votes_of(job: JobId) -> Vec<u8> {
    join(0x7E, &[&job.0.to_be_bytes()])
}

pub fn votes(job: JobId, index: u32) -> Vec<u8> {
    join(0x7E, &[&job.0.to_be_bytes(), &index.to_be_bytes()])
}

pub fn all_agreements() -> Vec<u8> {
    vec![0x7F]
}

/// The node at the end of a key.
pub fn parse_node(key: &[u8]) -> Option<NodeId> {
    key.get(1..33).and_then(|id| <[u8; 32]>::try_from(id).ok()).map(NodeId)
}

pub fn agreements(node: &NodeId) -> Vec<u8> {
    join(0x7F, &[&node.0])
}
