"""A key limited to one workspace touches no other, by any operation or transport.

`TABLE` has an entry for each operation of the protocol. An operation without one fails
`test_every_operation_is_here`, and so does a new value of an operation's enum: its author
has to say here what it does with a foreign workspace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from tempfile import NamedTemporaryFile
from time import time
from typing import Any, Final

import pytest
import trio

from aether_trio.config import HmacKey
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.services import unimplemented
from aether_trio.services.tokens.keys import KEY_BYTES, new_key_text
from aether_trio.testing.memory import agent, message_to
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import give_all_rights, service, switch_to, task, user
from tests.helpers.participants import TRANSPORTS, Participant, admission, participant
from tests.security.clients import gateway_with
from tests.security.tenants import auth, key_of
from tests.transport.framed.harness import FramedPeer

KV, Sessions, Agents, Tasks = pb.KVOperation, pb.SessionOperation, pb.AgentOperation, pb.TaskOperation
Workspaces, Workflows = pb.WorkspaceOperation, pb.WorkflowOperation
Query, Follow = pb.TaskQuery, pb.TaskSubscriptionOperation
Access, Tokens = pb.ACLOperation, pb.TokenOperation
Grants, Requests = pb.AuthorityGrantOperation, pb.AuthorityRequestOperation
Decision = pb.ResolveAuthorityRequestPayload
EVERY_TRANSPORT = pytest.mark.parametrize("transport", TRANSPORTS)
SECRET: Final = b"blue's secret"
BLUE: Final = "ag::blue::worker::1"
EVE: Final = "ag::red::eve::1"


@dataclass(frozen=True)
class Place:
    """What there is in the workspace "blue".

    By the two grants BLUE and EVE may act for bob there; EVE by `held_grant_id`.
    """

    session_id: str
    user_session_id: str
    task_id: str
    rule_id: str
    token_id: str
    grant_id: str
    held_grant_id: str
    authority_request_id: str


@asynccontextmanager
async def serving() -> AsyncIterator[Gateway]:
    """A gateway that gives rights to everyone, so that only the keys limit clients."""
    with NamedTemporaryFile() as file:  # for its owner only
        file.write(new_key_text(bytes(KEY_BYTES)).encode())
        file.flush()
        keys = (HmacKey(id="k", file=file.name),)
        async with gateway_with(gateway={"dev": False}, auth={**auth(), "token_hmac_keys": keys}) as gateway:
            give_all_rights(gateway.core)
            yield gateway


@asynccontextmanager
async def blue_at(gateway: Gateway) -> AsyncIterator[Place]:
    """An agent, a user's window and a task in the workspace blue, and keys."""
    async with (
        participant("grpc", gateway.address, agent("blue", "worker", "1", credentials=key("all"))) as stream,
        participant("grpc", gateway.address, user("bob", "w", credentials=key("all"))) as window,
    ):
        for scope in (KV.WORKSPACE, KV.WORKSPACE_EXCLUSIVE):
            await stream.send(pb.UpstreamMessage(kv_op=KV(op=KV.PUT, scope=scope, key="k", value=SECRET)))
        await stream.send(pb.UpstreamMessage(create_task=pb.CreateTaskRequest(task_type="t", request_id="r")))
        task_id = (await stream.next("create_task")).create_task.task_id
        assert task_id
        rule = pb.ACLGrantRequest(
            principal_type="agent", principal_id=BLUE, resource_type="workspace", resource_id="blue", access_level=20
        )
        await stream.send(pb.UpstreamMessage(acl_op=Access(op=Access.GRANT, grant_request=rule, request_id="r")))
        rule_id = (await stream.next("acl")).acl.rule.rule_id
        assert rule_id
        wanted = pb.TokenCreateRequest(name="ci", principal_type="agent", workspace_patterns=["blue"])
        await stream.send(pb.UpstreamMessage(token_op=Tokens(op=Tokens.CREATE, create_request=wanted, request_id="r")))
        token_id = (await stream.next("token")).token.created_token.id
        assert token_id
        await window.send(switch_to("blue"))
        await everything(window, "us::bob::w")
        grant_id, held_grant_id = [await grant_to(window, delegate) for delegate in (BLUE, EVE)]
        await stream.send(_asked("CREATE", create=FOR_BOB)(None))
        asked = (await stream.next("authority_request_response")).authority_request_response
        assert asked.success, asked.error
        sessions = {session.identity.text: session.session_id for session in gateway.core.registry}
        yield Place(
            sessions[BLUE],
            sessions["us::bob::w"],
            task_id,
            rule_id,
            token_id,
            grant_id,
            held_grant_id,
            asked.request.request_id,
        )


