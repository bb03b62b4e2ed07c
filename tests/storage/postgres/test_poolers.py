"""A pooler that drops the settings of a session is refused at the start.

No statement would fail of it later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres import connections as module
from aether_trio.storage.postgres.database import open_postgres
from tests.helpers.postgres import PostgresServer

given = module._session


@pytest.mark.parametrize("dropped", ["search_path", "default_transaction_isolation"])
async def test_a_dropped_setting_is_noticed(
    dropped: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pooled(*args: Any) -> Mapping[str, str]:
        return {name: value for name, value in given(*args).items() if name != dropped}

    monkeypatch.setattr(module, "_session", pooled)
    async with open_postgres(postgres_server.dsn(), schema="pooled") as server:
        with pytest.raises(StorageSetupError, match="probably a pooler"):
            await server.database("log")
    assert postgres_server.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'pooled'") == "0"
