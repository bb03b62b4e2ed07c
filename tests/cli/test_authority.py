"""`aether grants` and `aether requests` against a real gateway."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from aether_trio.client import connect_sync
from aether_trio.client.operations import AccessLevel, Principal, ResourceScope
from aether_trio.client.operations.requests import AuthorityRoute, AuthorityWish
from tests.cli.shell import Shell
from tests.helpers.gateway import GatewayProcess

ANN = ("--as", "us::ann::terminal")
WISH = AuthorityWish(
    target_subject=Principal.user("ann"),
    requested_access_level=AccessLevel.MANAGE,
    requested_duration_s=600,
    route=AuthorityRoute(principal=Principal.user("ann")),
    workspace_scope=("prod", "test"),
    operation_scope=("kv_*",),
    resource_scope=(ResourceScope(resource_type="kv_key", patterns=("app*",)),),
    reason="to deploy \x1b[31mnow".replace("\x1b", "\u202e"),
)


@pytest.fixture
def agent(gateway: GatewayProcess) -> Iterator[Any]:
    address = f"aether://{gateway.address}"
    with connect_sync(address, workspace="prod", implementation="planner", specifier="1") as client:
        yield client


def asked(agent: Any) -> str:
    return str(agent.authority_requests.create(WISH).request_id)


def pending(shell: Shell) -> list[str]:
    return [one["request_id"] for one in json.loads(shell.out("requests", "list", "--json", *ANN))]


def test_a_person_approves_less_and_revokes_it(shell: Shell, agent: Any) -> None:
    request_id = asked(agent)
    table = shell.out("requests", "list", *ANN)
    assert "agent ag::prod::planner::1" in table
    assert "in prod test, on kv_key:app*, to kv_*" in table
    # What turns the letters around is shown as an escape.
    assert r"to deploy \u202e[31mnow" in table
    assert request_id in pending(shell)
    narrow = ("--workspace", "prod", "--operation", "kv_get", "--resource", "kv_key=app1", "--level", "read")
    out = shell.out("requests", "approve", request_id, *narrow, "--for", "5m", *ANN)
    grant_id = out.split()[-1]
    assert out == f"{request_id}  approved, grant {grant_id}\n"
    grant = json.loads(shell.out("grants", "show", grant_id, "--json", *ANN))
    assert (grant["workspace_scope"], grant["operation_scope"]) == (["prod"], ["kv_get"])
    assert grant["resource_scope"] == [{"resource_type": "kv_key", "patterns": ["app1"]}]
    assert (grant["max_access_level"], grant["delegate"]["id"]) == ("read", "ag::prod::planner::1")
    shown = [line.split(maxsplit=1) for line in shell.out("grants", "show", grant_id, *ANN).splitlines()]
    assert ["delegate", "agent ag::prod::planner::1"] in shown
    line = next(one for one in shell.out("grants", "list", *ANN).splitlines() if grant_id in one)
    assert "valid" in line
    assert shell.out("grants", "revoke", grant_id, *ANN) == f"{grant_id}  revoked\n"
    assert grant_id.encode() not in shell.run("grants", "list", *ANN).stdout
    listed = json.loads(shell.out("grants", "list", "--all", "--json", *ANN))
    assert next(one for one in listed if one["grant_id"] == grant_id)["revoked"] is True


def test_a_delegate_lists_what_it_has(shell: Shell, gateway: GatewayProcess) -> None:
    address = f"aether://{gateway.address}"
    with connect_sync(address, workspace="prod", implementation="planner", specifier="1") as client:
        request_id = asked(client)
    grant_id = shell.out("requests", "approve", request_id, *ANN).split()[-1]
    mine = shell.out("grants", "list", "--mine", "--as", "ag::prod::planner::1")
    assert grant_id in mine
    assert "no one acts for us::bob::1" in shell.notice("grants", "list", "--as", "us::bob::1")


def test_a_denial_has_a_reason(shell: Shell, agent: Any) -> None:
    request_id = asked(agent)
    assert shell.out("requests", "deny", request_id, "--reason", "not today", *ANN) == f"{request_id}  denied\n"
    found = agent.authority_requests.get(request_id)
    assert (found.status.name, found.resolution_reason) == ("DENIED", "not today")
    denied = json.loads(shell.out("requests", "list", "--status", "denied", "--json", *ANN))
    assert request_id in [one["request_id"] for one in denied]
    assert request_id not in pending(shell)


def test_refusals_are_shown(shell: Shell, agent: Any) -> None:
    request_id = asked(agent)
    shell.fails(1, "authority request not found", "requests", "approve", request_id, "--as", "us::bob::1")
    shell.fails(
        1, "nothing of the requested workspace_scope", "requests", "approve", request_id, "--workspace", "x", *ANN
    )
    shell.fails(1, "bad pattern", "requests", "approve", request_id, "--workspace", "[", *ANN)
    shell.fails(1, "authority grant not found", "grants", "show", "made-up", *ANN)
    shell.fails(1, "authority grant not found", "grants", "revoke", "made-up", *ANN)
    shell.fails(2, "is not a time such as 90s", "requests", "approve", request_id, "--for", "soon", *ANN)
    shell.fails(2, "is not NAME=VALUE", "requests", "approve", request_id, "--resource", "x", *ANN)
    shell.out("requests", "deny", request_id, *ANN)
    shell.fails(1, "already resolved", "requests", "deny", request_id, *ANN)


def test_a_watcher_sees_requests_and_decisions(shell: Shell, agent: Any) -> None:
    with shell.running("requests", "watch", "--as", "us::ann::watch") as watch:
        assert watch.error_line() == "watching as us::ann::watch\n"
        request_id = asked(agent)
        line = watch.line()
        assert line.startswith(
            f"{request_id}  created  agent ag::prod::planner::1 asks to act for user ann: manage, in"
        )
        assert 'it says "to deploy' in line
        shell.out("requests", "deny", request_id, "--reason", "no", *ANN)
        assert watch.line() == f"{request_id}  denied by user ann: no\n"
        assert watch.end(signal.SIGINT)[0] == 130


def test_a_watcher_for_programs_prints_json(shell: Shell, agent: Any) -> None:
    with shell.running("requests", "watch", "--json", "--as", "us::ann::watch2") as watch:
        watch.error_line()
        request_id = asked(agent)
        event = json.loads(watch.line())
        assert (event["event_type"], event["request"]["request_id"]) == ("created", request_id)
        shell.out("requests", "approve", request_id, "--json", *ANN)
        assert json.loads(watch.line())["request"]["status"] == "approved"
