//! Bucket policies: whom they let in, whom they keep out, and how they are refused.

use serde_json::{Value, json};

use crate::client::{Answer, By, Client};

fn statement(effect: &str, principal: Value, actions: Value, resources: Value) -> Value {
    json!({ "Effect": effect, "Principal": principal, "Action": actions, "Resource": resources })
}

fn policy(statements: &[Value]) -> Value {
    json!({ "Version": "2012-10-17", "Statement": statements })
}

fn allow(actions: Value) -> Value {
    let all = json!(["arn:aws:s3:::bucket", "arn:aws:s3:::bucket/*"]);
    statement("Allow", json!("*"), actions, all)
}

async fn said(answer: impl Future<Output = Answer>) -> (u16, String) {
    let answer = answer.await;
    let (status, code) = answer.said();
    (status, code.to_owned())
}

#[tokio::test]
async fn a_policy_opens_exactly_what_it_names_and_to_whom() {
    let client = Client::start().await;
    assert_eq!(client.put("/bucket/key").body("hello").send().await.status, 200);
    // Principal, actions -> by whom, request -> answer. What is not named stays shut.
    let two = json!({ "AWS": "arn:aws:iam::000000000002:root" });
    let by_name = json!({ "AWS": "arn:aws:iam::two:root" });
    let canonical = json!({ "CanonicalUser": crate::client::TWO });
    for (principal, actions, opened) in [
        (
            json!("*"),
            json!("s3:GetObject"),
            vec![(By::Two, "GET", "/bucket/key"), (By::Nobody, "GET", "/bucket/key")],
        ),
        (
            json!({ "AWS": "*" }),
            json!("s3:ListBucket"),
            vec![(By::Two, "GET", "/bucket"), (By::Nobody, "GET", "/bucket")],
        ),
        (
            two.clone(),
            json!("s3:Get*"),
            vec![(By::Two, "GET", "/bucket/key"), (By::Two, "GET", "/bucket?tagging")],
        ),
        (by_name, json!(["s3:GetObject"]), vec![(By::Two, "GET", "/bucket/key")]),
        (canonical, json!(["s3:GetObject"]), vec![(By::Two, "GET", "/bucket/key")]),
        (two, json!("s3:DeleteObject"), vec![(By::Two, "DELETE", "/bucket/none")]),
    ] {
        let all = json!(["arn:aws:s3:::bucket", "arn:aws:s3:::bucket/*"]);
        let text = policy(&[statement("Allow", principal, actions, all)]);
        assert_eq!(client.set_policy(&text).await.said(), (204, ""), "{text}");
        for by in [By::Two, By::Nobody] {
            for (method, path) in [
                ("GET", "/bucket/key"),
                ("GET", "/bucket"),
                ("GET", "/bucket?tagging"),
                ("DELETE", "/bucket/none"),
                ("PUT", "/bucket/new"),
                ("DELETE", "/bucket"),
                ("GET", "/bucket?policy"),
            ] {
                let answer = client.request(method, path).by(by).send().await;
                let is_open = opened.contains(&(by, method, path))
                    || text.to_string().contains("s3:Get*") && by == By::Two && path == "/bucket?policy";
                assert_eq!(
                    answer.status != 403,
                    is_open,
                    "{text}: {method} {path} by {by:?}: {}",
                    answer.status
                );
            }
        }
    }
    assert_eq!(client.delete("/bucket?policy").send().await.status, 204);
    assert_eq!(client.get("/bucket/key").by(By::Two).send().await.said(), (403, "AccessDenied"));
}

#[tokio::test]
async fn a_deny_holds_for_the_owner_who_keeps_the_policy() {
    let client = Client::start().await;
    client.put("/bucket/key").body("x").send().await;
    let all = json!(["arn:aws:s3:::bucket", "arn:aws:s3:::bucket/*"]);
    let shut = policy(&[allow(json!("s3:*")), statement("Deny", json!("*"), json!("s3:*"), all)]);
    assert_eq!(client.set_policy(&shut).await.status, 204);
    for by in [By::One, By::Two, By::Nobody] {
        let refused = client.get("/bucket/key").by(by).send().await;
        assert_eq!(refused.said(), (403, "AccessDenied"), "{by:?}");
        let id = refused.header("x-amz-request-id").unwrap();
        assert!(refused.body.contains(&format!("<RequestId>{id}</RequestId>")), "{}", refused.body);
    }
    let shown = client.get("/bucket?policy").send().await;
    assert_eq!((shown.status, serde_json::from_str::<Value>(&shown.body).unwrap()), (200, shut));
    assert_eq!(client.delete("/bucket?policy").send().await.status, 204);
    assert_eq!(client.get("/bucket/key").send().await.status, 200);
}