async def grant_to(window: Participant, delegate: str) -> str:
    """Let an agent act for the user of a window in blue, and pass that on once."""
    now_s = int(time())
    times: dict[str, Any] = {"expires_at": now_s + 900, "renewable_until": now_s + 900, "may_delegate": True}
    root = pb.AuthorityGrantExchangeRequest(
        workspace_scope=["blue"],
        max_access_level=20,
        remaining_hops=2,
        **times,
    )
    await window.send(pb.UpstreamMessage(authority_grant_op=Grants(op=Grants.EXCHANGE, exchange_request=root)))
    parent = (await window.next("authority_grant")).authority_grant
    assert parent.success, parent.error
    child = pb.AuthorityGrantDeriveRequest(
        parent_grant_id=parent.grant.grant_id, remaining_hops=1, **_child_for(delegate), **times
    )
    await window.send(pb.UpstreamMessage(authority_grant_op=Grants(op=Grants.DERIVE, derive_request=child)))
    derived = (await window.next("authority_grant")).authority_grant
    assert derived.success, derived.error
    return derived.grant.grant_id


def _child_for(delegate: str) -> dict[str, Any]:
    return {
        "delegate": pb.PrincipalRef(principal_type="agent", principal_id=delegate),
        "audience_type": "agent",
        "audience_id": delegate,
        "workspace_scope": ["blue"],
        "max_access_level": 20,
    }


def key(name: str) -> dict[str, str]:
    return {"api_key": key_of(name)}


def eve(gateway: Gateway, transport: str, tenant: str = "red") -> AbstractAsyncContextManager[Participant]:
    return participant(transport, gateway.address, agent("red", "eve", "1", credentials=key(tenant)))


async def everything(stream: Participant, identity: str) -> list[pb.DownstreamMessage]:
    """Read everything up to the answer of a last question about oneself."""
    kind = {"ag": "agent", "us": "user", "sv": "service", "br": "bridge"}[identity[:2]]
    who = pb.PrincipalRef(principal_type=kind, principal_id=identity)
    ask = pb.ConnectionStatusRequest(principal=who, request_id="barrier")
    await stream.send(pb.UpstreamMessage(connection_status_request=ask))
    said: list[pb.DownstreamMessage] = []
    while True:
        message = await stream.receive()
        assert message is not None
        if message.connection_status_response.request_id == "barrier":
            assert message.connection_status_response.ok
            return said
        said.append(message)


# -- the table -------------------------------------------------------------------------------------

Ask = Callable[[Place], pb.UpstreamMessage]


@dataclass(frozen=True)
class Foreign:
    """Requests that touch blue, by name.

    They begin with the members of the operation's `enum` that they cover; `harmless` are those that
    name and find no workspace, and why. What is in `empty` is answered by an empty list.
    """

    asks: Mapping[str, Ask]
    enum: Any = None
    harmless: Mapping[str, str] | None = None
    empty: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Own:
    """An operation that touches nothing but what is the caller's own, and why."""

    why: str


@dataclass(frozen=True)
class NotServed:
    """An operation that is not served yet."""


def _ask(case: str, request: Any, /, *, id_field: str = "request_id", **fields: Any) -> Ask:
    """A request of this kind; fields that are functions are of the place."""

    def ask(place: Place) -> pb.UpstreamMessage:
        filled = {name: value(place) if callable(value) else value for name, value in fields.items()}
        return pb.UpstreamMessage(**{case: request(**{id_field: "r"}, **filled)})

    return ask


def _kv(name: str, scope: int, **fields: Any) -> Ask:
    filled = {"key": "" if name == "LIST" else "k", "value": b"1", "user_id": "u", "workspace": "blue", **fields}
    return _ask("kv_op", KV, op=KV.OpType.Value(name), scope=scope, **filled)


