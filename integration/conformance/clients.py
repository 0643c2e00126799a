#!/usr/bin/env python3
"""Walks an S3 endpoint with the clients that customers have: boto3, the AWS CLI, rclone, and hand-made bad requests.

    python3 -m venv venv && venv/bin/pip install boto3 awscli minio pyarrow duckdb fsspec
    venv/bin/python clients.py --endpoint http://127.0.0.1:9000 --access-key ... --secret-key ...

Each check prints one line: `ok NAME seconds` or `FAILED NAME: why`. `--only TEXT` keeps the checks whose name contains
TEXT; `--list` prints the names. walks.py adds the checks of further clients. Binaries are taken from PATH, or from
AWS_CLI, RCLONE, S3CMD, RESTIC, S3FS, WALK_AWS_SDK_RUST; checks
of a client that is not there are `skipped`, and count as failed with `--require-clients`. Exit status: 0 when all
checks passed, 1 when one failed, 2 on wrong usage.

The clients run with their stock settings; only endpoint, region and keys are set, and path-style addressing where the
client would otherwise put the bucket's name into an address that has no such host.
"""

import argparse
import base64
import concurrent.futures
import datetime
import filecmp
import hashlib
import http.client
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zlib

try:
    import boto3
    import botocore.auth
    import botocore.awsrequest
    import botocore.config
    import botocore.credentials
    import botocore.exceptions
    from boto3.s3.transfer import TransferConfig
except ImportError as missing:
    sys.exit(f"{missing}: pip install boto3")

KIB = 1024
MIB = 1024 * KIB
PART_MIN = 5 * MIB
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Skip(Exception):
    """The check cannot run here."""


class CannotHere(Skip):
    """What the check needs of the machine, no installation gives."""


class World:
    """The endpoint, a client for it, and a bucket for the checks to share."""

    def __init__(self, options):
        self.options = options
        self.endpoint = options.endpoint.rstrip("/")
        self.url = urllib.parse.urlsplit(self.endpoint)
        self.run = uuid.uuid4().hex[:8]
        self.random = random.Random(options.seed)
        self.s3 = self.client()
        self.bucket = self.new_bucket("shared")

    def client(self, access_key=None, secret_key=None, **config):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.options.region,
            aws_access_key_id=access_key or self.options.access_key,
            aws_secret_access_key=secret_key or self.options.secret_key,
            config=botocore.config.Config(retries={"max_attempts": 3}, read_timeout=120, **config),
        )

    def new_bucket(self, name):
        bucket = f"conf-{self.run}-{name}"
        self.s3.create_bucket(Bucket=bucket)
        return bucket

    def bytes(self, size):
        return self.random.randbytes(size)

    def put(self, key, body, **arguments):
        return self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **arguments)

    def get(self, key, **arguments):
        return self.s3.get_object(Bucket=self.bucket, Key=key, **arguments)["Body"].read()

    def clean(self):
        """Removes what the run made, as far as the endpoint lets it."""
        for bucket in self.s3.list_buckets()["Buckets"]:
            if bucket["Name"].startswith(f"conf-{self.run}-"):
                self.empty(bucket["Name"])
                self.s3.delete_bucket(Bucket=bucket["Name"])

    def empty(self, bucket):
        for page in self.s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
            for upload in page.get("Uploads", []):
                self.s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        for page in self.s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            entries = page.get("Versions", []) + page.get("DeleteMarkers", [])
            names = [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in entries]
            if names:
                answer = self.s3.delete_objects(Bucket=bucket, Delete={"Objects": names, "Quiet": True},
                                                BypassGovernanceRetention=True)
                same(answer.get("Errors"), None, f"errors while emptying {bucket}")


# What checks say.


def same(actual, expected, what="value"):
    if actual != expected:
        show = lambda value: repr(value) if len(repr(value)) < 300 else repr(value)[:300] + "..."
        raise AssertionError(f"{what}: {show(actual)}, expected {show(expected)}")


def true(condition, what):
    if not condition:
        raise AssertionError(what)


def refused(code, status, call, **arguments):
    """The call must be refused with this code and status. HEAD has no body and so only a status."""
    codes = code if isinstance(code, tuple) else (code,)
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        answer = error.response
        same(answer["ResponseMetadata"]["HTTPStatusCode"], status, f"status of {answer['Error'].get('Code')}")
        if not answer["Error"]["Code"].isdigit():
            true(answer["Error"]["Code"] in codes, f"code {answer['Error']['Code']}, expected {code}")
            true(answer["Error"].get("Message"), "the error has no message")
        return answer
    raise AssertionError(f"expected {code}, and the call succeeded")


def md5(body):
    return hashlib.md5(body).hexdigest()


# Requests by hand, signed by botocore.


class Raw:
    """One request, whose parts can be made wrong after it was signed."""

    def __init__(self, world, method, path, query=None, body=b"", headers=None, access_key=None, secret_key=None,
                 at=None, payload_hash=None):
        self.world = world
        self.method = method
        self.target = urllib.parse.quote(path, safe="/~") + ("?" + urllib.parse.urlencode(query) if query else "")
        self.body = body
        host = world.url.netloc
        self.headers = {"Host": host, "Content-Length": str(len(body)), **(headers or {})}
        self.headers = {name: value for name, value in self.headers.items() if value is not None}
        credentials = botocore.credentials.Credentials(
            access_key or world.options.access_key, secret_key or world.options.secret_key
        )
        self.headers["X-Amz-Content-SHA256"] = payload_hash or hashlib.sha256(body).hexdigest()
        self.signer = FixedTime(credentials, "s3", world.options.region, at)
        request = botocore.awsrequest.AWSRequest(
            method=method, url=f"{world.endpoint}{self.target}", data=body, headers=dict(self.headers)
        )
        self.signer.add_auth(request)
        self.headers = dict(request.headers.items())
        self.signature = self.headers["Authorization"].rsplit("Signature=", 1)[1]

    def send(self, body=None, close_write=False, timeout=30):
        """Sends the request over a socket of its own; gives status, code and body. None where none came."""
        connection = open_socket(self.world, timeout)
        lines = [f"{self.method} {self.target} HTTP/1.1"] + [f"{name}: {value}" for name, value in self.headers.items()]
        head = ("\r\n".join(lines) + "\r\nConnection: close\r\n\r\n").encode()
        try:
            connection.sendall(head + (self.body if body is None else body))
            if close_write:
                connection.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(connection, method=self.method)
            answer.begin()
            return Answer(answer.status, answer.read(), dict(answer.getheaders()))
        except (http.client.HTTPException, ConnectionError):
            return None
        finally:
            connection.close()


class Answer:
    def __init__(self, status, body, headers):
        self.status, self.body = status, body
        self.headers = {name.lower(): value for name, value in headers.items()}
        text = body.decode(errors="replace")
        self.code = text.split("<Code>")[1].split("</Code>")[0] if "<Code>" in text else None

    def expect(self, status, code):
        codes = code if isinstance(code, tuple) else (code,)
        true(self.status == status and self.code in codes, f"{self.status} {self.code}, expected {status} {code}")
        true("x-amz-request-id" in self.headers, "the answer has no x-amz-request-id")
        if code is not None:
            true(b"<RequestId>" in self.body and b"<Message>" in self.body, "the error has no request id or message")


class FixedTime(botocore.auth.S3SigV4Auth):
    """Signs as of a time; leaves the payload's hash as the request states it."""

    def __init__(self, credentials, service, region, at):
        super().__init__(credentials, service, region)
        self.at = at or datetime.datetime.now(datetime.timezone.utc)

    def add_auth(self, request):
        request.context["timestamp"] = self.at.strftime("%Y%m%dT%H%M%SZ")
        request.headers["X-Amz-Date"] = request.context["timestamp"]
        canonical = self.canonical_request(request)
        string_to_sign = self.string_to_sign(request, canonical)
        signature = self.signature(string_to_sign, request)
        self._inject_signature_to_request(request, signature)

    def payload(self, request):
        return request.headers["X-Amz-Content-SHA256"]

    def key(self):
        key = ("AWS4" + self.credentials.secret_key).encode()
        for part in [self.at.strftime("%Y%m%d"), self._region_name, self._service_name, "aws4_request"]:
            key = self._sign(key, part)
        return key


def open_socket(world, timeout):
    port = world.url.port or (443 if world.url.scheme == "https" else 80)
    connection = socket.create_connection((world.url.hostname, port), timeout=timeout)
    if world.url.scheme == "https":
        import ssl
        connection = ssl.create_default_context().wrap_socket(connection, server_hostname=world.url.hostname)
    return connection


def chunked(raw, pieces):
    """A body in signed chunks, ended by an empty one."""
    import hmac
    stamp = raw.signer.at.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{raw.signer.at.strftime('%Y%m%d')}/{raw.world.options.region}/s3/aws4_request"
    empty = hashlib.sha256(b"").hexdigest()
    previous, body = raw.signature, b""
    for piece in [*pieces, b""]:
        text = "\n".join(
            ["AWS4-HMAC-SHA256-PAYLOAD", stamp, scope, previous, empty, hashlib.sha256(piece).hexdigest()]
        )
        previous = hmac.new(raw.signer.key(), text.encode(), hashlib.sha256).hexdigest()
        body += b"%x;chunk-signature=%s\r\n%s\r\n" % (len(piece), previous.encode(), piece)
    return body


def signed_chunks(world, path, pieces, length=None):
    """A PUT in signed chunks, and its body."""
    size = sum(map(len, pieces)) if length is None else length
    wire = sum(len(f"{len(piece):x}") + 85 + len(piece) for piece in [*pieces, b""])
    raw = Raw(world, "PUT", path, payload_hash="STREAMING-AWS4-HMAC-SHA256-PAYLOAD", headers={
        "Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": str(size), "Content-Length": str(wire),
    })
    body = chunked(raw, pieces)
    same(len(body), wire, "bytes of the chunked body")
    return raw, body


# Buckets.


