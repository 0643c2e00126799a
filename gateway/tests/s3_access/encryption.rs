//! Encryption that clients ask for: by the pool, by a named key, by a key of their own.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};

use crate::client::{Client, Request};

const CUSTOMER: &str = "x-amz-server-side-encryption-customer";
const BUCKET_KEY: &str = "x-amz-server-side-encryption-bucket-key-enabled";
const SOURCE: &str = "x-amz-copy-source-server-side-encryption-customer";

fn with_key<'c>(request: Request<'c>, prefix: &str, key: [u8; 32]) -> Request<'c> {
    request
        .header(&format!("{prefix}-algorithm"), "AES256")
        .header(&format!("{prefix}-key"), BASE64_STANDARD.encode(key))
        .header(&format!("{prefix}-key-md5"), BASE64_STANDARD.encode(Md5::digest(key)))
}

#[tokio::test]
async fn without_the_customers_key_nothing_is_read() {
    let client = Client::start().await;
    for body in ["small".to_owned(), "large".repeat(20_000)] {
        let put = with_key(client.put("/bucket/key"), CUSTOMER, [1; 32]).body(body.clone()).send().await;
        assert_eq!(put.said(), (200, ""));
        assert_eq!(put.header("x-amz-server-side-encryption-customer-algorithm"), Some("AES256"));
        assert_eq!(put.header("etag"), Some(format!("\"{}\"", hex::encode(Md5::digest(&body))).as_str()));
        for method in ["GET", "HEAD"] {
            let right = with_key(client.request(method, "/bucket/key"), CUSTOMER, [1; 32]).send().await;
            let expected = if method == "GET" { body.as_str() } else { "" };
            assert_eq!((right.status, right.body.as_str()), (200, expected));
            let md5 = BASE64_STANDARD.encode(Md5::digest([1; 32]));
            assert_eq!(right.header(&format!("{CUSTOMER}-key-md5")), Some(md5.as_str()));
            let wrong = with_key(client.request(method, "/bucket/key"), CUSTOMER, [2; 32]).send().await;
            assert_eq!((wrong.status, wrong.body.contains("small")), (400, false), "{method}");
            assert_eq!(client.request(method, "/bucket/key").send().await.status, 400, "{method}");
        }
        let copy = || client.put("/bucket/copy").header("x-amz-copy-source", "/bucket/key");
        assert_eq!(copy().send().await.said(), (400, "InvalidRequest"));
        assert_eq!(with_key(copy(), SOURCE, [2; 32]).send().await.said(), (400, "InvalidRequest"));
        let copied = with_key(with_key(copy(), SOURCE, [1; 32]), CUSTOMER, [3; 32]).send().await;
        assert_eq!(copied.said(), (200, ""));
        let got = with_key(client.get("/bucket/copy"), CUSTOMER, [3; 32]).send().await;
        assert_eq!((got.status, got.body.as_str()), (200, body.as_str()));
        assert_eq!(with_key(client.get("/bucket/copy"), CUSTOMER, [1; 32]).send().await.status, 400);
        assert_eq!(with_key(copy(), SOURCE, [1; 32]).send().await.said(), (200, ""));
        assert_eq!(client.get("/bucket/copy").send().await.body, body);
    }
    client.put("/bucket/plain").body("x").send().await;
    let not_used = with_key(client.get("/bucket/plain"), CUSTOMER, [1; 32]).send().await;
    assert_eq!(not_used.said(), (400, "InvalidRequest"));
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let client = Client::start().await;
    let key = BASE64_STANDARD.encode([1; 32]);
    let md5 = BASE64_STANDARD.encode(Md5::digest([1; 32]));
    let short = BASE64_STANDARD.encode([1; 16]);
    let headers = |algorithm: &str, key: &str, md5: &str| {
        let all = [("algorithm", algorithm), ("key", key), ("key-md5", md5)]
            .map(|(name, value)| (name, value.to_owned()));
        all.into_iter()
            .filter(|(_, value)| !value.is_empty())
            .fold(client.put("/bucket/key").body("x"), |request, (name, value)| {
                request.header(&format!("{CUSTOMER}-{name}"), value)
            })
    };
    for (algorithm, given, digest, code) in [
        ("AES256", key.as_str(), "", "InvalidArgument"),
        ("AES256", "", md5.as_str(), "InvalidArgument"),
        ("", key.as_str(), md5.as_str(), "InvalidArgument"),
        ("AES256", key.as_str(), "AAAA", "InvalidArgument"),
        ("AES256", short.as_str(), md5.as_str(), "InvalidArgument"),
        ("aws:kms", key.as_str(), md5.as_str(), "InvalidEncryptionAlgorithmError"),
    ] {
        let refused = headers(algorithm, given, digest).send().await;
        assert_eq!(refused.said(), (400, code), "{algorithm} {given} {digest}");
    }
    let both = with_key(client.put("/bucket/key"), CUSTOMER, [1; 32]);
    let both = both.header("x-amz-server-side-encryption", "AES256").send().await;
    assert_eq!(both.said(), (400, "InvalidArgument"));
    let unknown = client.put("/bucket/key").header("x-amz-server-side-encryption", "ROT13").send().await;
    assert_eq!(unknown.said(), (400, "InvalidArgument"));
    let alone =
        client.put("/bucket/key").header("x-amz-server-side-encryption-aws-kms-key-id", "k").send().await;
    assert_eq!(alone.said(), (400, "InvalidArgument"));
}

