//! Access lists in headers and XML.

use http::HeaderMap;
use s3s::dto::{
    AccessControlPolicy, Grant as GrantXml, Grantee as GranteeXml, Owner, Permission as PermissionXml, Type,
};
use s3s::{S3Error, S3Result, s3_error};

use super::super::errors::{custom, refused};
use super::known_account;
use crate::objects::Objects;
use crate::policy::acl::{Acl, GRANTS_MAX, Grant, Grantee, Permission};
use crate::policy::principal::canonical_id;

/// What a request says of the access list of what it makes or changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::s3) struct Asked {
    pub(in crate::s3) canned: Option<String>,
    /// Permission and the header's text.
    grants: Vec<(Permission, String)>,
}

const GRANT_HEADERS: [(&str, Permission); 5] = [
    ("x-amz-grant-read", Permission::Read),
    ("x-amz-grant-write", Permission::Write),
    ("x-amz-grant-read-acp", Permission::ReadAcp),
    ("x-amz-grant-write-acp", Permission::WriteAcp),
    ("x-amz-grant-full-control", Permission::FullControl),
];

impl Asked {
    pub(in crate::s3) fn of_headers(headers: &HeaderMap) -> S3Result<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let grants = GRANT_HEADERS.iter().filter_map(|(name, permission)| Some((*permission, text(name)?)));
        let asked = Self { canned: text("x-amz-acl"), grants: grants.collect() };
        if asked.canned.is_some() && !asked.grants.is_empty() {
            return Err(s3_error!(
                InvalidRequest,
                "Specifying both Canned ACLs and Header Grants is not allowed"
            ));
        }
        Ok(asked)
    }

    pub(in crate::s3) fn is_none(&self) -> bool {
        self.canned.is_none() && self.grants.is_empty()
    }

    /// The list that is meant; nothing said means the owner's alone.
    pub(in crate::s3) async fn list(
        &self,
        objects: &Objects,
        owner: u64,
        bucket_owner: u64,
    ) -> S3Result<Acl> {
        if let Some(name) = &self.canned {
            return Acl::canned(name, owner, bucket_owner).ok_or_else(|| {
                let shown: String = name.chars().take(40).collect();
                s3_error!(InvalidArgument, "{shown:?} is no canned ACL.")
            });
        }
        if self.grants.is_empty() {
            return Ok(Acl::private(owner));
        }
        let mut acl = Acl { owner, grants: Vec::new() };
        for (permission, text) in &self.grants {
            for grantee in text.split(',').map(str::trim).filter(|grantee| !grantee.is_empty()) {
                let grantee = grantee_of_header(objects, grantee).await?;
                acl.grants.push(Grant { grantee, permission: *permission });
            }
        }
        if acl.grants.len() > GRANTS_MAX {
            return Err(too_many());
        }
        Ok(acl)
    }
}

/// `id="..."`, `uri="..."`, with or without quotes.
async fn grantee_of_header(objects: &Objects, text: &str) -> S3Result<Grantee> {
    let invalid = || s3_error!(InvalidArgument, "Argument format not recognized");
    let (kind, value) = text.split_once('=').ok_or_else(invalid)?;
    let value = value.trim().trim_matches('"');
    match kind.trim() {
        "id" => account(objects, value).await,
        "uri" => group(value),
        "emailAddress" => Err(by_email()),
        _ => Err(invalid()),
    }
}

async fn account(objects: &Objects, id: &str) -> S3Result<Grantee> {
    let account = known_account(objects, id).await?;
    account.map(Grantee::Account).ok_or_else(|| s3_error!(InvalidArgument, "Invalid id"))
}

fn group(uri: &str) -> S3Result<Grantee> {
    Grantee::from_uri(uri).ok_or_else(|| s3_error!(InvalidArgument, "Invalid group uri"))
}

fn by_email() -> S3Error {
    custom(
        "UnresolvableGrantByEmailAddress",
        400,
        "The e-mail address you provided does not match any account on record.",
    )
}

fn too_many() -> S3Error {
    s3_error!(MalformedACLError, "An access list has at most {GRANTS_MAX} grants.")
}

/// The list that an XML body says; its owner cannot be changed by it.
pub(in crate::s3) async fn of_xml(
    objects: &Objects,
    policy: &AccessControlPolicy,
    owner: u64,
) -> S3Result<Acl> {
    let malformed = || {
        s3_error!(
            MalformedACLError,
            "The XML you provided was not well-formed or did not validate against our published schema"
        )
    };
    let said = policy.owner.as_ref().and_then(|said| said.id.as_deref()).ok_or_else(malformed)?;
    if said != canonical_id(owner) {
        return Err(super::denied());
    }
    let grants = policy.grants.as_deref().unwrap_or_default();
    if grants.len() > GRANTS_MAX {
        return Err(too_many());
    }
    let mut acl = Acl { owner, grants: Vec::new() };
    for grant in grants {
        let grantee = grant.grantee.as_ref().ok_or_else(malformed)?;
        let permission = grant.permission.as_ref().ok_or_else(malformed)?;
        let permission = Permission::from_name(permission.as_str()).ok_or_else(malformed)?;
        let grantee = match (grantee.type_.as_str(), &grantee.id, &grantee.uri) {
            (Type::CANONICAL_USER, Some(id), _) => account(objects, id).await?,
            (Type::GROUP, _, Some(uri)) => group(uri)?,
            (Type::AMAZON_CUSTOMER_BY_EMAIL, _, _) => return Err(by_email()),
            _ => return Err(malformed()),
        };
        acl.grants.push(Grant { grantee, permission });
    }
    Ok(acl)
}

/// Owner and grants, as S3's XML has them: those of groups first, as other servers list them; accounts by name where they
/// still exist.
pub(in crate::s3) async fn to_xml(objects: &Objects, acl: &Acl) -> S3Result<(Owner, Vec<GrantXml>)> {
    let mut grants = Vec::with_capacity(acl.grants.len());
    let (accounts, groups): (Vec<&Grant>, Vec<&Grant>) =
        acl.grants.iter().partition(|grant| matches!(grant.grantee, Grantee::Account(_)));
    for grant in groups.into_iter().chain(accounts) {
        let grantee = match grant.grantee {
            Grantee::Account(id) => GranteeXml {
                display_name: objects.tenant_name(id).await.map_err(refused)?,
                email_address: None,
                id: Some(canonical_id(id)),
                type_: Type::from_static(Type::CANONICAL_USER),
                uri: None,
            },
            group => GranteeXml {
                display_name: None,
                email_address: None,
                id: None,
                type_: Type::from_static(Type::GROUP),
                uri: group.uri().map(str::to_owned),
            },
        };
        let permission = Some(PermissionXml::from(grant.permission.name().to_owned()));
        grants.push(GrantXml { grantee: Some(grantee), permission });
    }
    let owner = Owner {
        display_name: objects.tenant_name(acl.owner).await.map_err(refused)?,
        id: Some(canonical_id(acl.owner)),
    };
    Ok((owner, grants))
}
