"""Each alert fires by a fault of a real gateway, and no other alert does.

Gateways, clients and faults are real; the time in which a fault lasts is not (prometheus.py).
"""

from __future__ import annotations

import datetime as dt
import os
import resource
import time
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from cryptography import x509

from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, give_all_rights, message_to
from tests.helpers.gateway import open_gateway_process
from tests.helpers.participants import admission
from tests.helpers.postgres import open_postgres_server
from tests.monitoring.gateways import busy, change, locked, running, scraped, until
from tests.monitoring.prometheus import Scrape, alerts, firing, scrape, together
from tests.security.certificates import Authority
from tests.security.tenants import auth
from tests.services.agents.ops import register
from tests.services.tasks.peers import bury, create, operate, own

Op = pb.TaskOperation
FIRED: Final[set[str]] = set()
"""The alerts that the tests of this file saw fire."""


STALLS: Final = frozenset({"AetherEventLoopLag", "AetherMessageLatency"})
"""Fire on a machine that has more to do than it can, as one that runs tests."""


def fired(directory: Path, *scrapes: Scrape, stalls: bool = False, **options: Any) -> set[str]:
    """The alerts that fire; those of STALLS only when the test is about them."""
    found = firing(directory, scrapes, **options)
    FIRED.update(found)
    return found if stalls else found - STALLS


