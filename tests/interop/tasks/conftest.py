"""A gateway for the task scenarios on each storage engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.engines import open_postgres_engine
from tests.helpers.gateway import GatewayProcess, on_postgres, start_gateway


@pytest.fixture(scope="package", params=["sqlite", "postgres"])
def tasks_gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    if request.param == "sqlite":
        with start_gateway(data_dir=tmp_path_factory.mktemp("tasks") / "data") as gateway:
            yield gateway
        return
    server, session = request.getfixturevalue("postgres_server"), request.getfixturevalue("postgres_session")
    with (
        open_postgres_engine(server, session) as engine,
        start_gateway(data_dir=tmp_path_factory.mktemp("tasks") / "data", extra_args=on_postgres(engine)) as gateway,
    ):
        yield gateway


@pytest.fixture
def gateway(tasks_gateway: GatewayProcess) -> str:
    """HOST:PORT."""
    return tasks_gateway.address
