"""Encode upstream messages and decode downstream ones with the SDK's classes."""

from __future__ import annotations

from scitrera_aether_client.proto import aether_pb2 as pb

Down = pb.DownstreamMessage


def agent(workspace: str, implementation: str, specifier: str, resume: str = "") -> bytes:
    identity = pb.AgentIdentity(workspace=workspace, implementation=implementation, specifier=specifier)
    return pb.UpstreamMessage(init=pb.InitConnection(agent=identity, resume_session_id=resume)).SerializeToString()


def message(topic: str, payload: bytes) -> bytes:
    return pb.UpstreamMessage(
        send=pb.SendMessage(target_topic=topic, payload=payload, message_type=pb.OPAQUE)
    ).SerializeToString()


def barrier(request_id: str) -> bytes:
    """Encode a KV GET, whose answer says that all before it has been committed."""
    operation = pb.KVOperation(op=pb.KVOperation.GET, scope=pb.KVOperation.GLOBAL, key="barrier", request_id=request_id)
    return pb.UpstreamMessage(kv_op=operation).SerializeToString()
