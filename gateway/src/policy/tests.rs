//! Policies against a slow, obvious evaluator, and against cases that AWS documents.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::acl::{Acl, Grant, Grantee, Permission};
use super::condition::{Context, key_name};
use super::document::{Kind, POLICY_BYTES_MAX, Policy};
use super::evaluate::{Access, Request, Verdict, authorize, authorize_below};
use super::principal::{Account, Requester, account_of, canonical_id};

const ACME: Account<'static> = Account { id: 1, name: "acme" };
const OTHER: Account<'static> = Account { id: 2, name: "other" };

/// Reads the JSON anew for each question, and each sentence of the rules as it is written.
mod slow {
    use super::*;

    fn list(value: &Value) -> Vec<String> {
        match value {
            Value::Array(all) => all.iter().flat_map(list).collect(),
            Value::String(text) => vec![text.clone()],
            other => vec![other.to_string()],
        }
    }

    /// By the definition: a star is nothing, or one character and a star.
    pub fn glob(pattern: &[char], value: &[char]) -> bool {
        match (pattern.first(), value.first()) {
            (None, None) => true,
            (Some('*'), _) => glob(&pattern[1..], value) || (!value.is_empty() && glob(pattern, &value[1..])),
            (Some('?'), Some(_)) => glob(&pattern[1..], &value[1..]),
            (Some(one), Some(other)) if one == other => glob(&pattern[1..], &value[1..]),
            _ => false,
        }
    }

    pub fn like(pattern: &str, value: &str) -> bool {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        glob(&chars(pattern), &chars(value))
    }

    fn substitute(text: &str, context: &Context) -> Option<String> {
        let name = context.get("aws:username").map(|values| values[0].clone());
        if text.contains("${aws:username}") {
            return name.map(|name| text.replace("${aws:username}", &name));
        }
        Some(text.to_owned())
    }

    fn is_named(principal: &Value, requester: &Requester<'_>) -> (bool, bool) {
        let names = match principal {
            Value::String(_) => vec!["*".to_owned()],
            kinds => kinds.as_object().unwrap().values().flat_map(list).collect(),
        };
        let arn = requester.arn();
        let root = requester.account().map(|account| format!("arn:aws:iam::{:012}:root", account.id));
        let itself = names.iter().any(|name| *name == "*" || Some(name) == arn.as_ref());
        (itself, names.iter().any(|name| Some(name) == root.as_ref()))
    }

    fn test(operator: &str, wanted: &str, value: &str) -> bool {
        match operator {
            "StringEquals" => wanted == value,
            "StringEqualsIgnoreCase" => wanted.to_lowercase() == value.to_lowercase(),
            "StringLike" => like(wanted, value),
            "NumericLessThan" => {
                value.parse::<i64>().is_ok_and(|value| value < wanted.parse::<i64>().unwrap())
            }
            "IpAddress" => {
                // Only /8 and single addresses are generated.
                match wanted.split_once("/8") {
                    Some((net, _)) => value.split('.').next() == net.split('.').next(),
                    None => wanted == value,
                }
            }
            "Bool" => wanted == value,
            other => panic!("not generated: {other}"),
        }
    }

    fn holds(operator: &str, key: &str, wanted: &[String], context: &Context) -> bool {
        if operator == "Null" {
            return wanted.iter().all(|wanted| (wanted == "true") == context.get(&key_name(key)).is_none());
        }
        let (set, rest) = operator.split_once(':').unwrap_or(("", operator));
        let base = rest.strip_suffix("IfExists").unwrap_or(rest);
        let negated = base.contains("Not");
        let base = base.replace("Not", "");
        let base = if base == "IpAddress" { "IpAddress".to_owned() } else { base };
        let Some(values) = context.get(&key_name(key)) else {
            return match set {
                "ForAllValues" => true,
                "ForAnyValue" => rest.ends_with("IfExists"),
                _ => negated || rest.ends_with("IfExists"),
            };
        };
        let mut met = Vec::new();
        for value in values {
            let mut is_one = false;
            for wanted in wanted {
                is_one |= substitute(wanted, context).is_some_and(|wanted| test(&base, &wanted, value));
            }
            met.push(is_one != negated);
        }
        match set {
            "ForAllValues" => !met.contains(&false),
            "ForAnyValue" => met.contains(&true),
            _ if negated => !met.contains(&false),
            _ => met.contains(&true),
        }
    }

