//! A real EVM for a test, and endpoints before it that misbehave.
//!
//! Needs Node and `ops/contracts/node_modules` (`npm ci`). Where they are missing a test says that it was skipped, unless
//! `MAKAI_TEST_CHAIN=require`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use makai_raft::facts::accounts::{Address, Hash};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::{ports, wait};

/// The chain that these programs make.
pub const CHAIN_ID: u64 = 31_337;
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
const SCRIPT_ENDS_WITHIN: Duration = Duration::from_secs(300);

/// `ops/contracts`.
#[must_use]
pub fn contracts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/contracts")
}

fn program() -> PathBuf {
    contracts().join("node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil")
}

/// Whether there is an EVM to test with.
///
/// # Errors
/// There is none, and the environment says that there must be.
pub fn can_run() -> anyhow::Result<bool> {
    let wanted = std::env::var("MAKAI_TEST_CHAIN").unwrap_or_default();
    let has_node = Command::new("node").arg("--version").output().is_ok();
    let can_run = has_node && program().exists() && wanted != "skip";
    ensure!(can_run || wanted != "require", "no Node, or no ops/contracts/node_modules: run `npm ci` there");
    if !can_run {
        eprintln!("skipped: no Node, or no ops/contracts/node_modules; run `npm ci` there");
    }
    Ok(can_run)
}

/// One call of JSON-RPC.
///
/// # Errors
/// It is not answered, or refused.
pub async fn rpc(url: &str, method: &str, params: Value) -> anyhow::Result<Value> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let request =
        http::Request::post(url).header("content-type", "application/json").body(Full::from(body))?;
    let asked = async { anyhow::Ok(client.request(request).await?.into_body().collect().await?.to_bytes()) };
    let body = tokio::time::timeout(ANSWERS_WITHIN, asked).await.context("the chain does not answer")??;
    let answer: Value = serde_json::from_slice(&body)?;
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        bail!("{method}: {error}");
    }
    Ok(answer["result"].clone())
}

fn number(value: &Value) -> anyhow::Result<u64> {
    Ok(u64::from_str_radix(value.as_str().context("a number")?.trim_start_matches("0x"), 16)?)
}

/// A chain of its own; ends with the test.
#[derive(Debug)]
pub struct Anvil {
    child: Child,
    pub url: String,
    _port: ports::Port,
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Anvil {
    /// Starts it with these options and waits until it answers. Without any it makes a block for each transaction.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn start(options: &[&str]) -> anyhow::Result<Self> {
        let port = ports::take()?;
        let child = Command::new(program())
            .args(["--silent", "--port", &port.number.to_string()])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let url = format!("http://127.0.0.1:{}", port.number);
        let mut anvil = Self { child, url, _port: port };
        wait::until("the chain answers", ANSWERS_WITHIN, || {
            let ended = anvil.child.try_wait();
            let asked = rpc(&anvil.url, "eth_chainId", json!([]));
            async move {
                ensure!(ended?.is_none(), "anvil has ended");
                asked.await
            }
        })
        .await?;
        Ok(anvil)
    }

    /// # Errors
    /// As [`rpc`].
    pub async fn ask(&self, method: &str, params: Value) -> anyhow::Result<Value> {
        rpc(&self.url, method, params).await
    }

    /// Makes blocks.
    ///
    /// # Errors
    /// As [`rpc`].
    pub async fn mine(&self, blocks: u64) -> anyhow::Result<()> {
        for _ in 0..blocks {
            self.ask("evm_mine", json!([])).await?;
        }
        Ok(())
    }

    /// Transactions of an account: those in blocks, or (`pending`) those that wait too.
    ///
    /// # Errors
    /// As [`rpc`].
    pub async fn transactions(&self, account: &Address, block: &str) -> anyhow::Result<u64> {
        number(&self.ask("eth_getTransactionCount", json!([account, block])).await?)
    }

    /// Runs `ops/contracts/test/chain.mjs`.
    ///
    /// # Errors
    /// It fails.
    pub fn script(&self, what: &str, args: &[&str]) -> anyhow::Result<String> {
        let script = contracts().join("test/chain.mjs");
        let mut node = Command::new("node");
        node.arg(script).arg(what).arg(&self.url).args(args);
        let out = wait::output(node, SCRIPT_ENDS_WITHIN)?;
        ensure!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?.trim().to_owned())
    }

    /// Makes token and distributor; their addresses.
    ///
    /// # Errors
    /// The script fails.
    pub fn deploy(&self, terms: &[&str]) -> anyhow::Result<(String, String)> {
        let made: Value = serde_json::from_str(&self.script("deploy", terms)?)?;
        let text = |name: &str| made[name].as_str().map(str::to_owned).with_context(|| name.to_owned());
        Ok((text("token")?, text("distributor")?))
    }

    /// What an account has of a token.
    ///
    /// # Errors
    /// The script fails.
    pub fn balance(&self, token: &str, account: &str) -> anyhow::Result<u128> {
        Ok(self.script("balance", &[token, account])?.parse()?)
    }
}

