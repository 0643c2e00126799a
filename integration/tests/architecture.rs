//! The layout is the architecture: what may use what, and what may stand where.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A crate uses only crates of lower floors. Those of one floor do not know each other.
const FLOORS: [&[&str]; 7] = [
    &["makai-config"],
    &["makai-erasure"],
    &["makai-raft"],
    &["makai-ops"],
    &["makai-gateway", "makai-gpu-runtime"],
    &["makai"],
    &["makai-integration"],
];

/// Where the compiler's proof may be replaced by a person's.
const MAY_HOLD_UNSAFE: [&str; 10] = [
    "erasure/src/codec",                         // SIMD kernels
    "gpu-runtime/src/container/worker/sys.rs",   // system calls that no safe crate has
    "gpu-runtime/src/module/ptx/native/call.rs", // entering kernels compiled for this processor
    "gpu-runtime/src/card/cuda.rs",              // calls of the GPU driver's library
    "gpu-runtime/src/card/shadow.rs",            // the same library, tried with another in front of it
    "gpu-runtime/shadow", // that other: it stands between C and C, without the standard library
    "gpu-runtime/tests/fakes/driver.rs", // the other side of those calls
    "gpu-runtime/tests/fakes/wide.rs", // likewise, for programs of their own
    "gpu-runtime/src/container/attempt.rs", // a descriptor of a process, waited for
    "gpu-runtime/tests/container/ends.rs", // the same calls, from inside a container
];

/// The only place that knows which library carries packets.
const TRANSPORT: &str = "daemon/src/transport";

/// What the state machine is made of: the same bytes on every machine, so no floats.
const REPLICATED: [&str; 2] = ["raft/src/facts", "raft/src/machine"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("integration lies in the workspace").to_owned()
}

/// Each crate of the workspace: the folder it lies in, and the names of all it uses, for tests too.
fn crates() -> BTreeMap<String, (PathBuf, Vec<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let packages = metadata["packages"].as_array().expect("packages").iter();
    packages
        .map(|package| {
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            let uses = package["dependencies"].as_array().expect("dependencies").iter();
            let uses = uses.map(|used| text(&used["name"])).collect();
            (text(&package["name"]), (manifest.parent().expect("a folder").to_owned(), uses))
        })
        .collect()
}

/// Every Rust file of the workspace, as a path from its root.
fn sources() -> Vec<String> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = crates().into_values().map(|(folder, _)| folder).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the workspace") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(root()).expect("inside the workspace");
                files.push(inside.to_str().expect("a UTF-8 path").to_owned());
            }
        }
    }
    files.sort();
    files
}

/// Places where `word` stands alone in the code, comments not counted: `file:line`.
fn places_of(word: &str, file: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(file)).expect(file);
    let is_part_of_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let stands_in = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices(word).any(|(at, _)| {
            !is_part_of_name(code[..at].chars().next_back())
                && !is_part_of_name(code[at + word.len()..].chars().next())
        })
    };
    let lines = text.lines().enumerate().filter(|(_, line)| stands_in(line));
    lines.map(|(index, _)| format!("{file}:{}", index + 1)).collect()
}

#[test]
fn dependencies_point_down() {
    let floor = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    let crates = crates();
    for (user, (_, uses)) in &crates {
        let user_floor = floor(user).unwrap_or_else(|| panic!("{user} stands on no floor: give it one"));
        for used in uses.iter().filter(|used| crates.contains_key(*used)) {
            assert!(floor(used) < Some(user_floor), "{user} may not use {used}: dependencies point down");
        }
    }
    let named = FLOORS.iter().copied().flatten().count();
    assert_eq!(named, crates.len(), "a floor names a crate that is not in the workspace");
}

#[test]
fn only_the_transport_knows_quinn() {
    let word = ["qui", "nn"].concat();
    for (user, (_, uses)) in crates() {
        assert!(user == "makai" || !uses.iter().any(|used| used.starts_with(&word)), "{user} uses {word}");
    }
    let outside = sources().into_iter().filter(|file| !file.starts_with(TRANSPORT));
    let places: Vec<_> = outside.flat_map(|file| places_of(&word, &file)).collect();
    assert!(places.is_empty(), "only {TRANSPORT} may name {word}: {places:?}");
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let word = ["un", "safe"].concat();
    let outside =
        sources().into_iter().filter(|file| !MAY_HOLD_UNSAFE.iter().any(|place| file.starts_with(place)));
    let places: Vec<_> = outside.flat_map(|file| places_of(&word, &file)).collect();
    assert!(places.is_empty(), "move it to one of {MAY_HOLD_UNSAFE:?} or do without: {places:?}");
}

#[test]
fn what_is_replicated_holds_no_floats() {
    // A test may roll dice.
    let inside =
        |file: &String| REPLICATED.iter().any(|place| file.starts_with(place)) && !file.contains("tests");
    let files: Vec<_> = sources().into_iter().filter(inside).collect();
    assert!(!files.is_empty(), "{REPLICATED:?} have moved");
    for float in ["f32", "f64"] {
        let places: Vec<_> = files.iter().flat_map(|file| places_of(float, file)).collect();
        assert!(places.is_empty(), "two machines may round differently: {places:?}");
    }
}

/// An id lives with the crate that gives it out; a helper with its user.
#[test]
fn no_folder_is_a_drawer() {
    for file in sources() {
        for folder in Path::new(&file).ancestors().skip(1).filter_map(Path::file_name) {
            let name = folder.to_str().expect("a UTF-8 path");
            assert!(!["common", "util", "utils", "types", "misc", "helpers"].contains(&name), "{file}");
        }
    }
}

#[test]
fn every_crate_has_a_front_page() {
    for (name, (folder, _)) in crates() {
        let files = ["src/lib.rs", "src/main.rs"].map(|file| folder.join(file));
        let front = files.iter().find(|file| file.exists()).unwrap_or_else(|| panic!("{name} has no source"));
        let text = fs::read_to_string(front).expect("readable");
        assert!(text.starts_with("//! "), "{front:?} starts with no `//!` page: say what the crate is");
    }
}
