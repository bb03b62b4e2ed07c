"""A stub gateway to try the bench against, which makes faults on order.

`python -m tests.bench.stub_gateway --ready-file F [--transport L] [--lose N] [--repeat N] [--refuse
N] [--forget N]` loses, repeats or refuses the N-th message it is sent and every N-th after it, and
forgets one acknowledgement. gRPC is served by grpcio, the other transports by `stub_transports`.
Offline messages stay in memory. Ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio

from aether_trio.wire.pb import aether_pb2 as pb
from tests.bench import stub_transports


class Stub:
    """All state of the gateway."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.queues: dict[str, asyncio.Queue[pb.DownstreamMessage]] = {}
        self.stored: dict[str, deque[pb.DownstreamMessage]] = defaultdict(deque)
        self.values: dict[str, bytes] = {}
        self.sends = 0

    async def connect(
        self, requests: AsyncIterator[pb.UpstreamMessage], context: grpc.aio.ServicerContext | stub_transports.Context
    ) -> AsyncIterator[pb.DownstreamMessage]:
        """Serve the one RPC; with acknowledgements, a marker follows each send's effects."""
        init = (await anext(requests)).init
        kind = init.WhichOneof("client_type")
        if kind == "agent":
            topic = f"ag::{init.agent.workspace}::{init.agent.implementation}::{init.agent.specifier}"
        else:
            topic = f"sv::{init.service.implementation}::{init.service.specifier}"
        if self.options.refuse_all:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the stub refuses all clients")
        queue: asyncio.Queue[pb.DownstreamMessage | None] = asyncio.Queue()
        self.queues[topic] = queue
        yield pb.DownstreamMessage(connection_ack=pb.ConnectionAck(session_id="stub"))
        yield pb.DownstreamMessage(config=pb.ConfigSnapshot())
        for message in self.stored.pop(topic, ()):
            yield message
        acknowledged = isinstance(context, stub_transports.Context) and context.acknowledged
        reader = asyncio.create_task(self._read(requests, topic, queue, acknowledged))
        while (message := await queue.get()) is not None:
            yield message
        await reader
        del self.queues[topic]

    async def _read(self, requests, topic: str, queue, acknowledged: bool) -> None:
        async for request in requests:
            what = request.WhichOneof("payload")
            if what == "send":
                self._route(request.send, topic, queue)
                if acknowledged and self.sends != self.options.forget:
                    queue.put_nowait(pb.DownstreamMessage())
            elif what == "kv_op":
                queue.put_nowait(pb.DownstreamMessage(kv=self._kv(request.kv_op)))
        queue.put_nowait(None)

    def _kv(self, operation: pb.KVOperation) -> pb.KVResponse:
        if operation.op == pb.KVOperation.PUT:
            self.values[operation.key] = operation.value
            return pb.KVResponse(success=True, request_id=operation.request_id)
        value = self.values.get(operation.key, b"")
        return pb.KVResponse(success=True, value=value, request_id=operation.request_id)

    def _route(self, send: pb.SendMessage, source: str, own) -> None:
        self.sends += 1
        options = self.options
        if options.lose and not self.sends % options.lose:
            return
        if options.refuse and not self.sends % options.refuse:
            own.put_nowait(pb.DownstreamMessage(error=pb.ErrorResponse(code="ERR_RATE_LIMITED", message="by order")))
            return
        copies = 2 if options.repeat and not self.sends % options.repeat else 1
        incoming = pb.IncomingMessage(source_topic=source, payload=send.payload, message_type=send.message_type)
        delivery = pb.DownstreamMessage(msg=incoming)
        if send.target_topic.startswith("ga::"):
            agents = f"ag::{send.target_topic[4:]}::"
            receivers = [queue for topic, queue in self.queues.items() if topic.startswith(agents)]
        elif send.target_topic in self.queues:
            receivers = [self.queues[send.target_topic]]
        else:
            self.stored[send.target_topic].extend([delivery] * copies)
            return
        for queue in receivers * copies:
            queue.put_nowait(delivery)


async def main(options: argparse.Namespace) -> None:
    stub = Stub(options)
    if options.transport != "grpc":
        await until_told(await stub_transports.serve(options.transport, stub.connect), options.ready_file)
        return
    handler = grpc.stream_stream_rpc_method_handler(
        stub.connect, pb.UpstreamMessage.FromString, pb.DownstreamMessage.SerializeToString
    )
    server = grpc.aio.server()
    service = grpc.method_handlers_generic_handler("aether.v1.AetherGateway", {"Connect": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await until_told(port, options.ready_file)
    await server.stop(0)


async def until_told(port: int, ready_file: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ready = {"pid": os.getpid(), "gateway": f"127.0.0.1:{port}", "ops": ""}
    part = ready_file.with_suffix(".part")
    part.write_text(json.dumps(ready))
    part.rename(ready_file)
    await stop.wait()


def arguments() -> argparse.Namespace:
    """Those of the real gateway that the bench passes are accepted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--transport", choices=("grpc", "framed", "websocket"), default="grpc")
    for fault in ("--lose", "--repeat", "--refuse", "--forget"):
        parser.add_argument(fault, type=int, default=0)
    parser.add_argument("--refuse-all", action="store_true")
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    asyncio.run(main(arguments()))
