//! A job as a person writes it: in a file, or in the words of the command line.
//!
//! A file names what the flags name: `image = "s3://BUCKET/KEY"`, `command = [...]`, `[env]`, `inputs = [{from = "s3://...",
//! path = "..."}]`, `outputs = [{path = "...", to = "s3://..."}]`, `cpu_millis`, `memory_bytes`, `gpu = {sm_millis = 250,
//! memory_mib = 4096, enforcement = "shadow"}`, `max_price = "1.5"`, and so on; JSON alike. In place of `tasks`, `each = {from =
//! "s3://BUCKET/PREFIX/", per_task = 10}`, or `each = {manifest = "s3://BUCKET/KEY"}`, makes tasks of objects. In place of an image it may name a module of kernels: see `module`. `[[stages]]`, each a job with a name of its own, go one
//! after the other as their `after = ["NAME"]` say; what one publishes the next may have as input.

mod module;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use makai_gateway::grpc::proto::jobs::v1::job_spec::Work;
use makai_gateway::grpc::proto::jobs::v1::{
    Container, Each, Enforcement, Gpu, Input, JobSpec, ObjectPath, Output, Resources,
};
use makai_raft::facts::jobs::LEVELS;
use serde::Deserialize;

/// What to run, and with what.
#[derive(Debug, clap::Args)]
pub struct SpecArgs {
    /// A job as TOML or JSON; flags win over it
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Image in the pool: s3://BUCKET/KEY
    #[arg(long)]
    image: Option<String>,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    /// Objects below /in: s3://BUCKET/KEY=PATH, or a prefix that ends in '/'
    #[arg(long, value_name = "S3=PATH")]
    input: Vec<String>,
    /// What of /out is published when the task succeeds: PATH=s3://BUCKET/KEY; without PATH all of it
    #[arg(long, value_name = "PATH=S3")]
    output: Vec<String>,
    /// A variable: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Cores, such as 0.5
    #[arg(long, value_name = "CORES", value_parser = parse_cores)]
    cpu: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Room for files, such as 10G
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    scratch: Option<u64>,
    /// So many tasks, at least 1, told apart by {index} and MAKAI_TASK_INDEX
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    array: Option<u32>,
    /// A task for each object below a prefix, s3://BUCKET/PREFIX/: a task finds its own below /in/each, and in the file
    /// $MAKAI_OBJECT_LIST a line for each (where it is, a tab, its s3:// name); with --per-task 1, $MAKAI_OBJECT is the one
    #[arg(long, value_name = "S3", conflicts_with_all = ["array", "each_of"])]
    each: Option<String>,
    /// As --each, of the objects that a text in the pool names, s3://BUCKET/KEY: a line for each, KEY or s3://BUCKET/KEY
    #[arg(long, value_name = "S3", conflicts_with = "array")]
    each_of: Option<String>,
    /// Objects of one task; without it what takes about a minute, as tasks like these did
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_task: Option<u32>,
    /// 0 to 100, higher first
    #[arg(long)]
    priority: Option<u32>,
    /// Tries at a task that fails
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// Wall clock of one try, in seconds
    #[arg(long, value_name = "SECS")]
    time_limit: Option<u64>,
    /// Whole cards for each task
    #[arg(long, value_name = "N", conflicts_with = "gpu_share")]
    gpus: Option<u32>,
    /// A share of a card for each task, such as 0.25
    #[arg(long, value_name = "PART", value_parser = parse_cores)]
    gpu_share: Option<u32>,
    /// Memory of a card, such as 4G
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    gpu_memory: Option<u64>,
    /// Part of a card's model, such as 4090
    #[arg(long, value_name = "NAME")]
    gpu_model: Option<String>,
    /// The least that keeps a task to its share of a card: shadow, owned-host, hardware or exclusive
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    enforcement: Option<String>,
    /// What the job may cost in all, in credits, such as 1.5
    #[arg(long, value_name = "CREDITS", value_parser = parse_credits)]
    max_price: Option<u64>,
    /// Only on nodes of this site
    #[arg(long)]
    site: Option<String>,
    /// Begin when these jobs have succeeded, and not at all if one does not
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    after: Vec<u64>,
    /// Start all tasks together or none
    #[arg(long)]
    gang: bool,
    /// Publish outputs only where more than half of N nodes of different owners come to the same ones; each run is charged
    #[arg(long, value_name = "N")]
    quorum: Option<u32>,
    /// The command and its words, after `--`
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    name: String,
    image: String,
    /// PTX: a file beside this one, or `s3://BUCKET/KEY`.
    module: String,
    buffers: Vec<module::Buffer>,
    steps: Vec<module::Step>,
    command: Vec<String>,
    env: HashMap<String, String>,
    working_dir: String,
    user: String,
    cpu_millis: u32,
    memory_bytes: u64,
    scratch_bytes: u64,
    inputs: Vec<FileInput>,
    outputs: Vec<FileOutput>,
    tasks: u32,
    each: Option<FileEach>,
    priority: Option<u32>,
    attempts_max: u32,
    backoff_ms: u64,
    time_limit_secs: u64,
    deadline_unix_ms: u64,
    gpu: Option<FileGpu>,
    /// Credits, as a decimal number in quotes.
    max_price: String,
    site: String,
    after: Vec<After>,
    gang: bool,
    quorum: u32,
    stages: Vec<File>,
}

