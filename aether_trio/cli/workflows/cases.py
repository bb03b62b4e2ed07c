"""`aether workflows test`: runs the cases of files without a gateway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aether_trio.cli import exits
from aether_trio.cli.identities import access_options
from aether_trio.cli.options import GatewayTarget, workspace_option
from aether_trio.cli.output import print_json, say
from aether_trio.cli.workflows.files import decoded_files, files_of, read_workflow_files
from aether_trio.model.identity import Identity

if TYPE_CHECKING:
    from aether_trio.model.workflows.definition import Graph
    from aether_trio.model.workflows.trial import CaseResult
    from aether_trio.services.workflows.documents.reader import Documents


@click.command(
    epilog="""
\b
Examples:
  aether workflows test report.yaml
  aether workflows test workflows/
  aether workflows test report.yaml --case 'nothing is found'
  aether workflows test rules.yaml --events 24h
"""
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(allow_dash=True), metavar="FILE|DIR|-...")
@click.option("--case", "wanted", default="", metavar="NAME", help="Only the cases with this name.")
@click.option(
    "--events",
    default="",
    metavar="DURATION",
    help="Instead say what they would have done with the gateway's events of the last 24h, say.",
)
@click.option("--json", "as_object", is_flag=True, help="A JSON object with every case and how it has ended.")
@workspace_option
@access_options
def test(
    target: GatewayTarget,
    who: Identity,
    workspace: str,
    paths: tuple[str, ...],
    wanted: str,
    events: str,
    as_object: bool,
) -> None:
    """Run the `tests` of workflows on a virtual clock, without a gateway.

    With --events a gateway is asked: which rules, workflows and machines of the files its events
    would have moved, and with what. Nothing is applied, written or sent.

    \b
    Exit codes:
      0  every case ends as it expects
      1  one does not, a file is wrong, or with --events something would have failed
      2  there is no such file, or no case
    """
    if events:
        from aether_trio.cli.workflows.foretelling import print_foretold

        if wanted:
            raise click.UsageError("--events runs no case, so --case has no meaning with it.")
        found = read_workflow_files(files_of(paths), workspace).checked("nothing was tested")
        print_foretold(target, who, workspace, found.documents, events, as_object)
        return
    results = list(_results(_read(files_of(paths)), wanted))
    if not results:
        what = f"no case is named {wanted}" if wanted else "the workflows have no tests"
        raise exits.CliError(f"{what}: docs/workflows.md shows how one is written", exits.USAGE)
    failed = sum(not result.passed for _, _, result in results)
    if as_object:
        print_json({"passed": len(results) - failed, "failed": failed, "cases": list(map(_shown, results))}, indent=2)
    else:
        for place, workflow, result in results:
            say(f"{'ok    ' if result.passed else 'FAILED'} {workflow}: {result.name}")
            for difference in result.differences:
                say(f"       {place}: {difference}")
        cases = "1 case passes" if len(results) - failed == 1 else f"{len(results) - failed} cases pass"
        say(f"{cases}{f', {failed} fail' if failed > 1 else ', 1 fails' if failed else ''}")
    if failed:
        raise SystemExit(exits.FAILED)


def _read(files: Sequence[Path | None]) -> Documents:
    """Read files. Raises CliError for what is wrong, which is printed before."""
    from aether_trio.services.workflows.documents.reader import read_files

    decoded, errors = decoded_files(files)
    found = read_files(decoded)
    errors += found.errors
    for error in errors:
        say(error, err=True)
    if errors:
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        raise exits.CliError(f"{count}; nothing was tested")
    return found


def _results(found: Documents, wanted: str) -> Iterator[tuple[str, str, CaseResult]]:
    from aether_trio.model.workflows.definition import Graph
    from aether_trio.model.workflows.trial import run_case
    from aether_trio.services.workflows.stored.stored_graphs import schema_problem

    graphs: dict[str, Graph] = {one.id: one for one in found.definitions if isinstance(one, Graph)}
    for definition, places in zip(found.definitions, found.tests, strict=True):
        if not isinstance(definition, Graph):
            continue
        for case, place in zip(definition.tests, places, strict=True):
            if not wanted or case.name == wanted:
                yield place, definition.id, run_case(definition, case, known=graphs.get, validate=schema_problem)


def _shown(one: tuple[str, str, CaseResult]) -> dict[str, Any]:
    from aether_trio.services.workflows.documents.json_values import plain

    place, workflow, result = one
    return {
        "workflow": workflow,
        "case": result.name,
        "place": place,
        "passed": result.passed,
        "differences": list(result.differences),
        "status": result.status,
        "result": plain(result.result),
        "error": result.error,
        "error_type": result.error_type,
        "took_s": result.took_ms / 1000,
        "steps": {step: plain(dict(shown)) for step, shown in result.steps.items()},
    }
