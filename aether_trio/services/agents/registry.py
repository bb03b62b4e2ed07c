"""Stores the registered agent implementations (reference: tasks.md section 3).

REGISTER and UPDATE do the same: they replace a registration, and keep the time when it was first
made. Invariants: every resource prefix has one owner; a registration that is refused writes
nothing. Programs return a record or a RegistrationRefusal, and never raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code
from aether_trio.model.identity import IdentityError, check_token
from aether_trio.model.limits import KIB, MIB
from aether_trio.storage.base import Database, Execute, ExecuteMany, Fetch, Program, ProgramFactory, Row
from aether_trio.wire.pb import aether_pb2 as pb

T = TypeVar("T")

Registration = pb.AgentRegistrationInfo

PROFILE: Final = "profile"  # the launch parameter that names the orchestrators for the agent
MAX_REGISTRATION_BYTES: Final = 64 * KIB
MAX_PAGE_BYTES: Final = 3 * MIB  # of a list: clients refuse messages over 4 MiB
MAX_PAGE_ROWS: Final = 10_000
MAX_TEXT_BYTES: Final = 256  # of a profile and of a resource prefix: they are keys

_SELECT: Final = "SELECT info, registered_ms, updated_ms FROM agents"
_ONE: Final = f"{_SELECT} WHERE implementation = $1"
# Sizes are summed before a registration is fetched.
_PAGE: Final = f"""WITH found AS (
        SELECT implementation, LENGTH(info) + {2 * MAX_TEXT_BYTES} AS size FROM agents {{0}}
        ORDER BY implementation LIMIT $1 OFFSET $2
    ), summed AS (SELECT implementation, SUM(size) OVER (ORDER BY implementation) AS total FROM found)
    SELECT a.info, a.registered_ms, a.updated_ms FROM summed s JOIN agents a ON a.implementation = s.implementation
    WHERE s.total <= $3 ORDER BY a.implementation"""  # noqa: S608
_ALL: Final = _PAGE.format("")
_OF_PROFILE: Final = _PAGE.format("WHERE profile = $4")
_UPSERT: Final = (
    "INSERT INTO agents (implementation, profile, info, registered_ms, updated_ms) VALUES ($1, $2, $3, $4, $4) "
    "ON CONFLICT (implementation) DO UPDATE SET profile = excluded.profile, info = excluded.info, "
    "updated_ms = excluded.updated_ms RETURNING info, registered_ms, updated_ms"
)


@dataclass(frozen=True, slots=True)
class RegistrationRefusal:
    """Why an agent registration was refused; `conflict`: a resource prefix is taken."""

    reason: str
    conflict: bool = False


def normalised(info: Registration, implementation: str, *, strict: bool) -> Registration | RegistrationRefusal:
    """Return an agent registration as stored: its profile in launch_params, no times."""
    stored = Registration()
    stored.CopyFrom(info)
    stored.implementation = implementation
    try:
        check_token(implementation, "implementation", strict=strict)
    except IdentityError as error:
        return RegistrationRefusal(str(error))
    if not stored.launch_params.get(PROFILE) and info.orchestrator_profile:
        stored.launch_params[PROFILE] = info.orchestrator_profile
    for field in ("orchestrator_profile", "registered_at", "updated_at"):
        stored.ClearField(field)
    profile = stored.launch_params.get(PROFILE, "")
    seen: set[str] = set()
    for name, text in [
        (PROFILE, profile),
        *(("resource_type_prefix", one.resource_type_prefix) for one in info.resource_schema),
    ]:
        if len(text.encode()) > MAX_TEXT_BYTES:
            return RegistrationRefusal(f"{name} has {len(text.encode())} bytes; at most {MAX_TEXT_BYTES} are allowed")
    for entry in info.resource_schema:
        prefix = _prefix_key(entry.resource_type_prefix)
        if not prefix:
            return RegistrationRefusal("an entry of resource_schema has no resource_type_prefix")
        if prefix in seen:
            return RegistrationRefusal(
                f"resource_type_prefix {entry.resource_type_prefix!r} is in resource_schema twice", conflict=True
            )
        seen.add(prefix)
    if stored.ByteSize() > MAX_REGISTRATION_BYTES:
        size = stored.ByteSize()
        return RegistrationRefusal(f"the registration has {size} bytes; at most {MAX_REGISTRATION_BYTES} are allowed")
    return stored


def _prefix_key(prefix: str) -> str:
    """Return the key of a resource prefix: a trailing slash makes no difference."""
    return prefix.rstrip("/")


class AgentRegistry:
    """Reads and writes agent registrations, `most` at most (0: any number).

    Coroutines raise StorageUnavailable. `on_change` is called when one was written or deleted here,
    or may have been, also for a caller that was cancelled before.
    """

    def __init__(
        self, database: Database, clock: Clock, on_change: Callable[[], None], *, strict: bool = True, most: int = 0
    ) -> None:
        self._most = most
        self._database = database
        self._clock = clock
        self._strict = strict
        self._on_change = on_change

    async def find(self, implementation: str) -> Registration | None:
        """Return an implementation's registration; for "name:version" also that of "name"."""
        if "\0" in implementation:  # PostgreSQL's text cannot have it, so it is not registered
            return None
        return await self._database.read_small(partial(find, implementation))

    async def page(self, profile: str, offset: int, limit: int) -> tuple[list[Registration], int]:
        """Return a page of a profile's registrations ("": all), and how many there are."""
        return await self._database.read(partial(_page, profile.encode(), offset, limit))

    async def put(self, info: Registration, implementation: str) -> Registration | RegistrationRefusal:
        """Add or replace an agent registration."""
        stored = normalised(info, implementation, strict=self._strict)
        if isinstance(stored, RegistrationRefusal):
            return stored
        return await self._change(partial(_put, stored, self._clock.now_ms(), self._most))

    async def delete(self, implementation: str) -> bool:
        """Delete an agent registration; return whether there was one."""
        if "\0" in implementation:
            return False
        return await self._change(partial(_delete, implementation))

    async def _change(self, program: ProgramFactory[T]) -> T:
        try:
            result = await self._database.run(program, lambda _: self._on_change())
        except Exception:
            self._on_change()
            raise
        self._on_change()
        return result

    async def names(self) -> frozenset[str]:
        """Return the names of all registered implementations."""
        return frozenset(name for (name,) in await self._database.fetch("SELECT implementation FROM agents"))


