//! Promise: what one gateway took is at once there, byte for byte, behind every other.

use anyhow::{Context as _, ensure};
use http::{Method, StatusCode};
use makai_integration::cluster::{Cluster, ClusterOptions};
use makai_integration::s3::{Ask, Content, S3, element, elements};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const BUCKET: &str = "spine";

/// Around every bound of the way: empty, inline and just above, a page, a stripe of pages, a window, several blobs.
const SIZES: [u64; 16] = [
    0,
    1,
    4 * KIB - 1,
    4 * KIB,
    4 * KIB + 1,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    128 * KIB,
    MIB,
    2 * MIB + 1,
    5 * MIB + 333,
    64 * MIB - 1,
    64 * MIB,
    64 * MIB + 1,
    70 * MIB,
];

fn content(key: &str, len: u64) -> Content {
    Content::new(format!("{BUCKET}/{key}"), len)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_gateway_took_is_behind_every_other() -> anyhow::Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    let doors = cluster.doors();
    assert_eq!(doors.len(), 6);

    doors[0].create_bucket(BUCKET, None).await?;
    for door in &doors {
        door.send(Ask::new(Method::HEAD, format!("/{BUCKET}"))).await.context("HEAD of a new bucket")?;
    }
    objects(&doors).await.context("objects")?;
    ranges(&doors).await.context("ranges")?;
    overwrites(&doors).await.context("overwrites")?;
    listing(&doors).await.context("listing")?;
    copies(&doors).await.context("copies")?;
    multipart(&doors).await.context("multipart")?;
    deletes(&doors).await.context("deletes")?;
    cluster.finish().await
}

async fn objects(doors: &[S3]) -> anyhow::Result<()> {
    for (at, len) in SIZES.into_iter().enumerate() {
        let (key, writer) = (format!("size/{len}"), &doors[at % doors.len()]);
        let etag = writer.put(BUCKET, &key, &content(&key, len)).await?;
        ensure!(etag.len() == 34, "the ETag of an object in one piece is its MD5: {etag}");
        let head = Ask::new(Method::HEAD, format!("/{BUCKET}/{key}"));
        for door in doors {
            let answer = door.send(head.clone()).await?;
            ensure!(answer.header("content-length") == len.to_string() && answer.header("etag") == etag);
        }
        // The largest through two doors only: every byte has been through one other than the writer's.
        let readers = if len > 8 * MIB { 2 } else { doors.len() };
        for step in 1..=readers {
            doors[(at + step) % doors.len()].check(BUCKET, &key, &content(&key, len)).await?;
        }
    }
    Ok(())
}

async fn ranges(doors: &[S3]) -> anyhow::Result<()> {
    let len = 70 * MIB;
    let key = format!("size/{len}");
    let big = content(&key, len);
    let cuts = [
        (0, 1),
        (64 * KIB - 1, 2),
        (128 * KIB, 64 * KIB),
        (64 * MIB - 3, 7),
        (len - 1, 1),
        (3 * MIB + 5, 4 * MIB),
    ];
    for (at, (offset, count)) in cuts.into_iter().enumerate() {
        doors[at % doors.len()].check_range(BUCKET, &key, &big, offset, count).await?;
    }
    let get = Ask::new(Method::GET, format!("/{BUCKET}/{key}"));
    let last = doors[3].send(get.clone().header("range", "bytes=-1000")).await?;
    big.check(len - 1000, 1000, &last.body)?;
    let refused = doors[4].send(get.header("range", format!("bytes={len}-"))).await.unwrap_err();
    ensure!(refused.code() == "InvalidRange", "{refused}");
    Ok(())
}

/// Written through one door, read through another at once: the newest, never the one before.
async fn overwrites(doors: &[S3]) -> anyhow::Result<()> {
    for round in 0..24 {
        let newest = Content::new(format!("overwrite#{round}"), [10, 5 * KIB, 200 * KIB][round % 3]);
        doors[round % 6].put(BUCKET, "overwrite", &newest).await?;
        for step in 1..6 {
            doors[(round + step) % 6]
                .check(BUCKET, "overwrite", &newest)
                .await
                .with_context(|| format!("round {round}"))?;
        }
    }
    Ok(())
}

