"""Test what commands answer to what a person types that cannot be right."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.shell import Shell
from tests.helpers.gateway import GatewayProcess

NO_UTF8 = os.fsdecode(b"\xff")
HUGE = "9" * 20


@pytest.mark.parametrize(
    "arguments",
    [
        ("kv", "get", NO_UTF8),
        ("kv", "put", "k", NO_UTF8),
        ("kv", "put", "k", "v", "--workspace", NO_UTF8),
        ("send", "ag::default::e::1", NO_UTF8),
        ("tail", NO_UTF8),
        ("sessions", "--workspace", NO_UTF8),
    ],
)
def test_what_is_no_utf8_is_named(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.fails(2, r"'\xff' is not UTF-8; give bytes on standard input, with -", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("kv", "put", "k", "v", "--ttl", HUGE),
        ("kv", "increment", "k", "--delta", HUGE),
        ("kv", "increment", "k", "--ceiling", HUGE),
        ("kv", "decrement", "k", "--floor", f"-{HUGE}"),
        ("kv", "set-add", "k", "v", "--ttl", HUGE),
    ],
)
def test_numbers_that_the_protocol_cannot_hold(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.fails(2, "is not in the range", *arguments)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("", "'' is not HOST:PORT"),
        ("http://127.0.0.1:1", "aether://"),
        ("127.0.0.1:99999", "is not HOST:PORT"),
        (":50051", "is not HOST:PORT"),
    ],
)
def test_addresses(shell: Shell, address: str, text: str) -> None:
    shell.fails(2, text, "send", "ag::default::e::1", "x", "--gateway", address)


def test_the_ops_port_and_a_gateway_without_tls_are_recognized(gateway: GatewayProcess, shell: Shell) -> None:
    send = ("send", "ag::default::e::1", "x")
    shell.fails(4, "is it the port of a gateway?", *send, "--gateway", gateway.ops_address)
    shell.fails(4, "is it without TLS", *send, "--tls")


def test_files_that_hold_no_certificate_are_named(shell: Shell, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate")
    send = ("send", "ag::default::e::1", "x")
    shell.fails(2, f"--tls-ca {wrong} cannot be used", *send, "--tls-ca", str(wrong))
    pair = ("--tls-cert", str(wrong), "--tls-key", str(wrong))
    shell.fails(2, f"--tls-cert {wrong} with --tls-key {wrong} cannot be used", *send, *pair)


def test_a_message_over_the_cap_is_refused_and_not_waited_for(shell: Shell) -> None:
    done = shell.run("send", "ag::default::e::1", "-", "--timeout", "30", stdin=bytes(20_000_000))
    assert (done.returncode, b"RESOURCE_EXHAUSTED" in done.stderr) == (1, True), done


def test_a_rate_that_is_more_than_there_is_ends_all_the_same(shell: Shell) -> None:
    done = shell.run("bench", "--pairs", "1", "--seconds", "0.2", "--rate", "1000000", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["late"] > 0
    assert report["unanswered"] == 0
