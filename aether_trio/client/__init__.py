"""Clients of an Aether gateway for trio, asyncio and blocking scripts.

    from aether_trio.client import AgentClient

    who = {"workspace": "default", "implementation": "planner", "specifier": "1"}
    async with AgentClient("aether://localhost:50051", **who) as agent:
        await agent.send("ag::default::writer::1", b"hello")   # returns when it is committed
        async for message in agent:                    # acknowledged when the loop goes on
            await agent.reply(message, b"thanks")

The client classes connect as one kind of participant each, with the keywords in ClientOptions;
`connect_sync` makes a SyncClient of any of them. `agent.work()` gives tasks, each a Job. Operations
such as `agent.kv` are in aether_trio.client.operations. docs/clients.md says how to use them.
"""

from aether_trio.client.blocking.client import SyncClient, SyncPublication, connect_sync
from aether_trio.client.blocking.job import SyncJob
from aether_trio.client.client import Client
from aether_trio.client.connection.backoff import Retry
from aether_trio.client.connection.outgoing_messages import Publication
from aether_trio.client.connection.reconnect import State
from aether_trio.client.connection.tls import TlsOptions
from aether_trio.client.errors import (
    AddressError,
    AetherError,
    AlreadyExists,
    ClientCertificateRefused,
    ClientClosed,
    ConnectionLost,
    DuplicateIdentity,
    FailedPrecondition,
    FeedOverflow,
    InternalGatewayError,
    InvalidArgument,
    MessagesAbandoned,
    NotFound,
    NotImplementedByGateway,
    OutcomeUnknown,
    PayloadTooLarge,
    PermissionDenied,
    ProtocolViolation,
    RateLimited,
    Refused,
    RequestTimeout,
    SessionEnded,
    TaskFailed,
    TaskNotEnded,
    TlsRefused,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
)
from aether_trio.client.feeds import Feed
from aether_trio.client.jobs import Job, JobEnd, Jobs, TaskOver
from aether_trio.client.message import IncomingMessage, MessageType
from aether_trio.client.options import ClientOptions
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
from aether_trio.client.statistics import ClientStatistics

__all__ = [
    "AddressError", "AetherError", "AgentClient", "AlreadyExists", "BridgeClient", "Client", "ClientCertificateRefused", "ClientClosed",
    "ClientOptions", "ClientStatistics", "ConnectionLost", "DuplicateIdentity", "FailedPrecondition", "Feed",
    "FeedOverflow", "IncomingMessage", "InternalGatewayError", "InvalidArgument", "Job", "JobEnd", "Jobs",
    "MessageType", "MessagesAbandoned", "MetricsBridgeClient", "NotFound", "NotImplementedByGateway",
    "OrchestratorClient", "OutcomeUnknown", "PayloadTooLarge", "PermissionDenied", "ProtocolViolation",
    "Publication", "RateLimited", "Refused", "RequestTimeout", "Requester", "Retry", "ServiceClient",
    "SessionEnded", "State", "SyncClient", "SyncJob", "SyncPublication", "TaskClient", "TaskFailed", "TaskNotEnded",
    "TaskOver", "TlsOptions", "TlsRefused", "Unauthenticated", "Unavailable", "UnexpectedAnswer", "UserClient", "WorkflowEngineClient",
    "connect_sync",
]  # fmt: skip
