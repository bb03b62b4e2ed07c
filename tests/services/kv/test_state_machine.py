"""The store against a dictionary, under random operations, expiry and clocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from aether_trio.model.limits import Limits
from aether_trio.services.kv import KvService
from aether_trio.services.kv.entries import MAX_EXPIRES_MS
from aether_trio.storage.base import Fetch, Program, Row, single
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.access import authorizer
from tests.helpers.clocks import ManualClock
from tests.helpers.direct import Direct, Store
from tests.services.kv.conftest import ALICE

T = TypeVar("T")
Op = pb.KVOperation
KEYS = st.sampled_from(["a", "ab", "b", "b:\x00", "é"])
VALUES = st.sampled_from(
    [
        b"",
        bytes(1023),
        bytes(5000),
        b"x",
        b"1",
        b"2",
        b"0",
        b"-1",
        b"41",
        b"9223372036854775807",
        b"-9223372036854775808",
    ]
)
TTLS = st.sampled_from([-1, 0, 0, 1, 2, 5, 2**63 - 1])
MEMBERS = st.sampled_from([b"", bytes(2000), b"m", b"n"])


class DirectDatabase:
    """Runs the real SQL without threads, so that Hypothesis drives it step by step."""

    def __init__(self, direct: Direct) -> None:
        self._direct = direct
        self.shared = direct.shared

    async def run(self, program: Callable[[], Program[T]]) -> T:
        return self._direct.drive(program)

    read = read_small = run_small = run


class Model:
    """Models the store as key -> (value or members, expiry); time removes nothing."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[bytes | frozenset[bytes], int | None]] = {}

    def live(self, key: str, now_ms: int) -> tuple[bytes | frozenset[bytes], int | None] | None:
        entry = self.entries.get(key)
        return None if entry is None or (entry[1] is not None and entry[1] <= now_ms) else entry


