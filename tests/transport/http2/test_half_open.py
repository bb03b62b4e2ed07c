"""The kernel's keepalive finds a peer whose machine vanished (network namespaces)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.http2 import frames
from aether_trio.transport.socket.listener import TcpSettings
from tests.helpers.netns import RemoteMachine, Unavailable, remote_machine
from tests.transport.grpc.harness import Probe, RawClient, serving, settings

CLIENT = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
sock.sendall(bytes.fromhex(sys.argv[3]))
time.sleep(600)
"""


@pytest.fixture
def machine() -> Iterator[RemoteMachine]:
    try:
        with remote_machine() as made:
            yield made
    except Unavailable as reason:
        pytest.skip(str(reason))


async def test_a_vanished_peer_ends_its_rpc(machine: RemoteMachine) -> None:
    probe = Probe()
    tcp = TcpSettings(keepalive_idle_s=1, keepalive_interval_s=1, keepalive_probes=2, user_timeout_ms=2_000)
    server = GrpcServer([probe])
    with trio.fail_after(300):
        async with serving(server, host=machine.near, tcp=tcp) as port:
            request = RawClient(None).request(1, "/probe.Probe/Hang")  # type: ignore[arg-type]
            opening = (frames.PREFACE + settings() + request).hex()
            command = [*machine.prefix, sys.executable, "-c", CLIENT, machine.near, str(port), opening]
            with subprocess.Popen(command) as client:
                await probe.started.wait()
                machine.vanish()
                await probe.cancelled.wait()
                client.kill()
            while server.statistics().connections_open:
                await trio.sleep(0.01)
