//! Policies as AWS writes them, checked and compiled.

use serde_json::Value;

use super::actions::{Target, targets};
use super::condition::{Conditions, Context};
use super::pattern::{Pattern, Wildcards, glob};
use super::principal::{Account, AccountName, Meant, Named, Principals, Requester};

/// Bytes of a policy, as S3 bounds a bucket's.
pub const POLICY_BYTES_MAX: usize = 20 * 1024;

const VERSIONS: [&str; 2] = ["2012-10-17", "2008-10-17"];

/// Why a text is no policy, as S3 says it (`MalformedPolicy`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// Somebody is named who cannot be, or does not exist.
    #[must_use]
    pub fn invalid_principal() -> Self {
        Self::new("Invalid principal in policy")
    }
}

/// What a statement does where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Allow,
    Deny,
}

/// What a policy hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A bucket: statements name principals, and resources of this bucket.
    Bucket(&'a str),
    /// A user, group, role or session: statements name no principal.
    Identity,
    /// A role's trust: statements name principals and no resource.
    Trust,
}

/// A compiled policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    statements: Vec<Statement>,
}

#[derive(Debug, Clone, PartialEq)]
struct Statement {
    effect: Effect,
    principals: Option<(Principals, IsNegated)>,
    actions: (Vec<Pattern>, IsNegated),
    /// `None`: of a trust.
    resources: Option<(Vec<Pattern>, IsNegated)>,
    conditions: Conditions,
}

/// Whether what stands under `Not...` is meant to be left out.
type IsNegated = bool;

/// What a policy says of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opinion {
    pub is_denied: bool,
    /// The strongest way in which an allow names the requester.
    pub allows: Option<Meant>,
}

impl Policy {
    /// Whom its statements name one by one.
    pub fn named(&self) -> impl Iterator<Item = (&AccountName, Named<'_>)> {
        let principals = self.statements.iter().filter_map(|statement| statement.principals.as_ref());
        principals.flat_map(|(principals, _)| principals.named())
    }

    /// # Errors
    /// See [`Malformed`].
    pub fn parse(text: &[u8], kind: Kind<'_>) -> Result<Self, Malformed> {
        if text.len() > POLICY_BYTES_MAX {
            return Err(Malformed::new(format!(
                "The policy has {} bytes and exceeds the maximum of {POLICY_BYTES_MAX}",
                text.len()
            )));
        }
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| Malformed::new(format!("Policies must be valid JSON: {error}")))?;
        let fields = value.as_object().ok_or_else(|| Malformed::new("Policies must be a JSON object"))?;
        if let Some(name) =
            fields.keys().find(|name| !["Version", "Id", "Statement"].contains(&name.as_str()))
        {
            return Err(unknown_field(name));
        }
        let version = match fields.get("Version") {
            None => VERSIONS[1],
            Some(Value::String(version)) if VERSIONS.contains(&version.as_str()) => version,
            Some(_) => return Err(Malformed::new("The policy must contain a valid version string")),
        };
        let has_variables = version == VERSIONS[0];
        let statements = match fields.get("Statement") {
            Some(Value::Array(statements)) if !statements.is_empty() => statements.as_slice(),
            Some(one @ Value::Object(_)) => std::slice::from_ref(one),
            _ => return Err(Malformed::new("Missing required field Statement")),
        };
        let statements = statements.iter().map(|statement| Statement::parse(statement, kind, has_variables));
        Ok(Self { statements: statements.collect::<Result<_, _>>()? })
    }

    /// What the policy says of `action` on `resource` by `requester`.
    #[must_use]
    pub fn opinion(
        &self,
        requester: &Requester<'_>,
        action: &str,
        resource: &str,
        context: &Context,
    ) -> Opinion {
        let mut opinion = Opinion::default();
        for statement in &self.statements {
            let Some(meant) = statement.applies(requester, action, resource, context) else { continue };
            match statement.effect {
                Effect::Deny => return Opinion { is_denied: true, allows: None },
                Effect::Allow => opinion.allows = opinion.allows.max(Some(meant)),
            }
        }
        opinion
    }

    /// What the policy says of `action` on whatever begins with `prefix`, for doors that do not ask object by object: an
    /// allow counts where it certainly means all of that, a deny where it may mean some. What a condition asks that
    /// `context` does not tell, is taken to be against the requester.
    #[must_use]
    pub fn opinion_below(
        &self,
        requester: &Requester<'_>,
        action: &str,
        prefix: &str,
        context: &Context,
    ) -> Opinion {
        let mut opinion = Opinion::default();
        for statement in &self.statements {
            let Some(meant) = statement.means(requester, action) else { continue };
            let is_told = statement.conditions.are_told_by(context);
            match statement.effect {
                Effect::Deny => {
                    let may_hold = !is_told || statement.conditions.hold(context);
                    if may_hold && statement.may_mean_below(prefix, context) {
                        return Opinion { is_denied: true, allows: None };
                    }
                }
                Effect::Allow => {
                    if is_told
                        && statement.conditions.hold(context)
                        && statement.means_all_below(prefix, context)
                    {
                        opinion.allows = opinion.allows.max(Some(meant));
                    }
                }
            }
        }
        opinion
    }

    /// Whether it lets in whom nobody has named, as `GetBucketPolicyStatus` says it.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.statements.iter().any(|statement| {
            let is_open = match &statement.principals {
                Some((principals, false)) => principals.is_everyone(),
                Some((_, true)) => true,
                None => false,
            };
            statement.effect == Effect::Allow && is_open && !statement.conditions.narrow_the_public()
        })
    }

    /// Whether a condition asks for a key that begins with `prefix`.
    #[must_use]
    pub fn asks_for(&self, prefix: &str) -> bool {
        let mut keys = self.statements.iter().flat_map(|statement| statement.conditions.keys());
        keys.any(|key| key.starts_with(prefix))
    }

    /// Whether it names nobody outside of `account`.
    #[must_use]
    pub fn is_within(&self, account: &Account<'_>) -> bool {
        self.statements.iter().all(|statement| match &statement.principals {
            Some((principals, false)) => statement.effect == Effect::Deny || principals.are_of(account),
            Some((_, true)) => statement.effect == Effect::Deny,
            None => true,
        })
    }
}

