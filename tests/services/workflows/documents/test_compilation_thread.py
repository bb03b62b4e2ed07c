"""Documents are compiled beside the event loop, and few at a time."""

from __future__ import annotations

import threading

import pytest
import trio

from aether_trio.model.workflows.reading import DefinitionErrors
from aether_trio.services.workflows.documents.compilation_thread import MOST_AT_ONCE, SMALL_BYTES, compile_in_thread
from aether_trio.services.workflows.documents.reader import read_json


async def test_the_event_loop_goes_on_while_documents_are_compiled() -> None:
    release = threading.Event()
    running: list[str] = []
    most = 0

    def work() -> str:
        nonlocal most
        running.append("one")
        most = max(most, len(running))
        assert release.wait(30)
        running.pop()
        return threading.current_thread().name

    threads: list[str] = []

    async def compile_one() -> None:
        threads.append(await compile_in_thread(work, SMALL_BYTES + 1))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(MOST_AT_ONCE + 2):
                nursery.start_soon(compile_one)
            while len(running) < MOST_AT_ONCE:
                await trio.sleep(0.001)
            release.set()
    assert most == MOST_AT_ONCE
    assert threading.current_thread().name not in threads
    assert len(threads) == MOST_AT_ONCE + 2


async def test_errors_come_through() -> None:
    with pytest.raises(DefinitionErrors, match="has no rule_name"):
        await compile_in_thread(lambda: read_json("rule", {}), 1_000_000)


async def test_a_small_document_needs_no_thread() -> None:
    assert await compile_in_thread(threading.get_ident, SMALL_BYTES) == threading.get_ident()
