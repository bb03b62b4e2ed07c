"""What blocks of operations yield, for scripts that block: tunnels, streamed responses, proxied requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping

from aether_trio.client.blocking.bridge import Blocking, BlockingStream, Bridge, blocking
from aether_trio.client.operations.grant_cache import GrantCache
from aether_trio.client.operations.proxy import StreamedResponse
from aether_trio.client.operations.proxy_service import ProxiedRequest
from aether_trio.client.operations.tunnels import Tunnel


class SyncGrantCache(Blocking[GrantCache]):
    """See GrantCache."""

    resolve = blocking(GrantCache.resolve)

    def forget(self, grant_id: str) -> None:
        """Ask again about this grant the next time."""
        self._bridge.run_if_open(lambda: self._target.forget(grant_id))


class SyncTunnel(Blocking[Tunnel]):
    """See Tunnel. Leaving its block closes it."""

    send = blocking(Tunnel.send)
    send_eof = blocking(Tunnel.send_eof)
    receive = blocking(Tunnel.receive)
    aclose = blocking(Tunnel.aclose)


class SyncResponse(Blocking[StreamedResponse]):
    """See StreamedResponse. Iterate it for the pieces of the body, once."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._target.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers."""
        return self._target.headers

    def __iter__(self) -> Iterator[bytes]:
        return BlockingStream(self._bridge, self._target)


class SyncProxiedRequest(Blocking[ProxiedRequest]):
    """See ProxiedRequest; `request` has what was asked."""

    respond = blocking(ProxiedRequest.respond)
    fail = blocking(ProxiedRequest.fail)
    start = blocking(ProxiedRequest.start)
    send = blocking(ProxiedRequest.send)
    finish = blocking(ProxiedRequest.finish)

    @property
    def request(self) -> ProxiedRequest:
        """Its method, path, headers, body and the rest."""
        return self._target


def served(bridge: Bridge, requests: AsyncIterator[ProxiedRequest]) -> Iterator[SyncProxiedRequest]:
    return (SyncProxiedRequest(bridge, request) for request in BlockingStream(bridge, requests))
