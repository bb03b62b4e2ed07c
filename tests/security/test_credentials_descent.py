"""What the sessions of an API token have made ends with it, on every node."""

from __future__ import annotations

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.services.tasks.transaction.tokens import AdmittedToken
from aether_trio.testing.memory import MemoryLink, agent
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import barrier, connect, let_manage
from tests.security.test_credentials_tokens import Op, admin, ask, create, holder, status
from tests.security.test_tokens import refused, token_for
from tests.services.tasks.peers import create as create_task

__all__ = ["admin"]

MAKER = agent("w", "maker", "1")


@pytest.fixture
async def core(core: Core) -> Core:
    let_manage(core)
    return core


def worker(token: str, specifier: str) -> pb.UpstreamMessage:
    return agent("w", "i", specifier, credentials={"token": token})


async def ended(peer: MemoryLink) -> bool:
    end = await peer.wait_end()
    return end.status is Status.UNAUTHENTICATED and "API token" in end.message


@pytest.mark.parametrize("end", [Op.REVOKE, Op.DELETE])
async def test_task_tokens_and_their_sessions_end_with_the_api_token(
    core: Core, admin: MemoryLink, end: Op.OpType.ValueType
) -> None:
    text, token_id = await create(admin)
    other, _ = await create(admin, name="other")
    async with (
        holder(core, text, MAKER) as maker,
        holder(core, other, agent("w", "maker", "2")) as bystander,
        connect(core, agent("w", "maker", "3")) as without,
    ):
        _, first = await token_for(maker, "ag::w::i::1")
        _, unused = await token_for(maker, "ag::w::i::2")
        _, kept = await token_for(bystander, "ag::w::i::4")
        _, free = await token_for(without, "ag::w::i::5")
        async with (
            connect(core, worker(first, "1")) as child,
            connect(core, worker(kept, "4")) as other_child,
            connect(core, worker(free, "5")) as free_child,
        ):
            _, second = await token_for(child, "ag::w::i::3")
            async with connect(core, worker(second, "3")) as grandchild:
                await barrier(grandchild, child)
                assert (await ask(admin, op=end, token_id=token_id)).success
                for peer in (maker, child, grandchild):
                    assert await ended(peer)
            await barrier(other_child, free_child, bystander, without)
            for token, specifier in ((first, "1"), (unused, "2"), (second, "3")):
                assert await refused(core, worker(token, specifier))


async def test_a_task_token_that_is_shown_during_the_revocation_lets_in_no_client(
    core: Core, admin: MemoryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row was read before the revocation, and the identity is taken after it."""
    text, token_id = await create(admin)
    async with holder(core, text, MAKER) as maker:
        _, made = await token_for(maker, "ag::w::i::1")
    check = core.credentials._check_token

    async def check_and_wait(*asked: object) -> AdmittedToken | None:
        found = await check(*asked)  # type: ignore[arg-type]
        assert (await ask(admin, op=Op.REVOKE, token_id=token_id)).success
        return found  # type: ignore[return-value]

    monkeypatch.setattr(core.credentials, "_check_token", check_and_wait)
    assert await refused(core, worker(made, "1"))
    assert core.registry.holder("ag::w::i::1") is None


async def test_the_end_of_an_expired_api_token_is_not_that_of_its_tasks(core: Core, admin: MemoryLink) -> None:
    """Tokens that expire are renewed by others; work that is under way goes on."""
    text, _ = await create(admin, expires_in_hours=1)
    async with holder(core, text, MAKER) as maker:
        made = (await create_task(maker, target_identity="ag::w::i::1", target_implementation="none")).task_token
        async with connect(core, worker(made, "1")) as child:
            await maker.wait_end()
            await barrier(child)
            _, again = await token_for(child, "ag::w::i::2")
            assert not await refused(core, worker(again, "2"))
    assert await status(core, MAKER, text) is Status.UNAUTHENTICATED
