//! Access lists of buckets and objects, and whose an object is.

use crate::client::{Answer, By, Client, ONE, TWO};

const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";

/// Grantee and permission of each grant, in order.
fn grants(answer: &Answer) -> Vec<(String, String)> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let between = |text: &str, tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once(&format!("</{tag}>"))?.0.to_owned())
    };
    let each = answer.body.split("<Grant>").skip(1).map(|grant| {
        let grant = grant.split_once("</Grant>").unwrap().0;
        let grantee = between(grant, "ID").or_else(|| between(grant, "URI")).unwrap();
        let grantee = grantee.rsplit('/').next().unwrap().to_owned();
        (grantee, between(grant, "Permission").unwrap())
    });
    each.collect()
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(who, what)| ((*who).to_owned(), (*what).to_owned())).collect()
}

#[tokio::test]
async fn canned_lists_are_the_grants_that_s3_documents() {
    let client = Client::start().await;
    client.put("/bucket/key").body("x").send().await;
    let owner = (ONE, "FULL_CONTROL");
    for (canned, more) in [
        ("private", vec![]),
        ("public-read", vec![("AllUsers", "READ")]),
        ("public-read-write", vec![("AllUsers", "READ"), ("AllUsers", "WRITE")]),
        ("authenticated-read", vec![("AuthenticatedUsers", "READ")]),
        ("bucket-owner-read", vec![]),
        ("bucket-owner-full-control", vec![]),
    ] {
        // Groups come first.
        let expected = pairs(&[more.as_slice(), &[owner]].concat());
        for target in ["/bucket?acl", "/bucket/key?acl"] {
            let answer = client.put(target).header("x-amz-acl", canned).send().await;
            assert_eq!(answer.said(), (200, ""), "{target} {canned}");
            assert_eq!(grants(&client.get(target).send().await), expected, "{target} {canned}");
        }
        let answer = client.put("/bucket/new").header("x-amz-acl", canned).body("y").send().await;
        assert_eq!(answer.status, 200);
        assert_eq!(grants(&client.get("/bucket/new?acl").send().await), expected, "{canned}");
    }
    let wrong = client.put("/bucket/key?acl").header("x-amz-acl", "public-ish").send().await;
    assert_eq!(wrong.said(), (400, "InvalidArgument"));
    assert_eq!(client.put("/bucket/key?acl").send().await.said(), (400, "MissingSecurityHeader"));
}

#[tokio::test]
async fn each_permission_opens_what_it_should_and_nothing_else() {
    let client = Client::start().await;
    // On a bucket, and on an object: permission -> requests that it opens to whom it is granted.
    let bucket_requests = [
        ("GET", "/bucket", "READ"),
        ("PUT", "/bucket/new", "WRITE"),
        ("DELETE", "/bucket/none", "WRITE"),
        ("GET", "/bucket?acl", "READ_ACP"),
        ("PUT", "/bucket?acl", "WRITE_ACP"),
        ("GET", "/bucket?policyStatus", "-"),
        ("GET", "/bucket/key", "-"),
    ];
    let object_requests = [
        ("GET", "/bucket/key", "READ"),
        ("HEAD", "/bucket/key", "READ"),
        ("GET", "/bucket/key?acl", "READ_ACP"),
        ("PUT", "/bucket/key?acl", "WRITE_ACP"),
        ("PUT", "/bucket/key", "-"),
        ("DELETE", "/bucket/key", "-"),
        ("GET", "/bucket", "-"),
    ];
    for (target, requests) in [("/bucket?acl", bucket_requests), ("/bucket/key?acl", object_requests)] {
        for (header, permission) in [
            ("x-amz-grant-read", "READ"),
            ("x-amz-grant-write", "WRITE"),
            ("x-amz-grant-read-acp", "READ_ACP"),
            ("x-amz-grant-write-acp", "WRITE_ACP"),
            ("x-amz-grant-full-control", "FULL_CONTROL"),
        ] {
            for (grantee, by) in
                [(format!("id=\"{TWO}\""), By::Two), (format!("uri=\"{ALL_USERS}\""), By::Nobody)]
            {
                client.put("/bucket/key").body("x").send().await;
                let keep = format!("id={ONE}");
                let set = || async {
                    let both = format!("{keep}, {grantee}");
                    let request = client.put(target);
                    let request = match header {
                        "x-amz-grant-full-control" => request.header(header, &both),
                        header => request.header("x-amz-grant-full-control", &keep).header(header, &grantee),
                    };
                    assert_eq!(request.send().await.said(), (200, ""), "{target} {header} {grantee}");
                };
                for (method, path, needs) in requests {
                    set().await;
                    let mut request = client.request(method, path).by(by);
                    if method == "PUT" && path.ends_with("?acl") {
                        request = request.header("x-amz-acl", "private");
                    }
                    let answer = request.send().await;
                    let is_open = needs != "-" && (permission == "FULL_CONTROL" || needs == permission);
                    assert_eq!(
                        answer.status != 403,
                        is_open,
                        "{target} gives {permission}: {method} {path} by {by:?} is {}",
                        answer.status
                    );
                }
            }
        }
        client.put("/bucket?acl").header("x-amz-acl", "private").send().await;
    }
}

