"""Prometheus metrics of a gateway, collected at each scrape.

The hot path adds to a plain dictionary (Tally, Distribution) or to nothing at all: components have
`.statistics()` records, which `watch` reads at scrape time. What a metric is called and says is in
families.py alone.

A scrape takes all values at one moment, which costs a few milliseconds at most, and writes them in
pieces, between which clients are served. Figures that need a database or the disk come from
samples (sampling.py), for which a scrape waits WAIT_S at most.

Invariants: the number of series is bounded. Workspaces are the one label of a client's choosing
(with the 20 topics of consumer lag), so they are left out unless the settings want them, and then
each family keeps at most MAX_SERIES label sets and counts the rest under "_other". A part that
fails leaves out its families and no other. The process-wide default registry is never touched.
"""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import structlog
import trio
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

from aether_trio.model.text import escaped
from aether_trio.telemetry.families import FAMILIES, RECORDS, WORKSPACE, Family, Labels
from aether_trio.telemetry.sampling import Sample
from aether_trio.version import __version__

MAX_SERIES: Final = 1000
OTHER: Final = "_other"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
WAIT_S: Final = 1.0
"""How long a scrape waits for new figures of the samples."""
PIECE_LINES: Final = 200
"""Lines that are written between two checkpoints: half a millisecond."""
MAX_LABEL: Final = 256
_SPECIAL: Final = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}

logger = structlog.get_logger("aether.metrics")

Values = Mapping[Labels, float]
Source = Callable[[], Iterable[tuple[str, Values]]]
"""Reads values of a part: pairs of a family's name and its values by labels."""


class Tally:
    """A Prometheus counter family; `add` costs one dictionary update."""

    def __init__(self, family: Family, skip: int | None = None) -> None:
        """`skip` is the place of the label that is left out."""
        self.family, self._skip = family, skip
        self._values: dict[Labels, float] = {} if family.labels else {(): 0}

    def add(self, labels: Labels = (), amount: float = 1) -> None:
        values, skip = self._values, self._skip
        if skip is not None:
            labels = labels[:skip] + labels[skip + 1 :]
        try:
            values[labels] += amount
        except KeyError:
            labels = _admitted(self.family, labels, values, skip)
            values[labels] = values.get(labels, 0) + amount

    def value(self, labels: Labels = ()) -> float:
        """Return the count of these labels, without the one that is left out."""
        return self._values.get(labels, 0)

    def copy(self) -> dict[Labels, float]:
        """Return the count of each label set."""
        return dict(self._values)


class Distribution:
    """A Prometheus histogram family with fixed bounds."""

    def __init__(self, family: Family, skip: int | None = None) -> None:
        """`skip` is the place of the label that is left out."""
        self.family, self._skip = family, skip
        self._counts: dict[Labels, list[int]] = {} if family.labels else {(): [0] * (len(family.bounds) + 1)}
        self._sums: dict[Labels, float] = {} if family.labels else {(): 0.0}

    def observe(self, value: float, labels: Labels = (), times: int = 1) -> None:
        """Count `value` in the histogram, `times` times at once."""
        skip = self._skip
        if skip is not None:
            labels = labels[:skip] + labels[skip + 1 :]
        counts = self._counts.get(labels)
        if counts is None:
            labels = _admitted(self.family, labels, self._counts, skip)
            counts = self._counts.setdefault(labels, [0] * (len(self.family.bounds) + 1))
        counts[bisect_left(self.family.bounds, value)] += times
        self._sums[labels] = self._sums.get(labels, 0.0) + value * times

    def copy(self) -> list[tuple[Labels, list[int], float]]:
        """Return (labels, counts of the buckets, sum) of each label set."""
        return [(labels, list(counts), self._sums[labels]) for labels, counts in self._counts.items()]