    /// For each statement that applies: whether it denies, and whether it names the requester itself.
    fn applying(policy: &Value, request: &Request<'_>) -> Vec<(bool, bool)> {
        let mut found = Vec::new();
        for statement in policy["Statement"].as_array().unwrap() {
            let any_action = |value: &Value| {
                list(value).iter().any(|one| like(&one.to_lowercase(), &request.action.to_lowercase()))
            };
            let any_resource = |value: &Value| {
                list(value).iter().any(|one| {
                    substitute(one, request.context).is_some_and(|one| like(&one, request.resource))
                })
            };
            let is_action = match statement.get("NotAction") {
                Some(not) => !any_action(not),
                None => any_action(&statement["Action"]),
            };
            let is_resource = match statement.get("NotResource") {
                Some(not) => !any_resource(not),
                None => any_resource(&statement["Resource"]),
            };
            let (itself, by_account) = match (statement.get("Principal"), statement.get("NotPrincipal")) {
                (Some(principal), _) => is_named(principal, &request.requester),
                (_, Some(not)) => {
                    let (itself, by_account) = is_named(not, &request.requester);
                    (!itself && !by_account, false)
                }
                (None, None) => (true, false),
            };
            let empty = serde_json::Map::new();
            let conditions = statement.get("Condition").and_then(Value::as_object).unwrap_or(&empty);
            let all_hold = conditions.iter().all(|(operator, keys)| {
                let keys = keys.as_object().unwrap();
                keys.iter().all(|(key, wanted)| holds(operator, key, &list(wanted), request.context))
            });
            if is_action && is_resource && (itself || by_account) && all_hold {
                found.push((statement["Effect"] == "Deny", itself));
            }
        }
        found
    }

    /// As [`authorize`], for a bucket of ACME's and an object of ACME's.
    pub fn decide(
        bucket: &Value,
        identity: Option<&Value>,
        acl: &Acl,
        permission: Permission,
        request: &Request<'_>,
    ) -> Verdict {
        let from_bucket = applying(bucket, request);
        let from_identity = identity.map(|policy| applying(policy, request));
        let all = from_bucket.iter().chain(from_identity.iter().flatten());
        if all.clone().any(|(is_deny, _)| *is_deny) {
            return Verdict::ExplicitlyDenied;
        }
        let identity_allows = from_identity.is_none_or(|found| !found.is_empty());
        let granted = acl.grants.iter().any(|grant| {
            let fits = [permission, Permission::FullControl].contains(&grant.permission);
            fits && match grant.grantee {
                Grantee::AllUsers => true,
                Grantee::AuthenticatedUsers => request.requester != Requester::Anonymous,
                Grantee::Account(id) => request.requester.account().map(|account| account.id) == Some(id),
                Grantee::LogDelivery => false,
            }
        });
        let is_allowed = match request.requester.account() {
            Some(account) if account.id == ACME.id => {
                identity_allows || from_bucket.iter().any(|(_, itself)| *itself)
            }
            _ => (!from_bucket.is_empty() || granted) && identity_allows,
        };
        if is_allowed { Verdict::Allowed } else { Verdict::NotAllowed }
    }
}

fn some<T: Clone + std::fmt::Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = Vec<T>> {
    prop::sample::subsequence(of, 1..=of.len().min(3))
}

fn principal() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!("*")),
        some(&[
            "*",
            "arn:aws:iam::000000000001:root",
            "arn:aws:iam::000000000001:user/ann",
            "arn:aws:iam::000000000002:root",
            "arn:aws:iam::000000000002:user/bob",
        ])
        .prop_map(|names| json!({ "AWS": names })),
    ]
}

