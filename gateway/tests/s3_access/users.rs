//! Users of a tenant: their own policies, and the bucket's beside them.

use serde_json::{Value, json};

use crate::client::{By, Client};

const ANN: By = By::User("AKANNAKANNAKANNAKANN", "secret/of+ann");

fn policy(effect: &str, actions: Value, resources: Value) -> (String, String) {
    let statement = json!({ "Effect": effect, "Action": actions, "Resource": resources });
    let text = json!({ "Version": "2012-10-17", "Statement": [statement] });
    (format!("{effect}{actions}"), text.to_string())
}

/// A pool in which tenant one has the user ann.
async fn with_ann(policies: Vec<(String, String)>) -> Client {
    let client = Client::start().await;
    let secret = client.pool.put_user("ann", "AKANNAKANNAKANNAKANN", policies).await;
    assert_eq!(secret, "secret/of+ann");
    client.put("/bucket/key").body("x").send().await;
    client
}

#[tokio::test]
async fn a_user_may_what_its_policies_say_and_no_more() {
    let home = json!("arn:aws:s3:::bucket/home/${aws:username}/*");
    let client = with_ann(vec![
        policy("Allow", json!("s3:*Object"), home),
        policy("Allow", json!("s3:ListAllMyBuckets"), json!("*")),
        policy("Allow", json!("s3:CreateBucket"), json!("arn:aws:s3:::ann-*")),
        policy("Deny", json!("s3:DeleteObject"), json!("*")),
    ])
    .await;
    for (method, path, status) in [
        ("PUT", "/bucket/home/ann/a", 200),
        ("GET", "/bucket/home/ann/a", 200),
        ("DELETE", "/bucket/home/ann/a", 403),
        ("PUT", "/bucket/home/bob/a", 403),
        ("GET", "/bucket/key", 403),
        ("GET", "/bucket", 403),
        ("GET", "/bucket?policy", 403),
        ("GET", "/", 200),
        ("PUT", "/ann-photos", 200),
        ("PUT", "/bob-photos", 403),
    ] {
        let answer = client.request(method, path).by(ANN).send().await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
    }
    let public = client.put("/bucket/home/ann/b").by(ANN).header("x-amz-acl", "public-read").send().await;
    assert_eq!(public.said(), (403, "AccessDenied"), "to give away needs s3:PutObjectAcl");
    assert_eq!(client.get("/ann-photos").send().await.status, 200, "the bucket is the tenant's");
}

#[tokio::test]
async fn a_buckets_policy_names_users() {
    let client = with_ann(Vec::new()).await;
    client.pool.put_user("bob", "AKBOBAKBOBAKBOBAKBOB", Vec::new()).await;
    assert_eq!(client.get("/bucket/key").by(ANN).send().await.status, 403);
    let allow = |principal: Value, effect: &str| {
        json!({ "Statement": [{ "Effect": effect, "Principal": principal, "Action": "s3:GetObject",
            "Resource": "arn:aws:s3:::bucket/*" }] })
    };
    let ann = json!({ "AWS": "arn:aws:iam::000000000001:user/ann" });
    for (text, status) in [
        (allow(ann.clone(), "Allow"), 200),
        (allow(json!({ "AWS": "arn:aws:iam::one:user/ann" }), "Allow"), 200),
        (allow(json!({ "AWS": "arn:aws:iam::000000000001:user/bob" }), "Allow"), 403),
        // Its account may let its users; it does not of itself.
        (allow(json!({ "AWS": "arn:aws:iam::000000000001:root" }), "Allow"), 403),
        (allow(json!("*"), "Allow"), 200),
        (allow(ann, "Deny"), 403),
    ] {
        assert_eq!(client.set_policy(&text).await.said(), (204, ""), "{text}");
        assert_eq!(client.get("/bucket/key").by(ANN).send().await.status, status, "{text}");
        assert_eq!(client.get("/bucket/key").send().await.status, 200, "the tenant's own key: {text}");
    }
}

fn between<'t>(text: &'t str, tag: &str) -> &'t str {
    let (_, rest) = text.split_once(&format!("<{tag}>")).unwrap_or_else(|| panic!("no {tag} in {text}"));
    rest.split_once('<').unwrap().0
}

#[tokio::test]
async fn temporary_keys_borrow_rights_narrow_them_and_end_with_their_key() {
    let client = with_ann(vec![policy("Allow", json!("s3:*"), json!("arn:aws:s3:::bucket/*"))]).await;
    let call = |by: By, body: String| {
        let request = client.request("POST", "/").by(by);
        request.header("content-type", "application/x-www-form-urlencoded").body(body).send()
    };
    let read_only = r#"{"Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"*"}]}"#;
    let narrowed: String = form_urlencoded::byte_serialize(read_only.as_bytes()).collect();
    for (body, may_put) in [
        ("Action=GetSessionToken&Version=2011-06-15".to_owned(), true),
        (format!("Action=AssumeRole&Version=2011-06-15&Policy={narrowed}"), false),
    ] {
        let lent = call(ANN, body.clone()).await;
        assert_eq!(lent.status, 200, "{}", lent.body);
        let key = between(&lent.body, "AccessKeyId").to_owned().leak();
        let secret = between(&lent.body, "SecretAccessKey").to_owned().leak();
        let token = between(&lent.body, "SessionToken").to_owned();
        let by = By::User(key, secret);
        let send = |method: &'static str, path: &'static str, token: &str| {
            client.request(method, path).by(by).header("x-amz-security-token", token).send()
        };
        assert_eq!(send("GET", "/bucket/key", &token).await.said(), (200, ""), "{body}");
        assert_eq!(send("PUT", "/bucket/new", &token).await.status == 200, may_put, "{body}");
        // Neither the user nor the session has it.
        assert_eq!(send("GET", "/bucket", &token).await.said(), (403, "AccessDenied"));
        assert_eq!(send("GET", "/bucket/key", "wrong").await.said(), (400, "InvalidToken"));
        assert_eq!(client.get("/bucket/key").by(by).send().await.said(), (403, "InvalidAccessKeyId"));
        let again = client.request("POST", "/").by(by).header("x-amz-security-token", &token);
        let again = again.header("content-type", "application/x-www-form-urlencoded").body(body).send().await;
        assert_eq!(again.said(), (403, "AccessDenied"), "sessions lend no sessions");
    }
    for (body, said) in [
        ("Action=GetSessionToken&DurationSeconds=1", (400, "ValidationError")),
        ("Action=AssumeRole&RoleArn=arn:aws:iam::000000000002:role/admin", (403, "AccessDenied")),
        ("Action=AssumeRole&Policy=none", (400, "MalformedPolicyDocument")),
        ("Action=DecodeAuthorizationMessage", (400, "InvalidAction")),
    ] {
        assert_eq!(call(ANN, body.to_owned()).await.said(), said, "{body}");
    }
    assert_eq!(call(By::Nobody, "Action=GetSessionToken".to_owned()).await.said(), (403, "AccessDenied"));
}
