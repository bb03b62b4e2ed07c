"""Shares of a server's parts: the map of files, the sampler, and a real run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aether_trio import __file__ as package
from bench import cli, explain, table
from bench.explain import Unexplained, calls_of, shares
from bench.parts import OTHER, PARTS, part_of, thread_of
from bench.servers import ServerOptions, command


@pytest.mark.parametrize(
    ("innermost", "part"),
    [
        ("EpollIOManager.get_events (trio/_core/_io_epoll.py:243)", "epoll and waking up"),
        ("unrolled_run (trio/_core/_run.py:2866)", "trio: run loop, tasks, locks"),
        ("SocketWriter._send (aether_trio/transport/socket/writer.py:174)", "socket writes"),
        ("SocketStream.send_all (trio/_highlevel_socket.py:117)", "socket writes"),
        ("SocketReader.read (aether_trio/concurrency/readiness.py:58)", "socket reads"),
        ("run_statement (aether_trio/storage/sqlite/statements.py:61)", "database and its commits"),
        ("decode_upstream (aether_trio/wire/upstream.py:34)", "protobuf, frames and encodings"),
        ("H2Connection.receive_data (h2/connection.py:1)", "transport: HTTP/2 and gRPC"),
        ("FramedOutput.add (aether_trio/transport/framed/output.py:180)", "transport"),
        ("KvService.put (aether_trio/services/kv/service.py:1)", "handlers: KV"),
        ("ReadLoop._handle (aether_trio/session/read_loop.py:89)", "session"),
        ("main (elsewhere.py:3)", OTHER),
    ],
)
def test_the_innermost_frame_that_is_known_names_the_part(innermost: str, part: str) -> None:
    caller = "command (elsewhere/dev.py:58)"
    assert part_of([caller, innermost]) == part
    assert part_of([caller, innermost, "loads (json/__init__.py:299)", "<lambda> (<string>:1)"]) == part


def test_every_package_has_a_part() -> None:
    # cli starts a gateway, and the others do not run in one.
    elsewhere = {"cli", "client", "demo", "devtools", "orchestrator", "testing", "web"}
    packages = {path.parent.name for path in Path(package).parent.glob("*/__init__.py")} - elsewhere
    assert [name for name in sorted(packages) if part_of([f"run (aether_trio/{name}/one.py:1)"]) == OTHER] == []
    assert len({part for _, part in PARTS}) > 10


def test_threads_are_named_without_numbers() -> None:
    assert [thread_of(name) for name in ("log-writer", "worker-12", "Trio thread 3")] == [
        "log-writer",
        "worker",
        "Trio thread",
    ]


RUN = "main (x.py:1);run (trio/_core/_run.py:1)"
PUT = f"{RUN};put (aether_trio/storage/base.py:7)"


def report(main_ns: int) -> dict[str, Any]:
    threads = {"Main": main_ns, "log-writer": 100, "tasks-writer-1": 60, "tasks-writer-2": 40}
    return {"stacks": {RUN: 30, PUT: 10}, "threads_ns": threads, "main": "Main"}


def test_samples_divide_the_cpu_of_main_threads_and_others_are_parts() -> None:
    found = shares([report(800)])
    assert found["parts"] == {
        "trio: run loop, tasks, locks": 0.6,
        "database and its commits": 0.2,
        "thread log-writer": 0.1,
        "thread tasks-writer": 0.1,
    }
    assert found["lines"] == {"run (trio/_core/_run.py:1)": 0.6, "put (aether_trio/storage/base.py:7)": 0.2}
    assert found["samples"] == 40
    assert shares([report(800), report(0)])["parts"]["thread log-writer"] == pytest.approx(1 / 6, abs=0.001)
    with pytest.raises(Unexplained, match="no sample"):
        shares([])
    with pytest.raises(Unexplained, match="no sample"):
        shares([report(800) | {"stacks": {}}])


SUMMARY = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           3       200        50 recvfrom
 40.00    0.000400           4       100           sendto
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           3       300        50 total
"""


def test_calls_are_counted_for_each_unit() -> None:
    assert calls_of(SUMMARY, 100) == {"recvfrom": 2.0, "sendto": 1.0}
    assert calls_of(SUMMARY, 0) == calls_of("", 100) == {}


def test_a_gateway_has_a_sampler_only_to_be_explained(tmp_path: Path) -> None:
    assert "bench.sampled" not in command(ServerOptions(), "kv", tmp_path)
    line = command(ServerOptions(sampled=True), "kv", tmp_path)
    assert line[1:6] == ["-m", "bench.sampled", str(tmp_path / "sampler"), "aether_trio", "dev"]


