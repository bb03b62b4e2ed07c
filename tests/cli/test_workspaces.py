"""`aether workspaces` and `aether quotas` against a real gateway."""

from __future__ import annotations

import json
from typing import Any

from tests.cli.shell import Shell


def read(shell: Shell, *arguments: str) -> Any:
    return json.loads(shell.out(*arguments, "--json"))


def test_the_life_of_a_workspace(shell: Shell) -> None:
    made = ("--display-name", "The lab", "--description", "tries things", "--tenant", "t1", "--metadata", "a=b=c")
    assert shell.out("workspaces", "create", "lab-1", *made) == "workspace lab-1 is created\n"
    shell.fails(1, "lab-1 exists already", "workspaces", "create", "lab-1")
    found = read(shell, "workspaces", "show", "lab-1")
    assert (found["display_name"], found["description"], found["tenant_id"]) == ("The lab", "tries things", "t1")
    assert found["metadata"] == {"a": "b=c"}
    shown = shell.out("workspaces", "show", "lab-1")
    assert all(text in shown for text in ("The lab", "tries things", "b=c", "0 agents, 0 tasks, 0 users"))
    assert "updated" in shell.out("workspaces", "update", "lab-1", "--description", "moved")
    found = read(shell, "workspaces", "show", "lab-1")
    assert (found["display_name"], found["description"], found["metadata"]) == ("The lab", "moved", {"a": "b=c"})
    assert "lab-1" in shell.out("workspaces", "list")
    assert [one["workspace_id"] for one in read(shell, "workspaces", "list", "--tenant", "t1")] == ["lab-1"]
    assert "there are no workspaces" in shell.notice("workspaces", "list", "--tenant", "none")
    assert "with 0 rules" in shell.out("workspaces", "delete", "lab-1")
    for command in (("show",), ("delete",), ("flow",), ("update", "--tenant", "x")):
        shell.fails(1, "no workspace 'lab-1'", "workspaces", command[0], "lab-1", *command[1:])
    shell.fails(1, "ERR_INVALID_IDENTIFIER", "workspaces", "create", "a b")
    shell.fails(1, "ERR_PERMISSION_DENIED", "workspaces", "list", "--as", "ag::default::me::1")


def test_who_sends_to_which(shell: Shell) -> None:
    shell.out("workspaces", "create", "lab-2")
    assert "no message has been sent" in shell.notice("workspaces", "flow", "lab-2")
    for _ in range(2):
        shell.out("send", "ag::lab-2::b::1", "hello", "--as", "ag::lab-2::a::1")
    assert "ag::lab-2::a::1" in shell.out("workspaces", "flow", "lab-2")
    (edge,) = read(shell, "workspaces", "flow", "lab-2")["edges"]
    assert (edge["source"], edge["target"], edge["count"]) == ("ag::lab-2::a::1", "ag::lab-2::b::1", 2)


def test_quotas(shell: Shell) -> None:
    shell.fails(1, "no workspace 'lab-3'", "quotas", "set", "lab-3", "kv_value_bytes=5")
    shell.out("workspaces", "create", "lab-3")
    set_two = ("quotas", "set", "lab-3", "kv_value_bytes=5", "identity_rate_per_s=0.5")
    assert shell.out(*set_two) == "lab-3: kv_value_bytes is 5\nlab-3: identity_rate_per_s is 0.5\n"
    found = read(shell, "quotas", "list")
    assert found["lab-3"] == {"kv_value_bytes": 5, "identity_rate_per_s": 0.5}
    assert found["*"]["kv_value_bytes"] == 2**20
    listed = shell.out("quotas", "list", "lab-3")
    assert "by the settings" in listed
    assert listed.count("\n") == 1 + len(found["*"])
    shell.fails(1, "ERR_QUOTA_001", "kv", "put", "k", "123456", "--workspace", "lab-3")
    shell.out("kv", "put", "k", "12345", "--workspace", "lab-3")
    assert "kv_value_bytes cleared" in shell.out("quotas", "clear", "lab-3", "kv_value_bytes")
    shell.out("kv", "put", "k", "123456", "--workspace", "lab-3")
    assert "all quotas cleared" in shell.out("quotas", "clear", "lab-3", "--all")
    assert "lab-3" not in read(shell, "quotas", "list")
    shell.fails(2, "it is at least 1", "quotas", "set", "lab-3", "task_payload_bytes=0")
