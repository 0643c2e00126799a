//! A wrong file names everything in it that must change, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use makai_config::{ClusterConfig, ConfigError, DiskConfig, Fault, NodeConfig, Role, Secret};

fn parse(text: &str) -> Result<NodeConfig, Vec<Fault>> {
    NodeConfig::parse(text, Path::new("/etc/makai"))
}

/// `(line, key)` of each fault.
fn faults_of(text: &str) -> Vec<(Option<usize>, String)> {
    let faults = parse(text).expect_err("the text has faults");
    faults.into_iter().map(|fault| (fault.line, fault.key)).collect()
}

fn message_of(text: &str) -> String {
    parse(text).expect_err("the text has faults").iter().map(|fault| format!("{fault}\n")).collect()
}

#[test]
fn only_the_directory_must_be_given() {
    let config = parse("[node]\ndir = \"/data\"").unwrap();
    let expected = DiskConfig { path: PathBuf::from("/data/disk0"), ..DiskConfig::default() };
    assert_eq!(config.disk, [expected]);
    assert_eq!(config.raft, NodeConfig::default().raft);
    assert_eq!(faults_of(""), [(None, "node.dir".to_owned())]);
}

#[test]
fn unknown_keys_wrong_types_and_wrong_values_are_reported_together_in_order_of_the_file() {
    let text = "\
[node]
dir = \"/data\"
roles = [\"storage\", \"miner\"]
colour = \"red\"

[cluster]
init = \"yes\"
voters_max = 4

[peers]
listen = \"localhost\"
idle_timeout_ms = -1

[storge]
x = 1

[raft]
heartbeat_interval_ms = 1000
";
    let expected = [
        (3, "node.roles"),
        (4, "node.colour"),
        (7, "cluster.init"),
        (8, "cluster.voters_max"),
        (11, "peers.listen"),
        (12, "peers.idle_timeout_ms"),
        (14, "storge"),
        (17, "raft.election_timeout_min_ms"), // Not given: the line of its section.
    ];
    let expected: Vec<_> = expected.iter().map(|(line, key)| (Some(*line), (*key).to_owned())).collect();
    assert_eq!(faults_of(text), expected);
}

#[test]
fn a_slip_is_recognised_and_a_stranger_gets_the_list() {
    let slip = message_of("[node]\ndir = \"/d\"\n[storage]\nsegment_byte = 1\n");
    assert_eq!(slip, "line 4: storage.segment_byte is no key; did you mean segment_bytes?\n");
    let stranger = message_of("[node]\ndir = \"/d\"\n[console]\ntax = 1\n");
    assert_eq!(stranger, "line 4: console.tax is no key; remove it, or use one of listen\n");
}

#[test]
fn every_place_that_is_not_toml_is_named() {
    let faults = parse("[node]\ndir = \n[s3]\nlisten = 'a\n").expect_err("not TOML");
    assert_eq!(faults.iter().map(|fault| fault.line).collect::<Vec<_>>(), [Some(2), Some(4)]);
}

/// Each row: what is added to a good file, the one key that is at fault, and a word that its message needs.
#[test]
fn what_one_key_asks_of_another_is_checked() {
    let rows = [
        ("[cluster]\ninit = true\njoin_token = \"t\"", "voter", "cluster.init", "join token"),
        ("[cluster]\njoin_token = \"t\"\njoin_token_file = \"f\"", "voter", "cluster.join_token", "both"),
        ("[cluster]\ninit = true", "storage", "cluster.init", "role voter"),
        ("[cluster]\nvoters_max = 9", "voter", "cluster.voters_max", "1, 3, 5 or 7"),
        ("[cluster]\nvoters_max = 0", "voter", "cluster.voters_max", "1, 3, 5 or 7"),
        ("[s3]\ntls_cert = \"c\"", "voter", "s3.tls_key", "both or neither"),
        ("[s3]\ntls_key = \"k\"", "voter", "s3.tls_cert", "both or neither"),
        ("[s3]\nlisten = \"\"", "gateway", "s3.listen", "door"),
        ("[s3]\nlisten = \"0.0.0.0:9002\"", "gateway", "console.listen", "s3.listen"),
        ("[console]\nlisten = \"127.0.0.1:9000\"", "voter", "console.listen", "s3.listen"),
        ("[grpc]\nlisten = \"127.0.0.1:9000\"", "gateway", "grpc.listen", "s3.listen"),
        ("[grpc]\nconnections_max = 0", "gateway", "grpc.connections_max", "1000000"),
        ("[s3]\ndomains = [\"http://x\"]", "gateway", "s3.domains", "lower case"),
        ("[s3]\nregion = \"\"", "gateway", "s3.region", "us-east-1"),
        ("[[disk]]\npath = \"/d\"", "voter", "disk", "storage"),
        (
            "[[disk]]\npath = \"/d\"\n[[disk]]\npath = \"/d/\"",
            "storage",
            "disk[1].path",
            "one directory each",
        ),
        (
            "[[disk]]\npath = \"/d\"\n[[disk]]\npath = \"/d/e\"",
            "storage",
            "disk[1].path",
            "one directory each",
        ),
        ("[[disk]]\npath = \"/data\"", "storage", "disk[0].path", "node.dir"),
        ("[[disk]]\nreserve_bytes = 0", "storage", "disk[0].path", "not given"),
        (
            "[[disk]]\npath = \"/d\"\ncapacity_bytes_max = 5",
            "storage",
            "disk[0].capacity_bytes_max",
            "segment",
        ),
        ("[raft]\nelection_timeout_max_ms = 300", "voter", "raft.election_timeout_max_ms", "more than"),
        ("[raft]\nelection_timeout_min_ms = 299", "voter", "raft.election_timeout_min_ms", "3 times"),
        ("[raft]\ndeadline_ms = 1999", "voter", "raft.deadline_ms", "one attempt"),
        ("[limits]\nuploads_in_flight_max = 1025", "gateway", "limits.uploads_in_flight_max", "at most"),
        ("[storage]\nscrub_period_secs = 1", "voter", "storage.scrub_period_secs", "10"),
    ];
    for (text, role, key, word) in rows {
        let file = format!(
            "[node]\ndir = \"/data\"\nroles = [\"{role}\"]\n[peers]\nadvertise = [\"n.example:7400\"]\n{text}\n"
        );
        let faults = parse(&file).expect_err(text);
        let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, [key], "{text}");
        assert!(faults[0].message.contains(word), "{text}: {}", faults[0]);
    }
}