/// A job to wait for: one that is there, or a stage of the same file.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum After {
    Job(u64),
    Stage(String),
}

/// A job of a file, and those of the same file that it waits for, by their place: always before its own.
#[derive(Debug)]
pub struct Stage {
    pub spec: JobSpec,
    pub after: Vec<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileInput {
    from: String,
    path: String,
    /// Of one object: so many bytes, from `offset + index * offset_per_task` on.
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    offset_per_task: u64,
}

/// A task for each object: of a prefix, or of those that a manifest names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileEach {
    /// `s3://BUCKET/PREFIX/`
    from: String,
    /// `s3://BUCKET/KEY`: a text with a line for each.
    manifest: String,
    per_task: u32,
    /// Below `/in`; empty: `each`.
    path: String,
}

/// Whole cards, or a share of one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileGpu {
    cards: u32,
    memory_mib: u64,
    sm_millis: u32,
    model: String,
    enforcement: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOutput {
    #[serde(default)]
    path: String,
    to: String,
}

impl SpecArgs {
    /// The jobs to submit, in an order in which each comes after those that it waits for.
    ///
    /// # Errors
    /// What is missing or malformed.
    pub fn read(mut self) -> anyhow::Result<Vec<Stage>> {
        let mut file = match &self.file {
            Some(path) => parse_file(&super::read_file(path)?, path)?,
            None => File::default(),
        };
        let beside = self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(".")).to_owned();
        if file.stages.is_empty() {
            self.apply(&mut file)?;
            if file.after.iter().any(|after| matches!(after, After::Stage(_))) {
                bail!(
                    "after: a name is that of a stage; this file has no [[stages]], so write the ids of jobs"
                );
            }
            return Ok(vec![Stage { spec: file.spec(&beside)?, after: Vec::new() }]);
        }
        if !file.image.is_empty() || !file.module.is_empty() {
            bail!("a file has either one job or [[stages]] of jobs; write image or module into each stage");
        }
        let flow = std::mem::take(&mut file.name);
        let stages = in_order(file.stages)?;
        let names: Vec<String> = stages.iter().map(|stage| stage.name.clone()).collect();
        let mut read = Vec::new();
        for mut stage in stages {
            if !stage.stages.is_empty() {
                bail!("stage {:?}: a stage has no stages", stage.name);
            }
            let place = |name: &String| names.iter().position(|other| other == name);
            let waits: Vec<&String> = stage.after.iter().filter_map(After::stage).collect();
            let after = waits.into_iter().filter_map(place).collect();
            let label = stage.name.clone();
            if !flow.is_empty() {
                stage.name = format!("{flow}/{label}");
            }
            let spec = stage.spec(&beside).with_context(|| format!("stage {label:?}"))?;
            read.push(Stage { spec, after });
        }
        Ok(read)
    }

    /// What the flags say, over what the file says.
    fn apply(&mut self, file: &mut File) -> anyhow::Result<()> {
        if let Some(image) = self.image.take() {
            file.image = image;
        }
        if !self.command.is_empty() {
            file.command = std::mem::take(&mut self.command);
        }
        for text in &self.env {
            let (name, value) = text.split_once('=').context("--env takes NAME=VALUE")?;
            file.env.insert(name.into(), value.into());
        }
        for text in &self.input {
            let (from, path) = text.rsplit_once('=').context("--input takes s3://BUCKET/KEY=PATH")?;
            let (from, path) = (from.into(), path.into());
            file.inputs.push(FileInput { from, path, bytes: 0, offset: 0, offset_per_task: 0 });
        }
        for text in &self.output {
            let (path, to) = text.split_once('=').unwrap_or(("", text));
            file.outputs.push(FileOutput { path: path.into(), to: to.into() });
        }
        if let Some(name) = self.name.take() {
            file.name = name;
        }
        file.cpu_millis = self.cpu.unwrap_or(file.cpu_millis);
        file.memory_bytes = self.memory.unwrap_or(file.memory_bytes);
        file.scratch_bytes = self.scratch.unwrap_or(file.scratch_bytes);
        file.tasks = self.array.unwrap_or(file.tasks);
        if self.each.is_some() || self.each_of.is_some() {
            let each = file.each.get_or_insert_default();
            each.from = self.each.take().unwrap_or_default();
            each.manifest = self.each_of.take().unwrap_or_default();
        }
        if let Some(count) = self.per_task {
            let each = file.each.as_mut();
            each.context("--per-task goes with --each or --each-of, or with [each] in the file")?.per_task =
                count;
        }
        file.priority = self.priority.or(file.priority);
        file.attempts_max = self.attempts.unwrap_or(file.attempts_max);
        file.time_limit_secs = self.time_limit.unwrap_or(file.time_limit_secs);
        if let Some(site) = self.site.take() {
            file.site = site;
        }
        if let Some(price) = self.max_price {
            file.max_price = format!("{}.{:06}", price / 1_000_000, price % 1_000_000);
        }
        let model = self.gpu_model.take();
        let names_gpu = self.gpus.is_some()
            || self.gpu_share.is_some()
            || self.gpu_memory.is_some()
            || model.is_some()
            || self.enforcement.is_some();
        if names_gpu {
            let gpu = file.gpu.get_or_insert_default();
            if let Some(cards) = self.gpus {
                (gpu.cards, gpu.sm_millis) = (cards, 0);
            }
            if let Some(part) = self.gpu_share {
                (gpu.cards, gpu.sm_millis) = (0, part);
            }
            gpu.memory_mib = self.gpu_memory.map_or(gpu.memory_mib, |bytes| bytes.div_ceil(1 << 20));
            gpu.model = model.unwrap_or_else(|| std::mem::take(&mut gpu.model));
            gpu.enforcement = self.enforcement.take().unwrap_or_else(|| std::mem::take(&mut gpu.enforcement));
        }
        file.after.extend(self.after.iter().map(|job| After::Job(*job)));
        file.gang |= self.gang;
        file.quorum = self.quorum.unwrap_or(file.quorum);
        Ok(())
    }
}

