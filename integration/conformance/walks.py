"""Walks with further clients that customers have: s3cmd, restic, s3fs, MinIO's Python client, aws-sdk-rust,
pyarrow, DuckDB, a registry's store.

Loaded by clients.py, which has the checks, the options and the helpers. What needs a kernel's FUSE is skipped where this
machine lets nobody mount.
"""

import io
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time

from clients import KIB, MIB, CannotHere, Skip, check, program, refused, run, same, same_trees, tree, true


def few_files(world, folder):
    """As `tree`, without its many."""
    for name, size in {"empty": 0, "one": 1, "sub/4097": 4097, "sub/deep/er/64k": 64 * KIB, "big": 9 * MIB + 5,
                       "sp ace/a b.txt": 10, "ünï/çödé": 11, "plus+and&": 12, "per%20cent": 13}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(world.bytes(size))


def keys_of(world):
    return {"AWS_ACCESS_KEY_ID": world.options.access_key, "AWS_SECRET_ACCESS_KEY": world.options.secret_key,
            "AWS_DEFAULT_REGION": world.options.region}


@check
def s3cmd(world):
    binary = program("s3cmd", "S3CMD")
    bucket = world.new_bucket("s3cmd")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        config = folder / "s3cfg"
        config.write_text(
            f"[default]\naccess_key = {world.options.access_key}\nsecret_key = {world.options.secret_key}\n"
            f"host_base = {world.url.netloc}\nhost_bucket = {world.url.netloc}\nbucket_location = {world.options.region}\n"
            f"use_https = {world.url.scheme == 'https'}\nmultipart_chunk_size_mb = 5\n")
        call = lambda *arguments, expect=0: run([binary, "-c", str(config), *map(str, arguments)],
                                                {"HOME": str(folder), "LC_ALL": "C.UTF-8"}, expect)
        up, down = folder / "up", folder / "down"
        few_files(world, up)
        down.mkdir()
        call("sync", f"{up}/", f"s3://{bucket}/tree/")
        call("sync", f"s3://{bucket}/tree/", f"{down}/")
        same_trees(up, down)
        true("upload:" not in call("sync", f"{up}/", f"s3://{bucket}/tree/"), "a second sync sends again")
        # 9 MiB in parts of 5 MiB.
        call("put", up / "big", f"s3://{bucket}/big", "--mime-type=application/x-big", "--add-header=x-amz-meta-a:b")
        info = call("info", f"s3://{bucket}/big")
        true("application/x-big" in info and "x-amz-meta-a" in info, f"info: {info}")
        call("cp", f"s3://{bucket}/big", f"s3://{bucket}/copy")
        call("mv", f"s3://{bucket}/copy", f"s3://{bucket}/moved")
        call("get", f"s3://{bucket}/moved", folder / "moved")
        true((folder / "moved").read_bytes() == (up / "big").read_bytes(), "the bytes of put, cp, mv and get differ")
        listed = call("ls", f"s3://{bucket}/")
        true("DIR" in listed and "moved" in listed and "copy" not in listed, f"ls: {listed}")
        call("setacl", f"s3://{bucket}/moved", "--acl-public")
        true("anon" in call("info", f"s3://{bucket}/moved"), "the access list is not shown")
        call("modify", "--add-header=Cache-Control:no-store", f"s3://{bucket}/moved")
        same(world.s3.head_object(Bucket=bucket, Key="moved")["CacheControl"], "no-store", "cache control")
        (up / "one").unlink()
        call("sync", "--delete-removed", f"{up}/", f"s3://{bucket}/tree/")
        call("get", f"s3://{bucket}/tree/one", folder / "x", expect=64)
        call("del", "--recursive", "--force", f"s3://{bucket}/")
        call("rb", f"s3://{bucket}")
        call("ls", f"s3://{bucket}", expect=12)
        call("mb", f"s3://{bucket}")


@check
def restic(world):
    binary = program("restic", "RESTIC")
    bucket = world.new_bucket("restic")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        environment = {
            **keys_of(world), "RESTIC_REPOSITORY": f"s3:{world.endpoint}/{bucket}/backups", "RESTIC_PASSWORD": "pass",
            "HOME": str(folder), "RESTIC_CACHE_DIR": str(folder / "cache"),
        }
        call = lambda *arguments, expect=0: run([binary, "--quiet", *map(str, arguments)], environment, expect)
        up, down = folder / "up", folder / "down"
        tree(world, up)
        call("cat", "config", expect=1)
        call("init")
        call("backup", up)
        (up / "big").write_bytes(world.bytes(6 * MIB))
        (up / "one").unlink()
        call("backup", up)
        call("check", "--read-data")
        snapshots = json.loads(call("snapshots", "--json"))
        same(len(snapshots), 2, "snapshots")
        call("restore", "latest", "--target", down)
        same_trees(up, down / up.relative_to("/"))
        call("forget", "--keep-last", "1", "--prune")
        call("check", "--read-data")
        same(len(json.loads(call("snapshots", "--json"))), 1, "snapshots after forgetting")
        same(json.loads(call("list", "locks") or "[]"), [], "locks left")


