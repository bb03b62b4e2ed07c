"""Signals that come while `aether serve` starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import trio

from aether_trio.devtools.node_process import NodeProcess
from tests.cli.shell import AETHER, LIMIT_S, clean_environment

SETTINGS = {"gateway": {"host": "127.0.0.1", "ephemeral": True}, "auth": {"allow_anonymous": True}}


def test_a_sighup_while_it_starts_counts_when_it_serves(tmp_path: Path) -> None:
    config = tmp_path / "aether.yaml"
    os.mkfifo(config)
    command = [*AETHER, "serve", "--config", str(config), "--port", "0", "--ops-port", "0", "--log-format", "json"]
    with subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            with config.open("w") as pipe:  # opens when the gateway reads it
                config.unlink()
                config.write_text(json.dumps(SETTINGS))
                process.send_signal(signal.SIGHUP)
                pipe.write(json.dumps(SETTINGS))
            events = [json.loads(process.stderr.readline())["event"] for _ in range(2)]
            assert "is serving on" in events[0]
            assert "were read anew" in events[1]
            process.terminate()
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()


async def test_a_process_of_several_gets_a_sighup_when_it_serves(tmp_path: Path) -> None:
    config = tmp_path / "aether.yaml"
    config.write_text(json.dumps(SETTINGS))
    arguments = ["serve", "--config", str(config), "--port", "0", "--ops-port", "0"]
    node = NodeProcess("node", arguments, tmp_path, environment=clean_environment())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.start)
            while not node.running:
                await trio.lowlevel.checkpoint()
            node.hang_up()  # Python has not begun to run the program
        while "were read anew" not in node.said():
            assert node.running, node.said()
            await trio.sleep(0.05)
    finally:
        await node.kill()
