"""Work for an hour at half load, and watch whether anything grows or pauses.

Messages at half of what `routed-1` reaches, with some operations on keys and some tasks, on
schedules. Each second is a sample of memory, files and the longest latency. Old messages and tasks
go after a sixth of the time, so that retention works while it is watched. A raw echo in another
process is on the same loop: when the machine or the load pauses, its rounds are late as well. When
other programs have the CPUs, the kernel knows how long the gateway was ready to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

from bench.echo import EchoProcess
from bench.latency import Latencies
from bench.scenarios.base import Scenario
from bench.scenarios.kv import PacedPutGet
from bench.scenarios.paced import Paced
from bench.scenarios.tasks import Idle
from bench.schedule import Schedule
from bench.soak import Sample, Watch, file_sizes
from bench.world import Options, World

OPERATIONS_PER_S: Final = 200.0
TASKS_PER_S: Final = 20.0
ECHOES_PER_S: Final = 100.0
SAMPLE_SECONDS: Final = 1.0
SAMPLES: Final = 60
"""At least; a shorter run has shorter samples."""
RETENTION_SHARE: Final = 1 / 6


class _Operations(PacedPutGet):
    rate = OPERATIONS_PER_S


class _Tasks(Idle):
    def pace(self) -> float:
        return TASKS_PER_S


class Soak(Scenario):
    name = "soak"
    doc = (
        "half of routed-1's rate, with KV and tasks, for --minutes: memory, files, pauses; CPU of all for each message"
    )
    gated = ()
    endures = True
    one_transport = True

    @classmethod
    def gateway_args(cls, options: Options) -> Sequence[str]:
        kept = max(1.0, options.minutes * 60 * RETENTION_SHARE)
        settings = {
            "log.retention_age_s": kept,
            "log.retention_sweep_s": max(0.5, kept / 20),
            "tasks.completed_retention_s": kept,
        }
        return [part for name, value in settings.items() for part in ("--set", f"{name}={value:.1f}")]

    def __init__(self, world: World, options: Options) -> None:
        super().__init__(world, options)
        self.operations, self.tasks = _Operations(world, options), _Tasks(world, options)
        self.messages = Paced(world, options)
        self.latencies = self.messages.latencies
        self._echo = EchoProcess(1, loop=world.loop)
        self._echo_latencies = Latencies()
        self._echo_schedule = Schedule(ECHOES_PER_S)
        self.watch = Watch()
        self._waited = 0
        self.every = min(SAMPLE_SECONDS, options.minutes * 60 / SAMPLES)

    def prepare(self) -> None:
        self._echo.__enter__()
        for part in (self.operations, self.tasks, self.messages):  # the last one measures its rate
            part.prepare()
        self.extra["paced_rate"] = self.messages.extra["paced_rate"]
        self._start = self._next = perf_counter()

    def window(self, seconds: float) -> int:
        """Work without coming to rest; count the messages alone."""
        before = self.messages.received
        start = perf_counter()
        until = start + seconds
        echo = self._echo.sender(self._echo_latencies.pending.append)
        pulses = [
            *(
                part.schedule.pulse(start, until, part.send_next)
                for part in (self.messages, self.operations, self.tasks)
            ),
            self._echo_schedule.pulse(start, until, echo),
            self._observe,
        ]
        self.world.loop.run(until, pulse=lambda now: min(pulse(now) for pulse in pulses))
        return self.messages.received - before

    def begin(self) -> None:
        """Begin to watch, after the warm-up."""
        self.watch = Watch()
        self._fold()
        self._waited = self.world.probe.waited_ns() if self.world.probe else 0
        self._start = perf_counter()
        self._next = self._start + self.every

    def _fold(self) -> tuple[int, int]:
        parts = (self.messages, self.operations, self.tasks)
        return max(part.latencies.fold() for part in parts), self._echo_latencies.fold()

    def _observe(self, now: float) -> float:
        """Take a sample when it is time; say when the next one is due."""
        if now < self._next:
            return self._next
        longest, echo = self._fold()
        probe, data_dir = self.world.probe, self.world.data_dir
        wal, files = file_sizes(data_dir) if data_dir else (0, 0)
        rss, fds = (probe.rss_kib(), probe.fds()) if probe else (0, 0)
        at, ready = now - self._start, probe.waited_ns() if probe else 0
        waited, self._waited = ready - self._waited, ready
        self.watch.add(Sample(at, self.messages.received, rss, wal, files, fds, longest, echo, waited))
        self._next = max(self._next + self.every, now)
        return self._next

    def reset(self) -> None:
        """Come to rest."""
        self.drain(lambda: self.messages.outstanding + self.operations.outstanding + self.tasks.outstanding())

    def finish(self) -> None:
        """Judge all parts, and say what the watch has found."""
        for part in (self.messages, self.operations, self.tasks):
            part.latencies.fold()
            part.finish()
            self.verdict.failures += part.verdict.failures
        self.verdict.counts = self.messages.verdict.counts | {
            "operations": self.operations.answered,
            "tasks": self.tasks.completed,
        }
        self._echo.__exit__()
        others = {"operations": self.operations.latencies, "tasks": self.tasks.latencies, "echo": self._echo_latencies}
        self.extra["soak"] = self.watch.summary() | {
            f"{name}_us": latencies.summary().get("all", {}) for name, latencies in others.items()
        }

    def parameters(self) -> dict[str, Any]:
        return self.messages.parameters() | {
            "minutes": self.options.minutes,
            "operations_per_s": OPERATIONS_PER_S,
            "tasks_per_s": TASKS_PER_S,
        }
