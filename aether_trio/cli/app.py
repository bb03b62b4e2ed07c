"""The table of the subcommands of `aether`."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from aether_trio.cli.exits import CLOSED, EXIT_CODES_TEXT, INTERRUPTED, USAGE, CliError, first_of
from aether_trio.cli.output import OutputClosed, OutputFailed, leave_closed_output, output_failed, visible
from aether_trio.version import __version__

# name: (module, line for the overview), so that `aether --help` imports no module.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "dev": ("dev", "Start a gateway for development on this machine."),
    "serve": ("serve", "Start a gateway that others reach; asks for credentials."),
    "send": ("send", "Send one message to a topic."),
    "tail": ("tail", "Show a topic's messages as they come."),
    "kv": ("kv", "Read and write the key-value store."),
    "tasks": ("tasks", "Create, find, watch, cancel and retry tasks."),
    "workflows": ("workflows", "Apply workflows, run them, and steer their executions."),
    "dlq": ("dlq", "List, requeue and resolve dead letters."),
    "agents": ("agents", "Show, register and start agents that can be started."),
    "orchestrate": ("orchestrate", "Start agents when they are needed."),
    "sessions": ("sessions", "Show connected participants; disconnect one."),
    "topics": ("topics", "Show topics, their consumers and their lag; purge one."),
    "workspaces": ("workspaces", "Show, create, change and delete workspaces."),
    "quotas": ("quotas", "Show and set the limits of single workspaces."),
    "grants": ("grants", "Show who acts for whom, and revoke it."),
    "requests": ("requests", "Show, approve and deny requests to act for someone."),
    "audit": ("audit", "Search, follow, check and export the record of who did what."),
    "context": ("context", "Save gateways by a name, and choose one."),
    "bench": ("bench", "Measure how fast a gateway is."),
    "config": ("config_command", "Show, check and explain the settings."),
    "backup": ("backup", "Copy a gateway's data at one moment, while it runs."),
    "restore": ("restore", "Put a backup into a data directory."),
    "init": ("init", "Make what a gateway for others needs: secrets, certificates, settings."),
    "keys": ("keys", "Make API keys for the settings file."),
    "access": ("access", "Say who may do what: rules, groups, locks, policies."),
    "tokens": ("tokens", "Make, list and revoke API tokens of the database."),
    "errors": ("errors", "Say what an error code means, and what to do."),
    "version": ("version_command", "Show the version."),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"aether_trio.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the completions of a word; none of them imports a command."""
        if not incomplete or incomplete[0].isalpha():
            return [
                CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)
            ]
        return super().shell_complete(ctx, incomplete)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the command line; a `--help` that cannot be written is an error."""
        try:
            return super().make_context(*args, **extra)
        except OSError as error:
            raise _unwritten(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; Ctrl-C and a closed output end it without a traceback."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if not isinstance(error, CliError):
                error.message = visible(error.message, lines=True)  # type: ignore[misc]  # click reads it later
            raise
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except OutputClosed as closed:
            raise _end_of(closed) from None
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is not None:
                raise SystemExit(INTERRUPTED) from None
            closed_group = group.subgroup(OutputClosed)
            if closed_group is not None:
                raise _end_of(first_of(closed_group)) from None
            raise
        except OSError as error:
            raise _unwritten(error) from None
        except UnicodeEncodeError as error:
            # Bytes from the shell that are no UTF-8 become surrogates, which no message can hold.
            argument = next((one for one in sys.argv if any("\udc80" <= letter <= "\udcff" for letter in one)), None)
            if argument is None:
                raise
            raise CliError(
                f"{ascii(os.fsencode(argument))[1:]} is not UTF-8; give bytes on standard input, with -", USAGE
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message} The commands are {', '.join(COMMANDS)}.", ctx) from None


def _unwritten(error: OSError) -> BaseException:
    """Return what ends a command whose help, which click writes, cannot be written."""
    return _end_of(output_failed(error, err=False)) if error.errno == errno.ENOSPC and not error.filename else error


def _end_of(closed: OutputClosed) -> BaseException:
    """Return what ends a command whose output is closed, or cannot be written."""
    leave_closed_output()
    return CliError(str(closed)) if isinstance(closed, OutputFailed) else SystemExit(CLOSED)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=f"""
\b
Start here:
  aether dev                                        in one terminal
  aether tail ag::default::echo::1                  in a second one
  aether send ag::default::echo::1 "hello"          in a third one

{EXIT_CODES_TEXT}
""",
)
@click.version_option(__version__, prog_name="aether", message="%(prog)s %(version)s")
def app() -> None:
    """Run, use and look at Aether gateways, which deliver durable messages."""
