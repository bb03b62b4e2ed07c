"""Worker processes whose durable function kills them, once at each of its points.

    function_worker.py ADDRESS SPECIFIER DIRECTORY

Files of DIRECTORY say what was done (`effects`, a line for each), where a process has died already,
and how they have ended (`deaths`). `die(point)` kills the process that comes there first; another
one follows.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import trio

from aether_trio.client import AgentClient, Retry
from aether_trio.client.workflows import Flow, workflow

DIRECTORY = Path(sys.argv[3] if len(sys.argv) > 3 else ".")


def die(point: str) -> None:
    """Kill this process, unless one has died here."""
    try:
        (DIRECTORY / f"died-{point.replace('/', '_')}").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


async def effect(name: str) -> str:
    """Do something that can be counted, and die before or after it."""
    die(f"before-{name}")
    with (DIRECTORY / "effects").open("a") as file:
        file.write(f"{name}\n")
    die(f"after-{name}")
    return name.upper()


@workflow(grace_s=0.2, events={"paid": "input.where"})
async def trip(flow: Flow, where: str) -> dict[str, Any]:
    """Do steps in order, in parallel and once, calls, a sleep and waits."""
    die("begin")
    first = await flow.step(effect, f"plan-{where}")
    die("planned")
    async with flow.nursery() as branches:
        booked = [branches.start(flow.call, "booker", "book", {"what": what}) for what in ("train", "hotel")]
        packed = branches.start(flow.step, effect, "pack")
        die("branches")
    die("joined")
    await flow.sleep(0.05)
    die("slept")
    word = await flow.wait("go")
    die("signalled")
    paid = await flow.wait(event="paid", equals=where)
    die("paid")
    mailed = await flow.step(effect, "mail", once=True, name="mail")
    last = await flow.step(effect, "leave")
    die("end")
    return {
        "first": first, "booked": [one.result for one in booked], "packed": packed.result, "go": word,
        "paid": paid["sum"], "mailed": mailed, "last": last,
    }  # fmt: skip


async def serve(specifier: str) -> None:
    who = {"workspace": "w", "implementation": "hand", "specifier": specifier}
    async with AgentClient(f"aether://{sys.argv[1]}", retry=Retry(base_s=0.01, cap_s=0.2), **who) as worker:
        await worker.serve_workflows([trip], hibernate_after=0.3)


def main() -> None:
    """Fork worker processes, one after the other, with everything imported."""
    for life in range(1, 1000):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            trio.run(serve, f"{sys.argv[2]}-{life}")
            os._exit(0)

        def end(*_: object, child: int = child) -> None:
            os.kill(child, signal.SIGKILL)
            os._exit(0)

        signal.signal(signal.SIGTERM, end)
        _, status = os.waitpid(child, 0)
        with (DIRECTORY / "deaths").open("a") as file:
            file.write(f"{os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    main()
