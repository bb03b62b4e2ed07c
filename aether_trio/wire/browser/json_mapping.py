"""Convert protobuf messages to maps of their fields, for JSON and MessagePack.

The descriptors alone decide. A message is a map from the proto's own field names to values. A
field that holds its default is left out, and null means the same; a message field is in the map
when it is present, however empty. Repeated fields are lists, map fields are maps, enums are names
(a number is accepted, and is what an unknown value is written as). For JSON, bytes are standard
base64, 64-bit integers are decimal texts, and the numbers that JSON lacks are the texts "NaN",
"Infinity" and "-Infinity"; all as in proto3's own JSON mapping.

Invariants: what is written reads back as an equal message; what is read is refused, with the path
of the field, unless every part of it has a place in the message: unknown fields, two members of
one oneof, numbers out of range, wrong types. The depth of what is read is bounded by the messages
themselves: none of aether.v1 contains itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from aether_trio.wire.browser.scalars import ConversionError, Convert, kind_of, scalar_reader, scalar_writer, shown

__all__ = ["ConversionError", "MapConverter"]

M = TypeVar("M", bound=Message)
FieldMap: TypeAlias = dict[str, Any]
Fill: TypeAlias = Callable[[Message, Any], None]
"""Sets one field of a message from its plain value."""


@dataclass(frozen=True, slots=True)
class _MessageFields:
    """Converters of a message type's fields, and the oneof of each member."""

    writers: dict[str, Convert | None]
    fillers: dict[str, Fill]
    groups: dict[str, str]


class MapConverter:
    """Converts protobuf messages to maps for JSON or for MessagePack, and back."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._fields_of = cache(self._learn)  # bounded by the number of message types

    def to_map(self, message: Message) -> FieldMap:
        """Return `message` as a map of its fields; bytes stay bytes."""
        writers = self._fields_of(message.DESCRIPTOR).writers
        plain: FieldMap = {}
        for field, value in message.ListFields():
            name = field.name
            write = writers[name]
            plain[name] = value if write is None else write(value)
        return plain

    def fill_from_map(self, plain: object, message: M) -> M:
        """Fill the empty `message` from a map of fields. Raises ConversionError."""
        if type(plain) is not dict:
            raise ConversionError(f"expected a map of fields, not {kind_of(plain)}")
        shape = self._fields_of(message.DESCRIPTOR)
        if shape.groups and len(plain) > 1:
            _refuse_two_members(plain, shape.groups)
        fillers = shape.fillers
        for name, value in plain.items():
            fill = fillers.get(name)
            if fill is None:
                raise ConversionError(f"unknown field {shown(name)} in {message.DESCRIPTOR.name}")
            if value is not None:
                try:
                    fill(message, value)
                except ConversionError as error:
                    raise error.within(name) from None
        return message

    # -- learning a message type -------------------------------------------------------------------

    def _learn(self, descriptor: Descriptor) -> _MessageFields:
        # Any: protobuf's stubs type a field's message as optional.
        fields: list[Any] = list(descriptor.fields)
        return _MessageFields(
            {field.name: self._writer(field) for field in fields},
            {field.name: self._filler(field) for field in fields},
            {
                field.name: field.containing_oneof.name
                for field in fields
                if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
            },
        )

    def _writer(self, field: Any) -> Convert | None:
        if _is_map(field):
            return self._map_writer(field)
        write = self._value_writer(field)
        if not _is_repeated(field):
            return write
        return list if write is None else lambda values: [write(value) for value in values]

    def _map_writer(self, field: Any) -> Convert:
        write = self._value_writer(_entry(field)[1])
        if write is None:
            return dict
        return lambda entries: {key: write(entries[key]) for key in entries}

    def _value_writer(self, field: Any) -> Convert | None:
        return self.to_map if field.message_type is not None else scalar_writer(field, json=self._json)

    def _filler(self, field: Any) -> Fill:
        if _is_map(field):
            return self._map_filler(field)
        if field.message_type is not None:
            return (
                self._list_of_messages_filler(field.name) if _is_repeated(field) else self._message_filler(field.name)
            )
        read = scalar_reader(field, json=self._json)
        return _list_filler(field.name, read) if _is_repeated(field) else _scalar_filler(field.name, read)

    def _message_filler(self, name: str) -> Fill:
        def fill(message: Message, value: Any) -> None:
            part = getattr(message, name)
            part.SetInParent()  # an empty one counts as well
            self.fill_from_map(value, part)

        return fill

    def _list_of_messages_filler(self, name: str) -> Fill:
        def fill(message: Message, values: Any) -> None:
            add = getattr(message, name).add
            _each(values, lambda value: self.fill_from_map(value, add()))

        return fill

    def _map_filler(self, field: Any) -> Fill:
        name = field.name
        key_field, value_field = _entry(field)
        read_key = scalar_reader(key_field, json=self._json)
        read = None if value_field.message_type is not None else scalar_reader(value_field, json=self._json)

        def fill(message: Message, entries: Any) -> None:
            if type(entries) is not dict:
                raise ConversionError(f"expected a map, not {kind_of(entries)}")
            target = getattr(message, name)
            for key, value in entries.items():
                try:
                    if read is None:
                        self.fill_from_map(value, target[read_key(key)])
                    else:
                        target[read_key(key)] = read(value)
                except ConversionError as error:
                    raise error.within(shown(key)) from None

        return fill


def _scalar_filler(name: str, read: Convert) -> Fill:
    return lambda message, value: setattr(message, name, read(value))


def _list_filler(name: str, read: Convert) -> Fill:
    return lambda message, values: getattr(message, name).extend(_each(values, read))


def _each(values: Any, read: Convert) -> list[Any]:
    if type(values) is not list:
        raise ConversionError(f"expected a list, not {kind_of(values)}")
    done: list[Any] = []
    for value in values:
        try:
            done.append(read(value))
        except ConversionError as error:
            raise error.within(str(len(done))) from None
    return done


def _refuse_two_members(plain: FieldMap, groups: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, value in plain.items():
        group = groups.get(name)
        if group is not None and value is not None:
            if group in seen:
                raise ConversionError(f"{seen[group]} and {name} are members of one oneof ({group}); send one of them")
            seen[group] = name


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _entry(field: Any) -> tuple[Any, Any]:
    entry = field.message_type.fields_by_name
    key = entry["key"]
    assert key.cpp_type == FieldDescriptor.CPPTYPE_STRING, "every map of aether.v1 has texts for keys"
    return key, entry["value"]


def _is_repeated(field: Any) -> bool:
    # Newer protobuf versions have the property; the older ones have labels.
    known: bool | None = getattr(field, "is_repeated", None)
    return field.label == FieldDescriptor.LABEL_REPEATED if known is None else known
