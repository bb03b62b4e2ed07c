"""The bench of workflows encodes the protocol's bytes, and its small runs add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aether_trio.wire.pb import aether_pb2 as pb
from bench import cli, task_wire, wire, workflow_wire


def test_what_is_laid_by_hand_is_what_protobuf_reads() -> None:
    prefix = workflow_wire.run_prefix("flow")
    asked = pb.UpstreamMessage.FromString(workflow_wire.run(prefix, b"{}", "r1")).workflow_op
    assert (asked.op, asked.id, asked.data, asked.request_id) == (100, "flow", b"{}", "r1")
    ended = pb.UpstreamMessage.FromString(workflow_wire.complete(b"t1", b'{"a":1}')).task_op
    assert (ended.op, ended.task_id, ended.request_id) == (pb.TaskOperation.COMPLETE, "t1", "t1")
    assert ended.wait_spec.input_match == {"result": '{"a":1}'}


def test_what_protobuf_writes_is_read() -> None:
    response = pb.WorkflowResponse(success=True, message="m", data=b"d" * 300, request_id="r")
    message = pb.DownstreamMessage(workflow_response=response).SerializeToString()
    assert message[0] == workflow_wire.ANSWER
    assert workflow_wire.ANSWER not in {wire.ERROR, task_wire.CREATED, task_wire.TASK_OP, task_wire.ASSIGNMENT}
    assert workflow_wire.read_answer(message) == ("r", "")
    refused = pb.DownstreamMessage(workflow_response=pb.WorkflowResponse(error="no", request_id="r"))
    assert workflow_wire.read_answer(refused.SerializeToString()) == ("r", "no")


def test_a_small_run_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    names = ["workflows-tasks-idle", "workflows-idle", "workflows-tasks-chain", "workflows-chain", "workflows-map"]
    arguments = ["--quick", "--window", "0.1", "--items", "150", "--data-root", str(tmp_path), "--transport", "framed"]
    assert cli.main([*names, *arguments, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())["scenarios"]
    results = {name.rpartition("/")[2]: result for name, result in found.items()}
    assert sorted(results) == sorted(names)
    for name, steps in (("workflows-idle", 1), ("workflows-chain", 3)):
        checks = results[name]["checks"]
        assert checks["created"] == checks["completed"] > 0
        assert (checks["assigned"], checks["refused"]) == (steps * checks["created"], 0)
    assert results["workflows-map"]["checks"] == {"items": 150, "refused": 0}
    assert all(result["goals"] for name, result in results.items() if "tasks" not in name)
    shown = capsys.readouterr().out
    for figure in ("start to first step, p50", "CPU, times workflows-tasks-chain", "map of 150 items", "lone cycle"):
        assert figure in shown


def test_events_are_matched_and_executions_woken_in_a_small_run(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    names = ["workflows-events", "workflows-events-literals", "workflows-waiting"]
    sizes = ["--quick", "--window", "0.1", "--event-rules", "120", "--waiting", "8", "--seconds", "0.1"]
    arguments = [*sizes, "--data-root", str(tmp_path), "--transport", "framed"]
    assert cli.main([*names, *arguments, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())["scenarios"]
    results = {name.rpartition("/")[2]: result for name, result in found.items()}
    assert sorted(results) == sorted(names)
    for name, rules in (("workflows-events", 1), ("workflows-events-literals", 120)):
        assert results[name]["checks"]["rules"] == rules
        assert results[name]["checks"]["events"] > 0
    woken = results["workflows-waiting"]["checks"]
    assert sorted(woken) == ["event", "hibernated", "signal", "time"]
    assert len(set(woken.values())) == 1
    figures = [goal["figure"] for goal in results["workflows-waiting"]["goals"]]
    assert "start of the gateway on 8 waiting" in figures