#[tokio::test]
async fn conditions_see_the_request_and_the_object() {
    let client = Client::start().await;
    for (key, tags) in [("open", "kind=public"), ("shut", "kind=private"), ("bare", "")] {
        let answer =
            client.put(&format!("/bucket/{key}")).header("x-amz-tagging", tags).body(key).send().await;
        assert_eq!(answer.status, 200);
    }
    let with = |actions: Value, condition: Value| {
        let mut statement = allow(actions);
        statement["Condition"] = condition;
        policy(&[statement])
    };
    type Case = (Value, Vec<(&'static str, &'static str, Vec<(&'static str, &'static str)>, bool)>);
    let cases: Vec<Case> = vec![
        (
            with(json!("s3:GetObject"), json!({ "StringEquals": { "s3:ExistingObjectTag/kind": "public" } })),
            vec![
                ("GET", "/bucket/open", vec![], true),
                ("GET", "/bucket/shut", vec![], false),
                ("GET", "/bucket/bare", vec![], false),
            ],
        ),
        (
            with(json!("s3:ListBucket"), json!({ "StringLike": { "s3:prefix": "home/*" } })),
            vec![
                ("GET", "/bucket?prefix=home%2Fa", vec![], true),
                ("GET", "/bucket?prefix=etc%2Fa", vec![], false),
                ("GET", "/bucket", vec![], false),
            ],
        ),
        (
            with(json!("s3:GetObject"), json!({ "IpAddress": { "aws:SourceIp": "127.0.0.0/8" } })),
            vec![("GET", "/bucket/open", vec![], true)],
        ),
        (
            with(json!("s3:GetObject"), json!({ "NotIpAddress": { "aws:SourceIp": "127.0.0.0/8" } })),
            vec![("GET", "/bucket/open", vec![], false)],
        ),
        (
            with(json!("s3:GetObject"), json!({ "StringLike": { "aws:Referer": "https://ok.example/*" } })),
            vec![
                ("GET", "/bucket/open", vec![("referer", "https://ok.example/page")], true),
                ("GET", "/bucket/open", vec![("referer", "https://no.example/page")], false),
                ("GET", "/bucket/open", vec![], false),
            ],
        ),
        (
            with(
                json!("s3:PutObject"),
                json!({ "StringEquals": { "s3:x-amz-acl": "bucket-owner-full-control" } }),
            ),
            vec![
                ("PUT", "/bucket/n", vec![("x-amz-acl", "bucket-owner-full-control")], true),
                ("PUT", "/bucket/n", vec![("x-amz-acl", "private")], false),
                ("PUT", "/bucket/n", vec![], false),
            ],
        ),
        (
            with(json!("s3:GetObject"), json!({ "Bool": { "aws:SecureTransport": "true" } })),
            vec![("GET", "/bucket/open", vec![], false)],
        ),
        (
            with(
                json!("s3:GetObject"),
                json!({ "DateLessThan": { "aws:CurrentTime": "2020-01-01T00:00:00Z" } }),
            ),
            vec![("GET", "/bucket/open", vec![], false)],
        ),
        (
            with(
                json!(["s3:PutObject", "s3:PutObjectTagging"]),
                json!({ "Null": { "s3:RequestObjectTag/team": "false" } }),
            ),
            vec![
                ("PUT", "/bucket/n", vec![("x-amz-tagging", "team=red")], true),
                ("PUT", "/bucket/n", vec![("x-amz-tagging", "crew=red")], false),
            ],
        ),
    ];
    for (text, requests) in cases {
        assert_eq!(client.set_policy(&text).await.said(), (204, ""), "{text}");
        for (method, target, headers, is_open) in requests {
            let mut request = client.request(method, target).by(By::Two);
            for (name, value) in &headers {
                request = request.header(name, value);
            }
            let answer = request.send().await;
            assert_eq!(
                answer.said().0 == 200,
                is_open,
                "{text}: {method} {target} {headers:?}: {}",
                answer.body
            );
        }
    }
}

