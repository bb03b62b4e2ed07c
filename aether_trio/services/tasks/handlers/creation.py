"""The handler of create_task: the checks in their order, a transaction, and both answers of a refusal (reference: tasks.md 2.2).

A refusal is an ErrorResponse without an id and, if there is a request id, a failed CreateTaskResponse. The reference answers an invalid
identifier with the former alone, and its callers wait for nothing; here they get both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from aether_trio.delivery.router import send_refusal
from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import AetherError, Code
from aether_trio.model.identity import Identity, IdentityError, Kind
from aether_trio.model.ids import IdFactory
from aether_trio.model.permissions import may_send
from aether_trio.model.tasks import Mode, Status, Task
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.model.topics import TopicKind, resolve_target
from aether_trio.services.access import DIRECT, Authorizer
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.handlers import create
from aether_trio.services.tasks.handlers.create import Created, Offline
from aether_trio.services.tasks.starter import Starter
from aether_trio.services.tasks.transaction.tokens import Minted, hash_token, new_token
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.errors import error_response
from aether_trio.wire.pb import aether_pb2 as pb

SYSTEM_WORKSPACE: Final = "_system"
JOINING_S: Final = (0.01, 0.05, 0.2, 0.5)
"""Pauses for a target that has just connected, whose row another node has yet to write."""


@dataclass(slots=True)
class Creation:
    """Handles create_task."""

    engine: Engine
    ids: IdFactory
    authorizer: Authorizer
    payload_bytes: int
    strict: bool
    random_bytes: Callable[[int], bytes]
    connected: Callable[[str], Awaitable[bool]]
    """Whether a participant is connected, on whichever node. Raises StorageUnavailable."""
    starter: Starter
    _latest_us: int = 0

    async def handle(self, session: Session, request: pb.CreateTaskRequest) -> list[pb.DownstreamMessage]:
        """Every refusal is in both answers."""
        try:
            response = await self._create(session, request)
        except StorageUnavailable as error:
            told = outage(error)
            return _refused(
                request, told if told.code is Code.OUTCOME_UNKNOWN else AetherError(Code.INTERNAL, told.message)
            )
        except AetherError as error:
            return _refused(request, error)
        response.request_id = request.request_id
        return [pb.DownstreamMessage(create_task=response)] if request.request_id else []

    async def _create(self, session: Session, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        identity = session.identity
        workspace = create.check_names(request, session.workspace, strict=self.strict)
        create.check_size(request, self.payload_bytes)
        await self._check_access(session, request, workspace)
        target = create.target_of(request, strict=self.strict)
        self._check_reach(session, request, target)
        offline = await self._offline_policy(request, target)
        now_ms = self.engine.clock.now_ms()
        task = create.new_task(
            request,
            task_id=self.ids.dated(now_ms),
            workspace=workspace,
            creator=identity,
            parent_task_id=request.parent_task_id or session.task_id,
            target=target,
            now_ms=now_ms,
            order_us=self._order_us(),
        )
        await self.engine.begun(session.session_id)
        if task.mode is Mode.SELF_ASSIGN:
            await self.engine.guests.enlist(session)
        token, owner = await self._token(session, request)
        key = create.key_hash(workspace, request.idempotency_key) if request.idempotency_key else b""
        asked = create.request_hash(request, workspace) if key else b""
        minted = Minted(hash_token(token), owner, session.lineage) if token else None

        async def run(offline: Offline) -> Created:
            return await self.engine.run_program(
                lambda context: create.create(
                    context,
                    task,
                    request.payload,
                    key=key,
                    request=asked,
                    offline=offline,
                    start=self.starter.start,
                    target=target,
                    minted=minted,
                )
            )

        created = await run(Offline.REJECT if offline is Offline.START else offline)
        if created.absent and target is not None:
            created = await self._look_again(run, created, target, offline)
        if created.problem:
            raise create.failed(created.problem)
        if created.work is not None:
            self.engine.settle(created.work)
        return self._answer(created, token)

    async def _look_again(
        self, run: Callable[[Offline], Awaitable[Created]], created: Created, target: Identity, offline: Offline
    ) -> Created:
        """The target is no worker. It may have connected just now, and its row is on its way; else it may be started."""
        for pause_s in JOINING_S:
            if not await self.connected(target.text):
                return await run(offline) if offline is Offline.START else created
            await self.engine.writes.flush()
            created = await run(Offline.REJECT)
            if not created.absent:
                return created
            await trio.sleep(pause_s)
        return await run(Offline.QUEUE)  # it is connected, so it will be given what waits for it

    async def _check_access(self, session: Session, request: pb.CreateTaskRequest, workspace: str) -> None:
        identity = session.identity
        if not session.allows_workspace(workspace):
            raise AetherError(Code.PERMISSION_DENIED, f"this credential does not reach workspace {workspace}")
        authority = DIRECT
        if request.HasField("authorization"):
            authority = await self.authorizer.authority(identity, request.authorization)
        if identity.kind is Kind.WORKFLOW_ENGINE and authority.is_direct:
            return
        decision = await self.authorizer.check(
            identity, "task_create", "workspace", workspace, workspace, AccessLevel.READWRITE, authority
        )
        if not decision.allowed:
            raise AetherError(Code.PERMISSION_DENIED, decision.reason)

    def _check_reach(self, session: Session, request: pb.CreateTaskRequest, target: Identity | None) -> None:
        """A task reaches whom a message reaches: the target, or the workers of a pool. Before anything is looked up about them.

        Raises AetherError PERMISSION_DENIED.
        """
        kind = session.identity.kind
        if target is None:
            pooled = create.MODES.get(request.assignment_mode) is Mode.POOL
            if pooled and not may_send(kind, TopicKind.TASK_CLASS):
                raise AetherError(Code.PERMISSION_DENIED, f"{kind.with_article} may not give others work")
            return
        why = send_refusal(
            self.authorizer,
            session.identity,
            resolve_target(target.topic, session.workspace, self.strict),
            target.text,
            workspace=session.workspace,
            allows_workspace=session.allows_workspace,
        )
        if why is not None:
            raise AetherError(Code.PERMISSION_DENIED, why)

    async def _offline_policy(self, request: pb.CreateTaskRequest, target: Identity | None) -> Offline:
        """What is to become of the task if its target is not connected. Raises AetherError TASK_CREATE_FAILED."""
        kept = request.target_offline_policy == pb.TARGET_OFFLINE_POLICY_QUEUE and request.task_type != AGENT_STARTUP
        if target is None or kept:
            return Offline.QUEUE
        if request.target_offline_policy == pb.TARGET_OFFLINE_POLICY_REJECT:
            return Offline.REJECT
        if await self.starter.knows(target.implementation):
            return Offline.START
        return Offline.UNKNOWN

    async def _token(self, session: Session, request: pb.CreateTaskRequest) -> tuple[str, str]:
        """A token for the identity that is to do the task, and its text; ("", "") if none is asked for or may be had.

        It is good for no more than the creator's own credential is.
        """
        creator = session.identity
        if not request.target_identity:
            return "", ""
        try:
            owner = Identity.parse(request.target_identity, strict=self.strict)
        except IdentityError:
            return "", ""
        if owner.kind not in create.WORKER_KINDS or not session.covers(owner):
            return "", ""
        if owner.kind is Kind.SERVICE:
            name = owner.implementation
            decision = await self.authorizer.check(
                creator, "task_token_issue", "service_impl", name, "", AccessLevel.MANAGE
            )
        elif owner.workspace and owner.workspace != SYSTEM_WORKSPACE:
            decision = await self.authorizer.check_workspace(
                creator, owner.workspace, AccessLevel.MANAGE, "task_token_issue"
            )
        else:
            return "", ""
        return (new_token(self.random_bytes), owner.text) if decision.allowed else ("", "")

    def _order_us(self) -> int:
        """Now, in microseconds, and more than ever before on this node: what comes first is assigned first."""
        self._latest_us = max(self.engine.clock.now_ms() * 1000, self._latest_us + 1)
        return self._latest_us

    @staticmethod
    def _answer(created: Created, token: str) -> pb.CreateTaskResponse:
        response = pb.CreateTaskResponse(success=True, task_id=created.task_id)
        task = created.task
        if task is not None:
            response.status = _word(task, started=created.started)
            response.task_token = token if task.tokens else ""
            if task.mode is not Mode.POOL and task.status is not Status.PENDING:
                response.assigned_to = task.assigned_to
        return response


def _word(task: Task, *, started: bool) -> str:
    """What became of it: the protocol's words, and "queued" for what waits for a target that nobody starts."""
    if task.task_type == AGENT_STARTUP:
        return "orchestration_triggered"
    if task.mode is Mode.POOL:
        return "pending_pool"
    if task.status is not Status.PENDING:
        return "assigned"
    return "orchestration_triggered" if started else "queued"


def _refused(request: pb.CreateTaskRequest, error: AetherError) -> list[pb.DownstreamMessage]:
    answers = [error_response(error)]
    if request.request_id:
        failed = pb.CreateTaskResponse(
            error_code=error.code, error_message=error.message, request_id=request.request_id
        )
        answers.append(pb.DownstreamMessage(create_task=failed))
    return answers
