//! Whether a token is one that its issuer signed (OpenID Connect).
//!
//! ```text
//! token ─> issuer's address/.well-known/openid-configuration ─> jwks_uri ─> its keys (kept 5 min) ─> signature, time, audience
//! ```
//!
//! Always: only issuers that a tenant has named are asked; an issuer is asked for new keys at most once in
//! [`KEYS_AGE_MIN`], whatever tokens say.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{Request, Uri};
use makai_raft::facts::Timestamp;
use ring::signature;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::Identity;
use crate::outbound::{Outbound, whole};

/// Bytes of a token, as AWS has it.
pub const TOKEN_BYTES_MAX: usize = 20_000;
const KEYS_AGE_MAX: Duration = Duration::from_secs(300);
const KEYS_AGE_MIN: Duration = Duration::from_secs(10);
const ISSUERS_MAX: usize = 1000;
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
const FETCH_TIME_MAX: Duration = Duration::from_secs(10);
/// How far an issuer's clock may be off.
const SKEW_SECONDS_MAX: u64 = 60;
/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is not a signed JSON Web Token, or its signature or claims do not hold: {0}")]
    Invalid(String),
    #[error("the token has expired")]
    Expired,
    #[error("the token's audience is none of those that its provider is configured for")]
    Audience,
    #[error("the issuer's keys could not be fetched: {0}")]
    Issuer(String),
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    #[serde(default)]
    aud: Value,
    #[serde(default)]
    azp: Option<String>,
    pub exp: u64,
    #[serde(default)]
    nbf: Option<u64>,
}

impl Claims {
    /// For whom it was issued.
    #[must_use]
    pub fn audiences(&self) -> BTreeSet<String> {
        let own: Vec<String> = match &self.aud {
            Value::String(one) => vec![one.clone()],
            Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        own.into_iter().chain(self.azp.clone()).collect()
    }

    /// What the token says, whoever signed it.
    ///
    /// # Errors
    /// It is no token.
    pub fn unverified(token: &str) -> Result<Self, TokenError> {
        let invalid = |why: &str| TokenError::Invalid(why.to_owned());
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid("it is too long"));
        }
        let payload = token.split('.').nth(1).ok_or_else(|| invalid("it has no payload"))?;
        let payload =
            BASE64_URL_SAFE_NO_PAD.decode(payload).map_err(|_| invalid("its payload is not Base64"))?;
        serde_json::from_slice(&payload).map_err(|error| TokenError::Invalid(error.to_string()))
    }
}

/// An issuer's keys, and when they were asked for.
type Kept = (Instant, Arc<Keys>);

pub(super) struct Issuers {
    outbound: Outbound,
    keys: Mutex<HashMap<String, Kept>>,
}

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuers").finish_non_exhaustive()
    }
}

impl Issuers {
    pub(super) fn new(outbound: Outbound) -> Self {
        Self { outbound, keys: Mutex::default() }
    }

    async fn fetch<T: for<'x> Deserialize<'x>>(&self, url: &str) -> Result<T, TokenError> {
        let failed = |why: String| TokenError::Issuer(format!("{url}: {why}"));
        let is_safe = url.parse::<Uri>().is_ok_and(|uri| {
            let is_local = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
            uri.scheme_str() == Some("https") || is_local
        });
        if !is_safe {
            let why =
                "keys come over TLS, or in the clear from this machine alone: have the issuer speak https";
            return Err(failed(why.to_owned()));
        }
        let request = Request::get(url).header("accept", "application/json").body(whole(""));
        let request = request.map_err(|error| failed(error.to_string()))?;
        let answer = self.outbound.send(request, DOCUMENT_BYTES_MAX, FETCH_TIME_MAX).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        if !answer.status().is_success() {
            return Err(failed(format!("it answered {}", answer.status())));
        }
        serde_json::from_slice(answer.body()).map_err(|error| failed(error.to_string()))
    }

