"""Test commands against a real gateway: what is typed, and what they print."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.cli.shell import AETHER, KEY, LIMIT_S, ROOT, Shell, serving_with_a_key, sets
from tests.helpers.forked import run
from tests.helpers.gateway import GatewayFailed, GatewayProcess, start_gateway


def tail(shell: Shell, topic: str, limit: int) -> list[dict[str, object]]:
    out = shell.out("tail", topic, "--from", "start", "--limit", str(limit), "--json")
    return [json.loads(line) for line in out.splitlines()]


class TestSend:
    def test_what_was_sent_is_in_the_log_when_the_command_ends(self, shell: Shell) -> None:
        topic = "ag::default::send::1"
        out = shell.out("send", topic, "hello", "--as", "ag::default::me::1", "--type", "control")
        assert out == f"sent 5 bytes to {topic} as ag::default::me::1\n"
        report = json.loads(shell.out("send", topic, "-", "--json", stdin=b"\x00\xff"))
        first, second = tail(shell, topic, 2)
        assert (first["source"], first["type"], first["text"]) == ("ag::default::me::1", "control", "hello")
        assert (second["source"], second["payload_base64"]) == (report["from"], "AP8=")
        assert str(report["from"]).startswith("ag::default::cli::")

    def test_the_made_up_sender_lives_in_the_topics_workspace(self, shell: Shell) -> None:
        shell.out("send", "ga::elsewhere", "hello")
        assert str(tail(shell, "ga::elsewhere", 1)[0]["source"]).startswith("ag::elsewhere::cli::")

    def test_topics_that_agents_may_not_send_to_get_a_service_as_sender(self, shell: Shell) -> None:
        shell.out("send", "uu::alice", "hello")
        assert str(tail(shell, "uu::alice", 1)[0]["source"]).startswith("sv::cli::")

    def test_a_refusal_is_shown_and_fails(self, shell: Shell) -> None:
        shell.fails(1, "ERR_PERMISSION_DENIED", "send", "uu::alice", "x", "--as", "ag::default::me::2")
        shell.fails(1, "ERR_SV_UNAVAILABLE", "send", "sv::absent", "x")
        shell.fails(1, "(it may work later)", "send", "sv::absent", "x")
        shell.fails(1, "ERR_PERMISSION_DENIED", "send", "pg::default", "x")

    def test_a_payload_over_the_limit_is_refused(self, shell: Shell) -> None:
        done = shell.run("send", "ag::default::send::2", "-", stdin=b"x" * (2**20 + 1))
        assert (done.returncode, b"ERR_PAYLOAD_TOO_LARGE" in done.stderr) == (1, True)


class TestTail:
    def test_it_shows_what_comes_until_it_is_stopped(self, shell: Shell) -> None:
        topic = "ag::default::tail::1"
        shell.out("send", topic, "before")
        with shell.running("tail", topic, "--from", "start") as process:
            assert process.line().endswith("before\n")
            shell.out("send", topic, "after", "--as", "ag::default::me::3")
            line = process.line()
            assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} +\d+  ag::default::me::3  chat  after\n", line)
            assert process.end(signal.SIGINT)[0] == 130

    def test_a_topic_without_messages_is_said_to_have_none(self, shell: Shell) -> None:
        done = shell.run("tail", "ag::default::tail::9", "--no-follow")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"no message in ag::default::tail::9\n")

    def test_a_topic_that_cannot_be_is_refused(self, shell: Shell) -> None:
        shell.fails(1, "nonsense", "tail", "nonsense")

    def test_the_grpc_port_is_told_from_the_ops_port(self, shell: Shell, gateway: GatewayProcess) -> None:
        shell.fails(4, "is not an ops port", "tail", "ag::default::tail::1", "--ops", gateway.address)


class TestKv:
    def test_put_get_list_delete(self, shell: Shell) -> None:
        place = ("--workspace", "kv-1")
        assert shell.out("kv", "put", "colour", "blue", *place) == "put colour (4 bytes)\n"
        shell.out("kv", "put", "bytes", "-", *place, stdin=b"\xff\x00")
        assert shell.out("kv", "get", "colour", *place) == "blue"
        assert shell.run("kv", "get", "bytes", *place).stdout == b"\xff\x00"
        assert json.loads(shell.out("kv", "list", "--json", *place)) == {"bytes": {"base64": "/wA="}, "colour": "blue"}
        assert json.loads(shell.out("kv", "list", "--json", "--prefix", "c", *place)) == {"colour": "blue"}
        assert len(json.loads(shell.out("kv", "list", "--json", "--limit", "1", *place))) == 1
        table = shell.out("kv", "list", *place).splitlines()
        assert table[0].split() == ["key", "bytes", "value"]
        assert ["colour", "4", "blue"] in [line.split() for line in table]
        assert shell.out("kv", "delete", "colour", *place) == "deleted colour\n"
        shell.fails(1, "there is no key 'colour'", "kv", "get", "colour", *place)
        assert shell.notice("kv", "list", *place, "--prefix", "nothing") == "no keys\n"

    def test_an_empty_value_is_not_a_missing_one(self, shell: Shell) -> None:
        shell.out("kv", "put", "empty", "", "--workspace", "kv-2")
        assert shell.out("kv", "get", "empty", "--workspace", "kv-2") == ""

    def test_conditions(self, shell: Shell) -> None:
        place = ("--workspace", "kv-3")
        shell.out("kv", "put", "lock", "me", "--if-absent", "--ttl", "60", *place)
        shell.fails(1, "exists already", "kv", "put", "lock", "you", "--if-absent", *place)
        shell.fails(1, "has another value", "kv", "put", "lock", "you", "--if-equals", "them", *place)
        shell.out("kv", "put", "lock", "you", "--if-equals", "me", *place)
        shell.fails(1, "has another value", "kv", "delete", "lock", "--if-equals", "me", *place)
        shell.out("kv", "delete", "lock", "--if-equals", "you", *place)

    def test_counters(self, shell: Shell) -> None:
        place = ("--workspace", "kv-4")
        assert shell.out("kv", "increment", "n", *place) == "1\n"
        assert shell.out("kv", "increment", "n", "--delta", "5", *place) == "6\n"
        assert shell.out("kv", "decrement", "n", *place) == "5\n"
        shell.fails(1, "5 would go over --ceiling", "kv", "increment", "n", "--ceiling", "5", *place)
        assert shell.out("kv", "decrement", "n", "--delta", "2", "--floor", "3", *place) == "3\n"
        shell.fails(1, "3 would go under --floor", "kv", "decrement", "n", "--floor", "3", *place)
        shell.out("kv", "put", "text", "abc", *place)
        shell.fails(1, "KV_ERROR", "kv", "increment", "text", *place)

    def test_sets(self, shell: Shell) -> None:
        place = ("--workspace", "kv-5")
        assert shell.out("kv", "set-add", "team", "ann", *place) == "1\n"
        assert shell.out("kv", "set-add", "team", "bob", *place) == "2\n"
        assert shell.out("kv", "set-add", "team", "ann", *place) == "2\n"
        assert shell.out("kv", "set-size", "team", *place) == "2\n"

    def test_scopes_are_apart(self, shell: Shell) -> None:
        ways = [
            ("--scope", "global"),
            ("--workspace", "kv-6"),
            ("--scope", "user-shared", "--user-id", "u"),
            ("--scope", "user-workspace-shared", "--user-id", "u", "--workspace", "kv-6"),
            ("--scope", "global-exclusive", "--as", "sv::own::1"),
            ("--scope", "workspace-exclusive", "--as", "sv::own::1", "--workspace", "kv-6"),
            ("--scope", "user", "--as", "sv::own::1", "--user-id", "u"),
        ]
        refused = shell.run("kv", "put", "apart", "0", "--scope", "user-shared", "--user-id", "u")
        assert refused.returncode == 1
        assert b"aether access grant" in refused.stderr
        for scope in ("user-shared", "user-shared/u", "user-workspace-shared", "user-workspace-shared/u"):
            shell.out("access", "grant", "_any_service", f"kv_scope:{scope}", "readwrite")
        for n, way in enumerate(ways):
            shell.out("kv", "put", "apart", str(n), *way)
        for n, way in enumerate(ways):
            assert shell.out("kv", "get", "apart", *way) == f"{n}"


class TestSessions:
    def test_it_shows_others_and_not_itself_and_can_disconnect_them(self, shell: Shell) -> None:
        program = (sys.executable, "-c", _CONNECTED_AGENT)
        with shell.running(shell.env["AETHER_GATEWAY"], program=program) as watcher:
            assert watcher.line() == "connected\n"
            (row,) = json.loads(shell.out("sessions", "--json", "--workspace", "sessions"))
            assert (row["identity"], row["principal_type"]) == ("ag::sessions::idle::1", "agent")
            table = shell.out("sessions", "--type", "agent").splitlines()
            assert table[0].split()[:4] == ["identity", "workspace", "type", "session"]
            assert any(line.startswith("ag::sessions::idle::1 ") and row["session_id"] in line for line in table)
            assert shell.notice("sessions", "--type", "bridge") == "no participant is connected\n"
            shell.fails(5, "ALREADY_EXISTS", "kv", "get", "x", "--as", "ag::sessions::idle::1")
            assert "disconnected" in shell.out("sessions", "--disconnect", row["session_id"])
            assert watcher.line() == "disconnected\n"
            assert json.loads(shell.out("sessions", "--json", "--workspace", "sessions")) == []

    def test_an_unknown_session_cannot_be_disconnected(self, shell: Shell) -> None:
        assert shell.run("sessions", "--disconnect", "no-such-session").returncode == 1


_CONNECTED_AGENT = """
import sys, trio
from aether_trio.testing.first_message import first_message
from aether_trio.model.identity import Identity
from aether_trio.transport.grpc.client import open_channel
from aether_trio.wire.pb import aether_pb2 as pb