#[tokio::test]
async fn lists_in_xml_say_what_lists_in_headers_say() {
    let client = Client::start().await;
    client.put("/bucket/key").body("x").send().await;
    let xml = |owner: &str, grants: &str| {
        format!(
            "<AccessControlPolicy><Owner><ID>{owner}</ID></Owner><AccessControlList>{grants}</AccessControlList>\
             </AccessControlPolicy>"
        )
    };
    let grant = |kind: &str, grantee: &str, permission: &str| {
        format!(
            "<Grant><Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"{kind}\">{grantee}\
             </Grantee><Permission>{permission}</Permission></Grant>"
        )
    };
    let two = grant("CanonicalUser", &format!("<ID>{TWO}</ID>"), "READ");
    let all = grant("Group", &format!("<URI>{ALL_USERS}</URI>"), "READ_ACP");
    for target in ["/bucket?acl", "/bucket/key?acl"] {
        let answer = client.put(target).body(xml(ONE, &format!("{two}{all}"))).send().await;
        assert_eq!(answer.said(), (200, ""), "{}", answer.body);
        let shown = client.get(target).send().await;
        assert_eq!(grants(&shown), pairs(&[("AllUsers", "READ_ACP"), (TWO, "READ")]));
        assert!(shown.body.contains(&format!("<ID>{ONE}</ID>")), "the owner: {}", shown.body);
        // Nobody is granted anything: it stays the owner's to change.
        assert_eq!(client.put(target).body(xml(ONE, "")).send().await.said(), (200, ""));
        assert_eq!(grants(&client.get(target).send().await), pairs(&[]));
    }
    for (body, said) in [
        (xml(TWO, &two), (403, "AccessDenied")),
        (xml(ONE, &grant("CanonicalUser", "<ID>nobody</ID>", "READ")), (400, "InvalidArgument")),
        (
            xml(ONE, &grant("CanonicalUser", &format!("<ID>{}</ID>", "9".repeat(64)), "READ")),
            (400, "InvalidArgument"),
        ),
        (xml(ONE, &grant("Group", "<URI>http://nowhere</URI>", "READ")), (400, "InvalidArgument")),
        (xml(ONE, &grant("CanonicalUser", &format!("<ID>{TWO}</ID>"), "FLY")), (400, "MalformedACLError")),
        (xml(ONE, &two.repeat(101)), (400, "MalformedACLError")),
        ("<AccessControlPolicy></AccessControlPolicy>".to_owned(), (400, "MalformedACLError")),
    ] {
        assert_eq!(client.put("/bucket/key?acl").body(body.clone()).send().await.said(), said, "{body}");
    }
    for (header, said) in [
        ("id=nobody", (400, "InvalidArgument")),
        ("emailAddress=a@b.c", (400, "UnresolvableGrantByEmailAddress")),
        ("someone", (400, "InvalidArgument")),
    ] {
        let answer = client.put("/bucket/key?acl").header("x-amz-grant-read", header).send().await;
        assert_eq!(answer.said(), said, "{header}");
    }
}

