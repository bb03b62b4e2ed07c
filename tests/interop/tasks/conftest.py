"""A gateway for the task scenarios on each storage engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.helpers.engines import open_postgres_engine
from tests.helpers.gateway import GatewayProcess, on_postgres, start_gateway
from tests.helpers.sdk import World


@pytest.fixture(scope="package", params=["sqlite", "postgres", "two-nodes"])
def tasks_gateways(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[GatewayProcess]]:
    """One gateway on SQLite, one on PostgreSQL, or two on one PostgreSQL."""

    def start(*extra_args: str) -> GatewayProcess:
        directory = tmp_path_factory.mktemp("tasks") / "data"
        return stack.enter_context(start_gateway(data_dir=directory, extra_args=extra_args))

    with ExitStack() as stack:
        if request.param == "sqlite":
            yield [start()]
            return
        server, session = request.getfixturevalue("postgres_server"), request.getfixturevalue("postgres_session")
        engine = stack.enter_context(open_postgres_engine(server, session))
        yield [start(*on_postgres(engine)) for _ in range(2 if request.param == "two-nodes" else 1)]


@pytest.fixture
def gateway(tasks_gateways: list[GatewayProcess]) -> str:
    """Give HOST:PORT of each gateway, joined by commas: peers take them in turn."""
    return ",".join(one.address for one in tasks_gateways)


@pytest.fixture
def world(gateway: str) -> World:
    """The peers of one scenario, on each gateway in turn."""
    return World(gateway)
