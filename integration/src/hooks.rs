//! A webhook that keeps what it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A message is a page of events at most.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Listens on this machine until it is dropped, and answers every message with success.
pub struct Hook {
    pub url: String,
    told: Arc<Mutex<Vec<Value>>>,
    listening: JoinHandle<()>,
}

impl Hook {
    /// # Errors
    /// No port is free.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/hook", listener.local_addr()?);
        let told = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&told);
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                match hear(stream).await {
                    Ok(message) => kept.lock().unwrap_or_else(PoisonError::into_inner).push(message),
                    Err(error) => println!("a message to a webhook is none: {error:#}"),
                }
            }
        });
        Ok(Self { url, told, listening })
    }

    /// Names of events and keys, in the order in which they were told.
    #[must_use]
    pub fn events(&self) -> Vec<(String, String)> {
        self.records(|record| (text(&record["eventName"]), text(&record["s3"]["object"]["key"])))
    }

    /// Keys and sizes that must be there, going by what was told.
    #[must_use]
    pub fn replayed(&self) -> BTreeMap<String, u64> {
        let mut there = BTreeMap::new();
        let told = self.records(|record| {
            let object = &record["s3"]["object"];
            (text(&record["eventName"]), text(&object["key"]), object["size"].as_u64())
        });
        for (name, key, size) in told {
            match size {
                Some(size) if name.starts_with("ObjectCreated:") => _ = there.insert(key, size),
                _ => _ = there.remove(&key),
            }
        }
        there
    }

    fn records<T>(&self, of: impl Fn(&Value) -> T) -> Vec<T> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().flat_map(|message| message["Records"].as_array().into_iter().flatten()).map(of).collect()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Reads one request, answers it, and closes.
async fn hear(stream: TcpStream) -> anyhow::Result<Value> {
    let mut stream = BufReader::new(stream).take(MESSAGE_BYTES_MAX as u64);
    let mut length = None;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = Some(value.trim().parse()?);
        }
    }
    let mut body = vec![0; length.filter(|length| *length <= MESSAGE_BYTES_MAX).context("its length")?];
    stream.read_exact(&mut body).await?;
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.get_mut().get_mut().write_all(answer.as_bytes()).await?;
    Ok(serde_json::from_slice(&body)?)
}
