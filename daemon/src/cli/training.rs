//! `makai training`: training that is proved by its checkpoints.
//!
//! ```text
//! miner    announce ─> seed ─ trains ─> checkpoint after checkpoint, each committed to as it is made
//! voter    verify: conditions on the whole chain, drawn segments trained again ─ --report ─> counted once voters agree
//! ```
//!
//! What is trained is said by a spec and done by a program, which the verifier must have read: it runs here, unconfined, and
//! only where the verifier says that it may.
//!
//! ```toml
//! format = 1
//! checkpoints = 12                # the first one included
//! samples_per_segment = 144       # tokens, of a language model
//! initial_deviations = [0.3, 0.2] # of each layer's normal beginning
//! step_max = [3.0, 3.0]           # how far each layer may go in a segment
//! accuracy_gain_min = 0.05        # and the rest of `Rules`, as below
//! ```
//!
//! | program is called with | does                                              |
//! |------------------------|---------------------------------------------------|
//! | `init SEED OUT`        | writes the beginning that 64 hex digits give      |
//! | `segment FROM AT OUT`  | trains segment AT from a checkpoint               |
//! | `accuracy FILE`        | prints a share of 1 on the validation set         |

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use http::Method;
use makai_ops::computing::training::{
    Checkpoint, Condition, Rules, TrainerFault, Training, verify, work_mut,
};
use makai_raft::facts::accounts::{Hash, TRAINING_WHY_BYTES_MAX};
use serde::Deserialize;

use super::of_node::OfNode;
use super::print_json;
use super::remote::Target;
use crate::accounts::trainings::{Announcement, Commitment, Judgement, TrainingRow};

const FORMAT: u32 = 1;
const SPEC_BYTES_MAX: u64 = 1 << 20;
/// A larger checkpoint is verified by no voter: eight billion weights in all of a chain's files at once are too many.
const CHECKPOINT_BYTES_MAX: u64 = 4 << 30;

/// Training that is proved by its checkpoints
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What nodes train, how far they are, and what was found
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Say that a node is going to train what a spec says; the seed is known once the next epoch begins
    Announce {
        #[command(flatten)]
        of: OfNode,
        spec: PathBuf,
    },
    /// Commit to a node's next checkpoint, as soon as it is made
    Commit {
        #[command(flatten)]
        of: OfNode,
        spec: PathBuf,
        /// Which one, from 0: the beginning that the seed gives
        at: u32,
        file: PathBuf,
    },
    /// Check a chain of checkpoints: seven conditions, the assigned beginning, and drawn segments trained again
    ///
    /// The trainer is the miner's program, and it runs here as you: it can read, write and reach whatever you can. It is not
    /// confined as jobs are. Read it, run this on a machine or as a user that has nothing to lose, and say --unconfined:
    /// without that nothing is run. It gets a folder of its own and none of your environment but PATH.
    Verify {
        #[command(flatten)]
        of: OfNode,
        spec: PathBuf,
        /// A folder with `0000.ckpt`, `0001.ckpt` and so on
        #[arg(long)]
        checkpoints: PathBuf,
        /// The program that trains, called as `init SEED OUT`, `segment FROM AT OUT` and `accuracy FILE`
        #[arg(long)]
        trainer: PathBuf,
        /// The trainer may do here whatever you may
        #[arg(long)]
        unconfined: bool,
        /// Tell the cluster, as the voter whose console is asked
        #[arg(long)]
        report: bool,
    },
}

/// What is trained, and what is tolerated.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    format: u32,
    checkpoints: u32,
    samples_per_segment: u64,
    initial_deviations: Vec<f64>,
    step_max: Vec<f64>,
    #[serde(default = "default_falls")]
    accuracy_falls_max: f64,
    accuracy_gain_min: f64,
    #[serde(default = "default_significance")]
    significance: f64,
    #[serde(default = "default_grows")]
    distance_grows_max: f64,
    #[serde(default = "default_ratio")]
    distance_ratio_max: f64,
    #[serde(default = "default_beginnings")]
    random_beginnings: u32,
    #[serde(default = "default_segments")]
    segments_rerun: usize,
    /// 0 where the trainer is deterministic.
    #[serde(default)]
    rerun_differs_max: f64,
}

