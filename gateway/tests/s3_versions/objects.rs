//! The finer points of objects: parts of them, conditions, copies, what answers are asked to say.

use crate::client::{Client, bytes};

const PART: usize = 5 * 1024 * 1024;

#[tokio::test]
async fn an_object_is_read_by_its_parts() {
    let client = Client::start().await;
    let done = client.multipart("/bucket/k", &[], &[PART, 1000]).await;
    let etag = done.element("ETag").unwrap();
    for method in ["GET", "HEAD"] {
        for (number, size, range) in [
            (1, PART, format!("bytes 0-{}/{}", PART - 1, PART + 1000)),
            (2, 1000, format!("bytes {PART}-{}/{}", PART + 999, PART + 1000)),
        ] {
            let part = client.ok(method, &format!("/bucket/k?partNumber={number}"), &[], "").await;
            assert_eq!(
                (part.status, part.header("x-amz-mp-parts-count")),
                (206, Some("2")),
                "{method} {number}"
            );
            assert_eq!(part.header("content-length"), Some(size.to_string().as_str()));
            assert_eq!(part.header("content-range"), Some(range.as_str()));
            assert_eq!(part.header("etag").map(str::to_owned), Some(etag.clone()));
            if method == "GET" {
                assert!(part.body == bytes(size));
            }
        }
    }
    let beyond = client.outcome("GET", "/bucket/k?partNumber=3", &[], "").await;
    assert_eq!(beyond, (400, "InvalidPart".into()));
    client.ok("PUT", "/bucket/whole", &[], "whole").await;
    let whole = client.ok("GET", "/bucket/whole?partNumber=1", &[], "").await;
    assert_eq!(
        (whole.status, whole.text().as_str(), whole.header("x-amz-mp-parts-count")),
        (206, "whole", None)
    );
    let beyond = client.outcome("GET", "/bucket/whole?partNumber=2", &[], "").await;
    assert_eq!(beyond, (400, "InvalidPart".into()));
}

#[tokio::test]
async fn attributes_tell_of_parts_and_checksums() {
    let client = Client::start().await;
    let crc = [("x-amz-checksum-algorithm", "CRC32")];
    assert_eq!(client.multipart("/bucket/k", &crc, &[PART, PART, 7]).await.status, 200);
    let asked = [("x-amz-object-attributes", "ETag,Checksum,ObjectParts,ObjectSize,StorageClass")];
    let told = client.ok("GET", "/bucket/k?attributes", &asked, "").await;
    assert_eq!(told.element("ObjectSize"), Some((2 * PART + 7).to_string()));
    let etag = told.element("ETag").unwrap();
    assert!(etag.ends_with("-3") && !etag.contains(['"', '&']), "without quotes, here alone: {etag}");
    assert_eq!(told.element("PartsCount").or(told.element("TotalPartsCount")).as_deref(), Some("3"));
    assert_eq!(told.elements("PartNumber"), ["1", "2", "3"]);
    assert_eq!(told.elements("Size"), [PART.to_string(), PART.to_string(), "7".into()]);
    assert_eq!(told.elements("ChecksumCRC32").len(), 4, "{}", told.text());
    let page = client
        .ok(
            "GET",
            "/bucket/k?attributes",
            &[asked[0], ("x-amz-max-parts", "1"), ("x-amz-part-number-marker", "1")],
            "",
        )
        .await;
    assert_eq!(page.elements("PartNumber"), ["2"]);
    assert_eq!(page.element("IsTruncated").as_deref(), Some("true"));
    assert_eq!(page.element("NextPartNumberMarker").as_deref(), Some("2"));
    // A copy shares its parts, and outlives its source.
    client.ok("PUT", "/bucket/copy", &[("x-amz-copy-source", "/bucket/k")], "").await;
    client.ok("DELETE", "/bucket/k", &[], "").await;
    let told = client.ok("GET", "/bucket/copy?attributes", &asked, "").await;
    assert_eq!(told.elements("PartNumber"), ["1", "2", "3"]);
}

