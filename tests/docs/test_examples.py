"""Run the programs in docs/examples as processes that talk through one gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.gateway import GatewayProcess, start_gateway

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
LIMIT_S = 300

pytestmark = pytest.mark.snippets


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with start_gateway(ephemeral=True) as gateway:
        yield gateway


@contextmanager
def running(name: str, *arguments: str) -> Iterator[str]:
    """Start an example, and give the first line that it prints: it is connected then."""
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def ask(gateway: GatewayProcess, topic: str, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(EXAMPLES / "ask.py"), topic, text, "--address", f"aether://{gateway.address}", *more]
    return subprocess.run(script, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_the_echo_agent_answers_and_goes_on_counting_after_it_was_killed(gateway: GatewayProcess) -> None:
    address = f"aether://{gateway.address}"
    with running("echo_agent.py", address) as said:
        assert said == "ag::default::echo::1 has answered 0 messages so far"
        assert ask(gateway, "ag::default::echo::1", "hello").stdout == "1: hello\n"
        assert ask(gateway, "ag::default::echo::1", "again", "--workspace", "other").stdout == "2: again\n"
        # Answers come in the order of the questions, and the agent saves the count before it takes
        # the next question.
    with running("echo_agent.py", address) as said:
        assert said.startswith("ag::default::echo::1 has answered ")
        third = ask(gateway, "ag::default::echo::1", "third").stdout
        assert third in {"2: third\n", "3: third\n"}, "the kill may have come before the save"


def test_the_service_counts_words_and_any_instance_answers(gateway: GatewayProcess) -> None:
    address = f"aether://{gateway.address}"
    with running("words_service.py", address) as one, running("words_service.py", address, "--name", "2") as two:
        assert (one, two) == ("sv::words::1 is listening", "sv::words::2 is listening")
        for topic in ("sv::words", "sv::words", "sv::words::2"):
            answer = json.loads(ask(gateway, topic, "the cat and the dog").stdout)
            assert answer["words"] == 5
            assert answer["top"][0] == ["the", 2]


def test_the_script_says_why_there_is_no_answer(gateway: GatewayProcess) -> None:
    absent = ask(gateway, "sv::absent", "hello")
    assert (absent.returncode, absent.stdout) == (1, "")
    assert "UNAVAILABLE" in absent.stderr
    silent = ask(gateway, "ag::default::silent::1", "hello", "--timeout", "0.2")
    assert (silent.returncode, silent.stderr) == (1, "TIMEOUT: no message came within 0.2 s\n")
