"""Test what `aether bench` reports of real gateways, and how it fails."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_trio.cli.bench import addresses_for
from aether_trio.cli.bench_run import percentiles_ms
from aether_trio.cli.options import GatewayTarget
from aether_trio.devtools.ports import held_port
from tests.cli.shell import KEY, LIMIT_S, Shell, fails, serving_with_a_key
from tests.helpers.gateway import GatewayProcess

SHORT = ("--pairs", "2", "--seconds", "2")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Serve agents with one key: five messages at once, then one a second."""
    flags = {"limits.send_rate_per_s": 1.0, "limits.send_burst": 5}
    with serving_with_a_key(tmp_path_factory.mktemp("strict"), "agent", flags) as process:
        yield process


@pytest.mark.parametrize("scheme", ["aether", "ws"])
def test_all_rounds_are_answered_and_measured(gateway: GatewayProcess, shell: Shell, scheme: str) -> None:
    report = json.loads(shell.out("bench", f"{scheme}://{gateway.address}", *SHORT, "--json"))
    assert report["address"] == f"{scheme}://{gateway.address}"
    assert report["connect"]["connections"] == 4
    assert report["maximum"]["messages_per_s"] > 0
    assert report["errors"] == {}
    assert report["unanswered"] == 0
    assert 0 < report["latency"]["rounds"] < report["rounds"]
    times = report["latency"]["ms"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p99.9"] <= times["max"]


def test_at_a_given_rate_no_maximum_is_sought_and_the_table_says_so(gateway: GatewayProcess, shell: Shell) -> None:
    out = shell.out("bench", *SHORT, "--rate", "50")
    assert out.startswith(f"aether://{gateway.address}: 2 pairs, 200 bytes")
    assert "at most" not in out
    assert " rounds, 0 without an answer" in out


class TestRefusals:
    def test_a_key_for_others_does_not_fit(self, strict: GatewayProcess) -> None:
        Shell(strict).fails(5, "PERMISSION_DENIED", "bench", f"ws://{strict.address}", *SHORT, "--api-key", KEY)

    def test_refused_messages_are_counted_by_code_and_explained(self, strict: GatewayProcess) -> None:
        done = Shell(strict).run("bench", "--pairs", "1", "--seconds", "4", "--rate", "30", "--api-key", KEY)
        assert done.returncode == 1
        assert b"x ERR_RATE_LIMITED: " in done.stdout
        assert b"stay below with --rate" in done.stdout
        assert done.stderr == b""

    def test_no_gateway_is_there(self) -> None:
        with held_port() as port:
            fails(4, "start a gateway with `aether dev`", "bench", f"127.0.0.1:{port}", "--timeout", "5")

    def test_what_is_no_address(self) -> None:
        fails(2, "unknown scheme 'http'", "bench", "http://127.0.0.1:1")


def test_an_address_without_a_scheme_gets_the_framed_transports(tmp_path: Path) -> None:
    plain = GatewayTarget("host", 1, None, False, None, None, None, 1.0)
    secret = GatewayTarget("::1", 1, None, True, None, None, None, 1.0)
    assert addresses_for(plain, None) == ["aether://host:1", "grpc://host:1", "ws://host:1"]
    assert addresses_for(secret, None) == ["aethers://[::1]:1", "grpcs://[::1]:1", "wss://[::1]:1"]
    assert addresses_for(plain, "other:2") == ["aether://other:2", "grpc://other:2", "ws://other:2"]
    assert addresses_for(secret, "ws://other:2") == ["ws://other:2"]


def test_percentiles_are_of_the_nearest_rank() -> None:
    found = percentiles_ms([n * 1_000_000 for n in range(1000, 0, -1)])
    assert found == {"p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}
    assert percentiles_ms([]) == {}


def test_ctrl_c_ends_it_without_a_traceback(shell: Shell) -> None:
    bench = ("bench", "--pairs", "2", "--seconds", "600", "--workspace", "stopped")
    with shell.running(*bench) as process:
        deadline = time.monotonic() + LIMIT_S
        while json.loads(shell.out("sessions", "--workspace", "stopped", "--json")) == []:
            assert process.process.poll() is None
            assert time.monotonic() < deadline
        assert process.end(signal.SIGINT) == (130, [], "")
