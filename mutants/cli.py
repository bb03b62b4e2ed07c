"""The command line."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mutants import report
from mutants.sample import LEAST_BOUND_S, CannotRun, Result, Wishes, run, tests_for

ROOT = Path(__file__).parents[1]
EPILOG = """\
examples (nox -s mutants -- ...):
  aether_trio/delivery/outbox.py --count 30 --seed 7
  aether_trio.services.tasks.transaction.task_transaction --tests tests/services/tasks/handlers/test_sessions.py
  aether_trio/cli/output.py --whole                   its tests start processes, whose lines are not seen

The tests are those of the folder that mirrors the module's. Of these, each change is tried with the tests that run the
changed line. A survivor may be noticed by tests elsewhere: name them with --tests and the line with --lines.

exit status: 0 every change was noticed; 1 one was not; 2 wrong arguments, or tests that cannot run
"""


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m mutants",
        description="Change one line of a module at a time, in a copy, and see whether a test notices.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("module", type=_module, help="a file of the package, or the name of a module")
    made.add_argument("--count", type=_positive, default=20, metavar="N", help="how many changes (20)")
    made.add_argument("--seed", type=int, metavar="N", help="of the sample; the same again with the same number (any)")
    made.add_argument("--tests", nargs="+", metavar="PATH", help="files or folders (the mirrored folder)")
    made.add_argument("--lines", type=_lines, metavar="A-B", help="changes of these lines only")
    made.add_argument("--whole", action="store_true", help="all of these tests for each change")
    made.add_argument(
        "--bound",
        type=_positive,
        default=int(LEAST_BOUND_S),
        metavar="S",
        help="beside four times what its tests took (150)",
    )
    made.add_argument("--root", type=_folder, default=ROOT, metavar="DIR", help="the tree that is copied (this one)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return made


def wishes_of(given: argparse.Namespace) -> Wishes:
    """What the options say."""
    return Wishes(
        root=given.root,
        module=given.module,
        tests=tuple(given.tests) if given.tests else tests_for(given.root, given.module),
        count=given.count,
        seed=secrets.randbelow(1_000_000) if given.seed is None else given.seed,
        whole=given.whole,
        lines=given.lines,
        least_bound_s=given.bound,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status."""
    given = parser().parse_args(arguments)
    if not (given.root / given.module).is_file():
        parser().error(f"there is no {given.module} in {given.root}")
    wishes = wishes_of(given)
    signal.signal(signal.SIGTERM, _interrupt)
    print(f"seed {wishes.seed}", file=sys.stderr, flush=True)
    try:
        outcomes = run(wishes, _say)
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(report.text(wishes, outcomes))
    if given.json:
        given.json.write_text(json.dumps(report.as_json(wishes, outcomes), indent=2) + "\n")
    return 1 if any(one.result is Result.SURVIVED for one in outcomes) else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    """The same as Ctrl-C: what runs is ended, and the copy removed."""
    raise KeyboardInterrupt


def _module(text: str) -> Path:
    return Path(text) if text.endswith(".py") else Path(*text.split(".")).with_suffix(".py")


def _folder(text: str) -> Path:
    return Path(text).resolve()


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _lines(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
