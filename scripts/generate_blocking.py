"""Write client/blocking/operations.py, the blocking form of the async client.

    python scripts/generate_blocking.py             write it
    python scripts/generate_blocking.py --check     exit with 1 when it is not up to date

A coroutine method becomes a method that blocks, an async iterator an iterator, an async context
manager a context manager, and a property stays one. Arguments, results and docstrings are those of
the async class. tests/client/blocking/test_reach.py fails until this has run after a change.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final


class _StandIn:
    """Stands for any class of the module to write, whatever that file holds now."""

    def __class_getitem__(cls, _: object) -> type:
        return cls


_module = ModuleType("aether_trio.client.blocking.operations")
_module.__dict__["__getattr__"] = lambda name: type(name, (_StandIn,), {})
sys.modules[_module.__name__] = _module

from aether_trio.client import principals  # noqa: E402 - behind the stand-in
from aether_trio.client.client import Client  # noqa: E402 - behind the stand-in
from aether_trio.client.connection.outgoing_messages import Publication  # noqa: E402 - behind the stand-in
from aether_trio.client.jobs.job import Job  # noqa: E402 - behind the stand-in
from aether_trio.client.operations import NAMESPACES, GrantCache, ProxiedRequest, StreamedResponse, Tunnel  # noqa: E402 - behind the stand-in

PATH: Final = Path(__file__).parents[1] / "aether_trio/client/blocking/operations.py"
WIDTH: Final = 120

YIELDED: Final[dict[type, str]] = {
    GrantCache: "SyncGrantCache",
    Publication: "SyncPublication",
    ProxiedRequest: "SyncProxiedRequest",
    StreamedResponse: "SyncResponse",
    Tunnel: "SyncTunnel",
}
"""What operations hand out and that has methods: each has a blocking class, of this name."""

ATTRIBUTES: Final[dict[type, dict[str, tuple[str, str]]]] = {
    Publication: {
        "error": (
            "AetherError | None",
            "Why the message was refused; None if it was committed, or is not settled yet.",
        ),
        "settled": ("bool", "Whether the message is known to be committed, refused or in doubt."),
    },
    StreamedResponse: {
        "headers": ("Mapping[str, str]", "The headers of the HTTP response."),
        "status": ("int", "The HTTP status of the response."),
    },
    Job: {
        "assignment": ("Assignment", "The gateway's assignment of this task to this worker."),
        "end": ("JobEnd | None", "How the task ended for this worker; None while the worker has it."),
        "reason": ("str", "The error text with which the task failed."),
        "remark": ("str", "The text that is sent with COMPLETE. It may be set."),
        "task": ("Task", "The task as it was when this worker claimed it."),
    },
}
"""Attributes that are no properties, with their types and docstrings."""
MODULES: Final = {
    "AetherError": "aether_trio.client.errors",
    "Assignment": "aether_trio.client.operations.task_values",
    "JobEnd": "aether_trio.client.jobs.job",
    "Mapping": "collections.abc",
    "Task": "aether_trio.client.operations.task_values",
}
"""Where the types of those are."""
PLAIN: Final = {"forget", "statistics"}
"""Methods that do not wait and that a script may call."""

BY_HAND: Final = {"receive", "work", "run_tasks", "open_feed", "starts", "from_environment"}
"""Methods of clients whose blocking form has other arguments; blocking/client.py has them."""
ASYNC_ONLY: Final = {"serve_workflows"}
"""Methods of clients that a script has no use for: durable functions are coroutine functions."""
ON_TARGET: Final = {
    "assigned_id", "config", "connections", "negotiated_extensions", "resumed", "server_extensions", "session_id", "state",
}  # fmt: skip
"""Properties of clients that a script reads from `SyncClient.client`."""
INNER: Final = {"entered", "ever_written", "extra_attributes", "is_open"}
"""Properties that only the client itself reads."""

HEAD: Final = '''"""The client's operations, blocking; scripts/generate_blocking.py makes the file."""

from __future__ import annotations
'''
NAMESPACE: Final = '''class SyncNamespace(Blocking[N], Generic[N]):
    """Base of the blocking namespaces, such as SyncKv."""

    def within(self, timeout_s: float | None) -> Self:
        """Return this namespace with another time limit for answers, in seconds."""
        return type(self)(self._bridge, self._target.within(timeout_s))
