"""Replays the histories of all graphs from a copy of the tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.replay import Replay, ReplayError
from aether_trio.services.workflows.stored import definitions
from aether_trio.services.workflows.stored.stored_graphs import compile_stored, schema_problem
from aether_trio.storage.base import Program
from chaos.workflows.snapshot import Snapshot


async def replay_all(snapshot: Snapshot) -> dict[str, str]:
    """Replay all graphs; return what does not fit in each, "" where all does."""
    graphs: dict[tuple[str, str, int], Any] = {}

    async def read(program: Callable[[], Program[Any]]) -> Any:
        return snapshot.run(program)

    found = {}
    for (execution_id,) in snapshot.rows("SELECT execution_id FROM workflow_executions WHERE kind = 'graph'"):
        row = snapshot.run(partial(execution_rows.load, execution_id))
        assert row is not None
        key = row.defined_in, row.workflow_id, row.version
        if key not in graphs:
            stored = snapshot.run(partial(definitions.load, *key))
            assert stored is not None
            graphs[key] = compile_stored(stored)
        replay = Replay(read, row, graphs[key], schema_problem)
        try:
            divergence = await replay.run()
        except ReplayError as error:
            found[execution_id] = str(error)
            continue
        if divergence is not None:
            found[execution_id] = f"entry {divergence.number} has {divergence.recorded}, now follows {divergence.now}"
        elif replay.entries != row.entries:
            found[execution_id] = f"{replay.entries} entries of {row.entries} are there"
        elif replay.state.to_json() != json.loads(row.state):
            found[execution_id] = f"they lead to the state {replay.state.to_json()}, and it has {row.state.decode()}"
        else:
            found[execution_id] = ""
    return found