impl After {
    fn stage(&self) -> Option<&String> {
        match self {
            Self::Stage(name) => Some(name),
            Self::Job(_) => None,
        }
    }

    fn job(&self) -> Option<u64> {
        match self {
            Self::Job(id) => Some(*id),
            Self::Stage(_) => None,
        }
    }
}

/// Stages, each behind those that it waits for.
fn in_order(mut stages: Vec<File>) -> anyhow::Result<Vec<File>> {
    for (at, stage) in stages.iter().enumerate() {
        if stage.name.is_empty() || stages[..at].iter().any(|other| other.name == stage.name) {
            bail!("each of [[stages]] has a name of its own; {:?} is none", stage.name);
        }
        let unknown = stage
            .after
            .iter()
            .filter_map(After::stage)
            .find(|name| !stages.iter().any(|other| other.name == **name));
        if let Some(name) = unknown {
            bail!("stage {:?} waits for {name:?}, which is no stage of this file", stage.name);
        }
    }
    let mut ordered: Vec<File> = Vec::new();
    while !stages.is_empty() {
        let is_free = |stage: &File| {
            let mut waits = stage.after.iter().filter_map(After::stage);
            waits.all(|name| ordered.iter().any(|before| before.name == *name))
        };
        match stages.iter().position(is_free) {
            Some(at) => ordered.push(stages.remove(at)),
            None => bail!("stage {:?} waits for itself, by way of others", stages[0].name),
        }
    }
    Ok(ordered)
}