#[test]
fn a_voter_must_be_reachable_and_a_miner_need_not() {
    let node = |role: &str| format!("[node]\ndir = \"/data\"\nroles = [\"{role}\"]\n");
    assert_eq!(faults_of(&node("voter")), [(None, "peers.advertise".to_owned())]);
    assert!(parse(&node("storage")).unwrap().peers.advertise.is_empty());
    let listens = format!("{}[peers]\nlisten = \"10.0.0.7:7400\"\n", node("voter"));
    assert_eq!(parse(&listens).unwrap().peers.advertise, ["10.0.0.7:7400"]);
    for wrong in ["n.example", "n.example:0", ":7400", "0.0.0.0:7400", "a b:1", "http://n:1", "n:65536"] {
        let text = format!("{}[peers]\nadvertise = [\"{wrong}\"]\n", node("voter"));
        assert_eq!(faults_of(&text), [(Some(5), "peers.advertise".to_owned())], "{wrong}");
    }
}

#[test]
fn ports_that_can_be_bound_together_are_no_clash() {
    let text = "[node]\ndir = \"/d\"\n[s3]\nlisten = \"127.0.0.1:0\"\n[console]\nlisten = \"127.0.0.1:0\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.s3.listen, Some(SocketAddr::from(([127, 0, 0, 1], 0))));
    assert_eq!(parse("[node]\ndir = \"/d\"\n[s3]\nlisten = \"\"\n").unwrap().s3.listen, None);
}

#[test]
fn relative_paths_start_at_the_files_folder() {
    let text =
        "[node]\ndir = \"data\"\n[cluster]\njoin_token_file = \"./token\"\n[[disk]]\npath = \"../d\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.node.dir, Path::new("/etc/makai/data"));
    assert_eq!(config.cluster.join_token_file.as_deref(), Some(Path::new("/etc/makai/token")));
    assert_eq!(config.disk[0].path, Path::new("/etc/makai/../d"));
}

