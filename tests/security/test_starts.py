"""A start brings parameters only; its orchestrator chooses the program."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from aether_trio.client.operations.agents import Registration
from aether_trio.client.operations.records import read
from aether_trio.client.operations.task_values import Assignment
from aether_trio.gateway import Gateway
from aether_trio.orchestrator import AgentSpec, AgentSupervisor, GatewayAddresses
from aether_trio.orchestrator.agents_file import parse_agents
from aether_trio.orchestrator.launch_plan import AgentStart, LaunchPlan, plan_launch
from tests.orchestrator.starts import Notes, assignment, python
from tests.security.tenants import SCHEMES, agent_of, open_tenants, orchestrator_of

SECRETS = {
    "AETHER_API_KEY": "aek_operator",
    "AETHER_STORAGE__DATABASE": "postgresql://operator:secret@db/aether",
    "AETHER_OPS__TAIL_TOKEN": "tail-secret",
    "PGPASSWORD": "pg-secret",
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
}
INTRUDER = {
    "env.PYTHONWARNINGS": "always:0:antigravity.x",
    "env.BROWSER": "touch /tmp/intruder %s",
    "env.LD_PRELOAD": "/tmp/intruder.so",
    "env.MOOD": "bad",
    "PYTHONSTARTUP": "/tmp/intruder.py",
    "profile": "docker",
    "auth_token": "made up",
}
SHOW = "import json, os, time; print(json.dumps(dict(os.environ)), flush=True); time.sleep(600)"


@asynccontextmanager
async def operator(gateway: Gateway, *specs: AgentSpec) -> AsyncIterator[Notes]:
    """An orchestrator with real processes."""
    notes = Notes()
    around = GatewayAddresses(gateway.address, f"aether://{gateway.address}")
    made = AgentSupervisor({one.implementation: one for one in specs}, around, notes)
    async with orchestrator_of(gateway, *made.profiles) as client, trio.open_nursery() as nursery:
        await made.register(client)
        nursery.start_soon(made.run, client)
        yield notes
        nursery.cancel_scope.cancel()


async def shown(notes: Notes) -> dict[str, str]:
    """The environment that the first agent has printed."""
    while not notes.lines:
        await trio.sleep(0.01)
    found: dict[str, str] = json.loads(notes.lines[0][1])
    return found


def assert_the_operators(found: dict[str, str]) -> None:
    """No variable of the intruder is in this environment."""
    assert (found["MOOD"], found["AETHER_PROFILE"]) == ("good", "process")
    assert not found.keys() & {"PYTHONWARNINGS", "BROWSER", "LD_PRELOAD", "PYTHONSTARTUP"}


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_who_creates_a_task_sets_no_variable_of_the_agent(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    spec = python(SHOW, environment={"MOOD": "good"}, params={"voice": "low"})
    async with (
        open_tenants() as gateway,
        operator(gateway, spec) as notes,
        agent_of(gateway, "red", "creator", scheme=scheme) as creator,
    ):
        await creator.tasks.create("t", target="ag::red::echo::1", launch_param_overrides={**INTRUDER, "voice": "loud"})
        found = await shown(notes)
    assert_the_operators(found)
    assert "voice" not in found
    told = json.loads(found["AETHER_LAUNCH_PARAMS"])
    assert told["voice"] == "loud"
    assert told["profile"] == "process"
    assert "auth_token" not in told
    assert found["AETHER_AUTH_TOKEN"].startswith("att_")
    assert [one for value in found.values() for one in SECRETS.values() if one in value] == []


@pytest.mark.parametrize("manner", ["registration", "launch"])
async def test_who_registers_or_launches_an_agent_sets_no_variable_of_it(manner: str) -> None:
    async with (
        open_tenants() as gateway,
        operator(gateway, python(SHOW, environment={"MOOD": "good"})) as notes,
        orchestrator_of(gateway, "other", specifier="2") as other,
    ):
        stored = {**INTRUDER, "profile": "process"} if manner == "registration" else {"profile": "process"}
        await other.registry.register(Registration(implementation="echo", launch_params=stored))
        overrides = INTRUDER if manner == "launch" else {}
        await other.registry.launch("echo", "1", workspace="red", param_overrides=overrides)
        found = await shown(notes)
    assert_the_operators(found)
    assert json.loads(found["AETHER_LAUNCH_PARAMS"])["env.MOOD"] == "bad"


CONTAINER = "agents: {big: {image: 'example/big:1', environment: {MOOD: good}, inherit: [MODEL_KEY]}}"


def launch(spec: AgentSpec, params: dict[str, str]) -> LaunchPlan:
    start = AgentStart.of(read(Assignment, assignment(spec.implementation, params=params)))
    return plan_launch(spec, start, GatewayAddresses("gw:1", "aether://gw:1"))


@pytest.mark.parametrize("spec", [python(SHOW), *parse_agents(CONTAINER, "agents.yaml", Path("/")).values()])
def test_an_agent_inherits_what_is_listed(spec: AgentSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    environment = launch(spec, INTRUDER).environment
    assert environment["LC_ALL"] == "C.UTF-8"
    assert environment["HOME"] == os.environ["HOME"]
    assert not environment.keys() & SECRETS.keys()
    assert not environment.keys() & {"BROWSER", "LD_PRELOAD"}


def test_a_file_names_what_else_an_agent_inherits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_KEY", "of the model")
    monkeypatch.setenv("DOCKER_HOST", "ssh://far")
    (spec,) = parse_agents(CONTAINER, "agents.yaml", Path("/")).values()
    made = launch(spec, {})
    passed = {made.command[at + 1] for at, part in enumerate(made.command) if part == "--env"}
    assert {"MODEL_KEY", "MOOD"} <= passed
    assert "DOCKER_HOST" not in passed
    assert (made.environment["MODEL_KEY"], made.environment["DOCKER_HOST"]) == ("of the model", "ssh://far")
    assert "MODEL_KEY" not in launch(python(SHOW), {}).environment
