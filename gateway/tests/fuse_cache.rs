//! What was read is kept on this machine's disk. Mounted for real, over files in memory; where the machine has no `/dev/fuse`
//! or nobody may mount, the test says so and passes.

mod files_in_memory;
mod mounted;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use files_in_memory::FilesInMemory;
use makai_gateway::fuse::disk_cache::DiskCache;
use mounted::{Mounted, eventually, mounted_over};

const BYTES: usize = 1_000_000;

fn cache(folder: &Path) -> Arc<DiskCache> {
    let opened = DiskCache::open(folder, b"secret", "bucket", 64 << 20, files_in_memory::now);
    Arc::new(opened.unwrap())
}

fn kept(folder: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_dir());
    folders
        .flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten())
        .map(|file| file.path())
        .collect()
}

fn again(service: &Arc<FilesInMemory>, folder: &Path, name: &str) -> Mounted {
    mounted_over(service.clone(), name, false, Some(cache(folder))).unwrap()
}

#[test]
fn the_next_mount_reads_from_the_disk_and_only_what_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let service: Arc<FilesInMemory> = Arc::default();
    let data: Vec<u8> = (0..BYTES).map(|at| (at / 7) as u8).collect();
    let Some(first) = mounted_over(service.clone(), "cache1", false, Some(cache(folder.path()))) else {
        return;
    };
    fs::write(first.at("f"), &data).unwrap();
    fs::File::open(first.at("f")).unwrap().sync_all().unwrap();
    drop(first);
    let second = again(&service, folder.path(), "cache2");
    assert!(fs::read(second.at("f")).unwrap() == data);
    eventually("all blocks are kept", || kept(folder.path()).len() == BYTES.div_ceil(65_536));
    drop(second);

    let third = again(&service, folder.path(), "cache3");
    let before = service.reads();
    assert!(fs::read(third.at("f")).unwrap() == data);
    assert_eq!(service.reads(), before, "the pool is not asked for what the disk has");
    drop(third);

    // One file was flipped, one was cut: both are read from the pool.
    let files = kept(folder.path());
    let mut flipped = fs::read(&files[0]).unwrap();
    flipped[5000] ^= 1;
    fs::write(&files[0], flipped).unwrap();
    fs::File::options().write(true).open(&files[1]).unwrap().set_len(1000).unwrap();
    let fourth = again(&service, folder.path(), "cache4");
    let before = service.reads();
    assert!(fs::read(fourth.at("f")).unwrap() == data);
    assert!(service.reads() > before);

    // What another writes is read, not what was kept.
    fourth.write_elsewhere("f", 70_000, b"THEIRS");
    let mut expected = data.clone();
    expected[70_000..70_006].copy_from_slice(b"THEIRS");
    eventually("the bytes of others", || fs::read(fourth.at("f")).unwrap() == expected);
}