def _session(name: str, **fields: Any) -> Ask:
    return _ask("session_op", Sessions, op=Sessions.OpType.Value(name), **fields)


def _agents(name: str, **fields: Any) -> Ask:
    return _ask("agent_op", Agents, op=Agents.OpType.Value(name), **fields)


def _workspaces(name: str, **fields: Any) -> Ask:
    blue = pb.WorkspaceInfo(workspace_id="blue", display_name="theirs", **fields)
    return _ask("workspace_op", Workspaces, op=Workspaces.OpType.Value(name), workspace_id="blue", workspace=blue)


def _acl(name: str, /, **fields: Any) -> Ask:
    return _ask("acl_op", Access, op=Access.OpType.Value(name), **fields)


def _token(name: str, **fields: Any) -> Ask:
    return _ask("token_op", Tokens, op=Tokens.OpType.Value(name), **fields)


def _workflows(name: str) -> Ask:
    return _ask("workflow_op", Workflows, op=Workflows.OpType.Value(name), id="x", workspace="blue", data=b"{}")


def _rule(workspace: str) -> pb.ACLGrantRequest:
    """Give READWRITE on a workspace to EVE."""
    return pb.ACLGrantRequest(
        principal_type="agent", principal_id=EVE, resource_type="workspace", resource_id=workspace, access_level=20
    )


def _new_token(workspace: str) -> pb.TokenCreateRequest:
    return pb.TokenCreateRequest(name="ci", principal_type="agent", workspace_patterns=[workspace])


def _grants(name: str, **fields: Any) -> Ask:
    return _ask("authority_grant_op", Grants, op=Grants.OpType.Value(name), **fields)


def _derive(grant: str) -> Ask:
    """Pass on a grant of the place, by its field's name."""

    def ask(place: Place) -> pb.UpstreamMessage:
        child = pb.AuthorityGrantDeriveRequest(parent_grant_id=getattr(place, grant), **_child_for(BLUE))
        return pb.UpstreamMessage(authority_grant_op=Grants(op=Grants.DERIVE, request_id="r", derive_request=child))

    return ask


def _derive_for_target(grant: str) -> Ask:
    def ask(place: Place) -> pb.UpstreamMessage:
        child = pb.AuthorityGrantDeriveForTargetRequest(parent_grant_id=getattr(place, grant), target=OTHER)
        op = Grants(op=Grants.DERIVE_FOR_TARGET, request_id="r", derive_for_target_request=child)
        return pb.UpstreamMessage(authority_grant_op=op)

    return ask


def _exchange(place: Place) -> pb.AuthorityGrantExchangeRequest:
    """Act for bob by his session."""
    lasts = int(time()) + 900
    return pb.AuthorityGrantExchangeRequest(
        source_session_id=place.user_session_id,
        workspace_scope=["blue"],
        max_access_level=20,
        expires_at=lasts,
        renewable_until=lasts,
    )


def _asked(name: str, **fields: Any) -> Ask:
    return _ask(
        "authority_request_op", Requests, id_field="client_request_id", op=Requests.OpType.Value(name), **fields
    )


def _create(**fields: Any) -> Ask:
    return _ask("create_task", pb.CreateTaskRequest, task_type="t", **fields)


def _to(topic: str, kind: int = pb.OPAQUE, payload: bytes = b"x") -> Ask:
    return lambda place: message_to(topic.replace("TASK", place.task_id), payload, pb.MessageType.ValueType(kind))


def _status(kind: str, name: str) -> Ask:
    who = pb.PrincipalRef(principal_type=kind, principal_id=name)
    return _ask("connection_status_request", pb.ConnectionStatusRequest, principal=who)


