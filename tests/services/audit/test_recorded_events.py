"""Each event that the model names is recorded when it happens, or known not to be."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from aether_trio.gateway import Gateway
from aether_trio.model.audit import OPERATIONS
from aether_trio.model.errors import StatusError
from aether_trio.session.init_connection import CREDENTIAL_RENEWAL
from aether_trio.testing.memory import agent, message_to
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import user
from tests.helpers.participants import TRANSPORTS, Participant, participant
from tests.security.certificates import Authority
from tests.security.clients import gateway_with
from tests.security.tenants import auth, key_of

ALPN: Final = {"grpc": ["h2"], "framed": [], "websocket": ["http/1.1"]}
ELSEWHERE: Final = {
    "identity_resolved": "needs a gateway without credentials: test_trail.py",
    "audit_started": "is beyond a query by workspace: test_trail.py",
    "audit_stopped": "is written after the last query: test_trail.py",
    "audit_retention": "test_upkeep.py",
    "admin_topic_purge": "tests/services/test_topics.py",
    "audit_gap": "test_writer.py",
}
NEVER: Final = {
    "lock_acquired": "a connection_established has its identity",
    "session_registered": "as lock_acquired",
    "extension_negotiated": "gives and refuses nothing",
    "message_received": "a message_routed or message_route_failed counts it",
    "message_delivered": "as message_received",
    "admin_state_query": "its decision is a row",
    "proxy_http_routed": "the gateway has no proxy",
    "proxy_http_failed": "the gateway has no proxy",
    "proxy_http_stream_closed": "the gateway has no proxy",
    "tunnel_opened": "the gateway has no tunnels",
    "tunnel_open_failed": "the gateway has no tunnels",
    "tunnel_closed": "the gateway has no tunnels",
}
Connection: TypeAlias = AbstractAsyncContextManager[Participant]
_numbers = count(1)


class Stage:
    """A gateway with TLS and keys, and how its clients connect."""

    def __init__(self, gateway: Gateway, authority: Authority, transport: str) -> None:
        self.gateway = gateway
        self.authority = authority
        self.transport = transport

    def connect(self, hello: pb.UpstreamMessage, *, key: str = "", certificate: str = "") -> Connection:
        if key:
            hello.init.credentials["api_key"] = key_of(key)
        issued = self.authority.issue(certificate) if certificate else None
        tls: ssl.SSLContext = self.authority.context(issued, alpn=ALPN[self.transport])
        return participant(self.transport, self.gateway.address, hello, tls=tls)

    def red(self, name: str) -> Connection:
        return self.connect(agent("red", name, "1"), key="red")

    def admin(self) -> Connection:
        return self.connect(user("admin", str(next(_numbers))), key="all")


async def operations(stage: Stage) -> set[str]:
    """What an administrator finds in the log."""
    found: set[str] = set()
    async with stage.admin() as admin:
        for event_type in OPERATIONS:
            query = pb.AuditQuery(request_id=f"q{next(_numbers)}", event_type=event_type, limit=500)
            await admin.send(pb.UpstreamMessage(audit_query=query))
            answer = (await admin.next("audit_response")).audit_response
            assert answer.success, answer.error
            found |= {entry.operation for entry in answer.entries}
    return found


async def refused(stage: Stage, hello: pb.UpstreamMessage, **options: str) -> None:
    with suppress(StatusError):
        async with stage.connect(hello, **options) as peer:
            await peer.status()


async def connections(stage: Stage) -> None:
    async with stage.red("one"):
        await refused(stage, agent("red", "one", "1"), key="red")


async def certificates(stage: Stage) -> None:
    async with stage.connect(agent("dev", "worker", "1"), certificate="ag::dev::worker::1"):
        pass
    await refused(stage, agent("red", "worker", "1"), certificate="ag::dev::worker::1")
    await refused(stage, agent("red", "worker", "1"))


async def renewal(stage: Stage) -> None:
    hello = agent("red", "one", "1")
    hello.init.extensions.append(pb.ExtensionDeclaration(uri=CREDENTIAL_RENEWAL, required=True))
    async with stage.connect(hello, key="red") as peer:
        await peer.send(pb.UpstreamMessage(init=pb.InitConnection(credentials={"api_key": key_of("red")})))
        await peer.next("connection_ack")


async def messages(stage: Stage) -> None:
    async with stage.red("one") as peer, stage.red("two"):
        await peer.send(message_to("ag::red::two::1", b"x"), message_to("ag::blue::two::1", b"x"))
        await peer.next("error")


async def keys(stage: Stage) -> None:
    async with stage.red("one") as peer:
        for op in pb.KVOperation.OpType.values():
            asked = pb.KVOperation(op=op, scope=pb.KVOperation.WORKSPACE, key="k", value=b"1", request_id="r")
            await peer.send(pb.UpstreamMessage(kv_op=asked))
            await peer.next("kv")


async def tasks(stage: Stage) -> None:
    async with stage.red("one") as one, stage.red("two") as two:
        asked = pb.CreateTaskRequest(
            task_type="t", request_id="r", assignment_mode=pb.SELF_ASSIGN, target_identity="ag::red::three::1"
        )
        await one.send(pb.UpstreamMessage(create_task=asked))
        created = (await one.next("create_task")).create_task
        assert created.success, created.error_message
        cancel = pb.TaskOperation(op=pb.TaskOperation.CANCEL, task_id=created.task_id, request_id="c")
        await two.send(pb.UpstreamMessage(task_op=cancel))
        assert (await two.next("task_op")).task_op.error == "task not found"


async def administration(stage: Stage) -> None:
    settings = stage.gateway.core.settings
    stage.gateway.reload.apply(settings)
    async with stage.admin() as admin:
        asked = pb.SessionOperation(op=pb.SessionOperation.DISCONNECT, session_id="none", request_id="r")
        await admin.send(pb.UpstreamMessage(session_op=asked))
        await admin.next("session_response")


KV_EVENTS: Final = next(found for event_type, found in OPERATIONS.items() if event_type == "kv")
PROVOKED: Final[Mapping[Callable[[Stage], Awaitable[None]], frozenset[str]]] = {
    connections: frozenset({"connection_established", "connection_closed", "lock_rejected", "auth_token_validation"}),
    certificates: frozenset({"auth_mtls_success", "auth_mtls_failure", "identity_resolve_failed"}),
    renewal: frozenset({"credential_renewed"}),
    messages: frozenset({"message_routed", "message_route_failed"}),
    keys: KV_EVENTS,
    tasks: frozenset({"task_create", "task_token_issue", "task_authz_denied"}),
    administration: frozenset({"admin_config_change", "admin_session_disconnect"}),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("provoke", PROVOKED, ids=lambda provoke: provoke.__name__)
async def test_each_event_has_its_row(
    transport: str, provoke: Callable[[Stage], Awaitable[None]], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    credentials = {**auth(), "client_cert_mode": "semi-strict"}
    async with gateway_with(
        gateway={"dev": False}, tls=authority.tls, access={"default": "closed"}, auth=credentials
    ) as gateway:
        stage = Stage(gateway, authority, transport)
        await provoke(stage)
        missing = PROVOKED[provoke] - await operations(stage)
        assert not missing


def test_each_event_is_provoked_or_accounted_for() -> None:
    named = {name for found in OPERATIONS.values() for name in found}
    provoked = {name for found in PROVOKED.values() for name in found}
    assert provoked | ELSEWHERE.keys() | NEVER.keys() == named
    assert len(provoked) + len(ELSEWHERE) + len(NEVER) == len(named)