async def main():
    host, port = sys.argv[1].split(":")
    async with open_channel(host, int(port)) as channel:
        async with channel.stream("/aether.v1.AetherGateway/Connect", pb.DownstreamMessage) as call:
            await call.send(first_message(Identity.agent("sessions", "idle", "1"), {}))
            await call.receive()
            print("connected", flush=True)
            try:
                while await call.receive():
                    pass
            except Exception:
                pass
            print("disconnected", flush=True)

trio.run(main)
"""


def _until(process: GatewayProcess, text: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while text not in process.output():
        assert time.monotonic() < deadline, process.output()
        time.sleep(0.02)  # another process's output has no event to wait for


_SILENT_STREAM = """
import sys, trio
from aether_trio.transport.grpc.client import open_channel
from aether_trio.wire.pb import aether_pb2 as pb

async def main():
    host, port = sys.argv[1].split(":")
    async with open_channel(host, int(port)) as channel:
        async with channel.stream("/aether.v1.AetherGateway/Connect", pb.DownstreamMessage) as call:
            # A stream that says nothing keeps the drain waiting for its Init. The answer to a health check behind it shows
            # that the gateway has seen it (both answers begin with an enumeration, so Signal can read this one).
            await channel.unary("/grpc.health.v1.Health/Check", pb.Signal(), pb.Signal)
            print("open", flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


class TestRunning:
    def test_the_ready_line_says_what_where_and_what_next(self, tmp_path: Path) -> None:
        with start_gateway(tmp_path / "data") as process:
            text = process.output()
            assert f"is serving on {process.address}" in text
            assert str(tmp_path / "data") in text
            assert f"http://{process.ops_address}" in text
            assert f"aether sessions --gateway {process.address}" in text
            assert "transports gRPC, binary framing, WebSocket and HTTP\n" in text
            assert f"page  http://{process.address}/" in text

    def test_a_transport_with_a_port_of_its_own_is_told_with_its_address(self) -> None:
        extra = sets("websocket.port=0", "framed.enabled=false")
        with start_gateway(ephemeral=True, extra_args=extra) as process:
            transports = json.loads((process._scratch / "ready.json").read_text())["transports"]
            assert set(transports) == {"grpc", "websocket"}
            assert transports["grpc"] == process.address
            text = process.output()
            assert f"transports gRPC; WebSocket and HTTP on {transports['websocket']}\n" in text
            assert f"page  http://{transports['websocket']}/" in text
            Shell(process).notice("agents", "list")

    def test_a_first_sigterm_drains_and_exits_with_0(self) -> None:
        with start_gateway(ephemeral=True) as process:
            process.terminate()
            assert process.wait() == 0
            assert "SIGTERM: draining" in process.output()
            assert not list(process._scratch.glob("ready.json"))

    def test_a_second_signal_stops_at_once(self) -> None:
        program = (sys.executable, "-c", _SILENT_STREAM)
        with (
            start_gateway(ephemeral=True, extra_args=sets("grpc.drain_deadline_s=3600")) as process,
            Shell(process).running(process.address, program=program) as silent,
        ):
            assert silent.line() == "open\n"
            process.terminate()
            _until(process, "draining")
            assert process.running
            process.terminate()
            assert process.wait() == 128 + signal.SIGTERM
            assert "SIGTERM: stopping at once" in process.output()

    def test_the_same_data_cannot_be_served_twice(self, tmp_path: Path) -> None:
        with start_gateway(tmp_path / "data"), pytest.raises(GatewayFailed) as caught:
            start_gateway(tmp_path / "data")
        assert "ended with 3" in str(caught.value)
        assert "Traceback" not in str(caught.value)

    @pytest.mark.parametrize("option", ["--port", "--ops-port", "--set websocket.port=PORT"])
    def test_a_taken_port_is_named(self, option: str, gateway: GatewayProcess) -> None:
        address = gateway.ops_address if option == "--ops-port" else gateway.address
        port = int(address.rpartition(":")[2])
        taken: dict[str, Any] = {"--port": {"port": port}, "--ops-port": {"ops_port": port}}.get(
            option, {"extra_args": sets(f"websocket.port={port}")}
        )
        with pytest.raises(GatewayFailed) as caught:
            start_gateway(ephemeral=True, **taken)
        assert "ended with 3" in str(caught.value)
        why = f"a port is taken: {address}. Stop the other program, or choose another with {option} ("
        assert why in str(caught.value)
        assert "Traceback" not in str(caught.value)

    def test_what_to_try_is_what_works(self, tmp_path: Path) -> None:
        """The lines that it prints, typed as they are."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "CA.pem"))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
        for tls in (False, True):
            files = [f"tls.{leaf}={tmp_path / 'server.pem'}" for leaf in ("cert", "key")] if tls else []
            with start_gateway(ephemeral=True, extra_args=sets(*files)) as process:
                lines = re.findall(r"^(?:  try|     )   (aether (?:send|sessions) .*)$", process.output(), re.MULTILINE)
                assert len(lines) == 2
                for line in lines:
                    command = [*AETHER, *shlex.split(line)[1:]]
                    env = {**os.environ, "PYTHONPATH": str(ROOT)}
                    done = run(command, env=env, cwd=tmp_path, capture_output=True, timeout=LIMIT_S, check=False)
                    assert done.returncode == 0, (line, done)
                assert ("SDK" in process.output()) is not tls

    @pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
    def test_a_host_that_is_not_this_machine_is_named(self, host: str) -> None:
        open_to_all = sets(f"gateway.host={host}", "auth.trust_network=true", "auth.allow_anonymous=true")
        with pytest.raises(GatewayFailed) as caught:
            start_gateway(ephemeral=True, extra_args=open_to_all)
        assert "ended with 3" in str(caught.value)
        assert f"this machine has no address {host}; see gateway.host\n" in str(caught.value)

    def test_json_logs(self) -> None:
        with start_gateway(ephemeral=True, extra_args=["--log-format", "json"]) as process:
            process.terminate()
            process.wait()
            lines = [line for line in process.output().splitlines() if line.startswith("{")]
        assert "drained" in {json.loads(line)["event"] for line in lines}


class TestTransports:
    """Commands work with a gateway that speaks one transport only."""

    @pytest.mark.parametrize(("transport", "scheme"), [("framed", "aether"), ("grpc", "grpc"), ("websocket", "ws")])
    def test_any_transport_will_do(self, transport: str, scheme: str) -> None:
        off = [f"{one}.enabled=false" for one in ("framed", "grpc", "websocket") if one != transport]
        with start_gateway(ephemeral=True, extra_args=sets(*off, "websocket.principals=['*']")) as process:
            shell = Shell(process)
            shell.out("send", "ag::default::send::1", "hello")
            assert shell.out("kv", "put", "a", "b") == "put a (1 bytes)\n"
            assert shell.out("kv", "get", "a") == "b"
            shell.fails(1, "ERR_PERMISSION_DENIED", "send", "pg::default", "x")
            task_id = shell.out("tasks", "create", "press", "--pool", "absent").strip()
            assert shell.out("tasks", "cancel", task_id) == f"{task_id} is cancelled\n"
            watched = shell.run("tasks", "watch", task_id, "--from", "start", "--until-end").stdout
            assert b"queued -> cancelled" in watched
            bench = ("bench", "--pairs", "1", "--seconds", "0.2", "--rate", "10", "--json")
            assert json.loads(shell.out(*bench, process.address))["address"] == f"{scheme}://{process.address}"

    def test_who_may_not_use_websocket_is_told_so(self) -> None:
        with start_gateway(ephemeral=True, extra_args=sets("framed.enabled=false", "grpc.enabled=false")) as process:
            Shell(process).fails(5, "WebSocket", "kv", "get", "a")


class TestTls:
    """`aether serve` with TLS, where a client certificate is the credential."""

    @pytest.fixture
    def certificates(self, tmp_path: Path) -> Path:
        authority, clients = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        clients.cert_pem.write_to_path(str(tmp_path / "clients-ca.pem"))
        server = authority.issue_cert("127.0.0.1")
        server.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
        for name, common_name in (("agent", "ag::default::cert::1"), ("service", "sv::cert::1")):
            issued = clients.issue_cert(f"{name}.example", common_name=common_name)
            issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}.pem"))
        return tmp_path

    def test_the_certificate_decides(self, certificates: Path) -> None:
        server, authority = str(certificates / "server.pem"), str(certificates / "ca.pem")
        settings = ["gateway.host=127.0.0.1", f"tls.cert={server}", f"tls.key={server}"]
        settings += [f"tls.client_ca={certificates / 'clients-ca.pem'}", "auth.client_cert_mode=strict"]
        settings += ["access.default=open"]
        service = ("--tls-cert", str(certificates / "service.pem"), "--tls-key", str(certificates / "service.pem"))
        trust = ("--tls-ca", authority)
        with start_gateway(ephemeral=True, command=[*AETHER, "serve"], extra_args=sets(*settings)) as process:
            assert "with TLS (credentials required)" in process.output()
            shell = Shell(process)
            assert shell.out("kv", "put", "a", "b", "--as", "sv::cert::1", *trust, *service) == "put a (1 bytes)\n"
            shell.fails(5, "identity mismatch", "kv", "get", "a", "--as", "sv::cert::2", *trust, *service)
            shell.fails(5, "needs a credential", "kv", "get", "a", *trust)
            shell.fails(4, "is not trusted", "kv", "get", "a", "--tls", *service)
            shell.fails(4, "--tls", "kv", "get", "a")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with serving_with_a_key(tmp_path_factory.mktemp("serve"), "service") as process:
        yield process


class TestServe:
    def test_the_right_key_gets_in(self, serving: GatewayProcess) -> None:
        assert Shell(serving).out("kv", "put", "a", "b", "--api-key", KEY) == "put a (1 bytes)\n"
        assert Shell(serving, AETHER_API_KEY=KEY).out("kv", "get", "a") == "b"

    @pytest.mark.parametrize(
        "command",
        [["kv", "get", "a"], ["sessions"], ["send", "ag::a::b::c", "x"], ["bench", "--pairs", "2", "--seconds", "2"]],
        ids=lambda c: c[0],
    )
    def test_without_a_key_no_command_gets_in(self, serving: GatewayProcess, command: list[str]) -> None:
        Shell(serving).fails(5, "give a key with --api-key", *command)

    def test_a_key_for_others_does_not_fit(self, serving: GatewayProcess) -> None:
        Shell(serving, AETHER_API_KEY=KEY).fails(5, "is for principals of type service", "sessions")

    def test_tail_is_not_served(self, serving: GatewayProcess) -> None:
        Shell(serving).fails(5, "ops.tail_token", "tail", "ag::a::b::c")