impl Statement {
    fn parse(value: &Value, kind: Kind<'_>, has_variables: bool) -> Result<Self, Malformed> {
        const FIELDS: [&str; 9] = [
            "Sid",
            "Effect",
            "Principal",
            "NotPrincipal",
            "Action",
            "NotAction",
            "Resource",
            "NotResource",
            "Condition",
        ];
        let fields = value.as_object().ok_or_else(|| Malformed::new("Invalid policy syntax."))?;
        if let Some(name) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
            return Err(unknown_field(name));
        }
        if fields.get("Sid").is_some_and(|sid| !sid.is_string()) {
            return Err(Malformed::new("Invalid policy syntax: Sid is a text"));
        }
        let effect = match fields.get("Effect") {
            Some(Value::String(effect)) if effect == "Allow" => Effect::Allow,
            Some(Value::String(effect)) if effect == "Deny" => Effect::Deny,
            Some(other) => {
                return Err(Malformed::new(format!("Invalid effect: {}", shown(&other.to_string()))));
            }
            None => return Err(Malformed::new("Missing required field Effect")),
        };
        let either = |plain: &'static str, not: &'static str| match (fields.get(plain), fields.get(not)) {
            (Some(_), Some(_)) => {
                Err(Malformed::new(format!("Invalid policy syntax: {plain} and {not} exclude each other")))
            }
            (Some(value), None) => Ok(Some((value, false))),
            (None, Some(value)) => Ok(Some((value, true))),
            (None, None) => Ok(None),
        };
        let missing = |field: &str| Malformed::new(format!("Missing required field {field}"));

