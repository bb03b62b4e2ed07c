"""What holds for every test.

* Hypothesis has no deadline: the machine that runs the tests may be slow or busy, and a slow
  example is not a wrong one.
* Variables of a developer's own gateway or client do not reach the tests, nor the processes that
  they start.
* What collecting the tests has left, hundreds of thousands of objects, is out of the garbage
  collector's sight when they run.
* A test that asks for `engine`, `store` or what is made of them runs on each storage engine.
  PostgreSQL is started by the first that needs it, for all of them.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from aether_trio.storage.existing_names import ExistingNames
from tests.helpers.direct import PostgresStore, SqliteStore, Store
from tests.helpers.engines import Engine, PostgresEngine, SqliteEngine, open_postgres_engine, reuse_postgres_engine
from tests.helpers.postgres import PostgresServer, open_postgres_server
from tests.helpers.postgres_session import PostgresSession, open_postgres_session
from tests.helpers.schemas import PostgresSchemas

_NUMBERS = count(1)
"""A fixture of the session may be made several times (pytest-xdist), on one server."""

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

# A shell starts what runs in its background with SIGINT ignored, and children inherit that: Ctrl-C
# could not be tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

for _name in [name for name in os.environ if name.startswith("AETHER_")]:
    del os.environ[_name]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    # They live until the end, and each full collection would go through all of them: a tenth of the
    # time.
    gc.collect()
    gc.freeze()


@pytest.fixture
def every_name_may_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have storage read for names without a row too, as a gateway does at first."""
    monkeypatch.setattr(ExistingNames, "may_exist", lambda _self, _name: True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with open_postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_session(postgres_server: PostgresServer) -> Iterator[PostgresSession]:
    with open_postgres_session(postgres_server.dsn()) as session:
        yield session


@pytest.fixture(scope="session")
def postgres_store(postgres_server: PostgresServer) -> Iterator[PostgresStore]:
    """A store on PostgreSQL whose places every test file uses again."""
    with open_postgres_session(postgres_server.dsn()) as session:
        yield PostgresStore(session)


@pytest.fixture(scope="session")
def postgres_schemas(postgres_server: PostgresServer, postgres_session: PostgresSession) -> PostgresSchemas:
    """Schemas that tests use one after another."""
    return PostgresSchemas(postgres_server, postgres_session, f"shared_{next(_NUMBERS)}")


@pytest.fixture
def new_schemas() -> bool:
    """Whether `postgres_engine` has a schema without tables; folders override it."""
    return False


@pytest.fixture
def postgres_engine(
    postgres_server: PostgresServer,
    postgres_session: PostgresSession,
    request: pytest.FixtureRequest,
    new_schemas: bool,
) -> Iterator[PostgresEngine]:
    if new_schemas:
        with open_postgres_engine(postgres_server, postgres_session) as opened:
            yield opened
    else:
        schemas: PostgresSchemas = request.getfixturevalue("postgres_schemas")
        with reuse_postgres_engine(postgres_server, postgres_session, schemas) as opened:
            yield opened


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "sqlite":
        return SqliteEngine(tmp_path)
    opened: PostgresEngine = request.getfixturevalue("postgres_engine")
    return opened


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    """Databases without threads, for tests in virtual time and for properties."""
    if request.param == "sqlite":
        return SqliteStore()
    opened: PostgresStore = request.getfixturevalue("postgres_store")
    return opened