/// Condition on a key that exists or not -> status, code.
#[tokio::test]
async fn writes_and_deletions_may_have_conditions() {
    let client = Client::start().await;
    let etag = client.ok("PUT", "/bucket/there", &[], "x").await.headers["etag"].clone();
    let other = "\"00000000000000000000000000000000\"";
    let failed = (412, "PreconditionFailed");
    let missing = (404, "NoSuchKey");
    for (key, name, value, put, delete) in [
        ("there", "if-none-match", "*", failed, (204, "")),
        ("there", "if-none-match", etag.as_str(), failed, (204, "")),
        ("there", "if-none-match", other, (200, ""), (204, "")),
        ("there", "if-match", "*", (200, ""), (204, "")),
        ("there", "if-match", etag.as_str(), (200, ""), (204, "")),
        ("there", "if-match", other, failed, failed),
        ("gone", "if-none-match", "*", (200, ""), (204, "")),
        ("gone", "if-match", "*", missing, (204, "")),
        ("gone", "if-match", other, missing, (204, "")),
    ] {
        let prepare = async || {
            match key {
                "there" => client.ok("PUT", "/bucket/there", &[], "x").await,
                _ => client.ok("DELETE", "/bucket/gone", &[], "").await,
            };
        };
        let (target, headers) = (format!("/bucket/{key}"), [(name, value)]);
        prepare().await;
        let outcome = client.outcome("PUT", &target, &headers, "x").await;
        assert_eq!(outcome, (put.0, put.1.into()), "PUT {key} {name}: {value}");
        prepare().await;
        let begun =
            client.ok("POST", &format!("{target}?uploads"), &[], "").await.element("UploadId").unwrap();
        let part = client.ok("PUT", &format!("{target}?partNumber=1&uploadId={begun}"), &[], "x").await;
        let body = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
            part.headers["etag"]
        );
        let outcome = client.outcome("POST", &format!("{target}?uploadId={begun}"), &headers, body).await;
        assert_eq!(outcome, (put.0, put.1.into()), "complete {key} {name}: {value}");
        if name == "if-match" {
            prepare().await;
            let outcome = client.outcome("DELETE", &target, &headers, "").await;
            assert_eq!(outcome, (delete.0, delete.1.into()), "DELETE {key} {name}: {value}");
        }
    }
}

#[tokio::test]
async fn an_answer_says_what_it_is_asked_to_say() {
    let client = Client::start().await;
    let redirect = [("x-amz-website-redirect-location", "/other"), ("content-type", "text/plain")];
    client.ok("PUT", "/bucket/k", &redirect, "x").await;
    let query = "response-content-type=a%2Fb&response-content-language=de&response-expires=Thu%2C%2001%20Jan%202032%2000%3A00%3A00%20GMT\
                 &response-cache-control=no-cache&response-content-disposition=inline&response-content-encoding=gzip";
    for method in ["GET", "HEAD"] {
        let said = client.ok(method, &format!("/bucket/k?{query}"), &[], "").await;
        for (name, value) in [
            ("content-type", "a/b"),
            ("content-language", "de"),
            ("expires", "Thu, 01 Jan 2032 00:00:00 GMT"),
            ("cache-control", "no-cache"),
            ("content-disposition", "inline"),
            ("content-encoding", "gzip"),
            ("x-amz-website-redirect-location", "/other"),
        ] {
            assert_eq!(said.header(name), Some(value), "{method} {name}");
        }
    }
}

#[tokio::test]
async fn a_copy_to_itself_must_change_something() {
    let client = Client::start().await;
    client.ok("PUT", "/bucket/k", &[("x-amz-meta-a", "1"), ("x-amz-tagging", "t=1")], "x").await;
    let source = ("x-amz-copy-source", "/bucket/k");
    assert_eq!(client.outcome("PUT", "/bucket/k", &[source], "").await, (400, "InvalidRequest".into()));
    let replace = [source, ("x-amz-metadata-directive", "REPLACE"), ("x-amz-meta-b", "2")];
    client.ok("PUT", "/bucket/k", &replace, "").await;
    let head = client.ok("HEAD", "/bucket/k", &[], "").await;
    assert_eq!((head.header("x-amz-meta-a"), head.header("x-amz-meta-b")), (None, Some("2")));
    assert_eq!(client.ok("GET", "/bucket/k?tagging", &[], "").await.elements("Key"), ["t"]);
    let missing = client.outcome("PUT", "/bucket/c", &[("x-amz-copy-source", "/bucket/none")], "").await;
    assert_eq!(missing, (404, "NoSuchKey".into()));
}