class Metrics:
    """Every Prometheus metric of one gateway."""

    def __init__(self, *, workspace_label: bool = False, families: Mapping[str, Family] = FAMILIES) -> None:
        """`workspace_label`: whether series are by workspace too."""
        self._families = families
        self.workspace_label = workspace_label
        self._sources: list[Source] = []
        self._tallies: list[Tally] = []
        self._distributions: list[Distribution] = []
        self._samples: list[Sample] = []
        self._scrapes = 0
        self._scrape_s = 0.0
        self._process_limit = trio.CapacityLimiter(1)
        self._process = CollectorRegistry(auto_describe=False)
        if families is FAMILIES:
            self._add_own()

    def _add_own(self) -> None:
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        GCCollector(registry=self._process)
        self.connection_attempts = self.tally("aether_connection_attempts_total")
        self.connection_duration = self.distribution("aether_connection_duration_seconds")
        self.kv_operations = self.tally("aether_kv_operations_total")
        self.kv_operation_latency = self.distribution("aether_kv_operation_latency_seconds")
        self.message_routing_latency = self.distribution("aether_message_routing_latency_seconds")
        self.checkpoint_operations = self.tally("aether_checkpoint_operations_total")
        self.read("aether_build_info", lambda: {(__version__,): 1})
        self.read("aether_scrapes_total", lambda: {(): self._scrapes})
        self.read("aether_scrape_duration_seconds", lambda: {(): self._scrape_s})
        samples = self._samples
        self.read("aether_sample_age_seconds", lambda: {(one.name,): one.age_s for one in samples if one.ever})
        self.read("aether_sample_duration_seconds", lambda: {(one.name,): one.took_s for one in samples if one.ever})
        self.read("aether_sample_failures_total", lambda: {(one.name,): one.failures for one in samples})

    # -- what is registered

    def tally(self, name: str) -> Tally:
        """Register a counter that its user adds to."""
        family = self._family(name, "counter")
        tally = Tally(family, self._skip(family))
        self._tallies.append(tally)
        return tally

    def distribution(self, name: str) -> Distribution:
        """Register a histogram that its user adds to, in the unit that its name says."""
        family = self._family(name, "histogram")
        distribution = Distribution(family, self._skip(family))
        self._distributions.append(distribution)
        return distribution

    def read(self, name: str, read: Callable[[], Mapping[Any, float]]) -> None:
        """Register a counter or gauge whose `{labels: value}` are read at each scrape."""
        family = self._family(name, "counter", "gauge")
        self._sources.append(lambda: [(family.name, read())])

    def watch(self, record: str, statistics: Callable[[], Any], **labels: str) -> None:
        """Register the numbers of a `statistics()` record, a row of families.RECORDS."""
        families = {field: self._family(name, "counter", "gauge") for field, name in RECORDS[record].fields.items()}
        of = {field: (family.name, tuple(labels[name] for name in family.labels)) for field, family in families.items()}

        def read() -> Iterable[tuple[str, Values]]:
            now = statistics()
            # Only some engines count some of a record's fields.
            return [(name, {key: getattr(now, field)}) for field, (name, key) in of.items() if hasattr(now, field)]

        self._sources.append(read)

    def sample(self, sample: Sample) -> None:
        """Have a scrape ask for new figures of a sample, and show them while they are new."""
        for name in sample.families:
            self._family(name, "counter", "gauge")
        self._samples.append(sample)
        self._sources.append(lambda: tuple(sample.figures.items()))

    def _family(self, name: str, *kinds: str) -> Family:
        family = self._families.get(name)
        if family is None or family.kind not in kinds:
            raise ValueError(f"there is no {' or '.join(kinds)} {name} in the table of families.py")
        return family

    def _skip(self, family: Family) -> int | None:
        return None if self.workspace_label or WORKSPACE not in family.labels else family.labels.index(WORKSPACE)

    # -- what is shown

    def render(self) -> tuple[str, bytes]:
        """Return the content type and body of a scrape at once, with the latest samples."""
        return CONTENT_TYPE, "".join(self._lines()).encode("utf-8", "backslashreplace") + generate_latest(self._process)

    async def scrape(self) -> tuple[str, bytes]:
        """Return the content type and body of a scrape, while others are served."""
        began = time.perf_counter()
        self._scrapes += 1
        try:
            with trio.move_on_after(WAIT_S):
                async with trio.open_nursery() as nursery:
                    for sample in self._samples:
                        nursery.start_soon(sample.fresh)
            parts: list[str] = []
            for number, line in enumerate(self._lines()):
                parts.append(line)
                if not number % PIECE_LINES:
                    await trio.lowlevel.checkpoint()
            body = "".join(parts).encode("utf-8", "backslashreplace")
            return CONTENT_TYPE, body + await self._process_lines()
        finally:
            self._scrape_s = time.perf_counter() - began

    async def _process_lines(self) -> bytes:
        if self._families is not FAMILIES:
            return b""
        with trio.move_on_after(WAIT_S):
            # It counts the open files, which takes long with thousands of connections.
            return await trio.to_thread.run_sync(
                generate_latest, self._process, abandon_on_cancel=True, limiter=self._process_limit
            )
        return b""

    def _lines(self) -> Iterator[str]:
        """Read all values at once; return the lines of a scrape as they are written."""
        values = {tally.family.name: tally.copy() for tally in self._tallies}
        for source in self._sources:
            try:
                for name, read in source():
                    family = self._families[name]
                    _add(family, values.setdefault(name, {}), read, self._skip(family))
            except Exception:
                logger.exception("some metrics could not be read")
        histograms = {one.family.name: one.copy() for one in self._distributions}
        return self._written(values, histograms)

    def _written(
        self, values: Mapping[str, Values], histograms: Mapping[str, list[tuple[Labels, list[int], float]]]
    ) -> Iterator[str]:
        for family in self._families.values():
            now, distributed = values.get(family.name), histograms.get(family.name)
            if not now and not distributed:
                continue
            yield f"# HELP {family.name} {_help(family)}\n# TYPE {family.name} {family.kind}\n"
            names = family.labels if self._skip(family) is None else tuple(x for x in family.labels if x != WORKSPACE)
            for labels, value in (now or {}).items():
                yield f"{family.name}{_labels(names, labels)} {_number(value)}\n"
            for labels, counts, total in distributed or ():
                yield from _buckets(family, names, labels, counts, total)