fn default_falls() -> f64 {
    0.01
}

fn default_significance() -> f64 {
    1e-3
}

fn default_grows() -> f64 {
    0.05
}

fn default_ratio() -> f64 {
    0.35
}

fn default_beginnings() -> u32 {
    20
}

fn default_segments() -> usize {
    3
}

impl Spec {
    /// The spec, and what it is known by.
    fn read(path: &Path) -> anyhow::Result<(Self, Hash)> {
        let bytes = read_bounded(path, SPEC_BYTES_MAX)?;
        let text = std::str::from_utf8(&bytes).with_context(|| format!("{path:?} is no text"))?;
        let spec: Self =
            toml::from_str(text).with_context(|| format!("{path:?} is no spec of a training"))?;
        ensure!(spec.format == FORMAT, "{path:?} has format {}, this release reads {FORMAT}", spec.format);
        ensure!(
            spec.step_max.len() == spec.initial_deviations.len(),
            "{path:?}: step_max and initial_deviations have one number for each layer"
        );
        Ok((spec, Hash(*blake3::hash(&bytes).as_bytes())))
    }

    fn rules(&self) -> Rules {
        Rules {
            accuracy_falls_max: self.accuracy_falls_max,
            accuracy_gain_min: self.accuracy_gain_min,
            step_max: self.step_max.clone(),
            significance: self.significance,
            distance_grows_max: self.distance_grows_max,
            distance_ratio_max: self.distance_ratio_max,
            random_beginnings: self.random_beginnings,
            segments_rerun: self.segments_rerun,
            rerun_differs_max: self.rerun_differs_max,
        }
    }

    /// Two operations forward for each weight and sample.
    fn work_mut(&self, checkpoint: &Checkpoint) -> u64 {
        let samples = u128::from(self.samples_per_segment) * u128::from(self.checkpoints.saturating_sub(1));
        work_mut(2 * u128::from(checkpoint.weights()), samples)
    }
}

fn read_bounded(path: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let size = std::fs::metadata(path).with_context(|| format!("read {path:?}"))?.len();
    ensure!(size <= bytes_max, "{path:?} has {size} bytes; at most {bytes_max} are read");
    std::fs::read(path).with_context(|| format!("read {path:?}"))
}

fn read_checkpoint(path: &Path) -> anyhow::Result<Checkpoint> {
    let bytes = read_bounded(path, CHECKPOINT_BYTES_MAX)?;
    Checkpoint::from_bytes(&bytes).with_context(|| format!("{path:?} is no checkpoint (makai-checkpoint 1)"))
}

/// A program that trains, with a folder of its own for what goes in and out.
struct Program<'a> {
    path: &'a Path,
    dir: tempfile::TempDir,
    spec: &'a Spec,
}

impl Program<'_> {
    fn run(&self, args: &[&str]) -> Result<String, TrainerFault> {
        let fault = |why: String| TrainerFault(format!("{:?} {}: {why}", self.path, args.join(" ")));
        let out = std::process::Command::new(self.path)
            .args(args)
            // What a shell has exported is not for a stranger's program: profiles, keys, agents.
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| fault(error.to_string()))?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            return Err(fault(format!(
                "{}: {}",
                out.status,
                said.trim().chars().take(400).collect::<String>()
            )));
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    fn put(&self, checkpoint: &Checkpoint) -> Result<PathBuf, TrainerFault> {
        let path = self.dir.path().join("in.ckpt");
        std::fs::write(&path, checkpoint.to_bytes())
            .map_err(|error| TrainerFault(format!("write {path:?}: {error}")))?;
        Ok(path)
    }

    fn made(&self, args: &[&str]) -> Result<Checkpoint, TrainerFault> {
        let path = self.dir.path().join("out.ckpt");
        let _ = std::fs::remove_file(&path);
        let text = path.to_string_lossy().into_owned();
        self.run(&[args, &[&text]].concat())?;
        read_checkpoint(&path).map_err(|error| TrainerFault(format!("{error:#}")))
    }
}