def _read(row: Row) -> Registration:
    data, registered_ms, updated_ms = row
    info = Registration.FromString(data)
    info.orchestrator_profile = info.launch_params.get(PROFILE, "")
    info.registered_at = registered_ms // 1000
    info.updated_at = updated_ms // 1000
    return info


def find(implementation: str) -> Program[Registration | None]:
    """Read the registration of an implementation, or of its name without a version."""
    names = [implementation]
    if ":" in implementation:
        names.append(implementation.rpartition(":")[0])
    for name in names:
        rows = yield Fetch(_ONE, (name,))
        if rows:
            return _read(rows[0])
    return None


def _page(profile: bytes, offset: int, limit: int) -> Program[tuple[list[Registration], int]]:
    window = (limit if limit > 0 else MAX_PAGE_ROWS, offset, MAX_PAGE_BYTES)
    if profile:
        counted = yield Fetch("SELECT count(*) FROM agents WHERE profile = $1", (profile,))
        rows = yield Fetch(_OF_PROFILE, (*window, profile))
    else:
        counted = yield Fetch("SELECT count(*) FROM agents")
        rows = yield Fetch(_ALL, window)
    return [_read(row) for row in rows], int(counted[0][0])


def _put(info: Registration, now_ms: int, most: int) -> Program[Registration | RegistrationRefusal]:
    implementation = info.implementation
    known = yield Fetch("SELECT 1 FROM agents WHERE implementation = $1", (implementation,))
    if most and not known:
        [[count]] = yield Fetch("SELECT count(*) FROM agents")
        if count >= most:
            return RegistrationRefusal(
                f"{Code.QUOTA}: {count} implementations are registered, which is the limit (limits.agent_registrations); "
                "delete those that are not started any more"
            )
    prefixes = sorted(_prefix_key(entry.resource_type_prefix).encode() for entry in info.resource_schema)
    for prefix in prefixes:
        found = yield Fetch("SELECT implementation FROM agent_prefixes WHERE prefix = $1", (prefix,))
        if found and (owner := found[0][0]) != implementation:
            return RegistrationRefusal(f"resource_type_prefix {prefix.decode()!r} belongs to {owner}", conflict=True)
    profile = info.launch_params.get(PROFILE, "").encode()
    rows = yield Fetch(_UPSERT, (implementation, profile, info.SerializeToString(), now_ms))
    yield Execute("DELETE FROM agent_prefixes WHERE implementation = $1", (implementation,))
    if prefixes:
        yield ExecuteMany(
            "INSERT INTO agent_prefixes (prefix, implementation) VALUES ($1, $2)",
            [(prefix, implementation) for prefix in prefixes],
        )
    return _read(rows[0])


def _delete(implementation: str) -> Program[bool]:
    yield Execute("DELETE FROM agent_prefixes WHERE implementation = $1", (implementation,))
    count = yield Execute("DELETE FROM agents WHERE implementation = $1", (implementation,))
    return bool(count)
