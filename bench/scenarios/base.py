"""The base of scenarios: preparation, windows of work that end at rest, a verdict.

Life: `prepare` once, `window` and `reset` for the warm-up and then many times, `finish` once.
Between windows nothing is in flight, so that the CPU counted is the CPU of what was counted, and
the echo has the machine for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, ClassVar

from bench.clusters import Shape
from bench.goals import Goal
from bench.latency import Latencies
from bench.numbered import Ledger
from bench.world import Options, ScenarioFailed, World

DRAIN_SECONDS = 30.0


@dataclass(slots=True)
class Verdict:
    """Whether all messages arrived; `failures` are sentences, none is a pass."""

    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Scenario:
    """Base of all scenarios; `name`, `doc` and `unit` go into tables and files."""

    name: ClassVar[str]
    doc: ClassVar[str]
    unit: ClassVar[str] = "message"
    gated: ClassVar[tuple[str, ...]] = ("echoes",)
    """Which of "echoes" and "kib" a comparison judges."""

    own_server: ClassVar[bool] = False
    """The scenario brings what it measures and needs no gateway."""

    one_transport: ClassVar[bool] = False
    """What it costs is behind the transports."""

    cluster: ClassVar[Shape | None] = None
    """The gateways that it needs, when one is not enough."""

    grows: ClassVar[str] = ""
    """What it is measured with more and more of: a name of `Options.growth`; "" for nothing."""

    beside: ClassVar[str] = ""
    """The scenarios whose windows take turns with its own have the same; "" for none."""

    against: ClassVar[str] = ""
    """Of these, the one with which its cost is compared; "" for none."""

    most_times: ClassVar[float] = 0.0
    """The goal of such a comparison: its cost is so many times the other's at most; 0: none."""

    most_more: ClassVar[float] = 0.0
    """Or so many echoes more than the other's at most; 0: none."""

    most_more_us: ClassVar[float] = 0.0
    """Or so many microseconds of CPU more than the other's at most; 0: none."""

    separate: ClassVar[bool] = False
    """It shares no gateway with those beside it."""

    many_rules: ClassVar[bool] = False
    """The gateway has `Options.rules` access rules when it starts."""

    endures: ClassVar[bool] = False
    """Its windows follow each other without rests, for `Options.minutes`."""

    @classmethod
    def gateway_args(cls, options: Options) -> Sequence[str]:
        """What the gateway is told besides."""
        return ()

    def __init__(self, world: World, options: Options) -> None:
        self.world, self.options = world, options
        self.latencies = Latencies()
        self.extra: dict[str, Any] = {}
        self.verdict = Verdict()
        self.goals: list[Goal] = []
        """What was reached of what it is to reach, besides `echoes`."""
        self.running = False

    def prepare(self) -> None:
        """Connect the scenario's participants."""

    def window(self, seconds: float) -> int:
        """Work for a window, come to rest, and return the units done."""
        raise NotImplementedError

    def begin(self) -> None:
        """Begin to watch what happens in windows without rests (`endures`)."""

    def reset(self) -> None:
        """Undo what a window left behind; this CPU is not counted."""

    def finish(self) -> None:
        """Check at the end what must hold, into `verdict`."""

    def compare(self, other: Scenario) -> None:
        """Add goals besides the cost that compare it with `against`, which is finished."""

    def parameters(self) -> dict[str, Any]:
        """The scenario's sizes, by which results can be compared."""
        return {}

    def work(self, seconds: float, outstanding: Callable[[], int]) -> None:
        """Run the loop for a window with `running` set, then drain."""
        self.running = True
        self.world.loop.run(perf_counter() + seconds)
        self.running = False
        self.drain(outstanding)

    def drain(self, outstanding: Callable[[], int]) -> None:
        """Run the loop until nothing is outstanding; raises ScenarioFailed."""
        if not self.world.loop.run(perf_counter() + DRAIN_SECONDS, lambda: not outstanding()):
            raise ScenarioFailed(
                f"{outstanding()} still missing {DRAIN_SECONDS:.0f} s after the window{self.world.refusals()}"
            )

    def judge(self, sent: int, received: int, refused: int, lost: int, ledgers: Sequence[Ledger]) -> None:
        """Judge numbered messages: each must arrive once and in order."""
        counts = {
            "sent": sent,
            "received": received,
            "refused": refused,
            "lost": lost,
            "repeated": sum(ledger.repeated for ledger in ledgers),
            "out_of_order": sum(ledger.out_of_order for ledger in ledgers),
        }
        self.verdict.counts = counts
        bad = ("refused", "lost", "repeated", "out_of_order")
        self.verdict.failures = [f"{counts[what]} {what.replace('_', ' ')}" for what in bad if counts[what]]


def variant(base: type[Scenario], name: str, doc: str, **attributes: Any) -> type[Scenario]:
    """A scenario that differs from `base` in these attributes alone."""
    return type(name, (base,), {"name": name, "doc": doc, **attributes})
