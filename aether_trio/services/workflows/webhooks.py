"""Webhooks: signed messages from outside are events, each accepted once.

    POST /hooks/WORKSPACE/NAME ─▶ signature ─▶ one transaction: id, outbox ─▶ 202
                                                                     └▶ topic of the engine

The id of a message is committed with its event, so a sender that repeats what was answered late, or
not at all, causes nothing twice. The event's source is `webhook::WORKSPACE/NAME`, which no client
can be. It acts while the webhook's owner may write in its workspace; else the address answers like
one that does not exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, NamedTuple

import structlog
import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.text import shown
from aether_trio.model.token_bucket import TokenBucket
from aether_trio.model.topics import EVENT_INTAKE
from aether_trio.model.workflows.definition import WebhookDefinition
from aether_trio.model.workflows.go_names import go_time
from aether_trio.model.workflows.webhooks import MAX_SECRETS, SignatureError, secret_text, verify
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows import webhook_rows
from aether_trio.services.workflows.applying import CREATED, UNCHANGED, UPDATED, AppliedRow, ConflictError
from aether_trio.services.workflows.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
    page_answer,
)
from aether_trio.services.workflows.events import WEBHOOKS, payload_problem
from aether_trio.services.workflows.json_values import write_json, write_object
from aether_trio.services.workflows.old_ids import OldIds
from aether_trio.services.workflows.webhook_rows import StoredWebhook
from aether_trio.services.workflows.webhook_secrets import SecretKeyError, WebhookSecrets, new_secret
from aether_trio.storage.base import Deferred, Program, StorageUnavailable
from aether_trio.wire.delivery import delivery_prefix, delivery_suffix, encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.workflows")

LIST_WEBHOOKS: Final = 108
CHANGE_WEBHOOK: Final = 109
"""Numbers of our operations; docs/wire.md lists them."""
DELETE: Final = "delete"
ROTATE: Final = "rotate"
"""What CHANGE_WEBHOOK does."""

WEBHOOK: Final = "webhook"
IDS_KEPT_MS: Final = 30 * 24 * 3600 * 1000
"""How long the id of a message is known. Senders repeat a message for some days at most."""
PER_S: Final = 100.0
BURST: Final = 1_000.0
"""How many messages of one webhook a node accepts."""
RATES_KEPT: Final = 10_000
_UNKNOWN: Final = "there is nothing at this address"

Allowed = Callable[[str, str, AccessLevel, int], str]
"""Says why an owner may not act in a workspace, "" if it may (owners.py)."""


class WebhookAnswer(NamedTuple):
    """How a request is answered: status, and a line of text."""

    status: HTTPStatus
    text: str


class Webhooks:
    """Receives the messages of webhooks on this node."""

    def __init__(self, engine: Engine, allowed: Allowed, secrets: WebhookSecrets) -> None:
        self._engine = engine
        self._allowed = allowed
        self._secrets = secrets
        self._rates: dict[str, TokenBucket] = {}
        """The rates of webhooks with signed messages of late, by their places."""
        self._old_ids = OldIds(engine.database, engine.clock, "workflow_webhook_ids", "hash", kept_ms=IDS_KEPT_MS)
        self.accepted = self.repeated = self.refused = 0

    async def receive(self, workspace: str, name: str, headers: Mapping[str, str], body: bytes) -> WebhookAnswer:
        """Accept a message, or say why not."""
        try:
            answer = await self._receive(workspace, name, headers, body)
        except StorageUnavailable:
            answer = WebhookAnswer(HTTPStatus.SERVICE_UNAVAILABLE, "the message could not be stored: send it again")
        if answer.status >= HTTPStatus.BAD_REQUEST:
            self.refused += 1
        return answer

    async def _receive(self, workspace: str, name: str, headers: Mapping[str, str], body: bytes) -> WebhookAnswer:
        if "\0" in workspace + name:
            return WebhookAnswer(HTTPStatus.NOT_FOUND, _UNKNOWN)
        now_ms = self._engine.clock.now_ms()
        found = await self._engine.database.read_small(partial(webhook_rows.load, workspace, name))
        if found is None or not found.active:
            return WebhookAnswer(HTTPStatus.NOT_FOUND, _UNKNOWN)
        message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        try:
            keys = self._secrets.read(found.place, found.key_id, found.secrets)
            verify(keys, message_id, timestamp, body, headers.get("webhook-signature", ""), now_ms / 1000)
        except SignatureError as error:
            return WebhookAnswer(HTTPStatus.UNAUTHORIZED, str(error))
        except SecretKeyError as error:
            logger.warning("a webhook cannot be served", webhook=found.place, reason=str(error))
            return WebhookAnswer(HTTPStatus.SERVICE_UNAVAILABLE, "this gateway has not the key of the secrets")
        if wait_s := self._rate_of(found.place).take(trio.current_time()):
            return WebhookAnswer(HTTPStatus.TOO_MANY_REQUESTS, f"send again in {wait_s:.1f} seconds")
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            return WebhookAnswer(HTTPStatus.BAD_REQUEST, "the body is no JSON")
        digest = hashlib.sha256(json.dumps([found.workspace, found.id, message_id]).encode()).hexdigest()
        wanted = json.loads(found.document).get("headers") or ()
        passed = {name.lower(): headers[name.lower()] for name in wanted if name.lower() in headers}
        try:
            payload = write_json(
                {
                    "source_agent": WEBHOOK,
                    "workspace": workspace,
                    "event_names": [found.event],
                    "event_id": f"{WEBHOOK}:{digest}",
                    "data": {"id": message_id, "timestamp": int(timestamp), "headers": passed, "body": given},
                }
            )
        except ValueError as error:
            return WebhookAnswer(HTTPStatus.BAD_REQUEST, f"the body cannot be an event: {error}")
        if problem := payload_problem(payload):
            return WebhookAnswer(HTTPStatus.BAD_REQUEST, f"the body cannot be an event: {problem}")

        def program(tx: TaskTransaction) -> Program[HTTPStatus]:
            return (yield from self._accept(tx, found, digest, payload))

        status = await self._engine.result(program)
        match status:
            case HTTPStatus.ACCEPTED:
                self.accepted += 1
                await self._forget_ids()
                return WebhookAnswer(status, "accepted")
            case HTTPStatus.OK:
                self.repeated += 1
                return WebhookAnswer(status, "this message was accepted before")
            case HTTPStatus.CONFLICT:
                return await self._receive(workspace, name, headers, body)
            case _:
                return WebhookAnswer(HTTPStatus.NOT_FOUND, _UNKNOWN)

    def _accept(self, tx: TaskTransaction, found: StoredWebhook, digest: str, payload: bytes) -> Program[HTTPStatus]:
        """Write a message's id and event, unless the webhook was changed meanwhile."""
        now_ms = tx.context.now_ms
        current = yield from webhook_rows.load(found.workspace, found.id)
        if current is None or not current.active:
            return HTTPStatus.NOT_FOUND
        if current != found:
            return HTTPStatus.CONFLICT
        if problem := self._allowed(found.owner, found.workspace, AccessLevel.READWRITE, now_ms):
            logger.warning("a webhook is not served", webhook=found.place, reason=problem)
            return HTTPStatus.NOT_FOUND
        if not (yield from webhook_rows.take_id(digest, now_ms)):
            return HTTPStatus.OK
        frame = encode_delivery(
            delivery_prefix(WEBHOOKS + found.place), payload, delivery_suffix(pb.EVENT, found.workspace)
        )
        yield Deferred(
            "task_outbox",
            "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5)",
            (f"{WEBHOOK} {now_ms:015d} {digest}", 0, tx.context.node, EVENT_INTAKE, frame),
        )
        tx.effects.outbox = True
        return HTTPStatus.ACCEPTED

    def _rate_of(self, place: str) -> TokenBucket:
        if len(self._rates) > RATES_KEPT:
            now_s = trio.current_time()
            self._rates = {key: one for key, one in self._rates.items() if not one.is_full(now_s)}
        return self._rates.setdefault(place, TokenBucket(PER_S, BURST))

    async def _forget_ids(self) -> None:
        """Forget ids that are too old to come again, now and then."""
        try:
            await self._old_ids.forget()
        except StorageUnavailable as error:
            logger.info("old ids of webhooks are deleted later", reason=str(error))


