"""The stream of a command: one gRPC call over our own client, with TLS as the options say."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from grpclib.exceptions import GRPCError

from aether_trio.cli import exits
from aether_trio.cli.options import Target
from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc.client import Call, open_channel
from aether_trio.wire.pb import aether_pb2 as pb

_CONNECT: Final = "/aether.v1.AetherGateway/Connect"


class GrpcTransport:
    """Messages out, messages in. Raises StatusError when the gateway ends the stream with a status."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._waiting: list[pb.DownstreamMessage] = []

    async def send(self, message: pb.UpstreamMessage) -> None:
        try:
            await self._call.send(message)
        except GRPCError as error:
            raise _status(error) from None

    async def receive(self) -> pb.DownstreamMessage | None:
        """The next message; None when the gateway has ended the stream with OK."""
        if not self._waiting:
            try:
                batch: Sequence[pb.DownstreamMessage] = await self._call.receive()
            except GRPCError as error:
                raise _status(error) from None
            if not batch:
                return None
            self._waiting = list(reversed(batch))
        return self._waiting.pop()

    async def leave(self) -> None:
        """End our side, so that the gateway sees a goodbye and not a broken stream."""
        await self._call.end()


def _status(error: GRPCError) -> StatusError:
    return StatusError(Status(error.status.value), error.message or "")


def _tls_context(target: Target) -> ssl.SSLContext | None:
    if not target.tls:
        return None
    named = f"--tls-ca {target.tls_ca}"
    try:
        context = ssl.create_default_context(cafile=target.tls_ca)
        if target.tls_cert:
            named = f"--tls-cert {target.tls_cert} with --tls-key {target.tls_key}"
            context.load_cert_chain(target.tls_cert, target.tls_key)
    except OSError as error:  # SSLError is one
        why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise exits.CliError(f"{named} cannot be used: {why or error}", exits.USAGE) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


@asynccontextmanager
async def open_transport(target: Target) -> AsyncIterator[GrpcTransport]:
    """Connect and open the one stream. Raises OSError and ssl.SSLError when that fails, CliError for its files."""
    async with open_channel(target.host, target.port, tls=_tls_context(target)) as channel:  # noqa: SIM117  # the channel must outlive the call
        async with channel.stream(_CONNECT, pb.DownstreamMessage) as call:
            transport = GrpcTransport(call)
            yield transport
            await transport.leave()
