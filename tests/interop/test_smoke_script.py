"""Run the smoke script of the protocol, when it lies beside the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from aether_trio.devtools.process_cluster import open_process_cluster
from tests.helpers.engines import PostgresEngine
from tests.helpers.gateway import GatewayProcess, on_postgres

SCRIPT = Path(__file__).resolve().parents[3] / "shared" / "interop" / "sdk_smoke.py"
ALL = "1-18"
ITS_LIMIT_S = 5.0
"""How long the script, and the SDK in it, wait for an answer."""
FAILED = re.compile(r"FAIL (\d+) \S+ \((\d+\.\d+)s\)")


needs_script = pytest.mark.skipif(not SCRIPT.exists(), reason="no shared/interop/sdk_smoke.py beside the checkout")


@needs_script
def test_smoke_script(target: str) -> None:
    run_script(target)


@needs_script
def test_smoke_script_on_postgres(own_gateway: Callable[..., GatewayProcess], postgres_engine: PostgresEngine) -> None:
    gateway = own_gateway(extra_args=on_postgres(postgres_engine))
    run_script(gateway.address)
    gateway.terminate()
    assert gateway.wait() == 0


@needs_script
async def test_smoke_script_on_a_cluster() -> None:
    """A node for each connection, in turn."""
    async with open_process_cluster(3) as cluster:
        await trio.to_thread.run_sync(run_script, cluster.front.address)


def run_script(target: str) -> None:
    """All pass; what only ran into the script's own limit is tried again."""
    lines = said(target, ALL)
    failed = [line for line in lines if line.startswith("FAIL")]
    late = [found[1] for line in failed if (found := FAILED.match(line)) and float(found[2]) >= ITS_LIMIT_S]
    assert len(late) == len(failed), failed
    assert sum(line.startswith("PASS") for line in lines) == 18 - len(late)
    for number in late:
        assert [line[:4] for line in said(target, number) if line.startswith(("PASS", "FAIL"))] == ["PASS"]


def said(target: str, only: str) -> list[str]:
    argv = [sys.executable, str(SCRIPT), target, "--only", only, "--limit", "60", "--keep-going"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=130, check=False)
    print(done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    assert done.returncode == int(any(line.startswith("FAIL") for line in lines))
    return lines