@check
def s3fs(world):
    binary, unmount = program("s3fs", "S3FS"), program("fusermount", "FUSERMOUNT")
    bucket = world.new_bucket("s3fs")
    folder = pathlib.Path(tempfile.mkdtemp())
    passwords, mounted, up = folder / "passwords", folder / "mounted", folder / "up"
    passwords.write_text(f"{world.options.access_key}:{world.options.secret_key}\n")
    passwords.chmod(0o600)
    mounted.mkdir()
    few_files(world, up)
    options = (f"passwd_file={passwords},url={world.endpoint},use_path_request_style,multipart_size=5,"
               f"endpoint={world.options.region}")
    done = subprocess.run([binary, bucket, str(mounted), "-o", options], capture_output=True, timeout=60, text=True)
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(mounted):
            if done.returncode != 0 or time.monotonic() > deadline:
                raise CannotHere(f"s3fs does not mount here: {done.stderr.strip()[-200:]}")
            time.sleep(0.05)
        shutil.copytree(up, mounted / "tree")
        same_trees(up, mounted / "tree")
        (mounted / "tree/one").rename(mounted / "tree/renamed")
        true((mounted / "tree/renamed").read_bytes() == (up / "one").read_bytes(), "the bytes of a renamed file differ")
        with open(mounted / "tree/big", "r+b") as file:
            file.seek(5 * MIB)
            file.write(b"changed")
        expected = bytearray((up / "big").read_bytes())
        expected[5 * MIB:5 * MIB + 7] = b"changed"
        body = world.s3.get_object(Bucket=bucket, Key="tree/big")["Body"].read()
        true(body == bytes(expected), "a change in the mount is another one in the bucket")
        world.s3.put_object(Bucket=bucket, Key="tree/from-outside", Body=b"hello")
        same((mounted / "tree/from-outside").read_bytes(), b"hello", "what is put by S3")
        os.chmod(mounted / "tree/renamed", 0o640)
        same(os.stat(mounted / "tree/renamed").st_mode & 0o777, 0o640, "mode")
        shutil.rmtree(mounted / "tree")
        same(world.s3.list_objects_v2(Bucket=bucket)["KeyCount"], 0, "keys left")
    finally:
        subprocess.run([unmount, "-u", "-z", str(mounted)], capture_output=True, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@check
def minio_client(world):
    try:
        import minio
        from minio.commonconfig import ComposeSource, CopySource, Tags
        from minio.deleteobjects import DeleteObject
    except ImportError as missing:
        raise Skip(f"{missing}: pip install minio")
    client = minio.Minio(world.url.netloc, access_key=world.options.access_key, secret_key=world.options.secret_key,
                         secure=world.url.scheme == "https", region=world.options.region)
    bucket = f"conf-{world.run}-minio"
    client.make_bucket(bucket)
    true(client.bucket_exists(bucket), "the bucket is not there")
    big = world.bytes(12 * MIB)
    client.put_object(bucket, "big", io.BytesIO(big), len(big), part_size=5 * MIB, metadata={"a": "b"})
    # Of unknown length: in parts, to the end.
    client.put_object(bucket, "stream", io.BytesIO(big[:7 * MIB]), -1, part_size=5 * MIB)
    stat = client.stat_object(bucket, "big")
    same((stat.size, stat.metadata.get("x-amz-meta-a")), (len(big), "b"), "size and metadata")
    answer = client.get_object(bucket, "big", offset=MIB, length=1000)
    true(answer.read() == big[MIB:MIB + 1000], "a range differs")
    answer.close()
    answer.release_conn()
    client.copy_object(bucket, "copy", CopySource(bucket, "stream"))
    client.compose_object(bucket, "both", [ComposeSource(bucket, "big"), ComposeSource(bucket, "copy")])
    answer = client.get_object(bucket, "both")
    true(answer.read() == big + big[:7 * MIB], "what is composed differs")
    answer.close()
    answer.release_conn()
    tags = Tags.new_object_tags()
    tags["k"] = "v"
    client.set_object_tags(bucket, "big", tags)
    same(dict(client.get_object_tags(bucket, "big")), {"k": "v"}, "tags")
    names = sorted(entry.object_name for entry in client.list_objects(bucket, recursive=True))
    same(names, ["big", "both", "copy", "stream"], "names")
    url = client.presigned_get_object(bucket, "copy")
    from clients import fetch
    true(fetch(url).body == big[:7 * MIB], "the presigned URL gives other bytes")
    try:
        client.stat_object(bucket, "none")
        raise AssertionError("an object that is not there is found")
    except minio.error.S3Error as error:
        same(error.code, "NoSuchKey", "code")
    errors = list(client.remove_objects(bucket, [DeleteObject(name) for name in names]))
    same(errors, [], "errors of removing")
    client.remove_bucket(bucket)


@check
def aws_sdk_rust(world):
    walk = program("walk-aws-sdk-rust", "WALK_AWS_SDK_RUST")
    # The name lets what a walk that fails leaves behind be cleaned up with the rest.
    run([walk, world.endpoint, f"conf-{world.run}-aws-sdk-rust"], {
        "AWS_ACCESS_KEY_ID": world.options.access_key, "AWS_SECRET_ACCESS_KEY": world.options.secret_key})


@check
def parquet_by_ranges(world):
    try:
        import pyarrow
        import pyarrow.dataset
        import pyarrow.fs
        import pyarrow.parquet
    except ImportError as missing:
        raise Skip(f"{missing}: pip install pyarrow")
    bucket = world.new_bucket("parquet")
    files = pyarrow.fs.S3FileSystem(
        access_key=world.options.access_key, secret_key=world.options.secret_key, region=world.options.region,
        endpoint_override=world.url.netloc, scheme=world.url.scheme, force_virtual_addressing=False)
    rows = 200_000
    table = pyarrow.table({
        "number": pyarrow.array(range(rows)), "part": pyarrow.array([number % 4 for number in range(rows)]),
        "text": pyarrow.array([f"row {number * 7919}" for number in range(rows)]),
    })
    path = f"{bucket}/table.parquet"
    pyarrow.parquet.write_table(table, path, filesystem=files, row_group_size=20_000)
    file = pyarrow.parquet.ParquetFile(path, filesystem=files)
    same((file.metadata.num_rows, file.num_row_groups), (rows, 10), "rows and groups")
    # One column of one group: the footer and one range.
    column = file.read_row_group(7, columns=["number"])["number"].to_pylist()
    same((column[0], column[-1]), (140_000, 159_999), "numbers")
    pyarrow.dataset.write_dataset(table, f"{bucket}/set", filesystem=files, format="parquet",
                                  partitioning=["part"], partitioning_flavor="hive")
    found = pyarrow.dataset.dataset(f"{bucket}/set", filesystem=files, format="parquet", partitioning="hive")
    picked = found.to_table(filter=(pyarrow.dataset.field("part") == 3) & (pyarrow.dataset.field("number") > rows - 9))
    same(sorted(picked["number"].to_pylist()), [rows - 5, rows - 1], "picked numbers")
    true(found.to_table().num_rows == rows, "rows are missing")
    files.delete_dir(f"{bucket}/set")
    same([entry.base_name for entry in files.get_file_info(pyarrow.fs.FileSelector(bucket))], ["table.parquet"], "files")


@check
def duckdb_by_ranges(world):
    """DuckDB's own S3 reader is an extension from its makers' server; its Parquet reader comes to the door through pyarrow."""
    try:
        import duckdb
        import pyarrow.fs
        from fsspec.implementations.arrow import ArrowFSWrapper
    except ImportError as missing:
        raise Skip(f"{missing}: pip install duckdb fsspec pyarrow")

    class Positions:
        """A file of which each thread has a position of its own: DuckDB's share one, and one seeks while another reads."""

        def __init__(self, file):
            self.file, self.stream, self.own = file, file.stream, threading.local()

        def tell(self):
            return getattr(self.own, "position", 0)

        def seek(self, position, whence=os.SEEK_SET):
            start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.stream.size()}[whence]
            self.own.position = start + position
            return self.own.position

        def read(self, size=-1):
            data = self.stream.read_at(size if size >= 0 else self.stream.size() - self.tell(), self.tell())
            self.own.position = self.tell() + len(data)
            return data

        def __getattr__(self, name):
            return getattr(self.file, name)

    class Pool(ArrowFSWrapper):
        protocol, root_marker = "pool", ""

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("pool://").strip("/")

        def open(self, path, mode="rb", **more):
            file = super().open(path, mode, **more)
            return Positions(file) if "r" in mode else file

    bucket = world.new_bucket("duckdb")
    database = duckdb.connect()
    database.register_filesystem(Pool(pyarrow.fs.S3FileSystem(
        access_key=world.options.access_key, secret_key=world.options.secret_key, region=world.options.region,
        endpoint_override=world.url.netloc, scheme=world.url.scheme, force_virtual_addressing=False)))
    ask = lambda text: database.sql(text.replace("BUCKET", bucket)).fetchall()
    rows = 200_000
    for part in range(2):
        database.execute(f"copy (select number, number % 3 as third, 'row ' || number * 7919 as text from "
                         f"range({part * rows}, {(part + 1) * rows}) r(number)) to 'pool://{bucket}/{part}.parquet' "
                         f"(format parquet, row_group_size 20000)")
    # The footers alone; one group of one file; all of one column.
    same(ask("select count(*) from 'pool://BUCKET/*.parquet'"), [(2 * rows,)], "rows")
    same(ask("select text from 'pool://BUCKET/1.parquet' where number between 339999 and 340001 order by number"),
         [(f"row {number * 7919}",) for number in (339_999, 340_000, 340_001)], "texts")
    same(ask("select third, count(*), sum(number) from 'pool://BUCKET/*.parquet' group by 1 order by 1"),
         [(third, len(range(third, 2 * rows, 3)), sum(range(third, 2 * rows, 3))) for third in range(3)], "sums")


