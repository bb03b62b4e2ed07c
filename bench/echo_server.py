"""Echo bytes over TCP with plain trio: the unit of every figure here.

No trio server can be faster.

Run as `python -m bench.echo_server`; it prints its port and echoes until its standard input ends,
so that it cannot outlive the bench.
"""

from __future__ import annotations

import os
import sys

import trio


async def echo(stream: trio.SocketStream) -> None:
    try:
        while data := await stream.receive_some(65_536):
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


async def main() -> None:
    """Serve on a free port of the loopback interface."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        print(listeners[0].socket.getsockname()[1], flush=True)
        while await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 4096):
            pass
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
