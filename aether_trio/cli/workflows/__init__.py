"""`aether workflows`: applies definitions, and runs and steers executions."""

from __future__ import annotations

import click

from aether_trio.cli.workflows.authoring import apply, validate
from aether_trio.cli.workflows.cases import test
from aether_trio.cli.workflows.forking import fork
from aether_trio.cli.workflows.instances import instances
from aether_trio.cli.workflows.joins import joins
from aether_trio.cli.workflows.past import history, watch
from aether_trio.cli.workflows.redriving import redrive
from aether_trio.cli.workflows.running import executions, run, wait
from aether_trio.cli.workflows.schedules import backfill, schedules
from aether_trio.cli.workflows.showing import delete, list_workflows, show
from aether_trio.cli.workflows.steering import answer, cancel, pause, resume, retry, rotate, signal


@click.group(
    name="workflows",
    epilog="""
\b
Examples:
  aether workflows validate report.yaml
  aether workflows test report.yaml
  aether workflows apply report.yaml
  aether workflows run report topic=rust --wait
  aether workflows executions --status failed
  aether workflows show EXECUTION
  aether workflows watch EXECUTION
  aether workflows answer EXECUTION
  aether workflows signal EXECUTION go --data '{"by": "ann"}'
  aether workflows retry EXECUTION
  aether workflows fork EXECUTION --from write
  aether workflows redrive --rule thank
  aether workflows schedules list
""",
)
def command() -> None:
    """Apply workflows, run them, and steer their executions.

    A workflow says which steps follow which; docs/workflows.md shows how one is written. An
    execution is a task, so `aether tasks` shows it, too. EXECUTION is its id, or the beginning of
    it.
    """


for one in (
    validate, test, apply, list_workflows, show, delete, run, wait, executions, cancel, retry, pause, resume,
    signal, answer, watch, history, fork, rotate, redrive, backfill, schedules, instances, joins,
):  # fmt: skip
    command.add_command(one)
