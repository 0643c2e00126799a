//! Object lock: configuration, retention, legal hold, and what they keep from being deleted.

use crate::client::{Client, iso_date};

const DAY: i64 = 86_400;

fn configuration(rule: &str) -> String {
    format!(
        "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>{rule}</ObjectLockConfiguration>"
    )
}

fn default(inner: &str) -> String {
    configuration(&format!("<Rule><DefaultRetention>{inner}</DefaultRetention></Rule>"))
}

fn retention(mode: &str, in_seconds: i64) -> String {
    let until = iso_date(in_seconds);
    format!("<Retention><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>")
}

fn hold(status: &str) -> String {
    format!("<LegalHold><Status>{status}</Status></LegalHold>")
}

/// A pool whose bucket `locked` has object lock.
async fn start() -> Client {
    let client = Client::start().await;
    client.ok("PUT", "/locked", &[("x-amz-bucket-object-lock-enabled", "true")], "").await;
    client
}

async fn put(client: &Client) -> String {
    client.ok("PUT", "/locked/k", &[], "x").await.version()
}

const BYPASS: [(&str, &str); 1] = [("x-amz-bypass-governance-retention", "true")];

#[tokio::test]
async fn a_configuration_is_put_and_got_and_a_wrong_one_refused() {
    let client = start().await;
    let versioning = client.ok("GET", "/locked?versioning", &[], "").await;
    assert_eq!(versioning.element("Status").as_deref(), Some("Enabled"));
    let got = client.ok("GET", "/locked?object-lock", &[], "").await;
    assert_eq!(got.element("ObjectLockEnabled").as_deref(), Some("Enabled"));
    assert_eq!(got.element("Rule"), None);
    for (inner, name, value) in [
        ("<Mode>GOVERNANCE</Mode><Days>1</Days>", "Days", "1"),
        ("<Mode>COMPLIANCE</Mode><Years>1</Years>", "Years", "1"),
    ] {
        client.ok("PUT", "/locked?object-lock", &[], default(inner)).await;
        let got = client.ok("GET", "/locked?object-lock", &[], "").await;
        assert_eq!(got.element(name).as_deref(), Some(value));
    }
    for (body, code) in [
        (default("<Mode>GOVERNANCE</Mode><Days>1</Days><Years>1</Years>"), "MalformedXML"),
        (default("<Mode>GOVERNANCE</Mode>"), "MalformedXML"),
        (default("<Mode>governance</Mode><Days>1</Days>"), "MalformedXML"),
        (default("<Mode>GOVERNANCE</Mode><Days>0</Days>"), "InvalidRetentionPeriod"),
        (default("<Mode>GOVERNANCE</Mode><Years>-1</Years>"), "InvalidRetentionPeriod"),
        (configuration("").replace(">Enabled<", ">Disabled<"), "MalformedXML"),
    ] {
        assert_eq!(
            client.outcome("PUT", "/locked?object-lock", &[], &body).await,
            (400, code.into()),
            "{body}"
        );
    }
    let suspend = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";
    let suspended = client.outcome("PUT", "/locked?versioning", &[], suspend).await;
    assert_eq!(suspended, (409, "InvalidBucketState".into()));
}

#[tokio::test]
async fn a_bucket_without_lock_takes_none() {
    let client = Client::start().await;
    client.ok("PUT", "/bucket/k", &[], "x").await;
    let got = client.outcome("GET", "/bucket?object-lock", &[], "").await;
    assert_eq!(got, (404, "ObjectLockConfigurationNotFoundError".into()));
    let put = client.outcome("PUT", "/bucket?object-lock", &[], configuration("")).await;
    assert_eq!(put, (409, "InvalidBucketState".into()));
    let invalid = (400, "InvalidRequest".to_owned());
    for (method, target, body) in [
        ("PUT", "/bucket/k?retention", retention("GOVERNANCE", DAY)),
        ("GET", "/bucket/k?retention", String::new()),
        ("PUT", "/bucket/k?legal-hold", hold("ON")),
        ("GET", "/bucket/k?legal-hold", String::new()),
    ] {
        assert_eq!(client.outcome(method, target, &[], body).await, invalid, "{method} {target}");
    }
    let on = [("x-amz-object-lock-legal-hold", "ON")];
    assert_eq!(client.outcome("PUT", "/bucket/k", &on, "x").await, invalid);
    assert_eq!(client.outcome("POST", "/bucket/k?uploads", &on, "").await, invalid);
    // Versioned, it may be given one.
    client.versioning("Suspended").await;
    let put = client.outcome("PUT", "/bucket?object-lock", &[], configuration("")).await;
    assert_eq!(put, (409, "InvalidBucketState".into()));
    client.versioning("Enabled").await;
    client.ok("PUT", "/bucket?object-lock", &[], configuration("")).await;
    client.ok("PUT", "/bucket/k", &on, "x").await;
}

