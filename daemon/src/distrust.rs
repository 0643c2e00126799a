//! What nodes that nobody trusts may do to disks of others: bring shards that the facts vouch for.
//!
//! ```text
//! storage node ─ put ─> header ─ do the facts know the blob? ─> bytes, roots ─ are they its roots? ─> committed | forgotten
//!              ─ read, footer ─> as for anyone: shards are sealed
//!              ─ delete ─> refused
//! ```
//!
//! Nodes that repair bring each other shards, so they write to each other's disks. Whoever could write anything there, or
//! delete, could destroy data that is not its own.
//!
//! Always: room is set aside only for blobs that the facts know; what such a node writes becomes readable only where it has
//! the roots that they know, so that it is, to the byte, what belongs there.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader, ShardPeers, ShardSink, blob_root};
use makai_erasure::{BlobId, DiskId, ShardKey};
use makai_raft::facts::object::Blob;
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::Metadata;

/// Disks, for a node that is neither voter nor gateway.
pub struct Distrusted {
    pub shards: Arc<dyn ShardPeers>,
    /// `None` while this node starts: nothing can be vouched for.
    pub facts: Option<Arc<dyn Metadata>>,
}

struct Vouched {
    sink: Box<dyn ShardSink>,
    blob: Blob,
}

#[async_trait]
impl ShardSink for Vouched {
    async fn send(&mut self, bytes: Bytes) -> Result<(), PeerError> {
        self.sink.send(bytes).await
    }

    async fn send_all(&mut self, pieces: Vec<Bytes>) -> Result<(), PeerError> {
        self.sink.send_all(pieces).await
    }

    async fn finish(self: Box<Self>, footer: ShardFooter) -> Result<(), PeerError> {
        let Blob { id, root, plain_len, .. } = self.blob;
        if root != blob_root(&footer.roots) || plain_len != footer.blob_plain_len {
            return Err(unknown(id));
        }
        self.sink.finish(footer).await
    }
}

fn unknown(blob: BlobId) -> PeerError {
    PeerError::Refused(format!("the facts know no such shard of blob {blob}"))
}

impl Distrusted {
    /// The blob that a shard says to be of, as the facts know it.
    async fn blob_of(&self, header: &ShardHeader) -> Result<Blob, PeerError> {
        let starting = || PeerError::Unreachable("this node is still starting".into());
        let facts = self.facts.as_ref().ok_or_else(starting)?;
        let id = header.key.blob;
        let states = match facts.query(Query::BlobStates { ids: vec![id] }).await {
            Ok(Answer::BlobStates(states)) => states,
            Ok(_) => return Err(PeerError::Unreachable("the facts answered something else".into())),
            Err(error) => {
                return Err(PeerError::Unreachable(format!("nobody vouches for the shard: {error}")));
            }
        };
        states.into_iter().flatten().find(|blob| blob.pg == header.pg).ok_or_else(|| unknown(id))
    }
}

