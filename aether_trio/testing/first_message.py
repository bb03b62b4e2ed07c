"""Builds the first message of a connection, for tests that use no client."""

from __future__ import annotations

from aether_trio.model.identity import Identity, Kind
from aether_trio.version import __version__
from aether_trio.wire.pb import aether_pb2 as pb


def first_message(identity: Identity, credentials: dict[str, str]) -> pb.UpstreamMessage:
    """Return the InitConnection that claims an identity with these credentials."""
    init = pb.InitConnection(credentials=credentials, client_version=__version__, client_sdk="aether-trio")
    workspace, name, specifier = identity.workspace, identity.implementation, identity.specifier
    match identity.kind:
        case Kind.AGENT:
            init.agent.CopyFrom(pb.AgentIdentity(workspace=workspace, implementation=name, specifier=specifier))
        case Kind.UNIQUE_TASK:
            init.task.CopyFrom(pb.TaskIdentity(workspace=workspace, implementation=name, unique_specifier=specifier))
        case Kind.TASK:
            init.task.CopyFrom(pb.TaskIdentity(workspace=workspace, implementation=name))
        case Kind.USER:
            init.user.CopyFrom(pb.UserIdentity(user_id=identity.user_id, window_id=identity.window_id))
        case Kind.ORCHESTRATOR:
            init.orchestrator.CopyFrom(pb.OrchestratorIdentity(implementation=name, specifier=specifier))
        case Kind.WORKFLOW_ENGINE:
            init.workflow_engine.SetInParent()
        case Kind.METRICS_BRIDGE:
            init.metrics_bridge.SetInParent()
        case Kind.BRIDGE:
            init.bridge.CopyFrom(pb.BridgeIdentity(implementation=name, specifier=specifier))
        case Kind.SERVICE:
            # Outside of its service's pool: it gets no message that is for any instance.
            service = pb.ServiceIdentity(implementation=name, specifier=specifier, no_pool_consumer=True)
            init.service.CopyFrom(service)
    return pb.UpstreamMessage(init=init)
