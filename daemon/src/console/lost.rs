//! What cannot be read, and whose it is.
//!
//! | request                        | answers                                                              |
//! |--------------------------------|----------------------------------------------------------------------|
//! | `GET /api/v1/lost?cursor=`     | [`LostPage`]; its `cursor` goes on where it ended                     |

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use makai_erasure::{BlobId, NodeId, PgId};
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::cluster::{Role, Standing};
use makai_raft::facts::query::{Answer, ENTRIES_PER_ANSWER_MAX, Query};
use makai_raft::facts::version::{ListVersions, VersionAnswer, VersionId, VersionQuery};
use makai_raft::handle::MetaError;
use serde::{Deserialize, Serialize};

use super::{Console, Failure, failure, meta_failure};
use crate::clock;
use crate::members::{LOST, decode};
use crate::reconcile::Shell;
use crate::reconcile::lost::{LostBlob, NAMED_MAX, Unreadable, outlook};

/// How long one answer looks through buckets; the next goes on.
const LOOK_FOR: Duration = Duration::from_secs(5);
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// A status waits no longer for a count: where no leader answers, there is none.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);
const BLOBS_AT_ONCE: u32 = 1000;

/// Blobs that cannot be read now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostCount {
    /// Too few of their shards are left.
    pub gone_blobs: u64,
    /// Disks that do not answer now could bring them back.
    pub away_blobs: u64,
}

/// Objects that cannot be read, of those looked at.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LostPage {
    pub gone_blobs: u64,
    pub away_blobs: u64,
    /// More blobs cannot be read than one answer looks for: what is deleted makes room for the rest.
    pub is_cut: bool,
    /// Nodes that were asked what they miss and did not answer.
    pub silent: Vec<NodeId>,
    pub objects: Vec<LostObject>,
    /// `None`: all buckets were looked through.
    pub cursor: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LostObject {
    pub bucket: String,
    pub key: String,
    pub version: String,
    pub size: u64,
    pub why: Unreadable,
}

/// Where a walk through buckets has come to.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Place {
    bucket: String,
    after: String,
    version: Option<VersionId>,
}

impl Place {
    fn to_text(&self) -> Option<String> {
        serde_json::to_vec(self).ok().map(hex::encode)
    }

    fn parse(text: &str) -> Option<Self> {
        serde_json::from_slice(&hex::decode(text).ok()?).ok()
    }
}

/// Blobs of groups that cannot be read as their disks are; at most `max`.
async fn of_groups(shell: &Shell, max: usize) -> Result<Vec<LostBlob>, MetaError> {
    let map = shell.map.get();
    let mut found = Vec::new();
    for group in &map.map.groups {
        let Some(why) = outlook(&map.map, group) else { continue };
        let (pg, mut after_sequence) = (group.id, 0);
        while found.len() < max {
            let query = Query::BlobsOfGroup { pg, after_sequence, entries_max: BLOBS_AT_ONCE };
            let Answer::Blobs(blobs) = shell.facts.query(query).await? else { break };
            found.extend(blobs.iter().map(|blob| LostBlob { blob: blob.id, pg, why }));
            match blobs.last() {
                Some(last) if blobs.len() == BLOBS_AT_ONCE as usize => after_sequence = last.sequence,
                _ => break,
            }
        }
    }
    Ok(found)
}

/// Blobs that cannot be read, as far as nodes told the leader and the map says. Cost: nothing while all groups can be read.
pub(super) async fn count(shell: &Shell, told: LostCount) -> LostCount {
    let mut counted = told;
    // A count that cannot be made leaves the groups to speak for themselves.
    let of_groups = tokio::time::timeout(COUNT_TIMEOUT, of_groups(shell, NAMED_MAX)).await;
    for blob in of_groups.ok().and_then(Result::ok).unwrap_or_default() {
        match blob.why {
            Unreadable::Gone => counted.gone_blobs += 1,
            Unreadable::Away => counted.away_blobs += 1,
        }
    }
    counted
}

