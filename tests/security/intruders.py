"""A closed gateway in virtual time, and who is on it: keys limit, and rules do.

The intruder has a key for the workspaces red and blue, so that her credential refuses nothing: what
refuses her is `access.default: closed` alone. She is an agent of red.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import Any, Final

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink, StreamEnded
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, bridge, connect, service, switch_to, user
from tests.security.tenants import auth, key_of

CLOSED: Final[dict[str, dict[str, Any]]] = {"access": {"default": "closed"}, "auth": auth()}
"""Settings of a gateway whose clients need a key, and rules for what is not their own."""
DENIED: Final = "ERR_PERMISSION_DENIED"
EVE: Final = ("agent", "ag::red::eve::1")
BOB: Final = ("agent", "ag::blue::bob::1")
KV = pb.KVOperation
RED: Final = ("workspace", "red")
BLUE: Final = ("workspace", "blue")

_numbers = count(1)


def key(name: str) -> dict[str, str]:
    return {"api_key": key_of(name)}


def eve(core: Core, name: str = "eve", *, tenant: str = "both") -> AbstractAsyncContextManager[MemoryLink]:
    """The intruder, an agent of red."""
    return connect(core, agent("red", name, "1", credentials=key(tenant)))


def bob(core: Core, name: str = "bob") -> AbstractAsyncContextManager[MemoryLink]:
    """An agent of blue."""
    return connect(core, agent("blue", name, "1", credentials=key("blue")))


def window(core: Core, user_id: str, *, tenant: str = "both") -> AbstractAsyncContextManager[MemoryLink]:
    """A window of a user, in no workspace yet."""
    return connect(core, user(user_id, "w", credentials=key(tenant)))


def administrator(core: Core) -> AbstractAsyncContextManager[MemoryLink]:
    return window(core, "admin", tenant="all")


def a_service(core: Core, name: str = "s") -> AbstractAsyncContextManager[MemoryLink]:
    return connect(core, service(name, "1", credentials=key("all")))


def a_bridge(core: Core) -> AbstractAsyncContextManager[MemoryLink]:
    return connect(core, bridge("b", "1", credentials=key("all")))


async def code_of(peer: MemoryLink, *messages: pb.UpstreamMessage) -> str:
    """The code of the error that these messages cause; "" for none."""
    peer.send(*messages)
    await barrier(peer)
    errors = [one.error for one in peer.waiting("error")]
    for one in peer.waiting("error"):
        peer._downstream.remove(one)
    return errors[0].code if errors else ""


async def turned_away(core: Core, hello: pb.UpstreamMessage) -> StreamEnded:
    """How the gateway refuses a client."""
    async with connect(core, hello, wait_ack=False) as peer:
        ended = await peer.wait_end()
        assert peer.waiting("connection_ack") == []
        return ended


async def enter(peer: MemoryLink, workspace: str) -> str:
    """Switch a user's window; the code of the refusal."""
    return await code_of(peer, switch_to(workspace))


def keys_of(op: KV.OpType.ValueType, scope: KV.Scope.ValueType, name: str = "k", **fields: Any) -> pb.UpstreamMessage:
    filled: dict[str, Any] = {"value": b"1", "request_id": f"kv-{next(_numbers)}", **fields}
    return pb.UpstreamMessage(kv_op=KV(op=op, scope=scope, key=name, **filled))


def payloads(peer: MemoryLink) -> list[bytes]:
    """What messages it has received that the test has not taken."""
    return [one.msg.payload for one in peer.waiting("msg")]