@check
def buckets(world):
    bucket = world.new_bucket("buckets")
    world.s3.head_bucket(Bucket=bucket)
    same(world.s3.get_bucket_location(Bucket=bucket).get("LocationConstraint"),
         None if world.options.region == "us-east-1" else world.options.region, "location")
    # Many clients are set to a region, and ask for it wherever they are.
    abroad = f"{bucket}-abroad"
    world.s3.create_bucket(Bucket=abroad, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    same(world.s3.get_bucket_location(Bucket=abroad)["LocationConstraint"], "eu-west-1", "location as asked for")
    world.s3.delete_bucket(Bucket=abroad)
    names = [entry["Name"] for entry in world.s3.list_buckets()["Buckets"]]
    true(bucket in names and names == sorted(names), f"{bucket} among sorted names")
    # S3's oldest region lets one make one's own bucket again.
    if world.options.region == "us-east-1":
        world.s3.create_bucket(Bucket=bucket)
    else:
        refused("BucketAlreadyOwnedByYou", 409, world.s3.create_bucket, Bucket=bucket)
    same(world.s3.get_bucket_versioning(Bucket=bucket).get("Status"), None, "versioning")
    same(world.s3.get_bucket_acl(Bucket=bucket)["Grants"][0]["Permission"], "FULL_CONTROL", "grant")
    world.s3.put_bucket_acl(Bucket=bucket, ACL="private")
    world.s3.put_object(Bucket=bucket, Key="k", Body=b"")
    refused("BucketNotEmpty", 409, world.s3.delete_bucket, Bucket=bucket)
    world.s3.delete_object(Bucket=bucket, Key="k")
    world.s3.delete_bucket(Bucket=bucket)
    refused("NoSuchBucket", 404, world.s3.head_bucket, Bucket=bucket)
    refused("NoSuchBucket", 404, world.s3.list_objects_v2, Bucket=bucket)
    refused("NoSuchBucket", 404, world.s3.put_object, Bucket=bucket, Key="k", Body=b"")
    refused("NoSuchBucket", 404, world.s3.delete_bucket, Bucket=bucket)


@check
def bucket_names(world):
    for name in ["ab", "Upper", "under_score", "a..b", "192.168.1.1", "-a-b", "x" * 64]:
        Raw(world, "PUT", f"/{name}").send().expect(400, "InvalidBucketName")


@check
def bucket_tagging(world):
    bucket = world.new_bucket("tagging")
    refused("NoSuchTagSet", 404, world.s3.get_bucket_tagging, Bucket=bucket)
    tags = [{"Key": "team", "Value": "storage + möre: a/b_c=d@e.-"}, {"Key": "empty", "Value": ""}]
    world.s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})
    refused("InvalidTag", 400, world.s3.put_bucket_tagging, Bucket=bucket,
            Tagging={"TagSet": [{"Key": "team", "Value": "storage & <more>"}]})
    same(world.s3.get_bucket_tagging(Bucket=bucket)["TagSet"], tags, "tags")
    world.s3.delete_bucket_tagging(Bucket=bucket)
    refused("NoSuchTagSet", 404, world.s3.get_bucket_tagging, Bucket=bucket)


# Objects.


@check
def object_sizes(world):
    for size in [0, 1, 4095, 4096, 4097, 64 * KIB, MIB - 1, MIB, MIB + 1, PART_MIN]:
        body, key = world.bytes(size), f"sizes/{size}"
        same(world.put(key, body)["ETag"], f'"{md5(body)}"', f"ETag of {size} bytes")
        got = world.s3.get_object(Bucket=world.bucket, Key=key)
        same(got["ContentLength"], size, "content length")
        true(got["Body"].read() == body, f"the bytes of {size} differ")
        head = world.s3.head_object(Bucket=world.bucket, Key=key)
        same((head["ContentLength"], head["ETag"]), (size, f'"{md5(body)}"'), "head")


@check
def object_of_17_mib_in_parts(world):
    body = world.bytes(17 * MIB)
    transfer(world, "17mib", body)
    head = world.s3.head_object(Bucket=world.bucket, Key="17mib")
    true(head["ETag"].endswith('-3"'), f"three parts of 8 MiB, not {head['ETag']}")
    digests = b"".join(hashlib.md5(body[at:at + 8 * MIB]).digest() for at in range(0, len(body), 8 * MIB))
    same(head["ETag"], f'"{md5(digests)}-3"', "ETag of the parts")


@check
def object_of_100_mib(world):
    transfer(world, "100mib", world.bytes(100 * MIB))
    world.s3.delete_object(Bucket=world.bucket, Key="100mib")


def transfer(world, key, body):
    """Up and down as boto3's file transfer does it: in parts, several at once."""
    with tempfile.TemporaryDirectory() as folder:
        up, down = pathlib.Path(folder, "up"), pathlib.Path(folder, "down")
        up.write_bytes(body)
        world.s3.upload_file(str(up), world.bucket, key)
        world.s3.download_file(world.bucket, key, str(down))
        true(filecmp.cmp(up, down, shallow=False), "the bytes differ")


@check
def whole_put_of_64_mib(world):
    body = world.bytes(64 * MIB + 1)
    world.put("64mib", body)
    true(world.get("64mib") == body, "the bytes differ")
    at = 40 * MIB - 3
    true(world.get("64mib", Range=f"bytes={at}-{at + MIB}") == body[at:at + MIB + 1], "the bytes of the range differ")


@check
def object_headers(world):
    metadata = {"plain": "value", "spaced": "a b  c", "mixed-case": "VaLuE"}
    world.put("headers", b"x", ContentType="text/x-test", CacheControl="max-age=7", ContentDisposition="attachment",
              ContentEncoding="gzip", ContentLanguage="eo", Metadata=metadata,
              Expires=datetime.datetime(2031, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc))
    for answer in [world.s3.get_object(Bucket=world.bucket, Key="headers"),
                   world.s3.head_object(Bucket=world.bucket, Key="headers")]:
        same(answer["ContentType"], "text/x-test", "type")
        same(answer["CacheControl"], "max-age=7", "cache control")
        same(answer["ContentDisposition"], "attachment", "disposition")
        same(answer["ContentEncoding"], "gzip", "encoding")
        same(answer["ContentLanguage"], "eo", "language")
        same(answer["Metadata"], metadata, "metadata")
        same(answer["ExpiresString"], "Thu, 02 Jan 2031 03:04:05 GMT", "expires")
        same(answer["AcceptRanges"], "bytes", "accept ranges")
    got = world.s3.get_object(Bucket=world.bucket, Key="headers", ResponseContentType="a/b",
                              ResponseContentDisposition="inline", ResponseCacheControl="no-store")
    same((got["ContentType"], got["ContentDisposition"], got["CacheControl"]), ("a/b", "inline", "no-store"), "overrides")
    for sent, kept in [("deflate, gzip", "deflate, gzip"), ("aws-chunked, gzip", "gzip"), ("aws-chunked", None)]:
        world.put("encoded", b"x", ContentEncoding=sent)
        head = world.s3.head_object(Bucket=world.bucket, Key="encoded")
        same(head.get("ContentEncoding"), kept, f"encoding of {sent}")
    world.put("plain", b"x")
    same(world.s3.head_object(Bucket=world.bucket, Key="plain")["ContentType"], "binary/octet-stream", "default type")
    refused("MetadataTooLarge", 400, world.put, key="meta", body=b"", Metadata={"big": "x" * 2100})


@check
def object_keys(world):
    bucket = world.new_bucket("keys")
    keys = ["plain", "with space", "plus+plus", "a/b/c", "/leading", "trailing/", "a//b", "ünïcödé/ключ/鍵", "per%cent",
            "q?mark", "h#ash", "and&and", "quo\"te'", "<tag>", "~tilde", "back\\slash", "e=mc2", "x" * 1024, "..", "a/../b",
            "semi;colon", "colon:at@", "star*", "(paren)", "comma,", "emoji-\U0001f980"]
    for number, key in enumerate(keys):
        world.s3.put_object(Bucket=bucket, Key=key, Body=str(number).encode())
    for number, key in enumerate(keys):
        same(world.s3.get_object(Bucket=bucket, Key=key)["Body"].read(), str(number).encode(), f"body of {key!r}")
    listed = [entry["Key"] for entry in world.s3.list_objects_v2(Bucket=bucket)["Contents"]]
    same(listed, sorted(keys, key=str.encode), "keys in byte order")
    refused("KeyTooLongError", 400, world.s3.put_object, Bucket=bucket, Key="x" * 1025, Body=b"")
    refused("KeyTooLongError", 400, world.s3.put_object, Bucket=bucket, Key="é" * 513, Body=b"")
    world.s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
    same(world.s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "keys left")


@check
def overwrite_and_delete(world):
    world.put("over", b"first")
    world.put("over", b"second")
    same(world.get("over"), b"second", "body")
    world.s3.delete_object(Bucket=world.bucket, Key="over")
    refused("NoSuchKey", 404, world.s3.get_object, Bucket=world.bucket, Key="over")
    refused("404", 404, world.s3.head_object, Bucket=world.bucket, Key="over")
    world.s3.delete_object(Bucket=world.bucket, Key="over")


@check
def ranges(world):
    body = world.bytes(300 * KIB)
    world.put("ranges", body)
    last = len(body) - 1
    for asked, expected in [("bytes=0-0", body[:1]), ("bytes=5-9", body[5:10]), (f"bytes={last}-", body[last:]),
                            ("bytes=65535-65536", body[65535:65537]), ("bytes=-7", body[-7:]),
                            (f"bytes=100-{last + 1000}", body[100:]), (f"bytes=-{len(body) + 5}", body)]:
        got = world.s3.get_object(Bucket=world.bucket, Key="ranges", Range=asked)
        true(got["Body"].read() == expected, f"{asked}: the bytes differ")
        same(got["ResponseMetadata"]["HTTPStatusCode"], 206, f"status of {asked}")
        first = len(body) - len(expected) if asked.startswith("bytes=-") else int(asked[6:].split("-")[0])
        same(got["ContentRange"], f"bytes {first}-{first + len(expected) - 1}/{len(body)}", "content range")
    answer = refused("InvalidRange", 416, world.s3.get_object, Bucket=world.bucket, Key="ranges",
                     Range=f"bytes={len(body)}-")
    same(answer["ResponseMetadata"]["HTTPHeaders"].get("content-range"), f"bytes */{len(body)}", "content range")
    refused("InvalidRange", 416, world.s3.get_object, Bucket=world.bucket, Key="ranges", Range="bytes=-0")
    for ignored in ["bytes=9-5", "bytes=0-1,4-5", "lines=1-2", "bytes=x"]:
        got = world.s3.get_object(Bucket=world.bucket, Key="ranges", Range=ignored)
        same(got["ResponseMetadata"]["HTTPStatusCode"], 200, f"status of {ignored}")
        true(got["Body"].read() == body, f"{ignored} is not ignored")
    head = world.s3.head_object(Bucket=world.bucket, Key="ranges", Range="bytes=1-3")
    same((head["ContentLength"], head["ResponseMetadata"]["HTTPStatusCode"]), (3, 206), "head of a range")
    world.put("nothing", b"")
    refused("InvalidRange", 416, world.s3.get_object, Bucket=world.bucket, Key="nothing", Range="bytes=0-")


