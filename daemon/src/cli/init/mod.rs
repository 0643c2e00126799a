//! `makai init`: makes this machine a node: asks what it is to be, measures its disks, and writes the configuration and a
//! systemd unit.
//!
//! ```text
//! arguments ─┐
//! the machine ├─ questions, where a person is there ─> wishes ─ plan ─> configuration ─> files ─> what to do next
//! defaults  ─┘
//! ```
//!
//! Always: what is there is never replaced unless `--force` is given, and then only the configuration and the unit: keys,
//! shards and facts are not touched. What is written loads. Without a terminal, or with `--yes`, nothing is asked.

mod disks;
mod plan;
mod unit;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use makai_config::{DiskConfig, NodeConfig, Role};
use serde::Serialize;

use self::disks::Measured;
use self::plan::{Disk, Start, Wishes};
use super::{human_bytes, print_json};
use crate::accounts::keys;
use crate::files;
use crate::ticket::Ticket;

/// Of `peers.listen` by default.
const PEER_PORT: u16 = 7400;
const PAYOUT_KEY: &str = "payout.key";
/// A wrong answer is asked for again so often.
const TRIES: usize = 3;

/// Make this machine a node: writes its configuration and a systemd unit
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the configuration goes; /etc/makai/makai.toml for root, else ~/.config/makai/makai.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the node keeps its key and facts; /var/lib/makai for root, else ~/.local/share/makai
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Found a new cluster here, instead of joining one
    #[arg(long, conflicts_with = "join_token")]
    found: bool,
    /// Token of the cluster to join (`makai node join-token` on one of its voters), or a file that holds it
    #[arg(long, value_name = "TOKEN|FILE")]
    join_token: Option<String>,
    /// What the node is to be: voter, storage, gateway, compute
    #[arg(long, value_delimiter = ',', value_name = "ROLES")]
    roles: Vec<String>,
    /// A directory to offer, with the most to keep there: PATH or PATH=SIZE, as in /mnt/disk1/makai=500GB. Once for each
    #[arg(long = "disk", value_name = "PATH[=SIZE]")]
    disks: Vec<String>,
    /// What people call the machine; its host name
    #[arg(long)]
    name: Option<String>,
    /// Whose it is: data is spread over owners
    #[arg(long)]
    owner: Option<String>,
    /// What it shares power and network with: data is spread over sites
    #[arg(long)]
    site: Option<String>,
    /// How others reach this node over UDP, HOST:PORT; without, it only dials out, as behind a home router. A voter: its
    /// host name
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// Hex file of the key (secp256k1) of the address that is paid; made here if not given
    #[arg(long, value_name = "FILE")]
    payout_key: Option<PathBuf>,
    /// Where the systemd unit goes; /etc/systemd/system/makai.service for root. `none` for none
    #[arg(long, value_name = "FILE")]
    unit: Option<PathBuf>,
    /// Do not measure disks
    #[arg(long)]
    no_speed_test: bool,
    /// Ask nothing
    #[arg(long, short)]
    yes: bool,
    /// Replace the configuration and the unit that are there
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Done {
    config: PathBuf,
    unit: Option<PathBuf>,
    roles: Vec<Role>,
    disks: Vec<DiskDone>,
    gpus: Vec<String>,
    payout_address: String,
    next: Vec<String>,
}

#[derive(Debug, Serialize)]
struct DiskDone {
    path: PathBuf,
    free_bytes: u64,
    capacity_bytes_max: u64,
    speed: Option<Measured>,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    tokio::task::spawn_blocking(move || set_up(&args)).await?
}

fn set_up(args: &Args) -> anyhow::Result<ExitCode> {
    let place = Place::of(args)?;
    place.check_free(args.force)?;
    let mut asker = Asker { is_there: !args.yes && !args.json && std::io::stdin().is_terminal() };
    let wishes = wishes(args, &place, &mut asker)?;
    let folder = place.config.parent().context("the configuration needs a folder")?.to_owned();
    let mut config = plan::config(&wishes, &folder)?;

    let mut disks = Vec::new();
    for disk in &mut config.disk {
        std::fs::create_dir_all(&disk.path).with_context(|| format!("make {:?}", disk.path))?;
        let speed = if args.no_speed_test {
            None
        } else {
            if !args.json {
                eprintln!("measuring {}", disk.path.display());
            }
            Some(disks::measure(&disk.path).with_context(|| format!("measure {:?}", disk.path))?)
        };
        disk.speed_bytes_per_sec = speed.as_ref().map_or(0, |speed| speed.write_bytes_per_sec);
        disks.push(DiskDone {
            path: disk.path.clone(),
            free_bytes: disks::free_bytes(&disk.path)?,
            capacity_bytes_max: disk.capacity_bytes_max,
            speed,
        });
    }
    std::fs::create_dir_all(&config.node.dir).with_context(|| format!("make {:?}", config.node.dir))?;
    let payout_address = payout(args.payout_key.as_deref(), &config.node.dir)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("make {folder:?}"))?;
    files::replace(&place.config, config.to_toml()?.as_bytes())
        .with_context(|| format!("write {:?}", place.config))?;
    if let Some(path) = &place.unit {
        let program = std::env::current_exe()?;
        let text = unit::text(&program, &place.config, &config);
        std::fs::write(path, text).with_context(|| format!("write {path:?}; or give --unit none"))?;
    }
    let done = Done {
        next: next_steps(&place, &config),
        roles: config.node.roles.iter().copied().collect(),
        config: place.config,
        unit: place.unit,
        disks,
        gpus: disks::gpus(Path::new("/proc/driver/nvidia/gpus")),
        payout_address,
    };
    if args.json {
        print_json(&done)?
    } else {
        print(&done)
    }
    Ok(ExitCode::SUCCESS)
}

