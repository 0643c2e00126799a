//! Small objects that come at the same time share blobs, and are what they would be alone.

use std::time::Duration;

use futures::future::join_all;
use makai_gateway::objects::squeeze::{Squeezed, Squeezing};
use makai_raft::facts::version::VersionId;

use crate::client::{Client, bytes};

const KIB: usize = 1024;

/// Content of object `number`, of its own length.
fn content(number: usize) -> Vec<u8> {
    let mut content = bytes(4097 + number * 977 % (60 * KIB));
    content[..8].copy_from_slice(&(number as u64).to_be_bytes());
    content
}

fn key(number: usize) -> String {
    format!("/bucket/k{number}")
}

/// Puts these objects from as many clients as there are numbers modulo 32.
async fn put_all(client: &Client, count: usize) {
    let clients = (0..32).map(|first| async move {
        for number in (first..count).step_by(32) {
            client.ok("PUT", &key(number), &[], content(number)).await;
        }
    });
    join_all(clients).await;
}

async fn check(client: &Client, number: usize) {
    let content = content(number);
    let got = client.ok("GET", &key(number), &[], "").await;
    assert!(got.body == content, "{number}");
    let md5 = hex::encode(<md5::Md5 as md5::Digest>::digest(&content));
    assert_eq!(got.header("etag"), Some(format!("\"{md5}\"").as_str()), "{number}");
    let (first, last) = (content.len() / 3, content.len() / 2);
    let range = format!("bytes={first}-{last}");
    let part = client.ok("GET", &key(number), &[("range", range.as_str())], "").await;
    assert!(part.body == content[first..=last], "{number}");
}

#[tokio::test]
async fn many_small_objects_share_few_blobs_and_leave_them_when_most_are_gone() {
    const COUNT: usize = 256;
    let client = Client::start().await;
    client.pool.set_sync(Duration::from_millis(5));
    put_all(&client, COUNT).await;
    let blobs = client.pool.blobs().await;
    assert!(blobs.len() <= COUNT / 2, "{} blobs", blobs.len());
    let bytes_of = |number: usize| content(number).len() as u64;
    let all: u64 = (0..COUNT).map(bytes_of).sum();
    assert_eq!(blobs.iter().map(|blob| blob.plain_len).sum::<u64>(), all, "nothing but objects is in them");
    for number in 0..COUNT {
        check(&client, number).await;
    }
    // A copy shares the blob, and outlives its source.
    client.ok("PUT", "/bucket/copy", &[("x-amz-copy-source", key(3).as_str())], "").await;

    let stays = |number: &usize| number.is_multiple_of(8);
    for number in (0..COUNT).filter(|number| !stays(number)) {
        client.ok("DELETE", &key(number), &[], "").await;
    }
    let done = client.pool.objects.squeeze(&mut Squeezing::default()).await.unwrap();
    assert!(done.versions > 0, "{done:?}");
    for number in (0..COUNT).filter(stays) {
        check(&client, number).await;
    }
    assert!(client.ok("GET", "/bucket/copy", &[], "").await.body == content(3));
    let left: u64 = (0..COUNT).filter(stays).map(bytes_of).sum::<u64>() + bytes_of(3);
    let held: u64 = client.pool.blobs().await.iter().map(|blob| blob.plain_len).sum();
    assert!(held * 5 <= left * 6, "{held} bytes are held for {left}");
    let again = client.pool.objects.squeeze(&mut Squeezing::default()).await.unwrap();
    assert_eq!(again, Squeezed::default(), "nothing is left to be done");
}

#[tokio::test]
async fn one_that_comes_alone_waits_for_nothing_and_has_its_own_blob() {
    let client = Client::start().await;
    for number in 0..4 {
        client.ok("PUT", &key(number), &[], content(number)).await;
    }
    assert_eq!(client.pool.blobs().await.len(), 4);
}

