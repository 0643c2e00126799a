//! Talks to a node's console: which one, with which token, and what came back.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use makai_config::NodeConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::profile::{ConsoleProfile, Profile};
use crate::console::ApiError;
use crate::state;

const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Which cluster is meant.
#[derive(Debug, Clone, clap::Args)]
pub struct Target {
    /// Profile of the cluster (`makai dev` writes DIR/profile.json)
    #[arg(long, env = "MAKAI_PROFILE", value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Configuration of a node on this machine, instead of a profile
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Target {
    /// Consoles to ask, the first that answers counts.
    fn consoles(&self) -> anyhow::Result<Vec<ConsoleProfile>> {
        if let Some(path) = &self.config {
            let config = NodeConfig::load(path)?;
            let listen = config.console.listen.context("this node has no console: set console.listen")?;
            let token = state::admin_token(&config.node.dir)?;
            return Ok(vec![ConsoleProfile { url: format!("http://{listen}"), token }]);
        }
        let profile = self.profile()?;
        let mut consoles = vec![profile.console];
        for node in profile.nodes {
            if !consoles.contains(&node.console) {
                consoles.push(node.console);
            }
        }
        Ok(consoles)
    }

    /// The cluster's profile.
    ///
    /// # Errors
    /// None is named, or it cannot be read.
    pub fn profile(&self) -> anyhow::Result<Profile> {
        let path = self.profile.clone().or_else(|| Profile::default_path().filter(|path| path.exists()));
        let path = path.context(
            "which cluster? give --profile FILE (`makai dev` writes one), --config FILE of a node here, or MAKAI_PROFILE",
        )?;
        Profile::load(&path)
    }

    /// Asks the console; tries the next node where one does not answer.
    ///
    /// # Errors
    /// No console answers, or it refuses.
    pub async fn call<B: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> anyhow::Result<A> {
        let answer = self.ask(method, path, body).await?;
        serde_json::from_slice(&answer).context("read the console's answer")
    }

    /// Asks one node's console. `node`: its id, or the beginning of it; may be left out where a node's own configuration, or a profile
    /// of one node, says which is meant.
    ///
    /// # Errors
    /// No node is named, or several are; it does not answer, or it refuses.
    pub async fn call_node<B: Serialize, A: DeserializeOwned>(
        &self,
        node: Option<&str>,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> anyhow::Result<A> {
        let console = match (node, &self.config) {
            (None, Some(_)) => self.consoles()?.remove(0),
            (named, _) => {
                let mut nodes = self.profile()?.nodes;
                nodes.retain(|known| named.is_none_or(|named| known.id.starts_with(named)));
                match <[_; 1]>::try_from(nodes) {
                    Ok([node]) => node.console,
                    Err(nodes) => bail!(
                        "which machine? {} of the profile's nodes are meant: give --node ID, or --config FILE on the machine itself",
                        nodes.len()
                    ),
                }
            }
        };
        let (is_success, answer) = ask_console(&console, method, path, body)
            .await
            .with_context(|| format!("ask the console at {}", console.url))?;
        if !is_success {
            let why = serde_json::from_slice::<ApiError>(&answer).map(|error| error.error);
            bail!("{}", why.unwrap_or_else(|_| String::from_utf8_lossy(&answer).into_owned()));
        }
        serde_json::from_slice(&answer).context("read the console's answer")
    }

    async fn ask<B: Serialize>(&self, method: Method, path: &str, body: Option<&B>) -> anyhow::Result<Bytes> {
        let mut last = anyhow!("the profile names no console");
        for console in self.consoles()?.into_iter().filter(|console| !console.url.is_empty()) {
            match ask_console(&console, method.clone(), path, body).await {
                Ok((true, answer)) => return Ok(answer),
                Ok((false, answer)) => {
                    let why = serde_json::from_slice::<ApiError>(&answer).map(|error| error.error);
                    bail!("{}", why.unwrap_or_else(|_| String::from_utf8_lossy(&answer).into_owned()));
                }
                Err(error) => last = error.context(format!("ask the console at {}", console.url)),
            }
        }
        Err(last)
    }

    /// Whether one node is meant, by its own configuration.
    #[must_use]
    pub fn is_one_node(&self) -> bool {
        self.config.is_some()
    }

    /// The body of an answer as it is.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn fetch(&self, path: &str) -> anyhow::Result<Bytes> {
        self.ask::<()>(Method::GET, path, None).await
    }

    /// Writes the body of an answer to a new file, piece by piece, from the first node that gives it.
    ///
    /// # Errors
    /// None does, or the file cannot be written.
    pub async fn download(&self, path: &str, file: &std::path::Path) -> anyhow::Result<()> {
        let mut last = anyhow!("the profile names no console");
        for console in self.consoles()?.into_iter().filter(|console| !console.url.is_empty()) {
            match download(&console, path, file).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error.context(format!("ask the console at {}", console.url)),
            }
        }
        Err(last)
    }

