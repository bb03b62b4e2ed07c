"""The bench of tasks encodes the protocol's bytes, and its small runs add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aether_trio.wire.pb import aether_pb2 as pb
from bench import cli, task_wire, wire
from bench.scenarios import FAMILIES
from bench.scenarios.tasks import worker_init


def test_what_is_laid_by_hand_is_what_protobuf_reads() -> None:
    prefix = task_wire.create_prefix("bench", "pool")
    made = pb.UpstreamMessage.FromString(task_wire.create(prefix, b"\x00payload", "r1")).create_task
    assert made == pb.CreateTaskRequest(
        task_type="bench",
        assignment_mode=pb.POOL,
        target_implementation="pool",
        payload=b"\x00payload",
        request_id="r1",
    )
    prefix = task_wire.create_targeted_prefix("bench", "ag::w::i::1") + task_wire.parent_field(b"p1")
    made = pb.UpstreamMessage.FromString(task_wire.create(prefix, b"x", "r2")).create_task
    assert made == pb.CreateTaskRequest(
        task_type="bench",
        assignment_mode=pb.TARGETED,
        target_agent_id="ag::w::i::1",
        parent_task_id="p1",
        payload=b"x",
        request_id="r2",
    )
    for kind, op in ((task_wire.CLAIM, pb.TaskOperation.CLAIM), (task_wire.COMPLETE, pb.TaskOperation.COMPLETE)):
        moved = pb.UpstreamMessage.FromString(task_wire.move(kind, b"t1")).task_op
        assert moved == pb.TaskOperation(op=op, task_id="t1", request_id="t1")
    init = pb.UpstreamMessage.FromString(worker_init("w", 7, 4, {"api_key": "k"})).init
    assert (init.agent.workspace, init.agent.specifier, init.credentials["api_key"]) == ("w", "7", "k")
    assert [(one.uri, one.version) for one in init.extensions] == [("urn:aether-trio:worker-tasks", "4")]


def test_what_protobuf_writes_is_read() -> None:
    assignment = pb.TaskAssignment(task_id="t1", task_type="x", payload=b"p" * 300, metadata={"a": "b"}, assigned_at=5)
    message = pb.DownstreamMessage(task_assignment=assignment).SerializeToString()
    assert message[0] == task_wire.ASSIGNMENT
    assert task_wire.read_assignment(message) == (b"t1", b"p" * 300)

    response = pb.TaskOperationResponse(success=True, message="m", task=pb.TaskInfo(task_id="t1"), request_id="t1")
    message = pb.DownstreamMessage(task_op=response).SerializeToString()
    assert message[0] == task_wire.TASK_OP
    assert task_wire.read_moved(message) == (b"t1", "")
    refused = pb.DownstreamMessage(task_op=pb.TaskOperationResponse(error="no", request_id="t1"))
    assert task_wire.read_moved(refused.SerializeToString()) == (b"t1", "no")

    created = pb.CreateTaskResponse(success=True, task_id="t1", status="pending_pool", request_id="r")
    message = pb.DownstreamMessage(create_task=created).SerializeToString()
    assert message[0] == task_wire.CREATED != wire.ERROR
    assert task_wire.read_created(message) == ("r", b"t1", "")
    failed = pb.DownstreamMessage(create_task=pb.CreateTaskResponse(error_code="E", error_message="no", request_id="r"))
    assert task_wire.read_created(failed.SerializeToString()) == ("r", b"", "no")


@pytest.mark.parametrize("transport", ["grpc", "framed"])
def test_a_small_run_adds_up(transport: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    names = ["tasks-idle", "tasks-cycle", "tasks-queued-1k"]
    sizes = ["--quick", "--window", "0.1", "--queued", "30,300"]
    arguments = [*sizes, "--data-root", str(tmp_path), "--transport", transport]
    assert cli.main([*names, *arguments, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())["scenarios"]
    results = {name.rpartition("/")[2]: result for name, result in found.items()}
    assert sorted(results) == sorted(names)
    for name, result in results.items():
        checks = result["checks"]
        assert checks["refused"] == 0
        held = checks["assigned"] - checks["completed"]
        assert checks["completed"] > 0
        # What the workers hold when it ends: as much as they take, if the queue has not run dry.
        assert 0 < held <= 80 if name == "tasks-queued-1k" else held == 0
        assert result["latency_us"]["all"]["p50"] > 0
        assert result["echoes"]["best"] > 0
    assert results["tasks-queued-1k"]["parameters"]["queued"] == 30


def test_a_small_run_makes_as_many_children_as_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    arguments = ["--quick", "--window", "0.1", "--data-root", str(tmp_path), "--transport", "framed"]
    assert cli.main(["tasks-children", *arguments, "--json", str(out)]) == 0
    (result,) = json.loads(out.read_text())["scenarios"].values()
    checks = result["checks"]
    assert checks["children"] > 0
    assert (checks["created"], checks["refused"]) == (2 * checks["children"] + 1, 0)
    assert result["children_cost"]["time"] > 0
    assert "children take" in capsys.readouterr().out


def test_the_family_is_all_of_them_and_runs_on_one_transport() -> None:
    chosen = cli.choose(["tasks"])
    assert [one.name for one in chosen] == list(FAMILIES["tasks"])
    assert all(one.one_transport for one in chosen)


def test_a_queue_needs_a_gateway_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["tasks-queued-1k", "--queued", "5"])
    assert "--queued takes two numbers" in capsys.readouterr().err
