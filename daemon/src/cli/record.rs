//! `makai record`: what is said of a data set or a model, signed by who made it, and checked by who downloads it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use makai_erasure::NodeId;
use makai_ops::contributions::quality::{Counts, scores};
use makai_ops::contributions::record::{Artefact, FORMAT, RECORD_BYTES_MAX, Record, Statement};
use makai_raft::facts::accounts::Hash;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::print_json;
use crate::{clock, files};

/// What is said of data sets and models, signed
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sign what is said of a model's file
    Model {
        #[command(flatten)]
        common: Common,
        /// Hash of the model that it was made from
        #[arg(long)]
        parent: Option<Hash>,
        /// Hash of a data set that it was trained with; repeat it
        #[arg(long, value_name = "HASH")]
        data: Vec<Hash>,
        /// The job that trained it
        #[arg(long, value_name = "ID")]
        job: Option<u64>,
    },
    /// Sign what is said of a data set's file, with scores that follow from what was counted in it
    Data {
        #[command(flatten)]
        common: Common,
        /// JSON of what was counted: required_cells, filled_cells, compared, matching, constraints, violated, age_secs,
        /// half_life_secs, duplicate_ppm
        #[arg(long, value_name = "FILE")]
        counts: PathBuf,
    },
    /// Check a record, and the file that it was signed for
    Verify {
        file: PathBuf,
        /// FILE.makai.json unless given
        #[arg(long)]
        record: Option<PathBuf>,
        /// The maker's key, as its owner publishes it; without: whoever the record names
        #[arg(long)]
        maker: Option<NodeId>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    file: PathBuf,
    /// What it is called; the file's name unless given
    #[arg(long)]
    name: Option<String>,
    /// An SPDX expression, such as CC-BY-4.0
    #[arg(long)]
    licence: String,
    /// 64 hex digits; made where there is none. Who has it signs as its maker
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Where the record goes; FILE.makai.json unless given
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".makai.json");
    name.into()
}

/// BLAKE3 and length of a file of any size.
fn hash(path: &Path) -> anyhow::Result<(Hash, u64)> {
    let mut file = File::open(path).with_context(|| format!("read {path:?}"))?;
    let (mut hasher, mut piece, mut size) = (blake3::Hasher::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut piece).with_context(|| format!("read {path:?}"))? {
            0 => return Ok((Hash(*hasher.finalize().as_bytes()), size)),
            read => {
                hasher.update(&piece[..read]);
                size += read as u64;
            }
        }
    }
}

fn key(path: &Path) -> anyhow::Result<Ed25519KeyPair> {
    let seed = match std::fs::read_to_string(path) {
        Ok(text) => {
            hex::decode(text.trim()).with_context(|| format!("{path:?} holds no key: 64 hex digits"))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut seed = [0; 32];
            SystemRandom::new().fill(&mut seed).map_err(|_| anyhow::anyhow!("no random bytes for a key"))?;
            files::replace(path, hex::encode(seed).as_bytes()).with_context(|| format!("write {path:?}"))?;
            seed.to_vec()
        }
        Err(error) => return Err(error).with_context(|| format!("read {path:?}")),
    };
    Ed25519KeyPair::from_seed_unchecked(&seed)
        .map_err(|_| anyhow::anyhow!("{path:?} holds no key: 64 hex digits"))
}