#[tokio::test]
async fn a_retained_version_stays_until_who_may_says_otherwise() {
    let client = start().await;
    let denied = (403, "AccessDenied".to_owned());
    for mode in ["GOVERNANCE", "COMPLIANCE"] {
        let version = put(&client).await;
        let (of, target) =
            (format!("/locked/k?retention&versionId={version}"), format!("/locked/k?versionId={version}"));
        let none = client.outcome("GET", &of, &[], "").await;
        assert_eq!(none, (404, "NoSuchObjectLockConfiguration".into()));
        client.ok("PUT", &of, &[], retention(mode, 2 * DAY)).await;
        assert_eq!(client.ok("GET", &of, &[], "").await.element("Mode").as_deref(), Some(mode));
        let head = client.ok("HEAD", &target, &[], "").await;
        assert_eq!(head.header("x-amz-object-lock-mode"), Some(mode));
        assert!(head.headers.contains_key("x-amz-object-lock-retain-until-date"));

        assert_eq!(client.outcome("DELETE", &target, &[], "").await, denied, "{mode}");
        assert_eq!(client.outcome("PUT", &of, &[], retention(mode, DAY)).await, denied, "{mode} shorter");
        client.ok("PUT", &of, &[], retention(mode, 3 * DAY)).await;
        let other = if mode == "GOVERNANCE" { "COMPLIANCE" } else { "GOVERNANCE" };
        assert_eq!(
            client.outcome("PUT", &of, &[], retention(other, 4 * DAY)).await,
            denied,
            "{mode} changed"
        );
        // A key is deleted by a marker all the same, and written anew by another version.
        assert_eq!(client.ok("DELETE", "/locked/k", &[], "").await.status, 204);
        put(&client).await;

        let expected = if mode == "GOVERNANCE" { (204, String::new()) } else { denied.clone() };
        assert_eq!(client.outcome("DELETE", &target, &BYPASS, "").await, expected, "{mode} bypassed");
    }
    let version = put(&client).await;
    let of = format!("/locked/k?retention&versionId={version}");
    for (body, code) in [
        (retention("GOVERNANCE", -DAY), "InvalidArgument"),
        (retention("governance", DAY), "MalformedXML"),
        ("<Retention><Mode>GOVERNANCE</Mode></Retention>".into(), "MalformedXML"),
    ] {
        assert_eq!(client.outcome("PUT", &of, &[], &body).await, (400, code.into()), "{body}");
    }
    client.ok("PUT", &of, &[], retention("GOVERNANCE", DAY)).await;
    client.ok("PUT", &of, &BYPASS, retention("COMPLIANCE", DAY)).await;
}

#[tokio::test]
async fn a_legal_hold_holds_until_it_is_off() {
    let client = start().await;
    let version = put(&client).await;
    let (of, target) =
        (format!("/locked/k?legal-hold&versionId={version}"), format!("/locked/k?versionId={version}"));
    assert_eq!(client.outcome("PUT", &of, &[], hold("abc")).await, (400, "MalformedXML".into()));
    client.ok("PUT", &of, &[], hold("ON")).await;
    assert_eq!(client.ok("GET", &of, &[], "").await.element("Status").as_deref(), Some("ON"));
    assert_eq!(client.outcome("DELETE", &target, &BYPASS, "").await, (403, "AccessDenied".into()));
    client.ok("PUT", &of, &[], hold("OFF")).await;
    let head = client.ok("HEAD", &target, &[], "").await;
    assert_eq!(head.header("x-amz-object-lock-legal-hold"), Some("OFF"));
    client.ok("DELETE", &target, &[], "").await;
}

#[tokio::test]
async fn new_versions_are_locked_by_header_or_by_default() {
    let client = start().await;
    let until = iso_date(DAY);
    let headers = [
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        ("x-amz-object-lock-retain-until-date", until.as_str()),
        ("x-amz-object-lock-legal-hold", "ON"),
    ];
    client.ok("PUT", "/locked/put", &headers, "x").await;
    client
        .ok("PUT", "/locked/copy", &[&headers[..], &[("x-amz-copy-source", "/locked/put")]].concat(), "")
        .await;
    assert_eq!(client.multipart("/locked/parts", &headers, &[5]).await.status, 200);
    for key in ["put", "copy", "parts"] {
        let head = client.ok("HEAD", &format!("/locked/{key}"), &[], "").await;
        assert_eq!(head.header("x-amz-object-lock-mode"), Some("GOVERNANCE"), "{key}");
        assert_eq!(head.header("x-amz-object-lock-legal-hold"), Some("ON"), "{key}");
    }
    // A copy does not take over the lock of its source.
    client.ok("PUT", "/locked/free", &[("x-amz-copy-source", "/locked/put")], "").await;
    assert_eq!(client.ok("HEAD", "/locked/free", &[], "").await.header("x-amz-object-lock-mode"), None);

    client.ok("PUT", "/locked?object-lock", &[], default("<Mode>COMPLIANCE</Mode><Days>1</Days>")).await;
    client.ok("PUT", "/locked/default", &[], "x").await;
    let head = client.ok("HEAD", "/locked/default", &[], "").await;
    assert_eq!(head.header("x-amz-object-lock-mode"), Some("COMPLIANCE"));

    let past = iso_date(-DAY);
    for bad in [
        &headers[..1],
        &headers[1..2],
        &[("x-amz-object-lock-mode", "abc"), headers[1]],
        &[headers[0], ("x-amz-object-lock-retain-until-date", past.as_str())],
        &[("x-amz-object-lock-legal-hold", "maybe")],
    ] {
        let outcome = client.outcome("PUT", "/locked/bad", bad, "x").await;
        assert_eq!(outcome, (400, "InvalidArgument".into()), "{bad:?}");
    }
}

#[tokio::test]
async fn a_batch_deletes_what_is_not_protected() {
    let client = start().await;
    let (held, free) = (put(&client).await, put(&client).await);
    client.ok("PUT", &format!("/locked/k?legal-hold&versionId={held}"), &[], hold("ON")).await;
    let object = |version: &str| format!("<Object><Key>k</Key><VersionId>{version}</VersionId></Object>");
    let body = format!("<Delete>{}{}</Delete>", object(&held), object(&free));
    let done = client.ok("POST", "/locked?delete", &[("x-amz-checksum-algorithm", "CRC32")], body).await;
    let (deleted, errors) = (done.element("Deleted").unwrap(), done.element("Error").unwrap());
    assert!(deleted.contains(&free) && errors.contains(&held), "{}", done.text());
    assert_eq!(done.element("Code").as_deref(), Some("AccessDenied"));
}