@check
def conditions(world):
    etag = world.put("cond", b"one")["ETag"]
    modified = world.s3.head_object(Bucket=world.bucket, Key="cond")["LastModified"]
    before, after = modified - datetime.timedelta(minutes=1), modified + datetime.timedelta(minutes=1)
    where = {"Bucket": world.bucket, "Key": "cond"}
    for call in [world.s3.get_object, world.s3.head_object]:
        call(**where, IfMatch=etag)
        call(**where, IfNoneMatch='"other"')
        call(**where, IfModifiedSince=before)
        call(**where, IfUnmodifiedSince=after)
        call(**where, IfMatch=etag, IfUnmodifiedSince=before)
        refused("PreconditionFailed", 412, call, **where, IfMatch='"other"')
        refused("PreconditionFailed", 412, call, **where, IfUnmodifiedSince=before)
        answer = refused("304", 304, call, **where, IfNoneMatch=etag)
        same(answer["ResponseMetadata"]["HTTPHeaders"].get("etag"), etag, "ETag of the 304")
        refused("304", 304, call, **where, IfModifiedSince=after)
        refused("304", 304, call, **where, IfNoneMatch=etag, IfModifiedSince=before)
    put = lambda **arguments: world.s3.put_object(**{**where, **arguments})
    refused("PreconditionFailed", 412, put, Body=b"two", IfNoneMatch="*")
    refused("PreconditionFailed", 412, put, Body=b"two", IfMatch='"other"')
    put(Body=b"two", IfMatch=etag)
    same(world.get("cond"), b"two", "body")
    put(Key="cond-new", Body=b"new", IfNoneMatch="*")
    refused("NoSuchKey", 404, put, Key="cond-none", Body=b"x", IfMatch=etag)
    refused("PreconditionFailed", 412, world.s3.delete_object, **where, IfMatch='"other"')
    same(world.get("cond"), b"two", "body after the refused deletion")


@check
def racing_creators(world):
    """Of many writers that each require the key to be new, exactly one wins."""
    def create(number):
        try:
            world.put("race", str(number).encode(), IfNoneMatch="*")
            return number
        except botocore.exceptions.ClientError as error:
            true(error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"), str(error))
            return None
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(16)) if number is not None]
    same(len(winners), 1, "winners")
    same(world.get("race"), str(winners[0]).encode(), "body")


@check
def checksums(world):
    body = world.bytes(70 * KIB)
    crc = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
    for algorithm, expected in [("CRC32", crc), ("CRC32C", None), ("CRC64NVME", None),
                                ("SHA1", base64.b64encode(hashlib.sha1(body).digest()).decode()),
                                ("SHA256", base64.b64encode(hashlib.sha256(body).digest()).decode())]:
        field = f"Checksum{algorithm}"
        try:
            put = world.put(f"sum/{algorithm}", body, ChecksumAlgorithm=algorithm)
        except botocore.exceptions.MissingDependencyException:
            continue  # CRC32C and CRC64NVME need botocore[crt].
        same(put[field], expected or put[field], field)
        head = world.s3.head_object(Bucket=world.bucket, Key=f"sum/{algorithm}", ChecksumMode="ENABLED")
        same((head[field], head["ChecksumType"]), (put[field], "FULL_OBJECT"), "checksum of HEAD")
        got = world.s3.get_object(Bucket=world.bucket, Key=f"sum/{algorithm}", ChecksumMode="ENABLED")
        same(got[field], put[field], "checksum of GET")
        true(got["Body"].read() == body, "the bytes differ")
        attributes = world.s3.get_object_attributes(Bucket=world.bucket, Key=f"sum/{algorithm}",
                                                    ObjectAttributes=["Checksum", "ObjectSize", "ETag", "StorageClass"])
        same(attributes["Checksum"][field], put[field], "checksum of attributes")
        same((attributes["ObjectSize"], attributes["ETag"].strip('"'), attributes["StorageClass"]),
             (len(body), md5(body), "STANDARD"), "attributes")
    wrong = base64.b64encode(b"\0\0\0\1").decode()
    refused("BadDigest", 400, world.put, key="sum/bad", body=body, ChecksumCRC32=wrong)
    refused("NoSuchKey", 404, world.s3.get_object, Bucket=world.bucket, Key="sum/bad")
    right = base64.b64encode(hashlib.md5(body).digest()).decode()
    world.put("sum/md5", body, ContentMD5=right)
    refused("BadDigest", 400, world.put, key="sum/bad", body=body + b"x", ContentMD5=right)
    refused("InvalidDigest", 400, world.put, key="sum/bad", body=body, ContentMD5="AAAA")


@check
def object_tagging(world):
    where = {"Bucket": world.bucket, "Key": "tagged"}
    world.put("tagged", b"x", Tagging="a=1&b=two%20words")
    same(world.s3.get_object_tagging(**where)["TagSet"],
         [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "two words"}], "tags")
    same(world.s3.get_object(**where)["TagCount"], 2, "tag count")
    world.s3.put_object_tagging(**where, Tagging={"TagSet": [{"Key": "c", "Value": "3"}]})
    same(world.s3.get_object_tagging(**where)["TagSet"], [{"Key": "c", "Value": "3"}], "tags")
    world.s3.delete_object_tagging(**where)
    same(world.s3.get_object_tagging(**where)["TagSet"], [], "tags")
    many = [{"Key": str(number), "Value": ""} for number in range(11)]
    refused("InvalidTag", 400, world.s3.put_object_tagging, **where, Tagging={"TagSet": many})


@check
def copies(world):
    body = world.bytes(200 * KIB)
    world.put("copy/from", body, ContentType="text/from", Metadata={"m": "from"}, Tagging="t=from")
    source = {"Bucket": world.bucket, "Key": "copy/from"}
    etag = world.s3.head_object(**source)["ETag"]
    copy = lambda key, **arguments: world.s3.copy_object(
        **{"Bucket": world.bucket, "Key": key, "CopySource": source, **arguments})
    same(copy("copy/to")["CopyObjectResult"]["ETag"], etag, "ETag")
    true(world.get("copy/to") == body, "the bytes differ")
    head = world.s3.head_object(Bucket=world.bucket, Key="copy/to")
    same((head["ContentType"], head["Metadata"]), ("text/from", {"m": "from"}), "headers come along")
    same(world.s3.get_object_tagging(Bucket=world.bucket, Key="copy/to")["TagSet"][0]["Value"], "from", "tags come along")
    copy("copy/new", MetadataDirective="REPLACE", Metadata={"m": "new"}, ContentType="text/new")
    head = world.s3.head_object(Bucket=world.bucket, Key="copy/new")
    same((head["ContentType"], head["Metadata"]), ("text/new", {"m": "new"}), "headers replaced")
    same(world.s3.get_object_tagging(Bucket=world.bucket, Key="copy/new")["TagSet"][0]["Value"], "from", "tags stay")
    copy("copy/tags", TaggingDirective="REPLACE", Tagging="t=new")
    head = world.s3.head_object(Bucket=world.bucket, Key="copy/tags")
    same((head["ContentType"], head["Metadata"]), ("text/from", {"m": "from"}), "headers stay")
    same(world.s3.get_object_tagging(Bucket=world.bucket, Key="copy/tags")["TagSet"][0]["Value"], "new", "tags replaced")
    refused("InvalidRequest", 400, copy, key="copy/from")
    copy("copy/from", MetadataDirective="REPLACE", Metadata={"m": "self"})
    same(world.s3.head_object(**source)["Metadata"], {"m": "self"}, "metadata of the copy to itself")
    copy("copy/if", CopySourceIfMatch=etag)
    refused("PreconditionFailed", 412, copy, key="copy/if", CopySourceIfMatch='"other"')
    refused("PreconditionFailed", 412, copy, key="copy/if", CopySourceIfNoneMatch=etag)
    refused("NoSuchKey", 404, copy, key="copy/none", CopySource={"Bucket": world.bucket, "Key": "copy/nowhere"})
    refused("NoSuchBucket", 404, copy, key="copy/none", CopySource={"Bucket": f"{world.bucket}-x", "Key": "k"})
    other = world.new_bucket("copy")
    world.s3.copy_object(Bucket=other, Key="über ∂", CopySource={"Bucket": world.bucket, "Key": "copy/to"})
    world.s3.copy_object(Bucket=other, Key="back", CopySource={"Bucket": other, "Key": "über ∂"})
    world.s3.delete_object(Bucket=world.bucket, Key="copy/to")
    true(world.s3.get_object(Bucket=other, Key="back")["Body"].read() == body, "a copy outlives its source")


@check
def acls(world):
    world.put("acl", b"x", ACL="private")
    where = {"Bucket": world.bucket, "Key": "acl"}
    same(world.s3.get_object_acl(**where)["Grants"][0]["Permission"], "FULL_CONTROL", "grant")
    world.s3.put_object_acl(**where, ACL="private")
    world.s3.put_object_acl(**where, ACL="public-read")
    same(len(world.s3.get_object_acl(**where)["Grants"]), 2, "grants")
    world.put("acl2", b"", ACL="public-read")
    # Clients hold what is listed against what they asked for, in S3's order.
    same([grant["Grantee"]["Type"] for grant in world.s3.get_object_acl(**where)["Grants"]],
         ["Group", "CanonicalUser"], "order of a canned list")
    granted = {"Bucket": world.new_bucket("granted")}
    mine = "id=" + world.s3.list_buckets()["Owner"]["ID"]
    world.s3.put_bucket_acl(**granted, GrantFullControl=mine, GrantRead=mine, GrantWrite=mine, GrantReadACP=mine,
                            GrantWriteACP=mine)
    same([grant["Permission"] for grant in world.s3.get_bucket_acl(**granted)["Grants"]],
         ["READ", "WRITE", "READ_ACP", "WRITE_ACP", "FULL_CONTROL"], "order of a list by headers")