async def test_none_fires_on_a_healthy_gateway_under_load(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        first = await scraped(gateway)
        await busy(gateway)
        second = await scraped(gateway)
    assert fired(tmp_path, first) == set()
    assert fired(tmp_path, first, second) == set()


async def test_a_gateway_that_is_killed(tmp_path: Path) -> None:
    async with open_gateway_process() as gateway:
        before = await trio.to_thread.run_sync(scrape, gateway.ops_address)
        assert before.up
        await trio.to_thread.run_sync(gateway.kill)
        after = await trio.to_thread.run_sync(scrape, gateway.ops_address)
    assert fired(tmp_path, before, after) == {"AetherGatewayDown"}
    assert fired(tmp_path, before, Scrape({})) == {"AetherNoGateway"}


async def test_a_gateway_that_restarts_again_and_again(tmp_path: Path) -> None:
    scrapes: list[Scrape] = []
    async with open_gateway_process(ephemeral=True) as gateway:
        for _ in range(4):
            scrapes.append(await trio.to_thread.run_sync(scrape, gateway.ops_address))
            await trio.to_thread.run_sync(gateway.kill)
            await trio.to_thread.run_sync(gateway.restart)
    assert fired(tmp_path, *scrapes, last_min=1) == {"AetherRestartLoop"}
    assert fired(tmp_path, *scrapes[:2], last_min=1) == set(), "one restart is none"


async def test_a_call_that_blocks_the_event_loop(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        await busy(gateway)
        before = await scraped(gateway)
        for _ in range(4):
            time.sleep(0.6)  # the fault
            await trio.sleep(0.15)
        after = await scraped(gateway)
    assert "AetherEventLoopLag" in fired(tmp_path, before, after, stalls=True)
    assert "AetherEventLoopLag" not in fired(tmp_path, before, before, stalls=True)


async def test_a_disk_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as gateway, connect(gateway.core, agent("w", "a", "1")) as one:
        before = await scraped(gateway)
        database = gateway.core.log.database
        commit = database.run_small

        async def slow(*arguments: Any, **options: Any) -> Any:
            await trio.sleep(2)
            return await commit(*arguments, **options)

        monkeypatch.setattr(database, "run_small", slow)
        one.send(message_to("ag::w::a::1", b"x"))
        await barrier(one)
        await until(lambda: not gateway.core.log.statistics().pending_messages)
        after = await scraped(gateway)
    assert "AetherMessageLatency" in fired(tmp_path, before, after, stalls=True)
    assert "AetherMessageLatency" not in fired(tmp_path, before, before, stalls=True)


async def test_a_database_that_takes_no_writes(tmp_path: Path) -> None:
    async with (
        running(tmp_path, audit={"queue_bytes": 1 << 20}) as gateway,
        connect(gateway.core, agent("w", "a", "1")) as one,
    ):
        await barrier(one)
        before = await scraped(gateway)
        with locked(gateway, "tasks"):
            # Each receiver is an audit event.
            one.send(*(message_to(f"ag::w::{'a' * 100}::{number}", b"x") for number in range(3000)))
            await until(lambda: gateway.core.audit.writer.statistics().lost)
            await until(lambda: gateway.core.audit.writer.statistics().failing)
            await until(lambda: not gateway.core.health.readiness().ready)
            after = await scraped(gateway)
    expected = {"AetherDatabaseUnavailable", "AetherNotReady", "AetherAuditFailing", "AetherAuditGap"}
    assert fired(tmp_path, before, after) == expected


async def test_a_disk_that_is_almost_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as gateway:
        before = await scraped(gateway)
        free = os.statvfs(tmp_path)
        full = os.statvfs_result((*free[:3], free.f_blocks // 20, free.f_blocks // 20, *free[5:]))
        monkeypatch.setattr(os, "statvfs", lambda path: full)
        after = await scraped(gateway)
    assert fired(tmp_path, before, after) == {"AetherDiskAlmostFull"}


async def test_file_descriptors_run_out(tmp_path: Path) -> None:
    async with open_gateway_process(ephemeral=True) as gateway:
        before = await trio.to_thread.run_sync(scrape, gateway.ops_address)
        used = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (used + 4, used + 4))
        after = await trio.to_thread.run_sync(scrape, gateway.ops_address)
    assert fired(tmp_path, before, after) == {"AetherFileDescriptorsLow"}


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (60, set()),
        (10, {"AetherCertificateExpiresSoon"}),
        (0.5, {"AetherCertificateExpiresSoon", "AetherCertificateExpired"}),
    ],
)
async def test_certificates_and_lists_that_expire(tmp_path: Path, days: float, expected: set[str]) -> None:
    authority = Authority(tmp_path)
    due = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    crl = authority.revoke(due=due)
    async with running(tmp_path, tls={**authority.tls, "client_crl": str(crl)}) as gateway:
        now = await scraped(gateway)
    shown = {dict(labels)["setting"]: at for (name, labels), at in now.series.items() if "certificate_expiry" in name}
    certificate = x509.load_pem_x509_certificate((tmp_path / "cert.pem").read_bytes())
    assert shown["tls.cert"] == certificate.not_valid_after_utc.timestamp()
    assert abs(shown["tls.client_crl"] - due.timestamp()) < 2
    assert shown.keys() == {"tls.cert", "tls.client_ca", "tls.client_crl"}
    assert fired(tmp_path, now) == expected


async def test_tasks_that_no_worker_takes(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway, connect(gateway.core, agent("w", "boss", "1")) as boss:
        before = await scraped(gateway)
        for _ in range(120):
            assert (await create(boss)).success
        after = await scraped(gateway)
    assert fired(tmp_path, before, after, last_min=25) == {"AetherTaskBacklogGrows"}
    # An hour later.
    assert change(tmp_path, "tasks", "UPDATE tasks SET order_us = order_us - 3600000000 WHERE queue <> ''") == 120
    async with running(tmp_path) as gateway:
        later = await scraped(gateway)
    assert fired(tmp_path, later) == {"AetherTaskWaitsLong"}


async def test_tasks_that_fail(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway, connect(gateway.core, agent("w", "b", "1")) as worker:
        await busy(gateway)
        before = await scraped(gateway)
        for _ in range(4):
            assert (await operate(worker, Op.FAIL, await own(worker), reason="broken")).success
        after = await scraped(gateway)
        assert fired(tmp_path, before, after) - {"AetherDeadLetters"} == {"AetherTasksFail"}
        await bury(worker)
        buried = await scraped(gateway)
    assert "AetherDeadLetters" in fired(tmp_path, after, buried)


async def test_an_agent_that_no_orchestrator_can_start(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway, connect(gateway.core, agent("w", "boss", "1")) as boss:
        give_all_rights(gateway.core)
        before = await scraped(gateway)
        await register(boss, "worker")
        boss.send(message_to("ag::w::worker::1", b"x"))
        await until(lambda: gateway.core.autostarter.statistics().started)
        after = await scraped(gateway)
    assert fired(tmp_path, before, after) == {"AetherAgentStartWaits"}


async def test_a_consumer_that_does_not_read(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway, connect(gateway.core, agent("w", "boss", "1")) as boss:
        before = await scraped(gateway)
        boss.send(*(message_to("ag::w::away::1", b"%d" % number) for number in range(1100)))
        await barrier(boss)
        after = await scraped(gateway)
    assert fired(tmp_path, before, after) == {"AetherConsumerLags"}


async def test_messages_that_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway, connect(gateway.core, agent("w", "boss", "1")) as boss:
        boss.send(message_to("nonsense", b""))
        await barrier(boss)
        before = await scraped(gateway)
        boss.send(*(message_to("nonsense", b"") for _ in range(100)))
        await barrier(boss)
        after = await scraped(gateway)
    assert fired(tmp_path, before, after) == {"AetherMessagesRefused"}


async def test_connections_that_are_no_clients(tmp_path: Path) -> None:
    async def knock(address: str) -> None:
        host, _, port = address.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(b"\x16\x03\x01 nonsense\r\n\r\n")
            async for _ in stream:
                pass

    async with running(tmp_path) as gateway:
        await knock(gateway.address)
        before = await scraped(gateway)
        for _ in range(100):
            await knock(gateway.address)
        after = await scraped(gateway)
    assert fired(tmp_path, before, after) == {"AetherConnectionsRejected"}


async def test_more_connections_than_are_allowed(tmp_path: Path) -> None:
    async with running(tmp_path, grpc={"max_connections": 2}) as gateway:
        before = await scraped(gateway)
        host, _, port = gateway.address.rpartition(":")
        open_streams = [await trio.open_tcp_stream(host, int(port)) for _ in range(4)]
        await until(lambda: gateway._ports.listener_statistics().refused_over_limit)
        after = await scraped(gateway)
        for stream in open_streams:
            await stream.aclose()
    assert fired(tmp_path, before, after) == {"AetherConnectionLimit"}


async def test_credentials_that_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path, gateway={"dev": False}, auth=auth()) as gateway:
        wrong = [agent("red", f"eve{n}", "1", credentials={"api_key": "aek_wrong"}) for n in range(41)]
        await admission("grpc", gateway.address, wrong.pop())
        before = await scraped(gateway)
        for hello in wrong:
            await admission("grpc", gateway.address, hello)
        after = await scraped(gateway)
    assert fired(tmp_path, before, after) == {"AetherAuthenticationFailures"}


async def test_audit_rows_that_were_changed(tmp_path: Path) -> None:
    async with running(tmp_path, audit={"head_s": 2.0}) as gateway:
        await busy(gateway)
        before = await scraped(gateway)
        # A head may be signed between the rows and their change, which it then does not see.
        while gateway.core.audit.signer.problem is None:
            async with connect(gateway.core, agent("w", "eve", "1")) as eve:
                await barrier(eve)
            await gateway.core.audit.writer.flush()
            assert change(tmp_path, "tasks", "UPDATE audit_log SET actor_id = 'x'") > 0
            signed = gateway.core.audit.signer.signed
            await until(lambda: gateway.core.audit.signer.problem or gateway.core.audit.signer.signed > signed)  # noqa: B023
        after = await scraped(gateway)
    assert fired(tmp_path, before, after) == {"AetherAuditTampered", "AetherNotReady"}


async def test_nodes_and_databases_of_a_cluster_that_go(tmp_path: Path) -> None:
    with open_postgres_server() as server:
        arguments = ["--set", f"storage.database={server.dsn(server.new_database())}"]
        async with (
            open_gateway_process(extra_args=arguments) as one,
            open_gateway_process(extra_args=arguments) as two,
        ):

            async def both() -> Scrape:
                first = await trio.to_thread.run_sync(scrape, one.ops_address, "one:9090")
                second = await trio.to_thread.run_sync(scrape, two.ops_address, "two:9090")
                return together(first, second)

            before = await both()
            assert fired(tmp_path, before) == set()
            await trio.to_thread.run_sync(two.kill)
            with trio.fail_after(120):
                while not value(after := await both(), "aether_cluster_nodes_declared_total"):
                    await trio.sleep(0.5)
            assert fired(tmp_path, before, after) == {"AetherGatewayDown", "AetherNodeLost"}
            await trio.to_thread.run_sync(server.stop)
            with trio.fail_after(120):
                while value(away := await both(), "aether_database_up", database="tasks") or value(
                    away, "aether_cluster_lease_held"
                ):
                    await trio.sleep(0.5)
                while value(away := await both(), "aether_access_look_age_seconds") < 6:
                    await trio.sleep(0.5)
            server.start()
    expected = {"AetherDatabaseUnavailable", "AetherLeaseLost", "AetherBusDeaf", "AetherAccessBehind"}
    assert expected <= fired(tmp_path, after, away)


def value(now: Scrape, name: str, **labels: str) -> float:
    """The sum of the series that have these labels."""
    return sum(
        found for (one, those), found in now.series.items() if one == name and labels.items() <= dict(those).items()
    )


def test_every_alert_was_seen_to_fire() -> None:
    """Last in this file: of the alerts, those that no test above has seen."""
    if not FIRED:
        pytest.skip("the tests of this file did not run")
    assert {rule["alert"] for rule in alerts()} - FIRED == set()