class StoreMachine(RuleBasedStateMachine):
    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.place = self.store.place()
        self.database = DirectDatabase(self.place.direct("state"))
        self.clock = ManualClock()
        self.service = KvService(self.database, self.clock, Limits(), authorizer(shared_keys=True))  # type: ignore[arg-type]
        self.model = Model()

    def teardown(self) -> None:
        self.place.close()

    def op(self, op: Any, key: str, **fields: Any) -> pb.KVResponse | None:
        """The response, or None when the operation was refused."""
        messages = _finish(self.service.handle(ALICE, Op(op=op, scope=Op.GLOBAL, key=key, request_id="r", **fields)))
        assert messages[0].kv.request_id == "r"
        assert len(messages) == (1 if messages[0].kv.success else 2)
        return messages[0].kv if messages[0].kv.success else None

    def expiry(self, ttl: int) -> int | None:
        return min(self.clock.now_ms() + ttl * 1000, MAX_EXPIRES_MS) if ttl > 0 else None

    def live(self, key: str) -> tuple[bytes | frozenset[bytes], int | None] | None:
        return self.model.live(key, self.clock.now_ms())

    @rule(ms=st.sampled_from([1, 999, 1000, 2500]))
    def time_passes(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule(back_ms=st.sampled_from([1, 1500, 60_000]))
    def the_clock_is_set_back(self, back_ms: int) -> None:
        self.clock.set_wall(self.clock.now_ms() - back_ms)

    @rule()
    def sweep(self) -> None:
        dead = [key for key in self.model.entries if self.live(key) is None]
        assert _finish(self.service.sweep()) == len(dead)
        for key in dead:
            del self.model.entries[key]

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def put(self, key: str, value: bytes, ttl: int) -> None:
        assert self.op(Op.PUT, key, value=value, ttl=ttl) is not None
        self.model.entries[key] = (value, self.expiry(ttl))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.op(Op.DELETE, key) is not None
        self.model.entries.pop(key, None)

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def set_if_absent(self, key: str, value: bytes, ttl: int) -> None:
        response = self.op(Op.SET_NX, key, value=value, ttl=ttl)
        assert response is not None
        assert response.applied == (self.live(key) is None)
        if response.applied:
            self.model.entries[key] = (value, self.expiry(ttl))

    @rule(key=KEYS, expected=VALUES, value=VALUES, ttl=TTLS, delete=st.booleans())
    def compare(self, key: str, expected: bytes, value: bytes, ttl: int, delete: bool) -> None:
        op = Op.COMPARE_AND_DELETE if delete else Op.COMPARE_AND_SET
        response = self.op(op, key, expected_value=expected, value=value, ttl=ttl)
        entry = self.live(key)
        if entry is not None and isinstance(entry[0], frozenset):
            assert response is None
            return
        assert response is not None
        assert response.applied == (entry is not None and entry[0] == expected)
        assert response.value == (b"" if entry is None or response.applied else entry[0])
        if response.applied and delete:
            del self.model.entries[key]
        elif response.applied:
            self.model.entries[key] = (value, self.expiry(ttl))

    @rule(key=KEYS, up=st.booleans(), ttl=TTLS)
    def count(self, key: str, up: bool, ttl: int) -> None:
        # It counts by one, whatever `delta_value` says.
        response = self.op(Op.INCREMENT if up else Op.DECREMENT, key, ttl=ttl, delta_value=50)
        entry = self.live(key)
        current = _number(entry)
        result = None if current is None else current + (1 if up else -1)
        if result is None or not -(2**63) <= result < 2**63:
            assert response is None
            return
        assert response is not None
        assert response.counter_value == result
        expires = self.expiry(ttl) if up and result == 1 and ttl > 0 else (entry[1] if entry else None)
        self.model.entries[key] = (b"%d" % result, expires)

    @rule(key=KEYS, up=st.booleans(), delta=st.integers(0, 50), beyond=st.integers(-2, 2), ttl=TTLS)
    def count_within(self, key: str, up: bool, delta: int, beyond: int, ttl: int) -> None:
        entry = self.live(key)
        current = _number(entry)
        guard = max(-(2**63), min((current or 0) + (delta or 1) * (1 if up else -1) + beyond, 2**63 - 1))
        op = Op.INCREMENT_IF if up else Op.DECREMENT_IF
        response = self.op(op, key, delta_value=delta, guard_value=guard, ttl=ttl)
        if current is None:
            assert response is None
            return
        assert response is not None
        result = current + (delta or 1) * (1 if up else -1)
        assert response.applied == (result <= guard if up else result >= guard)
        assert response.counter_value == (result if response.applied else current)
        if response.applied:
            self.model.entries[key] = (b"%d" % result, entry[1] if entry else self.expiry(ttl))

    @rule(key=KEYS, member=MEMBERS, ttl=TTLS)
    def set_add(self, key: str, member: bytes, ttl: int) -> None:
        response = self.op(Op.SET_ADD, key, value=member, ttl=ttl)
        members, expires = self.live(key) or (frozenset[bytes](), None)
        if isinstance(members, bytes):
            assert response is None
            return
        assert response is not None
        assert response.applied == (member not in members)
        assert response.counter_value == len(members | {member})
        if response.applied:
            expires = self.expiry(ttl) if ttl > 0 else expires
            self.model.entries[key] = (members | {member}, expires)

    @invariant()
    def every_key_reads_as_the_model_says(self) -> None:
        alive = {}
        for key in ("a", "ab", "b", "b:\x00", "é"):
            entry = self.live(key)
            value, size = self.op(Op.GET, key), self.op(Op.SET_CARD, key)
            if entry is None:
                assert value is not None
                assert size is not None
                assert (value.value, size.counter_value) == (b"", 0)
            elif isinstance(entry[0], bytes):
                assert value is not None
                assert (value.value, size) == (entry[0], None)
                alive[key] = entry[0]
            else:
                assert size is not None
                assert (value, size.counter_value) == (None, len(entry[0]))
                alive[key] = b""
        response = self.op(Op.LIST, "")
        assert response is not None
        assert list(response.keys) == sorted(alive, key=str.encode)
        assert dict(response.kv_map) == alive

    @invariant()
    def every_key_ends_when_the_model_says(self) -> None:
        rows = self.place.direct("state").drive(lambda: single(Fetch("SELECT key, expires_ms FROM kv_entries")))
        ends = {key.encode(): entry[1] for key, entry in self.model.entries.items()}
        assert {bytes(key): expires_ms for key, expires_ms in rows} == ends

    @invariant()
    def no_member_outlives_its_set(self) -> None:
        def count() -> Program[int]:
            rows = yield Fetch(
                "SELECT count(*) FROM kv_entries e WHERE e.members IS NOT NULL AND e.members <> "
                "(SELECT count(*) FROM kv_members m WHERE m.space = e.space AND m.key = e.key)"
            )
            return int(rows[0][0])

        orphans = self.place.direct("state").drive(count)
        assert orphans == 0

    @invariant()
    def what_is_counted_is_what_is_there(self) -> None:
        counted: list[Row] = self.place.direct("state").drive(
            lambda: single(Fetch("SELECT items, units FROM kv_spaces ORDER BY space"))
        )
        summed: list[Row] = self.place.direct("state").drive(
            lambda: single(Fetch("SELECT coalesce(members, 1), units FROM kv_entries"))
        )
        assert counted == ([(sum(row[0] for row in summed), sum(row[1] for row in summed))] if summed else [])
        units = {
            key: sum(max(1, -(-(len(key.encode()) + len(one)) // 1024)) for one in entry[0])
            if isinstance(entry[0], frozenset)
            else max(1, -(-(len(key.encode()) + len(entry[0])) // 1024))
            for key, entry in self.model.entries.items()
        }
        assert sum(row[1] for row in summed) == sum(units.values())


def _number(entry: tuple[bytes | frozenset[bytes], int | None] | None) -> int | None:
    if entry is None:
        return 0
    return int(entry[0]) if isinstance(entry[0], bytes) and entry[0].lstrip(b"-").isdigit() else None


def _finish(coroutine: Any) -> Any:
    """Run a coroutine that never really waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the service waited for something")


def test_the_store_is_a_dictionary(store: Store) -> None:
    machine = type("OnThisEngine", (StoreMachine,), {"store": store})
    limits = settings(max_examples=store.examples(60), stateful_step_count=40, deadline=None)
    run_state_machine_as_test(machine, settings=limits)