@check
def not_implemented(world):
    """What is not done is said, never pretended."""
    bucket = world.bucket
    s3 = world.s3
    transition = {"ID": "t", "Status": "Enabled", "Filter": {}, "Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]}
    refused("InvalidArgument", 400, s3.put_bucket_lifecycle_configuration, Bucket=bucket,
            LifecycleConfiguration={"Rules": [transition]})
    refused("InvalidRequest", 400, world.put, key="lock", body=b"", ObjectLockLegalHoldStatus="ON")
    refused("InvalidStorageClass", 400, world.put, key="class", body=b"", StorageClass="GLACIER")
    for excluded in ["<ExcludeFolders>true</ExcludeFolders>", "<ExcludedPrefixes><Prefix>a</Prefix></ExcludedPrefixes>"]:
        body = f"<VersioningConfiguration><Status>Enabled</Status>{excluded}</VersioningConfiguration>".encode()
        Raw(world, "PUT", f"/{bucket}", {"versioning": ""}, body).send().expect(501, "NotImplemented")
    log = {"TargetBucket": bucket, "TargetPrefix": "", "TargetObjectKeyFormat": {
        "PartitionedPrefix": {"PartitionDateSource": "Yesterday"}}}
    refused("MalformedXML", 400, s3.put_bucket_logging, Bucket=bucket, BucketLoggingStatus={"LoggingEnabled": log})
    refused("NoSuchBucketPolicy", 404, s3.get_bucket_policy, Bucket=bucket)
    refused("NoSuchCORSConfiguration", 404, s3.get_bucket_cors, Bucket=bucket)
    refused("NoSuchLifecycleConfiguration", 404, s3.get_bucket_lifecycle_configuration, Bucket=bucket)


# Lists and batches.


def fill(world, name, keys):
    bucket = world.new_bucket(name)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: world.s3.put_object(Bucket=bucket, Key=key, Body=b"."), keys))
    return bucket


@check
def lists_of_2500_keys_and_batch_delete(world):
    keys = sorted(f"d{number % 7}/k{number:05}" for number in range(2500))
    bucket = fill(world, "many", keys)
    for operation in ["list_objects", "list_objects_v2", "list_object_versions"]:
        seen, pages = [], 0
        for page in world.s3.get_paginator(operation).paginate(Bucket=bucket):
            seen += [entry["Key"] for entry in page.get("Contents", page.get("Versions", []))]
            pages += 1
        same(len(seen), len(keys), f"keys of {operation}")
        same(seen, keys, operation)
        same(pages, 3, f"pages of {operation}")
    for size in [1, 7, 999, 1000]:
        page = world.s3.list_objects_v2(Bucket=bucket, MaxKeys=size)
        same((page["KeyCount"], page["MaxKeys"], page["IsTruncated"]), (size, size, True), f"a page of {size}")
    same(world.s3.list_objects_v2(Bucket=bucket, MaxKeys=5000)["KeyCount"], 1000, "keys of the largest page")
    prefixes = [f"d{number}/" for number in range(7)]
    page = world.s3.list_objects_v2(Bucket=bucket, Delimiter="/")
    same([entry["Prefix"] for entry in page["CommonPrefixes"]], prefixes, "prefixes")
    same((page["KeyCount"], page.get("Contents"), page["IsTruncated"]), (7, None, False), "only prefixes")
    seen = []
    paged = world.s3.get_paginator("list_objects_v2")
    for page in paged.paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 2}):
        seen += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
    same(seen, prefixes, "prefixes, two a page")
    page = world.s3.list_objects_v2(Bucket=bucket, Prefix="d3/", Delimiter="/", MaxKeys=10)
    same([entry["Key"] for entry in page["Contents"]], [key for key in keys if key.startswith("d3/")][:10], "a folder")
    for start in range(0, len(keys), 1000):
        batch = [{"Key": key} for key in keys[start:start + 1000]]
        answer = world.s3.delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": start == 0})
        same(len(answer.get("Deleted", [])), 0 if start == 0 else len(batch), "deleted keys named")
        same(answer.get("Errors"), None, "errors")
    same(world.s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "keys left")


@check
def lists_of_odd_shapes(world):
    keys = ["a", "a/", "a/b", "a/b/c", "a/b/d", "a//x", "ab", "b/c", "c", "é/1", "é/2", "sp ace/x", "pl+us/y"]
    bucket = fill(world, "odd", keys)
    ordered = sorted(keys, key=str.encode)

    def expected(prefix, delimiter, after):
        entries = []
        for key in ordered:
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix):]
            name = prefix + rest[:rest.index(delimiter) + len(delimiter)] if delimiter and delimiter in rest else key
            is_prefix = bool(delimiter) and delimiter in rest
            if (name.encode() > after.encode() or (is_prefix and key.encode() > after.encode()
                and not after.startswith(name))) and (name, is_prefix) not in entries:
                entries.append((name, is_prefix))
        return entries

    def listed(call, marker, **arguments):
        page = call(Bucket=bucket, **arguments)
        entries = [(entry["Key"], False) for entry in page.get("Contents", [])]
        entries += [(entry["Prefix"], True) for entry in page.get("CommonPrefixes", [])]
        return sorted(entries, key=lambda entry: entry[0].encode()), page

    for prefix in ["", "a", "a/", "a/b", "é", "none"]:
        for delimiter in ["", "/", "b", "//"]:
            for after in ["", "a", "a/b", "b", "zzz"]:
                what = f"prefix {prefix!r}, delimiter {delimiter!r}, after {after!r}"
                arguments = {"Prefix": prefix, **({"Delimiter": delimiter} if delimiter else {})}
                two, _ = listed(world.s3.list_objects_v2, None, **arguments, StartAfter=after)
                one, _ = listed(world.s3.list_objects, None, **arguments, Marker=after)
                same(two, expected(prefix, delimiter, after), f"v2, {what}")
                same(one, expected(prefix, delimiter, after), f"v1, {what}")
    for delimiter in ["", "/"]:
        arguments = {"Delimiter": delimiter} if delimiter else {}
        for size in range(1, 6):
            seen, token = [], {}
            while True:
                entries, page = listed(world.s3.list_objects_v2, None, MaxKeys=size, **arguments, **token)
                true(len(entries) <= size, f"{len(entries)} entries in a page of {size}")
                seen += entries
                if not page["IsTruncated"]:
                    break
                token = {"ContinuationToken": page["NextContinuationToken"]}
            same(seen, expected("", delimiter, ""), f"pages of {size}, delimiter {delimiter!r}")
    page = world.s3.list_objects_v2(Bucket=bucket, FetchOwner=True, MaxKeys=1)
    true(page["Contents"][0]["Owner"]["ID"], "no owner though asked for")
    true("Owner" not in world.s3.list_objects_v2(Bucket=bucket, MaxKeys=1)["Contents"][0], "an owner unasked")
    same(world.s3.list_objects_v2(Bucket=bucket, MaxKeys=0)["KeyCount"], 0, "a page of none")
    refused("InvalidArgument", 400, world.s3.list_objects_v2, Bucket=bucket, ContinuationToken="not a token")
    refused("InvalidArgument", 400, world.s3.list_objects_v2, Bucket=bucket, MaxKeys=-1)


@check
def batch_delete_errors(world):
    world.put("batch/a", b"")
    answer = world.s3.delete_objects(Bucket=world.bucket, Delete={"Objects": [
        {"Key": "batch/a"}, {"Key": "batch/never"}, {"Key": "batch/v", "VersionId": "nosuchversion"}]})
    same(sorted(entry["Key"] for entry in answer["Deleted"]), ["batch/a", "batch/never"], "deleted")
    same([(entry["Key"], entry["Code"]) for entry in answer["Errors"]], [("batch/v", "NoSuchVersion")], "errors")
    many = [{"Key": str(number)} for number in range(1001)]
    refused("MalformedXML", 400, world.s3.delete_objects, Bucket=world.bucket, Delete={"Objects": many})


# Versions.


def versioned(world, name):
    bucket = world.new_bucket(name)
    world.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return bucket


def versions_of(world, bucket, page_size=1000):
    """Every version and marker, newest first: (key, id, is latest, is marker)."""
    seen = []
    pages = world.s3.get_paginator("list_object_versions").paginate(
        Bucket=bucket, PaginationConfig={"PageSize": page_size})
    for page in pages:
        for kind in ["Versions", "DeleteMarkers"]:
            for entry in page.get(kind, []):
                seen.append((entry["Key"], entry["VersionId"], entry["IsLatest"], kind == "DeleteMarkers"))
    return seen


@check
def versions(world):
    s3, bucket = world.s3, versioned(world, "versions")
    body = lambda number: f"body {number}".encode()
    ids = [s3.put_object(Bucket=bucket, Key="k", Body=body(number))["VersionId"] for number in range(5)]
    same(len(set(ids)), 5, "different ids")
    for number, version in enumerate(ids):
        answer = s3.get_object(Bucket=bucket, Key="k", VersionId=version)
        same((answer["Body"].read(), answer["VersionId"]), (body(number), version), f"version {number}")
    marker = s3.delete_object(Bucket=bucket, Key="k")
    same(marker["DeleteMarker"], True, "a marker is left")
    refused("NoSuchKey", 404, s3.get_object, Bucket=bucket, Key="k")
    refused("MethodNotAllowed", 405, s3.head_object, Bucket=bucket, Key="k", VersionId=marker["VersionId"])
    same(s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "keys in sight")
    for size in [1, 2, 3, 1000]:
        listed = versions_of(world, bucket, size)
        same(sorted(version for _, version, _, _ in listed), sorted([*ids, marker["VersionId"]]), f"pages of {size}")
        same([version for _, version, is_latest, _ in listed if is_latest], [marker["VersionId"]], "the latest")
    s3.delete_object(Bucket=bucket, Key="k", VersionId=marker["VersionId"])
    same(s3.get_object(Bucket=bucket, Key="k")["Body"].read(), body(4), "the newest is back")
    source = {"Bucket": bucket, "Key": "k", "VersionId": ids[0]}
    restored = s3.copy_object(Bucket=bucket, Key="k", CopySource=source)
    same(restored["CopySourceVersionId"], ids[0], "the source's id")
    same(s3.get_object(Bucket=bucket, Key="k")["Body"].read(), body(0), "restored")
    refused("BucketNotEmpty", 409, s3.delete_bucket, Bucket=bucket)
    world.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    true("VersionId" not in s3.put_object(Bucket=bucket, Key="k", Body=b"null"), "suspended: no id is given")
    s3.put_object(Bucket=bucket, Key="k", Body=b"null again")
    nulls = [version for _, version, _, _ in versions_of(world, bucket) if version == "null"]
    same(len(nulls), 1, "null versions")
    everything = [{"Key": key, "VersionId": version} for key, version, _, _ in versions_of(world, bucket)]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": everything})
    same((len(answer["Deleted"]), answer.get("Errors")), (len(everything), None), "deleted in a batch")
    s3.delete_bucket(Bucket=bucket)


