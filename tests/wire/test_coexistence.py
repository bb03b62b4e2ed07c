"""The SDK and our package in one process, whichever is imported first."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

OURS = "from aether_trio.wire.pb import aether_pb2 as ours, sandbox_relay_tunnel_pb2 as our_tunnel"
SDK = "from scitrera_aether_client.proto import aether_pb2 as sdk, sandbox_relay_tunnel_pb2 as sdk_tunnel"

# tests/wire/test_exchange.py exchanges every other message.
EXCHANGE = """
def sample(pb, tunnel):
    return tunnel.TunnelFrame(down=pb.DownstreamMessage(msg=pb.IncomingMessage(payload=bytes(range(256)))))

mine, theirs = sample(ours, our_tunnel), sample(sdk, sdk_tunnel)
assert type(mine) is not type(theirs)
assert type(theirs).FromString(mine.SerializeToString()) == theirs, mine
assert type(mine).FromString(theirs.SerializeToString()) == mine, theirs
print("exchanged")
"""


def run(*parts: str) -> str:
    script = "\n".join(parts)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("imports", [(OURS, SDK), (SDK, OURS)], ids=["ours first", "SDK first"])
def test_both_are_importable_and_exchange_bytes(imports: tuple[str, str]) -> None:
    assert run(*imports, EXCHANGE) == "exchanged"


def test_ours_leaves_the_default_pool_alone() -> None:
    script = """
    from google.protobuf import descriptor_pool
    try:
        descriptor_pool.Default().FindMessageTypeByName("aether.v1.UpstreamMessage")
    except KeyError:
        print("untouched")
    """
    assert run(OURS, textwrap.dedent(script)) == "untouched"


def test_the_service_bases_do_not_load_asyncio() -> None:
    script = "import aether_trio.wire.pb.aether_grpc, sys; print('asyncio' in sys.modules)"
    assert run(script) == "False"