    /// The issuer's keys; `stale`: not these again, if they are old enough to ask anew.
    #[expect(clippy::disallowed_methods, reason = "ages a cache in a shell; decides nothing that is agreed")]
    async fn keys(&self, issuer: &str, stale: Option<&Arc<Keys>>) -> Result<Arc<Keys>, TokenError> {
        let kept = {
            let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.get(issuer).cloned()
        };
        if let Some((since, keys)) = kept {
            let is_stale = stale.is_some_and(|stale| Arc::ptr_eq(stale, &keys));
            let age_max = if is_stale { KEYS_AGE_MIN } else { KEYS_AGE_MAX };
            if since.elapsed() < age_max {
                return Ok(keys);
            }
        }
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
            jwks_uri: String,
        }
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let discovery: Discovery = self.fetch(&url).await?;
        if discovery.issuer != issuer {
            return Err(TokenError::Issuer(format!("{url} is of the issuer {:?}", discovery.issuer)));
        }
        let found: Arc<Keys> = Arc::new(self.fetch(&discovery.jwks_uri).await?);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= ISSUERS_MAX && !keys.contains_key(issuer) {
            keys.retain(|_, (since, _)| since.elapsed() < KEYS_AGE_MAX);
            if keys.len() >= ISSUERS_MAX {
                keys.clear();
            }
        }
        keys.insert(issuer.to_owned(), (Instant::now(), Arc::clone(&found)));
        Ok(found)
    }
}

impl Identity {
    /// What `token` says, if its issuer signed it, it is in force, and for one of `audiences`. Whether its issuer may vouch
    /// for anyone is for the caller to check before.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn verify_token(
        &self,
        token: &str,
        audiences: &BTreeSet<String>,
        now: Timestamp,
    ) -> Result<Claims, TokenError> {
        let claims = Claims::unverified(token)?;
        let invalid = |why: String| TokenError::Invalid(why);
        let header = token.split('.').next().and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok());
        let header: Header = serde_json::from_slice(&header.unwrap_or_default())
            .map_err(|error| invalid(format!("its header: {error}")))?;
        let issuers = &self.inner.issuers;
        let known = issuers.keys(&claims.iss, None).await?;
        let is_signed = match signed_by(token, &header, &known) {
            true => true,
            // The issuer may have changed its keys.
            false => {
                let newer = issuers.keys(&claims.iss, Some(&known)).await?;
                !Arc::ptr_eq(&newer, &known) && signed_by(token, &header, &newer)
            }
        };
        if !is_signed {
            return Err(invalid("no key of its issuer made the signature".to_owned()));
        }
        let seconds = now.0 / 1000;
        if claims.exp.saturating_add(SKEW_SECONDS_MAX) <= seconds {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|from| from > seconds.saturating_add(SKEW_SECONDS_MAX)) {
            return Err(invalid("it is not in force yet".to_owned()));
        }
        if claims.audiences().is_disjoint(audiences) {
            return Err(TokenError::Audience);
        }
        Ok(claims)
    }
}

/// A token's first part.
#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
}

/// An issuer's keys.
#[derive(Debug, Deserialize)]
struct Keys {
    keys: Vec<Key>,
}

/// One of them (RFC 7517, 7518, 8037); those of other kinds are passed over.
#[derive(Debug, Deserialize)]
struct Key {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

impl Key {
    /// Whether this key made `signature` of `message` by `algorithm`, which must be one of the key's kind.
    fn verifies(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        let part = |part: &Option<String>| BASE64_URL_SAFE_NO_PAD.decode(part.as_deref()?).ok();
        let rsa: &signature::RsaParameters = match algorithm {
            "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
            "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
            "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
            "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
            "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
            "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return self.verifies_by_curve(algorithm, message, signature),
        };
        let (Some(n), Some(e)) = (part(&self.n), part(&self.e)) else { return false };
        let key = signature::RsaPublicKeyComponents { n, e };
        self.kty == "RSA" && key.verify(rsa, message, signature).is_ok()
    }

