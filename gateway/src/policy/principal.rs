//! Who asks, and whom a statement names.

use serde_json::Value;

use super::document::Malformed;

/// A tenant, as policies name accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account<'a> {
    pub id: u64,
    pub name: &'a str,
}

impl Account<'_> {
    /// `arn:aws:iam::ACCOUNT:` with the number that AWS's tools expect.
    #[must_use]
    pub fn number(&self) -> String {
        format!("{:012}", self.id)
    }

    /// 64 hex digits: how access lists name an account.
    #[must_use]
    pub fn canonical_id(&self) -> String {
        canonical_id(self.id)
    }
}

/// 64 hex digits: how access lists name an account.
#[must_use]
pub fn canonical_id(account: u64) -> String {
    format!("{account:064x}")
}

/// The account that 64 hex digits name.
#[must_use]
pub fn account_of(canonical_id: &str) -> Option<u64> {
    let is_shape = canonical_id.len() == 64 && canonical_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_shape || canonical_id[..48].bytes().any(|byte| byte != b'0') {
        return None;
    }
    u64::from_str_radix(&canonical_id[48..], 16).ok()
}

/// Who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requester<'a> {
    Anonymous,
    /// The account itself: may do with its own what no deny forbids.
    Root(Account<'a>),
    User {
        account: Account<'a>,
        /// Begins and ends with a slash.
        path: &'a str,
        name: &'a str,
    },
    Role {
        account: Account<'a>,
        /// Begins and ends with a slash.
        path: &'a str,
        name: &'a str,
        session: &'a str,
    },
    /// Someone for whom an issuer of identities vouches: its name, which is its URL without scheme.
    Federated {
        /// Of whom the issuer is trusted.
        account: Account<'a>,
        issuer: &'a str,
    },
}

impl<'a> Requester<'a> {
    #[must_use]
    pub fn account(&self) -> Option<Account<'a>> {
        match self {
            Self::Anonymous | Self::Federated { .. } => None,
            Self::Root(account) | Self::User { account, .. } | Self::Role { account, .. } => Some(*account),
        }
    }

    /// The name that `aws:PrincipalArn` has.
    #[must_use]
    pub fn arn(&self) -> Option<String> {
        match self {
            Self::Anonymous | Self::Federated { .. } => None,
            Self::Root(account) => Some(format!("arn:aws:iam::{}:root", account.number())),
            Self::User { account, path, name } => {
                Some(format!("arn:aws:iam::{}:user{path}{name}", account.number()))
            }
            Self::Role { account, path, name, .. } => {
                Some(format!("arn:aws:iam::{}:role{path}{name}", account.number()))
            }
        }
    }
}

/// How a statement's principal means a requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meant {
    No,
    /// Its account: whom of it, the account's own policies say.
    Account,
    Itself,
}

/// How a policy names an account: by its number, or by its tenant's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccountName {
    Number(u64),
    Name(Box<str>),
}

