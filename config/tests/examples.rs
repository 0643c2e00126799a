//! The examples are the manual: every key stands in them, explained, and each of them works.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use makai_config::{NodeConfig, Role};

fn examples() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut examples: Vec<_> =
        entries.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path)).collect();
    examples.sort();
    examples
}

#[test]
fn each_example_loads_as_what_its_name_says() {
    let roles_of = |name: &str| match name {
        "single-node" => vec![Role::Voter, Role::Storage, Role::Gateway],
        "voter" => vec![Role::Voter],
        "miner" => vec![Role::Storage],
        "gateway" => vec![Role::Gateway],
        other => panic!("{other}.toml is not in this test"),
    };
    let examples = examples();
    assert_eq!(examples.len(), 4);
    for (name, path) in examples {
        let config = NodeConfig::load(&path).unwrap_or_else(|error| panic!("{error}"));
        assert!(config.node.roles.iter().copied().eq(roles_of(&name)), "{name}: {:?}", config.node.roles);
        assert_eq!(config.cluster.init, name == "single-node");
        assert_eq!(config.disk.is_empty(), !config.has_role(Role::Storage), "{name}");
    }
}

/// The keys a file gives, and those of them that a comment explains: one above it, or above a run of keys.
fn keys_of(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut given, mut explained) = (BTreeSet::new(), BTreeSet::new());
    let (mut section, mut is_commented) = (String::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
            is_commented = false;
        } else if line.starts_with('#') {
            is_commented = true;
        } else if let Some((key, _)) = line.split_once('=') {
            let key = format!("{section}.{}", key.trim());
            if is_commented {
                explained.insert(key.clone());
            }
            given.insert(key);
        } else {
            is_commented = false;
        }
    }
    (given, explained)
}

#[test]
fn every_key_is_given_and_explained_in_single_node_and_every_given_key_is_explained() {
    let known: BTreeSet<String> = NodeConfig::keys().into_iter().collect();
    assert!(known.len() > 40, "{known:?}");
    for (name, path) in examples() {
        let (given, explained) = keys_of(&fs::read_to_string(path).unwrap());
        assert_eq!(given, explained, "{name}.toml gives keys without a comment");
        if name == "single-node" {
            assert_eq!(given, known, "{name}.toml and the schema name different keys");
        }
    }
}

/// What the comments of single-node.toml call defaults are the defaults.
#[test]
fn single_node_has_the_defaults_but_for_what_it_says() {
    let (_, path) = examples().into_iter().find(|(name, _)| name == "single-node").unwrap();
    let mut config = NodeConfig::load(&path).unwrap();
    let default = NodeConfig::default();
    config.node = default.node.clone();
    config.cluster.init = default.cluster.init;
    config.peers.listen = default.peers.listen;
    config.peers.advertise = default.peers.advertise.clone();
    config.disk = default.disk.clone();
    assert_eq!(config, default);
}