#[tokio::test]
async fn answers_say_what_was_asked_for_and_the_bucket_has_a_default() {
    let client = Client::start().await;
    let method = "x-amz-server-side-encryption";
    let name = "x-amz-server-side-encryption-aws-kms-key-id";
    let said = |answer: &crate::client::Answer| {
        (answer.header(method).map(str::to_owned), answer.header(name).map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    client.put("/bucket/none").body("x").send().await;
    assert_eq!(said(&client.get("/bucket/none").send().await), (None, None));
    let body = "kept".repeat(3000);
    let put = client
        .put("/bucket/kms")
        .header(method, "aws:kms")
        .header(name, "key-1")
        .body(body.clone())
        .send()
        .await;
    assert_eq!((put.status, said(&put)), (200, (some("aws:kms"), some("key-1"))));
    let got = client.get("/bucket/kms").send().await;
    assert_eq!((got.body.as_str(), said(&got)), (body.as_str(), (some("aws:kms"), some("key-1"))));
    client.put("/bucket/copy").header("x-amz-copy-source", "/bucket/kms").send().await;
    let copied = client.get("/bucket/copy").send().await;
    assert_eq!((copied.body.as_str(), said(&copied)), (body.as_str(), (None, None)));

    let none = client.get("/bucket?encryption").send().await;
    assert_eq!(none.said(), (404, "ServerSideEncryptionConfigurationNotFoundError"));
    let default = |inside: &str| {
        format!(
            "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>{inside}\
             </ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"
        )
    };
    for (inside, expected) in [
        ("<SSEAlgorithm>AES256</SSEAlgorithm>", (some("AES256"), None)),
        (
            "<SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>key-2</KMSMasterKeyID>",
            (some("aws:kms"), some("key-2")),
        ),
    ] {
        assert_eq!(client.put("/bucket?encryption").body(default(inside)).send().await.said(), (200, ""));
        let shown = client.get("/bucket?encryption").send().await.body;
        assert!(
            inside.split_inclusive("><").all(|piece| shown.contains(piece.trim_matches(['<', '>']))),
            "{shown}"
        );
        client.put("/bucket/new").body("x").send().await;
        assert_eq!(said(&client.request("HEAD", "/bucket/new").send().await), expected);
    }
    for wrong in ["", "<SSEAlgorithm>AES256</SSEAlgorithm><KMSMasterKeyID>k</KMSMasterKeyID>"] {
        assert_eq!(
            client.put("/bucket?encryption").body(default(wrong)).send().await.said(),
            (400, "MalformedXML")
        );
    }
    assert_eq!(client.delete("/bucket?encryption").send().await.status, 204);
    client.put("/bucket/new").body("x").send().await;
    assert_eq!(said(&client.get("/bucket/new").send().await), (None, None));
}

/// Whom a request or its bucket's default gives a bucket key, and what of both counts: the request.
#[tokio::test]
async fn bucket_keys_are_echoed_to_whom_asked_for_them() {
    let client = Client::start().await;
    fn asking<'c>(request: Request<'c>, (method, bucket_key): (&str, Option<&str>)) -> Request<'c> {
        let request = match method {
            "" => request,
            method => request.header("x-amz-server-side-encryption", method),
        };
        bucket_key.into_iter().fold(request, |request, value| request.header(BUCKET_KEY, value))
    }
    let echoed = |answer: &crate::client::Answer| answer.header(BUCKET_KEY).map(str::to_owned);
    // The default's and the request's method and bucket key, and whether there is one.
    for (default, request, expected) in [
        (None, ("aws:kms", None), false),
        (None, ("aws:kms", Some("true")), true),
        (None, ("AES256", Some("true")), false),
        (Some(("aws:kms", true)), ("", None), true),
        (Some(("aws:kms", true)), ("aws:kms", None), true),
        (Some(("aws:kms", true)), ("aws:kms", Some("false")), false),
        (Some(("aws:kms", true)), ("AES256", None), false),
        (Some(("aws:kms", false)), ("", None), false),
    ] {
        client.delete("/bucket?encryption").send().await;
        if let Some((algorithm, has_bucket_key)) = default {
            let xml = format!(
                "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>{algorithm}\
                 </SSEAlgorithm></ApplyServerSideEncryptionByDefault><BucketKeyEnabled>{has_bucket_key}\
                 </BucketKeyEnabled></Rule></ServerSideEncryptionConfiguration>"
            );
            assert_eq!(client.put("/bucket?encryption").body(xml).send().await.said(), (200, ""));
            let shown = client.get("/bucket?encryption").send().await.body;
            assert!(
                shown.contains(&format!("<BucketKeyEnabled>{has_bucket_key}</BucketKeyEnabled>")),
                "{shown}"
            );
        }
        let expected = expected.then(|| "true".to_owned());
        let case = format!("{default:?} {request:?}");
        let put = asking(client.put("/bucket/key"), request).body("x").send().await;
        assert_eq!((put.status, echoed(&put)), (200, expected.clone()), "put: {case}");
        let head = client.request("HEAD", "/bucket/key").send().await;
        assert_eq!((head.status, echoed(&head)), (200, expected.clone()), "head: {case}");
        let copy = asking(client.put("/bucket/copy"), request)
            .header("x-amz-copy-source", "/bucket/key")
            .send()
            .await;
        assert_eq!((copy.status, echoed(&copy)), (200, expected.clone()), "copy: {case}");
        let upload = asking(client.request("POST", "/bucket/parts?uploads"), request).send().await;
        assert_eq!((upload.status, echoed(&upload)), (200, expected), "upload: {case}");
    }
}

