"""A fresh credential in the same stream: what it takes, and what it never gives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Status
from aether_trio.session.expiry import CHECK_S
from aether_trio.session.init_connection import CREDENTIAL_RENEWAL
from aether_trio.session.session import Session
from aether_trio.testing.memory import MemoryLink, agent
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import barrier, connect, switch_to, user
from tests.security.test_credentials_tokens import Op, admin, ask, create

__all__ = ["admin"]

HOUR_S = 3600
WORKER = "ag::red::worker::1"


def renewal(text: str, name: str = "api_key") -> pb.UpstreamMessage:
    return pb.UpstreamMessage(init=pb.InitConnection(credentials={name: text}))


@asynccontextmanager
async def renewing(core: Core, text: str, hello: pb.UpstreamMessage | None = None) -> AsyncIterator[MemoryLink]:
    """Connect with a token, as a client that declares the extension."""
    greeting = pb.UpstreamMessage()
    greeting.CopyFrom(hello or agent("red", "worker", "1"))
    greeting.init.credentials["api_key"] = text
    greeting.init.extensions.append(pb.ExtensionDeclaration(uri=CREDENTIAL_RENEWAL, required=True))
    async with connect(core, greeting, wait_ack=False) as link:
        yield link


async def extension(link: MemoryLink) -> pb.NegotiatedExtension:
    (one,) = (await link.next("connection_ack")).connection_ack.negotiated_extensions
    assert one.uri == CREDENTIAL_RENEWAL
    return one


async def renewed(link: MemoryLink, text: str) -> pb.NegotiatedExtension:
    link.send(renewal(text))
    return await extension(link)


def session_of(core: Core, identity: str = WORKER) -> Session:
    session = core.registry.holder(identity)
    assert session is not None
    return session


async def test_a_session_lives_on_with_a_fresh_token(core: Core, admin: MemoryLink) -> None:
    first, _ = await create(admin, expires_in_hours=1)
    start = trio.current_time()
    async with renewing(core, first) as link:
        told = await extension(link)
        assert told.supported
        assert HOUR_S - 1 <= int(told.version) / 1000 <= HOUR_S
        session_id = session_of(core).session_id
        await trio.sleep(HOUR_S / 2)
        second, second_id = await create(admin, expires_in_hours=1, name="second")
        answer = await renewed(link, second)
        assert (answer.supported, answer.rejection_reason) == (True, "")
        assert HOUR_S - 1 <= int(answer.version) / 1000 <= HOUR_S
        session = session_of(core)
        assert (session.session_id, session.credential) == (session_id, f"token:{second_id}")
        ended = await link.wait_end()
        assert (ended.status, "expired" in ended.message) == (Status.UNAUTHENTICATED, True)
        assert 1.5 * HOUR_S - CHECK_S <= trio.current_time() - start <= 1.5 * HOUR_S + CHECK_S


async def test_an_earlier_end_counts_too(core: Core, admin: MemoryLink) -> None:
    first, _ = await create(admin, expires_in_hours=3)
    second, _ = await create(admin, expires_in_hours=1, name="second")
    start = trio.current_time()
    async with renewing(core, first) as link:
        await extension(link)
        assert (await renewed(link, second)).supported
        await link.wait_end()
        assert HOUR_S - CHECK_S <= trio.current_time() - start <= HOUR_S + CHECK_S


async def test_a_token_without_an_end_takes_the_end_away(core: Core, admin: MemoryLink) -> None:
    first, _ = await create(admin, expires_in_hours=1)
    second, _ = await create(admin, name="second")
    async with renewing(core, first) as link:
        await extension(link)
        assert (await renewed(link, second)).version == "0"
        await trio.sleep(1.2 * HOUR_S)
        await barrier(link)


async def test_the_revocation_of_the_new_token_ends_the_session_and_that_of_the_old_one_does_not(
    core: Core, admin: MemoryLink
) -> None:
    first, first_id = await create(admin, expires_in_hours=1)
    second, second_id = await create(admin, expires_in_hours=3, name="second")
    async with renewing(core, first) as link:
        await extension(link)
        assert (await renewed(link, second)).supported
        assert (await ask(admin, op=Op.REVOKE, token_id=first_id)).success
        await barrier(link)
        assert (await ask(admin, op=Op.REVOKE, token_id=second_id)).success
        ended = await link.wait_end()
        assert (ended.status, "was revoked" in ended.message) == (Status.UNAUTHENTICATED, True)


async def test_a_refused_renewal_leaves_the_old_end(core: Core, admin: MemoryLink) -> None:
    first, _ = await create(admin, expires_in_hours=1)
    revoked, revoked_id = await create(admin, name="revoked")
    await ask(admin, op=Op.REVOKE, token_id=revoked_id)
    other, _ = await create(admin, name="other", created_by="ag::red::other::1")
    start = trio.current_time()
    async with renewing(core, first) as link:
        await extension(link)
        before = session_of(core).admission
        for text, why in ((revoked, "UNAUTHENTICATED"), (other, "PERMISSION_DENIED"), ("x", "UNAUTHENTICATED")):
            answer = await renewed(link, text)
            assert (answer.supported, answer.rejection_reason.partition(":")[0]) == (False, why)
            assert 0 < int(answer.version) <= HOUR_S * 1000
        link.send(pb.UpstreamMessage(init=pb.InitConnection()))
        assert "shows an API key" in (await extension(link)).rejection_reason
        assert session_of(core).admission._replace(allows_workspace=before.allows_workspace) == before
        await barrier(link)
        await link.wait_end()
        assert HOUR_S - CHECK_S <= trio.current_time() - start <= HOUR_S + CHECK_S


@pytest.mark.parametrize(
    ("narrow", "wide", "what"),
    [
        ({"workspace_patterns": ["red"]}, {}, "more workspaces"),
        ({"workspace_patterns": ["r*"]}, {"workspace_patterns": ["r*", "blue"]}, "more workspaces"),
        ({"scopes": ["connect", "level:READ"]}, {}, "level"),
        (
            {"scopes": ["connect", "identity:ag::red::worker::*"]},
            {"scopes": ["connect", "identity:ag::red::*::*"]},
            "more identities",
        ),
    ],
)
async def test_a_renewal_is_no_wider_than_the_session(
    core: Core, admin: MemoryLink, narrow: dict[str, object], wide: dict[str, object], what: str
) -> None:
    first, first_id = await create(admin, expires_in_hours=2, **narrow)
    again, again_id = await create(admin, expires_in_hours=3, name="again", **narrow)
    second, _ = await create(admin, name="second", **wide)
    async with renewing(core, first) as link:
        await extension(link)
        answer = await renewed(link, second)
        assert not answer.supported
        assert what in answer.rejection_reason
        assert session_of(core).credential == f"token:{first_id}"
        assert (await renewed(link, again)).supported
        assert session_of(core).credential == f"token:{again_id}"
    async with renewing(core, second) as link:
        await extension(link)
        assert (await renewed(link, first)).supported  # and narrower is no harm


async def test_a_narrower_credential_counts_at_once(core: Core, admin: MemoryLink) -> None:
    """Also for what the session has been allowed before."""
    wide, _ = await create(admin, principal_type="user", created_by="alice")
    narrow, _ = await create(
        admin,
        principal_type="user",
        created_by="alice",
        name="narrow",
        workspace_patterns=["blue"],
        scopes=["connect", "level:READ"],
    )
    async with renewing(core, wide, user("alice", "w1")) as link:
        await extension(link)
        link.send(switch_to("red"))
        await barrier(link)
        link.send(pb.UpstreamMessage(send=pb.SendMessage(target_topic="ag::red::worker::1", payload=b"one")))
        await barrier(link)
        link.send(renewal(narrow))
        left = (await link.next("error")).error
        assert (await extension(link)).supported
        assert (left.code, "has left it" in left.message) == ("ERR_PERMISSION_DENIED", True)
        session = session_of(core, "us::alice::w1")
        assert (session.workspace, session.cap) == ("", AccessLevel.READ)
        link.send(pb.UpstreamMessage(send=pb.SendMessage(target_topic="ag::red::worker::1", payload=b"two")))
        assert (await link.next("error")).error.code == "ERR_PERMISSION_DENIED"


async def test_without_the_extension_a_second_init_ends_the_stream(core: Core, admin: MemoryLink) -> None:
    text, _ = await create(admin, expires_in_hours=1)
    greeting = agent("red", "worker", "1")
    greeting.init.credentials["api_key"] = text
    async with connect(core, greeting) as link:
        link.send(renewal(text))
        assert (await link.wait_end()).status is Status.INVALID_ARGUMENT
    async with renewing(core, text) as link:
        await extension(link)
        link.send(greeting)  # with an identity it is no renewal
        assert (await link.wait_end()).status is Status.INVALID_ARGUMENT


async def test_a_renewal_is_in_the_audit_log(core: Core, admin: MemoryLink) -> None:
    first, first_id = await create(admin, expires_in_hours=1, workspace_patterns=["red"])
    second, second_id = await create(admin, expires_in_hours=3, name="second", workspace_patterns=["red"])
    wide, wide_id = await create(admin, name="wide")
    async with renewing(core, first) as link:
        await extension(link)
        await renewed(link, second)
        await renewed(link, wide)
    await core.audit.writer.flush()
    admin.send(pb.UpstreamMessage(audit_query=pb.AuditQuery(request_id="q", operation="credential_renewed")))
    entries = (await admin.next("audit_response")).audit_response.entries
    assert [one.success for one in entries] == [False, True]
    assert "more workspaces" in entries[0].error_message
    assert f'"token:{wide_id}"' in entries[0].metadata_json
    for name in (first_id, second_id):
        assert f'"token:{name}"' in entries[1].metadata_json
    assert {(one.actor_type, one.actor_id) for one in entries} == {("agent", WORKER)}


async def test_one_renewal_is_checked_at_a_time(core: Core, admin: MemoryLink) -> None:
    first, _ = await create(admin, expires_in_hours=1)
    second, _ = await create(admin, expires_in_hours=3, name="second")
    async with renewing(core, first) as link:
        await extension(link)
        link.send(renewal(second))
        link.send(renewal(second))
        answers = [await extension(link), await extension(link)]
        assert sorted(one.supported for one in answers) == [False, True]
        assert any("is being checked" in one.rejection_reason for one in answers)
