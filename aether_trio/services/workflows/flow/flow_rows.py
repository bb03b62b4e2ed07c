"""Rows of flow control in portable SQL: owners, gates, runs, items and pools."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from typing import Any, Final, NamedTuple

from aether_trio.model.workflows.definition import Batch, Concurrency, Debounce, FlowControl, FlowGate, OnLimit, Pace
from aether_trio.model.workflows.flow_control import FlowItem, FlowState
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders

BEGUN: Final = 0
WAITING: Final = 1
GATHERED: Final = 2
"""What a run does."""
WORKFLOW: Final = "workflow"
RULE: Final = "rule"
"""Kinds of owners."""


class FlowOwner(NamedTuple):
    """Whose flow control it is: a workflow or rule, for the runs in a workspace."""

    kind: str
    workspace: str
    defined_in: str
    id: str


@dataclass(slots=True)
class FlowRun:
    """The stored row of a run; `gate` is where it is, their number behind all of them."""

    run_id: str
    owner: str
    gate: int
    place: str
    waits: int
    priority: float
    keys: str
    shown: str
    pools: str
    held: int
    origin: str  # the schedule that has started it, "" for others
    at_ms: int


COLUMNS: Final = tuple(one.name for one in fields(FlowRun))
FIELDS: Final = ", ".join(COLUMNS)
_CHANGING: Final = ("gate", "place", "waits", "priority", "held")
_CHANGES: Final = ", ".join(f"{name} = ${number}" for number, name in enumerate(_CHANGING, start=2))


def owner_key(owner: FlowOwner, flow: FlowControl) -> str:
    """Return by what the gates are found; it changes with what they count by."""
    gates = [[gate.key_source, gate.debounce is not None or gate.batch is not None] for gate in flow.gates]
    return hash_of(json.dumps([*owner, gates]))


def hash_of(text: str) -> str:
    """Return a short text for a long one."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def pool_of(workspace: str, defined_in: str, id: str) -> str:  # noqa: A002
    """Return the name of the pool of a workflow's executions in a workspace."""
    return hash_of(json.dumps([workspace, defined_in, id]))


def gate_place(owner: str, gate: int, key: str) -> str:
    """Return the name of a gate for the hash of a key; it is the key of its timer."""
    return f"{owner}/{gate}/{key}"


def encode_gates(flow: FlowControl) -> str:
    """Return what gates do as JSON, without their expressions."""
    return json.dumps([_gate(gate) for gate in flow.gates], separators=(",", ":"))


def _gate(gate: FlowGate) -> dict[str, Any]:
    found: dict[str, Any] = {"idempotency": gate.idempotency_ms}
    for name, pace in (("rate", gate.rate), ("throttle", gate.throttle)):
        if pace is not None:
            found[name] = [pace.limit, pace.period_ms]
    if gate.debounce is not None:
        found["debounce"] = [gate.debounce.period_ms, gate.debounce.max_wait_ms]
    if gate.batch is not None:
        found["batch"] = [gate.batch.size, gate.batch.timeout_ms]
    if gate.concurrency is not None:
        found["concurrency"] = [gate.concurrency.limit, gate.concurrency.on_limit.value]
    return found


def decode_gates(text: str) -> FlowControl:
    """Read what `encode_gates` gave."""
    return FlowControl(gates=tuple(_read_gate(one) for one in json.loads(text)))


def _read_gate(found: dict[str, Any]) -> FlowGate:
    def pace(name: str) -> Pace | None:
        return Pace(limit=found[name][0], period_ms=found[name][1]) if name in found else None

    debounce, batch, concurrency = found.get("debounce"), found.get("batch"), found.get("concurrency")
    return FlowGate(
        idempotency_ms=found["idempotency"],
        rate=pace("rate"),
        throttle=pace("throttle"),
        debounce=Debounce(period_ms=debounce[0], max_wait_ms=debounce[1]) if debounce else None,
        batch=Batch(size=batch[0], timeout_ms=batch[1]) if batch else None,
        concurrency=Concurrency(limit=concurrency[0], on_limit=OnLimit(concurrency[1])) if concurrency else None,
    )


