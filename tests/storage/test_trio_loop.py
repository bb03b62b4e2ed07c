"""What trio-asyncio does to asyncio stays inside of trio."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import trio

from aether_trio.storage import trio_loop

assert trio_loop


async def test_asyncio_in_a_thread_is_as_it_was() -> None:
    token = trio.lowlevel.current_trio_token()
    calls: list[str] = []

    async def program() -> type:
        trio.from_thread.run_sync(calls.append, "from a thread", trio_token=token)
        await asyncio.sleep(0)
        return type(asyncio.get_running_loop())

    assert await trio.to_thread.run_sync(asyncio.run, program()) is asyncio.SelectorEventLoop
    assert calls == ["from a thread"]


async def test_asyncio_inside_of_trio_is_theirs() -> None:
    async def program() -> int:
        return await asyncio.sleep(0, 7)

    async with trio_loop.open_loop():
        assert await trio_loop.aio_as_trio(program)() == 7


def test_importing_it_warns_of_nothing() -> None:
    """They use what Python 3.12 deprecates; a user who makes errors of warnings must be able to import us all the same."""
    for module in ("aether_trio.storage.trio_loop", "aether_trio.storage.postgres"):
        subprocess.run([sys.executable, "-W", "error", "-c", f"import {module}"], check=True, timeout=120)