@check
def locked_versions(world):
    s3, bucket = world.s3, f"conf-{world.run}-locked"
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    lock = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}}
    s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=lock)
    same(s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"], lock, "the configuration")
    version = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["VersionId"]
    named = {"Bucket": bucket, "Key": "k", "VersionId": version}
    same(s3.head_object(**named)["ObjectLockMode"], "GOVERNANCE", "locked by default")
    refused("AccessDenied", 403, s3.delete_object, **named)
    s3.put_object_legal_hold(**named, LegalHold={"Status": "ON"})
    refused("AccessDenied", 403, s3.delete_object, **named, BypassGovernanceRetention=True)
    s3.put_object_legal_hold(**named, LegalHold={"Status": "OFF"})
    s3.delete_object(**named, BypassGovernanceRetention=True)
    refused("InvalidBucketState", 409, s3.put_bucket_versioning, Bucket=bucket,
            VersioningConfiguration={"Status": "Suspended"})
    s3.delete_bucket(Bucket=bucket)


@check
def lifecycles(world):
    s3, bucket = world.s3, versioned(world, "lifecycle")
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    rules = [
        {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "old/"}, "Expiration": {"Date": past}},
        {"ID": "days", "Status": "Enabled", "Filter": {"Tag": {"Key": "a", "Value": "1"}}, "Expiration": {"Days": 3},
         "NoncurrentVersionExpiration": {"NoncurrentDays": 2, "NewerNoncurrentVersions": 1}},
        {"ID": "uploads", "Status": "Disabled", "Filter": {"Prefix": ""},
         "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}},
        {"ID": "cold", "Status": "Enabled", "Filter": {"Prefix": "cold/"},
         "Transitions": [{"Date": past, "StorageClass": "STANDARD_IA"}]},
        {"ID": "colder", "Status": "Enabled", "Filter": {"Prefix": "colder/"},
         "Transitions": [{"Days": 9, "StorageClass": "GLACIER_IR"}],
         "NoncurrentVersionTransitions": [{"NoncurrentDays": 2, "StorageClass": "STANDARD_IA"}]},
    ]
    s3.put_object(Bucket=bucket, Key="cold/a", Body=b"x")
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    same(s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"], rules, "the rules")
    true('rule-id="days"' in s3.put_object(Bucket=bucket, Key="t", Body=b"x", Tagging="a=1")["Expiration"],
         "the rule is not named")
    for late in [{"Expiration": {"Days": 9}}, {"NoncurrentVersionExpiration": {"NoncurrentDays": 2}}]:
        refused("InvalidArgument", 400, s3.put_bucket_lifecycle_configuration, Bucket=bucket,
                LifecycleConfiguration={"Rules": [{**rules[4], **late}]})
    refused("InvalidRequest", 400, s3.put_bucket_lifecycle_configuration, Bucket=bucket,
            LifecycleConfiguration={"Rules": [{**rules[3], "Expiration": {"Days": 9}}]})
    deadline = time.monotonic() + 60
    while (head := s3.head_object(Bucket=bucket, Key="cold/a")).get("StorageClass") != "STANDARD_IA":
        true(time.monotonic() < deadline, f"the class is still {head.get('StorageClass')}")
        time.sleep(0.5)
    s3.delete_bucket_lifecycle(Bucket=bucket)
    refused("NoSuchLifecycleConfiguration", 404, s3.get_bucket_lifecycle_configuration, Bucket=bucket)


# Multipart uploads.


@check
def multipart(world):
    where = {"Bucket": world.bucket, "Key": "multi"}
    created = world.s3.create_multipart_upload(**where, ContentType="text/multi", Metadata={"m": "1"})
    upload = {**where, "UploadId": created["UploadId"]}
    bodies = {1: world.bytes(PART_MIN), 2: world.bytes(PART_MIN + 1), 7: world.bytes(10)}
    etags = {number: world.s3.upload_part(**upload, PartNumber=number, Body=body)["ETag"]
             for number, body in reversed(bodies.items())}
    same(etags, {number: f'"{md5(body)}"' for number, body in reversed(bodies.items())}, "ETags of parts")
    listed = world.s3.list_parts(**upload)
    same([(part["PartNumber"], part["Size"]) for part in listed["Parts"]],
         [(number, len(body)) for number, body in bodies.items()], "parts")
    page = world.s3.list_parts(**upload, MaxParts=1, PartNumberMarker=1)
    same(([part["PartNumber"] for part in page["Parts"]], page["IsTruncated"], page["NextPartNumberMarker"]),
         ([2], True, 2), "a page of parts")
    true(created["UploadId"] in [entry["UploadId"] for entry in
                                 world.s3.list_multipart_uploads(Bucket=world.bucket)["Uploads"]], "not among uploads")
    refused("NoSuchKey", 404, world.s3.get_object, **where)
    parts = [{"PartNumber": number, "ETag": etags[number]} for number in bodies]
    done = world.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    digest = md5(b"".join(hashlib.md5(body).digest() for body in bodies.values()))
    same(done["ETag"], f'"{digest}-3"', "ETag of the whole")
    again = world.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    same(again["ETag"], done["ETag"], "ETag of a repeated completion")
    whole = b"".join(bodies.values())
    same((done["ChecksumCRC32"], done["ChecksumType"]),
         (base64.b64encode(zlib.crc32(whole).to_bytes(4, "big")).decode(), "FULL_OBJECT"), "checksum unasked")
    true(world.get("multi") == whole, "the bytes differ")
    head = world.s3.head_object(**where)
    same((head["ContentType"], head["Metadata"]), ("text/multi", {"m": "1"}), "headers")
    part = world.s3.get_object(**where, PartNumber=2)
    true(part["Body"].read() == bodies[2], "the bytes of part 2 differ")
    same((part["PartsCount"], part["ResponseMetadata"]["HTTPStatusCode"]), (3, 206), "part 2")
    head = world.s3.head_object(**where, PartNumber=1)
    same((head["PartsCount"], head["ContentLength"]), (3, PART_MIN), "head of part 1")
    refused("InvalidPart", 400, world.s3.get_object, **where, PartNumber=9)
    at = PART_MIN - 5
    true(world.get("multi", Range=f"bytes={at}-{at + 9}") == whole[at:at + 10], "a range over two parts differs")
    same(world.s3.get_object_attributes(**where, ObjectAttributes=["ObjectParts"])["ObjectParts"]["TotalPartsCount"], 3,
         "parts of attributes")


@check
def multipart_errors(world):
    where = {"Bucket": world.bucket, "Key": "multi-bad"}
    upload = {**where, "UploadId": world.s3.create_multipart_upload(**where)["UploadId"]}
    small = world.s3.upload_part(**upload, PartNumber=1, Body=b"small")["ETag"]
    last = world.s3.upload_part(**upload, PartNumber=2, Body=b"last")["ETag"]
    complete = lambda parts: world.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [
        {"PartNumber": number, "ETag": etag} for number, etag in parts]})
    refused("EntityTooSmall", 400, complete, parts=[(1, small), (2, last)])
    refused("InvalidPartOrder", 400, complete, parts=[(2, last), (1, small)])
    refused("InvalidPartOrder", 400, complete, parts=[(1, small), (1, small)])
    refused("InvalidPart", 400, complete, parts=[(1, last)])
    refused("InvalidPart", 400, complete, parts=[(3, small)])
    refused("MalformedXML", 400, complete, parts=[])
    refused(("InvalidArgument", "MalformedXML"), 400, complete, parts=[(number, small) for number in range(1, 10002)])
    refused("BadDigest", 400, world.s3.upload_part, **upload, PartNumber=1, Body=b"x",
            ContentMD5=base64.b64encode(hashlib.md5(b"y").digest()).decode())
    nowhere = {**where, "UploadId": "0123456789abcdef0123456789abcdef"}
    refused("NoSuchUpload", 404, world.s3.list_parts, **nowhere)
    refused("NoSuchUpload", 404, world.s3.abort_multipart_upload, **nowhere)
    refused("NoSuchUpload", 404, world.s3.complete_multipart_upload, **nowhere,
            MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": small}]})
    world.s3.abort_multipart_upload(**upload)
    refused("NoSuchUpload", 404, world.s3.upload_part, **upload, PartNumber=1, Body=b"x")
    refused("NoSuchUpload", 404, complete, parts=[(1, small)])
    one = {**where, "UploadId": world.s3.create_multipart_upload(**where)["UploadId"]}
    etag = world.s3.upload_part(**one, PartNumber=10000, Body=b"only")["ETag"]
    world.s3.complete_multipart_upload(**one, MultipartUpload={"Parts": [{"PartNumber": 10000, "ETag": etag}]})
    same(world.get("multi-bad"), b"only", "body of the one part")


@check
def multipart_checksums(world):
    first, second = world.bytes(PART_MIN), world.bytes(99)
    crc = lambda body: base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
    composite = base64.b64encode(zlib.crc32(b"".join(zlib.crc32(body).to_bytes(4, "big") for body in (first, second)))
                                 .to_bytes(4, "big")).decode() + "-2"
    for kind, expected in [("FULL_OBJECT", crc(first + second)), ("COMPOSITE", composite)]:
        where = {"Bucket": world.bucket, "Key": f"multi-{kind}"}
        created = world.s3.create_multipart_upload(**where, ChecksumAlgorithm="CRC32", ChecksumType=kind)
        upload = {**where, "UploadId": created["UploadId"]}
        parts = []
        for number, body in [(1, first), (2, second)]:
            part = world.s3.upload_part(**upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32")
            same(part["ChecksumCRC32"], crc(body), f"checksum of part {number}")
            parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]})
        ends = lambda code, last, **more: refused(code, 400, world.s3.complete_multipart_upload, **upload, **more,
                                                  MultipartUpload={"Parts": [parts[0], last]})
        tag = {"PartNumber": 2, "ETag": parts[1]["ETag"]}
        ends("BadDigest", parts[1], ChecksumCRC32=crc(b"other"), ChecksumType=kind)
        ends("InvalidRequest", parts[1], ChecksumType="COMPOSITE" if kind == "FULL_OBJECT" else "FULL_OBJECT")
        ends("InvalidRequest", parts[1], MpuObjectSize=7)
        ends("InvalidPart", {**tag, "ChecksumCRC32": crc(b"other")})
        ends("BadDigest", {**tag, "ChecksumSHA1": base64.b64encode(hashlib.sha1(second).digest()).decode()})
        if kind == "COMPOSITE":
            ends("InvalidRequest", tag)
        done = world.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        same((done["ChecksumCRC32"], done["ChecksumType"]), (expected, kind), f"{kind} checksum")
        head = world.s3.head_object(**where, ChecksumMode="ENABLED")
        same((head["ChecksumCRC32"], head["ChecksumType"]), (expected, kind), f"{kind} checksum of HEAD")
        true(world.get(f"multi-{kind}") == first + second, "the bytes differ")
    refused("InvalidRequest", 400, world.s3.create_multipart_upload, Bucket=world.bucket, Key="x",
            ChecksumAlgorithm="SHA256", ChecksumType="FULL_OBJECT")


