"""Test that every record has every field of its message, and reads back."""

from __future__ import annotations

import enum
import importlib
import inspect
import pkgutil
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.client import operations
from aether_trio.client.operations import (
    access_checks,
    access_explanation,
    access_rules,
    agents,
    audit,
    enums,
    gateway,
    grant_values,
    groups,
    principals,
    progress,
    requests,
    sessions,
    task_events,
    task_values,
    tokens,
    workflow,
    workspaces,
)
from aether_trio.client.operations.principals import AccessLevel, Principal, ResourceScope
from aether_trio.client.operations.records import Millis, Seconds, Wire, from_time, member, read, to_time, write
from aether_trio.wire.pb import aether_pb2 as pb

MESSAGES: dict[type, Any] = {
    access_checks.AccessRequest: pb.ResourceAccessRequest,
    access_checks.Continuation: pb.AuthorityContinuationRequest,
    access_checks.ContinuationScope: pb.AuthorityContinuationScope,
    access_checks.AccessVerdict: pb.AccessDecisionReceipt,
    agents.Orchestrator: pb.OrchestratorInfo,
    agents.Registration: pb.AgentRegistrationInfo,
    agents.ResourceSchema: pb.AgentResourceSchemaEntry,
    audit.AuditEntry: pb.AuditEntry,
    gateway.DependencyCheck: pb.HealthCheck,
    gateway.GatewayDescription: pb.GatewayInfo,
    gateway.GatewayCounters: pb.GatewayStats,
    grant_values.Derivation: pb.AuthorityGrantDeriveRequest,
    grant_values.DeriveForTarget: pb.AuthorityGrantDeriveForTargetRequest,
    grant_values.GrantExchange: pb.AuthorityGrantExchangeRequest,
    grant_values.Grant: pb.ACLAuthorityGrantInfo,
    grant_values.ResolvedGrant: pb.ResolvedAuthority,
    grant_values.Revocation: pb.AuthorityGrantRevocation,
    grant_values.ShortGrant: pb.AuthorityGrantInfo,
    groups.Group: pb.ACLGroupInfo,
    groups.Membership: pb.ACLGroupMemberInfo,
    groups.Role: pb.ACLRoleInfo,
    groups.RoleAssignment: pb.ACLRoleAssignmentInfo,
    principals.Authorization: pb.AuthorizationContext,
    principals.Principal: pb.PrincipalRef,
    principals.ResourceScope: pb.ACLAuthorityGrantResourceScopeEntry,
    progress.ProgressUpdate: pb.ProgressUpdate,
    progress.ProgressStep: pb.ProgressStep,
    requests.AuthorityRequest: pb.AuthorityRequest,
    requests.RequestEvent: pb.AuthorityRequestEvent,
    requests.AuthorityRoute: pb.AuthorityRequestRoutingTarget,
    requests.AuthorityWish: pb.CreateAuthorityRequestPayload,
    access_explanation.RuleContribution: pb.ACLAccessContributionInfo,
    access_rules.RecordedDecision: pb.ACLAuditEntryInfo,
    access_explanation.AccessExplanation: pb.ACLAccessExplanationInfo,
    access_rules.FallbackPolicy: pb.ACLFallbackPolicyInfo,
    access_rules.AccessRule: pb.ACLRuleInfo,
    sessions.SessionInfo: pb.ConnectionInfo,
    task_events.ChildChanged: pb.TaskChildLifecycleEvent,
    task_events.StatusChanged: pb.TaskStatusChangedEvent,
    task_events.TaskProgressed: pb.TaskProgressEvent,
    task_values.Assignment: pb.TaskAssignment,
    task_values.CompletionEvent: pb.TaskCompletionEvent,
    task_values.CreatedTask: pb.CreateTaskResponse,
    task_values.Hibernated: pb.TaskHibernated,
    task_values.Hibernation: pb.HibernationDescriptor,
    task_values.RetryPolicy: pb.RetryPolicy,
    task_values.Task: pb.TaskInfo,
    task_values.WaitSpec: pb.WaitSpec,
    tokens.Token: pb.TokenInfo,
    workflow.ScheduleScope: pb.WorkflowScheduleAuthorityScope,
    workspaces.FlowEdge: pb.FlowEdge,
    workspaces.FlowNode: pb.FlowNode,
    workspaces.MessageFlow: pb.MessageFlowInfo,
    workspaces.Workspace: pb.WorkspaceInfo,
}

LEFT_OUT = {
    ("AuthorizationContext", "resolved"): "the gateway's words for a receiver; read from the raw message",
    ("ACLFallbackPolicyInfo", "fallback_access_level_name"): "the name of a level that is there",
    ("ACLAuditEntryInfo", "access_level_name"): "the name of a level that is there",
    ("ACLRuleInfo", "access_level_name"): "the name of a level that is there",
    ("ACLAuthorityGrantInfo", "access_level_name"): "the name of a level that is there",
    ("CreateTaskResponse", "success"): "raised when false",
    ("CreateTaskResponse", "error_code"): "raised",
    ("CreateTaskResponse", "error_message"): "raised",
    ("CreateTaskResponse", "request_id"): "correlation",
}
"""Fields of messages that their records do not have, and why."""