fn condition() -> impl Strategy<Value = (String, Value)> {
    let text = (
        prop::sample::select(&["", "ForAllValues:", "ForAnyValue:"]),
        prop::sample::select(&[
            "StringEquals",
            "StringNotEquals",
            "StringLike",
            "StringNotLike",
            "StringEqualsIgnoreCase",
            "StringNotEqualsIgnoreCase",
        ]),
        any::<bool>(),
        prop::sample::select(&["s3:prefix", "S3:Prefix", "aws:username", "s3:RequestObjectTagKeys"]),
        some(&["home", "HOME", "ho*", "?ome", "${aws:username}", "ann", ""]),
    )
        .prop_map(|(set, operator, if_exists, key, values)| {
            let operator = format!("{set}{operator}{}", if if_exists { "IfExists" } else { "" });
            (operator, json!({ key: values }))
        });
    prop_oneof![
        4 => text,
        1 => prop::sample::select(&["5", "10"]).prop_map(|n| ("NumericLessThan".into(), json!({ "s3:max-keys": n }))),
        1 => prop::sample::select(&["10.0.0.0/8", "10.1.2.3"])
            .prop_map(|ip| ("IpAddress".into(), json!({ "aws:SourceIp": ip }))),
        1 => prop::sample::select(&["10.0.0.0/8", "10.1.2.3"])
            .prop_map(|ip| ("NotIpAddress".into(), json!({ "aws:SourceIp": ip }))),
        1 => any::<bool>().prop_map(|yes| ("Null".into(), json!({ "s3:prefix": yes.to_string() }))),
        1 => any::<bool>().prop_map(|yes| ("Bool".into(), json!({ "aws:SecureTransport": yes.to_string() }))),
    ]
}

fn statement(has_principal: bool) -> impl Strategy<Value = Value> {
    (
        any::<bool>(),
        principal(),
        (any::<bool>(), any::<bool>(), any::<bool>()),
        some(&["s3:GetObject", "s3:Get*", "s3:*", "S3:getobject", "s3:PutObject", "*", "s3:?etObject"]),
        some(&[
            "arn:aws:s3:::b/*",
            "arn:aws:s3:::b/home/${aws:username}/*",
            "arn:aws:s3:::b*",
            "arn:aws:s3:::b/home/ann/x",
            "arn:aws:s3:::*/*",
            "*",
        ]),
        prop::collection::vec(condition(), 0..3),
    )
        .prop_map(move |(is_deny, principal, not, actions, resources, conditions)| {
            let mut statement = json!({ "Effect": if is_deny { "Deny" } else { "Allow" } });
            statement[if not.0 { "NotAction" } else { "Action" }] = json!(actions);
            statement[if not.1 { "NotResource" } else { "Resource" }] = json!(resources);
            if has_principal {
                statement[if not.2 && is_deny { "NotPrincipal" } else { "Principal" }] = principal;
            }
            if !conditions.is_empty() {
                statement["Condition"] = conditions.into_iter().collect();
            }
            statement
        })
}

fn policy(has_principal: bool) -> impl Strategy<Value = Value> {
    prop::collection::vec(statement(has_principal), 1..5)
        .prop_map(|statements| json!({ "Version": "2012-10-17", "Statement": statements }))
}

fn context() -> impl Strategy<Value = Context> {
    (
        prop::option::of(prop::sample::select(&["home", "HoMe", "x"])),
        prop::option::of(prop::sample::select(&["ann", "bob"])),
        prop::collection::vec(prop::sample::select(&["home", "ann", "z"]), 0..3),
        prop::option::of(prop::sample::select(&["3", "7", "many"])),
        prop::option::of(prop::sample::select(&["10.1.2.3", "10.9.9.9", "192.168.0.1"])),
        prop::option::of(any::<bool>()),
    )
        .prop_map(|(prefix, user, tags, max_keys, ip, is_secure)| {
            let mut context = Context::default();
            let singles = [
                ("s3:prefix", prefix.map(str::to_owned)),
                ("aws:username", user.map(str::to_owned)),
                ("s3:max-keys", max_keys.map(str::to_owned)),
                ("aws:SourceIp", ip.map(str::to_owned)),
                ("aws:SecureTransport", is_secure.map(|yes| yes.to_string())),
            ];
            for (key, value) in singles {
                if let Some(value) = value {
                    context.add(key, value);
                }
            }
            for tag in tags {
                context.add("s3:RequestObjectTagKeys", tag);
            }
            context
        })
}

fn requester() -> impl Strategy<Value = Requester<'static>> {
    prop::sample::select(&[
        Requester::Anonymous,
        Requester::Root(ACME),
        Requester::Root(OTHER),
        Requester::User { account: ACME, path: "/", name: "ann" },
        Requester::User { account: OTHER, path: "/", name: "bob" },
    ])
}

