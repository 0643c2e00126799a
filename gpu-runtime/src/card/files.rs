//! What of the machine a confined process needs to use a card: device nodes, and the libraries that the driver's opens by itself.

use std::fs;
use std::path::{Path, PathBuf};

/// Device nodes beside the card's own.
const CONTROL: [&str; 3] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"];
/// Libraries that `libcuda` opens when it compiles a module.
const COMPILERS: [&str; 3] = ["libnvidia-ptxjitcompiler.so", "libnvidia-nvvm.so", "libnvidia-gpucomp.so"];
/// Libraries that programs open.
const PROGRAMS: [&str; 6] = [
    "libcuda.so",
    "libcudadebugger.so",
    "libnvidia-ml.so",
    "libnvidia-ptxjitcompiler.so",
    "libnvidia-nvvm.so",
    "libnvidia-gpucomp.so",
];
/// Where distributions keep them.
const SYSTEM: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/run/opengl-driver/lib",
    "/usr/lib/wsl/lib",
];
/// Entries of one folder that are looked at.
const ENTRIES_MAX: usize = 65_536;

/// Device nodes under `/dev`, by name, that a process with these cards needs, as far as they exist. `minors`: the cards' numbers.
#[must_use]
pub fn device_nodes(minors: &[u32]) -> Vec<String> {
    let own = minors.iter().map(|minor| format!("nvidia{minor}"));
    let names = CONTROL.iter().map(|name| (*name).to_owned()).chain(own);
    names.filter(|name| Path::new("/dev").join(name).exists()).collect()
}

/// Where the driver's own library is: `library`, or where the system keeps it.
#[must_use]
pub fn driver_library(library: Option<&Path>) -> Option<PathBuf> {
    let found = match library {
        Some(named) => named.to_owned(),
        None => {
            SYSTEM.iter().map(|folder| Path::new(folder).join("libcuda.so.1")).find(|path| path.exists())?
        }
    };
    fs::canonicalize(found).ok()
}

/// Folders of an image, besides the one that its environment names, in which its dynamic linker looks by itself: there too the
/// driver's libraries are shown, so that a program without an environment finds them, and none that the image brings.
#[must_use]
pub fn linker_folders(layers: &[PathBuf]) -> Vec<PathBuf> {
    let is_folder = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let is_absent = |path: &Path| fs::symlink_metadata(path).is_err();
    // A link on the way, in any layer, leads elsewhere than it seems.
    let parts = |folder: &str| {
        let mut parts: Vec<PathBuf> =
            Path::new(folder.trim_start_matches('/')).ancestors().map(Path::to_owned).collect();
        parts.retain(|part| !part.as_os_str().is_empty());
        parts
    };
    let is_shown = |folder: &&&str| {
        let parts = parts(folder);
        let is_plain = layers.iter().all(|layer| {
            parts.iter().all(|part| is_folder(&layer.join(part)) || is_absent(&layer.join(part)))
        });
        is_plain && layers.iter().any(|layer| is_folder(&layer.join(folder.trim_start_matches('/'))))
    };
    SYSTEM[..3].iter().filter(is_shown).map(PathBuf::from).collect()
}

/// The driver's libraries that programs in a container look for, beside `library` or where the system keeps them: a file by each
/// name that it is known by.
#[must_use]
pub fn driver_libraries(library: Option<&Path>) -> Vec<PathBuf> {
    let named = library.and_then(Path::parent).map(Path::to_owned);
    let folders = named.map_or_else(|| SYSTEM.iter().map(PathBuf::from).collect(), |folder| vec![folder]);
    let Some(folder) = folders.into_iter().find(|folder| folder.join("libcuda.so.1").exists()) else {
        return Vec::new();
    };
    named_in(&folder, &PROGRAMS)
}

fn named_in(folder: &Path, prefixes: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        prefixes.iter().any(|wanted| name.starts_with(wanted)) && path.is_file()
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().take(ENTRIES_MAX).map(|entry| entry.path()).filter(is_wanted).collect();
    found.sort();
    found
}

/// Libraries beside the driver's that this process has open, by their paths: they are to be seen under the same ones.
#[must_use]
pub fn compiler_libraries() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let driver = maps.lines().find_map(|line| {
        let path = Path::new(line.get(line.find('/')?..)?);
        let is_driver = path.file_name()?.to_str()?.starts_with("libcuda.so");
        is_driver.then(|| path.to_owned())
    });
    let Some(folder) = driver.as_deref().and_then(Path::parent) else { return Vec::new() };
    named_in(folder, &COMPILERS)
}