impl Console {
    /// Cost: all nodes are asked, and the versions of all keys looked at, some thousands an answer.
    pub(super) async fn lost(&self, cursor: Option<&str>) -> Result<LostPage, Failure> {
        let wrong = || failure(StatusCode::BAD_REQUEST, "the cursor is none of this console's");
        let mut place = cursor.map_or_else(|| Some(Place::default()), Place::parse).ok_or_else(wrong)?;
        let (mut blobs, silent) = self.told().await;
        for blob in of_groups(&self.shell, NAMED_MAX).await.map_err(meta_failure)? {
            blobs.insert(blob.blob, blob.why);
        }
        let of = |wanted: Unreadable| blobs.values().filter(|why| **why == wanted).count() as u64;
        let mut page = LostPage {
            gone_blobs: of(Unreadable::Gone),
            away_blobs: of(Unreadable::Away),
            is_cut: blobs.len() >= NAMED_MAX,
            silent,
            ..LostPage::default()
        };
        let wanted: Vec<BlobId> = blobs.keys().copied().take(NAMED_MAX).collect();
        if wanted.is_empty() {
            return Ok(page);
        }
        let buckets = self.all_buckets().await?;
        let begun = clock::instant();
        let first = place.bucket.clone();
        for bucket in buckets.iter().filter(|bucket| bucket.name >= first) {
            if bucket.name != place.bucket {
                place = Place { bucket: bucket.name.clone(), ..Place::default() };
            }
            loop {
                if begun.elapsed() > LOOK_FOR {
                    page.cursor = place.to_text();
                    return Ok(page);
                }
                let next = self.look(&place, &wanted, &blobs, &mut page.objects).await?;
                let Some((after, version)) = next else { break };
                (place.after, place.version) = (after, Some(version));
            }
        }
        Ok(page)
    }

    async fn all_buckets(&self) -> Result<Vec<Bucket>, Failure> {
        match self.shell.facts.query(Query::Buckets { tenant: None }).await.map_err(meta_failure)? {
            Answer::Buckets(buckets) => Ok(buckets),
            other => Err(failure(StatusCode::BAD_GATEWAY, format!("the facts answered {other:?}"))),
        }
    }

    /// What nodes tell of, and those that did not answer.
    async fn told(&self) -> (BTreeMap<BlobId, Unreadable>, Vec<NodeId>) {
        let map = self.shell.map.get();
        let is_asked = |node: &&makai_raft::facts::cluster::Node| {
            node.is_up && node.standing != Standing::Lost && node.roles.contains(&Role::Storage)
        };
        let asked = map.map.nodes.iter().filter(is_asked).map(|node| node.id);
        let asked = asked.map(|node| async move {
            let answer = self.shell.transport.request(node, LOST, bytes::Bytes::new(), ASK_TIMEOUT).await;
            (node, answer.ok().and_then(|answer| decode::<Vec<LostBlob>>(&answer).ok()))
        });
        let (mut blobs, mut silent) = (BTreeMap::new(), Vec::new());
        for (node, told) in futures::future::join_all(asked).await {
            match told {
                Some(told) => blobs.extend(told.into_iter().map(|blob| (blob.blob, blob.why))),
                None => silent.push(node),
            }
        }
        (blobs, silent)
    }

    /// One page of a bucket's versions; returns where the next begins.
    async fn look(
        &self,
        place: &Place,
        wanted: &[BlobId],
        blobs: &BTreeMap<BlobId, Unreadable>,
        objects: &mut Vec<LostObject>,
    ) -> Result<Option<(String, VersionId)>, Failure> {
        let page = ListVersions {
            bucket: place.bucket.clone(),
            after: place.after.clone(),
            after_version: place.version,
            entries_max: ENTRIES_PER_ANSWER_MAX,
            ..ListVersions::default()
        };
        let query = Query::Version(VersionQuery::Naming { page, blobs: wanted.to_vec() });
        match self.shell.facts.query(query).await {
            Ok(Answer::Version(VersionAnswer::Naming { versions, next })) => {
                for (head, named) in versions {
                    let why = named.iter().filter_map(|blob| blobs.get(blob)).max();
                    objects.push(LostObject {
                        bucket: place.bucket.clone(),
                        version: head.version_id().to_string(),
                        key: head.key,
                        size: head.size,
                        why: why.copied().unwrap_or(Unreadable::Away),
                    });
                }
                Ok(next)
            }
            Ok(other) => Err(failure(StatusCode::BAD_GATEWAY, format!("the facts answered {other:?}"))),
            // It was deleted meanwhile.
            Err(MetaError::Refused(_)) => Ok(None),
            Err(error) => Err(meta_failure(error)),
        }
    }
}

/// Groups that cannot be read as their disks are.
#[must_use]
pub fn unreadable_groups(map: &makai_raft::facts::cluster::ClusterMap) -> Vec<(PgId, Unreadable)> {
    map.groups.iter().filter_map(|group| Some((group.id, outlook(map, group)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_went() {
        let place = Place { bucket: "b".into(), after: "a/ü&=".into(), version: Some(VersionId::Number(7)) };
        let back = Place::parse(&place.to_text().unwrap()).unwrap();
        assert_eq!((back.bucket, back.after, back.version), (place.bucket, place.after, place.version));
        assert!(Place::parse("zz").is_none() && Place::parse("6162").is_none());
    }
}
