//! What S3 answers at its edges: conditions of deletions, names and owners of buckets, headers that say who asks.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::hmac;

use crate::client::{By, Client, TWO};

/// Condition, what it says, and what a deletion of an object of 5 bytes then answers.
#[tokio::test]
async fn a_deletion_happens_where_its_conditions_hold() {
    let client = Client::start().await;
    let etag = format!("\"{}\"", hex::encode(md5_of(b"12345")));
    let long_ago = "Sat, 29 Oct 1994 19:43:31 GMT";
    for (header, value, status) in [
        ("if-match", etag.as_str(), 204),
        ("if-match", "*", 204),
        ("if-match", "\"other\"", 412),
        ("x-amz-if-match-size", "5", 204),
        ("x-amz-if-match-size", "6", 412),
        ("x-amz-if-match-size", "-1", 412),
        ("x-amz-if-match-last-modified-time", long_ago, 412),
    ] {
        client.put("/bucket/k").body("12345").send().await;
        let answer = client.delete("/bucket/k").header(header, value).send().await;
        assert_eq!(answer.status, status, "{header}: {value}: {}", answer.body);
        let is_there = client.get("/bucket/k").send().await.status;
        assert_eq!(is_there, if status == 204 { 404 } else { 200 }, "{header}: {value}");
        // What is not there is deleted, whatever is asked of it.
        client.delete("/bucket/k").send().await;
        let answer = client.delete("/bucket/k").header(header, value).send().await;
        assert_eq!(answer.status, 204, "{header}: {value}, of nothing");
    }
    client.put("/bucket/k").body("12345").send().await;
    let modified = client.get("/bucket/k").send().await.header("last-modified").unwrap().to_owned();
    let answer =
        client.delete("/bucket/k").header("x-amz-if-match-last-modified-time", modified).send().await;
    assert_eq!(answer.status, 204);
}

fn md5_of(bytes: &[u8]) -> Vec<u8> {
    use md5::{Digest as _, Md5};
    Md5::digest(bytes).to_vec()
}

#[tokio::test]
async fn ones_own_bucket_is_made_again_and_loses_its_list() {
    let client = Client::start().await;
    client.put("/bucket/k").body("x").send().await;
    client.put("/bucket?acl").header("x-amz-acl", "public-read").send().await;
    assert_eq!(client.get("/bucket").by(By::Nobody).send().await.status, 200);
    assert_eq!(client.put("/bucket").send().await.said(), (200, ""));
    assert_eq!(client.get("/bucket").by(By::Nobody).send().await.said(), (403, "AccessDenied"));
    assert_eq!(client.get("/bucket/k").send().await.status, 200, "what lies in it stays");
    assert_eq!(client.put("/bucket").by(By::Two).send().await.said(), (409, "BucketAlreadyExists"));
}