@check
def registry_like_uploads(world):
    """What a container registry's store does: a blob grows in parts, is resumed, and moves to its digest by copied parts."""
    s3, bucket = world.s3, world.new_bucket("registry")
    chunk = 5 * MIB
    blob = world.bytes(3 * chunk + 12_345)
    uploading, stored = "docker/registry/v2/repositories/app/_uploads/1/data", "docker/registry/v2/blobs/sha256/ab/data"
    upload = s3.create_multipart_upload(Bucket=bucket, Key=uploading, ContentType="application/octet-stream")["UploadId"]
    for number in (1, 2):
        s3.upload_part(Bucket=bucket, Key=uploading, UploadId=upload, PartNumber=number,
                       Body=blob[(number - 1) * chunk:number * chunk])
    # Another process goes on: it finds the upload by its key, and its parts by listing.
    found = s3.list_multipart_uploads(Bucket=bucket, Prefix=uploading)["Uploads"]
    same([(entry["Key"], entry["UploadId"]) for entry in found], [(uploading, upload)], "uploads")
    parts = s3.list_parts(Bucket=bucket, Key=uploading, UploadId=upload)["Parts"]
    same([part["Size"] for part in parts], [chunk, chunk], "sizes of parts")
    for number in (3, 4):
        part = s3.upload_part(Bucket=bucket, Key=uploading, UploadId=upload, PartNumber=number,
                              Body=blob[(number - 1) * chunk:number * chunk])
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    s3.complete_multipart_upload(Bucket=bucket, Key=uploading, UploadId=upload, MultipartUpload={
        "Parts": [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in parts]})
    move = s3.create_multipart_upload(Bucket=bucket, Key=stored)["UploadId"]
    copied = []
    for number, first in enumerate(range(0, len(blob), chunk), 1):
        last = min(first + chunk, len(blob)) - 1
        result = s3.upload_part_copy(Bucket=bucket, Key=stored, UploadId=move, PartNumber=number,
                                     CopySource={"Bucket": bucket, "Key": uploading},
                                     CopySourceRange=f"bytes={first}-{last}")["CopyPartResult"]
        copied.append({"PartNumber": number, "ETag": result["ETag"]})
    s3.complete_multipart_upload(Bucket=bucket, Key=stored, UploadId=move, MultipartUpload={"Parts": copied})
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": uploading}]})
    true(s3.get_object(Bucket=bucket, Key=stored)["Body"].read() == blob, "the blob differs")
    folders = s3.list_objects_v2(Bucket=bucket, Prefix="docker/registry/v2/", Delimiter="/")
    same([entry["Prefix"] for entry in folders["CommonPrefixes"]], ["docker/registry/v2/blobs/"], "folders left")
    refused("NoSuchUpload", 404, s3.list_parts, Bucket=bucket, Key=stored, UploadId=move)


# Identity: IAM and STS at the same endpoint, as boto3 calls them.


