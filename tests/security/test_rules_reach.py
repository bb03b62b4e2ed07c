"""Rules alone refuse each operation that touches the workspace of another tenant.

These are the requests of test_reach.py, of clients whose key reaches every workspace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aether_trio.config import HmacKey
from aether_trio.gateway import Gateway
from aether_trio.services.tokens.keys import KEY_BYTES, new_key_text
from aether_trio.testing.memory import agent
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import bridge, service, user
from tests.helpers.engines import Engine, PostgresEngine
from tests.helpers.participants import TRANSPORTS, Participant, participant
from tests.security.clients import gateway_with
from tests.security.tenants import auth
from tests.security.test_reach import BLUE, EVE, FOREIGN, SECRET, blue_at, everything, key, successes
from tests.services.access.acl import ADMIN, READWRITE, Op, rule

INTRUDERS = {
    "ag::red::eve::1": agent("red", "eve", "1", credentials=key("all")),
    "sv::eve::1": service("eve", "1", credentials=key("all")),
    "br::eve::1": bridge("eve", "1", credentials=key("all")),
    "us::eve::1": user("eve", "1", credentials=key("all")),
}
NEIGHBOURS = (
    (("user", "bob"), ("workspace", "blue"), READWRITE),
    (("agent", BLUE), ("workspace", "blue"), ADMIN),
    (("agent", BLUE), ("admin", "admin/*"), ADMIN),
    (("agent", BLUE), ("capability", "capability/*"), ADMIN),
)
"""What those in blue may do, who make what the intruder is after."""


@asynccontextmanager
async def closed_gateway(engine: Engine, directory: Path) -> AsyncIterator[Gateway]:
    file = directory / "hmac"
    file.write_text(new_key_text(bytes(KEY_BYTES)))
    file.chmod(0o600)
    sections: dict[str, Any] = {"auth": {**auth(), "token_hmac_keys": (HmacKey(id="k", file=str(file)),)}}
    if isinstance(engine, PostgresEngine):
        sections["storage"] = {"database": engine.server.dsn(), "schema": engine.schema}
    async with gateway_with(gateway={"dev": False}, access={"default": "closed"}, **sections) as gateway:
        hello = user("admin", "w", credentials=key("all"))
        async with participant("framed", gateway.address, hello) as admin:
            for principal, resource, level in NEIGHBOURS:
                asked = pb.ACLOperation(op=Op.GRANT, grant_request=rule(principal, resource, level))
                await admin.send(pb.UpstreamMessage(acl_op=asked))
                answer = (await admin.next("acl")).acl
                assert answer.success, answer.error
        yield gateway


async def intrude(stream: Participant, identity: str, place: Any) -> None:
    """Send each request that touches blue; none succeeds."""
    for case, _, name, ask in FOREIGN:
        if identity == EVE and name.endswith("what it holds"):
            continue  # by bob's grant, and without a bound in its key
        await stream.send(ask(place))
        said = await everything(stream, identity)
        assert said, (case, name)
        assert all(listing(one) == "" for one in successes(said)), (case, name, said)
        text = b"".join(message.SerializeToString() for message in said)
        assert SECRET not in text, (case, name)


def listing(message: pb.DownstreamMessage) -> str:
    """Tell an empty list of tasks from any other success, which is returned as text."""
    empty = pb.TaskQueryResponse(success=True, request_id=message.task_query.request_id)
    return "" if message.task_query == empty and message.HasField("task_query") else str(message)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_no_operation_touches_the_workspace_of_another(engine: Engine, tmp_path: Path, transport: str) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(closed_gateway(engine, tmp_path))
        place = await stack.enter_async_context(blue_at(gateway))
        for identity, hello in INTRUDERS.items():
            async with participant(transport, gateway.address, hello) as stream:
                await intrude(stream, identity, place)
        assert {BLUE, "us::bob::w"} <= {session.identity.text for session in gateway.core.registry}
