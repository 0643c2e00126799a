"""Runs a command on every object below a prefix, a task each, and shows how far it is.

    python gateway/examples/python/each_object.py profile.json s3://images/busybox.tar s3://photos/raw/ s3://photos/small/ \\
        -- /bin/busybox sh -c '/bin/busybox wc -c $MAKAI_OBJECT > /out/$(/bin/busybox basename $MAKAI_OBJECT).size'

A task finds its object where the variable MAKAI_OBJECT says; what it leaves in /out appears below the second prefix. The client's code is
generated as submit_job.py says. Ends with 0 only if every task succeeded.
"""

import json
import sys
import uuid

try:
    import grpc
    from makai.jobs.v1 import jobs_pb2, jobs_pb2_grpc
except ImportError as missing:
    sys.exit(f"{missing}\n\nInstall grpcio and generate the client's code first: see submit_job.py")

from makai_token import authorization


def path(url: str) -> "jobs_pb2.ObjectPath":
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return jobs_pb2.ObjectPath(bucket=bucket, key=key)


def main() -> int:
    if len(sys.argv) < 7 or sys.argv[5] != "--":
        sys.exit(f"usage: each_object.py PROFILE IMAGE PREFIX OUTPUT -- COMMAND...\n\n{__doc__}")
    profile_path, image, prefix, output, _, *command = sys.argv[1:]
    with open(profile_path) as file:
        profile = json.load(file)
    s3 = profile["s3"]

    def metadata():
        return [("authorization", authorization(s3["access_key_id"], s3["secret_access_key"]))]

    endpoint = profile["grpc"]["endpoint"]
    if endpoint.startswith("https://"):
        opened = grpc.secure_channel(endpoint.removeprefix("https://"), grpc.ssl_channel_credentials())
    else:
        # Plain text is for a gateway on this machine.
        opened = grpc.insecure_channel(endpoint.removeprefix("http://"))
    with opened as channel:
        jobs = jobs_pb2_grpc.JobsStub(channel)
        spec = jobs_pb2.JobSpec(
            name="each object, from python",
            container=jobs_pb2.Container(image=path(image), command=command),
            each=jobs_pb2.Each(**{"from": path(prefix), "per_task": 1}),
            outputs=[jobs_pb2.Output(to=path(output))],
            attempts_max=2,
        )
        # What it comes to is known before anything runs.
        room = jobs.Submit(jobs_pb2.SubmitRequest(spec=spec, dry_run=True), metadata=metadata())
        print(f"{room.objects} objects, {room.objects_per_task} a task: {room.tasks} tasks")
        request = jobs_pb2.SubmitRequest(spec=spec, client_token=str(uuid.uuid4()))
        job_id = jobs.Submit(request, metadata=metadata()).job_id
        for job in jobs.Watch(jobs_pb2.WatchRequest(job_id=job_id), metadata=metadata()):
            print(f"{job.counts.succeeded} of {job.spec.tasks}, {job.counts.failed} failed", flush=True)
    print(f"job {job_id}: {jobs_pb2.Phase.Name(job.phase)} {job.reason}", file=sys.stderr)
    return 0 if job.phase == jobs_pb2.PHASE_SUCCEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
