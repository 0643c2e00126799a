"""Submits a job over gRPC and prints what it printed.

    pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -I gateway/proto --python_out=gateway/examples/python \\
        --grpc_python_out=gateway/examples/python gateway/proto/makai/jobs/v1/jobs.proto
    python gateway/examples/python/submit_job.py profile.json s3://images/busybox.tar -- /bin/busybox echo hello

The second line writes the client's code from the service's definition into this file's folder, where it is found wherever the script
is run from. Ends with 0 only if the job succeeded.
"""

import json
import sys
import uuid

try:
    import grpc
    from makai.jobs.v1 import jobs_pb2, jobs_pb2_grpc
except ImportError as missing:
    sys.exit(f"{missing}\n\nInstall grpcio and generate the client's code first:\n{__doc__}")

from makai_token import authorization


def main() -> int:
    if len(sys.argv) < 5 or sys.argv[3] != "--":
        sys.exit(f"usage: submit_job.py PROFILE s3://BUCKET/KEY -- COMMAND...\n\n{__doc__}")
    profile_path, image, _, *command = sys.argv[1:]
    with open(profile_path) as file:
        profile = json.load(file)
    s3 = profile["s3"]

    def metadata():
        return [("authorization", authorization(s3["access_key_id"], s3["secret_access_key"]))]

    bucket, key = image.removeprefix("s3://").split("/", 1)

    endpoint = profile["grpc"]["endpoint"]
    if endpoint.startswith("https://"):
        opened = grpc.secure_channel(endpoint.removeprefix("https://"), grpc.ssl_channel_credentials())
    else:
        # Plain text is for a gateway on this machine.
        opened = grpc.insecure_channel(endpoint.removeprefix("http://"))
    with opened as channel:
        jobs = jobs_pb2_grpc.JobsStub(channel)
        spec = jobs_pb2.JobSpec(
            name="from python",
            container=jobs_pb2.Container(image=jobs_pb2.ObjectPath(bucket=bucket, key=key), command=command),
        )
        # A token makes it safe to submit again after a lost answer.
        request = jobs_pb2.SubmitRequest(spec=spec, client_token=str(uuid.uuid4()))
        job_id = jobs.Submit(request, metadata=metadata()).job_id
        for part in jobs.Logs(jobs_pb2.LogsRequest(job_id=job_id, follow=True), metadata=metadata()):
            stream = sys.stdout if part.stream == jobs_pb2.LogsResponse.STREAM_STDOUT else sys.stderr
            stream.buffer.write(part.data)
            stream.flush()
        job = jobs.Wait(jobs_pb2.WaitRequest(job_id=job_id), metadata=metadata())
    print(f"job {job_id}: {jobs_pb2.Phase.Name(job.phase)} {job.reason}", file=sys.stderr)
    return 0 if job.phase == jobs_pb2.PHASE_SUCCEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
