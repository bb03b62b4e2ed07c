"""Our .proto files say, on the wire, exactly what the published SDK's say."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)
from scitrera_aether_client.proto import aether_pb2 as sdk_aether
from scitrera_aether_client.proto import sandbox_relay_tunnel_pb2 as sdk_tunnel

from aether_trio.wire.pb import POOL, aether_pb2, sandbox_relay_tunnel_pb2
from aether_trio.wire.pb.aether_grpc import AetherGatewayBase
from aether_trio.wire.pb.sandbox_relay_tunnel_grpc import SandboxRelayTunnelBase

PAIRS = [
    pytest.param(aether_pb2, sdk_aether, id="aether"),
    pytest.param(sandbox_relay_tunnel_pb2, sdk_tunnel, id="sandbox_relay_tunnel"),
]


def parse(module: ModuleType) -> FileDescriptorProto:
    return FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


def facts(file: FileDescriptorProto) -> set[str]:
    """List everything about a file that shows on the wire or in generated code."""
    lines = {f"package {file.package}", f"syntax {file.syntax}"}
    for message in file.message_type:
        lines.update(message_facts(message, file.package))
    for enum in file.enum_type:
        lines.update(enum_facts(enum, file.package))
    for service in file.service:
        lines.update(service_facts(service, file.package))
    return lines


def message_facts(message: DescriptorProto, scope: str) -> Iterator[str]:
    name = f"{scope}.{message.name}"
    yield f"message {name}{' (map entry)' if message.options.map_entry else ''}"
    yield from reserved_facts(name, ((r.start, r.end) for r in message.reserved_range), message.reserved_name)
    for field in message.field:
        yield f"field {name}.{field.name} = {field.number}: {field_facts(field, message)}"
    for nested in message.nested_type:
        yield from message_facts(nested, name)
    for enum in message.enum_type:
        yield from enum_facts(enum, name)
    for extension in message.extension_range:
        yield f"extensions of {name}: {extension.start} to {extension.end}"


def field_facts(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    words = [FieldDescriptorProto.Label.Name(field.label), FieldDescriptorProto.Type.Name(field.type), field.type_name]
    if field.proto3_optional:
        words.append("explicit presence")
    elif field.HasField("oneof_index"):
        words.append(f"in oneof {message.oneof_decl[field.oneof_index].name}")
    words += [f"default {field.default_value!r}"] if field.HasField("default_value") else []
    words += [f"options {field.options}".strip()] if field.HasField("options") else []
    return " ".join(filter(None, words))


def enum_facts(enum: EnumDescriptorProto, scope: str) -> Iterator[str]:
    name = f"{scope}.{enum.name}"
    yield f"enum {name}{' (aliases)' if enum.options.allow_alias else ''}"
    # An enum's reserved ranges include their end, those of a message do not.
    yield from reserved_facts(name, ((r.start, r.end + 1) for r in enum.reserved_range), enum.reserved_name)
    for value in enum.value:
        yield f"value {name}.{value.name} = {value.number}"
    yield f"default of {name} is {enum.value[0].name}"


def service_facts(service: ServiceDescriptorProto, scope: str) -> Iterator[str]:
    yield f"service {scope}.{service.name}"
    for method in service.method:
        ask = ("stream " if method.client_streaming else "") + method.input_type
        answer = ("stream " if method.server_streaming else "") + method.output_type
        yield f"method {scope}.{service.name}.{method.name}: {ask} -> {answer}"


def reserved_facts(scope: str, ranges: Iterator[tuple[int, int]], names: object) -> Iterator[str]:
    for start, end in ranges:
        for number in range(start, end):
            yield f"reserved {scope} number {number}"
    for name in names:  # type: ignore[attr-defined]
        yield f"reserved {scope} name {name}"


@pytest.mark.parametrize(("ours", "sdk"), PAIRS)
def test_every_fact_is_the_sdks(ours: ModuleType, sdk: ModuleType) -> None:
    mine, theirs = facts(parse(ours)), facts(parse(sdk))
    differences = [f"missing: {line}" for line in theirs - mine] + [f"not in the SDK: {line}" for line in mine - theirs]
    assert not differences, "\n" + "\n".join(sorted(differences, key=lambda line: line.partition(": ")[2]))


def test_the_comparison_sees_as_much_as_there_is() -> None:
    kinds = [line.partition(" ")[0] for line in facts(parse(sdk_aether))]
    assert kinds.count("message") == 199, "map entries included"
    assert kinds.count("field") == 1279
    assert kinds.count("method") == 1


def test_the_comparison_notices_each_kind_of_change() -> None:
    original = parse(aether_pb2)

    def changed(path: str) -> set[str]:
        file = FileDescriptorProto()
        file.CopyFrom(original)
        messages = {message.name: message for message in file.message_type}
        send, kv, acl = messages["SendMessage"], messages["KVOperation"], messages["ACLOperation"]
        match path:
            case "number":
                send.field[0].number = 99
            case "type":
                send.field[0].type = FieldDescriptorProto.TYPE_BYTES
            case "label":
                send.field[0].label = FieldDescriptorProto.LABEL_REPEATED
            case "presence":
                send.field[0].proto3_optional = True
            case "oneof":
                messages["UpstreamMessage"].oneof_decl[0].name = "other"
            case "enum value":
                kv.enum_type[0].value[1].number = 99
            case "reserved number":
                del acl.reserved_range[0]
            case "reserved name":
                del acl.reserved_name[0]
            case "reserved in enum":
                del acl.enum_type[0].reserved_range[0]
            case "streaming":
                file.service[0].method[0].client_streaming = False
            case "map":
                messages["KVResponse"].nested_type[0].options.map_entry = False
            case "deprecation":
                messages["ConfigSnapshot"].field[0].ClearField("options")
        return facts(file)

    kinds = [
        "number", "type", "label", "presence", "oneof", "enum value", "reserved number", "reserved name",
        "reserved in enum", "streaming", "map", "deprecation",
    ]  # fmt: skip
    unnoticed = [kind for kind in kinds if changed(kind) == facts(original)]
    assert not unnoticed


@pytest.mark.parametrize(("ours", "sdk"), PAIRS)
def test_the_module_offers_what_the_sdks_module_offers(ours: ModuleType, sdk: ModuleType) -> None:
    for name, message in sdk.DESCRIPTOR.message_types_by_name.items():
        assert getattr(ours, name).DESCRIPTOR.full_name == message.full_name
        for nested in message.enum_types_by_name.values():
            wrapper = getattr(getattr(ours, name), nested.name)
            assert wrapper.items() == getattr(getattr(sdk, name), nested.name).items()
    for name, enum in sdk.DESCRIPTOR.enum_types_by_name.items():
        assert getattr(ours, name).items() == getattr(sdk, name).items()
        for value in enum.values:
            assert getattr(ours, value.name) == value.number


def test_the_pool_is_private_and_shared_by_both_modules() -> None:
    assert aether_pb2.DESCRIPTOR.pool is POOL
    assert sandbox_relay_tunnel_pb2.DESCRIPTOR.pool is POOL
    assert sdk_aether.DESCRIPTOR.pool is not POOL
    frame = sandbox_relay_tunnel_pb2.TunnelFrame(up=aether_pb2.UpstreamMessage())
    assert type(frame.up) is aether_pb2.UpstreamMessage


def test_classes_know_their_module() -> None:
    assert f"{aether_pb2.__name__}.SendMessage" in repr(aether_pb2.SendMessage)


@pytest.mark.parametrize("base", [AetherGatewayBase, SandboxRelayTunnelBase])
def test_service_bases_map_the_descriptors_methods_to_our_classes(base: type) -> None:
    mapping = type("Served", (base,), dict.fromkeys(base.__abstractmethods__))().__mapping__()  # type: ignore[attr-defined]
    [service] = [
        service
        for module in (aether_pb2, sandbox_relay_tunnel_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        if f"{service.name}Base" == base.__name__
    ]
    assert set(mapping) == {f"/{service.full_name}/{method.name}" for method in service.methods}
    for method in service.methods:
        handler = mapping[f"/{service.full_name}/{method.name}"]
        assert handler.request_type.DESCRIPTOR is method.input_type
        assert handler.reply_type.DESCRIPTOR is method.output_type
        assert handler.cardinality.client_streaming == method.client_streaming
        assert handler.cardinality.server_streaming == method.server_streaming
