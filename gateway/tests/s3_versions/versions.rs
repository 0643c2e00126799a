//! Versioning: enabled, suspended, null versions, delete markers, listings.

use crate::client::Client;

async fn put(client: &Client, key: &str, body: &str) -> String {
    client.ok("PUT", &format!("/bucket/{key}"), &[], body).await.version()
}

async fn body_of(client: &Client, target: &str) -> String {
    client.ok("GET", target, &[], "").await.text()
}

#[tokio::test]
async fn a_buckets_versioning_is_enabled_and_suspended_never_undone() {
    let client = Client::start().await;
    let status = async || client.ok("GET", "/bucket?versioning", &[], "").await.element("Status");
    assert_eq!(status().await, None);
    for set in ["Suspended", "Enabled", "Enabled", "Suspended"] {
        client.versioning(set).await;
        assert_eq!(status().await.as_deref(), Some(set));
    }
    for bad in [
        "<VersioningConfiguration><Status>On</Status></VersioningConfiguration>",
        "<VersioningConfiguration></VersioningConfiguration>",
    ] {
        let outcome = client.outcome("PUT", "/bucket?versioning", &[], bad).await;
        assert_eq!(outcome, (400, "MalformedXML".into()), "{bad}");
    }
}

#[tokio::test]
async fn every_put_is_a_version_that_can_be_read_headed_tagged_copied_and_deleted() {
    let client = Client::versioned().await;
    let (one, two) = (put(&client, "k", "one").await, put(&client, "k", "three").await);
    assert!(one != two && !one.is_empty() && !two.is_empty());
    assert_eq!(body_of(&client, "/bucket/k").await, "three");
    assert_eq!(body_of(&client, &format!("/bucket/k?versionId={one}")).await, "one");
    let head = client.ok("HEAD", &format!("/bucket/k?versionId={one}"), &[], "").await;
    assert_eq!((head.version(), head.header("content-length")), (one.clone(), Some("3")));
    assert_eq!(client.ok("HEAD", "/bucket/k", &[], "").await.version(), two);

    let tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>";
    client.ok("PUT", &format!("/bucket/k?tagging&versionId={one}"), &[], tags).await;
    let tags_of = async |target: &str| client.ok("GET", target, &[], "").await.elements("Key");
    assert_eq!(tags_of(&format!("/bucket/k?tagging&versionId={one}")).await, ["a"]);
    assert!(tags_of("/bucket/k?tagging").await.is_empty());

    let source = format!("/bucket/k?versionId={one}");
    let copied = client.ok("PUT", "/bucket/copy", &[("x-amz-copy-source", &source)], "").await;
    assert_eq!(copied.header("x-amz-copy-source-version-id"), Some(one.as_str()));
    assert!(!copied.version().is_empty());
    assert_eq!(body_of(&client, "/bucket/copy").await, "one");
    // An old version copied over its own key becomes the newest.
    let restored = client.ok("PUT", "/bucket/k", &[("x-amz-copy-source", &source)], "").await.version();
    assert_eq!(body_of(&client, "/bucket/k").await, "one");

    let gone = client.ok("DELETE", &format!("/bucket/k?versionId={two}"), &[], "").await;
    assert_eq!((gone.status, gone.version(), gone.header("x-amz-delete-marker")), (204, two.clone(), None));
    let missing = client.outcome("GET", &format!("/bucket/k?versionId={two}"), &[], "").await;
    assert_eq!(missing, (404, "NoSuchVersion".into()));
    client.ok("DELETE", &format!("/bucket/k?versionId={two}"), &[], "").await;
    assert_eq!(client.versions("&prefix=k").await, [format!("k:{restored}*"), format!("k:{one}")]);
    let odd = client.outcome("GET", "/bucket/k?versionId=odd", &[], "").await;
    assert_eq!(odd, (400, "InvalidArgument".into()));
}

