"""Fuzz a client's first message, from protobuf to the claim that it makes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError

from aether_trio.model.errors import Status, StatusError
from aether_trio.model.ids import IdFactory
from aether_trio.model.limits import Limits
from aether_trio.session.init_connection import Claim, read_claim
from aether_trio.wire.pb import aether_pb2 as pb
from aether_trio.wire.undecodable import undecodable
from fuzz.feeding import choices

_LIMITS: Final = Limits()


def check(data: bytes) -> None:
    """Check an input: choices, the header's length in two bytes, header, message."""
    (strict, size), rest = choices(data, 2)
    header, message_bytes = rest[:size].decode("latin-1"), rest[size:]
    try:
        message = pb.UpstreamMessage.FromString(message_bytes)
    except DecodeError as error:
        refusal = undecodable(message_bytes, error)
        assert refusal.status is Status.INVALID_ARGUMENT
        assert len(refusal.message) < 1000
        return
    try:
        claim = read_claim(
            message, {"aether-extensions": header}, IdFactory(random.Random(1)), _LIMITS, strict=bool(strict & 1)
        )
    except StatusError as refused:
        assert refused.status in (Status.INVALID_ARGUMENT, Status.FAILED_PRECONDITION)
        return
    assert isinstance(claim, Claim)
    assert len(claim.credentials) <= _LIMITS.credentials_per_connection
    assert len(claim.extensions) <= _LIMITS.extensions_per_connection
    assert len(claim.profiles) <= _LIMITS.profiles_per_orchestrator


def seeds() -> Iterator[bytes]:
    """First messages of each kind of participant, and other messages."""
    extension = pb.ExtensionDeclaration(uri="urn:x", version="1", required=True)
    inits = [
        pb.InitConnection(agent=pb.AgentIdentity(workspace="w", implementation="i", specifier="1")),
        pb.InitConnection(task=pb.TaskIdentity(workspace="w", implementation="i", unique_specifier="u")),
        pb.InitConnection(task=pb.TaskIdentity(workspace="w", implementation="i")),
        pb.InitConnection(user=pb.UserIdentity(user_id="u", window_id="1"), credentials={"api_key": "k"}),
        pb.InitConnection(orchestrator=pb.OrchestratorIdentity(implementation="o", supported_profiles=["a", "b"])),
        pb.InitConnection(workflow_engine=pb.WorkflowEngineIdentity(), extensions=[extension]),
        pb.InitConnection(metrics_bridge=pb.MetricsBridgeIdentity(), resume_session_id="0" * 36),
        pb.InitConnection(service=pb.ServiceIdentity(implementation="s", specifier="1", no_pool_consumer=True)),
    ]
    for init in inits:
        yield b"\1\0" + pb.UpstreamMessage(init=init).SerializeToString()
        yield b"\0\5urn:x" + pb.UpstreamMessage(init=init).SerializeToString()
    yield b"\0\0" + pb.UpstreamMessage(send=pb.SendMessage(target_topic="ag::w::i::1")).SerializeToString()
    yield b"\0\0\x0a\x04\x0a\x02\x0a\xff"
