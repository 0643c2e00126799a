//! Walks an S3 endpoint with aws-sdk-rust, as its users do: stock settings but endpoint, region, keys and path style.
//!
//! ```sh
//! cargo build --locked && AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... target/debug/walk-aws-sdk-rust http://127.0.0.1:9000 BUCKET
//! ```
//!
//! The bucket is made, and is gone at the end. Exit status: 0 when all held; else a line says which step failed, and how.

use std::error::Error;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    BucketVersioningStatus, ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload,
    CompletedPart, Delete, MetadataDirective, ObjectAttributes, ObjectIdentifier, Tag, Tagging,
    VersioningConfiguration,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const PART_BYTES_MIN: usize = 5 << 20;

struct Walk {
    s3: Client,
    bucket: String,
}

/// Fails with `what` and both values when they differ.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        return Ok(());
    }
    let shorten = |value: &T| format!("{value:?}").chars().take(300).collect::<String>();
    Err(format!("{what}: {} instead of {}", shorten(&found), shorten(&expected)).into())
}

/// Fails unless the call is answered with this code and status.
fn refused<T, E>(what: &str, code: Option<&str>, status: u16, answer: Result<T, SdkError<E>>) -> Outcome
where
    E: ProvideErrorMetadata,
{
    let Err(error) = answer else { return Err(format!("{what}: not refused").into()) };
    let found = error.raw_response().map(|response| response.status().as_u16());
    same(&format!("{what}: status"), found, Some(status))?;
    same(&format!("{what}: code"), error.as_service_error().and_then(|error| error.code()), code)
}

/// Bytes that look like nothing and are the same in each run.
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size).map(|_| next()).collect()
}