fn acl() -> impl Strategy<Value = Acl> {
    let grantee = prop::sample::select(&[
        Grantee::Account(1),
        Grantee::Account(2),
        Grantee::AllUsers,
        Grantee::AuthenticatedUsers,
        Grantee::LogDelivery,
    ]);
    let permission = prop::sample::select(&[
        Permission::FullControl,
        Permission::Read,
        Permission::Write,
        Permission::ReadAcp,
        Permission::WriteAcp,
    ]);
    let grant = (grantee, permission).prop_map(|(grantee, permission)| Grant { grantee, permission });
    (1u64..3, prop::collection::vec(grant, 0..4)).prop_map(|(owner, grants)| Acl { owner, grants })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever the policies, the requester and the request: the compiled policies decide as their text says.
    #[test]
    fn decisions_are_those_of_the_obvious_evaluator(
        bucket in policy(true),
        own in policy(false),
        acl in acl(),
        requester in requester(),
        action in prop::sample::select(&["s3:GetObject", "s3:PutObject", "s3:GetObjectAcl"]),
        resource in prop::sample::select(&["arn:aws:s3:::b/home/ann/x", "arn:aws:s3:::b/y", "arn:aws:s3:::c/y"]),
        context in context(),
    ) {
        let is_user = matches!(requester, Requester::User { .. });
        let policies = [Policy::parse(own.to_string().as_bytes(), Kind::Identity).unwrap()];
        let compiled = Policy::parse(bucket.to_string().as_bytes(), Kind::Bucket("b")).unwrap();
        let request = Request { requester, action, resource, context: &context };
        let access = Access {
            bucket_owner: ACME,
            object_owner: None,
            bucket_policy: Some(&compiled),
            identity_policies: is_user.then_some(&policies[..]),
            session_policy: None,
            acl: Some((&acl, Permission::Read)),
            ignores_public_acls: false,
            restricts_public_policy: false,
        };
        let expected = slow::decide(&bucket, is_user.then_some(&own), &acl, Permission::Read, &request);
        prop_assert_eq!(authorize(&request, &access), expected);
    }

    /// Wildcards mean what their definition says, over characters of every width.
    #[test]
    fn globs_are_those_of_the_definition(pattern in "[ab*?é]{0,7}", value in "[abé]{0,8}") {
        prop_assert_eq!(super::pattern::glob(&pattern, &value), slow::like(&pattern, &value));
    }

    /// What is kept of an access list is all of it.
    #[test]
    fn access_lists_survive_their_text(acl in acl()) {
        prop_assert_eq!(Acl::from_text(&acl.to_text()), Some(acl));
    }

    /// Bytes that are no policy are refused, and never panic.
    #[test]
    fn any_text_is_a_policy_or_an_error(text in "\\PC{0,200}", value in policy(true), cut in any::<prop::sample::Index>()) {
        let _ = Policy::parse(text.as_bytes(), Kind::Bucket("b"));
        let whole = value.to_string();
        let cut = cut.index(whole.len());
        let _ = Policy::parse(&whole.as_bytes()[..cut], Kind::Identity);
    }
}

fn parsed(statement: &Value) -> Result<Policy, String> {
    let policy = json!({ "Version": "2012-10-17", "Statement": statement }).to_string();
    Policy::parse(policy.as_bytes(), Kind::Bucket("b")).map_err(|error| error.to_string())
}