impl File {
    fn spec(self, beside: &Path) -> anyhow::Result<JobSpec> {
        let file = self;
        if file.image.is_empty() == file.module.is_empty() {
            bail!(
                "what is to run? give --image s3://BUCKET/KEY, or a FILE with either image = \"s3://...\" or \
                 module = \"kernel.ptx\""
            );
        }
        let work = if file.module.is_empty() {
            if !file.buffers.is_empty() || !file.steps.is_empty() {
                bail!("buffers and steps belong to a module; an image has inputs, outputs and a command");
            }
            Work::Container(Container {
                image: Some(object(&file.image)?),
                command: file.command,
                env: file.env,
                working_dir: file.working_dir,
                user: file.user,
            })
        } else {
            if !file.command.is_empty() || !file.env.is_empty() {
                bail!("command and env belong to an image; a module has buffers and steps");
            }
            Work::Module(module::read(&file.module, beside, file.buffers, file.steps)?)
        };
        let inputs = file.inputs.into_iter().map(|input| {
            let FileInput { from, path, bytes, offset, offset_per_task } = input;
            Ok(Input { from: Some(object(&from)?), path, bytes, offset, offset_per_task })
        });
        let gpu = file.gpu.map(FileGpu::message).transpose()?;
        let price_max_micros = match file.max_price.as_str() {
            "" => 0,
            text => parse_credits(text).map_err(|why| anyhow!("max_price: {why}"))?,
        };
        let outputs = file
            .outputs
            .into_iter()
            .map(|output| Ok(Output { path: output.path, to: Some(object(&output.to)?) }));
        Ok(JobSpec {
            name: file.name,
            resources: Some(Resources {
                cpu_millis: file.cpu_millis,
                memory_bytes: file.memory_bytes,
                scratch_bytes: file.scratch_bytes,
                gpu,
            }),
            inputs: inputs.collect::<anyhow::Result<_>>()?,
            outputs: outputs.collect::<anyhow::Result<_>>()?,
            tasks: file.tasks,
            priority: file.priority,
            attempts_max: file.attempts_max,
            backoff_ms: file.backoff_ms,
            time_limit_ms: file.time_limit_secs.saturating_mul(1000),
            deadline_unix_ms: file.deadline_unix_ms,
            site: file.site,
            after: file.after.iter().filter_map(After::job).collect(),
            gang: file.gang,
            price_max_micros,
            quorum: file.quorum,
            each: file.each.map(FileEach::message).transpose()?,
            work: Some(work),
        })
    }
}

impl FileEach {
    fn message(self) -> anyhow::Result<Each> {
        let FileEach { from, manifest, per_task, path } = self;
        if from.is_empty() == manifest.is_empty() {
            bail!(
                "each: give either a prefix (from, --each) or an object that names them (manifest, --each-of)"
            );
        }
        let is_manifest = !manifest.is_empty();
        let from = Some(object(if is_manifest { &manifest } else { &from })?);
        Ok(Each { from, manifest: is_manifest, per_task, path, ..Each::default() })
    }
}

impl FileGpu {
    fn message(self) -> anyhow::Result<Gpu> {
        let FileGpu { cards, memory_mib, sm_millis, model, enforcement } = self;
        if (cards == 0) == (sm_millis == 0) {
            bail!("gpu: give either whole cards (cards, --gpus) or a share of one (sm_millis, --gpu-share)");
        }
        let enforcement_min = match enforcement.as_str() {
            "" => 0,
            name => {
                let name = parse_level(name).map_err(|why| anyhow!("gpu.enforcement: {why}"))?;
                let name = format!("ENFORCEMENT_{}", name.replace('-', "_").to_ascii_uppercase());
                Enforcement::from_str_name(&name).unwrap_or_default().into()
            }
        };
        Ok(Gpu { cards, memory_mib, sm_millis, model, enforcement_min })
    }
}

/// A level's name.
fn parse_level(text: &str) -> Result<String, String> {
    match LEVELS.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is none of {}", LEVELS.join(", "))),
    }
}

/// Millionths of a credit from a decimal number of credits.
fn parse_credits(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number of credits; write e.g. 2 or 0.05");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let are_digits = whole.bytes().chain(part.bytes()).all(|digit| digit.is_ascii_digit());
    if part.len() > 6 || !are_digits || whole.len() + part.len() == 0 {
        return Err(wrong());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let part: u64 = format!("{part:0<6}").parse().map_err(|_| wrong())?;
    let sum = whole.checked_mul(1_000_000).and_then(|millionths| millionths.checked_add(part));
    sum.filter(|millionths| *millionths > 0).ok_or_else(wrong)
}

fn parse_file(text: &str, path: &std::path::Path) -> anyhow::Result<File> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(text).with_context(|| format!("{path:?} is no job"));
    }
    toml::from_str(text).with_context(|| format!("{path:?} is no job"))
}

fn object(text: &str) -> anyhow::Result<ObjectPath> {
    let rest = text.strip_prefix("s3://").ok_or_else(|| anyhow!("{text:?} is no s3://BUCKET/KEY"))?;
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        bail!("{text:?} names no bucket; write s3://BUCKET/KEY");
    }
    Ok(ObjectPath { bucket: bucket.into(), key: key.into() })
}