# -- owners ----------------------------------------------------------------------------------------


def put_owner(key: str, owner: FlowOwner, gates: str) -> Program[None]:
    """Write what the gates of an owner do now, if that is not what is written."""
    rows: list[Row] = yield Fetch("SELECT gates FROM workflow_flows WHERE owner = $1", (key,))
    if not rows or rows[0][0] != gates:
        yield Execute(
            "INSERT INTO workflow_flows (owner, kind, workspace, defined_in, id, gates) "
            "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (owner) DO UPDATE SET gates = excluded.gates",
            (key, *owner, gates),
        )


def load_owner(key: str) -> Program[tuple[FlowOwner, FlowControl] | None]:
    """Load whose flow control it is, and what its gates do."""
    rows: list[Row] = yield Fetch(
        "SELECT kind, workspace, defined_in, id, gates FROM workflow_flows WHERE owner = $1", (key,)
    )
    return (FlowOwner(*rows[0][:4]), decode_gates(rows[0][4])) if rows else None


# -- gates -----------------------------------------------------------------------------------------


def load_gate(place: str) -> Program[FlowState | None]:
    """Load the state of a gate for a key."""
    rows: list[Row] = yield Fetch("SELECT state FROM workflow_flow_gates WHERE place = $1", (place,))
    return FlowState.from_json(json.loads(rows[0][0])) if rows else None


def save_gate(place: str, state: FlowState | None) -> Program[None]:
    """Write or delete the state of a gate for a key."""
    if state is None:
        yield Execute("DELETE FROM workflow_flow_gates WHERE place = $1", (place,))
        return
    yield Execute(
        "INSERT INTO workflow_flow_gates (place, state) VALUES ($1, $2) "
        "ON CONFLICT (place) DO UPDATE SET state = excluded.state",
        (place, json.dumps(state.to_json(), separators=(",", ":"))),
    )


# -- runs ------------------------------------------------------------------------------------------


def load_run(run_id: str) -> Program[FlowRun | None]:
    """Load a run that waits or goes on."""
    rows: list[Row] = yield Fetch(f"SELECT {FIELDS} FROM workflow_flow_runs WHERE run_id = $1", (run_id,))  # noqa: S608
    return FlowRun(*rows[0]) if rows else None


def insert_run(run: FlowRun) -> Program[None]:
    """Insert a run."""
    yield Execute(
        f"INSERT INTO workflow_flow_runs ({FIELDS}) VALUES ({placeholders(len(COLUMNS))})",  # noqa: S608
        tuple(getattr(run, name) for name in COLUMNS),
    )


def save_run(run: FlowRun) -> Program[None]:
    """Write where a run is."""
    yield Execute(
        f"UPDATE workflow_flow_runs SET {_CHANGES} WHERE run_id = $1",  # noqa: S608
        (run.run_id, *(getattr(run, name) for name in _CHANGING)),
    )


def rename_run(run: FlowRun, run_id: str) -> Program[FlowRun]:
    """Give a run another id: another execution has its place."""
    yield Execute("UPDATE workflow_flow_runs SET run_id = $2 WHERE run_id = $1", (run.run_id, run_id))
    return replace(run, run_id=run_id)


def delete_run(run_id: str) -> Program[None]:
    """Delete a run and what it has gathered."""
    yield Execute("DELETE FROM workflow_flow_runs WHERE run_id = $1", (run_id,))
    yield Execute("DELETE FROM workflow_flow_items WHERE run_id = $1", (run_id,))


def first_waiting(place: str, limit: int) -> Program[list[FlowItem]]:
    """List the first runs that wait at a place, by priority, then by age."""
    rows: list[Row] = yield Fetch(
        "SELECT run_id, priority FROM workflow_flow_runs WHERE place = $1 AND waits = 1 "
        "ORDER BY priority DESC, number LIMIT $2",
        (place, limit),
    )
    return [FlowItem(*row) for row in rows]


def newest_ms() -> Program[int]:
    """Return when the newest run was started; 0 if there is none."""
    rows: list[Row] = yield Fetch("SELECT at_ms FROM workflow_flow_runs ORDER BY number DESC LIMIT 1")
    return rows[0][0] if rows else 0


