"""New settings of credentials while the gateway runs: all or none; who must leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from aether_trio.config import HmacKey, JwtSettings
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.services.tokens.keys import new_key_text
from aether_trio.testing.memory import agent
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import let_manage, user
from tests.helpers.gateway import GatewayProcess, start_gateway
from tests.helpers.identity_provider import claims, jwk, key_set, provider, rsa_key, signed
from tests.helpers.participants import admission, participant
from tests.security.certificates import Authority
from tests.security.clients import gateway_with
from tests.security.tenants import auth, key_of, record
from tests.transport.framed.harness import Ended

WORKER = "ag::red::worker::1"
HELLO = agent("red", "worker", "1")
WITH_KEY = agent("red", "worker", "1", credentials={"api_key": key_of("all")})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def reload(gateway: Gateway, **sections: dict[str, Any]) -> None:
    settings = gateway.core.settings
    for section, fields in sections.items():
        changed = msgspec.structs.replace(getattr(settings, section), **fields)
        settings = msgspec.structs.replace(settings, **{section: changed})
    gateway.reload.apply(settings)


async def test_a_key_that_is_taken_away_ends_its_sessions(authority: Authority) -> None:
    async with (
        gateway_with(auth=auth()) as gateway,
        participant("grpc", gateway.address, WITH_KEY) as one,
        participant("framed", gateway.address, agent("red", "b", "1", credentials={"api_key": key_of("red")})) as other,
    ):
        reload(gateway, auth={"api_keys": (record("red", workspaces=("red",)), record("new"))})
        status, text = await one.end()
        assert (status, "not among the settings" in text) == (Status.UNAUTHENTICATED, True)
        assert (await admission("grpc", gateway.address, WITH_KEY))[0] is Status.UNAUTHENTICATED
        fresh = agent("red", "worker", "2", credentials={"api_key": key_of("new")})
        assert (await admission("grpc", gateway.address, fresh))[0] is Status.OK
        # A key whose record has changed is another key.
        reload(gateway, auth={"api_keys": (record("red", workspaces=("red", "blue")),)})
        assert (await other.end())[0] is Status.UNAUTHENTICATED


async def test_a_revoked_certificate_ends_its_sessions(authority: Authority) -> None:
    bad, good = authority.issue(WORKER), authority.issue("ag::red::worker::2")
    async with (
        gateway_with(gateway={"dev": False}, tls=authority.tls, auth=auth()) as gateway,
        participant("grpc", gateway.address, HELLO, tls=authority.context(bad, alpn=["h2"])) as one,
        participant("framed", gateway.address, agent("red", "worker", "2"), tls=authority.context(good)),
    ):
        reload(gateway, tls={"client_crl": str(authority.revoke(bad))})
        status, text = await one.end()
        assert (status, "revoked" in text) == (Status.UNAUTHENTICATED, True)
        tls = authority.context(bad, alpn=["h2"])
        status, text = await admission("grpc", gateway.address, HELLO, tls=tls)
        assert (status, "revoked" in text) == (Status.UNAUTHENTICATED, True)
        # Nor does a key help beside it.
        assert (await admission("grpc", gateway.address, WITH_KEY, tls=tls))[0] is Status.UNAUTHENTICATED
        assert [one.identity.text for one in gateway.core.registry] == ["ag::red::worker::2"]


async def test_a_revoked_certificate_takes_a_session_of_a_key_along(authority: Authority) -> None:
    transport_only = authority.issue("_anonymous")
    async with (
        gateway_with(gateway={"dev": False}, tls=authority.tls, auth=auth()) as gateway,
        participant("grpc", gateway.address, WITH_KEY, tls=authority.context(transport_only, alpn=["h2"])) as one,
    ):
        reload(gateway, tls={"client_crl": str(authority.revoke(transport_only))})
        assert (await one.end())[0] is Status.UNAUTHENTICATED


async def test_an_authority_that_is_not_trusted_any_more(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    other = Authority(tmp_path / "two", name="another authority")
    mine, tls = authority.issue(WORKER), authority.context
    async with (
        gateway_with(gateway={"dev": False}, tls=authority.tls, auth=auth()) as gateway,
        participant("framed", gateway.address, HELLO, tls=tls(mine)) as one,
        participant(
            "framed", gateway.address, agent("red", "b", "1", credentials={"api_key": key_of("red")}), tls=tls()
        ),
    ):
        reload(gateway, tls={"client_ca": other.tls["client_ca"]})
        status, text = await one.end()
        assert (status, "not trusted any more" in text) == (Status.UNAUTHENTICATED, True)
        assert len(gateway.core.registry) == 1
        with pytest.raises(Ended):
            await admission("framed", gateway.address, HELLO, tls=tls(mine))


async def test_an_authority_that_is_made_anew_under_its_name(tmp_path: Path) -> None:
    old, new = [made_authority(tmp_path / name) for name in ("old", "new")]
    mine, fresh = old.issue(WORKER), new.issue(WORKER)
    hello = agent("red", "worker", "1")
    async with gateway_with(gateway={"dev": False}, tls=old.tls, auth=auth()) as gateway:
        async with participant("framed", gateway.address, hello, tls=old.context(mine)) as one:
            reload(gateway)  # which takes no trust away
            assert len(gateway.core.registry) == 1
            reload(gateway, tls=new.tls)
            status, text = await one.end()
            assert (status, "not trusted any more" in text) == (Status.UNAUTHENTICATED, True)
        async with participant("framed", gateway.address, hello, tls=new.context(fresh)):
            reload(gateway, tls=new.tls)
            assert len(gateway.core.registry) == 1


def made_authority(directory: Path) -> Authority:
    directory.mkdir()
    return Authority(directory, name="the authority", unit="of this gateway")


async def test_a_new_certificate_of_the_server(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    other = Authority(tmp_path / "two", days=9)
    async with gateway_with(gateway={"dev": False}, tls=authority.tls, auth=auth()) as gateway:
        assert (await admission("framed", gateway.address, WITH_KEY, tls=authority.context()))[0] is Status.OK
        server, clients = ("tls.cert",), ("tls.client_ca",)
        before = dict(gateway.reload.expiries)
        reload(gateway, tls={"cert": other.tls["cert"], "key": other.tls["key"]})
        assert gateway.reload.expiries[clients] == before[clients]
        assert 8 < (gateway.reload.expiries[server] - time.time()) / 86400 < 10
        assert (await admission("framed", gateway.address, WITH_KEY, tls=other.context()))[0] is Status.OK
        with pytest.raises(trio.BrokenResourceError):
            await admission("framed", gateway.address, WITH_KEY, tls=authority.context())


@pytest.mark.parametrize("broken", ["cert", "client_ca", "client_crl", "hmac", "jwks", "tls off"])
async def test_one_mistake_changes_nothing(authority: Authority, tmp_path: Path, broken: str) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense")
    bad.chmod(0o600)
    keys = (record("new"),)
    changes: dict[str, dict[str, Any]] = {
        "cert": {"tls": {"cert": str(bad)}},
        "client_ca": {"tls": {"client_ca": str(bad)}},
        "client_crl": {"tls": {"client_crl": str(bad)}},
        "hmac": {"auth": {"token_hmac_keys": (HmacKey(id="k", file=str(bad)),)}},
        "jwks": {"auth": {"jwt": JwtSettings(providers=(provider(jwks_url=None, jwks_file=str(bad)),))}},
        "tls off": {"tls": {"cert": None, "key": None, "client_ca": None}},
    }
    wanted = changes[broken]
    wanted["auth"] = {**wanted.get("auth", {}), "api_keys": keys}
    async with (
        gateway_with(gateway={"dev": False}, tls=authority.tls, auth=auth()) as gateway,
        participant("framed", gateway.address, WITH_KEY, tls=authority.context()),
    ):
        with pytest.raises(OSError):  # each has another text
            reload(gateway, **wanted)
        assert len(gateway.core.registry) == 1
        second = agent("red", "worker", "2", credentials={"api_key": key_of("all")})
        assert (await admission("framed", gateway.address, second, tls=authority.context()))[0] is Status.OK


async def test_an_identity_provider_comes_and_goes(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(jwk(rsa_key())))
    one = provider(jwks_url=None, jwks_file=str(file), default_principal="agent", default_workspace="red")
    async with gateway_with(auth=auth()) as gateway:
        token = signed(claims(gateway.core.clock.now_ms(), sub="worker"))
        hello = agent("red", "worker", "1", credentials={"authorization": f"Bearer {token}"})
        assert (await admission("grpc", gateway.address, hello))[0] is Status.UNAUTHENTICATED
        reload(gateway, auth={"jwt": JwtSettings(providers=(one,))})
        async with participant("grpc", gateway.address, hello) as session:
            reload(gateway, auth={"jwt": JwtSettings()})
            assert (await session.end())[0] is Status.UNAUTHENTICATED


async def test_a_secret_key_that_is_taken_away_ends_the_sessions_of_its_tokens(tmp_path: Path) -> None:
    keys = []
    for name in ("old", "new"):
        file = tmp_path / name
        file.write_text(new_key_text(name.encode() * 16))
        file.chmod(0o600)
        keys.append(HmacKey(id=name, file=str(file)))
    old, new = keys
    async with (
        gateway_with(auth={"token_hmac_keys": (old,), "allow_anonymous": True}) as gateway,
        participant("framed", gateway.address, user("admin", "w")) as admin,
    ):

        async def create() -> pb.UpstreamMessage:
            request = pb.TokenCreateRequest(name="ci", principal_type="agent")
            await admin.send(
                pb.UpstreamMessage(token_op=pb.TokenOperation(op=pb.TokenOperation.CREATE, create_request=request))
            )
            secret = (await admin.next("token")).token.plaintext_token
            return agent("red", "worker", "1", credentials={"api_key": secret})

        first = await create()
        reload(gateway, auth={"token_hmac_keys": (new, old)})
        async with participant("framed", gateway.address, first) as one:
            reload(gateway, auth={"token_hmac_keys": (new,)})
            status, text = await one.end()
            assert (status, "the key of the API token 'ci'" in text) == (Status.UNAUTHENTICATED, True)
        assert (await admission("framed", gateway.address, first))[0] is Status.UNAUTHENTICATED
        assert (await admission("framed", gateway.address, await create()))[0] is Status.OK


@pytest.mark.parametrize("same_id", [False, True])
async def test_task_tokens_end_with_the_secret_key_of_their_makers_token(tmp_path: Path, same_id: bool) -> None:
    records = []
    for name in ("old", "new"):
        file = tmp_path / name
        file.write_text(new_key_text(name.encode() * 16))
        file.chmod(0o600)
        records.append(HmacKey(id="1" if same_id else name, file=str(file)))
    old, new = records
    async with (
        gateway_with(auth={"token_hmac_keys": (old,), "allow_anonymous": True}) as gateway,
        participant("framed", gateway.address, user("admin", "w")) as admin,
    ):
        let_manage(gateway.core)
        request = pb.TokenCreateRequest(name="ci", principal_type="agent")
        await admin.send(
            pb.UpstreamMessage(token_op=pb.TokenOperation(op=pb.TokenOperation.CREATE, create_request=request))
        )
        text = (await admin.next("token")).token.plaintext_token
        maker = agent("red", "maker", "1", credentials={"api_key": text})
        async with participant("framed", gateway.address, maker) as one:
            made = pb.CreateTaskRequest(
                task_type="t", workspace="red", target_identity=WORKER, assignment_mode=pb.SELF_ASSIGN, request_id="r"
            )
            await one.send(pb.UpstreamMessage(create_task=made))
            created = (await one.next("create_task")).create_task
            task_token = created.task_token
        assert task_token, created.error_message
        hello = agent("red", "worker", "1", credentials={"task_token": task_token})
        async with participant("framed", gateway.address, hello) as two:
            reload(gateway, auth={"token_hmac_keys": (new,)})
            assert (await two.end())[0] is Status.UNAUTHENTICATED
        if not same_id:
            assert (await admission("framed", gateway.address, hello))[0] is Status.UNAUTHENTICATED


async def test_another_secret_key_under_the_same_id_ends_the_sessions_of_its_tokens(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(new_key_text(b"old." * 8))
    file.chmod(0o600)
    kept = {"token_hmac_keys": (HmacKey(id="1", file=str(file)),), "allow_anonymous": True}
    async with (
        gateway_with(auth=kept) as gateway,
        participant("framed", gateway.address, user("admin", "w")) as admin,
    ):
        request = pb.TokenCreateRequest(name="ci", principal_type="agent")
        await admin.send(
            pb.UpstreamMessage(token_op=pb.TokenOperation(op=pb.TokenOperation.CREATE, create_request=request))
        )
        secret = (await admin.next("token")).token.plaintext_token
        hello = agent("red", "worker", "1", credentials={"api_key": secret})
        async with participant("framed", gateway.address, hello) as one:
            reload(gateway)
            assert len(gateway.core.registry) == 2
            file.write_text(new_key_text(b"new." * 8))
            reload(gateway)
            status, text = await one.end()
            assert (status, "was replaced" in text) == (Status.UNAUTHENTICATED, True)
        assert (await admission("framed", gateway.address, hello))[0] is Status.UNAUTHENTICATED


# -- by a signal -----------------------------------------------------------------------------------

SERVE = (sys.executable, "-m", "aether_trio", "serve")


def wait_for(process: GatewayProcess, condition: Callable[[str], bool]) -> None:
    for _ in range(3000):
        if condition(process.output()):
            return
        assert process.returncode is None
        trio.run(trio.sleep, 0.1)
    raise AssertionError(process.output())


def test_sighup_reads_the_settings_file_anew(tmp_path: Path) -> None:
    settings = tmp_path / "aether.yaml"

    def write(*keys: str, **more: Any) -> None:
        records = [msgspec.to_builtins(record(one)) for one in keys]
        settings.write_text(json.dumps({"gateway": {"host": "127.0.0.1"}, "auth": {"api_keys": records, **more}}))

    async def attempt(address: str, key: str) -> Status | int:
        hello = agent("red", "worker", "1", credentials={"api_key": key_of(key)})
        return (await admission("framed", address, hello))[0]

    write("one")
    with start_gateway(ephemeral=True, command=SERVE, extra_args=["--config", str(settings)]) as gateway:
        assert trio.run(attempt, gateway.address, "one") is Status.OK
        write("two")
        os.kill(gateway.pid, signal.SIGHUP)
        wait_for(gateway, lambda said: "were read anew" in said)
        assert trio.run(attempt, gateway.address, "one") is Status.UNAUTHENTICATED
        assert trio.run(attempt, gateway.address, "two") is Status.OK
        settings.write_text("auth: {api_kyes: []}")
        os.kill(gateway.pid, signal.SIGHUP)
        wait_for(gateway, lambda said: "stay as they were" in said)
        assert trio.run(attempt, gateway.address, "two") is Status.OK


def _chain(authority: Authority, certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """A chain of three certificates and its key, as PEM."""
    middle = authority._ca.create_child_ca().create_child_ca()
    leaf = middle.issue_cert("127.0.0.1")
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    assert chain.count(b"BEGIN CERTIFICATE") == 3
    certificate.write_bytes(chain)
    key.write_bytes(leaf.private_key_pem.bytes())
    return chain, key.read_bytes()


def test_sighup_with_a_half_written_certificate_leaves_the_old_one_and_says_why(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = tmp_path / "chain.pem", tmp_path / "chain.key"
    old, old_key = _chain(authority, certificate, key)
    settings = tmp_path / "aether.yaml"
    tls = {"cert": str(certificate), "key": str(key)}
    keys = [msgspec.to_builtins(record("all"))]
    settings.write_text(json.dumps({"gateway": {"host": "127.0.0.1"}, "tls": tls, "auth": {"api_keys": keys}}))
    said = 0

    def served(address: str) -> bytes:
        """The certificate that a new connection gets."""
        host, _, port = address.rpartition(":")
        context = authority.context()
        with (
            socket.create_connection((host, int(port)), timeout=300) as raw,
            context.wrap_socket(raw, server_hostname=host) as one,
        ):
            found = one.getpeercert(binary_form=True)
        assert found is not None
        return found

    with start_gateway(ephemeral=True, command=SERVE, extra_args=["--config", str(settings)]) as gateway:

        def hup(text: str) -> str:
            """Have it read the files anew; return the line of the log that has the text."""
            nonlocal said
            said += 1
            os.kill(gateway.pid, signal.SIGHUP)
            wait_for(gateway, lambda output: output.count("stay as they were") + output.count("read anew") == said)
            last = [line for line in gateway.output().splitlines() if "stay as they were" in line or "anew" in line][-1]
            assert text in last, last
            return last

        assert f"other users may read the private key of TLS; make its mode 0600 file={key}" in gateway.output()
        first = served(gateway.address)
        fresh, fresh_key = _chain(authority, certificate, key)
        # The new pair, as a program writes it file by file and piece by piece.
        key.write_bytes(old_key)
        assert str(key) in hup("is not the key of the certificate")
        key.write_bytes(fresh_key)
        places = [fresh.index(b"-----END") - 20, fresh.index(b"-----END") + 8, fresh.rindex(b"-----END") - 20]
        for place in [0, *places, len(fresh) // 2]:
            certificate.write_bytes(fresh[:place])
            assert str(certificate) in hup("stay as they were")
            assert served(gateway.address) == first
        certificate.write_bytes(fresh)
        key.write_bytes(fresh_key[: len(fresh_key) // 2])
        assert str(key) in hup("no private key")
        assert served(gateway.address) == first
        key.write_bytes(fresh_key)
        line = hup("read anew")
        assert ("tls.cert" in line, "tls.key" in line, "tls.client_ca" in line) == (True, True, False)
        assert served(gateway.address) != first
        assert "changed=[]" in hup("read anew")  # the same files
        certificate.unlink()
        hup("cannot read tls.cert")
        certificate.write_bytes(old)
        key.write_bytes(old_key)
        hup("read anew")
        assert served(gateway.address) == first