class WebhookOperations:
    """Performs operations on webhooks; `table` has them by number."""

    def __init__(self, engine: Engine, access: WorkspaceAccess, secrets: WebhookSecrets) -> None:
        self._engine = engine
        self._access = access
        self._secrets = secrets
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {LIST_WEBHOOKS: self._list, CHANGE_WEBHOOK: self._change}
        )

    async def _list(self, asked: OperationAsked) -> OperationAnswer:
        workspaces, page = await self._access.visible(asked), await asked.page()
        behind = page.place()
        found = await self._engine.database.read(lambda: webhook_rows.listed(workspaces, page.limit + 1, behind))
        return page_answer(found, page, _shown, lambda one: f"{one.workspace} {one.id}")

    async def _change(self, asked: OperationAsked) -> OperationAnswer:
        """Delete a webhook, or add a new secret to it; `secondary_id` says which."""
        workspace, name, what = asked.own_workspace, asked.id, asked.secondary_id
        if what not in (DELETE, ROTATE):
            raise OperationError(f"secondary_id is {DELETE} or {ROTATE}")
        found = await self._engine.database.read_small(partial(webhook_rows.load, workspace, name))
        if found is None or await self._access.problem(asked.session, workspace, AccessLevel.READ):
            raise OperationError(f"webhook {shown(name)} not found in workspace {shown(workspace)}")
        await self._access.need(asked.session, workspace)
        if what == DELETE:
            await self._engine.result(lambda _: webhook_rows.delete(workspace, name), known=True)
            return OperationAnswer(message=f"webhook {name} is deleted")
        secret = new_secret()
        now_ms = self._engine.clock.now_ms()

        def program(_: TaskTransaction) -> Program[str]:
            stored = yield from webhook_rows.load(workspace, name)
            if stored is None:
                return f"webhook {name} is deleted"
            try:
                before = self._secrets.read(stored.place, stored.key_id, stored.secrets)
                if before[0] == secret:
                    return ""  # this program has run before, and was committed
                key_id, encrypted = self._secrets.encrypt(stored.place, [secret, *before[:1]])
            except SecretKeyError as error:
                return str(error)
            yield from webhook_rows.put(_with_secrets(stored, key_id, encrypted, now_ms))
            return ""

        if problem := await self._engine.result(program, known=True):
            raise OperationError(problem)
        answer = {"workspace": workspace, "id": name, "secret": secret_text(secret)}
        return OperationAnswer(answer, "the new secret and the one before are valid; rotate again to end that one")


