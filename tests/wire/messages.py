"""Arbitrary messages as plain data, to be built with two sets of classes."""

from __future__ import annotations

from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

Plan: TypeAlias = dict[str, Any]
"""Field name → value: a scalar, a list, a dict (a map field), or the plan of a message."""

_INT32 = st.integers(-(2**31), 2**31 - 1)
_INT64 = st.integers(-(2**63), 2**63 - 1)
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=40),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_ENUM: _INT32,  # proto3 enums are open: a newer peer's values must survive
}


# Field descriptors are Any below: protobuf's stubs type a field's message as optional and as one of
# two classes.


def is_repeated(field: Any) -> bool:
    # Newer protobuf versions have the property; the older ones have labels.
    known: bool | None = getattr(field, "is_repeated", None)
    return field.label == FieldDescriptor.LABEL_REPEATED if known is None else known


def is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _one(field: Any, depth: int) -> st.SearchStrategy[Any]:
    return plans(field.message_type, depth - 1) if field.message_type else _SCALARS[field.type]


def _values(field: Any, depth: int) -> st.SearchStrategy[Any]:
    if is_map(field):
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(_one(key, depth), _one(value, depth), max_size=3)
    return st.lists(_one(field, depth), max_size=3) if is_repeated(field) else _one(field, depth)


@st.composite
def plans(draw: st.DrawFn, message: Descriptor, depth: int = 3) -> Plan:
    """Draw a plan of up to six fields of `message`, nested `depth` deep at most."""
    usable = [field for field in message.fields if depth > 0 or not field.message_type]
    if not usable:
        return {}
    chosen = draw(st.lists(st.sampled_from(usable), max_size=6, unique_by=lambda field: field.name))
    # Of a oneof only the first drawn member counts.
    taken: set[str] = set()
    plan: Plan = {}
    for field in chosen:
        group = field.containing_oneof.name if field.containing_oneof else field.name
        if group not in taken:
            taken.add(group)
            plan[field.name] = draw(_values(field, depth))
    return plan


@st.composite
def enveloped_plans(draw: st.DrawFn, message: Descriptor) -> Plan:
    """Draw a plan for an envelope in which one member of the oneof is always set."""
    member: Any = draw(st.sampled_from(list(message.oneofs_by_name["payload"].fields)))
    return {
        member.name: draw(plans(member.message_type)),
        "active_extensions": draw(st.lists(st.text(max_size=5), max_size=2)),
    }


def build(plan: Plan, message: Message) -> Message:
    """Fill `message` by the plan; an empty plan makes a sub-message present."""
    message.SetInParent()
    for name, value in plan.items():
        field: Any = message.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if is_map(field):
            of_messages = field.message_type.fields_by_name["value"].message_type
            for key, item in value.items():
                if of_messages:
                    build(item, target[key])
                else:
                    target[key] = item
        elif is_repeated(field):
            for item in value:
                if field.message_type:
                    build(item, target.add())
                else:
                    target.append(item)
        elif field.message_type:
            build(value, target)
        else:
            setattr(message, name, value)
    return message