    /// Folders of the cluster's nodes that are on this machine.
    #[must_use]
    pub fn node_dirs(&self) -> Vec<PathBuf> {
        let configs = match &self.config {
            Some(config) => vec![config.clone()],
            None => self
                .profile()
                .map_or(Vec::new(), |profile| profile.nodes.into_iter().map(|node| node.config).collect()),
        };
        configs
            .iter()
            .filter_map(|config| NodeConfig::load(config).ok())
            .map(|config| config.node.dir)
            .collect()
    }

    /// As [`call`](Self::call), without a body.
    ///
    /// # Errors
    /// As there.
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.call::<(), A>(Method::GET, path, None).await
    }

    /// Asks consoles until one's answer is the best there can be; else the first answer.     ///
    /// # Errors
    /// No console answers, or the first that does refuses.
    pub async fn get_best<A: DeserializeOwned>(
        &self,
        path: &str,
        is_best: impl Fn(&A) -> bool,
    ) -> anyhow::Result<A> {
        let first: A = self.get(path).await?;
        if is_best(&first) {
            return Ok(first);
        }
        for console in self.consoles()?.into_iter().filter(|console| !console.url.is_empty()) {
            if let Ok((true, answer)) = ask_console::<()>(&console, Method::GET, path, None).await
                && let Ok(answer) = serde_json::from_slice(&answer)
                && is_best(&answer)
            {
                return Ok(answer);
            }
        }
        Ok(first)
    }
}

/// One request: whether it succeeded, and the body of the answer.
pub async fn ask_console<B: Serialize>(
    console: &ConsoleProfile,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> anyhow::Result<(bool, Bytes)> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let body = match body {
        Some(body) => serde_json::to_vec(body)?,
        None => Vec::new(),
    };
    let request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", console.url))
        .header(header::AUTHORIZATION, format!("Bearer {}", console.token))
        .body(Full::from(body))?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, async {
        let response = client.request(request).await?;
        let is_success = response.status().is_success();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((is_success, body.map_err(|error| anyhow!(error))?.to_bytes()))
    });
    answer.await.map_err(|_| anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))?
}

async fn download(console: &ConsoleProfile, path: &str, file: &std::path::Path) -> anyhow::Result<()> {
    let request = Request::builder()
        .uri(format!("{}{path}", console.url))
        .header(header::AUTHORIZATION, format!("Bearer {}", console.token))
        .body(Full::<Bytes>::default())?;
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let response = tokio::time::timeout(ANSWER_TIMEOUT, client.request(request)).await??;
    let is_success = response.status().is_success();
    let mut body = response.into_body();
    if !is_success {
        let why = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| anyhow!("{error}"))?
            .to_bytes();
        let told = serde_json::from_slice::<ApiError>(&why).map(|error| error.error);
        bail!("{}", told.unwrap_or_else(|_| String::from_utf8_lossy(&why).into_owned()));
    }
    // What is downloaded holds wrapped keys and names: for its owner alone.
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut out = options.open(file).await.with_context(|| format!("create {file:?}"))?;
    while let Some(frame) = tokio::time::timeout(ANSWER_TIMEOUT, body.frame()).await? {
        if let Ok(piece) = frame?.into_data() {
            tokio::io::AsyncWriteExt::write_all(&mut out, &piece)
                .await
                .with_context(|| format!("write {file:?}"))?;
        }
    }
    out.sync_all().await.with_context(|| format!("write {file:?}"))
}
