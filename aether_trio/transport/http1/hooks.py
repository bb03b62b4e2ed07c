"""Receives webhooks: POST /hooks/WORKSPACE/NAME on the gateway's HTTP/1.1 server.

Bounds: a body has `BODY_BYTES`, arrives within the limits of the connection, and at most `READING`
bodies are read at the same time, `READING_OF_ONE` of one address; further requests are told to come
again, so senders that are slow hold up few others. What is said of an address that does not exist
does not depend on what does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import unquote

from aether_trio.transport.http1.connection import BadRequest, Http1Connection, Request

PATH: Final = "/hooks/"
BODY_BYTES: Final = 256 * 1024
READING: Final = 64
READING_OF_ONE: Final = 16
_PLACE: Final = re.compile(r"/hooks/([^/?]{1,256})/([^/?]{1,256})")
_JSON: Final = re.compile(r"application/(?:[!#$&^_.+\w-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


class HookAnswer(Protocol):
    """How a message is answered: status, and a line of text."""

    @property
    def status(self) -> HTTPStatus: ...

    @property
    def text(self) -> str: ...


class HookReceiver(Protocol):
    """What takes the messages of webhooks (services/workflows/webhooks.py)."""

    async def receive(self, workspace: str, name: str, headers: Mapping[str, str], body: bytes) -> HookAnswer:
        """Accept a message, or say why not."""


class HookServer:
    """Answers requests at addresses of webhooks."""

    def __init__(self, receiver: HookReceiver | None) -> None:
        """`receiver` None: there are no webhooks."""
        self._receiver = receiver
        self._reading: Counter[str] = Counter()

    def body_bytes(self, request: Request) -> int:
        """Return how long the body of a request may be."""
        is_hook = self._receiver is not None and request.method == "POST" and request.path.startswith(PATH)
        return BODY_BYTES if is_hook else 0

    async def answer(self, http: Http1Connection, request: Request, address: str) -> None:
        """Answer a request. Raises BadRequest, OSError and TooSlowError."""
        place = _PLACE.fullmatch(request.path)
        if self._receiver is None or place is None:
            await http.respond_text(HTTPStatus.NOT_FOUND, "there is nothing at this address")
            return
        if request.method != "POST":
            await http.respond_text(HTTPStatus.METHOD_NOT_ALLOWED, "this address takes POST only", [("Allow", "POST")])
            return
        if not _JSON.fullmatch(request.headers.get("content-type", "").strip()):
            raise BadRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a webhook has a body of application/json")
        if self._reading[address] >= READING_OF_ONE or self._reading.total() >= READING:
            text = "too many messages arrive at the same time"
            await http.respond_text(HTTPStatus.TOO_MANY_REQUESTS, text, [("Retry-After", "1")], close=True)
            return
        self._reading[address] += 1
        try:
            body = await http.read_body()
        finally:
            self._reading[address] -= 1
            if not self._reading[address]:
                del self._reading[address]
        workspace, name = unquote(place[1]), unquote(place[2])
        found = await self._receiver.receive(workspace, name, request.headers, body)
        again = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
        headers = [("Retry-After", "1")] if found.status in again else None
        await http.respond_text(found.status, found.text, headers)
