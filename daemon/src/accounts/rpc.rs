//! JSON-RPC to endpoints of an EVM chain: one question, one answer, bounded in size and time.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an endpoint did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    #[error("{message} (code {code})")]
    Refused { code: i64, message: String, data: Vec<u8> },
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Asks one endpoint.
pub async fn one(url: &str, method: &str, params: &Value) -> Result<Value, RpcError> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let asked = async {
        let request = http::Request::post(url)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))?;
        let response = client.request(request).await?;
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        anyhow::Ok(body.map_err(|error| anyhow!(error))?.to_bytes())
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
    let answer = answer.map_err(|_| anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))??;
    let answer: Value = serde_json::from_slice(&answer).context("the answer is no JSON")?;
    match answer.get("error") {
        Some(error) if !error.is_null() => Err(RpcError::Refused {
            code: error["code"].as_i64().unwrap_or(0),
            message: error["message"].as_str().unwrap_or("refused").chars().take(400).collect(),
            data: bytes(&error["data"]).unwrap_or_default(),
        }),
        _ => Ok(answer.get("result").cloned().unwrap_or(Value::Null)),
    }
}

pub fn hex0x(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

pub fn bytes(value: &Value) -> anyhow::Result<Vec<u8>> {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x")).context("bytes were expected")?;
    Ok(hex::decode(text)?)
}

pub fn quantity(value: &Value) -> anyhow::Result<u128> {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x")).context("a number was expected")?;
    Ok(u128::from_str_radix(text, 16)?)
}
