"""Make, write, read and check results as JSON objects of one version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.clusters import describe
from bench.scenarios import Scenario
from bench.transports import MAIN_TRANSPORT
from bench.units import Figures, Window, figures

SCHEMA = 1
TRANSPORT_MARK = "/"


class UnreadableResults(Exception):
    """A file that holds no results of this version."""


def name_of(transport: str, scenario: str) -> str:
    """Name a result: "routed-16" on the main transport, "framed/routed-16" on others."""
    return scenario if transport == MAIN_TRANSPORT else f"{transport}{TRANSPORT_MARK}{scenario}"


def split_name(name: str) -> tuple[str, str]:
    transport, mark, scenario = name.rpartition(TRANSPORT_MARK)
    return (transport if mark else MAIN_TRANSPORT), scenario


def of_scenario(scenario: Scenario, windows: Sequence[Window], echo_windows: Sequence[Window]) -> dict[str, Any]:
    found: Figures = figures(windows, echo_windows)
    errors = dict(scenario.world.errors)
    failures = list(scenario.verdict.failures)
    failures += [f"{count} x {code}" for code, count in errors.items()]
    return {
        "doc": scenario.doc,
        "unit": scenario.unit,
        "gated": list(scenario.gated),
        "parameters": scenario.parameters() | (describe(scenario.cluster) if scenario.cluster else {}),
        **asdict(found),
        "latency_us": scenario.latencies.summary(),
        "checks": scenario.verdict.counts,
        "errors": errors,
        "failed": "; ".join(failures),
        "goals": [asdict(goal) | {"kept": goal.kept} for goal in scenario.goals],
        **scenario.extra,
        "windows": [asdict(window) for window in windows],
        "echo_windows": [asdict(window) for window in echo_windows],
    }


def failed(scenario: type[Scenario], why: str) -> dict[str, Any]:
    return {"doc": scenario.doc, "unit": scenario.unit, "gated": [], "parameters": {}, "failed": why}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as a file that a diff can compare."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": SCHEMA, **results}, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read a file of results; raises UnreadableResults."""
    try:
        found: Any = json.loads(path.read_text())
    except (OSError, ValueError) as broken:
        raise UnreadableResults(f"{path}: {broken}") from broken
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UnreadableResults(f"{path}: not results of schema {SCHEMA}")
    return found
