"""The servers that a PostgreSQL URL names, and how the primary is found.

asyncpg tries the hosts of a URL one after another within one limit on time. A first host that does
not answer would use up all of it. Here each host is a separate attempt: the next one begins when
the one before has failed, or has not answered for `NEXT_S`. The first one that turns out to be the
primary is taken.

Invariant: texts about a URL have nothing of its user and password, also for a malformed URL.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlencode

NEXT_S: Final = 0.3
"""How long a host is tried alone: longer than a connection takes, short for a failover."""

_URL: Final = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
"""RFC 3986, appendix B: it matches every text."""


def _split(dsn: str) -> SplitResult:
    """Split a URL as urlsplit did before Python 3.13.4 refused an IPv6 host in a list."""
    match = _URL.fullmatch(dsn)
    assert match is not None
    return SplitResult(*match.groups(default=""))


def each_host(dsn: str) -> list[str]:
    """Return a URL for each host of a PostgreSQL URL, in order."""
    parts = _split(dsn)
    user, at, listed = parts.netloc.rpartition("@")
    query = parse_qsl(parts.query, keep_blank_values=True)
    given = dict(query)
    names = (listed or given.get("host", "")).split(",")
    if len(names) < 2:
        return [dsn]
    ports = given.get("port", "").split(",")
    found = []
    for number, name in enumerate(names):
        changed = {} if listed else {"host": name}
        if len(ports) == len(names):
            changed["port"] = ports[number]
        pairs = urlencode([(key, changed.get(key, value)) for key, value in query], safe="/")
        found.append(f"{parts.scheme}://{user}{at}{name if listed else ''}{parts.path}{'?' if pairs else ''}{pairs}")
    return found


def is_misread(dsn: str) -> bool:
    """Whether an unescaped character splits the user name or password of a URL."""
    parts = _split(dsn)
    return "@" in parts.path or bool(parts.fragment) or "@" in parts.netloc.rpartition("@")[0]


def where(dsn: str) -> str:
    """Name the servers and database of a URL, without user and password."""
    if is_misread(dsn):
        return "of this URL"
    parts = _split(dsn)
    return f"{_hosts(parts) or 'localhost'}{parts.path}"


def _hosts(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2] or dict(parse_qsl(parts.query)).get("host", "")


async def first_to_succeed(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, Any]]],
    goes_on: Callable[[BaseException], bool],
    *,
    next_s: float = NEXT_S,
) -> Any:
    """Return the connection of the first attempt that succeeds (asyncio).

    The other attempts are given up. Raises an error for which `goes_on` is false at once, because
    no other attempt can succeed then; else the error of the last attempt, preferably not that it is
    a standby.
    """
    if len(attempts) == 1:
        return await attempts[0]()
    waiting = deque(attempts)
    tasks: list[asyncio.Task[Any]] = []
    running: set[asyncio.Task[Any]] = set()
    errors: list[BaseException] = []
    taken = None
    try:
        while waiting or running:
            if waiting:
                task = asyncio.get_running_loop().create_task(waiting.popleft()())
                tasks.append(task)
                running.add(task)
            done, running = await asyncio.wait(
                running, timeout=next_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = ConnectionError("given up") if task.cancelled() else task.exception()
                if error is None:
                    taken = task
                    return task.result()
                if not goes_on(error):
                    raise error
                errors.append(error)
        raise next((error for error in reversed(errors) if isinstance(error, OSError)), errors[-1])
    finally:
        await _give_up([task for task in tasks if task is not taken])


async def _give_up(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel attempts to connect, and close the connections that they have made."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(result, BaseException):
            result.terminate()