#[tokio::test]
async fn each_key_of_a_batch_and_the_source_of_a_copy_are_judged_by_themselves() {
    let client = Client::start().await;
    for key in ["mine", "yours"] {
        client.put(&format!("/bucket/{key}")).body(key).send().await;
    }
    let only = |action: &str| {
        policy(&[statement("Allow", json!("*"), json!(action), json!("arn:aws:s3:::bucket/yours"))])
    };
    assert_eq!(client.set_policy(&only("s3:DeleteObject")).await.status, 204);
    let batch = "<Delete><Object><Key>mine</Key></Object><Object><Key>yours</Key></Object></Delete>";
    let answer = client.request("POST", "/bucket?delete").by(By::Two).body(batch).send().await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.contains("<Deleted><Key>yours</Key></Deleted>"), "{}", answer.body);
    assert!(
        answer.body.contains("AccessDenied") && answer.body.contains("<Key>mine</Key>"),
        "{}",
        answer.body
    );
    assert_eq!(client.get("/bucket/mine").send().await.status, 200);
    assert_eq!(client.get("/bucket/yours").send().await.status, 404);

    let large = "yours".repeat(2000);
    client.put("/bucket/yours").body(large.clone()).send().await;
    assert_eq!(client.set_policy(&only("s3:GetObject")).await.status, 204);
    assert_eq!(client.put("/theirs").by(By::Two).send().await.status, 200);
    let copy = |source: &str| client.put("/theirs/copy").by(By::Two).header("x-amz-copy-source", source);
    assert_eq!(copy("/bucket/mine").send().await.said(), (403, "AccessDenied"));
    assert_eq!(copy("/bucket/yours").send().await.said(), (200, ""));
    let copied = client.get("/theirs/copy").by(By::Two).send().await;
    assert_eq!((copied.status, copied.body), (200, large));
    assert_eq!(client.get("/theirs/copy").send().await.said(), (403, "AccessDenied"));
}

#[tokio::test]
async fn policies_that_are_none_are_refused_and_change_nothing() {
    let client = Client::start().await;
    assert_eq!(client.get("/bucket?policy").send().await.said(), (404, "NoSuchBucketPolicy"));
    let object = json!("arn:aws:s3:::bucket/*");
    for wrong in [
        json!({}),
        policy(&[]),
        policy(&[statement("Allow", json!("*"), json!("s3:Fly"), object.clone())]),
        policy(&[statement("Allow", json!("*"), json!("s3:GetObject"), json!("arn:aws:s3:::other/*"))]),
        policy(&[
            json!({ "Effect": "Allow", "NotPrincipal": "*", "Action": "s3:GetObject", "Resource": object }),
        ]),
        policy(&[statement("Allow", json!({ "AWS": "who?" }), json!("s3:GetObject"), object.clone())]),
    ] {
        let refused = client.set_policy(&wrong).await;
        assert_eq!(refused.said(), (400, "MalformedPolicy"), "{wrong}");
    }
    let refused = client.put("/bucket?policy").body("{").send().await;
    assert_eq!(refused.said(), (400, "MalformedPolicy"));
    assert_eq!(client.get("/bucket?policy").send().await.said(), (404, "NoSuchBucketPolicy"));
    assert_eq!(client.get("/nowhere?policy").send().await.said(), (404, "NoSuchBucket"));
    assert_eq!(client.get("/bucket?policy").by(By::Nobody).send().await.said(), (403, "AccessDenied"));
}

/// Who is named must exist; a tenant's name may be given to it later.
#[tokio::test]
async fn policies_name_nobody_who_does_not_exist() {
    let client = Client::start().await;
    client.pool.put_user("ann", "AKANNAKANNAKANNAKANN", Vec::new()).await;
    let nobody = format!("{:064x}", 99);
    for (principal, is_known) in [
        (json!({ "AWS": "000000000002" }), true),
        (json!({ "AWS": "arn:aws:iam::000000000001:user/ann" }), true),
        (json!({ "AWS": "arn:aws:iam::one:user/division/ann" }), true),
        (json!({ "AWS": "arn:aws:iam::three:root" }), true),
        (json!({ "Service": "logging.s3.amazonaws.com" }), true),
        (json!({ "CanonicalUser": crate::client::TWO }), true),
        (json!({ "AWS": ["arn:aws:iam::000000000002:root", "*"] }), true),
        (json!({ "AWS": "000000000099" }), false),
        (json!({ "AWS": ["000000000002", "000000000099"] }), false),
        (json!({ "AWS": "arn:aws:iam::000000000099:root" }), false),
        (json!({ "AWS": "arn:aws:iam::000000000001:user/bob" }), false),
        (json!({ "AWS": "arn:aws:iam::000000000002:user/ann" }), false),
        (json!({ "AWS": "arn:aws:iam::one:user/bob" }), false),
        (json!({ "AWS": "arn:aws:iam::000000000001:role/reader" }), false),
        (json!({ "AWS": "arn:aws:sts::000000000001:assumed-role/reader/me" }), false),
        (json!({ "CanonicalUser": nobody }), false),
    ] {
        for effect in ["Allow", "Deny"] {
            let all = json!("arn:aws:s3:::bucket/*");
            let text = policy(&[statement(effect, principal.clone(), json!("s3:GetObject"), all)]);
            let answer = client.set_policy(&text).await;
            let expected = if is_known { (204, "") } else { (400, "MalformedPolicy") };
            assert_eq!(answer.said(), expected, "{text}");
            assert_eq!(answer.body.contains("Invalid principal in policy"), !is_known, "{}", answer.body);
        }
    }
}

