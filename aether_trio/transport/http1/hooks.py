"""Receives webhooks: POST /hooks/WORKSPACE/NAME on the gateway's HTTP/1.1 server.

Bounds: a body has `BODY_BYTES`, arrives within the limits of the connection, and at most `READING`
bodies are read at the same time, `READING_OF_ONE` of one address; further requests are told to come
again, so senders that are slow hold up few others. Those of senders that were accepted before are
counted apart: others hold them up in no number. The receiver says whether a body is read at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
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
    """How a message is answered: status, a line of text, and when to send it again."""

    @property
    def status(self) -> HTTPStatus: ...

    @property
    def text(self) -> str: ...

    @property
    def after_s(self) -> int:
        """Seconds for Retry-After, 0 without one."""


class HookReceiver(Protocol):
    """What takes the messages of webhooks (services/workflows/webhooks/accepting.py)."""

    async def receive(
        self,
        workspace: str,
        name: str,
        headers: Mapping[str, str],
        address: str,
        read: Callable[[bool], Awaitable[bytes | None]],
    ) -> HookAnswer:
        """Accept a message, or say why not.

        `read` reads the body; None: too many are read now. It is told whether the sender is known:
        a message of it was accepted before.
        """


class HookServer:
    """Answers requests at addresses of webhooks."""

    def __init__(self, receiver: HookReceiver | None) -> None:
        """`receiver` None: there are no webhooks."""
        self._receiver = receiver
        self._reading: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        """The bodies that are read, by whether their sender is known, and its address."""

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
        workspace, name = unquote(place[1]), unquote(place[2])
        host = address.rpartition(":")[0]
        read = partial(self._read, http, host)
        found = await self._receiver.receive(workspace, name, request.headers, address, read)
        http.drop_received_body()
        headers = [("Retry-After", str(found.after_s))] if found.after_s else None
        await http.respond_text(found.status, found.text, headers)

    async def _read(self, http: Http1Connection, host: str, known: bool) -> bytes | None:
        reading = self._reading[known]
        if reading[host] >= READING_OF_ONE or reading.total() >= READING:
            return None
        reading[host] += 1
        try:
            return await http.read_body()
        finally:
            reading[host] -= 1
            if not reading[host]:
                del reading[host]
