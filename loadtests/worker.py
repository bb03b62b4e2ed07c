"""Run locust with a part of the users, controlled over a socket.

`python -m loadtests.worker FD`: the first line on the socket is the plan, the following ones are
commands: start, talk, cut, quiet, leave, report, end. `ready`, `report` and `end` have an answer.
When the coordinator is gone, so is the worker.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402  # gevent comes first
import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent import socket  # noqa: E402
from locust.env import Environment  # noqa: E402

from loadtests.addresses import raise_descriptor_limit  # noqa: E402
from loadtests.crew import Crew  # noqa: E402
from loadtests.plan import Plan  # noqa: E402
from loadtests.users import USERS, Pace  # noqa: E402

GC_THRESHOLDS = (100_000, 50, 1_000)
"""A full collection with 15,000 users takes as long as a second, in which no user reads."""


class Worker:
    """Reads commands, sends reports."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lines = channel.makefile("r")
        self._plan = Plan.from_json(self._lines.readline())
        self.crew = Crew(self._plan)
        user = USERS[self._plan.transport]
        user.crew = self.crew
        user.abstract = False
        self._environment = Environment(user_classes=[user], shape_class=Pace(self.crew), stop_timeout=5)
        self._runner = self._environment.create_local_runner()

    def run(self) -> None:
        """Until `end`, or until the coordinator is gone."""
        self._say("ready")
        for line in self._lines:
            command = line.strip()
            if command == "start":
                self._runner.start_shape()
                gevent.spawn(self.crew.talk)
            elif command == "report":
                self._say("report")
            elif command == "talk":
                self.crew.talking.set()
            elif command == "cut":
                self.crew.cut()
            elif command == "quiet":
                self.crew.quiet()
            elif command == "leave":
                self.crew.leave()
            elif command == "end":
                self._say("end", verdict=self.crew.verdict())
                return

    def _say(self, kind: str, **more: Any) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = usage.ru_utime + usage.ru_stime
        line = {"kind": kind, "cpu_s": cpu_s, **self.crew.recorder.report(), **more}
        try:
            self._channel.sendall(json.dumps(line).encode() + b"\n")
        except OSError:
            os._exit(3)  # the coordinator is gone


def main() -> None:
    """See the module docstring."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # It finds more than 100 users a second dangerous.
    logging.getLogger("locust.runners").setLevel(logging.ERROR)
    raise_descriptor_limit()
    gc.set_threshold(*GC_THRESHOLDS)
    channel = socket.socket(fileno=int(sys.argv[1]))
    Worker(channel).run()
    channel.close()
    # Thousands of greenlets and grpcio's threads would be unwound one by one for nothing.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
