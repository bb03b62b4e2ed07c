"""Webhooks: signed messages from outside are events, each accepted once.

    POST /hooks/WORKSPACE/NAME ─▶ head ─▶ body, signature ─▶ one transaction: id, outbox ─▶ 202
                                                                         └▶ topic of the engine

Senders whose messages were refused are throttled by their address and the webhook, and a body is
read only of a message that has all headers, for a webhook that exists.

The id of a message is committed with its event, and with a hash of its body, so a sender that
repeats what was answered late, or not at all, causes nothing twice, and one that uses an id for two
messages is told so. The event's source is `webhook::WORKSPACE/NAME`, which no client can be. It
acts while the webhook's owner may write in its workspace; else the address answers like one that
does not exist.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import structlog
import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.text import shown
from aether_trio.model.token_bucket import TokenBucket
from aether_trio.model.topics import EVENT_INTAKE
from aether_trio.model.workflows.definition import WebhookDefinition
from aether_trio.model.workflows.go_names import go_time
from aether_trio.model.workflows.keys import place_key
from aether_trio.model.workflows.webhooks import MAX_SECRETS, SignatureError, check_head, secret_text, verify
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.actions.performer import operation_key, take_key
from aether_trio.services.workflows.documents.json_thread import in_json_thread
from aether_trio.services.workflows.documents.json_values import write_json, write_object
from aether_trio.services.workflows.events.old_ids import OldIds
from aether_trio.services.workflows.events.taken_events import WEBHOOKS, payload_problem
from aether_trio.services.workflows.requests.applying import CREATED, UNCHANGED, UPDATED, AppliedRow, ConflictError
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
    page_answer,
)
from aether_trio.services.workflows.stored import webhook_rows
from aether_trio.services.workflows.stored.webhook_rows import StoredWebhook
from aether_trio.services.workflows.webhooks.webhook_secrets import SecretKeyError, WebhookSecrets, new_secret
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
"""Says why an owner may not act in a workspace, "" if it may (stored/owners.py)."""


ReadBody = Callable[[bool], Awaitable[bytes | None]]
"""Reads the body of a message (transport/http1/hooks.py)."""


class WebhookAnswer(NamedTuple):
    """How a request is answered: status, a line of text, and when to send it again."""

    status: HTTPStatus
    text: str
    after_s: int = 0


_ACCEPTED: Final = WebhookAnswer(HTTPStatus.ACCEPTED, "accepted")
_REPEATED: Final = WebhookAnswer(HTTPStatus.OK, "this message was accepted before")
_REUSED: Final = WebhookAnswer(
    HTTPStatus.CONFLICT,
    "a message with this webhook-id and another body was accepted before: send this one with another id",
)
_REFUSALS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND})
"""What counts for the throttle."""


class SenderThrottle(Protocol):
    """Refuses senders for a while after refused messages.

    It is that of services/credentials/throttle.py.
    """

    def wait_s(self, address: str, subject: str) -> float:
        """Return how long messages are refused without a check."""

    def knows(self, address: str, subject: str) -> bool:
        """Return whether a message was accepted from an address of late."""

    def failed(self, address: str, subject: str) -> None: ...

    def succeeded(self, address: str, subject: str) -> None: ...


class Webhooks:
    """Receives the messages of webhooks on this node."""

    def __init__(self, engine: Engine, allowed: Allowed, secrets: WebhookSecrets, throttle: SenderThrottle) -> None:
        self._engine = engine
        self._allowed = allowed
        self._secrets = secrets
        self._throttle = throttle
        self._rates: dict[str, TokenBucket] = {}
        """The rates of webhooks with signed messages of late, by their places."""
        self._old_ids = OldIds(engine.database, engine.clock, "workflow_webhook_ids", "hash", kept_ms=IDS_KEPT_MS)
        self.accepted = self.repeated = self.refused = 0

    async def receive(
        self, workspace: str, name: str, headers: Mapping[str, str], address: str, read: ReadBody
    ) -> WebhookAnswer:
        """Accept a message, or say why not.

        `read` is not called for a message that is refused whatever its body is. A body that does
        not come counts as a refused message.
        """
        place = f"{workspace}/{name}"
        if wait_s := self._throttle.wait_s(address, place):
            self.refused += 1
            after_s = math.ceil(wait_s)
            text = f"too many messages of this sender were refused; send again in {after_s} s"
            return WebhookAnswer(HTTPStatus.TOO_MANY_REQUESTS, text, after_s)
        try:
            answer = await self._receive(workspace, name, headers, address, read)
        except StorageUnavailable:
            text = "the message could not be stored: send it again"
            answer = WebhookAnswer(HTTPStatus.SERVICE_UNAVAILABLE, text, 1)
        if answer.status in _REFUSALS:
            self._throttle.failed(address, place)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            self.refused += 1
        return answer

    async def _receive(
        self, workspace: str, name: str, headers: Mapping[str, str], address: str, read: ReadBody
    ) -> WebhookAnswer:
        message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        signatures = headers.get("webhook-signature", "")
        try:
            check_head(message_id, timestamp, signatures, self._engine.clock.now_ms() / 1000)
        except SignatureError as error:
            return WebhookAnswer(HTTPStatus.UNAUTHORIZED, str(error))
        found = await self._active(workspace, name)
        if found is None:
            return WebhookAnswer(HTTPStatus.NOT_FOUND, _UNKNOWN)
        try:
            body = await read(self._throttle.knows(address, found.place))
        except Exception:
            self._throttle.failed(address, found.place)
            raise
        if body is None:
            return WebhookAnswer(HTTPStatus.TOO_MANY_REQUESTS, "too many messages arrive at the same time", 1)
        while found is not None:
            try:
                keys = self._secrets.read(found.place, found.key_id, found.secrets)
                verify(keys, message_id, timestamp, body, signatures)
            except SignatureError as error:
                return WebhookAnswer(HTTPStatus.UNAUTHORIZED, str(error))
            except SecretKeyError as error:
                logger.warning("a webhook cannot be served", webhook=found.place, reason=str(error))
                text = "this gateway has not the key of the secrets"
                return WebhookAnswer(HTTPStatus.SERVICE_UNAVAILABLE, text, 1)
            self._throttle.succeeded(address, found.place)
            answer = await self._take(found, message_id, timestamp, headers, body)
            if answer is not None:
                return answer
            found = await self._active(workspace, name)
        return WebhookAnswer(HTTPStatus.NOT_FOUND, _UNKNOWN)

    async def _active(self, workspace: str, name: str) -> StoredWebhook | None:
        """Load a webhook; None for one that is not active, too."""
        if "\0" in workspace + name:
            return None
        found = await self._engine.database.read_small(partial(webhook_rows.load, workspace, name))
        return None if found is None or not found.active else found

    async def _take(
        self, found: StoredWebhook, message_id: str, timestamp: str, headers: Mapping[str, str], body: bytes
    ) -> WebhookAnswer | None:
        """Make a signed message an event; None if the webhook was changed meanwhile."""
        if wait_s := self._rate_of(found.place).take(trio.current_time()):
            return WebhookAnswer(HTTPStatus.TOO_MANY_REQUESTS, f"send again in {wait_s:.1f} seconds", math.ceil(wait_s))
        digest = hashlib.sha256(json.dumps([found.workspace, found.id, message_id]).encode()).hexdigest()
        wanted = json.loads(found.document).get("headers") or ()
        passed = {name.lower(): headers[name.lower()] for name in wanted if name.lower() in headers}
        event = {
            "source_agent": WEBHOOK,
            "workspace": found.workspace,
            "event_names": [found.event],
            "event_id": f"{WEBHOOK}:{digest}",
            "data": {"id": message_id, "timestamp": int(timestamp), "headers": passed},
        }
        try:
            payload, body_hash = await in_json_thread(partial(_with_body, event, body), len(body))
        except ValueError as error:
            return WebhookAnswer(HTTPStatus.BAD_REQUEST, str(error))

        def program(tx: TaskTransaction) -> Program[WebhookAnswer | None]:
            return (yield from self._accept(tx, found, digest, body_hash, payload))

        answer = await self._engine.result(program)
        if answer is _ACCEPTED:
            self.accepted += 1
            await self._forget_ids()
        elif answer is _REPEATED:
            self.repeated += 1
        elif answer is _REUSED:
            logger.warning("a message has the id of another one", webhook=found.place, id=shown(message_id))
        return answer

    def _accept(
        self, tx: TaskTransaction, found: StoredWebhook, digest: str, body_hash: str, payload: bytes
    ) -> Program[WebhookAnswer | None]:
        """Write a message's id and event, unless the webhook was changed meanwhile (None)."""
        now_ms = tx.context.now_ms
        current = yield from webhook_rows.load(found.workspace, found.id)
        if current != found:
            return None
        if problem := self._allowed(found.owner, found.workspace, AccessLevel.READWRITE, now_ms):
            logger.warning("a webhook is not served", webhook=found.place, reason=problem)
            return WebhookAnswer(HTTPStatus.NOT_FOUND, _UNKNOWN)
        before = yield from webhook_rows.take_id(digest, body_hash, now_ms)
        if before is not None:
            return _REPEATED if before in ("", body_hash) else _REUSED
        frame = encode_delivery(
            delivery_prefix(WEBHOOKS + found.place), payload, delivery_suffix(pb.EVENT, found.workspace)
        )
        yield Deferred(
            "task_outbox",
            "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5)",
            (f"{WEBHOOK} {now_ms:015d} {digest}", 0, tx.context.node, EVENT_INTAKE, frame),
        )
        tx.effects.outbox = True
        return _ACCEPTED

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
        return page_answer(found, page, _shown, lambda one: place_key(one.workspace, one.id))

    async def _change(self, asked: OperationAsked) -> OperationAnswer:
        """Delete a webhook, or add a new secret to it; `secondary_id` says which.

        `status` is an idempotency key: with it a webhook is rotated once. It is that of the caller,
        whatever its window or instance, as the answer has a secret.
        """
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
        new = new_secret()
        now_ms = self._engine.clock.now_ms()
        caller = asked.session.identity.text.rpartition("::")[0]
        key = operation_key("rotate", workspace, name, caller, asked.status)

        def program(tx: TaskTransaction) -> Program[bytes | str]:
            stored = yield from webhook_rows.load(workspace, name)
            if stored is None:
                return f"webhook {name} is deleted"
            made = (yield from take_key(tx, key, _hash(new))) if asked.status else ""
            try:
                before = self._secrets.read(stored.place, stored.key_id, stored.secrets)
                known = [secret for secret in before if secret == new or _hash(secret) == made]
                if known:
                    return known[0]  # this program or one with this key was committed before
                if made:
                    return f"webhook {name} was rotated with this key, but not last: use another key"
                key_id, encrypted = self._secrets.encrypt(stored.place, [new, *before[:1]])
            except SecretKeyError as error:
                return str(error)
            yield from webhook_rows.put(_with_secrets(stored, key_id, encrypted, now_ms))
            return new

        secret = await self._engine.result(program, known=True)
        if isinstance(secret, str):
            raise OperationError(secret)
        answer = {"workspace": workspace, "id": name, "secret": secret_text(secret)}
        return OperationAnswer(answer, "the new secret and the one before are valid; rotate again to end that one")


def _with_body(event: dict[str, Any], body: bytes) -> tuple[bytes, str]:
    """Return an event with a body's JSON, and the hash of that. Raises ValueError."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is no JSON") from None
    try:
        payload = write_json({**event, "data": {**event["data"], "body": given}})
    except ValueError as error:
        raise ValueError(f"the body cannot be an event: {error}") from None
    if problem := payload_problem(payload):
        raise ValueError(f"the body cannot be an event: {problem}")
    return payload, hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


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


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


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
