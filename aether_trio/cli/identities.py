"""The identity with which a command connects: given by --as, or made up."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from aether_trio.cli.options import GatewayTarget, client_options
from aether_trio.model.identity import Identity, IdentityError, Kind

F = TypeVar("F", bound=Callable[..., Any])

ADMINISTRATOR: Final = "admin"
"""The user whose token `aether init` makes, and who is in the role of administrators."""


def made_up(kind: Kind, workspace: str = "default") -> Identity:
    """Make a random identity of this kind, so that two commands do not collide."""
    specifier = secrets.token_hex(4)
    if kind is Kind.AGENT:
        return Identity.agent(workspace, "cli", specifier)
    if kind is Kind.ORCHESTRATOR:
        return Identity.orchestrator("cli", specifier)
    if kind is Kind.USER:
        return Identity.user(ADMINISTRATOR, f"cli-{specifier}")
    assert kind is Kind.SERVICE
    return Identity.service("cli", specifier)


def parse_identity(text: str) -> Identity:
    """Parse the identity that --as gives. Raises click.BadParameter."""
    try:
        return Identity.parse(text)
    except IdentityError as error:
        raise click.BadParameter(str(error), param_hint="--as") from None


def asking_options(kind: Kind, who_may: str) -> Callable[[F], F]:
    """Add --as and the client options to a command, as `target` and `who`."""

    def add(function: F) -> F:
        @click.option("--as", "viewer", metavar="IDENTITY", help=who_may)
        @client_options
        @functools.wraps(function)
        def wrapper(target: GatewayTarget, viewer: str | None, **kwargs: Any) -> Any:
            return function(target=target, who=parse_identity(viewer) if viewer else made_up(kind), **kwargs)

        return wrapper  # type: ignore[return-value]  # click replaces it anyway

    return add


access_options: Final = asking_options(
    Kind.USER, f"Who asks.  [default: a window of the user {ADMINISTRATOR}, an administrator]"
)
"""The options of commands by which people administer the gateway."""
