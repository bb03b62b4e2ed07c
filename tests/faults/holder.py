"""Hold an identity until killed: `python -m tests.faults.holder ADDRESS WS`.

A third argument is an API key.

Prints one line once it is connected. An agent of the published SDK, so that what ends is a real
client.
"""

from __future__ import annotations

import asyncio
import sys

from scitrera_aether_client import AsyncAgentClient


async def hold(address: str, workspace: str, key: str = "") -> None:
    credentials = {"x-api-key": key} if key else None
    client = AsyncAgentClient(workspace, "holder", "one", credentials, auto_reconnect=False)
    client.on_connect = lambda: print("connected", flush=True)
    client.on_disconnect = lambda reason: print("disconnected", reason, flush=True)
    await client.connect(address)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(hold(*sys.argv[1:]))
