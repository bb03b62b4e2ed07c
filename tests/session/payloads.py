"""Walk through the fields of a request, and set them one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb

Path = tuple[FieldDescriptor, ...]


def is_map(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_MESSAGE and bool(field.message_type.GetOptions().map_entry)


def leaves(descriptor: Descriptor, path: Path = ()) -> Iterator[Path]:
    """Return the path to each value in a message, each message within itself once."""
    for field in descriptor.fields:
        here = (*path, field)
        if field.type != FieldDescriptor.TYPE_MESSAGE or is_map(field):
            yield here
        elif field.message_type not in [one.message_type for one in path]:
            yield from leaves(field.message_type, here)


def put(message: Any, path: Path, value: Any) -> None:
    for field in path[:-1]:
        message = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
    last = path[-1]
    if is_map(last):
        getattr(message, last.name)[value[0]] = value[1]
    elif last.is_repeated:
        getattr(message, last.name).append(value)
    else:
        setattr(message, last.name, value)


def spelled(path: Path) -> str:
    return ".".join(field.name for field in path)


def received(peer: MemoryLink) -> list[pb.DownstreamMessage]:
    """All that has arrived, taken."""
    found = list(peer._downstream)
    peer._downstream.clear()
    return found
