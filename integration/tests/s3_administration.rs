//! Promise: what operators and customers administer holds at every door: quotas, keys for objects, copies on other servers;
//! and there is a trail of it.
//!
//! One cluster of three nodes, each promise with tenants and buckets of its own.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use http::Method;
use makai::console::customers::{KmsListed, KmsRequest, KmsRule, QuotaRequest, TargetRequest};
use makai::console::{KeyAnswer, TenantRequest};
use makai_gateway::identity::kms::{KmsChange, KmsKeyShown};
use makai_integration::cluster::{Cluster, ClusterOptions};
use makai_integration::s3::{Answer, Ask, Content, Failure, S3, element, elements};
use makai_integration::wait;
use makai_raft::facts::audit::Entry;
use makai_raft::facts::tenant::Quota;
use serde::Serialize;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
/// Longer than gateways believe what they know of tenants.
const BELIEVED: Duration = Duration::from_secs(30);
const MIB: u64 = 1024 * 1024;

fn told<T>(code: &str, answer: Result<T, Failure>) -> anyhow::Result<()> {
    match answer {
        Err(failure) if failure.code() == code => Ok(()),
        Err(failure) => bail!("expected {code}, got {failure}"),
        Ok(_) => bail!("expected {code}, and it was done"),
    }
}

/// A tenant with a key of its own, at a door.
async fn tenant(cluster: &Cluster, name: &str, door: usize) -> anyhow::Result<S3> {
    let request = TenantRequest { name: name.into(), quota_bytes: None };
    let key: Option<KeyAnswer> =
        cluster.nodes[0].console(Method::POST, "/api/v1/tenants", Some(&request)).await?;
    let key = key.context("no key")?;
    let mut credentials = cluster.credentials.clone();
    (credentials.access_key, credentials.secret_key) = (key.access_key_id, key.secret_access_key);
    Ok(cluster.s3(door).with(credentials))
}

