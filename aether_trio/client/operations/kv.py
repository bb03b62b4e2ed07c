"""`agent.kv`: the key-value store.

Keys are texts of 1 to 256 bytes, values are bytes. Every method takes where the key is, as keywords
(`KeyPlace`): `scope` (by default WORKSPACE), `user_id` for scopes about a user, `workspace` when it
is not the caller's own, and `authorization` to act for another principal. `ttl_s` is in
whole seconds; 0 keeps the entry for good, and a write always replaces the ttl that was there.

Every method raises Refused for what the gateway refuses (scope, key, size, access), and
PermissionDenied for what the caller may not do.
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
    """Where a key is; see the module's text."""

    scope: Scope
    user_id: str
    workspace: str
    authorization: Authorization | None


@dataclass(frozen=True, slots=True)
class KvEntryPage:
    """Some of the entries that `list` found, in the order of their keys."""

    entries: Mapping[str, bytes]
    next_cursor: str
    """For the next page; "" when this is the last."""


@dataclass(frozen=True, slots=True)
class CounterChange:
    """A counter after a guarded change."""

    value: int
    applied: bool
    """False: the guard would have been passed, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class SwapResult:
    """What became of a compare-and-set or compare-and-delete."""

    applied: bool
    value: bytes
    """If not applied: what is there instead; b"" for nothing."""


@dataclass(frozen=True, slots=True)
class SetAddResult:
    """A set after a member was offered to it."""

    applied: bool
    """False: it was a member already."""
    size: int


class _Entries:
    """The entries of all pages, one by one; `page` asks for the one at a cursor."""

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
    """The key-value store; help(aether_trio.client.operations.kv) says more."""

    async def get(self, key: str, **place: Unpack[KeyPlace]) -> bytes:
        """Return the value, or b"" if there is none.

        The protocol does not tell a missing key from an empty value.
        """
        return (await self._do(_Op(op=_Op.GET, key=key), place)).value

    async def put(self, key: str, value: bytes, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> None:
        """Write the value, whatever was there."""
        await self._do(_Op(op=_Op.PUT, key=key, value=value, ttl=ttl_s), place)

    async def delete(self, key: str, **place: Unpack[KeyPlace]) -> None:
        """Forget the key. One that is not there is no error."""
        await self._do(_Op(op=_Op.DELETE, key=key), place)

    async def list(
        self, prefix: str = "", *, limit: int = 0, cursor: str = "", **place: Unpack[KeyPlace]
    ) -> KvEntryPage:
        """Return one page of the entries whose keys begin with `prefix`.

        `limit` 0 is 100, which is also the most.

        `cursor` is the `next_cursor` of the page before.
        """
        answer = await self._do(_Op(op=_Op.LIST, key=prefix, limit=limit, cursor=cursor), place)
        return KvEntryPage(
            {key: answer.kv_map[key] for key in answer.keys}, answer.next_cursor if answer.has_more else ""
        )

    def items(
        self, prefix: str = "", *, page_size: int = 0, **place: Unpack[KeyPlace]
    ) -> AsyncIterator[tuple[str, bytes]]:
        """All entries whose keys begin with `prefix`, page by page.

        A key that stays is seen once; one that comes or goes meanwhile may be seen or not.
        """
        return _Entries(lambda cursor: self.list(prefix, limit=page_size, cursor=cursor, **place))

    async def increment(self, key: str, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> int:
        """Add 1 to the counter, which is 0 if it is absent; return what it is now.

        A value that is no number is refused.
        """
        return (await self._do(_Op(op=_Op.INCREMENT, key=key, ttl=ttl_s), place)).counter_value

    async def decrement(self, key: str, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> int:
        """Take 1 from the counter, which is 0 if it is absent; return what it is now."""
        return (await self._do(_Op(op=_Op.DECREMENT, key=key, ttl=ttl_s), place)).counter_value

    async def increment_if(
        self, key: str, *, ceiling: int, delta: int = 1, ttl_s: int = 0, **place: Unpack[KeyPlace]
    ) -> CounterChange:
        """Add `delta` unless the counter would go above `ceiling`.

        `delta` is not negative; 0 is read as 1.
        """
        op = _Op(op=_Op.INCREMENT_IF, key=key, guard_value=ceiling, delta_value=delta, ttl=ttl_s)
        answer = await self._do(op, place)
        return CounterChange(answer.counter_value, answer.applied)

    async def decrement_if(
        self, key: str, *, floor: int, delta: int = 1, ttl_s: int = 0, **place: Unpack[KeyPlace]
    ) -> CounterChange:
        """Take `delta` (not negative.

        0 is read as 1) unless the counter would go below `floor`.
        """
        op = _Op(op=_Op.DECREMENT_IF, key=key, guard_value=floor, delta_value=delta, ttl=ttl_s)
        answer = await self._do(op, place)
        return CounterChange(answer.counter_value, answer.applied)

    async def put_if_absent(self, key: str, value: bytes, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> bool:
        """Write the value only if the key is absent (SET_NX); return whether it was."""
        return (await self._do(_Op(op=_Op.SET_NX, key=key, value=value, ttl=ttl_s), place)).applied

    async def compare_and_set(
        self, key: str, expected: bytes, value: bytes, *, ttl_s: int = 0, **place: Unpack[KeyPlace]
    ) -> SwapResult:
        """Write the value only if the present one is `expected`.

        An absent key never is, not even with b"".
        """
        op = _Op(op=_Op.COMPARE_AND_SET, key=key, expected_value=expected, value=value, ttl=ttl_s)
        answer = await self._do(op, place)
        return SwapResult(answer.applied, b"" if answer.applied else answer.value)

    async def compare_and_delete(self, key: str, expected: bytes, **place: Unpack[KeyPlace]) -> SwapResult:
        """Forget the key only if its value is `expected`."""
        answer = await self._do(_Op(op=_Op.COMPARE_AND_DELETE, key=key, expected_value=expected), place)
        return SwapResult(answer.applied, b"" if answer.applied else answer.value)

    async def set_add(self, key: str, member: bytes, *, ttl_s: int = 0, **place: Unpack[KeyPlace]) -> SetAddResult:
        """Add a member to the set at `key`. `ttl_s` is the set's."""
        answer = await self._do(_Op(op=_Op.SET_ADD, key=key, value=member, ttl=ttl_s), place)
        return SetAddResult(answer.applied, answer.counter_value)

    async def set_size(self, key: str, **place: Unpack[KeyPlace]) -> int:
        """How many members the set at `key` has (SET_CARD); 0 if it is absent."""
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
        """Forget what `identity` keeps in its exclusive scopes, or in the one given.

        Return how many entries that were.

        Needs the capability kv_purge_identity.
        """
        op = _Op(op=_Op.PURGE_IDENTITY, key=prefix, target_identity=identity)
        place = KeyPlace(scope=scope, user_id=user_id, workspace=workspace, authorization=authorization)
        return (await self._do(op, place)).counter_value

    async def _do(self, op: pb.KVOperation, place: KeyPlace) -> pb.KVResponse:
        if unknown := place.keys() - KeyPlace.__annotations__.keys():
            raise TypeError(
                f"unknown argument {min(unknown)!r}; the place of a key has {', '.join(KeyPlace.__annotations__)}"
            )
        op.scope = pb.KVOperation.Scope.ValueType(place.get("scope", Scope.WORKSPACE))
        op.user_id = place.get("user_id", "")
        op.workspace = place.get("workspace", "")
        context = authorization_context(place.get("authorization"))
        if context is not None:
            op.authorization.CopyFrom(context)
        answer: pb.KVResponse = await self._ask("kv_op", op)
        return answer
