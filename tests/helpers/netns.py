"""Another machine for TCP: a network namespace behind a veth pair; needs root."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator

_numbers = itertools.count()


class Unavailable(Exception):
    """This user, or this kernel, has no namespaces to give."""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class RemoteMachine:
    """`near` is this side's address, on which a gateway can listen.

    Commands run over there with `prefix`.
    """

    def __init__(self, name: str, near: str) -> None:
        self.name, self.near = name, near
        self.prefix = ("ip", "netns", "exec", name)

    def vanish(self) -> None:
        _ip("-n", self.name, "link", "set", "far", "down")


@contextlib.contextmanager
def remote_machine() -> Iterator[RemoteMachine]:
    """Raises Unavailable where it cannot be made."""
    number = next(_numbers)
    tag = f"{os.getpid():x}{number:x}"
    name, link = f"aether{tag}", f"ae{tag}"[:15]
    subnet = f"10.213.{(os.getpid() + number) % 250}"
    try:
        _ip("netns", "add", name)
    except FileNotFoundError:
        raise Unavailable("there is no `ip` command") from None
    try:
        _ip("link", "add", link, "type", "veth", "peer", "name", "far", "netns", name)
        _ip("addr", "add", f"{subnet}.1/24", "dev", link)
        _ip("link", "set", link, "up")
        _ip("-n", name, "addr", "add", f"{subnet}.2/24", "dev", "far")
        _ip("-n", name, "link", "set", "far", "up")
        yield RemoteMachine(name, f"{subnet}.1")
    finally:
        # Takes both ends of the link along.
        subprocess.run(["ip", "netns", "del", name], check=False)
