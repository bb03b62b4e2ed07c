"""Sends a request to an ops port over HTTP/1.1, and reads the answer's lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Final

import h11
import trio

from aether_trio.cli import exits
from aether_trio.cli.options import OpsTarget
from aether_trio.wire.ops_port import OPS_SERVER

_HINT: Final = "is the gateway running, and is this its ops port? (--ops)"
_READ_BYTES = 64 * 1024
_NO_RIGHT: Final = (401, 403)
_MAX_LINE_BYTES = 32 * 1024 * 1024  # a payload of 10 MiB as base64, and some


async def stream_lines(
    ops: OpsTarget, path: str, *, method: str = "GET", headers: Mapping[str, str] = MappingProxyType({})
) -> AsyncGenerator[bytes, None]:
    """Yield the lines of an ops port's answer as they arrive.

    Raises CliError when there is no answer, or one that is not 200. `ops.timeout_s` bounds
    connecting and the answer's head, not the stream.
    """
    where = f"{ops.host}:{ops.port}"
    token = {"authorization": f"Bearer {ops.token}"} if ops.token else {}
    try:
        with trio.fail_after(ops.timeout_s):
            stream = await trio.open_tcp_stream(ops.host, ops.port)
    except (OSError, trio.TooSlowError):
        raise exits.CliError(f"nothing answers on {where}; {_HINT}", exits.UNREACHABLE) from None
    async with stream:
        connection = h11.Connection(h11.CLIENT)
        request = h11.Request(
            method=method,
            target=path,
            headers=[("host", where), ("connection", "close"), *token.items(), *headers.items()],
        )
        await stream.send_all((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        try:
            with trio.fail_after(ops.timeout_s):
                response = await _next_event(connection, stream)
        except trio.TooSlowError:
            raise exits.CliError(
                f"the ops port {where} did not answer in time (--timeout)", exits.UNREACHABLE
            ) from None
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            raise exits.CliError(f"{where} is not an ops port; {_HINT}", exits.UNREACHABLE) from None
        if not isinstance(response, h11.Response) or dict(response.headers).get(b"server") != OPS_SERVER.encode():
            # A gateway's own port answers HTTP too.
            raise exits.CliError(f"{where} is not an ops port; {_HINT}", exits.UNREACHABLE)
        status = response.status_code
        rest = b""
        while True:
            try:
                event = await _next_event(connection, stream)
            except (h11.RemoteProtocolError, trio.BrokenResourceError):
                raise exits.CliError(
                    f"the ops port {where} broke the connection off in the middle of its answer", exits.UNREACHABLE
                ) from None
            if not isinstance(event, h11.Data):
                break
            *lines, rest = (rest + bytes(event.data)).split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                raise exits.CliError(f"the ops port {where} sent a line of more than {_MAX_LINE_BYTES} bytes")
            if status == 200:
                for line in lines:
                    yield line
            elif lines:
                code = exits.REFUSED if status in _NO_RIGHT else exits.FAILED
                raise exits.CliError(f"the ops port {where} refused {path}: {lines[0].decode(errors='replace')}", code)
        if status != 200:
            raise exits.CliError(f"the ops port {where} answered with the HTTP status {status}")


async def _next_event(connection: h11.Connection, stream: trio.SocketStream) -> object:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