impl Walk {
    async fn put(&self, key: &str, body: &[u8]) -> Outcome<String> {
        let put =
            self.s3.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(body.to_vec())).send();
        Ok(put.await?.e_tag.ok_or("no ETag")?)
    }

    async fn get(&self, key: &str) -> Outcome<Vec<u8>> {
        let got = self.s3.get_object().bucket(&self.bucket).key(key).send().await?;
        Ok(got.body.collect().await?.to_vec())
    }

    /// What the SDK does by itself: a CRC in a trailer of an unsigned chunked body, and its check on the way back.
    async fn objects(&self) -> Outcome {
        for size in [0, 1, 4096, 4097, 100_000, 3 << 20] {
            let body = noise(size, size as u64);
            self.put("sized", &body).await?;
            same(&format!("body of {size} bytes"), self.get("sized").await?, body)?;
        }
        let odd = "ünï/çödé +&=%20 'quoted' (1)*.txt";
        self.put(odd, b"odd").await?;
        same("body under an odd key", self.get(odd).await?, b"odd".to_vec())?;

        let put =
            self.s3.put_object().bucket(&self.bucket).key("described").body(ByteStream::from_static(b"text"));
        let put = put.content_type("text/plain").cache_control("no-store").metadata("colour", "blue");
        let put = put.expires(DateTime::from_secs(2_000_000_000)).send().await?;
        same(
            "checksum that is sent by default",
            put.checksum_crc32.is_some() || put.checksum_crc64_nvme.is_some(),
            true,
        )?;
        let head = self.s3.head_object().bucket(&self.bucket).key("described");
        let head = head.checksum_mode(ChecksumMode::Enabled).send().await?;
        same("length", head.content_length, Some(4))?;
        same("type", head.content_type.as_deref(), Some("text/plain"))?;
        same("cache control", head.cache_control.as_deref(), Some("no-store"))?;
        same("metadata", head.metadata.and_then(|mut all| all.remove("colour")), Some("blue".into()))?;
        same("ETag", head.e_tag, put.e_tag)?;
        same("CRC32", head.checksum_crc32, put.checksum_crc32)?;
        same("CRC64NVME", head.checksum_crc64_nvme, put.checksum_crc64_nvme)?;
        let none = self.s3.head_object().bucket(&self.bucket).key("none").send().await;
        refused("head of what is not there", Some("NotFound"), 404, none)?;
        let none = self.s3.get_object().bucket(&self.bucket).key("none").send().await;
        refused("get of what is not there", Some("NoSuchKey"), 404, none)
    }

    async fn checksums(&self) -> Outcome {
        let body = noise(70_000, 7);
        for algorithm in [
            ChecksumAlgorithm::Crc32,
            ChecksumAlgorithm::Crc32C,
            ChecksumAlgorithm::Crc64Nvme,
            ChecksumAlgorithm::Sha1,
            ChecksumAlgorithm::Sha256,
        ] {
            let put =
                self.s3.put_object().bucket(&self.bucket).key("summed").body(ByteStream::from(body.clone()));
            put.checksum_algorithm(algorithm.clone()).send().await?;
            let got =
                self.s3.get_object().bucket(&self.bucket).key("summed").checksum_mode(ChecksumMode::Enabled);
            let got = got.send().await?;
            let told = match algorithm {
                ChecksumAlgorithm::Crc32 => got.checksum_crc32(),
                ChecksumAlgorithm::Crc32C => got.checksum_crc32_c(),
                ChecksumAlgorithm::Crc64Nvme => got.checksum_crc64_nvme(),
                ChecksumAlgorithm::Sha1 => got.checksum_sha1(),
                _ => got.checksum_sha256(),
            };
            same(&format!("{algorithm} is told"), told.is_some(), true)?;
            same(&format!("body summed by {algorithm}"), got.body.collect().await?.to_vec(), body.clone())?;
        }
        let wrong = self.s3.put_object().bucket(&self.bucket).key("wrong").body(ByteStream::from(body));
        let wrong = wrong.checksum_crc32("AAAAAA==").send().await;
        refused("a CRC32 that differs", Some("BadDigest"), 400, wrong)
    }

    async fn ranges(&self) -> Outcome {
        let body = noise(200_000, 3);
        self.put("ranged", &body).await?;
        for (range, bytes, told) in [
            ("bytes=0-0", 0..1, "bytes 0-0/200000"),
            ("bytes=65530-65545", 65_530..65_546, "bytes 65530-65545/200000"),
            ("bytes=199990-", 199_990..200_000, "bytes 199990-199999/200000"),
            ("bytes=-7", 199_993..200_000, "bytes 199993-199999/200000"),
            ("bytes=5-999999", 5..200_000, "bytes 5-199999/200000"),
        ] {
            let got = self.s3.get_object().bucket(&self.bucket).key("ranged").range(range).send().await?;
            same(&format!("content range of {range}"), got.content_range(), Some(told))?;
            same(&format!("bytes of {range}"), got.body.collect().await?.to_vec(), body[bytes].to_vec())?;
        }
        let beyond =
            self.s3.get_object().bucket(&self.bucket).key("ranged").range("bytes=200000-").send().await;
        refused("a range beyond the end", Some("InvalidRange"), 416, beyond)
    }

    async fn conditions(&self) -> Outcome {
        let tag = self.put("conditional", b"one").await?;
        let get = || self.s3.get_object().bucket(&self.bucket).key("conditional");
        let put = |body: &'static [u8]| {
            self.s3.put_object().bucket(&self.bucket).key("conditional").body(ByteStream::from_static(body))
        };
        refused("not modified", None, 304, get().if_none_match(&tag).send().await)?;
        refused("read of another", Some("PreconditionFailed"), 412, get().if_match("\"0\"").send().await)?;
        refused("made twice", Some("PreconditionFailed"), 412, put(b"two").if_none_match("*").send().await)?;
        refused(
            "replaces another",
            Some("PreconditionFailed"),
            412,
            put(b"two").if_match("\"0\"").send().await,
        )?;
        put(b"three").if_match(&tag).send().await?;
        same("body", self.get("conditional").await?, b"three".to_vec())?;
        let delete =
            self.s3.delete_object().bucket(&self.bucket).key("conditional").if_match(&tag).send().await;
        refused("deletes another", Some("PreconditionFailed"), 412, delete)
    }

    async fn copies(&self) -> Outcome {
        let put = self
            .s3
            .put_object()
            .bucket(&self.bucket)
            .key("from/a b+c")
            .body(ByteStream::from_static(b"copied"));
        put.metadata("kept", "yes").send().await?;
        let source = format!("{}/from/a%20b%2Bc", self.bucket);
        let copy = |key| self.s3.copy_object().bucket(&self.bucket).copy_source(&source).key(key);
        let answer = copy("to/kept").send().await?;
        same("ETag of a copy", answer.copy_object_result.and_then(|result| result.e_tag).is_some(), true)?;
        copy("to/new").metadata_directive(MetadataDirective::Replace).metadata("kept", "no").send().await?;
        for (key, kept) in [("to/kept", "yes"), ("to/new", "no")] {
            let head = self.s3.head_object().bucket(&self.bucket).key(key).send().await?;
            same(key, head.metadata.and_then(|mut all| all.remove("kept")), Some(kept.into()))?;
            same(key, self.get(key).await?, b"copied".to_vec())?;
        }
        let itself =
            self.s3.copy_object().bucket(&self.bucket).copy_source(&source).key("from/a b+c").send().await;
        refused("a copy onto itself", Some("InvalidRequest"), 400, itself)
    }

    async fn lists(&self) -> Outcome {
        let mut keys: Vec<String> =
            (0..25).map(|number| format!("list/{:02}/{number}", number % 7)).collect();
        for key in &keys {
            self.put(key, b"").await?;
        }
        keys.sort();
        let list = || self.s3.list_objects_v2().bucket(&self.bucket).prefix("list/");
        let mut pages = list().max_keys(4).into_paginator().send();
        let (mut found, mut page_count) = (Vec::new(), 0);
        while let Some(page) = pages.next().await {
            let page = page?;
            page_count += 1;
            found.extend(page.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
        }
        same("keys", found, keys.clone())?;
        same("pages", page_count, 7)?;
        let mut pages = list().delimiter("/").max_keys(3).into_paginator().send();
        let mut folders = Vec::new();
        while let Some(page) = pages.next().await {
            folders.extend(page?.common_prefixes().iter().filter_map(|one| one.prefix().map(str::to_owned)));
        }
        same("folders", folders, (0..7).map(|number| format!("list/{number:02}/")).collect())?;
        let after = list().start_after(&keys[20]).send().await?;
        same("keys after", after.key_count(), Some(4))
    }

    async fn multipart(&self) -> Outcome {
        let body = noise(2 * PART_BYTES_MIN + 4321, 11);
        let begin = self.s3.create_multipart_upload().bucket(&self.bucket).key("parts");
        let begin =
            begin.checksum_algorithm(ChecksumAlgorithm::Crc32).checksum_type(ChecksumType::FullObject);
        let id = begin.send().await?.upload_id.ok_or("no upload id")?;
        let mut parts = Vec::new();
        for (number, bytes) in (1..).zip(body.chunks(PART_BYTES_MIN)) {
            let part =
                self.s3.upload_part().bucket(&self.bucket).key("parts").upload_id(&id).part_number(number);
            let part =
                part.body(ByteStream::from(bytes.to_vec())).checksum_algorithm(ChecksumAlgorithm::Crc32);
            let part = part.send().await?;
            let done = CompletedPart::builder().part_number(number).set_e_tag(part.e_tag);
            parts.push(done.set_checksum_crc32(part.checksum_crc32).build());
        }
        let listed = self.s3.list_parts().bucket(&self.bucket).key("parts").upload_id(&id).max_parts(2);
        let (mut listed, mut sizes) = (listed.into_paginator().send(), Vec::new());
        while let Some(page) = listed.next().await {
            sizes.extend(page?.parts().iter().filter_map(|part| part.size()));
        }
        same("sizes of parts", sizes, vec![PART_BYTES_MIN as i64, PART_BYTES_MIN as i64, 4321])?;
        let complete = || {
            let all = CompletedMultipartUpload::builder().set_parts(Some(parts.clone())).build();
            self.s3
                .complete_multipart_upload()
                .bucket(&self.bucket)
                .key("parts")
                .upload_id(&id)
                .multipart_upload(all)
        };
        let done = complete().send().await?;
        same("checksum of the whole", done.checksum_crc32.is_some(), true)?;
        same("ETag of the second completion", complete().send().await?.e_tag, done.e_tag)?;
        same("body", self.get("parts").await? == body, true)?;
        let part = self.s3.get_object().bucket(&self.bucket).key("parts").part_number(3).send().await?;
        same("number of parts", part.parts_count(), Some(3))?;
        same("third part", part.body.collect().await?.to_vec(), body[2 * PART_BYTES_MIN..].to_vec())?;
        let attributes = self.s3.get_object_attributes().bucket(&self.bucket).key("parts");
        let attributes = attributes.object_attributes(ObjectAttributes::ObjectParts);
        let attributes = attributes.object_attributes(ObjectAttributes::ObjectSize).send().await?;
        same("size", attributes.object_size(), Some(body.len() as i64))?;
        same("parts", attributes.object_parts().and_then(|parts| parts.total_parts_count()), Some(3))?;

        let id =
            self.s3.create_multipart_upload().bucket(&self.bucket).key("given-up").send().await?.upload_id;
        let id = id.ok_or("no upload id")?;
        self.s3.abort_multipart_upload().bucket(&self.bucket).key("given-up").upload_id(&id).send().await?;
        let gone = self.s3.list_parts().bucket(&self.bucket).key("given-up").upload_id(&id).send().await;
        refused("parts of what was given up", Some("NoSuchUpload"), 404, gone)
    }

    async fn presigned(&self) -> Outcome {
        let soon = || PresigningConfig::expires_in(Duration::from_secs(300));
        let put = self.s3.put_object().bucket(&self.bucket).key("presigned").presigned(soon()?).await?;
        let headers: Vec<(&str, &str)> = put.headers().collect();
        same(
            "status of a presigned PUT",
            self.plain(put.method(), put.uri(), &headers, b"by url").await?.0,
            200,
        )?;
        let get =
            self.s3.get_object().bucket(&self.bucket).key("presigned").response_content_type("text/x-own");
        let get = get.presigned(soon()?).await?;
        let (status, answer) = self.plain(get.method(), get.uri(), &[], b"").await?;
        same("status of a presigned GET", status, 200)?;
        same("body of a presigned GET", answer.ends_with("\r\n\r\nby url"), true)?;
        same(
            "type of a presigned GET",
            answer.to_lowercase().contains("content-type: text/x-own\r\n"),
            true,
        )?;
        let (status, _) = self.plain("PUT", get.uri(), &[], b"other").await?;
        same("status of a PUT by the address for GET", status, 403)
    }

    /// A request as a program without an SDK sends it: status, and all that came back.
    async fn plain(
        &self,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Outcome<(u16, String)> {
        let rest = uri.strip_prefix("http://").ok_or("only http:// is spoken here")?;
        let (host, path) = rest.split_at(rest.find('/').ok_or("an address without a path")?);
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        for (name, value) in headers.iter().filter(|(name, _)| *name != "host" && *name != "content-length") {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        let mut stream = TcpStream::connect(host).await?;
        stream.write_all(&[head.as_bytes(), body].concat()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or("an answer without a status")?, answer))
    }

    async fn tags(&self) -> Outcome {
        self.put("tagged", b"x").await?;
        let tag = |name: &str, value: &str| Tag::builder().key(name).value(value).build();
        let tags = vec![tag("team", "ünit 1")?, tag("stage", "")?];
        let all = Tagging::builder().set_tag_set(Some(tags.clone())).build()?;
        self.s3.put_object_tagging().bucket(&self.bucket).key("tagged").tagging(all).send().await?;
        let mut found = self.s3.get_object_tagging().bucket(&self.bucket).key("tagged").send().await?.tag_set;
        found.sort_by(|one, other| other.key().cmp(one.key()));
        same("tags", found, tags)?;
        same(
            "number of tags",
            self.s3.get_object().bucket(&self.bucket).key("tagged").send().await?.tag_count,
            Some(2),
        )?;
        self.s3.delete_object_tagging().bucket(&self.bucket).key("tagged").send().await?;
        let left = self.s3.get_object_tagging().bucket(&self.bucket).key("tagged").send().await?.tag_set;
        same("tags that are left", left, vec![])
    }

    async fn versions(&self) -> Outcome {
        let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        self.s3.put_bucket_versioning().bucket(&self.bucket).versioning_configuration(enabled).send().await?;
        let status = self.s3.get_bucket_versioning().bucket(&self.bucket).send().await?.status;
        same("versioning", status, Some(BucketVersioningStatus::Enabled))?;
        let put = |body: &'static [u8]| {
            self.s3
                .put_object()
                .bucket(&self.bucket)
                .key("versioned")
                .body(ByteStream::from_static(body))
                .send()
        };
        let first = put(b"first").await?.version_id.ok_or("no version")?;
        put(b"second").await?;
        let marker = self.s3.delete_object().bucket(&self.bucket).key("versioned").send().await?;
        same("a delete marker", marker.delete_marker, Some(true))?;
        let gone = self.s3.get_object().bucket(&self.bucket).key("versioned").send().await;
        refused("behind a delete marker", Some("NoSuchKey"), 404, gone)?;
        let old =
            self.s3.get_object().bucket(&self.bucket).key("versioned").version_id(&first).send().await?;
        same("first version", old.body.collect().await?.to_vec(), b"first".to_vec())?;
        let listed = self.s3.list_object_versions().bucket(&self.bucket).prefix("versioned").send().await?;
        same("versions and markers", (listed.versions().len(), listed.delete_markers().len()), (2, 1))?;
        let marker = marker.version_id.ok_or("a marker without a version")?;
        self.s3.delete_object().bucket(&self.bucket).key("versioned").version_id(marker).send().await?;
        same("body after the marker went", self.get("versioned").await?, b"second".to_vec())
    }

    /// Removes all versions with batches, and the bucket.
    async fn deletes(&self) -> Outcome {
        loop {
            let listed = self.s3.list_object_versions().bucket(&self.bucket).max_keys(20).send().await?;
            let versions = listed.versions().iter().map(|version| (version.key(), version.version_id()));
            let markers = listed.delete_markers().iter().map(|marker| (marker.key(), marker.version_id()));
            let objects: Result<Vec<_>, _> = versions
                .chain(markers)
                .map(|(key, version)| {
                    let object = ObjectIdentifier::builder().set_key(key.map(str::to_owned));
                    object.set_version_id(version.map(str::to_owned)).build()
                })
                .collect();
            let objects = objects?;
            if objects.is_empty() {
                break;
            }
            let count = objects.len();
            let batch = Delete::builder().set_objects(Some(objects)).build()?;
            let answer = self.s3.delete_objects().bucket(&self.bucket).delete(batch).send().await?;
            same("errors of a batch", answer.errors().len(), 0)?;
            same("deleted by a batch", answer.deleted().len(), count)?;
        }
        self.s3.delete_bucket().bucket(&self.bucket).send().await?;
        let gone = self.s3.head_bucket().bucket(&self.bucket).send().await;
        refused("a bucket that is gone", Some("NotFound"), 404, gone)
    }

    async fn run(&self) -> Outcome {
        self.s3.create_bucket().bucket(&self.bucket).send().await?;
        let again = self.s3.list_buckets().send().await?;
        let is_listed = again.buckets().iter().any(|bucket| bucket.name() == Some(&self.bucket));
        same("the bucket is listed", is_listed, true)?;
        let steps: [(&str, std::pin::Pin<Box<dyn Future<Output = Outcome> + '_>>); 11] = [
            ("objects", Box::pin(self.objects())),
            ("checksums", Box::pin(self.checksums())),
            ("ranges", Box::pin(self.ranges())),
            ("conditions", Box::pin(self.conditions())),
            ("copies", Box::pin(self.copies())),
            ("lists", Box::pin(self.lists())),
            ("multipart", Box::pin(self.multipart())),
            ("presigned", Box::pin(self.presigned())),
            ("tags", Box::pin(self.tags())),
            ("versions", Box::pin(self.versions())),
            ("deletes", Box::pin(self.deletes())),
        ];
        for (name, step) in steps {
            step.await.map_err(|error| format!("{name}: {}", chain(&*error)))?;
            println!("ok {name}");
        }
        Ok(())
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

fn setting(name: &str) -> Outcome<String> {
    std::env::var(name).map_err(|_| format!("{name} is not set").into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let outcome = async {
        let mut arguments = std::env::args().skip(1);
        let (Some(endpoint), Some(bucket)) = (arguments.next(), arguments.next()) else {
            return Err("usage: walk-aws-sdk-rust ENDPOINT BUCKET".into());
        };
        let keys = Credentials::new(
            setting("AWS_ACCESS_KEY_ID")?,
            setting("AWS_SECRET_ACCESS_KEY")?,
            None,
            None,
            "environment",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(keys)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .endpoint_url(&endpoint)
            .force_path_style(true)
            .build();
        Walk { s3: Client::from_conf(config), bucket }.run().await
    };
    match outcome.await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", chain(&*error));
            std::process::ExitCode::FAILURE
        }
    }
}