def client_of(world, service, access_key=None, secret_key=None, token=None, **config):
    import boto3
    import botocore.config
    return boto3.client(
        service, endpoint_url=world.endpoint, region_name=world.options.region,
        aws_access_key_id=access_key or world.options.access_key,
        aws_secret_access_key=secret_key or world.options.secret_key, aws_session_token=token,
        config=botocore.config.Config(retries={"max_attempts": 3}, read_timeout=120, **config))


def by_key(world, made):
    key = made["AccessKey"]
    return client_of(world, "s3", key["AccessKeyId"], key["SecretAccessKey"])


def by_session(world, lent, service="s3"):
    lent = lent["Credentials"]
    return client_of(world, service, lent["AccessKeyId"], lent["SecretAccessKey"], lent["SessionToken"])


def statement(effect, action, resource, **more):
    return json.dumps({"Version": "2012-10-17",
                       "Statement": [{"Effect": effect, "Action": action, "Resource": resource, **more}]})


def eventually(what, condition, seconds=60):
    """Gateways believe what they know of keys for some seconds; logs and messages come when they come."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        true(time.monotonic() < deadline, f"not within {seconds} s: {what}")
        time.sleep(0.2)


def may(call, **arguments):
    import botocore.exceptions
    try:
        call(**arguments)
        return True
    except botocore.exceptions.ClientError as error:
        same(error.response["ResponseMetadata"]["HTTPStatusCode"], 403, str(error))
        return False


@check
def iam_users_keys_and_groups(world):
    iam, bucket, name = client_of(world, "iam"), world.new_bucket("iam"), f"ann-{world.run}"
    group, policy_name = f"readers-{world.run}", f"writers-{world.run}"
    world.s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    user = iam.create_user(UserName=name, Tags=[{"Key": "team", "Value": "a&b"}])["User"]
    true(user["Arn"].endswith(f":user/{name}") and user["UserId"].startswith("AIDA"), str(user))
    same(iam.get_user(UserName=name)["User"]["Tags"], [{"Key": "team", "Value": "a&b"}], "tags")
    refused("EntityAlreadyExists", 409, iam.create_user, UserName=name)
    refused("NoSuchEntity", 404, iam.get_user, UserName="nobody")
    true(name in [user["UserName"] for page in iam.get_paginator("list_users").paginate(PaginationConfig={"PageSize": 1})
                  for user in page["Users"]], "the user is not listed")
    first = iam.create_access_key(UserName=name)
    ann = by_key(world, first)
    refused("AccessDenied", 403, ann.get_object, Bucket=bucket, Key="k")

    # Inline, attached, and by a group: each lets in by itself, and no more once it is gone.
    read = statement("Allow", "s3:GetObject", f"arn:aws:s3:::{bucket}/*")
    iam.put_user_policy(UserName=name, PolicyName="read", PolicyDocument=read)
    same(iam.get_user_policy(UserName=name, PolicyName="read")["PolicyDocument"], json.loads(read), "inline policy")
    same(iam.list_user_policies(UserName=name)["PolicyNames"], ["read"], "inline policies")
    reads = lambda: may(ann.get_object, Bucket=bucket, Key="k")
    eventually("the inline policy counts", reads)
    refused("AccessDenied", 403, ann.put_object, Bucket=bucket, Key="new", Body=b"")
    iam.delete_user_policy(UserName=name, PolicyName="read")
    eventually("the deleted policy counts no more", lambda: not reads())
    policy = iam.create_policy(PolicyName=policy_name, PolicyDocument=read)["Policy"]["Arn"]
    iam.attach_user_policy(UserName=name, PolicyArn=policy)
    eventually("the attached policy counts", reads)
    both = statement("Allow", ["s3:GetObject", "s3:PutObject"], f"arn:aws:s3:::{bucket}/*")
    version = iam.create_policy_version(PolicyArn=policy, PolicyDocument=both, SetAsDefault=True)["PolicyVersion"]
    same(version["VersionId"], "v2", "version")
    eventually("the new version counts", lambda: may(ann.put_object, Bucket=bucket, Key="new", Body=b""))
    refused("DeleteConflict", 409, iam.delete_policy, PolicyArn=policy)
    same([user["UserName"] for user in iam.list_entities_for_policy(PolicyArn=policy)["PolicyUsers"]], [name], "entities")
    iam.detach_user_policy(UserName=name, PolicyArn=policy)
    iam.create_group(GroupName=group)
    iam.attach_group_policy(GroupName=group, PolicyArn="arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess")
    iam.add_user_to_group(GroupName=group, UserName=name)
    same([entry["UserName"] for entry in iam.get_group(GroupName=group)["Users"]], [name], "members")
    eventually("the group counts", lambda: not may(ann.put_object, Bucket=bucket, Key="new", Body=b"") and reads())

    # A key is changed without a pause: the second works before the first goes.
    second = iam.create_access_key(UserName=name)
    eventually("the second key works", lambda: may(by_key(world, second).get_object, Bucket=bucket, Key="k"))
    keys = {key["AccessKeyId"]: key["Status"] for key in iam.list_access_keys(UserName=name)["AccessKeyMetadata"]}
    first_id = first["AccessKey"]["AccessKeyId"]
    same(keys, {first_id: "Active", second["AccessKey"]["AccessKeyId"]: "Active"}, "keys")
    iam.update_access_key(UserName=name, AccessKeyId=first_id, Status="Inactive")
    eventually("the first key is refused", lambda: not reads())
    iam.delete_access_key(UserName=name, AccessKeyId=first_id)
    true(may(by_key(world, second).get_object, Bucket=bucket, Key="k"), "the second key stopped with the first")

    # Who may not change users is told so.
    own = client_of(world, "iam", second["AccessKey"]["AccessKeyId"], second["AccessKey"]["SecretAccessKey"])
    refused("AccessDenied", 403, own.create_user, UserName="other")
    refused("InvalidClientTokenId", 403, client_of(world, "iam", "AKNOSUCHKEYNOSUCHKEY").list_users)
    refused("SignatureDoesNotMatch", 403, client_of(world, "iam", secret_key="wrong").list_users)
    refused("MalformedPolicyDocument", 400, iam.put_user_policy, UserName=name, PolicyName="x", PolicyDocument="{}")
    refused("DeleteConflict", 409, iam.delete_user, UserName=name)
    iam.delete_access_key(UserName=name, AccessKeyId=second["AccessKey"]["AccessKeyId"])
    refused("DeleteConflict", 409, iam.delete_user, UserName=name)
    refused("DeleteConflict", 409, iam.delete_group, GroupName=group)
    iam.remove_user_from_group(GroupName=group, UserName=name)
    iam.detach_group_policy(GroupName=group, PolicyArn="arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess")
    iam.delete_group(GroupName=group)
    iam.delete_user(UserName=name)
    iam.delete_policy_version(PolicyArn=policy, VersionId="v1")
    iam.delete_policy(PolicyArn=policy)
    refused("NoSuchEntity", 404, iam.get_policy, PolicyArn=policy)


@check
def iam_paths_and_new_names(world):
    iam, path, bucket = client_of(world, "iam"), f"/walk-{world.run}/", world.new_bucket("paths")
    name = lambda text: f"{text}-{world.run}"
    names = lambda call, kind, key, **arguments: [
        entry[key] for page in iam.get_paginator(call).paginate(**arguments) for entry in page[kind]]
    trust = statement("Allow", "sts:AssumeRole", None).replace('"Resource": null', '"Principal": {"AWS": "*"}')
    make = {
        "users": lambda text, path: iam.create_user(UserName=name(text), Path=path)["User"],
        "groups": lambda text, path: iam.create_group(GroupName=name(text), Path=path)["Group"],
        "roles": lambda text, path: iam.create_role(RoleName=name(text), Path=path, AssumeRolePolicyDocument=trust)["Role"],
    }
    for kind, create in make.items():
        one = kind[:-1]
        key, list_all = f"{one.title()}Name", f"list_{kind}"
        refused("ValidationError", 400, create, text="x", path="no-slashes")
        for text, below in [("Ad", "w/"), ("ac", "x/"), ("Ab", "x/y/"), ("aa", "")]:
            made = create(text, path + below)
            same(made["Path"], path + below, f"path of a {one}")
            true(made["Arn"].endswith(f":{one}{path}{below}{name(text)}"), made["Arn"])
        refused("EntityAlreadyExists", 409, create, text="AA", path="/")
        got = getattr(iam, f"get_{one}")(**{key: name("AD")})[one.title()]
        same(got[key], name("Ad"), "a name whatever its case")
        by_name = [name(text) for text in ["aa", "Ab", "ac", "Ad"]]
        for page_size in [{}, {"PaginationConfig": {"PageSize": 1}}]:
            same(names(list_all, kind.title(), key, PathPrefix=path, **page_size), by_name, f"{kind} in their order")
            same(names(list_all, kind.title(), key, PathPrefix=path + "x", **page_size), by_name[1:3], f"{kind} below a path")
        same(names(list_all, kind.title(), key, PathPrefix=path + "z"), [], "nothing below a path")

    # A new name keeps the id, the keys, the policies and the groups.
    user, group = name("aa"), name("aa")
    before, secret = iam.get_user(UserName=user)["User"], iam.create_access_key(UserName=user)
    iam.put_user_policy(UserName=user, PolicyName="read", PolicyDocument=statement("Allow", "s3:ListBucket", "*"))
    iam.add_user_to_group(GroupName=group, UserName=user)
    refused("EntityAlreadyExists", 409, iam.update_user, UserName=user, NewUserName=name("Ab"))
    refused("NoSuchEntity", 404, iam.update_user, UserName="nobody", NewUserName=name("zz"))
    iam.update_user(UserName=user, NewUserName=name("zz"), NewPath=path + "new/")
    after = iam.get_user(UserName=name("zz"))["User"]
    same(after["UserId"], before["UserId"], "id")
    true(after["Arn"].endswith(f":user{path}new/{name('zz')}"), after["Arn"])
    refused("NoSuchEntity", 404, iam.get_user, UserName=user)
    same([key["UserName"] for key in iam.list_access_keys(UserName=name("zz"))["AccessKeyMetadata"]], [name("zz")], "keys")
    same([entry["UserName"] for entry in iam.get_group(GroupName=group)["Users"]], [name("zz")], "members")
    eventually("the renamed user's policies count", lambda: may(by_key(world, secret).list_objects_v2, Bucket=bucket))
    caller = client_of(world, "sts", secret["AccessKey"]["AccessKeyId"], secret["AccessKey"]["SecretAccessKey"])
    same(caller.get_caller_identity()["Arn"], after["Arn"], "caller")
    iam.delete_user_policy(UserName=name("zz"), PolicyName="read")
    eventually("no policy counts", lambda: not may(by_key(world, secret).list_objects_v2, Bucket=bucket))
    # Policies of buckets name users by their ARNs, paths and all.
    world.s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": after["Arn"]}, "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}"}]}))
    eventually("the bucket's policy counts", lambda: may(by_key(world, secret).list_objects_v2, Bucket=bucket))
    of_group = iam.get_group(GroupName=group)["Group"]
    iam.update_group(GroupName=group, NewGroupName=name("gg"), NewPath=path + "g/")
    renamed = iam.get_group(GroupName=name("gg"))["Group"]
    same((renamed["GroupId"], renamed["Path"]), (of_group["GroupId"], path + "g/"), "group")
    same([entry["GroupName"] for entry in iam.list_groups_for_user(UserName=name("zz"))["Groups"]], [name("gg")], "groups")

    # A role below a path is assumed by its ARN; one who may read IAM sees it and changes nothing.
    role = iam.get_role(RoleName=name("ac"))["Role"]
    lent = client_of(world, "sts").assume_role(RoleArn=role["Arn"], RoleSessionName="walk")
    true(lent["AssumedRoleUser"]["Arn"].endswith(f":assumed-role/{name('ac')}/walk"), lent["AssumedRoleUser"]["Arn"])
    own = client_of(world, "iam", secret["AccessKey"]["AccessKeyId"], secret["AccessKey"]["SecretAccessKey"])
    refused("AccessDenied", 403, own.list_roles, PathPrefix=path)
    iam.attach_user_policy(UserName=name("zz"), PolicyArn="arn:aws:iam::aws:policy/IAMReadOnlyAccess")
    eventually("IAM may be read", lambda: may(own.list_roles, PathPrefix=path))
    refused("AccessDenied", 403, own.delete_role, RoleName=name("ac"))

    policy = iam.create_policy(PolicyName=name("p"), Path=path, PolicyDocument=statement("Allow", "s3:*", "*"))["Policy"]
    true(policy["Arn"].endswith(f":policy{path}{name('p')}"), policy["Arn"])
    same(iam.get_policy(PolicyArn=policy["Arn"])["Policy"]["Path"], path, "path of a policy")
    refused("NoSuchEntity", 404, iam.get_policy, PolicyArn=policy["Arn"].replace(path, "/"))
    iam.attach_role_policy(RoleName=name("ac"), PolicyArn=policy["Arn"])
    iam.detach_role_policy(RoleName=name("ac"), PolicyArn=policy["Arn"])
    iam.delete_policy(PolicyArn=policy["Arn"])
    issuer = iam.create_open_id_connect_provider(Url=f"http://walk-{world.run}/issuer", ClientIDList=["app"])
    arn = issuer["OpenIDConnectProviderArn"]
    same(iam.get_open_id_connect_provider(OpenIDConnectProviderArn=arn)["Url"], f"http://walk-{world.run}/issuer", "url")
    iam.delete_open_id_connect_provider(OpenIDConnectProviderArn=arn)
    refused("NoSuchEntity", 404, iam.delete_open_id_connect_provider, OpenIDConnectProviderArn=arn)

    iam.detach_user_policy(UserName=name("zz"), PolicyArn="arn:aws:iam::aws:policy/IAMReadOnlyAccess")
    iam.remove_user_from_group(GroupName=name("gg"), UserName=name("ZZ"))
    iam.delete_access_key(UserName=name("zz"), AccessKeyId=secret["AccessKey"]["AccessKeyId"])
    for text in ["zz", "Ab", "AC", "ad"]:
        iam.delete_user(UserName=name(text))
    for text in ["gg", "Ab", "ac", "Ad"]:
        iam.delete_group(GroupName=name(text))
    for text in ["aa", "ab", "ac", "ad"]:
        iam.delete_role(RoleName=name(text))


@check
def roles_are_assumed(world):
    iam, sts, bucket = client_of(world, "iam"), client_of(world, "sts"), world.new_bucket("roles")
    me = sts.get_caller_identity()
    account, role = me["Account"], f"reader-{world.run}"
    same(me["Arn"], f"arn:aws:iam::{account}:root", "caller")
    world.s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    trust = lambda principal, **more: json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole", **more}]})
    other = client_of(world, "sts", world.options.other_access_key, world.options.other_secret_key)
    stranger = other.get_caller_identity()["Account"] if world.options.other_access_key else None
    made = iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust({"AWS": f"arn:aws:iam::{account}:root"}))["Role"]
    same(made["AssumeRolePolicyDocument"]["Statement"][0]["Action"], "sts:AssumeRole", "trust")
    iam.put_role_policy(RoleName=role, PolicyName="read",
                        PolicyDocument=statement("Allow", "s3:GetObject", f"arn:aws:s3:::{bucket}/*"))
    assume = lambda client, **more: client.assume_role(RoleArn=made["Arn"], RoleSessionName="walk", **more)
    lent = assume(sts, DurationSeconds=900)
    same(lent["AssumedRoleUser"]["Arn"], f"arn:aws:sts::{account}:assumed-role/{role}/walk", "assumed role")
    session = by_session(world, lent)
    same(session.get_object(Bucket=bucket, Key="k")["Body"].read(), b"x", "body")
    refused("AccessDenied", 403, session.put_object, Bucket=bucket, Key="k", Body=b"y")
    refused("AccessDenied", 403, session.list_buckets)
    same(by_session(world, lent, "sts").get_caller_identity()["Arn"], lent["AssumedRoleUser"]["Arn"], "caller")
    narrow = by_session(world, assume(sts, Policy=statement("Allow", "s3:GetObject", f"arn:aws:s3:::{bucket}/other")))
    refused("AccessDenied", 403, narrow.get_object, Bucket=bucket, Key="k")
    refused("ValidationError", 400, assume, client=sts, DurationSeconds=43_200)
    refused("AccessDenied", 403, sts.assume_role, RoleArn=f"arn:aws:iam::{account}:role/none", RoleSessionName="walk")
    if stranger:
        refused("AccessDenied", 403, assume, client=other)
        external = {"StringEquals": {"sts:ExternalId": "secret"}}
        iam.update_assume_role_policy(RoleName=role, PolicyDocument=trust({"AWS": stranger}, Condition=external))
        eventually("the other account is trusted", lambda: may(assume, client=other, ExternalId="secret"))
        refused("AccessDenied", 403, assume, client=other, ExternalId="wrong")
        refused("AccessDenied", 403, assume, client=sts)
        crossing = by_session(world, assume(other, ExternalId="secret"))
        same(crossing.get_object(Bucket=bucket, Key="k")["Body"].read(), b"x", "body for the other account")
    refused("DeleteConflict", 409, iam.delete_role, RoleName=role)
    iam.delete_role_policy(RoleName=role, PolicyName="read")
    iam.delete_role(RoleName=role)
    eventually("sessions end with their role", lambda: not may(session.get_object, Bucket=bucket, Key="k"))


class Server:
    """A web server for the length of a check; `respond(path, body)` gives status, type and bytes."""

    def __init__(self, respond):
        import http.server
        import threading

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                length = int(self.headers.get("content-length", 0))
                status, kind, body = respond(self.path, self.rfile.read(length))
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@check
def web_identities_assume_roles(world):
    try:
        from Crypto.Hash import SHA256
        from Crypto.PublicKey import RSA
        from Crypto.Signature import pkcs1_15
    except ImportError as missing:
        raise Skip(f"{missing}: pip install pycryptodome")
    import base64
    encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    number = lambda value: encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))
    key, stranger = RSA.generate(2048), RSA.generate(2048)

    def respond(path, _):
        if path == "/realm/.well-known/openid-configuration":
            answer = {"issuer": f"{server.url}/realm", "jwks_uri": f"{server.url}/keys"}
        else:
            answer = {"keys": [{"kty": "RSA", "kid": "1", "alg": "RS256", "n": number(key.n), "e": number(key.e)}]}
        return 200, "application/json", json.dumps(answer).encode()

    def token(by=key, **more):
        claims = {"iss": f"{server.url}/realm", "sub": "robot", "aud": "pool", "exp": int(time.time()) + 600, **more}
        text = ".".join(encode(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1"}, claims))
        return f"{text}.{encode(pkcs1_15.new(by).sign(SHA256.new(text.encode())))}"

    iam, bucket, role = client_of(world, "iam"), world.new_bucket("oidc"), f"robot-{world.run}"
    world.s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    with Server(respond) as server:
        issuer = f"{server.url}/realm".split("://")[1]
        provider = iam.create_open_id_connect_provider(Url=f"{server.url}/realm", ClientIDList=["pool"])
        provider = provider["OpenIDConnectProviderArn"]
        same(iam.get_open_id_connect_provider(OpenIDConnectProviderArn=provider)["ClientIDList"], ["pool"], "clients")
        trust = json.dumps({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": {"Federated": provider}, "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {"StringEquals": {f"{issuer}:sub": "robot", f"{issuer}:aud": "pool"}}}]})
        arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        iam.put_role_policy(RoleName=role, PolicyName="read",
                            PolicyDocument=statement("Allow", "s3:GetObject", f"arn:aws:s3:::{bucket}/*"))
        import botocore
        nobody = client_of(world, "sts", signature_version=botocore.UNSIGNED)
        assume = lambda text: nobody.assume_role_with_web_identity(
            RoleArn=arn, RoleSessionName="walk", WebIdentityToken=text)
        lent = assume(token())
        same((lent["SubjectFromWebIdentityToken"], lent["Audience"], lent["Provider"]), ("robot", "pool", provider), "identity")
        session = by_session(world, lent)
        same(session.get_object(Bucket=bucket, Key="k")["Body"].read(), b"x", "body")
        refused("AccessDenied", 403, session.put_object, Bucket=bucket, Key="k", Body=b"y")
        refused("AccessDenied", 403, assume, text=token(sub="someone"))
        refused("InvalidIdentityToken", 400, assume, text=token(aud="another"))
        refused("InvalidIdentityToken", 400, assume, text=token(by=stranger))
        refused("InvalidIdentityToken", 400, assume, text=token(iss="https://elsewhere.example"))
        refused("InvalidIdentityToken", 400, assume, text="no.token.atall")
        refused("ExpiredTokenException", 400, assume, text=token(exp=int(time.time()) - 600))
        iam.delete_role_policy(RoleName=role, PolicyName="read")
        iam.delete_role(RoleName=role)
        iam.delete_open_id_connect_provider(OpenIDConnectProviderArn=provider)


# What a bucket does by itself.


@check
def webhooks_hear_of_changes(world):
    s3, bucket = world.s3, world.new_bucket("hooks")
    heard, fails = [], [True]

    def respond(path, body):
        message = json.loads(body)
        if path == "/hook" and "Records" in message and fails:
            fails.pop()
            return 503, "text/plain", b""
        heard.append((path, message))
        return 200, "text/plain", b"ok"

    def told(path):
        return [(record["eventName"], record["s3"]["object"]["key"]) for at, message in heard if at == path
                for record in message.get("Records", [])]

    with Server(respond) as server:
        queue = lambda path, events, **more: {"QueueArn": f"arn:makai:webhook:::{server.url}{path}", "Events": events, **more}
        pictures = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "in/"}, {"Name": "suffix", "Value": ".jpg"}]}}
        put = lambda *queues: s3.put_bucket_notification_configuration(
            Bucket=bucket, NotificationConfiguration={"QueueConfigurations": list(queues)})
        put(queue("/hook", ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"], Id="all"),
            queue("/pictures", ["s3:ObjectCreated:Put"], Id="pictures", Filter=pictures))
        same(sorted((path, message["Event"]) for path, message in heard),
             [("/hook", "s3:TestEvent"), ("/pictures", "s3:TestEvent")], "test events")
        kept = s3.get_bucket_notification_configuration(Bucket=bucket)["QueueConfigurations"]
        same(sorted(entry["Id"] for entry in kept), ["all", "pictures"], "configurations")
        etag = s3.put_object(Bucket=bucket, Key="in/a b.jpg", Body=b"12345")["ETag"]
        s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "in/a b.jpg"})
        s3.delete_object(Bucket=bucket, Key="copy")
        s3.delete_object(Bucket=bucket, Key="copy")  # Nothing is there: nothing happened.
        expected = [("ObjectCreated:Put", "in/a+b.jpg"), ("ObjectCreated:Copy", "copy"), ("ObjectRemoved:Delete", "copy")]
        eventually("the webhook is told, though it failed first", lambda: told("/hook") == expected)
        eventually("the rule for pictures", lambda: told("/pictures")[:1] == expected[:1])
        record = next(message for path, message in heard if path == "/hook" and "Records" in message)["Records"][0]
        same((record["eventSource"], record["s3"]["bucket"]["name"], record["s3"]["object"]["size"],
              record["s3"]["object"]["eTag"], record["s3"]["configurationId"]),
             ("aws:s3", bucket, 5, etag.strip('"'), "all"), "record")
        put()
        same(s3.get_bucket_notification_configuration(Bucket=bucket).get("QueueConfigurations"), None, "configurations")
        s3.put_object(Bucket=bucket, Key="later", Body=b"")
        dead = queue("/hook", ["s3:ObjectCreated:*"])
        refused("InvalidArgument", 400, s3.put_bucket_notification_configuration, Bucket=bucket,
                NotificationConfiguration={"QueueConfigurations": [{**dead, "QueueArn": "arn:aws:sqs:us-east-1:1:queue"}]})
    refused("InvalidArgument", 400, s3.put_bucket_notification_configuration, Bucket=bucket,
            NotificationConfiguration={"QueueConfigurations": [dead]})
    true(("ObjectCreated:Put", "later") not in told("/hook"), "who is not asked for is told")


@check
def websites(world):
    s3, bucket = world.s3, world.new_bucket("site")
    if world.url.hostname not in ("127.0.0.1", "localhost"):
        raise Skip("the website's domain is known for clusters on this machine alone")
    import http.client
    site = f"{bucket}.s3-website.localhost:{world.url.port}"

    def visit(path, method="GET", host=site):
        connection = http.client.HTTPConnection(world.url.hostname, world.url.port, timeout=60)
        connection.request(method, path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    s3.put_bucket_website(Bucket=bucket, WebsiteConfiguration={
        "IndexDocument": {"Suffix": "index.html"}, "ErrorDocument": {"Key": "sorry.html"},
        "RoutingRules": [{"Condition": {"KeyPrefixEquals": "old/"}, "Redirect": {"ReplaceKeyPrefixWith": "new/"}}]})
    for key, body in [("index.html", b"<h1>home"), ("docs/index.html", b"<h1>docs"), ("sorry.html", b"<h1>sorry")]:
        s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType="text/html")
    s3.put_object(Bucket=bucket, Key="moved", Body=b"", WebsiteRedirectLocation="/docs/")
    same(visit("/")[0], 403, "status before anybody may read")
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject"], "Resource": f"arn:aws:s3:::{bucket}/*"},
        {"Effect": "Allow", "Principal": "*", "Action": ["s3:ListBucket"], "Resource": f"arn:aws:s3:::{bucket}"}]}))
    status, headers, body = visit("/")
    same((status, headers["content-type"], body), (200, "text/html", b"<h1>home"), "home")
    same(visit("/docs/")[2], b"<h1>docs", "index of a folder")
    same(visit("/docs/", "HEAD")[::2], (200, b""), "HEAD")
    status, headers, _ = visit("/docs")
    same((status, headers["location"]), (302, "/docs/"), "a folder without its slash")
    status, headers, body = visit("/nowhere")
    same((status, body), (404, b"<h1>sorry"), "error document")
    status, headers, _ = visit("/old/page")
    same((status, headers["location"]), (301, f"http://{site}/new/page"), "routing rule")
    same(visit("/moved")[1]["location"], f"http://{site}/docs/", "redirect of an object")
    same(visit("/", "POST")[0], 405, "POST")
    status, _, body = visit("/", host=site.replace(bucket, "no-such-bucket-anywhere"))
    true(status == 404 and b"<html>" in body and b"NoSuchBucket" in body, f"{status} {body}")
    s3.delete_bucket_website(Bucket=bucket)
    eventually("the site is gone", lambda: visit("/")[0] == 404)


@check
def access_logs_are_delivered(world):
    s3, bucket, logs = world.s3, world.new_bucket("logged"), world.new_bucket("logs")
    s3.put_bucket_logging(Bucket=bucket, BucketLoggingStatus={
        "LoggingEnabled": {"TargetBucket": logs, "TargetPrefix": "log/"}})
    same(s3.get_bucket_logging(Bucket=bucket)["LoggingEnabled"]["TargetPrefix"], "log/", "prefix")
    refused("InvalidTargetBucketForLogging", 400, s3.put_bucket_logging, Bucket=bucket, BucketLoggingStatus={
        "LoggingEnabled": {"TargetBucket": f"{logs}-none", "TargetPrefix": ""}})
    s3.put_object(Bucket=bucket, Key="a key", Body=b"123")
    s3.get_object(Bucket=bucket, Key="a key")["Body"].read()
    refused("NoSuchKey", 404, s3.get_object, Bucket=bucket, Key="none")

    def lines():
        found = s3.list_objects_v2(Bucket=logs, Prefix="log/").get("Contents", [])
        text = b"".join(s3.get_object(Bucket=logs, Key=entry["Key"])["Body"].read() for entry in found)
        return text.decode().splitlines()

    def fields(operation, key, status):
        return next((line for line in lines() if f" {operation} {key} " in line and f'" {status} ' in line), None)

    eventually("the PUT is logged", lambda: fields("REST.PUT.OBJECT", "a%20key", 200))
    got = eventually("the GET is logged", lambda: fields("REST.GET.OBJECT", "a%20key", 200))
    true(got.split(" ")[1] == bucket and ' 200 - 3 3 ' in got and "AuthHeader" in got, got)
    lost = eventually("the failed GET is logged", lambda: fields("REST.GET.OBJECT", "none", 404))
    true(" 404 NoSuchKey " in lost, lost)
    s3.put_bucket_logging(Bucket=bucket, BucketLoggingStatus={})


@check
def requesters_pay(world):
    s3, bucket = world.s3, world.new_bucket("payer")
    if not world.options.other_access_key:
        raise Skip("needs a key of another tenant")
    other = client_of(world, "s3", world.options.other_access_key, world.options.other_secret_key)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}]}))
    other.get_object(Bucket=bucket, Key="k")
    s3.put_bucket_request_payment(Bucket=bucket, RequestPaymentConfiguration={"Payer": "Requester"})
    same(s3.get_bucket_request_payment(Bucket=bucket)["Payer"], "Requester", "payer")
    refused("AccessDenied", 403, other.get_object, Bucket=bucket, Key="k")
    same(other.get_object(Bucket=bucket, Key="k", RequestPayer="requester")["RequestCharged"], "requester", "charged")
    same(s3.get_object(Bucket=bucket, Key="k").get("RequestCharged"), None, "the owner is not charged")
