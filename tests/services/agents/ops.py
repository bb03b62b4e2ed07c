"""`agent_op` as a participant uses it."""

from __future__ import annotations

import json
from typing import Any

from aether_trio.session.init_connection import AGENTS
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import orchestrator

Op = pb.AgentOperation


def starter(specifier: str, *profiles: str, **init: Any) -> pb.UpstreamMessage:
    """Return the InitConnection of "orc::o::{specifier}" with these profiles."""
    hello = orchestrator("o", specifier, **init)
    hello.init.orchestrator.supported_profiles.extend(profiles)
    return hello


def lister(specifier: str, *agents: str, profile: str = "process") -> pb.UpstreamMessage:
    """Return the InitConnection of an orchestrator that has only these agents."""
    said = pb.ExtensionDeclaration(uri=AGENTS, json_schema=json.dumps(agents))
    return starter(specifier, profile, extensions=[said])


def info(implementation: str, *prefixes: str, **fields: Any) -> pb.AgentRegistrationInfo:
    """A registration that owns these resource prefixes."""
    schema = [pb.AgentResourceSchemaEntry(resource_type_prefix=prefix) for prefix in prefixes]
    return pb.AgentRegistrationInfo(implementation=implementation, resource_schema=schema, **fields)


async def operate(peer: MemoryLink, op: Op.OpType.ValueType, **fields: Any) -> pb.AgentResponse:
    peer.send(pb.UpstreamMessage(agent_op=Op(op=op, request_id="r", **fields)))
    response = (await peer.next("agent")).agent
    assert response.request_id == "r"
    return response


async def register(peer: MemoryLink, implementation: str, profile: str = "process", **params: str) -> None:
    """Have an implementation that can be started."""
    answer = await operate(peer, Op.REGISTER, agent=info(implementation, launch_params={"profile": profile, **params}))
    assert answer.success, answer.error