    fn verifies_by_curve(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        let part = |part: &Option<String>| BASE64_URL_SAFE_NO_PAD.decode(part.as_deref()?).ok();
        let kind = (algorithm, self.kty.as_str(), self.crv.as_deref().unwrap_or_default());
        let verifier: &dyn signature::VerificationAlgorithm = match kind {
            ("ES256", "EC", "P-256") => &signature::ECDSA_P256_SHA256_FIXED,
            ("ES384", "EC", "P-384") => &signature::ECDSA_P384_SHA384_FIXED,
            ("EdDSA", "OKP", "Ed25519") => &signature::ED25519,
            _ => return false,
        };
        let point = match (self.kty.as_str(), part(&self.x), part(&self.y)) {
            ("EC", Some(x), Some(y)) => [vec![4], x, y].concat(),
            ("OKP", Some(x), _) => x,
            _ => return false,
        };
        signature::UnparsedPublicKey::new(verifier, point).verify(message, signature).is_ok()
    }
}

/// Whether one of the keys made the signature.
fn signed_by(token: &str, header: &Header, keys: &Keys) -> bool {
    let Some((message, signature)) = token.rsplit_once('.') else { return false };
    let Ok(signature) = BASE64_URL_SAFE_NO_PAD.decode(signature) else { return false };
    let is_meant = |key: &&Key| header.kid.is_none() || key.kid.is_none() || key.kid == header.kid;
    keys.keys.iter().filter(is_meant).any(|key| key.verifies(&header.alg, message.as_bytes(), &signature))
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_signed_by_its_issuers_key_and_by_no_other() {
        let random = SystemRandom::new();
        let make = || {
            let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random).unwrap()
        };
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let jwk = |pair: &EcdsaKeyPair, kid: &str| {
            let point = pair.public_key().as_ref();
            json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": encode(&point[1..33]), "y": encode(&point[33..]) })
        };
        let (own, other) = (make(), make());
        let read = |keys: Value| serde_json::from_value::<Keys>(json!({ "keys": keys })).unwrap();
        let said =
            json!({ "iss": "https://i", "sub": "ann", "aud": ["a", "b"], "azp": "c", "exp": 1 }).to_string();
        let message = format!("{}.{}", encode(br#"{"alg":"ES256","kid":"1"}"#), encode(said.as_bytes()));
        let signature = own.sign(&random, message.as_bytes()).unwrap();
        let token = format!("{message}.{}", encode(signature.as_ref()));
        let header = |alg: &str| Header { alg: alg.to_owned(), kid: Some("1".to_owned()) };
        let strange = json!({ "kty": "oct", "k": "AA" });
        assert!(signed_by(&token, &header("ES256"), &read(json!([strange, jwk(&own, "1")]))));
        assert!(!signed_by(&token, &header("ES256"), &read(json!([jwk(&own, "2")]))), "another key is named");
        assert!(!signed_by(&token, &header("ES256"), &read(json!([jwk(&other, "1")]))));
        for wrong in ["none", "HS256", "RS256", "ES384", "EdDSA", ""] {
            assert!(!signed_by(&token, &header(wrong), &read(json!([jwk(&own, "1")]))), "{wrong}");
        }
        let changed =
            token.replacen(&encode(said.as_bytes()), &encode(said.replace("ann", "bob").as_bytes()), 1);
        assert!(!signed_by(&changed, &header("ES256"), &read(json!([jwk(&own, "1")]))));
        let claims = Claims::unverified(&token).unwrap();
        assert_eq!(claims.audiences(), ["a", "b", "c"].map(str::to_owned).into());
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", ".", "..", "a.b.c", "e30.e30.e30", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert!(Claims::unverified(text).is_err(), "{}", &text[..text.len().min(20)]);
        }
    }
}
