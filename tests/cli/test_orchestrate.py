"""Test `aether orchestrate` and `aether agents`: their file, refusals and ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import urllib.request
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
import trio

from aether_trio.client import AgentClient
from tests.cli.shell import AETHER, LIMIT_S, Shell, fails, sets
from tests.cli.test_node_supervisor import wait_until
from tests.helpers.gateway import GatewayProcess, on_postgres, start_gateway

ECHO = "agents: {echo: {command: [python, echo.py], params: {voice: loud}, description: Says it again}}\n"


def written(folder: Path, text: str) -> str:
    path = folder / "agents.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_is_checked_without_a_gateway(shell: Shell, tmp_path: Path) -> None:
    out = shell.out("orchestrate", written(tmp_path, ECHO), "--check", "--gateway", "127.0.0.1:1")
    assert "echo" in out
    assert "python echo.py" in out


@pytest.mark.parametrize("command", [["orchestrate"], ["dev", "--port", "0", "--ephemeral", "--agents"]])
def test_a_mistake_in_a_file_is_said_before_anything_starts(shell: Shell, tmp_path: Path, command: list[str]) -> None:
    shell.fails(3, "No such file", *command, str(tmp_path / "none.yaml"))
    shell.fails(
        3, "agents.a: the agent has neither a command nor an image", *command, written(tmp_path, "agents: {a: {}}")
    )


@pytest.mark.parametrize("command", [["orchestrate"], ["dev", "--port", "0", "--ephemeral", "--agents"]])
def test_containers_are_refused_without_docker(gateway: GatewayProcess, tmp_path: Path, command: list[str]) -> None:
    file = written(tmp_path, "agents: {big: {image: 'example/big:1'}}")
    shell = Shell(gateway, PATH=str(tmp_path))
    shell.fails(3, "cannot start big as a container: there is no docker command on the PATH", *command, file)
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n", encoding="utf-8")
    docker.chmod(0o755)
    shell = Shell(gateway, PATH=f"{tmp_path}:/usr/bin:/bin")
    shell.fails(3, "docker cannot be used here: Cannot connect to the Docker daemon", *command, file)


def test_a_gateway_that_is_not_there(shell: Shell, tmp_path: Path) -> None:
    file = written(tmp_path, ECHO)
    shell.fails(4, "127.0.0.1:1", "orchestrate", file, "--gateway", "127.0.0.1:1", "--timeout", "0.5")


def test_it_registers_its_agents_is_seen_and_ends_when_told(shell: Shell, tmp_path: Path) -> None:
    arguments = ("orchestrate", written(tmp_path, ECHO), "--name", "mine", "--specifier", "1")
    with shell.running(*arguments) as process:
        assert "orc::mine::1 starts echo (profile process) for the gateway at" in process.line()
        found = json.loads(shell.out("agents", "orchestrators", "--json"))
        assert [(one["orchestrator_id"], one["profiles"]) for one in found] == [("orc::mine::1", ["process"])]
        assert "orc::mine::1" in shell.out("agents", "orchestrators")
        (agent,) = json.loads(shell.out("agents", "list", "--json"))
        assert agent["launch_params"] == {"voice": "loud", "profile": "process"}
        assert agent["description"] == "Says it again"
        code, _, error = process.end(signal.SIGTERM)
        assert (code, "SIGTERM: stopping the agents" in error) == (0, True), error
    assert "no orchestrator is connected" in shell.notice("agents", "orchestrators")


def test_the_file_is_read_again_when_told(shell: Shell, tmp_path: Path) -> None:
    file = written(tmp_path, ECHO)
    with shell.running("orchestrate", file) as process:
        process.line()
        for text, said in (
            ("agents: {echo: {}}", "not used, what was read before stays: "),
            ("agents: {echo: {command: python, profile: gpu}}", "the launch profiles have changed"),
            (
                "agents: {echo: {command: python}, second: {command: python}}",
                "used; it starts echo, second (profile process)",
            ),
        ):
            written(tmp_path, text)
            process.process.send_signal(signal.SIGHUP)
            assert said in process.error_line()
        assert "second" in shell.out("agents", "list")
        assert process.end(signal.SIGTERM)[0] == 0


def test_a_sighup_while_it_starts_has_the_file_read_again(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    os.mkfifo(file)
    with shell.running("orchestrate", str(file)) as process:
        with file.open("w", encoding="utf-8") as pipe:  # opens when the command reads it
            file.unlink()
            written(tmp_path, "agents: {echo: {command: python}, second: {command: python}}")
            process.process.send_signal(signal.SIGHUP)
            pipe.write(ECHO)
        assert "used; it starts echo, second (profile process)" in process.error_line()
        assert "starts echo, second" in process.line()
        assert process.end(signal.SIGTERM)[0] == 0


DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", os.getpid(), flush=True)
time.sleep(3600)
"""


