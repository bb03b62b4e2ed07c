"""The protocol's enums without prefixes; unknown numbers read as member 0."""

from __future__ import annotations

import enum


class PrincipalKind(enum.IntEnum):
    """The kind of a participant: agent, task, user, service and so on."""

    UNSPECIFIED = 0
    AGENT = 1
    TASK = 2
    USER = 3
    ORCHESTRATOR = 4
    WORKFLOW_ENGINE = 5
    METRICS_BRIDGE = 6
    BRIDGE = 7
    SERVICE = 8


class Scope(enum.IntEnum):
    """Who shares a key of the key-value store: a workspace, a user, and so on.

    The exclusive scopes, USER and USER_WORKSPACE belong to one identity. Those of a user need a
    `user_id`; those of a workspace are the caller's own unless `workspace` says another.
    """

    UNSPECIFIED = 0
    """Read as WORKSPACE."""
    GLOBAL = 1
    WORKSPACE = 2
    USER = 3
    USER_WORKSPACE = 4
    GLOBAL_EXCLUSIVE = 5
    WORKSPACE_EXCLUSIVE = 6
    USER_SHARED = 7
    USER_WORKSPACE_SHARED = 8


class ProgressKind(enum.IntEnum):
    """What a progress report is about: a chat, an app or a task."""

    UNSPECIFIED = 0
    CHAT = 1
    APP = 2
    TASK = 3


class TaskStatus(enum.IntEnum):
    """The state of a task. An assigned task that is not claimed is still QUEUED."""

    UNSPECIFIED = 0
    QUEUED = 1
    RUNNING = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5
    WAITING_INPUT = 6
    WAITING_AUTHORITY = 7
    WAITING_DEPENDENCY = 8
    HIBERNATED = 9
    REJECTED = 10


class TaskAssignmentMode(enum.IntEnum):
    """Who works on a task: its creator, a named identity, or any worker of a pool."""

    SELF_ASSIGN = 0
    TARGETED = 1
    POOL = 2


class TaskClass(enum.IntEnum):
    """How long a task may go without its worker; INTERACTIVE ones the shortest."""

    UNSPECIFIED = 0
    INTERACTIVE = 1
    BACKGROUND = 2
    BATCH = 3


class TaskPriority(enum.IntEnum):
    """The order of a task among those that wait; UNSPECIFIED is NORMAL."""

    UNSPECIFIED = 0
    XLOW = 10
    LOW = 20
    NORMAL = 30
    HIGH = 40
    PREEMPT = 50


class TargetOfflinePolicy(enum.IntEnum):
    """What happens to a task for a named identity that is not connected."""

    UNSPECIFIED = 0
    ORCHESTRATE = 1
    QUEUE = 2
    REJECT = 3


class BackoffStrategy(enum.IntEnum):
    """How the delays between attempts at a task grow; UNSPECIFIED is exponential."""

    UNSPECIFIED = 0
    FIXED = 1
    EXPONENTIAL = 2
    EXPLICIT_SCHEDULE = 3


class WaitReason(enum.IntEnum):
    """What a paused task waits for."""

    UNSPECIFIED = 0
    INPUT = 1
    AUTHORITY = 2
    DEPENDENCY = 3
    HIBERNATION = 4


class AuthorityRequestStatus(enum.IntEnum):
    """The state of a request for authority: pending, approved, denied and so on."""

    UNSPECIFIED = 0
    PENDING = 1
    APPROVED = 2
    DENIED = 3
    EXPIRED = 4
    CANCELLED = 5


class AuthorityRequestEventType(enum.IntEnum):
    """What happened to a request for authority: created, approved and so on."""

    UNSPECIFIED = 0
    CREATED = 1
    APPROVED = 2
    DENIED = 3
    EXPIRED = 4
    CANCELLED = 5


class ScheduleLifetime(enum.IntEnum):
    """Whether the authority of a schedule ends with the grant that it came from."""

    SOURCE_BOUND = 0
    DURABLE = 1


class ProxyFailure(enum.IntEnum):
    """Why an HTTP request through the gateway has failed."""

    UNKNOWN = 0
    DIAL_FAILED = 1
    TIMEOUT = 2
    UPSTREAM_RESET = 3
    ACL_DENIED = 4
    SIDECAR_UNAVAILABLE = 5
    PAYLOAD_TOO_LARGE = 6
    DECODE_FAILED = 7


class TunnelProtocol(enum.IntEnum):
    """What a tunnel through the gateway carries, such as a TCP stream."""

    TCP = 0
    UDP = 1
    WEBSOCKET = 2


class TunnelEnd(enum.IntEnum):
    """Why a tunnel through the gateway was closed."""

    NORMAL = 0
    PEER_RESET = 1
    IDLE_TIMEOUT = 2
    QUOTA = 3
    ERROR = 4


class ContinuationMode(enum.IntEnum):
    """How much of the sender's authority the receiver of a message may use in turn."""

    UNSPECIFIED = 0
    INHERIT_PARENT = 1
    ATTENUATE = 2


class HealthStatus(enum.IntEnum):
    """The state of a gateway as a whole."""

    UNSPECIFIED = 0
    HEALTHY = 1
    DEGRADED = 2
    UNHEALTHY = 3


class HealthCheckStatus(enum.IntEnum):
    """The state of one dependency of a gateway, such as its database."""

    UNSPECIFIED = 0
    OK = 1
    ERROR = 2
