"""`agent.kv`: reads and writes the gateway's key-value store.

Keys are texts of 1 to 256 bytes, values are bytes. Where a key is, each method takes as keywords
(`KeyPlace`): `scope` (by default WORKSPACE), `user_id`, `workspace` when it is not the caller's,
and `authorization` to act for another principal. `ttl_s` is in whole seconds; 0 keeps the entry for
good, and a write always replaces the ttl that was there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Self, TypedDict, Unpack

from aether_trio.client.operations.enums import Scope
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import Authorization, authorization_context
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.KVOperation


class KeyPlace(TypedDict, total=False):
    """Where a key of the key-value store is: scope, user, workspace."""

    scope: Scope
    user_id: str
    workspace: str
    authorization: Authorization | None


@dataclass(frozen=True, slots=True)
class KvEntryPage:
    """A page of key-value entries, in the order of their keys."""

    entries: Mapping[str, bytes]
    next_cursor: str
    """For the next page; "" when this is the last."""


@dataclass(frozen=True, slots=True)
class CounterChange:
    """The result of a guarded change of a counter."""

    value: int
    applied: bool
    """False: the guard would have been passed, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class SwapResult:
    """The result of a compare-and-set or compare-and-delete."""

    applied: bool
    value: bytes
    """If not applied: what is there instead; b"" for nothing."""


@dataclass(frozen=True, slots=True)
class SetAddResult:
    """The result of adding a member to a set."""

    applied: bool
    """False: it was a member already."""
    size: int


class _Entries:
    """Iterates over key-value entries; `page` fetches the page at a cursor."""

    def __init__(self, page: Callable[[str], Awaitable[KvEntryPage]]) -> None:
        self._page = page
        self._cursor: str | None = ""
        self._rest: list[tuple[str, bytes]] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        while not self._rest:
            if self._cursor is None:
                raise StopAsyncIteration
            page = await self._page(self._cursor)
            self._rest = list(reversed(tuple(page.entries.items())))
            self._cursor = page.next_cursor or None
        return self._rest.pop()