def test_one_that_ignores_its_end_is_killed_by_a_second_signal(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(DEAF, encoding="utf-8")
    file = written(tmp_path, "agents: {deaf: {command: [python, deaf.py]}}")
    with shell.running("orchestrate", file, "--grace", "3600") as process:
        process.line()
        shell.out("agents", "launch", "ag::w::deaf::1")
        while "| deaf " not in (line := process.line()):
            assert line
        pid = int(line.split()[-1])
        process.process.send_signal(signal.SIGTERM)
        assert "Again to kill them" in process.error_line()
        os.kill(pid, 0)
        assert process.end(signal.SIGTERM)[0] == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_gateway_that_comes_back_with_nothing_is_told_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with start_gateway(ephemeral=True) as first:
            port = first.address.rpartition(":")[2]
            process = stack.enter_context(Shell(first).running("orchestrate", written(tmp_path, ECHO)))
            process.line()
            first.terminate()
            assert first.wait() == 0
        assert "orchestrator : the gateway is away; what runs goes on meanwhile: " in process.line()
        with start_gateway(ephemeral=True, port=int(port)) as second:
            assert process.line().endswith(" orchestrator : the gateway is back\n")
            wait_until(lambda: b"voice=loud" in Shell(second).run("agents", "list").stdout)


def test_agents_by_hand(shell: Shell) -> None:
    shell.out(
        "agents", "register", "by-hand", "--profile", "p", "--param", "a=1", "--param", "b=x=y", "--description", "d"
    )
    assert "a=1 b=x=y" in shell.out("agents", "list", "--profile", "p")
    shell.fails(2, "is not NAME=VALUE", "agents", "register", "x", "--profile", "p", "--param", "a")
    done = shell.run("agents", "launch", "ag::w::by-hand::1")
    assert (done.returncode, len(done.stdout.split())) == (0, 1)
    assert b"no connected orchestrator starts the profile p; the start waits for one" in done.stderr
    shell.out("tasks", "cancel", done.stdout.decode().strip())
    shell.out("agents", "delete", "by-hand")
    shell.fails(1, "no agent implementation 'by-hand' is registered", "agents", "delete", "by-hand")
    assert b"no agent is registered" in shell.run("agents", "list", "--profile", "p").stderr
    shell.fails(2, "cannot launch us::u::1: it is a user, not an agent", "agents", "launch", "us::u::1")
    shell.fails(1, "ERR_PERMISSION_DENIED", "agents", "list", "--as", "ag::w::a::1")


def test_a_development_gateway_brings_its_own_orchestrator(tmp_path: Path) -> None:
    file = written(tmp_path, ECHO)
    with start_gateway(ephemeral=True, extra_args=["--agents", file]) as gateway:
        shell = Shell(gateway)
        # It connects when the gateway is ready, and registers what it can start when it is
        # connected.
        wait_until(lambda: json.loads(shell.out("agents", "orchestrators", "--json")) != [])
        found = json.loads(shell.out("agents", "orchestrators", "--json"))
        assert [one["profiles"] for one in found] == [["process"]]
        wait_for_agents(shell)
        gateway.terminate()
        assert gateway.wait() == 0


AGENT = """
import os, trio
from aether_trio.client import AgentClient

async def main():
    async with AgentClient.from_environment() as agent:
        print("here is", agent.topic, flush=True)
        async for message in agent:
            await agent.reply(message, f"{message.text} {os.getpid()} {os.environ['AETHER_LAUNCH_PARAMS']}")

trio.run(main)
"""


async def conversation(address: str, words: list[str], specifier: str) -> list[tuple[int, dict[str, str]]]:
    """Send each word, kill the process that answers; give its id and parameters."""
    found: list[tuple[int, dict[str, str]]] = []
    person = AgentClient(f"aether://{address}", workspace="w", implementation="person", specifier="1")
    with trio.fail_after(2 * LIMIT_S):
        async with person:
            for word in words:
                await person.send(f"ag::w::echo::{specifier}", word)
                async for answer in person:
                    text, pid, params = answer.text.split(" ", 2)
                    if text == word:
                        break
                found.append((int(pid), json.loads(params)))
                os.kill(int(pid), signal.SIGKILL)
    return found


def wait_for_agents(shell: Shell) -> None:
    """Until those of the file are registered: only then a message starts them."""
    wait_until(lambda: b"voice=loud" in shell.run("agents", "list").stdout)


def starts(shell: Shell) -> set[str]:
    """Every start that was ever wished for."""
    found = json.loads(shell.out("tasks", "list", "--workspace", "w", "--type", "agent_startup", "--json"))
    return {one["task_id"] for one in found}


@pytest.mark.parametrize("where", ["beside", "inside", "postgres"])
def test_messages_start_processes_also_killed_ones(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "echo.py").write_text(AGENT, encoding="utf-8")
    file = written(tmp_path, ECHO)
    options = [] if where == "beside" else ["--agents", file]
    if where == "postgres":
        options += on_postgres(request.getfixturevalue("postgres_engine"))
    with start_gateway(data_dir=tmp_path / "data", extra_args=options) as gateway:
        shell = Shell(gateway, PYTHONUNBUFFERED="1")
        with shell.running("orchestrate", file) if where == "beside" else nullcontext() as beside:
            wait_for_agents(shell)
            found = trio.run(conversation, gateway.address, ["one", "two", "three"], "1")
            assert len({pid for pid, _ in found}) == 3
            assert [params for _, params in found] == [{"profile": "process", "voice": "loud"}] * 3
            task_id = shell.out("agents", "launch", "ag::w::echo::other", "--param", "voice=soft").strip()
            assert task_id
            [(_, params)] = trio.run(conversation, gateway.address, ["four"], "other")
            assert params["voice"] == "soft"
            shell.fails(1, "no agent implementation 'absent' is registered", "agents", "launch", "ag::w::absent::1")
            before = starts(shell)
            with urllib.request.urlopen(f"http://{gateway.ops_address}/metrics", timeout=LIMIT_S) as metrics:
                (woken,) = re.findall(rb"^aether_autostart_started_total (\d+)", metrics.read(), re.MULTILINE)
            # One was launched. A process that is killed before its arrival is written is started
            # again by the start that it has.
            assert 1 <= len(before - {task_id}) <= int(woken) <= len(starts(shell) - {task_id})
            if beside is not None:
                _, lines, _ = beside.end(signal.SIGTERM)
                assert any("ag::w::echo::1 | here is ag::w::echo::1" in line for line in lines)
                assert any("ag::w::echo::1 : ended by SIGKILL after" in line for line in lines)
        gateway.terminate()
        assert gateway.wait() == 0


PRINTING = """
import os, stat, sys
import trio
from aether_trio.client import AgentClient

async def main():
    async with AgentClient.from_environment() as agent:
        async for message in agent:
            while message.text == "after" and stat.S_ISFIFO(os.fstat(1).st_mode):
                await trio.sleep(0.01)
            print("has", message.text, flush=True)
            print("has", message.text, file=sys.stderr, flush=True)
            await agent.reply(message, f"{message.text} {os.getpid()} {{}}")

trio.run(main)
"""


async def ask(address: str, word: str) -> int:
    """Send a word to the agent; return the id of the process that answers it."""
    person = AgentClient(f"aether://{address}", workspace="w", implementation="person", specifier="1")
    with trio.fail_after(2 * LIMIT_S):
        async with person:
            await person.send("ag::w::echo::1", word)
            async for answer in person:
                text, pid, _ = answer.text.split(" ", 2)
                if text == word:
                    return int(pid)
    raise AssertionError


def test_an_agent_prints_and_works_on_when_its_orchestrator_was_killed(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(PRINTING, encoding="utf-8")
    file = written(tmp_path, ECHO)
    with start_gateway(data_dir=tmp_path / "data") as gateway:
        shell = Shell(gateway, PYTHONUNBUFFERED="1")
        with shell.running("orchestrate", file) as beside:
            wait_for_agents(shell)
            pid = trio.run(ask, gateway.address, "before")
            try:
                beside.end(signal.SIGKILL)
                assert trio.run(ask, gateway.address, "after") == pid
                assert trio.run(ask, gateway.address, "again") == pid
            finally:
                os.kill(pid, signal.SIGKILL)
        gateway.terminate()
        assert gateway.wait() == 0


@pytest.mark.crash
def test_a_message_on_any_node_starts_it_also_when_a_node_was_killed(tmp_path: Path) -> None:
    place = Path(tempfile.mkdtemp(prefix="aether-orchestrate-"))
    (tmp_path / "echo.py").write_text(AGENT, encoding="utf-8")
    command = (*AETHER, "dev", "--nodes", "2", "--agents", written(tmp_path, ECHO))
    try:
        with start_gateway(data_dir=place / "data", command=command, env={"TMPDIR": str(place)}) as cluster:
            wait_for_agents(Shell(cluster))
            words = []
            for number, node in enumerate(cluster.ready["nodes"]):
                words += trio.run(conversation, node["gateway"], [f"to node {number}".replace(" ", "-")], "1")
            os.kill(cluster.ready["nodes"][0]["pid"], signal.SIGKILL)
            words += trio.run(conversation, cluster.ready["nodes"][1]["gateway"], ["on"], "1")
            words += trio.run(conversation, cluster.address, ["and-on"], "1")
            assert len({pid for pid, _ in words}) == 4
            cluster.terminate()
            assert cluster.wait() == 0
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_tls_of_a_development_gateway_is_refused(tmp_path: Path) -> None:
    dev = ("dev", "--port", "0", "--ephemeral", "--agents", written(tmp_path, ECHO))
    fails(3, "run `aether orchestrate` beside `aether dev`", *dev, *sets("tls.cert=c.pem", "tls.key=k.pem"))