async fn listing(doors: &[S3]) -> anyhow::Result<()> {
    let keys: Vec<String> =
        (0..450).map(|number| format!("list/{:02}/{number:03}&<é>", number % 20)).collect();
    for (at, chunk) in keys.chunks(30).enumerate() {
        let puts = chunk.iter().map(|key| {
            let (door, content) = (doors[at % doors.len()].clone(), content(key, 3));
            let key = key.clone();
            tokio::spawn(async move { door.put(BUCKET, &key, &content).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await??;
        }
    }
    let mut expected: Vec<(String, u64)> = keys.iter().map(|key| (key.clone(), 3)).collect();
    expected.sort_unstable();
    for door in doors {
        ensure!(door.list(BUCKET, "list/").await? == expected, "a listing at {} differs", door.host);
    }
    let ask = Ask::new(Method::GET, format!("/{BUCKET}")).query("list-type", "2");
    let ask = ask.query("prefix", "list/").query("delimiter", "/");
    let folders = doors[5].send(ask).await?.text();
    let folders: Vec<&str> = elements(&folders, "Prefix").filter(|prefix| *prefix != "list/").collect();
    let expected: Vec<String> = (0..20).map(|folder| format!("list/{folder:02}/")).collect();
    ensure!(folders == expected, "{folders:?}");
    Ok(())
}

async fn copies(doors: &[S3]) -> anyhow::Result<()> {
    for (at, len) in [0, 100, MIB, 64 * MIB + 1].into_iter().enumerate() {
        let (from, to) = (format!("size/{len}"), format!("copy/{len}"));
        if len == 100 {
            doors[0].put(BUCKET, &from, &content(&from, len)).await?;
        }
        let ask = Ask::new(Method::PUT, format!("/{BUCKET}/{to}"));
        doors[at].send(ask.header("x-amz-copy-source", format!("/{BUCKET}/{from}"))).await?;
        // A copy stands by itself: its source may go.
        doors[at + 1].delete(BUCKET, &from).await?;
        doors[at + 2].check(BUCKET, &to, &content(&from, len)).await?;
    }
    Ok(())
}

/// Starts an upload and returns its id.
async fn begin(door: &S3, key: &str) -> anyhow::Result<String> {
    let begun = door.send(Ask::new(Method::POST, format!("/{BUCKET}/{key}")).query("uploads", "")).await?;
    Ok(element(&begun.text(), "UploadId").context("no UploadId")?.to_owned())
}

/// Parts through all doors at once, ended through another.
async fn multipart(doors: &[S3]) -> anyhow::Result<()> {
    const PART: u64 = 5 * MIB;
    let whole = content("multipart", 3 * PART + 1234);
    let id = begin(&doors[0], "multipart").await?;
    let mut parts = Vec::new();
    for number in 1..=4u64 {
        let (door, id, whole) = (doors[number as usize].clone(), id.clone(), whole.clone());
        parts.push(tokio::spawn(async move {
            let offset = (number - 1) * PART;
            let ask = Ask::new(Method::PUT, format!("/{BUCKET}/multipart"))
                .query("partNumber", number.to_string())
                .query("uploadId", id)
                .body(whole.part(offset, PART.min(whole.len - offset)));
            door.send(ask).await.map(|answer| answer.header("etag").to_owned())
        }));
    }
    let mut list = String::new();
    for (number, part) in (1..).zip(parts) {
        let etag = part.await??;
        list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    let unseen = doors[2].get(BUCKET, "multipart").await.unwrap_err();
    ensure!(unseen.code() == "NoSuchKey", "parts are no object yet: {unseen}");
    let ask = Ask::new(Method::POST, format!("/{BUCKET}/multipart")).query("uploadId", id.clone());
    let done =
        doors[5].send(ask.body(format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>"))).await?;
    ensure!(element(&done.text(), "ETag").is_some_and(|etag| etag.contains("-4")), "{}", done.text());
    for door in doors {
        door.check(BUCKET, "multipart", &whole).await?;
    }
    doors[1].check_range(BUCKET, "multipart", &whole, PART - 10, 20).await?;

    let id = begin(&doors[3], "aborted").await?;
    let ask = Ask::new(Method::PUT, format!("/{BUCKET}/aborted")).query("partNumber", "1");
    doors[4].send(ask.query("uploadId", id.clone()).body(whole.part(0, 100))).await?;
    let abort = Ask::new(Method::DELETE, format!("/{BUCKET}/aborted")).query("uploadId", id.clone());
    let aborted = doors[5].send(abort.clone()).await?;
    ensure!(aborted.status == StatusCode::NO_CONTENT, "{}", aborted.status);
    let gone = doors[0].send(abort).await.unwrap_err();
    ensure!(gone.code() == "NoSuchUpload", "{gone}");
    Ok(())
}

async fn deletes(doors: &[S3]) -> anyhow::Result<()> {
    let all = doors[2].list(BUCKET, "").await?;
    for (at, (key, _)) in all.iter().take(30).enumerate() {
        doors[at % 6].delete(BUCKET, key).await?;
        let gone = doors[(at + 1) % 6].get(BUCKET, key).await.unwrap_err();
        ensure!(gone.code() == "NoSuchKey", "{key} was deleted: {gone}");
    }
    let full = doors[1].send(Ask::new(Method::DELETE, format!("/{BUCKET}"))).await.unwrap_err();
    ensure!(full.code() == "BucketNotEmpty", "{full}");
    let rest: Vec<String> = all.iter().skip(30).map(|(key, _)| key.clone()).collect();
    for keys in rest.chunks(1000) {
        let escape = |key: &String| key.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let keys: String =
            keys.iter().map(|key| format!("<Object><Key>{}</Key></Object>", escape(key))).collect();
        let ask = Ask::new(Method::POST, format!("/{BUCKET}")).query("delete", "");
        let told = doors[4].send(ask.body(format!("<Delete>{keys}</Delete>"))).await?.text();
        ensure!(elements(&told, "Error").next().is_none(), "{told}");
    }
    ensure!(doors[0].list(BUCKET, "").await?.is_empty(), "keys are left");
    doors[3].send(Ask::new(Method::DELETE, format!("/{BUCKET}"))).await?;
    for door in doors {
        let gone = door.list(BUCKET, "").await.unwrap_err();
        ensure!(format!("{gone:#}").contains("NoSuchBucket"), "{gone:#}");
    }
    Ok(())
}