@check
def multipart_copies(world):
    body = world.bytes(12 * MIB)
    world.put("mpcopy/from", body)
    source = {"Bucket": world.bucket, "Key": "mpcopy/from"}
    where = {"Bucket": world.bucket, "Key": "mpcopy/to"}
    upload = {**where, "UploadId": world.s3.create_multipart_upload(**where)["UploadId"]}
    parts = []
    for number, (first, last) in enumerate([(1, 6 * MIB), (6 * MIB + 1, 12 * MIB - 1)], start=1):
        copied = world.s3.upload_part_copy(**upload, PartNumber=number, CopySource=source,
                                           CopySourceRange=f"bytes={first}-{last}")
        parts.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
    refused(("InvalidRange", "InvalidArgument"), 416, world.s3.upload_part_copy, **upload, PartNumber=3,
            CopySource=source, CopySourceRange=f"bytes=0-{len(body)}")
    refused("InvalidArgument", 400, world.s3.upload_part_copy, **upload, PartNumber=3, CopySource=source,
            CopySourceRange="bytes=5-")
    refused("PreconditionFailed", 412, world.s3.upload_part_copy, **upload, PartNumber=3, CopySource=source,
            CopySourceIfMatch='"other"')
    world.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    true(world.get("mpcopy/to") == body[1:], "the bytes differ")
    big = TransferConfig(multipart_threshold=6 * MIB, multipart_chunksize=PART_MIN)
    world.s3.copy(source, world.bucket, "mpcopy/managed", Config=big)
    true(world.get("mpcopy/managed") == body, "the bytes of the managed copy differ")


@check
def multipart_lists(world):
    bucket = world.new_bucket("uploads")
    keys = ["a", "a", "d/x", "d/y", "e/z", "f"]
    ids = [(key, world.s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]) for key in keys]
    for size in range(1, 8):
        seen = []
        pages = world.s3.get_paginator("list_multipart_uploads").paginate(
            Bucket=bucket, PaginationConfig={"PageSize": size})
        for page in pages:
            true(len(page.get("Uploads", [])) <= size, f"too many in a page of {size}")
            seen += [(entry["Key"], entry["UploadId"]) for entry in page.get("Uploads", [])]
        same(sorted(seen), sorted(ids), f"uploads, {size} a page")
        same([key for key, _ in seen], keys, f"order, {size} a page")
    page = world.s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    same([entry["Prefix"] for entry in page["CommonPrefixes"]], ["d/", "e/"], "prefixes")
    same([entry["Key"] for entry in page["Uploads"]], ["a", "a", "f"], "uploads beside prefixes")
    same([entry["Key"] for entry in world.s3.list_multipart_uploads(Bucket=bucket, Prefix="d/")["Uploads"]],
         ["d/x", "d/y"], "uploads of a prefix")
    same([entry["Key"] for entry in world.s3.list_multipart_uploads(Bucket=bucket, KeyMarker="a")["Uploads"]],
         ["d/x", "d/y", "e/z", "f"], "uploads after a key")
    # Uploads are no objects: they go with their bucket.
    world.s3.delete_bucket(Bucket=bucket)
    refused("NoSuchBucket", 404, world.s3.list_multipart_uploads, Bucket=bucket)


# Presigned URLs.


def fetch(url, method="GET", body=None, headers=None):
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(answer.status, answer.read(), dict(answer.headers.items()))
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read(), dict(error.headers.items()))


@check
def presigned_urls(world):
    body = world.bytes(100 * KIB)
    for name, client in [("v4", world.client(signature_version="s3v4")), ("default", world.s3)]:
        where = {"Bucket": world.bucket, "Key": f"presigned é {name}"}
        put = fetch(client.generate_presigned_url("put_object", Params=where, ExpiresIn=60), "PUT", body,
                    {"Content-Type": ""} if name == "default" else None)
        same(put.status, 200, f"status of the presigned PUT ({name}): {put.body[:300]}")
        url = client.generate_presigned_url("get_object", Params=where, ExpiresIn=60)
        got = fetch(url)
        true(got.status == 200 and got.body == body, f"the presigned GET ({name}) gave {got.status} {got.code}")
        fetch(url.replace("presigned", "presignex", 1)).expect(403, "SignatureDoesNotMatch")
        fetch(url, "DELETE").expect(403, "SignatureDoesNotMatch")
        url = client.generate_presigned_url(
            "get_object", Params={**where, "ResponseContentType": "a/b", "ResponseContentDisposition": "inline"})
        same(fetch(url).headers.get("content-type"), "a/b", f"overridden type ({name})")
    v4 = world.client(signature_version="s3v4")
    where = {"Bucket": world.bucket, "Key": "presigned-expired"}
    url = v4.generate_presigned_url("get_object", Params=where, ExpiresIn=1)
    time.sleep(2.5)
    fetch(url).expect(403, "AccessDenied")
    url = v4.generate_presigned_url("get_object", Params=where, ExpiresIn=604800)
    fetch(url).expect(404, "NoSuchKey")
    fetch(url.replace("X-Amz-Expires=604800", "X-Amz-Expires=604801")).expect(
        403, "AuthorizationQueryParametersError")
    wrong = world.client(secret_key="wrong", signature_version="s3v4")
    fetch(wrong.generate_presigned_url("get_object", Params=where)).expect(403, "SignatureDoesNotMatch")


# Bad requests.


@check
def bad_signatures(world):
    path = f"/{world.bucket}/plain"
    Raw(world, "GET", path).send().expect(404, "NoSuchKey") if not exists(world, "plain") else None
    Raw(world, "GET", path, secret_key="wrong").send().expect(403, "SignatureDoesNotMatch")
    Raw(world, "GET", path, access_key="AKNOSUCHKEY000000000").send().expect(403, "InvalidAccessKeyId")
    tampered = Raw(world, "GET", path)
    tampered.target += "?acl"
    tampered.send().expect(403, "SignatureDoesNotMatch")
    tampered = Raw(world, "PUT", path, body=b"x", headers={"X-Amz-Meta-A": "1"})
    tampered.headers["X-Amz-Meta-A"] = "2"
    tampered.send().expect(403, "SignatureDoesNotMatch")
    fetch(f"{world.endpoint}{path}").expect(403, "AccessDenied")
    garbage = Raw(world, "GET", path)
    garbage.headers["Authorization"] = "AWS4-HMAC-SHA256 nonsense"
    answer = garbage.send()
    true(answer.status in (400, 403), f"status {answer.status}")
    old = Raw(world, "GET", path)
    old.headers["Authorization"] = "AWS key:signature"
    old.send().expect(403, "InvalidAccessKeyId")


def exists(world, key):
    try:
        world.s3.head_object(Bucket=world.bucket, Key=key)
        return True
    except botocore.exceptions.ClientError:
        return False


@check
def clock_skew(world):
    now = datetime.datetime.now(datetime.timezone.utc)
    for minutes, is_fine in [(-14, True), (14, True), (-16, False), (16, False), (-60 * 24 * 365, False)]:
        answer = Raw(world, "GET", f"/{world.bucket}", at=now + datetime.timedelta(minutes=minutes)).send()
        if is_fine:
            same(answer.status, 200, f"status at {minutes} minutes")
        else:
            answer.expect(403, "RequestTimeTooSkewed")