/// What a named key seals shares no blob, nor what is inline or large.
#[tokio::test]
async fn what_has_a_key_of_its_own_or_is_large_shares_nothing() {
    let client = Client::start().await;
    client.pool.set_sync(Duration::from_millis(5));
    let named =
        [("x-amz-server-side-encryption", "aws:kms"), ("x-amz-server-side-encryption-aws-kms-key-id", "k")];
    let declared = [("x-amz-server-side-encryption", "AES256")];
    let puts = (0..16).map(|number| {
        let (client, named, declared) = (&client, &named, &declared);
        let none: &[(&str, &str)] = &[];
        async move {
            let (headers, size): (&[(&str, &str)], usize) = match number % 4 {
                0 => (named.as_slice(), 10_000),
                1 => (none, 256 * KIB + 1),
                2 => (none, 4096),
                _ => (declared.as_slice(), 256 * KIB),
            };
            client.call("PUT", &key(number), headers, bytes(size)).await.status
        }
    });
    let named_status = join_all(puts).await[0];
    let mut lengths: Vec<u64> = client.pool.blobs().await.iter().map(|blob| blob.plain_len).collect();
    assert_eq!(lengths.iter().filter(|length| **length == 10_000).count(), 4, "{lengths:?}");
    lengths.retain(|length| *length != 256 * 1024 + 1 && *length != 10_000);
    assert!(lengths.iter().all(|length| length.is_multiple_of(256 << 10)), "{lengths:?}");
    assert_eq!(lengths.iter().sum::<u64>(), 1 << 20, "{lengths:?}");
    assert_eq!(named_status, 200);
}

/// Of objects that share a blob some are refused, some clients go away: the others are there, and what all of them leave goes at once.
#[tokio::test]
async fn refused_objects_and_lost_clients_take_nothing_from_others() {
    let client = Client::start().await;
    client.ok("PUT", &key(0), &[], "is there").await;
    client.pool.set_sync(Duration::from_millis(20));
    let refused = [("if-none-match", "*")];
    // All of them: their blobs are deleted.
    let puts = (0..8).map(|_| client.call("PUT", "/bucket/k0", &refused, vec![1; 9000]));
    assert!(join_all(puts).await.iter().all(|answer| answer.status == 412));
    // Deleted in the background.
    let gone = async {
        while !client.pool.written().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("what was refused is deleted");
    // One of two.
    let puts = (0..32).map(|number| {
        let (client, refused) = (&client, &refused);
        async move {
            let (path, headers): (_, &[(&str, &str)]) =
                if number % 2 == 0 { (key(0), refused.as_slice()) } else { (key(number), &[]) };
            let put = client.call("PUT", &path, headers, content(number));
            // Every third client does not stay for the answer.
            let limit = Duration::from_millis(if number % 3 == 2 { 10 } else { 60_000 });
            (number, tokio::time::timeout(limit, put).await.ok().map(|answer| answer.status))
        }
    });
    for (number, status) in join_all(puts).await {
        match status {
            Some(412) => assert!(number % 2 == 0),
            Some(200) => check(&client, number).await,
            None => assert!(number % 3 == 2),
            Some(status) => panic!("{number}: {status}"),
        }
    }
    assert_eq!(client.ok("GET", &key(0), &[], "").await.body, b"is there");
}

/// Versions of a key that share a blob come and go each by itself.
#[tokio::test]
async fn versions_of_one_key_share_a_blob() {
    let client = Client::versioned().await;
    client.pool.set_sync(Duration::from_millis(5));
    let puts = (0..16).map(|number| {
        let client = &client;
        async move { client.ok("PUT", "/bucket/k", &[], content(number)).await.version() }
    });
    let versions = join_all(puts).await;
    assert!(versions.iter().all(|version| VersionId::parse(version).is_some()), "{versions:?}");
    for (number, version) in versions.iter().enumerate().step_by(2) {
        client.ok("DELETE", &format!("/bucket/k?versionId={version}"), &[], "").await;
        assert_eq!(
            client.call("GET", &format!("/bucket/k?versionId={version}"), &[], "").await.status,
            404,
            "{number}"
        );
    }
    for (number, version) in versions.iter().enumerate().skip(1).step_by(2) {
        let got = client.ok("GET", &format!("/bucket/k?versionId={version}"), &[], "").await;
        assert!(got.body == content(number), "{number}");
    }
}
