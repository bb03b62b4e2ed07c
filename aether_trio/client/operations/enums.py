"""The protocol's enums with Python names: the same numbers, no prefixes.

Member 0 is what the wire calls unspecified, or its default. Numbers of a later protocol read as
member 0.
"""

from __future__ import annotations

import enum


class PrincipalKind(enum.IntEnum):
    """The kinds of participant."""

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
    """Whose keys.

    The exclusive scopes, and USER and USER_WORKSPACE, belong to one identity, its workspace
    included.

    USER, USER_WORKSPACE, USER_SHARED and USER_WORKSPACE_SHARED need a `user_id`; those named after
    a workspace are about the caller's own unless `workspace` says another.
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
    """What a progress report is about."""

    UNSPECIFIED = 0
    CHAT = 1
    APP = 2
    TASK = 3


class TaskStatus(enum.IntEnum):
    """Where a task stands. Being assigned and being started still count as QUEUED."""

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
    """Who does the work: the creator, a named identity, or any worker of a pool."""

    SELF_ASSIGN = 0
    TARGETED = 1
    POOL = 2


class TaskClass(enum.IntEnum):
    """How long a task may go without its worker.

    Interactive ones are the least patient.
    """

    UNSPECIFIED = 0
    INTERACTIVE = 1
    BACKGROUND = 2
    BATCH = 3


class TaskPriority(enum.IntEnum):
    """Order among waiting tasks; unspecified is NORMAL."""

    UNSPECIFIED = 0
    XLOW = 10
    LOW = 20
    NORMAL = 30
    HIGH = 40
    PREEMPT = 50


class TargetOfflinePolicy(enum.IntEnum):
    """What to do with a targeted task whose target is offline."""

    UNSPECIFIED = 0
    ORCHESTRATE = 1
    QUEUE = 2
    REJECT = 3


class BackoffStrategy(enum.IntEnum):
    """How delays between attempts grow; unspecified is exponential."""

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
    """Where a request for authority stands."""

    UNSPECIFIED = 0
    PENDING = 1
    APPROVED = 2
    DENIED = 3
    EXPIRED = 4
    CANCELLED = 5


class AuthorityRequestEventType(enum.IntEnum):
    """In which way a request for authority moved on."""

    UNSPECIFIED = 0
    CREATED = 1
    APPROVED = 2
    DENIED = 3
    EXPIRED = 4
    CANCELLED = 5


class ScheduleLifetime(enum.IntEnum):
    """Whether a schedule's authority ends with its grant or stands on its own."""

    SOURCE_BOUND = 0
    DURABLE = 1


class ProxyFailure(enum.IntEnum):
    """Why a proxied request failed."""

    UNKNOWN = 0
    DIAL_FAILED = 1
    TIMEOUT = 2
    UPSTREAM_RESET = 3
    ACL_DENIED = 4
    SIDECAR_UNAVAILABLE = 5
    PAYLOAD_TOO_LARGE = 6
    DECODE_FAILED = 7


class TunnelProtocol(enum.IntEnum):
    """What a tunnel carries."""

    TCP = 0
    UDP = 1
    WEBSOCKET = 2


class TunnelEnd(enum.IntEnum):
    """Why a tunnel was closed."""

    NORMAL = 0
    PEER_RESET = 1
    IDLE_TIMEOUT = 2
    QUOTA = 3
    ERROR = 4


class ContinuationMode(enum.IntEnum):
    """How much of the sender's authority the receiver of a message may go on with."""

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
    """The state of one dependency."""

    UNSPECIFIED = 0
    OK = 1
    ERROR = 2
