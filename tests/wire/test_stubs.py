"""The committed type stubs describe the committed descriptor."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import Descriptor

from aether_trio.wire.pb import aether_pb2, sandbox_relay_tunnel_pb2


def field_numbers(body: list[ast.stmt]) -> set[str]:
    return {
        statement.target.id
        for statement in body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.target.id.endswith("_FIELD_NUMBER")
    }


def names_of(message: Descriptor) -> set[str]:
    return {f"{field.name.upper()}_FIELD_NUMBER" for field in message.fields}


@pytest.mark.parametrize("module", [aether_pb2, sandbox_relay_tunnel_pb2], ids=lambda module: module.__name__)
def test_every_message_field_and_constant_has_its_stub(module: ModuleType) -> None:
    assert module.__file__ is not None
    body = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    classes = {statement.name: statement.body for statement in body if isinstance(statement, ast.ClassDef)}
    file = module.DESCRIPTOR
    for name, message in file.message_types_by_name.items():
        assert field_numbers(classes[name]) == names_of(message), name
        inner = {statement.name for statement in classes[name] if isinstance(statement, ast.ClassDef)}
        assert {*message.nested_types_by_name, *message.enum_types_by_name} <= inner, name
    assert set(file.enum_types_by_name) <= set(classes)

    declared = [s.target.id for s in body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    values = {value.name for enum in file.enum_types_by_name.values() for value in enum.values}
    # POOL is a value of TaskAssignmentMode: nothing else at the top of the module may take a
    # value's name.
    assert sorted(name for name in declared if name in values) == sorted(values)