#[tokio::test]
async fn parts_are_copied_by_range_and_uploads_listed_and_aborted() {
    let client = Client::start().await;
    client.ok("PUT", "/bucket/source", &[], bytes(PART + 10)).await;
    let begun = client.ok("POST", "/bucket/k?uploads", &[], "").await.element("UploadId").unwrap();
    let part = |number: u32| format!("/bucket/k?partNumber={number}&uploadId={begun}");
    let from = ("x-amz-copy-source", "/bucket/source");
    let range = format!("bytes=0-{}", PART - 1);
    let one = client.ok("PUT", &part(1), &[from, ("x-amz-copy-source-range", &range)], "").await;
    let two = client.ok("PUT", &part(2), &[from, ("x-amz-copy-source-range", "bytes=3-6")], "").await;
    for bad in ["bytes=0-99999999", "bytes=5-4", "0-4", "bytes=-4"] {
        let outcome = client.outcome("PUT", &part(3), &[from, ("x-amz-copy-source-range", bad)], "").await;
        assert!(matches!(outcome.1.as_str(), "InvalidArgument" | "InvalidRange"), "{bad}: {outcome:?}");
    }
    let listed = client.ok("GET", &format!("/bucket/k?uploadId={begun}"), &[], "").await;
    assert_eq!(listed.elements("PartNumber"), ["1", "2"]);
    assert_eq!(listed.elements("Size"), [PART.to_string(), "4".into()]);
    let etags = [one.element("ETag").unwrap(), two.element("ETag").unwrap()];
    let named: String = (1..)
        .zip(&etags)
        .map(|(number, etag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"))
        .collect();
    let body = format!("<CompleteMultipartUpload>{named}</CompleteMultipartUpload>");
    let target = format!("/bucket/k?uploadId={begun}");
    let first = client.ok("POST", &target, &[], &body).await;
    // Completing again answers the same; aborting what is completed finds nothing.
    let again = client.ok("POST", &target, &[], &body).await;
    assert_eq!(first.element("ETag"), again.element("ETag"));
    let expected = [&bytes(PART + 10)[..PART], &bytes(PART + 10)[3..7]].concat();
    assert!(client.ok("GET", "/bucket/k", &[], "").await.body == expected);

    let begun = client.ok("POST", "/bucket/k?uploads", &[], "").await.element("UploadId").unwrap();
    let uploads = client.ok("GET", "/bucket?uploads", &[], "").await;
    assert_eq!(uploads.elements("UploadId"), std::slice::from_ref(&begun));
    let target = format!("/bucket/k?uploadId={begun}");
    assert_eq!(client.ok("DELETE", &target, &[], "").await.status, 204);
    assert_eq!(client.outcome("DELETE", &target, &[], "").await, (404, "NoSuchUpload".into()));
    assert!(client.ok("GET", "/bucket?uploads", &[], "").await.elements("UploadId").is_empty());
}

#[tokio::test]
async fn checksums_come_back_when_asked_for() {
    let client = Client::start().await;
    // CRC64NVME, CRC32C and SHA-256 of "123456789": the check values of their definitions.
    for (name, value) in [
        ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
        ("x-amz-checksum-crc32c", "4waSgw=="),
        ("x-amz-checksum-sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
    ] {
        let outcome = client.call("PUT", "/bucket/k", &[(name, value)], "123456789").await;
        assert_eq!(outcome.status, 200, "{name}: {}", outcome.text());
        for method in ["GET", "HEAD"] {
            let asked = client.ok(method, "/bucket/k", &[("x-amz-checksum-mode", "ENABLED")], "").await;
            assert_eq!(asked.header(name), Some(value), "{method}");
            assert_eq!(asked.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
            assert_eq!(client.ok(method, "/bucket/k", &[], "").await.header(name), None, "{method} unasked");
        }
        let wrong = client.outcome("PUT", "/bucket/wrong", &[(name, value)], "987654321").await;
        assert_eq!(wrong, (400, "BadDigest".into()), "{name}");
    }
}