class Kv(Namespace):
    """Reads and writes the gateway's key-value store."""

    async def get(self, key: str, **place: Unpack[KeyPlace]) -> bytes:
        """Return the value of a key; b"" if there is none, as for an empty value."""
        return (await self._do(_Op(op=_Op.GET, key=key), place)).value

    async def put(self, key: str, value: bytes, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> None:
        """Write the value of a key, whether the key exists or not."""
        await self._do(_Op(op=_Op.PUT, key=key, value=value, ttl=ttl_s), place)

    async def delete(self, key: str, **place: Unpack[KeyPlace]) -> None:
        """Delete a key. A missing one is no error."""
        await self._do(_Op(op=_Op.DELETE, key=key), place)

    async def list(
        self, prefix: str = "", *, limit: int = 0, cursor: str = "", **place: Unpack[KeyPlace]
    ) -> KvEntryPage:
        """Return one page, of 100 at most, of the entries whose keys begin with `prefix`."""
        answer = await self._do(_Op(op=_Op.LIST, key=prefix, limit=limit, cursor=cursor), place)
        return KvEntryPage(
            {key: answer.kv_map[key] for key in answer.keys}, answer.next_cursor if answer.has_more else ""
        )

    def items(
        self, prefix: str = "", *, page_size: int = 0, **place: Unpack[KeyPlace]
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Iterate over all entries whose keys begin with `prefix`, page by page."""
        return _Entries(lambda cursor: self.list(prefix, limit=page_size, cursor=cursor, **place))

    async def increment(self, key: str, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> int:
        """Add 1 to a counter, 0 if absent; return the new value. Other values are refused."""
        return (await self._do(_Op(op=_Op.INCREMENT, key=key, ttl=ttl_s), place)).counter_value

    async def decrement(self, key: str, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> int:
        """Take 1 from a counter, which is 0 if it is absent; return the new value."""
        return (await self._do(_Op(op=_Op.DECREMENT, key=key, ttl=ttl_s), place)).counter_value

    async def increment_if(
        self, key: str, *, ceiling: int, delta: int = 1, ttl_s: int = 0, **place: Unpack[KeyPlace]
    ) -> CounterChange:
        """Add `delta` (0 is read as 1) to a counter, unless it would go above `ceiling`."""
        op = _Op(op=_Op.INCREMENT_IF, key=key, guard_value=ceiling, delta_value=delta, ttl=ttl_s)
        answer = await self._do(op, place)
        return CounterChange(answer.counter_value, answer.applied)

    async def decrement_if(
        self, key: str, *, floor: int, delta: int = 1, ttl_s: int = 0, **place: Unpack[KeyPlace]
    ) -> CounterChange:
        """Take `delta` (0 is read as 1) from a counter, unless it would go below `floor`."""
        op = _Op(op=_Op.DECREMENT_IF, key=key, guard_value=floor, delta_value=delta, ttl=ttl_s)
        answer = await self._do(op, place)
        return CounterChange(answer.counter_value, answer.applied)

    async def put_if_absent(self, key: str, value: bytes, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> bool:
        """Write a value only if its key is absent (SET_NX); return whether it was."""
        return (await self._do(_Op(op=_Op.SET_NX, key=key, value=value, ttl=ttl_s), place)).applied

    async def compare_and_set(
        self, key: str, expected: bytes, value: bytes, *, ttl_s: int = 0, **place: Unpack[KeyPlace]
    ) -> SwapResult:
        """Write a value only if the present one is `expected`; an absent key never is."""
        op = _Op(op=_Op.COMPARE_AND_SET, key=key, expected_value=expected, value=value, ttl=ttl_s)
        answer = await self._do(op, place)
        return SwapResult(answer.applied, b"" if answer.applied else answer.value)

    async def compare_and_delete(self, key: str, expected: bytes, **place: Unpack[KeyPlace]) -> SwapResult:
        """Delete a key only if its value is `expected`."""
        answer = await self._do(_Op(op=_Op.COMPARE_AND_DELETE, key=key, expected_value=expected), place)
        return SwapResult(answer.applied, b"" if answer.applied else answer.value)

    async def set_add(self, key: str, member: bytes, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> SetAddResult:
        """Add a member to the set at `key`. `ttl_s` is that of the whole set."""
        answer = await self._do(_Op(op=_Op.SET_ADD, key=key, value=member, ttl=ttl_s), place)
        return SetAddResult(answer.applied, answer.counter_value)

    async def set_size(self, key: str, **place: Unpack[KeyPlace]) -> int:
        """Return how many members the set at `key` has (SET_CARD); 0 if it is absent."""
        return (await self._do(_Op(op=_Op.SET_CARD, key=key), place)).counter_value

    async def purge_identity(
        self,
        identity: str,
        *,
        prefix: str = "",
        scope: Scope = Scope.UNSPECIFIED,
        user_id: str = "",
        workspace: str = "",
        authorization: Authorization | None = None,
    ) -> int:
        """Delete keys that only `identity` sees; return how many. Needs kv_purge_identity."""
        op = _Op(op=_Op.PURGE_IDENTITY, key=prefix, target_identity=identity)
        place = KeyPlace(scope=scope, user_id=user_id, workspace=workspace, authorization=authorization)
        return (await self._do(op, place)).counter_value

    async def _do(self, op: pb.KVOperation, place: KeyPlace) -> pb.KVResponse:
        if unknown := place.keys() - KeyPlace.__annotations__.keys():
            raise TypeError(
                f"unknown argument {min(unknown)!r}; a key is found by {', '.join(KeyPlace.__annotations__)}"
            )
        op.scope = pb.KVOperation.Scope.ValueType(place.get("scope", Scope.WORKSPACE))
        op.user_id = place.get("user_id", "")
        op.workspace = place.get("workspace", "")
        context = authorization_context(place.get("authorization"))
        if context is not None:
            op.authorization.CopyFrom(context)
        answer: pb.KVResponse = await self._ask("kv_op", op)
        return answer