/// Where things go.
struct Place {
    config: PathBuf,
    dir: PathBuf,
    unit: Option<PathBuf>,
}

impl Place {
    fn of(args: &Args) -> anyhow::Result<Self> {
        let is_root = rustix::process::geteuid().is_root();
        let home = || {
            std::env::var_os("HOME").map(PathBuf::from).context("HOME is not set: give --config and --dir")
        };
        let config = match &args.config {
            Some(path) => std::path::absolute(path)?,
            None if is_root => "/etc/makai/makai.toml".into(),
            None => home()?.join(".config/makai/makai.toml"),
        };
        let dir = match &args.dir {
            Some(path) => std::path::absolute(path)?,
            None if is_root => "/var/lib/makai".into(),
            None => home()?.join(".local/share/makai"),
        };
        let systemd = Path::new("/etc/systemd/system");
        let unit = match &args.unit {
            Some(path) if path == Path::new("none") => None,
            Some(path) => Some(std::path::absolute(path)?),
            None => (is_root && systemd.is_dir()).then(|| systemd.join("makai.service")),
        };
        Ok(Self { config, dir, unit })
    }

    fn check_free(&self, is_forced: bool) -> anyhow::Result<()> {
        if is_forced {
            return Ok(());
        }
        for path in std::iter::once(&self.config).chain(&self.unit) {
            ensure!(!path.exists(), "{path:?} is there already; edit it, or give --force to replace it");
        }
        Ok(())
    }
}

fn wishes(args: &Args, place: &Place, asker: &mut Asker) -> anyhow::Result<Wishes> {
    let start = start(args, asker)?;
    let default_roles = match &start {
        Start::Found => "voter,storage,gateway,compute",
        Start::Join(_) => "storage,compute",
    };
    let roles = match args.roles.as_slice() {
        [] => asker.ask("Roles (voter, storage, gateway, compute)", default_roles, plan::roles)?,
        given => plan::roles(&given.join(",")).map_err(anyhow::Error::msg)?,
    };
    let disks = if !args.disks.is_empty() {
        args.disks
            .iter()
            .map(|text| plan::disk(text))
            .collect::<Result<_, _>>()
            .map_err(anyhow::Error::msg)?
    } else if roles.contains(&Role::Storage) {
        ask_disks(place, asker)?
    } else {
        Vec::new()
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => asker.ask("Name of this machine", &plan::host_name(), |text| Ok(text.to_owned()))?,
    };
    let advertise =
        if args.advertise.is_empty() && roles.contains(&Role::Voter) {
            let default = format!("{}:{PEER_PORT}", plan::host_name());
            vec![asker.ask("How others reach this node over UDP, HOST:PORT", &default, |text| {
                Ok(text.to_owned())
            })?]
        } else {
            args.advertise.clone()
        };
    let label = |given: &Option<String>, question: &str, asker: &mut Asker| match given {
        Some(label) => Ok(label.clone()),
        None => asker.ask(question, "", |text| Ok(text.to_owned())),
    };
    Ok(Wishes {
        dir: place.dir.clone(),
        start,
        disks,
        name,
        owner: label(
            &args.owner,
            "Owner, alike on all machines of one owner (empty: this machine alone)",
            asker,
        )?,
        site: label(
            &args.site,
            "Site, alike on all machines that share power or network (empty: this one alone)",
            asker,
        )?,
        advertise,
        roles,
    })
}

fn start(args: &Args, asker: &mut Asker) -> anyhow::Result<Start> {
    if args.found {
        return Ok(Start::Found);
    }
    if let Some(given) = &args.join_token {
        return token(given).map(Start::Join).map_err(anyhow::Error::msg);
    }
    if !asker.is_there {
        bail!("give --join-token TOKEN to join a cluster, or --found to found one");
    }
    asker.ask("Join token, or `found` for a new cluster", "", |text| match text {
        "found" => Ok(Start::Found),
        text => token(text).map(Start::Join),
    })
}