        let principals = match (kind, either("Principal", "NotPrincipal")?) {
            (Kind::Identity, None) => None,
            (Kind::Identity, Some(_)) => {
                return Err(Malformed::new("Policy document should not specify a principal."));
            }
            (_, None) => return Err(missing("Principal")),
            (_, Some((_, true))) if effect == Effect::Allow => {
                return Err(Malformed::new("Allow with NotPrincipal is not allowed"));
            }
            (_, Some((value, is_negated))) => Some((Principals::parse(value)?, is_negated)),
        };
        let (actions, not_actions) = either("Action", "NotAction")?.ok_or_else(|| missing("Action"))?;
        let actions = patterns(actions, false).ok_or_else(|| Malformed::new("Policy has invalid action"))?;
        let resources = match (kind, either("Resource", "NotResource")?) {
            (Kind::Trust, None) => None,
            (Kind::Trust, Some(_)) => return Err(unknown_field("Resource")),
            (_, None) => return Err(missing("Resource")),
            (_, Some((value, is_negated))) => {
                let resources = patterns(value, has_variables);
                Some((resources.ok_or_else(|| Malformed::new("Policy has invalid resource"))?, is_negated))
            }
        };
        if let (Kind::Bucket(bucket), Some((resources, _))) = (kind, &resources) {
            check_bucket(bucket, &actions, not_actions, resources)?;
        }
        let conditions = match fields.get("Condition") {
            Some(value) => Conditions::parse(value, has_variables)?,
            None => Conditions::default(),
        };
        Ok(Self { effect, principals, actions: (actions, not_actions), resources, conditions })
    }

    /// How the statement means the requester; `None`: it does not apply.
    fn applies(
        &self,
        requester: &Requester<'_>,
        action: &str,
        resource: &str,
        context: &Context,
    ) -> Option<Meant> {
        let lookup = |key: &str| context.single(key);
        if let Some((resources, is_negated)) = &self.resources {
            let is_meant =
                resources.iter().any(|pattern| pattern.matches(resource, Wildcards::Active, false, &lookup));
            if is_meant == *is_negated {
                return None;
            }
        }
        let meant = self.means(requester, action)?;
        (self.conditions.is_empty() || self.conditions.hold(context)).then_some(meant)
    }

    /// How it means the requester doing `action`, whatever to.
    fn means(&self, requester: &Requester<'_>, action: &str) -> Option<Meant> {
        let (actions, is_negated) = &self.actions;
        if actions.iter().any(|pattern| pattern.matches_action(action)) == *is_negated {
            return None;
        }
        match &self.principals {
            None => Some(Meant::Itself),
            Some((principals, is_negated)) => {
                let meant = principals.means(requester);
                match (is_negated, meant) {
                    (false, Meant::No) => None,
                    (false, meant) => Some(meant),
                    // A deny of all but some spares whose account is named, too: the account's own policies decide.
                    (true, Meant::No) => Some(Meant::Itself),
                    (true, _) => None,
                }
            }
        }
    }

    /// Whether its resources certainly hold everything that begins with `prefix`.
    fn means_all_below(&self, prefix: &str, context: &Context) -> bool {
        let lookup = |key: &str| context.single(key);
        self.resources.as_ref().is_none_or(|(resources, is_negated)| match is_negated {
            false => resources.iter().any(|pattern| pattern.covers(prefix, &lookup)),
            true => !resources.iter().any(|pattern| pattern.may_meet(prefix)),
        })
    }

    /// Whether its resources may hold something that begins with `prefix`.
    fn may_mean_below(&self, prefix: &str, context: &Context) -> bool {
        let lookup = |key: &str| context.single(key);
        self.resources.as_ref().is_none_or(|(resources, is_negated)| match is_negated {
            false => resources.iter().any(|pattern| pattern.may_meet(prefix)),
            true => !resources.iter().any(|pattern| pattern.covers(prefix, &lookup)),
        })
    }
}

fn patterns(value: &Value, has_variables: bool) -> Option<Vec<Pattern>> {
    let texts: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(texts) => texts.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    let is_given = !texts.is_empty() && texts.iter().all(|text| !text.is_empty());
    is_given.then(|| texts.into_iter().map(|text| Pattern::new(text, has_variables)).collect())
}

/// What S3 holds a bucket's policy to: actions that exist, resources of this bucket, and that they fit.
fn check_bucket(
    bucket: &str,
    actions: &[Pattern],
    not_actions: IsNegated,
    resources: &[Pattern],
) -> Result<(), Malformed> {
    let invalid = || Malformed::new("Policy has invalid resource");
    let (mut has_bucket, mut has_object) = (false, false);
    for resource in resources {
        let text = resource.text();
        if text == "*" {
            (has_bucket, has_object) = (true, true);
            continue;
        }
        let rest = text.strip_prefix("arn:aws:s3:").ok_or_else(invalid)?;
        let mut parts = rest.splitn(3, ':');
        let (region, account) = (parts.next().ok_or_else(invalid)?, parts.next().ok_or_else(invalid)?);
        let path = parts.next().ok_or_else(invalid)?;
        if ![region, account].iter().all(|part| part.is_empty() || *part == "*") {
            return Err(invalid());
        }
        let (name, key) = path.split_once('/').map_or((path, None), |(name, key)| (name, Some(key)));
        let name_means_bucket = glob(name, bucket);
        // A run may reach over the first slash.
        let may_reach = name.contains('*') || resource.has_variables();
        if !name_means_bucket && !may_reach {
            return Err(invalid());
        }
        has_object |= key.is_some() || may_reach;
        has_bucket |= key.is_none() || may_reach;
    }
    for action in actions {
        let targets = targets(action).ok_or_else(|| Malformed::new("Policy has invalid action"))?;
        let fits = |target: &Target| match target {
            Target::Bucket => has_bucket,
            Target::Object => has_object,
            Target::Account => false,
        };
        if !not_actions && !targets.iter().any(fits) {
            return Err(Malformed::new("Action does not apply to any resource(s) in statement"));
        }
    }
    Ok(())
}

fn unknown_field(name: &str) -> Malformed {
    Malformed::new(format!("Unknown field {}", shown(name)))
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
