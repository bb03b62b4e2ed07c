"""Test that a program ends which forks or ends inside of a blocking client."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from tests.client.gateways import agent, open_test_gateway

BEGIN = """
import os, sys, threading, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # Python 3.12 says so of each fork beside a thread
from aether_trio.client import ClientClosed, connect_sync
connecting = connect_sync(sys.argv[1], workspace="w", implementation="i", specifier="script")
"""

PROGRAMS = {
    "no exit": """
script = connecting.__enter__()
script.send(script.topic, "x")
""",
    "no exit, and a feed": """
script = connecting.__enter__()
feed = script.open_feed("progress_update")
stream = feed.__enter__()
""",
    "no exit, and a loop that was left": """
script = connecting.__enter__()
script.send(script.topic, "x")
messages = script.messages()
next(messages)
""",
    "sys.exit": """
with connecting as script:
    script.send(script.topic, "x")
    sys.exit(0)
""",
    "sys.exit beside a block that is open": """
script = connecting.__enter__()
with connect_sync(sys.argv[1], workspace="w", implementation="i", specifier="other"):
    sys.exit(0)
""",
    "sys.exit in a feed": """
with connecting as script, script.open_feed("progress_update"):
    sys.exit(0)
""",
    "sys.exit in a task": """
with connecting as script:
    script.tasks.create("t", b"", pool="i")
    for task in script.work():
        with task:
            sys.exit(0)
""",
    "sys.exit in a thread": """
with connecting as script:
    thread = threading.Thread(target=lambda: script.send(script.topic, "x") or sys.exit(1))
    thread.start()
    thread.join()
""",
    "fork": """
with connecting as script:
    child = os.fork()
    if not child:
        try:
            script.send(script.topic, "x")
        except ClientClosed:
            sys.exit(0)
        sys.exit(1)
    assert os.waitpid(child, 0)[1] == 0
    script.send(script.topic, "the parent's connection goes on")
    assert script.receive(30).text == "the parent's connection goes on"
""",
    "fork, and the child's own connection": """
with connecting as script:
    child = os.fork()
    if not child:
        with connect_sync(sys.argv[1], workspace="w", implementation="i", specifier="child") as own:
            own.send(script.topic, "from the child")
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert script.receive(30).text == "from the child"
""",
    "fork without exit": """
script = connecting.__enter__()
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_ends(name: str) -> None:
    async with open_test_gateway() as gateway:
        address = f"aether://{gateway.address}"
        with trio.fail_after(300):
            done = await trio.run_process(
                [sys.executable, "-c", BEGIN + PROGRAMS[name], address],
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
        assert (done.returncode, done.stdout.decode()) == (0, "")
        with trio.fail_after(300):  # it has said goodbye, so its name is free
            async with agent(address, "script", connect_timeout_s=30):
                pass
