#!/usr/bin/env python3
"""Opens keep-alive connections to an S3 door, has each answered once, and prints what the door's process then holds.

    python3 integration/conformance/idle.py 127.0.0.1:9000 PID 10000

PID: the daemon's, on this machine. Its `s3.connections_max` and both processes' limits of open files (`ulimit -n`) must let so
many be open. Needs nothing but Python.
"""

import asyncio
import resource
import sys

AT_ONCE = 200
# A source address has some 28,000 ports for one destination.
PER_ADDRESS = 5000


def resident_mb(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1000


async def open_one(host, port, source):
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0), limit=4096)
    writer.write(f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:"))
    await reader.readexactly(length)
    return writer


async def main(address, pid, count):
    host, port = address.rsplit(":", 1)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    before = resident_mb(pid)
    print(f"before: {before:.0f} MB")
    connections = []
    while len(connections) < count:
        sources = [f"127.0.0.{2 + at // PER_ADDRESS}" for at in range(len(connections), min(len(connections) + AT_ONCE, count))]
        connections += await asyncio.gather(*(open_one(host, port, source) for source in sources))
    for pause in (0, 3, 7):
        await asyncio.sleep(pause)
        more = resident_mb(pid) - before
        print(f"{len(connections)} open, {pause} s later: {more:.0f} MB more, {1000 * more / len(connections):.1f} kB each")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
