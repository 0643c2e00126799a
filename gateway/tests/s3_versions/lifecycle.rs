//! Lifecycle configurations, and the header that tells when an object expires.

use crate::client::Client;

fn rules(rules: &[&str]) -> String {
    let rules: String = rules.iter().map(|rule| format!("<Rule>{rule}</Rule>")).collect();
    format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>")
}

const DAYS_1: &str = "<Expiration><Days>1</Days></Expiration>";
const ENABLED: &str = "<Status>Enabled</Status>";

async fn put(client: &Client, configuration: &str) -> (u16, String) {
    client.outcome("PUT", "/bucket?lifecycle", &[], configuration).await
}

#[tokio::test]
async fn a_configuration_comes_back_until_it_is_deleted() {
    let client = Client::start().await;
    let missing = (404, "NoSuchLifecycleConfiguration".to_owned());
    assert_eq!(client.outcome("GET", "/bucket?lifecycle", &[], "").await, missing);
    for rule in [
        "<ID>a</ID><Filter><Prefix>p/</Prefix></Filter><Expiration><Date>2030-01-01T00:00:00.000Z</Date></Expiration>",
        "<ID>a</ID><Filter></Filter><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>",
        "<ID>a</ID><Filter><And><Prefix>p</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></And></Filter><Expiration><Days>3</Days></Expiration>",
        "<ID>a</ID><Prefix>p</Prefix><NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays><NewerNoncurrentVersions>3</NewerNoncurrentVersions></NoncurrentVersionExpiration>",
        "<ID>a</ID><Filter></Filter><AbortIncompleteMultipartUpload><DaysAfterInitiation>2</DaysAfterInitiation></AbortIncompleteMultipartUpload>",
    ] {
        assert_eq!(
            put(&client, &rules(&[&format!("{rule}{ENABLED}")])).await,
            (200, String::new()),
            "{rule}"
        );
        let got = client.ok("GET", "/bucket?lifecycle", &[], "").await.text();
        // What stands between tags comes back, in whatever order.
        let texts = |xml: &str| {
            let mut texts: Vec<String> = xml
                .split('<')
                .filter_map(|piece| {
                    Some(
                        piece
                            .split_once('>')?
                            .1
                            .trim_end_matches("000Z")
                            .trim_end_matches('Z')
                            .trim_end_matches('.')
                            .to_owned(),
                    )
                })
                .filter(|text| !text.is_empty())
                .collect();
            texts.sort();
            texts
        };
        assert_eq!(texts(&got), texts(&format!("{rule}{ENABLED}")), "{got}");
    }
    assert_eq!(client.ok("DELETE", "/bucket?lifecycle", &[], "").await.status, 204);
    assert_eq!(client.outcome("GET", "/bucket?lifecycle", &[], "").await, missing);
}

#[tokio::test]
async fn what_is_no_rule_is_refused() {
    let client = Client::start().await;
    let filter = "<Filter></Filter>";
    let id = format!("<ID>{}</ID>", "i".repeat(256));
    let same = format!("<ID>a</ID>{filter}{DAYS_1}{ENABLED}");
    for (configuration, code) in [
        (rules(&[]), "MalformedXML"),
        (rules(&[&format!("{filter}{DAYS_1}<Status>enabled</Status>")]), "MalformedXML"),
        (rules(&[&format!("{DAYS_1}{ENABLED}")]), "MalformedXML"),
        (rules(&[&format!("{filter}<Expiration><Days>0</Days></Expiration>{ENABLED}")]), "InvalidArgument"),
        (
            rules(&[&format!("{filter}<Expiration><Date>20200101</Date></Expiration>{ENABLED}")]),
            "MalformedXML",
        ),
        (rules(&[&format!("{id}{filter}{DAYS_1}{ENABLED}")]), "InvalidArgument"),
        (rules(&[&same, &same]), "InvalidArgument"),
        (rules(&[&format!("{filter}{ENABLED}")]), "InvalidRequest"),
    ] {
        assert_eq!(put(&client, &configuration).await, (400, code.into()), "{configuration}");
    }
    let transition = "<Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>";
    let outcome = put(&client, &rules(&[&format!("{filter}{transition}{ENABLED}")])).await;
    assert_eq!(outcome, (400, "InvalidArgument".into()), "an archive");
}

#[tokio::test]
async fn an_answer_says_when_an_object_expires() {
    let client = Client::start().await;
    let tagged = "<ID>tagged</ID><Filter><Tag><Key>a</Key><Value>1</Value></Tag></Filter>";
    let configuration = rules(&[
        &format!(
            "<ID>late</ID><Filter><Prefix>logs/</Prefix></Filter><Expiration><Days>9</Days></Expiration>{ENABLED}"
        ),
        &format!("<ID>so on</ID><Filter><Prefix>logs/</Prefix></Filter>{DAYS_1}{ENABLED}"),
        &format!("{tagged}{DAYS_1}{ENABLED}"),
    ]);
    assert_eq!(put(&client, &configuration).await.0, 200);
    let put = client.ok("PUT", "/bucket/logs/k", &[], "x").await;
    let said = put.header("x-amz-expiration").expect("a rule is about it").to_owned();
    assert!(
        said.starts_with("expiry-date=\"") && said.ends_with("00:00:00 GMT\", rule-id=\"so%20on\""),
        "{said}"
    );
    for method in ["GET", "HEAD"] {
        let read = client.ok(method, "/bucket/logs/k", &[], "").await;
        assert_eq!(read.header("x-amz-expiration"), Some(said.as_str()), "{method}");
    }
    assert_eq!(client.ok("PUT", "/bucket/other", &[], "x").await.header("x-amz-expiration"), None);
    let tagged = client.ok("PUT", "/bucket/other", &[("x-amz-tagging", "a=1")], "x").await;
    assert!(tagged.header("x-amz-expiration").is_some_and(|said| said.contains("rule-id=\"tagged\"")));
}