/// Whom of an account a policy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Named<'p> {
    Account,
    User(&'p str),
    /// The role, or a session in it.
    Role(&'p str),
}

impl AccountName {
    fn is(&self, account: &Account<'_>) -> bool {
        match self {
            Self::Number(id) => *id == account.id,
            Self::Name(name) => **name == *account.name,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum One {
    Everyone,
    Account(AccountName),
    User(AccountName, Box<str>),
    Role(AccountName, Box<str>),
    Session(AccountName, Box<str>, Box<str>),
    /// An issuer of identities, by its name or ARN.
    Issuer(Box<str>),
    /// Services and federated users, of whom none asks here.
    Foreign,
}

/// `Principal` or `NotPrincipal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principals(Vec<One>);

impl Principals {
    pub fn parse(value: &Value) -> Result<Self, Malformed> {
        let invalid = Malformed::invalid_principal;
        let kinds = match value {
            Value::String(text) if text == "*" => return Ok(Self(vec![One::Everyone])),
            Value::Object(kinds) if !kinds.is_empty() => kinds,
            _ => return Err(invalid()),
        };
        let mut all = Vec::new();
        for (kind, names) in kinds {
            let names: Vec<&str> = match names {
                Value::String(name) => vec![name],
                Value::Array(names) => {
                    names.iter().map(|name| name.as_str().ok_or_else(invalid)).collect::<Result<_, _>>()?
                }
                _ => return Err(invalid()),
            };
            if names.is_empty() {
                return Err(invalid());
            }
            for name in names {
                all.push(match kind.as_str() {
                    "AWS" => aws(name),
                    "CanonicalUser" if name == "*" => Some(One::Everyone),
                    "CanonicalUser" => {
                        account_of(name).map(|account| One::Account(AccountName::Number(account)))
                    }
                    "Federated" if !name.is_empty() => Some(One::Issuer(name.into())),
                    "Service" if !name.is_empty() => Some(One::Foreign),
                    _ => None,
                });
            }
        }
        all.into_iter().collect::<Option<_>>().map(Self).ok_or_else(invalid)
    }

    pub fn means(&self, requester: &Requester<'_>) -> Meant {
        self.0.iter().map(|one| one.means(requester)).max().unwrap_or(Meant::No)
    }

    /// Those who are named one by one, for who can tell whether they exist.
    pub fn named(&self) -> impl Iterator<Item = (&AccountName, Named<'_>)> {
        self.0.iter().filter_map(|one| match one {
            One::Everyone | One::Issuer(_) | One::Foreign => None,
            One::Account(of) => Some((of, Named::Account)),
            One::User(of, name) => Some((of, Named::User(name))),
            One::Role(of, name) | One::Session(of, name, _) => Some((of, Named::Role(name))),
        })
    }

    /// Whether anyone at all is meant.
    pub fn is_everyone(&self) -> bool {
        self.0.contains(&One::Everyone)
    }

    /// Whether all who are meant belong to `account`.
    pub fn are_of(&self, account: &Account<'_>) -> bool {
        self.0.iter().all(|one| match one {
            One::Everyone => false,
            One::Foreign | One::Issuer(_) => true,
            One::Account(of) | One::User(of, _) | One::Role(of, _) | One::Session(of, _, _) => of.is(account),
        })
    }
}

impl One {
    fn means(&self, requester: &Requester<'_>) -> Meant {
        let is_meant = match (self, requester) {
            (Self::Everyone, _) => true,
            (Self::Account(of), Requester::Root(account)) => of.is(account),
            (Self::Account(of), Requester::User { account, .. } | Requester::Role { account, .. }) => {
                return if of.is(account) { Meant::Account } else { Meant::No };
            }
            (Self::User(of, user), Requester::User { account, name, .. }) => {
                of.is(account) && **user == **name
            }
            (Self::Role(of, role), Requester::Role { account, name, .. }) => {
                of.is(account) && **role == **name
            }
            (Self::Issuer(named), Requester::Federated { account, issuer }) => {
                let arn = format!("arn:aws:iam::{}:oidc-provider/{issuer}", account.number());
                **named == *arn || **named == **issuer
            }
            (Self::Session(of, role, of_session), Requester::Role { account, name, session, .. }) => {
                of.is(account) && **role == **name && **of_session == **session
            }
            _ => false,
        };
        if is_meant { Meant::Itself } else { Meant::No }
    }
}

/// A name under `AWS`.
fn aws(name: &str) -> Option<One> {
    if name == "*" {
        return Some(One::Everyone);
    }
    let Some(rest) = name.strip_prefix("arn:aws:") else { return account_name(name).map(One::Account) };
    let (service, rest) = rest.split_once("::")?;
    let (account, what) = rest.split_once(':')?;
    let (kind, path) = what.split_once('/').unwrap_or((what, ""));
    if account.is_empty() && (service, kind) == ("iam", "user") {
        // A tenant by the id that its access lists show.
        return account_of(path).map(|account| One::Account(AccountName::Number(account)));
    }
    let account = account_name(account)?;
    // Only the last part of a path is the name.
    let named = |path: &str| path.rsplit('/').next().filter(|name| !name.is_empty()).map(Box::from);
    match (service, kind) {
        ("iam", "root") if path.is_empty() => Some(One::Account(account)),
        ("iam", "user") => Some(One::User(account, named(path)?)),
        ("iam", "role") => Some(One::Role(account, named(path)?)),
        ("sts", "assumed-role") => {
            let (role, session) = path.split_once('/')?;
            (!role.is_empty() && !session.is_empty())
                .then(|| One::Session(account, role.into(), session.into()))
        }
        ("sts", "federated-user") => Some(One::Foreign),
        _ => None,
    }
}

fn account_name(text: &str) -> Option<AccountName> {
    if text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(AccountName::Number);
    }
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ((1..=64).contains(&text.len()) && text.bytes().all(is_name)).then(|| AccountName::Name(text.into()))
}