#[test]
fn malformed_policies_are_told_what_is_wrong() {
    let good = json!({ "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*" });
    assert!(parsed(&good).is_ok());
    let with = |changes: &[(&str, Value)]| {
        let mut statement = good.clone();
        for (field, value) in changes {
            match value {
                Value::Null => _ = statement.as_object_mut().unwrap().remove(*field),
                value => statement[*field] = value.clone(),
            }
        }
        parsed(&statement).err().unwrap_or_default()
    };
    for (changes, says) in [
        (vec![("Effect", json!("allow"))], "Invalid effect"),
        (vec![("Effect", Value::Null)], "Missing required field Effect"),
        (vec![("Principal", Value::Null)], "Missing required field Principal"),
        (vec![("Principal", json!({ "AWS": "nobody at all" }))], "Invalid principal in policy"),
        (vec![("Principal", json!({ "AWS": [] }))], "Invalid principal in policy"),
        (vec![("Principal", Value::Null), ("NotPrincipal", json!("*"))], "Allow with NotPrincipal"),
        (vec![("NotPrincipal", json!("*"))], "exclude each other"),
        (vec![("Action", json!("s3:Fly"))], "Policy has invalid action"),
        (vec![("Action", json!("ec2:RunInstances"))], "Policy has invalid action"),
        (vec![("Action", Value::Null)], "Missing required field Action"),
        (vec![("Action", json!([]))], "Policy has invalid action"),
        (vec![("Action", json!("s3:ListBucket"))], "Action does not apply to any resource(s) in statement"),
        (
            vec![("Resource", json!("arn:aws:s3:::b"))],
            "Action does not apply to any resource(s) in statement",
        ),
        (vec![("Resource", json!("arn:aws:s3:::c/*"))], "Policy has invalid resource"),
        (vec![("Resource", json!("b/*"))], "Policy has invalid resource"),
        (vec![("Resource", Value::Null)], "Missing required field Resource"),
        (vec![("Sorrow", json!("much"))], "Unknown field Sorrow"),
        (
            vec![("Condition", json!({ "StringIs": { "s3:prefix": "a" } }))],
            "Invalid Condition type : StringIs",
        ),
        (vec![("Condition", json!({ "IpAddress": { "aws:SourceIp": "here" } }))], "Invalid value"),
        (vec![("Condition", json!({ "StringEquals": { "prefix": "a" } }))], "invalid condition key"),
        (vec![("Condition", json!({ "NumericLessThan": { "s3:max-keys": "few" } }))], "Invalid value"),
    ] {
        let error = with(&changes);
        assert!(error.contains(says), "{changes:?}: {error:?} does not say {says:?}");
    }
    let long = format!("{{\"Id\":\"{}\"}}", "x".repeat(POLICY_BYTES_MAX));
    assert!(Policy::parse(long.as_bytes(), Kind::Bucket("b")).unwrap_err().to_string().contains("maximum"));
    for text in ["", "[]", "{", "{}", "{\"Version\":\"2015-01-01\",\"Statement\":[]}", "{\"Statement\":[]}"] {
        assert!(Policy::parse(text.as_bytes(), Kind::Bucket("b")).is_err(), "{text}");
    }
}

#[test]
fn a_policy_is_public_unless_everyone_is_narrowed_to_fixed_values() {
    let open = |conditions: Value| {
        let mut statement = json!({ "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*" });
        if !conditions.is_null() {
            statement["Condition"] = conditions;
        }
        parsed(&statement).unwrap().is_public()
    };
    assert!(open(Value::Null));
    assert!(open(json!({ "StringEquals": { "s3:ExistingObjectTag/a": "b" } })));
    assert!(open(json!({ "IpAddress": { "aws:SourceIp": "0.0.0.0/0" } })));
    assert!(open(json!({ "StringLike": { "aws:PrincipalArn": "*" } })));
    assert!(!open(json!({ "IpAddress": { "aws:SourceIp": "10.0.0.0/8" } })));
    assert!(!open(json!({ "StringEquals": { "aws:PrincipalAccount": "000000000002" } })));
    let named = json!({ "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::other:root" },
        "Action": "s3:*", "Resource": "arn:aws:s3:::b/*" });
    assert!(!parsed(&named).unwrap().is_public());
}

#[test]
fn the_owner_keeps_the_policy_and_public_ways_can_be_shut() {
    let deny_all = json!({ "Effect": "Deny", "Principal": "*", "Action": "s3:*",
        "Resource": ["arn:aws:s3:::b", "arn:aws:s3:::b/*"] });
    let deny_all = parsed(&deny_all).unwrap();
    let context = Context::default();
    let base = Access {
        bucket_owner: ACME,
        object_owner: None,
        bucket_policy: Some(&deny_all),
        identity_policies: None,
        session_policy: None,
        acl: None,
        ignores_public_acls: false,
        restricts_public_policy: false,
    };
    let ask = |requester, action, access: &Access<'_>| {
        let resource = if action == "s3:GetObject" { "arn:aws:s3:::b/k" } else { "arn:aws:s3:::b" };
        authorize(&Request { requester, action, resource, context: &context }, access)
    };
    let root = Requester::Root(ACME);
    assert_eq!(ask(root, "s3:DeleteBucketPolicy", &base), Verdict::Allowed);
    assert_eq!(ask(root, "s3:ListBucket", &base), Verdict::ExplicitlyDenied);
    let user = Requester::User { account: ACME, path: "/", name: "ann" };
    assert_eq!(ask(user, "s3:DeleteBucketPolicy", &base), Verdict::ExplicitlyDenied);

    let open = json!({ "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*" });
    let open = parsed(&open).unwrap();
    let access = Access { bucket_policy: Some(&open), ..base };
    assert_eq!(ask(Requester::Anonymous, "s3:GetObject", &access), Verdict::Allowed);
    let shut = Access { restricts_public_policy: true, ..access };
    assert_eq!(ask(Requester::Anonymous, "s3:GetObject", &shut), Verdict::NotAllowed);
    assert_eq!(ask(Requester::Root(OTHER), "s3:GetObject", &shut), Verdict::NotAllowed);
    assert_eq!(ask(root, "s3:GetObject", &shut), Verdict::Allowed);

    // What others have stored is theirs: the bucket's owner and its policy give nothing of it away.
    let theirs = Access { object_owner: Some(OTHER.id), ..access };
    assert_eq!(ask(root, "s3:GetObject", &theirs), Verdict::NotAllowed);
    assert_eq!(ask(Requester::Anonymous, "s3:GetObject", &theirs), Verdict::NotAllowed);
    assert_eq!(ask(Requester::Root(OTHER), "s3:GetObject", &theirs), Verdict::Allowed);

    let public = Acl::canned("public-read", ACME.id, ACME.id).unwrap();
    let listed = Access { bucket_policy: None, acl: Some((&public, Permission::Read)), ..base };
    assert_eq!(ask(Requester::Anonymous, "s3:GetObject", &listed), Verdict::Allowed);
    let ignored = Access { ignores_public_acls: true, ..listed };
    assert_eq!(ask(Requester::Anonymous, "s3:GetObject", &ignored), Verdict::NotAllowed);
}

