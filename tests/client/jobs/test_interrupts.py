"""Test that a task ends wherever Ctrl-C interrupts its script."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from aether_trio.client import SyncClient, connect_sync
from aether_trio.client.operations import TaskStatus
from tests.client.gateways import QUICK, in_a_thread
from tests.client.interrupts import Interrupt

LIMIT_S = 300
FILES = ("client/blocking/bridge.py", "client/blocking/job.py", __file__)


def take_one(one: SyncClient[Any], timeout: float) -> None:
    for job in one.work(timeout=timeout):
        with job:
            break


@in_a_thread
def test_a_task_ends_wherever_its_script_is_interrupted(address: str) -> None:
    def client(implementation: str) -> Any:
        return connect_sync(address, workspace="w", implementation=implementation, specifier="1", retry=QUICK)

    with client("boss") as boss, client("bench") as one:
        number, came = 0, True
        while came:
            number += 1
            task_id = boss.tasks.create("job", pool="bench").task_id
            interrupt = Interrupt(number, FILES)
            with suppress(KeyboardInterrupt), interrupt.armed():
                take_one(one, LIMIT_S)
            came = interrupt.came
            while boss.tasks.get(task_id).status not in (TaskStatus.COMPLETED, TaskStatus.FAILED):
                take_one(one, 0.02)  # what was not handed out yet is the next loop's
        assert number > 50
