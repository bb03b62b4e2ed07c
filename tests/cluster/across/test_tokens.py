"""A revoked API token has ended its sessions on every node when that is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aether_trio.model.errors import Status
from aether_trio.services.access import changes as changes_module
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Fabric, Participant, open_fabric, until
from tests.helpers.core import agent, user
from tests.helpers.engines import PostgresEngine

Op = pb.TokenOperation


@pytest.fixture
async def fabric(postgres_engine: PostgresEngine) -> AsyncIterator[Fabric]:
    async with open_fabric(postgres_engine) as opened:
        yield opened


async def ask(admin: Participant, **fields: Any) -> pb.TokenResponse:
    admin.send(pb.UpstreamMessage(token_op=Op(request_id="r", **fields)))
    answer = (await admin.next("token")).token
    assert answer.success, answer.error
    return answer


async def create(admin: Participant) -> tuple[str, str]:
    request = pb.TokenCreateRequest(name="ci", principal_type="agent")
    answer = await ask(admin, op=Op.CREATE, create_request=request)
    return answer.plaintext_token, answer.created_token.id


def ended(holder: Participant) -> bool:
    return holder.ended is not None and holder.ended.status is Status.UNAUTHENTICATED


async def test_a_token_of_one_node_is_known_to_all_and_ends_on_all(fabric: Fabric) -> None:
    one, two, three = await fabric.start_many(3)
    admin = await one.join(user("admin", "w"))
    for op in (Op.REVOKE, Op.DELETE):
        text, token_id = await create(admin)
        holders = [
            await node.join(agent("red", "holder", str(number), credentials={"api_key": text}))
            for number, node in enumerate((one, two, three))
        ]
        answer = await ask(admin, op=op, token_id=token_id)
        assert answer.message == f"the token was {'revoked' if op == Op.REVOKE else 'deleted'}"
        # No session of it is live on any node by then; the streams close on their own.
        for number, node in enumerate((one, two, three)):
            assert node.core.registry.holder(f"ag::red::holder::{number}") is None
        for holder in holders:
            await until(lambda holder=holder: ended(holder))  # type: ignore[misc]


async def test_a_node_that_hears_no_notification_finds_out(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "LOOK_S", 0.2)
    one, two = await fabric.start_many(2)
    admin = await one.join(user("admin", "w"))
    text, token_id = await create(admin)
    holder = await two.join(agent("red", "holder", "1", credentials={"api_key": text}))
    two.lose_notifications()
    await ask(admin, op=Op.REVOKE, token_id=token_id)
    await until(lambda: ended(holder))


async def test_a_node_that_reads_everything_anew_ends_them_too(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await fabric.start_many(2)
    admin = await one.join(user("admin", "w"))
    text, token_id = await create(admin)
    kept, _ = await create(admin)
    holder = await two.join(agent("red", "holder", "1", credentials={"api_key": text}))
    other = await two.join(agent("red", "other", "1", credentials={"api_key": kept}))
    # Node two has not seen the change, and the change is not kept any more.
    await two.core.tokens._database.execute("UPDATE api_tokens SET revoked_ms = 1 WHERE token_id = $1", token_id)
    await two.core.changes._reload()
    await until(lambda: ended(holder))
    assert other.ended is None
