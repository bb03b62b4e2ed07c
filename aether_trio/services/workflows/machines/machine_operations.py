"""Operations on state machines and their instances.

An instance is named by its id, or by MACHINE/INSTANCE where several machines have one of that id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import MAX_TOKEN_BYTES, IdentityError, check_token
from aether_trio.model.ids import IdFactory
from aether_trio.model.text import TextError, check_text, shown
from aether_trio.model.workflows.definition import MachineDefinition
from aether_trio.model.workflows.diagrams import Diagram, DiagramTooLarge, machine_diagram
from aether_trio.model.workflows.go_names import go_time
from aether_trio.model.workflows.keys import key_text, place_key
from aether_trio.model.workflows.reading import fold
from aether_trio.model.workflows.records import lap_problem
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.documents.compilation_thread import compile_in_thread
from aether_trio.services.workflows.documents.json_thread import in_json_thread
from aether_trio.services.workflows.documents.json_values import write_json, write_object
from aether_trio.services.workflows.documents.not_compiled import LARGE_BYTES
from aether_trio.services.workflows.documents.reader import read_json
from aether_trio.services.workflows.events.taken_events import MAX_DEPTH, is_deep
from aether_trio.services.workflows.machines.moves import MACHINE, MachineError, Machines
from aether_trio.services.workflows.requests.applying import CREATED, UNCHANGED, UPDATED, AppliedRow
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
    page_answer,
)
from aether_trio.services.workflows.requests.reach import within_reach
from aether_trio.services.workflows.stored import machine_rows
from aether_trio.services.workflows.stored.definitions import EVERYWHERE
from aether_trio.services.workflows.stored.machine_rows import InstanceRow, StoredMachine
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.WorkflowOperation

LISTED: Final = 100
_EVENT: Final = frozenset({"event", "data"})
"""The members of a document that names the event."""


class MachineOperations:
    """Performs operations on machines; `table` has them by number."""

    def __init__(self, engine: Engine, machines: Machines, access: WorkspaceAccess, ids: IdFactory) -> None:
        self._engine = engine
        self._machines = machines
        self._access = access
        self._ids = ids
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {
                Op.LIST_STATE_MACHINES: self._list,
                Op.GET_STATE_MACHINE: self._get,
                Op.CREATE_STATE_MACHINE: self._create,
                Op.DELETE_STATE_MACHINE: self._delete,
                Op.LIST_SM_INSTANCES: self._list_instances,
                Op.GET_SM_INSTANCE: self._get_instance,
                Op.CREATE_SM_INSTANCE: self._create_instance,
                Op.SEND_SM_EVENT: self._send,
            }
        )

    # -- machines ----------------------------------------------------------------------------------

    async def _list(self, asked: OperationAsked) -> OperationAnswer:
        workspaces, page = await self._access.visible(asked), await asked.page()
        place = page.place()
        found = await self._engine.database.read(lambda: machine_rows.of_workspaces(workspaces, page.limit + 1, place))
        return page_answer(found, page, shown_machine, lambda one: place_key(one.workspace, one.id))

    async def _get(self, asked: OperationAsked) -> OperationAnswer:
        return OperationAnswer(shown_machine(await self._find(asked, asked.id, AccessLevel.READ)))

    async def _find(self, asked: OperationAsked, id: str, level: AccessLevel, workspace: str = "") -> StoredMachine:  # noqa: A002
        """Find a machine of a workspace or of *. Raises OperationError."""
        workspace = workspace or asked.own_workspace
        for place in dict.fromkeys((workspace, EVERYWHERE)):
            found = await self._engine.database.read_small(partial(machine_rows.load, place, id))
            if found is not None and not await self._access.problem(asked.session, place, AccessLevel.READ):
                if level > AccessLevel.READ:
                    await self._access.need(asked.session, place, level)
                return found
        raise OperationError(f"state machine {shown(id)} not found in workspace {shown(workspace)}")

    async def diagram(self, asked: OperationAsked) -> bytes:
        """Return the states and transitions of a machine. Raises OperationError."""
        stored = await self._find(asked, asked.id, AccessLevel.READ)
        await self._compile(stored)
        drawn = partial(machine_diagram, self._machines.definition(stored))
        return await _written(drawn, {"workspace": stored.workspace}, stored)

    async def instance_diagram(self, asked: OperationAsked) -> bytes:
        """Return those of an instance's machine, with its state. Raises OperationError."""
        row = await self._find_instance(asked, AccessLevel.READ)
        stored = await self._engine.database.read_small(partial(machine_rows.load, row.defined_in, row.machine_id))
        if stored is None:
            raise OperationError(f"state machine {shown(row.machine_id)} is gone")
        await self._compile(stored)
        drawn = partial(machine_diagram, self._machines.definition(stored), row.state)
        return await _written(drawn, {"workspace": row.workspace, "instance_id": row.instance_id}, stored)

    async def _create(self, asked: OperationAsked) -> OperationAnswer:
        document = await asked.document()
        names = {fold(key) for key in document}
        if "definition" not in names and "states" not in names:
            raise OperationError('data is {"id": ID, "workspace": WORKSPACE, "definition": MACHINE}')
        # An answer that is sent back has the owner in it.
        document = {key: value for key, value in document.items() if fold(key) != "owner"}
        if asked.id and "id" not in names:
            document["id"] = asked.id
        if asked.workspace and "workspace" not in names:
            document["workspace"] = asked.workspace
        try:
            definition, ignored = await compile_in_thread(partial(read_json, MACHINE, document), len(asked.data))
        except ValueError as error:
            raise OperationError(str(error)) from None
        assert isinstance(definition, MachineDefinition)
        for title in definition.states:
            if problem := lap_problem(definition.states, title)[0]:
                raise OperationError(problem)
        await within_reach(self._access, asked.session, definition)
        owner = asked.session.identity.text

        def program(tx: TaskTransaction) -> Program[StoredMachine | None]:
            before = yield from machine_rows.load(definition.workspace, definition.id)
            if before is not None and before.active:
                return before if before.digest == definition.digest else None
            return (yield from self._machines.put(tx, definition, owner))

        stored = await self._engine.result(program)
        if stored is None:
            raise OperationError(
                f"there is a state machine {definition.id} in workspace {definition.workspace} with other content: "
                "apply the document, or delete that one first"
            )
        message = f"state machine {stored.id}"
        if ignored:
            message += f"; unknown keys were ignored: {', '.join(map(shown, ignored))}"
        return OperationAnswer(shown_machine(stored), message)

    async def _delete(self, asked: OperationAsked) -> OperationAnswer:
        found = await self._find(asked, asked.id, AccessLevel.READWRITE)
        now_ms = self._engine.clock.now_ms()
        await self._engine.result(lambda _: machine_rows.deactivate(found.workspace, found.id, now_ms), known=True)
        return OperationAnswer(message=f"state machine {found.id} is deactivated")

    # -- instances ---------------------------------------------------------------------------------

    async def _list_instances(self, asked: OperationAsked) -> OperationAnswer:
        """List instances, the latest changed first."""
        workspaces, page = await self._access.visible(asked), await asked.page(LISTED)
        behind = page.changed()
        found = await self._engine.database.read(
            lambda: machine_rows.listed(workspaces, asked.id, page.limit + 1, behind)
        )
        return page_answer(found, page, shown_instance, lambda one: f"{one.updated_ms} {one.timer_key}")

    async def _get_instance(self, asked: OperationAsked) -> OperationAnswer:
        return OperationAnswer(shown_instance(await self._find_instance(asked, AccessLevel.READ)))

    async def _find_instance(self, asked: OperationAsked, level: AccessLevel) -> InstanceRow:
        """Find an instance that the caller may use at a level. Raises OperationError."""
        workspaces = await self._access.visible(asked)
        found = await self._instances(workspaces, asked.id)
        if not found:
            raise OperationError(f"instance {shown(asked.id)} not found in workspace {shown(asked.own_workspace)}")
        if len(found) > 1:
            names = ", ".join(f"{one.machine_id}/{one.instance_id}" for one in found[:10])
            raise OperationError(f"several machines have an instance {shown(asked.id)}; name one: {shown(names, 800)}")
        if level > AccessLevel.READ:
            await self._access.need(asked.session, found[0].workspace, level)
        return found[0]

    async def _instances(self, workspaces: Sequence[str], id: str) -> Sequence[InstanceRow]:  # noqa: A002
        """Find what an id may mean: instances of the first workspace before others."""
        found = await self._engine.database.read_small(lambda: machine_rows.with_id(workspaces, id))
        parts = id.split("/")
        # The id of a machine may have slashes, too.
        for number in range(1, min(len(parts), 10) if not found else 0):
            machine, rest = "/".join(parts[:number]), "/".join(parts[number:])
            of_all = await self._engine.database.read_small(partial(machine_rows.with_id, workspaces, rest))
            found += [one for one in of_all if one.machine_id == machine]
        own = [one for one in found if one.workspace == workspaces[0]] or found
        shadowing = {one.machine_id for one in own if one.defined_in != EVERYWHERE}
        return [one for one in own if one.defined_in != EVERYWHERE or one.machine_id not in shadowing]

    async def _create_instance(self, asked: OperationAsked) -> OperationAnswer:
        fields = await _fields(asked)
        machine_id = fields.get("machineid", "") or asked.id
        if not isinstance(machine_id, str) or not machine_id:
            raise OperationError("machine_id is the id of the state machine")
        workspace = fields.get("workspace", "") or asked.own_workspace
        if not isinstance(workspace, str):
            raise OperationError("workspace is a text")
        try:
            instance_id = key_text(fields.get("instanceid"), "instance_id")
            check_text(machine_id, "machine_id", MAX_TOKEN_BYTES)
            if workspace != EVERYWHERE:
                check_token(workspace, "workspace", strict=False)
        except (TextError, IdentityError) as error:
            raise OperationError(str(error)) from None
        await self._access.need(asked.session, workspace)
        stored = await self._find(asked, machine_id, AccessLevel.READ, workspace)
        if not stored.active:
            raise OperationError(f"state machine {stored.id} is not active: create it again first")
        await self._compile(stored)
        operation = self._ids.unique()

        def program(tx: TaskTransaction) -> Program[InstanceRow]:
            current = yield from machine_rows.load(stored.workspace, stored.id)
            assert current is not None
            if not current.active:
                raise MachineError(f"state machine {stored.id} is not active: create it again first")
            return (
                yield from self._machines.create(tx, current, workspace, instance_id, fields.get("data"), operation)
            )

        row = await self._change(program)
        return OperationAnswer(shown_instance(row), f"instance {row.instance_id} is in state {row.state}")

    async def _send(self, asked: OperationAsked) -> OperationAnswer:
        event: Any = asked.secondary_id
        data = await asked.json(None)
        given = {fold(key): value for key, value in data.items()} if isinstance(data, dict) else {}
        if "event" in given and given.keys() <= _EVENT and event in ("", given["event"]):
            event, data = given["event"], given.get("data")
        if not isinstance(event, str) or not event:
            raise OperationError('secondary_id is the event\'s name, or data is {"event": NAME, "data": DATA}')
        if is_deep(data):
            raise OperationError(f"data is nested deeper than {MAX_DEPTH} levels")
        row = await self._find_instance(asked, AccessLevel.READWRITE)
        place = row.defined_in, row.machine_id
        await self._compile(await self._engine.database.read_small(lambda: machine_rows.load(*place)))
        operation = self._ids.unique()
        row = await self._change(lambda tx: self._machines.send(tx, row, event, data, operation))
        return OperationAnswer(shown_instance(row), f"instance {row.instance_id} is in state {row.state}")

    async def _compile(self, stored: StoredMachine | None) -> None:
        """Compile a large machine before its transaction, while other tasks run."""
        if stored is not None and len(stored.document) > LARGE_BYTES and not self._machines.is_compiled(stored):
            with suppress(ValueError):  # the transaction says what is wrong
                await compile_in_thread(partial(self._machines.definition, stored), len(stored.document))

    async def _change(self, program: Callable[[TaskTransaction], Program[InstanceRow]]) -> InstanceRow:
        try:
            return await self._engine.result(program)
        except MachineError as error:
            raise OperationError(str(error)) from None


