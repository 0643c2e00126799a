//! What one audit costs: the answer's bytes, the time to make and to check it, for the longest shard, out of a disk's store.
//!
//! `cargo run --release -p makai-ops --example audit [MIB]`

use std::time::{Duration, Instant};

use bytes::Bytes;
use makai_erasure::layout::BlobLayout;
use makai_erasure::store::{ShardStore, StoreOptions};
use makai_erasure::stripe::{Root, ShardFooter, ShardHeader, blob_root};
use makai_erasure::{BlobId, DiskId, PgId, Scheme, ShardKey};
use makai_ops::audit::proof::{AuditAnswer, Outline, check, leaf_count};

const MIB: u64 = 64;
const INDEX: u8 = 3;
const TIMES: u32 = 200;
const PIECE: usize = 65_552;

fn main() {
    let mib = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(MIB);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure(mib));
}

async fn measure(mib: u64) {
    // One shard of sixteen, each as long as the blob.
    let scheme = Scheme::new(1, 15).expect("a scheme");
    let plain_len = mib << 20;
    let len = BlobLayout::new(scheme, plain_len).expect("a blob").shard_len();
    let mut shard = vec![0; usize::try_from(len).expect("a length in memory")];
    blake3::Hasher::new().update(b"audit").finalize_xof().fill(&mut shard);
    let shard = Bytes::from(shard);
    let begun = now();
    let mut hasher = blake3::Hasher::new();
    shard.chunks(PIECE).for_each(|piece| _ = hasher.update(piece));
    println!("{mib} MiB, hashed                {:>9.1} us", us(begun.elapsed()));
    let begun = now();
    let mut outline = Outline::default();
    shard.chunks(PIECE).for_each(|piece| outline.push(piece));
    println!("the same, with its outline    {:>9.1} us", us(begun.elapsed()));
    let mut roots: Vec<Root> = (0..scheme.shard_count()).map(|at| [at as u8; 32]).collect();
    roots[usize::from(INDEX)] = outline.root();
    let blob = blob_root(&roots);

    let dir = tempfile::tempdir().expect("a folder");
    ShardStore::format(dir.path(), "audit", DiskId([1; 16])).expect("a disk");
    let (store, _) = ShardStore::open(dir.path(), "audit", StoreOptions::default()).expect("a disk");
    let key = ShardKey { blob: BlobId([2; 16]), index: INDEX };
    let header = ShardHeader { key, pg: PgId(1), scheme, len_max: len, opened_at_ms: 1 };
    let mut writer = store.begin(header).await.expect("room");
    for at in (0..shard.len()).step_by(PIECE) {
        writer.write(shard.slice(at..shard.len().min(at + PIECE))).await.expect("a disk that takes it");
    }
    let footer = ShardFooter { blob_plain_len: plain_len, roots };
    writer.finish(footer).await.expect("a disk that takes it");

    let (mut made, mut checked, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
    for at in 0..TIMES {
        let leaf = u64::from(at) * 7919 % leaf_count(len);
        let begun = now();
        let proof = store.prove(key, leaf).await.expect("it is there");
        made += begun.elapsed();
        let answer = AuditAnswer { leaf: proof.leaf, path: proof.path, roots: proof.roots };
        bytes = answer.leaf.len() + 32 * (answer.path.len() + answer.roots.len());
        let begun = now();
        check(&blob, INDEX, len, leaf, &answer).expect("it holds");
        checked += begun.elapsed();
    }
    println!("answer, out of the store      {:>9.1} us", us(made) / f64::from(TIMES));
    println!("answer, checked               {:>9.1} us", us(checked) / f64::from(TIMES));
    println!("answer                        {bytes:>9} bytes");
    let kept = dir.path().join("outlines/00000000.out");
    std::fs::remove_file(&kept).expect("an outline is kept");
    let begun = now();
    store.prove(key, 1).await.expect("it is there");
    println!("answer, where none is kept    {:>9.1} us", us(begun.elapsed()));
    store.close().await;
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}
