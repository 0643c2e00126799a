//! Cross-origin requests: what browsers ask first, and what answers tell them.

use crate::client::{By, Client};

const RULES: &str = "<CORSConfiguration>\
    <CORSRule><AllowedOrigin>*suffix</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule>\
    <CORSRule><AllowedOrigin>start*end</AllowedOrigin><AllowedMethod>GET</AllowedMethod>\
    <ExposeHeader>x-amz-meta-one</ExposeHeader><MaxAgeSeconds>3000</MaxAgeSeconds></CORSRule>\
    <CORSRule><AllowedOrigin>*.put</AllowedOrigin><AllowedMethod>PUT</AllowedMethod>\
    <AllowedHeader>X-Amz-*</AllowedHeader></CORSRule>\
    <CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>DELETE</AllowedMethod></CORSRule></CORSConfiguration>";

#[tokio::test]
async fn rules_are_kept_checked_and_deleted() {
    let client = Client::start().await;
    assert_eq!(client.get("/bucket?cors").send().await.said(), (404, "NoSuchCORSConfiguration"));
    assert_eq!(client.put("/bucket?cors").body(RULES).send().await.said(), (200, ""));
    let shown = client.get("/bucket?cors").send().await;
    assert_eq!(shown.status, 200);
    for kept in ["<AllowedOrigin>start*end</AllowedOrigin>", "<MaxAgeSeconds>3000</MaxAgeSeconds>", "*.put"] {
        assert!(shown.body.contains(kept), "{kept}: {}", shown.body);
    }
    let rule = |inside: &str| format!("<CORSConfiguration><CORSRule>{inside}</CORSRule></CORSConfiguration>");
    for (wrong, said) in [
        ("<CORSConfiguration></CORSConfiguration>".to_owned(), (400, "MalformedXML")),
        (
            rule("<AllowedOrigin>*</AllowedOrigin><AllowedMethod>PATCH</AllowedMethod>"),
            (400, "InvalidRequest"),
        ),
        (
            rule("<AllowedOrigin>*a*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"),
            (400, "InvalidRequest"),
        ),
        (rule("<AllowedMethod>GET</AllowedMethod>"), (400, "MalformedXML")),
    ] {
        assert_eq!(client.put("/bucket?cors").body(wrong.clone()).send().await.said(), said, "{wrong}");
    }
    assert_eq!(client.delete("/bucket?cors").send().await.status, 204);
    assert_eq!(client.get("/bucket?cors").send().await.status, 404);
}

#[tokio::test]
async fn the_first_rule_that_fits_answers() {
    let client = Client::start().await;
    client.put("/bucket/key").body("x").send().await;
    client.put("/bucket?acl").header("x-amz-acl", "public-read").send().await;
    client.put("/bucket/key?acl").header("x-amz-acl", "public-read").send().await;
    client.put("/bucket?cors").body(RULES).send().await;
    // Method, origin, asked method, asked headers -> status, allowed origin, allowed methods.
    type Case<'c> = (&'c str, &'c str, &'c str, &'c str, u16, Option<&'c str>, Option<&'c str>);
    let cases: [Case<'_>; 15] = [
        ("OPTIONS", "foo.suffix", "GET", "", 200, Some("foo.suffix"), Some("GET")),
        ("OPTIONS", "foo.bar", "GET", "", 403, None, None),
        ("OPTIONS", "foo.suffix.get", "GET", "", 403, None, None),
        ("OPTIONS", "startend", "GET", "", 200, Some("startend"), Some("GET")),
        ("OPTIONS", "start1end", "PUT", "", 403, None, None),
        ("OPTIONS", "foo.put", "PUT", "x-amz-meta-a, X-Amz-Acl", 200, Some("foo.put"), Some("PUT")),
        ("OPTIONS", "foo.put", "PUT", "content-type", 403, None, None),
        ("OPTIONS", "anyone", "DELETE", "", 200, Some("*"), Some("DELETE")),
        ("OPTIONS", "", "GET", "", 400, None, None),
        ("OPTIONS", "foo.suffix", "", "", 400, None, None),
        ("GET", "foo.suffix", "", "", 200, Some("foo.suffix"), Some("GET")),
        ("GET", "foo.bar", "", "", 200, None, None),
        ("GET", "foo.put", "PUT", "", 200, Some("foo.put"), Some("PUT")),
        ("PUT", "foo.put", "", "", 403, Some("foo.put"), Some("PUT")),
        ("PUT", "foo.suffix", "", "", 403, None, None),
    ];
    for (method, origin, asked, headers, status, allowed, methods) in cases {
        let mut request = client.request(method, "/bucket/key").by(By::Nobody);
        for (name, value) in [
            ("origin", origin),
            ("access-control-request-method", asked),
            ("access-control-request-headers", headers),
        ] {
            if !value.is_empty() {
                request = request.header(name, value);
            }
        }
        let answer = request.send().await;
        let case = format!("{method} from {origin:?}, {asked:?}, {headers:?}: {}", answer.body);
        assert_eq!(answer.status, status, "{case}");
        assert_eq!(answer.header("access-control-allow-origin"), allowed, "{case}");
        assert_eq!(answer.header("access-control-allow-methods"), methods, "{case}");
    }
    let shown = client.get("/bucket/key").by(By::Nobody).header("origin", "start1end").send().await;
    assert_eq!(shown.header("access-control-expose-headers"), Some("x-amz-meta-one"));
    assert_eq!(shown.header("access-control-max-age"), Some("3000"));
    assert_eq!(shown.header("access-control-allow-credentials"), Some("true"));
    assert!(shown.header("vary").is_some_and(|vary| vary.contains("Origin")));
    let missing = client.get("/bucket/none").by(By::Nobody).header("origin", "foo.suffix").send().await;
    assert_eq!((missing.status, missing.header("access-control-allow-origin")), (404, Some("foo.suffix")));
}
