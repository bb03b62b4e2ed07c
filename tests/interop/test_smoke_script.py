"""The smoke script that every gateway of the protocol is measured with, when it lies beside the checkout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from aether_trio.testing.cluster import open_process_cluster
from tests.helpers.engines import PostgresEngine
from tests.helpers.gateway import GatewayProcess, on_postgres

SCRIPT = Path(__file__).resolve().parents[3] / "shared" / "interop" / "sdk_smoke.py"
ONLY = "1-14,18"  # the rest is about tasks and orchestration


needs_script = pytest.mark.skipif(not SCRIPT.exists(), reason="no shared/interop/sdk_smoke.py beside the checkout")


@needs_script
def test_smoke_script(target: str) -> None:
    run_script(target)


@needs_script
def test_smoke_script_on_postgresql(
    own_gateway: Callable[..., GatewayProcess], postgres_engine: PostgresEngine
) -> None:
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
    argv = [sys.executable, str(SCRIPT), target, "--only", ONLY, "--limit", "60", "--keep-going"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)
    print(done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert sum(line.startswith("PASS") for line in lines) == 15
    assert done.returncode == 0
