"""Start a cluster to measure, and read what each part of it has used.

The gateways share one embedded PostgreSQL.

PostgreSQL comes from a wheel and is set as it comes, so that a commit waits for the disk, which is
the one of `--data-root`. Nodes are `aether dev` on that database, workers `aether serve --workers`;
limits on what one client may send are off. The CPU of all gateways and of all processes of the
database counts together, and is given apart as well.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bench.process import FamilyProbe, ProcessProbe, SeveralProbes
from bench.servers import ServerFailed, ServerOptions, Target, gateway, scratch

OPS_SECONDS: Final = 10.0
_SAMPLE: Final = re.compile(r"^(aether_\w+?)(?:_total)?(?:\{\})? (\S+)$", re.MULTILINE)

_WORKER: Final = ("auth.allow_anonymous=true", "limits.send_rate_per_s=0", "limits.connections_per_workspace=0")


@dataclass(frozen=True, slots=True)
class Shape:
    """A number of nodes with separate addresses, or of workers behind one address."""

    nodes: int = 0
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The gateways that run; `nodes` are their addresses, or the workers' one."""

    target: Target
    nodes: Sequence[str]
    gateways: ProcessProbe
    database: ProcessProbe
    ops: Sequence[str]
    dsn: str = ""
    samplers: Sequence[Path] = ()

    def reading(self) -> Reading:
        return Reading(self.gateways.cpu_ns(), self.database.cpu_ns(), _counters(self.ops))


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU in nanoseconds, and the sums of the gateways' counters by name."""

    gateways_ns: int
    database_ns: int
    counters: Mapping[str, float] = field(default_factory=dict)

    def until(self, later: Reading, messages: int, seconds: float) -> dict[str, float]:
        """The work between two readings, for each message and each second."""

        def grown(name: str) -> float:
            return later.counters.get(name, 0.0) - self.counters.get(name, 0.0)

        gateways, database = later.gateways_ns - self.gateways_ns, later.database_ns - self.database_ns
        groups, reads = grown("aether_log_groups"), grown("aether_log_remote_reads")
        return {
            "database_share": round(database / max(1, gateways + database), 3),
            "gateways_cpu_us": round(gateways / 1000 / max(1, messages), 2),
            "database_cpu_us": round(database / 1000 / max(1, messages), 2),
            "groups_per_s": round(groups / seconds, 1),
            "rows_per_group": round(grown("aether_log_settled") / groups, 2) if groups else 0.0,
            "notifies_per_s": round(
                (grown("aether_cluster_bus_statements") + grown("aether_cluster_log_statements")) / seconds, 1
            ),
            "wakes_per_s": round(grown("aether_cluster_log_wakes") / seconds, 1),
            "reads_per_s": round(reads / seconds, 1),
            "rows_per_read": round(grown("aether_log_remote_messages") / reads, 2) if reads else 0.0,
            "pushed_per_s": round(grown("aether_log_pushed_messages") / seconds, 1),
        }


@contextmanager
def serving_cluster(shape: Shape, options: ServerOptions, scenario: str) -> Iterator[Cluster]:
    """Run a cluster for one scenario; raises ServerFailed."""
    if options.target:
        raise ServerFailed("a cluster is always started here: --target is for one gateway")
    try:
        from aether_trio.storage.errors import StorageSetupError
        from aether_trio.storage.postgres.embedded import EmbeddedPostgres
    except ImportError as missing:
        raise ServerFailed(f"a cluster needs the packages of aether-trio[cluster]: {missing}") from missing
    with ExitStack() as stack:
        place = stack.enter_context(scratch(options.data_root))
        server = EmbeddedPostgres(place / "postgres")
        stack.callback(server.stop)
        try:
            server.start()
        except StorageSetupError as error:
            raise ServerFailed(str(error)) from error
        targets = [
            stack.enter_context(gateway(one, f"{scenario}-{number}", _directory(place, number)))
            for number, one in enumerate(_gateways(shape, options, server.dsn()), 1)
        ]
        readies = [ready for target in targets for ready in target.ready.get("nodes", [target.ready])]
        gateways = ProcessProbe([int(ready["pid"]) for ready in readies])
        database = FamilyProbe(server.pid)
        addresses = [target.address for target in targets]
        samplers = [target.sampler for target in targets if target.sampler]
        both = Target(addresses[0], SeveralProbes([gateways, database]))
        yield Cluster(
            both, addresses, gateways, database, [str(ready["ops"]) for ready in readies], server.dsn(), samplers
        )


def _gateways(shape: Shape, options: ServerOptions, dsn: str) -> list[ServerOptions]:
    if shape.workers:
        sets = [part for setting in _WORKER for part in ("--set", setting)]
        words = ["--workers", str(shape.workers), "--host", "127.0.0.1", "--ops-port", "0", "--database", dsn]
        return [replace(options, command=("serve", *words, *sets))]
    return [
        replace(
            options, command=("dev", "--set", f"storage.database={dsn}", "--set", f"gateway.node_name=node-{number}")
        )
        for number in range(1, shape.nodes + 1)
    ]


def _directory(place: Path, number: int) -> Path:
    made = place / f"gateway-{number}"
    made.mkdir()
    return made


def _counters(ops: Sequence[str]) -> Mapping[str, float]:
    """The sums of these gateways' metrics without labels, without "_total"."""
    sums: dict[str, float] = {}
    for address in ops:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=OPS_SECONDS) as answer:
            text = answer.read().decode()
        for name, value in _SAMPLE.findall(text):
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def describe(shape: Shape) -> dict[str, Any]:
    """The sizes of a cluster, by which results can be compared."""
    return {"workers": shape.workers} if shape.workers else {"nodes": shape.nodes}
