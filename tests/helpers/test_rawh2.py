"""The raw HTTP/2 client speaks to grpcio's server, which judges its frames."""

from __future__ import annotations

from concurrent import futures

import grpc
import pytest
import trio

from tests.helpers.rawh2 import DEFAULT_WINDOW, Disconnected, open_raw_peer


class Echo(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def connect(requests: object, context: grpc.ServicerContext) -> object:
            yield from requests  # type: ignore[misc]

        return grpc.stream_stream_rpc_method_handler(connect)


@pytest.fixture
def echo_server() -> object:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


async def test_a_shut_window_stops_the_server(echo_server: str) -> None:
    sent = [b"x" * 30_000] * 5
    got: list[bytes] = []
    shut = open_raw_peer(echo_server, b"init", window=DEFAULT_WINDOW, keep_window_open=False)
    with trio.fail_after(300):
        async with shut as peer, trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, *sent)
            while len(got) < 3:
                got += await peer.receive()
            with trio.move_on_after(0.2):
                got += await peer.receive()
            assert len(got) == 3, "the third message had no window to come through"
            peer.h2.grant(1_000_000)
            await peer.flush()
            while len(got) < 6:
                got += await peer.receive()
    assert got == [b"init", *sent]


async def test_a_server_that_goes_away_is_noticed() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(300):
        async with open_raw_peer(f"127.0.0.1:{listener.socket.getsockname()[1]}", b"init") as peer:
            await (await listener.accept()).aclose()
            await listener.aclose()
            with pytest.raises(Disconnected):
                await peer.receive()
