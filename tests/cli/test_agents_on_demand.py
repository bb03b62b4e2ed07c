"""Agents of real orchestrators: who starts them, how they end and crash."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from aether_trio.client import AgentClient
from tests.cli.shell import AETHER, LIMIT_S, Shell, sets
from tests.cli.test_node_supervisor import wait_until
from tests.helpers.gateway import start_gateway

LONG_S = 10 * LIMIT_S
ANSWERS = """
import trio
from aether_trio.client import AgentClient

async def main():
    async with AgentClient.from_environment() as agent:
        async for message in agent:
            if message.text == "raise":
                print("\\x1b[31mabout to\\x07", flush=True)
                raise ValueError("this message is too much")
            if message.text == "leave":
                return
            await agent.reply(message, message.text)

trio.run(main)
"""


@contextmanager
def orchestrators(shell: Shell, folder: Path, *names: str) -> Iterator[None]:
    """Run an orchestrator for each agent, each with a separate folder and file.

    It ends its agents when it is ended; those of a killed one would look for the gateway forever.
    """
    running = []
    with ExitStack() as stack:
        for name in names:
            place = folder / name
            place.mkdir()
            (place / "agent.py").write_text(ANSWERS, encoding="utf-8")
            file = place / "agents.yaml"
            file.write_text(f"agents: {{{name}: {{command: [python, agent.py]}}}}\n", encoding="utf-8")
            process = stack.enter_context(shell.running("orchestrate", str(file), "--most", "100"))
            running.append(process)
            assert f"starts {name}" in process.line()
        try:
            yield
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.end()


async def answers(address: str, sent: dict[str, list[str]]) -> dict[str, set[str]]:
    """Send texts to agents; give what each has answered once all of it is there."""
    found: dict[str, set[str]] = {name: set() for name in sent}
    wanted = {name: {text for text in texts if text not in ("raise", "leave")} for name, texts in sent.items()}
    with trio.fail_after(LONG_S):
        async with AgentClient(
            f"aether://{address}", workspace="w", implementation="person", specifier=str(os.getpid())
        ) as person:
            for name, texts in sent.items():
                for text in texts:
                    await person.send(name, text)
            while found != wanted:
                message = await person.receive()
                found[message.source].add(message.text)
                message.ack()
    return found


def starts(shell: Shell) -> list[dict[str, Any]]:
    found = json.loads(
        shell.out("tasks", "list", "--workspace", "w", "--type", "agent_startup", "--json", "--limit", "500")
    )
    return [dict(one) for one in found]


def ended(shell: Shell) -> dict[str, Any] | None:
    """The only start, once it has ended."""
    (start,) = starts(shell)
    return start if start["status"] in ("completed", "failed") else None


@pytest.mark.crash
@pytest.mark.parametrize(("nodes", "agents"), [(1, 10), (3, 50)])
def test_two_folders_of_one_profile_and_many_agents_have_no_dead_letter(
    nodes: int, agents: int, tmp_path: Path
) -> None:
    """Each is a new interpreter: there are many on three nodes, where starts race."""
    command = (*AETHER, "dev", "--nodes", str(nodes)) if nodes > 1 else None
    more: dict[str, Any] = {"command": command} if command else {}
    slow = sets("tasks.start_timeout_s=0", "tasks.start_grace_s=600")
    with start_gateway(data_dir=tmp_path / "data", extra_args=slow, **more) as gateway:
        shell = Shell(gateway, PYTHONUNBUFFERED="1")
        with orchestrators(shell, tmp_path, "here", "there"):
            names = [f"ag::w::{kind}::{number}" for number in range(agents // 2) for kind in ("here", "there")]
            found = trio.run(answers, gateway.address, {name: ["hello"] for name in names})
            assert found == {name: {"hello"} for name in names}
            assert json.loads(shell.out("dlq", "list", "--workspace", "w", "--json")) == []
            assert [one["attempt"] for one in starts(shell)] == [starts(shell)[0]["attempt"]] * agents
        gateway.terminate()
        assert gateway.wait() == 0


def test_one_message_of_a_hundred_is_a_dead_letter_and_the_others_are_answered(tmp_path: Path) -> None:
    with start_gateway(data_dir=tmp_path / "data") as gateway:
        shell = Shell(gateway, PYTHONUNBUFFERED="1")
        with orchestrators(shell, tmp_path, "echo"):
            texts = [f"text {number}" for number in range(99)]
            texts.insert(40, "raise")
            trio.run(answers, gateway.address, {"ag::w::echo::1": texts})
            (letter,) = json.loads(shell.out("dlq", "list", "--workspace", "w", "--json"))
            assert letter["task_type"] == "dead_message"
            assert "ValueError: this message is too much" in letter["error"]
            task_id = letter["task_id"]
            assert shell.out("dlq", "show", task_id, "--payload") == "raise"
            shown = shell.out("dlq", "show", task_id)
            facts = {name: value for name, _, value in (line.partition("  ") for line in shown.splitlines())}
            assert facts["message topic"].strip() == "ag::w::echo::1"
            assert facts["message sequence"].strip() == "41"
            assert facts["message source"].strip().startswith("ag::w::")
            assert "message reason" not in facts, "it is the error"
            assert "queued again" in shell.out("dlq", "requeue", task_id)
            wait_until(lambda: len(json.loads(shell.out("dlq", "list", "--workspace", "w", "--json"))) == 1)
            (again,) = json.loads(shell.out("dlq", "list", "--workspace", "w", "--json"))
            assert again["task_id"] != task_id
            assert "discarded" in shell.out("dlq", "discard", again["task_id"])
            gone = json.loads(shell.out("tasks", "show", again["task_id"], "--json"))
            assert (gone["status"], gone["attempt"], gone["max_attempts"]) == ("cancelled", 3, 3)
            assert "ValueError: this message is too much" in gone["metadata"]["_reason"]
            assert json.loads(shell.out("dlq", "list", "--workspace", "w", "--json")) == []
        gateway.terminate()
        assert gateway.wait() == 0


@pytest.mark.parametrize("how", ["leave", "raise", "kill"])
def test_a_start_says_how_its_process_ended(how: str, tmp_path: Path) -> None:
    with start_gateway(data_dir=tmp_path / "data", extra_args=sets("tasks.message_crashes=1")) as gateway:
        shell = Shell(gateway, PYTHONUNBUFFERED="1")
        with orchestrators(shell, tmp_path, "echo"):
            trio.run(answers, gateway.address, {"ag::w::echo::1": ["hello"]})
            if how == "kill":
                pids = [
                    int(one.name)
                    for one in Path("/proc").iterdir()
                    if one.name.isdigit()
                    and b"AETHER_IDENTITY=ag::w::echo::1" in _environ(one)
                    and _is_of(one, tmp_path)
                ]
                os.kill(min(pids), signal.SIGKILL)
            else:
                trio.run(answers, gateway.address, {"ag::w::echo::1": [how]})
            wait_until(lambda: ended(shell) is not None)
            start = ended(shell)
            assert start is not None
            if how == "leave":
                assert (start["status"], start["error"]) == ("completed", "")
            elif how == "kill":
                assert (start["status"], start["error"].split(" after ")[0]) == (
                    "failed",
                    "its process ended by SIGKILL",
                )
            else:
                assert start["status"] == "failed"
                assert start["error"].startswith("its process ended with exit code 1 after ")
                assert "ValueError: this message is too much" in start["error"]
                assert "\\x1b[31mabout to\\x07" in start["error"] or "\x1b" not in start["error"]
        gateway.terminate()
        assert gateway.wait() == 0


def _environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def _is_of(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").resolve().is_relative_to(folder)
    except OSError:
        return False
