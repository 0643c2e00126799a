//! A job as a person writes it: in a file, or in the words of the command line.
//!
//! A file names what the flags name: `image = "s3://BUCKET/KEY"`, `command = [...]`, `[env]`, `inputs = [{from = "s3://...",
//! path = "..."}]`, `outputs = [{path = "...", to = "s3://..."}]`, `cpu_millis`, `memory_bytes`, and so on; JSON alike.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use makai_gateway::grpc::proto::jobs::v1::job_spec::Work;
use makai_gateway::grpc::proto::jobs::v1::{Container, Input, JobSpec, ObjectPath, Output, Resources};
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
    /// So many tasks, told apart by {index} and MAKAI_TASK_INDEX
    #[arg(long, value_name = "N")]
    array: Option<u32>,
    /// 0 to 100, higher first
    #[arg(long)]
    priority: Option<u32>,
    /// Tries at a task that fails
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// Wall clock of one try, in seconds
    #[arg(long, value_name = "SECS")]
    time_limit: Option<u64>,
    /// Only on nodes of this site
    #[arg(long)]
    site: Option<String>,
    /// The command and its words, after `--`
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    name: String,
    image: String,
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
    priority: Option<u32>,
    attempts_max: u32,
    backoff_ms: u64,
    time_limit_secs: u64,
    deadline_unix_ms: u64,
    site: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileInput {
    from: String,
    path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOutput {
    #[serde(default)]
    path: String,
    to: String,
}

impl SpecArgs {
    /// # Errors
    /// What is missing or malformed.
    pub fn read(self) -> anyhow::Result<JobSpec> {
        let mut file = match &self.file {
            Some(path) => parse_file(&super::read_file(path)?, path)?,
            None => File::default(),
        };
        file.image = self.image.unwrap_or(file.image);
        if file.image.is_empty() {
            bail!("which image? give --image s3://BUCKET/KEY, or a FILE with image = \"s3://...\"");
        }
        if !self.command.is_empty() {
            file.command = self.command;
        }
        for text in &self.env {
            let (name, value) = text.split_once('=').context("--env takes NAME=VALUE")?;
            file.env.insert(name.into(), value.into());
        }
        for text in &self.input {
            let (from, path) = text.rsplit_once('=').context("--input takes s3://BUCKET/KEY=PATH")?;
            file.inputs.push(FileInput { from: from.into(), path: path.into() });
        }
        for text in &self.output {
            let (path, to) = text.split_once('=').unwrap_or(("", text));
            file.outputs.push(FileOutput { path: path.into(), to: to.into() });
        }
        let container = Container {
            image: Some(object(&file.image)?),
            command: file.command,
            env: file.env,
            working_dir: file.working_dir,
            user: file.user,
        };
        let inputs = file
            .inputs
            .into_iter()
            .map(|input| Ok(Input { from: Some(object(&input.from)?), path: input.path }));
        let outputs = file
            .outputs
            .into_iter()
            .map(|output| Ok(Output { path: output.path, to: Some(object(&output.to)?) }));
        Ok(JobSpec {
            name: self.name.unwrap_or(file.name),
            resources: Some(Resources {
                cpu_millis: self.cpu.unwrap_or(file.cpu_millis),
                memory_bytes: self.memory.unwrap_or(file.memory_bytes),
                scratch_bytes: self.scratch.unwrap_or(file.scratch_bytes),
                gpu: None,
            }),
            inputs: inputs.collect::<anyhow::Result<_>>()?,
            outputs: outputs.collect::<anyhow::Result<_>>()?,
            tasks: self.array.unwrap_or(file.tasks),
            priority: self.priority.or(file.priority),
            attempts_max: self.attempts.unwrap_or(file.attempts_max),
            backoff_ms: file.backoff_ms,
            time_limit_ms: self.time_limit.unwrap_or(file.time_limit_secs).saturating_mul(1000),
            deadline_unix_ms: file.deadline_unix_ms,
            site: self.site.unwrap_or(file.site),
            work: Some(Work::Container(container)),
        })
    }
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
    fn a_file_says_what_flags_say_and_flags_win() {
        let text = "image = 's3://images/bb.tar'\ncommand = ['true']\ntasks = 3\n\
            inputs = [{ from = 's3://b/in/', path = 'data' }]\noutputs = [{ to = 's3://b/out/' }]\n[env]\nA = '1'\n";
        let file = parse_file(text, std::path::Path::new("job.toml")).unwrap();
        assert_eq!((file.tasks, file.inputs.len(), file.env.len()), (3, 1, 1));
        assert!(parse_file("imag = 's3://b/k'", std::path::Path::new("job.toml")).is_err());
        assert_eq!(object("s3://b").unwrap().key, "");
        assert!(object("b/k").is_err() && object("s3:///k").is_err());
    }
}