@check
def bodies_that_lie(world):
    path = f"/{world.bucket}/lie"
    body = world.bytes(100 * KIB)
    wrong = Raw(world, "PUT", path, body=body)
    wrong.send(body=body[:-1] + bytes([body[-1] ^ 1])).expect(400, "XAmzContentSHA256Mismatch")
    for cut in [0, 1, len(body) // 2, len(body) - 1]:
        answer = Raw(world, "PUT", path, body=body).send(body=body[:cut], close_write=True)
        true(answer is None or (answer.status, answer.code) == (400, "IncompleteBody"),
             f"{answer and (answer.status, answer.code)} after {cut} of {len(body)} bytes")
    nolength = Raw(world, "PUT", path, payload_hash="UNSIGNED-PAYLOAD", headers={"Content-Length": None})
    nolength.send(body=b"").expect(411, "MissingContentLength")
    nolength.headers["Transfer-Encoding"] = "chunked"
    answer = nolength.send(body=b"3\r\nabc\r\n", close_write=True)
    true(answer is None or answer.status == 400, f"{answer and answer.status} to a body without its last chunk")
    large = b"%x\r\n" % (5 * MIB) + bytes(5 * MIB) + b"\r\n0\r\n\r\n"
    answer = nolength.send(body=large)
    true(answer is None or answer.code == "MissingContentLength", f"{answer and answer.code} to 5 MiB without a length")
    big = Raw(world, "PUT", path, payload_hash="UNSIGNED-PAYLOAD", headers={
        "Content-Length": str(6 * 1024 * MIB), "Expect": "100-continue"})
    big.send(body=b"").expect(400, "EntityTooLarge")
    bad = Raw(world, "PUT", path, body=b"x", headers={"Content-MD5": "not base64!"})
    bad.send().expect(400, "InvalidDigest")
    true(not exists(world, "lie"), "a refused body became visible")


@check
def chunked_bodies(world):
    body = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    for payload_hash in ["UNSIGNED-PAYLOAD", hashlib.sha256(b"abcdefg").hexdigest()]:
        raw = Raw(world, "PUT", f"/{world.bucket}/http-chunked", payload_hash=payload_hash,
                  headers={"Content-Length": None})
        raw.headers["Transfer-Encoding"] = "chunked"
        same(raw.send(body=body).status, 200, "status of HTTP's own chunks")
        same(world.get("http-chunked"), b"abcdefg", "bytes of HTTP's own chunks")
    path = f"/{world.bucket}/chunked"
    pieces = [world.bytes(64 * KIB), world.bytes(64 * KIB), world.bytes(100)]
    raw, body = signed_chunks(world, path, pieces)
    same(raw.send(body=body).status, 200, "status of a right one")
    true(world.get("chunked") == b"".join(pieces), "the bytes differ")
    same(world.s3.head_object(Bucket=world.bucket, Key="chunked").get("ContentEncoding"), None, "content encoding")
    path = f"/{world.bucket}/chunked-bad"

    raw, body = signed_chunks(world, path, pieces)
    at = body.index(b"\r\n") + 2 + 1000
    raw.send(body=body[:at] + bytes([body[at] ^ 1]) + body[at + 1:]).expect(403, "SignatureDoesNotMatch")
    # Cut between two chunks, with all lengths in order: only the missing last chunk tells.
    raw, body = signed_chunks(world, path, pieces)
    end = len(body) - 88
    raw.headers["Content-Length"] = str(end)
    again = Raw(world, "PUT", path, payload_hash="STREAMING-AWS4-HMAC-SHA256-PAYLOAD", headers={
        "Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": str(sum(map(len, pieces))),
        "Content-Length": str(end)})
    again.send(body=chunked(again, pieces)[:end]).expect(400, "IncompleteBody")
    for length in [sum(map(len, pieces)) - 1, sum(map(len, pieces)) + 1]:
        raw, body = signed_chunks(world, path, pieces, length=length)
        raw.send(body=body).expect(400, "IncompleteBody")
    for cut in [10, 70 * KIB, len(body) - 10]:
        raw, body = signed_chunks(world, path, pieces)
        answer = raw.send(body=body[:cut], close_write=True)
        true(answer is None or (answer.status, answer.code) == (400, "IncompleteBody"),
             f"{answer and (answer.status, answer.code)} after {cut} of {len(body)} bytes")
    for garbage in [b"zz\r\nxx\r\n", b"5\r\nhello", b"\r\n\r\n", b"ffffffffffffffffff\r\n"]:
        raw = Raw(world, "PUT", path, payload_hash="STREAMING-AWS4-HMAC-SHA256-PAYLOAD", headers={
            "Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": "5",
            "Content-Length": str(len(garbage))})
        raw.send(body=garbage).expect(400, ("InvalidRequest", "IncompleteBody"))
    huge = b"ffffff0;chunk-signature=" + b"0" * 64 + b"\r\n"
    raw = Raw(world, "PUT", path, payload_hash="STREAMING-AWS4-HMAC-SHA256-PAYLOAD", headers={
        "Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": str(0xffffff0),
        "Content-Length": str(0xffffff0 + 200)})
    raw.send(body=huge).expect(400, ("InvalidRequest", "IncompleteBody"))
    true(not exists(world, "chunked-bad"), "a refused body became visible")


@check
def trailers(world):
    body = world.bytes(3 * KIB)
    crc = base64.b64encode(zlib.crc32(body).to_bytes(4, "big"))

    def send(wire, announced="x-amz-checksum-crc32", length=len(body)):
        raw = Raw(world, "PUT", f"/{world.bucket}/trailer", payload_hash="STREAMING-UNSIGNED-PAYLOAD-TRAILER", headers={
            "Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": str(length),
            "X-Amz-Trailer": announced, "Content-Length": str(len(wire))})
        return raw.send(body=wire)

    one = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    three = b"".join(b"%x\r\n%s\r\n" % (KIB, body[at:at + KIB]) for at in range(0, 3 * KIB, KIB)) + b"0\r\n"
    for wire in [one, three]:
        same(send(wire + b"x-amz-checksum-crc32:" + crc + b"\r\n\r\n").status, 200, "status of a right one")
        true(world.get("trailer") == body, "the bytes differ")
    world.s3.delete_object(Bucket=world.bucket, Key="trailer")
    send(one + b"x-amz-checksum-crc32:AAAAAA==\r\n\r\n").expect(400, "BadDigest")
    send(one + b"\r\n").expect(400, "MalformedTrailerError")
    send(one + b"x-amz-checksum-crc32:no\r\n\r\n").expect(400, ("BadDigest", "InvalidRequest", "MalformedTrailerError"))
    send(one[:-3]).expect(400, "IncompleteBody")
    send(one + b"x-amz-checksum-crc32:" + crc + b"\r\n\r\n", length=len(body) + 1).expect(400, "IncompleteBody")
    true(not exists(world, "trailer"), "a refused body became visible")


@check
def bad_xml(world):
    lol = '<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{("&" + chr(97 + n) + ";") * 10}">' for n in range(9)) + "]>"
    for body in [
        lol + "<Delete><Object><Key>&j;</Key></Object></Delete>",
        '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><Delete><Object><Key>&x;</Key></Object></Delete>',
        "<Delete>" + "<a>" * 100_000 + "</a>" * 100_000 + "</Delete>",
        "<Delete><Object><Key>k</Key>", "not xml", "<Delete></Other>", "<Other/>", "<Delete/>",
    ]:
        answer = Raw(world, "POST", f"/{world.bucket}", {"delete": ""}, body.encode(), {
            "Content-MD5": base64.b64encode(hashlib.md5(body.encode()).digest()).decode()}).send()
        answer.expect(400, "MalformedXML")
    body = b"<Delete>" + b" " * (8 * MIB) + b"</Delete>"
    answer = Raw(world, "POST", f"/{world.bucket}", {"delete": ""}, body).send()
    true(answer is None or answer.code == "MaxMessageLengthExceeded", f"8 MiB of XML: {answer and answer.code}")
    body = b"<Delete><Object><Key>k</Key></Object></Delete>"
    md5_of_other = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    Raw(world, "POST", f"/{world.bucket}", {"delete": ""}, body, {"Content-MD5": md5_of_other}).send().expect(
        400, "BadDigest")
    Raw(world, "POST", f"/{world.bucket}", {"delete": ""}, body).send(body=body.replace(b"k<", b"l<")).expect(
        400, "XAmzContentSHA256Mismatch")
    same(Raw(world, "POST", f"/{world.bucket}", {"delete": ""}, body).send().status, 200, "status of a right one")
    Raw(world, "PUT", f"/{world.bucket}-loc", None,
        b"<CreateBucketConfiguration><LocationConstraint>mars-1</LocationConstraint></CreateBucketConfiguration>"
        ).send().expect(400, "InvalidLocationConstraint")


@check
def bad_targets(world):
    for target in [f"/{world.bucket}/%ff%fe", f"/{world.bucket}/%c3%28", f"/{world.bucket}/%ed%a0%80"]:
        raw = Raw(world, "GET", f"/{world.bucket}/x")
        raw.target = target
        raw.send().expect(400, "InvalidURI")
    raw = Raw(world, "PUT", f"/{world.bucket}/" + "k" * 1025, body=b"")
    raw.send().expect(400, "KeyTooLongError")
    answer = Raw(world, "PUT", f"/{world.bucket}/", body=b"").send()
    same(answer.status, 200 if world.options.region == "us-east-1" else 409, "status of one's own bucket again")
    answer = Raw(world, "PATCH", f"/{world.bucket}/x").send()
    true(answer.status in (405, 501), f"status {answer.status}")
    # Were these taken for what they name, buckets and objects would go or come unasked.
    world.put("kept", b"kept")
    for method, query, status, code in [
        ("DELETE", "acl", 405, "MethodNotAllowed"), ("DELETE", "annotation", 501, "NotImplemented"),
        ("PUT", "renameObject", 501, "NotImplemented"), ("PUT", "encryption", 501, "NotImplemented"),
        ("PUT", "torrent", 405, "MethodNotAllowed"), ("PUT", "partNumber", 400, "InvalidArgument"),
        ("PUT", "uploadId", 405, "MethodNotAllowed"),
    ]:
        Raw(world, method, f"/{world.bucket}/kept", {query: "1"}).send().expect(status, code)
    same(world.get("kept"), b"kept", "the object")
    empty = world.new_bucket("kept")
    Raw(world, "DELETE", f"/{empty}", {"logging": ""}).send().expect(405, "MethodNotAllowed")
    Raw(world, "DELETE", f"/{empty}", {"metadataConfiguration": ""}).send().expect(501, "NotImplemented")
    world.s3.head_bucket(Bucket=empty)
    answer = Raw(world, "GET", f"/{world.bucket}", {"analytics": "", "id": "x"}).send()
    answer.expect(501, "NotImplemented")
    for garbage in [b"\0\1\2\3\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 200,
                    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
                    b"GET /" + b"x" * 300_000 + b" HTTP/1.1\r\n\r\n"]:
        connection = open_socket(world, 10)
        try:
            connection.sendall(garbage)
            answer = connection.recv(100)
            true(answer == b"" or answer.startswith(b"HTTP/1.1 4"), f"{answer!r} to {garbage[:20]!r}")
        except ConnectionError:
            pass
        finally:
            connection.close()
    world.s3.head_bucket(Bucket=world.bucket)


