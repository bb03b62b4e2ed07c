"""`aether config`: list, show and check settings."""

from __future__ import annotations

import click

from aether_trio.cli.options import load, settings_options
from aether_trio.cli.output import say
from aether_trio.config import describe


@click.group(
    name="config",
    epilog="""
\b
Examples:
  aether config default > aether.yaml         every setting, explained
  aether config check --config aether.yaml    is it right?
  aether config show --config aether.yaml     what counts, and who set it
""",
)
def command() -> None:
    """Show, check and explain the settings.

    A setting comes from, the later one winning: its default, the YAML file, the environment
    (AETHER_SECTION__KEY), options of the command, --set KEY.PATH=VALUE. An unknown key is an error,
    wherever it is.
    """


@command.command()
@click.option("--dev", is_flag=True, help="The defaults of development mode.")
def default(dev: bool) -> None:
    """Print every setting with its default and its meaning, as YAML."""
    if dev:
        loaded = load(None, {"gateway.dev": True}, ())
        say(describe(loaded.settings), lines=True, end="")
    else:
        say(describe(), lines=True, end="")


@command.command()
@settings_options
@click.option("--dev", is_flag=True, default=None, help="As `aether dev` would see it.")
@click.option("--changed", is_flag=True, help="Only what is not at its default.")
@click.option("--show-secrets", is_flag=True, help="Do not hide tokens.")
def show(config_file: str | None, sets: tuple[str, ...], dev: bool | None, changed: bool, show_secrets: bool) -> None:
    """Print the settings that are in effect here, and the source of each."""
    loaded = load(config_file, {"gateway.dev": dev}, sets)
    text = describe(loaded.settings, origins=loaded.origins, only_origins=changed, hide_secrets=not show_secrets)
    say(text, lines=True, end="")


@command.command()
@settings_options
def check(config_file: str | None, sets: tuple[str, ...]) -> None:
    """Say whether `aether serve` takes these settings, files that they name included.

    Exit code 3 when not. Addresses, ports, the data directory and the database are not tried.
    """
    loaded = load(config_file, {}, sets)
    from aether_trio.cli.running import refuse_missing_files, refuse_open_gateway, refuse_unusable_files

    refuse_open_gateway(loaded.settings)
    refuse_missing_files(loaded.settings)
    refuse_unusable_files(loaded.settings)
    changed = len(loaded.origins)
    say(f"ok: {changed} setting{'' if changed == 1 else 's'} given, the rest at default")
    if loaded.settings.refuses_every_client:
        say(
            "note: no client can connect: there is no API key and no client authority (see `aether keys new`)", err=True
        )