/// What is written is read back as the same, secrets, lists and closed doors included.
#[test]
fn to_toml_and_parse_are_inverse() {
    let mut config = parse("[node]\ndir = \"/data\"\n").unwrap();
    config.node.roles = BTreeSet::from([Role::Voter, Role::Storage, Role::Gateway, Role::Compute]);
    config.node.name = "a \"quoted\"\\ name".to_owned();
    config.cluster =
        ClusterConfig { join_token: Some(Secret::new("s3cr3t")), voters_max: 3, ..ClusterConfig::default() };
    config.peers.advertise = vec!["a.example:1".to_owned(), "[::1]:7400".to_owned()];
    config.console.listen = None;
    config.s3.domains = vec!["s3.example.org".to_owned()];
    config.disk.push(DiskConfig {
        path: PathBuf::from("/mnt/x"),
        reserve_bytes: 0,
        capacity_bytes_max: 1 << 40,
        speed_bytes_per_sec: 123,
    });
    let text = config.to_toml().unwrap();
    assert_eq!(parse(&text).unwrap_or_else(|faults| panic!("{faults:?}\n{text}")), config);
}

#[test]
fn a_secret_is_never_printed() {
    let config = parse("[node]\ndir = \"/data\"\n[cluster]\njoin_token = \"s3cr3t\"\n").unwrap();
    assert_eq!(config.cluster.join_token.as_ref().map(Secret::expose), Some("s3cr3t"));
    assert!(!format!("{config:?}").contains("s3cr3t"));
}

#[test]
fn load_says_which_file_and_all_its_faults() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("node.toml");
    fs::write(&path, "[node]\nlog = \"\"\n[storage]\nscrub_period_secs = 1\n").unwrap();
    let error = NodeConfig::load(&path).unwrap_err();
    assert!(matches!(&error, ConfigError::Faults { faults, .. } if faults.len() == 3), "{error}");
    let text = error.to_string();
    for word in ["node.toml", "node.dir", "line 2: node.log", "line 4: storage.scrub_period_secs"] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
    let absent = NodeConfig::load(&folder.join("absent.toml")).unwrap_err();
    assert!(matches!(absent, ConfigError::Read { .. }) && absent.to_string().contains("absent.toml"));
    fs::write(&path, vec![b'#'; 1024 * 1024 + 1]).unwrap();
    assert!(matches!(NodeConfig::load(&path), Err(ConfigError::Faults { .. })));
}

#[test]
fn the_token_is_read_from_the_key_or_the_file_and_an_empty_file_is_said() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("token");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("token");
    let config = |cluster: &str| {
        NodeConfig::parse(&format!("[node]\ndir = \"/data\"\n[cluster]\n{cluster}\n"), &folder).unwrap()
    };
    let read = |cluster: &str| config(cluster).read_join_token();
    assert_eq!(read("").unwrap(), None);
    assert_eq!(read("join_token = \" abc \"").unwrap(), Some(Secret::new("abc")));
    fs::write(&file, "abc\n").unwrap();
    assert_eq!(read("join_token_file = \"token\"").unwrap(), Some(Secret::new("abc")));
    for wrong in [String::new(), " \n".to_owned(), "x".repeat(5000)] {
        fs::write(&file, wrong).unwrap();
        assert!(matches!(read("join_token_file = \"token\""), Err(ConfigError::Token { .. })));
    }
    assert!(read("join_token_file = \"absent\"").unwrap_err().to_string().contains("join_token_file"));
}

/// Whatever an editor or a disk does to a file, it is refused or read; and what is read can be written and read
/// again.
#[test]
fn no_damage_to_a_file_panics() {
    let whole = include_str!("../examples/single-node.toml");
    let given: String =
        whole.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let check = |text: &str| {
        if let Ok(config) = parse(text) {
            assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config, "{text}");
        }
    };
    for (at, byte) in given.bytes().enumerate().step_by(3) {
        check(&given[..at]);
        check(&format!("{}{}", &given[..at], &given[at + 1..]));
        for put in ["\"", "[", "=", "9", "-", "\n", "\u{0}"] {
            check(&format!("{}{put}{}", &given[..at], &given[at + usize::from(byte.is_ascii_digit())..]));
        }
    }
}
