"""Clients of an Aether gateway, for trio and asyncio. docs/clients.md is how to use them.

from aether_trio.client import AgentClient

async with AgentClient("aether://localhost:50051", workspace="default", implementation="planner", specifier="1") as agent:
    await agent.send("ag::default::writer::1", b"hello")
    async for message in agent:
        await agent.reply(message, b"thanks")
"""

from aether_trio.client.backoff import Retry
from aether_trio.client.client import Client
from aether_trio.client.errors import (
    AddressError,
    AetherError,
    AlreadyExists,
    ClientClosed,
    ConnectionLost,
    DuplicateIdentity,
    FailedPrecondition,
    FeedOverflow,
    InternalGatewayError,
    InvalidArgument,
    NotFound,
    NotImplementedByGateway,
    PayloadTooLarge,
    PermissionDenied,
    ProtocolViolation,
    RateLimited,
    Refused,
    RequestTimeout,
    SessionEnded,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
)
from aether_trio.client.feeds import Feed
from aether_trio.client.message import IncomingMessage, MessageType
from aether_trio.client.options import ClientOptions
from aether_trio.client.outgoing import Publication
from aether_trio.client.principals import (
    AgentClient,
    BridgeClient,
    MetricsBridgeClient,
    OrchestratorClient,
    ServiceClient,
    TaskClient,
    UserClient,
    WorkflowEngineClient,
)
from aether_trio.client.requester import Requester
from aether_trio.client.session import State
from aether_trio.client.tls import TlsOptions

__all__ = [
    "AddressError",
    "AetherError",
    "AgentClient",
    "AlreadyExists",
    "BridgeClient",
    "Client",
    "ClientClosed",
    "ClientOptions",
    "ConnectionLost",
    "DuplicateIdentity",
    "FailedPrecondition",
    "Feed",
    "FeedOverflow",
    "IncomingMessage",
    "InternalGatewayError",
    "InvalidArgument",
    "MessageType",
    "MetricsBridgeClient",
    "NotFound",
    "NotImplementedByGateway",
    "OrchestratorClient",
    "PayloadTooLarge",
    "PermissionDenied",
    "ProtocolViolation",
    "Publication",
    "RateLimited",
    "Refused",
    "RequestTimeout",
    "Requester",
    "Retry",
    "ServiceClient",
    "SessionEnded",
    "State",
    "TaskClient",
    "TlsOptions",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
    "UserClient",
    "WorkflowEngineClient",
]