TASK: Final[dict[str, Any]] = {"task_id": lambda place: place.task_id}
SESSION: Final[dict[str, Any]] = {"session_id": lambda place: place.session_id}
RULE: Final[dict[str, Any]] = {"rule_id": lambda place: place.rule_id}
TOKEN: Final[dict[str, Any]] = {"token_id": lambda place: place.token_id}
FALLBACK: Final = pb.ACLSetFallbackRequest(rule_category="agent_workspace", fallback_access_level=40)
MEMBER: Final = pb.ACLGroupMemberRequest(member_type="agent", member_id=EVE)
ASSIGNMENT: Final = pb.ACLRoleAssignmentRequest(assignee_type="agent", assignee_id=EVE)
OTHER: Final = pb.PrincipalRef(principal_type="agent", principal_id=BLUE)
ASKED: Final[dict[str, Any]] = {"request_id": lambda place: place.authority_request_id}
FOR_BOB: Final = pb.CreateAuthorityRequestPayload(
    target_subject=pb.PrincipalRef(principal_type="user", principal_id="bob"),
    desired_workspace_scope=["blue"],
    requested_access_level=pb.ACCESS_LEVEL_READWRITE,
    requested_duration_seconds=600,
    routing_target=pb.AuthorityRequestRoutingTarget(
        principal=pb.PrincipalRef(principal_type="user", principal_id="bob")
    ),
)
USER_SESSION: Final[dict[str, Any]] = {"session_id": lambda place: place.user_session_id}
SCOPES = (KV.SCOPE_UNSPECIFIED, KV.WORKSPACE, KV.USER_WORKSPACE, KV.WORKSPACE_EXCLUSIVE, KV.USER_WORKSPACE_SHARED)
METRIC: Final = pb.Metric(entries=[pb.MetricEntry(name="n", qty=1)]).SerializeToString()
TOPICS: Final = (
    f"{BLUE} tu::blue::worker::1 ta::blue::worker::1 tb::blue::worker ga::blue gu::blue uw::bob::blue event::blue "
    "tk::blue::TASK::msg tk::blue::TASK::input"
).split()
WAIT: Final = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, depends_on=["another"])
REGISTRATION: Final = pb.AgentRegistrationInfo(implementation="x", orchestrator_profile="p")

