"""Contains a defect: an unexpected exception ends one connection and no other.

An exception in a task that writes to a connection (the log's committer, another session), or in a
nursery that outlives it, would end all connections. So three rules hold on every transport
(concurrency/supervision.py has a fourth, for tasks that serve all connections):

* The method of a transport that other tasks call to write catches `Exception` and gives it to the
  connection's `FrameSource.failed`. The session ends with UNKNOWN; a connection without a session,
  or one that fails again, is cut.
* A task of one connection in a shared nursery is started with `alone`.
* The end of a session runs every step, whatever the steps before it raised: `run_all`, `tell_all`.

Each defect is logged once, with its identity, session and address. Cancellation is never caught.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = logging.getLogger("aether.containment")

DEFECT: Final = "the gateway has a defect, which is in its log; connect again"
"""What the client is told. The reason is for the operator, in the log."""


def report(error: BaseException, who: object) -> None:
    """Log an unexpected exception that ended or harmed a connection, named by `who`."""
    log.error("a connection failed by a defect of the gateway: %s", who, exc_info=error)


async def alone(who: str, serve: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
    """Run `serve(*args)`; log an exception from it as a defect of one connection."""
    try:
        await serve(*args)
    except Exception as error:
        report(error, who)


def run_all(who: object, *steps: Callable[[], object]) -> None:
    """Run all steps in order; log what a step raises, and go on."""
    for step in steps:
        try:
            step()
        except Exception as error:
            report(error, who)


def tell_all(whom: T, *steps: Callable[[T], object]) -> None:
    """Call all steps in order with `whom`, which logs name; go on as `run_all` does."""
    for step in steps:
        try:
            step(whom)
        except Exception as error:
            report(error, whom)
