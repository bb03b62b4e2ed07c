"""One development gateway for the session, and separate ones where needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.helpers.engines import open_postgres_engine
from tests.helpers.gateway import GatewayProcess, on_postgres, start_gateway
from tests.helpers.postgres import PostgresServer
from tests.helpers.postgres_session import PostgresSession
from tests.helpers.sdk import World
from tests.interop.idle import IdleWatch


@pytest.fixture(scope="session")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with start_gateway(data_dir=tmp_path_factory.mktemp("interop") / "data") as gateway:
        yield gateway


@pytest.fixture
def target(shared_gateway: GatewayProcess) -> str:
    return shared_gateway.address


@pytest.fixture
def world(target: str) -> World:
    """The peers of one scenario on the shared gateway. The test opens and closes it."""
    return World(target)


@pytest.fixture(scope="package")
def postgres_gateway(postgres_server: PostgresServer, postgres_session: PostgresSession) -> Iterator[GatewayProcess]:
    """The shared gateway's twin, on PostgreSQL.

    Tests of other folders look at the connections and locks of the whole server.
    """
    with (
        open_postgres_engine(postgres_server, postgres_session) as engine,
        start_gateway(extra_args=on_postgres(engine)) as gateway,
    ):
        yield gateway


@pytest.fixture(scope="package")
def three_gateways(
    postgres_server: PostgresServer, postgres_session: PostgresSession
) -> Iterator[list[GatewayProcess]]:
    """Three gateways on one PostgreSQL."""
    with ExitStack() as stack:
        engine = stack.enter_context(open_postgres_engine(postgres_server, postgres_session))
        yield [stack.enter_context(start_gateway(extra_args=on_postgres(engine))) for _ in range(3)]


@pytest.fixture(params=["sqlite", "postgres", "three-nodes"])
def any_target(request: pytest.FixtureRequest) -> str:
    """HOST:PORT of a gateway on each engine, and of three nodes with commas between."""
    if request.param == "three-nodes":
        nodes: list[GatewayProcess] = request.getfixturevalue("three_gateways")
        return ",".join(node.address for node in nodes)
    name = "shared_gateway" if request.param == "sqlite" else "postgres_gateway"
    gateway: GatewayProcess = request.getfixturevalue(name)
    return gateway.address


@pytest.fixture
def own_gateway() -> Iterator[Callable[..., GatewayProcess]]:
    """Start gateways for one test, and kill them at its end."""
    with ExitStack() as stack:

        def start(*args: Any, **kwargs: Any) -> GatewayProcess:
            return stack.enter_context(start_gateway(*args, **kwargs))

        yield start


@pytest.fixture
def new_gateway(own_gateway: Callable[..., GatewayProcess]) -> GatewayProcess:
    """A gateway with a data directory, which this test may kill and start again."""
    return own_gateway()


@pytest.fixture(scope="session")
def idle_watch(shared_gateway: GatewayProcess) -> Iterator[IdleWatch]:
    """The client of scenario 25, which idles for 35 s beside other scenarios."""
    with IdleWatch(shared_gateway.address) as watch:
        yield watch


@pytest.fixture(scope="session", autouse=True)
def start_idling_early(request: pytest.FixtureRequest) -> None:
    """Start the idle client with the first scenario if scenario 25 is going to run."""
    if any(item.name.startswith("test_25_") for item in request.session.items):
        request.getfixturevalue("idle_watch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every scenario; put 25 last, when its client has idled long enough."""
    for item in items:
        if "tests/interop/" in item.nodeid:
            item.add_marker(pytest.mark.interop)
    items.sort(key=lambda item: item.name.startswith("test_25_"))