@check
def expect_continue(world):
    """A client that asks first is told no before it sends its bytes."""
    raw = Raw(world, "PUT", f"/{world.bucket}-nowhere/k", payload_hash="UNSIGNED-PAYLOAD", headers={
        "Content-Length": str(100 * MIB), "Expect": "100-continue"})
    raw.send(body=b"").expect(404, "NoSuchBucket")


@check
def other_tenants(world):
    """With --other-access-key and --other-secret-key: a second tenant sees nothing of the first."""
    options = world.options
    if not options.other_access_key:
        raise Skip("--other-access-key is not given")
    world.put("private", b"secret")
    other = world.client(options.other_access_key, options.other_secret_key)
    where = {"Bucket": world.bucket, "Key": "private"}
    true(world.bucket not in [entry["Name"] for entry in other.list_buckets()["Buckets"]], "the bucket is listed")
    refused("BucketAlreadyExists", 409, other.create_bucket, Bucket=world.bucket)
    for call, arguments in [
        (other.get_object, where), (other.delete_object, where), (other.put_object, {**where, "Body": b"x"}),
        (other.list_objects_v2, {"Bucket": world.bucket}), (other.delete_bucket, {"Bucket": world.bucket}),
        (other.create_multipart_upload, where), (other.list_multipart_uploads, {"Bucket": world.bucket}),
        (other.put_object_tagging, {**where, "Tagging": {"TagSet": []}}), (other.get_object_acl, where),
    ]:
        refused("AccessDenied", 403, call, **arguments)
    # A batch is answered key by key.
    batch = other.delete_objects(Bucket=world.bucket, Delete={"Objects": [{"Key": "private"}]})
    same([(entry["Key"], entry["Code"]) for entry in batch["Errors"]], [("private", "AccessDenied")], "errors")
    same(batch.get("Deleted"), None, "deleted")
    mine = f"conf-{world.run}-other"
    other.create_bucket(Bucket=mine)
    refused("AccessDenied", 403, other.copy_object, Bucket=mine, Key="stolen",
            CopySource={"Bucket": world.bucket, "Key": "private"})
    other.delete_bucket(Bucket=mine)
    same(world.get("private"), b"secret", "body")


# The clients that customers have at the command line.


def program(name, variable):
    path = os.environ.get(variable) or shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))
    if not path:
        raise Skip(f"{name} is not on PATH: install it, or set {variable}")
    return path


def run(arguments, environment, expect=0):
    # No setting of this machine's own reaches the client.
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}
    done = subprocess.run(arguments, env={**plain, **environment}, capture_output=True, timeout=600)
    if done.returncode != expect:
        raise AssertionError(f"{' '.join(map(str, arguments))}: exit {done.returncode}: {done.stderr.decode()[-800:]}")
    return done.stdout.decode()


def tree(world, folder):
    """A directory of files with odd names and sizes."""
    sizes = {"empty": 0, "one": 1, "sub/4096": 4096, "sub/4097": 4097, "sub/deep/er/64k": 64 * KIB, "big": 9 * MIB + 5,
             "sp ace/a b.txt": 10, "ünï/çödé": 11, "plus+and&": 12, "per%20cent": 13, "sub/.hidden": 14}
    sizes.update({f"many/{number:03}": number * 37 for number in range(200)})
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(world.bytes(size))


def same_trees(left, right):
    files = lambda folder: sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    same(files(right), files(left), "files")
    _, mismatch, errors = filecmp.cmpfiles(left, right, files(left), shallow=False)
    same((mismatch, errors), ([], []), "files that differ")


@check
def aws_cli(world):
    aws = program("aws", "AWS_CLI")
    bucket = world.new_bucket("aws-cli")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        environment = {
            "AWS_ACCESS_KEY_ID": world.options.access_key, "AWS_SECRET_ACCESS_KEY": world.options.secret_key,
            "AWS_DEFAULT_REGION": world.options.region, "AWS_ENDPOINT_URL": world.endpoint, "HOME": str(folder),
            "AWS_CONFIG_FILE": str(folder / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        }
        up, down = folder / "up", folder / "down"
        tree(world, up)
        s3 = lambda *arguments, expect=0: run([aws, "s3", *map(str, arguments)], environment, expect)
        s3("sync", up, f"s3://{bucket}/tree", "--no-progress")
        s3("sync", f"s3://{bucket}/tree", down, "--no-progress")
        same_trees(up, down)
        same(s3("sync", up, f"s3://{bucket}/tree", "--no-progress").strip(), "", "a second sync")
        s3("cp", up / "big", f"s3://{bucket}/one", "--no-progress")
        s3("cp", f"s3://{bucket}/one", f"s3://{bucket}/two", "--no-progress")
        s3("mv", f"s3://{bucket}/two", f"s3://{bucket}/three", "--no-progress")
        s3("cp", f"s3://{bucket}/three", folder / "three", "--no-progress")
        true(filecmp.cmp(up / "big", folder / "three", shallow=False), "the bytes of cp, cp and mv differ")
        listed = s3("ls", f"s3://{bucket}/", "--recursive")
        true("tree/sub/deep/er/64k" in listed and "three" in listed, f"ls: {listed[:300]}")
        true("PRE tree/" in s3("ls", f"s3://{bucket}/"), "ls shows no folder")
        url = s3("presign", f"s3://{bucket}/three").strip()
        true(fetch(url).body == (up / "big").read_bytes(), "the presigned URL gives other bytes")
        (up / "one").unlink()
        s3("sync", up, f"s3://{bucket}/tree", "--delete", "--no-progress")
        s3("cp", f"s3://{bucket}/tree/one", folder / "x", expect=1)
        s3("rm", f"s3://{bucket}/", "--recursive")
        same(s3("ls", f"s3://{bucket}/", "--recursive", expect=0).strip(), "", "ls of the empty bucket")
        s3("rb", f"s3://{bucket}")
        s3("mb", f"s3://{bucket}")


@check
def rclone(world):
    binary = program("rclone", "RCLONE")
    bucket = world.new_bucket("rclone")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        environment = {
            "TZ": "UTC", "RCLONE_CONFIG": str(folder / "none"), "RCLONE_CONFIG_POOL_TYPE": "s3",
            "RCLONE_CONFIG_POOL_PROVIDER": "Other", "RCLONE_CONFIG_POOL_ENDPOINT": world.endpoint,
            "RCLONE_CONFIG_POOL_REGION": world.options.region,
            "RCLONE_CONFIG_POOL_ACCESS_KEY_ID": world.options.access_key,
            "RCLONE_CONFIG_POOL_SECRET_ACCESS_KEY": world.options.secret_key,
        }
        up, down = folder / "up", folder / "down"
        tree(world, up)
        clone = lambda *arguments, expect=0: run([binary, *map(str, arguments)], environment, expect)
        clone("copy", up, f"pool:{bucket}/tree")
        clone("check", up, f"pool:{bucket}/tree")
        clone("check", "--download", up, f"pool:{bucket}/tree")
        clone("sync", f"pool:{bucket}/tree", down)
        same_trees(up, down)
        (up / "big").write_bytes(world.bytes(11 * MIB))
        (up / "one").unlink()
        clone("sync", up, f"pool:{bucket}/tree")
        clone("check", up, f"pool:{bucket}/tree")
        (up / "empty").write_bytes(b"no longer")
        clone("check", up, f"pool:{bucket}/tree", expect=1)
        os.utime(up / "big", (1_500_000_000, 1_500_000_000))
        clone("copy", up, f"pool:{bucket}/tree")
        clone("check", up, f"pool:{bucket}/tree")
        true("2017-07-14" in clone("lsf", "--format", "t", f"pool:{bucket}/tree/big"), "the modification time is lost")
        clone("copy", "--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M", up, f"pool:{bucket}/parts")
        clone("check", "--download", up, f"pool:{bucket}/parts")
        clone("copy", f"pool:{bucket}/parts", f"pool:{bucket}/server-side")
        clone("check", "--download", up, f"pool:{bucket}/server-side")
        same(sorted(clone("lsf", f"pool:{bucket}").split()), ["parts/", "server-side/", "tree/"], "folders")
        clone("purge", f"pool:{bucket}")


def main():
    import walks  # Adds its checks to those here.  # noqa: F401
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", help="e.g. http://127.0.0.1:9000")
    parser.add_argument("--access-key")
    parser.add_argument("--secret-key")
    parser.add_argument("--other-access-key", help="of another tenant, for the check of isolation")
    parser.add_argument("--other-secret-key")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--only", metavar="TEXT", default="", help="run the checks whose name contains TEXT")
    parser.add_argument("--seed", type=int, default=1, help="of the bytes that are stored")
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument("--keep", action="store_true", help="leave buckets behind")
    parser.add_argument("--require-clients", action="store_true", help="a client that is missing is a failure")
    options = parser.parse_args()
    chosen = [function for function in CHECKS if options.only in function.__name__]
    if options.list:
        print("\n".join(function.__name__ for function in chosen))
        return 0
    if not chosen or not (options.endpoint and options.access_key and options.secret_key):
        parser.error("--endpoint, --access-key and --secret-key are needed, and --only must name a check")
    world = World(options)
    failures = []
    for function in chosen:
        begun = time.monotonic()
        try:
            function(world)
            print(f"ok {function.__name__} {time.monotonic() - begun:.1f} s", flush=True)
        except Skip as why:
            print(f"skipped {function.__name__}: {why}", flush=True)
            if options.require_clients and not isinstance(why, CannotHere):
                failures.append(function.__name__)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)
            line = next((frame.lineno for frame in reversed(where) if frame.name == function.__name__), "?")
            print(f"FAILED {function.__name__} (line {line}): {type(error).__name__}: {error}", flush=True)
            failures.append(function.__name__)
    if not options.keep:
        try:
            world.clean()
        except Exception as error:
            print(f"FAILED cleaning up: {error}", flush=True)
            failures.append("cleaning up")
    print(f"{len(chosen) - len(failures)} of {len(chosen)} passed" + (f"; failed: {', '.join(failures)}" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    # The module that walks.py sees must be the one that runs.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import clients
    sys.exit(clients.main())
