//! What the log promises: openraft's contract, and that no crash loses what was acknowledged.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::disk::RealDisk;
use super::types::Types;
use super::{GroupStorage, Log, LogConfig};
use crate::facts::GroupId;
use crate::store::{MetaStore, RaftMachine, StoreConfig};

struct Builder;

impl StoreBuilder<Types, GroupStorage, RaftMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, GroupStorage, RaftMachine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let mut config = LogConfig::new(dir.path().join("log"));
        config.segment_bytes = 4096;
        config.cache_bytes = 300;
        config.is_prepared_ahead = false;
        let log = Log::open(Arc::new(RealDisk), config, rand::random).unwrap();
        let store =
            StoreConfig { dir: dir.path().join("store"), cluster_id: String::new(), cache_bytes: 1 << 20 };
        let store = MetaStore::open(Arc::new(RealDisk), store).unwrap();
        Ok((dir, GroupStorage::new(log, GroupId(0)), RaftMachine::new(store)))
    }
}

/// openraft's own suite, with segments and memory so small that both are left all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}