#[tokio::test]
async fn a_writer_owns_what_it_writes_unless_the_bucket_says_otherwise() {
    let client = Client::start().await;
    let by_two = |headers: &'static [(&'static str, &'static str)]| {
        let request = client.put("/bucket/theirs").by(By::Two).body("secret");
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send()
    };
    let ownership = |setting: &str| {
        let xml = format!(
            "<OwnershipControls><Rule><ObjectOwnership>{setting}</ObjectOwnership></Rule></OwnershipControls>"
        );
        client.put("/bucket?ownershipControls").body(xml).send()
    };
    let not_found = client.get("/bucket?ownershipControls").send().await;
    assert_eq!(not_found.said(), (404, "OwnershipControlsNotFoundError"));
    assert_eq!(client.put("/bucket?acl").header("x-amz-acl", "public-read-write").send().await.status, 200);

    assert_eq!(by_two(&[]).await.status, 200);
    assert_eq!(client.get("/bucket/theirs").by(By::Two).send().await.body, "secret");
    assert_eq!(client.get("/bucket/theirs").send().await.said(), (403, "AccessDenied"));
    assert_eq!(by_two(&[("x-amz-acl", "bucket-owner-read")]).await.status, 200);
    assert_eq!(client.get("/bucket/theirs").send().await.body, "secret");
    let shown = client.get("/bucket/theirs?acl").by(By::Two).send().await;
    assert_eq!(grants(&shown), pairs(&[(TWO, "FULL_CONTROL"), (ONE, "READ")]));

    assert_eq!(ownership("BucketOwnerPreferred").await.status, 200);
    assert_eq!(by_two(&[("x-amz-acl", "bucket-owner-full-control")]).await.status, 200);
    assert_eq!(client.get("/bucket/theirs").by(By::Two).send().await.said(), (403, "AccessDenied"));
    assert_eq!(grants(&client.get("/bucket/theirs?acl").send().await), pairs(&[(ONE, "FULL_CONTROL")]));

    let refused = ownership("BucketOwnerEnforced").await;
    assert_eq!(refused.said(), (400, "InvalidBucketAclWithObjectOwnership"));
    client.put("/bucket?acl").header("x-amz-acl", "private").send().await;
    client.put("/bucket/mine").header("x-amz-acl", "public-read").body("x").send().await;
    assert_eq!(client.get("/bucket/mine").by(By::Nobody).send().await.status, 200);
    assert_eq!(ownership("BucketOwnerEnforced").await.status, 200);
    assert_eq!(client.get("/bucket/mine").by(By::Nobody).send().await.said(), (403, "AccessDenied"));
    for target in ["/bucket?acl", "/bucket/mine?acl", "/bucket/new"] {
        let refused = client.put(target).header("x-amz-acl", "public-read").send().await;
        assert_eq!(refused.said(), (400, "AccessControlListNotSupported"), "{target}");
    }
    let kept = client.put("/bucket/new").header("x-amz-acl", "bucket-owner-full-control").send().await;
    assert_eq!(kept.status, 200);
    assert_eq!(client.delete("/bucket?ownershipControls").send().await.status, 204);
    assert_eq!(ownership("Everyone").await.said(), (400, "MalformedXML"));
}

#[tokio::test]
async fn a_new_bucket_has_the_list_it_is_made_with() {
    let client = Client::start().await;
    for (bucket, header, value, expected) in [
        ("/open", "x-amz-acl", "public-read", pairs(&[("AllUsers", "READ"), (ONE, "FULL_CONTROL")])),
        ("/given", "x-amz-grant-read", &format!("id={TWO}"), pairs(&[(TWO, "READ")])),
    ] {
        assert_eq!(client.put(bucket).header(header, value).send().await.said(), (200, ""));
        assert_eq!(grants(&client.get(&format!("{bucket}?acl")).send().await), expected);
    }
    assert_eq!(client.get("/open").by(By::Nobody).send().await.status, 200);
    assert_eq!(client.get("/given").by(By::Nobody).send().await.status, 403);
    assert_eq!(client.get("/given").by(By::Two).send().await.status, 200);
    let both =
        client.put("/both").header("x-amz-acl", "private").header("x-amz-grant-read", format!("id={TWO}"));
    assert_eq!(both.send().await.said(), (400, "InvalidRequest"));
    let clash = client.put("/clash").header("x-amz-acl", "public-read");
    let clash = clash.header("x-amz-object-ownership", "BucketOwnerEnforced").send().await;
    assert_eq!(clash.said(), (400, "InvalidBucketAclWithObjectOwnership"));
    assert_eq!(client.get("/both").send().await.status, 404);
}

#[tokio::test]
async fn a_copy_is_its_makers_alone_and_a_missing_key_tells_nothing() {
    let client = Client::start().await;
    client.put("/bucket/open").header("x-amz-acl", "public-read").body("x").send().await;
    client.put("/bucket/copy").header("x-amz-copy-source", "/bucket/open").send().await;
    assert_eq!(client.get("/bucket/open").by(By::Nobody).send().await.status, 200);
    assert_eq!(client.get("/bucket/copy").by(By::Nobody).send().await.said(), (403, "AccessDenied"));
    assert_eq!(client.get("/bucket/none").by(By::Nobody).send().await.said(), (403, "AccessDenied"));
    client.put("/bucket?acl").header("x-amz-acl", "public-read").send().await;
    assert_eq!(client.get("/bucket/none").by(By::Nobody).send().await.said(), (404, "NoSuchKey"));
    assert_eq!(client.get("/nowhere/none").by(By::Nobody).send().await.said(), (404, "NoSuchBucket"));
    assert_eq!(client.get("/").by(By::Nobody).send().await.said(), (403, "AccessDenied"));
}
