"""A gateway of `aether serve` with a key for all, and a terminal beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.shell import KEY, Shell, serving_with_a_key
from tests.helpers.gateway import GatewayProcess


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with serving_with_a_key(tmp_path_factory.mktemp("serve"), "*", {"access.default": "closed"}) as process:
        yield process


@pytest.fixture
def access(serving: GatewayProcess) -> Shell:
    return Shell(serving, AETHER_API_KEY=KEY)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return tmp_path / "policy.yaml"