#[tokio::test]
async fn each_part_of_an_upload_needs_its_key() {
    let client = Client::start().await;
    let begun = with_key(client.request("POST", "/bucket/parts?uploads"), CUSTOMER, [1; 32]).send().await;
    assert_eq!(begun.status, 200, "{}", begun.body);
    let id = begun.body.split_once("<UploadId>").unwrap().1.split_once('<').unwrap().0.to_owned();
    let part = || client.put(&format!("/bucket/parts?partNumber=1&uploadId={id}")).body("part");
    assert_eq!(part().send().await.said(), (400, "InvalidRequest"));
    assert_eq!(with_key(part(), CUSTOMER, [2; 32]).send().await.said(), (400, "InvalidRequest"));
    let put = with_key(part(), CUSTOMER, [1; 32]).send().await;
    assert_eq!(put.said(), (200, ""));
    let xml = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
        put.header("etag").unwrap()
    );
    let done = client.request("POST", &format!("/bucket/parts?uploadId={id}")).body(xml).send().await;
    assert_eq!(done.status, 200, "{}", done.body);
    assert_eq!(client.get("/bucket/parts").send().await.status, 400);
    assert_eq!(with_key(client.get("/bucket/parts"), CUSTOMER, [1; 32]).send().await.body, "part");
}
