"""`aether context`: saves gateways by a name, and chooses one."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import click

from aether_trio.cli import exits
from aether_trio.cli.context_file import (
    SavedContext,
    SavedContexts,
    change_contexts,
    check_name,
    load_contexts,
)
from aether_trio.cli.options import complete_contexts, parse_gateway, split_address
from aether_trio.cli.output import print_facts, print_json, print_table, say


@click.group(
    name="context",
    epilog="""
\b
Examples:
  aether context save prod --gateway aethers://gw.example.com --workspace shop --api-key-env PROD_KEY
  aether context use prod
  aether sessions                      on that gateway
  aether --help; aether sessions --context lab
""",
)
def command() -> None:
    """Save gateways by a name: address, credential, TLS files and workspace.

    A value comes from the option, else from the environment, else from the context in use
    (`aether context use`, or --context or AETHER_CONTEXT for one command), else from its default.
    """


_file = click.Path(exists=True, dir_okay=False, resolve_path=True)


@command.command()
@click.argument("name", shell_complete=complete_contexts)
@click.option("--gateway", metavar="ADDRESS", help="HOST:PORT, or an address such as aethers://HOST:PORT.")
@click.option("--ops", metavar="HOST:PORT", help="Its ops port.  [default: port 9090 of the gateway's host]")
@click.option("--workspace", metavar="NAME", help="The workspace of commands that name none.")
@click.option("--api-key", metavar="KEY", help="The API key, which is written into the file of contexts.")
@click.option("--api-key-file", type=_file, help="A file with the API key, which each command reads.")
@click.option("--api-key-env", metavar="VARIABLE", help="The environment variable that has the API key.")
@click.option("--tls/--no-tls", default=None, help="Use TLS; implied by the options below.")
@click.option("--tls-ca", type=_file, help="PEM file of the authority to trust, instead of the system's.")
@click.option("--tls-cert", type=_file, help="PEM file of the client certificate.")
@click.option("--tls-key", type=_file, help="PEM file of its key.")
@click.option("--use", is_flag=True, help="Use it from now on.")
def save(name: str, use: bool, **given: Any) -> None:
    """Save the gateway NAME. A context of that name is replaced."""
    check_name(name)
    if not given["gateway"]:
        raise click.UsageError("say where the gateway is, with --gateway.")
    parse_gateway(given["gateway"])
    if given["ops"]:
        split_address(given["ops"], 9090)
    if sum(bool(given[one]) for one in ("api_key", "api_key_file", "api_key_env")) > 1:
        raise click.UsageError("--api-key, --api-key-file and --api-key-env exclude each other.")
    if bool(given["tls_cert"]) != bool(given["tls_key"]):
        raise click.UsageError("--tls-cert and --tls-key belong together: give both, or neither.")
    context = SavedContext(**{key: value for key, value in given.items() if value is not None})

    def change(known: SavedContexts) -> SavedContexts:
        return SavedContexts({**known.contexts, name: context}, name if use else known.current)

    changed = change_contexts(change)
    say(f"saved the context {name}")
    if changed.current != name:
        say(f"`aether context use {name}` makes commands use it", err=True)


@command.command()
@click.argument("name", shell_complete=complete_contexts)
def use(name: str) -> None:
    """Make commands use the gateway NAME; - for none."""

    def change(known: SavedContexts) -> SavedContexts:
        if name != "-":
            known.named(name)
        return replace(known, current="" if name == "-" else name)

    change_contexts(change)
    say("commands use no context" if name == "-" else f"commands use the context {name}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def list_contexts(as_json: bool) -> None:
    """Show the saved contexts, without credentials."""
    known = load_contexts()
    if as_json:
        rows = [_as_json(name, one, known.current) for name, one in sorted(known.contexts.items())]
        print_json(rows, indent=2)
        return
    print_table(
        ("context", "gateway", "workspace", "credential", ""),
        [
            (name, one.gateway, one.workspace, one.credential_text, "in use" if name == known.current else "")
            for name, one in sorted(known.contexts.items())
        ],
        "no context is saved; `aether context save` makes one",
        whole=("context", "gateway", "workspace"),
    )


@command.command()
@click.argument("name", required=False, shell_complete=complete_contexts)
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
def show(name: str | None, as_json: bool) -> None:
    """Show the context NAME, or the one in use, without its credential."""
    known = load_contexts()
    name = name or known.current
    if not name:
        raise exits.CliError("no context is in use; `aether context use` chooses one")
    one = known.named(name)
    if as_json:
        print_json(_as_json(name, one, known.current), indent=2)
        return
    facts = [("context", name), *((key.replace("_", " "), value) for key, value in _shown(one).items())]
    facts.append(("credential", one.credential_text))
    print_facts([(key, str(value).lower() if isinstance(value, bool) else value) for key, value in facts if value])


def _shown(one: SavedContext) -> dict[str, Any]:
    """Return the fields of a context without its credential."""
    return {key: value for key, value in asdict(one).items() if not key.startswith("api_key")}


def _as_json(name: str, one: SavedContext, current: str) -> dict[str, Any]:
    return {"name": name, **_shown(one), "credential": one.credential_text, "in_use": name == current}


@command.command()
@click.argument("name", shell_complete=complete_contexts)
def delete(name: str) -> None:
    """Delete the context NAME."""

    def change(known: SavedContexts) -> SavedContexts:
        known.named(name)
        others = {one: values for one, values in known.contexts.items() if one != name}
        return SavedContexts(others, "" if known.current == name else known.current)

    change_contexts(change)
    say(f"deleted the context {name}")
