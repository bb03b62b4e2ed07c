"""Handles clients' `workspace_op`: workspaces, their quotas and message flows.

Who may: administrators of `admin/workspaces` (READ to look, ADMIN to change). CREATE also needs the
capability `create_workspace`, and to set quotas takes ADMIN on `admin/quotas`. A credential that
does not reach a workspace neither sees nor changes it.

A workspace is stored, or exists by use alone, while participants are connected in it. Participants
connect to one that is not stored as well, unless access rules refuse them.

Quotas (model/quotas.py) are metadata on the wire, as `quota.NAME` with a number: CREATE and UPDATE
set them, "" clears one, GET and LIST show those that are set. GET of the workspace "*" shows the
limits of workspaces without quotas, which are settings of the gateway.

UPDATE keeps what it does not name: an empty text, quotas without an entry, and all other metadata
if it names none. DELETE is refused while participants are connected. It takes the rules about the
workspace and its quotas along; keys, tasks and messages stay until they expire.

Counters of messages are those of the node that answers, since it started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.patterns import escape
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, IdentityError, Kind, check_token
from aether_trio.model.ownership import SessionFilter, WorkspaceUse
from aether_trio.model.quotas import QUOTA_NAMES, QuotaError, WorkspaceQuotas, check_quota_name, parse_quota, quota_text
from aether_trio.model.text import TextError, check_text, shown
from aether_trio.services.access import DIRECT, AccessQuestion, Admin, Capability
from aether_trio.services.access.audit_events import change_event
from aether_trio.services.access.changes import AccessChanges, Committed, Draft
from aether_trio.services.access.granting import Granting
from aether_trio.services.access.records import delete_rules_on
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.services.quotas import delete_quotas_of, put_quotas, quotas_of
from aether_trio.services.workspaces import records
from aether_trio.services.workspaces.records import WorkspaceRecord
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Program, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.WorkspaceOperation

QUOTA_PREFIX: Final = "quota."
EVERY: Final = "*"
"""No name of a workspace: GET of it shows the limits of workspaces without quotas."""
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
MAX_PAGE_BYTES: Final = 3 * 1024 * 1024
"""Clients refuse messages over 4 MiB."""
MAX_NAME_BYTES: Final = 256
MAX_TENANT_BYTES: Final = 128
MAX_DESCRIPTION_BYTES: Final = 4096
MAX_METADATA: Final = 64
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_KEY_BYTES: Final = 256
MAX_VALUE_BYTES: Final = 4096
MAX_NODES: Final = 1000

_LOOKS: Final = frozenset({Op.LIST, Op.GET, Op.GET_MESSAGE_FLOW})
_NOT_USED: Final = WorkspaceUse()
_CONNECTED: Final = "connected"


class MessageCounts(Protocol):
    """The messages that the router has accepted since start."""

    def flows(self, workspace: str) -> list[tuple[str, str, int]]:
        """Return (sender, target topic, messages) of a workspace."""

    def messages(self, workspace: str) -> int:
        """Return how many messages senders in a workspace have sent."""


class WorkspaceService:
    """Performs the operations on workspaces that clients ask for."""

    def __init__(
        self,
        database: Database,
        authorizer: RuleAuthorizer,
        changes: AccessChanges,
        directory: SessionDirectory,
        quotas: WorkspaceQuotas,
        counts: MessageCounts,
        clock: Clock,
        *,
        strict: bool = True,
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._changes = changes
        self._directory = directory
        self._quotas = quotas
        self._counts = counts
        self._clock = clock
        self._strict = strict
        self._granting = Granting(authorizer)

    async def handle(self, session: Session, op: pb.WorkspaceOperation) -> Sequence[pb.DownstreamMessage]:
        """Perform one operation; a refusal is a typed answer and an ErrorResponse."""
        reply = pb.WorkspaceResponse(request_id=op.request_id)
        handler = self._handlers.get(op.op)
        try:
            if handler is None:
                raise RequestError(Code.INVALID_ARGUMENT, f"unknown workspace operation {op.op}")
            await handler(self, session, op, reply)
            reply.success = True
        except RequestError as error:
            return _refused(op, error)
        except IdentityError as error:
            return _refused(op, RequestError(Code.INVALID_IDENTIFIER, str(error)))
        except (TextError, QuotaError) as error:
            return _refused(op, RequestError(Code.INVALID_ARGUMENT, str(error)))
        except StorageUnavailable as error:
            return _refused(op, outage(error))
        return [pb.DownstreamMessage(workspace=reply)]

    # -- who may -----------------------------------------------------------------------------------

    def _check(self, session: Session, op: pb.WorkspaceOperation, workspace: str, *, sets_quotas: bool = False) -> None:
        """Raise RequestError unless the caller may perform this operation on a workspace."""
        word = _word(op)
        level = AccessLevel.READ if op.op in _LOOKS else AccessLevel.ADMIN
        asked = [AccessQuestion(word, "admin", Admin.WORKSPACES, workspace, level)]
        if op.op == Op.CREATE:
            asked.append(AccessQuestion(word, "capability", Capability.CREATE_WORKSPACE, workspace, AccessLevel.READ))
        if sets_quotas:
            asked.append(AccessQuestion("quota_set", "admin", Admin.QUOTAS, workspace, AccessLevel.ADMIN))
        for access in asked:
            self._authorizer.require(session, access)

    # -- looking -----------------------------------------------------------------------------------

    async def _list(self, session: Session, op: pb.WorkspaceOperation, reply: pb.WorkspaceResponse) -> None:
        self._check(session, op, "")
        wanted = op.filter
        limit = min(wanted.limit, MAX_PAGE) if wanted.limit > 0 else DEFAULT_PAGE
        offset = max(wanted.offset, 0)
        used = await self._directory.use()
        stored = dict(await self._database.read(records.list_ids))
        names = {*stored, *used} if not wanted.tenant_id else {
            name for name, tenant in stored.items() if tenant == wanted.tenant_id
        }  # fmt: skip
        reached = sorted(name for name in names if session.allows_workspace(name))
        page = reached[offset : offset + limit]
        found = await self._database.read(partial(records.find_many, [name for name in page if name in stored]))
        size = 0
        for name in page:
            info = self._info(name, found.get(name), used.get(name, _NOT_USED))
            size += info.ByteSize() + 8
            if size > MAX_PAGE_BYTES:
                break  # the client goes on behind these
            reply.workspaces.append(info)
        reply.total_count = len(reached)

    async def _get(self, session: Session, op: pb.WorkspaceOperation, reply: pb.WorkspaceResponse) -> None:
        if op.workspace_id == EVERY:
            self._check(session, op, "")
            reply.workspace.workspace_id = EVERY
            for name in QUOTA_NAMES:
                value: float = getattr(self._quotas.defaults, name)
                reply.workspace.metadata[f"{QUOTA_PREFIX}{name}"] = quota_text(value)
            reply.message = "limits of workspaces without quotas, by the settings of the gateway that answers"
            return
        name, record, use = await self._find(session, op)
        reply.workspace.CopyFrom(self._info(name, record, use))
        if record is None:
            reply.message = f"workspace {name} is not stored; participants are connected in it"

    async def _find(
        self, session: Session, op: pb.WorkspaceOperation
    ) -> tuple[str, WorkspaceRecord | None, WorkspaceUse]:
        """Find the workspace that an operation names. Raises RequestError without one."""
        name, record, use = await self._look(session, op)
        if record is None and not use.total:
            raise _missing(name)
        return name, record, use

    async def _look(
        self, session: Session, op: pb.WorkspaceOperation
    ) -> tuple[str, WorkspaceRecord | None, WorkspaceUse]:
        """Look for the workspace that an operation names."""
        self._check(session, op, op.workspace_id)
        name = self._name(op.workspace_id)
        record = await self._database.read(partial(records.find, name))
        return name, record, (await self._directory.use(name)).get(name, _NOT_USED)

    def _name(self, text: str) -> str:
        return check_token(text, "workspace_id", strict=self._strict)

    def _info(self, name: str, record: WorkspaceRecord | None, use: WorkspaceUse) -> pb.WorkspaceInfo:
        info = pb.WorkspaceInfo(
            workspace_id=name,
            active_agents=use.agents,
            active_tasks=use.tasks,
            active_users=use.users,
            total_messages=self._counts.messages(name),
        )
        if record is not None:
            info.display_name = record.display_name
            info.description = record.description
            info.tenant_id = record.tenant_id
            info.created_at = record.created_ms // 1000
            info.updated_at = record.updated_ms // 1000
            info.metadata.update(record.metadata)
        for quota, value in self._quotas.overrides(name).items():
            info.metadata[f"{QUOTA_PREFIX}{quota}"] = quota_text(value)
        return info

    async def _flow(self, session: Session, op: pb.WorkspaceOperation, reply: pb.WorkspaceResponse) -> None:
        name, _, _ = await self._find(session, op)
        connected = await self._directory.page(SessionFilter(workspace=name), 0, MAX_NODES)
        flow = reply.message_flow
        flow.workspace_id = name
        flow.updated_at = self._clock.now_ms() // 1000
        nodes: dict[str, pb.FlowNode] = {}
        for one in connected.sessions:
            node = _identity_node(one.identity, _CONNECTED)
            nodes[_place(node)] = node
        for sender, topic, messages in sorted(self._counts.flows(name), key=lambda one: -one[2]):
            ends = [_node(sender), _node(topic)]
            new = {_place(one): one for one in ends if _place(one) not in nodes}
            if len(nodes) + len(new) > MAX_NODES:
                continue
            nodes.update(new)
            source, target = (nodes[_place(one)].id for one in ends)
            flow.edges.add(**{"from": source}, to=target, label=f"{messages} messages", count=messages)
        flow.nodes.extend(nodes.values())
        reply.message = "messages accepted by the node that answers, since it started"

    # -- changing ----------------------------------------------------------------------------------

    async def _create(self, session: Session, op: pb.WorkspaceOperation, reply: pb.WorkspaceResponse) -> None:
        asked = op.workspace
        text = asked.workspace_id or op.workspace_id
        metadata, quotas = _metadata(asked.metadata)
        check = partial(self._check, session, op, text, sets_quotas=bool(quotas))
        check()
        name = self._name(text)
        _check_same(op)
        by = session.identity.canonical_id

        def program(draft: Draft) -> Program[tuple[WorkspaceRecord, str]]:
            now_ms = draft.now_ms
            texts = (_display_name(asked), _description(asked), _tenant(asked))
            record = WorkspaceRecord(name, *texts, metadata, now_ms, now_ms, by)
            problem = yield from records.create(draft, record)
            if not problem:
                yield from put_quotas(draft, name, quotas)
                self._audit(session, op, draft, name, quotas)
            return record, problem

        done = await self._changes.commit(program, check)
        record, problem = done.result
        if problem == "exists":
            raise RequestError(Code.INVALID_ARGUMENT, f"workspace {name} exists already")
        if problem:
            text = f"there are {records.MAX_WORKSPACES} workspaces, which is the limit"
            raise RequestError(Code.QUOTA, text, retryable=False)
        await self._answer(reply, done, record, "is created")

    async def _update(self, session: Session, op: pb.WorkspaceOperation, reply: pb.WorkspaceResponse) -> None:
        asked = op.workspace
        text = op.workspace_id or asked.workspace_id
        metadata, quotas = _metadata(asked.metadata)
        check = partial(self._check, session, op, text, sets_quotas=bool(quotas))
        check()
        if text == EVERY:
            raise RequestError(
                Code.INVALID_ARGUMENT, "the limits of workspaces without quotas are settings (limits.*) of the gateway"
            )
        name = self._name(text)
        _check_same(op)
        changed = {
            "display_name": _display_name(asked),
            "description": _description(asked),
            "tenant_id": _tenant(asked),
        }
        given = {field: value for field, value in changed.items() if value}

        def program(draft: Draft) -> Program[WorkspaceRecord | None]:
            known = yield from records.find(name)
            if known is None:
                return None
            record = replace(known, **given, metadata=metadata or known.metadata, updated_ms=draft.now_ms)  # type: ignore[arg-type]  # by their names
            yield from records.update(draft, record)
            yield from put_quotas(draft, name, quotas)
            self._audit(session, op, draft, name, quotas)
            return record

        done = await self._changes.commit(program, check)
        if done.result is None:
            used = name in await self._directory.use(name)
            raise _missing(name, "; it is used, but not stored: create it first" if used else "")
        await self._answer(reply, done, done.result, "is updated")

    async def _answer(
        self, reply: pb.WorkspaceResponse, done: Committed[Any], record: WorkspaceRecord, what: str
    ) -> None:
        name = record.workspace_id
        use = (await self._directory.use(name)).get(name, _NOT_USED)
        reply.workspace.CopyFrom(self._info(name, record, use))
        reply.message = _told(f"workspace {name} {what}", done)

    async def _delete(self, session: Session, op: pb.WorkspaceOperation, reply: pb.WorkspaceResponse) -> None:
        name, record, use = await self._look(session, op)
        if record is None and not use.total:
            caveat = await self._changes.in_force_now()
            raise _missing(name, f"; {caveat}" if caveat else "")
        if use.total:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"{use.total} participants are connected in workspace {name}; disconnect them first",
            )
        rules_of = escape(name)

        def check() -> None:
            self._check(session, op, name)
            self._granting.check_resource_removal(session, "workspace", rules_of)

        def program(draft: Draft) -> Program[tuple[bool, int]]:
            deleted = yield from records.delete(draft, name)
            if not deleted:
                return False, 0
            rules = yield from delete_rules_on(draft, "workspace", rules_of)
            quotas = yield from quotas_of(name)
            yield from delete_quotas_of(draft, name)
            self._audit(session, op, draft, name, dict.fromkeys(quotas), rules=rules)
            return True, rules

        done = await self._changes.commit(program, check)
        deleted, rules = done.result
        if not deleted:
            raise _missing(name, f"; {done.caveat}" if done.caveat else "")
        reply.message = _told(f"workspace {name} is deleted, with {rules} rules about it", done)

    def _audit(
        self,
        session: Session,
        op: pb.WorkspaceOperation,
        draft: Draft,
        name: str,
        quotas: Mapping[str, float | None],
        **metadata: object,
    ) -> None:
        if quotas:
            metadata["quotas"] = {quota: "" if one is None else quota_text(one) for quota, one in quotas.items()}
        draft.audit(change_event(session, DIRECT, _word(op), "workspace", name, now_ms=draft.now_ms, **metadata))

    _handlers: Final = {
        Op.LIST: _list,
        Op.GET: _get,
        Op.CREATE: _create,
        Op.UPDATE: _update,
        Op.DELETE: _delete,
        Op.GET_MESSAGE_FLOW: _flow,
    }


# -- what requests name ----------------------------------------------------------------------------


def _word(op: pb.WorkspaceOperation) -> str:
    """Return the operation's name in audit rows, such as "workspace_create"."""
    return f"workspace_{Op.OpType.Name(op.op).lower().removeprefix('get_')}"