TABLE: Final[Mapping[str, Foreign | Own | NotServed]] = {
    "send": Foreign(
        {
            **{topic: _to(topic) for topic in TOPICS},
            "metric": _to("metric::blue", pb.METRIC, METRIC),
            "app_workspace": lambda place: pb.UpstreamMessage(
                send=pb.SendMessage(target_topic=EVE, payload=b"x", app_workspace="blue")
            ),
        }
    ),
    "kv_op": Foreign(
        {
            **{
                f"{name} {KV.Scope.Name(scope)}": _kv(name, scope)
                for name in dict(KV.OpType.items())
                for scope in SCOPES
                if name != "PURGE_IDENTITY"
            },
            "PURGE_IDENTITY": _kv("PURGE_IDENTITY", 0, workspace="", key="", target_identity=BLUE),
            "PURGE_IDENTITY own": _kv("PURGE_IDENTITY", KV.WORKSPACE_EXCLUSIVE, key="", target_identity=EVE),
            "PURGE_IDENTITY service": _kv("PURGE_IDENTITY", 0, workspace="", key="", target_identity="sv::worker::1"),
        },
        KV.OpType,
    ),
    "session_op": Foreign(
        {
            "LIST": _session("LIST", filter=pb.ConnectionFilter(workspace="blue")),
            "LIST all": _session("LIST"),
            "GET": _session("GET", **SESSION),
            "GET user": _session("GET", **USER_SESSION),
            "DISCONNECT user": _session("DISCONNECT", **USER_SESSION),
            "DISCONNECT": _session("DISCONNECT", **SESSION),
        },
        Sessions.OpType,
    ),
    "connection_status_request": Foreign(
        {
            "agent": _status("agent", BLUE),
            "task": _status("task", "tu::blue::worker::1"),
            "user": _status("user", "bob"),
            "window": _status("user", "us::bob::w"),
            "service": _status("service", "sv::worker::1"),
        }
    ),
    "agent_op": Foreign(
        {
            "REGISTER": _agents("REGISTER", agent=REGISTRATION),
            "UPDATE": _agents("UPDATE", implementation="x", agent=REGISTRATION),
            "LAUNCH": _agents("LAUNCH", implementation="x", launch_params=pb.AgentLaunchParams(workspace="blue")),
            "DELETE": _agents("DELETE", implementation="x"),
        },
        Agents.OpType,
        {
            "LIST": "implementations are in no workspace",
            "GET": "implementations are in no workspace",
            "LIST_ORCHESTRATORS": "orchestrators are in no workspace",
        },
    ),
    "acl_op": Foreign(
        {
            "LIST_RULES": _acl(
                "LIST_RULES", rule_filter=pb.ACLRuleFilter(resource_type="workspace", resource_id="blue")
            ),
            "LIST_RULES all": _acl("LIST_RULES"),
            "GET_RULE": _acl("GET_RULE", **RULE),
            "GRANT": _acl("GRANT", grant_request=_rule("blue")),
            "GRANT all": _acl("GRANT", grant_request=_rule("*")),
            "GRANT pattern": _acl("GRANT", grant_request=_rule("b*")),
            "QUERY_AUDIT": _acl("QUERY_AUDIT", audit_filter=pb.ACLAuditFilter(workspace="blue")),
            "SET_FALLBACK_POLICY": _acl("SET_FALLBACK_POLICY", fallback_request=FALLBACK),
            "GET_FALLBACK_POLICY": _acl("GET_FALLBACK_POLICY", rule_category="agent_workspace"),
            "CLEANUP_EXPIRED": _acl("CLEANUP_EXPIRED"),
            "CLEANUP_AUDIT_LOGS": _acl("CLEANUP_AUDIT_LOGS", retention_days=1),
            "CREATE_GROUP": _acl("CREATE_GROUP", name="g"),
            "GET_GROUP": _acl("GET_GROUP", name="g"),
            "LIST_GROUPS": _acl("LIST_GROUPS"),
            "ADD_GROUP_MEMBER": _acl("ADD_GROUP_MEMBER", name="g", member_request=MEMBER),
            "LIST_GROUP_MEMBERS": _acl("LIST_GROUP_MEMBERS", name="g"),
            "LIST_PRINCIPAL_GROUPS": _acl("LIST_PRINCIPAL_GROUPS", principal=OTHER),
            "REMOVE_GROUP_MEMBER": _acl("REMOVE_GROUP_MEMBER", name="g", member_request=MEMBER),
            "DELETE_GROUP": _acl("DELETE_GROUP", name="g"),
            "CREATE_ROLE": _acl("CREATE_ROLE", name="g"),
            "GET_ROLE": _acl("GET_ROLE", name="g"),
            "LIST_ROLES": _acl("LIST_ROLES"),
            "ASSIGN_ROLE": _acl("ASSIGN_ROLE", name="g", assignment_request=ASSIGNMENT),
            "LIST_ROLE_ASSIGNMENTS": _acl("LIST_ROLE_ASSIGNMENTS", name="g"),
            "LIST_PRINCIPAL_ROLES": _acl("LIST_PRINCIPAL_ROLES", principal=OTHER),
            "UNASSIGN_ROLE": _acl("UNASSIGN_ROLE", name="g", assignment_request=ASSIGNMENT),
            "DELETE_ROLE": _acl("DELETE_ROLE", name="g"),
            "EXPLAIN_ACCESS": _acl("EXPLAIN_ACCESS", principal=OTHER, resource_type="workspace", resource_id="blue"),
            "REVOKE": _acl("REVOKE", **RULE),
        },
        Access.OpType,
    ),
    "token_op": Foreign(
        {
            "LIST": _token("LIST"),
            "GET": _token("GET", **TOKEN),
            "CREATE": _token("CREATE", create_request=_new_token("blue")),
            "CREATE all": _token("CREATE", create_request=_new_token("*")),
            "REVOKE": _token("REVOKE", **TOKEN),
            "DELETE": _token("DELETE", **TOKEN),
        },
        Tokens.OpType,
        empty=frozenset({"LIST"}),  # of tokens that reach no more than red
    ),
    "authority_grant_op": Foreign(
        {
            "EXCHANGE": _grants("EXCHANGE", exchange_request=_exchange),
            "BATCH_EXCHANGE": _grants(
                "BATCH_EXCHANGE",
                batch_exchange_request=lambda place: pb.AuthorityGrantBatchExchangeRequest(requests=[_exchange(place)]),
            ),
            "DERIVE": _derive("grant_id"),
            "DERIVE what it holds": _derive("held_grant_id"),
            "DERIVE_FOR_TARGET": _derive_for_target("grant_id"),
            "DERIVE_FOR_TARGET what it holds": _derive_for_target("held_grant_id"),
            **{name: _grants(name, grant_id=lambda place: place.grant_id) for name in ("GET", "RENEW", "REVOKE")},
        },
        Grants.OpType,
        {
            "LIST_MY_GRANTS": "lists the grants by which the caller itself may act",
            "LIST_GRANTS_ON_ME": "lists the grants by which others act for the caller itself",
        },
    ),
    "authority_request_op": Foreign(
        {
            "GET": _asked("GET", **ASKED),
            "RESOLVE": _asked("RESOLVE", **ASKED, resolve=Decision(decision=Decision.APPROVE)),
            "RESOLVE no": _asked("RESOLVE", **ASKED, resolve=Decision(decision=Decision.DENY)),
            "CANCEL": _asked("CANCEL", **ASKED),
        },
        Requests.OpType,
        {
            "AUTHORITY_REQUEST_OP_UNSPECIFIED": "nothing is asked for",
            "CREATE": "asks a person, and gives nothing: a grant does not widen the reach of a key",
            "LIST_PENDING": "lists what the caller itself may decide",
        },
    ),
    "resolve_authority_request": Foreign(
        {
            "of BLUE": _ask(
                "resolve_authority_request",
                pb.ResolveAuthorityRequest,
                grant_id=lambda place: place.grant_id,
                actor=OTHER,
                subject=pb.PrincipalRef(principal_type="user", principal_id="bob"),
            )
        }
    ),
    "access_check": Own("tells what the caller itself may do"),
    "batch_access_check": Own("tells what the caller itself may do"),
    "workspace_op": Foreign(
        {
            "GET": _workspaces("GET"),
            "GET_MESSAGE_FLOW": _workspaces("GET_MESSAGE_FLOW"),
            "CREATE": _workspaces("CREATE"),
            "UPDATE": _workspaces("UPDATE"),
            "UPDATE quotas": _workspaces("UPDATE", metadata={"quota.kv_value_bytes": "1"}),
            "DELETE": _workspaces("DELETE"),
        },
        Workspaces.OpType,
        {"LIST": "lists those that the credential reaches; test_a_list_has_the_workspaces_in_reach"},
    ),
    "create_task": Foreign(
        {
            "workspace": _create(workspace="blue"),
            "target_agent_id": _create(assignment_mode=pb.TARGETED, target_agent_id=BLUE),
            "pool": _create(workspace="blue", assignment_mode=pb.POOL, target_implementation="worker"),
        }
    ),
    "task_op": Foreign(
        {name: _ask("task_op", Tasks, op=op, wait_spec=WAIT, **TASK) for name, op in Tasks.OpType.items()}, Tasks.OpType
    ),
    "task_query": Foreign(
        {
            "GET": _ask("task_query", Query, op=Query.GET, **TASK),
            "LIST": _ask("task_query", Query, op=Query.LIST, filter=pb.TaskFilter(workspace="blue")),
        },
        Query.OpType,
        empty=frozenset({"LIST"}),  # of blue's tasks, red is told those that were given to it
    ),
    "task_subscription_op": Foreign(
        {"SUBSCRIBE": _ask("task_subscription_op", Follow, id_field="client_request_id", op=Follow.SUBSCRIBE, **TASK)},
        Follow.OpType,
        {
            "TASK_SUBSCRIPTION_OP_UNSPECIFIED": "nothing is asked for",
            "UNSUBSCRIBE": "ends what the connection itself has subscribed to",
        },
    ),
    "audit_query": Foreign(
        {
            "of a workspace": _ask("audit_query", pb.AuditQuery, workspace="blue"),
            "of all workspaces": _ask("audit_query", pb.AuditQuery),
        }
    ),
    "submit_audit_event": Foreign(
        {
            "in a workspace": _ask(
                "submit_audit_event",
                pb.SubmitAuditEventRequest,
                id_field="client_request_id",
                event_type="custom",
                operation="did",
                success=True,
                workspace="blue",
            )
        }
    ),
    "workflow_op": Foreign(
        {name: _workflows(name) for name in Workflows.OpType.DESCRIPTOR.values_by_name}, Workflows.OpType
    ),
    "workflow_response": Own("only the engine answers, and each operation by the id that it was given"),
    "switch_workspace": Own("agents cannot, and test_a_user_enters_no_workspace_beyond_its_key has users"),
    "checkpoint_op": Own("checkpoints belong to the caller's whole identity"),
    "progress": Own("goes to the caller's workspace or to a user; tests/security/test_reach_of_tasks.py has the tasks"),
    "init": Own("test_no_client_connects_beyond_its_key has it"),
    **{case: NotServed() for case in unimplemented.FAILURES},
}