impl Training for Program<'_> {
    fn initial(&self, seed: &[u8; 32]) -> Result<Checkpoint, TrainerFault> {
        self.made(&["init", &hex::encode(seed)])
    }

    fn initial_deviations(&self) -> Vec<f64> {
        self.spec.initial_deviations.clone()
    }

    fn accuracy(&self, of: &Checkpoint) -> Result<f64, TrainerFault> {
        let path = self.put(of)?;
        let said = self.run(&["accuracy", &path.to_string_lossy()])?;
        said.parse().map_err(|_| TrainerFault(format!("accuracy: {said:?} is no share of 1")))
    }

    fn segment(&self, from: &Checkpoint, segment: usize) -> Result<Checkpoint, TrainerFault> {
        let path = self.put(from)?;
        self.made(&["segment", &path.to_string_lossy(), &segment.to_string()])
    }
}

/// What a folder holds against what was committed to.
fn check(
    spec: &Spec,
    row: &TrainingRow,
    folder: &Path,
    trainer: &Path,
) -> anyhow::Result<(Vec<Condition>, u64)> {
    let training = &row.training;
    let (Some(seed), Some(drawn_by)) = (row.seed, row.drawn_by) else {
        bail!(
            "it has committed to {} of {} checkpoints; it is verified from the epoch after the last one on",
            training.commitments.len(),
            training.checkpoints
        );
    };
    let file = |at| folder.join(format!("{at:04}.ckpt"));
    let chain =
        (0..training.checkpoints).map(|at| read_checkpoint(&file(at))).collect::<anyhow::Result<Vec<_>>>()?;
    let commitments: Vec<Hash> = training.commitments.iter().map(|(hash, _)| *hash).collect();
    let program = Program { path: trainer, dir: tempfile::tempdir()?, spec };
    let failed = verify(&program, &spec.rules(), &chain, &commitments, &seed.0, &drawn_by)?;
    let worth = chain.first().map_or(0, |first| spec.work_mut(first));
    Ok((failed, worth))
}

fn why(failed: &[Condition]) -> String {
    let text = failed.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    text.chars().take(TRAINING_WHY_BYTES_MAX).collect()
}

async fn rows(target: &Target) -> anyhow::Result<Vec<TrainingRow>> {
    target.get("/api/v1/accounts/trainings").await
}

async fn find(of: &OfNode, spec: Hash) -> anyhow::Result<TrainingRow> {
    let node = of.row().await?.node;
    let is_it = |row: &TrainingRow| row.training.node == node && row.training.spec == spec;
    let found = rows(&of.target).await?.into_iter().find(is_it);
    found.with_context(|| {
        format!("{} has announced no training of {spec}; see `makai training ls`", of.name())
    })
}

fn print(row: &TrainingRow) {
    let training = &row.training;
    let passed = training.verdicts.iter().filter(|verdict| verdict.has_passed).count();
    println!(
        "{} spec {}  {} of {} checkpoints, {} of {} verdicts for it: {}",
        &training.node.to_string()[..12],
        training.spec,
        training.commitments.len(),
        training.checkpoints,
        passed,
        training.verdicts.len(),
        match training.outcome {
            Some(true) => "done",
            Some(false) => "not done",
            None => "undecided",
        }
    );
    match row.seed {
        Some(seed) => println!("    seed {}", hex::encode(seed.0)),
        None => println!("    its seed is known when epoch {} begins", training.announced + 1),
    }
    for verdict in training.verdicts.iter().filter(|verdict| !verdict.has_passed) {
        println!("    voter {}: {}", &verdict.verifier.to_string()[..12], verdict.why);
    }
}