def _check_same(op: pb.WorkspaceOperation) -> None:
    named = {one for one in (op.workspace_id, op.workspace.workspace_id) if one}
    if len(named) > 1:
        raise RequestError(Code.INVALID_ARGUMENT, "workspace_id and workspace.workspace_id name different workspaces")


def _display_name(asked: pb.WorkspaceInfo) -> str:
    return check_text(asked.display_name, "display_name", MAX_NAME_BYTES)


def _description(asked: pb.WorkspaceInfo) -> str:
    return check_text(asked.description, "description", MAX_DESCRIPTION_BYTES, lines=True)


def _tenant(asked: pb.WorkspaceInfo) -> str:
    return check_text(asked.tenant_id, "tenant_id", MAX_TENANT_BYTES)


def _metadata(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, float | None]]:
    """Return (metadata to store, quotas to set). Raises TextError, QuotaError."""
    if len(given) > MAX_METADATA + len(QUOTA_NAMES):
        raise TextError(f"metadata has {len(given)} entries; at most {MAX_METADATA} are allowed")
    metadata: dict[str, str] = {}
    quotas: dict[str, float | None] = {}
    size = 0
    for key, value in given.items():
        if key.startswith(QUOTA_PREFIX):
            name = check_quota_name(key.removeprefix(QUOTA_PREFIX))
            quotas[name] = parse_quota(name, value) if value else None
            continue
        check_text(key, "a key of metadata", MAX_KEY_BYTES)
        if not key:
            raise TextError("a key of metadata is empty")
        metadata[key] = check_text(value, "a value of metadata", MAX_VALUE_BYTES, lines=True)
        size += len(key.encode()) + len(value.encode())
    if size > MAX_METADATA_BYTES:
        raise TextError(f"metadata has {size} bytes; at most {MAX_METADATA_BYTES} are allowed")
    if len(metadata) > MAX_METADATA:
        raise TextError(f"metadata has {len(metadata)} entries; at most {MAX_METADATA} are allowed")
    return metadata, quotas