def filled(message: Any) -> Any:
    """The message with something in every field, three messages deep."""
    _fill(message, 3)
    return message


def _fill(message: Any, depth: int) -> None:
    for number, field in enumerate(message.DESCRIPTOR.fields, start=1):
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value["k"] = True if field.message_type.fields_by_name["value"].type == field.TYPE_BOOL else "v"
        elif field.message_type is not None:
            if depth:
                target = value.add() if field.is_repeated else value
                target.SetInParent()
                _fill(target, depth - 1)
        elif field.is_repeated:
            value.append(_scalar(field, number))
        else:
            setattr(message, field.name, _scalar(field, number))


def _scalar(field: Any, number: int) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    return {
        field.CPPTYPE_STRING: b"bytes" if field.type == field.TYPE_BYTES else f"{field.name}-text",
        field.CPPTYPE_BOOL: True,
        field.CPPTYPE_DOUBLE: 0.25,
    }.get(field.cpp_type, 50 if "level" in field.name else 1_700_000_000 + number)


@pytest.mark.parametrize("record", MESSAGES, ids=lambda record: record.__name__)
def test_a_message_survives_its_record(record: type) -> None:
    message = filled(MESSAGES[record]())
    there = write(read(record, message), MESSAGES[record]())
    lost = {
        (type(message).DESCRIPTOR.name, field.name)
        for field in message.DESCRIPTOR.fields
        if not _same(getattr(message, field.name), getattr(there, field.name))
    }
    assert lost == {key for key in LEFT_OUT if key[0] == message.DESCRIPTOR.name}


def _same(before: Any, after: Any) -> bool:
    """Equal, but for what records of parts leave out."""
    if not hasattr(before, "DESCRIPTOR") or hasattr(before, "add"):
        before, after = (
            list(before) if hasattr(before, "add") else before,
            list(after) if hasattr(after, "add") else after,
        )
        if isinstance(before, list):
            return len(before) == len(after) and all(_same(b, a) for b, a in zip(before, after, strict=True))
        return bool(before == after)
    return all(
        _same(getattr(before, field.name), getattr(after, field.name))
        for field in before.DESCRIPTOR.fields
        if (before.DESCRIPTOR.name, field.name) not in LEFT_OUT
    )


def test_every_record_is_in_the_table() -> None:
    """A record whose message is not named here would not be compared with it."""
    plain = {
        "NewToken",
        "TaskEvent",
        "Health",
        "Presence",
        "WorkflowAnswer",
        "Page",
        "CounterChange",
        "SwapResult",
        "SetAddResult",
        "Checkpoint",
        "Answer",
        "Input",
        "Question",
        "TopicInfo",
        "TopicDetails",
        "ConsumerInfo",
        "Purged",
        "Applied",
        "AppliedDefinition",
        "Execution",
        "ExecutionFork",
        "ExecutionStep",
        "Foretold",
        "HistoryDivergence",
        "HistoryEntry",
        "HistoryReplay",
        "Redriven",
        "Timeline",
        "WorkflowDefinition",
    }
    plain |= {"ProxyResponse", "Wire", "_Entry", "_Field", "_Key"}
    found: set[str] = set()
    for module in pkgutil.iter_modules(operations.__path__):
        loaded = importlib.import_module(f"{operations.__name__}.{module.name}")
        found |= {
            name
            for name, one in vars(loaded).items()
            if inspect.isclass(one) and is_dataclass(one) and one.__module__ == loaded.__name__
        }
    assert {name for name in found if not name.endswith("Page")} - plain == {record.__name__ for record in MESSAGES}


def test_an_empty_message_is_a_record_of_nothing() -> None:
    task = read(task_values.Task, pb.TaskInfo())
    assert task.created_at is None
    assert task.wait_spec is None
    assert task.status is enums.TaskStatus.UNSPECIFIED
    assert task.depends_on == ()


def test_a_part_that_is_there_and_empty_stays_there() -> None:
    spec = task_values.WaitSpec(hibernation=task_values.Hibernation(checkpoint_key=""))
    message = write(spec, pb.WaitSpec())
    assert message.HasField("hibernation")
    assert read(task_values.WaitSpec, message) == spec


def test_a_number_of_a_later_protocol_is_unspecified() -> None:
    assert read(task_values.Task, pb.TaskInfo(status=77)).status is enums.TaskStatus.UNSPECIFIED  # type: ignore[arg-type]
    assert member(AccessLevel, 33) is AccessLevel.NONE


@dataclass(frozen=True)
class Times:
    """A record with both units, on fields of some message that has them."""

    seconds: Annotated[Seconds, Wire("created_at")]
    millis: Annotated[Millis, Wire("grace_window_ms", "ms")]


