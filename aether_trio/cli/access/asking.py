"""Where commands about access ask: a gateway, or the data of one that is stopped."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import click
import trio

from aether_trio.cli import exits
from aether_trio.cli.connect import open_client
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, load, settings_options
from aether_trio.cli.output import UNCONFIRMED, run_client, say, warn_unconfirmed
from aether_trio.model.identity import Identity
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.errors import StorageSetupError
from aether_trio.wire.pb import aether_pb2 as pb

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_OFFLINE_HELP: Final = (
    "Work on the data of --config (or of ./aether-data) without a gateway; it must not run on files. Audited."
)


class Ask(Protocol):
    """Performs one operation; its refusal is a CliError."""

    async def __call__(self, op: pb.ACLOperation) -> pb.ACLResponse: ...


@dataclass(frozen=True, slots=True)
class AccessSource:
    """Where the access data are: behind a gateway, or in the databases of settings."""

    target: GatewayTarget
    who: Identity
    offline: bool
    data_dir: str | None
    config_file: str | None
    sets: tuple[str, ...]

    def run(self, main: Callable[[Ask], Awaitable[T]], *, endless: bool = False) -> T:
        """Call `main` with an Ask; `endless`: only connecting has a time limit."""
        if not self.offline:
            result: T = run_client(_online, self.target, self.who, main, endless)
            return result
        settings = load(self.config_file, {"gateway.data_dir": self.data_dir}, self.sets).settings
        if not settings.storage.database and not (Path(settings.gateway.data_dir) / "tasks.db").exists():
            raise exits.CliError(f"there is no gateway's data in {settings.gateway.data_dir}", exits.SETTINGS)
        from aether_trio.gateway.offline import open_offline

        async def offline() -> T:
            async with open_offline(settings) as access:

                async def ask(op: pb.ACLOperation) -> pb.ACLResponse:
                    answer = await access.operate(op)
                    if not answer.success:
                        raise exits.CliError(answer.error)
                    return answer

                return await main(ask)

        try:
            return trio.run(offline)
        except* exits.CliError as group:
            raise exits.first_of(group) from None
        except* (StorageSetupError, StorageUnavailable) as group:
            raise exits.CliError(str(exits.first_of(group)), exits.SETTINGS, lines=True) from None
        except* OSError as group:
            error = exits.first_of(group)
            raise exits.CliError(f"{error.filename}: {error.strerror}", exits.SETTINGS) from None

    def ask(self, op: pb.ACLOperation) -> pb.ACLResponse:
        """Perform one operation."""
        return self.run(lambda ask: ask(op))


async def _online(target: GatewayTarget, who: Identity, main: Callable[[Ask], Awaitable[T]], endless: bool) -> T:
    async with open_client(target, who, endless=endless) as client:

        async def ask(op: pb.ACLOperation) -> pb.ACLResponse:
            answer: pb.ACLResponse = await client.request(pb.UpstreamMessage(acl_op=op), timeout=None)
            return answer

        return await main(ask)


def source_options(function: F) -> F:
    """Add the options of a gateway's client and of offline work, as `source`."""

    @click.option("--offline", is_flag=True, help=_OFFLINE_HELP)
    @click.option("--data-dir", type=click.Path(file_okay=False), help="With --offline: where the data lies.")
    @settings_options
    @access_options
    @functools.wraps(function)
    def wrapper(
        target: GatewayTarget,
        who: Identity,
        offline: bool,
        data_dir: str | None,
        config_file: str | None,
        sets: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        if data_dir is not None and not offline:
            raise click.UsageError("--data-dir is for --offline.")
        return function(source=AccessSource(target, who, offline, data_dir, config_file, sets), **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


def say_done(message: str) -> None:
    """Print the answer to a change; nodes that have not confirmed are a warning."""
    say(message.partition(f"; {UNCONFIRMED}")[0])
    warn_unconfirmed(message)
