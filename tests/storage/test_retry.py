"""Work that is repeated until storage answers."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from aether_trio.storage.base import RefusedError, StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S, retry_while_unavailable

logger = structlog.get_logger("test")


async def test_it_is_repeated_until_it_succeeds_and_the_log_says_so_once(autojump_clock: MockClock) -> None:
    outcomes: list[object] = [StorageUnavailable("away"), StorageUnavailable("still away"), 5]
    failures: list[float] = []

    async def work() -> object:
        await trio.lowlevel.checkpoint()
        result = outcomes.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    began_s = trio.current_time()
    with structlog.testing.capture_logs() as logs:
        found = await retry_while_unavailable(
            work, "the test", logger, on_failure=lambda: failures.append(trio.current_time() - began_s)
        )
    assert found == 5
    assert failures == [0, RETRY_DELAY_S]
    assert [(entry["log_level"], entry["what"]) for entry in logs] == [("warning", "the test"), ("info", "the test")]
    assert logs[0]["reason"] == "away"


@pytest.mark.parametrize("error", [RefusedError("too large"), ValueError("no")])
async def test_what_another_attempt_cannot_mend_is_raised(error: Exception) -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(type(error)):
        await retry_while_unavailable(work, "the test", logger)