def _admitted(family: Family, labels: Labels, known: Mapping[Labels, Any], skip: int | None) -> Labels:
    """Return the labels under which a new series is counted. Raises ValueError."""
    names = family.labels if skip is None else family.labels[:skip] + family.labels[skip + 1 :]
    if len(labels) != len(names):
        raise ValueError(f"the metric {family.name} has labels {names}, not {labels}")
    return labels if len(known) < MAX_SERIES else (OTHER,) * len(names)


def _add(family: Family, to: dict[Labels, float], values: Values, skip: int | None) -> None:
    """Add up values by labels without the label at `skip`; MAX_SERIES at most."""
    for labels, value in values.items():
        key = labels if skip is None else labels[:skip] + labels[skip + 1 :]
        if key not in to:
            key = _admitted(family, key, to, skip)
        to[key] = to.get(key, 0) + value


def _number(value: float) -> str:
    return _SPECIAL.get(repr(float(value)), repr(float(value)))


def _help(family: Family) -> str:
    return family.text.replace("\\", r"\\").replace("\n", r"\n")


def _labels(names: Labels, values: Labels, *more: tuple[str, str]) -> str:
    pairs = [f'{name}="{_quoted(value)}"' for name, value in (*zip(names, values, strict=True), *more)]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _quoted(value: str) -> str:
    """Return a label's value as it is written; no other value is written the same."""
    if len(value) > MAX_LABEL:
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        value = f"{value[:MAX_LABEL]}...{digest[:16]}"
    value = value.replace("\\", r"\\")
    if not value.isprintable():
        value = escaped(value, len(value))
    return value.replace("\\", r"\\").replace('"', r"\"")


def _buckets(family: Family, names: Labels, labels: Labels, counts: list[int], total: float) -> Iterator[str]:
    sum_up = 0
    quoted = partial(_labels, names, labels)
    for bound, count in zip((*map(str, family.bounds), "+Inf"), counts, strict=True):
        sum_up += count
        yield f"{family.name}_bucket{quoted(('le', bound))} {sum_up}.0\n"
    yield f"{family.name}_count{quoted()} {sum_up}.0\n{family.name}_sum{quoted()} {_number(total)}\n"