def put_webhook(
    secrets: WebhookSecrets, tx: TaskTransaction, definition: WebhookDefinition, owner: str
) -> Program[AppliedRow]:
    """Write a webhook that is applied; make a secret if it is new and gives none."""
    place = definition.workspace, definition.name
    if not definition.workspace:
        raise ConflictError("a webhook is of one workspace: name it")
    there = yield from webhook_rows.load(*place)
    document = write_json(definition.source)
    keys, made = list(definition.secrets), ""
    try:
        before = [] if there is None else secrets.read(there.place, there.key_id, there.secrets)
    except SecretKeyError as error:
        if not keys:
            raise ConflictError(str(error)) from None
        before = []
    if not keys and before:
        keys = before
    elif not keys:
        keys = [new_secret()]
        made = secret_text(keys[0])
    if there is not None and there.document == document and before == keys:
        return AppliedRow(WEBHOOK, *place, 0, UNCHANGED)
    now_ms = tx.context.now_ms
    try:
        key_id, encrypted = secrets.encrypt("/".join(place), keys[:MAX_SECRETS])
    except SecretKeyError as error:
        raise ConflictError(str(error)) from None
    stored = StoredWebhook(
        workspace=definition.workspace, id=definition.name, event=definition.event, document=document, owner=owner,
        active=definition.active, key_id=key_id, secrets=encrypted,
        created_ms=now_ms if there is None else there.created_ms, updated_ms=now_ms,
    )  # fmt: skip
    yield from webhook_rows.put(stored)
    return AppliedRow(WEBHOOK, *place, 0, CREATED if there is None else UPDATED, secret=made)


def _with_secrets(stored: StoredWebhook, key_id: str, secrets: bytes, now_ms: int) -> StoredWebhook:
    return StoredWebhook(
        workspace=stored.workspace, id=stored.id, event=stored.event, document=stored.document, owner=stored.owner,
        active=stored.active, key_id=key_id, secrets=secrets, created_ms=stored.created_ms, updated_ms=now_ms,
    )  # fmt: skip


def _shown(stored: StoredWebhook) -> bytes:
    fields = {
        "workspace": stored.workspace,
        "id": stored.id,
        "event": stored.event,
        "address": f"/hooks/{stored.place}",
        "active": stored.active,
        "owner": stored.owner,
        "created_at": go_time(stored.created_ms),
        "updated_at": go_time(stored.updated_ms),
    }
    return write_object(fields, definition=stored.document)