#[tokio::test]
async fn names_of_buckets_are_those_of_hosts() {
    let client = Client::start().await;
    let long = "a".repeat(64);
    for name in [
        "ab",
        "a..b",
        "a.-b",
        "a-.b",
        "-ab",
        "ab-",
        "Abc",
        "a_b",
        "192.168.5.4",
        "xn--abc",
        "abc--x-s3",
        &long,
    ] {
        let answer = client.put(&format!("/{name}")).send().await;
        assert_eq!(answer.said(), (400, "InvalidBucketName"), "{name}");
    }
    for name in ["abc", "a.b", "1a2", "a-b.c-d"] {
        assert_eq!(client.put(&format!("/{name}")).send().await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn errors_name_what_they_are_about() {
    let client = Client::start().await;
    let answer = client.get("/bucket/no%20key").send().await;
    assert_eq!(answer.said(), (404, "NoSuchKey"));
    let host = answer.header("x-amz-id-2").unwrap();
    for element in ["<Key>no key</Key>".to_owned(), format!("<HostId>{host}</HostId>")] {
        assert!(answer.body.contains(&element), "{}", answer.body);
    }
    let answer = client.get("/no-bucket/k").send().await;
    assert!(answer.body.contains("<BucketName>no-bucket</BucketName>"), "{}", answer.body);
}

/// `Authorization`, and what it is answered.
#[tokio::test]
async fn who_asks_must_be_said_in_a_form_that_is_known() {
    let client = Client::start().await;
    for (authorization, said) in [
        ("", (403, "AccessDenied")),
        ("Basic YTpi", (400, "InvalidArgument")),
        ("AWS", (400, "InvalidArgument")),
        ("AWS nothing", (400, "InvalidArgument")),
        ("AWS AKNOSUCH:c2ln", (403, "AccessDenied")),
        ("AWS4-HMAC-SHA256 Credential=x", (400, "AuthorizationHeaderMalformed")),
        ("AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c", (403, "AccessDenied")),
        ("AWS4-ECDSA-P256-SHA256 Credential=x", (501, "NotImplemented")),
    ] {
        let request = client.get("/bucket").by(By::Nobody).header("authorization", authorization);
        assert_eq!(request.send().await.said(), said, "{authorization}");
    }
}

/// Signed as the S3 documentation of SigV2 says: by a date that is now.
#[tokio::test]
async fn sigv2_is_taken_while_its_date_is_of_now() {
    let client = Client::start().await;
    let send = async |date: &str, secret: &str| {
        let signed = format!("PUT\n\n\n{date}\n/bucket/old");
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        let signature = BASE64_STANDARD.encode(hmac::sign(&key, signed.as_bytes()));
        let authorization = format!("AWS {}:{signature}", client.pool.access_key);
        let request = client.put("/bucket/old").by(By::Nobody).body("x");
        request.header("date", date).header("authorization", authorization).send().await
    };
    let now = client.get("/bucket").send().await.header("date").unwrap().to_owned();
    let secret = client.pool.secret_key.clone();
    assert_eq!(send(&now, &secret).await.said(), (200, ""));
    assert_eq!(send(&now, "wrong").await.said(), (403, "SignatureDoesNotMatch"));
    assert_eq!(send("Tue, 07 Jul 2020 21:53:04 GMT", &secret).await.said(), (403, "RequestTimeTooSkewed"));
    assert_eq!(send("Bad Date", &secret).await.said(), (403, "AccessDenied"));

    // A bucket is signed with a slash behind it, also in a link.
    let expires = crate::pool::now().0 / 1000 + 60;
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    for (path, status) in [("/bucket", 200), ("/bucket/", 200), ("/other", 403)] {
        let signature = hmac::sign(&key, format!("GET\n\n\n{expires}\n/bucket/").as_bytes());
        let signature: String =
            form_urlencoded::byte_serialize(BASE64_STANDARD.encode(signature).as_bytes()).collect();
        let access_key = &client.pool.access_key;
        let link = format!("{path}?AWSAccessKeyId={access_key}&Expires={expires}&Signature={signature}");
        assert_eq!(client.get(&link).by(By::Nobody).send().await.status, status, "{path}");
    }
}

#[tokio::test]
async fn listings_name_who_has_an_object() {
    let client = Client::start().await;
    client.put("/bucket?acl").header("x-amz-acl", "public-read-write").send().await;
    client.put("/bucket/theirs").by(By::Two).body("x").send().await;
    for target in ["/bucket", "/bucket?list-type=2&fetch-owner=true", "/bucket?versions"] {
        let body = client.get(target).send().await.body;
        assert!(body.contains(&format!("<ID>{TWO}</ID>")), "{target}: {body}");
    }
    assert_eq!(client.request("POST", "/bucket/up?uploads=").by(By::Two).send().await.status, 200);
    let body = client.get("/bucket?uploads").send().await.body;
    assert_eq!(body.matches(TWO).count(), 2, "as owner and as initiator: {body}");
}

#[tokio::test]
async fn what_nobody_signed_cannot_say_what_the_answer_says() {
    let client = Client::start().await;
    client.put("/bucket/k").header("x-amz-acl", "public-read").body("x").send().await;
    let get = |by| client.get("/bucket/k?response-content-type=a%2Fb").by(by);
    assert_eq!(get(By::Nobody).send().await.said(), (400, "InvalidRequest"));
    assert_eq!(get(By::One).send().await.header("content-type"), Some("a/b"));
}

#[tokio::test]
async fn what_would_not_be_kept_is_refused() {
    let client = Client::start().await;
    for (header, value, code) in [
        ("x-amz-website-redirect-location", "elsewhere", "InvalidRedirectLocation"),
        ("x-amz-tagging", "aws%3Ainternal=1", "InvalidTag"),
    ] {
        let answer = client.put("/bucket/k").header(header, value).body("x").send().await;
        assert_eq!(answer.said(), (400, code), "{header}: {value}");
    }
    let answer = client.put("/bucket/k").header("x-amz-tagging", "a=1&b=2").body("x").send().await;
    assert_eq!(answer.status, 200);
    let answer = client.request("HEAD", "/bucket/k").send().await;
    assert_eq!(answer.header("x-amz-tagging-count"), Some("2"));
    let answer = client.get("/bucket/k").header("x-amz-server-side-encryption", "AES256").send().await;
    assert_eq!(answer.said(), (400, "InvalidArgument"));
}

/// What S3 is asked less often, and what it answers.
#[tokio::test]
async fn rare_questions_have_the_answers_that_s3_documents() {
    let client = Client::start().await;
    client.put("/bucket/k").body("x").send().await;
    let located = |region: &str| {
        format!(
            "<CreateBucketConfiguration><LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
        )
    };
    for (method, target, body, said) in [
        ("GET", "/bucket/k?torrent", String::new(), (404, "NoSuchKey")),
        ("GET", "/bucket/k?partNumber=2", String::new(), (400, "InvalidPart")),
        ("PUT", "/abroad", located("eu-west-1"), (200, "")),
        ("PUT", "/abroad-2", located("EU"), (200, "")),
        ("PUT", "/abroad-3", located("us-gov-east-1"), (200, "")),
        ("PUT", "/abroad-4", located("mars-1"), (400, "InvalidLocationConstraint")),
        ("PUT", "/abroad-5", located("eu-west-"), (400, "InvalidLocationConstraint")),
        ("PUT", "/abroad-6", located("eu-west-1-2-3"), (400, "InvalidLocationConstraint")),
    ] {
        let answer = client.request(method, target).body(body).send().await;
        assert_eq!(answer.said(), said, "{method} {target}: {}", answer.body);
    }
    for (bucket, region) in [("abroad", ">eu-west-1</"), ("abroad-2", ">EU</"), ("bucket", "\"></")] {
        let answer = client.get(&format!("/{bucket}?location")).send().await;
        assert!(answer.body.contains(&format!("{region}LocationConstraint>")), "{bucket}: {}", answer.body);
    }
}

/// Texts that clients compare.
#[tokio::test]
async fn what_is_not_there_is_told_in_the_words_of_s3() {
    let client = Client::start().await;
    for (target, words) in [
        ("/none", "<Message>The specified bucket does not exist</Message>"),
        ("/bucket/none", "<Message>The specified key does not exist.</Message>"),
        ("/bucket/none?uploadId=none", "<Message>The specified upload does not exist. The upload ID may be"),
    ] {
        let answer = client.get(target).send().await;
        assert!(answer.body.contains(words), "{target}: {}", answer.body);
    }
}

/// Tools that set encryption for all they send name it with each part, too.
#[tokio::test]
async fn encryption_named_with_a_part_is_no_fault() {
    let client = Client::start().await;
    let sealed = ("x-amz-server-side-encryption", "AES256");
    let begun = client.request("POST", "/bucket/k?uploads").header(sealed.0, sealed.1).send().await;
    let upload = begun.body.split_once("<UploadId>").and_then(|(_, rest)| rest.split_once('<')).unwrap().0;
    let part = format!("/bucket/k?partNumber=1&uploadId={upload}");
    let put = client.put(&part).header(sealed.0, sealed.1).body("x").send().await;
    assert_eq!(put.said(), (200, ""), "{}", put.body);
    let body = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
        put.header("etag").unwrap()
    );
    let complete = client.request("POST", &format!("/bucket/k?uploadId={upload}")).header(sealed.0, sealed.1);
    assert_eq!(complete.body(body).send().await.said(), (200, ""));
    let got = client.get("/bucket/k").send().await;
    assert_eq!((got.body.as_str(), got.header(sealed.0)), ("x", Some(sealed.1)));
    // What opens it is not for its reader to say.
    let read = client.get("/bucket/k").header(sealed.0, sealed.1).send().await;
    assert_eq!(read.said(), (400, "InvalidArgument"));
}

/// An object that nobody gave a checksum has the one that S3 computes itself.
#[tokio::test]
async fn an_object_has_a_checksum_that_nobody_sent() {
    let client = Client::start().await;
    client.put("/bucket/k").body("123456789").send().await;
    let read = || client.get("/bucket/k");
    assert_eq!(read().send().await.header("x-amz-checksum-crc64nvme"), None);
    let read = read().header("x-amz-checksum-mode", "ENABLED").send().await;
    // CRC-64/NVME's check value, ae8b14860a799888.
    assert_eq!(read.header("x-amz-checksum-crc64nvme"), Some("rosUhgp5mIg="));
    assert_eq!(read.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
}

#[tokio::test]
async fn a_percent_sign_that_is_no_escape_is_no_name() {
    let client = Client::start().await;
    for by in [By::One, By::Nobody] {
        for path in ["/bucket/%zz", "/bucket/100%", "/bucket/%4", "/%", "/bucket/a%2"] {
            assert_eq!(client.get(path).by(by).send().await.said(), (400, "InvalidURI"), "{path}");
        }
    }
    assert_eq!(client.get("/bucket/100%25").send().await.said(), (404, "NoSuchKey"));
}