/// The token itself, or the one in the file of this name.
fn token(given: &str) -> Result<String, String> {
    let path = Path::new(given);
    let text = if path.is_file() {
        std::fs::read_to_string(path).map_err(|error| format!("{path:?}: {error}"))?
    } else {
        given.to_owned()
    };
    Ticket::parse(&text).map_err(|error| error.to_string())?;
    Ok(text.trim().to_owned())
}

fn ask_disks(place: &Place, asker: &mut Asker) -> anyhow::Result<Vec<Disk>> {
    let found = disks::found(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default());
    if asker.is_there {
        eprintln!("Filesystems of this machine:");
        for mount in &found {
            let free = disks::free_bytes(mount).unwrap_or(0);
            eprintln!("  {:<30} {:>12} free", mount.display(), human_bytes(free));
        }
    }
    let default = place.dir.join(makai_config::DEFAULT_DISK_DIR).display().to_string();
    asker.ask("Directories to offer, PATH or PATH=SIZE, separated by commas", &default, |text| {
        text.split(',').map(|part| plan::disk(part.trim())).collect()
    })
}

/// The address that this node's earnings go to; its key is in the node's folder.
fn payout(given: Option<&Path>, dir: &Path) -> anyhow::Result<String> {
    let kept = dir.join(PAYOUT_KEY);
    if let Some(given) = given {
        ensure!(
            !kept.exists(),
            "{kept:?} is there already: a node's address is changed on the cluster, not by a file"
        );
        let text = std::fs::read(given).with_context(|| format!("read {given:?}"))?;
        files::replace(&kept, &text).with_context(|| format!("write {kept:?}"))?;
    }
    match keys::load_or_create(dir, PAYOUT_KEY) {
        Ok(key) => Ok(key.address().to_string()),
        Err(error) if given.is_some() => {
            std::fs::remove_file(&kept).with_context(|| format!("remove {kept:?}"))?;
            Err(anyhow::Error::new(error).context("--payout-key"))
        }
        Err(error) => Err(error.into()),
    }
}

fn next_steps(place: &Place, config: &NodeConfig) -> Vec<String> {
    let program = std::env::current_exe().map_or_else(|_| "makai".into(), |path| path.display().to_string());
    let mut steps = vec![format!("{program} doctor --config {}", place.config.display())];
    match &place.unit {
        Some(path) => {
            let name = path.file_stem().map_or_else(|| "makai".into(), |name| name.to_string_lossy());
            steps.push(format!("systemctl daemon-reload && systemctl enable --now {name}"));
        }
        None => steps.push(format!("{program} daemon --config {}", place.config.display())),
    }
    if config.cluster.init {
        let config = place.config.display();
        steps.push(format!("{program} node join-token --roles storage,compute --config {config}"));
    }
    steps
}

fn print(done: &Done) {
    let roles: Vec<&str> = done.roles.iter().map(|role| role.as_str()).collect();
    println!("roles      {}", roles.join(", "));
    for disk in &done.disks {
        // What is left free by the configuration that is written is not offered.
        let room = disk.free_bytes.saturating_sub(DiskConfig::default().reserve_bytes);
        let most = match disk.capacity_bytes_max {
            0 => human_bytes(room),
            most => human_bytes(most.min(room)),
        };
        print!("disk       {}: at most {most}", disk.path.display());
        match &disk.speed {
            Some(speed) => println!(
                ", writes {}/s, an fsync takes {:.1} ms",
                human_bytes(speed.write_bytes_per_sec),
                speed.fsync_us as f64 / 1e3
            ),
            None => println!(),
        }
    }
    for gpu in &done.gpus {
        println!("gpu        {gpu}");
    }
    println!("paid to    {} (key: payout.key in node.dir; keep a copy)", done.payout_address);
    println!("wrote      {}", done.config.display());
    if let Some(path) = &done.unit {
        println!("wrote      {}", path.display());
    }
    println!();
    println!("Next:");
    for step in &done.next {
        println!("  {step}");
    }
}

/// The person at the terminal, if one is there.
struct Asker {
    is_there: bool,
}

impl Asker {
    /// The answer, or `default` where nothing is said or nobody is there.
    fn ask<T>(
        &mut self,
        question: &str,
        default: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        if !self.is_there {
            return read(default).map_err(anyhow::Error::msg);
        }
        for _ in 0..TRIES {
            match default {
                "" => eprint!("{question}: "),
                default => eprint!("{question} [{default}]: "),
            }
            std::io::stderr().flush()?;
            let mut line = String::new();
            ensure!(std::io::stdin().read_line(&mut line)? > 0, "no answer; give it as an argument (--help)");
            let said = match line.trim() {
                "" => default,
                said => said,
            };
            match read(said) {
                Ok(answer) => return Ok(answer),
                Err(why) => eprintln!("{why}"),
            }
        }
        bail!("no answer that can be used; give it as an argument (--help)")
    }
}