BUSY = """
import sys, threading, time

def burn():
    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        sum(range(1000))

def rest():
    time.sleep(0.3)

if __name__ == "__main__":
    for line in sys.stdin:
        other = threading.Thread(target=burn, name="other-1")
        burn(), rest()
        other.start()
        print(sys.argv[1:], flush=True)
"""


def test_the_sampler_counts_cpu_and_no_waiting_and_can_start_again(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    control, result = tmp_path / "sampler", tmp_path / "sampler.json"
    start = f"import sys; sys.path.append({str(tmp_path)!r}); from bench.sampled import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, str(control), "busy", "-x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("unsampled\n")
        process.stdin.flush()
        assert process.stdout.readline() == "['-x']\n"
        for _ in range(2):
            with control.open("w") as orders:
                orders.write("start\n")
                orders.flush()
                while not Path(f"/proc/{process.pid}/timers").read_text():
                    assert process.poll() is None
                    time.sleep(0.01)
                process.stdin.write("again\n")
                process.stdin.flush()
                process.stdout.readline()
                orders.write("stop\n")
            while not result.exists():
                assert process.poll() is None
                time.sleep(0.01)
            found = json.loads(result.read_text())
            result.unlink()
            stacks = found["stacks"]
            assert sum(stacks.values()) > 10
            burning = sum(count for stack, count in stacks.items() if "burn (busy.py:" in stack)
            assert burning > 0.8 * sum(stacks.values())
            assert found["threads_ns"][found["main"]] >= 250_000_000
        process.stdin.close()


def explained(tmp_path: Path, *names: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    sizes = ["--quick", "--window", "0.2", "--pairs", "4", "--transport", "framed", "--data-root", str(tmp_path)]
    assert cli.main([*names, *sizes, "--explain", "--json", str(out)]) == 0
    scenarios: dict[str, Any] = json.loads(out.read_text())["scenarios"]
    return scenarios


def test_a_run_is_explained_by_parts_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explain, "SECONDS", 1.0)
    found = explained(tmp_path, "routed-16")["framed/routed-16"]["explained"]
    assert "failed" not in found
    assert sum(found["parts"].values()) == pytest.approx(1, abs=0.05)
    assert list(found["parts"].values()) == sorted(found["parts"].values(), reverse=True)
    assert "socket writes" in found["parts"]
    assert found["samples"] > 0
    shown = capsys.readouterr().out
    assert f"framed/routed-16: {next(iter(found['parts']))} " in shown


def test_a_gateway_that_was_not_started_here_is_not_explained() -> None:
    found = explain.explain(None, [], [], 0.1)  # type: ignore[arg-type]
    assert "started here" in found["failed"]
    assert table.notes({"scenarios": {"kv": {"explained": found}}}) == [f"kv: not explained: {found['failed']}"]


def test_the_largest_parts_are_shown_with_their_cost() -> None:
    parts = {f"part {number}": 0.1 for number in range(10)}
    result = {"echoes": {"best": 2.0}, "cpu_us": {"best": 40.0}, "explained": {"parts": parts, "calls": {"futex": 2.5}}}
    headings, first, *_, last = table.of_parts({"scenarios": {"kv": result}})
    assert headings == ("part", "share", "echoes", "CPU us")
    assert first == ("kv: part 0", "10%", "0.20", "4.0")
    assert last == ("kv: the rest", "20%", "0.40", "8.0")
    headings, row = table.parts_in_line({"scenarios": {"kv": result}})
    assert row[0] == "kv"
    assert row[1].startswith("part 0 10%; part 1 10%; ")
    assert row[1].endswith("; the rest 20%")
    assert table.notes({"scenarios": {"kv": result}}) == ["kv: 2.50 system calls each: futex 2.50"]
    clustered = {"scenarios": {"cluster-1": result | {"cluster": {"database_share": 0.25}}}}
    assert table.of_parts(clustered)[1] == ("cluster-1: part 0", "10%", "0.15", "3.0")
    unexplained = {"scenarios": {"kv": {"explained": {"failed": "no"}}}}
    assert table.of_parts(unexplained) == table.parts_in_line(unexplained) == []


def test_to_explain_and_to_profile_exclude_each_other() -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["kv", "--explain", "--profile", "out.prof"])
    assert left.value.code == 2
