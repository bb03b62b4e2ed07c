"""A node in a separate process, which tests kill and stop.

    python -m tests.cluster.child DSN SCHEMA

Its standard input has a command a line, its standard output an answer or an event a line, in JSON:

    {"id": 1, "do": "claim", "identity": ..., "session": ..., "resume": ...}
        -> {"id": 1, "epoch": 3} or {"id": 1, "error": "..."}
    {"id": 2, "do": "write", "identity": ..., "epoch": 3}
        -> {"id": 2} or {"id": 2, "error": "FencedError: ..."}
    {"told": "lost" | "back" | "gone", "lost": [identity, ...]} is a call of its host.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import structlog
import trio

from aether_trio.cluster.cluster import open_cluster
from aether_trio.cluster.node.lease import NodeInfo
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.model.ownership import LockRequest
from aether_trio.storage.postgres.database import open_postgres
from tests.cluster.nodes import FEW, Host, Node


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class SpeakingHost(Host):
    def _tell(self, what: str) -> None:
        say(told=what, lost=sorted(hold.identity for hold in self.lost))


async def obey(node: Node, command: dict[str, Any]) -> None:
    number = command["id"]
    try:
        if command["do"] == "claim":
            request = LockRequest(
                command["identity"], command["session"], "agent", 1_000, "lab", "x", command.get("resume", "")
            )
            say(id=number, epoch=(await node.cluster.locks.claim(request)).lock.epoch)
        else:
            await node.write_as_holder(command["identity"], command["epoch"])
            say(id=number)
    except Exception as exc:
        say(id=number, error=f"{type(exc).__name__}: {exc}")


async def main(dsn: str, schema: str, limits: ClusterLimits) -> None:
    host = SpeakingHost()
    async with open_postgres(dsn, schema=schema, limits=FEW) as server:
        database = await server.database("scratch")
        async with open_cluster(server, host, NodeInfo("child"), limits=limits) as cluster:
            host.cluster = cluster
            node = Node(host, server, cluster, database)
            say(ready=cluster.node_id)
            commands = trio.lowlevel.FdStream(sys.stdin.fileno())
            rest = b""
            async with trio.open_nursery() as nursery:
                async for data in commands:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        nursery.start_soon(obey, node, json.loads(line))
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    dsn, schema, options = sys.argv[1:]
    trio.run(main, dsn, schema, ClusterLimits(**json.loads(options)))