#[tokio::test]
async fn what_is_shut_to_the_public_stays_shut() {
    let client = Client::start().await;
    client.put("/bucket/key").body("x").send().await;
    let none = client.get("/bucket?publicAccessBlock").send().await;
    assert_eq!(none.said(), (404, "NoSuchPublicAccessBlockConfiguration"));
    let set = |acls: bool, ignore: bool, policy: bool, restrict: bool| {
        let xml = format!(
            "<PublicAccessBlockConfiguration><BlockPublicAcls>{acls}</BlockPublicAcls>\
             <IgnorePublicAcls>{ignore}</IgnorePublicAcls><BlockPublicPolicy>{policy}</BlockPublicPolicy>\
             <RestrictPublicBuckets>{restrict}</RestrictPublicBuckets></PublicAccessBlockConfiguration>"
        );
        client.put("/bucket?publicAccessBlock").body(xml).send()
    };
    let status = || async {
        let answer = client.get("/bucket?policyStatus").send().await;
        answer.body.to_lowercase().contains("<ispublic>true</ispublic>")
    };
    assert!(!status().await);
    let open = policy(&[allow(json!("s3:GetObject"))]);
    assert_eq!(set(false, false, true, false).await.status, 200);
    assert_eq!(client.set_policy(&open).await.said(), (403, "AccessDenied"));
    assert_eq!(set(false, false, false, false).await.status, 200);
    assert_eq!(client.set_policy(&open).await.status, 204);
    assert!(status().await);
    assert_eq!(client.get("/bucket/key").by(By::Nobody).send().await.status, 200);
    assert_eq!(set(false, false, false, true).await.status, 200);
    assert_eq!(client.get("/bucket/key").by(By::Nobody).send().await.status, 403);
    assert_eq!(client.get("/bucket/key").by(By::Two).send().await.status, 403);
    assert_eq!(client.get("/bucket/key").send().await.status, 200);
    client.delete("/bucket?policy").send().await;

    assert_eq!(set(true, false, false, false).await.status, 200);
    for target in ["/bucket?acl", "/bucket/key?acl", "/bucket/new"] {
        let refused = client.put(target).header("x-amz-acl", "public-read").send().await;
        assert_eq!(refused.said(), (403, "AccessDenied"), "{target}");
    }
    assert_eq!(set(false, true, false, false).await.status, 200);
    assert_eq!(client.put("/bucket/key?acl").header("x-amz-acl", "public-read").send().await.status, 200);
    assert_eq!(client.get("/bucket/key").by(By::Nobody).send().await.status, 403);
    assert_eq!(client.delete("/bucket?publicAccessBlock").send().await.status, 204);
    assert_eq!(client.get("/bucket/key").by(By::Nobody).send().await.status, 200);
    let shown = said(client.get("/bucket?publicAccessBlock").send()).await;
    assert_eq!(shown, (404, "NoSuchPublicAccessBlockConfiguration".into()));
}

#[tokio::test]
async fn frames_that_nobody_decodes_are_not_kept() {
    let client = Client::start().await;
    client.put("/bucket?acl").header("x-amz-acl", "public-read-write").send().await;
    let chunked = client.put("/bucket/key").by(By::Nobody).body("1\r\nx\r\n0\r\n\r\n");
    let chunked = chunked.header("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
    let chunked = chunked.header("x-amz-decoded-content-length", 1).header("content-encoding", "aws-chunked");
    assert_eq!(chunked.send().await.said(), (400, "InvalidRequest"));
    assert_eq!(client.get("/bucket/key").send().await.status, 404);
    assert_eq!(client.put("/bucket/key").by(By::Nobody).body("x").send().await.status, 200);
}

#[tokio::test]
async fn who_expects_another_owner_is_refused() {
    let client = Client::start().await;
    for (owner, status) in
        [("000000000001", 200), (crate::client::ONE, 200), ("000000000002", 403), ("x", 403)]
    {
        let answer = client.get("/bucket").header("x-amz-expected-bucket-owner", owner).send().await;
        assert_eq!(answer.status, status, "{owner}");
    }
}