#[test]
fn what_a_variable_stands_for_has_no_wildcards() {
    let home = json!({ "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::b/home/${aws:username}/*" });
    let home = parsed(&home).unwrap();
    let is_allowed = |user: Option<&str>, key: &str| {
        let mut context = Context::default();
        if let Some(user) = user {
            context.add("aws:username", user);
        }
        let resource = format!("arn:aws:s3:::b/home/{key}");
        home.opinion(&Requester::Root(OTHER), "s3:GetObject", &resource, &context).allows.is_some()
    };
    assert!(is_allowed(Some("ann"), "ann/x"));
    assert!(!is_allowed(Some("ann"), "bob/x"));
    assert!(!is_allowed(Some("*"), "bob/x"));
    assert!(is_allowed(Some("*"), "*/x"));
    assert!(!is_allowed(None, "/x"));
}

#[test]
fn accounts_have_one_canonical_id() {
    for id in [0, 1, 77, u64::MAX] {
        assert_eq!(account_of(&canonical_id(id)), Some(id));
    }
    for wrong in ["", "1", &"f".repeat(64), &"x".repeat(64)] {
        assert_eq!(account_of(wrong), None, "{wrong}");
    }
}

/// A policy as large as may be costs little: what it costs is bounded by its bytes, not by what it says. Statements that
/// mean other keys, and those that mean everything about the request but for their condition.
#[test]
fn the_largest_policy_is_evaluated_at_once() {
    let elsewhere = |number: usize| {
        json!({ "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{number:012}:root") },
            "Action": ["s3:GetObject", "s3:Put*"], "Resource": format!("arn:aws:s3:::b/team-{number}/*"),
            "Condition": { "StringLike": { "s3:prefix": [format!("home/{number}/*")] } } })
    };
    let almost = |number: usize| {
        json!({ "Effect": "Allow", "Principal": "*", "Action": ["s3:Put*", "s3:G*t*"],
            "Resource": ["arn:aws:s3:::b/${s3:prefix}/*", "arn:aws:s3:::b/*a*m*-*7*/*"],
            "Condition": { "StringLike": { "s3:prefix": [format!("*o*e*/{number}?/*")] } } })
    };
    for statement in [&elsewhere as &dyn Fn(usize) -> Value, &almost] {
        let mut statements = Vec::new();
        let text =
            |statements: &[Value]| json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
        while text(&statements).len() < POLICY_BYTES_MAX - 400 {
            statements.push(statement(100 + statements.len()));
        }
        let policy = Policy::parse(text(&statements).as_bytes(), Kind::Bucket("b")).unwrap();
        let mut context = Context::default();
        context.add("s3:prefix", "home/7/x");
        let resource = "arn:aws:s3:::b/team-7/x";
        let ask = || policy.opinion(&Requester::Root(OTHER), "s3:GetObject", resource, &context);
        // The quickest of many: what the neighbours do is not the policy's.
        let rounds = (0..200).map(|_| {
            #[expect(clippy::disallowed_methods, reason = "measures")]
            let begun = std::time::Instant::now();
            assert!(ask().allows.is_none());
            begun.elapsed()
        });
        let quickest = rounds.min().expect("there are rounds");
        println!("{} statements: {quickest:?}", statements.len());
        // 20 us in a release build; unoptimized code gets fifty times that.
        assert!(quickest.as_micros() < 1000, "{quickest:?}");
    }
}