def put_machine(
    machines: Machines, tx: TaskTransaction, definition: MachineDefinition, owner: str
) -> Program[AppliedRow]:
    """Apply the document of a machine: an applier of requests/applying.py."""
    place = definition.workspace, definition.id
    before = yield from machine_rows.load(*place)
    if before is not None and before.active and before.digest == definition.digest:
        return AppliedRow(MACHINE, *place, 0, UNCHANGED)
    yield from machines.put(tx, definition, owner)
    states = {} if before is None else (yield from machine_rows.open_states(*place))
    lost = [f"{count} in {shown(name)}" for name, count in states.items() if name not in definition.states]
    warning = ""
    if lost:
        told = ", ".join(lost[:10])
        warning = f"machine {definition.id}: open instances are in states that it does not have: {told}"
    change = UPDATED if before is not None and before.active else CREATED
    return AppliedRow(MACHINE, *place, 0, change, warning)


async def _written(draw: Callable[[], Diagram], about: dict[str, Any], stored: StoredMachine) -> bytes:
    try:
        return await in_json_thread(lambda: write_json({**draw(), **about}), len(stored.document))
    except DiagramTooLarge as error:
        raise OperationError(f"{error}: get the machine") from None


async def _fields(asked: OperationAsked) -> dict[str, Any]:
    """Return the members of an operation's object by their folded names."""
    found = await asked.json({})
    if not isinstance(found, dict):
        raise OperationError("data is not a JSON object")
    return {fold(key): value for key, value in found.items()}


def shown_machine(stored: StoredMachine) -> bytes:
    """Return a machine as operations answer it."""
    fields = {
        "id": stored.id,
        "workspace": stored.workspace,
        "active": stored.active,
        "owner": stored.owner,
        "created_at": go_time(stored.created_ms),
        "updated_at": go_time(stored.updated_ms),
    }
    return write_object(fields, definition=stored.document)


def shown_instance(row: InstanceRow) -> bytes:
    """Return an instance as operations answer it."""
    fields = {
        "instance_id": row.instance_id,
        "machine_id": row.machine_id,
        "workspace": row.workspace,
        "current_state": row.state,
        "transitions": row.transitions,
        "timeout_at": go_time(row.timeout_ms) if row.timeout_ms else None,
        "completed_at": go_time(row.completed_ms) if row.completed_ms else None,
        "created_at": go_time(row.created_ms),
        "updated_at": go_time(row.updated_ms),
    }
    return write_object(fields, data=row.data)
