"""Flow control: lets runs of workflows and rules begin, wait, or be dropped.

    a start ─▶ gates by key (model/workflows/flow_chain.py) ─▶ pools ─▶ it begins
                    ▲ the end of a run, a moment                ▲ the end of a run

A *pool* bounds how many run at the same time without a key: `max_executions` of a workflow, and
`workflow.max_concurrent_executions` for all. Everything is rows, written in the transaction of the
start, the end or the timer, so a crash loses and repeats nothing. What is to be done with runs is
returned, and done by the one whose runs they are.

Invariants: a run has a row from its start to its end, and takes part in each gate and pool once. A
start that is dropped at once changes nothing: it counts for no rate and no idempotency.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from aether_trio.model.limits import MIB
from aether_trio.model.text import TextError
from aether_trio.model.workflows import flow_chain
from aether_trio.model.workflows.definition import Environment, EvaluationError, FlowControl
from aether_trio.model.workflows.flow_chain import (
    AtGate,
    BeginRun,
    FlowRequest,
    FlowRequests,
    LoadFirst,
    LoadGate,
    LoadKeys,
    LoadPlace,
    SaveGate,
)
from aether_trio.model.workflows.flow_control import (
    PAGE,
    CancelRun,
    DropReason,
    DropRun,
    FlowItem,
    FlowState,
    KeepItem,
    QueueRun,
    priority_of,
)
from aether_trio.model.workflows.keys import flow_key
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.flow import flow_rows
from aether_trio.services.workflows.flow.flow_rows import BEGUN, GATHERED, WAITING, FlowOwner, FlowRun
from aether_trio.services.workflows.stored import timers
from aether_trio.storage.base import Program

TIMER: Final = "flow"
"""The kind of the timers of gates and pools."""
EVERYTHING: Final = "*"
"""The pool of all executions."""
BEGIN_TIMER: Final = "flow_begin"
"""The kind of the timers of runs that begin in a later transaction."""
BEGIN_PAGE: Final = 20
"""How many waiting runs one transaction begins."""
GATHERED_BYTES: Final = 1 * MIB
"""What one run gathers at most."""
DROPPED: Final = {
    DropReason.DUPLICATE: "one with the same key has begun within the period",
    DropReason.RATE: "as many have begun within the period as the rate allows",
    DropReason.SKIPPED: "as many run as concurrency allows, and further ones are skipped",
    DropReason.REPLACED: "a newer one has replaced it",
    DropReason.FULL: "too many wait already",
    DropReason.DEACTIVATED: "its definition was deactivated before it began",
}
"""Why a run does not begin, for people."""


class FlowError(Exception):
    """A key cannot be computed, or a bound is reached; nothing may be committed."""


class FlowPool(NamedTuple):
    """A bound without a key: how many may run; 0: any number."""

    name: str
    most: int


@dataclass(frozen=True, slots=True)
class FlowKeys:
    """What the expressions of a flow control give for a start: keys as texts."""

    keys: tuple[str, ...]
    priority: float

    @property
    def hashes(self) -> tuple[str, ...]:
        """The keys as rows have them."""
        return tuple(flow_rows.hash_of(key) if key else "" for key in self.keys)


@dataclass(frozen=True, slots=True)
class FlowStart:
    """A start; `data` is kept if it is gathered, or (`keeps_data`) whenever it waits."""

    item_id: str
    owner: FlowOwner
    flow: FlowControl
    keys: FlowKeys
    data: bytes
    pools: tuple[FlowPool, ...] = ()
    origin: str = ""
    keeps_data: bool = False


class RunBegins(NamedTuple):
    """A run is to begin."""

    run_id: str


class RunStops(NamedTuple):
    """A run is to be cancelled, whether it has begun or not."""

    run_id: str
    reason: DropReason


FlowEffect = RunBegins | RunStops


@dataclass(slots=True)
class Admitted:
    """What has become of a start, and what follows for other runs.

    `run_id` is the run with it, "" if it is dropped, for which there is a `dropped`.
    """

    run_id: str = ""
    begins: bool = False
    dropped: DropReason | None = None
    effects: list[FlowEffect] = field(default_factory=list)


def compute_keys(flow: FlowControl, env: Environment, now_ms: int) -> FlowKeys:
    """Compute the keys and the priority of a start. Raises FlowError."""
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)

    def evaluate(value: Any) -> Any:
        return value.evaluate(env, now=lambda: moment)

    try:
        keys = tuple(
            "" if gate.key is None else flow_key(evaluate(gate.key), f"the key {gate.key_source}")
            for gate in flow.gates
        )
        priority = 0.0 if flow.priority is None else priority_of(evaluate(flow.priority))
    except (EvaluationError, TextError, ValueError) as error:
        raise FlowError(f"flow: {error}") from None
    return FlowKeys(keys, priority)


class Admission:
    """Lets runs begin; `most` executions at the same time, 0 for any number.

    All methods but the constructor are programs.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def arrive(self, tx: Transaction, start: FlowStart) -> Program[Admitted]:
        """Take in a start. Raises FlowError."""
        known = (yield from self._known(start.item_id)) if tx.context.again else ""
        if known:
            return Admitted(known)  # this program has run before, and was committed
        owner = flow_rows.owner_key(start.owner, start.flow)
        yield from flow_rows.put_owner(owner, start.owner, flow_rows.encode_gates(start.flow))
        for pool in start.pools:
            most, running = yield from flow_rows.load_pool(pool.name)
            if most != pool.most:
                yield from flow_rows.save_pool(pool.name, pool.most, running)
        turn = _FlowTurn(tx, owner, start.flow, start)
        item = FlowItem(start.item_id, start.keys.priority)
        yield from turn.follow(flow_chain.item_arrived(start.flow, item, start.keys.hashes, tx.context.now_ms))
        return (yield from turn.close())

    def _known(self, item_id: str) -> Program[str]:
        run = yield from flow_rows.load_run(item_id)
        return item_id if run is not None else (yield from flow_rows.run_of_item(item_id))

    def ended(self, tx: Transaction, run_id: str) -> Program[list[FlowEffect]]:
        """Take in the end of a run, whether it had begun or not."""
        run = yield from flow_rows.load_run(run_id)
        if run is None:
            return []
        yield from flow_rows.delete_run(run_id)
        turn = yield from self._turn(tx, run.owner)
        keys, now_ms = tuple(json.loads(run.keys)), tx.context.now_ms
        if run.waits == BEGUN:
            yield from turn.follow(flow_chain.run_finished(turn.flow, run_id, keys, now_ms))
        else:
            yield from turn.follow(flow_chain.run_withdrawn(turn.flow, run.gate, run_id, keys, now_ms))
        for name in json.loads(run.pools)[: run.held]:
            yield from turn.leave(name)
        return (yield from turn.close()).effects

    def time_passed(self, tx: Transaction, place: str) -> Program[tuple[str, list[FlowEffect]]]:
        """Let the moment of a gate or pool come; return of which kind the runs are."""
        yield from timers.set_timer(TIMER, place, 0)
        owner, _, rest = place.partition("/")
        if owner == "pool":
            turn = _FlowTurn(tx, "", FlowControl())
            if rest == EVERYTHING:
                _, running = yield from flow_rows.load_pool(rest)
                yield from flow_rows.save_pool(rest, self.most, running)
            yield from turn.fill(rest)
            return flow_rows.WORKFLOW, (yield from turn.close()).effects
        gate, _, key = rest.partition("/")
        found = yield from flow_rows.load_owner(owner)
        if found is None:
            yield from flow_rows.save_gate(place, None)
            return flow_rows.WORKFLOW, []
        turn = _FlowTurn(tx, owner, found[1])
        yield from turn.follow(flow_chain.gate_due(turn.flow, int(gate), key, tx.context.now_ms))
        return found[0].kind, (yield from turn.close()).effects

    def hand_over(self, tx: Transaction, run_id: str, next_id: str) -> Program[bool]:
        """Give the place of a run that has begun to its continuation."""
        run = yield from flow_rows.load_run(run_id)
        if run is None or run.waits != BEGUN:
            return False
        yield from flow_rows.rename_run(run, next_id)
        turn = yield from self._turn(tx, run.owner)
        for number, key in enumerate(json.loads(run.keys)):
            place = flow_rows.gate_place(run.owner, number, key)
            state = yield from flow_rows.load_gate(place)
            if state is not None and run_id in state.running and number < len(turn.flow.gates):
                running = tuple(next_id if one == run_id else one for one in state.running)
                yield from flow_rows.save_gate(place, replace(state, running=running))
        return True

    def find_waiting(self, tx: Transaction) -> Program[None]:
        """Look at the pool of all executions, as its bound may have changed."""
        place = _pool_place(EVERYTHING)
        if (yield from flow_rows.first_waiting(place, 1)):
            yield from _due_now(tx, place)

    def find_delayed(self, tx: Transaction) -> Program[None]:
        """Look at the gates at which runs wait: the clock was set back.

        Their moments were computed before, and may be hours away.
        """
        now_ms = tx.context.now_ms
        yield from flow_rows.waiting_due(TIMER, now_ms)
        tx.effects.note_due(now_ms)

    def _turn(self, tx: Transaction, owner: str) -> Program[_FlowTurn]:
        found = yield from flow_rows.load_owner(owner)
        return _FlowTurn(tx, owner, FlowControl() if found is None else found[1])


