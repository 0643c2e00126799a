//! What policies are told of a request.

use http::{HeaderMap, header};
use makai_raft::facts::Timestamp;

use super::{Peer, Who};
use crate::policy::condition::Context;
use crate::rights;

/// Headers whose values policies may ask for, by the key's name after `s3:`.
const HEADERS: [&str; 22] = [
    "if-match",
    "if-none-match",
    "x-amz-acl",
    "x-amz-content-sha256",
    "x-amz-copy-source",
    "x-amz-grant-full-control",
    "x-amz-grant-read",
    "x-amz-grant-read-acp",
    "x-amz-grant-write",
    "x-amz-grant-write-acp",
    "x-amz-metadata-directive",
    "x-amz-object-ownership",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-storage-class",
    "x-amz-website-redirect-location",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-object-lock-legal-hold",
    "x-amz-bypass-governance-retention",
    "x-amz-mfa",
];

/// What is known of a request before its object is looked at.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) context: Context,
}

impl Facts {
    pub(super) fn of_request(
        who: &Who,
        query: &str,
        headers: &HeaderMap,
        peer: Option<Peer>,
        now: Timestamp,
    ) -> Self {
        let mut context = rights::context(&who.requester(), now);
        if let Some(address) = peer.and_then(|peer| peer.address) {
            context.add("aws:SourceIp", address.ip().to_canonical().to_string());
        }
        context.add("aws:SecureTransport", peer.is_some_and(|peer| peer.is_tls).to_string());
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        for (key, name) in [("aws:Referer", header::REFERER), ("aws:UserAgent", header::USER_AGENT)] {
            if let Some(value) = text(name.as_str()) {
                context.add(key, value);
            }
        }
        for name in HEADERS {
            if let Some(value) = text(name) {
                context.add(&format!("s3:{name}"), value);
            }
        }
        of_query(&mut context, query);
        let is_presigned = query.split('&').any(|pair| pair.starts_with("X-Amz-Signature="));
        if who.caller.is_some() {
            context.add("s3:authType", if is_presigned { "REST-QUERY-STRING" } else { "REST-HEADER" });
            context.add("s3:signatureversion", "AWS4-HMAC-SHA256");
        }
        for (key, value) in text("x-amz-tagging").map(super::super::headers::parse_tags).unwrap_or_default() {
            context.add(&format!("s3:RequestObjectTag/{key}"), value);
            context.add("s3:RequestObjectTagKeys", key);
        }
        Self { context }
    }

    /// As it is, with the tags that the object has.
    pub(super) fn with_tags(&self, tagging: &str) -> Context {
        let mut context = self.context.clone();
        for (key, value) in super::super::headers::parse_tags(tagging) {
            context.add(&format!("s3:ExistingObjectTag/{key}"), value);
        }
        context
    }
}

fn of_query(context: &mut Context, query: &str) {
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let key = match &*name {
            "prefix" => "s3:prefix",
            "delimiter" => "s3:delimiter",
            "max-keys" => "s3:max-keys",
            "versionId" => "s3:VersionId",
            _ => continue,
        };
        context.add(key, value);
    }
}
