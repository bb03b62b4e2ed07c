"""A client written from docs/wire.md with socket, struct and msgpack alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.helpers.gateway import GatewayProcess, start_gateway

CLIENT = Path(__file__).with_name("minimal_client.py")
ALLOWED = {"itertools", "msgpack", "os", "socket", "struct", "sys"}
LIMIT_S = 300

PRELUDE = """
import json, sys
sys.path[:0] = {paths!r}
from minimal_client import Client, Ended
assert not any(name.partition(".")[0] in ("aether_trio", "google", "trio") for name in sys.modules)
address = {address!r}
me, other = ("default", "minimal", "me"), ("default", "minimal", "other")
my_topic, other_topic = "ag::default::minimal::me", "ag::default::minimal::other"
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with start_gateway(ephemeral=True) as running:
        yield running


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """A directory with the client and msgpack and nothing else."""
    (tmp_path / "minimal_client.py").symlink_to(CLIENT)
    (tmp_path / "msgpack").symlink_to(Path(msgpack.__file__).parent)
    return tmp_path


def run(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def converse(gateway: GatewayProcess, libraries: Path, script: str) -> Any:
    """Run a script without site-packages and PYTHONPATH; read its results as JSON."""
    host, _, port = gateway.address.rpartition(":")
    prelude = PRELUDE.format(paths=[str(libraries)], address=(host, int(port)))
    return json.loads(run([sys.executable, "-I", "-S", "-c", prelude + script]))


def test_it_is_short_and_imports_nothing_else() -> None:
    source = CLIENT.read_text()
    assert len(source.splitlines()) < 150
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported == ALLOWED
    assert "__import__" not in source
    assert "importlib" not in source


def test_the_program_talks_to_itself(gateway: GatewayProcess, libraries: Path) -> None:
    start = f"import sys; sys.path[:0] = [{str(libraries)!r}]; sys.argv = ['minimal_client', {gateway.address!r}]"
    program = f"{start}; import runpy; runpy.run_module('minimal_client', run_name='__main__')"
    printed = run([sys.executable, "-I", "-S", "-c", program])
    assert printed == "settled: None\nag::default::minimal::1 to ag::default::minimal::1: to myself\n"


def test_hello_init_send_with_ack_and_deliver(gateway: GatewayProcess, libraries: Path) -> None:
    script = """
sender, receiver = Client(address, me), Client(address, other)
numbers = [sender.send(other_topic, b"message %d" % number) for number in range(300)]
refused = [sender.settle(number) for number in numbers]
received = []
for _ in numbers:
    channel, offset, topic, source, payload = receiver.receive()
    received.append((topic, source, payload.decode()))
    receiver.done(channel, offset)
sender.close(), receiver.close()
print(json.dumps([numbers, refused, received, sender.limits, bool(sender.session)], default=bytes.hex))
"""
    numbers, refused, received, limits, session = converse(gateway, libraries, script)
    assert numbers == list(range(1, 301))
    assert refused == [None] * 300
    expected = ["ag::default::minimal::other", "ag::default::minimal::me"]
    assert received == [[*expected, f"message {number}"] for number in range(300)]
    assert session
    assert limits["publish_window"] >= 300
    assert limits["minor"] == 0
    assert limits["log"]


def test_what_is_refused_is_named_by_its_number(gateway: GatewayProcess, libraries: Path) -> None:
    script = """
client = Client(address, me)
first, bad, last = client.send(my_topic, b"1"), client.send("no topic", b"2"), client.send(my_topic, b"3")
settled = client.settle(last)
print(json.dumps([client.refused.pop(bad), client.refused, settled, [client.receive()[4].decode() for _ in range(2)]]))
"""
    nack, refused, settled, received = converse(gateway, libraries, script)
    assert nack[:2] == ["ERR_INVALID_TOPIC", False]
    assert (refused, settled, received) == ({}, None, ["1", "3"])


def test_a_repetition_is_found_and_unacknowledged_messages_come_again(gateway: GatewayProcess, libraries: Path) -> None:
    script = """
one = ("default", "repeats", "1")
topic = "ag::default::repeats::1"
client = Client(address, one)
for number in range(3):
    client.settle(client.send(topic, b"%d" % number))
first = client.receive()
client.done(*first[:2])
seen = [client.receive()[1] for _ in range(2)]
publisher = client.publisher
client.close()

client = Client(address, one, publisher)
settled = [client.settle(client.send(topic, b"%d" % number, seq=number + 1)) for number in range(3)]
settled.append(client.settle(client.send(topic, b"new")))
again = []
for _ in range(3):
    channel, offset, _, _, payload = client.receive()
    again.append((offset, payload.decode()))
    client.done(channel, offset)
client.close()
print(json.dumps([settled, seen, again]))
"""
    settled, seen, again = converse(gateway, libraries, script)
    assert settled == [None] * 4
    assert [payload for _, payload in again] == ["1", "2", "new"]
    assert [offset for offset, _ in again][:2] == seen  # an offset names a message for good


def test_a_refused_connection_says_why(gateway: GatewayProcess, libraries: Path) -> None:
    script = """
holder = Client(address, me)
try:
    Client(address, me)
except Ended as end:
    print(json.dumps(end.args))
"""
    code, retryable, text = converse(gateway, libraries, script)
    assert (code, retryable) == (6, False)
    assert text.startswith("DuplicateIdentityError:")


def test_without_credit_nothing_is_delivered(gateway: GatewayProcess, libraries: Path) -> None:
    script = """
client = Client(address, ("default", "credit", "1"), credit=2)
numbers = [client.send("ag::default::credit::1", b"%d" % number) for number in range(5)]
client.settle(numbers[-1])
steps = []
for _ in numbers:
    channel, offset, *_ = client.receive()
    client.settle(client.send("ag::default::absent::1", b"a turn"))
    steps.append(len(client.messages) + 1)
    client.done(channel, offset)
client.close()
print(json.dumps(steps))
"""
    assert max(converse(gateway, libraries, script)) == 2
