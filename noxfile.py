"""Every check and tool of the project.

`pip install nox && nox -s tests` is all a fresh machine needs.

Sessions make their own virtual environments with the standard library's venv and keep them between
runs.
"""

from __future__ import annotations

import os

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests"]

PYPROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> list[str]:
    """The requirements of one dependency group (PEP 735)."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


@nox.session
def tests(session: nox.Session) -> None:
    """The whole test suite; arguments after -- go to pytest."""
    session.install("-e", ".", *group("test"), *group("load"))
    # Without a Chromium (1) the browser tests are skipped, and in CI they fail.
    session.run("python", "scripts/ensure_program.py", "chromium", success_codes=[0, 1])
    # Without promtool (1) the tests of alerts are skipped, and in CI they fail.
    session.run("python", "scripts/ensure_program.py", "promtool", success_codes=[0, 1])
    # A container's environment often forbids to keep compiled modules (PYTHONDONTWRITEBYTECODE).
    # Then each of the hundreds of processes that tests start compiles all that it imports, which
    # takes as long as the rest of its start. Hence the empty value. In the order of the folders:
    # xdist's own order, by the number of tests, has the files of a few long tests last, and one
    # worker waits. Four at a time: CI has two processors, and a third of the time is waiting, in
    # which two workers leave one idle. A file's tests stay together, and so do its fixtures.
    # `-- -n 0` runs them in one process.
    environment = {"PYTHONDONTWRITEBYTECODE": ""}
    if os.environ.get("CI") and not session.posargs:
        # In a new clone each worker would compile all modules, all at once: four times the work.
        session.run("python", "-m", "pytest", "--collect-only", "-qqq", env=environment, silent=True)
    session.run(
        "python",
        "-m",
        "pytest",
        "-n",
        "4",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        "--durations=15",
        "--durations-min=1.0",
        *session.posargs,
        env=environment,
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff, mypy --strict, import-linter, and the check of names and prose."""
    session.install("-e", ".", *group("lint"), *group("test"), *group("bench"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports", "--no-cache")
    session.run("python", "scripts/check_house.py")


@nox.session
def demo(session: nox.Session) -> None:
    """A gateway, agents of the published SDK, a user, a progress line and a workflow.

    `-- --once` ends after one round; `-- --ask` shows an agent that asks to act for the user.
    """
    session.install("-e", ".", *group("interop"))
    session.run("python", "-m", "aether_trio.demo", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation's site into site/, and check its links.

    `-- serve` shows it on http://127.0.0.1:8000/ and builds it anew at each change.
    """
    session.install("-e", ".", *group("docs"))
    # A notice about a successor of MkDocs, at each build.
    quiet = {"NO_MKDOCS_2_WARNING": "1"}
    if session.posargs:
        session.run("python", "-m", "mkdocs", *session.posargs, env=quiet)
        return
    session.run("python", "-m", "mkdocs", "build", "--strict", env=quiet)
    session.run("python", "scripts/check_site.py", "site")
    session.log("open site/index.html, or see `nox -s docs -- serve`")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure; arguments after -- go to the bench (try `-- --help`)."""
    session.install("-e", ".", *group("bench"), *group("interop"), *group("cluster"))
    session.run("python", "-m", "bench", *session.posargs)


@nox.session
def load(session: nox.Session) -> None:
    """Many users of one transport against a gateway.

    Arguments after -- go to the load tests (try `-- --help`).
    """
    session.install("-e", ".", *group("load"))
    # After Ctrl-C it settles what is under way, and writes its report.
    session.run("python", "-m", "loadtests", *session.posargs, interrupt_timeout=300.0)


@nox.session
def chaos(session: nox.Session) -> None:
    """Faults by chance on a cluster under load, and what held.

    Arguments after -- go to it (try `-- --help`).
    """
    session.install("-e", ".", *group("chaos"))
    session.run("python", "-m", "chaos", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feed nonsense to every decoder that new clients reach, a minute each.

    `-- --target NAME --seconds N`, see `-- --help`.
    """
    session.install("-e", ".", *group("fuzz"))
    session.run("python", "-m", "fuzz", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change a module, one line at a time in a copy, and see which test notices.

    `-- MODULE --count N --seed N`, see `-- --help`.
    """
    session.install("-e", ".", *group("test"), *group("load"))
    # After Ctrl-C it ends what runs, and removes the copy.
    session.run("python", "-m", "mutants", *session.posargs, interrupt_timeout=30.0)


@nox.session
def proto(session: nox.Session) -> None:
    """Compile proto/ into aether_trio/wire/pb; arguments after -- go to the script."""
    session.install("-e", ".", *group("proto"))
    session.run("python", "scripts/compile_proto.py", *session.posargs)