/// What an endpoint does to the chain behind it.
#[derive(Debug)]
pub struct Manners {
    /// Transactions are answered and thrown away.
    pub drops: bool,
    /// Transactions are neither answered nor passed on.
    pub holds: bool,
    /// No receipt is known.
    pub hides_receipts: bool,
    /// Says that so many more blocks are there, and that blocks have other hashes.
    pub lies_about_blocks: bool,
    /// Gas costs so many times more.
    pub dearer: u64,
    /// Does not answer.
    pub is_down: bool,
    /// Raw transactions that came.
    pub seen: Vec<String>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            drops: false,
            holds: false,
            hides_receipts: false,
            lies_about_blocks: false,
            dearer: 1,
            is_down: false,
            seen: Vec::new(),
        }
    }
}

/// An endpoint that has [`Manners`]; ends with the test.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub url: String,
    manners: Arc<Mutex<Manners>>,
}

impl Endpoint {
    /// # Errors
    /// No port is free.
    pub async fn start(chain: &Anvil) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let endpoint = Self { url, manners: Arc::default() };
        let (behind, served) = (chain.url.clone(), endpoint.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (behind, served) = (behind.clone(), served.clone());
                tokio::spawn(async move { served.serve(&behind, stream).await });
            }
        });
        Ok(endpoint)
    }

    /// How it behaves from now on, and what came.
    pub fn manners(&self) -> MutexGuard<'_, Manners> {
        self.manners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, behind: &str, mut stream: TcpStream) {
        let mut request = Vec::new();
        let body = loop {
            let mut piece = [0; 16 * 1024];
            let Ok(read @ 1..) = stream.read(&mut piece).await else { return };
            request.extend_from_slice(&piece[..read]);
            if let Some(body) = whole_body(&request) {
                break body;
            }
        };
        let Ok(asked) = serde_json::from_slice::<Value>(&body) else { return };
        let Some(answer) = self.answer(behind, &asked).await else { return };
        let text = answer.to_string();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
        let length = text.len();
        let _ = stream.write_all(format!("{head}content-length: {length}\r\n\r\n{text}").as_bytes()).await;
    }

    async fn answer(&self, behind: &str, asked: &Value) -> Option<Value> {
        let (method, params) = (asked["method"].as_str()?.to_owned(), asked["params"].clone());
        let result = |result: Value| Some(json!({ "jsonrpc": "2.0", "id": asked["id"], "result": result }));
        let (dearer, lies, holds) = {
            let mut manners = self.manners();
            if manners.is_down {
                return None;
            }
            let is_sending = method == "eth_sendRawTransaction";
            if is_sending {
                manners.seen.push(params[0].as_str()?.to_owned());
                if manners.drops {
                    return result(json!(Hash([0; 32])));
                }
            }
            if method == "eth_getTransactionReceipt" && manners.hides_receipts {
                return result(Value::Null);
            }
            (manners.dearer, manners.lies_about_blocks, is_sending && manners.holds)
        };
        if holds {
            // Until whoever asked is gone.
            std::future::pending::<()>().await;
        }
        match rpc(behind, &method, params).await {
            Ok(mut found) => {
                if method == "eth_getBlockByNumber" && !found.is_null() {
                    let base = number(&found["baseFeePerGas"]).unwrap_or(0);
                    found["baseFeePerGas"] = json!(format!("0x{:x}", base * dearer));
                    if lies {
                        let block = number(&found["number"]).unwrap_or(0);
                        found["number"] = json!(format!("0x{:x}", block + 1000));
                        found["hash"] = json!(Hash([9; 32]));
                    }
                }
                result(found)
            }
            Err(error) => Some(
                json!({ "jsonrpc": "2.0", "id": asked["id"], "error": { "code": -32000, "message": error.to_string() } }),
            ),
        }
    }
}

fn whole_body(request: &[u8]) -> Option<Vec<u8>> {
    let head = request.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
    let length: usize = text.split("content-length:").nth(1)?.split("\r\n").next()?.trim().parse().ok()?;
    (request.len() >= head + length).then(|| request[head..head + length].to_vec())
}
