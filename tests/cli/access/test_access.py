"""`aether access` beside a real `aether serve` with closed rules."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.cli.shell import Shell, aether

ANN, BOB = "ag::red::ann::1", "ag::red::bob::1"
POLICY = """version: 1
names: {cyd: 'ag::cyan::cyd::1'}
groups:
  crew: [cyd]
rules:
  - group:crew readwrite workspace:gold
tests:
  - cyd may readwrite workspace:gold
  - cyd may not manage workspace:gold
"""


def answer(shell: Shell, *arguments: str, code: int = 0) -> Any:
    done = shell.run("access", *arguments, "--json")
    assert done.returncode == code, done
    return json.loads(done.stdout)


def test_a_rule_lets_an_agent_in_and_its_end_keeps_it_out(access: Shell) -> None:
    into_blue = ("send", "ag::blue::x::1", "hello", "--as", ANN)
    access.fails(1, "PERMISSION_DENIED", *into_blue)
    denied = answer(access, "explain", ANN, "workspace:blue", "readwrite")
    assert (denied["allowed"], denied["tier"], denied["level"]) == (False, 6, "none")
    out = access.out("access", "grant", ANN, "workspace:blue", "readwrite", "--reason", "helps", "--expires", "8h")
    rule_id = out.splitlines()[1].removeprefix("rule ")
    access.out(*into_blue)
    allowed = answer(access, "explain", ANN, "workspace:blue", "20")
    assert (allowed["allowed"], allowed["tier"], allowed["rule_id"]) == (True, 1, rule_id)
    [listed] = answer(access, "list", "--principal", ANN)
    assert (listed["rule_id"], listed["reason"], listed["access_level"]) == (rule_id, "helps", "readwrite")
    granted, expires = (datetime.fromisoformat(listed[name]) for name in ("granted_at", "expires_at"))
    assert timedelta() < expires - granted <= timedelta(hours=8)
    assert "the rule is revoked" in access.out("access", "revoke", ANN, "workspace:blue")
    access.fails(1, "PERMISSION_DENIED", *into_blue)
    access.fails(1, "there is no rule", "access", "revoke", rule_id)


def test_groups_give_rights_and_who_and_explain_name_them(access: Shell) -> None:
    access.out("access", "groups", "create", "crews", "--description", "of ships")
    access.out("access", "groups", "add", "crews", BOB)
    access.out("access", "grant", "group:crews", "workspace:sea", "read", "--json")
    why = access.out("access", "explain", BOB, "workspace:sea")
    assert why.startswith(
        f"ALLOW: {BOB} may read workspace:sea\n  level read, tier 1: Explicit rule: READ (via group:crews)"
    )
    assert "group:crews read workspace:sea" in " ".join(why.split())
    assert "decides" in why
    holders = {one["principal"]: one["level"] for one in answer(access, "who", "workspace:sea")}
    assert holders[BOB] == holders["group:crews"] == "read"
    assert holders["user:admin"] == "superadmin"
    assert holders["_own_workspace"] == "readwrite"
    assert BOB not in {one["principal"] for one in answer(access, "who", "workspace:sea", "manage")}
    assert [one["id"] for one in answer(access, "groups", "members", "crews")] == [BOB]
    assert "crews" in {one["name"] for one in answer(access, "groups", "list")}
    assert "administrators" in {one["name"] for one in answer(access, "roles", "list")}
    access.out("access", "groups", "remove", "crews", BOB)
    assert answer(access, "lint", code=1)[0]["code"] == "empty_group"
    access.out("access", "groups", "delete", "crews")
    assert answer(access, "lint") == []
    assert answer(access, "list", "--resource", "workspace:sea") == []


def test_a_lock_keeps_out_what_it_matches(access: Shell) -> None:
    access.out("send", BOB, "hello", "--as", "ag::red::locked::1")
    out = access.out("access", "lock", "ag::red::locked::*", "--expires", "2h", "--reason", "drill")
    lock_id = out.splitlines()[1].removeprefix("lock ")
    [lock] = answer(access, "locks")
    assert (lock["lock_id"], lock["pattern"], lock["reason"]) == (lock_id, "ag::red::locked::*", "drill")
    access.fails(5, "drill", "send", BOB, "hello", "--as", "ag::red::locked::1")
    assert answer(access, "explain", "ag::red::locked::1", "workspace:red")["locked_by"] == "ag::red::locked::*"
    assert "the lock is ended" in access.out("access", "unlock", "ag::red::locked::*")
    access.out("send", BOB, "hello", "--as", "ag::red::locked::1")
    access.fails(1, "there is no lock", "access", "unlock", lock_id)
    access.fails(1, "would lock you out", "access", "lock", "user:*")


def test_fallbacks_are_shown_and_set(access: Shell) -> None:
    assert access.out("access", "fallback", "get", "service_topic") == "none\n"
    access.out("access", "fallback", "set", "service_topic", "read")
    assert {"category": "service_topic", "level": "read"} in answer(access, "fallback", "list")
    access.out("access", "fallback", "set", "service_topic", "none")
    access.fails(1, "no category", "access", "fallback", "set", "agents", "read")
    access.fails(2, "did you mean agent_workspace?", "access", "fallback", "get", "agent_workspac")


def test_a_policy_is_rehearsed_applied_and_exported(access: Shell, policy: Path) -> None:
    policy.write_text(POLICY)
    access.fails(1, "PERMISSION_DENIED", "send", "ag::gold::x::1", "hello", "--as", "ag::cyan::cyd::1")
    replayed = answer(access, "replay", str(policy), "--since", "1d", "--allow-denials")
    assert {"principal": "ag::cyan::cyd::1", "resource": "workspace:gold", "allowed": True}.items() <= next(
        one for one in replayed["changes"] if one["resource"] == "workspace:gold"
    ).items()
    planned = answer(access, "apply", str(policy), "--dry-run")
    assert (planned["added"], planned["applied"]) == (3, False)
    assert access.out("access", "apply", str(policy)).endswith("applied: 3 added, 0 changed, 0 removed\n")
    access.out("send", "ag::gold::x::1", "hello", "--as", "ag::cyan::cyd::1")
    assert access.out("access", "apply", str(policy)) == "0 to add, 0 to change, 0 to remove\n"
    exported = policy.with_name("exported.yaml")
    exported.write_text(access.out("access", "export"))
    assert access.out("access", "apply", str(exported), "--prune") == "0 to add, 0 to change, 0 to remove\n"
    policy.write_text(POLICY.replace("group:crew readwrite", "group:crew none").split("tests:")[0])
    access.fails(1, "", "access", "replay", str(policy))
    access.out("access", "replay", str(policy), "--allow-denials")
    policy.write_text(POLICY.replace("may not manage", "may manage"))
    access.fails(1, "1 of 2 tests fail; nothing was changed", "access", "apply", str(policy))
    assert access.out("access", "paths", "--live", "ag::cyan::cyd::1").endswith("has no way to admin on admin/acl\n")
    access.fails(1, "", "access", "paths", "--live", "group:crew", "--to", "workspace:gold", "--level", "read")


def test_who_is_no_administrator_changes_nothing(access: Shell) -> None:
    for arguments in (("list",), ("grant", ANN, "workspace:x", "read"), ("lock", BOB), ("groups", "list"), ("lint",)):
        access.fails(1, "PERMISSION_DENIED", "access", *arguments, "--as", ANN)
    access.fails(
        1, "cannot give more than you have", "access", "grant", ANN, "workspace:x", "superadmin", "--as", "orc::o::1"
    )


# -- without a gateway -----------------------------------------------------------------------------


def test_a_file_is_tested_without_a_gateway(policy: Path) -> None:
    policy.write_text(POLICY)
    done = aether("access", "test", str(policy))
    assert done.returncode == 0, done
    assert (
        f"ok     {policy}:8: cyd may readwrite workspace:gold\n       rule line-6: group:crew readwrite" in done.stdout
    )
    policy.write_text(POLICY.replace("may not", "may"))
    done = aether("access", "test", str(policy), "--json")
    assert done.returncode == 1
    assert [one["passed"] for one in json.loads(done.stdout)] == [True, False]
    policy.write_text(POLICY.replace("group:crew readwrite", "group:crew readwrit").replace("names:", "nams:"))
    done = aether("access", "test", str(policy))
    assert done.returncode == 3
    assert f"{policy}:2: unknown key 'nams' of the policy; did you mean names?" in done.stderr
    assert f"{policy}:6: unknown access level 'readwrit'; did you mean readwrite?" in done.stderr
    policy.write_text("version: 1\nrules: [")
    assert aether("access", "test", str(policy)).returncode == 3
    assert aether("access", "test", str(policy) + "x").returncode == 3
    policy.write_text(POLICY)
    done = aether("access", "paths", str(policy), "--from", "user:eve")
    assert (done.returncode, done.stdout) == (0, "user:eve has no way to admin on admin/acl\n")


def test_bad_arguments_are_refused_with_the_nearest_name() -> None:
    for arguments, text in (
        (("grant", ANN, "workspace:x", "redwrite"), "did you mean readwrite?"),
        (("grant", "agg::x", "workspace:x", "read"), "did you mean ag?"),
        (("grant", ANN, "x", "read"), "'x' is no resource"),
        (("grant", ANN, "workspace:x", "read", "--expires", "soon"), "'soon' is no time"),
        (("lock", "ag::x", "--expires", "2x"), "or a duration (30m, 8h, 7d)"),
        (("revoke", "a", "b", "c"), "Give the id of a rule"),
        (("who", "workspace:*"), "is a pattern"),
        (("paths",), "Give FILE and --from"),
        (("list", "--data-dir", "x"), "--data-dir is for --offline"),
    ):
        done = aether("access", *arguments)
        assert done.returncode == 2, done
        assert text in " ".join(done.stderr.split()), done
    done = aether("access", "test", "none.yaml")
    assert (done.returncode, done.stderr) == (3, "Error: cannot read none.yaml: No such file or directory\n")


def test_the_data_of_a_stopped_gateway_are_changed(tmp_path: Path, policy: Path) -> None:
    here = ("--offline", "--data-dir", str(tmp_path / "data"))
    done = aether("access", "list", *here)
    assert done.returncode == 3
    assert "there is no gateway's data" in done.stderr
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tasks.db").touch()
    done = aether("access", "grant", "user:eve", "admin/acl", "superadmin", *here)
    assert done.returncode == 0, done
    done = aether("access", "lock", "orc::*", *here)
    assert done.returncode == 0, done
    policy.write_text(POLICY)
    done = aether("access", "apply", str(policy), *here)
    assert "applied: 3 added" in done.stdout, done
    rows = json.loads(aether("access", "list", "--json", *here).stdout)
    assert {(one["principal_id"], one["granted_by"].rpartition("::")[0]) for one in rows} == {
        ("eve", "orc::offline"),
        ("crew", "orc::offline"),
    }
    done = aether("access", "revoke", "user:eve", "admin/acl", *here)
    assert done.returncode == 0, done
