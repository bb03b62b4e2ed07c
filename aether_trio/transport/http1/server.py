"""Answers an HTTP/1.1 connection's requests in turn, and refuses bad ones itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from aether_trio.transport.http1.connection import BadRequest, Http1Connection, Request

LINGER_S: Final = 1.0
"""For a client to read why its request was refused, before its socket is closed."""

Answer: TypeAlias = Callable[[Http1Connection, Request], Awaitable[bool]]
"""Answers one request; False after the last. Raises BadRequest, OSError, TooSlowError."""


async def serve_requests(
    http: Http1Connection, answer: Answer, *, on_refused: Callable[[BadRequest], None] = lambda _refused: None
) -> None:
    """Pass HTTP requests to `answer` until it returns False. Raises as `answer` does."""
    try:
        while (request := await http.next_request()) is not None:
            if not await answer(http, request):
                return
            if not http.body_is_read:
                await http.linger(LINGER_S)
                return
    except BadRequest as error:
        on_refused(error)
        await http.respond_text(error.status, str(error), close=True)
        await http.linger(LINGER_S)