OF_PARTIES: Final = frozenset({"authority_grant_op", "authority_request_op"})
FOREIGN: Final = [
    (case, entry, name, ask)
    for case, entry in TABLE.items()
    if isinstance(entry, Foreign)
    for name, ask in entry.asks.items()
]


def test_every_operation_is_here() -> None:
    cases = {field.name for field in pb.UpstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields}
    assert set(TABLE) == cases
    for case, entry in TABLE.items():
        if isinstance(entry, Foreign) and entry.enum is not None:
            covered = {name.partition(" ")[0] for name in entry.asks} | set(entry.harmless or ())
            assert covered == set(entry.enum.keys()), case


@EVERY_TRANSPORT
async def test_what_is_not_served_yet_touches_nothing(transport: str) -> None:
    """Its entry has to be a real one as soon as it is built."""
    async with serving() as gateway, eve(gateway, transport) as stream:
        for case, entry in TABLE.items():
            if isinstance(entry, NotServed) and case not in unimplemented._LAST_WORDS:
                message = pb.UpstreamMessage()
                getattr(message, case).SetInParent()
                await stream.send(message)
                said = await everything(stream, EVE)
                assert any(one.error.code == "ERR_NOT_IMPLEMENTED" for one in said), case


# -- the test --------------------------------------------------------------------------------------


