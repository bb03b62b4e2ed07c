"""Shares of a server's parts: the map of files, py-spy's format, and a real run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aether_trio import __file__ as package
from bench import cli, explain, table
from bench.explain import Profile, Unexplained, calls_of
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
    assert thread_of("thread (423): MainThread") == "MainThread"
    assert thread_of("thread (621): log-writer") == "log-writer"
    assert thread_of("thread (621): worker-12") == "worker"
    assert thread_of("thread (621)") == "unnamed"


RUN = "run (trio/_core/_run.py:1)"
FOLDED = [
    f"thread (1): MainThread;main (x.py:1);{RUN} 30",
    f"thread (1): MainThread;main (x.py:1);{RUN};put (aether_trio/storage/base.py:7) 10",
    "thread (2): log-writer;commit (aether_trio/storage/sqlite/threads.py:9) 20",
    "thread (3): tasks-writer-1;commit (aether_trio/storage/sqlite/threads.py:9) 20",
    "",
    "nonsense",
]


def test_the_main_threads_share_is_the_kernels_and_samples_divide_it() -> None:
    profile = Profile()
    profile.add(FOLDED)
    found = profile.shares(0.8)
    assert found["parts"] == {
        "trio: run loop, tasks, locks": 0.6,
        "database and its commits": 0.2,
        "thread log-writer": 0.1,
        "thread tasks-writer": 0.1,
    }
    assert next(iter(found["lines"].items())) == ("commit (aether_trio/storage/sqlite/threads.py:9)", 0.5)
    assert found["samples"] == 80
    assert profile.shares(0.0)["parts"]["trio: run loop, tasks, locks"] == 0.375  # by samples alone
    alone = Profile()
    alone.add(FOLDED[:1])
    assert alone.shares(0.9)["parts"] == {"trio: run loop, tasks, locks": 0.9, "other threads": 0.1}
    with pytest.raises(Unexplained, match="no sample"):
        Profile().shares(0.5)


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


def test_a_started_gateway_lets_itself_be_read_only_to_be_explained(tmp_path: Path) -> None:
    assert "bench.traceable" not in command(ServerOptions(), "kv", tmp_path)
    line = command(ServerOptions(traceable=True), "kv", tmp_path)
    assert line[1:5] == ["-m", "bench.traceable", "aether_trio", "dev"]


def test_a_traceable_module_runs_as_main(tmp_path: Path) -> None:
    (tmp_path / "worked.py").write_text(
        "import sys\nif __name__ == '__main__':\n    print(sys.argv)\n    sys.exit(3)\n"
    )
    start = f"import sys; sys.path.append({str(tmp_path)!r}); from bench.traceable import main; main()"
    done = subprocess.run([sys.executable, "-c", start, "worked", "-x"], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.endswith("'-x']\n")


def explained(tmp_path: Path, *names: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    sizes = ["--quick", "--window", "0.2", "--pairs", "4", "--transport", "framed", "--data-root", str(tmp_path)]
    assert cli.main([*names, *sizes, "--explain", "--json", str(out)]) == 0
    scenarios: dict[str, Any] = json.loads(out.read_text())["scenarios"]
    return scenarios


def test_a_run_is_explained_by_parts_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explain, "SECONDS", 1)
    found = explained(tmp_path, "routed-1")["framed/routed-1"]["explained"]
    if "failed" in found:  # a container may forbid to read another process
        pytest.skip(found["failed"])
    assert sum(found["parts"].values()) == pytest.approx(1, abs=0.05)
    assert list(found["parts"].values()) == sorted(found["parts"].values(), reverse=True)
    assert "database and its commits" in found["parts"] or "thread log-writer" in found["parts"]
    assert found["samples"] > 0
    shown = capsys.readouterr().out
    assert f"framed/routed-1: {next(iter(found['parts']))} " in shown


def test_a_run_without_py_spy_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explain.shutil, "which", lambda *_, **__: None)
    found = explained(tmp_path, "kv-paced")["framed/kv-paced"]
    assert found["failed"] == ""
    assert "not explained: py-spy is not installed" in capsys.readouterr().out


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
    unexplained = {"scenarios": {"kv": {"explained": {"failed": "no"}}}}
    assert table.of_parts(unexplained) == table.parts_in_line(unexplained) == []


def test_to_explain_and_to_profile_exclude_each_other() -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["kv", "--explain", "--profile", "out.prof"])
    assert left.value.code == 2