@given(st.integers(1, 250_000_000_000), st.integers(1, 250_000_000_000_000))
def test_times_are_whole_units_of_the_wire(seconds: int, millis: int) -> None:
    message = pb.TaskInfo(created_at=seconds, grace_window_ms=millis)
    record = read(Times, message)
    assert record.seconds == datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
    assert record.millis == datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=millis)
    assert write(record, pb.TaskInfo()) == message


def test_a_time_without_a_zone_is_refused_and_one_beyond_all_calendars_is_none() -> None:
    with pytest.raises(ValueError, match="time zone"):
        from_time(datetime(2026, 1, 1))  # noqa: DTZ001
    assert to_time(2**62) is None
    assert from_time(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=1999), "ms") % 1000 == 1
    assert from_time(None) == 0
    for before in (datetime.fromtimestamp(0, UTC), datetime(1900, 1, 1, tzinfo=UTC)):
        assert from_time(before, "ms") == 1, "0 says that there is none"


@pytest.mark.parametrize(
    ("text", "principal"),
    [
        ("ag::prod::planner::1", Principal("agent", "ag::prod::planner::1")),
        ("us::ann::w1", Principal("user", "ann")),
        ("us::ann", Principal("user", "ann")),
        ("sv::billing::1", Principal("service", "sv::billing::1")),
        ("tu::prod::planner::7", Principal("task", "tu::prod::planner::7")),
    ],
)
def test_an_identity_names_a_principal(text: str, principal: Principal) -> None:
    assert Principal.of(text) == principal
    assert Principal.of(principal) is principal


def test_what_is_no_identity_names_no_principal() -> None:
    with pytest.raises(ValueError, match="planner"):
        Principal.of("planner")


ENUMS = {
    enums.PrincipalKind: (pb.PrincipalType, "PRINCIPAL_", "PRINCIPAL_TYPE_"),
    enums.Scope: (pb.KVOperation.Scope, "", "SCOPE_"),
    enums.ProgressKind: (pb.ProgressKind, "PROGRESS_KIND_", ""),
    enums.TaskStatus: (pb.TaskStatus, "TASK_STATUS_", ""),
    enums.TaskAssignmentMode: (pb.TaskAssignmentMode, "", ""),
    enums.TaskClass: (pb.TaskClass, "TASK_CLASS_", ""),
    enums.TaskPriority: (pb.TaskPriority, "TASK_PRIORITY_", ""),
    enums.TargetOfflinePolicy: (pb.TargetOfflinePolicy, "TARGET_OFFLINE_POLICY_", ""),
    enums.BackoffStrategy: (pb.BackoffStrategy, "BACKOFF_STRATEGY_", ""),
    enums.WaitReason: (pb.WaitReason, "WAIT_REASON_", ""),
    enums.AuthorityRequestStatus: (pb.AuthorityRequestStatus, "AUTHORITY_REQUEST_STATUS_", ""),
    enums.AuthorityRequestEventType: (pb.AuthorityRequestEvent.EventType, "AUTHORITY_REQUEST_EVENT_", ""),
    enums.ScheduleLifetime: (pb.WorkflowAuthorityLifetimeMode, "WORKFLOW_AUTHORITY_LIFETIME_", ""),
    enums.ProxyFailure: (pb.ProxyError.Kind, "", ""),
    enums.TunnelProtocol: (pb.TunnelOpen.Protocol, "", ""),
    enums.TunnelEnd: (pb.TunnelClose.Reason, "", ""),
    enums.ContinuationMode: (pb.AuthorityContinuationRequest.ScopeMode, "SCOPE_MODE_", ""),
    enums.HealthStatus: (pb.HealthStatus, "HEALTH_STATUS_", ""),
    enums.HealthCheckStatus: (pb.HealthCheckStatus, "HEALTH_CHECK_STATUS_", ""),
}


@pytest.mark.parametrize("ours", ENUMS, ids=lambda ours: ours.__name__)
def test_an_enum_is_the_protocols(ours: type[enum.IntEnum]) -> None:
    wire, prefix, other = ENUMS[ours]
    names = {name.removeprefix(other or prefix).removeprefix(prefix): number for name, number in wire.items()}  # type: ignore[attr-defined]
    assert {one.name: one.value for one in ours} == names


def test_every_enum_is_in_the_table() -> None:
    found = {one for one in vars(enums).values() if inspect.isclass(one) and one.__module__ == enums.__name__}
    assert found == set(ENUMS)


def test_nothing_of_a_scope_is_a_list() -> None:
    """Tuples, so that a record cannot be changed after it was checked."""
    scope = ResourceScope(resource_type="kv", patterns=("a*", "b"))
    assert read(ResourceScope, write(scope, pb.ACLAuthorityGrantResourceScopeEntry())) == scope
    assert hash(scope) == hash(ResourceScope(resource_type="kv", patterns=("a*", "b")))
    assert {field.name for field in fields(scope)} == {"resource_type", "patterns"}