async fn operate<B: Serialize>(
    cluster: &Cluster,
    method: Method,
    path: &str,
    body: &B,
) -> anyhow::Result<Value> {
    let answer: Option<Value> = cluster.nodes[0].console(method, path, Some(body)).await?;
    answer.context("no answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_administered_holds_and_leaves_a_trail() -> anyhow::Result<()> {
    let cluster = Cluster::start(ClusterOptions { nodes: 3, voters: 3, ..ClusterOptions::default() }).await?;
    quotas(&cluster).await.context("quotas")?;
    kms(&cluster).await.context("keys for objects")?;
    replication(&cluster).await.context("replication")?;
    trail(&cluster).await.context("the trail")?;
    cluster.finish().await
}

async fn quotas(cluster: &Cluster) -> anyhow::Result<()> {
    let s3 = tenant(cluster, "bounded", 1).await?;
    s3.create_bucket("bounded-bucket", None).await?;
    let set = async |tenant: Option<&str>, bucket: Option<&str>, quota: Quota| {
        let (tenant, bucket) = (tenant.map(str::to_owned), bucket.map(str::to_owned));
        operate(cluster, Method::PUT, "/api/v1/quotas", &QuotaRequest { tenant, bucket, quota }).await
    };
    let bucket = Some("bounded-bucket");
    set(None, bucket, Quota { bytes_max: Some(MIB), objects_max: Some(2) }).await?;
    s3.put("bounded-bucket", "a", &Content::new("a", MIB / 2)).await?;
    let over = Ask::new(Method::PUT, "/bounded-bucket/b").body(Content::new("b", MIB).bytes());
    told("QuotaExceeded", s3.send(over.clone()).await)?;
    told("NoSuchKey", s3.get("bounded-bucket", "b").await)?;
    s3.put("bounded-bucket", "b", &Content::new("b", 10)).await?;
    told("QuotaExceeded", s3.send(Ask::new(Method::PUT, "/bounded-bucket/c").body("x")).await)?;
    s3.put("bounded-bucket", "b", &Content::new("b", 20)).await.context("another's place is taken")?;
    set(None, bucket, Quota::default()).await?;
    s3.send(over).await.context("without a bound it fits")?;
    set(Some("bounded"), None, Quota { bytes_max: None, objects_max: Some(2) }).await?;
    told("QuotaExceeded", s3.send(Ask::new(Method::PUT, "/bounded-bucket/c").body("x")).await)?;
    s3.delete("bounded-bucket", "a").await?;
    s3.put("bounded-bucket", "c", &Content::new("c", 1)).await?;
    Ok(())
}

async fn kms(cluster: &Cluster) -> anyhow::Result<()> {
    const KEY_ID: &str = "x-amz-server-side-encryption-aws-kms-key-id";
    let (s3, elsewhere) = (tenant(cluster, "sealed", 0).await?, 2);
    let elsewhere = cluster.s3(elsewhere).with(s3.credentials.clone());
    s3.create_bucket("sealed-bucket", None).await?;
    let put = |key: &str, name: &str| {
        Ask::new(Method::PUT, format!("/sealed-bucket/{key}"))
            .header("x-amz-server-side-encryption", "aws:kms")
            .header(KEY_ID, name)
            .body(Content::new(key, 100_000).bytes())
    };
    let change = async |key: &str, change: KmsChange| -> anyhow::Result<KmsKeyShown> {
        let request = KmsRequest { tenant: "sealed".into(), key: key.into(), change };
        Ok(serde_json::from_value(operate(cluster, Method::POST, "/api/v1/kms", &request).await?)?)
    };

    // A name makes its key at its first use, unless the tenant wants none made so.
    let made = s3.send(put("first", "by-use")).await?;
    ensure!(made.header(KEY_ID) == "by-use", "{:?}", made.headers);
    let rule = KmsRule { tenant: "sealed".into(), is_strict: true };
    operate(cluster, Method::PUT, "/api/v1/kms", &rule).await?;
    wait::until("unknown keys are refused", BELIEVED, || async {
        told("KMS.NotFoundException", s3.send(put("none", "unknown")).await)
    })
    .await?;
    change("invoices", KmsChange::Create).await?;
    s3.send(put("old", "invoices")).await?;
    elsewhere.check("sealed-bucket", "old", &Content::new("old", 100_000)).await?;
    s3.send(put("arn", "arn:aws:kms:us-east-1:000000000099:key/invoices"))
        .await
        .err()
        .context("another account's")?;

    // Turned over, old objects are read as before and new ones have the new version.
    let rotated = change("invoices", KmsChange::Rotate).await?;
    ensure!(rotated.version == 2, "{rotated:?}");
    s3.send(put("new", "alias/invoices")).await?;
    for (door, key) in [(&s3, "old"), (&elsewhere, "new"), (&s3, "first")] {
        door.check("sealed-bucket", key, &Content::new(key, 100_000)).await?;
    }

    // Disabled, it opens and seals nothing; enabled, all is there again.
    change("invoices", KmsChange::Disable).await?;
    wait::until("the key is disabled", BELIEVED, || async {
        told("KMS.DisabledException", s3.get("sealed-bucket", "old").await)
    })
    .await?;
    told("KMS.DisabledException", s3.send(put("more", "invoices")).await)?;
    s3.check("sealed-bucket", "first", &Content::new("first", 100_000)).await?;
    change("invoices", KmsChange::Enable).await?;
    wait::until("the key is enabled", BELIEVED, || async {
        s3.check("sealed-bucket", "old", &Content::new("old", 100_000)).await
    })
    .await?;
    ensure!(change("invoices", KmsChange::Delete { after_days: 1 }).await.is_err(), "a day is too soon");
    change("invoices", KmsChange::Delete { after_days: 7 }).await?;
    wait::until("the key is to go", BELIEVED, || async {
        told("KMS.KMSInvalidStateException", s3.send(put("more", "invoices")).await)
    })
    .await?;
    change("invoices", KmsChange::Keep).await?;
    change("invoices", KmsChange::Enable).await?;
    let listed: Option<KmsListed> =
        cluster.nodes[0].console::<(), _>(Method::GET, "/api/v1/kms?tenant=sealed", None).await?;
    let names: Vec<String> = listed.context("no keys")?.keys.into_iter().map(|key| key.name).collect();
    ensure!(names == ["by-use", "invoices"], "{names:?}");
    Ok(())
}

async fn status(s3: &S3, key: &str) -> anyhow::Result<String> {
    let head = s3.send(Ask::new(Method::HEAD, format!("/origin-bucket/{key}"))).await?;
    Ok(head.header("x-amz-replication-status").to_owned())
}

fn versions(page: &Answer, kind: &str) -> usize {
    elements(&page.text(), kind).count()
}

/// From one tenant's bucket to another's, through the door of another node, as to any server.
async fn replication(cluster: &Cluster) -> anyhow::Result<()> {
    let (origin, copies) = (tenant(cluster, "origin", 0).await?, tenant(cluster, "copies", 1).await?);
    let versioned = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    for (s3, bucket) in [(&origin, "origin-bucket"), (&copies, "copies-bucket")] {
        s3.create_bucket(bucket, None).await?;
        s3.send(Ask::new(Method::PUT, format!("/{bucket}")).query("versioning", "").body(versioned)).await?;
    }
    origin.put("origin-bucket", "docs/before", &Content::new("before", 10)).await?;
    let rules = "<ReplicationConfiguration><Role>arn:aws:iam::000000000001:role/r</Role><Rule><ID>all</ID>\
        <Priority>1</Priority><Status>Enabled</Status><Filter><Prefix>docs/</Prefix></Filter>\
        <DeleteMarkerReplication><Status>Enabled</Status></DeleteMarkerReplication><Destination>\
        <Bucket>arn:makai:replication:::dr/copies-bucket</Bucket></Destination></Rule></ReplicationConfiguration>";
    let configure = || Ask::new(Method::PUT, "/origin-bucket").query("replication", "").body(rules);
    told(
        "ReplicationConfigurationNotFoundError",
        origin.send(Ask::new(Method::GET, "/origin-bucket").query("replication", "")).await,
    )?;
    told("InvalidRequest", origin.send(configure()).await).context("the target is not known")?;
    let mut target = TargetRequest {
        tenant: "origin".into(),
        name: "dr".into(),
        endpoint: format!("http://{}", copies.host),
        region: "us-east-1".into(),
        access_key_id: copies.credentials.access_key.clone(),
        secret_access_key: "wrong".into(),
    };
    operate(cluster, Method::PUT, "/api/v1/replication-targets", &target).await?;
    wait::until("the target is known", BELIEVED, || async { origin.send(configure()).await }).await?;
    let shown = origin.send(Ask::new(Method::GET, "/origin-bucket").query("replication", "")).await?.text();
    ensure!(element(&shown, "Bucket") == Some("arn:makai:replication:::dr/copies-bucket"), "{shown}");

    // With a wrong key nothing arrives, and nothing is lost.
    let report = Content::new("report", 3 * MIB + 7);
    let put = Ask::new(Method::PUT, "/origin-bucket/docs/report é")
        .header("content-type", "text/x-report")
        .header("x-amz-meta-team", "a&b")
        .header("x-amz-tagging", "k=v")
        .body(report.bytes());
    origin.send(put).await?;
    origin.put("origin-bucket", "other", &Content::new("other", 10)).await?;
    ensure!(status(&origin, "docs/report é").await? == "PENDING", "it cannot have arrived");
    ensure!(status(&origin, "other").await?.is_empty(), "no rule means it");
    ensure!(status(&origin, "docs/before").await?.is_empty(), "it was there before");
    target.secret_access_key.clone_from(&copies.credentials.secret_key);
    operate(cluster, Method::PUT, "/api/v1/replication-targets", &target).await?;
    wait::until("the object is replicated", WITHIN, || async {
        match status(&origin, "docs/report é").await?.as_str() {
            "COMPLETED" => Ok(()),
            other => bail!("{other}"),
        }
    })
    .await?;
    copies.check("copies-bucket", "docs/report é", &report).await?;
    let copy = copies.send(Ask::new(Method::HEAD, "/copies-bucket/docs/report é")).await?;
    for (name, value) in [
        ("content-type", "text/x-report"),
        ("x-amz-meta-team", "a&b"),
        ("x-amz-tagging-count", "1"),
        ("x-amz-replication-status", "REPLICA"),
    ] {
        ensure!(copy.header(name) == value, "{name}: {:?}", copy.header(name));
    }
    for key in ["docs/before", "other"] {
        told("NoSuchKey", copies.get("copies-bucket", key).await).context(key)?;
    }

    // Each version in its order, tags, and what hides the key.
    for number in 1..=5 {
        origin
            .put("origin-bucket", "docs/many", &Content::new(format!("many {number}"), 1000 + number))
            .await?;
    }
    let tags = "<Tagging><TagSet><Tag><Key>new</Key><Value>1</Value></Tag></TagSet></Tagging>";
    origin.send(Ask::new(Method::PUT, "/origin-bucket/docs/many").query("tagging", "").body(tags)).await?;
    origin.delete("origin-bucket", "docs/report é").await?;
    wait::until("all is replicated", WITHIN, || async {
        copies.check("copies-bucket", "docs/many", &Content::new("many 5", 1005)).await?;
        let tags =
            copies.send(Ask::new(Method::GET, "/copies-bucket/docs/many").query("tagging", "")).await?;
        ensure!(element(&tags.text(), "Key") == Some("new"), "{}", tags.text());
        told("NoSuchKey", copies.get("copies-bucket", "docs/report é").await)
    })
    .await?;
    let all = copies.send(Ask::new(Method::GET, "/copies-bucket").query("versions", "")).await?;
    ensure!(versions(&all, "Version") >= 6, "{}", all.text());
    ensure!(versions(&all, "DeleteMarker") == 1, "{}", all.text());
    let text = all.text();
    let of_many = elements(&text, "Version").filter(|entry| element(entry, "Key") == Some("docs/many"));
    let sizes: Vec<&str> = of_many.filter_map(|entry| element(entry, "Size")).collect();
    ensure!(sizes.is_sorted_by(|newer, older| newer >= older), "versions came in another order: {sizes:?}");

    // Back again nothing goes: what is a copy is copied no further.
    origin.send(Ask::new(Method::DELETE, "/origin-bucket").query("replication", "")).await?;
    ensure!(status(&origin, "docs/many").await?.is_empty(), "there are no rules");
    Ok(())
}

async fn trail(cluster: &Cluster) -> anyhow::Result<()> {
    let entries: Option<Vec<Entry>> =
        cluster.nodes[1].console::<(), _>(Method::GET, "/api/v1/audit?limit=1000", None).await?;
    let entries = entries.context("no trail")?;
    ensure!(entries.windows(2).all(|pair| pair[0].sequence == pair[1].sequence + 1), "the trail has gaps");
    let has = |by: &str, action: &str, target: &str| {
        let found = entries
            .iter()
            .any(|Entry { deed, .. }| deed.by == by && deed.action == action && deed.target.contains(target));
        ensure!(found, "nothing of {action} on {target} by {by} in {entries:?}");
        Ok(())
    };
    has("operator", "operator:CreateTenant", "bounded")?;
    has("operator", "operator:SetQuota", "bounded-bucket")?;
    has("operator", "operator:SetDirectory", "arn:aws:iam::")?;
    let deed = entries.iter().map(|entry| &entry.deed);
    let mut made =
        deed.filter(|deed| deed.action == "s3:CreateBucket" && deed.target.ends_with("origin-bucket"));
    let made = made.next().context("no bucket was made")?;
    ensure!(made.by.len() == 64 && made.from == "127.0.0.1", "{made:?}");
    ensure!(
        entries.iter().any(|entry| entry.deed.action == "s3:PutBucketReplication"),
        "the rules are not in the trail"
    );
    ensure!(!format!("{entries:?}").contains("wrong"), "a secret is in the trail");
    Ok(())
}
