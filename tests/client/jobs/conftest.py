from __future__ import annotations

import pytest

from aether_trio.client.jobs import manager


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task of a busy machine is old enough for the worker to subscribe to it."""
    monkeypatch.setattr(manager, "WATCH_AFTER_S", 3600.0)