def refusals(said: Sequence[pb.DownstreamMessage]) -> list[str]:
    """Give the texts that refuse, or answer as missing, what is beyond reach."""
    texts = []
    for message in said:
        payload = getattr(message, message.WhichOneof("payload") or "error")
        text = getattr(payload, "message", "") if message.HasField("error") else getattr(payload, "error", "")
        text = text or getattr(payload, "message", "") or getattr(payload, "error_message", "")
        words = (
            "does not reach",
            "no session",
            "not found",
            "reach all workspaces",
            "reaches all",
            "not stored",
            "no API token",
            "no live session",
            "your credential reaches",
            "not authorized",
        )
        if isinstance(text, str) and any(word in text for word in words):
            texts.append(text)
    return texts


def successes(said: Sequence[pb.DownstreamMessage]) -> list[pb.DownstreamMessage]:
    """The answers that say yes."""
    payloads = [(message, getattr(message, message.WhichOneof("payload") or "error")) for message in said]
    return [one for one, payload in payloads if getattr(payload, "success", False) or getattr(payload, "ok", False)]


@EVERY_TRANSPORT
async def test_no_operation_touches_a_workspace_that_the_key_does_not_reach(transport: str) -> None:
    async with serving() as gateway, blue_at(gateway) as place, eve(gateway, transport) as stream:
        for case, entry, name, ask in FOREIGN:
            await stream.send(ask(place))
            said = await everything(stream, EVE)
            if name in entry.empty:
                (answer,) = said
                listed = getattr(answer, answer.WhichOneof("payload") or "error")
                assert listed == type(listed)(success=True, request_id="r"), (case, name)
            else:
                assert successes(said) == [], (case, name)
                assert refusals(said), (case, name, said)
            assert SECRET not in b"".join(message.SerializeToString() for message in said), (case, name)
        assert {BLUE, "us::bob::w"} <= {session.identity.text for session in gateway.core.registry}


