from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.shell import Shell
from tests.helpers.gateway import GatewayProcess, start_gateway


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with start_gateway(ephemeral=True) as process:
        yield process


@pytest.fixture
def shell(gateway: GatewayProcess) -> Shell:
    return Shell(gateway)
