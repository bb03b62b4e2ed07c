"""From an identity string to the first message of a stream, and made-up identities for one command."""

from __future__ import annotations

import secrets

import click

from aether_trio.model.identity import Identity, IdentityError, Kind
from aether_trio.version import __version__
from aether_trio.wire.pb import aether_pb2 as pb


def made_up(kind: Kind, workspace: str = "default") -> Identity:
    """A fresh identity of this kind, for one command. Random, so that two commands at a time do not collide."""
    specifier = secrets.token_hex(4)
    if kind is Kind.AGENT:
        return Identity.agent(workspace, "cli", specifier)
    if kind is Kind.ORCHESTRATOR:
        return Identity.orchestrator("cli", specifier)
    assert kind is Kind.SERVICE
    return Identity.service("cli", specifier)


def parse_identity(text: str) -> Identity:
    """As Identity.parse, for --as. Raises click.BadParameter."""
    try:
        return Identity.parse(text)
    except IdentityError as error:
        raise click.BadParameter(str(error), param_hint="--as") from None


def first_message(identity: Identity, credentials: dict[str, str]) -> pb.UpstreamMessage:
    """The InitConnection that claims `identity`."""
    init = pb.InitConnection(credentials=credentials, client_version=__version__, client_sdk="aether-cli")
    workspace, implementation, specifier = identity.workspace, identity.implementation, identity.specifier
    match identity.kind:
        case Kind.AGENT:
            init.agent.CopyFrom(
                pb.AgentIdentity(workspace=workspace, implementation=implementation, specifier=specifier)
            )
        case Kind.UNIQUE_TASK:
            init.task.CopyFrom(
                pb.TaskIdentity(workspace=workspace, implementation=implementation, unique_specifier=specifier)
            )
        case Kind.TASK:
            init.task.CopyFrom(pb.TaskIdentity(workspace=workspace, implementation=implementation))
        case Kind.USER:
            init.user.CopyFrom(pb.UserIdentity(user_id=identity.user_id, window_id=identity.window_id))
        case Kind.ORCHESTRATOR:
            init.orchestrator.CopyFrom(pb.OrchestratorIdentity(implementation=implementation, specifier=specifier))
        case Kind.WORKFLOW_ENGINE:
            init.workflow_engine.SetInParent()
        case Kind.METRICS_BRIDGE:
            init.metrics_bridge.SetInParent()
        case Kind.BRIDGE:
            init.bridge.CopyFrom(pb.BridgeIdentity(implementation=implementation, specifier=specifier))
        case Kind.SERVICE:
            # A tool is no pool member: nothing that others send to `sv::cli` is meant for it.
            service = pb.ServiceIdentity(implementation=implementation, specifier=specifier, no_pool_consumer=True)
            init.service.CopyFrom(service)
    return pb.UpstreamMessage(init=init)