/// Thousandths of a core from a decimal number of cores.
fn parse_cores(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no number of cores; write e.g. 2 or 0.5");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 3 || !part.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let part: u32 = format!("{part:0<3}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(1000)
        .and_then(|millis| millis.checked_add(part))
        .filter(|millis| *millis > 0)
        .ok_or_else(wrong)
}

/// Bytes, with K, M, G or T for powers of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number of bytes; write e.g. 512M or 2G");
    let (digits, shift) = match text.chars().last() {
        Some('K' | 'k') => (&text[..text.len() - 1], 10),
        Some('M' | 'm') => (&text[..text.len() - 1], 20),
        Some('G' | 'g') => (&text[..text.len() - 1], 30),
        Some('T' | 't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_cores_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("7"), Ok(7));
        assert_eq!(parse_cores("0.5"), Ok(500));
        assert_eq!(parse_cores("2"), Ok(2000));
        assert_eq!(parse_cores(".25"), Ok(250));
        for wrong in ["", "x", "1.0001", "-1", "0", "1e3", "9999999999"] {
            assert!(parse_cores(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "G", "1.5G", "-1", "99999999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn prices_and_cards_are_read_as_people_write_them() {
        assert_eq!(parse_credits("1.5"), Ok(1_500_000));
        assert_eq!(parse_credits(".000001"), Ok(1));
        for wrong in ["", ".", "0", "1.0000001", "-1", "1e3"] {
            assert!(parse_credits(wrong).is_err(), "{wrong}");
        }
        let gpu = |text: &str| {
            let file = format!("image = 's3://i/k'\n[gpu]\n{text}\n");
            let read = parse_file(&file, Path::new("job.toml")).unwrap();
            read.spec(Path::new(".")).map(|spec| spec.resources.unwrap().gpu)
        };
        let share = gpu("sm_millis = 250\nmemory_mib = 4096\nenforcement = 'owned-host'").unwrap().unwrap();
        assert_eq!(
            (share.sm_millis, share.memory_mib, share.enforcement_min()),
            (250, 4096, Enforcement::OwnedHost)
        );
        for wrong in ["cards = 1\nsm_millis = 1", "memory_mib = 1", "cards = 1\nenforcement = 'iron'"] {
            assert!(gpu(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tasks_for_objects_are_of_a_prefix_or_of_a_manifest() {
        let each = |text: &str| {
            let file = format!("image = 's3://i/k'\n[each]\n{text}\n");
            let read = parse_file(&file, Path::new("job.toml")).unwrap();
            read.spec(Path::new(".")).map(|spec| spec.each.unwrap())
        };
        let below = each("from = 's3://b/p/'\nper_task = 7").unwrap();
        assert_eq!((below.manifest, below.per_task, below.from.unwrap().key), (false, 7, "p/".to_owned()));
        assert!(each("manifest = 's3://b/list'").unwrap().manifest);
        for wrong in ["", "from = 's3://b/'\nmanifest = 's3://b/k'", "from = 'b/p/'"] {
            assert!(each(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_says_what_flags_say_and_flags_win() {
        let text = "image = 's3://images/bb.tar'\ncommand = ['true']\ntasks = 3\n\
            inputs = [{ from = 's3://b/in/', path = 'data' }]\noutputs = [{ to = 's3://b/out/' }]\n[env]\nA = '1'\n";
        let file = parse_file(text, std::path::Path::new("job.toml")).unwrap();
        assert_eq!((file.tasks, file.inputs.len(), file.env.len()), (3, 1, 1));
        assert!(parse_file("imag = 's3://b/k'", std::path::Path::new("job.toml")).is_err());
        let stages = "[[stages]]\nname = 'b'\nimage = 's3://i/k'\nafter = ['a', 7]\n\
            [[stages]]\nname = 'a'\nimage = 's3://i/k'\n";
        let read = |text: &str| in_order(parse_file(text, std::path::Path::new("job.toml")).unwrap().stages);
        let names: Vec<String> = read(stages).unwrap().into_iter().map(|stage| stage.name).collect();
        assert_eq!(names, ["a", "b"]);
        for (wrong, why) in [("'a', 7", "'c'"), ("'a', 7", "'b'"), ("name = 'a'", "name = 'b'")] {
            assert!(read(&stages.replace(wrong, why)).is_err(), "{why}");
        }
        assert_eq!(object("s3://b").unwrap().key, "");
        assert!(object("b/k").is_err() && object("s3:///k").is_err());
    }
}
