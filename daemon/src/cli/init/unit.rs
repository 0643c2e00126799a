//! The systemd unit of a node (systemd.service(5), systemd.exec(5)). Touches nothing.

use std::path::Path;

use makai_config::{NodeConfig, Role};

/// Connections, segments, log and peers of a busy node.
const OPEN_FILES: u32 = 65_536;

/// The unit that runs `program` with the configuration at `config_path`.
///
/// A node without role compute is kept from everything but its own folders; one that runs jobs makes namespaces, mounts and
/// control groups, and its workers outlive it, so that it is left free.
pub fn text(program: &Path, config_path: &Path, config: &NodeConfig) -> String {
    let mut text = format!(
        "[Unit]\n\
         Description=MAKAI node\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={} daemon --config {}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         TimeoutStopSec=60\n\
         LimitNOFILE={OPEN_FILES}\n",
        word(program),
        word(config_path),
    );
    if config.has_role(Role::Compute) {
        text.push_str("Delegate=yes\nKillMode=process\n");
    } else {
        text.push_str(
            "NoNewPrivileges=yes\nProtectSystem=strict\nProtectHome=read-only\nPrivateTmp=yes\nProtectKernelTunables=yes\n\
             RestrictSUIDSGID=yes\n",
        );
        let folders = std::iter::once(&config.node.dir).chain(config.disk.iter().map(|disk| &disk.path));
        for folder in folders {
            text.push_str(&format!("ReadWritePaths={}\n", word(folder)));
        }
    }
    text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
    text
}

/// A path as one word: systemd reads `%` as a specifier and quotes as quotes.
fn word(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%").replace('\\', "\\\\").replace('"', "\\\"");
    if text.contains(char::is_whitespace) || text.contains('"') { format!("\"{text}\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_write_its_folders_and_one_that_runs_jobs_is_left_free() {
        let mut config = NodeConfig::default();
        config.node.dir = "/var/lib/makai".into();
        config.disk.push(makai_config::DiskConfig { path: "/mnt/my disk".into(), ..Default::default() });
        let stored = text(Path::new("/usr/bin/makai"), Path::new("/etc/makai/100%.toml"), &config);
        assert!(
            stored.contains("ExecStart=/usr/bin/makai daemon --config /etc/makai/100%%.toml\n"),
            "{stored}"
        );
        assert!(
            stored.contains("ReadWritePaths=/var/lib/makai\nReadWritePaths=\"/mnt/my disk\"\n"),
            "{stored}"
        );
        config.node.roles.insert(Role::Compute);
        let computes = text(Path::new("/usr/bin/makai"), Path::new("/etc/makai.toml"), &config);
        assert!(computes.contains("Delegate=yes") && !computes.contains("ProtectSystem"), "{computes}");
    }
}