async def test_the_same_requests_are_heard_of_a_key_that_reaches_all() -> None:
    """Else the test above might ask for what no client would get."""
    async with serving() as gateway, blue_at(gateway) as place, eve(gateway, "framed", "all") as stream:
        for case, _, name, ask in FOREIGN:
            if case.startswith("task") or (case in OF_PARTIES and not name.endswith("what it holds")):
                continue  # they depend on a task's state, or are for others
            await stream.send(ask(place))
            assert refusals(await everything(stream, EVE)) == [], (case, name)
        with trio.fail_after(300):
            while any(session.identity.text == BLUE for session in gateway.core.registry):
                await trio.sleep(0.01)  # DISCONNECT was the last one


async def test_a_list_has_the_workspaces_in_reach() -> None:
    async with serving() as gateway, blue_at(gateway), eve(gateway, "framed") as stream:
        await stream.send(pb.UpstreamMessage(workspace_op=Workspaces(op=Workspaces.LIST)))
        answer = (await stream.next("workspace")).workspace
        assert answer.success
        assert ([one.workspace_id for one in answer.workspaces], answer.total_count) == (["red"], 1)


@EVERY_TRANSPORT
async def test_no_client_connects_beyond_its_key(transport: str) -> None:
    hellos = {
        "agent": agent("blue", "eve", "1", credentials=key("red")),
        "task": task("blue", "t", "1", credentials=key("red")),
        "class of tasks": task("blue", "t", credentials=key("red")),
        "service, which is in all": service("s", "1", credentials=key("red")),
    }
    async with serving() as gateway:
        for who, hello in hellos.items():
            assert (await admission(transport, gateway.address, hello))[0] is Status.PERMISSION_DENIED
            assert len(gateway.core.registry) == 0, who


@EVERY_TRANSPORT
async def test_a_user_enters_no_workspace_beyond_its_key(transport: str) -> None:
    hello = user("eve", "w", credentials=key("red"))
    async with serving() as gateway, blue_at(gateway), participant(transport, gateway.address, hello) as stream:
        for workspace, said in (("blue", ["ERR_PERMISSION_DENIED"]), ("red", []), ("blue", ["ERR_PERMISSION_DENIED"])):
            await stream.send(switch_to(workspace))
            assert [message.error.code for message in await everything(stream, "us::eve::w")] == said
        (own,) = [one for one in gateway.core.registry if one.identity.text == "us::eve::w"]
        assert own.workspace == "red"


async def test_a_numbered_send_names_no_workspace_beyond_the_key() -> None:
    """Sent by the frame that the binary framing has for numbered sends."""
    async with serving() as gateway, eve(gateway, "framed") as stream:
        peer: FramedPeer = stream.raw.peer  # type: ignore[attr-defined]
        for number, workspace in enumerate(("blue", "red"), start=1):
            rest = pb.SendMessage(app_workspace=workspace).SerializeToString()
            await peer.send(framing.Send(number, EVE, b"x", 0, rest))
        nack = await peer.next(framing.Nack)
        assert (nack.seq, nack.code) == (1, "ERR_PERMISSION_DENIED")
        assert (await peer.delivery())[1].workspace == "red"


@EVERY_TRANSPORT
async def test_namesakes_in_two_workspaces_have_exclusive_keys_of_their_own(transport: str) -> None:
    """Agents with one name in two workspaces, each with a key for its workspace."""
    async with serving() as gateway:
        for workspace in ("blue", "red"):
            hello = agent(workspace, "worker", "1", credentials=key("red" if workspace == "red" else "all"))
            async with participant(transport, gateway.address, hello) as stream:
                config = (await stream.next("config")).config
                assert not config.global_exclusive_kv
                assert not config.workspace_exclusive_kv
                for scope in (KV.GLOBAL_EXCLUSIVE, KV.WORKSPACE_EXCLUSIVE, KV.USER):
                    fields: dict[str, Any] = {"scope": scope, "key": "k", "user_id": "u", "request_id": "r"}
                    await stream.send(pb.UpstreamMessage(kv_op=KV(op=KV.GET, **fields)))
                    assert (await stream.next("kv")).kv.value == b""
                    await stream.send(pb.UpstreamMessage(kv_op=KV(op=KV.PUT, value=SECRET, **fields)))
                    assert (await stream.next("kv")).kv.success
