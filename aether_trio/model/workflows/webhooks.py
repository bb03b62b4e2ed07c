"""Webhooks: documents, and the signatures of the Standard Webhooks specification.

    webhook-id, webhook-timestamp (Unix seconds), webhook-signature: v1,BASE64 [v1,BASE64 ...]
    v1 = HMAC-SHA256(secret, "ID.TIMESTAMP.BODY"); a secret is whsec_ and base64 of 24 to 64 bytes

Source: https://github.com/standard-webhooks/standard-webhooks (spec/standard-webhooks.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from aether_trio.model.identity import IdentityError
from aether_trio.model.workflows.compiling import Compiler
from aether_trio.model.workflows.definition import Json, Path, WebhookDefinition
from aether_trio.model.workflows.reading import Fields, name, prose, quoted, token

PREFIX: Final = "whsec_"
TOLERANCE_S: Final = 300
"""How far the timestamp may be from this gateway's clock."""
MAX_SECRETS: Final = 4
MAX_HEADERS: Final = 32
MAX_ID_BYTES: Final = 256
MAX_SIGNATURES: Final = 16
SECRET_BYTES: Final = range(24, 65)
_SIGNATURE_LENGTH: Final = 44
"""Of base64 of an HMAC-SHA256."""
WEBHOOK_KEYS: Final = ("kind", "name", "workspace", "description", "event", "headers", "secrets", "active")
_RESERVED: Final = frozenset({"webhook-signature", "authorization", "cookie", "proxy-authorization"})
"""Headers that are never passed on: they hold credentials."""


class SignatureError(ValueError):
    """A webhook is not signed as it must be; the text says what is wrong."""


def compile_webhook(compiler: Compiler, value: Json, path: Path) -> WebhookDefinition:
    """Compile a webhook. Its secrets are no part of the canonical document."""
    fields = Fields(value, path, compiler.findings, WEBHOOK_KEYS, "the webhook", casings=True)
    title = fields.text("name", check=_path_part, required=True)
    if title:
        fields.what = f"webhook {quoted(title)}"
    fields.text("description", check=prose)
    event = fields.text("event", check=name, required=True)
    workspace = fields.text("workspace", check=token)
    headers = []
    for header, at in fields.texts("headers", most=MAX_HEADERS):
        lower = header.lower()
        if lower in _RESERVED:
            compiler.findings.error(at, f"{fields.what}: the header {quoted(header)} is not passed on, as it is secret")
        headers.append(lower)
    secrets = []
    for secret, at in fields.texts("secrets", most=MAX_SECRETS):
        try:
            secrets.append(secret_key(secret))
        except ValueError as error:
            compiler.findings.error(at, f"{fields.what}: {error}")  # without the text: it is secret
    active = fields.flag("active", True)
    source = {key: one for key, one in fields.values.items() if key not in {"secrets", "kind"}}
    return WebhookDefinition(
        name=title,
        event=event,
        workspace=workspace,
        headers=tuple(dict.fromkeys(headers)),
        secrets=tuple(dict.fromkeys(secrets)),
        active=active,
        source=source | {"kind": "webhook", "workspace": workspace},
    )


def _path_part(text: str, what: str) -> str:
    """Check a name that is a part of an address."""
    if not re.fullmatch(r"[A-Za-z0-9._~-]{1,128}", text):
        raise IdentityError(f"{what} is a part of an address: up to 128 letters, digits, and . _ ~ -")
    return text


def secret_key(text: str) -> bytes:
    """Return the key of a secret's text. Raises ValueError, which does not repeat it."""
    if not text.startswith(PREFIX):
        raise ValueError(f"a secret begins with {PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"a secret is {PREFIX} and base64") from None
    if len(key) not in SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES[0]} to {SECRET_BYTES[-1]} bytes, and this one {len(key)}")
    return key


def secret_text(key: bytes) -> str:
    """Return the text of a secret."""
    return PREFIX + base64.b64encode(key).decode()


def check_head(message_id: str, timestamp: str, signatures: str, now_s: float) -> None:
    """Check what can be checked before the body is there. Raises SignatureError."""
    if not message_id or not timestamp or not signatures:
        raise SignatureError("webhook-id, webhook-timestamp and webhook-signature are needed")
    if len(message_id) > MAX_ID_BYTES or "\0" in message_id:
        raise SignatureError(f"webhook-id has at most {MAX_ID_BYTES} characters, without zero bytes")
    if not (timestamp.isascii() and timestamp.isdigit()) or len(timestamp) > 12:
        raise SignatureError("webhook-timestamp is Unix time in seconds")
    if abs(int(timestamp) - now_s) > TOLERANCE_S:
        raise SignatureError(f"webhook-timestamp is more than {TOLERANCE_S} seconds away from the gateway's time")
    if not _signatures(signatures):
        raise SignatureError("webhook-signature has no v1 and base64 of 32 bytes")


def _signatures(text: str) -> list[str]:
    given = [one.removeprefix("v1,") for one in text.split(" ", MAX_SIGNATURES) if one.startswith("v1,")]
    return [one for one in given if len(one) == _SIGNATURE_LENGTH]


def verify(keys: Sequence[bytes], message_id: str, timestamp: str, body: bytes, signatures: str) -> None:
    """Check that a webhook is signed with one of the keys. Raises SignatureError.

    `check_head` has found nothing wrong with what is signed besides the body.
    """
    given = _signatures(signatures)
    signed = b".".join((message_id.encode("latin-1", "replace"), timestamp.encode(), body))
    found = False
    for key in keys:
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
        for one in given:
            found |= hmac.compare_digest(expected, one.encode("latin-1", "replace"))
    if not found:
        raise SignatureError("the signature is not that of a secret of this webhook")
