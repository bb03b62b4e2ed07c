"""A held port is given to no other process, and its owner can listen on it."""

from __future__ import annotations

import socket

import pytest

from aether_trio.devtools.ports import HeldPorts, held_port
from aether_trio.transport.socket.listener import open_tcp_listeners


def is_free(port: int) -> bool:
    """Whether a process that does not ask for shared use gets it."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_a_held_port_is_nobodys_but_its_owners() -> None:
    with held_port() as port:
        assert not is_free(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=30)
        for _ in range(2):  # it ends, and is started again
            (listener,) = open_tcp_listeners("127.0.0.1", port)
            with listener, socket.create_connection(("127.0.0.1", port), timeout=30):
                pass
            assert not is_free(port)
    assert is_free(port)


def test_the_ports_of_a_process_that_has_ended_are_held_until_it_is_there_again() -> None:
    (one,) = open_tcp_listeners("127.0.0.1", 0)
    (other,) = open_tcp_listeners("127.0.0.1", 0)
    ports = HeldPorts()
    with other:
        with one:
            addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other)]
        ports.hold((*addresses, ""))  # the second is in use, so it is its owner's
        number = int(addresses[0].rpartition(":")[2])
        assert not is_free(number)
        (again,) = open_tcp_listeners("127.0.0.1", number)
        with again:
            ports.release()
            assert not is_free(number)
    assert is_free(number)
