"""Reads the identity that a command is given, or makes one up."""

from __future__ import annotations

import secrets

import click

from aether_trio.model.identity import Identity, IdentityError, Kind


def made_up(kind: Kind, workspace: str = "default") -> Identity:
    """A fresh identity of this kind, for one command.

    Random, so that two commands at a time do not collide.
    """
    specifier = secrets.token_hex(4)
    if kind is Kind.AGENT:
        return Identity.agent(workspace, "cli", specifier)
    if kind is Kind.ORCHESTRATOR:
        return Identity.orchestrator("cli", specifier)
    assert kind is Kind.SERVICE
    return Identity.service("cli", specifier)


def parse_identity(text: str) -> Identity:
    """As Identity.parse, for --as. Raises click.BadParameter."""
    try:
        return Identity.parse(text)
    except IdentityError as error:
        raise click.BadParameter(str(error), param_hint="--as") from None