'''


class Module:
    """The text of the blocking module, and the names that it imports."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._imports: dict[str, set[str]] = {}

    def use(self, module: str, *names: str) -> None:
        self._imports.setdefault(module, set()).update(names)

    def name_of(self, kind: type) -> str:
        """Return the name of one of our classes, and import it."""
        self.use(kind.__module__, kind.__name__)
        return kind.__name__

    def text(self) -> str:
        blocks = ["".join(_import(module, names) for module, names in sorted(self._imports.items()) if one(module))
                  for one in (lambda module: not module.startswith("aether"), lambda module: module.startswith("aether"))]  # fmt: skip
        return "\n".join([HEAD, *blocks]) + "\n" + "\n\n".join(self.parts)


def _import(module: str, names: set[str]) -> str:
    ordered = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    line = f"from {module} import {', '.join(ordered)}\n"
    if len(line) <= WIDTH:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")\n"


def public(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class that its blocking form has."""
    for name, found in inspect.getmembers(kind):
        if name[0] != "_" and (_waits(found) or name in PLAIN or (isinstance(found, property) and name not in INNER)):
            yield name, found


def _waits(found: Any) -> bool:
    """Whether this is a coroutine method, async context manager or async iterator."""
    if not inspect.isfunction(found):
        return False
    returns = str(inspect.signature(found, eval_str=False).return_annotation)
    return inspect.iscoroutinefunction(found) or returns.startswith("AsyncIterator[")


def owner_of(kind: type, name: str) -> type:
    """Return the class that defines this attribute."""
    return next(base for base in kind.__mro__ if name in vars(base))


def method(module: Module, kind: type, name: str, found: Any) -> str:
    """Return the source line that makes an async method blocking."""
    source = f"{module.name_of(kind)}.{name}"
    returns = str(inspect.signature(found, eval_str=False).return_annotation)
    if inspect.isasyncgenfunction(inspect.unwrap(found)):
        return f"    {name} = {_called(module, 'blocking_block')}({source}, {_wrapper(module, _inner(returns))})\n"
    if returns.startswith("AsyncIterator["):
        return f"    {name} = {_called(module, 'blocking_stream')}({source})\n"
    if not inspect.iscoroutinefunction(found):
        return (
            f"    {name} = {_called(module, 'called_in_loop' if returns == 'None' else 'called_at_once')}({source})\n"
        )
    if blocking := {one.__name__: text for one, text in YIELDED.items()}.get(returns):
        return f"    {name} = {_called(module, 'blocking_value')}({source}, {blocking})\n"
    return f"    {name} = {_called(module, 'blocking')}({source})\n"


def _called(module: Module, name: str) -> str:
    module.use("aether_trio.client.blocking.bridge", name)
    return name


def _inner(annotation: str) -> str:
    """Return the X of "AsyncIterator[X]"."""
    found = re.fullmatch(r"AsyncIterator\[(.*)\]", annotation)
    assert found is not None, annotation
    return found[1]


def _wrapper(module: Module, yielded: str) -> str:
    """Return the function that makes the value of an async context manager blocking."""
    by_name = {kind.__name__: text for kind, text in YIELDED.items()}
    if yielded in by_name:
        return by_name[yielded]
    item = _inner(yielded)
    if item in by_name:
        return f"{_called(module, 'streamed_as')}({by_name[item]})"
    return _called(module, "BlockingStream")


def reading(module: Module, name: str, found: property) -> str:
    """Return the source lines of a property of a blocking class."""
    getter = found.fget
    assert getter is not None
    returns = str(inspect.signature(getter, eval_str=False).return_annotation)
    value = f"self._target.{name}"
    if feed := re.fullmatch(r"Feed\[(.*)\]", returns):
        returns, value = f"BlockingStream[{feed[1]}]", f"BlockingStream(self._bridge, {value})"
        _called(module, "BlockingStream")
    _use_types(module, getter, returns)
    return _property(name, returns, str(inspect.getdoc(found)), value)


def attribute(module: Module, name: str, kind: str, doc: str) -> str:
    """Return the source lines of a property for an attribute of the async object."""
    for word in re.findall(r"[A-Za-z]+", kind):
        if word in MODULES:
            module.use(MODULES[word], word)
    text = _property(name, kind, doc, f"self._target.{name}")
    if "may be set" in doc:
        text += (
            f"\n    @{name}.setter\n    def {name}(self, value: {kind}) -> None:\n        self._target.{name} = value\n"
        )
    return text


def _property(name: str, kind: str, doc: str, value: str) -> str:
    summary, _, rest = doc.partition("\n")
    text = f"{summary}\n{textwrap.indent(rest, ' ' * 8)}\n        " if rest else summary
    return f'    @property\n    def {name}(self) -> {kind}:\n        """{text}"""\n        return {value}\n'


def _use_types(module: Module, getter: Any, annotation: str) -> None:
    for word in re.findall(r"[A-Za-z_]+", annotation):
        found = getter.__globals__.get(word)
        if word == "pb":
            module.use("aether_trio.wire.pb", "aether_pb2 as pb")
        elif found is not None:
            module.use(found.__module__, word)


def blocking_class(module: Module, name: str, kind: type, base: str, members: Sequence[tuple[str, Any]]) -> str:
    """Return the source text of the blocking form of an async class."""
    methods = [
        method(module, owner_of(kind, one), one, found) for one, found in members if not isinstance(found, property)
    ]
    properties = [reading(module, one, found) for one, found in members if isinstance(found, property)]
    properties += [attribute(module, one, *told) for one, told in ATTRIBUTES.get(kind, {}).items()]
    doc = (inspect.getdoc(kind) or "").partition("\n")[0].replace("async with", "with")
    if hasattr(kind, "__aiter__") and kind is StreamedResponse:
        _called(module, "BlockingStream")
        module.use("collections.abc", "Iterator")
        properties.append(
            "    def __iter__(self) -> Iterator[bytes]:\n        return BlockingStream(self._bridge, self._target)\n"
        )
    if kind is ProxiedRequest:
        properties.append(
            "    @property\n    def request(self) -> ProxiedRequest:\n"
            '        """The async form of the request: method, path, headers and body."""\n        return self._target\n'
        )
    body = "\n".join(part for part in ("".join(methods), *properties) if part)
    return f'class {name}({base}):\n    """{doc}"""\n\n{body}'


def client_members() -> dict[str, tuple[type, Any]]:
    """Return the members of clients of all kinds by name, with a class that has each."""
    found: dict[str, tuple[type, Any]] = {}
    for kind in (Client, *(getattr(principals, name) for name in principals.__all__)):
        for name, member in public(kind):
            found.setdefault(name, (owner_of(kind, name), member))
    return {name: one for name, one in found.items() if name not in BY_HAND | ASYNC_ONLY | ON_TARGET}


def generated() -> str:
    """Return the source text of the blocking module."""
    module = Module()
    module.use("typing", "Generic", "Self", "TypeVar")
    module.use("aether_trio.client.blocking.bridge", "Blocking")
    module.name_of(Client)
    module.use("aether_trio.client.operations.namespace", "Namespace")
    module.parts.append('C = TypeVar("C", bound=Client)\nN = TypeVar("N", bound=Namespace)\n')
    for kind, name in sorted(YIELDED.items(), key=lambda one: one[1]):
        module.parts.append(blocking_class(module, name, kind, f"Blocking[{module.name_of(kind)}]", list(public(kind))))
    module.parts.append(NAMESPACE)
    for namespace in sorted(NAMESPACES.values(), key=lambda one: one.__name__):
        name = module.name_of(namespace)
        members = [one for one in public(namespace) if one[0] != "within"]
        text = "".join(method(module, namespace, one, found) for one, found in members)
        doc = (inspect.getdoc(namespace) or "").partition("\n")[0]
        module.parts.append(f'class Sync{name}(SyncNamespace[{name}]):\n    """{doc}"""\n\n{text}')
    jobs = [one for one in public(Job) if one[0] != "give_up"]
    module.parts.append(blocking_class(module, "JobCalls", Job, f"Blocking[{module.name_of(Job)}]", jobs))
    module.parts.append(_client_calls(module))
    return module.text()


def _client_calls(module: Module) -> str:
    members = client_members().items()
    lines = [method(module, kind, name, found) for name, (kind, found) in members if not isinstance(found, property)]
    parts = ["".join(lines)]
    parts += [reading(module, name, found) for name, (_, found) in members if isinstance(found, property)]
    attributes = [f"    {name} = BlockingAttribute(Sync{kind.__name__})\n" for name, kind in NAMESPACES.items()]
    parts.insert(0, "".join(attributes))
    module.use("aether_trio.client.blocking.bridge", "BlockingAttribute")
    return (
        'class ClientCalls(Blocking[C], Generic[C]):\n    """Blocking methods and namespaces of the clients of all kinds."""\n\n'
        + "\n".join(parts)
    )


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PATH.write_text(generated())
    elif PATH.read_text() != generated():
        sys.exit(f"{PATH} is not up to date: run python scripts/generate_blocking.py")