# -- answers ---------------------------------------------------------------------------------------


def _refused(op: pb.WorkspaceOperation, error: RequestError) -> list[pb.DownstreamMessage]:
    """Make the typed answer of a refusal, and the ErrorResponse behind it."""
    reply = pb.WorkspaceResponse(request_id=op.request_id, error=str(error))
    return [pb.DownstreamMessage(workspace=reply), error_response(error, op.request_id)]


def _missing(name: str, more: str = "") -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, f"there is no workspace {shown(name)}{more}")


def _told(text: str, done: Committed[Any]) -> str:
    return f"{text}; {done.caveat}" if done.caveat else text


def _node(text: str) -> pb.FlowNode:
    """Make the node of a sender or of a target topic."""
    try:
        return _identity_node(Identity.parse(text, strict=False), "")
    except IdentityError:
        return pb.FlowNode(id=text, label=text, topic=text)


def _place(node: pb.FlowNode) -> str:
    """Return what a node is known by: its topic, or its id if it owns none."""
    return node.topic or node.id


def _identity_node(identity: Identity, status: str) -> pb.FlowNode:
    user = identity.kind is Kind.USER
    return pb.FlowNode(
        id=identity.text,
        label=identity.implementation or identity.text,
        type=pb.PrincipalType.ValueType(identity.wire_type),
        status=status,
        implementation="" if user else identity.implementation,
        specifier="" if user else identity.specifier,
        topic=identity.topic,
    )
