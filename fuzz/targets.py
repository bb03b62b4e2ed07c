"""All targets, by the name under which they are selected."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fuzz import (
    codecs,
    credentials,
    first_bytes,
    framing,
    grpc_messages,
    http1,
    http2,
    init,
    tls,
    websocket,
    workflow_documents,
)


@dataclass(frozen=True, slots=True)
class Target:
    """One target: `check` judges an input of up to `max_bytes`, in a trio run."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    max_bytes: int = 16 * 1024


TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        "first-bytes": Target(first_bytes.check, first_bytes.seeds, 256),
        "tls": Target(tls.check, tls.seeds, 2048),
        "http2": Target(http2.check, http2.seeds, 64 * 1024),
        "grpc": Target(grpc_messages.check, grpc_messages.seeds),
        "framing": Target(framing.check, framing.seeds),
        "http1": Target(http1.check, http1.seeds),
        "websocket": Target(websocket.check, websocket.seeds),
        "codecs": Target(codecs.check, codecs.seeds),
        "init": Target(init.check, init.seeds, 4096),
        "credentials": Target(credentials.check, credentials.seeds, 4096),
        "workflow-documents": Target(workflow_documents.check, workflow_documents.seeds, 4096),
    }
)


def mutations(seeds: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Make `count` inputs of the seeds, always the same, for runs without libFuzzer."""
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(6):
                case 0:
                    data[at : at + 1] = bytes((chance.randrange(256),))
                case 1:
                    data[at:at] = chance.randbytes(chance.randrange(1, 9))
                case 2:
                    del data[at : at + chance.randrange(1, 17)]
                case 3:
                    data[at:at] = data[at : at + chance.randrange(1, 65)] * chance.randrange(1, 9)
                case 4:
                    other = chance.choice(seeds)
                    data[at:] = other[chance.randrange(len(other) + 1) :]
                case _:
                    data[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        yield bytes(data)