#[async_trait]
impl ShardPeers for Distrusted {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
        let blob = self.blob_of(&header).await?;
        Ok(Box::new(Vouched { sink: self.shards.put(disk, header).await?, blob }))
    }

    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError> {
        self.shards.read(disk, key, offset, len).await
    }

    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError> {
        self.shards.footer(disk, key).await
    }

    async fn delete(&self, _disk: DiskId, _keys: Vec<ShardKey>) -> Result<(), PeerError> {
        Err(PeerError::Refused("only voters and gateways delete shards of others".into()))
    }

    fn is_up(&self, disk: DiskId) -> bool {
        self.shards.is_up(disk)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use makai_erasure::{PgId, Scheme};
    use makai_raft::facts::command::{Command, Reply};
    use makai_raft::handle::MetaError;

    use super::*;

    const DISK: DiskId = DiskId([7; 16]);
    const BLOB: BlobId = BlobId([9; 16]);
    const ROOTS: [[u8; 32]; 3] = [[1; 32], [2; 32], [3; 32]];

    /// Notes what room was set aside for, kept and deleted.
    #[derive(Default)]
    struct Disk(Mutex<Vec<&'static str>>);

    struct Keeping(Arc<Disk>);

    #[async_trait]
    impl ShardSink for Keeping {
        async fn send(&mut self, _: Bytes) -> Result<(), PeerError> {
            Ok(())
        }

        async fn finish(self: Box<Self>, _: ShardFooter) -> Result<(), PeerError> {
            self.0.0.lock().unwrap().push("kept");
            Ok(())
        }
    }

    struct Disks(Arc<Disk>);

    #[async_trait]
    impl ShardPeers for Disks {
        async fn put(&self, _: DiskId, _: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
            self.0.0.lock().unwrap().push("begun");
            Ok(Box::new(Keeping(Arc::clone(&self.0))))
        }

        async fn read(&self, _: DiskId, _: ShardKey, _: u64, _: u64) -> Result<Bytes, PeerError> {
            Ok(Bytes::from_static(b"sealed"))
        }

        async fn footer(&self, _: DiskId, _: ShardKey) -> Result<ShardFooter, PeerError> {
            Err(PeerError::Missing)
        }

        async fn delete(&self, _: DiskId, _: Vec<ShardKey>) -> Result<(), PeerError> {
            self.0.0.lock().unwrap().push("deleted");
            Ok(())
        }

        fn is_up(&self, _: DiskId) -> bool {
            true
        }
    }

    /// Knows one blob, or does not answer.
    struct Facts(Option<Blob>);

    #[async_trait]
    impl Metadata for Facts {
        async fn propose(&self, _: Command) -> Result<Reply, MetaError> {
            Err(MetaError::Overloaded)
        }

        async fn query(&self, query: Query) -> Result<Answer, MetaError> {
            let (Query::BlobStates { ids }, Some(blob)) = (query, &self.0) else {
                return Err(MetaError::Unavailable("nobody leads".into()));
            };
            Ok(Answer::BlobStates(ids.into_iter().map(|id| (id == blob.id).then(|| blob.clone())).collect()))
        }
    }

    fn blob() -> Blob {
        Blob {
            id: BLOB,
            pg: PgId(4),
            plain_len: 100,
            wrapped_key: Bytes::new(),
            root: blob_root(&ROOTS),
            sequence: 1,
        }
    }

    fn header(blob: BlobId, pg: u64) -> ShardHeader {
        ShardHeader {
            key: ShardKey { blob, index: 1 },
            pg: PgId(pg.try_into().unwrap()),
            scheme: Scheme::new(2, 1).unwrap(),
            len_max: 100,
            opened_at_ms: 0,
        }
    }

    fn footer(roots: &[[u8; 32]], blob_plain_len: u64) -> ShardFooter {
        ShardFooter { blob_plain_len, roots: roots.to_vec() }
    }

    async fn put(distrusted: &Distrusted, header: ShardHeader, footer: ShardFooter) -> Result<(), PeerError> {
        let mut sink = distrusted.put(DISK, header).await?;
        sink.send(Bytes::from_static(b"bytes")).await?;
        sink.finish(footer).await
    }

    #[tokio::test]
    async fn only_what_the_facts_vouch_for_is_kept_and_nothing_is_deleted() {
        let disk = Arc::new(Disk::default());
        let with = |facts: Option<Facts>| Distrusted {
            shards: Arc::new(Disks(Arc::clone(&disk))),
            facts: facts.map(|facts| Arc::new(facts) as Arc<dyn Metadata>),
        };
        let distrusted = with(Some(Facts(Some(blob()))));
        let refused = |result: Result<(), PeerError>| matches!(result, Err(PeerError::Refused(_)));
        let other = [[1; 32], [2; 32], [4; 32]];
        assert!(refused(put(&distrusted, header(BLOB, 5), footer(&ROOTS, 100)).await), "another group");
        let made_up = header(BlobId([8; 16]), 4);
        assert!(refused(put(&distrusted, made_up, footer(&ROOTS, 100)).await), "a blob that nobody knows");
        assert!(refused(distrusted.delete(DISK, vec![ShardKey { blob: BLOB, index: 1 }]).await));
        for unanswered in [with(Some(Facts(None))), with(None)] {
            let put = put(&unanswered, header(BLOB, 4), footer(&ROOTS, 100)).await;
            assert!(matches!(put, Err(PeerError::Unreachable(_))), "{put:?}");
        }
        assert!(disk.0.lock().unwrap().is_empty(), "room was set aside, or something deleted");
        assert!(refused(put(&distrusted, header(BLOB, 4), footer(&other, 100)).await), "other bytes");
        assert!(refused(put(&distrusted, header(BLOB, 4), footer(&ROOTS, 99)).await), "another length");
        assert_eq!(*disk.0.lock().unwrap(), ["begun", "begun"]);

        put(&distrusted, header(BLOB, 4), footer(&ROOTS, 100)).await.unwrap();
        assert_eq!(disk.0.lock().unwrap()[2..], ["begun", "kept"]);
        let key = ShardKey { blob: BLOB, index: 1 };
        assert_eq!(distrusted.read(DISK, key, 0, 6).await.unwrap(), "sealed");
    }
}