class _FlowTurn:
    """Answers what the gates ask for, and does what they say, in one transaction."""

    def __init__(self, tx: Transaction, owner: str, flow: FlowControl, start: FlowStart | None = None) -> None:
        self.tx = tx
        self.owner = owner
        self.flow = flow
        self.start = start
        self.fresh: FlowRun | None = None
        """The run that is made of the start, if it is the first one of it."""
        self.done = Admitted()
        self.gates: dict[str, tuple[FlowState | None, int]] = {}
        """States that have changed, with their due moments."""

    def follow(self, requests: FlowRequests) -> Program[None]:
        """Run the gates' generator to its end."""
        answer: Any = None
        while True:
            try:
                request = requests.send(answer)
            except StopIteration:
                return
            answer = yield from self._answer(request)

    def close(self) -> Program[Admitted]:
        """Write what has changed; return what follows."""
        if self.start is not None:
            if self.done.dropped is not None and not self.done.run_id:
                return self.done  # it changes nothing
            yield from self._keep(self.start)
        for place, (state, due_ms) in self.gates.items():
            yield from flow_rows.save_gate(place, state)
            yield from timers.set_timer(TIMER, place, due_ms)
            self.tx.effects.note_due(due_ms)
        return self.done

    def _keep(self, start: FlowStart) -> Program[None]:
        """Write the run of the start, or what a run has gathered with it."""
        done = self.done
        if self.fresh is not None:
            yield from flow_rows.insert_run(self.fresh)
            if start.keeps_data and not done.begins:
                yield from flow_rows.insert_item(start.item_id, self.fresh.run_id, start.data)
        elif done.dropped is None:
            yield from flow_rows.insert_item(start.item_id, done.run_id, start.data)

    def _answer(self, request: FlowRequest) -> Program[Any]:
        match request:
            case LoadGate():
                place = self._place(request.gate, request.key)
                if place in self.gates:
                    return self.gates[place][0]
                return (yield from flow_rows.load_gate(place))
            case LoadFirst():
                return (yield from flow_rows.first_waiting(self._place(request.gate, request.key), PAGE))
            case LoadKeys():
                run = yield from self._run(request.run)
                return ("",) * len(self.flow.gates) if run is None else tuple(json.loads(run.keys))
            case LoadPlace():
                run = yield from self._run(request.run)
                return run.gate if run is not None and run.waits and run.gate < len(self.flow.gates) else None
            case SaveGate():
                self.gates[self._place(request.gate, request.key)] = request.state, request.due_ms
            case AtGate():
                yield from self._decide(request)
            case BeginRun():
                yield from self._passed(request)
        return None

    def _place(self, gate: int, key: str) -> str:
        return flow_rows.gate_place(self.owner, gate, key)

    def _run(self, run_id: str) -> Program[FlowRun | None]:
        if self.fresh is not None and self.fresh.run_id == run_id:
            return self.fresh
        return (yield from flow_rows.load_run(run_id))

    def _save(self, run: FlowRun) -> Program[None]:
        if run is not self.fresh:
            yield from flow_rows.save_run(run)

    def _decide(self, decided: AtGate) -> Program[None]:
        place = self._place(decided.gate, decided.key)
        match decided.decision:
            case KeepItem(item, run):
                assert self.start is not None
                assert item == self.start.item_id
                self.done.run_id = run
                self.fresh = self._new_run(decided.gate, place) if run == item else None
                if self.fresh is None:
                    yield from self._check_size(run, len(self.start.data))
            case QueueRun(run, priority):
                found = yield from self._run(run)
                if found is not None:
                    found.gate, found.place, found.waits, found.priority = decided.gate, place, WAITING, priority
                    yield from self._save(found)
            case DropRun(run, reason):
                yield from self._drop(run, reason)
            case CancelRun(run):
                self.done.effects.append(RunStops(run, DropReason.REPLACED))

    def _check_size(self, run_id: str, more: int) -> Program[None]:
        """Check what a run gathers, before anything is written. Raises FlowError."""
        size = yield from flow_rows.gathered_bytes(run_id)
        if size + more > GATHERED_BYTES:
            raise FlowError(
                f"run {run_id} has gathered {size} bytes, and may have {GATHERED_BYTES}: let batch or debounce end earlier"
            )

    def _new_run(self, gate: int, place: str) -> FlowRun:
        start = self.start
        assert start is not None
        return FlowRun(
            start.item_id,
            self.owner,
            gate,
            place,
            GATHERED,
            start.keys.priority,
            json.dumps(start.keys.hashes),
            json.dumps(start.keys.keys, ensure_ascii=False),
            json.dumps([pool.name for pool in start.pools]),
            0,
            start.origin,
            self.tx.context.now_ms,
        )

    def _drop(self, run: str, reason: DropReason) -> Program[None]:
        start, done = self.start, self.done
        if start is not None and run in (start.item_id, done.run_id):
            done.dropped = reason
        if start is not None and run == start.item_id:
            self.fresh, done.run_id = None, ""
            return
        yield from flow_rows.delete_run(run)
        done.effects.append(RunStops(run, reason))

    # -- behind the gates --------------------------------------------------------------------------

    def _passed(self, begins: BeginRun) -> Program[None]:
        """Let a run that has passed the gates into the pools."""
        if self.start is not None and begins.run == self.start.item_id and self.fresh is None:
            # There is no gate.
            self.fresh, self.done.run_id = self._new_run(len(self.flow.gates), ""), begins.run
        run = yield from self._run(begins.run)
        if run is not None:
            run.gate, run.priority = len(self.flow.gates), begins.priority
            yield from self._enter(run)

    def _enter(self, run: FlowRun) -> Program[None]:
        """Let a run into the next pools; it begins behind the last one."""
        pools = json.loads(run.pools)
        while run.held < len(pools):
            name = pools[run.held]
            most, running = yield from flow_rows.load_pool(name)
            place = _pool_place(name)
            if most and (running >= most or (yield from flow_rows.first_waiting(place, 1))):
                run.place, run.waits = place, WAITING
                yield from self._save(run)
                if running < most:
                    yield from _due_now(self.tx, place)
                return
            yield from flow_rows.save_pool(name, most, running + 1)
            run.held += 1
        run.place, run.waits = "", BEGUN
        yield from self._save(run)
        if run is self.fresh:
            self.done.begins = True
        else:
            self.done.effects.append(RunBegins(run.run_id))

    def leave(self, name: str) -> Program[None]:
        """Free a place in a pool, and let others in."""
        most, running = yield from flow_rows.load_pool(name)
        yield from flow_rows.save_pool(name, most, max(running - 1, 0))
        yield from self.fill(name)

    def fill(self, name: str) -> Program[None]:
        """Let the first that wait into a pool, as far as there is room."""
        place = _pool_place(name)
        for _ in range(PAGE):
            most, running = yield from flow_rows.load_pool(name)
            first = [] if most and running >= most else (yield from flow_rows.first_waiting(place, 1))
            run = (yield from flow_rows.load_run(first[0].id)) if first else None
            if run is None:
                return
            yield from flow_rows.save_pool(name, most, running + 1)
            run.held += 1
            yield from self._enter(run)
        yield from _due_now(self.tx, place)


def _pool_place(name: str) -> str:
    return f"pool/{name}"


def begin_later(tx: Transaction, kind: str, run_id: str) -> Program[None]:
    """Let a run begin in a transaction that follows."""
    yield from timers.set_timer(BEGIN_TIMER, f"{kind} {run_id}", tx.context.now_ms)
    tx.effects.note_due(tx.context.now_ms)


def _due_now(tx: Transaction, place: str) -> Program[None]:
    yield from timers.set_timer(TIMER, place, tx.context.now_ms)
    tx.effects.note_due(tx.context.now_ms)
