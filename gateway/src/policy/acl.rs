//! Owners and grants of buckets and objects.
//!
//! Kept as one line of text, `acl1 OWNER GRANTEE:PERMISSION ...`: accounts are numbers, the groups are `all`, `signed`
//! and `logs`, permissions are written as S3 spells them.

use super::principal::{Account, Requester};

/// Grants of one access list, as S3 bounds it.
pub const GRANTS_MAX: usize = 100;

const MAGIC: &str = "acl1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    FullControl,
    Read,
    Write,
    ReadAcp,
    WriteAcp,
}

impl Permission {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FullControl => "FULL_CONTROL",
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::ReadAcp => "READ_ACP",
            Self::WriteAcp => "WRITE_ACP",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::FullControl, Self::Read, Self::Write, Self::ReadAcp, Self::WriteAcp]
            .into_iter()
            .find(|permission| permission.name() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grantee {
    Account(u64),
    AllUsers,
    AuthenticatedUsers,
    LogDelivery,
}

impl Grantee {
    /// The name of a group.
    #[must_use]
    pub fn uri(self) -> Option<&'static str> {
        match self {
            Self::Account(_) => None,
            Self::AllUsers => Some("http://acs.amazonaws.com/groups/global/AllUsers"),
            Self::AuthenticatedUsers => Some("http://acs.amazonaws.com/groups/global/AuthenticatedUsers"),
            Self::LogDelivery => Some("http://acs.amazonaws.com/groups/s3/LogDelivery"),
        }
    }

    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        [Self::AllUsers, Self::AuthenticatedUsers, Self::LogDelivery]
            .into_iter()
            .find(|group| group.uri() == Some(uri))
    }

    fn means(self, requester: &Requester<'_>) -> bool {
        match self {
            Self::Account(id) => requester.account().is_some_and(|account| account.id == id),
            Self::AllUsers => true,
            Self::AuthenticatedUsers => requester.account().is_some(),
            Self::LogDelivery => false,
        }
    }

    /// Whether people whom nobody knows are meant.
    #[must_use]
    pub fn is_public(self) -> bool {
        matches!(self, Self::AllUsers | Self::AuthenticatedUsers)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    pub grantee: Grantee,
    pub permission: Permission,
}

/// Whose a bucket or an object is, and what others may do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    pub owner: u64,
    pub grants: Vec<Grant>,
}

impl Acl {
    /// The owner's alone.
    #[must_use]
    pub fn private(owner: u64) -> Self {
        let grant = Grant { grantee: Grantee::Account(owner), permission: Permission::FullControl };
        Self { owner, grants: vec![grant] }
    }

    /// What a canned name stands for; `None`: there is no such name.
    ///
    /// `bucket_owner`: of the bucket that an object lies in; a bucket's own owner for a bucket.
    #[must_use]
    pub fn canned(name: &str, owner: u64, bucket_owner: u64) -> Option<Self> {
        use Grantee::{AllUsers, AuthenticatedUsers, LogDelivery};
        use Permission::{FullControl, Read, ReadAcp, Write};
        let to_bucket = Grantee::Account(bucket_owner);
        let more: &[(Grantee, Permission)] = match name {
            "private" | "aws-exec-read" => &[],
            "public-read" => &[(AllUsers, Read)],
            "public-read-write" => &[(AllUsers, Read), (AllUsers, Write)],
            "authenticated-read" => &[(AuthenticatedUsers, Read)],
            "log-delivery-write" => &[(LogDelivery, Write), (LogDelivery, ReadAcp)],
            "bucket-owner-read" => &[(to_bucket, Read)],
            "bucket-owner-full-control" => &[(to_bucket, FullControl)],
            _ => return None,
        };
        let mut acl = Self::private(owner);
        for (grantee, permission) in more.iter().copied() {
            if grantee != Grantee::Account(owner) {
                acl.grants.push(Grant { grantee, permission });
            }
        }
        Some(acl)
    }

    /// Whether a grant lets `requester` do what needs `permission`.
    #[must_use]
    pub fn allows(&self, requester: &Requester<'_>, permission: Permission, ignores_public: bool) -> bool {
        self.grants.iter().any(|grant| {
            (grant.permission == permission || grant.permission == Permission::FullControl)
                && !(ignores_public && grant.grantee.is_public())
                && grant.grantee.means(requester)
        })
    }

    #[must_use]
    pub fn is_public(&self) -> bool {
        self.grants.iter().any(|grant| grant.grantee.is_public())
    }

    /// Whether it gives nothing to anyone but its owner and `also`.
    #[must_use]
    pub fn is_within(&self, also: &Account<'_>) -> bool {
        self.grants
            .iter()
            .all(|grant| matches!(grant.grantee, Grantee::Account(id) if id == self.owner || id == also.id))
    }

    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{MAGIC} {}", self.owner);
        for Grant { grantee, permission } in &self.grants {
            let grantee = match grantee {
                Grantee::Account(id) => id.to_string(),
                Grantee::AllUsers => "all".to_owned(),
                Grantee::AuthenticatedUsers => "signed".to_owned(),
                Grantee::LogDelivery => "logs".to_owned(),
            };
            text += &format!(" {grantee}:{}", permission.name());
        }
        text
    }

    /// `None`: it is not a text that [`to_text`](Self::to_text) makes.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some(MAGIC) {
            return None;
        }
        let owner = words.next()?.parse().ok()?;
        let grant = |word: &str| {
            let (grantee, permission) = word.split_once(':')?;
            let grantee = match grantee {
                "all" => Grantee::AllUsers,
                "signed" => Grantee::AuthenticatedUsers,
                "logs" => Grantee::LogDelivery,
                id => Grantee::Account(id.parse().ok()?),
            };
            Some(Grant { grantee, permission: Permission::from_name(permission)? })
        };
        Some(Self { owner, grants: words.map(grant).collect::<Option<_>>()? })
    }
}
