//! Images in every form, and images that mean harm, through the real worker.

use std::io::Write;

use makai_gpu_runtime::runner::{End, Runner, TaskSpec};
use ring::digest::{SHA256, digest};
use serde_json::json;
use tar::{Builder, EntryType};

use crate::kit::{Kit, container, entry, program, root_tar};

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Kind, path, where a link leads, and content.
type Entry<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (kind, path, link, body) in entries {
        entry(&mut archive, *kind, path, link, body);
    }
    archive.into_inner().unwrap()
}

/// An OCI layout of these layers (uncompressed archives), each packed with gzip.
fn oci(layers: &[Vec<u8>], config: serde_json::Value) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    let mut blob = |bytes: &[u8], kind: &str| {
        let digest = sha256(bytes);
        entry(&mut archive, EntryType::Regular, &format!("blobs/sha256/{digest}"), "", bytes);
        json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let described: Vec<_> = layers
        .iter()
        .map(|layer| blob(&gzip(layer), "application/vnd.oci.image.layer.v1.tar+gzip"))
        .collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = json!({"os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": described});
    let manifest = blob(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
    entry(&mut archive, EntryType::Regular, "index.json", "", index.as_bytes());
    entry(&mut archive, EntryType::Regular, "oci-layout", "", br#"{"imageLayoutVersion":"1.0.0"}"#);
    archive.into_inner().unwrap()
}

fn docker(layers: &[Vec<u8>], config: serde_json::Value) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    let names: Vec<_> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    for (name, layer) in names.iter().zip(layers) {
        entry(&mut archive, EntryType::Regular, name, "", layer);
    }
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = json!({"config": config, "rootfs": {"diff_ids": diff_ids}}).to_string();
    entry(&mut archive, EntryType::Regular, "config.json", "", config.as_bytes());
    let manifest = json!([{"Config": "config.json", "RepoTags": null, "Layers": names}]).to_string();
    entry(&mut archive, EntryType::Regular, "manifest.json", "", manifest.as_bytes());
    archive.into_inner().unwrap()
}

fn with_image(kit: &Kit, name: &str, image: &[u8], words: &[&str]) -> TaskSpec {
    let mut task = kit.task(name, words);
    let work = container(&mut task);
    work.image = kit.image(image);
    if words.is_empty() {
        work.command.clear();
    }
    task
}

use EntryType::{Block, Directory, Link, Regular, Symlink};

/// Layers stack as their builder meant: later files win, whiteouts hide, opaque folders start anew; entry point,
/// command and environment are the image's.
#[tokio::test]
async fn layers_stack_in_every_form() {
    let Some(kit) = Kit::new().await else { return };
    let base = layer(&[
        (Regular, "bin/task", "", program()),
        (Regular, "data/hidden", "", b"old"),
        (Regular, "data/kept", "", b"old"),
        (Regular, "folder/old", "", b"old"),
        (Regular, "tmp/x", "", b"under the mount"),
    ]);
    let top = layer(&[
        (Regular, "data/.wh.hidden", "", b""),
        (Regular, "data/kept", "", b"new"),
        (Regular, "folder/.wh..wh..opq", "", b""),
        (Regular, "folder/new", "", b"new"),
    ]);
    let config =
        json!({"Entrypoint": ["/bin/task", "copy"], "Cmd": ["/data/kept", "/out/kept"], "Env": null});
    let layers = [base, top];
    let oci_image = oci(&layers, config.clone());
    let forms =
        [("oci", oci_image.clone()), ("oci-gz", gzip(&oci_image)), ("docker", docker(&layers, config))];
    for (form, image) in forms {
        let task = with_image(&kit, form, &image, &[]);
        let (outcome, said) = kit.run(&task).await;
        assert!(outcome.is_success(), "{form}: {outcome:?} {said:?}");
        assert_eq!(std::fs::read(task.output.unwrap().join("kept")).unwrap(), b"new");
        for (path, code) in [("/data/hidden", 2), ("/folder/old", 2), ("/folder/new", 0)] {
            let name = format!("{form}{}", path.replace('/', "-"));
            let (outcome, _) = kit.run(&with_image(&kit, &name, &image, &["copy", path, "/out/x"])).await;
            assert_eq!(outcome.end, End::Exited { code }, "{form} {path}");
        }
    }
}

/// An image that was unpacked needs no file any more; layers are shared between images.
#[tokio::test]
async fn an_unpacked_image_needs_no_file() {
    let Some(kit) = Kit::new().await else { return };
    let mut task = kit.task("first", &["exit", "0"]);
    let work = container(&mut task);
    assert!(!kit.runner.has_image(&work.image.content));
    assert!(kit.run(&task).await.0.is_success());
    task = kit.task("second", &["exit", "0"]);
    let work = container(&mut task);
    assert!(kit.runner.has_image(&work.image.content));
    work.image.path = None;
    assert!(kit.run(&task).await.0.is_success());
}

async fn refused(kit: &Kit, name: &str, image: &[u8], expected: &str) {
    let (outcome, _) = kit.run(&with_image(kit, name, image, &["exit", "0"])).await;
    assert_eq!(outcome.end, End::BadImage, "{name}: {outcome:?}");
    assert!(outcome.message.contains(expected), "{name}: {outcome:?}");
}

#[tokio::test]
async fn images_that_mean_harm_are_named_and_leave_nothing() {
    let Some(kit) = Kit::new().await else { return };
    let harm: [(&str, Vec<Entry<'_>>, &str); 5] = [
        ("traversal", vec![(Regular, "../../../../harm", "", b"x")], "leads out of the image"),
        ("device", vec![(Block, "sda", "", b"")], "is a device"),
        ("hard-link", vec![(Link, "passwd", "/etc/passwd", b"")], "not in the same layer"),
        ("hard-link-out", vec![(Link, "passwd", "../../../etc/passwd", b"")], "leads out of the image"),
        ("replaced", vec![(Regular, "a/b", "", b"x"), (Symlink, "a", "/", b"")], "replaces a folder"),
    ];
    for (name, entries, expected) in harm {
        refused(&kit, name, &layer(&entries), expected).await;
        refused(&kit, &format!("{name}-oci"), &oci(&[root_tar(), layer(&entries)], json!({})), expected)
            .await;
    }
    let images = std::fs::read_dir(kit.folder.path().join("state/images")).unwrap().next().unwrap().unwrap();
    let parts = std::fs::read_dir(images.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("part-"));
    assert_eq!(parts.count(), 0);
}

/// A kilobyte that unpacks to gigabytes ends at the bound, as does a million of files, and a layer of layers.
#[tokio::test]
async fn bombs_are_refused() {
    let Some(kit) = Kit::new().await else { return };
    let zeros = vec![0; 9 << 20];
    refused(&kit, "zip-bomb", &gzip(&layer(&[(Regular, "zeros", "", &zeros)])), "larger, unpacked").await;
    refused(
        &kit,
        "zip-bomb-oci",
        &oci(&[layer(&[(Regular, "zeros", "", &zeros)])], json!({})),
        "larger, unpacked",
    )
    .await;
    let names: Vec<_> = (0..2001).map(|n| format!("d{n}/")).collect();
    let entries: Vec<_> = names.iter().map(|name| (Directory, name.as_str(), "", &b""[..])).collect();
    refused(&kit, "files", &oci(&[layer(&entries)], json!({})), "more files than this machine takes").await;
    refused(&kit, "layers-128", &oci(&vec![layer(&[]); 128], json!({})), "has 128 layers").await;
    // A hundred thousand names of one layer: refused by the manifest, before anything is unpacked.
    let many = json!([{"Config": "config.json", "Layers": vec!["l/layer.tar"; 100_000]}]).to_string();
    let ids = json!({"rootfs": {"diff_ids": vec![format!("sha256:{}", sha256(b"")); 100_000]}}).to_string();
    let image = layer(&[
        (Regular, "manifest.json", "", many.as_bytes()),
        (Regular, "config.json", "", ids.as_bytes()),
    ]);
    refused(&kit, "layers-100000", &image, "has 100000 layers").await;
}

#[tokio::test]
async fn damaged_images_are_told_from_good_ones() {
    let Some(kit) = Kit::new().await else { return };
    let good = oci(&[root_tar()], json!({}));
    // One byte of the layer's blob changed: its digest does not hold.
    let mut changed = good.clone();
    let middle = 512 + 20_000;
    changed[middle] ^= 1;
    let (outcome, _) = kit.run(&with_image(&kit, "changed", &changed, &["exit", "0"])).await;
    assert_eq!(outcome.end, End::BadImage, "{outcome:?}");
    refused(&kit, "cut", &good[..good.len() / 2], "ends inside").await;
    refused(&kit, "text", &b"this is no image at all. ".repeat(100), "no tar header").await;
    // A file that is not what its name says is the machine's mistake, and never unpacked.
    let mut task = with_image(&kit, "wrong-name", &good, &["exit", "0"]);
    let work = container(&mut task);
    std::fs::write(work.image.path.as_ref().unwrap(), root_tar()).unwrap();
    let (outcome, _) = kit.run(&task).await;
    assert_eq!(outcome.end, End::MachineFault, "{outcome:?}");
    let content = container(&mut task).image.content;
    assert!(!kit.runner.has_image(&content));
}