def waiting_due(timer: str, now_ms: int) -> Program[None]:
    """Let the moments of all places come at which runs wait or are gathered."""
    yield Execute(
        "UPDATE workflow_timers SET due_ms = $2 WHERE kind = $1 AND due_ms > $2 "
        "AND key IN (SELECT place FROM workflow_flow_runs WHERE waits > 0)",
        (timer, now_ms),
    )


def waiting_of(kind: str, defined_in: str, id: str, limit: int) -> Program[list[str]]:  # noqa: A002
    """List runs of a workflow or rule that have not begun, oldest first."""
    rows: list[Row] = yield Fetch(
        "SELECT r.run_id FROM workflow_flows f JOIN workflow_flow_runs r ON r.owner = f.owner "
        "WHERE f.kind = $1 AND f.defined_in = $2 AND f.id = $3 AND r.waits > 0 ORDER BY r.number LIMIT $4",
        (kind, defined_in, id, limit),
    )
    return [run_id for (run_id,) in rows]


def waiting_from(origin: str, limit: int) -> Program[list[str]]:
    """List runs of a schedule that have not begun, oldest first."""
    rows: list[Row] = yield Fetch(
        "SELECT run_id FROM workflow_flow_runs WHERE origin = $1 AND origin <> '' AND waits > 0 "
        "ORDER BY number LIMIT $2",
        (origin, limit),
    )
    return [run_id for (run_id,) in rows]


def count_waiting(kind: str, defined_in: str, id: str) -> Program[int]:  # noqa: A002
    """Count the runs of a workflow or rule that have not begun."""
    rows: list[Row] = yield Fetch(
        "SELECT COUNT(*) FROM workflow_flows f JOIN workflow_flow_runs r ON r.owner = f.owner "
        "WHERE f.kind = $1 AND f.defined_in = $2 AND f.id = $3 AND r.waits > 0",
        (kind, defined_in, id),
    )
    count: int = rows[0][0]
    return count


# -- what is gathered ------------------------------------------------------------------------------


def insert_item(item_id: str, run_id: str, data: bytes) -> Program[None]:
    """Insert what a run gathers."""
    yield Execute(
        "INSERT INTO workflow_flow_items (item_id, run_id, data) VALUES ($1, $2, $3)", (item_id, run_id, data)
    )


def run_of_item(item_id: str) -> Program[str]:
    """Return the run that has gathered something; "" if none has."""
    rows: list[Row] = yield Fetch("SELECT run_id FROM workflow_flow_items WHERE item_id = $1", (item_id,))
    return rows[0][0] if rows else ""


def items_of(run_id: str) -> Program[list[tuple[str, bytes]]]:
    """Read what a run has gathered, in its order: (id, data)."""
    rows: list[Row] = yield Fetch(
        "SELECT item_id, data FROM workflow_flow_items WHERE run_id = $1 ORDER BY number", (run_id,)
    )
    return [(item_id, bytes(data)) for item_id, data in rows]


def gathered_bytes(run_id: str) -> Program[int]:
    """Return the size of what a run has gathered."""
    rows: list[Row] = yield Fetch(
        "SELECT COALESCE(SUM(LENGTH(data)), 0) FROM workflow_flow_items WHERE run_id = $1", (run_id,)
    )
    return int(rows[0][0])


# -- pools -----------------------------------------------------------------------------------------


def load_pool(name: str) -> Program[tuple[int, int]]:
    """Load (how many may run, how many run) of a pool; 0 may: any number."""
    rows: list[Row] = yield Fetch("SELECT most, running FROM workflow_flow_pools WHERE name = $1", (name,))
    return (rows[0][0], rows[0][1]) if rows else (0, 0)


def save_pool(name: str, most: int, running: int) -> Program[None]:
    """Write a pool."""
    yield Execute(
        "INSERT INTO workflow_flow_pools (name, most, running) VALUES ($1, $2, $3) "
        "ON CONFLICT (name) DO UPDATE SET most = excluded.most, running = excluded.running",
        (name, most, running),
    )