proptest! {
    /// What is allowed of all that begins with a prefix is allowed of each, whatever its tags are.
    #[test]
    fn what_is_allowed_below_a_prefix_is_allowed_of_each_key(
        bucket in prop::option::of(policy(true)),
        identity in prop::option::of(policy(false)),
        context in context(),
        requester in requester(),
        prefix in prop::sample::select(&["", "home/", "home/ann/", "home/ann/x", "other"]),
        rest in "[a-z/]{0,6}",
        more in prop::option::of(prop::sample::select(&["home", "z"])),
    ) {
        let parse = |value: &Value, kind| Policy::parse(value.to_string().as_bytes(), kind).ok();
        let bucket = bucket.and_then(|value| parse(&value, Kind::Bucket("b")));
        let identity: Option<Vec<Policy>> =
            identity.and_then(|value| parse(&value, Kind::Identity)).map(|policy| vec![policy]);
        let access = Access {
            bucket_owner: ACME,
            object_owner: None,
            bucket_policy: bucket.as_ref(),
            identity_policies: identity.as_deref(),
            session_policy: None,
            acl: None,
            ignores_public_acls: false,
            restricts_public_policy: false,
        };
        let (all, one) = (format!("arn:aws:s3:::b/{prefix}"), format!("arn:aws:s3:::b/{prefix}{rest}"));
        let of = |resource, context| Request { requester, action: "s3:GetObject", resource, context };
        if authorize_below(&of(&all, &context), &access) == Verdict::Allowed {
            // A key that was not told before may be told of one object.
            let mut told = context.clone();
            if let Some(more) = more.filter(|_| context.get("s3:prefix").is_none()) {
                told.add("s3:prefix", more);
            }
            prop_assert_eq!(authorize(&of(&one, &told), &access), Verdict::Allowed);
        }
    }
}

/// What people write is understood: no rule is so careful that nobody gets in.
#[test]
fn rights_to_all_keys_are_seen_in_the_policies_that_people_write() {
    let request = |prefix: &'static str| Request {
        requester: Requester::User { account: ACME, path: "/", name: "ann" },
        action: "s3:GetObject",
        resource: prefix,
        context: Box::leak(Box::new(Context::default())),
    };
    let verdict = |text: Value, resource| {
        let policies = [Policy::parse(text.to_string().as_bytes(), Kind::Identity).unwrap()];
        let access = Access {
            bucket_owner: ACME,
            object_owner: None,
            bucket_policy: None,
            identity_policies: Some(&policies),
            session_policy: None,
            acl: None,
            ignores_public_acls: false,
            restricts_public_policy: false,
        };
        authorize_below(&request(resource), &access)
    };
    let allow = |resource: &str| json!({ "Effect": "Allow", "Action": "s3:*", "Resource": resource });
    let deny = |resource: &str| json!({ "Effect": "Deny", "Action": "s3:*", "Resource": resource });
    let of = |statements: Vec<Value>| json!({ "Version": "2012-10-17", "Statement": statements });
    let all = "arn:aws:s3:::b/";
    assert_eq!(verdict(of(vec![allow("*")]), all), Verdict::Allowed);
    assert_eq!(verdict(of(vec![allow("arn:aws:s3:::b/*")]), all), Verdict::Allowed);
    assert_eq!(verdict(of(vec![allow("arn:aws:s3:::b/home/*")]), all), Verdict::NotAllowed);
    assert_eq!(verdict(of(vec![allow("arn:aws:s3:::b/home/*")]), "arn:aws:s3:::b/home/"), Verdict::Allowed);
    assert_eq!(verdict(of(vec![allow("*"), deny("arn:aws:s3:::other/*")]), all), Verdict::Allowed);
    assert_eq!(verdict(of(vec![allow("*"), deny("arn:aws:s3:::b/secret")]), all), Verdict::ExplicitlyDenied);
    let below = "arn:aws:s3:::b/home/";
    assert_eq!(verdict(of(vec![allow("*"), deny("arn:aws:s3:::b/secret/*")]), below), Verdict::Allowed);
}
