"""Lets events arrive at joins, and does their actions, in transactions on tasks.

    rule whose destination is a join ─▶ model/workflows/joins.py ─▶ row, members, timer, action

An instance is of a name, a workspace and a correlation key. Its state, the ids of its members and
its timer are rows, so that any node goes on with it, and an arrival counts once. Rules that share a
join need READWRITE in its workspace. An action is done for the owner of the rule that has declared
it. One that is refused is tried again (`BACKOFF_MS`) and becomes a dead letter in the end; the
instance has fired all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import IdentityError, check_token
from aether_trio.model.text import TextError, shown
from aether_trio.model.workflows import joins as model
from aether_trio.model.workflows.compiling import NOTHING
from aether_trio.model.workflows.definition import (
    NO_RETRY,
    Action,
    EvaluationError,
    JoinDefinition,
    JoinMode,
    Json,
    Value,
)
from aether_trio.model.workflows.hops import Hops, TooManyHops, decode, encode, extend
from aether_trio.model.workflows.joins import Arrival, JoinOutcome, JoinState, JoinStatus
from aether_trio.model.workflows.keys import key_text
from aether_trio.model.workflows.records import read_action
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions import action_dead_letters
from aether_trio.services.workflows.actions.action_dead_letters import FailedAction, RepeatedAction
from aether_trio.services.workflows.actions.performer import ActionRefused, Actions, Cause, values_of
from aether_trio.services.workflows.documents.json_values import JsonError, read_json, write_json
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.stored import join_rows
from aether_trio.services.workflows.stored.definitions import EVERYWHERE
from aether_trio.services.workflows.stored.join_rows import EXPECTED, ID, MEMBER, JoinRow, WaitingAction
from aether_trio.storage.base import Program

JOIN: Final = "join"
BACKOFF_MS: Final = (1_000, 5_000, 30_000, 120_000, 600_000)
"""After which pauses a refused action is tried again."""
FINAL: Final = frozenset({"BAD_ACTION", "TOO_MANY_HOPS"})
"""What refuses an action for ever: it is a dead letter at once."""
MAX_SET: Final = 100_000
"""How many members an expected set may have."""


class JoinRefused(Exception):
    """An event cannot arrive at a join; `error_type` is a word for programs."""

    def __init__(self, message: str, error_type: str) -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinArrival:
    """An event for a join; `env` is {input, source}, `event` the matched name.

    `owner` is that of the rule, `hops` the chain with it. `key` is different for each arrival.
    """

    owner: str
    workspace: str
    event: str
    env: Mapping[str, Json]
    hops: Hops
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """What the expressions of a join give for an event."""

    dedup: str | None = None
    member: str | None = None
    expected: int | None = None
    expected_set: tuple[str, ...] | None = None


class Joins:
    """Moves joins; all methods but the constructor are programs."""

    def __init__(self, actions: Actions, *, strict: bool) -> None:
        self._actions = actions
        self._strict = strict

    def arrived(self, tx: Transaction, join: JoinDefinition, arrival: JoinArrival) -> Program[None]:
        """Take in an event. Raises JoinRefused, and has written nothing then."""
        now_ms = tx.context.now_ms
        self._check(tx, arrival)
        env = arrival.env
        moment = datetime.fromtimestamp(now_ms / 1000, UTC)

        def text(value: Value, what: str) -> str:
            return key_text(value.evaluate(env, now=lambda: moment), what)

        try:
            key = text(join.correlation_key, "correlation_key")
            row = yield from join_rows.load(join_rows.id_of(arrival.workspace, join.name, key))
            old = None if row is None else JoinState.from_json(read_state(row))
            over = model.is_over(old, now_ms)
            state = None if over else old
            if row is not None and state is not None and row.mode != join.mode:
                raise JoinRefused(
                    f"join {shown(join.name)} with key {shown(key)} is of mode {row.mode}, not {join.mode}", "BAD_JOIN"
                )
            computed = _Computed()
            if state is None or state.status is JoinStatus.OPEN:
                computed = _compute(join, state, arrival, text, moment, now_ms)
        except EvaluationError as error:
            raise JoinRefused(f"join {shown(join.name)}: {error}", "EXPRESSION") from None
        except ValueError as error:
            raise JoinRefused(f"join {shown(join.name)}: {error}", "BAD_KEY") from None
        kept = _Kept(join.name, join.mode, None if row is None or over else row.kept)
        merged = model.merge(join, kept.definition)
        kept.declare(merged, arrival, now_ms)
        join_id = join_rows.id_of(arrival.workspace, join.name, key)
        if row is not None and over:
            yield from join_rows.delete_members(join_id)
        taken = yield from self._count(join_id, join, state, arrival, computed)
        state, outcome = model.arrive(merged, state, taken, now_ms)
        if row is None:
            row = _empty_row(join_id, arrival.workspace, join, key)
            before = None
        else:
            before = row
        yield from self._settle(tx, row, before, state, outcome, kept, arrival.key)

    def _check(self, tx: Transaction, arrival: JoinArrival) -> None:
        """Check that the owner may use joins of the workspace. Raises JoinRefused."""
        workspace = arrival.workspace
        if workspace in ("", EVERYWHERE):
            raise JoinRefused("a join needs a workspace: name it in the destination", "BAD_JOIN")
        try:
            check_token(workspace, "workspace", strict=self._strict)
        except IdentityError as error:
            raise JoinRefused(str(error), "BAD_JOIN") from None
        if problem := self._actions.allowed(arrival.owner, workspace, AccessLevel.READWRITE, tx.context.now_ms):
            raise JoinRefused(problem, "PERMISSION_DENIED")

    def _count(
        self, join_id: str, join: JoinDefinition, state: JoinState | None, arrival: JoinArrival, computed: _Computed
    ) -> Program[Arrival]:
        """Write the ids of an arrival; return what it is to the instance."""
        is_new = is_member = True
        present: int | None = None
        if computed.dedup is not None:
            is_new = yield from join_rows.add_member(join_id, ID, computed.dedup)
        if computed.expected_set is not None:
            yield from join_rows.set_expected(join_id, computed.expected_set)
        if computed.member is not None:
            is_known = computed.expected_set is not None or (state is not None and state.expected is not None)
            if is_known:
                is_member = yield from join_rows.has_member(join_id, EXPECTED, computed.member)
            if is_new:
                # A further arming event may expect one that is not expected now.
                is_new = yield from join_rows.add_member(join_id, MEMBER, computed.member)
        if computed.expected_set is not None:
            present = yield from join_rows.count_present(join_id)
        return Arrival(
            arms=model.is_arming(join, arrival.event),
            is_new=is_new,
            is_member=is_member,
            expected=computed.expected,
            present=present,
        )

    def time_passed(self, tx: Transaction, join_id: str) -> Program[None]:
        """Act on the due moment of an instance: the handler of its timer."""
        row = yield from join_rows.load(join_id)
        if row is None:
            yield from join_rows.delete(join_id)
            return
        state = JoinState.from_json(read_state(row))
        kept = _Kept(row.join_name, JoinMode(row.mode), row.kept)
        key = f"{row.join_id}\0{state.began_ms}\0{row.due_ms}"
        after, outcome = model.time_passed(kept.definition, state, tx.context.now_ms)
        if after is None:
            yield from join_rows.delete(join_id)
        else:
            # A timer that is early is set again.
            yield from self._settle(tx, row, replace(row, due_ms=0), after, outcome, kept, key)

    def cancel(self, tx: Transaction, join_id: str) -> Program[JoinRow | None]:
        """Cancel an instance if it is open; return it as it is then."""
        row = yield from join_rows.load(join_id)
        if row is None:
            return None
        kept = _Kept(row.join_name, JoinMode(row.mode), row.kept)
        state, outcome = model.cancel(kept.definition, JoinState.from_json(read_state(row)), tx.context.now_ms)
        if state is None or outcome.ended is None:
            return row
        return (yield from self._settle(tx, row, row, state, outcome, kept, ""))

    def _settle(
        self,
        tx: Transaction,
        row: JoinRow,
        before: JoinRow | None,
        state: JoinState,
        outcome: JoinOutcome,
        kept: _Kept,
        key: str,
    ) -> Program[JoinRow]:
        """Write what has become of an instance, and do the action that follows."""
        declared, hops = kept.declared(outcome.action), kept.hops
        if declared is not None:
            kept.hops = ()
        row = replace(
            row,
            arrived=state.arrived,
            expected=-1 if state.expected is None else state.expected,
            dirty=int(state.dirty),
            status=state.status.value,
            deadline_ms=state.deadline_ms,
            linger_until_ms=state.linger_until_ms,
            due_ms=state.due_ms,
            mode=kept.mode.value,
            created_ms=state.began_ms,
            updated_ms=tx.context.now_ms,
            state=write_json(state.to_json()),
            kept=kept.to_json(),
        )
        yield from join_rows.put(row, before)
        _note_due(tx, row.due_ms)
        if declared is not None:
            action = WaitingAction(
                join_rows.hash_of(f"{row.join_id}\0{key}"),
                row.workspace,
                row.join_name,
                row.correlation_key,
                declared["owner"],
                encode(hops),
                write_json(declared["action"]),
                0,
            )
            yield from self._try(tx, action)
        return row

    # -- actions -----------------------------------------------------------------------------------

    def _try(self, tx: Transaction, action: WaitingAction) -> Program[None]:
        """Do an action; if it is refused, keep it for another try or bury it."""
        try:
            yield from self._perform(tx, action, f"join {action.id}")
        except ActionRefused as error:
            if error.error_type not in FINAL and action.refusals < len(BACKOFF_MS):
                due_ms = tx.context.now_ms + BACKOFF_MS[action.refusals]
                yield from join_rows.put_action(replace(action, refusals=action.refusals + 1), due_ms)
                _note_due(tx, due_ms)
                return
            yield from self._bury(tx, action, error)
        if action.refusals:
            yield from join_rows.delete_action(action.id)

    def action_due(self, tx: Transaction, id: str) -> Program[None]:  # noqa: A002
        """Try a refused action again: the handler of its timer."""
        action = yield from join_rows.load_action(id)
        if action is None:
            yield from join_rows.delete_action(id)
            return
        yield from self._try(tx, action)

    def _bury(self, tx: Transaction, action: WaitingAction, error: ActionRefused) -> Program[None]:
        key = shown(action.correlation_key)
        failed = FailedAction(
            kind=JOIN,
            name=action.join_name,
            key=f"join {action.id}",
            workspace=action.workspace,
            owner=action.owner,
            reason=f"the action of join {shown(action.join_name)} with key {key} failed: {error}",
            error_type=error.error_type,
            place={
                "workspace": action.workspace,
                "join": action.join_name,
                "key": action.correlation_key,
                "owner": action.owner,
                "hops": action.hops,
            },
            over=read_json(action.action),
        )
        yield from action_dead_letters.bury(tx, failed)

    def act_again(self, tx: Transaction, again: RepeatedAction) -> Program[None]:
        """Do the action of a dead letter. Raises ActionRefused."""
        place = again.place
        action = WaitingAction(
            "", place["workspace"], place["join"], place["key"], place["owner"], place["hops"], again.over, 0
        )
        yield from self._perform(tx, action, again.key)

    def _perform(self, tx: Transaction, waiting: WaitingAction, key: str) -> Program[None]:
        try:
            action = read_action(read_json(waiting.action), TOOLS, f"join {shown(waiting.join_name)}")
            values = values_of(action, {}, tx.context.now_ms)
            hops = extend(decode(waiting.hops), JOIN, waiting.join_name)
        except (EvaluationError, JsonError) as error:
            raise ActionRefused(str(error), "BAD_ACTION") from None
        except TooManyHops as error:
            raise ActionRefused(str(error), "TOO_MANY_HOPS") from None
        yield from self._actions.perform(tx, action, values, Cause(key, waiting.owner, waiting.workspace, hops))


class _Kept:
    """What rules have declared of an instance, as its row has it.

    The actions of `definition` only stand for those that are declared: `declared` gives these.
    """

    def __init__(self, name: str, mode: JoinMode, kept: bytes | None) -> None:
        self._found: dict[str, Any] = {} if kept is None else read_json(kept)
        self.mode = mode
        self.hops = decode(self._found.get("hops"))
        self._actions: dict[str, Action | None] = {
            place: Action() if self._found.get(place) else None for place in ("on_complete", "on_timeout")
        }
        self.definition = JoinDefinition(
            name=name,
            correlation_key=NOTHING,
            mode=mode,
            window_ms=int(self._found.get("window_ms", 0)),
            timeout_ms=int(self._found.get("timeout_ms", 0)),
            linger_ms=int(self._found.get("linger_ms", 0)),
            on_complete=self._actions["on_complete"],
            on_timeout=self._actions["on_timeout"],
            on_partial_failure=self._found.get("on_partial_failure", ""),
        )

    def declare(self, merged: JoinDefinition, arrival: JoinArrival, now_ms: int) -> None:
        """Keep what is declared after an arrival."""
        for name in ("window_ms", "timeout_ms", "linger_ms", "on_partial_failure"):
            self._found[name] = getattr(merged, name)
        for place in ("on_complete", "on_timeout"):
            action: Action | None = getattr(merged, place)
            if action is not None and action is not self._actions[place]:
                self._actions[place] = action
                self._found[place] = {"action": document_of(action, now_ms), "owner": arrival.owner}
        if len(arrival.hops) >= len(self.hops):
            self.hops = arrival.hops

    def declared(self, action: Action | None) -> dict[str, Any] | None:
        """Return the document and the owner of an action that is to be done."""
        if action is None:
            return None
        place = next(place for place, one in self._actions.items() if one is action)
        found: dict[str, Any] = self._found[place]
        return found

    def to_json(self) -> bytes:
        return write_json({**self._found, "hops": list(self.hops)})


def _compute(
    join: JoinDefinition,
    state: JoinState | None,
    arrival: JoinArrival,
    text: Callable[[Value, str], str],
    moment: datetime,
    now_ms: int,
) -> _Computed:
    """Compute what an event says. Raises EvaluationError and ValueError."""
    arms = model.is_arming(join, arrival.event)
    dedup = member = None
    if join.dedup_key is not None and not arms:
        dedup = text(join.dedup_key, "dedup_key")
    if join.mode is JoinMode.SET and not arms:
        if join.member_key is None:
            raise TextError("mode set needs a member_key")
        member = text(join.member_key, "member_key")
    declared = join.expected_set if join.mode is JoinMode.SET else join.expected_count
    if not model.wants_expected(join, state, arrival.event, now_ms) or (declared is None and not arms):
        return _Computed(dedup=dedup, member=member)
    name = "expected_set" if join.mode is JoinMode.SET else "expected_count"
    value = None if declared is None else declared.evaluate(arrival.env, now=lambda: moment)
    if value is None:
        if arms:
            raise TextError(f"{name} of the arming event {shown(arrival.event)} is null: is a field missing?")
        return _Computed(dedup=dedup, member=member)
    if join.mode is not JoinMode.SET:
        return _Computed(dedup=dedup, expected=model.expected_number(value))
    if not isinstance(value, list):
        raise TextError(f"expected_set is {shown(value)}, and no list")
    if len(value) > MAX_SET:
        raise TextError(f"expected_set has {len(value)} members; at most {MAX_SET} are allowed")
    members = tuple(dict.fromkeys(key_text(one, "a member of expected_set") for one in value))
    return _Computed(dedup=dedup, member=member, expected=len(members), expected_set=members)


def document_of(action: Action, now_ms: int) -> dict[str, Any]:
    """Return the document of an action that is computed, as `read_action` reads it."""
    found: dict[str, Any] = {
        "type": action.type.value,
        "agent": action.agent,
        "tool_name": action.tool_name,
        "workspace": action.workspace,
        "task_type": action.task_type,
        "target_implementation": action.target_implementation,
        "event_name": action.event_name,
        "priority": action.priority,
        **values_of(action, {}, now_ms),
    }
    found = {name: value for name, value in found.items() if value not in ("", 0, None)}
    if action.retry is not NO_RETRY:
        retry = action.retry
        found["retry"] = {
            "max_attempts": retry.max_attempts,
            "backoff": retry.backoff,
            "initial_ms": retry.initial_ms,
            "max_ms": retry.max_ms,
            "jitter": retry.jitter,
            "final": list(retry.final),
        }
    if action.completion_event.enabled:
        found["completion_event"] = {"enabled": True, "event_name": action.completion_event.event_name}
    return found


def read_state(row: JoinRow) -> dict[str, Any]:
    """Return the stored state with its whole numbers."""
    found: dict[str, Any] = {
        name: int(value) if isinstance(value, float) else value for name, value in read_json(row.state).items()
    }
    return found


def _empty_row(join_id: str, workspace: str, join: JoinDefinition, key: str) -> JoinRow:
    return JoinRow(join_id, workspace, join.name, key, join.mode.value, 0, -1, 0, "", 0, 0, 0, 0, 0, b"", b"")


def _note_due(tx: Transaction, due_ms: int) -> None:
    tx.effects.note_due(due_ms)