fn tell(target: &Target, row: &TrainingRow) -> anyhow::Result<ExitCode> {
    if target.json {
        print_json(row)?;
    } else {
        print(row);
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        Command::Ls { target } => {
            let rows = rows(&target).await?;
            if target.json {
                print_json(&rows)?;
            } else {
                rows.iter().for_each(print);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Announce { of, spec } => {
            let (spec, hash) = Spec::read(&spec)?;
            let row = of.row().await?;
            let request = Announcement { node: row.node, spec: hash, checkpoints: spec.checkpoints };
            tell(&of.target, &of.call(&row, Method::PUT, "/api/v1/accounts/training", &request).await?)
        }
        Command::Commit { of, spec, at, file } => {
            let (_, spec) = Spec::read(&spec)?;
            let hash = read_checkpoint(&file)?.commitment();
            let row = of.row().await?;
            let request = Commitment { node: row.node, spec, at, hash };
            tell(&of.target, &of.call(&row, Method::PUT, "/api/v1/accounts/checkpoint", &request).await?)
        }
        Command::Verify { of, spec, checkpoints, trainer, unconfined, report } => {
            ensure!(
                unconfined,
                "{trainer:?} is the miner's program and would run here as you, not confined as jobs are. Read it, run this where \
                 there is nothing to lose, and say --unconfined"
            );
            let (spec, hash) = Spec::read(&spec)?;
            // It is called from a folder of its own.
            let trainer = std::path::absolute(&trainer).with_context(|| format!("{trainer:?}"))?;
            let row = find(&of, hash).await?;
            let target = &of.target;
            let (failed, work_mut) = check(&spec, &row, &checkpoints, &trainer)?;
            let (has_passed, why) = (failed.is_empty(), why(&failed));
            let judgement = Judgement { node: row.training.node, spec: hash, has_passed, work_mut, why };
            if report {
                let path = "/api/v1/accounts/verdict";
                let _: TrainingRow = target.call(Method::POST, path, Some(&judgement)).await?;
            }
            if target.json {
                print_json(&judgement)?;
            } else if has_passed {
                println!("passed: worth {}.{:03} ut", work_mut / 1000, work_mut % 1000);
            } else {
                failed.iter().for_each(|condition| println!("failed: {condition}"));
            }
            Ok(if has_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use makai_erasure::NodeId;
    use std::os::unix::fs::PermissionsExt as _;

    const SPEC: &str = "format = 1\ncheckpoints = 4\nsamples_per_segment = 1000000\ninitial_deviations = [1.0]\n\
                        step_max = [0.9]\naccuracy_gain_min = 0.1\ndistance_ratio_max = 0.9\n";
    const LAYER: usize = 64;

    /// A beginning that is drawn from a normal distribution, as the spec says, by whatever the seed is.
    fn beginning(seed: &[u8; 32]) -> Checkpoint {
        let mut bytes = vec![0; LAYER * 16];
        blake3::Hasher::new_keyed(seed).finalize_xof().fill(&mut bytes);
        let uniform = |bytes: &[u8]| {
            let number = bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            ((number >> 11) as f64 / (1u64 << 53) as f64).max(1e-12)
        };
        let normal = |bytes: &[u8]| {
            let (a, b) = (uniform(&bytes[..8]), uniform(&bytes[8..]));
            ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
        };
        Checkpoint { layers: vec![bytes.chunks_exact(16).map(normal).collect()] }
    }

    fn shift(from: &Checkpoint, by: f32) -> Checkpoint {
        Checkpoint {
            layers: from
                .layers
                .iter()
                .map(|layer| layer.iter().map(|weight| weight + by).collect())
                .collect(),
        }
    }

    /// A trainer that is a script: it knows by heart what each call makes.
    struct Stage {
        dir: tempfile::TempDir,
        row: TrainingRow,
    }

    impl Stage {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (spec_path, known) = (dir.path().join("spec.toml"), dir.path().join("known"));
            std::fs::create_dir_all(&known).unwrap();
            std::fs::write(&spec_path, SPEC).unwrap();
            let (seed, drawn_by) = (Hash([5; 32]), Hash([9; 32]));
            let chain: Vec<Checkpoint> =
                (0..4).map(|at| shift(&beginning(&seed.0), 0.1 * at as f32)).collect();
            std::fs::write(known.join(hex::encode(seed.0)), chain[0].to_bytes()).unwrap();
            for at in 0..20u32 {
                let random = *blake3::keyed_hash(&drawn_by.0, &at.to_be_bytes()).as_bytes();
                std::fs::write(known.join(hex::encode(random)), beginning(&random).to_bytes()).unwrap();
            }
            for (at, checkpoint) in chain.iter().enumerate() {
                for what in ["after", "is"] {
                    std::fs::write(known.join(format!("{what}-{at}")), checkpoint.to_bytes()).unwrap();
                }
                std::fs::write(dir.path().join(format!("{at:04}.ckpt")), checkpoint.to_bytes()).unwrap();
            }
            // Accuracy grows with the checkpoint that the bytes are those of.
            let script = format!(
                "#!/bin/sh\nk='{}'\ncase $1 in\ninit) cp \"$k/$2\" \"$3\" ;;\nsegment) cp \"$k/after-$(($3+1))\" \"$4\" ;;\n\
                 accuracy) for at in 0 1 2 3; do cmp -s \"$2\" \"$k/is-$at\" && echo 0.$((at+5)); done; true ;;\nesac\n",
                known.display()
            );
            let trainer = dir.path().join("trainer");
            std::fs::write(&trainer, script).unwrap();
            std::fs::set_permissions(&trainer, std::fs::Permissions::from_mode(0o755)).unwrap();
            let (_, spec) = Spec::read(&spec_path).unwrap();
            let training = makai_raft::facts::accounts::Training {
                spec,
                node: NodeId([1; 32]),
                checkpoints: 4,
                announced: 3,
                commitments: chain.iter().map(|one| (one.commitment(), 4)).collect(),
                verdicts: vec![],
                outcome: None,
            };
            Self { dir, row: TrainingRow { training, seed: Some(seed), drawn_by: Some(drawn_by) } }
        }

        fn check(&self) -> anyhow::Result<(Vec<Condition>, u64)> {
            let (spec, _) = Spec::read(&self.dir.path().join("spec.toml"))?;
            check(&spec, &self.row, self.dir.path(), &self.dir.path().join("trainer"))
        }
    }

    /// An honest chain passes; one that was changed, or that the trainer does not come to, does not.
    #[test]
    fn a_program_verifies_what_was_committed() {
        let mut stage = Stage::new();
        let (failed, work) = stage.check().unwrap();
        assert_eq!(failed, [], "honest");
        // Six operations for each of 64 weights and 3 million samples, in units of 432 million.
        assert_eq!(work, 6 * 64 * 3_000_000 / 432_000_000);
        let known = stage.dir.path().join("known");
        std::fs::copy(known.join("after-1"), known.join("after-3")).unwrap();
        assert_eq!(stage.check().unwrap().0, [Condition::Rerun], "all three segments are drawn");
        std::fs::copy(known.join("is-3"), known.join("after-3")).unwrap();
        stage.row.training.commitments[2].0 = Hash([0; 32]);
        assert_eq!(stage.check().unwrap().0, [Condition::Commitment]);
    }

    #[test]
    fn what_cannot_be_verified_is_said() {
        let mut stage = Stage::new();
        stage.row.drawn_by = None;
        assert!(stage.check().unwrap_err().to_string().contains("4 of 4 checkpoints"));
        let stage = Stage::new();
        std::fs::write(stage.dir.path().join("0002.ckpt"), b"x").unwrap();
        assert!(stage.check().unwrap_err().to_string().contains("no checkpoint"));
        let stage = Stage::new();
        std::fs::remove_file(stage.dir.path().join("trainer")).unwrap();
        assert!(stage.check().unwrap_err().to_string().contains("trainer failed"));
        let stage = Stage::new();
        std::fs::write(stage.dir.path().join("spec.toml"), "format = 2\n").unwrap();
        assert!(stage.check().is_err());
    }
}
