"""Test that a thing has one name and unit on the command line and in the client."""

from __future__ import annotations

import inspect
import json
from datetime import datetime
from typing import Any

import click
import pytest

from aether_trio.cli.kv import SCOPES
from aether_trio.client.operations import NAMESPACES, Scope
from aether_trio.client.options import ClientOptions
from tests.cli.shell import Shell, leaves
from tests.cli.test_exits import command_of

UNITS = ("_ms", "_seconds", "_sec", "_millis", "_minutes")
WIRE = {"timeout_ms"}
"""Fields of the wire that the client's values of waits have as they are."""


def test_seconds_are_s_in_the_client() -> None:
    names = {
        f"{namespace}.{method}.{name}"
        for namespace, kind in NAMESPACES.items()
        for method, found in inspect.getmembers(kind, inspect.isfunction)
        for name in inspect.signature(found).parameters
    } | set(ClientOptions.__annotations__)
    wrong = {one for one in names if one.endswith(UNITS) and one.rpartition(".")[2] not in WIRE}
    assert wrong == set()
    assert {one for one in names if one.endswith(("_timeout", "_interval"))} == set()


def test_the_scopes_of_keys_are_those_of_the_client() -> None:
    assert set(SCOPES.values()) == set(Scope) - {Scope.UNSPECIFIED}
    assert all(name == scope.name.lower().replace("_", "-") for name, scope in SCOPES.items())


@pytest.mark.parametrize("command", sorted(leaves()))
def test_an_option_in_seconds_says_so(command: str) -> None:
    for one in command_of(command).params:
        if isinstance(one, click.Option) and (one.name or "").endswith("_s"):
            assert one.metavar == "SECONDS", one.opts
        if isinstance(one, click.Option):
            assert not any(name.lstrip("-").replace("-", "_").endswith(UNITS) for name in one.opts), one.opts


def test_json_has_the_names_of_the_client_and_times_by_iso_8601(shell: Shell) -> None:
    shell.out("workspaces", "create", "lab", "--metadata", "a=b")
    shell.out("access", "groups", "create", "crew")
    shell.out("access", "lock", "ag::nowhere::*", "--expires", "1h")
    shell.out("tokens", "create", "ci", "--principal-type", "agent", "--json")
    shell.out("agents", "register", "echo", "--profile", "process")

    def read(*arguments: str) -> Any:
        return json.loads(shell.out(*arguments, "--json"))

    lists = {name: read(*name.split()) for name in (
        "workspaces list", "sessions", "access list", "access locks", "access groups list", "tokens list", "agents list",
    )}  # fmt: skip
    for name, rows in lists.items():
        for row in rows:
            for key, value in row.items():
                if key.endswith("_at"):
                    assert value is None or datetime.fromisoformat(value).tzinfo is not None, (name, key, value)
    assert {"workspace_id", "display_name", "created_at"} <= set(lists["workspaces list"][0])
    assert {"implementation", "orchestrator_profile", "registered_at"} <= set(lists["agents list"][0])
    [rule] = [one for one in lists["access list"] if one["access_level"]][:1]
    assert {"rule_id", "principal_type", "granted_at"} <= set(rule)