#[tokio::test]
async fn a_delete_marker_hides_a_key_until_it_is_deleted() {
    let client = Client::versioned().await;
    let one = put(&client, "k", "one").await;
    let deleted = client.ok("DELETE", "/bucket/k", &[], "").await;
    let marker = deleted.version();
    assert_eq!((deleted.status, deleted.header("x-amz-delete-marker")), (204, Some("true")));

    for method in ["GET", "HEAD"] {
        let hidden = client.call(method, "/bucket/k", &[], "").await;
        assert_eq!((hidden.status, hidden.header("x-amz-delete-marker")), (404, Some("true")), "{method}");
        assert_eq!(hidden.version(), marker);
        let of_marker = client.call(method, &format!("/bucket/k?versionId={marker}"), &[], "").await;
        assert_eq!(
            (of_marker.status, of_marker.header("x-amz-delete-marker")),
            (405, Some("true")),
            "{method}"
        );
        assert_eq!(of_marker.header("allow"), Some("DELETE"));
        assert!(of_marker.headers.contains_key("last-modified"));
    }
    assert!(client.ok("GET", "/bucket", &[], "").await.elements("Key").is_empty());
    assert_eq!(body_of(&client, &format!("/bucket/k?versionId={one}")).await, "one");
    assert_eq!(client.outcome("DELETE", "/bucket", &[], "").await, (409, "BucketNotEmpty".into()));
    let copy = client.outcome("PUT", "/bucket/c", &[("x-amz-copy-source", "/bucket/k")], "").await;
    assert_eq!(copy, (404, "NoSuchKey".into()));
    let source = format!("/bucket/k?versionId={marker}");
    let copy = client.outcome("PUT", "/bucket/c", &[("x-amz-copy-source", &source)], "").await;
    assert_eq!(copy, (400, "InvalidRequest".into()));

    // Another DELETE leaves another marker; a key that never was gets one too.
    let again = client.ok("DELETE", "/bucket/k", &[], "").await.version();
    let never = client.ok("DELETE", "/bucket/never", &[], "").await.version();
    assert_eq!(
        client.versions("").await,
        [format!("k:{one}"), format!("k:{again}!*"), format!("k:{marker}!"), format!("never:{never}!*")]
    );
    for id in [&again, &marker] {
        let gone = client.ok("DELETE", &format!("/bucket/k?versionId={id}"), &[], "").await;
        assert_eq!(gone.header("x-amz-delete-marker"), Some("true"));
    }
    assert_eq!(body_of(&client, "/bucket/k").await, "one");
    client.ok("DELETE", &format!("/bucket/never?versionId={never}"), &[], "").await;
    client.ok("DELETE", &format!("/bucket/k?versionId={one}"), &[], "").await;
    client.ok("DELETE", "/bucket", &[], "").await;
}

#[tokio::test]
async fn a_key_has_one_null_version() {
    let client = Client::start().await;
    assert_eq!(put(&client, "k", "before").await, "");
    assert_eq!(client.ok("GET", "/bucket/k", &[], "").await.header("x-amz-version-id"), None);
    client.versioning("Enabled").await;
    assert_eq!(client.ok("GET", "/bucket/k", &[], "").await.version(), "null");
    let one = put(&client, "k", "one").await;
    assert_eq!(body_of(&client, "/bucket/k?versionId=null").await, "before");

    client.versioning("Suspended").await;
    assert_eq!(put(&client, "k", "suspended").await, "");
    assert_eq!(body_of(&client, "/bucket/k?versionId=null").await, "suspended");
    assert_eq!(client.versions("").await, ["k:null*".to_owned(), format!("k:{one}")]);
    put(&client, "k", "again").await;
    assert_eq!(client.versions("").await, ["k:null*".to_owned(), format!("k:{one}")]);
    let marker = client.ok("DELETE", "/bucket/k", &[], "").await;
    assert_eq!((marker.version().as_str(), marker.header("x-amz-delete-marker")), ("null", Some("true")));
    assert_eq!(client.versions("").await, [format!("k:{one}"), "k:null!*".to_owned()]);
    assert_eq!(body_of(&client, &format!("/bucket/k?versionId={one}")).await, "one");

    client.versioning("Enabled").await;
    let two = put(&client, "k", "two").await;
    assert_eq!(client.versions("").await, [format!("k:{two}*"), format!("k:{one}"), "k:null!".to_owned()]);
    client.ok("DELETE", "/bucket/k?versionId=null", &[], "").await;
    client.ok("DELETE", &format!("/bucket/k?versionId={two}"), &[], "").await;
    assert_eq!(client.versions("").await, [format!("k:{one}*")]);
}

