"""There are enough source addresses, each used within its ports, and bound."""

from __future__ import annotations

import socket
from collections import Counter

import pytest

from loadtests import addresses
from loadtests.addresses import IP_BIND_ADDRESS_NO_PORT, TooMany, processes_for, source_of, sources


def test_few_users_leave_the_source_to_the_kernel() -> None:
    assert sources("127.0.0.1", 25_000, each=25_000) == ("",)
    assert sources("192.0.2.1", 25_000, each=25_000) == ("",)


def test_beyond_that_the_loopback_network_is_spread() -> None:
    found = sources("127.0.0.1", 60_000, each=25_000)
    assert found == ("", "127.1.0.1", "127.1.0.2")
    used = Counter(source_of(index, found, 25_000) for index in range(60_000))
    assert used == {"": 25_000, "127.1.0.1": 25_000, "127.1.0.2": 10_000}


def test_addresses_go_on_over_the_end_of_a_byte() -> None:
    found = sources("localhost", 300 * 1000, each=1000)
    assert found[255:258] == ("127.1.0.255", "127.1.1.0", "127.1.1.1")
    assert len(set(found)) == 300


def test_elsewhere_they_must_be_named() -> None:
    with pytest.raises(TooMany, match=r"need 2 source addresses .* --source"):
        sources("192.0.2.1", 30_000, each=25_000)
    assert sources("192.0.2.1", 30_000, ("192.0.2.7", "192.0.2.8", "192.0.2.9"), 25_000) == ("192.0.2.7", "192.0.2.8")
    with pytest.raises(TooMany, match="--source names 1"):
        sources("192.0.2.1", 30_000, ("192.0.2.7",), 25_000)


def test_a_narrow_port_range_gives_each_address_fewer() -> None:
    assert 1 <= addresses.per_address() <= addresses.PER_ADDRESS


def test_two_connections_from_a_spread_address_share_a_port_range() -> None:
    (source,) = sources("127.0.0.1", 2, each=1)[1:]
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(2):
            with socket.socket() as client:
                client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                client.bind((source, 0))
                assert client.getsockname()[1] == 0  # chosen at connect
                client.connect(server.getsockname())
                accepted, peer = server.accept()
                accepted.close()
                assert peer[0] == source


def test_as_few_processes_as_the_open_files_allow() -> None:
    assert processes_for(15_000, 20_000, None, own_gateway=True) == 1
    assert processes_for(45_000, 20_000, None, own_gateway=False) == 3
    assert processes_for(100, 20_000, 2, own_gateway=False) == 2


def test_too_many_users_for_the_open_files_are_refused_with_the_remedy() -> None:
    with pytest.raises(TooMany, match=r"at most 19,744 users.*ulimit"):
        processes_for(20_000, 20_000, None, own_gateway=True)
    with pytest.raises(TooMany, match="--processes says 2"):
        processes_for(45_000, 20_000, 2, own_gateway=False)
