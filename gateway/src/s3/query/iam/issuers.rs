//! OpenID Connect providers: who may vouch for identities that assume roles.

use std::collections::BTreeSet;

use http::Uri;
use makai_raft::facts::Timestamp;
use s3s::S3Result;

use super::{Own, check_room};
use crate::identity::directory::{Directory, Issuer};
use crate::s3::errors::custom;
use crate::s3::query::validation;
use crate::s3::query::xml::{self, leaf, list};

const ISSUERS_MAX: usize = 100;
const CLIENTS_MAX: usize = 100;

pub(super) async fn answer(own: &Own<'_>, action: &str) -> S3Result<String> {
    match action {
        "CreateOpenIDConnectProvider" => create(own).await,
        "ListOpenIDConnectProviders" => {
            let directory = own.read().await?;
            let one = |host: &String| leaf("Arn", own.arn("oidc-provider", "/", host));
            Ok(list("OpenIDConnectProviderList", directory.issuers.keys().map(one)))
        }
        "GetOpenIDConnectProvider" => {
            let mut directory = own.read().await?;
            let issuer = find(own, &mut directory)?;
            let inside = [
                leaf("Url", issuer.url.strip_prefix("https://").unwrap_or(&issuer.url)),
                list("ClientIDList", issuer.clients.iter().map(|client| super::xml_text(client))),
                list("ThumbprintList", issuer.thumbprints.iter().map(|print| super::xml_text(print))),
                leaf("CreateDate", xml::time(Timestamp(issuer.created_ms))),
            ];
            Ok(inside.concat())
        }
        "DeleteOpenIDConnectProvider" => {
            let host = named(own)?;
            own.change(|directory| directory.issuers.remove(host).map(|_| ()).ok_or_else(|| no_issuer(host)))
                .await?;
            Ok(String::new())
        }
        "UpdateOpenIDConnectProviderThumbprint" => {
            let prints = thumbprints(own)?;
            own.change(|directory| {
                find(own, directory)?.thumbprints.clone_from(&prints);
                Ok(())
            })
            .await?;
            Ok(String::new())
        }
        _ => {
            let client = own.call.required("ClientID")?;
            check_client(client)?;
            own.change(|directory| {
                let clients = &mut find(own, directory)?.clients;
                if action.starts_with("Add") {
                    clients.insert(client.to_owned());
                } else {
                    clients.remove(client);
                }
                check_room(clients.len(), CLIENTS_MAX + 1, "ClientIdsPerOpenIdConnectProvider")
            })
            .await?;
            Ok(String::new())
        }
    }
}

fn without_scheme(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/')
}

fn named<'a>(own: &'a Own<'_>) -> S3Result<&'a str> {
    let arn = own.call.required("OpenIDConnectProviderArn")?;
    let prefix = own.arn("oidc-provider", "/", "");
    arn.strip_prefix(prefix.as_str()).ok_or_else(|| no_issuer(arn))
}

fn no_issuer(arn: &str) -> s3s::S3Error {
    custom("NoSuchEntity", 404, format!("OpenIDConnect Provider not found for arn {arn}"))
}

fn find<'d>(own: &Own<'_>, directory: &'d mut Directory) -> S3Result<&'d mut Issuer> {
    let host = named(own)?;
    directory.issuers.get_mut(host).ok_or_else(|| no_issuer(host))
}

fn check_client(client: &str) -> S3Result<()> {
    if (1..=255).contains(&client.len()) {
        Ok(())
    } else {
        Err(validation("A client's id has 1 to 255 bytes."))
    }
}

fn thumbprints(own: &Own<'_>) -> S3Result<Vec<String>> {
    let prints = own.call.members("ThumbprintList");
    if prints.len() > 5 || prints.iter().any(|print| print.len() != 40) {
        return Err(validation("ThumbprintList has at most 5 of 40 hex digits."));
    }
    Ok(prints.into_iter().map(str::to_owned).collect())
}

async fn create(own: &Own<'_>) -> S3Result<String> {
    let url = own.call.required("Url")?;
    let parsed: Option<Uri> = url.parse().ok();
    let is_url = parsed.is_some_and(|uri| {
        // One without TLS can be named; whether its keys are fetched is another question.
        matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some() && uri.query().is_none()
    });
    if !is_url || url.len() > 255 {
        return Err(validation(
            "Url begins with https:// or http:// and has at most 255 bytes and no query.",
        ));
    }
    let clients: BTreeSet<String> = own.call.members("ClientIDList").into_iter().map(str::to_owned).collect();
    for client in &clients {
        check_client(client)?;
    }
    check_room(clients.len(), CLIENTS_MAX + 1, "ClientIdsPerOpenIdConnectProvider")?;
    let issuer =
        Issuer { url: url.to_owned(), created_ms: own.call.now.0, clients, thumbprints: thumbprints(own)? };
    let host = without_scheme(url);
    own.change(|directory| {
        if directory.issuers.contains_key(host) {
            return Err(custom(
                "EntityAlreadyExists",
                409,
                format!("Provider with url {url} already exists."),
            ));
        }
        check_room(directory.issuers.len(), ISSUERS_MAX, "OpenIdConnectProvidersPerAccount")?;
        directory.issuers.insert(host.to_owned(), issuer.clone());
        Ok(())
    })
    .await?;
    Ok(leaf("OpenIDConnectProviderArn", own.arn("oidc-provider", "/", host)))
}
