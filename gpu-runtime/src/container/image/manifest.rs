//! Which layers an image has and what it runs: OCI image layout 1.0 and `docker save`.

use serde::{Deserialize, Deserializer, Serialize};

use super::files::{DOCKER_MANIFEST, Files, INDEX};
use super::{ImageError, LAYERS_MAX};

/// A manifest or configuration has a few kilobytes; one with a history of a thousand steps has a few hundred.
const JSON_BYTES_MAX: u64 = 16 << 20;
/// Indexes may name indexes; one inside another is what builders make.
const NESTING_MAX: usize = 3;

/// What an image says of how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(rename = "Entrypoint", default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(rename = "Cmd", default, deserialize_with = "or_default")]
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    #[serde(rename = "Env", default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(rename = "WorkingDir", default, deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(rename = "User", default, deserialize_with = "or_default")]
    pub user: String,
}

/// A layer and how to know that it is the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its file in the image.
    pub name: String,
    /// SHA-256 of that file, where the image says it.
    pub blob: Option<[u8; 32]>,
    /// SHA-256 of the archive inside, uncompressed: what unpacked layers are kept by.
    pub archive: [u8; 32],
}

/// An image, read and checked but for its layers' contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct OciManifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct DockerManifest {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "Layers", default, deserialize_with = "or_default")]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    config: ImageConfig,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

/// Docker writes `null` for what is empty.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// This machine's name in images.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads an image's manifest; `None` when the files are no image but a root file system.
///
/// # Errors
/// [`ImageError::Bad`] for a malformed image, one for other machines, or one with too many layers.
pub fn read(files: &Files) -> Result<Option<Manifest>, ImageError> {
    if files.has(INDEX) {
        let index: Index = json(&files.read(INDEX, JSON_BYTES_MAX)?, INDEX)?;
        return oci(files, index, NESTING_MAX).map(Some);
    }
    if files.has(DOCKER_MANIFEST) {
        return docker(files).map(Some);
    }
    Ok(None)
}

fn oci(files: &Files, index: Index, nesting: usize) -> Result<Manifest, ImageError> {
    let fits = |descriptor: &&Descriptor| match &descriptor.platform {
        None => true,
        Some(platform) => platform.os == "linux" && platform.architecture == architecture(),
    };
    let chosen = index.manifests.iter().find(fits).ok_or_else(|| {
        ImageError::Bad(format!(
            "the image is not for this machine: it names no manifest for linux/{}",
            architecture()
        ))
    })?;
    let body = blob(files, &chosen.digest)?;
    if chosen.media_type.contains("image.index") || chosen.media_type.contains("manifest.list") {
        let index = json(&body, &chosen.digest)?;
        return match nesting.checked_sub(1) {
            Some(nesting) => oci(files, index, nesting),
            None => Err(ImageError::Bad("the image's indexes are nested too deeply".into())),
        };
    }
    let manifest: OciManifest = json(&body, &chosen.digest)?;
    let config: ConfigFile = json(&blob(files, &manifest.config.digest)?, &manifest.config.digest)?;
    let layers = manifest
        .layers
        .iter()
        .map(|layer| Ok((blob_name(&layer.digest)?, Some(sha256(&layer.digest)?))))
        .collect::<Result<Vec<_>, ImageError>>()?;
    finish(layers, config)
}

fn docker(files: &Files) -> Result<Manifest, ImageError> {
    let manifests: Vec<DockerManifest> =
        json(&files.read(DOCKER_MANIFEST, JSON_BYTES_MAX)?, DOCKER_MANIFEST)?;
    let [manifest] = manifests.as_slice() else {
        return Err(ImageError::Bad(format!(
            "the archive holds {} images; save one at a time",
            manifests.len()
        )));
    };
    let config: ConfigFile = json(&files.read(&manifest.config, JSON_BYTES_MAX)?, &manifest.config)?;
    finish(manifest.layers.iter().map(|name| (name.clone(), None)).collect(), config)
}

fn finish(layers: Vec<(String, Option<[u8; 32]>)>, config: ConfigFile) -> Result<Manifest, ImageError> {
    if layers.len() > LAYERS_MAX {
        return Err(ImageError::Bad(format!(
            "the image has {} layers; at most {LAYERS_MAX} can be stacked: squash it",
            layers.len()
        )));
    }
    if layers.len() != config.rootfs.diff_ids.len() {
        return Err(ImageError::Bad(format!(
            "the image has {} layers, its configuration {}",
            layers.len(),
            config.rootfs.diff_ids.len()
        )));
    }
    if (!config.os.is_empty() && config.os != "linux")
        || (!config.architecture.is_empty() && config.architecture != architecture())
    {
        return Err(ImageError::Bad(format!(
            "the image is for {}/{}, this machine is linux/{}",
            config.os,
            config.architecture,
            architecture()
        )));
    }
    let layers = layers
        .into_iter()
        .zip(&config.rootfs.diff_ids)
        .map(|((name, blob), archive)| Ok(Layer { name, blob, archive: sha256(archive)? }))
        .collect::<Result<_, ImageError>>()?;
    Ok(Manifest { layers, config: config.config })
}

/// A small blob of an OCI layout whose digest holds.
fn blob(files: &Files, digest: &str) -> Result<Vec<u8>, ImageError> {
    let body = files.read(&blob_name(digest)?, JSON_BYTES_MAX)?;
    let found = ring::digest::digest(&ring::digest::SHA256, &body);
    if found.as_ref() == sha256(digest)? {
        Ok(body)
    } else {
        Err(ImageError::Bad(format!("the image's file {digest} has another digest: {}", hex::encode(found))))
    }
}

fn blob_name(digest: &str) -> Result<String, ImageError> {
    Ok(format!("blobs/sha256/{}", hex::encode(sha256(digest)?)))
}

fn sha256(digest: &str) -> Result<[u8; 32], ImageError> {
    let mut bytes = [0; 32];
    match digest.strip_prefix("sha256:").map(|text| hex::decode_to_slice(text, &mut bytes)) {
        Some(Ok(())) => Ok(bytes),
        _ => Err(ImageError::Bad(format!("{digest:?} is no SHA-256 digest of the form sha256:..."))),
    }
}

fn json<T: for<'de> Deserialize<'de>>(body: &[u8], name: &str) -> Result<T, ImageError> {
    serde_json::from_slice(body)
        .map_err(|error| ImageError::Bad(format!("the image's file {name:?}: {error}")))
}
