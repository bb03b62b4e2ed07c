"""The aether.v1 message classes, built at import from `aether.binpb` in a descriptor pool of their own.

protoc's ordinary Python output registers its file in protobuf's process-wide default pool, and the published SDK registers
its own copy of aether.v1 there too. Two different files that define the same symbols in one pool is a TypeError at
import, so a program that uses both libraries could not start. A private pool avoids that: the two sets of classes are
strangers to each other (isinstance never holds across them) and meet only as bytes.

`aether.binpb` is a serialized FileDescriptorSet, dependencies first, written by scripts/compile_proto.py together with the
type stubs. Use the modules beside this one, not this one:

    from aether_trio.wire.pb import aether_pb2 as pb

The pool itself is an attribute here and not there: `pb.POOL` is a value of TaskAssignmentMode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

__all__ = ["POOL", "exports"]


def _open_pool(serialized_set: bytes) -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(serialized_set).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL: Final = _open_pool(Path(__file__).with_name("aether.binpb").read_bytes())


def exports(file_name: str, module: str) -> dict[str, Any]:
    """What a protoc-generated `module` for `file_name` would define: messages, enums, their values, and the descriptor.

    Nested messages and enums hang off their message class, where protobuf itself puts them. Services are not included:
    the grpclib bases are in the `*_grpc` modules.
    """
    file: FileDescriptor = POOL.FindFileByName(file_name)
    names: dict[str, Any] = {"DESCRIPTOR": file}
    for name, enum in file.enum_types_by_name.items():
        names[name] = EnumTypeWrapper(enum)
        names.update((value.name, value.number) for value in enum.values)
    for name, message in file.message_types_by_name.items():
        message_class = names[name] = GetMessageClass(message)
        message_class.__module__ = module
    return names
