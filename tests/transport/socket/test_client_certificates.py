"""What the extensions of a certificate say of its holder, read from DER."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.socket.client_certificates import client_problem
from tests.security.certificates import Authority

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE


def der(path: Path) -> bytes:
    text = path.read_text()
    return ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE") :])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize(
    ("constraints", "usages", "problem"),
    [
        (None, None, ""),
        (False, None, ""),
        (False, [CLIENT], ""),
        (False, [SERVER, CLIENT], ""),
        (False, [SERVER], "it is not meant for clients"),
        (None, [ANY], "it is not meant for clients"),
        (True, None, "it is an authority's"),
        (True, [CLIENT], "it is an authority's"),
    ],
)
def test_a_leaf_for_clients(authority: Authority, constraints: bool | None, usages: Any, problem: str) -> None:
    found = client_problem(der(authority.issue("ag::w::a::1", authority=constraints, usages=usages)))
    assert found.startswith(problem)
    assert bool(found) is bool(problem)


def test_the_authority_itself(authority: Authority) -> None:
    assert client_problem(der(Path(authority.tls["client_ca"]))).startswith("it is an authority's")


@given(st.data())
def test_what_is_no_certificate_is_a_problem_and_no_exception(authority: Authority, data: st.DataObject) -> None:
    good = der(Path(authority.tls["client_ca"]))
    cut = data.draw(st.integers(0, len(good) - 1))
    assert client_problem(good[:cut]) == "it cannot be read"
    position, byte = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 255))
    assert isinstance(client_problem(good[:position] + bytes([byte]) + good[position + 1 :]), str)