#[tokio::test]
async fn multipart_and_batches_know_versions() {
    let client = Client::versioned().await;
    let done = client.multipart("/bucket/k", &[], &[10]).await;
    assert_eq!(done.status, 200);
    let (one, two) = (done.version(), put(&client, "k", "two").await);
    assert!(!one.is_empty());
    let first = client.ok("GET", &format!("/bucket/k?versionId={one}"), &[], "").await;
    assert_eq!(first.body, crate::client::bytes(10));

    let batch = |objects: &str| format!("<Delete>{objects}</Delete>");
    let object = |key: &str, version: &str| {
        let version =
            if version.is_empty() { String::new() } else { format!("<VersionId>{version}</VersionId>") };
        format!("<Object><Key>{key}</Key>{version}</Object>")
    };
    let post = async |body: String| {
        let md5 = md5_of(body.as_bytes());
        client.ok("POST", "/bucket?delete", &[("content-md5", &md5)], body).await
    };
    let hidden = post(batch(&object("k", ""))).await;
    let marker = hidden.element("DeleteMarkerVersionId").unwrap();
    assert_eq!(hidden.element("DeleteMarker").as_deref(), Some("true"));
    let gone = post(batch(&[object("k", &one), object("k", &two), object("k", &marker)].concat())).await;
    assert_eq!(gone.elements("VersionId"), [one.clone(), two.clone(), marker.clone()]);
    assert_eq!(gone.elements("DeleteMarkerVersionId"), std::slice::from_ref(&marker));
    assert!(client.versions("").await.is_empty());
    // What is gone may be deleted again.
    let again = post(batch(&[object("k", &one), object("k", &marker)].concat())).await;
    assert!(again.elements("Error").is_empty(), "{}", again.text());
    assert_eq!(again.elements("Deleted").len(), 2);
}

fn md5_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    use md5::Digest as _;
    base64::prelude::BASE64_STANDARD.encode(md5::Md5::digest(bytes))
}

#[tokio::test]
async fn listings_of_versions_have_pages_prefixes_and_delimiters() {
    let client = Client::versioned().await;
    for key in ["a", "b/x", "b/y", "c"] {
        put(&client, key, "1").await;
        put(&client, key, "2").await;
        client.ok("DELETE", &format!("/bucket/{key}"), &[], "").await;
    }
    let whole = client.versions("").await;
    assert_eq!(whole.len(), 12);
    for size in 1..=5 {
        let mut shown = Vec::new();
        let mut query = format!("&max-keys={size}");
        loop {
            let page = client.ok("GET", &format!("/bucket?versions{query}"), &[], "").await;
            let of = |name: &str| page.elements(name).len();
            assert!(of("Version") + of("DeleteMarker") <= size);
            shown.extend(page.elements("VersionId"));
            if page.element("IsTruncated").as_deref() == Some("false") {
                break;
            }
            let (key, version) = (
                page.element("NextKeyMarker").unwrap().replace('/', "%2F"),
                page.element("NextVersionIdMarker").unwrap(),
            );
            query = format!("&max-keys={size}&key-marker={key}&version-id-marker={version}");
        }
        let expected: std::collections::BTreeSet<&str> =
            whole.iter().map(|entry| entry.split([':', '!', '*']).nth(1).unwrap()).collect();
        assert_eq!(shown.len(), 12, "pages of {size}");
        assert_eq!(shown.iter().map(String::as_str).collect::<std::collections::BTreeSet<_>>(), expected);
    }
    let rolled = client.ok("GET", "/bucket?versions&delimiter=%2F", &[], "").await;
    assert_eq!(rolled.elements("CommonPrefixes").len(), 1);
    assert_eq!((rolled.elements("Version").len(), rolled.elements("DeleteMarker").len()), (4, 2));
    let under = client.ok("GET", "/bucket?versions&prefix=b%2F&delimiter=%2F", &[], "").await;
    assert_eq!((under.elements("Version").len(), under.elements("DeleteMarker").len()), (4, 2));
    let from = client.ok("GET", "/bucket?versions&key-marker=b%2Fx", &[], "").await;
    assert_eq!(from.elements("Version").len(), 4);
    let alone = client.outcome("GET", "/bucket?versions&version-id-marker=null", &[], "").await;
    assert_eq!(alone, (400, "InvalidArgument".into()));
}

/// A key whose latest version is a marker does not exist for conditions.
#[tokio::test]
async fn conditions_look_at_the_current_version() {
    let client = Client::versioned().await;
    put(&client, "k", "one").await;
    let absent = [("if-none-match", "*")];
    assert_eq!(client.outcome("PUT", "/bucket/k", &absent, "x").await, (412, "PreconditionFailed".into()));
    client.ok("DELETE", "/bucket/k", &[], "").await;
    let present = [("if-match", "*")];
    assert_eq!(client.outcome("PUT", "/bucket/k", &present, "x").await, (404, "NoSuchKey".into()));
    client.ok("PUT", "/bucket/k", &absent, "x").await;
    let other = [("if-match", "\"0123456789abcdef0123456789abcdef\"")];
    assert_eq!(client.outcome("DELETE", "/bucket/k", &other, "").await, (412, "PreconditionFailed".into()));
}