fn sign(common: &Common, artefact: Artefact) -> anyhow::Result<()> {
    let key = key(&common.key_file)?;
    let maker = NodeId(key.public_key().as_ref().try_into().context("a key of 32 bytes")?);
    let (blake3, size_bytes) = hash(&common.file)?;
    let own = common.file.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let name = common.name.clone().or(own).context("give it a --name")?;
    let (licence, made_at_ms) = (common.licence.clone(), clock::now().0);
    let statement =
        Statement { format: FORMAT, name, licence, blake3, size_bytes, made_at_ms, artefact, maker };
    let record = Record::sign(statement, &key)?;
    let out = common.out.clone().unwrap_or_else(|| beside(&common.file));
    files::replace(&out, &serde_json::to_vec_pretty(&record)?).with_context(|| format!("write {out:?}"))?;
    if common.json {
        print_json(&record)?;
    } else {
        println!("{} signed by {maker}", out.display());
        if let Artefact::Dataset { scores, .. } = &record.statement.artefact {
            println!("quality {} of 1000000", scores.quality_ppm);
        }
    }
    Ok(())
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        Command::Model { common, parent, data, job } => {
            sign(&common, Artefact::Model { parent, data, training_job: job })?;
        }
        Command::Data { common, counts } => {
            let text = std::fs::read(&counts).with_context(|| format!("read {counts:?}"))?;
            let mut counted: CountsFile = serde_json::from_slice(&text)
                .with_context(|| format!("{counts:?} does not say what was counted"))?;
            counted.0.size_bytes = hash(&common.file)?.1;
            sign(&common, Artefact::Dataset { counts: counted.0, scores: scores(&counted.0) })?;
        }
        Command::Verify { file, record, maker, json } => {
            let path = record.unwrap_or_else(|| beside(&file));
            let size = std::fs::metadata(&path).with_context(|| format!("read {path:?}"))?.len();
            if size > RECORD_BYTES_MAX as u64 {
                bail!("{path:?} has {size} bytes; a record has at most {RECORD_BYTES_MAX}");
            }
            let record = Record::parse(&std::fs::read(&path).with_context(|| format!("read {path:?}"))?)
                .with_context(|| format!("{path:?}"))?;
            let made_by = record.statement.maker;
            if maker.is_some_and(|maker| maker != made_by) {
                bail!("{path:?} is signed by {made_by}, not by the maker that you named");
            }
            let (found, size_bytes) = hash(&file)?;
            record.check_file(found, size_bytes).with_context(|| format!("{file:?}"))?;
            if json {
                print_json(&record)?;
            } else {
                println!("{:?} is what {made_by} signed: {}", file, record.statement.licence);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a person writes: the file's length is measured.
#[derive(Debug, serde::Deserialize)]
#[serde(from = "Written")]
struct CountsFile(Counts);

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    required_cells: u64,
    filled_cells: u64,
    compared: u64,
    matching: u64,
    constraints: u64,
    violated: u64,
    age_secs: u64,
    half_life_secs: u64,
    duplicate_ppm: u64,
}

impl From<Written> for CountsFile {
    fn from(written: Written) -> Self {
        let Written { required_cells, filled_cells, compared, matching, constraints, violated, .. } = written;
        let Written { age_secs, half_life_secs, duplicate_ppm, .. } = written;
        Self(Counts {
            required_cells,
            filled_cells,
            compared,
            matching,
            constraints,
            violated,
            age_secs,
            half_life_secs,
            size_bytes: 0,
            duplicate_ppm,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(dir: &Path, file: &Path) -> Common {
        Common {
            file: file.to_owned(),
            name: None,
            licence: "MIT".into(),
            key_file: dir.join("maker.key"),
            out: None,
            json: true,
        }
    }

    async fn verify(file: &Path, record: Option<PathBuf>, maker: Option<NodeId>) -> anyhow::Result<()> {
        let what = Command::Verify { file: file.to_owned(), record, maker, json: true };
        run(Args { what }).await.map(drop)
    }

    /// What was signed is accepted; a changed file, a changed record, another maker are not.
    #[tokio::test]
    async fn a_model_is_verified_on_download() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.bin");
        std::fs::write(&file, b"weights").unwrap();
        sign(&common(dir.path(), &file), Artefact::Model { parent: None, data: vec![], training_job: None })
            .unwrap();
        verify(&file, None, None).await.unwrap();
        let made_by = key(&dir.path().join("maker.key")).unwrap();
        let maker = NodeId(made_by.public_key().as_ref().try_into().unwrap());
        verify(&file, None, Some(maker)).await.unwrap();
        assert!(verify(&file, None, Some(NodeId([1; 32]))).await.is_err());
        std::fs::write(&file, b"weightz").unwrap();
        let why = format!("{:#}", verify(&file, None, None).await.unwrap_err());
        assert!(why.contains("is not the one that was signed"), "{why}");
        std::fs::write(&file, b"weights").unwrap();
        let beside = beside(&file);
        let text = std::fs::read_to_string(&beside).unwrap().replace("MIT", "GPL");
        std::fs::write(&beside, text).unwrap();
        let why = format!("{:#}", verify(&file, None, None).await.unwrap_err());
        assert!(why.contains("the signature is not of"), "{why}");
    }
}
