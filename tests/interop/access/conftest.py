"""Gateways for scenarios of access: on each engine, and three on one PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.helpers.engines import open_postgres_engine
from tests.helpers.gateway import GatewayProcess, on_postgres, start_gateway
from tests.helpers.sdk import World

NODES = {"sqlite": 1, "postgres": 1, "three-nodes": 3}


@pytest.fixture(scope="package", params=list(NODES))
def access_gateways(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[GatewayProcess]]:
    with ExitStack() as stack:
        extra: tuple[str, ...] = ()
        if request.param != "sqlite":
            server, session = request.getfixturevalue("postgres_server"), request.getfixturevalue("postgres_session")
            extra = tuple(on_postgres(stack.enter_context(open_postgres_engine(server, session))))
        yield [
            stack.enter_context(start_gateway(data_dir=tmp_path_factory.mktemp("access") / "data", extra_args=extra))
            for _ in range(NODES[request.param])
        ]


@pytest.fixture
def world(access_gateways: list[GatewayProcess]) -> World:
    """The peers of one scenario; with three nodes no two of them are on one."""
    return World(",".join(one.address for one in access_gateways))
