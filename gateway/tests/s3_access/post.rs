//! Files that browsers send with a form and a policy.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::client::{Answer, By, Client, amz_date, signature};

const BOUNDARY: &str = "----boundary";

/// Sends a form of `fields` and a file.
async fn send(client: &Client, fields: &[(&str, String)], file: &str) -> Answer {
    let mut body = String::new();
    for (name, value) in fields {
        body +=
            &format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    }
    body += &format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"holiday.jpg\"\r\n\
         Content-Type: image/jpeg\r\n\r\n{file}\r\n--{BOUNDARY}--\r\n"
    );
    let request = client.request("POST", "/bucket").by(By::Nobody);
    request
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(body)
        .send()
        .await
}

/// The fields of a form, signed by tenant one; `more` conditions beside those of the signature and the bucket.
fn signed(
    client: &Client,
    expiration: &str,
    more: &[Value],
    fields: &[(&'static str, &str)],
) -> Vec<(&'static str, String)> {
    let stamp = amz_date();
    let credential = format!("{}/{}/us-east-1/s3/aws4_request", client.pool.access_key, &stamp[..8]);
    let mut conditions = vec![
        json!({ "bucket": "bucket" }),
        json!({ "x-amz-algorithm": "AWS4-HMAC-SHA256" }),
        json!({ "x-amz-credential": credential }),
        json!({ "x-amz-date": stamp }),
    ];
    conditions.extend_from_slice(more);
    let policy = json!({ "expiration": expiration, "conditions": conditions }).to_string();
    let policy = BASE64_STANDARD.encode(policy);
    let signature = hex::encode(signature(&client.pool.secret_key, &stamp[..8], &policy));
    let mut all: Vec<_> = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    all.extend([
        ("x-amz-algorithm", "AWS4-HMAC-SHA256".to_owned()),
        ("x-amz-credential", credential),
        ("x-amz-date", stamp),
        ("policy", policy),
        ("x-amz-signature", signature),
    ]);
    all
}

const LATER: &str = "2099-01-01T00:00:00Z";

#[tokio::test]
async fn a_signed_form_is_kept_as_its_fields_say() {
    let client = Client::start().await;
    let conditions = [
        json!(["starts-with", "$key", "pictures/"]),
        json!({ "acl": "public-read" }),
        json!(["starts-with", "$Content-Type", "image/"]),
        json!(["content-length-range", 1, 100]),
        json!({ "success_action_status": "201" }),
        json!({ "x-amz-meta-who": "me" }),
    ];
    let fields = [
        ("key", "pictures/${filename}"),
        ("acl", "public-read"),
        ("Content-Type", "image/jpeg"),
        ("success_action_status", "201"),
        ("x-amz-meta-who", "me"),
    ];
    let answer = send(&client, &signed(&client, LATER, &conditions, &fields), "picture").await;
    assert_eq!(answer.said(), (201, ""), "{}", answer.body);
    assert!(answer.body.contains("<Bucket>bucket</Bucket>"), "{}", answer.body);
    let got = client.get("/bucket/pictures/holiday.jpg").by(By::Nobody).send().await;
    assert_eq!((got.status, got.body.as_str()), (200, "picture"), "the field acl has it public");
    assert_eq!(got.header("content-type"), Some("image/jpeg"));
    assert_eq!(got.header("x-amz-meta-who"), Some("me"));
}

#[tokio::test]
async fn a_form_that_its_policy_does_not_allow_leaves_nothing() {
    let client = Client::start().await;
    let starts = json!(["starts-with", "$key", "pictures/"]);
    let range = |from: u64, to: u64| json!(["content-length-range", from, to]);
    let good = signed(&client, LATER, std::slice::from_ref(&starts), &[("key", "pictures/a")]);
    assert_eq!(send(&client, &good, "x").await.said(), (204, ""));
    client.delete("/bucket/pictures/a").send().await;
    let changed = |name: &str, value: &str| {
        let mut fields = good.clone();
        for field in &mut fields {
            if field.0 == name {
                field.1 = value.to_owned();
            }
        }
        fields
    };
    let cases = [
        (signed(&client, LATER, std::slice::from_ref(&starts), &[("key", "other/a")]), (403, "AccessDenied")),
        (
            signed(&client, "2020-01-01T00:00:00Z", std::slice::from_ref(&starts), &[("key", "pictures/a")]),
            (403, "AccessDenied"),
        ),
        (
            signed(&client, LATER, &[starts.clone(), range(2, 9)], &[("key", "pictures/a")]),
            (400, "EntityTooSmall"),
        ),
        (
            signed(&client, LATER, &[starts.clone(), range(0, 0)], &[("key", "pictures/a")]),
            (400, "EntityTooLarge"),
        ),
        (
            signed(
                &client,
                LATER,
                std::slice::from_ref(&starts),
                &[("key", "pictures/a"), ("x-amz-meta-extra", "1")],
            ),
            (403, "AccessDenied"),
        ),
        (changed("x-amz-signature", "0000"), (403, "SignatureDoesNotMatch")),
        (changed("policy", "bm90IGpzb24="), (400, "InvalidPolicyDocument")),
        (vec![("key", "pictures/a".to_owned())], (403, "AccessDenied")),
    ];
    for (fields, said) in cases {
        let answer = send(&client, &fields, "x").await;
        assert_eq!(answer.said(), said, "{fields:?}: {}", answer.body);
    }
    assert_eq!(client.get("/bucket/pictures/a").send().await.said(), (404, "NoSuchKey"));
}

#[tokio::test]
async fn a_bucket_that_everybody_writes_takes_forms_without_signature() {
    let client = Client::start().await;
    client.put("/bucket?acl").header("x-amz-acl", "public-read-write").send().await;
    assert_eq!(send(&client, &[("key", "open".to_owned())], "free").await.said(), (204, ""));
    assert_eq!(client.get("/bucket/open").send().await.body, "free");
    let redirect =
        [("key", "open".to_owned()), ("success_action_redirect", "https://example.com/ok".to_owned())];
    let answer = send(&client, &redirect, "free").await;
    assert_eq!(answer.status, 303);
    assert!(
        answer
            .header("location")
            .is_some_and(|at| at.starts_with("https://example.com/ok?bucket=bucket&key=open"))
    );
}

#[tokio::test]
async fn signatures_of_other_kinds_are_refused_clearly() {
    let client = Client::start().await;
    let refused = client.get("/bucket").by(By::Nobody);
    let refused = refused.header("authorization", "AWS4-ECDSA-P256-SHA256 Credential=x").send().await;
    assert_eq!(refused.said(), (501, "NotImplemented"));
    assert!(refused.body.contains("SigV4A"), "{}", refused.body);
}

/// Name of a field, its value, and what a form with it answers.
#[tokio::test]
async fn forms_that_lack_something_are_told_what() {
    let client = Client::start().await;
    let good = signed(&client, LATER, &[json!(["starts-with", "$key", ""])], &[("key", "a")]);
    for (name, said) in [
        ("key", (400, "InvalidArgument")),
        ("policy", (400, "InvalidArgument")),
        ("x-amz-signature", (400, "InvalidArgument")),
        ("x-amz-credential", (400, "InvalidArgument")),
        ("x-amz-date", (400, "InvalidArgument")),
    ] {
        let fields: Vec<_> = good.iter().filter(|(field, _)| *field != name).cloned().collect();
        assert_eq!(send(&client, &fields, "x").await.said(), said, "without {name}");
    }
    let request = client.request("POST", "/bucket").by(By::Nobody);
    let request = request.header("content-type", "multipart/form-data; boundary=b");
    let no_file = "--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\na\r\n--b--\r\n";
    assert_eq!(request.body(no_file).send().await.said(), (400, "InvalidArgument"));
    let request = client.request("POST", "/bucket/key").by(By::Nobody);
    let request = request.header("content-type", "multipart/form-data; boundary=b").body(no_file);
    assert_eq!(request.send().await.said(), (405, "MethodNotAllowed"));
}

/// A file larger than what is held, whose bytes look like boundaries, arrives as it is.
#[tokio::test]
async fn a_large_file_streams() {
    let client = Client::start().await;
    client.put("/bucket?acl").header("x-amz-acl", "public-read-write").send().await;
    let file = format!("\r\n--{}\r\n-", &BOUNDARY[..BOUNDARY.len() - 1]).repeat(400_000);
    assert_eq!(send(&client, &[("key", "large".to_owned())], &file).await.said(), (204, ""));
    let got = client.get("/bucket/large").send().await;
    assert!(got.body == file, "{} of {} bytes", got.body.len(), file.len());
}
